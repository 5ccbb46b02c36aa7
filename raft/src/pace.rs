//! Whether a group looks after itself, with heartbeats and election timers of its own, or is covered by the beats
//! between the nodes: see `beats.rs`.
//!
//! No lock is taken while the pace is held but that of the leadership, and those who look at openraft's metrics look
//! at the pace before or after.

use std::time::Duration;

use levee_protocol::ids::NodeId;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use crate::beats::Beats;
use crate::group::{GroupCore, Stopping};
use crate::types::TypeConfig;

/// Entries that a member may lack while its group is covered: replication needs no ticks, so a busy group is covered
/// too.
const COVERED_LAG_MAX: u64 = 4096;

/// Whether the group looks after itself: ticks, which are heartbeats on its leader and election timers elsewhere.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Beats between the nodes stand for the group's own ticks.
    covered: bool,
    /// Nobody to look after: a leader that is the only member.
    alone: bool,
    /// When it last began to look after itself.
    since: Instant,
    /// The other members.
    peers: Vec<NodeId>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { covered: false, alone: false, since: Instant::now(), peers: Vec::new() }
    }
}

impl GroupCore {
    /// Leader, term or members changed: the group looks after itself until a leader covers it again.
    pub(crate) fn changed(&self, server: &openraft::metrics::RaftServerMetrics<TypeConfig>) {
        let members = server.membership_config.nodes().map(|(node, _)| *node);
        let peers: Vec<NodeId> = members.filter(|node| *node != self.node).collect();
        let mut pace = self.pace.lock();
        let alone = peers.is_empty() && server.state == ServerState::Leader;
        *pace = Pace { covered: false, alone, since: Instant::now(), peers };
        self.raft.runtime_config().tick(!alone);
    }

    /// Beats of the leader stand for its heartbeats, if this node sees the same leader.
    pub(crate) fn cover(&self, leader: NodeId, raft_term: u64) -> bool {
        let mut pace = self.pace.lock();
        let seen = *self.leadership.borrow();
        if seen.leader != Some(leader)
            || seen.raft_term != raft_term
            || *self.stopping.borrow() != Stopping::No
        {
            return false;
        }
        if !pace.covered {
            pace.covered = true;
            self.raft.runtime_config().tick(false);
        }
        true
    }

    /// The group looks after itself again, as if it had since its peer fell silent.
    pub(crate) fn uncover(&self, silence: Duration) {
        let mut pace = self.pace.lock();
        if pace.covered {
            pace.covered = false;
            let now = Instant::now();
            pace.since = now.checked_sub(silence).unwrap_or(now);
            self.raft.runtime_config().tick(!pace.alone);
        }
    }

    /// The term in which this node leads the group and covers it, from now on if all members answered.
    pub(crate) fn covered_term(&self, beats: &Beats) -> Option<u64> {
        let leadership = *self.leadership.borrow();
        if !leadership.leading || *self.stopping.borrow() != Stopping::No {
            return None;
        }
        let is_covered = self.is_covered()
            || (self.all_members_answer(beats) && self.cover(self.node, leadership.raft_term));
        is_covered.then_some(leadership.raft_term)
    }

    fn all_members_answer(&self, beats: &Beats) -> bool {
        // No lock is taken under another: others hold them the other way around.
        let (peers, since) = {
            let pace = self.pace.lock();
            if pace.alone {
                return false;
            }
            (pace.peers.clone(), pace.since)
        };
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let answered = |node: &NodeId| {
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(node)).and_then(|at| *at);
            let known = metrics.replication.as_ref().and_then(|known| known.get(node));
            let matched = known.and_then(Option::as_ref);
            beats.lives(*node)
                && heard.is_some_and(|at| at.elapsed() < since.elapsed())
                && matched.is_some_and(|matched| matched.index + COVERED_LAG_MAX >= last)
        };
        metrics.state == ServerState::Leader
            && metrics.membership_config.membership().get_joint_config().len() == 1
            && peers.iter().all(answered)
    }

    /// Beats stand for the group's own heartbeats and election timers.
    pub(crate) fn is_covered(&self) -> bool {
        self.pace.lock().covered
    }

    /// The other members.
    pub(crate) fn peers(&self) -> Vec<NodeId> {
        self.pace.lock().peers.clone()
    }

    /// A leader that lives covers the group, as far as this node sees: nobody else need stand for election.
    pub(crate) fn is_led(&self, candidate: NodeId) -> bool {
        let leader = self.leadership.borrow().leader.filter(|leader| *leader != candidate);
        self.pace.lock().covered
            && leader.is_some_and(|leader| leader == self.node || self.beats.lives(leader))
    }

    /// How long a member was silent: to the group, or to this node while beats stand for the group.
    pub(crate) fn silent_for(&self, node: NodeId, to_group: Option<Duration>) -> Option<Duration> {
        if !self.pace.lock().covered {
            return to_group;
        }
        to_group.into_iter().chain(self.beats.silent_for(node)).min()
    }

    /// Notices when a leader's majority went silent, and when it came back.
    pub(crate) fn check_majority(&self) {
        let since = {
            let pace = self.pace.lock();
            (!pace.covered && !pace.alone).then_some(pace.since)
        };
        let lost = since.is_some_and(|since| {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let alone = metrics.membership_config.voter_ids().count() <= 1;
            metrics.state == ServerState::Leader
                && !alone
                && since.elapsed() > self.config.majority_lost_after
                && metrics
                    .last_quorum_acked
                    .as_ref()
                    .is_some_and(|at| at.elapsed() > self.config.majority_lost_after)
        });
        self.majority_lost.send_if_modified(|known| {
            let changed = *known != lost;
            if changed && lost {
                tracing::warn!(group = %self.id, "no majority answers; this leader stops serving until one does");
            }
            *known = lost;
            changed
        });
    }
}
