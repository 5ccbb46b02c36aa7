//! Monitoring over HTTP: the documents of nats-server's monitoring port, and metrics for Prometheus.
//!
//! The node answers [`MonitoringSource`] with facts; the modules below turn them into documents with
//! nats-server's field names. A field of nats-server's that this node has no value for is left out: a reader sees
//! a zero value, as for any field of an older server, and nothing is invented.

mod connz;
mod jsz;
mod process;
mod routez;
mod subsz;
mod varz;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use levee_protocol::ids::AccountName;
use levee_protocol::time::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::accounts::Accounts;
use crate::config::{Config, Listen};

/// What a node knows about itself. All calls are cheap enough to be made every second: they copy counters and take
/// no lock for longer than that.
pub trait MonitoringSource: Send + Sync + 'static {
    /// Who the node is and how it was configured.
    fn server(&self) -> ServerFacts;
    /// Counters since the start.
    fn traffic(&self) -> TrafficFacts;
    /// Open client connections, in any order.
    fn connections(&self) -> Vec<ConnectionFacts>;
    /// Client connections that ended, as far as they are remembered, in any order.
    fn closed_connections(&self) -> Vec<ConnectionFacts>;
    /// Links to other nodes, in any order.
    fn routes(&self) -> Vec<RouteFacts>;
    /// Subscriptions of this node's clients, in any order.
    fn subscriptions(&self) -> Vec<SubscriptionFacts>;
    /// Streams. None if they are off.
    fn jetstream(&self) -> Option<JetStreamFacts>;
    /// What is wrong; nothing if the node can do what is asked for.
    fn health(&self, question: &HealthQuestion) -> Vec<HealthProblem>;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// See [`MonitoringSource::server`].
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// The public id, `N...`.
    pub id: String,
    /// The name.
    pub name: String,
    /// What it was told.
    pub config: Arc<Config>,
    /// Where it listens for clients, the port it got.
    pub listen: Listen,
    /// Where it listens for monitoring.
    pub http: Option<Listen>,
    /// Where it listens for other nodes.
    pub cluster: Option<Listen>,
    /// Addresses told to clients.
    pub connect_urls: Vec<String>,
    /// When it started.
    pub start: Timestamp,
    /// When it was asked.
    pub now: Timestamp,
}

/// See [`MonitoringSource::traffic`]. "Client" counters are about clients alone, the others about nodes too.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrafficFacts {
    /// Connections since the start.
    pub total_connections: u64,
    /// Messages in.
    pub in_msgs: u64,
    /// Payload and header bytes in.
    pub in_bytes: u64,
    /// Messages out.
    pub out_msgs: u64,
    /// Payload and header bytes out.
    pub out_bytes: u64,
    /// Messages in from clients.
    pub in_client_msgs: u64,
    /// Bytes in from clients.
    pub in_client_bytes: u64,
    /// Messages out to clients.
    pub out_client_msgs: u64,
    /// Bytes out to clients.
    pub out_client_bytes: u64,
    /// Clients closed because they did not read.
    pub slow_consumers: u64,
    /// Times that a producer was stalled for a slow client.
    pub stalled_clients: u64,
    /// Clients closed because they did not answer PINGs.
    pub stale_connections: u64,
}

/// See [`MonitoringSource::connections`].
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Number of the connection.
    pub cid: u64,
    /// Address of the client.
    pub ip: String,
    /// Port of the client.
    pub port: u16,
    /// When it connected.
    pub start: Timestamp,
    /// When it last sent or got something.
    pub last_activity: Timestamp,
    /// When and why it ended; none while it is open.
    pub stop: Option<(Timestamp, &'static str)>,
    /// Round trip of the last PING.
    pub rtt: Option<Duration>,
    /// Bytes waiting to be sent.
    pub pending_bytes: u64,
    /// Messages from the client.
    pub in_msgs: u64,
    /// Messages to the client.
    pub out_msgs: u64,
    /// Bytes from the client.
    pub in_bytes: u64,
    /// Bytes to the client.
    pub out_bytes: u64,
    /// How often it was stalled for being faster than a subscriber.
    pub stalls: u64,
    /// Its subscriptions.
    pub subscriptions: u32,
    /// What the client calls itself.
    pub name: String,
    /// Language of the client library.
    pub lang: String,
    /// Version of the client library.
    pub version: String,
    /// Who it is.
    pub user: String,
    /// Its account.
    pub account: String,
}

