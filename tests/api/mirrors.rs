//! Streams that mirror others, or gather messages of several.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, consumer};
use levee_tests::base64::decoded;
use levee_tests::client::{api, api_ok};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::features::Bare;
use crate::ground::{Ground, take};

/// A stream on all nodes with just these fields in its configuration.
async fn stream(ground: &Ground, name: &str, fields: Value) -> Result<Bare> {
    let mut config = json!({"name": name, "num_replicas": ground.replicas});
    let fields = fields.as_object().context("fields are an object")?.clone();
    config.as_object_mut().context("a configuration is an object")?.extend(fields);
    let bare = Bare { client: ground.client.clone(), name: name.to_owned() };
    let created = bare.api("STREAM.CREATE", &config).await?;
    ensure!(created.get("error").is_none(), "{created}");
    Ok(bare)
}

/// Waits until the stream has given out this sequence.
async fn reaches(stream: &Bare, seq: u64) -> Result<Value> {
    wait_until(&format!("{} has sequence {seq}", stream.name), PATIENCE, async || {
        let state = stream.state().await?;
        Ok((state["last_seq"].as_u64() >= Some(seq)).then_some(state))
    })
    .await
}

/// Every message: sequence, subject, body, header block and time.
async fn messages(stream: &Bare) -> Result<Vec<(u64, String, String, String, String)>> {
    let last = stream.state().await?["last_seq"].as_u64().context("last sequence")?;
    let mut messages = Vec::new();
    for seq in 1..=last {
        let answer = stream.api("STREAM.MSG.GET", &json!({ "seq": seq })).await?;
        let Some(message) = answer.get("message") else { continue };
        let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
        let (body, header) = (decoded(&message["data"])?, decoded(&message["hdrs"])?);
        messages.push((seq, text("subject"), body, header, text("time")));
    }
    Ok(messages)
}

async fn bodies(stream: &Bare) -> Result<Vec<String>> {
    Ok(messages(stream).await?.into_iter().map(|message| message.2).collect())
}

async fn info(stream: &Bare) -> Result<Value> {
    stream.api("STREAM.INFO", &json!({})).await
}

pub(crate) async fn a_mirror_has_the_sequences_times_and_gaps_of_its_origin(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "ORIGIN", json!({})).await?;
    for number in 0..5 {
        origin
            .publish("a", &number.to_string(), &[("A", "b"), ("Nats-Expected-Stream", &origin.name)])
            .await?;
    }
    origin.api("STREAM.MSG.DELETE", &json!({"seq": 3})).await?;
    let name = ground.name("MIRROR");
    let mirror = stream(ground, &name, json!({"mirror": {"name": origin.name}})).await?;
    let memory = ground.name("MEMORY");
    let memory = stream(ground, &memory, json!({"mirror": {"name": name}, "storage": "memory"})).await?;

    reaches(&mirror, 5).await?;
    origin.publish("b", "6", &[]).await?;
    let state = reaches(&mirror, 6).await?;
    reaches(&memory, 6).await?;

    let mut expected = messages(&origin).await?;
    // What was for the origin only does not go further.
    for message in &mut expected {
        message.3 = message.3.replace(&format!("Nats-Expected-Stream: {}\r\n", origin.name), "");
    }
    assert_eq!(messages(&mirror).await?, expected);
    assert_eq!(messages(&memory).await?, expected);
    assert_eq!((&state["messages"], &state["num_deleted"]), (&json!(5), &json!(1)));
    wait_until("the mirror says that it has everything", PATIENCE, async || {
        let described = info(&mirror).await?["mirror"].clone();
        ensure!(described["name"] == origin.name, "{described}");
        Ok((described["lag"] == 0 && described["active"].as_i64() >= Some(0)).then_some(()))
    })
    .await?;
    let consumers = origin.api("CONSUMER.NAMES", &json!({})).await?;
    assert_eq!(consumers["total"], 0, "{consumers}");
    let refused = ground.client.request(mirror.name.clone(), "x".into()).await;
    assert!(refused.is_err(), "nobody takes what is published to a mirror");
    Ok(())
}

