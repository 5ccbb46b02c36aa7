//! Composition root: the one place that builds a node from its parts, in order, and stops it in the reverse.
//!
//! ```text
//!   store ─▶ router, peers ─▶ sessions ─▶ listeners open ─▶ "Server is ready"
//!     └────▶ bootstrap (founds, joins or finds its cluster) ─▶ meta group ─▶ stream groups
//! ```
//!
//! Clients are let in before the node belongs to a cluster: core NATS needs none, and the JetStream API says that
//! it is not available yet. A node that was in one before lets them in when its streams have leaders again.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use levee_broker_core::permission::Permissions;
use levee_protocol::ids::{AccountName, GroupId, NodeId};
use levee_protocol::wire::ServerInfo;
use levee_raft::{Birth, Groups, GrpcTransport};
use levee_storage::Storage;

use crate::accounts::Accounts;
use crate::api::{self, stream_info};
use crate::config::{Addresses, Authorization, Config, LEVEE_VERSION, Listen, NATS_VERSION};
use crate::frontend::nats::NatsListener;
use crate::frontend::{self, http};
use crate::jetstream::{CALL_API, Identity, JetStream};
use crate::limits::Limits;
use crate::meta::bootstrap::{Asker, Bootstrap, CALL_ADOPT, CALL_INVITE, Membership, Origin};
use crate::meta::membership::{self, Leaving};
use crate::meta::{self, Meta, reconcile};
use crate::mirror::origin::{self, CALL_ORIGIN};
use crate::mirror::orphans;
use crate::monitoring::Monitor;
use crate::readiness;
use crate::router::Router;
use crate::router::peers::{self, PeerEvent, Peers, PeersConfig};
use crate::runtime::chance::Chance;
use crate::runtime::clock::Clock;
use crate::runtime::{net, tasks};
use crate::session::{self, AuthConfig, Secret, SessionLimits, Sessions, User};
use crate::sinks::StreamServices;
use crate::stream::quota::{self, Quota};
use crate::stream::{adoption, single};
use crate::transfer::restore;

