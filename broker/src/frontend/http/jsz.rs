//! `/jsz`: streams and what they use.

use levee_protocol::api::AccountLimits;
use levee_protocol::api::stream_check::consumers_max;
use levee_protocol::ids::AccountName;
use serde_json::{Map, Value, json};

use super::varz::nanos;
use super::{
    JetStreamFacts, MetaFacts, MonitoringSource, Parameters, ServerFacts, StreamFacts, boolean, integer,
};
use crate::accounts::Accounts;
use crate::config::SyncInterval;
use crate::limits::BatchLimits;

/// Accounts in one page unless the request says otherwise.
const LIMIT_DEFAULT: usize = 1024;

pub(super) fn document(source: &dyn MonitoringSource, parameters: &Parameters) -> Result<Value, String> {
    let server = source.server();
    let detail = Detail {
        streams: boolean(parameters, "streams")?,
        consumers: boolean(parameters, "consumers")?,
        config: boolean(parameters, "config")?,
        leader_only: boolean(parameters, "stream-leader-only")?,
    };
    let one_account = parameters.get("acc");
    let accounts =
        boolean(parameters, "accounts")? || one_account.is_some() || detail.streams || detail.consumers;
    let offset = integer(parameters, "offset", 0)?;
    let limit = integer(parameters, "limit", LIMIT_DEFAULT)?;
    let Some(facts) = source.jetstream() else {
        let mut out = stats(&server, &JetStreamFacts::default());
        out.insert("server_id".to_owned(), json!(server.id));
        out.insert("now".to_owned(), json!(server.now));
        out.insert("disabled".to_owned(), json!(true));
        out.insert("config".to_owned(), json!({ "max_memory": 0, "max_storage": 0 }));
        for count in ["streams", "consumers", "messages", "bytes", "total"] {
            out.insert(count.to_owned(), json!(0));
        }
        return Ok(Value::Object(out));
    };

    let mut out = stats(&server, &facts);
    let mut put = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    put("server_id", json!(server.id));
    put("now", json!(server.now));
    put("config", config(&server, &facts));
    put("limits", limits(&server));
    put("streams", json!(facts.streams.len()));
    put("consumers", json!(facts.streams.iter().map(|stream| stream.consumers.len()).sum::<usize>()));
    put("messages", json!(facts.streams.iter().map(|stream| stream.messages).sum::<u64>()));
    put("bytes", json!(facts.streams.iter().map(|stream| stream.bytes).sum::<u64>()));
    if let Some(cluster) = &facts.meta {
        put("meta_cluster", meta(cluster));
        put("streams_leader", json!(facts.streams.iter().filter(|stream| stream.leading).count()));
        let led = facts.streams.iter().map(|stream| stream.consumers_leading).sum::<usize>();
        put("consumers_leader", json!(led));
    }
    let known = accounts_with_streams(&server);
    if accounts {
        let wanted = known.iter().filter(|(name, _)| one_account.is_none_or(|one| one == name.as_str()));
        let page: Vec<Value> =
            wanted.skip(offset).take(limit).map(|known| account(known, &facts, detail)).collect();
        put("account_details", json!(page));
    }
    put("total", json!(known.len()));
    Ok(Value::Object(out))
}

#[derive(Clone, Copy)]
struct Detail {
    streams: bool,
    consumers: bool,
    config: bool,
    leader_only: bool,
}

/// Those that may have streams, with what these may use.
fn accounts_with_streams(server: &ServerFacts) -> Vec<(AccountName, AccountLimits)> {
    let has_streams = server.config.jetstream.is_some();
    Accounts::of(&server.config).with_streams().filter(|_| has_streams).collect()
}

/// The counters that `/jsz` and `/varz` share.
pub(super) fn stats(server: &ServerFacts, facts: &JetStreamFacts) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("memory".to_owned(), json!(facts.memory));
    out.insert("storage".to_owned(), json!(facts.storage));
    out.insert("reserved_memory".to_owned(), json!(facts.reserved_memory));
    out.insert("reserved_storage".to_owned(), json!(facts.reserved_storage));
    out.insert("accounts".to_owned(), json!(accounts_with_streams(server).len()));
    out.insert("ha_assets".to_owned(), json!(facts.ha_assets));
    let api = json!({ "level": facts.api_level, "total": facts.api_total, "errors": facts.api_errors });
    out.insert("api".to_owned(), api);
    out
}