pub(crate) async fn many_messages_reach_a_mirror_in_order(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "MANY", json!({})).await?;
    let name = ground.name("MIRROR");
    let mirror = stream(ground, &name, json!({"mirror": {"name": origin.name}})).await?;
    let js = jetstream::new(ground.client.clone());
    let mut acks = Vec::new();
    for number in 0..5000_u32 {
        acks.push(js.publish(format!("{}.a", origin.name), number.to_string().into()).await?);
    }
    for ack in acks {
        ack.await?;
    }

    reaches(&mirror, 5000).await?;

    let config = consumer::pull::Config { ack_policy: consumer::AckPolicy::None, ..Default::default() };
    let reader = js.get_stream(&name).await?.create_consumer(config).await?;
    let read = take(&reader, 5000).await?;
    let expected: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    assert_eq!(crate::ground::bodies(&read), expected);
    Ok(())
}

pub(crate) async fn a_mirror_waits_for_an_origin_that_is_not_there_yet(ground: &Ground) -> Result<()> {
    let (origin, name) = (ground.name("LATER"), ground.name("MIRROR"));
    let mirror = stream(ground, &name, json!({"mirror": {"name": origin}})).await?;
    // nats-server does not say so in a cluster.
    if ground.cluster.program().is_levee() {
        wait_until("the mirror says what is missing", PATIENCE, async || {
            let described = info(&mirror).await?["mirror"].clone();
            Ok((described["error"]["err_code"] == 10059 && described["active"] == -1).then_some(()))
        })
        .await?;
    }

    let origin = stream(ground, &origin, json!({"subjects": [format!("{origin}.>")]})).await?;
    origin.publish("a", "1", &[]).await?;

    reaches(&mirror, 1).await?;
    assert_eq!(bodies(&mirror).await?, ["1"]);
    assert_eq!(info(&mirror).await?["mirror"].get("error"), None);
    Ok(())
}

pub(crate) async fn a_mirror_takes_a_part_and_rewrites_it(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "PARTS", json!({})).await?;
    for (last, body) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4")] {
        origin.publish(last, body, &[]).await?;
    }
    let subject = |last: &str| format!("{}.{last}", origin.name);
    let create = async |fields: Value| stream(ground, &ground.name("PART"), fields).await;

    let filtered = json!({"name": origin.name, "filter_subject": subject("a")});
    let filtered = create(json!({ "mirror": filtered })).await?;
    let transforms = json!([{"src": subject("b"), "dest": "new.b"}, {"src": subject("a"), "dest": ""}]);
    let rewritten =
        create(json!({"mirror": {"name": origin.name, "subject_transforms": transforms}})).await?;
    let later = create(json!({"mirror": {"name": origin.name, "opt_start_seq": 3}})).await?;

    for mirror in [&filtered, &rewritten, &later] {
        reaches(mirror, 4).await?;
    }
    let seqs = async |mirror: &Bare| -> Result<Vec<(u64, String)>> {
        Ok(messages(mirror).await?.into_iter().map(|message| (message.0, message.1)).collect())
    };
    assert_eq!(seqs(&filtered).await?, [(1, subject("a")), (4, subject("a"))]);
    assert_eq!(seqs(&rewritten).await?, [(1, subject("a")), (2, "new.b".into()), (4, subject("a"))]);
    assert_eq!(seqs(&later).await?, [(3, subject("c")), (4, subject("a"))]);
    assert_eq!(later.state().await?["first_seq"], 3);
    assert_eq!(info(&filtered).await?["mirror"]["filter_subject"], subject("a"));
    Ok(())
}

pub(crate) async fn a_mirror_becomes_a_stream_of_its_own(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "FIRST", json!({})).await?;
    origin.publish("a", "1", &[]).await?;
    let name = ground.name("PROMOTED");
    let mirror = stream(ground, &name, json!({"mirror": {"name": origin.name}})).await?;
    reaches(&mirror, 1).await?;
    let update = |fields: Value| {
        let mut config = json!({"name": name, "num_replicas": ground.replicas});
        config.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        config
    };

    let other = update(json!({"mirror": {"name": origin.name, "filter_subject": "x"}}));
    assert_eq!(mirror.api("STREAM.UPDATE", &other).await?["error"]["err_code"], 10055);
    let promoted = update(json!({"subjects": [format!("{name}.>")]}));
    let promoted = mirror.api("STREAM.UPDATE", &promoted).await?;
    ensure!(promoted.get("error").is_none() && promoted.get("mirror").is_none(), "{promoted}");
    origin.publish("a", "not copied", &[]).await?;
    assert_eq!(mirror.publish("own", "2", &[]).await?["seq"], 2);
    let back = update(json!({"mirror": {"name": origin.name}}));
    assert_eq!(mirror.api("STREAM.UPDATE", &back).await?["error"]["err_code"], 10055);

    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bodies(&mirror).await?, ["1", "2"]);
    Ok(())
}

