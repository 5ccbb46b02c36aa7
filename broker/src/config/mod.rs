//! What a node is told: [`Config`], with nats-server's defaults, from a file in nats-server's grammar and from
//! nats-server's flags.
//!
//! ```text
//!   file ── grammar ──▶ Block ── options ──▶ ┐
//!                                            ├─▶ Config ── validate ──▶ the node
//!   flags ───────────────────────────────────┘   (flags win)
//! ```
//!
//! Reading is pure up to [`Disk`], the one place that opens files and reads the environment. Options that
//! nats-server knows and this node does not are refused with a sentence, never skipped: a broker that ignores
//! `tls` or `accounts` is worse than one that does not start. The few that are skipped because they change
//! nothing here are listed in `options.rs`, and a node says so when it starts.

mod accounts;
mod digest;
mod duration;
pub mod flags;
pub mod grammar;
mod options;
mod permissions;
mod resources;

use std::path::PathBuf;
use std::time::Duration;

use crate::limits::BatchLimits;
use levee_protocol::api::ServerLimits;
use levee_protocol::ids::AccountName;

pub use self::accounts::{Account, Login};
pub use self::duration::{InvalidDuration, format_duration, parse_duration};
pub use self::flags::{Flags, Signal, SignalTarget};
pub use self::grammar::{Problem, Source};
pub use self::resources::{disk_free, memory_total};

/// The version that clients are told and gate on: the nats-server whose behavior this node has.
pub const NATS_VERSION: &str = "2.15.1";
/// The version of this product.
pub const LEVEE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything a node needs to know before it starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Name of this node, unique in its cluster. Default: none, and the node takes its id. Required in a cluster
    /// with JetStream, because placement and peers are shown by name.
    pub server_name: Option<String>,
    /// Labels for placement, lowercase. Default: none.
    pub server_tags: Vec<String>,
    /// Free text shown in monitoring. Default: none.
    pub server_metadata: Vec<(String, String)>,
    /// Address for clients. Default: `0.0.0.0:4222`. Port 0 asks the system for a free one.
    pub listen: Listen,
    /// What other nodes gossip to clients as this node's address, `host` or `host:port`. Default: none, the
    /// addresses it listens on.
    pub client_advertise: Option<String>,
    /// Address for monitoring over HTTP. Default: none, no monitoring.
    pub http: Option<Listen>,
    /// Prefix of all monitoring paths, for proxies. Default: empty.
    pub http_base_path: String,
    /// Who may connect. Default: everybody.
    pub authorization: Authorization,
    /// Accounts besides the global one, `$G`. Default: none, everybody shares the global one.
    pub accounts: Vec<Account>,
    /// The account of those who operate the cluster. Default: none, `$SYS`.
    pub system_account: Option<AccountName>,
    /// The user of clients that bring no credentials. Default: none, they are turned away if there are users.
    pub no_auth_user: Option<String>,
    /// How long a client may take to send CONNECT when credentials are asked for. Default: 2 s.
    pub auth_timeout: Duration,
    /// Largest payload with headers, bytes. Default: 1 MiB. Larger ones cost memory on every node.
    pub max_payload: u32,
    /// Longest protocol line, bytes. Default: 4096.
    pub max_control_line: u32,
    /// Bytes that may wait for one client before it is closed as a slow consumer. Default: 64 MiB.
    pub max_pending: u64,
    /// Client connections at once. Default: 65536; `None` for no limit.
    pub max_connections: Option<u64>,
    /// Subscriptions of one connection. Default: `None`, no limit.
    pub max_subscriptions: Option<u64>,
    /// Tokens in the subject of a subscription. Default: no limit. For whoever lets strangers subscribe.
    pub max_subscription_tokens: Option<u64>,
    /// Time between PINGs to an idle client. Default: 2 min.
    pub ping_interval: Duration,
    /// Unanswered PINGs before a connection is stale. Default: 2.
    pub ping_max: u32,
    /// How long a write to a client's socket may take before it is closed as a slow consumer. Default: 10 s.
    pub write_deadline: Duration,
    /// Over how long clients are asked to leave in lame duck mode. Default: 2 min, at least 30 s.
    pub lame_duck_duration: Duration,
    /// How long lame duck mode waits before the first client is asked. Default: 10 s.
    pub lame_duck_grace_period: Duration,
    /// The cluster this node is part of. Default: none.
    pub cluster: Option<Cluster>,
    /// Streams. Default: none for nats-server's name, on in `./levee-data` for `levee serve`.
    pub jetstream: Option<JetStream>,
    /// What is logged and where to.
    pub log: Log,
    /// File for the process id. Default: none.
    pub pid_file: Option<PathBuf>,
    /// Directory for the ports file. Default: none.
    pub ports_file_dir: Option<PathBuf>,
    /// The file this came from. Default: none.
    pub file: Option<ConfigFile>,
    /// Things in the file that nats-server calls a mistake when it only checks a file, and logs otherwise.
    pub warnings: Vec<String>,
    /// Options in the file that change nothing in this node, each with its reason. Logged at start.
    pub notes: Vec<String>,
}

