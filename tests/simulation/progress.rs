//! What consumers of a stream did, on its way to the log, as the broker has it.

use std::sync::Arc;

use bytes::Bytes;
use levee_broker_core::stream::Reply as Decided;
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_raft::{Outbox, Reply};

use crate::leading::Leader;
use crate::post::Parcel;

/// An ack that its client wants to have confirmed.
pub(crate) struct Confirmation {
    /// Of which consumer.
    pub(crate) consumer: ConsumerName,
    /// In which life of it.
    pub(crate) incarnation: u64,
    /// Of which message.
    pub(crate) seq: Seq,
    /// Where to.
    pub(crate) to: Bytes,
}

/// What consumers reported and the log has not got yet.
pub(crate) type Collector = Outbox<ConsumerProgress, Confirmation>;

/// Proposes and confirms until an entry is in doubt.
pub(crate) async fn run(leader: Arc<Leader>) {
    let encode = |consumers| {
        let progress = Progress { now: leader.world.stamp(&leader.host, &leader.stream), consumers };
        StreamCommand::Progress(progress).encode().into_bytes()
    };
    let confirm = |confirmations: Vec<Confirmation>, reply| {
        if is_there(reply) {
            confirm(&leader, &confirmations);
        }
    };
    leader.progress.run(&leader.stream.group, leader.raft_term, encode, confirm).await;
}

fn is_there(reply: Reply) -> bool {
    matches!(reply.downcast::<Decided>(), Ok(reply) if !matches!(*reply, Decided::Rejected(_)))
}

fn confirm(leader: &Leader, confirmations: &[Confirmation]) {
    for Confirmation { consumer, incarnation, seq, to } in confirmations {
        leader.world.oracle.confirmed(consumer, *incarnation, *seq, leader.raft_term);
        leader.world.post.send(to, Parcel::Confirmed);
    }
}