pub(crate) async fn a_mirror_answers_direct_gets_for_an_origin_that_is_gone(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "GONE", json!({"allow_direct": true})).await?;
    origin.publish("a", "1", &[]).await?;
    let name = ground.name("MIRROR");
    let mirror = stream(ground, &name, json!({"mirror": {"name": origin.name}})).await?;
    reaches(&mirror, 1).await?;
    assert_eq!(info(&mirror).await?["config"]["mirror_direct"], true);

    api_ok(&ground.client, &format!("STREAM.DELETE.{}", origin.name), &Value::Null).await?;

    let message = wait_until("the mirror answers", PATIENCE, async || {
        let request =
            ground.client.request(format!("$JS.API.DIRECT.GET.{}", origin.name), r#"{"seq":1}"#.into());
        Ok(request.await.ok().filter(|message| message.payload == "1"))
    })
    .await?;
    let headers = message.headers.context("headers")?;
    assert_eq!(headers.get("Nats-Stream").map(|value| value.as_str().to_owned()), Some(name));
    Ok(())
}

pub(crate) async fn sources_are_gathered_and_say_where_they_are_from(ground: &Ground) -> Result<()> {
    let (one, two) = (Bare::new(ground, "ONE", json!({})).await?, Bare::new(ground, "TWO", json!({})).await?);
    for (last, body) in [("a", "1"), ("b", "2"), ("a", "3")] {
        one.publish(last, body, &[("Nats-Msg-Id", body), ("Nats-Expected-Stream", &one.name)]).await?;
    }
    let transforms = json!([{"src": format!("{}.*", one.name), "dest": "all.{{wildcard(1)}}"}]);
    let sources = json!([
        {"name": one.name, "subject_transforms": transforms},
        {"name": two.name, "opt_start_seq": 2},
    ]);
    let name = ground.name("ALL");
    let fields = json!({"sources": sources, "subjects": [format!("{name}.>")]});
    let all = stream(ground, &name, fields).await?;
    reaches(&all, 3).await?;
    for body in ["4", "5"] {
        two.publish("x", body, &[]).await?;
    }
    reaches(&all, 4).await?;
    all.publish("own", "6", &[]).await?;

    let gathered = messages(&all).await?;
    let short: Vec<(&str, &str)> =
        gathered.iter().map(|(_, subject, body, ..)| (&subject[..], &body[..])).collect();
    let (two_x, own) = (format!("{}.x", two.name), format!("{name}.own"));
    assert_eq!(short, [("all.a", "1"), ("all.b", "2"), ("all.a", "3"), (&two_x, "5"), (&own, "6")]);
    let header = &gathered[0].3;
    let line = format!("Nats-Stream-Source: {0} 1 {0}.* all.{{{{wildcard(1)}}}} {0}.a ", one.name);
    assert!(header.contains(&line) && header.contains("Nats-Msg-Id: 1\r\n"), "{header}");
    assert!(!header.contains("Nats-Expected"), "{header}");
    let described = wait_until("nothing is missing", PATIENCE, async || {
        let sources = info(&all).await?["sources"].as_array().cloned().unwrap_or_default();
        Ok(sources.iter().all(|source| source["lag"] == 0).then_some(sources))
    })
    .await?;
    let seqs: Vec<_> = described.iter().map(|source| (&source["name"], &source["seq"])).collect();
    assert_eq!(seqs, [(&json!(one.name), &json!(3)), (&json!(two.name), &json!(2))]);
    Ok(())
}

pub(crate) async fn sources_come_and_go_and_none_is_gathered_twice(ground: &Ground) -> Result<()> {
    let (one, two) = (Bare::new(ground, "ONE", json!({})).await?, Bare::new(ground, "TWO", json!({})).await?);
    one.publish("a", "1", &[]).await?;
    two.publish("a", "2", &[]).await?;
    let name = ground.name("ALL");
    let all = stream(ground, &name, json!({"sources": [{"name": one.name}]})).await?;
    reaches(&all, 1).await?;
    let update = async |sources: Value| {
        let config = json!({"name": name, "num_replicas": ground.replicas, "sources": sources});
        let updated = all.api("STREAM.UPDATE", &config).await?;
        ensure!(updated.get("error").is_none(), "{updated}");
        Ok(())
    };

    update(json!([{"name": two.name}])).await?;
    reaches(&all, 2).await?;
    one.publish("a", "3", &[]).await?;
    update(json!([{"name": two.name}, {"name": one.name}])).await?;
    reaches(&all, 3).await?;
    two.publish("a", "4", &[]).await?;
    reaches(&all, 4).await?;

    assert_eq!(bodies(&all).await?, ["1", "2", "3", "4"]);
    Ok(())
}

