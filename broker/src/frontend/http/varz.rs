//! `/varz`: the node at a glance.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::process::Process;
use super::{MonitoringSource, ServerFacts, uptime};
use crate::config::{LEVEE_VERSION, NATS_VERSION};

pub(super) fn document(
    source: &dyn MonitoringSource,
    process: &Process,
    requests: &BTreeMap<&str, u64>,
) -> Map<String, Value> {
    let server = source.server();
    let traffic = source.traffic();
    let config = &server.config;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    put("server_id", json!(server.id));
    put("server_name", json!(server.name));
    put("version", json!(NATS_VERSION));
    put("levee", json!(LEVEE_VERSION));
    put("proto", json!(1));
    put("host", json!(server.listen.host));
    put("port", json!(server.listen.port));
    if config.has_credentials() {
        put("auth_required", json!(true));
    }
    put("system_account", json!(config.system_account().as_str()));
    if !server.connect_urls.is_empty() {
        put("connect_urls", json!(server.connect_urls));
    }
    put("max_connections", json!(config.max_connections.map_or(-1, i64_of)));
    if let Some(max) = config.max_subscriptions {
        put("max_subscriptions", json!(max));
    }
    put("ping_interval", json!(nanos(config.ping_interval)));
    put("ping_max", json!(config.ping_max));
    put("http_host", json!(server.http.as_ref().map_or("", |http| http.host.as_str())));
    put("http_port", json!(server.http.as_ref().map_or(0, |http| http.port)));
    put("http_base_path", json!(config.http_base_path));
    put("https_port", json!(0));
    put("auth_timeout", json!(config.auth_timeout.as_secs_f64()));
    put("max_control_line", json!(config.max_control_line));
    put("max_payload", json!(config.max_payload));
    put("max_pending", json!(config.max_pending));
    put("cluster", cluster(&server));
    for not_spoken in ["gateway", "leaf", "mqtt", "websocket"] {
        put(not_spoken, json!({}));
    }
    put("jetstream", jetstream(source, &server));
    put("write_deadline", json!(nanos(config.write_deadline)));
    put("start", json!(server.start));
    put("now", json!(server.now));
    put("uptime", json!(uptime(server.start, server.now)));
    if let Some(bytes) = process.memory_bytes() {
        put("mem", json!(bytes));
    }
    put("cores", json!(cores));
    if let Some(percent) = process.cpu_percent() {
        put("cpu", json!(percent));
    }
    put("connections", json!(source.connections().len()));
    put("total_connections", json!(traffic.total_connections));
    put("routes", json!(source.routes().len()));
    put("remotes", json!(0));
    put("leafnodes", json!(0));
    put("in_msgs", json!(traffic.in_msgs));
    put("in_bytes", json!(traffic.in_bytes));
    put("in_client_msgs", json!(traffic.in_client_msgs));
    put("in_client_bytes", json!(traffic.in_client_bytes));
    put("out_msgs", json!(traffic.out_msgs));
    put("out_bytes", json!(traffic.out_bytes));
    put("out_client_msgs", json!(traffic.out_client_msgs));
    put("out_client_bytes", json!(traffic.out_client_bytes));
    put("slow_consumers", json!(traffic.slow_consumers));
    put("stale_connections", json!(traffic.stale_connections));
    put("stalled_clients", json!(traffic.stalled_clients));
    put("subscriptions", json!(source.subscriptions().len()));
    put("http_req_stats", json!(requests));
    put("config_load_time", json!(server.start));
    put("config_digest", json!(config.file.as_ref().map_or("", |file| file.digest.as_str())));
    if !config.server_tags.is_empty() {
        put("tags", json!(config.server_tags));
    }
    if !config.server_metadata.is_empty() {
        let metadata: BTreeMap<&str, &str> =
            config.server_metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        put("metadata", json!(metadata));
    }
    let of_clients = |count: u64| json!({ "clients": count, "routes": 0, "gateways": 0, "leafs": 0 });
    put("slow_consumer_stats", of_clients(traffic.slow_consumers));
    put("stale_connection_stats", of_clients(traffic.stale_connections));
    out
}

fn cluster(server: &ServerFacts) -> Value {
    let (Some(cluster), Some(listen)) = (&server.config.cluster, &server.cluster) else { return json!({}) };
    let mut out = Map::new();
    if let Some(name) = &cluster.name {
        out.insert("name".to_owned(), json!(name));
    }
    out.insert("addr".to_owned(), json!(listen.host));
    out.insert("cluster_port".to_owned(), json!(listen.port));
    let urls: Vec<String> = cluster.routes.iter().map(ToString::to_string).collect();
    if !urls.is_empty() {
        out.insert("urls".to_owned(), json!(urls));
    }
    Value::Object(out)
}

fn jetstream(source: &dyn MonitoringSource, server: &ServerFacts) -> Value {
    let Some(facts) = source.jetstream() else { return json!({}) };
    let mut out = Map::new();
    out.insert("config".to_owned(), super::jsz::config(server, &facts));
    out.insert("stats".to_owned(), Value::Object(super::jsz::stats(server, &facts)));
    out.insert("limits".to_owned(), super::jsz::limits(server));
    if let Some(meta) = &facts.meta {
        out.insert("meta".to_owned(), super::jsz::meta(meta));
    }
    Value::Object(out)
}

fn i64_of(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
