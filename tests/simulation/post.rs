//! Between nodes and clients: inboxes, and what becomes of messages on their way to them. They arrive late, in any
//! order, and sometimes not at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::fast::Said;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::chance::Chance;

/// What comes to an inbox.
#[derive(Clone, Debug)]
pub(crate) enum Parcel {
    /// A message of a consumer.
    Message {
        /// Where its ack goes.
        ack: Vec<u8>,
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

/// All inboxes of a run.
pub(crate) struct Post {
    inboxes: Mutex<BTreeMap<Bytes, mpsc::UnboundedSender<Parcel>>>,
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

    /// Whether somebody listens.
    pub(crate) fn listens(&self, inbox: &[u8]) -> bool {
        self.inboxes.lock().contains_key(inbox)
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
        let mut chance = self.chance.lock();
        let lost = chance.percent(self.loss);
        let most = u64::try_from(self.latest.as_millis()).unwrap_or(0);
        let late = chance.millis(0, most.max(1));
        (!lost || self.is_reliable()).then_some(late)
    }

    /// Sends something to an inbox. Nobody hears of it if it does not arrive.
    pub(crate) fn send(self: &Arc<Self>, to: &Bytes, parcel: Parcel) {
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
