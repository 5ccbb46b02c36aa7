//! Hot path: what waits to be written to one client. One lock and at most one write per handover, whatever the
//! number of messages in it; no copy when nothing else waits.
//!
//! A producer stages messages in a buffer of its own and hands the whole buffer over. If nobody is writing, the
//! producer writes to the socket itself: no task has to wake up for it. If the socket is full, or another
//! producer is writing, the buffer joins the queue and the session's writer task takes care of it.
//!
//! The socket is a value that is passed on: whoever holds it is the one writer. It rests in the state while
//! nobody writes, so "the queue is not empty" implies "somebody holds the socket and will look again".
//!
//! Small handovers of several producers at about the same time, such as requests to a service, are gathered: the writer
//! task lets everybody have a turn who is ready to run, and writes for all of them. Now and then a write is left to the
//! task to see whether that pays, and it goes on for as long as it does.
//!
//! The queue is bounded by `max_pending` bytes; over it the client is a slow consumer and its connection ends.
//! Well before that, producers are asked to wait for a moment (see [`Outbound::relieved`]).

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::runtime::clock;
use crate::runtime::net::WriteHalf;
use crate::session::CloseReason;

/// Bytes that wait for one client, and what to do about them.
pub struct Outbound {
    max_pending: usize,
    soft_mark: usize,
    write_deadline: Duration,
    pending: AtomicUsize,
    written: AtomicU64,
    ended: AtomicBool,
    stalled: AtomicBool,
    lagging: AtomicBool,
    /// There is no socket: a part of this node takes what comes.
    is_taken_here: bool,
    state: Mutex<State>,
    wake: Notify,
    drained: Notify,
}

struct State {
    socket: Option<WriteHalf>,
    for_task: Option<WriteHalf>,
    gathering: Gathering,
    queue: VecDeque<Segment>,
    spare: Vec<Vec<u8>>,
    ended: Option<CloseReason>,
    closed: bool,
    tally: Tally,
}

/// Whether small handovers come so close together that one write serves several.
#[derive(Default)]
struct Gathering {
    is_on: bool,
    /// How often nobody came, in a row.
    in_vain: u32,
    /// The task is to let others run before it writes what waits.
    lets_others_run: bool,
    /// Handovers since the task was left one.
    handovers: u32,
    /// Direct writes since the last try.
    direct: u32,
}

struct Segment {
    bytes: Vec<u8>,
    start: usize,
}

/// Messages and their bytes (header and body), as the monitoring documents count them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Messages.
    pub msgs: u64,
    /// Bytes of header and body.
    pub bytes: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.msgs += other.msgs;
        self.bytes += other.bytes;
    }
}

/// Who does the writing when the socket is free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// The caller, at once.
    Direct,
    /// The writer task: the caller has many to serve.
    Task,
}

/// How the destination stands after a handover.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Pressure {
    /// Go on.
    None,
    /// More waits than fits a cache: a moment's pause keeps memory small. Not for a client that does not read.
    Soft,
    /// Three quarters of `max_pending` wait: NATS stalls fast producers here.
    Hard,
    /// The client is gone; what was handed over is dropped.
    Gone,
}

impl Outbound {
    /// The outbound side of a connection. Run [`Outbound::write_when_needed`] on a task.
    #[must_use]
    pub fn new(socket: Option<WriteHalf>, max_pending: usize, write_deadline: Duration) -> Self {
        Self {
            max_pending,
            soft_mark: SOFT_MARK.min(max_pending / 4),
            write_deadline,
            pending: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            lagging: AtomicBool::new(false),
            is_taken_here: false,
            state: Mutex::new(State {
                socket,
                for_task: None,
                gathering: Gathering::default(),
                queue: VecDeque::new(),
                spare: Vec::new(),
                ended: None,
                closed: false,
                tally: Tally::default(),
            }),
            wake: Notify::new(),
            drained: Notify::new(),
        }
    }

    /// The same for a part of this node, which takes what comes with [`Outbound::taken`].
    #[must_use]
    pub fn without_socket(max_pending: usize) -> Self {
        Self { is_taken_here: true, ..Self::new(None, max_pending, Duration::MAX) }
    }

