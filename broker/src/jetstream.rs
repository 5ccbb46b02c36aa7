//! Everything this node knows of streams, in one place to ask: the meta state, the replicas it holds, who leads
//! what. The message path meets it through [`crate::router::Services`], the API handlers through `Arc`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use levee_protocol::api::{ApiError, PubAck, ServerLimits};
use levee_protocol::command::meta::NodeRegistration;
use levee_protocol::ids::{AccountName, GroupId, NodeId};
use levee_raft::{Groups, Leadership};
use levee_storage::Storage;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::accounts::Accounts;
use crate::api;
use crate::limits::Limits;
use crate::meta::Meta;
use crate::meta::bootstrap::{Bootstrap, Standing};
use crate::router::peers::Peers;
use crate::router::{Inbound, MessageRef, Router};
use crate::runtime::clock::Clock;
use crate::sinks;
use crate::stream::directory::Directory;
use crate::stream::quota::{self, Quota};
use crate::stream::told::{self, FORWARD_ASKED, FORWARD_TOLD, Questions};
use crate::stream::{Replica, forward};
use crate::transfer::{self, FORWARD_TRANSFER, Transfers};

/// Messages for a stream, on their way to its leader.
pub const FORWARD_PUBLISH: u8 = 1;
/// Acks and flow control answers, on their way to the consumer.
pub const FORWARD_ACK: u8 = 2;
/// Pull requests and direct gets, on their way to the stream's leader.
pub const FORWARD_REQUEST: u8 = 4;
/// A node says that it leads a group now.
pub const FORWARD_LEADS: u8 = 6;
/// What the streams of accounts hold that a node leads.
pub const FORWARD_USAGE: u8 = 7;
/// An API call, answered by the leader it needs.
pub const CALL_API: u8 = 1;

/// So many readers of a node wait at origins for something to come; others look once a second. Each is a call that is
/// under way, and a peer takes a bounded number of those.
const WAITING_READERS_MAX: usize = 256;

/// What is fixed for as long as the process runs.
pub struct Identity {
    /// The node's id, from its store directory.
    pub node: NodeId,
    /// Its server name.
    pub name: String,
    /// Its server id.
    pub server_id: String,
    /// The cluster's name, or empty for a node that runs alone.
    pub cluster: String,
    /// The JetStream domain, or empty.
    pub domain: String,
    /// Where other nodes reach it, or empty.
    pub cluster_address: String,
    /// Bounds for streams and consumers that are created through it.
    pub limits: ServerLimits,
    /// What streams may ask of the nodes that hold them.
    pub tags: Vec<String>,
    /// What tags begin with that are to differ between a stream's replicas, or empty.
    pub unique_tag: String,
}

impl Identity {
    /// Whether a cluster's name is configured: only then can there be other nodes, and answers tell of them.
    #[must_use]
    pub fn has_cluster_name(&self) -> bool {
        !self.cluster.is_empty()
    }
}

/// The stream side of a node.
pub struct JetStream {
    identity: Identity,
    clock: Clock,
    storage: Arc<Storage>,
    groups: OnceLock<Arc<Groups>>,
    router: Arc<Router>,
    peers: Arc<Peers>,
    meta: Arc<Meta>,
    bootstrap: Arc<Bootstrap>,
    directory: Directory,
    replicas: RwLock<BTreeMap<GroupId, Arc<Replica>>>,
    /// Whether the replicas are what meta says, as of when that was last looked at.
    is_settled: AtomicBool,
    accounts: Accounts,
    quota: Quota,
    limits: Limits,
    transfers: Transfers,
    /// Atomic batches that are open in the streams that this node leads.
    open_batches: Arc<AtomicUsize>,
    waiting_readers: Arc<Semaphore>,
    open_fast_batches: Arc<AtomicUsize>,
    questions: Questions,
    api_calls: Mutex<BTreeMap<AccountName, ApiCalls>>,
}

/// Calls since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiCalls {
    /// All of them.
    pub total: u64,
    /// Those that were answered with an error.
    pub errors: u64,
}

