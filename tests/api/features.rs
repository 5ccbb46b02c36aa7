//! Streams that do more than store what comes: counters, atomic batches, schedules, transforms, republish.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, HeaderMap};
use futures::StreamExt as _;
use levee_tests::base64::decoded;
use levee_tests::client::api_ok;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::ground::Ground;

/// A stream that was made through the bare API, and a client.
pub(crate) struct Bare {
    pub(crate) client: Client,
    pub(crate) name: String,
}

impl Bare {
    /// A stream on all nodes with subjects `<name>.>` and these fields in its configuration.
    pub(crate) async fn new(ground: &Ground, hint: &str, fields: Value) -> Result<Self> {
        let name = ground.name(hint);
        let mut config =
            json!({"name": name, "subjects": [format!("{name}.>")], "num_replicas": ground.replicas});
        let fields = fields.as_object().context("fields are an object")?.clone();
        config.as_object_mut().context("a configuration is an object")?.extend(fields);
        let bare = Self { client: ground.client.clone(), name };
        let created = bare.api("STREAM.CREATE", &config).await?;
        ensure!(created.get("error").is_none(), "{created}");
        Ok(bare)
    }

    pub(crate) async fn api(&self, call: &str, body: &Value) -> Result<Value> {
        let subject = format!("$JS.API.{call}.{}", self.name);
        let answer = self.client.request(subject, body.to_string().into()).await?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// Publishes with headers and gives the answer; one without a body is `Null`.
    pub(crate) async fn publish(&self, last: &str, body: &str, headers: &[(&str, &str)]) -> Result<Value> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let subject = format!("{}.{last}", self.name);
        let answer = self.client.request_with_headers(subject, map, body.to_owned().into()).await?;
        if answer.payload.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// The code of the error with which a publish is refused.
    pub(crate) async fn refused(&self, last: &str, body: &str, headers: &[(&str, &str)]) -> Result<u64> {
        let answer = self.publish(last, body, headers).await?;
        answer["error"]["err_code"].as_u64().with_context(|| format!("not refused: {answer}"))
    }

    pub(crate) async fn state(&self) -> Result<Value> {
        Ok(self.api("STREAM.INFO", &json!({})).await?["state"].clone())
    }

    /// The last message of a subject: its sequence, header block and body. `None` if there is none.
    pub(crate) async fn last(&self, last: &str) -> Result<Option<(u64, String, String)>> {
        let subject = format!("{}.{last}", self.name);
        let answer = self.api("STREAM.MSG.GET", &json!({ "last_by_subj": subject })).await?;
        let Some(message) = answer.get("message") else { return Ok(None) };
        Ok(Some((
            message["seq"].as_u64().context("seq")?,
            decoded(&message["hdrs"])?,
            decoded(&message["data"])?,
        )))
    }
}

pub(crate) async fn a_counter_adds_up(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "COUNTER", json!({"allow_msg_counter": true})).await?;

    for (increment, sum) in
        [("1", "1"), ("+41", "42"), ("-100", "-58"), ("1000000000000000000000", "999999999999999999942")]
    {
        let ack = stream.publish("a", "", &[("Nats-Incr", increment)]).await?;
        assert_eq!(ack["val"], sum, "{ack}");
    }
    assert_eq!(stream.publish("b", "", &[("Nats-Incr", "5")]).await?["val"], "5");

    let (seq, header, body) = stream.last("a").await?.context("the last message")?;
    assert_eq!((seq, body.as_str()), (4, r#"{"val":"999999999999999999942"}"#));
    assert!(header.contains("Nats-Incr: 1000000000000000000000"), "{header}");
    Ok(())
}

pub(crate) async fn many_clients_add_to_one_counter(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "SUM", json!({"allow_msg_counter": true})).await?;
    let mut clients = Vec::new();
    for node in 0..ground.replicas {
        clients.push(ground.cluster.client(node).await?);
    }

    let adds = (0..60).map(|number| {
        let bare = Bare { client: clients[number % clients.len()].clone(), name: stream.name.clone() };
        async move { bare.publish("a", "", &[("Nats-Incr", "2")]).await }
    });
    let mut sums: Vec<u64> = Vec::new();
    for ack in futures::future::join_all(adds).await {
        sums.push(ack?["val"].as_str().context("a sum")?.parse()?);
    }

    sums.sort_unstable();
    assert_eq!(sums, (1..=60).map(|number| number * 2).collect::<Vec<u64>>());
    Ok(())
}

pub(crate) async fn what_is_no_increment_is_refused(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "INCR", json!({"allow_msg_counter": true})).await?;
    let plain = Bare::new(ground, "PLAIN", json!({})).await?;