pub(crate) async fn a_source_that_is_created_again_is_gathered_from_its_beginning(
    ground: &Ground,
) -> Result<()> {
    let origin = Bare::new(ground, "AGAIN", json!({})).await?;
    for body in ["1", "2"] {
        origin.publish("a", body, &[]).await?;
    }
    let name = ground.name("ALL");
    let all = stream(ground, &name, json!({"sources": [{"name": origin.name}]})).await?;
    reaches(&all, 2).await?;

    api_ok(&ground.client, &format!("STREAM.DELETE.{}", origin.name), &Value::Null).await?;
    let origin = stream(ground, &origin.name, json!({"subjects": [format!("{}.>", origin.name)]})).await?;
    origin.publish("a", "3", &[]).await?;

    reaches(&all, 3).await?;
    assert_eq!(bodies(&all).await?, ["1", "2", "3"]);
    Ok(())
}

pub(crate) async fn a_stream_that_is_full_gathers_on_when_there_is_room(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "PLENTY", json!({})).await?;
    for body in ["1", "2", "3"] {
        origin.publish("a", body, &[]).await?;
    }
    let name = ground.name("FULL");
    let fields = json!({"sources": [{"name": origin.name}], "max_msgs": 2, "discard": "new"});
    let full = stream(ground, &name, fields).await?;
    reaches(&full, 2).await?;
    // nats-server says so only in its log.
    if ground.cluster.program().is_levee() {
        wait_until("it says why it stands still", PATIENCE, async || {
            let sources = info(&full).await?["sources"].clone();
            Ok((sources[0]["error"]["err_code"] == 10077).then_some(()))
        })
        .await?;
    }
    assert_eq!(bodies(&full).await?, ["1", "2"]);

    full.api("STREAM.PURGE", &json!({})).await?;

    reaches(&full, 3).await?;
    assert_eq!(bodies(&full).await?, ["3"]);
    Ok(())
}

