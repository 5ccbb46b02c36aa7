//! Hot path: what waits to be sent to one peer. Everything that is queued leaves in as few frames as it fits.
//!
//! The queue is bounded in bytes. Producers are stalled well before the bound, as for slow clients. At the bound,
//! routed messages are dropped and counted, and forwards fail: both promise delivery at most once. Changes of
//! interest are never dropped; if even they pile up, the link is cut, and the next one starts with a full sync.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use levee_protocol::ids::NodeId;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::router::peers::frames;
use crate::router::peers::proto::{Frame, Identity, frame};
use crate::runtime::clock;
use crate::session::outbound::{Pressure, Tally};

/// The way to a peer. It stays the same through reconnects, and takes nothing while there is no connection.
pub struct Link {
    node: NodeId,
    connected: AtomicBool,
    pending: AtomicUsize,
    stalled: AtomicBool,
    connected_at: AtomicU64,
    sent: Counter,
    received: Counter,
    dropped: AtomicU64,
    state: Mutex<State>,
    drained: Notify,
}

#[derive(Default)]
struct State {
    /// Which connection may take from the queue; 0 is none.
    connection: u64,
    queue: VecDeque<Vec<u8>>,
    waker: Option<Waker>,
}

/// A [`Tally`] that grows. Once per handover or frame.
#[derive(Default)]
struct Counter {
    msgs: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, tally: Tally) {
        self.msgs.fetch_add(tally.msgs, Ordering::Relaxed);
        self.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Tally {
        Tally { msgs: self.msgs.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// The peer is not connected, or too far behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the peer is not connected")]
pub struct PeerGone;

impl Link {
    pub(crate) fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            connected: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
            connected_at: AtomicU64::new(0),
            sent: Counter::default(),
            received: Counter::default(),
            dropped: AtomicU64::new(0),
            state: Mutex::new(State::default()),
            drained: Notify::new(),
        })
    }

    /// Where it leads.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether it takes messages now.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// How long it has been connected this time.
    #[must_use]
    pub fn connected_for(&self) -> Duration {
        clock::since(self.connected_at.load(Ordering::Relaxed))
    }

    /// Messages sent to the peer.
    #[must_use]
    pub fn sent(&self) -> Tally {
        self.sent.read()
    }

    /// Messages that came from the peer.
    #[must_use]
    pub fn received(&self) -> Tally {
        self.received.read()
    }

    /// Messages dropped because the peer was too far behind.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts what one frame of the peer brought.
    pub(crate) fn count_received(&self, tally: Tally) {
        self.received.add(tally);
    }

    /// Bytes that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// A connection starts to take from the queue, in which `first` is all there is.
    pub(crate) fn connect(&self, connection: u64, mut first: Vec<u8>) {
        let mut state = self.state.lock();
        self.empty(&mut state);
        state.connection = connection;
        self.enqueue(&mut state, &mut first);
        self.connected_at.store(clock::ticks(), Ordering::Relaxed);
        self.connected.store(true, Ordering::SeqCst);
    }

    /// A connection ended. False if another one took its place already.
    pub(crate) fn disconnect(&self, connection: u64) -> bool {
        let mut state = self.state.lock();
        if state.connection != connection {
            return false;
        }
        self.cut(&mut state);
        true
    }

    /// Ends whatever connection there is.
    pub(crate) fn close(&self) {
        self.cut(&mut self.state.lock());
    }

    /// Hands over routed messages; the buffer comes back empty.
    pub(crate) fn push_messages(&self, staged: &mut Vec<u8>, tally: Tally) -> Pressure {
        let mut state = self.state.lock();
        if state.connection == 0 {
            staged.clear();
            return Pressure::Gone;
        }
        if self.pending() + staged.len() > PENDING_MAX {
            staged.clear();
            self.dropped.fetch_add(tally.msgs, Ordering::Relaxed);
            return Pressure::Hard;
        }
        self.sent.add(tally);
        self.enqueue(&mut state, staged);
        self.pressure()
    }

    /// Changes of interest, which are never dropped.
    pub(crate) fn push_interest(&self, records: &[u8]) {
        let mut state = self.state.lock();
        if state.connection == 0 {
            return;
        }
        if self.pending() > 2 * PENDING_MAX {
            tracing::warn!("node {}: too far behind to be told of subscriptions, reconnecting", self.node);
            self.cut(&mut state);
            return;
        }
        self.enqueue(&mut state, &mut records.to_vec());
    }

    /// One record of another kind.
    pub(crate) fn push(&self, kind: u8, parts: &[&[u8]]) -> Result<(), PeerGone> {
        let mut state = self.state.lock();
        if state.connection == 0 {
            return Err(PeerGone);
        }
        if self.pending() > PENDING_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(PeerGone);
        }
        let mut record = Vec::new();
        frames::put(&mut record, kind, parts);
        self.enqueue(&mut state, &mut record);
        Ok(())
    }

    /// How the peer stands.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        match self.pending() {
            _ if !self.is_connected() => Pressure::Gone,
            pending if pending > PENDING_MAX / 4 * 3 => Pressure::Hard,
            pending if pending > SOFT_MARK => Pressure::Soft,
            _ => Pressure::None,
        }
    }

    /// Waits until the peer has taken what waits, for a bounded time.
    pub(crate) async fn relieved(&self, pressure: Pressure) {
        let (patience, mark) = match pressure {
            Pressure::None | Pressure::Gone => return,
            Pressure::Soft => (SOFT_STALL, SOFT_MARK / 2),
            Pressure::Hard => (HARD_STALL, PENDING_MAX / 4 * 3),
        };
        let until = clock::monotonic() + patience;
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // As in the outbound side of sessions: registered, flagged, looked, in this order.
            drained.as_mut().enable();
            self.stalled.store(true, Ordering::SeqCst);
            if self.pending.load(Ordering::SeqCst) <= mark || !self.connected.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, drained).await.is_err() {
                return;
            }
        }
    }

    fn enqueue(&self, state: &mut State, staged: &mut Vec<u8>) {
        self.pending.fetch_add(staged.len(), Ordering::SeqCst);
        match state.queue.back_mut() {
            Some(last) if last.len() + staged.len() <= FRAME_BYTES => last.append(staged),
            Some(_) | None => state.queue.push_back(std::mem::take(staged)),
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn poll_take(&self, connection: u64, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state.lock();
        if state.connection != connection {
            return Poll::Ready(None);
        }
        let Some(records) = state.queue.pop_front() else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        self.pending.fetch_sub(records.len(), Ordering::SeqCst);
        if self.stalled.swap(false, Ordering::SeqCst) {
            self.drained.notify_waiters();
        }
        Poll::Ready(Some(records.into()))
    }

    fn cut(&self, state: &mut State) {
        state.connection = 0;
        self.connected.store(false, Ordering::SeqCst);
        self.empty(state);
    }

    fn empty(&self, state: &mut State) {
        for records in state.queue.drain(..) {
            self.pending.fetch_sub(records.len(), Ordering::SeqCst);
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        self.drained.notify_waiters();
    }
}

/// The request side of one connection: a hello, and, once the other side was found good, the link's queue.
pub(crate) struct Outgoing {
    hello: Option<Identity>,
    admitted: Option<oneshot::Receiver<Arc<Link>>>,
    link: Option<Arc<Link>>,
    connection: u64,
}

impl Outgoing {
    pub(crate) fn new(hello: Identity, admitted: oneshot::Receiver<Arc<Link>>, connection: u64) -> Self {
        Self { hello: Some(hello), admitted: Some(admitted), link: None, connection }
    }
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(Frame { body: Some(frame::Body::Hello(hello)) }));
        }
        if let Some(admitted) = &mut self.admitted {
            let Poll::Ready(link) = Pin::new(admitted).poll(cx) else { return Poll::Pending };
            self.admitted = None;
            self.link = link.ok();
        }
        let Some(link) = &self.link else { return Poll::Ready(None) };
        let taken = std::task::ready!(link.poll_take(self.connection, cx));
        Poll::Ready(taken.map(|records| Frame { body: Some(frame::Body::Records(records)) }))
    }
}

/// Messages are dropped when that many bytes wait for a peer.
const PENDING_MAX: usize = 64 << 20;
const SOFT_MARK: usize = 4 << 20;
const SOFT_STALL: Duration = Duration::from_millis(2);
const HARD_STALL: Duration = Duration::from_millis(10);
const FRAME_BYTES: usize = 256 << 10;