    /// Takes what waits, as buffers of whole messages. Empty if nothing does.
    pub fn taken(&self) -> Vec<Vec<u8>> {
        let segments = std::mem::take(&mut self.state.lock().queue);
        self.moved(segments.iter().map(|segment| segment.bytes.len()).sum());
        segments.into_iter().map(|segment| segment.bytes).collect()
    }

    /// Returns when something may have come since it last returned. Cancel safe.
    pub async fn handed_over(&self) {
        self.wake.notified().await;
    }

    /// Hands over a buffer of whole protocol lines, which comes back empty.
    pub fn hand_over(&self, staged: &mut Vec<u8>, tally: Tally, delivery: Delivery) -> Pressure {
        let len = staged.len();
        let mut state = self.state.lock();
        if state.ended.is_some() {
            staged.clear();
            return Pressure::Gone;
        }
        state.tally += tally;
        let pending = self.pending.fetch_add(len, Ordering::SeqCst) + len;
        // Only what the socket does not take at once counts: a burst to a client that reads is not its fault.
        if pending > self.max_pending && state.socket.is_none() {
            staged.clear();
            self.end_locked(&mut state, CloseReason::SlowConsumerPendingBytes, &[]);
            return Pressure::Gone;
        }
        state.gathering.handovers += 1;
        match state.socket.take() {
            Some(socket) if delivery == Delivery::Direct && !state.gathering.begins_with(len) => {
                drop(state);
                self.write_direct(socket, staged);
            }
            Some(socket) => {
                state.enqueue(staged);
                state.for_task = Some(socket);
                drop(state);
                self.wake.notify_one();
            }
            None => {
                state.enqueue(staged);
                drop(state);
                if self.is_taken_here {
                    self.wake.notify_one();
                }
            }
        }
        self.pressure()
    }

