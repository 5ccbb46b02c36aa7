//! Makes this node hold the stream replicas that meta assigns to it: opens what is new, closes and deletes what
//! is gone, hands changed assignments on. Runs on every node, driven by changes of the meta state. And starts replicas of
//! streams in memory over that hold what their majority has lost.
//!
//! A replica that meta moved elsewhere votes until its group's leader has taken it out. Until then it is needed: it may be the
//! only one that has the messages. So what an earlier run left of such a group is opened again, and goes when the leader
//! says that the others go on without it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use levee_broker_core::meta::Touched;
use levee_protocol::api::StorageType;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::{GroupId, NodeId};
use levee_raft::Birth;

use crate::jetstream::JetStream;
use crate::stream::Replica;
use crate::stream::leader::{self, Leader};
use crate::stream::machine::Machine;

/// A replica that could not be opened, or that the others may still need, is looked at again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// Peer call to the leader of a group: whether it goes on without the node that asks.
pub const CALL_PARTED: u8 = 9;
const PARTED_TIMEOUT: Duration = Duration::from_secs(2);

/// What is kept from one group to the next.
struct Look {
    /// Groups of which an earlier run of this node left something, and which were not looked at since.
    leftovers: BTreeSet<GroupId>,
    /// Nodes that did not answer this time. Others are not kept waiting for them again.
    silent: BTreeSet<NodeId>,
}

