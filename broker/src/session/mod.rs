//! Hot path: one client's connection. Reads large chunks, works them off in place, hands over what it staged once per
//! chunk; no lock, allocation or system call per message.
//!
//! | file | is |
//! |---|---|
//! | this one | the read loop and its back-pressure |
//! | [`ops`] | what each operation does |
//! | [`outbound`] | what waits to be written |
//! | [`handle`] | what others hold of a session |
//! | [`places`] | how many clients of an account there may be |
//! | [`registry`] | all sessions of the node: admission, keep-alive, lame duck, listings |
//! | [`auth`] | credentials |
//! | [`guard`] | what a user may publish and subscribe to |
//! | [`limits`], [`closing`] | limits, and reasons to close |
//!
//! A chunk ends with a flush, in an order that PONG depends on: other clients and peers first, then the stream side,
//! then the client's own answers.

pub mod auth;
pub mod closing;
pub(crate) mod guard;
pub mod handle;
pub mod limits;
mod ops;
pub mod outbound;
pub mod places;
pub mod registry;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use futures::future::BoxFuture;
use levee_protocol::wire::parse::Limits;
use levee_protocol::wire::{ClientOp, ConnectOptions, Parser, ProtocolError, encode};

pub use auth::{AuthConfig, Identity, Secret, User};
pub use closing::CloseReason;
pub use handle::{ConnectionView, SessionHandle, SubscriptionView};
pub use limits::{ConnectionLimits, SessionLimits};
pub use outbound::Tally;
pub use registry::{Sessions, Totals};

use crate::router::route::{RouteCache, Viewpoint, settle};
use crate::router::stage::Stage;
use crate::router::{AccountTable, ClientInfo};
use crate::runtime::clock;
use crate::runtime::net::ReadHalf;
use crate::session::guard::Guard;
use crate::session::places::Place;

/// The task's half of a session.
pub(crate) struct Session {
    sessions: Arc<Sessions>,
    handle: Arc<SessionHandle>,
    reader: ReadHalf,
    parser: Parser,
    buf: BytesMut,
    at: usize,
    read_size: usize,
    small_reads: u32,
    options: ConnectOptions,
    connected: bool,
    ponged: bool,
    client: Arc<ClientInfo>,
    /// Where it publishes and subscribes; `None` while it has to authenticate first.
    account: Option<Arc<AccountTable>>,
    /// What it may do there; `None` if everything.
    guard: Option<Arc<Guard>>,
    /// Among the connections of the account, if those are limited.
    place: Option<Place>,
    max_subscriptions: Option<u64>,
    /// Whether the account of clients without credentials is full.
    is_crowded_out: bool,
    violations: Violations,
    view: Viewpoint,
    routes: RouteCache,
    stage: Stage,
    received: Tally,
    is_active: bool,
}

/// How often violations were logged: a client that goes on for ever does not fill the disk.
#[derive(Debug, Default)]
struct Violations {
    /// [`clock::ticks`] of the last one that was logged; 0 if there was none.
    logged_at: u64,
    unlogged: u64,
}

/// Why working off a chunk paused.
enum Step {
    /// The next op is not complete.
    NeedMore,
    /// Much is staged, or much was done: let others have the thread.
    Pause,
    /// CONNECT may have to wait for its answer.
    Connect(Box<ConnectOptions>),
    /// The connection ends.
    Close(Ending),
}

/// How a connection ends.
pub(crate) struct Ending {
    reason: CloseReason,
    error: Option<&'static str>,
}

impl Ending {
    fn with(reason: CloseReason, error: &'static str) -> Self {
        Self { reason, error: Some(error) }
    }

    fn crowded_out() -> Self {
        let error = "maximum account active connections exceeded";
        Self::with(CloseReason::MaximumAccountConnectionsExceeded, error)
    }

    fn silently(reason: CloseReason) -> Self {
        Self { reason, error: None }
    }
}

impl From<ProtocolError> for Ending {
    fn from(error: ProtocolError) -> Self {
        let reason = match error {
            ProtocolError::MaxPayload { .. } => CloseReason::MaximumPayloadExceeded,
            ProtocolError::MaxControlLine { .. } => CloseReason::MaximumControlLineExceeded,
            ProtocolError::UnknownOperation | ProtocolError::Arguments { .. } => {
                CloseReason::ProtocolViolation
            }
        };
        Self { reason, error: error.wire_text() }
    }
}

