//! Folding, as the broker does it: what all consumers of a stream did becomes one log entry every few milliseconds.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use levee_broker_core::consumer::{Fate, Numbered, Outbox};
use levee_broker_core::stream::Reply as Decided;
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_raft::{ProposeError, Reply};
use levee_storage::kind::INLINE;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::leading::Leader;
use crate::post::Parcel;

const FOLD_INTERVAL: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(50);

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

struct Entry {
    bytes: Bytes,
    confirmations: Vec<Confirmation>,
}

type Proposed = (Numbered<Entry>, Result<(u64, Reply), ProposeError>);

/// What consumers reported and the log has not got yet.
#[derive(Default)]
pub(crate) struct Collector {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    consumers: Vec<ConsumerProgress>,
    confirmations: Vec<Confirmation>,
    urgent: bool,
}

impl Collector {
    /// Takes a consumer's marks.
    pub(crate) fn report(
        &self,
        progress: Option<ConsumerProgress>,
        confirmations: Vec<Confirmation>,
        urgent: bool,
    ) {
        if progress.is_none() && confirmations.is_empty() {
            return;
        }
        let mut pending = self.pending.lock();
        pending.urgent |= urgent || !confirmations.is_empty();
        pending.consumers.extend(progress);
        pending.confirmations.extend(confirmations);
        drop(pending);
        self.wake.notify_one();
    }

    /// Proposes and confirms until an entry is in doubt.
    pub(crate) async fn run(self: Arc<Self>, leader: Arc<Leader>) {
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, Proposed>>::new();
        let mut outbox = Outbox::default();
        loop {
            tokio::select! {
                biased;
                Some((entry, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    let Ok(applied) = outbox.settle(entry, fate(&outcome)) else { return };
                    if let Some(entry) = applied && is_there(outcome) {
                        confirm(&leader, &entry.confirmations);
                    }
                    continue;
                }
                () = tokio::time::sleep(RETRY), if outbox.may_retry() => {}
                () = self.wake.notified(), if outbox.has_room() => {
                    if !self.pending.lock().urgent {
                        tokio::time::sleep(FOLD_INTERVAL).await;
                    }
                    let pending = std::mem::take(&mut *self.pending.lock());
                    if pending.consumers.is_empty() && pending.confirmations.is_empty() {
                        continue;
                    }
                    let now = leader.world.stamp(&leader.host, &leader.stream);
                    let progress = Progress { now, consumers: pending.consumers };
                    let bytes = StreamCommand::Progress(progress).encode().into_bytes();
                    outbox.add(Entry { bytes, confirmations: pending.confirmations });
                }
            }
            while let Some(entry) = outbox.take() {
                let mut proposal =
                    leader.stream.group.propose_in(leader.raft_term, INLINE, entry.entry.bytes.clone());
                match (&mut proposal).now_or_never() {
                    Some(outcome) if fate(&outcome) == Fate::NotTaken => {
                        let settled = outbox.settle(entry, Fate::NotTaken);
                        debug_assert!(settled.is_ok(), "what was not taken is not in doubt");
                        break;
                    }
                    Some(outcome) => in_flight.push_back(Box::pin(ready((entry, outcome)))),
                    None => in_flight.push_back(Box::pin(proposal.map(|outcome| (entry, outcome)))),
                }
            }
        }
    }
}

fn fate(outcome: &Result<(u64, Reply), ProposeError>) -> Fate {
    match outcome {
        Ok(_) => Fate::Applied,
        Err(error) if error.may_be_committed() => Fate::Unknown,
        Err(_) => Fate::NotTaken,
    }
}

fn is_there(outcome: Result<(u64, Reply), ProposeError>) -> bool {
    let reply = outcome.map(|(_, reply)| reply.downcast::<Decided>());
    matches!(reply, Ok(Ok(reply)) if !matches!(*reply, Decided::Rejected(_)))
}

fn confirm(leader: &Leader, confirmations: &[Confirmation]) {
    for Confirmation { consumer, incarnation, seq, to } in confirmations {
        leader.world.oracle.confirmed(consumer, *incarnation, *seq, leader.raft_term);
        leader.world.post.send(to, Parcel::Confirmed);
    }
}