    /// How the destination stands.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let pending = self.pending.load(Ordering::Relaxed);
        if self.ended.load(Ordering::Relaxed) {
            Pressure::Gone
        } else if pending > self.max_pending / 4 * 3 {
            Pressure::Hard
        } else if pending > self.soft_mark && !self.lagging.load(Ordering::Relaxed) {
            Pressure::Soft
        } else {
            Pressure::None
        }
    }

    /// Waits until the client has taken what it was given, but never longer than a producer may be stalled.
    /// A client that takes nothing at all is not waited for again until it moves, unless it is near its limit.
    pub async fn relieved(&self, pressure: Pressure) {
        let (patience, mark) = match pressure {
            Pressure::None | Pressure::Gone => return,
            Pressure::Soft => (SOFT_STALL, self.soft_mark / 2),
            Pressure::Hard => (HARD_STALL, self.max_pending / 4 * 3),
        };
        let written = self.written.load(Ordering::Relaxed);
        let until = clock::monotonic() + patience;
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // Registered, then flagged, then looked: the writer moves `pending` first and looks at the flag
            // after it, so one of the two sees the other.
            drained.as_mut().enable();
            self.stalled.store(true, Ordering::SeqCst);
            if self.pending.load(Ordering::SeqCst) <= mark || self.ended.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, drained).await.is_err() {
                if self.written.load(Ordering::Relaxed) == written {
                    self.lagging.store(true, Ordering::Relaxed);
                }
                return;
            }
        }
    }

    /// Ends the connection. What waits, and `last_words` after it, is still written if the reason leaves the
    /// client able to read; the first reason counts.
    pub fn end(&self, reason: CloseReason, last_words: &[u8]) {
        self.end_locked(&mut self.state.lock(), reason, last_words);
    }

    /// Why the connection ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<CloseReason> {
        if self.ended.load(Ordering::Relaxed) { self.state.lock().ended } else { None }
    }

    /// Bytes that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        if self.ended.load(Ordering::Relaxed) { 0 } else { self.pending.load(Ordering::Relaxed) }
    }

    /// What was delivered so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.state.lock().tally
    }

    /// The writer task: takes over when a producer could not write everything. Ends with the connection.
    pub async fn write_when_needed(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let (socket, lets_others_run) = {
                let mut state = self.state.lock();
                if state.closed {
                    return;
                }
                (state.for_task.take(), std::mem::take(&mut state.gathering.lets_others_run))
            };
            if lets_others_run {
                self.let_others_run().await;
            }
            if let Some(socket) = socket
                && self.drain(socket).await == Drained::Closed
            {
                return;
            }
        }
    }

    /// Returns when everybody had a turn and nobody had more for this client.
    async fn let_others_run(&self) {
        let mut handovers = 1;
        for _ in 0..GATHERING_TURNS_MAX {
            tokio::task::yield_now().await;
            let now = self.state.lock().gathering.handovers;
            if std::mem::replace(&mut handovers, now) == now {
                break;
            }
        }
        self.state.lock().gathering.ends(handovers > 1);
    }

    fn write_direct(&self, socket: WriteHalf, staged: &mut Vec<u8>) {
        let mut done = 0;
        let mut failed = false;
        while done < staged.len() {
            match socket.try_write(&staged[done..]) {
                Ok(0) => failed = true,
                Ok(count) => {
                    done += count;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => failed = true,
            }
            break;
        }
        self.moved(done);

        let mut state = self.state.lock();
        if failed {
            self.end_locked(&mut state, CloseReason::WriteError, &[]);
        }
        if staged.len() - done > self.max_pending {
            self.end_locked(&mut state, CloseReason::SlowConsumerPendingBytes, &[]);
        }
        if state.ended.is_some_and(CloseReason::is_abrupt) {
            staged.clear();
            state.close(&socket);
            drop(state);
            self.wake.notify_one();
            return;
        }
        if done < staged.len() {
            let fresh = state.spare.pop().unwrap_or_default();
            state.queue.push_front(Segment { bytes: std::mem::replace(staged, fresh), start: done });
        } else {
            staged.clear();
        }
        if state.queue.is_empty() && state.ended.is_none() {
            state.socket = Some(socket);
        } else {
            state.for_task = Some(socket);
            drop(state);
            self.wake.notify_one();
        }
    }

    async fn drain(&self, socket: WriteHalf) -> Drained {
        let mut batch = VecDeque::new();
        loop {
            {
                let mut state = self.state.lock();
                if state.ended.is_some_and(CloseReason::is_abrupt) {
                    state.close(&socket);
                    return Drained::Closed;
                }
                if state.queue.is_empty() {
                    if state.ended.is_some() {
                        state.close(&socket);
                        return Drained::Closed;
                    }
                    state.socket = Some(socket);
                    return Drained::Idle;
                }
                std::mem::swap(&mut batch, &mut state.queue);
            }
            if let Err(reason) = self.write_batch(&socket, &mut batch).await {
                batch.clear();
                self.end(reason, &[]);
            }
            tokio::task::consume_budget().await;
        }
    }

    /// Writes all of it within one write deadline.
    async fn write_batch(
        &self,
        socket: &WriteHalf,
        batch: &mut VecDeque<Segment>,
    ) -> Result<(), CloseReason> {
        let until = clock::monotonic() + self.write_deadline;
        while !batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = batch.len().min(SLICES_MAX);
            for (slice, segment) in slices.iter_mut().zip(batch.iter()) {
                *slice = IoSlice::new(&segment.bytes[segment.start..]);
            }
            match socket.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(CloseReason::WriteError),
                Ok(written) => {
                    self.moved(written);
                    self.advance(batch, written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // Cancel safe: readiness and permits are not lost by dropping either future.
                    tokio::select! {
                        ready = socket.writable() => {
                            if ready.is_err() {
                                return Err(CloseReason::WriteError);
                            }
                        }
                        () = self.wake.notified() => {
                            if self.ended().is_some_and(CloseReason::is_abrupt) {
                                batch.clear();
                            }
                        }
                        () = tokio::time::sleep_until(until) => {
                            return Err(CloseReason::SlowConsumerWriteDeadline);
                        }
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(CloseReason::WriteError),
            }
        }
        Ok(())
    }

    fn advance(&self, batch: &mut VecDeque<Segment>, mut written: usize) {
        while let Some(first) = batch.front_mut() {
            let left = first.bytes.len() - first.start;
            if written < left {
                first.start += written;
                return;
            }
            written -= left;
            if let Some(Segment { mut bytes, .. }) = batch.pop_front() {
                bytes.clear();
                let mut state = self.state.lock();
                if state.spare.len() < SPARES_MAX && bytes.capacity() <= SPARE_BYTES_MAX {
                    state.spare.push(bytes);
                }
            }
        }
    }

    /// Bytes went to the socket.
    fn moved(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.pending.fetch_sub(count, Ordering::SeqCst);
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        if self.lagging.load(Ordering::Relaxed) {
            self.lagging.store(false, Ordering::Relaxed);
        }
        if self.stalled.load(Ordering::SeqCst) {
            self.stalled.store(false, Ordering::SeqCst);
            self.drained.notify_waiters();
        }
    }

    fn end_locked(&self, state: &mut State, reason: CloseReason, last_words: &[u8]) {
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason);
        self.ended.store(true, Ordering::SeqCst);
        let idle = state.socket.take().or_else(|| state.for_task.take());
        if reason.is_abrupt() {
            state.queue.clear();
            state.spare.clear();
            if let Some(socket) = idle {
                state.close(&socket);
            }
        } else {
            state.queue.push_back(Segment { bytes: last_words.to_vec(), start: 0 });
            self.pending.fetch_add(last_words.len(), Ordering::SeqCst);
            state.for_task = idle;
        }
        self.drained.notify_waiters();
        self.wake.notify_one();
    }
}

