//! Which other nodes live. Two nodes that share groups give each other a sign of life every few hundred milliseconds,
//! for all their groups together; anything else that comes from a node counts as one.
//!
//! A sign of life decides nothing: it only tells replicas when to stand for election without every group asking every
//! other replica all the time. Who leads takes votes, and reads confirm it with a majority.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use levee_protocol::ids::{GroupId, NodeId};
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::codec::{Malformed, Reader, Writer as _};

/// What is known of the other nodes' lives.
#[derive(Debug)]
pub(crate) struct Peers {
    start: Instant,
    /// Silence after which a node is not believed to live.
    patience: Duration,
    /// Differs from start to start of this node.
    incarnation: u64,
    known: RwLock<HashMap<NodeId, Peer>>,
}

#[derive(Debug)]
struct Peer {
    /// When something came last, in milliseconds after `start`.
    heard: AtomicU64,
    /// Of its last sign of life; 0 before the first.
    incarnation: AtomicU64,
    /// When that came.
    beat_at: AtomicU64,
    was_silent: AtomicBool,
}

/// What changed between two looks at the nodes.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Turned {
    pub(crate) silent: Vec<NodeId>,
    pub(crate) heard: Vec<NodeId>,
}

impl Peers {
    pub(crate) fn new(patience: Duration) -> Self {
        let incarnation = RandomState::new().hash_one("incarnation").max(1);
        Self { start: Instant::now(), patience, incarnation, known: RwLock::default() }
    }

    /// Something came from the node.
    pub(crate) fn heard(&self, peer: NodeId) {
        let now = self.millis();
        if let Some(known) = self.known.read().get(&peer) {
            known.heard.store(now, Ordering::Relaxed);
            return;
        }
        let fresh = Peer {
            heard: AtomicU64::new(now),
            incarnation: AtomicU64::new(0),
            beat_at: AtomicU64::new(0),
            was_silent: AtomicBool::new(false),
        };
        self.known.write().insert(peer, fresh);
    }

    /// How long nothing came from the node, at most since this one started.
    pub(crate) fn silent_for(&self, peer: NodeId) -> Duration {
        self.since(self.known.read().get(&peer).map_or(0, |known| known.heard.load(Ordering::Relaxed)))
    }

    /// Whether the node gave a sign of life lately.
    pub(crate) fn lives(&self, peer: NodeId) -> bool {
        self.silent_for(peer) < self.patience
    }

    /// This node itself did nothing for a while: what others sent meanwhile is not read yet.
    pub(crate) fn slept(&self, span: Duration) {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let now = self.millis();
        for known in self.known.read().values() {
            let heard = known.heard.load(Ordering::Relaxed);
            known.heard.fetch_max(heard.saturating_add(span).min(now), Ordering::Relaxed);
        }
    }

    /// Nodes that fell silent since the last look, and nodes that were silent then and are heard again.
    pub(crate) fn look(&self) -> Turned {
        let mut turned = Turned::default();
        for (peer, known) in self.known.read().iter() {
            let is_silent = self.since(known.heard.load(Ordering::Relaxed)) >= self.patience;
            match (known.was_silent.swap(is_silent, Ordering::Relaxed), is_silent) {
                (false, true) => turned.silent.push(*peer),
                (true, false) => turned.heard.push(*peer),
                (false, false) | (true, true) => {}
            }
        }
        turned
    }

    /// Takes what a sign of life says of the node's process. If it is another process than before, returns when the
    /// former one gave its last, in milliseconds since this node started.
    pub(crate) fn beat(&self, peer: NodeId, incarnation: u64) -> Option<u64> {
        let now = self.millis();
        let known = self.known.read();
        let known = known.get(&peer)?;
        let before = known.incarnation.swap(incarnation, Ordering::Relaxed);
        let last = known.beat_at.swap(now, Ordering::Relaxed);
        (before != 0 && before != incarnation).then_some(last)
    }

    /// What this node says of itself, with the groups that it leads no longer.
    pub(crate) fn own_beat(&self, stopped: &[GroupId]) -> Bytes {
        let mut head = BytesMut::with_capacity(8 + 5 * stopped.len());
        head.put_u64(self.incarnation);
        for group in stopped {
            head.put_number(group.0);
        }
        head.freeze()
    }

    /// What has passed since a moment, given in milliseconds since this node started.
    pub(crate) fn since(&self, moment: u64) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(moment))
    }

    /// Milliseconds since this node started.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A node's process, and the groups that stopped in it by themselves.
pub(crate) fn decode_beat(head: &[u8]) -> Result<(u64, Vec<GroupId>), Malformed> {
    let (incarnation, rest) = head.split_first_chunk().ok_or(Malformed("beat"))?;
    let mut reader = Reader::new(rest);
    let mut stopped = Vec::new();
    while !reader.is_at_end() {
        stopped.push(GroupId(reader.number()?));
    }
    Ok((u64::from_be_bytes(*incarnation), stopped))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(7);
    const PATIENCE: Duration = Duration::from_millis(900);

    #[test]
    fn a_beat_reads_back() {
        let peers = Peers::new(PATIENCE);
        let stopped = [GroupId(3), GroupId(u64::MAX)];

        assert_eq!(decode_beat(&peers.own_beat(&stopped)).unwrap(), (peers.incarnation, stopped.to_vec()));
        assert_eq!(decode_beat(&peers.own_beat(&[])).unwrap(), (peers.incarnation, Vec::new()));
        assert!(decode_beat(&[1, 2, 3]).is_err());
        assert!(decode_beat(&[0, 0, 0, 0, 0, 0, 0, 1, 0x80]).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_lives_while_it_is_heard_and_returns_once() {
        let peers = Peers::new(PATIENCE);
        assert!(peers.lives(PEER), "a node that just started gives the others time");
        peers.heard(PEER);
        tokio::time::advance(PATIENCE).await;
        assert!(!peers.lives(PEER));
        assert_eq!(peers.look(), Turned { silent: vec![PEER], heard: Vec::new() });
        assert_eq!(peers.look(), Turned::default());

        peers.heard(PEER);

        assert!(peers.lives(PEER));
        assert_eq!(peers.look(), Turned { silent: Vec::new(), heard: vec![PEER] });
        assert_eq!(peers.look(), Turned::default());
    }

    #[tokio::test(start_paused = true)]
    async fn own_sleep_does_not_count_as_silence_of_others() {
        let peers = Peers::new(PATIENCE);
        peers.heard(PEER);
        tokio::time::advance(PATIENCE * 3).await;

        peers.slept(PATIENCE * 3 - Duration::from_millis(100));

        assert_eq!(peers.silent_for(PEER), Duration::from_millis(100));
    }

    #[test]
    fn another_process_under_the_same_name_is_noticed() {
        let peers = Peers::new(PATIENCE);
        peers.heard(PEER);

        assert_eq!(peers.beat(PEER, 5), None);
        assert_eq!(peers.beat(PEER, 5), None);
        assert!(peers.beat(PEER, 6).is_some());
        assert_eq!(peers.beat(PEER, 6), None);
    }
}
