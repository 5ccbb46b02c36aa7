//! Tells whoever wants to hear it that a stream and its consumers have a new leader, or lost their majority. As with
//! nats-server, only of what is held by more than one node.

use std::sync::Arc;

use levee_protocol::ids::ConsumerName;

use crate::advisory;
use crate::jetstream::JetStream;
use crate::runtime::tasks;
use crate::stream::Replica;

/// How many consumers are told of before other tasks have their turn.
const TURN: usize = 256;

/// This node leads the stream, or leads it no longer because it hears no majority.
pub(super) fn leadership(jetstream: &Arc<JetStream>, replica: &Arc<Replica>, leads: bool) {
    let stream = &replica.assignment().config;
    if stream.num_replicas < 2 {
        return;
    }
    advisory::stream_leadership(jetstream, replica, leads);
    let names: Vec<ConsumerName> = replica.read(|machine, _| {
        let shared = machine.consumers().filter(|(_, ledger)| ledger.config().effective_replicas(stream) > 1);
        shared.map(|(name, _)| name.clone()).collect()
    });
    if names.is_empty() {
        return;
    }
    let (jetstream, replica) = (Arc::clone(jetstream), Arc::clone(replica));
    tasks::spawn("advisories of consumers", async move {
        for names in names.chunks(TURN) {
            for name in names {
                advisory::consumer_leadership(&jetstream, &replica, name.as_str(), leads);
            }
            tokio::task::yield_now().await;
        }
    });
}

/// A consumer was created on this node, which leads its stream.
pub(super) fn new_consumer(jetstream: &JetStream, replica: &Replica, name: &ConsumerName) {
    let stream = &replica.assignment().config;
    let is_shared = replica.read(|machine, _| {
        machine.consumer(name).is_some_and(|ledger| ledger.config().effective_replicas(stream) > 1)
    });
    if is_shared {
        advisory::consumer_leadership(jetstream, replica, name.as_str(), true);
    }
}
