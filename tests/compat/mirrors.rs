//! Streams that mirror or source others: what is refused, and what is stored, as on nats-server.

use anyhow::Result;
use levee_tests::cluster::Cluster;
use levee_tests::raw::Raw;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::pair::{Differences, Pair, normalized};

// Where Levee answers otherwise on purpose, and is not compared: infos say at once that origins of other accounts and
// domains are not read, and that a consumer made by hand does not exist (nats-server tries again without a word).

/// Streams named `X`, each created and deleted again, while there is a stream `O`.
const CONFIGURATIONS: &[&str] = &[
    r#"{"name":"X","mirror":{"name":"O"},"subjects":["x"]}"#,
    r#"{"name":"X","mirror":{"name":"O"},"sources":[{"name":"O"}]}"#,
    r#"{"name":"X","mirror":{"name":"O","opt_start_seq":1,"opt_start_time":"2020-01-01T00:00:00Z"}}"#,
    r#"{"name":"X","mirror":{"name":"O","filter_subject":"a b"}}"#,
    r#"{"name":"X","mirror":{"name":"O","filter_subject":"a..b"}}"#,
    r#"{"name":"X","mirror":{"name":""}}"#,
    r#"{"name":"X","mirror":{"name":"a.b"}}"#,
    r#"{"name":"X","mirror":{"name":"X"}}"#,
    r#"{"name":"X","mirror":{"name":"O"},"max_msg_size":50}"#,
    r#"{"name":"X","mirror":{"name":"O"},"first_seq":5}"#,
    r#"{"name":"X","mirror":{"name":"O"},"allow_msg_counter":true}"#,
    r#"{"name":"X","mirror":{"name":"O"},"allow_msg_schedules":true}"#,
    r#"{"name":"X","mirror":{"name":"O"},"allow_atomic":true}"#,
    r#"{"name":"X","mirror":{"name":"O"},"allow_batched":true}"#,
    r#"{"name":"X","mirror":{"name":"O"},"subject_delete_marker_ttl":1000000000}"#,
    r#"{"name":"X","mirror":{"name":"O","filter_subject":"o.a","subject_transforms":[{"src":"o.b","dest":"x"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","subject_transforms":[{"src":"o.b..","dest":"x"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","subject_transforms":[{"src":"o.b","dest":"x.{{wildcard(1)}}"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","subject_transforms":[{"src":"o.b","dest":"x..y"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","subject_transforms":[{"src":"","dest":"x.>"},{"src":"o.a","dest":"y"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","subject_transforms":[{"src":"o.*","dest":"x"},{"src":"o.a","dest":"y"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"opt_start_seq":4}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"a.b","deliver_subject":"d"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d.*"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d..x"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"deliver_subject":"d"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{}}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"filter_subject":"o.a"}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"opt_start_time":"2020-01-01T00:00:00Z"}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"filter_subject":"o.a","subject_transforms":[{"src":"o.b","dest":"x"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"subject_transforms":[{"src":"o.*","dest":"x"}]}}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"}},"subject_delete_marker_ttl":1000000000}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"a.b","deliver_subject":"d"}},"subject_delete_marker_ttl":1000000000}"#,
    r#"{"name":"X","mirror":{"name":"O","consumer":{"name":"c","deliver_subject":"d"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","external":{"api":"$JS.x.API","deliver":"dd.*"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","external":{"api":"$JS.*.API","deliver":"dd"}}}"#,
    r#"{"name":"X","mirror":{"name":"O","external":{"api":"","deliver":""}}}"#,
    r#"{"name":"X","mirror":{"name":"O"},"mirror_direct":true}"#,
    r#"{"name":"X","mirror":{"name":"O"},"retention":"workqueue"}"#,
    r#"{"name":"X","mirror_direct":true}"#,
    r#"{"name":"X","sources":[{"name":"O"},{"name":"O"}]}"#,
    r#"{"name":"X","sources":[{"name":"O","opt_start_seq":1},{"name":"O","opt_start_seq":2}]}"#,
    r#"{"name":"X","sources":[{"name":"O","filter_subject":"o.a"},{"name":"O","filter_subject":"o.*"}]}"#,
    r#"{"name":"X","sources":[{"name":"O","filter_subject":"o..a"}]}"#,
    r#"{"name":"X","sources":[{"name":"a.b"}]}"#,
    r#"{"name":"X","sources":[{"name":""}]}"#,
    r#"{"name":"X","sources":[{"name":"X"}]}"#,
    r#"{"name":"X","sources":[{"name":"X"}],"subjects":["x"]}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"subjects":["o.z.>"]}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"max_msg_size":50}"#,
    r#"{"name":"X","sources":[{"name":"O","opt_start_seq":1,"opt_start_time":"2020-01-01T00:00:00Z"}]}"#,
    r#"{"name":"X","sources":[{"name":"O","filter_subject":"o.a","subject_transforms":[{"src":"o.b","dest":"x"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O","subject_transforms":[{"src":"o.b..","dest":"x"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O","subject_transforms":[{"src":"o.b","dest":"x.{{wildcard(1)}}"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O","subject_transforms":[{"src":"o.*","dest":"x"},{"src":"o.a","dest":"y"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"allow_msg_schedules":true}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c"}}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"filter_subject":"o.a"}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d.>"}}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d"},"opt_start_seq":2}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d"}},{"name":"O","consumer":{"name":"c","deliver_subject":"e"}}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d"}},{"name":"O","consumer":{"name":"c","deliver_subject":"e"},"subject_transforms":[{"src":"o.a","dest":"x"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"a.b","deliver_subject":"d"},"subject_transforms":[{"src":"o..a","dest":"x"}]}]}"#,
    r#"{"name":"X","sources":[{"name":"O","consumer":{"name":"c","deliver_subject":"d"}},{"name":"O","consumer":{"name":"e","deliver_subject":"d"}},{"name":"O"}]}"#,
    r#"{"name":"X","sources":[{"name":"O","external":{"api":"$JS.x.API","deliver":"dd.*"}}],"subjects":["dd.x"]}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"duplicate_window":1000000000}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"allow_msg_counter":true}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"discard":"new","max_msgs":5}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"retention":"workqueue"}"#,
    r#"{"name":"X","mirror":{"name":"O","domain":"x"}}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"republish":{"src":"o.>","dest":"p.>"}}"#,
    r#"{"name":"X","sources":[{"name":"O"}],"republish":{"src":"p.>","dest":"o.>"}}"#,
];

