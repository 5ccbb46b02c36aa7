//! Folding, as the broker does it: what all consumers of a stream did becomes one log entry every few milliseconds.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
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
const IN_FLIGHT_MAX: usize = 4;

/// An ack that its client wants to have confirmed.
pub(crate) struct Confirmation {
    /// Of which consumer.
    pub(crate) consumer: ConsumerName,
    /// Of which message.
    pub(crate) seq: Seq,
    /// Where to.
    pub(crate) to: Bytes,
}

type Confirmations = (Vec<Confirmation>, Result<(u64, Reply), ProposeError>);

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

    /// Proposes and confirms until nobody knows what became of an entry.
    pub(crate) async fn run(self: Arc<Self>, leader: Arc<Leader>) {
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, Confirmations>>::new();
        let mut refused: Option<(Bytes, Vec<Confirmation>)> = None;
        loop {
            tokio::select! {
                biased;
                Some((confirmations, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    match outcome.map(|(_, reply)| reply.downcast::<Decided>()) {
                        Ok(Ok(reply)) if !matches!(*reply, Decided::Rejected(_)) => {
                            confirm(&leader, &confirmations);
                        }
                        Ok(_) => {}
                        Err(_) => return,
                    }
                    continue;
                }
                () = tokio::time::sleep(RETRY), if refused.is_some() => {}
                () = self.wake.notified(), if refused.is_none() && in_flight.len() < IN_FLIGHT_MAX => {
                    if !self.pending.lock().urgent {
                        tokio::time::sleep(FOLD_INTERVAL).await;
                    }
                    let pending = std::mem::take(&mut *self.pending.lock());
                    if pending.consumers.is_empty() && pending.confirmations.is_empty() {
                        continue;
                    }
                    let now = leader.world.stamp(&leader.host, &leader.stream);
                    let progress = Progress { now, consumers: pending.consumers };
                    let entry = StreamCommand::Progress(progress).encode().into_bytes();
                    refused = Some((entry, pending.confirmations));
                }
            }
            let Some((entry, confirmations)) = refused.take() else { continue };
            let mut proposal = leader.stream.group.propose(INLINE, entry.clone());
            match (&mut proposal).now_or_never() {
                Some(Err(ProposeError::Full | ProposeError::NoRoom | ProposeError::NotLeader { .. })) => {
                    refused = Some((entry, confirmations));
                }
                Some(outcome) => in_flight.push_back(Box::pin(ready((confirmations, outcome)))),
                None => in_flight.push_back(Box::pin(proposal.map(|outcome| (confirmations, outcome)))),
            }
        }
    }
}

fn confirm(leader: &Leader, confirmations: &[Confirmation]) {
    for Confirmation { consumer, seq, to } in confirmations {
        leader.world.oracle.confirmed(consumer, *seq, leader.raft_term);
        leader.world.post.send(to, Parcel::Confirmed);
    }
}