impl Gathering {
    /// Whether a small handover to an idle socket waits for others.
    fn begins_with(&mut self, bytes: usize) -> bool {
        self.direct += 1;
        let is_tried = self.is_on || self.direct >= GATHERING_TRIED_EVERY;
        if bytes > GATHERED_BYTES_MAX || !is_tried {
            return false;
        }
        self.direct = 0;
        self.handovers = 1;
        self.lets_others_run = true;
        true
    }

    fn ends(&mut self, somebody_came: bool) {
        self.in_vain = if somebody_came { 0 } else { self.in_vain + 1 };
        self.is_on = somebody_came || (self.is_on && self.in_vain < GATHERING_IN_VAIN_MAX);
    }
}

impl State {
    fn enqueue(&mut self, staged: &mut Vec<u8>) {
        if let Some(last) = self.queue.back_mut()
            && last.bytes.len() + staged.len() <= last.bytes.capacity().min(COALESCE_MAX)
        {
            last.bytes.extend_from_slice(staged);
            staged.clear();
            return;
        }
        let fresh = self.spare.pop().unwrap_or_default();
        self.queue.push_back(Segment { bytes: std::mem::replace(staged, fresh), start: 0 });
    }

    fn close(&mut self, socket: &WriteHalf) {
        socket.shutdown();
        self.closed = true;
        self.queue = VecDeque::new();
        self.spare = Vec::new();
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Drained {
    Idle,
    Closed,
}

/// Copying that much costs less than a system call.
const GATHERED_BYTES_MAX: usize = 4 << 10;
/// A write is not put off for longer than it takes everybody to have that many turns.
const GATHERING_TURNS_MAX: usize = 8;
/// It ends when that many writes in a row waited for nobody.
const GATHERING_IN_VAIN_MAX: u32 = 16;
/// One write in this many waits for others, to see whether they come.
const GATHERING_TRIED_EVERY: u32 = 64;
/// Above this, what waits no longer fits caches, and producers pause for a moment.
const SOFT_MARK: usize = 1 << 20;
/// How long a producer waits for a client that takes its messages, but slower than they come.
const SOFT_STALL: Duration = Duration::from_millis(2);
/// NATS stalls a producer for at most this long per read, for a client that is near its limit.
const HARD_STALL: Duration = Duration::from_millis(10);
const SLICES_MAX: usize = 64;
const SPARES_MAX: usize = 4;
const SPARE_BYTES_MAX: usize = 1 << 20;
const COALESCE_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::net::{self, TcpListener, TcpStream};
    use crate::runtime::tasks;
    use tokio::io::AsyncReadExt;

    async fn pair() -> (Arc<Outbound>, TcpStream) {
        sized_pair(1 << 20, Duration::from_secs(5)).await
    }

    async fn sized_pair(max_pending: usize, deadline: Duration) -> (Arc<Outbound>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let (_, write) = net::split(server).unwrap();
        let outbound = Arc::new(Outbound::new(Some(write), max_pending, deadline));
        tasks::spawn("writer", Arc::clone(&outbound).write_when_needed());
        (outbound, client)
    }

    fn hand(outbound: &Outbound, text: &[u8]) -> Pressure {
        outbound.hand_over(&mut text.to_vec(), Tally { msgs: 1, bytes: text.len() as u64 }, Delivery::Direct)
    }

    #[tokio::test]
    async fn what_is_handed_over_arrives_in_order_whoever_writes_it() {
        let (outbound, mut client) = pair().await;

        for (text, delivery) in [("a", Delivery::Direct), ("b", Delivery::Task), ("c", Delivery::Direct)] {
            outbound.hand_over(&mut text.as_bytes().to_vec(), Tally::default(), delivery);
        }
        outbound.end(CloseReason::ServerShutdown, b"bye");

        let mut all = String::new();
        client.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "abcbye");
    }