/// Follows the meta state for as long as the node runs.
pub async fn run(jetstream: Arc<JetStream>) {
    let mut changes = jetstream.meta().changes();
    let mut look = Look { leftovers: stored_groups(&jetstream), silent: BTreeSet::new() };
    let mut left = BTreeSet::new();
    loop {
        look.silent.clear();
        let touched = match jetstream.meta().take_touched() {
            Touched::Groups(groups) => groups,
            Touched::All => all_groups(&jetstream).union(&look.leftovers).copied().collect(),
        };
        // What was left goes last, so that a stream that can't be opened does not keep others waiting.
        let again = std::mem::take(&mut left);
        // All that is known at once, before streams are opened one by one: publishes go to whoever leads them.
        for group in &touched {
            jetstream.directory().adopt(*group, assignment_of(&jetstream, *group).as_ref());
        }
        for group in touched.iter().chain(again.difference(&touched)) {
            if !settle(&jetstream, *group, &mut look).await {
                left.insert(*group);
            }
        }
        jetstream.note_settled(left.is_empty());
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

/// Groups of which an earlier run of this node left something.
fn stored_groups(jetstream: &JetStream) -> BTreeSet<GroupId> {
    let stored = jetstream.storage().groups().unwrap_or_else(|error| {
        tracing::error!(
            "can't look for what is left of streams that are not on this server any more: {error}"
        );
        Vec::new()
    });
    stored.into_iter().filter(|group| *group != GroupId::META).collect()
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
async fn settle(jetstream: &Arc<JetStream>, group: GroupId, look: &mut Look) -> bool {
    let node = jetstream.node();
    let assignment = assignment_of(jetstream, group);
    let replica = jetstream.replica(group);
    let elsewhere = assignment.clone().filter(|assignment| !assignment.replicas.contains(&node));
    match (assignment.filter(|assignment| assignment.replicas.contains(&node)), replica) {
        (None, None) if look.leftovers.contains(&group) => {
            let settled = settle_leftover(jetstream, group, elsewhere, look).await;
            if settled || jetstream.replica(group).is_some() {
                look.leftovers.remove(&group);
            }
            settled
        }
        (None, None) => true,
        (None, Some(gone)) => {
            let done = match elsewhere {
                None => true,
                Some(assignment) => {
                    // If it leads, it brings what it has to the others.
                    hand_on(&gone, assignment);
                    is_parted(jetstream, group, Some(&gone), look).await
                }
            };
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
            hand_on(&replica, assignment);
            true
        }
        (Some(assignment), None) => {
            let name = assignment.config.name.clone();
            let opened = open(jetstream, assignment).await;
            if let Err(error) = &opened {
                tracing::error!("stream '{name}' can't be opened on this server: {error}");
            }
            look.leftovers.remove(&group);
            opened.is_ok()
        }
    }
}

/// What an earlier run left of a group that is assigned to other nodes now, or whose stream was deleted. False when
/// something is left to try again.
async fn settle_leftover(
    jetstream: &Arc<JetStream>,
    group: GroupId,
    elsewhere: Option<StreamAssignment>,
    look: &mut Look,
) -> bool {
    if !jetstream.meta().read(|machine| machine.was_given(group)) {
        // The meta state as it is here does not know of the stream yet. It tells when it does.
        return false;
    }
    let Some(assignment) = elsewhere else {
        remove(jetstream, group, "a deleted stream").await;
        return true;
    };
    let name = assignment.config.name.clone();
    if is_parted(jetstream, group, None, look).await {
        remove(jetstream, group, &format!("stream '{name}', which is on other servers now,")).await;
        return true;
    }
    match open(jetstream, assignment).await {
        Ok(()) => {
            tracing::info!("stream '{name}' is to go to other servers, which have not taken it over yet")
        }
        Err(error) => tracing::error!(
            "stream '{name}' is to go to other servers, and what this one has can't be opened: {error}"
        ),
    }
    false
}

/// Whether the group's other members go on without this node.
async fn is_parted(
    jetstream: &JetStream,
    group: GroupId,
    replica: Option<&Replica>,
    look: &mut Look,
) -> bool {
    let node = jetstream.node();
    if let Some(replica) = replica {
        // A leader that took itself out is no other's follower: the last leader it knows of stays itself.
        if replica.group().leadership().borrow().leading {
            tracing::debug!(%group, "this server still leads a group that is to be on others");
            return false;
        }
        if replica.group().has_left(node) {
            return true;
        }
    }
    // Who was not there when it was taken out is not told, and members that are on their way out do not hear the end.
    let Some(leader) = jetstream.directory().leader(group).filter(|leader| *leader != node) else {
        tracing::debug!(%group, "who leads the group is not known; its replica here stays for now");
        return false;
    };
    if look.silent.contains(&leader) {
        return false;
    }
    let mut frame = BytesMut::with_capacity(16);
    frame.put_u64_le(group.0);
    frame.put_u64_le(node.0);
    let answer = jetstream.peers().call(leader, CALL_PARTED, frame.freeze(), PARTED_TIMEOUT).await;
    tracing::debug!(%group, %leader, ?answer, "asked whether the group goes on without this server");
    if answer.is_err() {
        look.silent.insert(leader);
    }
    answer.is_ok_and(|answer| answer.as_ref() == b"yes")
}

/// Answers a node that asks whether the group, if it is led here, goes on without it.
pub async fn answer_parted(jetstream: Arc<JetStream>, mut frame: Bytes) -> Bytes {
    if frame.len() != 16 {
        return Bytes::new();
    }
    let (group, node) = (GroupId(frame.get_u64_le()), NodeId(frame.get_u64_le()));
    let parted = jetstream.replica(group).is_some_and(|replica| {
        let is_wanted = replica.assignment().replicas.contains(&node);
        replica.leader().is_some() && !is_wanted && replica.group().has_left(node)
    });
    Bytes::from_static(if parted { b"yes" } else { b"no" })
}

fn hand_on(replica: &Replica, assignment: StreamAssignment) {
    if *replica.assignment() != assignment {
        replica.assign(assignment);
        if let Some(leader) = replica.leader() {
            leader.assignment_changed();
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
    let what =
        format!("stream '{}', which is deleted or on other servers now,", replica.assignment().config.name);
    remove(jetstream, replica.group_id(), &what).await;
    tracing::debug!(group = %replica.group_id(), "removed what was here of {what}");
}

async fn remove(jetstream: &JetStream, group: GroupId, what: &str) {
    if let Err(error) = jetstream.groups().remove(group).await {
        tracing::error!("data of {what} could not be removed and still takes space: {error}");
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
