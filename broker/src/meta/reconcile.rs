//! Makes this node hold the stream replicas that meta assigns to it: opens what is new, closes and deletes what
//! is gone, hands changed assignments on. Runs on every node, driven by changes of the meta state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use levee_protocol::api::StorageType;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::GroupId;
use levee_raft::Birth;

use crate::jetstream::JetStream;
use crate::stream::machine::Machine;
use crate::stream::{Replica, leader};

/// A replica that could not be opened is tried again after this long.
const RETRY: Duration = Duration::from_secs(2);

/// Follows the meta state for as long as the node runs.
pub async fn run(jetstream: Arc<JetStream>) {
    let mut changes = jetstream.meta().changes();
    loop {
        let complete = reconcile(&jetstream).await;
        if complete {
            if changes.changed().await.is_err() {
                return;
            }
        } else {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// One pass. False when something is left to try again.
async fn reconcile(jetstream: &Arc<JetStream>) -> bool {
    let node = jetstream.node();
    let (all, mine) = jetstream.meta().read(|machine| {
        let all: Vec<StreamAssignment> = machine.all_streams().cloned().collect();
        let mine: BTreeMap<GroupId, StreamAssignment> = all
            .iter()
            .filter(|assignment| assignment.replicas.contains(&node))
            .map(|assignment| (assignment.group, assignment.clone()))
            .collect();
        (all, mine)
    });
    jetstream.directory().replace(&all);

    let mut complete = true;
    for gone in jetstream.replicas().into_iter().filter(|replica| !mine.contains_key(&replica.group_id())) {
        // A replica that meta moved elsewhere stays until the group's leader has taken it out of the voters.
        let deleted = !all.iter().any(|assignment| assignment.group == gone.group_id());
        if deleted || !gone.group().status().voters.contains(&node) {
            close(jetstream, &gone).await;
        } else {
            complete = false;
        }
    }

    for assignment in mine.into_values() {
        match jetstream.replica(assignment.group) {
            Some(replica) => {
                if *replica.assignment() != assignment {
                    replica.assign(assignment);
                    if let Some(leader) = replica.leader() {
                        leader.assignment_changed();
                    }
                }
            }
            None => {
                let name = assignment.config.name.clone();
                if let Err(error) = open(jetstream, assignment).await {
                    tracing::error!("stream '{name}' can't be opened on this server: {error}");
                    complete = false;
                }
            }
        }
    }
    complete
}

async fn open(jetstream: &Arc<JetStream>, assignment: StreamAssignment) -> Result<(), OpenFailed> {
    let group_id = assignment.group;
    let sync = match assignment.config.storage {
        StorageType::File => levee_storage::Sync::Always,
        StorageType::Memory => levee_storage::Sync::Never,
    };
    // Only a stream that lies where it was created has all its founders; later replicas are filled by its leader.
    let birth = if assignment.replicas_changed { Birth::Joining } else { Birth::Founding };
    let founders = assignment.replicas.iter().copied().collect();
    let storage = Arc::clone(jetstream.storage());
    let replica = tokio::task::spawn_blocking(move || Replica::load(&storage, assignment))
        .await
        .map_err(|error| OpenFailed::Load(error.to_string()))??;
    let group =
        jetstream.groups().open(group_id, sync, Box::new(Machine::new(Arc::clone(&replica))), birth).await?;
    replica.attach(group.clone());
    if birth == Birth::Founding {
        // Every founder initializes with the same voters; a group that has a log already ignores it.
        if let Err(error) = group.initialize(&founders).await {
            // Tried again from the start, which an open group would refuse.
            jetstream.groups().close(group_id).await;
            return Err(error.into());
        }
    }
    jetstream.insert_replica(Arc::clone(&replica));
    leader::watch(jetstream, replica);
    Ok(())
}

async fn close(jetstream: &Arc<JetStream>, replica: &Arc<Replica>) {
    jetstream.take_replica(replica.group_id());
    if let Some(leader) = replica.leader() {
        leader.stream_deleted();
    }
    replica.set_leader(None);
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