    assert_eq!(stream.refused("a", "", &[]).await?, 10169);
    assert_eq!(stream.refused("a", "", &[("Nats-Incr", "1.5")]).await?, 10171);
    assert_eq!(stream.refused("a", "x", &[("Nats-Incr", "1")]).await?, 10170);
    assert_eq!(stream.refused("a", "", &[("Nats-Incr", "1"), ("Nats-Rollup", "sub")]).await?, 10171);
    assert_eq!(plain.refused("a", "", &[("Nats-Incr", "1")]).await?, 10168);
    assert_eq!(stream.state().await?["messages"], 0);
    Ok(())
}

pub(crate) async fn a_batch_is_stored_when_it_is_committed(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "BATCH", json!({"allow_atomic": true})).await?;
    let part = |seq| [("Nats-Batch-Id", "one"), ("Nats-Batch-Sequence", seq)];

    assert_eq!(stream.publish("a", "1", &part("1")).await?, Value::Null);
    assert_eq!(stream.publish("b", "2", &part("2")).await?, Value::Null);
    assert_eq!(stream.state().await?["messages"], 0);
    stream.publish("c", "between", &[]).await?;
    let last = [part("3").as_slice(), &[("Nats-Batch-Commit", "1")]].concat();
    let ack = stream.publish("a", "3", &last).await?;

    assert_eq!((&ack["seq"], &ack["batch"], &ack["count"]), (&json!(4), &json!("one"), &json!(3)));
    let (seq, header, body) = stream.last("a").await?.context("the last message")?;
    assert_eq!((seq, body.as_str()), (4, "3"));
    assert!(header.contains("Nats-Batch-Commit: 1"), "{header}");

    let first = [("Nats-Batch-Id", "two"), ("Nats-Batch-Sequence", "1")];
    stream.publish("d", "1", &first).await?;
    let end = [("Nats-Batch-Id", "two"), ("Nats-Batch-Sequence", "2"), ("Nats-Batch-Commit", "eob")];
    let ack = stream.publish("d", "not stored", &end).await?;
    assert_eq!((&ack["seq"], &ack["count"]), (&json!(5), &json!(1)));
    Ok(())
}

pub(crate) async fn a_batch_that_breaks_a_rule_stores_nothing(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "RULES", json!({"allow_atomic": true})).await?;
    let plain = Bare::new(ground, "PLAIN", json!({})).await?;
    let part = |id: &'static str, seq| vec![("Nats-Batch-Id", id), ("Nats-Batch-Sequence", seq)];
    let end = |id, seq| [part(id, seq), vec![("Nats-Batch-Commit", "1")]].concat();

    assert_eq!(plain.refused("a", "1", &part("x", "1")).await?, 10174);
    assert_eq!(stream.refused("a", "1", &part("gap", "2")).await?, 10176);
    assert_eq!(stream.refused("a", "1", &[("Nats-Batch-Id", "none")]).await?, 10175);
    stream.publish("a", "1", &part("commit", "1")).await?;
    let bad = [part("commit", "2"), vec![("Nats-Batch-Commit", "2")]].concat();
    assert_eq!(stream.refused("a", "1", &bad).await?, 10200);

    stream.publish("a", "1", &[part("ids", "1"), vec![("Nats-Msg-Id", "one")]].concat()).await?;
    assert_eq!(
        stream.refused("a", "1", &[end("ids", "2"), vec![("Nats-Msg-Id", "one")]].concat()).await?,
        10201
    );
    let expected = vec![("Nats-Expected-Last-Sequence", "7")];
    stream.publish("a", "1", &[part("last", "1"), expected].concat()).await?;
    assert_eq!(stream.refused("a", "1", &end("last", "2")).await?, 10071);
    assert_eq!(stream.state().await?["last_seq"], 0);
    Ok(())
}

