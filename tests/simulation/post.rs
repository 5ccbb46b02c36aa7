//! Between nodes and clients: inboxes, and what becomes of messages on their way to them. They arrive late, in any
//! order, and sometimes not at all. Those to one subscription keep their order, as on a connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::fast::Said;
use levee_protocol::record::Record;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::chance::Chance;

/// What a call may take beyond the time that it waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// On the way to subscriptions less is lost: who misses something there begins again with all that was not acked.
const LINE_LOSSES_OUT_OF: u64 = 2000;

/// What comes to an inbox.
#[derive(Clone, Debug)]
pub(crate) enum Parcel {
    /// A message of a consumer.
    Message {
        /// Where its ack goes.
        ack: Vec<u8>,
        /// What is delivered.
        record: Record,
    },
    /// How a request or a subscription fares.
    Status {
        /// The header block.
        header: Vec<u8>,
        /// Where an answer is expected.
        reply: Option<Bytes>,
    },
    /// An ack is confirmed.
    Confirmed,
    /// What is said about a fast batch.
    Fast(Said),
}

/// The way to a subscription: what is to arrive, and when at the earliest.
type Line = mpsc::UnboundedSender<(Instant, Parcel)>;

/// What comes to one of those who subscribe to a subject, in the order in which it was sent. Ends when it is dropped.
pub(crate) struct Subscription {
    post: Arc<Post>,
    subject: Bytes,
    number: u64,
    parcels: mpsc::UnboundedReceiver<Parcel>,
    first: Option<Parcel>,
}

impl Subscription {
    /// What has come and was not taken.
    pub(crate) fn next(&mut self) -> Option<Parcel> {
        self.first.take().or_else(|| self.parcels.try_recv().ok())
    }

    /// Returns when there is something to be taken. Cancel safe.
    pub(crate) async fn arrival(&mut self) {
        if self.first.is_none() {
            self.first = self.parcels.recv().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscriptions = self.post.subscriptions.lock();
        if let Some(lines) = subscriptions.get_mut(&self.subject) {
            lines.remove(&self.number);
        }
        drop(subscriptions);
        self.post.interest.send_modify(|changes| *changes += 1);
    }
}

/// All inboxes of a run.
pub(crate) struct Post {
    inboxes: Mutex<BTreeMap<Bytes, mpsc::UnboundedSender<Parcel>>>,
    subscriptions: Mutex<BTreeMap<Bytes, BTreeMap<u64, Line>>>,
    subscribed: AtomicU64,
    interest: watch::Sender<u64>,
    chance: Mutex<Chance>,
    /// Percent that do not arrive, while there is trouble.
    loss: u64,
    latest: Duration,
    is_reliable: AtomicBool,
}

impl Post {
    /// Inboxes that nobody has opened yet.
    pub(crate) fn new(seed: u64, loss: u64, latest: Duration) -> Self {
        Self {
            inboxes: Mutex::default(),
            subscriptions: Mutex::default(),
            subscribed: AtomicU64::new(0),
            interest: watch::Sender::new(0),
            chance: Mutex::new(Chance::new(seed, "post")),
            loss,
            latest,
            is_reliable: AtomicBool::new(false),
        }
    }

    /// Somebody listens from here on.
    pub(crate) fn open(&self, inbox: &Bytes) -> mpsc::UnboundedReceiver<Parcel> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inboxes.lock().insert(inbox.clone(), sender);
        self.interest.send_modify(|changes| *changes += 1);
        receiver
    }

    /// Nobody listens any more.
    pub(crate) fn close(&self, inbox: &Bytes) {
        self.inboxes.lock().remove(inbox);
        self.interest.send_modify(|changes| *changes += 1);
    }

    /// One more subscribes to a subject.
    pub(crate) fn subscribe(self: &Arc<Self>, subject: &Bytes) -> Subscription {
        let number = self.subscribed.fetch_add(1, Ordering::Relaxed);
        let (line, mut sent) = mpsc::unbounded_channel::<(Instant, Parcel)>();
        let (arrives, parcels) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some((at, parcel)) = sent.recv().await {
                tokio::time::sleep_until(at).await;
                if arrives.send(parcel).is_err() {
                    return;
                }
            }
        });
        self.subscriptions.lock().entry(subject.clone()).or_default().insert(number, line);
        self.interest.send_modify(|changes| *changes += 1);
        Subscription { post: Arc::clone(self), subject: subject.clone(), number, parcels, first: None }
    }

    /// Whether somebody listens.
    pub(crate) fn listens(&self, inbox: &[u8]) -> bool {
        self.inboxes.lock().contains_key(inbox)
            || self.subscriptions.lock().get(inbox).is_some_and(|lines| !lines.is_empty())
    }

    /// Changes when somebody begins or ceases to listen.
    pub(crate) fn interest(&self) -> watch::Receiver<u64> {
        self.interest.subscribe()
    }

    /// Nothing is lost from here on.
    pub(crate) fn heal(&self) {
        self.is_reliable.store(true, Ordering::Relaxed);
    }

    /// Whether nothing is lost any more.
    pub(crate) fn is_reliable(&self) -> bool {
        self.is_reliable.load(Ordering::Relaxed)
    }

    /// How long something is under way; `None` is that it is lost.
    pub(crate) fn fate(&self) -> Option<Duration> {
        self.fate_out_of(100)
    }

    /// The same, where as many are lost out of so many as otherwise out of a hundred.
    fn fate_out_of(&self, out_of: u64) -> Option<Duration> {
        let mut chance = self.chance.lock();
        let lost = chance.below(out_of) < self.loss;
        let most = u64::try_from(self.latest.as_millis()).unwrap_or(0);
        let late = chance.millis(0, most.max(1));
        (!lost || self.is_reliable()).then_some(late)
    }

    /// Brings a question to where it is answered, and the answer back. Nothing comes of it if one of the two is lost.
    pub(crate) async fn call<T>(&self, answered: impl Future<Output = T>) -> Option<T> {
        let Some(there) = self.fate() else {
            tokio::time::sleep(CALL_TIMEOUT).await;
            return None;
        };
        tokio::time::sleep(there).await;
        let answer = answered.await;
        let Some(back) = self.fate() else {
            tokio::time::sleep(CALL_TIMEOUT).await;
            return None;
        };
        tokio::time::sleep(back).await;
        Some(answer)
    }

    /// Sends something to an inbox or to those who subscribe. Nobody hears of it if it does not arrive.
    pub(crate) fn send(self: &Arc<Self>, to: &Bytes, parcel: Parcel) {
        if let Some(lines) = self.subscriptions.lock().get(to) {
            for line in lines.values() {
                if let Some(late) = self.fate_out_of(LINE_LOSSES_OUT_OF) {
                    let _ = line.send((Instant::now() + late, parcel.clone()));
                }
            }
            return;
        }
        let Some(late) = self.fate() else { return };
        let (post, to) = (Arc::clone(self), to.clone());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            if let Some(inbox) = post.inboxes.lock().get(&to) {
                let _ = inbox.send(parcel);
            }
        });
    }
}
