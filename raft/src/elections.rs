//! When a replica stands for election, and when a quiet leader asks its followers. openraft has timers for both in every
//! group; they are off, because what they would notice happens to nodes, and so to thousands of groups at once:
//!
//! - a node whose process was seen to end, or that is silent, leads nothing any more;
//! - a node that started again leads nothing it led before;
//! - a node says which of its groups stopped by themselves, and who asks for votes does not lead;
//! - a group in which nobody leads, or whose leader is not heard in it for long, elects.
//!
//! Voters stand one after the other, in an order that differs from group to group, and ask first whether they would
//! win: nobody's term grows because of a node that only thinks it is alone. Voters refuse whoever wants to replace a
//! leader that they themselves hear.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use levee_protocol::ids::{GroupId, NodeId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::group::{GroupCore, Stopping};
use crate::groups::Groups;
use crate::messages::{Failure, Kind};
use crate::peers::decode_beat;
use crate::transport::{Frame, Lane};

/// How often groups are looked at.
const ROUND: Duration = Duration::from_millis(50);
/// Rounds that may be missed before this node counts as having slept.
const LATE_ROUNDS: u32 = 3;
/// Every how many rounds the node looks at all groups, not only at those in which something happened.
const ALL_EVERY: u32 = 20;
/// A leader that was not heard in its group for this many of its heartbeats does not lead it.
const HEARTBEATS_MISSED: u32 = 3;
/// Beats belong to no group.
const NO_GROUP: GroupId = GroupId(0);

/// A group that nobody leads, as far as this node sees.
struct Vacancy {
    raft_term: u64,
    tries: u32,
    due: Instant,
}

/// Groups in which something happened that may call for an election.
#[derive(Debug, Default)]
pub(crate) struct Restless(Mutex<BTreeSet<GroupId>>);

impl Restless {
    pub(crate) fn mark(&self, group: GroupId) {
        self.0.lock().insert(group);
    }

    fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Shows that this node lives, and stands for election where it must, until the node's groups are dropped.
pub(crate) async fn run(groups: Weak<Groups>) {
    let mut vacancies = HashMap::new();
    let mut members = BTreeSet::new();
    let mut stopped = Vec::new();
    let mut round = 0u32;
    let mut next_beat = Instant::now();
    let mut last_round = Instant::now();
    let mut died = false;
    loop {
        let Some(node) = groups.upgrade() else { return };
        let now = Instant::now();
        if now - last_round > ROUND * LATE_ROUNDS {
            node.peers.slept(now - last_round);
        }
        last_round = now;
        let turned = node.peers.look();
        let all = died || !turned.silent.is_empty() || round.is_multiple_of(ALL_EVERY);
        if all {
            members = node.members();
            stopped = node.stopped();
        }
        if now >= next_beat {
            next_beat = now + node.config.heartbeat;
            node.send_beats(&members, &stopped);
        }
        for peer in turned.heard {
            tracing::info!(%peer, "a silent node is heard again");
            node.greet(peer);
        }
        node.send_heartbeats(round);
        node.fill_vacancies(&mut vacancies, all);
        round = round.wrapping_add(1);
        let suspects = Arc::clone(&node.suspects);
        drop(node);
        died = tokio::select! {
            () = tokio::time::sleep_until(now + ROUND) => false,
            () = suspects.added() => true,
        };
    }
}

impl Groups {
    /// All nodes that share a group with this one.
    fn members(&self) -> BTreeSet<NodeId> {
        let mut members = BTreeSet::new();
        self.for_each(|group| {
            let server = group.0.raft.server_metrics();
            members.extend(server.borrow_watched().membership_config.nodes().map(|(node, _)| *node));
        });
        members.remove(&self.node());
        members
    }

    /// Groups that stopped on this node by themselves.
    fn stopped(&self) -> Vec<GroupId> {
        let mut stopped = Vec::new();
        self.for_each(|group| {
            if *group.0.stopping.borrow() == Stopping::Stopped {
                stopped.push(group.0.id);
            }
        });
        stopped
    }

    fn send_beats(&self, members: &BTreeSet<NodeId>, stopped: &[GroupId]) {
        let head = self.peers.beat(stopped);
        for member in members {
            drop(self.transport.call(*member, Lane::Log, beat(head.clone())));
        }
    }