pub(crate) async fn an_origin_keeps_messages_until_its_readers_have_them(ground: &Ground) -> Result<()> {
    for retention in ["workqueue", "interest"] {
        let origin = Bare::new(ground, "KEEPS", json!({"retention": retention})).await?;
        let name = ground.name("TAKES");
        let taking = stream(ground, &name, json!({"sources": [{"name": origin.name}]})).await?;
        let consumer = wait_until("the origin knows its reader", PATIENCE, async || {
            let listed = origin.api("CONSUMER.LIST", &json!({})).await?;
            Ok(listed["consumers"].get(0).cloned())
        })
        .await?;
        let config = &consumer["config"];
        let consumer_name = config["durable_name"].as_str().context("a name")?;
        ensure!(consumer_name.starts_with("JS_SRC_") && config["ack_policy"] == "flow_control", "{config}");
        ensure!(config["sourcing"] == true && config["metadata"]["_nats.src.stream"] == name, "{config}");
        for body in ["1", "2", "3"] {
            origin.publish("a", body, &[]).await?;
        }

        reaches(&taking, 3).await?;
        wait_until("the origin is empty", PATIENCE, async || {
            Ok((origin.state().await?["messages"] == 0).then_some(()))
        })
        .await?;
        assert_eq!(bodies(&taking).await?, ["1", "2", "3"]);

        api_ok(&ground.client, &format!("STREAM.DELETE.{name}"), &Value::Null).await?;
        wait_until("the origin forgets its reader", PATIENCE, async || {
            Ok((origin.state().await?["consumer_count"] == 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

pub(crate) async fn counters_are_gathered(ground: &Ground) -> Result<()> {
    let one = Bare::new(ground, "ONE", json!({"allow_msg_counter": true})).await?;
    let two = Bare::new(ground, "TWO", json!({"allow_msg_counter": true})).await?;
    let name = ground.name("SUM");
    let from = |counter: &Bare| {
        let transform = json!({"src": format!("{}.c", counter.name), "dest": format!("{name}.c")});
        json!({"name": counter.name, "subject_transforms": [transform]})
    };
    let fields = json!({
        "allow_msg_counter": true, "subjects": [format!("{name}.>")], "sources": [from(&one), from(&two)],
    });
    let sum = stream(ground, &name, fields).await?;

    for (counter, increment) in [(&one, "5"), (&two, "100"), (&one, "7"), (&sum, "1"), (&one, "-2")] {
        let ack = counter.publish("c", "", &[("Nats-Incr", increment)]).await?;
        ensure!(ack.get("error").is_none(), "{ack}");
    }

    let (_, header, body) = wait_until("the sum is complete", PATIENCE, async || {
        let last = sum.last("c").await?;
        Ok(last.filter(|(seq, ..)| *seq == 5))
    })
    .await?;
    assert_eq!(body, r#"{"val":"111"}"#);
    let totals = format!(
        r#"Nats-Counter-Sources: {{"{0}":{{"{0}.c":"10"}},"{1}":{{"{1}.c":"100"}}}}"#,
        one.name, two.name
    );
    assert!(header.contains(&totals), "{header}");
    Ok(())
}

pub(crate) async fn leaders_may_move_on_both_sides(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "MOVES", json!({})).await?;
    let mirror = ground.name("MIRROR");
    let mirror = stream(ground, &mirror, json!({"mirror": {"name": origin.name}})).await?;
    let all = ground.name("ALL");
    let all = stream(ground, &all, json!({"sources": [{"name": origin.name}]})).await?;
    let js = jetstream::new(ground.client.clone());

    for round in 0..6_u64 {
        for number in 0..50 {
            let body = (round * 50 + number).to_string();
            wait_until("published", PATIENCE, async || {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", body.as_str());
                let subject = format!("{}.a", origin.name);
                let ack = js.publish_with_headers(subject, headers, body.clone().into()).await?;
                Ok(ack.await.is_ok().then_some(()))
            })
            .await?;
        }
        if ground.replicas > 1 {
            for stream in [&origin, &mirror, &all] {
                api(&ground.client, &format!("STREAM.LEADER.STEPDOWN.{}", stream.name), &Value::Null).await?;
            }
        }
    }

    for copy in [&mirror, &all] {
        reaches(copy, 300).await?;
        let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
        assert_eq!(bodies(copy).await?, expected);
    }
    Ok(())
}

/// Makes a consumer of a stream that is acked by answers to flow control, and delivers to `deliver`.
async fn flow_acked(origin: &Bare, name: &str, deliver: &str, fields: Value) -> Result<()> {
    let mut config = json!({"durable_name": name, "deliver_subject": deliver, "ack_policy": "flow_control"});
    let fields = fields.as_object().context("fields are an object")?.clone();
    config.as_object_mut().context("a configuration is an object")?.extend(fields);
    let request = json!({"stream_name": origin.name, "config": config});
    api_ok(&origin.client, &format!("CONSUMER.CREATE.{}.{name}", origin.name), &request).await?;
    Ok(())
}

/// Waits until a consumer has nothing unacked and nothing to deliver.
async fn is_acked(origin: &Bare, consumer: &str) -> Result<Value> {
    wait_until(&format!("everything is acked by {consumer}"), PATIENCE, async || {
        let info = api_ok(&origin.client, &format!("CONSUMER.INFO.{}.{consumer}", origin.name), &Value::Null)
            .await?;
        Ok((info["num_pending"] == 0 && info["num_ack_pending"] == 0).then_some(info))
    })
    .await
}

pub(crate) async fn a_work_queue_is_moved_through_a_consumer_made_by_hand(ground: &Ground) -> Result<()> {
    let queue = Bare::new(ground, "QUEUE", json!({"retention": "workqueue"})).await?;
    let deliver = ground.name("deliver");
    flow_acked(&queue, "moves", &deliver, json!({"max_ack_pending": 3})).await?;
    let name = ground.name("MOVED");
    let source = json!({"name": queue.name, "consumer": {"name": "moves", "deliver_subject": deliver}});
    let moved = stream(ground, &name, json!({ "sources": [source] })).await?;
    for number in 1..=20 {
        queue.publish("a", &number.to_string(), &[]).await?;
    }

    reaches(&moved, 20).await?;
    let expected: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
    assert_eq!(bodies(&moved).await?, expected);
    let info_of_consumer = is_acked(&queue, "moves").await?;
    assert_eq!(info_of_consumer["push_bound"], true);
    assert_eq!(info_of_consumer["ack_floor"]["stream_seq"], 20);
    wait_until("the queue is empty", PATIENCE, async || {
        Ok((queue.state().await?["messages"] == 0).then_some(()))
    })
    .await?;
    let described = info(&moved).await?["sources"][0].clone();
    assert_eq!((&described["name"], &described["lag"]), (&json!(queue.name), &json!(0)));
    assert_eq!(described.get("error"), None, "{described}");

    // The consumer belongs to whoever made it.
    api_ok(&ground.client, &format!("STREAM.DELETE.{name}"), &Value::Null).await?;
    let names = queue.api("CONSUMER.NAMES", &json!({})).await?;
    assert_eq!(names["consumers"], json!(["moves"]));
    Ok(())
}

pub(crate) async fn a_mirror_reads_what_its_consumer_delivers(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "ORIGIN", json!({})).await?;
    for (last, body) in [("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"), ("a", "5")] {
        origin.publish(last, body, &[]).await?;
    }
    let deliver = ground.name("deliver");
    let name = ground.name("MIRROR");
    let reads = json!({"name": origin.name, "consumer": {"name": "reads", "deliver_subject": deliver}});
    let mirror = stream(ground, &name, json!({ "mirror": reads })).await?;
    // nats-server does not say so: its request for a reset has no responders, and it tries again.
    if ground.cluster.program().is_levee() {
        wait_until("the mirror says what is missing", PATIENCE, async || {
            Ok((info(&mirror).await?["mirror"]["error"]["err_code"] == 10014).then_some(()))
        })
        .await?;
    }

    let only_a = json!({"filter_subject": format!("{}.a", origin.name), "deliver_policy": "by_start_sequence", "opt_start_seq": 2});
    flow_acked(&origin, "reads", &deliver, only_a).await?;

    reaches(&mirror, 5).await?;
    let seqs: Vec<u64> = messages(&mirror).await?.into_iter().map(|message| message.0).collect();
    assert_eq!(seqs, [3, 5]);
    origin.publish("b", "6", &[]).await?;
    origin.publish("a", "7", &[]).await?;
    reaches(&mirror, 7).await?;
    assert_eq!(bodies(&mirror).await?, ["3", "5", "7"]);
    assert_eq!(is_acked(&origin, "reads").await?["ack_floor"]["stream_seq"], 7);
    Ok(())
}

pub(crate) async fn a_source_wants_a_consumer_that_is_acked_by_flow_control(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "ORIGIN", json!({})).await?;
    let (name, deliver) = (ground.name("ALL"), ground.name("deliver"));
    let config = json!({"durable_name": "other", "deliver_subject": deliver, "ack_policy": "explicit"});
    let request = json!({"stream_name": origin.name, "config": config});
    api_ok(&ground.client, &format!("CONSUMER.CREATE.{}.other", origin.name), &request).await?;
    let source = json!({"name": origin.name, "consumer": {"name": "other", "deliver_subject": deliver}});
    let all = stream(ground, &name, json!({ "sources": [source] })).await?;

    wait_until("the stream says what is wrong", PATIENCE, async || {
        Ok((info(&all).await?["sources"][0]["error"]["err_code"] == 10217).then_some(()))
    })
    .await?;
    Ok(())
}

pub(crate) async fn a_copy_goes_on_when_its_consumer_is_reset_or_made_again(ground: &Ground) -> Result<()> {
    let origin = Bare::new(ground, "ORIGIN", json!({})).await?;
    let (name, deliver) = (ground.name("ALL"), ground.name("deliver"));
    flow_acked(&origin, "reads", &deliver, json!({})).await?;
    let source = json!({"name": origin.name, "consumer": {"name": "reads", "deliver_subject": deliver}});
    let all = stream(ground, &name, json!({ "sources": [source] })).await?;
    for number in 1..=5 {
        origin.publish("a", &number.to_string(), &[]).await?;
    }
    reaches(&all, 5).await?;

    let reset = format!("CONSUMER.RESET.{}.reads", origin.name);
    api_ok(&ground.client, &reset, &json!({"seq": 2})).await?;
    origin.publish("a", "6", &[]).await?;
    reaches(&all, 6).await?;
    api_ok(&ground.client, &format!("CONSUMER.DELETE.{}.reads", origin.name), &Value::Null).await?;
    flow_acked(&origin, "reads", &deliver, json!({})).await?;
    origin.publish("a", "7", &[]).await?;

    reaches(&all, 7).await?;
    assert_eq!(bodies(&all).await?, ["1", "2", "3", "4", "5", "6", "7"]);
    Ok(())
}
