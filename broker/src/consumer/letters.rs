//! Dead letters on their way: each is published like a client's message, and its consumer is told what became of it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use levee_broker_core::consumer::{DeadLetter, Posted};
use levee_protocol::ids::{AccountName, ConsumerName, Seq};
use tokio::time::Instant;

use crate::jetstream::JetStream;
use crate::metrics::DEAD_LETTERS;
use crate::router::MessageRef;
use crate::runtime::clock;
use crate::stream::single::{self, NotStored, Published};

/// A consumer whose dead letters can't be stored says so this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// The dead letters of one consumer that are under way.
pub(super) struct Letters {
    jetstream: Weak<JetStream>,
    account: AccountName,
    under_way: FuturesUnordered<BoxFuture<'static, Outcome>>,
    complained: Option<Instant>,
}

/// What became of one.
pub(super) struct Outcome {
    pub(super) seq: Seq,
    pub(super) incarnation: u64,
    subject: String,
    result: Result<Published, NotStored>,
}

impl Outcome {
    pub(super) fn posted(&self) -> Posted {
        if self.result.is_ok() { Posted::Stored } else { Posted::Failed }
    }
}

impl Letters {
    pub(super) fn new(jetstream: &Arc<JetStream>, account: AccountName) -> Self {
        let jetstream = Arc::downgrade(jetstream);
        Self { jetstream, account, under_way: FuturesUnordered::new(), complained: None }
    }

    /// Publishes one.
    pub(super) fn send(&self, letter: DeadLetter) {
        let (jetstream, account) = (self.jetstream.clone(), self.account.clone());
        self.under_way.push(Box::pin(async move {
            let result = match jetstream.upgrade() {
                Some(jetstream) => publish(&jetstream, &account, &letter).await,
                None => Err(NotStored::stopping()),
            };
            let subject = String::from_utf8_lossy(&letter.subject).into_owned();
            Outcome { seq: letter.seq, incarnation: letter.incarnation, subject, result }
        }));
    }

    /// Whether none is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// What became of the next one; never, while none is under way. Cancel safe.
    pub(super) async fn next(&mut self) -> Outcome {
        match self.under_way.next().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }

    /// The same, without waiting.
    pub(super) fn next_now(&mut self) -> Option<Outcome> {
        self.next().now_or_never()
    }

    /// Counts what is stored, and says now and then what is not.
    pub(super) fn note(&mut self, stream: &str, consumer: &ConsumerName, outcome: &Outcome) {
        let Err(error) = &outcome.result else {
            self.complained = None;
            metrics::counter!(DEAD_LETTERS).increment(1);
            return;
        };
        let now = clock::monotonic();
        if self.complained.is_none_or(|at| now.duration_since(at) >= COMPLAINT_INTERVAL) {
            self.complained = Some(now);
            tracing::warn!(
                "consumer '{consumer}' of stream '{stream}' can't store a dead letter on '{}' and tries again: {error}",
                outcome.subject
            );
        }
    }
}

/// Stored first, then shown to whoever subscribes to the subject.
async fn publish(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    letter: &DeadLetter,
) -> Result<Published, NotStored> {
    let (subject, header, payload) = (&letter.subject[..], &letter.header[..], &letter.payload[..]);
    let message = MessageRef { subject, reply: &[], header, payload };
    let published = single::publish(jetstream, account, message).await?;
    if published == Published::Stored {
        jetstream.router().send_one(account, subject, message);
    }
    Ok(published)
}