impl Session {
    pub(crate) fn new(sessions: Arc<Sessions>, handle: Arc<SessionHandle>, reader: ReadHalf) -> Self {
        let limits = sessions.limits();
        let parser = Parser::new(Limits {
            max_control_line: limits.max_control_line,
            max_payload: limits.max_payload,
        });
        let mut session = Self {
            stage: Stage::new(Some(&handle)),
            client: handle.client(),
            sessions,
            handle,
            reader,
            parser,
            buf: BytesMut::new(),
            at: 0,
            read_size: READ_MIN,
            small_reads: 0,
            options: ConnectOptions::default(),
            connected: false,
            ponged: false,
            account: None,
            guard: None,
            place: None,
            max_subscriptions: None,
            is_crowded_out: false,
            violations: Violations::default(),
            view: Viewpoint::default(),
            routes: RouteCache::new(),
            received: Tally::default(),
            is_active: false,
        };
        if let Some(identity) = session.sessions.auth().anonymous() {
            // An account that is full is no reason to turn away who has not said yet who it is.
            session.is_crowded_out = session.become_user(identity).is_err();
        }
        session
    }

    /// Serves the client until it leaves or has to.
    pub(crate) async fn run(mut self) {
        let ending = self.serve().await;
        let mut last_words = Vec::new();
        if let Some(text) = ending.error {
            encode::err(&mut last_words, text);
        }
        self.handle.outbound.end(ending.reason, &last_words);
        self.drop_subscriptions();
        self.place = None;
        self.sessions.left(&self.handle);
        self.discard().await;
    }

