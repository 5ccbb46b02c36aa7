//! The transport between processes: one bidirectional gRPC stream per peer and lane, dialed by the side that asks.
//!
//! A sender takes everything that is queued into one message, so heartbeats of a thousand groups cost one write.
//! While a connection is being made calls are queued; when it fails, or breaks later, all of them fail at once and
//! new ones fail until the next attempt. Payloads are copied once on the way out, into the stream's buffer, and once on the
//! way in, into memory of their own: so who keeps one does not keep the message around it, and buffers are used again.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::BlockMemory;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answer, Frame, Lane, PeerSign, Receiver, Transport, TransportError};
use crate::pb;
use crate::tasks::spawn;

/// Where nodes are reached.
pub trait AddressBook: Send + Sync + 'static {
    /// `host:port` of a node's cluster port, if known now.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// The service to add to the node's server on its cluster port.
pub type RaftService = pb::raft_server::RaftServer<Acceptor>;

/// Replication over gRPC.
pub struct GrpcTransport(Arc<Shared>);

struct Shared {
    node: NodeId,
    cluster_uid: RwLock<String>,
    addresses: Arc<dyn AddressBook>,
    memory: Arc<BlockMemory>,
    receiver: OnceLock<Weak<dyn Receiver>>,
    peers: Mutex<HashMap<(NodeId, Lane), Arc<Peer>>>,
    stopped: watch::Sender<bool>,
}

/// Our dialed connection to one peer, for one lane.
struct Peer {
    queue: mpsc::Sender<Outgoing>,
    queued_bytes: AtomicUsize,
    /// Whether calls may be queued: there is a connection, or one is being made.
    open: AtomicBool,
}

struct Outgoing {
    frame: Frame,
    answer: oneshot::Sender<Result<Frame, TransportError>>,
}

/// Frames that wait for one peer; beyond it calls are refused.
const QUEUE_FRAMES: usize = 16_384;
/// Bytes that wait for one peer, likewise.
const QUEUE_BYTES: usize = 64 << 20;
/// Bytes after which a message is full. A single frame may be larger.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 1024;
/// A payload above it keeps the buffer that it came in, which is not needed at that size again soon.
const COPIED_BYTES_MAX: usize = 4 << 20;
/// Largest message accepted: one entry of the largest payload a client may configure, and room.
const MESSAGE_BYTES_MAX: usize = 160 << 20;
/// Requests of one connection whose answers are not ready; beyond it nothing more is read from it.
const ANSWERING_MAX: usize = 8192;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A peer that says we are not one of its cluster is asked again this rarely.
const BACKOFF_REFUSED: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 8 << 20;
/// What goes into one frame of HTTP/2, which is a system call on either side.
const FRAME_BYTES: u32 = 256 << 10;

