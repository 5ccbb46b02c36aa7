//! When a replica stands for election. openraft has a timer for it in every group; its timers are slow here, and only
//! catch what this file misses. What replaces them looks at nodes, because leaders are lost by the thousand:
//!
//! - a node whose process was seen to end, or that is silent, leads nothing any more;
//! - a node that started again leads nothing it led before;
//! - a node says which of its groups stopped by themselves, and who asks for votes does not lead;
//! - a group in which nobody leads elects.
//!
//! Voters stand one after the other, in an order that differs from group to group, and ask first whether they would
//! win: nobody's term grows because of a node that only thinks it is alone. Voters refuse whoever wants to replace a
//! leader that they themselves hear.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use levee_protocol::ids::{GroupId, NodeId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
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
/// Every how many beats the node looks whom to send them to.
const MEMBERS_EVERY: u32 = 5;
/// Beats belong to no group.
const NO_GROUP: GroupId = GroupId(0);

/// A group that nobody leads, as far as this node sees.
struct Vacancy {
    raft_term: u64,
    tries: u32,
    due: Instant,
}

/// Shows that this node lives, and stands for election where it must, until the node's groups are dropped.
pub(crate) async fn run(groups: Weak<Groups>) {
    let mut vacancies = HashMap::new();
    let mut members = BTreeSet::new();
    let mut beats = 0u32;
    let mut next_beat = Instant::now();
    let mut last_round = Instant::now();
    loop {
        let Some(node) = groups.upgrade() else { return };
        let now = Instant::now();
        if now - last_round > ROUND * LATE_ROUNDS {
            node.peers.slept(now - last_round);
        }
        last_round = now;
        if now >= next_beat {
            next_beat = now + node.config.heartbeat;
            if beats.is_multiple_of(MEMBERS_EVERY) {
                members = node.members();
            }
            beats = beats.wrapping_add(1);
            node.send_beats(&members);
        }
        for peer in node.peers.returned() {
            tracing::info!(%peer, "a silent node is heard again");
            node.greet(peer);
        }
        node.fill_vacancies(&mut vacancies);
        let suspects = std::sync::Arc::clone(&node.suspects);
        drop(node);
        tokio::select! {
            () = tokio::time::sleep_until(now + ROUND) => {}
            () = suspects.added() => {}
        }
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

    fn send_beats(&self, members: &BTreeSet<NodeId>) {
        let mut stopped = Vec::new();
        self.for_each(|group| {
            if *group.0.stopping.borrow() == Stopping::Stopped {
                stopped.push(group.0.id);
            }
        });
        let head = self.peers.beat(&stopped);
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
                // Dropped when the group's queue is full: then the group has other things to tell.
                let _ = core.raft.trigger().heartbeat().now_or_never();
            }
        });
    }

    fn fill_vacancies(&self, vacancies: &mut HashMap<GroupId, Vacancy>) {
        let now = Instant::now();
        let mut vacant = HashMap::new();
        self.for_each(|group| {
            let core = &group.0;
            let Some(gone) = self.vacancy(core) else { return };
            let raft_term = core.leadership.borrow().raft_term;
            let mut vacancy = match vacancies.remove(&core.id) {
                Some(known) if known.raft_term == raft_term => known,
                // Somebody else stands, or stood: give it time.
                Some(known) => Vacancy { raft_term, due: now + self.pause(core, known.tries), ..known },
                None => {
                    core.let_go();
                    Vacancy { raft_term, tries: 0, due: now + self.wait_for_turn(core, gone) }
                }
            };
            if now >= vacancy.due {
                let leader = core.leadership.borrow().leader;
                core.stand(!leader.is_some_and(|leader| self.suspects.contains(leader)));
                vacancy.tries = vacancy.tries.wrapping_add(1);
                vacancy.due = now + self.pause(core, vacancy.tries);
            }
            vacant.insert(core.id, vacancy);
        });
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
                    || self.suspects.contains(leader);
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
        }
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