    /// A sign of life came.
    pub(crate) fn beat_received(&self, from: NodeId, frame: &Frame) -> Frame {
        let (incarnation, stopped) = match decode_beat(&frame.head) {
            Ok(beat) => beat,
            Err(malformed) => return Failure::frame(NO_GROUP, &malformed),
        };
        if self.peers.is_reborn(from, incarnation) {
            tracing::info!(peer = %from, "a node started again");
            self.for_each(|group| group.0.doubt(from));
            self.greet(from);
        }
        for group in stopped.into_iter().filter_map(|id| self.group(id)) {
            group.0.doubt(from);
        }
        beat(Bytes::new())
    }

    /// Tells a node that came back which groups this one leads.
    fn greet(&self, peer: NodeId) {
        self.for_each(|group| {
            let core = &group.0;
            if core.leadership.borrow().leader == Some(core.node) && core.has_member(peer) {
                core.ask_followers();
            }
        });
    }

    /// The leaders of this node ask their followers, each group once in `group_heartbeat`.
    fn send_heartbeats(&self, round: u32) {
        let rounds = (self.config.group_heartbeat.as_millis() / ROUND.as_millis()).max(1) as u64;
        let turn = u64::from(round) % rounds;
        for group in self.groups_where(|id| id.0 % rounds == turn) {
            if group.0.leadership.borrow().leader == Some(self.node()) {
                group.0.ask_followers();
            }
        }
    }

    /// Looks for groups without a leader among all groups, or among those in which something happened, and stands
    /// where it is this node's turn.
    fn fill_vacancies(&self, vacancies: &mut HashMap<GroupId, Vacancy>, all: bool) {
        let mut restless = self.restless.take();
        restless.extend(vacancies.keys());
        let candidates = self.groups_where(|id| all || restless.contains(&id));
        let now = Instant::now();
        let mut vacant = HashMap::new();
        for group in candidates {
            let core = &group.0;
            let Some(gone) = self.vacancy(core) else { continue };
            let raft_term = core.leadership.borrow().raft_term;
            let mut vacancy = match vacancies.remove(&core.id) {
                Some(known) if known.raft_term == raft_term => known,
                // Somebody else stands, or stood: give it time.
                Some(known) => Vacancy { raft_term, due: now + self.pause(core, known.tries), ..known },
                None => Vacancy { raft_term, tries: 0, due: now + self.wait_for_turn(core, gone) },
            };
            core.let_go();
            if now >= vacancy.due {
                let leader = core.leadership.borrow().leader;
                core.stand(!leader.is_some_and(|leader| self.suspects.contains(leader)));
                vacancy.tries = vacancy.tries.wrapping_add(1);
                vacancy.due = now + self.pause(core, vacancy.tries);
            }
            vacant.insert(core.id, vacancy);
        }
        *vacancies = vacant;
    }

    /// Whether nobody leads the group and this node has a vote in it.
    fn vacancy(&self, core: &GroupCore) -> Option<Gone> {
        let seen = *core.leadership.borrow();
        if seen.leading || core.unborn.load(Ordering::Acquire) || *core.stopping.borrow() != Stopping::No {
            return None;
        }
        let gone = match seen.leader {
            Some(leader) if leader == core.node => Gone::This,
            Some(leader) => {
                let is_gone = !self.peers.lives(leader)
                    || core.doubted.load(Ordering::Acquire) == seen.raft_term
                    || self.suspects.contains(leader)
                    || core.leader_silent_for() > self.config.group_heartbeat * HEARTBEATS_MISSED;
                if !is_gone {
                    return None;
                }
                Gone::Other(leader)
            }
            None => Gone::Unknown,
        };
        let server = core.raft.server_metrics();
        let server = server.borrow_watched();
        let may_stand = server.state != ServerState::Leader
            && server.membership_config.voter_ids().any(|voter| voter == core.node);
        may_stand.then_some(gone)
    }