impl GrpcTransport {
    /// The transport of `node`. With an empty `cluster_uid` nobody is dialed or let in until
    /// [`set_cluster_uid`](Self::set_cluster_uid). Received payloads lie in `memory`.
    #[must_use]
    pub fn new(
        node: NodeId,
        cluster_uid: String,
        addresses: Arc<dyn AddressBook>,
        memory: Arc<BlockMemory>,
    ) -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            node,
            cluster_uid: RwLock::new(cluster_uid),
            addresses,
            memory,
            receiver: OnceLock::new(),
            peers: Mutex::default(),
            stopped: watch::Sender::new(false),
        })))
    }

    /// The cluster this node belongs to, once it is known.
    pub fn set_cluster_uid(&self, cluster_uid: String) {
        *self.0.cluster_uid.write() = cluster_uid;
    }

    /// A server for the cluster port, set up for much data from few peers.
    #[must_use]
    pub fn server() -> Server {
        Server::builder()
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
    }

    /// The receiving side, to add to the node's server. Peers are refused until [`Groups`](crate::Groups) has started
    /// the transport.
    #[must_use]
    pub fn service(&self) -> RaftService {
        pb::raft_server::RaftServer::new(Acceptor(Arc::clone(&self.0)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Transport for GrpcTransport {
    fn start(&self, receiver: Weak<dyn Receiver>) {
        let _ = self.0.receiver.set(receiver);
    }

    fn call(&self, to: NodeId, lane: Lane, frame: Frame) -> Answer {
        let peer = self.0.peer(to, lane);
        let size = frame.size();
        if !peer.open.load(Ordering::Acquire) || *self.0.stopped.borrow() {
            return refused(TransportError::Disconnected);
        }
        if peer.queued_bytes.load(Ordering::Relaxed) > QUEUE_BYTES {
            return refused(TransportError::Full);
        }
        let (answer, answered) = oneshot::channel();
        peer.queued_bytes.fetch_add(size, Ordering::Relaxed);
        if peer.queue.try_send(Outgoing { frame, answer }).is_err() {
            peer.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            return refused(TransportError::Full);
        }
        Box::pin(async move { answered.await.unwrap_or(Err(TransportError::Disconnected)) })
    }

    fn stop(&self) {
        self.0.stopped.send_replace(true);
        self.0.peers.lock().clear();
    }
}

fn refused(error: TransportError) -> Answer {
    Box::pin(std::future::ready(Err(error)))
}

impl Shared {
    /// The connection to a peer; dialed from now on if it was not.
    fn peer(self: &Arc<Self>, node: NodeId, lane: Lane) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let peer = peers.entry((node, lane)).or_insert_with(|| {
            let (queue, queued) = mpsc::channel(QUEUE_FRAMES);
            let peer =
                Arc::new(Peer { queue, queued_bytes: AtomicUsize::new(0), open: AtomicBool::new(true) });
            let dialer =
                Dialer { shared: Arc::clone(self), peer: Arc::clone(&peer), node, lane, first: None, queued };
            spawn("raft connection", dialer.run());
            peer
        });
        Arc::clone(peer)
    }

    fn receiver(&self) -> Option<Arc<dyn Receiver>> {
        self.receiver.get().and_then(Weak::upgrade)
    }

    fn sign(&self, node: NodeId, sign: PeerSign) {
        if let Some(receiver) = self.receiver() {
            receiver.sign(node, sign);
        }
    }
}

/// Keeps one connection to one peer.
struct Dialer {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    node: NodeId,
    lane: Lane,
    /// What leaves next, ahead of the queue.
    first: Option<Outgoing>,
    queued: mpsc::Receiver<Outgoing>,
}

/// Why a connection could not be made.
enum DialError {
    /// The address is not known yet.
    NoAddress,
    /// Something answered, and nothing listens there.
    Refused,
    /// The peer does not want us.
    Stranger(Status),
    /// Anything else.
    Failed(String),
}

impl Dialer {
    async fn run(mut self) {
        let mut stopped = self.shared.stopped.subscribe();
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.keep_connected() => {}
        }
        self.peer.open.store(false, Ordering::Release);
        self.fail_queued();
    }

    async fn keep_connected(&mut self) {
        let mut backoff = BACKOFF_FIRST;
        let mut was_up = false;
        let mut complained = false;
        loop {
            self.peer.open.store(true, Ordering::Release);
            let error = match self.dial().await {
                Ok((outbound, inbound)) => {
                    if !was_up || complained {
                        tracing::debug!(peer = %self.node, lane = ?self.lane, "connected");
                    }
                    (was_up, complained, backoff) = (true, false, BACKOFF_FIRST);
                    self.shared.sign(self.node, PeerSign::Up);
                    self.exchange(outbound, inbound).await;
                    tracing::debug!(peer = %self.node, lane = ?self.lane, "connection lost");
                    // At once again: what the address answers now tells a dead process from a bad line.
                    self.fail_queued();
                    continue;
                }
                Err(error) => error,
            };
            self.peer.open.store(false, Ordering::Release);
            self.fail_queued();
            let mut wait = backoff;
            match error {
                DialError::Refused if was_up => {
                    was_up = false;
                    if self.lane == Lane::Log {
                        self.shared.sign(self.node, PeerSign::Died);
                    }
                }
                DialError::NoAddress | DialError::Refused => {}
                DialError::Stranger(status) => {
                    wait = BACKOFF_REFUSED;
                    if !complained {
                        complained = true;
                        tracing::warn!(peer = %self.node, "the peer refuses Raft connections of this node: {}", status.message());
                    }
                }
                DialError::Failed(reason) => {
                    if !complained {
                        complained = true;
                        tracing::info!(peer = %self.node, "no Raft connection yet: {reason}");
                    }
                }
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
            tokio::time::sleep(wait).await;
        }
    }

    async fn dial(&self) -> Result<(mpsc::Sender<pb::Batch>, Streaming<pb::Batch>), DialError> {
        let cluster_uid = self.shared.cluster_uid.read().clone();
        let address = self.shared.addresses.address(self.node).filter(|_| !cluster_uid.is_empty());
        let address = address.ok_or(DialError::NoAddress)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| DialError::Failed(format!("address {address}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel: Channel = endpoint.connect().await.map_err(|error| match refused_by(&error) {
            true => DialError::Refused,
            false => DialError::Failed(format!("{address}: {error}")),
        })?;
        let mut client = pb::raft_client::RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outbound, messages) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(messages));
        Hello { cluster_uid, from: self.shared.node, to: self.node, lane: self.lane }
            .write(request.metadata_mut())
            .map_err(DialError::Failed)?;
        let response = tokio::time::timeout(HANDSHAKE_TIMEOUT, client.exchange(request)).await;
        match response {
            Ok(Ok(response)) => Ok((outbound, response.into_inner())),
            Ok(Err(status)) if status.code() == Code::PermissionDenied => Err(DialError::Stranger(status)),
            Ok(Err(status)) => Err(DialError::Failed(format!("{address}: {status}"))),
            Err(_) => Err(DialError::Failed(format!("{address}: no answer to the handshake"))),
        }
    }

    /// Runs until the connection breaks. Both directions are polled side by side: a full outbound window must not
    /// keep answers from being read.
    async fn exchange(&mut self, outbound: mpsc::Sender<pb::Batch>, mut inbound: Streaming<pb::Batch>) {
        let under_way = Mutex::new(HashMap::new());
        let memory = Arc::clone(&self.shared.memory);
        let sending = async {
            let mut next_request = 0u64;
            while let Some(batch) = self.next_batch(&mut next_request, &under_way).await {
                if outbound.send(batch).await.is_err() {
                    return;
                }
            }
        };
        let receiving = async {
            while let Ok(Some(batch)) = inbound.message().await {
                for frame in batch.frames {
                    let request = frame.request;
                    let answer: Option<oneshot::Sender<_>> = under_way.lock().remove(&request);
                    if let (Some(answer), Some(frame)) = (answer, received(frame, &memory)) {
                        let _ = answer.send(Ok(frame));
                    }
                }
            }
        };
        tokio::select! {
            () = sending => {}
            () = receiving => {}
        }
        for answer in under_way.into_inner().into_values() {
            let _ = answer.send(Err(TransportError::Disconnected));
        }
    }

    /// Waits for a frame and takes what is queued behind it.
    async fn next_batch(
        &mut self,
        next_request: &mut u64,
        under_way: &Mutex<HashMap<u64, oneshot::Sender<Result<Frame, TransportError>>>>,
    ) -> Option<pb::Batch> {
        // Kept where a connection that breaks meanwhile finds it.
        self.first = Some(self.queued.recv().await?);
        // Other groups that are about to send have their turn first: a message costs more than a frame in it.
        tokio::task::yield_now().await;
        let mut next = self.first.take();
        let mut frames = Vec::new();
        let mut bytes = 0;
        let mut waiting = under_way.lock();
        while let Some(Outgoing { frame, answer }) = next.take() {
            let size = frame.size();
            self.peer.queued_bytes.fetch_sub(size, Ordering::Relaxed);
            bytes += size;
            // Nobody waits any more; but what was sent before it may rely on its order, so only heads are dropped.
            *next_request += 1;
            waiting.insert(*next_request, answer);
            frames.push(sent(frame, *next_request));
            if bytes >= BATCH_BYTES || frames.len() >= BATCH_FRAMES {
                break;
            }
            next = self.queued.try_recv().ok();
        }
        Some(pb::Batch { frames })
    }

    fn fail_queued(&mut self) {
        let first = self.first.take();
        let queued = std::iter::from_fn(|| self.queued.try_recv().ok());
        for Outgoing { frame, answer } in first.into_iter().chain(queued) {
            self.peer.queued_bytes.fetch_sub(frame.size(), Ordering::Relaxed);
            let _ = answer.send(Err(TransportError::Disconnected));
        }
    }
}

