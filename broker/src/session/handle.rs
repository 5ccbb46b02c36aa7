//! What others hold of a session: the way to deliver to it, its subscriptions, and what monitoring asks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use levee_protocol::ids::AccountName;
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

use crate::router::{ClientInfo, Subscription};
use crate::runtime::clock;
use crate::session::outbound::{Outbound, Tally};

/// The shared part of a session. It outlives the session in caches of publishers, and is small by then.
pub struct SessionHandle {
    /// The connection's number; never used twice by a process.
    pub cid: u64,
    /// What waits to be written.
    pub outbound: Arc<Outbound>,
    /// Where the client connects from.
    pub remote: SocketAddr,
    /// When it connected.
    pub started: Timestamp,
    pub(crate) pulse: Pulse,
    pub(crate) headers: AtomicBool,
    pub(crate) takes_info: AtomicBool,
    pub(crate) subscriptions: Mutex<HashMap<Box<[u8]>, Arc<Subscription>>>,
    client: Mutex<Arc<ClientInfo>>,
    received: [AtomicU64; 2],
    stalls: AtomicU64,
}

/// Signs of life, as atomics that the session stores and the keeper of all sessions reads.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// [`clock::ticks`] of the accept.
    pub(crate) accepted: AtomicU64,
    /// When the client last did anything but answer a PING.
    pub(crate) active: AtomicU64,
    /// When the last bytes came from it.
    pub(crate) heard: AtomicU64,
    /// When the keeper pings next.
    pub(crate) next_ping: AtomicU64,
    /// When the last PING left; 0 before the first one.
    pub(crate) pinged: AtomicU64,
    /// PINGs without an answer.
    pub(crate) unanswered: AtomicU32,
    /// Round trip in nanoseconds; 0 if not measured yet.
    pub(crate) round_trip: AtomicU64,
    /// When CONNECT is overdue; 0 if it is not awaited.
    pub(crate) auth_due: AtomicU64,
}

impl SessionHandle {
    /// The handle of a connection that was just accepted.
    #[must_use]
    pub fn new(cid: u64, outbound: Arc<Outbound>, remote: SocketAddr, started: Timestamp) -> Arc<Self> {
        let pulse = Pulse::default();
        pulse.heard.store(clock::ticks(), Ordering::Relaxed);
        Arc::new(Self {
            cid,
            outbound,
            remote,
            started,
            pulse,
            headers: AtomicBool::new(false),
            takes_info: AtomicBool::new(false),
            subscriptions: Mutex::new(HashMap::new()),
            client: Mutex::new(Arc::new(ClientInfo::unnamed(cid, remote))),
            received: [AtomicU64::new(0), AtomicU64::new(0)],
            stalls: AtomicU64::new(0),
        })
    }

    /// Who the client says it is.
    #[must_use]
    pub fn client(&self) -> Arc<ClientInfo> {
        Arc::clone(&self.client.lock())
    }

    pub(crate) fn set_client(&self, client: Arc<ClientInfo>) {
        *self.client.lock() = client;
    }

    /// Counts what one read brought. Only the session itself calls it, so loads and stores need no lock.
    pub(crate) fn count_received(&self, tally: Tally) {
        let [msgs, bytes] = &self.received;
        msgs.store(msgs.load(Ordering::Relaxed) + tally.msgs, Ordering::Relaxed);
        bytes.store(bytes.load(Ordering::Relaxed) + tally.bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_stall(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }

    /// What the client published.
    #[must_use]
    pub fn received(&self) -> Tally {
        let [msgs, bytes] = &self.received;
        Tally { msgs: msgs.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// Everything that monitoring shows of it.
    #[must_use]
    pub fn view(&self) -> ConnectionView {
        let client = self.client();
        let round_trip = self.pulse.round_trip.load(Ordering::Relaxed);
        ConnectionView {
            cid: self.cid,
            remote: self.remote,
            started: self.started,
            idle: clock::since(self.pulse.heard.load(Ordering::Relaxed)),
            round_trip: (round_trip != 0).then(|| Duration::from_nanos(round_trip)),
            pending_bytes: self.outbound.pending(),
            received: self.received(),
            sent: self.outbound.tally(),
            stalls: self.stalls.load(Ordering::Relaxed),
            subscriptions: self.subscriptions.lock().len(),
            stopped: None,
            reason: None,
            client,
        }
    }

    /// Its subscriptions, in no particular order.
    #[must_use]
    pub fn subscription_views(&self) -> Vec<SubscriptionView> {
        let account = self.client().account.clone();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.subscriptions
            .lock()
            .values()
            .map(|subscription| SubscriptionView {
                account: account.clone(),
                cid: self.cid,
                subject: text(&subscription.filter),
                queue: text(&subscription.queue),
                sid: text(&subscription.sid),
                msgs: subscription.delivered(),
                max: subscription.max(),
            })
            .collect()
    }
}

/// A connection as monitoring shows it.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// The connection's number.
    pub cid: u64,
    /// Where the client connects from.
    pub remote: SocketAddr,
    /// Who it says it is.
    pub client: Arc<ClientInfo>,
    /// When it connected.
    pub started: Timestamp,
    /// When it ended, for connections that did.
    pub stopped: Option<Timestamp>,
    /// Why it ended.
    pub reason: Option<&'static str>,
    /// How long nothing was heard of it.
    pub idle: Duration,
    /// The last measured round trip.
    pub round_trip: Option<Duration>,
    /// Bytes that wait for it.
    pub pending_bytes: usize,
    /// What it published.
    pub received: Tally,
    /// What was delivered to it.
    pub sent: Tally,
    /// How often it was stalled for being faster than a subscriber.
    pub stalls: u64,
    /// How many subscriptions it has.
    pub subscriptions: usize,
}

/// A subscription as monitoring shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubscriptionView {
    /// Whose subjects.
    pub account: AccountName,
    /// Whose subscription.
    pub cid: u64,
    /// What is subscribed to.
    pub subject: String,
    /// The queue group, or empty.
    pub queue: String,
    /// The client's name for it.
    pub sid: String,
    /// Messages delivered.
    pub msgs: u64,
    /// Removed after that many deliveries; 0 is never.
    pub max: u64,
}