/// A host and a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listen {
    /// Name or address, without brackets.
    pub host: String,
    /// Port; 0 asks the system for a free one.
    pub port: u16,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

/// Where a running node listens: the configured addresses with the ports it got.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// For clients.
    pub client: Listen,
    /// For monitoring.
    pub http: Option<Listen>,
    /// For other nodes.
    pub cluster: Option<Listen>,
}

/// Who may connect to the global account.
#[derive(Clone, Default, Eq, PartialEq)]
pub enum Authorization {
    /// Everybody, unless there are accounts with users: then nobody.
    #[default]
    Open,
    /// Who knows this name and password.
    User(Login),
    /// These users.
    Users(Vec<Login>),
    /// Who knows this token.
    Token(String),
}

/// Without the secrets, because configurations end up in logs.
impl std::fmt::Debug for Authorization {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => out.write_str("Open"),
            Self::User(login) => out.debug_tuple("User").field(login).finish(),
            Self::Users(logins) => out.debug_tuple("Users").field(logins).finish(),
            Self::Token(_) => out.write_str("Token"),
        }
    }
}

/// The part of a node in its cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cluster {
    /// Name of the cluster, the same on all nodes. Default: none; required with JetStream.
    pub name: Option<String>,
    /// Address for other nodes. Default host: `0.0.0.0`. Port 0 asks the system for a free one.
    pub listen: Listen,
    /// Addresses of other nodes, and perhaps of this one. One that answers is enough to find all.
    pub routes: Vec<Listen>,
    /// What other nodes are told to dial, `host` or `host:port`. Default: none, the address it listens on.
    pub advertise: Option<String>,
    /// Whether to keep this node's client addresses out of what clients are told. Default: no.
    pub no_advertise: bool,
}

/// Streams.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct JetStream {
    /// Where data goes, in a directory `jetstream` below. Default: none, a temporary directory with a warning.
    pub store_dir: Option<PathBuf>,
    /// Bytes that streams in memory may use on this node. Default: none, 75 % of the machine's memory.
    pub max_memory: Option<u64>,
    /// Bytes that streams on disk may use on this node. Default: none, 75 % of what is free at start.
    pub max_storage: Option<u64>,
    /// Name of this JetStream among several. Default: none.
    pub domain: Option<String>,
    /// What tags begin with of which no two replicas of a stream may have the same, like `az:`. The same on all nodes.
    /// Default: none.
    pub unique_tag: Option<String>,
    /// How often the reference server syncs. Shown in monitoring only: this node always syncs before it acks.
    pub sync_interval: SyncInterval,
    /// What bounds batches of publishers, `limits { batch {} }`. Default: nats-server's.
    pub batches: BatchLimits,
    /// Bounds for streams and consumers that are created through this node: `max_request_batch`, `max_ack_pending`,
    /// `duplicate_window`, and for consumers of streams that say nothing of it `default_max_consumers` (1000 unless set;
    /// -1 is no bound). Default: none. The same on all nodes, unless it does not matter which one is asked.
    pub limits: ServerLimits,
}

/// See [`JetStream::sync_interval`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncInterval {
    /// `always`
    Always,
    /// A time between syncs.
    Every(Duration),
}

impl Default for SyncInterval {
    fn default() -> Self {
        Self::Every(Duration::from_secs(120))
    }
}

impl JetStream {
    /// The directory that data goes to.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        let base = self.store_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("nats"));
        base.join("jetstream")
    }

    /// Bytes for streams in memory, the default filled in.
    #[must_use]
    pub fn max_memory_bytes(&self) -> u64 {
        self.max_memory.unwrap_or_else(|| memory_total() / 4 * 3)
    }

    /// Bytes for streams on disk, the default filled in.
    #[must_use]
    pub fn max_storage_bytes(&self) -> u64 {
        self.max_storage.unwrap_or_else(|| disk_free(&self.data_dir()) / 4 * 3)
    }
}