/// See [`MonitoringSource::routes`].
#[derive(Clone, Debug)]
pub struct RouteFacts {
    /// Number of the link.
    pub rid: u64,
    /// Id of the other node.
    pub remote_id: String,
    /// Name of the other node.
    pub remote_name: String,
    /// Whether this node dialed.
    pub did_solicit: bool,
    /// Whether the configuration names it.
    pub is_configured: bool,
    /// Address of the other node.
    pub ip: String,
    /// Port of the other node.
    pub port: u16,
    /// When the link came up.
    pub start: Timestamp,
    /// When it last carried something.
    pub last_activity: Timestamp,
    /// Bytes waiting to be sent.
    pub pending_bytes: u64,
    /// Messages in.
    pub in_msgs: u64,
    /// Messages out.
    pub out_msgs: u64,
    /// Bytes in.
    pub in_bytes: u64,
    /// Bytes out.
    pub out_bytes: u64,
    /// Subjects the other node wants.
    pub subscriptions: u32,
}

/// See [`MonitoringSource::subscriptions`].
#[derive(Clone, Debug)]
pub struct SubscriptionFacts {
    /// The account.
    pub account: String,
    /// The subject or filter.
    pub subject: String,
    /// The queue group, empty for none.
    pub queue: String,
    /// The client's name for it.
    pub sid: String,
    /// Messages delivered.
    pub msgs: u64,
    /// After how many it ends; 0 for never.
    pub max: u64,
    /// The connection.
    pub cid: u64,
}

/// See [`MonitoringSource::jetstream`]. Streams and consumers are those with a replica here.
#[derive(Clone, Debug, Default)]
pub struct JetStreamFacts {
    /// Bytes that memory streams use here.
    pub memory: u64,
    /// Bytes that file streams use here.
    pub storage: u64,
    /// Bytes that the limits of memory streams reserve.
    pub reserved_memory: u64,
    /// Bytes that the limits of file streams reserve.
    pub reserved_storage: u64,
    /// The limit for memory, the default filled in.
    pub max_memory: u64,
    /// The limit for storage, the default filled in.
    pub max_storage: u64,
    /// Streams and consumers with more than one replica.
    pub ha_assets: usize,
    /// API requests answered here.
    pub api_total: u64,
    /// Those answered with an error.
    pub api_errors: u64,
    /// Highest API level.
    pub api_level: u32,
    /// The cluster's meta group as this node sees it. None for a node on its own.
    pub meta: Option<MetaFacts>,
    /// Streams with a replica here.
    pub streams: Vec<StreamFacts>,
}

/// The meta group.
#[derive(Clone, Debug, Default)]
pub struct MetaFacts {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the leader, if there is one.
    pub leader: Option<String>,
    /// The other nodes, as the API describes replicas (`PeerInfo`). Only the leader knows.
    pub replicas: Vec<serde_json::Value>,
    /// Voters.
    pub size: usize,
    /// Entries committed and not yet applied here.
    pub pending: u64,
}

/// One stream with a replica here.
#[derive(Clone, Debug, Default)]
pub struct StreamFacts {
    /// Account it is in.
    pub account: String,
    /// Its name.
    pub name: String,
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Whether this node leads it.
    pub leading: bool,
    /// When it was created, as the API writes it.
    pub created: String,
    /// Its configuration, as the API writes it.
    pub config: serde_json::Value,
    /// Its state, as the API writes it.
    pub state: serde_json::Value,
    /// Where its replicas are, as the API writes it.
    pub cluster: serde_json::Value,
    /// Its consumers, as the API describes them (`ConsumerInfo`).
    pub consumers: Vec<serde_json::Value>,
    /// How many of those consumers this node leads.
    pub consumers_leading: usize,
}

/// How healthy is healthy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HealthQuestion {
    /// Listeners are ready and JetStream, if it is on, runs. For liveness probes.
    pub only_enabled: bool,
    /// As above, and the meta group has a leader and is current. For readiness probes.
    pub only_server: bool,
    /// Only the meta group.
    pub only_meta: bool,
}

/// Something that is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct HealthProblem {
    /// What it is about: `CONNECTION`, `JETSTREAM`, `STREAM` or `CONSUMER`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The account, for streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The sentence.
    pub error: String,
}

type Parameters = HashMap<String, String>;

/// What handlers share.
struct Monitoring {
    source: Arc<dyn MonitoringSource>,
    process: process::Process,
    /// Requests by path, as `/varz` shows them.
    requests: BTreeMap<&'static str, AtomicU64>,
}

