//! Fast batches: the same messages to both servers, and the same said about them.

use std::time::Duration;

use anyhow::Result;
use async_nats::Client;
use futures::StreamExt as _;
use levee_tests::archive::api;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::pair::{Differences, Pair};

/// Nothing more comes to a step after this long without anything. Too short, and answers show up a step later.
const QUIET: Duration = Duration::from_millis(250);

/// What is between the inbox and `.$FI`, the last token of the subject, headers, and the body.
type Step = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

const STEPS: &[Step] = &[
    // The shape of the reply subject.
    ("b.10.ok.2.0", "fb.a", &[], "wrong"),
    ("b.10.ok.1.1", "fb.a", &[], "wrong"),
    ("b.10.ok.1.3", "fb.a", &[], "wrong"),
    ("b.10.ok.0.1", "fb.a", &[], "wrong"),
    ("b.10.ok.1.9", "fb.a", &[], "wrong"),
    ("b.10.maybe.1.0", "fb.a", &[], "wrong"),
    ("10.ok.1.0", "fb.a", &[], "wrong"),
    ("b.10.ok.2.1", "fb.a", &[], "unknown"),
    ("b.10.ok.1.4", "fb.a", &[], "unknown"),
    ("12345678901234567890123456789012345678901234567890123456789012345.10.ok.1.0", "fb.a", &[], "long"),
    // Whole ones.
    ("one.10.fail.1.2", "fb.a", &[], "only"),
    ("two.2.fail.1.0", "fb.a", &[], "1"),
    ("two.2.fail.2.1", "fb.a", &[], "2"),
    ("two.2.fail.3.1", "fb.b", &[], "3"),
    ("two.2.fail.4.2", "fb.b", &[], "4"),
    ("two.2.fail.5.1", "fb.b", &[], "behind the end"),
    ("eob.0.ok.1.0", "fb.a", &[], "1"),
    ("eob.0.ok.2.1", "fb.a", &[], "2"),
    ("eob.0.ok.3.3", "fb.a", &[], "not stored"),
    // Holes.
    ("gapok.1.ok.1.0", "fb.a", &[], "1"),
    ("gapok.1.ok.4.1", "fb.a", &[], "4"),
    ("gapok.1.ok.6.4", "fb.a", &[], ""),
    ("gapok.1.ok.6.4", "fb.a", &[], ""),
    ("gapok.1.ok.7.2", "fb.a", &[], "7"),
    ("gapfail.5.fail.1.0", "fb.a", &[], "1"),
    ("gapfail.5.fail.3.1", "fb.a", &[], "3"),
    ("gapfail.5.fail.4.1", "fb.a", &[], "4"),
    ("pingfail.5.fail.1.0", "fb.a", &[], "1"),
    ("pingfail.5.fail.1.4", "fb.a", &[], ""),
    ("pingfail.5.fail.9.4", "fb.a", &[], ""),
    ("back.5.ok.1.0", "fb.a", &[], "1"),
    ("back.5.ok.2.1", "fb.a", &[], "2"),
    ("back.5.ok.2.1", "fb.a", &[], "2"),
    // Refused messages.
    ("bad1.5.fail.1.2", "fb.a", &[("Nats-Expected-Last-Sequence", "999")], "1"),
    ("bad2.5.ok.1.2", "fb.a", &[("Nats-Expected-Last-Sequence", "999")], "1"),
    ("bad3.5.fail.1.0", "fb.a", &[], "1"),
    ("bad3.5.fail.2.1", "fb.a", &[("Nats-Expected-Last-Sequence", "999")], "2"),
    ("bad3.5.fail.3.1", "fb.a", &[], "3"),
    ("bad4.3.ok.1.0", "fb.a", &[], "1"),
    // Not compared: the ack of a refused message. nats-server leaves it out until one behind it is stored, and whoever
    // waits for it stands still.
    // Nor compared: what nats-server checks only when it stores, like the last message id, it answers with a PubAck of
    // its own and never counts as done.
    ("bad4.3.ok.2.1", "fb.a", &[("Nats-Expected-Last-Sequence", "999")], "2"),
    ("bad4.3.ok.3.1", "fb.a", &[], "3"),
    ("bad4.3.ok.4.2", "fb.a", &[("Nats-Expected-Last-Sequence", "999")], "4"),
    ("bad5.5.fail.1.0", "fb.a", &[("Nats-Rollup", "all")], "1"),
    // Duplicates.
    ("dup1.5.fail.1.2", "fb.a", &[("Nats-Msg-Id", "x")], "1"),
    ("dup2.5.fail.1.2", "fb.a", &[("Nats-Msg-Id", "x")], "1"),
    ("dup3.1.ok.1.0", "fb.a", &[("Nats-Msg-Id", "y")], "1"),
    ("dup3.1.ok.2.1", "fb.a", &[("Nats-Msg-Id", "y")], "2"),
    ("dup3.1.ok.3.2", "fb.a", &[("Nats-Msg-Id", "z")], "3"),
    // A stream that does not allow them, one that is sealed, one that is full.
    ("no.5.ok.1.0", "plain.a", &[], "1"),
    ("full.5.fail.1.0", "full.a", &[], "1"),
    ("full.5.fail.2.1", "full.a", &[], "2"),
    ("full.5.fail.3.1", "full.a", &[], "3"),
    ("fullok.5.ok.1.2", "full.a", &[], "large, and larger than the stream allows a message to be"),
];