pub(crate) async fn a_schedule_publishes_again_and_again_until_it_is_ended(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "EVERY", json!({"allow_msg_schedules": true})).await?;
    let (own, target) = (format!("{}.plan", stream.name), format!("{}.out", stream.name));
    let plan = [("Nats-Schedule", "@every 1s"), ("Nats-Schedule-Target", target.as_str()), ("A", "b")];
    stream.publish("plan", "tick", &plan).await?;

    let header = wait_until("it fired twice", PATIENCE, async || {
        let Some((seq, header, body)) = stream.last("out").await? else { return Ok(None) };
        ensure!(body == "tick", "{body}");
        Ok((seq >= 3).then_some(header))
    })
    .await?;

    assert!(header.contains("A: b") && header.contains(&format!("Nats-Scheduler: {own}")), "{header}");
    assert!(!header.contains("Nats-Schedule:") && header.contains("Nats-Schedule-Next: 2"), "{header}");
    let end = [("Nats-Schedule-Next", "purge"), ("Nats-Scheduler", own.as_str())];
    let ended = stream.publish("end", "", &end).await?["seq"].as_u64().context("acked")?;
    assert_eq!(stream.last("plan").await?, None);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(stream.state().await?["last_seq"], ended);
    Ok(())
}

pub(crate) async fn a_schedule_publishes_once_and_goes(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "AT", json!({"allow_msg_schedules": true, "allow_msg_ttl": true})).await?;
    let (source, target) = (format!("{}.source", stream.name), format!("{}.out", stream.name));
    stream.publish("source", "content", &[]).await?;
    let plan = [
        ("Nats-Schedule", "@at 2009-11-10T23:00:00Z"),
        ("Nats-Schedule-Target", target.as_str()),
        ("Nats-Schedule-Source", source.as_str()),
        ("Nats-Schedule-TTL", "1h"),
    ];
    stream.publish("plan", "own", &plan).await?;

    let (header, body) = wait_until("it fired", PATIENCE, async || {
        Ok(stream.last("out").await?.map(|(_, header, body)| (header, body)))
    })
    .await?;

    assert_eq!(body, "content");
    assert!(header.contains("Nats-Schedule-Next: purge") && header.contains("Nats-TTL: 1h"), "{header}");
    wait_until("the schedule is gone", PATIENCE, async || {
        Ok(stream.last("plan").await?.is_none().then_some(()))
    })
    .await?;
    assert_eq!(stream.refused("plan", "", &[("Nats-Schedule", "@never")]).await?, 10189);
    Ok(())
}

pub(crate) async fn subjects_are_rewritten_before_messages_are_stored(ground: &Ground) -> Result<()> {
    let name = ground.name("REWRITE");
    let transform = json!({"src": format!("{name}.in.*"), "dest": format!("{name}.out.{{{{wildcard(1)}}}}")});
    let config = json!({
        "name": name, "subjects": [format!("{name}.>")], "num_replicas": ground.replicas, "subject_transform": transform,
    });
    let stream = Bare { client: ground.client.clone(), name };
    let created = stream.api("STREAM.CREATE", &config).await?;
    ensure!(created.get("error").is_none(), "{created}");

    stream.publish("in.a", "1", &[]).await?;
    stream.publish("other", "2", &[]).await?;

    assert_eq!(stream.last("out.a").await?.map(|(seq, ..)| seq), Some(1));
    assert_eq!(stream.last("in.a").await?, None);
    assert_eq!(stream.last("other").await?.map(|(seq, ..)| seq), Some(2));
    let mut wrong = config;
    wrong["subject_transform"]["dest"] = json!("a.{{wildcard(9)}}");
    assert_eq!(stream.api("STREAM.UPDATE", &wrong).await?["error"]["err_code"], 10156);
    Ok(())
}

pub(crate) async fn what_is_stored_is_published_again(ground: &Ground) -> Result<()> {
    let again = ground.name("again");
    let republish = json!({"src": ">", "dest": format!("{again}.>")});
    let stream = Bare::new(ground, "SOURCE", json!({ "republish": republish })).await?;
    let elsewhere = ground.cluster.client(ground.replicas - 1).await?;
    let mut heard = elsewhere.subscribe(format!("{again}.>")).await?;
    elsewhere.flush().await?;
    // The subscription has to be known on the node that republishes.
    wait_until("the subscriber is known", PATIENCE, async || {
        stream.publish("warm", "", &[]).await?;
        Ok(timeout(Duration::from_millis(200), heard.next()).await.is_ok().then_some(()))
    })
    .await?;

    stream.publish("a", "one", &[("A", "b")]).await?;
    let seq = stream.publish("a", "two", &[]).await?["seq"].as_u64().context("acked")?;

    let mut last = None;
    while last.as_ref().is_none_or(|message: &async_nats::Message| message.payload != "two") {
        last = timeout(PATIENCE, heard.next()).await.context("nothing was published again")?;
    }
    let message = last.context("a message")?;
    let headers = message.headers.context("headers")?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    assert_eq!(message.subject.as_str(), format!("{again}.{}.a", stream.name));
    assert_eq!(header("Nats-Stream"), stream.name);
    assert_eq!(header("Nats-Subject"), format!("{}.a", stream.name));
    assert_eq!(
        (header("Nats-Sequence"), header("Nats-Last-Sequence")),
        (seq.to_string(), (seq - 1).to_string())
    );
    Ok(())
}