impl Monitoring {
    fn count(&self, path: &str) {
        if let Some(count) = self.requests.get(path) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Paths that are counted and listed on the index page, with what they show.
const PATHS: &[(&str, &str)] = &[
    ("/varz", "General"),
    ("/jsz", "JetStream"),
    ("/connz", "Connections"),
    ("/accountz", "Accounts"),
    ("/subsz", "Subscriptions"),
    ("/routez", "Routes"),
    ("/healthz", "Health Probe"),
    ("/metrics", "Prometheus"),
];

/// All monitoring routes below `base_path`. Whoever has a listener serves them.
pub fn router(source: Arc<dyn MonitoringSource>, base_path: &str) -> Router {
    let requests = PATHS.iter().map(|(path, _)| (*path, AtomicU64::new(0))).chain([("/", AtomicU64::new(0))]);
    let monitoring =
        Arc::new(Monitoring { source, process: process::Process::default(), requests: requests.collect() });
    let routes = Router::new()
        .route("/", get(index))
        .route("/varz", get(varz))
        .route("/connz", get(connz))
        .route("/routez", get(routez))
        .route("/subsz", get(subsz))
        .route("/subscriptionsz", get(subsz))
        .route("/jsz", get(jsz))
        .route("/accountz", get(accountz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(monitoring);
    let base_path = base_path.trim_matches('/');
    if base_path.is_empty() { routes } else { Router::new().nest(&format!("/{base_path}"), routes) }
}

/// Serves monitoring on a listener until `stop` resolves. Requests under way are finished.
pub async fn serve<L>(
    listener: L,
    source: Arc<dyn MonitoringSource>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()>
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let base_path = source.server().config.http_base_path.clone();
    axum::serve(listener, router(source, &base_path)).with_graceful_shutdown(stop).await
}

async fn index(State(monitoring): State<Arc<Monitoring>>, request: Request<Body>) -> Response {
    monitoring.count("/");
    let base = request.uri().path().trim_end_matches('/').to_owned();
    let server = monitoring.source.server();
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Levee {0}</title></head><body>\
         <h1>Levee</h1><p>{1}, version {2} (nats-server {3})</p><ul>",
        escape(&server.name),
        escape(&server.name),
        crate::config::LEVEE_VERSION,
        crate::config::NATS_VERSION,
    );
    for (path, title) in PATHS {
        page.push_str(&format!("<li><a href=\"{base}{path}\">{title}</a></li>"));
    }
    page.push_str("</ul></body></html>\n");
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

async fn varz(State(monitoring): State<Arc<Monitoring>>, Query(parameters): Query<Parameters>) -> Response {
    monitoring.count("/varz");
    let requests = monitoring.requests.iter().map(|(path, count)| (*path, count.load(Ordering::Relaxed)));
    let requests: BTreeMap<&str, u64> = requests.filter(|(_, count)| *count > 0).collect();
    let document = varz::document(monitoring.source.as_ref(), &monitoring.process, &requests);
    document_response(&parameters, StatusCode::OK, &document)
}

async fn connz(State(monitoring): State<Arc<Monitoring>>, Query(parameters): Query<Parameters>) -> Response {
    monitoring.count("/connz");
    match connz::document(monitoring.source.as_ref(), &parameters) {
        Ok(document) => document_response(&parameters, StatusCode::OK, &document),
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
    }
}

async fn routez(State(monitoring): State<Arc<Monitoring>>, Query(parameters): Query<Parameters>) -> Response {
    monitoring.count("/routez");
    document_response(&parameters, StatusCode::OK, &routez::document(monitoring.source.as_ref()))
}

async fn subsz(State(monitoring): State<Arc<Monitoring>>, Query(parameters): Query<Parameters>) -> Response {
    monitoring.count("/subsz");
    match subsz::document(monitoring.source.as_ref(), &parameters) {
        Ok(document) => document_response(&parameters, StatusCode::OK, &document),
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
    }
}

async fn jsz(State(monitoring): State<Arc<Monitoring>>, Query(parameters): Query<Parameters>) -> Response {
    monitoring.count("/jsz");
    match jsz::document(monitoring.source.as_ref(), &parameters) {
        Ok(document) => document_response(&parameters, StatusCode::OK, &document),
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
    }
}

async fn accountz(
    State(monitoring): State<Arc<Monitoring>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    monitoring.count("/accountz");
    let server = monitoring.source.server();
    let connections = monitoring.source.connections();
    let accounts = Accounts::of(&server.config);
    let mut document =
        json!({ "server_id": server.id, "now": server.now, "system_account": accounts.system() });
    if let Some(account) = parameters.get("acc") {
        let Some(account) = accounts.names().find(|name| name.as_str() == account) else {
            return (StatusCode::BAD_REQUEST, format!("Account {account} does not exist")).into_response();
        };
        let subscriptions = monitoring.source.subscriptions();
        let is_here = |name: &str| name == account.as_str();
        let has_streams = monitoring.source.jetstream().is_some() && accounts.limits(account).is_some();
        let mut detail = json!({
            "account_name": account,
            "update_time": server.start,
            "expired": false,
            "complete": true,
            "jetstream_enabled": has_streams,
            "leafnode_connections": 0,
            "client_connections": connections.iter().filter(|known| is_here(&known.account)).count(),
            "subscriptions": subscriptions.iter().filter(|known| is_here(&known.account)).count(),
        });
        if account == accounts.system() {
            detail["is_system"] = json!(true);
        }
        document["account_detail"] = detail;
    } else {
        document["accounts"] = accounts.names().map(AccountName::as_str).collect();
    }
    document_response(&parameters, StatusCode::OK, &document)
}

async fn healthz(
    State(monitoring): State<Arc<Monitoring>>,
    Query(parameters): Query<Parameters>,
) -> Response {
    monitoring.count("/healthz");
    let flag = |name: &str| boolean(&parameters, name);
    let question = (|| {
        Ok::<_, String>((
            HealthQuestion {
                only_enabled: flag("js-enabled-only")? || flag("js-enabled")?,
                only_server: flag("js-server-only")?,
                only_meta: flag("js-meta-only")?,
            },
            flag("details")?,
        ))
    })();
    let (question, details) = match question {
        Ok(question) => question,
        Err(message) => return (StatusCode::BAD_REQUEST, message).into_response(),
    };
    if !parameters.contains_key("account")
        && parameters.keys().any(|name| name == "stream" || name == "consumer")
    {
        let error = "account must not be empty when specifying a stream";
        let document = json!({ "status": "error", "status_code": 400, "error": error });
        return document_response(&parameters, StatusCode::BAD_REQUEST, &document);
    }
    let problems = monitoring.source.health(&question);
    let Some(first) = problems.first() else {
        return document_response(&parameters, StatusCode::OK, &json!({ "status": "ok" }));
    };
    let document = if details {
        json!({ "status": "unavailable", "status_code": 503, "errors": problems })
    } else {
        json!({ "status": "unavailable", "status_code": 503, "error": first.error })
    };
    document_response(&parameters, StatusCode::SERVICE_UNAVAILABLE, &document)
}

async fn metrics(State(monitoring): State<Arc<Monitoring>>) -> Response {
    monitoring.count("/metrics");
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, monitoring.source.metrics()).into_response()
}

/// JSON, indented, readable from any page; wrapped in a call if `callback` names a function.
fn document_response(parameters: &Parameters, status: StatusCode, document: &impl Serialize) -> Response {
    let text = match serde_json::to_string_pretty(document) {
        Ok(text) => text,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let anywhere = (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    let callback = parameters.get("callback").filter(|name| is_identifier(name));
    match callback {
        Some(name) => {
            let kind = (header::CONTENT_TYPE, "application/javascript");
            (status, [kind, anywhere], format!("{name}({text})")).into_response()
        }
        None => (status, [(header::CONTENT_TYPE, "application/json"), anywhere], text).into_response(),
    }
}

/// Only names of functions: anything else would be script of the caller's choice.
fn is_identifier(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.'))
}

fn boolean(parameters: &Parameters, name: &str) -> Result<bool, String> {
    match parameters.get(name).map(|text| text.to_ascii_lowercase()).as_deref() {
        None | Some("" | "0" | "f" | "false" | "off" | "no") => Ok(false),
        Some("1" | "t" | "true" | "on" | "yes" | "detail") => Ok(true),
        Some(text) => {
            Err(format!("Error decoding boolean for '{name}': \"{text}\" is neither true nor false"))
        }
    }
}

fn integer(parameters: &Parameters, name: &str, default: usize) -> Result<usize, String> {
    match parameters.get(name) {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| format!("Error decoding int for '{name}': \"{text}\" is no count"))
        }
    }
}

/// A span as monitoring shows it: `4d3h2m1s`, without parts that are zero at the front.
fn uptime(start: Timestamp, now: Timestamp) -> String {
    let seconds = now.0.saturating_sub(start.0).max(0) / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let years = days / 365;
    if years > 0 {
        format!("{years}y{}d{}h{}m{}s", days % 365, hours % 24, minutes % 60, seconds % 60)
    } else if days > 0 {
        format!("{days}d{}h{}m{}s", hours % 24, minutes % 60, seconds % 60)
    } else if hours > 0 {
        format!("{hours}h{}m{}s", minutes % 60, seconds % 60)
    } else if minutes > 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests;