/// Sends a step and collects what is said until nothing more comes.
async fn said(client: &Client, step: &Step) -> Result<Vec<Value>> {
    let (reply, subject, headers, body) = step;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.>")).await?;
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in *headers {
        map.insert(*name, *value);
    }
    let reply = format!("{inbox}.{reply}.$FI");
    client
        .publish_with_reply_and_headers((*subject).to_owned(), reply, map, (*body).to_owned().into())
        .await?;
    let mut said = Vec::new();
    while let Ok(Some(answer)) = timeout(QUIET, answers.next()).await {
        said.push(serde_json::from_slice(&answer.payload).unwrap_or(Value::Null));
    }
    Ok(said)
}

#[tokio::test]
async fn the_same_is_said_about_fast_batches() -> Result<()> {
    let Some(pair) = Pair::start("the_same_is_said_about_fast_batches", "").await? else { return Ok(()) };
    let mut found = Differences::default();
    let (reference, subject) = (pair.reference.client(0).await?, pair.subject.client(0).await?);
    for config in [
        json!({"name": "FB", "subjects": ["fb.>"], "allow_batched": true}),
        json!({"name": "PLAIN", "subjects": ["plain.>"]}),
        json!({"name": "FULL", "subjects": ["full.>"], "allow_batched": true, "max_msgs": 2, "discard": "new", "max_msg_size": 20}),
    ] {
        let call = format!("STREAM.CREATE.{}", config["name"].as_str().unwrap_or_default());
        let (one, other) = (api(&reference, &call, &config).await?, api(&subject, &call, &config).await?);
        found.compare(&call, &one["config"], &other["config"]);
    }
    for step in STEPS {
        let (one, other) = tokio::join!(said(&reference, step), said(&subject, step));
        found.compare(&format!("{step:?}"), &Value::Array(one?), &Value::Array(other?));
    }
    for name in ["FB", "PLAIN", "FULL"] {
        let call = format!("STREAM.INFO.{name}");
        let (one, other) =
            (api(&reference, &call, &json!({})).await?, api(&subject, &call, &json!({})).await?);
        for field in ["messages", "bytes", "first_seq", "last_seq", "num_subjects"] {
            found.compare(&format!("{name} {field}"), &one["state"][field], &other["state"][field]);
        }
    }
    found.demand_none()
}

const LIMITS: &str = "limits { batch { max_inflight_per_stream: 2, max_msgs: 3, timeout: \"600ms\" } }";

#[tokio::test]
async fn batches_are_bounded_by_the_configuration() -> Result<()> {
    let test = "batches_are_bounded_by_the_configuration";
    let Some(pair) = Pair::start_in_jetstream(test, LIMITS).await? else { return Ok(()) };
    let mut found = Differences::default();
    let mut answers = [Vec::new(), Vec::new()];
    for (server, answers) in [&pair.reference, &pair.subject].into_iter().zip(&mut answers) {
        let client = server.client(0).await?;
        let config = json!({"name": "B", "subjects": ["b.>"], "allow_batched": true, "allow_atomic": true});
        api(&client, "STREAM.CREATE.B", &config).await?;
        for step in [
            ("x.5.ok.1.0", "b.a", &[][..], "1"),
            ("y.5.ok.1.0", "b.a", &[], "1"),
            ("z.5.ok.1.0", "b.a", &[], "1"),
        ] {
            answers.push((format!("{step:?}"), Value::Array(said(&client, &step).await?)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let idle = ("y.5.ok.2.1", "b.a", &[][..], "2");
        answers.push((format!("{idle:?}"), Value::Array(said(&client, &idle).await?)));
        for seq in 1..=4 {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Batch-Id", "atomic");
            headers.insert("Nats-Batch-Sequence", seq.to_string().as_str());
            let answer = client.request_with_headers("b.a", headers, "x".into()).await?;
            let answer = serde_json::from_slice(&answer.payload).unwrap_or(Value::Null);
            answers.push((format!("message {seq} of an atomic batch"), answer));
        }
    }
    let [reference, subject] = answers;
    for ((step, one), (_, other)) in reference.iter().zip(&subject) {
        found.compare(step, one, other);
    }
    found.demand_none()
}
