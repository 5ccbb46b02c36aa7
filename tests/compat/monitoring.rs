//! Monitoring documents: the same fields as nats-server's, with values of the same kind.

use std::time::Duration;

use anyhow::Result;
use levee_tests::cluster::Cluster;
use levee_tests::raw::Raw;
use levee_tests::wait::wait_until;
use serde_json::{Value, json};

use crate::pair::{Differences, Pair};

const PATHS: &[&str] = &[
    "/varz",
    "/connz",
    "/connz?subs=1",
    "/connz?state=closed",
    "/subsz",
    "/routez",
    "/healthz",
    "/jsz",
    "/jsz?accounts=true&streams=true&consumers=true&config=true",
    "/healthz?js-enabled-only=true",
];

/// Fields that tell of one server's own runtime: of nats-server's, and what Levee calls itself.
const OWN: &[&str] = &[
    "config_digest",
    "disk_io_wait_stats",
    "feature_flags",
    "git_commit",
    "go",
    "gomaxprocs",
    "gomemlimit",
    "levee",
    "ocsp_peer_cache",
    "pinned_account_fails",
];

/// Fields of features that Levee does not have yet, and of caches that it does not have. It may leave them out.
const LATER: &[&str] = &[
    "avg_fanout",
    "cache_hit_rate",
    "compress_ok",
    "gateway",
    "gateways",
    "leaf",
    "leafnodes",
    "leafs",
    "max_fanout",
    "mqtt",
    "num_cache",
    "num_inserts",
    "num_matches",
    "num_removes",
    "remotes",
    "system_account",
    "tls_timeout",
    "websocket",
];

/// The names of fields, with the kind of each value.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !OWN.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect(),
        // Lists of one kind of thing: the first tells.
        Value::Array(values) => values.iter().take(1).map(shape).collect(),
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("text"),
    }
}

/// Without what the other may leave out, and does.
fn without_later(reference: &mut Value, subject: &Value) {
    match (reference, subject) {
        (Value::Object(one), Value::Object(other)) => {
            one.retain(|name, _| other.contains_key(name) || !LATER.contains(&name.as_str()));
            for (name, value) in one.iter_mut() {
                if let Some(other) = other.get(name) {
                    without_later(value, other);
                }
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            for (one, other) in one.iter_mut().zip(other) {
                without_later(one, other);
            }
        }
        _ => {}
    }
}

/// Something to show: a stream, a consumer, a subscription, a connection that ended.
async fn furnish(cluster: &Cluster) -> Result<Raw> {
    let mut gone = Raw::connect(cluster.node(0).address()).await?;
    gone.hello(&json!({ "name": "gone" })).await?;
    drop(gone);
    // If it never shows up, the comparison tells.
    let _ = wait_until("the connection that ended is listed", Duration::from_secs(5), async || {
        let closed = cluster.node(0).monitoring("/connz?state=closed").await?;
        let listed =
            closed["connections"].as_array().is_some_and(|list| list.iter().any(|one| one["name"] == "gone"));
        Ok(listed.then_some(()))
    })
    .await;
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({ "name": "here" })).await?;
    raw.send(b"SUB shown 1\r\n").await?;
    raw.request_json("$JS.API.STREAM.CREATE.Z", r#"{"name":"Z","subjects":["z"]}"#).await?;
    raw.request_json("z", "1").await?;
    let consumer = r#"{"stream_name":"Z","config":{"durable_name":"c","ack_policy":"explicit"}}"#;
    raw.request_json("$JS.API.CONSUMER.DURABLE.CREATE.Z.c", consumer).await?;
    Ok(raw)
}

#[tokio::test]
async fn monitoring_documents_have_the_fields_of_nats_server() -> Result<()> {
    let Some(pair) = Pair::start("monitoring_documents_have_the_fields_of_nats_server", "").await? else {
        return Ok(());
    };
    let _clients = (furnish(&pair.reference).await?, furnish(&pair.subject).await?);

    let mut differences = Differences::default();
    for path in PATHS {
        let expected = pair.reference.node(0).monitoring(path).await?;
        match pair.subject.node(0).monitoring(path).await {
            Ok(document) => {
                let (mut expected, shape) = (shape(&expected), shape(&document));
                without_later(&mut expected, &shape);
                differences.compare(path, &expected, &shape);
            }
            Err(error) => differences.add(path, format!("{error:#}")),
        }
    }
    differences.demand_none()
}

#[tokio::test]
async fn limits_of_the_configuration_are_shown_as_nats_server_shows_them() -> Result<()> {
    let limits = r#"limits { max_request_batch: 100, max_ack_pending: 50, duplicate_window: "3m", default_max_consumers: 500,
        batch { max_inflight_per_stream: 5, max_inflight_total: 7, max_msgs: 9, timeout: "3s" } }"#;
    let test = "limits_of_the_configuration_are_shown_as_nats_server_shows_them";
    for jetstream in ["", "limits { default_max_consumers: -1 }", limits] {
        let Some(pair) = Pair::start_in_jetstream(test, jetstream).await? else { return Ok(()) };
        let mut differences = Differences::default();
        for path in ["/varz", "/jsz"] {
            let of = async |cluster: &Cluster| -> Result<Value> {
                let document = cluster.node(0).monitoring(path).await?;
                Ok(if path == "/jsz" {
                    document["limits"].clone()
                } else {
                    document["jetstream"]["limits"].clone()
                })
            };
            differences.compare(path, &of(&pair.reference).await?, &of(&pair.subject).await?);
        }
        differences.demand_none()?;
    }
    Ok(())
}