    async fn serve(&mut self) -> Ending {
        loop {
            if let Err(ending) = self.read().await {
                return ending;
            }
            self.handle.pulse.heard.store(clock::ticks(), Ordering::Relaxed);
            loop {
                self.routes.refresh(self.sessions.router(), &mut self.stage);
                let step = self.step();
                let full = self.flush();
                for room in full {
                    self.wait_for_room(room).await;
                }
                if self.stage.is_pressed() && self.stage.relieve().await {
                    self.handle.count_stall();
                    self.sessions.count_stall();
                }
                match step {
                    Step::NeedMore => break,
                    Step::Pause => tokio::task::yield_now().await,
                    Step::Connect(options) => {
                        if let Err(ending) = self.connect(*options).await {
                            return ending;
                        }
                    }
                    Step::Close(ending) => return ending,
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), Ending> {
        let needed = self.parser.needed().saturating_sub(self.buf.len());
        self.buf.reserve(needed.max(self.read_size));
        let spare = self.buf.capacity() - self.buf.len();
        let count = match self.reader.read(&mut self.buf).await {
            Ok(0) => return Err(Ending::silently(CloseReason::ClientClosed)),
            Ok(count) => count,
            Err(_) => return Err(Ending::silently(CloseReason::ReadError)),
        };
        // A busy client gets a large buffer, which makes fewer and larger steps of everything; a quiet one gives it
        // back.
        if count == spare || count >= self.read_size {
            self.read_size = (self.read_size * 2).min(READ_MAX);
            self.small_reads = 0;
        } else if count < self.read_size / 4 && self.read_size > READ_MIN {
            self.small_reads += 1;
            if self.small_reads > SMALL_READS {
                self.small_reads = 0;
                self.read_size /= 2;
            }
        }
        Ok(())
    }

    /// Works off what is in the buffer, up to a budget.
    fn step(&mut self) -> Step {
        let buf = std::mem::take(&mut self.buf);
        let step = self.work_off(&buf);
        self.buf = buf;
        step
    }

    fn work_off(&mut self, buf: &BytesMut) -> Step {
        let mut copies = 0;
        loop {
            // Whoever has to authenticate does so first, and is told so at the first byte of anything else.
            if self.account.is_none() && buf.get(self.at).is_some_and(|first| !matches!(first, b'c' | b'C')) {
                return Step::Close(if self.is_crowded_out {
                    Ending::crowded_out()
                } else {
                    Ending::with(CloseReason::AuthenticationFailure, "Authorization Violation")
                });
            }
            let (op, next) = match self.parser.next(buf, self.at) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => return Step::NeedMore,
                Err(error) => return Step::Close(error.into()),
            };
            if tracing::level_enabled!(tracing::Level::TRACE) {
                self.trace(&op, &buf[self.at..next]);
            }
            if let ClientOp::Publish(publish) = op {
                match self.publish(&publish, buf) {
                    Ok(count) => copies += 1 + count,
                    Err(ending) => return Step::Close(ending),
                }
                self.at = next;
                if self.stage.staged() > STAGED_MAX || copies > COPIES_MAX {
                    return Step::Pause;
                }
                continue;
            }
            self.at = next;
            match self.operate(op, buf) {
                Ok(None) => {}
                Ok(Some(options)) => return Step::Connect(options),
                Err(ending) => return Step::Close(ending),
            }
        }
    }

    /// The protocol as nats-server traces it. Credentials stay out of the log.
    #[cold]
    fn trace(&self, op: &ClientOp, text: &[u8]) {
        let (remote, cid) = (self.handle.remote, self.handle.cid);
        let line_end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        let line = text[..line_end].trim_ascii().escape_ascii();
        match op {
            ClientOp::Connect { .. } => tracing::trace!("{remote} - cid:{cid} - <<- [CONNECT {{...}}]"),
            ClientOp::Publish(_) => {
                let body = text.get(line_end + 1..).unwrap_or_default();
                let body = body.strip_suffix(b"\r\n").unwrap_or(body);
                tracing::trace!("{remote} - cid:{cid} - <<- [{line}]");
                tracing::trace!("{remote} - cid:{cid} - <<- MSG_PAYLOAD: [\"{}\"]", body.escape_ascii());
            }
            _ => tracing::trace!("{remote} - cid:{cid} - <<- [{line}]"),
        }
    }

    /// Hands over everything that is staged. Returns what to wait for before the next chunk.
    fn flush(&mut self) -> Vec<BoxFuture<'static, ()>> {
        let mut full = Vec::new();
        self.flush_messages();
        if self.stage.has_sinks() {
            let chunk = self.buf.split_to(self.at).freeze();
            self.parser.rebase(self.at);
            self.at = 0;
            self.stage.flush_sinks(&self.client, &chunk, &mut full);
        } else if self.at == self.buf.len() {
            self.buf.clear();
            self.parser.rebase(self.at);
            self.at = 0;
            if self.buf.capacity() > 2 * self.read_size.max(READ_MIN) {
                self.buf = BytesMut::new();
            }
        } else if self.at > 0 {
            bytes::Buf::advance(&mut self.buf, self.at);
            self.parser.rebase(self.at);
            self.at = 0;
        }
        self.stage.flush_own();
        if self.received.msgs > 0 || self.is_active {
            self.is_active = false;
            self.handle
                .pulse
                .active
                .store(self.handle.pulse.heard.load(Ordering::Relaxed), Ordering::Relaxed);
            self.handle.count_received(std::mem::take(&mut self.received));
        }
        full
    }

    /// What is for other clients and peers. The buffer stays as it is.
    fn flush_messages(&mut self) {
        let routes = &mut self.routes;
        self.stage.take_uncounted(|at| settle(routes.route(at)));
        self.stage.flush_others(self.sessions.router());
    }

    /// A sink is full: nothing is read until it has room, unless the client is cut off meanwhile.
    async fn wait_for_room(&self, mut room: BoxFuture<'static, ()>) {
        while self.handle.outbound.ended().is_none() {
            if tokio::time::timeout(ROOM_LOOK, &mut room).await.is_ok() {
                return;
            }
        }
    }

    /// Reads what the client still sends, for a moment: closing a socket with unread bytes in it would take back
    /// the error text that was just sent.
    async fn discard(&mut self) {
        let discard = async {
            loop {
                self.buf.clear();
                self.buf.reserve(READ_MIN);
                if !matches!(self.reader.read(&mut self.buf).await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DISCARD_MAX, discard).await;
    }
}

const READ_MIN: usize = 4 << 10;
const READ_MAX: usize = 256 << 10;
/// That many small reads in a row halve the buffer.
const SMALL_READS: u32 = 16;
/// Staged bytes after which a chunk is interrupted by a flush.
const STAGED_MAX: usize = 1 << 20;
/// Deliveries after which the session lets other tasks run: with many subscribers a chunk can be long work.
const COPIES_MAX: usize = 32 << 10;
const ROOM_LOOK: Duration = Duration::from_millis(250);
const DISCARD_MAX: Duration = Duration::from_millis(500);
