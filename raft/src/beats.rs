//! One sign of life between two nodes, for all groups that they share, so that a settled group costs nothing.
//!
//! A leader covers a group when every member of it answered since the group last changed. It says so in the list that
//! goes along with every few beats to the members, and stops the group's ticks: no heartbeats, no timers. A member
//! that agrees on leader and term stops its ticks too; one that does not says so, and the leader resumes. From then on
//! a group is left alone, however busy it is, until
//!
//! - its members, term or leader change, which each replica sees by itself;
//! - a node falls silent: groups that it leads elect as soon as their ticks are back, groups that it follows are
//!   watched by heartbeats again;
//! - the leader's list no longer names it, because the leader's half of it stopped: the members tick again.
//!
//! A beat decides nothing. It only lets replicas wait for each other without asking; who leads takes votes, and reads
//! confirm it with a majority.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use levee_protocol::ids::{GroupId, NodeId};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::codec::{Malformed, Reader, Writer as _};
use crate::groups::Groups;
use crate::messages::{Failure, Kind};
use crate::tasks::spawn;
use crate::transport::{Frame, Lane};

/// Every how many beats the list of covered groups goes along.
const LIST_EVERY: u32 = 5;
/// Beats of all groups travel under this number.
const NO_GROUP: GroupId = GroupId(0);

/// Which peers live, and which groups their word covers here.
#[derive(Debug)]
pub(crate) struct Beats {
    start: Instant,
    /// Silence after which a peer is not believed to live.
    patience: Duration,
    peers: RwLock<HashMap<NodeId, Peer>>,
    covers: Mutex<HashMap<NodeId, Cover>>,
}

#[derive(Debug)]
struct Peer {
    /// Milliseconds after `start`.
    heard: AtomicU64,
    silent: AtomicBool,
}

/// The groups that a leader's list covers here.
#[derive(Debug, Default)]
struct Cover {
    listed: HashSet<GroupId>,
    /// Missing in the newest list. The leader's heartbeats come first; a group that is still missing in the next list
    /// has none.
    missed: HashSet<GroupId>,
}

