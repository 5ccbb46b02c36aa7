//! Which nodes were seen to die. Kept per node, because one dead process ends the leadership of many groups.

use std::collections::HashMap;
use std::time::Duration;

use levee_protocol::ids::NodeId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Nodes whose process this node itself saw end, until they are heard from again.
///
/// A suspicion only lets elections skip the wait for a leader's lease. It never decides who leads: that takes a
/// majority of votes, each given once per term, and reads confirm leadership with a majority.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    nodes: Mutex<HashMap<NodeId, Instant>>,
    changed: Notify,
    /// Kept for the one who stands for election, who may be busy.
    added: Notify,
}

/// How late something can come from a process that has ended.
const LATE: Duration = Duration::from_millis(100);
/// A suspicion older than this is of no use: elections have long happened by timeout.
const FORGET_AFTER: Duration = Duration::from_secs(10);

impl Suspects {
    pub(crate) fn add(&self, node: NodeId) {
        self.nodes.lock().insert(node, Instant::now());
        self.changed.notify_waiters();
        self.added.notify_one();
    }

    pub(crate) fn clear(&self, node: NodeId) {
        self.nodes.lock().remove(&node);
    }

    /// Something came from the node. What was on its way when its process ended comes a little later than the news of it
    /// and does not count.
    pub(crate) fn heard(&self, node: NodeId) {
        let mut nodes = self.nodes.lock();
        if nodes.get(&node).is_some_and(|since| since.elapsed() > LATE) {
            nodes.remove(&node);
        }
    }

    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.nodes.lock().get(&node).is_some_and(|since| since.elapsed() < FORGET_AFTER)
    }

    pub(crate) fn any(&self) -> bool {
        self.nodes.lock().values().any(|since| since.elapsed() < FORGET_AFTER)
    }

    /// Returns when another node was seen to die since the last call. For one caller.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// Waits a little for this node to see what a peer says it has seen.
    pub(crate) async fn wait_for(&self, node: NodeId, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let changed = self.changed.notified();
            if self.contains(node) {
                return true;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return self.contains(node);
            }
        }
    }
}
