//! The other nodes of the cluster: finding them, knowing who they are, and one ordered stream to each.
//!
//! Each node opens a link to each other node and talks on it; so between two nodes there is one stream in each
//! direction, and a peer is up while both are. On its stream a node sends what its clients want, the messages that
//! are wanted there, and what its own parts have to say (forwards and calls), in the order in which it happened: a
//! request is behind the subscription that waits for its answer.
//!
//! | file | is |
//! |---|---|
//! | `frames` | the records on a stream |
//! | `link` | the queue to one peer |
//! | `dial` | opening links: configured routes and nodes heard of, with back-off |
//! | `service` | links that others open to us |
//! | `receive` | what a peer's records do |
//! | `gate` | keeps strangers off the cluster port |

mod dial;
pub(crate) mod frames;
mod gate;
mod link;
mod receive;
mod service;
#[cfg(test)]
mod tests;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
pub(crate) mod proto {
    tonic::include_proto!("levee.peer");
}

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use foldhash::HashMap;
use futures::future::BoxFuture;
use levee_protocol::ids::NodeId;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{broadcast, oneshot};

pub use gate::incoming;
pub use link::{Link, PeerGone};
pub use service::PeerService;

use crate::router::Router;
use crate::runtime::chance::Chance;
use crate::runtime::{clock, tasks};
use crate::session::outbound::{Pressure, Tally};
use proto::peer_server::PeerServer;
use proto::{Identity, KnownNode};

/// What a node tells its peers about itself.
#[derive(Clone, Debug)]
pub struct PeersConfig {
    /// The id from the store directory.
    pub node: NodeId,
    /// The server name; unique in the cluster.
    pub server_name: String,
    /// The cluster's name; peers of other clusters are refused.
    pub cluster_name: String,
    /// The version of the product.
    pub version: String,
    /// Where peers can dial this node, as `host:port`. A wildcard host means the address we come from. Empty if
    /// this node has no cluster port.
    pub cluster_address: String,
    /// Configured routes, as `host:port`.
    pub routes: Vec<String>,
    /// This node's client listeners, as `host:port`, for `connect_urls`.
    pub client_urls: Vec<String>,
    /// Whether it stores streams.
    pub jetstream: bool,
}

/// A peer, as seen from here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerView {
    /// Its id.
    pub node: NodeId,
    /// Its server name.
    pub name: String,
    /// Its product version.
    pub version: String,
    /// Where it is dialed.
    pub cluster_address: String,
    /// Its client listeners.
    pub client_urls: Vec<String>,
    /// Whether it stores streams.
    pub jetstream: bool,
    /// What its own parts want peers to know; see [`Peers::set_meta`].
    pub meta: Bytes,
    /// Subjects and groups its clients want.
    pub subscriptions: usize,
    /// Whether the configuration names its address.
    pub is_configured: bool,
    /// How long it has been connected.
    pub connected_for: Duration,
    /// Messages routed to it.
    pub sent: Tally,
    /// Messages it routed here.
    pub received: Tally,
    /// Messages not routed to it because it was too far behind.
    pub dropped: u64,
    /// Bytes that wait for it.
    pub pending_bytes: usize,
}

/// Peers come and go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PeerEvent {
    /// Both streams are connected.
    Up(NodeId),
    /// One of them ended.
    Down(NodeId),
    /// What it tells about itself changed: client urls, meta.
    Changed(NodeId),
    /// A node on a configured route does not want us, or we not it: a configuration to be fixed.
    Refused {
        /// Where it was met.
        address: String,
        /// Why, for people.
        reason: String,
    },
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// It is not connected, or was lost while we waited.
    #[error("the peer is not connected")]
    Gone,
    /// It did not answer in time.
    #[error("the peer did not answer in time")]
    Timeout,
    /// It runs as many calls of ours as it will.
    #[error("the peer is busy")]
    Busy,
    /// Nobody there answers this kind of call; it may be about to start or to stop.
    #[error("the peer does not answer such calls")]
    NobodyAnswers,
}

/// Knows where nodes can be dialed.
pub trait AddressBook: Send + Sync {
    /// `host:port` of a node's cluster port.
    fn address(&self, node: NodeId) -> Option<String>;
}