fn sent(frame: Frame, request: u64) -> pb::Frame {
    pb::Frame {
        group: frame.group.0,
        kind: u32::from(frame.kind),
        request,
        head: frame.head,
        payloads: frame.payloads,
    }
}

fn received(frame: pb::Frame, memory: &Arc<BlockMemory>) -> Option<Frame> {
    let kind = u8::try_from(frame.kind).ok()?;
    let own = |payload: Bytes| match payload.len() {
        ..=COPIED_BYTES_MAX => memory.copy(&payload),
        _ => payload,
    };
    let payloads = frame.payloads.into_iter().map(own).collect();
    Some(Frame { group: GroupId(frame.group), kind, head: own(frame.head), payloads })
}

fn refused_by(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Who connects to whom.
#[derive(Debug, Eq, PartialEq)]
struct Hello {
    cluster_uid: String,
    from: NodeId,
    to: NodeId,
    lane: Lane,
}

const CLUSTER: &str = "levee-cluster";
const FROM: &str = "levee-from";
const TO: &str = "levee-to";
const LANE: &str = "levee-lane";

impl Hello {
    fn write(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        let lane = match self.lane {
            Lane::Log => "log",
            Lane::Bulk => "bulk",
        };
        let texts = [
            (CLUSTER, self.cluster_uid.clone()),
            (FROM, self.from.to_string()),
            (TO, self.to.to_string()),
            (LANE, lane.to_owned()),
        ];
        for (key, text) in texts {
            let value = MetadataValue::try_from(text).map_err(|error| format!("{key}: {error}"))?;
            metadata.insert(key, value);
        }
        Ok(())
    }

    fn read(metadata: &MetadataMap) -> Result<Self, String> {
        let text = |key: &str| {
            let value = metadata.get(key).ok_or_else(|| format!("it does not say its {key}"))?;
            value.to_str().map(str::to_owned).map_err(|_| format!("its {key} is not text"))
        };
        let node = |key: &str| {
            u64::from_str_radix(&text(key)?, 16)
                .map(NodeId)
                .map_err(|_| format!("its {key} is not a node id"))
        };
        let lane = match text(LANE)?.as_str() {
            "log" => Lane::Log,
            "bulk" => Lane::Bulk,
            other => return Err(format!("it asks for an unknown lane {other:?}")),
        };
        Ok(Self { cluster_uid: text(CLUSTER)?, from: node(FROM)?, to: node(TO)?, lane })
    }
}

/// The receiving side of [`GrpcTransport`].
pub struct Acceptor(Arc<Shared>);

impl Acceptor {
    fn check(&self, metadata: &MetadataMap) -> Result<Hello, String> {
        let hello = Hello::read(metadata)?;
        let ours = self.0.cluster_uid.read();
        if hello.cluster_uid != *ours {
            return Err(format!("it belongs to cluster {:?}, this node to {:?}", hello.cluster_uid, *ours));
        }
        if hello.to != self.0.node {
            return Err(format!("it looks for node {}, this is {}", hello.to, self.0.node));
        }
        if hello.from == self.0.node {
            return Err("it has this node's own id".to_owned());
        }
        Ok(hello)
    }
}

#[tonic::async_trait]
impl pb::raft_server::Raft for Acceptor {
    type ExchangeStream = ReceiverStream<Result<pb::Batch, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::Batch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        if self.0.cluster_uid.read().is_empty() {
            // A matter of milliseconds while a cluster is founded: the peer tries again at once.
            return Err(Status::unavailable("this node does not know its cluster yet"));
        }
        let hello = self.check(request.metadata()).map_err(|reason| {
            let remote = request.remote_addr().map_or_else(|| "?".to_owned(), |remote| remote.to_string());
            tracing::warn!("refused a Raft connection from {remote}: {reason}");
            Status::permission_denied(reason)
        })?;
        let receiver = self.0.receiver().ok_or_else(|| Status::unavailable("this node is starting"))?;
        // The way back: it is needed for this node's own requests, and it is what shows that the peer's process died.
        self.0.peer(hello.from, Lane::Log);
        let (answers, outbound) = mpsc::channel(4);
        let mut stopped = self.0.stopped.subscribe();
        let memory = Arc::clone(&self.0.memory);
        spawn("raft answers", async move {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = serve(hello.from, receiver, &memory, request.into_inner(), answers) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

/// Takes requests in order and sends answers as they get ready, as many as there are in one message.
async fn serve(
    from: NodeId,
    receiver: Arc<dyn Receiver>,
    memory: &Arc<BlockMemory>,
    mut requests: Streaming<pb::Batch>,
    answers: mpsc::Sender<Result<pb::Batch, Status>>,
) {
    // The connection must not keep a stopped node's groups alive.
    let receiver = {
        let weak = Arc::downgrade(&receiver);
        drop(receiver);
        weak
    };
    let mut answering = FuturesUnordered::new();
    loop {
        tokio::select! {
            batch = requests.message(), if answering.len() < ANSWERING_MAX => {
                let Ok(Some(batch)) = batch else { return };
                let Some(receiver) = receiver.upgrade() else { return };
                for frame in batch.frames {
                    let request = frame.request;
                    let Some(frame) = received(frame, memory) else { continue };
                    let answer = receiver.receive(from, frame);
                    answering.push(async move { (request, answer.await) });
                }
            }
            Some((request, frame)) = answering.next(), if !answering.is_empty() => {
                let mut frames = vec![sent(frame, request)];
                tokio::task::yield_now().await;
                while frames.len() < BATCH_FRAMES
                    && let Some(Some((request, frame))) = futures::FutureExt::now_or_never(answering.next())
                {
                    frames.push(sent(frame, request));
                }
                if answers.send(Ok(pb::Batch { frames })).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_reads_back_and_an_incomplete_one_is_refused() {
        let hello =
            Hello { cluster_uid: "c1".to_owned(), from: NodeId(1), to: NodeId(u64::MAX), lane: Lane::Bulk };
        let mut metadata = MetadataMap::new();
        hello.write(&mut metadata).unwrap();

        assert_eq!(Hello::read(&metadata).unwrap(), hello);
        metadata.remove(FROM);
        assert_eq!(Hello::read(&metadata), Err("it does not say its levee-from".to_owned()));
    }
}