/// The limits and the directory.
pub(super) fn config(server: &ServerFacts, facts: &JetStreamFacts) -> Value {
    let mut out = Map::new();
    out.insert("max_memory".to_owned(), json!(facts.max_memory));
    out.insert("max_storage".to_owned(), json!(facts.max_storage));
    if let Some(jetstream) = &server.config.jetstream {
        out.insert("store_dir".to_owned(), json!(jetstream.data_dir().to_string_lossy()));
        match jetstream.sync_interval {
            SyncInterval::Every(every) => out.insert("sync_interval".to_owned(), json!(nanos(every))),
            SyncInterval::Always => out.insert("sync_always".to_owned(), json!(true)),
        };
        if let Some(domain) = &jetstream.domain {
            out.insert("domain".to_owned(), json!(domain));
        }
        if let Some(unique_tag) = &jetstream.unique_tag {
            out.insert("unique_tag".to_owned(), json!(unique_tag));
        }
    }
    out.insert("strict".to_owned(), json!(true));
    Value::Object(out)
}

/// The bounds that the configuration sets, and the one that is there without it.
pub(super) fn limits(server: &ServerFacts) -> Value {
    let mut out = Map::new();
    let Some(jetstream) = &server.config.jetstream else { return json!({}) };
    let (limits, batches, usual) = (&jetstream.limits, &jetstream.batches, BatchLimits::DEFAULT);
    let mut put = |name: &str, value: Value, is_set: bool| {
        if is_set {
            out.insert(name.to_owned(), value);
        }
    };
    put("max_request_batch", json!(limits.max_request_batch), limits.max_request_batch > 0);
    put("max_ack_pending", json!(limits.max_ack_pending), limits.max_ack_pending > 0);
    let window = limits.duplicate_window_max.0;
    put("max_duplicate_window", json!(window), window > 0);
    let (per_stream, total) = (batches.atomic_per_stream_max, batches.atomic_on_node_max);
    put("max_batch_inflight_per_stream", json!(per_stream), per_stream != usual.atomic_per_stream_max);
    put("max_batch_inflight_total", json!(total), total != usual.atomic_on_node_max);
    put("max_batch_size", json!(batches.messages_max), batches.messages_max != usual.messages_max);
    put("max_batch_timeout", json!(nanos(batches.idle_max)), batches.idle_max != usual.idle_max);
    put("default_max_consumers", json!(consumers_max(limits.default_max_consumers)), true);
    Value::Object(out)
}

/// The meta group.
pub(super) fn meta(meta: &MetaFacts) -> Value {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(meta.cluster));
    if let Some(leader) = &meta.leader {
        out.insert("leader".to_owned(), json!(leader));
    }
    if !meta.replicas.is_empty() {
        out.insert("replicas".to_owned(), json!(meta.replicas));
    }
    out.insert("cluster_size".to_owned(), json!(meta.size));
    out.insert("quorum_needed".to_owned(), json!(meta.size / 2 + 1));
    out.insert("pending".to_owned(), json!(meta.pending));
    Value::Object(out)
}

fn account((name, limits): &(AccountName, AccountLimits), facts: &JetStreamFacts, detail: Detail) -> Value {
    let streams = facts.streams.iter().filter(|stream| stream.account == name.as_str());
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(name));
    out.insert("id".to_owned(), json!(name));
    let used = |memory: bool| -> u64 {
        let of_kind = streams.clone().filter(|stream| (stream.config["storage"] == "memory") == memory);
        of_kind.map(|stream| stream.bytes).sum()
    };
    out.insert("memory".to_owned(), json!(used(true)));
    out.insert("storage".to_owned(), json!(used(false)));
    // No limit is the largest number, as on nats-server.
    let shown = |max: i64| u64::try_from(max).unwrap_or(u64::MAX);
    out.insert("reserved_memory".to_owned(), json!(shown(limits.max_memory)));
    out.insert("reserved_storage".to_owned(), json!(shown(limits.max_storage)));
    out.insert("accounts".to_owned(), json!(0));
    out.insert(
        "ha_assets".to_owned(),
        json!(streams.clone().filter(|stream| stream.config["num_replicas"].as_u64() > Some(1)).count()),
    );
    let api = json!({ "level": facts.api_level, "total": facts.api_total, "errors": facts.api_errors });
    out.insert("api".to_owned(), api);
    if detail.streams || detail.consumers {
        let shown = streams.filter(|stream| stream.leading || !detail.leader_only);
        let shown: Vec<Value> = shown.map(|stream| stream_detail(stream, detail)).collect();
        out.insert("stream_detail".to_owned(), json!(shown));
    }
    Value::Object(out)
}

fn stream_detail(stream: &StreamFacts, detail: Detail) -> Value {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(stream.name));
    out.insert("created".to_owned(), json!(stream.created));
    if !stream.cluster.is_null() {
        out.insert("cluster".to_owned(), stream.cluster.clone());
    }
    if detail.config {
        out.insert("config".to_owned(), stream.config.clone());
    }
    out.insert("state".to_owned(), stream.state.clone());
    if detail.consumers {
        let mut consumers = stream.consumers.clone();
        if !detail.config {
            for consumer in &mut consumers {
                consumer.as_object_mut().map(|consumer| consumer.remove("config"));
            }
        }
        out.insert("consumer_detail".to_owned(), json!(consumers));
    }
    Value::Object(out)
}