/// What is made before the copies, and what is published then: subject, header lines, body.
const ORIGINS: &[&str] = &[
    r#"{"name":"A","subjects":["a.>"],"allow_rollup_hdrs":true,"allow_msg_ttl":true}"#,
    r#"{"name":"B","subjects":["b.>"]}"#,
    r#"{"name":"C","subjects":["c"],"allow_msg_counter":true}"#,
    r#"{"name":"W","subjects":["w.>"],"retention":"workqueue"}"#,
    r#"{"name":"V","subjects":["v.>"],"retention":"workqueue"}"#,
];
const PUBLISHED: &[(&str, &str, &str)] = &[
    ("a.1", "", "one"),
    ("a.2", "Nats-Msg-Id: x\r\nOther: y\r\n", "two"),
    ("a.2", "Nats-Expected-Last-Sequence: 2\r\n", "three"),
    ("a.1", "Nats-Rollup: sub\r\nNats-TTL: 1h\r\n", "four"),
    ("b.1", "Nats-Msg-Id: x\r\n", "five"),
    ("b.2", "", ""),
    ("b.1", "", "six"),
    ("c", "Nats-Incr: 5\r\n", ""),
    ("c", "Nats-Incr: -2\r\n", ""),
    ("w.1", "", "seven"),
    ("v.1", "", "eight"),
    ("v.2", "", "nine"),
];
const COPIES: &[(&str, u64)] = &[
    (r#"{"name":"M1","mirror":{"name":"A"}}"#, 4),
    (r#"{"name":"M2","mirror":{"name":"A","filter_subject":"a.2"},"storage":"memory"}"#, 3),
    (
        r#"{"name":"M3","mirror":{"name":"B","subject_transforms":[{"src":"b.1","dest":"x.1"},{"src":"b.2","dest":""}]}}"#,
        3,
    ),
    (r#"{"name":"M4","mirror":{"name":"B","opt_start_seq":2},"max_msgs":1}"#, 3),
    (
        r#"{"name":"M5","mirror":{"name":"M1"},"subject_transform":{"src":"a.*","dest":"y.{{wildcard(1)}}"}}"#,
        4,
    ),
    (r#"{"name":"M6","mirror":{"name":"W"}}"#, 1),
    (r#"{"name":"S1","sources":[{"name":"A"}],"subjects":["s.1"]}"#, 3),
    (r#"{"name":"S2","sources":[{"name":"B","filter_subject":"b.1"}],"allow_rollup_hdrs":true}"#, 2),
    (
        r#"{"name":"S3","sources":[{"name":"B","opt_start_seq":2,"subject_transforms":[{"src":"b.*","dest":"z.{{wildcard(1)}}"}]}]}"#,
        2,
    ),
    (
        r#"{"name":"S4","sources":[{"name":"C","subject_transforms":[{"src":"c","dest":"sum"}]}],"allow_msg_counter":true}"#,
        2,
    ),
    (r#"{"name":"S5","sources":[{"name":"S1"}]}"#, 3),
    (r#"{"name":"S6","sources":[{"name":"A"}],"max_msgs":2,"discard":"new"}"#, 2),
    (r#"{"name":"M7","mirror":{"name":"A","consumer":{"name":"m7","deliver_subject":"to.m7"}}}"#, 4),
    (r#"{"name":"M8","mirror":{"name":"B","consumer":{"name":"m8","deliver_subject":"to.m8"}}}"#, 3),
    (
        r#"{"name":"S7","sources":[{"name":"B","consumer":{"name":"s7","deliver_subject":"to.s7"},"subject_transforms":[{"src":"b.1","dest":"q.1"}]}]}"#,
        3,
    ),
    (r#"{"name":"S8","sources":[{"name":"V","consumer":{"name":"s8","deliver_subject":"to.s8"}}]}"#, 2),
];
/// Consumers made by hand for some of them, each of a stream.
const CONSUMERS: &[(&str, &str)] = &[
    ("A", r#"{"durable_name":"m7","deliver_subject":"to.m7","ack_policy":"flow_control"}"#),
    (
        "B",
        r#"{"durable_name":"m8","deliver_subject":"to.m8","ack_policy":"flow_control","deliver_policy":"by_start_sequence","opt_start_seq":2,"headers_only":true}"#,
    ),
    (
        "B",
        r#"{"durable_name":"s7","deliver_subject":"to.s7","ack_policy":"flow_control","max_ack_pending":1}"#,
    ),
    ("V", r#"{"durable_name":"s8","deliver_subject":"to.s8","ack_policy":"flow_control"}"#),
];

async fn ask(raw: &mut Raw, subject: &str, body: &str) -> Result<Value> {
    let answer = raw.request(&format!("$JS.API.{subject}"), "", body).await?;
    Ok(serde_json::from_str(&answer.payload)?)
}

async fn configured(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    ask(&mut raw, "STREAM.CREATE.O", r#"{"name":"O","subjects":["o.>"],"max_msg_size":100}"#).await?;
    for name in ["c", "e"] {
        let config = json!({"durable_name": name, "deliver_subject": "d", "ack_policy": "flow_control"});
        let request = json!({"stream_name": "O", "config": config}).to_string();
        ask(&mut raw, &format!("CONSUMER.CREATE.O.{name}"), &request).await?;
    }
    let mut answers = Vec::new();
    for config in CONFIGURATIONS {
        let mut answer = normalized(&ask(&mut raw, "STREAM.CREATE.X", config).await?);
        // nats-server tells of several in the order of a hash table.
        if let Some(sources) = answer["sources"].as_array_mut() {
            sources.sort_by_key(Value::to_string);
        }
        answers.push(answer);
        ask(&mut raw, "STREAM.DELETE.X", "").await?;
    }
    Ok(answers)
}

/// A message without what differs from server to server: the last word of the source header names the origin's
/// incarnation, and only mirrors keep times.
fn comparable(message: &Value) -> Result<Value> {
    let mut message = message.clone();
    let header = levee_tests::base64::decoded(&message["hdrs"])?;
    let line = |line: &str| match line
        .strip_prefix("Nats-Stream-Source: ")
        .and_then(|source| source.rsplit_once(' '))
    {
        Some((source, identity)) => format!("{source} ({} characters)", identity.len()),
        None => line.to_owned(),
    };
    message["hdrs"] = json!(header.lines().map(line).collect::<Vec<_>>());
    message["time"] = Value::Null;
    Ok(message)
}

async fn copied(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    for config in ORIGINS {
        let name = serde_json::from_str::<Value>(config)?["name"].as_str().unwrap_or_default().to_owned();
        ask(&mut raw, &format!("STREAM.CREATE.{name}"), config).await?;
    }
    for (subject, header, body) in PUBLISHED {
        let header = if header.is_empty() { String::new() } else { format!("NATS/1.0\r\n{header}\r\n") };
        raw.request(subject, &header, body).await?;
    }
    for (stream, config) in CONSUMERS {
        let config: Value = serde_json::from_str(config)?;
        let name = config["durable_name"].as_str().unwrap_or_default();
        let request = json!({"stream_name": stream, "config": config});
        ask(&mut raw, &format!("CONSUMER.CREATE.{stream}.{name}"), &request.to_string()).await?;
    }
    let mut found = Vec::new();
    for (config, last) in COPIES {
        let name = serde_json::from_str::<Value>(config)?["name"].as_str().unwrap_or_default().to_owned();
        ask(&mut raw, &format!("STREAM.CREATE.{name}"), config).await?;
        wait_until(&format!("{name} has sequence {last}"), PATIENCE, async || {
            let info = ask(&mut raw, &format!("STREAM.INFO.{name}"), "").await?;
            Ok((info["state"]["last_seq"].as_u64() >= Some(*last)).then_some(()))
        })
        .await?;
        let mut messages = Vec::new();
        for seq in 1..=*last {
            let answer =
                ask(&mut raw, &format!("STREAM.MSG.GET.{name}"), &json!({ "seq": seq }).to_string()).await?;
            messages.push(match answer.get("message") {
                Some(message) => comparable(message)?,
                None => answer["error"].clone(),
            });
        }
        let info = ask(&mut raw, &format!("STREAM.INFO.{name}"), "").await?;
        found.push(json!({ "messages": messages, "state": normalized(&info["state"]) }));
    }
    let consumers = ask(&mut raw, "CONSUMER.LIST.W", "").await?;
    let mut config = consumers["consumers"][0]["config"].clone();
    for named_by_hash in ["name", "durable_name", "deliver_subject"] {
        let kind = config[named_by_hash]
            .as_str()
            .and_then(|name| name.rsplit_once(['_', '.']))
            .map(|(kind, _)| kind.to_owned());
        config[named_by_hash] = json!(kind);
    }
    found.push(normalized(&config));
    for (stream, consumer) in [("A", "m7"), ("B", "m8"), ("B", "s7"), ("V", "s8")] {
        let info = wait_until(&format!("everything is acked by {consumer}"), PATIENCE, async || {
            let info = ask(&mut raw, &format!("CONSUMER.INFO.{stream}.{consumer}"), "").await?;
            let is_done = info["num_pending"] == 0 && info["num_ack_pending"] == 0;
            Ok(is_done.then_some(info))
        })
        .await?;
        found.push(normalized(&info));
    }
    // The consumer counts an ack as it comes, the stream when it is stored.
    let left = wait_until("what was acked is gone", PATIENCE, async || {
        let info = ask(&mut raw, "STREAM.INFO.V", "").await?;
        Ok((info["state"]["messages"] == 0).then_some(info))
    })
    .await?;
    found.push(normalized(&left["state"]));
    let names = ask(&mut raw, "CONSUMER.NAMES.A", "").await?;
    found.push(names);
    Ok(found)
}

async fn compare(test: &str, what: &[&str], run: impl AsyncFn(&Cluster) -> Result<Vec<Value>>) -> Result<()> {
    let Some(pair) = Pair::start(test, "").await? else { return Ok(()) };
    let (expected, answers) = (run(&pair.reference).await?, run(&pair.subject).await?);
    let mut differences = Differences::default();
    for (position, (expected, answer)) in expected.iter().zip(&answers).enumerate() {
        differences.compare(what.get(position).unwrap_or(&"afterwards"), expected, answer);
    }
    differences.demand_none()
}

#[tokio::test]
async fn mirrors_and_sources_are_refused_and_taken_as_nats_server_does() -> Result<()> {
    compare("mirrors_and_sources_are_refused_and_taken_as_nats_server_does", CONFIGURATIONS, configured).await
}

#[tokio::test]
async fn mirrors_and_sources_hold_what_they_do_on_nats_server() -> Result<()> {
    let configs: Vec<&str> = COPIES.iter().map(|(config, _)| *config).collect();
    compare("mirrors_and_sources_hold_what_they_do_on_nats_server", &configs, copied).await
}
