//! The lease that openraft asks a leader for before it takes entries: a majority answered lately.
//!
//! Heartbeats renew it, and so does replication. A covered group has no heartbeats, so when it was quiet it asks its
//! members once before it goes on: one round trip for the first entry after a rest.

use bytes::Bytes;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;

use crate::error::ProposeError;
use crate::group::{Group, GroupCore};
use crate::proposals::Then;

/// A proposal that waits for the lease to be renewed.
pub(crate) struct Parked {
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
    pub(crate) then: Then,
}

impl Group {
    /// openraft takes entries only from a leader that a majority answered lately. A covered group that was quiet asks
    /// first, and what is proposed meanwhile waits in order.
    pub(crate) async fn renew_and_propose(&self) {
        let is_renewed = self.0.renew_lease().await;
        let mut refused = Vec::new();
        let mut parked = self.0.parked.lock();
        for Parked { kind, payload, then } in parked.drain(..) {
            let offered = if is_renewed {
                self.try_propose(kind, payload, then)
            } else {
                Err((then, ProposeError::NotLeader { leader: None }))
            };
            refused.extend(offered.err());
        }
        drop(parked);
        for (then, error) in refused {
            then(Err(error));
        }
    }
}

impl GroupCore {
    /// Whether a majority has not answered this leader for so long that openraft may refuse entries.
    pub(crate) fn is_lease_stale(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let alone = || metrics.membership_config.voter_ids().all(|voter| voter == self.node);
        metrics.state == ServerState::Leader
            && metrics.last_quorum_acked.as_ref().is_none_or(|at| at.elapsed() > self.config.election_max / 2)
            && !alone()
    }

    /// Asks the members for a sign that this node still leads. False if no majority gives one in time.
    pub(crate) async fn renew_lease(&self) -> bool {
        if !self.is_lease_stale() {
            return true;
        }
        let fresh = self.config.election_max / 2;
        let mut metrics = self.raft.metrics();
        let answered = async {
            self.raft.trigger().heartbeat().await.ok()?;
            let settled = metrics.wait_until(|metrics| {
                metrics.state != ServerState::Leader
                    || metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < fresh)
            });
            settled.await.ok().map(|metrics| metrics.state == ServerState::Leader)
        };
        tokio::time::timeout(self.config.election_max, answered).await.ok().flatten().unwrap_or(false)
    }
}