const NODE_ID_ROW: &str = "node_id";
/// A node that stops hands its groups over and then waits this long at most for what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Leaders tell everybody again what they lead, in case it was lost on the way.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port can't be opened.
    #[error("can not listen on {address} for {purpose}: {reason}")]
    Listen {
        /// The configured address.
        address: String,
        /// Who was to connect there.
        purpose: &'static str,
        /// What the system said.
        reason: String,
    },
    /// The store directory can't be used.
    #[error(transparent)]
    Storage(#[from] levee_storage::Error),
    /// The meta group can't be opened.
    #[error("JetStream can not start: {0}")]
    Raft(#[from] levee_raft::Error),
    /// The directory holds a node's id that is not one.
    #[error("store directory {0} holds a damaged node id; it was not written by Levee or is corrupt")]
    NodeId(String),
}

/// A running node.
pub struct Node {
    addresses: Addresses,
    sessions: Arc<Sessions>,
    peers: Arc<Peers>,
    jetstream: Option<Arc<JetStream>>,
    accepting: tasks::Stop,
    stop: tasks::Stop,
    leaving: Arc<Leaving>,
    grace: Duration,
    spread: Duration,
    tasks: tasks::Scope,
}

impl Node {
    /// Opens the store and the ports and lets clients in.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        crate::metrics::install();
        let config = Arc::new(config);
        let clock = Clock::system();
        let storage = open_storage(&config).await?;
        let node = node_id(storage.as_deref(), &config)?;
        let server_id = nkeys::KeyPair::new_server().public_key();
        let name = config.server_name.clone().unwrap_or_else(|| server_id.clone());

        let client = NatsListener::bind(resolve(&config.listen, "clients")?)
            .map_err(|error| refused(&config.listen, "clients", &error))?;
        let cluster_listener = match &config.cluster {
            Some(cluster) => Some(
                net::listen(resolve(&cluster.listen, "other nodes")?)
                    .map_err(|error| refused(&cluster.listen, "other nodes", &error))?,
            ),
            None => None,
        };
        let http_listener = match &config.http {
            Some(listen) => Some(
                net::listen(resolve(listen, "monitoring")?)
                    .map_err(|error| refused(listen, "monitoring", &error))?,
            ),
            None => None,
        };
        let port_of = |listener: &Option<net::TcpListener>| {
            listener.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.port())
        };
        let with_port = |listen: &Listen, port: u16| Listen { host: listen.host.clone(), port };
        let addresses = Addresses {
            client: with_port(&config.listen, client.address().port()),
            http: config
                .http
                .as_ref()
                .zip(port_of(&http_listener))
                .map(|(listen, port)| with_port(listen, port)),
            cluster: config
                .cluster
                .as_ref()
                .zip(port_of(&cluster_listener))
                .map(|(cluster, port)| with_port(&cluster.listen, port)),
        };

        let router = Router::new();
        let cluster_name =
            config.cluster.as_ref().map(|cluster| cluster.name.clone().unwrap_or_else(|| name.clone()));
        let peers = Peers::new(
            Arc::clone(&router),
            PeersConfig {
                node,
                server_name: name.clone(),
                cluster_name: cluster_name.clone().unwrap_or_default(),
                version: LEVEE_VERSION.to_owned(),
                cluster_address: advertised(&config, &addresses),
                routes: routes(&config),
                client_urls: client_urls(&config, &addresses),
                jetstream: storage.is_some(),
            },
        );
        let sessions = Sessions::new(
            Arc::clone(&router),
            clock.clone(),
            session_limits(&config),
            auth(&config),
            server_info(&config, &addresses, &server_id, &name, cluster_name.as_deref(), storage.is_some()),
        );

        let leaving = Arc::new(Leaving::default());
        let tasks = tasks::Scope::default();
        let stop = tasks::Stop::new();
        let addresses_of_peers = Arc::new(PeerAddresses(Arc::clone(&peers)));
        let memory = storage.as_ref().map(|storage| Arc::clone(storage.block_memory())).unwrap_or_default();
        let transport = GrpcTransport::new(node, String::new(), addresses_of_peers, memory);
        if let Some(listener) = cluster_listener {
            let server = GrpcTransport::server()
                .add_service(peers.service())
                .add_service(transport.service())
                .serve_with_incoming(peers::incoming(listener));
            tasks.spawn("cluster port", async move {
                if let Err(error) = server.await {
                    tracing::error!("the cluster port stopped: {error}");
                }
            });
        }

        let jetstream = match storage {
            Some(storage) => Some(
                start_jetstream(
                    &config,
                    &clock,
                    storage,
                    &router,
                    &peers,
                    Identity {
                        node,
                        name: name.clone(),
                        server_id: server_id.clone(),
                        cluster: cluster_name.clone().unwrap_or_default(),
                        domain: config
                            .jetstream
                            .as_ref()
                            .and_then(|js| js.domain.clone())
                            .unwrap_or_default(),
                        cluster_address: advertised(&config, &addresses),
                        limits: config.jetstream.as_ref().map(|js| js.limits).unwrap_or_default(),
                        tags: config.server_tags.clone(),
                        unique_tag: config
                            .jetstream
                            .as_ref()
                            .and_then(|js| js.unique_tag.clone())
                            .unwrap_or_default(),
                    },
                    &transport,
                    &tasks,
                    &stop,
                    &leaving,
                )
                .await?,
            ),
            None => None,
        };
        peers.start();
        tasks.spawn("connect urls", frontend::gossip_connect_urls(Arc::clone(&peers), Arc::clone(&sessions)));

        let connected = frontend::gossip_connected(Arc::clone(&peers), Arc::clone(&sessions));
        tasks.spawn("connected clients", connected);

        if let Some(listener) = http_listener {
            let monitor = Monitor {
                id: server_id.clone(),
                name: name.clone(),
                config: Arc::clone(&config),
                addresses: addresses.clone(),
                started: clock.now(),
                clock: clock.clone(),
                sessions: Arc::clone(&sessions),
                peers: Arc::clone(&peers),
                jetstream: jetstream.clone(),
            };
            let stopped = stop.clone();
            tasks.spawn("monitoring", async move {
                let until = async move { stopped.stopped().await };
                if let Err(error) = http::serve(listener, Arc::new(monitor), until).await {
                    tracing::error!("monitoring stopped: {error}");
                }
            });
        }
        announce(&config, &addresses, &server_id, &name);
        if let Some(jetstream) = jetstream.as_ref().filter(|jetstream| jetstream.cluster_uid().is_some()) {
            readiness::wait(jetstream).await;
        }
        let accepting = client.stop();
        tasks.spawn("client port", client.run(Arc::clone(&sessions)));
        tracing::info!("Server is ready");

        Ok(Self {
            addresses,
            sessions,
            peers,
            jetstream,
            accepting,
            stop,
            leaving,
            grace: config.lame_duck_grace_period,
            spread: config.lame_duck_duration.saturating_sub(config.lame_duck_grace_period),
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    /// Resolves when the node has stopped by itself: its store failed, or it was removed from the cluster.
    pub async fn stopped(&self) {
        self.stop.stopped().await;
        if self.leaving.goes() {
            self.stop().await;
        }
    }

    /// Lets nobody in any more, hands over what it leads, and asks clients to go elsewhere one by one.
    pub async fn lame_duck(&self) {
        tracing::info!("Entering lame duck mode, stop accepting new clients");
        self.accepting.stop();
        if let Some(jetstream) = &self.jetstream {
            jetstream.hand_over().await;
        }
        self.sessions.lame_duck(self.grace, self.spread).await;
    }

    /// Stops: leaders hand over, clients are closed, what is in memory is checkpointed.
    pub async fn stop(&self) {
        tracing::info!("Initiating Shutdown...");
        self.accepting.stop();
        if let Some(jetstream) = &self.jetstream {
            // Whoever takes too long finds its log again at the next start.
            let _ = tokio::time::timeout(STOP_PATIENCE, jetstream.hand_over()).await;
        }
        self.sessions.shutdown();
        self.stop.stop();
        if let Some(jetstream) = &self.jetstream {
            let _ = tokio::time::timeout(STOP_PATIENCE, jetstream.shutdown()).await;
        }
        self.peers.stop();
        self.tasks.stop();
    }
}

#[expect(clippy::too_many_arguments, reason = "called once; these are the parts that exist at that point")]
async fn start_jetstream(
    config: &Arc<Config>,
    clock: &Clock,
    storage: Arc<Storage>,
    router: &Arc<Router>,
    peers: &Arc<Peers>,
    identity: Identity,
    transport: &Arc<GrpcTransport>,
    tasks: &tasks::Scope,
    stop: &tasks::Stop,
    leaving: &Arc<Leaving>,
) -> Result<Arc<JetStream>, StartError> {
    let failed = stop.clone();
    storage.on_failure(Box::new(move |reason| {
        tracing::error!("the store failed and this server stops: {reason}");
        failed.stop();
    }));
    let bootstrap = Bootstrap::open(identity.node, identity.name.clone(), Arc::clone(&storage))?;
    let meta = Meta::load(&storage)?;
    let accounts = Accounts::of(config);
    let quota = quota(config, &accounts);
    let jetstream = JetStream::new(
        identity,
        clock.clone(),
        Arc::clone(&storage),
        Arc::clone(router),
        Arc::clone(peers),
        meta,
        Arc::clone(&bootstrap),
        accounts,
        quota,
        Limits::of(config),
    );
    router.attach_services(StreamServices::new(Arc::clone(&jetstream)));
    answer_peers(&jetstream, &bootstrap);
    answer_leave(&jetstream, leaving, stop);
    jetstream.tell_standing();
    tasks.spawn("peers come and go", follow_peers(Arc::clone(&jetstream)));
    if config.cluster.is_none() && matches!(bootstrap.membership(), Membership::Fresh) {
        bootstrap.found_alone(draw_uid())?;
    }
    let (config, transport) = (Arc::clone(config), Arc::clone(transport));
    let joining = join(Arc::clone(&jetstream), bootstrap, config, transport, storage);
    tasks.spawn("JetStream", {
        let stop = stop.clone();
        async move {
            if let Err(error) = joining.await {
                tracing::error!("{error}");
                stop.stop();
            }
        }
    });
    Ok(jetstream)
}

/// Finds the node's cluster, then opens the meta group and runs what lives on it.
async fn join(
    jetstream: Arc<JetStream>,
    bootstrap: Arc<Bootstrap>,
    config: Arc<Config>,
    transport: Arc<GrpcTransport>,
    storage: Arc<Storage>,
) -> Result<(), StartError> {
    let configured = configured_nodes(&config);
    let membership = bootstrap.belong(jetstream.peers(), configured, &draw_uid).await?;
    let Membership::Member { uid, origin } = membership else {
        unreachable!("belonging to a cluster is being a member")
    };
    jetstream.tell_standing();
    transport.set_cluster_uid(uid.clone());
    let groups = Groups::new(jetstream.node(), storage, transport, levee_raft::Config::default());
    jetstream.attach_groups(Arc::clone(&groups));

    let birth = match origin {
        Origin::Founded { founders } => Birth::Founding(founders),
        Origin::Promised => Birth::Promised,
        Origin::Invited => Birth::Joining,
    };
    let machine = meta::machine::Machine::new(Arc::clone(jetstream.meta()));
    let group = groups.open(GroupId::META, levee_storage::Sync::Always, Box::new(machine), birth).await?;
    jetstream.meta().attach(group);
    tasks::spawn("meta membership", membership::run(Arc::clone(&jetstream), uid));
    tasks::spawn("limits of the streams", quota::watch(Arc::clone(&jetstream)));
    tasks::spawn("remove consumers of readers that are gone", orphans::run(Arc::downgrade(&jetstream)));
    tasks::spawn("reconcile streams", reconcile::run(Arc::clone(&jetstream)));
    loop {
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
        jetstream.announce_all();
    }
}

fn answer_peers(jetstream: &Arc<JetStream>, bootstrap: &Arc<Bootstrap>) {
    let peers = jetstream.peers();
    for kind in [CALL_ADOPT, CALL_INVITE] {
        let (bootstrap, jetstream) = (Arc::clone(bootstrap), Arc::downgrade(jetstream));
        peers.on_call(
            kind,
            Arc::new(move |from, uid| {
                let (bootstrap, jetstream) = (Arc::clone(&bootstrap), jetstream.clone());
                Box::pin(async move {
                    let Ok(uid) = std::str::from_utf8(&uid) else { return Bytes::from_static(b"no") };
                    let name = jetstream.upgrade().and_then(|jetstream| jetstream.peers().name(from));
                    let asker = match &name {
                        _ if kind == CALL_INVITE => Asker::Leader,
                        Some(name) => Asker::Founder(name),
                        None => return Bytes::from_static(b"no"),
                    };
                    match bootstrap.adopt(uid, asker) {
                        Ok(true) => {
                            if let Some(jetstream) = jetstream.upgrade() {
                                jetstream.tell_standing();
                            }
                            Bytes::from_static(b"yes")
                        }
                        Ok(false) => Bytes::from_static(b"no"),
                        Err(error) => {
                            tracing::error!("can not join a cluster: {error}");
                            Bytes::from_static(b"no")
                        }
                    }
                })
            }),
        );
    }
    answer_calls(jetstream, CALL_API, |jetstream, frame| Box::pin(api::answer_peer(jetstream, frame)));
    answer_calls(jetstream, CALL_ORIGIN, |jetstream, frame| Box::pin(origin::answer_peer(jetstream, frame)));
    answer_calls(jetstream, single::CALL_PUBLISH, |jetstream, frame| {
        Box::pin(single::answer(jetstream, frame))
    });
    answer_calls(jetstream, stream_info::CALL_REACHABLE, |jetstream, frame| {
        Box::pin(stream_info::answer_reachable(jetstream, frame))
    });
    answer_calls(jetstream, reconcile::CALL_PARTED, |jetstream, frame| {
        Box::pin(reconcile::answer_parted(jetstream, frame))
    });
    answer_calls(jetstream, adoption::CALL_ARRIVED, |jetstream, frame| {
        Box::pin(adoption::answer_arrived(jetstream, frame))
    });
    answer_calls(jetstream, restore::CALL_RESTORE, |jetstream, frame| {
        Box::pin(restore::answer(jetstream, frame))
    });
    answer_calls(jetstream, stream_info::CALL_SETTLED, |jetstream, frame| {
        Box::pin(stream_info::answer_settled(jetstream, frame))
    });
}

/// Answers the meta leader when this node was removed, and ends it when it is told to go.
fn answer_leave(jetstream: &Arc<JetStream>, leaving: &Arc<Leaving>, stop: &tasks::Stop) {
    let (weak, leaving, stop) = (Arc::downgrade(jetstream), Arc::clone(leaving), stop.clone());
    jetstream.peers().on_call(
        membership::CALL_LEAVE,
        Arc::new(move |_, frame| {
            let (answer, goes) =
                weak.upgrade().map_or((&b"no"[..], false), |jetstream| leaving.answer(&jetstream, &frame));
            if goes {
                tracing::error!(
                    "this server was removed from the cluster and stops; to take part again it has to be started with an empty store_dir"
                );
                stop.stop();
            }
            Box::pin(std::future::ready(Bytes::from_static(answer)))
        }),
    );
}

/// Answers the peers' calls of one kind for as long as the stream side lives; after that they get nothing.
fn answer_calls(
    jetstream: &Arc<JetStream>,
    kind: u8,
    answer: fn(Arc<JetStream>, Bytes) -> BoxFuture<'static, Bytes>,
) {
    let weak = Arc::downgrade(jetstream);
    jetstream.peers().on_call(
        kind,
        Arc::new(move |_, frame| match weak.upgrade() {
            Some(jetstream) => answer(jetstream, frame),
            None => Box::pin(std::future::ready(Bytes::new())),
        }),
    );
}

async fn follow_peers(jetstream: Arc<JetStream>) {
    let mut events = tokio_stream::wrappers::BroadcastStream::new(jetstream.peers().events());
    while let Some(event) = events.next().await {
        match event {
            Ok(PeerEvent::Up(node)) => jetstream.greet(node),
            Ok(PeerEvent::Down(node)) => jetstream.farewell(node),
            Ok(PeerEvent::Changed(_) | PeerEvent::Refused { .. }) => {}
            // Announcements are repeated, and a peer that is gone shows in what is sent to it.
            Err(_) => {}
        }
    }
}

/// Opens the store on a thread that may block.
async fn open_storage(config: &Config) -> Result<Option<Arc<Storage>>, StartError> {
    let Some(jetstream) = &config.jetstream else { return Ok(None) };
    let dir = jetstream.data_dir();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir)
            .map_err(|error| levee_storage::Error::Open { dir: dir.clone(), reason: error.to_string() })?;
        Storage::open(&dir, levee_storage::Options::default())
    });
    let storage = opened.await.map_err(|error| StartError::NodeId(error.to_string()))??;
    Ok(Some(storage))
}