/// What is logged and where to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Log {
    /// Lines of level DBG. Default: no.
    pub debug: bool,
    /// Lines of level TRC, the protocol as it passes. Default: no. Expensive.
    pub trace: bool,
    /// Whether lines carry their time. Default: yes.
    pub time: bool,
    /// Whether times are UTC. Default: no, local time.
    pub utc: bool,
    /// The file lines go to. Default: none, standard error.
    pub file: Option<PathBuf>,
}

/// The file a configuration came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigFile {
    /// As it was named.
    pub path: String,
    /// `sha256:` and the digest of its meaning: comments, layout and the order of keys do not count.
    pub digest: String,
}

impl Default for Config {
    /// nats-server's defaults.
    fn default() -> Self {
        Self {
            server_name: None,
            server_tags: Vec::new(),
            server_metadata: Vec::new(),
            listen: Listen { host: "0.0.0.0".to_owned(), port: 4222 },
            client_advertise: None,
            http: None,
            http_base_path: String::new(),
            authorization: Authorization::Open,
            accounts: Vec::new(),
            system_account: None,
            no_auth_user: None,
            auth_timeout: Duration::from_secs(2),
            max_payload: 1024 * 1024,
            max_control_line: 4096,
            max_pending: 64 * 1024 * 1024,
            max_connections: Some(65536),
            max_subscriptions: None,
            max_subscription_tokens: None,
            ping_interval: Duration::from_secs(120),
            ping_max: 2,
            write_deadline: Duration::from_secs(10),
            lame_duck_duration: Duration::from_secs(120),
            lame_duck_grace_period: Duration::from_secs(10),
            cluster: None,
            jetstream: None,
            log: Log { debug: false, trace: false, time: true, utc: false, file: None },
            pid_file: None,
            ports_file_dir: None,
            file: None,
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// Why there is no configuration. Each problem is one line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// Something in the file.
    #[error("{}", lines(.0))]
    File(Vec<Problem>),
    /// The file holds no keys.
    #[error("{0}: config has no values or is empty")]
    Empty(String),
    /// A flag is unknown or its value is wrong.
    #[error("{0}")]
    Flag(String),
    /// Each option is fine, but not together.
    #[error("{0}")]
    Invalid(String),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Files and environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Source for Disk {
    fn read(&self, path: &str) -> Result<String, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("open {path}: {error}"))?;
        String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8 text"))
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// A configuration while it is put together: what is only complete once file and flags are in.
struct Draft {
    config: Config,
    cluster: DraftCluster,
    /// Kept apart from JetStream, which a later flag may turn on.
    store_dir: Option<PathBuf>,
    /// Whether monitoring was given as a port alone, and listens where clients do.
    http_host_follows: bool,
}

#[derive(Default)]
struct DraftCluster {
    name: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    routes: Vec<Listen>,
    advertise: Option<String>,
    no_advertise: bool,
}

impl DraftCluster {
    fn listen(&mut self, listen: Listen) {
        self.host = Some(listen.host);
        self.port = Some(listen.port);
    }

    /// None without a port: as in nats-server, a name alone makes no cluster.
    fn finish(self) -> Result<Option<Cluster>, ConfigError> {
        let Some(port) = self.port else {
            if self.routes.is_empty() {
                return Ok(None);
            }
            let message = "solicited routes require cluster capabilities, e.g. --cluster or cluster.listen";
            return Err(ConfigError::Invalid(message.to_owned()));
        };
        let host = self.host.unwrap_or_else(|| "0.0.0.0".to_owned());
        Ok(Some(Cluster {
            name: self.name,
            listen: Listen { host, port },
            routes: self.routes,
            advertise: self.advertise,
            no_advertise: self.no_advertise,
        }))
    }
}

impl Draft {
    fn new(mut config: Config) -> Self {
        let cluster = config.cluster.take().map_or_else(DraftCluster::default, |cluster| DraftCluster {
            name: cluster.name,
            host: Some(cluster.listen.host),
            port: Some(cluster.listen.port),
            routes: cluster.routes,
            advertise: cluster.advertise,
            no_advertise: cluster.no_advertise,
        });
        let store_dir = config.jetstream.as_ref().and_then(|jetstream| jetstream.store_dir.clone());
        Self { config, cluster, store_dir, http_host_follows: false }
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let mut config = self.config;
        if let Some(jetstream) = &mut config.jetstream {
            jetstream.store_dir = self.store_dir;
        }
        if let Some(http) = &mut config.http
            && self.http_host_follows
        {
            http.host.clone_from(&config.listen.host);
        }
        config.cluster = self.cluster.finish()?;
        config.validate()?;
        Ok(config)
    }
}

impl Config {
    /// The configuration of a process: `base` (the defaults of the name it was started under), the file that the
    /// flags name over it, and the flags over that.
    pub fn load(base: Self, flags: &Flags, source: &dyn Source) -> Result<Self, ConfigError> {
        let mut draft = Draft::new(base);
        if let Some(path) = &flags.config {
            let block =
                grammar::parse_file(path, source).map_err(|problem| ConfigError::File(vec![problem]))?;
            if block.is_empty() {
                return Err(ConfigError::Empty(path.clone()));
            }
            let problems = options::apply(&mut draft, &block);
            if !problems.is_empty() {
                return Err(ConfigError::File(problems));
            }
            draft.config.file = Some(ConfigFile { path: path.clone(), digest: digest::digest(&block) });
        }
        flags::apply(&mut draft, flags)?;
        draft.finish()
    }

    /// `levee serve`'s defaults where they differ from nats-server's: streams, in `./levee-data`.
    #[must_use]
    pub fn levee_defaults() -> Self {
        let store_dir = Some(PathBuf::from("levee-data"));
        Self { jetstream: Some(JetStream { store_dir, ..JetStream::default() }), ..Self::default() }
    }

    /// All users, each with its account.
    pub fn logins(&self) -> impl Iterator<Item = (&Login, AccountName)> {
        let global = match &self.authorization {
            Authorization::User(login) => std::slice::from_ref(login),
            Authorization::Users(logins) => logins,
            Authorization::Open | Authorization::Token(_) => &[],
        };
        let global = global.iter().map(|login| (login, AccountName::global()));
        let others = self.accounts.iter();
        global
            .chain(others.flat_map(|account| account.users.iter().map(|login| (login, account.name.clone()))))
    }

    /// Whether there are users or a token.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        matches!(self.authorization, Authorization::Token(_)) || self.logins().next().is_some()
    }

    /// The account of those who operate the cluster, the default filled in.
    #[must_use]
    pub fn system_account(&self) -> AccountName {
        self.system_account.clone().unwrap_or_else(AccountName::system)
    }

    /// Whether everybody has the global account to share: there are no others, but for the system's.
    #[must_use]
    pub fn has_global_account_only(&self) -> bool {
        let system = self.system_account();
        self.accounts.iter().all(|account| account.name == system)
    }

    /// Whether the options fit together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |message: String| Err(ConfigError::Invalid(message));
        accounts::validate(self)?;
        if self.lame_duck_grace_period >= self.lame_duck_duration {
            return refuse(format!(
                "lame duck grace period ({}) should be strictly lower than lame duck duration ({})",
                format_duration(self.lame_duck_grace_period),
                format_duration(self.lame_duck_duration)
            ));
        }
        if u64::from(self.max_payload) > self.max_pending {
            return refuse(format!(
                "max_payload ({}) cannot be higher than max_pending ({})",
                self.max_payload, self.max_pending
            ));
        }
        if self.max_payload == 0 {
            return refuse("max_payload must be at least 1".to_owned());
        }
        if let Some(name) = &self.server_name
            && name.contains(char::is_whitespace)
        {
            return refuse("server name cannot contain spaces".to_owned());
        }
        if let Some(http) = &self.http
            && http.port != 0
            && http.port == self.listen.port
            && http.host == self.listen.host
        {
            return refuse(format!("clients and monitoring can not both listen on {http}"));
        }
        if let Some(domain) = self.jetstream.as_ref().and_then(|jetstream| jetstream.domain.as_ref())
            && (domain.is_empty() || domain.contains(['.', '*', '>']) || domain.contains(char::is_whitespace))
        {
            return refuse("invalid domain name: may not contain ., * or >".to_owned());
        }
        let Some(cluster) = &self.cluster else { return Ok(()) };
        if let Some(name) = &cluster.name
            && name.contains(char::is_whitespace)
        {
            return refuse("cluster name cannot contain spaces".to_owned());
        }
        if cluster.listen.port != 0 && cluster.listen == self.listen {
            return refuse(format!("clients and the cluster can not both listen on {}", cluster.listen));
        }
        if self.jetstream.is_some() {
            if self.server_name.is_none() {
                return refuse("jetstream cluster requires `server_name` to be set".to_owned());
            }
            if cluster.name.is_none() {
                return refuse("jetstream cluster requires `cluster.name` to be set".to_owned());
            }
            if cluster.routes.is_empty() {
                return refuse(
                    "JetStream cluster requires configured routes: name the other nodes in `cluster.routes`"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
