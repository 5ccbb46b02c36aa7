//! Folding: deliveries and acks of all consumers of a stream become one log entry every few milliseconds.
//!
//! A confirmed ack (the client asked for an answer) is answered after its entry is applied, and does not wait for
//! company. Plain marks wait a little, so that a busy consumer costs a few hundred entries a second at most.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use levee_broker_core::stream::Reply as Decided;
use levee_protocol::command::StreamCommand;
use levee_protocol::command::progress::{ConsumerProgress, Progress};
use levee_protocol::ids::AccountName;
use levee_raft::{ProposeError, Reply};
use levee_storage::kind::INLINE;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::router::{MessageRef, Router};
use crate::runtime::clock::Clock;
use crate::stream::Replica;

/// How long plain marks wait for company.
const FOLD_INTERVAL: Duration = Duration::from_millis(5);
/// How long an entry that was not taken waits before it is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// Entries on their way at one time.
const IN_FLIGHT_MAX: usize = 4;

/// Acks to confirm, and what became of the entry that they wait for.
type Confirmations = (Vec<Bytes>, Result<(u64, Reply), ProposeError>);

/// What consumers reported and the log has not got yet.
pub struct Collector {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    consumers: Vec<ConsumerProgress>,
    /// Reply subjects of acks to confirm.
    confirmations: Vec<Bytes>,
    /// Somebody waits for this: do not fold further.
    urgent: bool,
}

impl Collector {
    /// Nothing reported yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { pending: Mutex::new(Pending::default()), wake: Notify::new() })
    }

    /// Takes a consumer's marks. `urgent` marks (an ack that frees a place or deletes a message) and
    /// confirmations leave at once.
    pub fn report(&self, progress: Option<ConsumerProgress>, confirmations: Vec<Bytes>, urgent: bool) {
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

    /// Proposes and confirms until dropped, or until nobody knows what became of an entry: then the drivers, which
    /// believe it is in the log, have to be built again.
    pub async fn run(self: Arc<Self>, replica: Arc<Replica>, router: Arc<Router>, clock: Clock) {
        let account = replica.assignment().account.clone();
        let group = replica.group().clone();
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, Confirmations>>::new();
        // An entry that was not taken. Nothing overtakes it: marks of later deliveries would hide its own.
        let mut refused: Option<(Bytes, Vec<Bytes>)> = None;
        loop {
            tokio::select! {
                biased;
                Some((confirmations, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    match outcome.map(|(_, reply)| reply.downcast::<Decided>()) {
                        Ok(Ok(reply)) if !matches!(*reply, Decided::Rejected(_)) => {
                            confirm(&router, &account, &confirmations);
                        }
                        // The stream is gone: there is nothing to confirm.
                        Ok(_) => {}
                        // Confirms nothing: the client acks again, to whoever leads then.
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
                    let progress = Progress { now: replica.now(&clock), consumers: pending.consumers };
                    let entry = StreamCommand::Progress(progress).encode().into_bytes();
                    refused = Some((entry, pending.confirmations));
                }
            }
            let Some((entry, confirmations)) = refused.take() else { continue };
            let mut proposal = group.propose(INLINE, entry.clone());
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

fn confirm(router: &Arc<Router>, account: &AccountName, confirmations: &[Bytes]) {
    let mut route = router.batch();
    for to in confirmations {
        route.send(account, to, MessageRef { subject: to, reply: &[], header: &[], payload: &[] });
    }
}