/// The id in the store, drawn at its first start; a node that stores nothing is somebody new at every start.
fn node_id(storage: Option<&Storage>, config: &Config) -> Result<NodeId, StartError> {
    let drawn = NodeId(Chance::new().draw() | 1);
    let Some(storage) = storage else { return Ok(drawn) };
    match storage.node_row(NODE_ID_ROW)? {
        Some(row) => {
            let bytes: [u8; 8] = row.as_slice().try_into().map_err(|_| {
                let dir = config.jetstream.as_ref().map(|js| js.data_dir().display().to_string());
                StartError::NodeId(dir.unwrap_or_default())
            })?;
            Ok(NodeId(u64::from_be_bytes(bytes)))
        }
        None => {
            storage.put_node_row(NODE_ID_ROW, &drawn.0.to_be_bytes())?;
            Ok(drawn)
        }
    }
}

/// Without `max_file` the disk is the bound; without `max_mem` it is most of the memory.
fn quota(config: &Config, accounts: &Accounts) -> Quota {
    let jetstream = config.jetstream.as_ref();
    Quota::new(
        jetstream.and_then(|jetstream| jetstream.max_storage),
        jetstream.map(crate::config::JetStream::max_memory_bytes),
        accounts.with_streams(),
    )
}

fn draw_uid() -> String {
    let mut chance = Chance::new();
    format!("{:016x}{:016x}", chance.draw(), chance.draw())
}