pub(crate) async fn what_is_published_again_is_stored_when_the_original_is_acknowledged(
    ground: &Ground,
) -> Result<()> {
    let copy = Bare::new(ground, "COPY", json!({})).await?;
    let republish = json!({"src": ">", "dest": format!("{}.>", copy.name)});
    let stream = Bare::new(ground, "SOURCE", json!({ "republish": republish })).await?;

    // On several nodes nats-server answers before.
    let counts = ground.replicas == 1 || ground.cluster.program().is_levee();
    for number in 1..=30 {
        stream.publish("a", &number.to_string(), &[]).await?;
        if counts {
            assert_eq!(copy.state().await?["last_seq"], number);
        }
    }
    Ok(())
}

pub(crate) async fn streams_that_publish_into_each_other_answer_at_once(ground: &Ground) -> Result<()> {
    let (one, other) = (ground.name("ONE"), ground.name("OTHER"));
    let create = async |name: &str, subjects: Value, republish: Value| {
        let config = json!({"name": name, "subjects": subjects, "republish": republish, "num_replicas": ground.replicas});
        api_ok(&ground.client, &format!("STREAM.CREATE.{name}"), &config).await
    };
    let there = json!({"src": format!("{one}.>"), "dest": format!("{other}.>")});
    let back = json!({"src": format!("{other}.>"), "dest": format!("{one}-back.>")});
    create(&one, json!([format!("{one}.>"), format!("{one}-back.>")]), there).await?;
    create(&other, json!([format!("{other}.>")]), back).await?;
    let one = Bare { client: ground.client.clone(), name: one };

    let begun = std::time::Instant::now();
    for number in 1..=20 {
        one.publish("a", &number.to_string(), &[]).await?;
    }

    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} for 20 messages", begun.elapsed());
    wait_until("each came back", PATIENCE, async || Ok((one.state().await?["messages"] == 40).then_some(())))
        .await
}

pub(crate) async fn bounds_for_consumers_hold_for_those_that_exist(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "BOUNDS", json!({})).await?;
    let name = &stream.name;
    let consumer = json!({
        "stream_name": name,
        "config": {"durable_name": "wide", "ack_policy": "explicit", "max_ack_pending": 500},
    });
    let subject = format!("$JS.API.CONSUMER.CREATE.{name}.wide");
    let created = stream.client.request(subject, consumer.to_string().into()).await?;
    ensure!(!String::from_utf8_lossy(&created.payload).contains("error"), "{:?}", created.payload);
    let update = |max_ack_pending: u64| {
        let limits = json!({ "max_ack_pending": max_ack_pending });
        json!({
            "name": name, "subjects": [format!("{name}.>")], "num_replicas": ground.replicas, "consumer_limits": limits,
        })
    };

    let refused = stream.api("STREAM.UPDATE", &update(100)).await?;
    assert_eq!(refused["error"]["err_code"], 10069, "{refused}");
    assert_eq!(refused["error"]["description"], "change to limits violates consumers: wide");
    let changed = stream.api("STREAM.UPDATE", &update(500)).await?;
    assert_eq!(changed["config"]["consumer_limits"]["max_ack_pending"], 500, "{changed}");
    Ok(())
}

/// Publishes a message of a fast batch; what is said about it comes to subscribers of the inbox.
async fn fast(stream: &Bare, inbox: &str, what: &str, last: &str, body: &str) -> Result<()> {
    let reply = format!("{inbox}.{what}.$FI");
    let subject = format!("{}.{last}", stream.name);
    Ok(stream.client.publish_with_reply(subject, reply, body.to_owned().into()).await?)
}