type ForwardHandler = Arc<dyn Fn(NodeId, Bytes) + Send + Sync>;
type CallHandler = Arc<dyn Fn(NodeId, Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// The other nodes.
pub struct Peers {
    weak: Weak<Self>,
    router: Arc<Router>,
    node: NodeId,
    instance: u64,
    own: Mutex<Identity>,
    state: Mutex<State>,
    forward_handlers: ArcSwap<BTreeMap<u8, ForwardHandler>>,
    call_handlers: ArcSwap<BTreeMap<u8, CallHandler>>,
    calls: Mutex<HashMap<u64, Call>>,
    next_call: AtomicU64,
    next_connection: AtomicU64,
    events: broadcast::Sender<PeerEvent>,
    refusals: Refusals,
    configured: Vec<String>,
    tasks: tasks::Scope,
    stop: tasks::Stop,
}

/// Refusals that the log tells of already: who is refused comes back every second.
#[derive(Default)]
struct Refusals(Mutex<HashMap<String, u64>>);

impl Refusals {
    /// Whether `reason` is to be logged: the first time, and once in a while as long as it goes on.
    fn is_news(&self, reason: &str) -> bool {
        let mut told = self.0.lock();
        told.retain(|_, at| clock::since(*at) < REFUSAL_TOLD_AGAIN);
        if told.contains_key(reason) || told.len() >= REFUSALS_MAX {
            return false;
        }
        told.insert(reason.to_owned(), clock::ticks());
        true
    }
}

#[derive(Default)]
struct State {
    peers: BTreeMap<NodeId, Peer>,
    dialed: HashSet<String>,
}

struct Peer {
    identity: Identity,
    address: String,
    link: Arc<Link>,
    /// The connection that brings its records; 0 is none.
    incoming: u64,
    is_up: bool,
    is_configured: bool,
    subscriptions: usize,
}

struct Call {
    node: NodeId,
    answer: oneshot::Sender<Result<Bytes, CallError>>,
}

impl Peers {
    /// Knows nobody yet. [`Self::start`] begins to dial, [`Self::service`] lets others in.
    #[must_use]
    pub fn new(router: Arc<Router>, config: PeersConfig) -> Arc<Self> {
        let instance = Chance::new().draw();
        let own = Identity {
            format: frames::FORMAT,
            node: config.node.0,
            instance,
            server_name: config.server_name,
            cluster_name: config.cluster_name,
            version: config.version,
            cluster_uid: String::new(),
            cluster_address: config.cluster_address,
            client_urls: config.client_urls,
            jetstream: config.jetstream,
            meta: Bytes::new(),
            known: Vec::new(),
        };
        let peers = Arc::new_cyclic(|weak| Self {
            weak: weak.clone(),
            router,
            node: config.node,
            instance,
            own: Mutex::new(own),
            state: Mutex::new(State::default()),
            forward_handlers: ArcSwap::default(),
            call_handlers: ArcSwap::default(),
            calls: Mutex::new(HashMap::default()),
            next_call: AtomicU64::new(1),
            next_connection: AtomicU64::new(1),
            events: broadcast::channel(256).0,
            refusals: Refusals::default(),
            configured: config.routes.clone(),
            tasks: tasks::Scope::default(),
            stop: tasks::Stop::new(),
        });
        peers.state.lock().dialed.extend(config.routes);
        peers
    }

    /// Begins to dial the configured routes.
    pub fn start(&self) {
        let routes: Vec<String> = self.state.lock().dialed.iter().cloned().collect();
        for address in routes {
            self.spawn_dial(address, dial::Origin::Configured);
        }
    }

    /// Dials one more address from now on, as if it had been configured.
    pub fn add_route(&self, address: &str) {
        if self.state.lock().dialed.insert(address.to_owned()) {
            self.spawn_dial(address.to_owned(), dial::Origin::Configured);
        }
    }

    /// The service to add to the cluster port's server. Frames are as large as the largest message.
    #[must_use]
    pub fn service(self: &Arc<Self>) -> PeerServer<PeerService> {
        PeerServer::new(PeerService::new(Arc::clone(self)))
            .max_decoding_message_size(FRAME_BYTES_MAX)
            .max_encoding_message_size(FRAME_BYTES_MAX)
    }

    /// Ends all links and stops dialing.
    pub fn stop(&self) {
        self.stop.stop();
        self.tasks.stop();
        let links: Vec<Arc<Link>> =
            self.state.lock().peers.values().map(|peer| Arc::clone(&peer.link)).collect();
        for link in links {
            self.router.book().detach(&link);
            link.close();
        }
    }

    /// Peers that are up.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerView> {
        self.state
            .lock()
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_up)
            .map(|(node, peer)| peer.view(*node))
            .collect()
    }

    /// The server name of a peer that is up.
    #[must_use]
    pub fn name(&self, node: NodeId) -> Option<String> {
        self.state.lock().peers.get(&node).filter(|peer| peer.is_up).map(|peer| peer.view(node).name)
    }

    /// Whether a peer is up.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.state.lock().peers.get(&node).is_some_and(|peer| peer.is_up)
    }

    /// Tells of peers that come and go. Who falls behind by hundreds of events gets an error and should look at
    /// [`Self::peers`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.events.subscribe()
    }

    /// Client listeners of the whole cluster, this node's first.
    #[must_use]
    pub fn connect_urls(&self) -> Vec<String> {
        let (own, others) = self.client_urls();
        [own, others].concat()
    }

    /// Client listeners of this node, and of the other nodes.
    #[must_use]
    pub fn client_urls(&self) -> (Vec<String>, Vec<String>) {
        let own = self.own.lock().client_urls.clone();
        let mut others = Vec::new();
        for peer in self.state.lock().peers.values().filter(|peer| peer.is_up) {
            for url in &peer.identity.client_urls {
                if !own.contains(url) && !others.contains(url) {
                    others.push(url.clone());
                }
            }
        }
        (own, others)
    }

    /// Sends a payload to a part of another node that listens for `kind`. It arrives after all subscriptions made
    /// and all messages flushed before, or not at all if the link breaks. To this node itself, it is a call.
    pub fn forward(&self, node: NodeId, kind: u8, payload: Bytes) -> Result<(), PeerGone> {
        if node == self.node {
            self.forwarded(node, kind, payload);
            return Ok(());
        }
        self.link(node).ok_or(PeerGone)?.push(frames::FORWARD, &[&[kind], &payload])
    }

    /// Waits, for a bounded time, until a node has taken what waits for it; `None` if it keeps up. For whoever forwards
    /// a client's messages and can stop reading from it.
    #[must_use]
    pub fn relieved(&self, node: NodeId) -> Option<BoxFuture<'static, ()>> {
        let link = self.link(node)?;
        let pressure = link.pressure();
        matches!(pressure, Pressure::Soft | Pressure::Hard)
            .then(|| Box::pin(async move { link.relieved(pressure).await }) as BoxFuture<'static, ()>)
    }

    /// Asks a part of another node that answers `kind`.
    pub async fn call(
        &self,
        node: NodeId,
        kind: u8,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        if node == self.node {
            let handler = self.call_handlers.load().get(&kind).cloned().ok_or(CallError::NobodyAnswers)?;
            return tokio::time::timeout(timeout, handler(node, payload))
                .await
                .map_err(|_| CallError::Timeout);
        }
        let link = self.link(node).ok_or(CallError::Gone)?;
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.calls.lock().insert(id, Call { node, answer });
        let forget = Forget { peers: self, id };
        // Looked at after the call is registered: a peer lost from here on fails it.
        if !self.is_connected(node) {
            return Err(CallError::Gone);
        }
        link.push(frames::CALL, &[&id.to_le_bytes(), &[kind], &payload])
            .map_err(|PeerGone| CallError::Gone)?;
        let answer = tokio::time::timeout(timeout, answered).await;
        drop(forget);
        answer.map_err(|_| CallError::Timeout)?.map_err(|_| CallError::Gone)?
    }

    /// Who takes forwards of a kind. It runs on the task that reads from the peer: it must be quick and not block.
    pub fn on_forward(&self, kind: u8, handler: ForwardHandler) {
        self.forward_handlers.rcu(|handlers| {
            let mut handlers = BTreeMap::clone(handlers);
            handlers.insert(kind, Arc::clone(&handler));
            handlers
        });
    }

    /// Who answers calls of a kind. The future runs on a task of its own.
    pub fn on_call(&self, kind: u8, handler: CallHandler) {
        self.call_handlers.rcu(|handlers| {
            let mut handlers = BTreeMap::clone(handlers);
            handlers.insert(kind, Arc::clone(&handler));
            handlers
        });
    }

    /// The cluster this node's store directory belongs to, once it does. Peers of another one are refused.
    pub fn set_cluster_uid(&self, uid: &str) {
        self.change_identity(|own| uid.clone_into(&mut own.cluster_uid));
    }

    /// What this node's own parts want all peers to know; see [`PeerView::meta`].
    pub fn set_meta(&self, meta: Bytes) {
        self.change_identity(|own| own.meta = meta);
    }

    /// This node's client listeners, once their ports are known. Empty when it should not be advertised.
    pub fn set_client_urls(&self, urls: Vec<String>) {
        self.change_identity(|own| own.client_urls = urls);
    }

    /// Where peers can dial this node, once its port is known.
    pub fn set_cluster_address(&self, address: &str) {
        self.change_identity(|own| address.clone_into(&mut own.cluster_address));
    }

    fn change_identity(&self, change: impl FnOnce(&mut Identity)) {
        change(&mut self.own.lock());
        let record = self.identity().encode_to_vec();
        let links: Vec<Arc<Link>> =
            self.state.lock().peers.values().map(|peer| Arc::clone(&peer.link)).collect();
        for link in links {
            // One that is not connected gets it with its hello.
            let _ = link.push(frames::IDENTITY, &[&record]);
        }
    }

    /// Who we are, and whom we know.
    fn identity(&self) -> Identity {
        let mut identity = self.own.lock().clone();
        identity.known = self
            .state
            .lock()
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_up)
            .map(|(node, peer)| KnownNode { node: node.0, cluster_address: peer.address.clone() })
            .collect();
        identity
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.state.lock().peers.get(&node).map(|peer| Arc::clone(&peer.link))
    }

    fn forwarded(&self, from: NodeId, kind: u8, payload: Bytes) {
        match self.forward_handlers.load().get(&kind) {
            Some(handler) => handler(from, payload),
            None => tracing::debug!("node {from}: nobody takes forwards of kind {kind}"),
        }
    }

    /// Decides whether to talk to a node. `Err` is the reason for people; `None` means it is ourselves.
    fn vet(&self, other: &Identity) -> Result<Option<NodeId>, String> {
        if other.format != frames::FORMAT {
            return Err(format!(
                "server '{}' (version {}) speaks another format of the cluster protocol ({} instead of {}); run the same version on all servers",
                other.server_name,
                other.version,
                other.format,
                frames::FORMAT
            ));
        }
        if other.instance == self.instance {
            return Ok(None);
        }
        let own = self.own.lock().clone();
        if other.cluster_name != own.cluster_name {
            return Err(format!(
                "server '{}' is in cluster '{}', server '{}' in cluster '{}'; servers of one cluster need the same cluster name",
                other.server_name, other.cluster_name, own.server_name, own.cluster_name
            ));
        }
        if other.node == own.node {
            return Err(format!(
                "server '{}' runs from a copy of the store directory of server '{}'; each server needs a directory of its own",
                other.server_name, own.server_name
            ));
        }
        if other.server_name == own.server_name {
            return Err(format!(
                "server name '{}' is used by two servers; names must be unique",
                own.server_name
            ));
        }
        if !other.cluster_uid.is_empty()
            && !own.cluster_uid.is_empty()
            && other.cluster_uid != own.cluster_uid
        {
            return Err(format!(
                "the store directory of server '{}' belongs to another cluster ({}) than that of server '{}' ({})",
                other.server_name, other.cluster_uid, own.server_name, own.cluster_uid
            ));
        }
        let state = self.state.lock();
        // A node that restarts comes back with its name and from where it was, and takes the place of connections
        // whose end was not noticed yet. Anybody else with its id must not push it out.
        let same_node = state.peers.get(&NodeId(other.node)).filter(|peer| {
            let known = &peer.identity;
            peer.is_alive()
                && known.instance != other.instance
                && (known.server_name != other.server_name || known.cluster_address != other.cluster_address)
        });
        if let Some(peer) = same_node {
            return Err(format!(
                "server '{}' runs from a copy of the store directory of server '{}'; each server needs a directory of its own",
                other.server_name, peer.identity.server_name
            ));
        }
        let same_name = state.peers.iter().find(|(node, peer)| {
            node.0 != other.node && peer.is_alive() && peer.identity.server_name == other.server_name
        });
        if same_name.is_some() {
            return Err(format!(
                "server name '{}' is used by two servers; names must be unique",
                other.server_name
            ));
        }
        Ok(Some(NodeId(other.node)))
    }

    /// Learns who a node is. `seen_at` is where it really is, in case it advertises a wildcard.
    fn meet(&self, other: Identity, seen_at: Option<SocketAddr>) -> Arc<Link> {
        let node = NodeId(other.node);
        let address = reachable(&other.cluster_address, seen_at);
        let mut state = self.state.lock();
        let configured = &self.configured;
        let peer = state.peers.entry(node).or_insert_with(|| Peer {
            identity: Identity::default(),
            address: String::new(),
            link: Link::new(node),
            incoming: 0,
            is_up: false,
            is_configured: false,
            subscriptions: 0,
        });
        if let Some(address) = address {
            peer.is_configured = configured.contains(&address);
            peer.address = address;
        }
        peer.identity = other;
        Arc::clone(&peer.link)
    }

    /// Dials nodes that a peer has told of, and the peer itself, unless there is a link already.
    fn learn(&self, known: impl IntoIterator<Item = (NodeId, String)>) {
        for (node, address) in known {
            if node == self.node
                || address.is_empty()
                || self.link(node).is_some_and(|link| link.is_connected())
            {
                continue;
            }
            if self.state.lock().dialed.insert(address.clone()) {
                self.spawn_dial(address, dial::Origin::Learned);
            }
        }
    }

    fn spawn_dial(&self, address: String, origin: dial::Origin) {
        if let Some(peers) = self.weak.upgrade()
            && !self.stop.is_stopped()
        {
            self.tasks.spawn("dial peer", dial::dial(peers, address, origin));
        }
    }

    /// A stream in one direction came or went: decides whether the peer is up.
    fn look(&self, node: NodeId) {
        let mut state = self.state.lock();
        let Some(peer) = state.peers.get_mut(&node) else { return };
        let is_up = peer.incoming != 0 && peer.link.is_connected();
        if peer.is_up == is_up {
            return;
        }
        peer.is_up = is_up;
        let name = peer.identity.server_name.clone();
        // Sent under the lock, so that events have the order of what happened; who listens wakes up later.
        let event = if is_up { PeerEvent::Up(node) } else { PeerEvent::Down(node) };
        let _ = self.events.send(event);
        drop(state);
        if is_up {
            tracing::info!("server '{name}' ({node}) is connected");
            self.tell_everybody_of(node);
        } else {
            tracing::warn!("server '{name}' ({node}) is disconnected");
            let lost: Vec<Call> = {
                let mut calls = self.calls.lock();
                let ids: Vec<u64> =
                    calls.iter().filter(|(_, call)| call.node == node).map(|(id, _)| *id).collect();
                ids.iter().filter_map(|id| calls.remove(id)).collect()
            };
            for call in lost {
                let _ = call.answer.send(Err(CallError::Gone));
            }
        }
    }

    /// Gossip: all nodes find all nodes from any one route.
    fn tell_everybody_of(&self, node: NodeId) {
        let record = self.identity().encode_to_vec();
        let links: Vec<Arc<Link>> = {
            let state = self.state.lock();
            let others = state.peers.iter().filter(|(other, _)| **other != node);
            others.map(|(_, peer)| Arc::clone(&peer.link)).collect()
        };
        for link in links {
            let _ = link.push(frames::IDENTITY, &[&record]);
        }
    }
}