impl Beats {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { start: Instant::now(), patience, peers: RwLock::default(), covers: Mutex::default() }
    }

    /// Something came from the peer.
    pub(crate) fn heard(&self, peer: NodeId) {
        let now = self.millis();
        if let Some(known) = self.peers.read().get(&peer) {
            known.heard.store(now, Ordering::Relaxed);
            return;
        }
        let fresh = Peer { heard: AtomicU64::new(now), silent: AtomicBool::new(false) };
        self.peers.write().insert(peer, fresh);
    }

    /// How long nothing came from the peer; `None` if nothing ever did.
    pub(crate) fn silent_for(&self, peer: NodeId) -> Option<Duration> {
        let heard = self.peers.read().get(&peer)?.heard.load(Ordering::Relaxed);
        Some(Duration::from_millis(self.millis().saturating_sub(heard)))
    }

    /// Whether the peer gave a sign of life lately.
    pub(crate) fn lives(&self, peer: NodeId) -> bool {
        self.silent_for(peer).is_some_and(|silence| silence < self.patience)
    }

    /// The peer's process is gone: nothing that it said counts any longer.
    pub(crate) fn forget(&self, peer: NodeId) {
        self.peers.write().remove(&peer);
        self.covers.lock().remove(&peer);
    }

    /// Peers that were heard before and fell silent since the last look.
    fn fell_silent(&self) -> Vec<(NodeId, Duration)> {
        let now = self.millis();
        let peers = self.peers.read();
        let newly = peers.iter().filter_map(|(peer, known)| {
            let silence = Duration::from_millis(now.saturating_sub(known.heard.load(Ordering::Relaxed)));
            let is_silent = silence >= self.patience;
            let was_silent = known.silent.swap(is_silent, Ordering::Relaxed);
            (is_silent && !was_silent).then_some((*peer, silence))
        });
        newly.collect()
    }

    /// Takes the list of a leader. Returns the groups that it says nothing of any more.
    fn replace_cover(&self, leader: NodeId, listed: HashSet<GroupId>) -> Vec<GroupId> {
        let mut covers = self.covers.lock();
        let cover = covers.entry(leader).or_default();
        let gone = cover.missed.difference(&listed).copied().collect();
        cover.missed = cover.listed.difference(&listed).copied().collect();
        cover.listed = listed;
        gone
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Sends beats and looks for silence until the node's groups are dropped.
pub(crate) async fn run(groups: Weak<Groups>, every: Duration) {
    let mut beats = tokio::time::interval(every);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    let mut peers = HashSet::new();
    loop {
        beats.tick().await;
        let Some(groups) = groups.upgrade() else { return };
        for (peer, silence) in groups.beats.fell_silent() {
            groups.peer_silent(peer, silence);
        }
        if round.is_multiple_of(LIST_EVERY) {
            peers = groups.send_lists();
        } else {
            for peer in &peers {
                drop(groups.transport.call(*peer, Lane::Log, beat(Bytes::new())));
            }
        }
        round = round.wrapping_add(1);
    }
}

impl Groups {
    /// Covers what can be covered and tells the members. Returns all peers that share a group with this node.
    fn send_lists(&self) -> HashSet<NodeId> {
        let mut lists: HashMap<NodeId, Vec<(GroupId, u64)>> = HashMap::new();
        self.for_each(|group| {
            let core = &group.0;
            let term = core.covered_term(&self.beats);
            for member in core.peers() {
                let list = lists.entry(member).or_default();
                list.extend(term.map(|term| (core.id, term)));
            }
        });
        let peers = lists.keys().copied().collect();
        for (peer, list) in lists {
            let answer = self.transport.call(peer, Lane::Log, beat(encode_list(&list)));
            if list.is_empty() {
                continue;
            }
            let (groups, limit) = (self.this.clone(), self.config.append_timeout);
            spawn("beat", async move {
                let refused = match tokio::time::timeout(limit, answer).await {
                    Ok(Ok(frame)) if Failure::of(&frame).is_none() => decode_refused(&frame.head).ok(),
                    Ok(_) | Err(_) => None,
                };
                let Some(groups) = groups.upgrade() else { return };
                // Without an answer nobody can be relied on to know that the heartbeats stopped.
                let refused = refused.unwrap_or_else(|| list.iter().map(|(group, _)| *group).collect());
                for group in refused.iter().filter_map(|id| groups.group(*id)) {
                    group.0.uncover(Duration::ZERO);
                }
            });
        }
        peers
    }

    /// A peer's beat, with or without a list. The answer names the groups that this node does not see like the peer.
    pub(crate) fn beat_received(&self, from: NodeId, frame: &Frame) -> Frame {
        let answer = |head| Frame { group: NO_GROUP, kind: Kind::Beat as u8, head, payloads: Vec::new() };
        if frame.head.is_empty() {
            return answer(Bytes::new());
        }
        let list = match decode_list(&frame.head) {
            Ok(list) => list,
            Err(malformed) => return Failure::frame(NO_GROUP, &malformed),
        };
        let mut listed = HashSet::with_capacity(list.len());
        let mut refused = BytesMut::new();
        for (id, term) in list {
            if self.group(id).is_some_and(|group| group.0.cover(from, term)) {
                listed.insert(id);
            } else {
                refused.put_number(id.0);
            }
        }
        for group in self.beats.replace_cover(from, listed).into_iter().filter_map(|id| self.group(id)) {
            if group.0.leadership.borrow().leader == Some(from) {
                group.0.uncover(Duration::ZERO);
            }
        }
        answer(refused.freeze())
    }

    /// Groups that rely on the peer look after themselves again.
    pub(crate) fn peer_silent(&self, peer: NodeId, silence: Duration) {
        self.beats.covers.lock().remove(&peer);
        self.for_each(|group| {
            let core = &group.0;
            let leader = core.leadership.borrow().leader;
            if leader == Some(peer) || (leader == Some(core.node) && core.peers().contains(&peer)) {
                core.uncover(silence);
            }
        });
    }
}

fn beat(head: Bytes) -> Frame {
    Frame { group: NO_GROUP, kind: Kind::Beat as u8, head, payloads: Vec::new() }
}

/// A list is never empty bytes, which is a beat without one.
fn encode_list(list: &[(GroupId, u64)]) -> Bytes {
    let mut head = BytesMut::with_capacity(4 + 6 * list.len());
    head.put_number(list.len() as u64);
    for (group, term) in list {
        head.put_number(group.0);
        head.put_number(*term);
    }
    head.freeze()
}

fn decode_list(head: &[u8]) -> Result<Vec<(GroupId, u64)>, Malformed> {
    let mut reader = Reader::new(head);
    let count = reader.count()?;
    let list = (0..count).map(|_| Ok((GroupId(reader.number()?), reader.number()?))).collect();
    reader.end()?;
    list
}

fn decode_refused(head: &[u8]) -> Result<Vec<GroupId>, Malformed> {
    let mut reader = Reader::new(head);
    let mut refused = Vec::new();
    while !reader.is_at_end() {
        refused.push(GroupId(reader.number()?));
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(7);

    fn groups(ids: impl IntoIterator<Item = u64>) -> HashSet<GroupId> {
        ids.into_iter().map(GroupId).collect()
    }

    #[test]
    fn a_list_reads_back_and_an_empty_one_differs_from_none() {
        let list = [(GroupId(1), 3), (GroupId(u64::MAX), u64::MAX)];

        assert_eq!(decode_list(&encode_list(&list)).unwrap(), list);
        assert_eq!(decode_list(&encode_list(&[])).unwrap(), []);
        assert!(!encode_list(&[]).is_empty());
        assert!(decode_list(&encode_list(&list)[1..]).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_two_lists_in_a_row_miss_is_no_longer_covered() {
        let beats = Beats::new(Duration::from_millis(900));

        assert_eq!(beats.replace_cover(LEADER, groups([1, 2])), []);
        assert_eq!(beats.replace_cover(LEADER, groups([1])), []);
        assert_eq!(beats.replace_cover(LEADER, groups([1])), [GroupId(2)]);
        assert_eq!(beats.replace_cover(LEADER, groups([1])), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_falls_silent_once_until_it_is_heard_again() {
        let beats = Beats::new(Duration::from_millis(900));
        assert!(!beats.lives(LEADER));
        beats.heard(LEADER);
        assert!(beats.lives(LEADER));
        assert_eq!(beats.fell_silent(), []);

        tokio::time::advance(Duration::from_millis(1000)).await;

        assert!(!beats.lives(LEADER));
        assert_eq!(beats.fell_silent(), [(LEADER, Duration::from_millis(1000))]);
        assert_eq!(beats.fell_silent(), []);
        beats.heard(LEADER);
        assert!(beats.lives(LEADER));
        assert_eq!(beats.fell_silent(), []);
    }
}