/// How many nodes the configuration speaks of, this one included, whether it is among its own routes or not.
fn configured_nodes(config: &Config) -> usize {
    let Some(cluster) = &config.cluster else { return 1 };
    let is_self = |route: &Listen| {
        route.port == cluster.listen.port
            && route
                .to_string()
                .to_socket_addrs()
                .is_ok_and(|mut found| found.any(|at| net::is_local(at.ip())))
    };
    let others = cluster.routes.iter().filter(|route| !is_self(route)).count();
    others + 1
}

fn resolve(listen: &Listen, purpose: &'static str) -> Result<SocketAddr, StartError> {
    let found = listen.to_string().to_socket_addrs().map_err(|error| refused(listen, purpose, &error))?;
    found.into_iter().next().ok_or_else(|| StartError::Listen {
        address: listen.to_string(),
        purpose,
        reason: "the host has no address".to_owned(),
    })
}

fn refused(listen: &Listen, purpose: &'static str, error: &std::io::Error) -> StartError {
    StartError::Listen { address: listen.to_string(), purpose, reason: error.to_string() }
}

fn routes(config: &Config) -> Vec<String> {
    config.cluster.iter().flat_map(|cluster| &cluster.routes).map(ToString::to_string).collect()
}

/// What other nodes are told to dial.
fn advertised(config: &Config, addresses: &Addresses) -> String {
    let Some(listen) = &addresses.cluster else { return String::new() };
    match config.cluster.as_ref().and_then(|cluster| cluster.advertise.as_deref()) {
        Some(advertise) if advertise.contains(':') => advertise.to_owned(),
        Some(host) => format!("{host}:{}", listen.port),
        None => listen.to_string(),
    }
}