impl AddressBook for Peers {
    fn address(&self, node: NodeId) -> Option<String> {
        self.state
            .lock()
            .peers
            .get(&node)
            .map(|peer| peer.address.clone())
            .filter(|address| !address.is_empty())
    }
}

impl Peer {
    fn is_alive(&self) -> bool {
        self.incoming != 0 || self.link.is_connected()
    }

    fn view(&self, node: NodeId) -> PeerView {
        PeerView {
            node,
            name: self.identity.server_name.clone(),
            version: self.identity.version.clone(),
            cluster_address: self.address.clone(),
            client_urls: self.identity.client_urls.clone(),
            jetstream: self.identity.jetstream,
            meta: self.identity.meta.clone(),
            subscriptions: self.subscriptions,
            is_configured: self.is_configured,
            connected_for: self.link.connected_for(),
            sent: self.link.sent(),
            received: self.link.received(),
            dropped: self.link.dropped(),
            pending_bytes: self.link.pending(),
        }
    }
}

/// Takes a call off the list when nobody waits for it any more.
struct Forget<'a> {
    peers: &'a Peers,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.peers.calls.lock().remove(&self.id);
    }
}

/// Where a node can be dialed, given what it says and where it is.
fn reachable(advertised: &str, seen_at: Option<SocketAddr>) -> Option<String> {
    let (host, port) = advertised.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_wildcard = matches!(host, "" | "0.0.0.0" | "::");
    match seen_at {
        Some(seen_at) if is_wildcard => Some(match seen_at.ip().to_canonical() {
            std::net::IpAddr::V4(ip) => format!("{ip}:{port}"),
            std::net::IpAddr::V6(ip) => format!("[{ip}]:{port}"),
        }),
        None if is_wildcard => None,
        _ => Some(advertised.to_owned()),
    }
}

/// How often the log repeats why somebody is refused.
const REFUSAL_TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Different reasons that are told in that time.
const REFUSALS_MAX: usize = 64;
/// A frame holds at least one whole message; this bounds what a peer may make us allocate.
const FRAME_BYTES_MAX: usize = 256 << 20;
