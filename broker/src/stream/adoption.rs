//! A stream's leader brings it in line with what meta assigned: its configuration through its own log, its voters through
//! its group's membership. When it holds where meta wants it, it tells meta so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::meta::MetaReply;
use levee_broker_core::stream::Reply;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::command::{MetaCommand, StreamCommand};
use levee_protocol::ids::{GroupId, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::jetstream::JetStream;
use crate::stream::Replica;

/// A change that meets an obstacle is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);
/// How long new replicas may take to catch up before the log says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// Peer call to the meta leader: a stream has arrived where it was to go.
pub const CALL_ARRIVED: u8 = 11;
const ARRIVED_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Arrival {
    group: GroupId,
    replicas: Vec<NodeId>,
}

/// Runs for as long as this node leads the stream.
pub(super) async fn run(jetstream: Arc<JetStream>, replica: Arc<Replica>, changed: Arc<Notify>) {
    loop {
        let assignment = replica.assignment();
        let adopted = replica.read(|machine, _| machine.config() == Some(&assignment.config));
        if !adopted && !configure(&jetstream, &replica, &assignment).await {
            // Leadership is going, or the disk is full: try again while we are here.
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let wanted: BTreeSet<NodeId> = assignment.replicas.iter().copied().collect();
        let name = &assignment.config.name;
        // A leader that took itself out leads for a moment still. Who comes after it is there, and says so.
        let has_arrived = assignment.moving.is_some() && wanted.contains(&jetstream.node());
        if !replica.group().consists_of(&wanted) {
            tokio::select! {
                change = replica.group().set_members(wanted) => if let Err(error) = change {
                    tracing::warn!("replicas of stream '{name}' can't be changed yet: {error}");
                    tokio::time::sleep(RETRY).await;
                },
                () = tokio::time::sleep(PATIENCE) => {
                    tracing::warn!("new replicas of stream '{name}' take long to catch up");
                }
                // Meta may have changed its mind.
                () = changed.notified() => {}
            }
            continue;
        }
        if has_arrived && !tell_arrived(&jetstream, &assignment).await {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = changed.notified() => {}
            }
            continue;
        }
        changed.notified().await;
    }
}

/// False when it has to be tried again.
async fn configure(jetstream: &JetStream, replica: &Replica, assignment: &StreamAssignment) -> bool {
    let command = StreamCommand::Configure {
        now: replica.now(jetstream.clock()),
        created: assignment.created,
        config: Box::new(assignment.config.clone()),
    };
    let reply = replica.propose(&command).await;
    if let Ok(Reply::Rejected(error)) = &reply {
        tracing::error!(
            "stream '{}' refuses the configuration that meta decided: {}",
            assignment.config.name,
            error.description
        );
    }
    reply.is_ok()
}

/// False when nobody has noted it.
async fn tell_arrived(jetstream: &Arc<JetStream>, assignment: &StreamAssignment) -> bool {
    let arrival = Arrival { group: assignment.group, replicas: assignment.replicas.clone() };
    let leader = jetstream.meta().group().and_then(|meta| meta.leadership().borrow().leader);
    match leader {
        Some(leader) if leader == jetstream.node() => note(jetstream, arrival).await,
        Some(leader) => {
            let frame = serde_json::to_vec(&arrival).expect("plain data encodes");
            let answer = jetstream.peers().call(leader, CALL_ARRIVED, frame.into(), ARRIVED_TIMEOUT).await;
            answer.is_ok_and(|answer| answer.as_ref() == b"yes")
        }
        None => false,
    }
}

/// Answers a peer's [`CALL_ARRIVED`]. Empty when this node can not note it.
pub async fn answer_arrived(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    let Ok(arrival) = serde_json::from_slice(&frame) else { return Bytes::new() };
    Bytes::from_static(if note(&jetstream, arrival).await { b"yes" } else { b"" })
}

async fn note(jetstream: &JetStream, Arrival { group, replicas }: Arrival) -> bool {
    let command = MetaCommand::EndMove { now: jetstream.clock().now(), group, replicas };
    matches!(jetstream.meta().propose(&command).await, Ok(MetaReply::MoveEnded))
}