/// What clients are told to dial. A listener on all addresses is reached by each of them.
fn client_urls(config: &Config, addresses: &Addresses) -> Vec<String> {
    let Some(cluster) = config.cluster.as_ref().filter(|cluster| !cluster.no_advertise) else {
        return Vec::new();
    };
    let port = addresses.client.port;
    if let Some(advertise) = &config.client_advertise {
        let has_port = advertise.contains(':');
        return vec![if has_port { advertise.clone() } else { format!("{advertise}:{port}") }];
    }
    let host = &addresses.client.host;
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            // The address that other nodes use is one that exists; loopback is all a development machine has.
            let seen = cluster.listen.host.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified());
            let hosts = seen.map_or_else(net::local_addresses, |ip| vec![ip]);
            hosts.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect()
        }
        Ok(_) | Err(_) => vec![addresses.client.to_string()],
    }
}

fn session_limits(config: &Config) -> SessionLimits {
    let unlimited =
        |limit: Option<u64>| limit.map_or(0, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    SessionLimits {
        max_payload: config.max_payload as usize,
        max_pending: usize::try_from(config.max_pending).unwrap_or(usize::MAX),
        // Subjects travel between nodes with a length of two bytes.
        max_control_line: (config.max_control_line as usize).min(usize::from(u16::MAX)),
        max_connections: unlimited(config.max_connections),
        max_subscriptions: unlimited(config.max_subscriptions),
        max_subscription_tokens: unlimited(config.max_subscription_tokens),
        write_deadline: config.write_deadline,
        ping_interval: config.ping_interval,
        ping_max: config.ping_max,
        auth_timeout: config.auth_timeout,
        accounts: config.accounts.iter().map(|account| (account.name.clone(), account.limits)).collect(),
        ..SessionLimits::default()
    }
}

fn auth(config: &Config) -> AuthConfig {
    let users = config.logins().map(|(login, account)| User {
        name: login.user.clone(),
        password: Secret::new(login.password.clone()),
        account,
        permissions: login.permissions.clone().map(|grant| Arc::new(Permissions::new(grant))),
    });
    let users: Vec<User> = users.collect();
    let guest = match &config.no_auth_user {
        Some(name) => users.iter().find(|user| user.name == *name).map(User::identity),
        // Naming a system account alone changes nothing for clients.
        None if config.authorization == Authorization::Open && config.has_global_account_only() => {
            Some(session::Identity::unrestricted(AccountName::global(), ""))
        }
        None => None,
    };
    let token = match &config.authorization {
        Authorization::Token(token) => Some(Secret::new(token.clone())),
        Authorization::Open | Authorization::User(_) | Authorization::Users(_) => None,
    };
    AuthConfig { users, token, guest }
}

fn server_info(
    config: &Config,
    addresses: &Addresses,
    server_id: &str,
    name: &str,
    cluster: Option<&str>,
    jetstream: bool,
) -> ServerInfo {
    // Who is told to come by another address is told so from the first line on.
    let (host, port) = config.client_advertise.as_deref().map_or_else(
        || (addresses.client.host.clone(), addresses.client.port),
        |advertise| host_and_port(advertise, addresses.client.port),
    );
    ServerInfo {
        server_id: server_id.to_owned(),
        server_name: name.to_owned(),
        version: NATS_VERSION.to_owned(),
        proto: 1,
        go: "rust".to_owned(),
        host,
        port,
        headers: true,
        max_payload: u64::from(config.max_payload),
        jetstream,
        cluster: cluster.unwrap_or_default().to_owned(),
        domain: config.jetstream.as_ref().and_then(|js| js.domain.clone()).unwrap_or_default(),
        api_level: u64::from(levee_protocol::api::level::API_LEVEL),
        levee: LEVEE_VERSION.to_owned(),
        ..ServerInfo::default()
    }
}

/// `host`, `host:port` or `[v6]:port`.
fn host_and_port(text: &str, default_port: u16) -> (String, u16) {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.unwrap_or((text, default_port));
    (host.trim_matches(['[', ']']).to_owned(), port)
}

fn announce(config: &Config, addresses: &Addresses, server_id: &str, name: &str) {
    tracing::info!("  Name:     {name}");
    tracing::info!("  ID:       {server_id}");
    if let Some(jetstream) = &config.jetstream {
        tracing::info!("Starting JetStream");
        tracing::info!("  Max Memory:      {} bytes", jetstream.max_memory_bytes());
        tracing::info!("  Max Storage:     {} bytes", jetstream.max_storage_bytes());
        tracing::info!("  Store Directory: {:?}", jetstream.data_dir());
        tracing::info!("  API Level:       {}", levee_protocol::api::level::API_LEVEL);
    }
    if let Some(http) = &addresses.http {
        tracing::info!("Starting http monitor on {http}");
    }
    tracing::info!("Listening for client connections on {}", addresses.client);
    if let Some(cluster) = &addresses.cluster {
        tracing::info!("Listening for route connections on {cluster}");
    }
}

/// Where Raft finds other nodes: where their peers' streams came from.
struct PeerAddresses(Arc<Peers>);

impl levee_raft::AddressBook for PeerAddresses {
    fn address(&self, node: NodeId) -> Option<String> {
        peers::AddressBook::address(self.0.as_ref(), node)
    }
}