    /// How long this node leaves it to others to stand first.
    fn wait_for_turn(&self, core: &GroupCore, gone: Gone) -> Duration {
        let dead = match gone {
            // The last leader has everything, and nobody else knows yet that it led no longer.
            Gone::This => return Duration::ZERO,
            Gone::Other(leader) => Some(leader),
            Gone::Unknown => None,
        };
        let server = core.raft.server_metrics();
        let voters: BTreeSet<_> = server
            .borrow_watched()
            .membership_config
            .voter_ids()
            .filter(|voter| Some(*voter) != dead)
            .collect();
        let Some(position) = voters.iter().position(|voter| *voter == core.node) else {
            return self.config.election_max;
        };
        if voters.len() == 1 {
            return Duration::ZERO;
        }
        let first = usize::try_from(core.id.0 % voters.len() as u64).unwrap_or(0);
        let turn = (position + voters.len() - first) % voters.len();
        // Where nobody is known to lead, somebody may be about to say so.
        let turn = turn + usize::from(dead.is_none());
        self.stagger(core) * u32::try_from(turn).unwrap_or(u32::MAX)
    }

    fn stagger(&self, core: &GroupCore) -> Duration {
        let stagger = self.config.candidate_stagger;
        if core.is_new() { stagger / 4 } else { stagger }
    }

    /// Time between two tries, different for each voter and try.
    fn pause(&self, core: &GroupCore, tries: u32) -> Duration {
        let mut hasher = DefaultHasher::new();
        (core.node.0, core.id.0, tries).hash(&mut hasher);
        // A new group has no leader to be patient with: some of its members are not there yet.
        let (shortest, longest) = if core.is_new() {
            (self.config.candidate_stagger, self.config.election_min)
        } else {
            (self.config.election_min, self.config.election_max)
        };
        let share = u32::try_from(hasher.finish() % 1000).unwrap_or(0);
        shortest + longest.saturating_sub(shortest) * share / 1000
    }
}

/// Who leads no longer.
#[derive(Clone, Copy)]
enum Gone {
    /// This node, before it started again.
    This,
    Other(NodeId),
    /// Nobody is known to have led.
    Unknown,
}

impl GroupCore {
    /// The node does not lead this group any more, if it did as far as this node knows.
    pub(crate) fn doubt(&self, leader: NodeId) {
        let seen = *self.leadership.borrow();
        if seen.leader == Some(leader) && leader != self.node {
            self.doubted.store(seen.raft_term, Ordering::Release);
            self.restless.mark(self.id);
        }
    }

    /// Something came from the group's leader.
    pub(crate) fn leader_heard(&self) {
        self.leader_heard.store(self.peers.millis(), Ordering::Relaxed);
    }

    fn leader_silent_for(&self) -> Duration {
        Duration::from_millis(self.peers.millis().saturating_sub(self.leader_heard.load(Ordering::Relaxed)))
    }

    /// A heartbeat to all followers, if this node leads.
    fn ask_followers(&self) {
        // Dropped when the group's queue is full: then the group has other things to tell.
        let _ = self.raft.trigger().heartbeat().now_or_never();
    }

    /// This voter no longer refuses others for its leader's sake.
    pub(crate) fn let_go(&self) {
        let vote = {
            let server = self.raft.server_metrics();
            server.borrow_watched().vote
        };
        let Some(leader) = self.leadership.borrow().leader.filter(|leader| *leader != self.node) else {
            return;
        };
        if vote.is_committed() {
            // What openraft does with a request to hand leadership to somebody else is just this. Dropped when the
            // group's queue is full; its own timers then do it later.
            let request = TransferLeaderRequest::new(vote, leader, None);
            let _ = self.raft.handle_transfer_leader(request).now_or_never();
        }
    }

    /// Nobody ever led it, as far as this node knows.
    fn is_new(&self) -> bool {
        self.leadership.borrow().raft_term <= 1
    }

    /// Stands for election, after asking the others first whether they would vote for this node or without.
    fn stand(&self, ask_first: bool) {
        // Dropped when the group's queue is full; the next try comes.
        let _ = self.raft.trigger().elect(ask_first).now_or_never();
    }
}

fn beat(head: Bytes) -> Frame {
    Frame { group: NO_GROUP, kind: Kind::Beat as u8, head, payloads: Vec::new() }
}