pub(crate) async fn a_fast_batch_is_acked_now_and_then_and_at_its_end(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "FAST", json!({"allow_batched": true})).await?;
    let inbox = stream.client.new_inbox();
    let mut answers = stream.client.subscribe(format!("{inbox}.>")).await?;
    for seq in 1..=1000 {
        let op = if seq == 1 { 0 } else { 1 };
        fast(&stream, &inbox, &format!("b.100.fail.{seq}.{op}"), "a", "x").await?;
    }
    fast(&stream, &inbox, "b.100.fail.1001.3", "a", "").await?;

    let mut acked = Vec::new();
    let last = loop {
        let answer = timeout(PATIENCE, answers.next()).await?.context("an answer")?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        if answer["type"] != "ack" {
            break answer;
        }
        assert_eq!(answer["msgs"], 100, "{answer}");
        acked.push(answer["seq"].as_u64().context("seq")?);
    };
    assert_eq!(last, json!({"stream": stream.name, "seq": 1000, "batch": "b", "count": 1000}));
    assert!(acked.len() > 1 && acked[0] == 0 && acked.is_sorted(), "{acked:?}");
    assert!(acked.iter().all(|seq| seq % 100 == 0), "{acked:?}");
    assert_eq!(stream.state().await?["messages"], 1000);
    Ok(())
}

pub(crate) async fn a_fast_batch_without_holes_ends_at_the_first_refusal(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "HOLE", json!({"allow_batched": true})).await?;
    for (mode, stored) in [("fail", 49), ("ok", 99)] {
        let before = stream.state().await?["messages"].as_u64().context("messages")?;
        let inbox = stream.client.new_inbox();
        let mut answers = stream.client.subscribe(format!("{inbox}.>")).await?;
        for seq in 1..=100 {
            let op = match seq {
                1 => 0,
                100 => 2,
                _ => 1,
            };
            // All of it is under way before anything is known about the bad one.
            let mut map = HeaderMap::new();
            if seq == 50 {
                map.insert("Nats-Expected-Last-Sequence", "7");
            }
            let reply = format!("{inbox}.{mode}.500.{mode}.{seq}.{op}.$FI");
            let subject = format!("{}.a", stream.name);
            let message = stream.client.publish_with_reply_and_headers(subject, reply, map, "x".into());
            message.await?;
        }
        let mut errors = 0;
        let last = loop {
            let answer = timeout(PATIENCE, answers.next()).await?.context("an answer")?;
            let answer: Value = serde_json::from_slice(&answer.payload)?;
            match answer["type"].as_str() {
                Some("err") => {
                    assert_eq!((&answer["seq"], &answer["error"]["err_code"]), (&json!(50), &json!(10071)));
                    errors += 1;
                }
                Some(_) => {}
                None => break answer,
            }
        };
        assert_eq!(errors, 1);
        assert_eq!(last["count"], if mode == "fail" { 49 } else { 100 }, "{last}");
        assert_eq!(last["seq"].as_u64(), Some(before + stored), "{last}");
        assert_eq!(stream.state().await?["messages"].as_u64(), Some(before + stored));
    }
    Ok(())
}

pub(crate) async fn calls_of_the_api_are_audited(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "AUDIT", json!({})).await?;
    let mut audits = stream.client.subscribe("$JS.EVENT.ADVISORY.API").await?;
    stream.client.flush().await?;
    let purged = stream.api("STREAM.PURGE", &json!({"keep": 1})).await?;
    let subject = format!("$JS.API.STREAM.PURGE.{}", stream.name);

    let audit = loop {
        let audit = timeout(PATIENCE, audits.next()).await?.context("an advisory")?;
        let audit: Value = serde_json::from_slice(&audit.payload)?;
        if audit["subject"] == subject.as_str() {
            break audit;
        }
    };
    assert_eq!(audit["type"], "io.nats.jetstream.advisory.v1.api_audit");
    assert_eq!(audit["request"], r#"{"keep":1}"#);
    let response: Value = serde_json::from_str(audit["response"].as_str().context("a response")?)?;
    assert_eq!(response, purged);
    assert_eq!((&audit["client"]["acc"], &audit["client"]["lang"]), (&json!("$G"), &json!("rust")));
    assert_eq!(audit["server"], ground.cluster.node(0).name());
    Ok(())
}