impl JetStream {
    /// The parts of a node's stream side, tied together.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "called once; these are the parts")]
    pub fn new(
        identity: Identity,
        clock: Clock,
        storage: Arc<Storage>,
        router: Arc<Router>,
        peers: Arc<Peers>,
        meta: Arc<Meta>,
        bootstrap: Arc<Bootstrap>,
        accounts: Accounts,
        quota: Quota,
        limits: Limits,
    ) -> Arc<Self> {
        let jetstream = Arc::new(Self {
            directory: Directory::new(),
            identity,
            clock,
            storage,
            groups: OnceLock::new(),
            router,
            peers,
            meta,
            bootstrap,
            accounts,
            quota,
            limits,
            transfers: Transfers::default(),
            open_batches: Arc::default(),
            waiting_readers: Arc::new(Semaphore::new(WAITING_READERS_MAX)),
            open_fast_batches: Arc::default(),
            questions: Questions::default(),
            replicas: RwLock::new(BTreeMap::new()),
            is_settled: AtomicBool::new(false),
            api_calls: Mutex::default(),
        });
        jetstream.listen_to_peers();
        jetstream
    }

    /// The Raft groups exist once the node belongs to a cluster.
    pub fn attach_groups(&self, groups: Arc<Groups>) {
        assert!(self.groups.set(groups).is_ok(), "groups are attached once");
    }

