//! All sessions of the node: letting them in, keeping them alive, telling them about the cluster, listing them, and
//! sending them elsewhere.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use foldhash::HashMap;
use levee_protocol::time::Timestamp;
use levee_protocol::wire::{ConnectOptions, ServerInfo, encode};
use parking_lot::{Mutex, RwLock};

use crate::router::Router;
use crate::runtime::chance::Chance;
use crate::runtime::clock::{self, Clock};
use crate::runtime::net::{self, TcpStream};
use crate::runtime::tasks;
use crate::session::outbound::{Delivery, Outbound};
use crate::session::places::Places;
use crate::session::{
    AuthConfig, CloseReason, ConnectionView, Identity, Session, SessionHandle, SessionLimits,
    SubscriptionView, Tally,
};

/// The sessions of a node.
pub struct Sessions {
    router: Arc<Router>,
    clock: Clock,
    limits: SessionLimits,
    auth: Arc<AuthConfig>,
    places: Places,
    hashing: tokio::sync::Semaphore,
    info: RwLock<ServerInfo>,
    other_urls: RwLock<Vec<String>>,
    alive: RwLock<HashMap<u64, Arc<SessionHandle>>>,
    closed: Mutex<Closed>,
    next_cid: AtomicU64,
    slow_consumers: AtomicU64,
    stale_connections: AtomicU64,
    stalls: AtomicU64,
    lame_duck: AtomicBool,
    tasks: tasks::Scope,
}

#[derive(Default)]
struct Closed {
    recent: VecDeque<ConnectionView>,
    received: Tally,
    sent: Tally,
}

/// What all connections together did since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Open connections.
    pub connections: usize,
    /// Connections since the start.
    pub total_connections: u64,
    /// Subscriptions of open connections.
    pub subscriptions: usize,
    /// What clients published.
    pub received: Tally,
    /// What was delivered to clients.
    pub sent: Tally,
    /// Clients cut off for being slow.
    pub slow_consumers: u64,
    /// Clients cut off for not answering PING.
    pub stale_connections: u64,
    /// Times that a producer was stalled for a slow client.
    pub stalls: u64,
}

impl Sessions {
    /// No sessions yet. `info` is what every client is told; the fields about the client itself are filled in.
    #[must_use]
    pub fn new(
        router: Arc<Router>,
        clock: Clock,
        limits: SessionLimits,
        auth: AuthConfig,
        mut info: ServerInfo,
    ) -> Arc<Self> {
        info.max_payload = limits.max_payload as u64;
        let full_at = limits.accounts.iter();
        let full_at = full_at.filter_map(|(name, limits)| Some((name.clone(), limits.max_connections?)));
        let places = Places::new(full_at);
        info.auth_required = auth.turns_strangers_away();
        let sessions = Arc::new(Self {
            router,
            clock,
            limits,
            places,
            auth: Arc::new(auth),
            hashing: tokio::sync::Semaphore::new(HASHING_MAX),
            info: RwLock::new(info),
            other_urls: RwLock::new(Vec::new()),
            alive: RwLock::new(HashMap::default()),
            closed: Mutex::new(Closed::default()),
            next_cid: AtomicU64::new(1),
            slow_consumers: AtomicU64::new(0),
            stale_connections: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            lame_duck: AtomicBool::new(false),
            tasks: tasks::Scope::default(),
        });
        let keeper = keep(Arc::downgrade(&sessions), sessions.look_interval());
        sessions.tasks.spawn("keep sessions alive", keeper);
        sessions
    }

    /// Serves a connection that was just accepted.
    pub fn welcome(self: &Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let (reader, writer) = match net::split(stream) {
            Ok(halves) => halves,
            Err(error) => {
                tracing::debug!("{remote} is gone before it was served: {error}");
                return;
            }
        };
        let cid = self.next_cid.fetch_add(1, Ordering::Relaxed);
        let outbound =
            Arc::new(Outbound::new(Some(writer), self.limits.max_pending, self.limits.write_deadline));
        let handle = SessionHandle::new(cid, Arc::clone(&outbound), remote, self.clock.now());
        tasks::spawn("session write", Arc::clone(&outbound).write_when_needed());

        let mut hello = Vec::with_capacity(512);
        encode::info(&mut hello, &self.info_for(&handle));
        outbound.hand_over(&mut hello, Tally::default(), Delivery::Direct);
        if self.limits.max_connections > 0 && self.alive.read().len() >= self.limits.max_connections {
            tracing::warn!("{remote} - cid:{cid} - maximum connections exceeded");
            let mut last_words = Vec::new();
            encode::err(&mut last_words, "maximum connections exceeded");
            outbound.end(CloseReason::MaximumConnectionsExceeded, &last_words);
            return;
        }
        let now = clock::ticks();
        let first_ping = self.limits.ping_interval.min(FIRST_PING);
        let jitter = first_ping.mul_f64(Chance::new().below(1000) as f64 / 5000.0);
        handle.pulse.next_ping.store(now + nanos(first_ping + jitter), Ordering::Relaxed);
        handle.pulse.accepted.store(now, Ordering::Relaxed);
        if self.auth.turns_strangers_away() {
            handle.pulse.auth_due.store(now + nanos(self.limits.auth_timeout), Ordering::Relaxed);
        }
        self.alive.write().insert(cid, Arc::clone(&handle));
        tracing::debug!("{remote} - cid:{cid} - Client connection created");
        tasks::spawn("session read", Session::new(Arc::clone(self), handle, reader).run());
    }

