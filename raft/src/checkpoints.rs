//! When checkpoints are written and logs are cut: about a second after a group's first unwritten change, which
//! spreads groups by itself, and as soon as much was applied.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use levee_protocol::ids::GroupId;
use openraft::Instant as _;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::group::{Group, Stopping};
use crate::groups::Groups;
use crate::state_machine::Floors;

/// Groups with changes that are in memory only, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    queue: Mutex<Queue>,
    /// There is one, where there was none.
    some: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<(Instant, GroupId)>,
    members: HashSet<GroupId>,
}

impl Dirty {
    /// The group has something to write. Cheap when it already said so.
    pub(crate) fn mark(&self, group: GroupId) {
        let mut queue = self.queue.lock();
        if !queue.members.insert(group) {
            return;
        }
        let was_empty = queue.order.is_empty();
        queue.order.push_back((Instant::now(), group));
        drop(queue);
        if was_empty {
            self.some.notify_one();
        }
    }

    /// The group is about to write; what it applies from now on marks it again.
    pub(crate) fn clean(&self, group: GroupId) {
        self.queue.lock().members.remove(&group);
    }

    #[cfg(test)]
    pub(crate) fn is_marked(&self, group: GroupId) -> bool {
        self.queue.lock().members.contains(&group)
    }

    /// Waits until a group may be due. A quiet node does not look again and again.
    async fn wait(&self, age: Duration) {
        let oldest = self.queue.lock().order.front().map(|(since, _)| *since);
        match oldest {
            Some(since) => tokio::time::sleep_until((since + age).max(Instant::now() + ROUND)).await,
            // Now and then, so that the loop ends with the node.
            None => drop(tokio::time::timeout(IDLE_LOOK, self.some.notified()).await),
        }
    }

    fn due(&self, age: Duration) -> Vec<GroupId> {
        let mut queue = self.queue.lock();
        let mut due = Vec::new();
        while let Some((since, group)) = queue.order.front().copied() {
            if since.elapsed() < age {
                break;
            }
            queue.order.pop_front();
            // Written since then by itself: the mark is gone, or a newer one stands further back.
            if queue.members.remove(&group) {
                due.push(group);
            }
        }
        due
    }
}

/// Least time between two rounds.
const ROUND: Duration = Duration::from_millis(50);
const IDLE_LOOK: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 8;
/// A follower that has been silent for longer gets a snapshot when it comes back, if it must.
const LIVE_WITHIN: Duration = Duration::from_secs(10);
const SNAPSHOT_KNOWN_WITHIN: Duration = Duration::from_secs(2);

/// Runs until the node's groups are dropped.
pub(crate) async fn run(groups: Weak<Groups>) {
    loop {
        let Some(node) = groups.upgrade() else { return };
        let (dirty, age) = (Arc::clone(&node.dirty), node.config.checkpoint_after);
        let due = dirty.due(age).into_iter().filter_map(|id| node.group(id));
        futures::stream::iter(due).for_each_concurrent(AT_ONCE, |group| maintain(group, &dirty)).await;
        drop(node);
        dirty.wait(age).await;
    }
}

async fn maintain(group: Group, dirty: &Dirty) {
    if *group.0.stopping.borrow() != Stopping::No {
        return;
    }
    match group.checkpoint_behind().await {
        Ok(Some(floors)) => purge(&group, floors, dirty).await,
        Ok(None) => {}
        Err(error) => {
            if *group.0.stopping.borrow() == Stopping::No {
                tracing::error!(group = %group.id(), "a checkpoint failed, the log keeps growing: {error}");
            }
        }
    }
}

async fn purge(group: &Group, floors: Floors, dirty: &Dirty) {
    let upto = purge_to(group, floors);
    let purged = group.0.log.purged().map_or(0, |id| id.index);
    let config = &group.0.config;
    // Entries may be small and many, or few and large.
    let worth_it = upto >= purged + config.purge_batch || floors.unpurged_bytes >= 2 * config.keep_bytes;
    if upto <= purged || !worth_it {
        return;
    }
    // openraft only lets go of what it knows to be in a snapshot, so it is told of the checkpoint first.
    let mut known = group.0.raft.data_metrics();
    if group.0.raft.trigger().snapshot().await.is_err() {
        return;
    }
    let seen = known.wait_until(|data| data.snapshot.as_ref().is_some_and(|id| id.index >= upto));
    if !matches!(tokio::time::timeout(SNAPSHOT_KNOWN_WITHIN, seen).await, Ok(Ok(_))) {
        return;
    }
    if group.0.raft.trigger().purge_log(upto).await.is_ok() {
        // So that the machine hears of it and gives up what it kept for the log's sake.
        dirty.mark(group.id());
    }
}

/// The last index that may go: what followers still need stays, up to a bound.
fn purge_to(group: &Group, floors: Floors) -> u64 {
    let ordinary = floors.ordinary.min(floors.checkpointed);
    let metrics = group.0.raft.metrics();
    let metrics = metrics.borrow_watched();
    if metrics.state != ServerState::Leader {
        return ordinary;
    }
    let live = |node| {
        let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(node)).and_then(|at| *at);
        heard.is_some_and(|at| at.elapsed() < LIVE_WITHIN)
    };
    let replicas = metrics.replication.iter().flatten();
    let needed = replicas
        .filter(|(node, _)| **node != group.0.node && live(node))
        .map(|(_, matched)| matched.as_ref().map_or(0, |id| id.index))
        .min();
    ordinary.min(needed.unwrap_or(u64::MAX)).max(floors.forced.min(ordinary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_is_due_once_an_age_after_its_first_mark() {
        let dirty = Dirty::default();
        let age = Duration::from_secs(1);

        dirty.mark(GroupId(1));
        tokio::time::advance(Duration::from_millis(600)).await;
        dirty.mark(GroupId(1));
        dirty.mark(GroupId(2));
        tokio::time::advance(Duration::from_millis(600)).await;

        assert_eq!(dirty.due(age), [GroupId(1)]);
        assert_eq!(dirty.due(age), []);
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(dirty.due(age), [GroupId(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_wrote_by_itself_waits_for_its_next_change() {
        let dirty = Dirty::default();
        dirty.mark(GroupId(1));

        dirty.clean(GroupId(1));
        tokio::time::advance(Duration::from_secs(2)).await;

        assert_eq!(dirty.due(Duration::from_secs(1)), []);
    }
}