    #[tokio::test]
    async fn small_handovers_are_gathered_for_as_long_as_they_come_together() {
        let (outbound, mut client) = pair().await;
        let round = async |handovers: usize| {
            for _ in 0..handovers {
                hand(&outbound, b"x");
            }
            while outbound.pending() > 0 {
                tokio::task::yield_now().await;
            }
        };

        for _ in 0..2 * GATHERING_TRIED_EVERY {
            round(1).await;
        }
        assert!(!outbound.state.lock().gathering.is_on);
        for _ in 0..GATHERING_TRIED_EVERY {
            round(3).await;
        }
        assert!(outbound.state.lock().gathering.is_on);
        for _ in 0..GATHERING_IN_VAIN_MAX {
            round(1).await;
        }
        assert!(!outbound.state.lock().gathering.is_on);

        outbound.end(CloseReason::ServerShutdown, &[]);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        let expected = 5 * GATHERING_TRIED_EVERY + GATHERING_IN_VAIN_MAX;
        assert_eq!(all.len(), expected as usize);
    }

    #[tokio::test]
    async fn a_client_that_reads_late_gets_everything() {
        let (outbound, mut client) = sized_pair(64 << 20, Duration::from_secs(5)).await;
        let part: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();

        for _ in 0..200 {
            hand(&outbound, &part);
        }
        outbound.end(CloseReason::ServerShutdown, &[]);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();

        assert_eq!(all.len(), 200 * part.len());
        assert!(all.chunks(part.len()).all(|chunk| chunk == part));
        assert_eq!(outbound.pending(), 0);
        assert_eq!(outbound.tally().msgs, 200);
    }

    #[tokio::test]
    async fn a_client_over_max_pending_is_cut_off() {
        let (outbound, mut client) = sized_pair(8 << 20, Duration::from_secs(60)).await;

        let mut seen = Vec::new();
        while outbound.ended().is_none() {
            seen.push(hand(&outbound, &[b'x'; 500_000]));
            assert!(seen.len() < 200, "never ended");
        }

        assert!(seen.contains(&Pressure::Hard));
        assert_eq!(seen.last(), Some(&Pressure::Gone));
        assert_eq!(outbound.ended(), Some(CloseReason::SlowConsumerPendingBytes));
        assert_eq!(hand(&outbound, b"x"), Pressure::Gone);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_within_the_write_deadline_is_cut_off() {
        let (outbound, _client) = sized_pair(64 << 20, Duration::from_millis(50)).await;

        for _ in 0..20 {
            hand(&outbound, &[b'x'; 1_000_000]);
        }
        for _ in 0..200 {
            if outbound.ended().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        assert_eq!(outbound.ended(), Some(CloseReason::SlowConsumerWriteDeadline));
    }

    #[tokio::test]
    async fn a_stalled_producer_waits_for_a_moment_and_not_for_a_dead_client() {
        let (outbound, client) = sized_pair(64 << 20, Duration::from_secs(60)).await;
        while hand(&outbound, &[b'x'; 1_000_000]) != Pressure::Soft {}

        outbound.relieved(Pressure::Soft).await;
        assert_eq!(outbound.pressure(), Pressure::None, "who takes nothing is not waited for twice");
        outbound.end(CloseReason::ClientClosed, &[]);
        outbound.relieved(Pressure::Hard).await;
        drop(client);
    }
}