    /// What is fixed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.node
    }

    /// The JetStream domain, or empty.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.identity.domain
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The node's store.
    #[must_use]
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// The node's Raft groups. Only called after the node belongs to a cluster.
    #[must_use]
    pub fn groups(&self) -> &Arc<Groups> {
        self.groups.get().expect("groups are attached before anything opens one")
    }

    /// Who may have streams.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What the streams of this node may hold.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// What the configuration bounds besides storage.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Streams on their way out of or into this node.
    #[must_use]
    pub fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// How many atomic batches are open in the streams that this node leads.
    #[must_use]
    pub fn open_batches(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open_batches)
    }

    /// What this node has asked leaders of streams and was not told yet.
    #[must_use]
    pub(crate) fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Places for readers of other streams that wait at an origin.
    #[must_use]
    pub fn waiting_readers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.waiting_readers)
    }

    /// How many fast batches are open in the streams that this node leads.
    #[must_use]
    pub fn open_fast_batches(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open_fast_batches)
    }

    /// The message router.
    #[must_use]
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// The other nodes.
    #[must_use]
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The meta state.
    #[must_use]
    pub fn meta(&self) -> &Arc<Meta> {
        &self.meta
    }

    /// Which streams exist and who leads them.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// How this node registers itself.
    #[must_use]
    pub fn registration(&self) -> NodeRegistration {
        NodeRegistration {
            id: self.identity.node,
            name: self.identity.name.clone(),
            cluster_address: self.identity.cluster_address.clone(),
            tags: self.identity.tags.clone(),
            unique_tag: self.identity.unique_tag.clone(),
        }
    }

    /// The server name of a node, as far as it is known.
    #[must_use]
    pub fn node_name(&self, node: NodeId) -> String {
        self.meta
            .read(|machine| machine.node(node).map(|known| known.name.clone()))
            .unwrap_or_else(|| node.to_string())
    }

    /// Nodes that can hold replicas now: this one and the connected ones that the meta state knows.
    #[must_use]
    pub fn alive_nodes(&self) -> Vec<NodeId> {
        let mut alive: Vec<NodeId> = self
            .meta
            .read(|machine| machine.nodes().map(|node| node.id).collect::<Vec<_>>())
            .into_iter()
            .filter(|node| *node == self.identity.node || self.peers.is_connected(*node))
            .collect();
        alive.sort_unstable();
        alive
    }

    /// Nodes that replicas can be had from now: this one and all connected ones, those that were removed and still hold
    /// something among them.
    #[must_use]
    pub fn reachable_nodes(&self) -> Vec<NodeId> {
        let others = self.peers.peers().into_iter().filter(|peer| peer.jetstream).map(|peer| peer.node);
        let mut nodes: Vec<NodeId> = others.chain([self.identity.node]).collect();
        nodes.sort_unstable();
        nodes
    }

    /// This node's copy of a stream.
    #[must_use]
    pub fn replica(&self, group: GroupId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&group).cloned()
    }

    /// All streams this node has a copy of.
    #[must_use]
    pub fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().cloned().collect()
    }

    /// Whether the replicas of this node are what meta says now.
    pub fn note_settled(&self, settled: bool) {
        self.is_settled.store(settled, Ordering::Release);
    }

    /// Whether this node has no copy of any stream, not even one that somebody else is about to take over.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.is_settled.load(Ordering::Acquire) && self.replicas.read().is_empty()
    }

    /// A replica opened.
    pub fn insert_replica(&self, replica: Arc<Replica>) {
        self.replicas.write().insert(replica.group_id(), replica);
    }

    /// A replica closes.
    pub fn take_replica(&self, group: GroupId) {
        self.replicas.write().remove(&group);
    }

    /// Counts an API call.
    pub fn count_api(&self, account: &AccountName, failed: bool) {
        let mut calls = self.api_calls.lock();
        let calls = calls.entry(account.clone()).or_default();
        calls.total += 1;
        calls.errors += u64::from(failed);
    }

    /// API calls since the start, of one account or of all.
    #[must_use]
    pub fn api_counts(&self, account: Option<&AccountName>) -> ApiCalls {
        let calls = self.api_calls.lock();
        let counted = calls.iter().filter(|(name, _)| account.is_none_or(|account| account == *name));
        counted.fold(ApiCalls::default(), |sum, (_, calls)| ApiCalls {
            total: sum.total + calls.total,
            errors: sum.errors + calls.errors,
        })
    }

    /// The leadership of a local replica moved.
    pub fn leadership_moved(&self, group: GroupId, leadership: &Leadership) {
        match leadership.leader {
            Some(leader) if leader != self.identity.node || leadership.leading => {
                self.directory.leads(group, leadership.raft_term, leader);
                if leadership.leading {
                    self.announce(&[(group, leadership.raft_term)], None);
                }
            }
            Some(_) | None => self.directory.leaderless(group, leadership.raft_term),
        }
    }

    fn announce(&self, led: &[(GroupId, u64)], to: Option<NodeId>) {
        let mut frame = BytesMut::with_capacity(led.len() * 16);
        for (group, raft_term) in led {
            frame.put_u64_le(group.0);
            frame.put_u64_le(*raft_term);
        }
        let frame = frame.freeze();
        for peer in self.peers.peers() {
            if to.is_none_or(|only| only == peer.node) {
                // A peer that is gone asks again when it is back.
                let _ = self.peers.forward(peer.node, FORWARD_LEADS, frame.clone());
            }
        }
    }

    /// A peer connected: tell it what we lead, and how much that holds.
    pub fn greet(&self, node: NodeId) {
        self.announce(&self.led(), Some(node));
        quota::greet(self, node);
    }

    /// Tells everybody what we lead.
    pub fn announce_all(&self) {
        let led = self.led();
        if !led.is_empty() {
            self.announce(&led, None);
        }
    }

    fn led(&self) -> Vec<(GroupId, u64)> {
        self.replicas()
            .iter()
            .filter(|replica| replica.leader().is_some())
            .map(|replica| (replica.group_id(), replica.group().leadership().borrow().raft_term))
            .collect()
    }

    /// Hands every group this node leads to another voter, if there is one. For a stop without a pause.
    pub async fn hand_over(&self) {
        let streams = self.replicas().into_iter().map(|replica| replica.group().clone());
        let groups = streams.chain(self.meta.group().cloned());
        let handovers = groups.filter(|group| group.leadership().borrow().leading).map(|group| async move {
            let status = group.status();
            let connected = |node: &NodeId| self.peers.is_connected(*node);
            if let Some(to) = status.voters.iter().copied().find(connected)
                && let Err(error) = group.transfer(to).await
            {
                tracing::debug!("group {} was not handed over: {error}", group.id());
            }
        });
        futures::future::join_all(handovers).await;
    }

    /// Closes all groups; what they hold in memory is checkpointed.
    pub async fn shutdown(&self) {
        for replica in self.replicas() {
            if let Some(leader) = replica.leader() {
                leader.node_stops();
            }
            replica.set_leader(None);
        }
        if let Some(groups) = self.groups.get() {
            groups.shutdown().await;
        }
    }

    /// The cluster this node is bound to, if it is yet.
    #[must_use]
    pub fn cluster_uid(&self) -> Option<String> {
        self.bootstrap.membership().uid().map(str::to_owned)
    }

    /// Tells every peer where this node stands, after that changed.
    pub fn tell_standing(&self) {
        let standing = Standing {
            uid: self.cluster_uid(),
            tags: self.identity.tags.clone(),
            unique_tag: self.identity.unique_tag.clone(),
        };
        if let Some(uid) = &standing.uid {
            self.peers.set_cluster_uid(uid);
        }
        self.peers.set_meta(standing.encode());
    }

    /// A peer went away.
    pub fn farewell(&self, node: NodeId) {
        self.directory.node_down(node);
        self.quota.forget(node);
        if let Some(groups) = self.groups.get() {
            groups.peer_down(node);
        }
    }

    fn listen_to_peers(self: &Arc<Self>) {
        let on = |kind, handle: fn(&Arc<Self>, NodeId, Bytes)| {
            let jetstream: Weak<Self> = Arc::downgrade(self);
            self.peers.on_forward(
                kind,
                Arc::new(move |node, frame| {
                    if let Some(jetstream) = jetstream.upgrade() {
                        handle(&jetstream, node, frame);
                    }
                }),
            );
        };
        on(FORWARD_PUBLISH, |jetstream, node, frame| match forward::decode(frame) {
            Ok((account, group, batch)) => jetstream.take_forwarded(&account, group, batch),
            Err(error) => tracing::error!("from server {}: {error}", jetstream.node_name(node)),
        });
        on(FORWARD_ACK, |jetstream, node, frame| match forward::decode(frame) {
            Ok((account, _, batch)) => {
                sinks::take_acks(jetstream, &account, &batch, sinks::Arrival::Forwarded)
            }
            Err(error) => tracing::error!("from server {}: {error}", jetstream.node_name(node)),
        });
        on(FORWARD_REQUEST, |jetstream, node, frame| match forward::decode(frame) {
            Ok((account, _, batch)) => {
                api::stream_requests(jetstream, &account, &batch, sinks::Arrival::Forwarded)
            }
            Err(error) => tracing::error!("from server {}: {error}", jetstream.node_name(node)),
        });
        on(FORWARD_TRANSFER, |jetstream, node, frame| match forward::decode(frame) {
            Ok((account, _, batch)) => transfer::take_forwarded(jetstream, &account, &batch),
            Err(error) => tracing::error!("from server {}: {error}", jetstream.node_name(node)),
        });
        on(FORWARD_USAGE, |jetstream, node, frame| {
            if let Err(error) = jetstream.quota.take_report(node, &frame) {
                tracing::error!("from server {}: what accounts use: {error}", jetstream.node_name(node));
            }
        });
        on(FORWARD_ASKED, told::on_asked);
        on(FORWARD_TOLD, |jetstream, _, frame| told::on_told(jetstream, frame));
        on(FORWARD_LEADS, |jetstream, node, mut frame| {
            while frame.remaining() >= 16 {
                let (group, raft_term) = (GroupId(frame.get_u64_le()), frame.get_u64_le());
                jetstream.directory.leads(group, raft_term, node);
            }
        });
    }

    fn take_forwarded(&self, account: &AccountName, group: GroupId, batch: Inbound) {
        // Not leading any more: silence, and the publisher retries with its message id.
        let Some(replica) = self.replica(group) else { return };
        let Some(leader) = replica.leader() else { return };
        // The peer's link can't be stopped for one stream: what goes over the bound is refused.
        if let Err(refused) = leader.ingest.accept_bounded(account, batch) {
            metrics::counter!(crate::metrics::FORWARDS_REFUSED).increment(refused.items.len() as u64);
            let mut text = Vec::new();
            let name = &replica.assignment().config.name;
            PubAck::encode_rejection(name, &ApiError::too_many_requests(), &mut text);
            let mut route = self.router.batch();
            for to in refused.items.iter().map(|item| refused.reply(item)).filter(|to| !to.is_empty()) {
                route.send(account, to, MessageRef { subject: to, payload: &text, ..MessageRef::default() });
            }
        }
    }
}
