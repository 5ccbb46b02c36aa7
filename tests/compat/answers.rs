//! The JetStream API, good requests and bad: the same script on both, the same answers.

use anyhow::Result;
use levee_tests::cluster::Cluster;
use levee_tests::raw::Raw;
use serde_json::{Value, json};

use crate::pair::{Differences, Pair, normalized};

// Where Levee answers otherwise on purpose, and is not compared: a purge whose body is no JSON is refused (nats-server
// purges everything); META.LEADER.STEPDOWN of a single node and endpoints that do not exist are answered (nats-server is
// silent, and clients wait for their timeout).

/// One request: subject (below `$JS.API.` unless it begins with `=`), header lines, payload.
type Step = (&'static str, &'static str, &'static str);

const STREAMS: &[Step] = &[
    ("STREAM.NAMES", "", ""),
    ("STREAM.LIST", "", ""),
    ("STREAM.INFO.NONE", "", ""),
    ("STREAM.CREATE.S", "", r#"{"name":"S","subjects":["s.>"]}"#),
    ("STREAM.CREATE.S", "", r#"{"name":"S","subjects":["s.>"]}"#),
    ("STREAM.CREATE.S", "", r#"{"name":"S","subjects":["s.>","t"]}"#),
    ("STREAM.CREATE.S", "", r#"{"name":"OTHER","subjects":["u"]}"#),
    ("STREAM.CREATE.X", "", ""),
    ("STREAM.CREATE.X", "", "{"),
    ("STREAM.CREATE.X", "", "not json"),
    ("STREAM.CREATE.X", "", r#"{"name":7}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":"x"}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["s.a"]}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x..y"]}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x.>.y"]}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x","x"]}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["$JS.API.>"]}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"retention":"never"}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"storage":"paper"}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"discard":"some"}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"num_replicas":3}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"num_replicas":9}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"num_replicas":-1}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"max_age":-1}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"max_age":50}"#),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"duplicate_window":50}"#),
    (
        "STREAM.CREATE.X",
        "",
        r#"{"name":"X","subjects":["x"],"max_age":1000000000,"duplicate_window":2000000000}"#,
    ),
    ("STREAM.CREATE.X", "", r#"{"name":"X","subjects":["x"],"unknown":true}"#),
    ("STREAM.DELETE.X", "", ""),
    ("STREAM.DELETE.X", "", ""),
    ("STREAM.CREATE.DEF", "", r#"{"name":"DEF"}"#),
    (
        "STREAM.CREATE.MEM",
        "",
        r#"{"name":"MEM","subjects":["m"],"storage":"memory","max_msgs":5,"discard":"new"}"#,
    ),
    (
        "STREAM.CREATE.FULL",
        "",
        r#"{"name":"FULL","subjects":["f.*"],"max_msgs":10,"max_bytes":10000,"max_age":3600000000000,"max_msg_size":1000,"max_msgs_per_subject":5,"allow_direct":true,"deny_delete":true,"deny_purge":true,"description":"all","duplicate_window":1000000000,"metadata":{"a":"b"},"max_consumers":2,"no_ack":false}"#,
    ),
    ("STREAM.PURGE.FULL", "", ""),
    ("STREAM.MSG.DELETE.FULL", "", r#"{"seq":1}"#),
    ("STREAM.UPDATE.S", "", r#"{"name":"S","subjects":["s.>"],"max_msgs":100}"#),
    ("STREAM.UPDATE.S", "", r#"{"name":"S","subjects":["s.>"],"storage":"memory"}"#),
    ("STREAM.UPDATE.S", "", r#"{"name":"S","subjects":["s.>"],"retention":"workqueue"}"#),
    ("STREAM.UPDATE.NONE", "", r#"{"name":"NONE","subjects":["n"]}"#),
    ("STREAM.UPDATE.S", "", r#"{"name":"S","subjects":["m"]}"#),
    ("STREAM.UPDATE.S", "", ""),
    ("STREAM.INFO.S", "", ""),
    ("STREAM.INFO.S", "", "{"),
    ("STREAM.NAMES", "", r#"{"offset":1}"#),
    ("STREAM.NAMES", "", r#"{"offset":99}"#),
    ("STREAM.NAMES", "", r#"{"subject":"s.a"}"#),
    ("STREAM.NAMES", "", r#"{"subject":"nowhere"}"#),
    ("STREAM.NAMES", "", "["),
    ("STREAM.LIST", "", ""),
    ("STREAM.PURGE.NONE", "", ""),
    ("STREAM.DELETE.NONE", "", ""),
    ("INFO", "", ""),
];

const PUBLISHES: &[Step] = &[
    ("STREAM.CREATE.P", "", r#"{"name":"P","subjects":["p.>"],"allow_direct":true,"max_msg_size":100}"#),
    ("=p.a", "", "one"),
    ("=p.a", "Nats-Msg-Id: id-1\r\n", "two"),
    ("=p.a", "Nats-Msg-Id: id-1\r\n", "again"),
    ("=p.b", "Nats-Expected-Stream: P\r\n", "three"),
    ("=p.b", "Nats-Expected-Stream: Q\r\n", "no"),
    ("=p.b", "Nats-Expected-Last-Sequence: 3\r\n", "four"),
    ("=p.b", "Nats-Expected-Last-Sequence: 3\r\n", "no"),
    ("=p.b", "Nats-Expected-Last-Sequence: x\r\n", "no"),
    ("=p.a", "Nats-Expected-Last-Subject-Sequence: 2\r\n", "five"),
    ("=p.a", "Nats-Expected-Last-Subject-Sequence: 2\r\n", "no"),
    ("=p.new", "Nats-Expected-Last-Subject-Sequence: 0\r\n", "six"),
    ("=p.a", "Nats-Expected-Last-Msg-Id: id-1\r\n", "no"),
    ("=p.a", "Color: red\r\nColor: blue\r\nEmpty: \r\n", "seven"),
    (
        "=p.a",
        "",
        "01234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
    ),
    ("=p.a", "Nats-Rollup: sub\r\n", "not allowed"),
    ("=p.a", "Nats-Rollup: what\r\n", "not a rollup"),
    ("=p.a", "Nats-TTL: 10s\r\n", "not allowed"),
    ("=p.a", "", ""),
    ("STREAM.INFO.P", "", r#"{"subjects_filter":">"}"#),
    ("STREAM.INFO.P", "", r#"{"subjects_filter":"p.b"}"#),
    ("STREAM.MSG.GET.P", "", r#"{"seq":2}"#),
    ("STREAM.MSG.GET.P", "", r#"{"seq":7}"#),
    ("STREAM.MSG.GET.P", "", r#"{"seq":99}"#),
    ("STREAM.MSG.GET.P", "", r#"{"last_by_subj":"p.b"}"#),
    ("STREAM.MSG.GET.P", "", r#"{"last_by_subj":"p.none"}"#),
    ("STREAM.MSG.GET.P", "", r#"{"next_by_subj":"p.a","seq":3}"#),
    ("STREAM.MSG.GET.P", "", r#"{"next_by_subj":"p.*"}"#),
    ("STREAM.MSG.GET.P", "", "{}"),
    ("STREAM.MSG.GET.P", "", ""),
    ("STREAM.MSG.GET.P", "", "x"),
    ("STREAM.MSG.GET.P", "", r#"{"seq":1,"last_by_subj":"p.a"}"#),
    ("STREAM.MSG.GET.NONE", "", r#"{"seq":1}"#),
    ("DIRECT.GET.P", "", r#"{"seq":2}"#),
    ("DIRECT.GET.P", "", r#"{"seq":99}"#),
    ("DIRECT.GET.P", "", r#"{"last_by_subj":"p.b"}"#),
    ("DIRECT.GET.P", "", r#"{"next_by_subj":"p.a","seq":3}"#),
    ("DIRECT.GET.P", "", ""),
    ("DIRECT.GET.P", "", "{}"),
    ("DIRECT.GET.P", "", "x"),
    ("DIRECT.GET.P.p.b", "", ""),
    ("DIRECT.GET.P.p.none", "", ""),
    ("STREAM.MSG.DELETE.P", "", r#"{"seq":2}"#),
    ("STREAM.MSG.DELETE.P", "", r#"{"seq":2}"#),
    ("STREAM.MSG.DELETE.P", "", r#"{"seq":99}"#),
    ("STREAM.MSG.DELETE.P", "", ""),
    ("STREAM.MSG.DELETE.NONE", "", r#"{"seq":2}"#),
    ("STREAM.INFO.P", "", r#"{"deleted_details":true}"#),
    ("STREAM.PURGE.P", "", r#"{"filter":"p.b"}"#),
    ("STREAM.PURGE.P", "", r#"{"seq":4}"#),
    ("STREAM.PURGE.P", "", r#"{"keep":1}"#),
    ("STREAM.PURGE.P", "", r#"{"seq":4,"keep":1}"#),
    ("STREAM.INFO.P", "", ""),
    ("STREAM.PURGE.P", "", ""),
    ("STREAM.INFO.P", "", ""),
];

const CONSUMERS: &[Step] = &[
    ("STREAM.CREATE.C", "", r#"{"name":"C","subjects":["c.>"]}"#),
    ("=c.a", "", "1"),
    ("=c.b", "", "2"),
    ("=c.a", "", "3"),
    ("CONSUMER.NAMES.C", "", ""),
    ("CONSUMER.LIST.C", "", ""),
    ("CONSUMER.INFO.C.none", "", ""),
    ("CONSUMER.INFO.NONE.none", "", ""),
    (
        "CONSUMER.CREATE.C.d",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"d","name":"d","ack_policy":"explicit"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.d",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"d","name":"d","ack_policy":"explicit"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.d",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"d","name":"d","ack_policy":"none"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.d",
        "",
        r#"{"stream_name":"C","action":"create","config":{"durable_name":"d","name":"d","ack_policy":"explicit","max_deliver":3}}"#,
    ),
    (
        "CONSUMER.CREATE.C.d",
        "",
        r#"{"stream_name":"C","action":"update","config":{"durable_name":"d","name":"d","ack_policy":"explicit","max_deliver":3}}"#,
    ),
    (
        "CONSUMER.CREATE.C.e",
        "",
        r#"{"stream_name":"C","action":"update","config":{"durable_name":"e","name":"e","ack_policy":"explicit"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"D","config":{"durable_name":"x","ack_policy":"explicit"}}"#,
    ),
    (
        "CONSUMER.CREATE.NONE.x",
        "",
        r#"{"stream_name":"NONE","config":{"durable_name":"x","ack_policy":"explicit"}}"#,
    ),
    ("CONSUMER.CREATE.C.x", "", ""),
    ("CONSUMER.CREATE.C.x", "", "{"),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"y","ack_policy":"explicit"}}"#,
    ),
    ("CONSUMER.CREATE.C.x", "", r#"{"stream_name":"C","config":{"durable_name":"x","ack_policy":"maybe"}}"#),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","deliver_policy":"by_start_sequence"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","deliver_policy":"by_start_time"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","deliver_policy":"all","opt_start_seq":3}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","filter_subject":"other"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","filter_subject":"c.a","filter_subjects":["c.b"]}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","filter_subjects":["c.*","c.a"]}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","ack_policy":"explicit","max_deliver":0,"backoff":[1000000000,2000000000]}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","deliver_subject":"c.loop"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","deliver_subject":"d.*"}}"#,
    ),
    ("CONSUMER.CREATE.C.x", "", r#"{"stream_name":"C","config":{"durable_name":"x","flow_control":true}}"#),
    (
        "CONSUMER.CREATE.C.x",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"x","idle_heartbeat":1000000}}"#,
    ),
    ("CONSUMER.CREATE.C.x", "", r#"{"stream_name":"C","config":{"durable_name":"x","num_replicas":3}}"#),
    (
        "CONSUMER.CREATE.C.f.c.a",
        "",
        r#"{"stream_name":"C","config":{"name":"f","durable_name":"f","ack_policy":"none","filter_subject":"c.a"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.g.c.a",
        "",
        r#"{"stream_name":"C","config":{"name":"g","durable_name":"g","filter_subject":"c.b"}}"#,
    ),
    (
        "CONSUMER.DURABLE.CREATE.C.o",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"o","ack_policy":"all","deliver_policy":"last"}}"#,
    ),
    (
        "CONSUMER.CREATE.C.p",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"p","name":"p","deliver_subject":"push","ack_policy":"explicit","deliver_group":"q","idle_heartbeat":5000000000,"flow_control":true}}"#,
    ),
    (
        "CONSUMER.CREATE.C.h",
        "",
        r#"{"stream_name":"C","config":{"durable_name":"h","name":"h","ack_policy":"explicit","headers_only":true,"max_ack_pending":7,"max_waiting":3,"max_batch":10,"max_expires":5000000000,"max_bytes":1000,"sample_freq":"50%","metadata":{"a":"b"},"description":"all","inactive_threshold":60000000000,"ack_wait":9000000000,"opt_start_seq":2,"deliver_policy":"by_start_sequence"}}"#,
    ),
    ("CONSUMER.MSG.NEXT.C.d", "", "1"),
    ("CONSUMER.MSG.NEXT.C.f", "", r#"{"batch":1}"#),
    ("CONSUMER.MSG.NEXT.C.h", "", r#"{"batch":11}"#),
    ("CONSUMER.MSG.NEXT.C.h", "", r#"{"batch":1,"expires":6000000000}"#),
    ("CONSUMER.MSG.NEXT.C.h", "", r#"{"batch":1,"expires":1000000000,"idle_heartbeat":900000000}"#),
    ("CONSUMER.MSG.NEXT.C.h", "", r#"{"batch":1,"max_bytes":2000}"#),
    ("CONSUMER.MSG.NEXT.C.h", "", "{"),
    ("CONSUMER.MSG.NEXT.C.none", "", "1"),
    ("CONSUMER.MSG.NEXT.C.o", "", r#"{"no_wait":true}"#),
    ("CONSUMER.MSG.NEXT.C.o", "", r#"{"no_wait":true}"#),
    ("CONSUMER.INFO.C.d", "", ""),
    ("CONSUMER.INFO.C.f", "", ""),
    ("CONSUMER.INFO.C.p", "", ""),
    ("CONSUMER.LIST.C", "", ""),
    ("CONSUMER.NAMES.C", "", r#"{"offset":2}"#),
    ("CONSUMER.NAMES.NONE", "", ""),
    ("CONSUMER.DELETE.C.none", "", ""),
    ("CONSUMER.DELETE.NONE.none", "", ""),
    ("CONSUMER.DELETE.C.d", "", ""),
    ("CONSUMER.INFO.C.d", "", ""),
    ("CONSUMER.LEADER.STEPDOWN.C.f", "", ""),
    ("STREAM.LEADER.STEPDOWN.C", "", ""),
    ("STREAM.INFO.C", "", ""),
    ("STREAM.DELETE.C", "", ""),
    ("CONSUMER.INFO.C.f", "", ""),
];

/// Runs the script and gives what each step was answered.
async fn run(cluster: &Cluster, script: &[Step]) -> Result<Vec<Value>> {
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    let mut answers = Vec::new();
    for (subject, headers, payload) in script {
        let header = if headers.is_empty() { String::new() } else { format!("NATS/1.0\r\n{headers}\r\n") };
        answers.push(ask(&mut raw, subject, &header, payload).await);
    }
    Ok(answers)
}

/// One request, below `$JS.API.` unless the subject begins with `=`, and what can be compared of its answer.
pub(crate) async fn ask(raw: &mut Raw, subject: &str, header: &str, payload: &str) -> Value {
    let subject = subject.strip_prefix('=').map_or_else(|| format!("$JS.API.{subject}"), str::to_owned);
    match raw.request(&subject, header, payload).await {
        Ok(message) => {
            let body = serde_json::from_str(&message.payload).unwrap_or(Value::String(message.payload));
            // Times are in headers too.
            let header: Vec<&str> =
                message.header.lines().filter(|line| !line.starts_with("Nats-Time-Stamp")).collect();
            json!({ "header": header, "body": normalized(&body) })
        }
        Err(error) => json!({ "none": error.to_string() }),
    }
}

async fn compare(test: &str, script: &[Step]) -> Result<()> {
    let Some(pair) = Pair::start(test, "").await? else { return Ok(()) };

    let expected = run(&pair.reference, script).await?;
    let answers = run(&pair.subject, script).await?;

    let mut differences = Differences::default();
    for ((step, expected), answer) in script.iter().zip(&expected).zip(&answers) {
        differences.compare(&format!("{} {}{}", step.0, step.1.trim_end(), step.2), expected, answer);
    }
    differences.demand_none()
}

#[tokio::test]
async fn requests_about_streams_are_answered_as_nats_server_answers_them() -> Result<()> {
    compare("requests_about_streams_are_answered_as_nats_server_answers_them", STREAMS).await
}

#[tokio::test]
async fn publishes_and_reads_are_answered_as_nats_server_answers_them() -> Result<()> {
    compare("publishes_and_reads_are_answered_as_nats_server_answers_them", PUBLISHES).await
}

#[tokio::test]
async fn requests_about_consumers_are_answered_as_nats_server_answers_them() -> Result<()> {
    compare("requests_about_consumers_are_answered_as_nats_server_answers_them", CONSUMERS).await
}
