//! Who leads a group, as a value that others watch.
//!
//! `leading` is stricter than openraft's leader state on both ends: it begins when this leader has applied the first
//! entry of its own term, and with it everything before; and it ends when a majority was silent for long, even if
//! nobody told us of a successor. If the same leader goes on afterwards, it has applied everything that it had proposed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use levee_protocol::ids::NodeId;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::watch;

use crate::group::{GroupCore, Stopping};
use crate::starting_over::stored_vote;
use crate::tasks::spawn;
use crate::types::{LeaderId, TypeConfig};

/// Who leads a group, seen from this node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leadership {
    /// The leader, if this node knows one.
    pub leader: Option<NodeId>,
    /// The leader's term. A term alone does not name a leader.
    pub raft_term: u64,
    /// This node leads, and its machine holds everything that was committed before it did.
    pub leading: bool,
    /// This node leads a group whose majority it does not hear.
    pub majority_lost: bool,
    /// Counts how often this node began to lead: two looks at a watch can miss that it stopped in between.
    pub epoch: u64,
}

type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;

/// Follows openraft's state until the group stops.
pub(crate) fn follow(core: &Arc<GroupCore>) {
    let mut server = core.raft.server_metrics();
    let mut own = core.applied.own.subscribe();
    let mut majority = core.majority_lost.subscribe();
    let core = Arc::downgrade(core);
    spawn("leadership", async move {
        loop {
            let now = leadership(
                &server.borrow_and_update(),
                own.borrow_and_update().as_ref(),
                *majority.borrow_and_update(),
            );
            let Some(group) = core.upgrade() else { return };
            group.set_leadership(now);
            drop(group);
            tokio::select! {
                changed = server.changed() => if changed.is_err() { break },
                changed = own.changed() => if changed.is_err() { break },
                changed = majority.changed() => if changed.is_err() { break },
            }
        }
        stopped(&core);
    });
}

fn stopped(core: &Weak<GroupCore>) {
    let Some(group) = core.upgrade() else { return };
    if let Err(fatal) = &group.raft.metrics().borrow_watched().running_state
        && *group.stopping.borrow() == Stopping::No
    {
        tracing::error!(group = %group.id, "the group stopped on this node and serves nothing here: {fatal}");
    }
    // What was committed was not known to be when the leader's entries came.
    if group.is_volatile
        && group.taken_back.load(Ordering::Acquire)
        && let Ok(Some(vote)) = stored_vote(group.id, &group.log)
    {
        group.overrule(&vote);
    }
    group.stopping.send_replace(Stopping::Stopped);
    group.set_leadership(Leadership::default());
    group.waiting.release_all(None);
}

fn leadership(server: &ServerMetrics, own: Option<&LeaderId>, majority_lost: bool) -> Leadership {
    let leader_id = server.vote.leader_id();
    let leads = server.state == ServerState::Leader;
    Leadership {
        leader: server.current_leader.filter(|_| !(leads && majority_lost)),
        raft_term: leader_id.term,
        leading: leads && !majority_lost && own == Some(leader_id),
        majority_lost: leads && majority_lost,
        epoch: 0,
    }
}

pub(crate) fn channel() -> watch::Sender<Leadership> {
    watch::Sender::new(Leadership::default())
}