    /// What monitoring shows of open connections, in the order in which they came.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionView> {
        let mut views: Vec<_> = self.handles().iter().map(|handle| handle.view()).collect();
        views.sort_by_key(|view| view.cid);
        views
    }

    /// What monitoring shows of ended connections, oldest first, as far as they are remembered.
    #[must_use]
    pub fn closed_connections(&self) -> Vec<ConnectionView> {
        self.closed.lock().recent.iter().cloned().collect()
    }

    /// Subscriptions of one open connection, or of all.
    #[must_use]
    pub fn subscriptions(&self, cid: Option<u64>) -> Vec<SubscriptionView> {
        let handles = self.handles();
        let handles = handles.iter().filter(|handle| cid.is_none_or(|cid| cid == handle.cid));
        handles.flat_map(|handle| handle.subscription_views()).collect()
    }

    /// What all connections together did.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let handles = self.handles();
        let closed = self.closed.lock();
        let mut totals = Totals {
            connections: handles.len(),
            total_connections: self.next_cid.load(Ordering::Relaxed) - 1,
            received: closed.received,
            sent: closed.sent,
            slow_consumers: self.slow_consumers.load(Ordering::Relaxed),
            stale_connections: self.stale_connections.load(Ordering::Relaxed),
            stalls: self.stalls.load(Ordering::Relaxed),
            subscriptions: 0,
        };
        drop(closed);
        for handle in handles {
            totals.received += handle.received();
            totals.sent += handle.outbound.tally();
            totals.subscriptions += handle.subscriptions.lock().len();
        }
        totals
    }

    /// Tells clients that the listeners of the cluster changed, if they did: this node's own and the others'.
    pub fn set_connect_urls(&self, own: Vec<String>, others: Vec<String>) {
        self.other_urls.write().clone_from(&others);
        let urls = [own, others].concat();
        {
            let mut info = self.info.write();
            if info.connect_urls == urls {
                return;
            }
            info.connect_urls = urls;
        }
        self.tell_info();
    }

    /// Changes what clients are told, and tells those who are connected.
    pub fn change_info(&self, change: impl FnOnce(&mut ServerInfo)) {
        change(&mut self.info.write());
        self.tell_info();
    }

    /// What clients are told, without what is about the single client.
    #[must_use]
    pub fn info(&self) -> ServerInfo {
        self.info.read().clone()
    }

    /// Closes one connection, for an operator. False if there is none of that number.
    pub fn kick(&self, cid: u64) -> bool {
        let handle = self.alive.read().get(&cid).cloned();
        if let Some(handle) = &handle {
            handle.outbound.end(CloseReason::Kicked, &[]);
        }
        handle.is_some()
    }

    /// Asks all clients to go elsewhere, waits for `grace`, then closes them one by one over `spread`. Nobody
    /// should be let in any more when this is called.
    pub async fn lame_duck(&self, grace: Duration, spread: Duration) {
        self.lame_duck.store(true, Ordering::Relaxed);
        {
            let others = self.other_urls.read().clone();
            let mut info = self.info.write();
            info.lame_duck_mode = true;
            info.connect_urls = others;
        }
        self.tell_info();
        tokio::time::sleep(grace).await;
        let handles = self.handles();
        let mut chance = Chance::new();
        let between =
            (spread / u32::try_from(handles.len().max(1)).unwrap_or(u32::MAX)).min(CLOSE_SPACING_MAX);
        for handle in handles {
            handle.outbound.end(CloseReason::ServerShutdown, &[]);
            // Between half of the interval and all of it, so that clients do not come to the others in step.
            tokio::time::sleep(between / 2 + (between / 2).mul_f64(chance.below(1000) as f64 / 1000.0)).await;
        }
    }

    /// Closes all connections now.
    pub fn shutdown(&self) {
        self.tasks.stop();
        for handle in self.handles() {
            handle.outbound.end(CloseReason::ServerShutdown, &[]);
        }
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether [`Self::lame_duck`] was called.
    #[must_use]
    pub fn is_lame_duck(&self) -> bool {
        self.lame_duck.load(Ordering::Relaxed)
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    /// How many clients of accounts there may be.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Who may connect.
    #[must_use]
    pub fn auth(&self) -> &AuthConfig {
        &self.auth
    }

    /// The node's router.
    #[must_use]
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Checks the credentials of a CONNECT, where it takes long on a thread for that and not for too many at once.
    pub(crate) async fn identify(&self, options: &ConnectOptions) -> Option<Identity> {
        if !self.auth.is_slow(options) {
            return self.auth.identify(options);
        }
        let _turn = self.hashing.acquire().await.ok()?;
        let (auth, options) = (Arc::clone(&self.auth), options.clone());
        tokio::task::spawn_blocking(move || auth.identify(&options)).await.ok()?
    }

    pub(crate) fn info_for(&self, handle: &SessionHandle) -> ServerInfo {
        let mut info = self.info.read().clone();
        info.client_id = handle.cid;
        info.client_ip = handle.remote.ip().to_canonical().to_string();
        if let Some(max) = self.limits.of(&handle.client().account).max_payload {
            info.max_payload = info.max_payload.min(max);
        }
        info
    }

    pub(crate) fn count_stall(&self) {
        self.stalls.fetch_add(1, Ordering::Relaxed);
    }

    /// A session ended.
    pub(crate) fn left(&self, handle: &Arc<SessionHandle>) {
        if self.alive.write().remove(&handle.cid).is_none() {
            return;
        }
        let reason = handle.outbound.ended().unwrap_or(CloseReason::ClientClosed);
        let mut view = handle.view();
        view.stopped = Some(self.clock.now());
        view.reason = Some(reason.text());
        if reason.is_slow_consumer() {
            self.slow_consumers.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("{} - cid:{} - {}", handle.remote, handle.cid, reason.text());
        }
        tracing::debug!(
            "{} - cid:{} - Client connection closed: {}",
            handle.remote,
            handle.cid,
            reason.text()
        );
        let mut closed = self.closed.lock();
        closed.received += view.received;
        closed.sent += view.sent;
        while closed.recent.len() >= self.limits.max_closed_clients.max(1) {
            closed.recent.pop_front();
        }
        closed.recent.push_back(view);
    }

    fn handles(&self) -> Vec<Arc<SessionHandle>> {
        self.alive.read().values().cloned().collect()
    }

    fn tell_info(&self) {
        for handle in self.handles() {
            if handle.takes_info.load(Ordering::Relaxed) {
                let mut line = Vec::with_capacity(512);
                encode::info(&mut line, &self.info_for(&handle));
                handle.outbound.hand_over(&mut line, Tally::default(), Delivery::Task);
            }
        }
    }

    fn look_interval(&self) -> Duration {
        let shortest = self.limits.ping_interval.min(self.limits.auth_timeout);
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }

    /// Pings who is due, closes who did not answer or did not authenticate in time.
    fn look_at(&self, handle: &SessionHandle, now: u64) {
        let pulse = &handle.pulse;
        let auth_due = pulse.auth_due.load(Ordering::Relaxed);
        if auth_due != 0 && auth_due <= now {
            close_with(handle, CloseReason::AuthenticationTimeout, "Authentication Timeout");
            return;
        }
        if pulse.next_ping.load(Ordering::Relaxed) > now {
            return;
        }
        let interval = nanos(self.limits.ping_interval);
        pulse.next_ping.store(now + interval, Ordering::Relaxed);
        let since = |then: &AtomicU64| now.saturating_sub(then.load(Ordering::Relaxed));
        let needs_round_trip =
            pulse.pinged.load(Ordering::Relaxed) == 0 || since(&pulse.pinged) > nanos(ROUND_TRIP_FRESH);
        if since(&pulse.active) < interval && !needs_round_trip {
            return;
        }
        if pulse.unanswered.load(Ordering::Relaxed) >= self.limits.ping_max {
            self.stale_connections.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("{} - cid:{} - Stale Client Connection - Closing", handle.remote, handle.cid);
            close_with(handle, CloseReason::StaleConnection, "Stale Connection");
            return;
        }
        pulse.pinged.store(now, Ordering::Relaxed);
        pulse.unanswered.fetch_add(1, Ordering::Relaxed);
        handle.outbound.hand_over(&mut encode::PING.to_vec(), Tally::default(), Delivery::Task);
    }
}

async fn keep(sessions: std::sync::Weak<Sessions>, interval: Duration) {
    let mut ticker = tokio::time::interval(interval);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticker.tick().await;
        let Some(sessions) = sessions.upgrade() else { return };
        let now = clock::ticks();
        for handle in sessions.handles() {
            sessions.look_at(&handle, now);
        }
    }
}

fn close_with(handle: &SessionHandle, reason: CloseReason, error: &str) {
    let mut last_words = Vec::new();
    encode::err(&mut last_words, error);
    handle.outbound.end(reason, &last_words);
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// Password hashes that are verified at the same time.
const HASHING_MAX: usize = 2;
/// The first PING comes early, to measure the round trip.
const FIRST_PING: Duration = Duration::from_secs(2);
/// The round trip is measured again at least that often.
const ROUND_TRIP_FRESH: Duration = Duration::from_secs(3600);
/// In lame duck mode, two closes are at most that far apart.
const CLOSE_SPACING_MAX: Duration = Duration::from_secs(1);
