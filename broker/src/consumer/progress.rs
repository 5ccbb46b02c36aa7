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
use levee_broker_core::consumer::{Fate, Numbered, Outbox};
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

/// One entry.
struct Entry {
    bytes: Bytes,
    /// Reply subjects of acks to confirm.
    confirmations: Vec<Bytes>,
}

/// An entry, and what became of it.
type Proposed = (Numbered<Entry>, Result<(u64, Reply), ProposeError>);

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

    /// Proposes and confirms until dropped, or until an entry is in doubt: then the drivers, which believe it is in the
    /// log, have to be built again. What was reported in the leadership of `raft_term` never gets into a later one's log.
    pub async fn run(
        self: Arc<Self>,
        raft_term: u64,
        replica: Arc<Replica>,
        router: Arc<Router>,
        clock: Clock,
    ) {
        let account = replica.assignment().account.clone();
        let group = replica.group().clone();
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, Proposed>>::new();
        let mut outbox = Outbox::default();
        loop {
            tokio::select! {
                biased;
                Some((entry, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    // Of an entry that is in doubt nothing is confirmed: the client acks again, to whoever leads then.
                    let Ok(applied) = outbox.settle(entry, fate(&outcome)) else { return };
                    if let Some(entry) = applied && is_there(outcome) {
                        confirm(&router, &account, &entry.confirmations);
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
                    let progress = Progress { now: replica.now(&clock), consumers: pending.consumers };
                    let bytes = StreamCommand::Progress(progress).encode().into_bytes();
                    outbox.add(Entry { bytes, confirmations: pending.confirmations });
                }
            }
            while let Some(entry) = outbox.take() {
                let mut proposal = group.propose_in(raft_term, INLINE, entry.entry.bytes.clone());
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

/// Whether the stream was there when an entry was applied. If not, there is nothing to confirm.
fn is_there(outcome: Result<(u64, Reply), ProposeError>) -> bool {
    let reply = outcome.map(|(_, reply)| reply.downcast::<Decided>());
    matches!(reply, Ok(Ok(reply)) if !matches!(*reply, Decided::Rejected(_)))
}

fn confirm(router: &Arc<Router>, account: &AccountName, confirmations: &[Bytes]) {
    let mut route = router.batch();
    for to in confirmations {
        route.send(account, to, MessageRef { subject: to, reply: &[], header: &[], payload: &[] });
    }
}
