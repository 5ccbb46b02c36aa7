//! Makes this node hold the stream replicas that meta assigns to it: opens what is new, closes and deletes what
//! is gone, hands changed assignments on. Runs on every node, driven by changes of the meta state. And starts replicas of
//! streams in memory over that hold what their majority has lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::meta::Touched;
use levee_protocol::api::StorageType;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::GroupId;
use levee_raft::Birth;

use crate::jetstream::JetStream;
use crate::stream::Replica;
use crate::stream::leader::{self, Leader};
use crate::stream::machine::Machine;

/// A replica that could not be opened is tried again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the meta state for as long as the node runs.
pub async fn run(jetstream: Arc<JetStream>) {
    let mut changes = jetstream.meta().changes();
    let mut left = BTreeSet::new();
    loop {
        let touched = match jetstream.meta().take_touched() {
            Touched::Groups(groups) => groups,
            Touched::All => all_groups(&jetstream),
        };
        // What was left goes last, so that a stream that can't be opened does not keep others waiting.
        let again = std::mem::take(&mut left);
        // All that is known at once, before streams are opened one by one: publishes go to whoever leads them.
        for group in &touched {
            jetstream.directory().adopt(*group, assignment_of(&jetstream, *group).as_ref());
        }
        for group in touched.iter().chain(again.difference(&touched)) {
            if !settle(&jetstream, *group).await {
                left.insert(*group);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY), if !left.is_empty() => {}
            changed = changes.changed() => if changed.is_err() { return },
            overruled = jetstream.groups().overruled() => left.extend(overruled),
        }
    }
}

fn assignment_of(jetstream: &JetStream, group: GroupId) -> Option<StreamAssignment> {
    jetstream.meta().read(|machine| machine.stream_of_group(group).cloned())
}

/// Groups of streams that exist, that were known, or that are open here.
fn all_groups(jetstream: &JetStream) -> BTreeSet<GroupId> {
    let mut groups: BTreeSet<_> =
        jetstream.meta().read(|machine| machine.all_streams().map(|assignment| assignment.group).collect());
    groups.extend(jetstream.directory().groups());
    groups.extend(jetstream.replicas().iter().map(|replica| replica.group_id()));
    groups
}

/// Makes this node what meta says of one group. False when something is left to try again.
async fn settle(jetstream: &Arc<JetStream>, group: GroupId) -> bool {
    let node = jetstream.node();
    let assignment = assignment_of(jetstream, group);
    let replica = jetstream.replica(group);
    let deleted = assignment.is_none();
    match (assignment.filter(|assignment| assignment.replicas.contains(&node)), replica) {
        (None, None) => true,
        (None, Some(gone)) => {
            // A replica that meta moved elsewhere stays until the group's leader has taken it out of the voters.
            // Before that, or while it still leads, the others would wait for it in vain.
            let status = gone.group().status();
            let done = deleted || (!status.voters.contains(&node) && status.leader != Some(node));
            if done {
                close(jetstream, &gone).await;
            }
            done
        }
        (Some(assignment), Some(replica)) if replica.group().is_overruled() => {
            let name = assignment.config.name.clone();
            let started = start_over(jetstream, &replica, assignment).await;
            match &started {
                Ok(()) => tracing::warn!(
                    "stream '{name}', in memory: this server's replica held what the majority lost and was emptied; its leader fills it"
                ),
                Err(error) => tracing::error!(
                    "stream '{name}', in memory: this server's replica holds what the majority lost and can't be emptied yet: {error}"
                ),
            }
            started.is_ok()
        }
        (Some(assignment), Some(replica)) => {
            if *replica.assignment() != assignment {
                replica.assign(assignment);
                if let Some(leader) = replica.leader() {
                    leader.assignment_changed();
                }
            }
            true
        }
        (Some(assignment), None) => {
            let name = assignment.config.name.clone();
            let opened = open(jetstream, assignment).await;
            if let Err(error) = &opened {
                tracing::error!("stream '{name}' can't be opened on this server: {error}");
            }
            opened.is_ok()
        }
    }
}

async fn open(jetstream: &Arc<JetStream>, assignment: StreamAssignment) -> Result<(), OpenFailed> {
    let group_id = assignment.group;
    let sync = match assignment.config.storage {
        StorageType::File => levee_storage::Sync::Always,
        StorageType::Memory => levee_storage::Sync::Never,
    };
    // Only a stream that lies where it was created has all its founders; later replicas are filled by its leader.
    let birth = if assignment.replicas_changed {
        Birth::Joining
    } else {
        Birth::Founding(assignment.replicas.iter().copied().collect())
    };
    let storage = Arc::clone(jetstream.storage());
    let replica = tokio::task::spawn_blocking(move || Replica::load(&storage, assignment))
        .await
        .map_err(|error| OpenFailed::Load(error.to_string()))??;
    let group =
        jetstream.groups().open(group_id, sync, Box::new(Machine::new(Arc::clone(&replica))), birth).await?;
    replica.attach(group);
    jetstream.insert_replica(Arc::clone(&replica));
    leader::watch(jetstream, replica);
    Ok(())
}

async fn start_over(
    jetstream: &Arc<JetStream>,
    replica: &Arc<Replica>,
    assignment: StreamAssignment,
) -> Result<(), OpenFailed> {
    // Not found by anybody until it is open again.
    take_out(jetstream, replica, Leader::leadership_lost);
    jetstream.groups().start_over(replica.group_id()).await?;
    open(jetstream, assignment).await
}

/// Nobody finds the replica any more, and it leads no longer.
fn take_out(jetstream: &JetStream, replica: &Replica, end: fn(&Leader)) {
    jetstream.take_replica(replica.group_id());
    if let Some(leader) = replica.leader() {
        end(&leader);
    }
    replica.set_leader(None);
}

async fn close(jetstream: &Arc<JetStream>, replica: &Arc<Replica>) {
    take_out(jetstream, replica, Leader::stream_deleted);
    if let Err(error) = jetstream.groups().remove(replica.group_id()).await {
        tracing::error!(
            "data of deleted stream '{}' could not be removed and still takes space: {error}",
            replica.assignment().config.name
        );
    }
}

#[derive(Debug, thiserror::Error)]
enum OpenFailed {
    #[error("{0}")]
    Load(String),
    #[error(transparent)]
    Storage(#[from] levee_storage::Error),
    #[error(transparent)]
    Raft(#[from] levee_raft::Error),
}
