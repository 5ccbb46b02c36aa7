//! Streams are sent as archives, and come back from them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::Client;
use futures::StreamExt as _;
use levee_tests::archive::{Backup, api, backup, restore, seen};
use levee_tests::base64::decoded;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::features::Bare;
use crate::ground::Ground;

/// A stream with gaps at both ends and in the middle, headers, and a consumer that is half done with it.
async fn filled(ground: &Ground, hint: &str, fields: Value) -> Result<Bare> {
    let stream = Bare::new(ground, hint, fields).await?;
    for number in 1..=40_u32 {
        let id = number.to_string();
        let body = "x".repeat(number as usize * 20);
        stream.publish(&format!("k{}", number % 7), &body, &[("Nats-Msg-Id", &id)]).await?;
    }
    for seq in [1, 2, 17, 18, 40] {
        let deleted = stream.api("STREAM.MSG.DELETE", &json!({ "seq": seq })).await?;
        ensure!(deleted["success"] == true, "{deleted}");
    }
    let name = &stream.name;
    let config = json!({"durable_name": "half", "ack_policy": "explicit", "ack_wait": 600_000_000_000_u64});
    let request = json!({"stream_name": name, "config": config});
    let created = api(&stream.client, &format!("CONSUMER.CREATE.{name}.half"), &request).await?;
    ensure!(created.get("error").is_none(), "{created}");
    let inbox = stream.client.new_inbox();
    let mut messages = stream.client.subscribe(inbox.clone()).await?;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{name}.half");
    stream.client.publish_with_reply(next, inbox, r#"{"batch":10}"#.into()).await?;
    for number in 0..10 {
        let message = timeout(PATIENCE, messages.next()).await?.context("a message")?;
        // Some stay unacked, the first not among them.
        if number % 3 != 2 {
            let reply = message.reply.context("a reply subject")?;
            timeout(PATIENCE, stream.client.request(reply, "+ACK".into())).await??;
        }
    }
    Ok(stream)
}

async fn delete(stream: &Bare) -> Result<()> {
    let deleted = stream.api("STREAM.DELETE", &json!({})).await?;
    ensure!(deleted["success"] == true, "{deleted}");
    Ok(())
}

pub(crate) async fn a_stream_comes_back_from_its_archive(ground: &Ground) -> Result<()> {
    for storage in ["file", "memory"] {
        let stream = filled(ground, "BACKUP", json!({ "storage": storage })).await?;
        let before = seen(&stream.client, &stream.name).await?;
        let saved = backup(&stream.client, &stream.name, &json!({"chunk_size": 1024})).await?;
        assert_eq!(saved.state["messages"], 35, "{}", saved.state);
        assert!(saved.chunks > 1, "one chunk shows no flow");
        delete(&stream).await?;

        let request = json!({"config": saved.config, "state": saved.state});
        let answer = restore(&stream.client, &request, &saved.archive, 700).await?;

        assert_eq!(answer["type"], "io.nats.jetstream.api.v1.stream_create_response", "{answer}");
        assert_eq!(answer["state"]["last_seq"], 40, "{answer}");
        assert_eq!(seen(&stream.client, &stream.name).await?, before);
        let again = stream.publish("k1", "again", &[("Nats-Msg-Id", "33")]).await?;
        assert_eq!((&again["duplicate"], &again["seq"]), (&json!(true), &json!(33)), "{again}");
        assert_eq!(stream.publish("k1", "new", &[]).await?["seq"], 41);
    }
    Ok(())
}

/// The body of every message that the stream has, once its last sequence is this one.
async fn bodies(client: &Client, name: &str, last: u64) -> Result<Vec<String>> {
    wait_until(&format!("{name} has sequence {last}"), PATIENCE, async || {
        let info = api(client, &format!("STREAM.INFO.{name}"), &json!({})).await?;
        Ok((info["state"]["last_seq"].as_u64() >= Some(last)).then_some(()))
    })
    .await?;
    let seen = seen(client, name).await?;
    seen["messages"].as_array().context("messages")?.iter().map(|message| decoded(&message["data"])).collect()
}

pub(crate) async fn a_mirror_and_a_gathering_stream_go_on_where_their_archives_end(
    ground: &Ground,
) -> Result<()> {
    let origin = Bare::new(ground, "BACK_ORIGIN", json!({})).await?;
    let client = &ground.client;
    let copies = [
        (ground.name("BACK_MIRROR"), json!({"mirror": {"name": origin.name}})),
        (ground.name("BACK_SOURCE"), json!({"sources": [{"name": origin.name}]})),
    ];
    for number in 1..=6 {
        origin.publish("a", &number.to_string(), &[]).await?;
    }
    let mut saved = Vec::new();
    for (name, config) in &copies {
        let mut config = config.clone();
        config["name"] = json!(name);
        config["num_replicas"] = json!(ground.replicas);
        let created = api(client, &format!("STREAM.CREATE.{name}"), &config).await?;
        ensure!(created.get("error").is_none(), "{created}");
        assert_eq!(bodies(client, name, 6).await?.len(), 6);
        saved.push(backup(client, name, &json!({})).await?);
        api(client, &format!("STREAM.DELETE.{name}"), &json!({})).await?;
    }
    let of_origin = backup(client, &origin.name, &json!({})).await?;
    let back = async |backup: &Backup| {
        let request = json!({"config": backup.config, "state": backup.state});
        let answer = restore(client, &request, &backup.archive, 1000).await?;
        ensure!(answer.get("error").is_none(), "{answer}");
        anyhow::Ok(())
    };

    origin.publish("a", "7", &[]).await?;
    for (backup, (name, _)) in saved.iter().zip(&copies) {
        back(backup).await?;
        assert_eq!(bodies(client, name, 7).await?, ["1", "2", "3", "4", "5", "6", "7"], "{name}");
    }
    // The origin comes back too, as another incarnation that has what the first one had.
    for name in copies.iter().map(|(name, _)| name).chain([&origin.name]) {
        api(client, &format!("STREAM.DELETE.{name}"), &json!({})).await?;
    }
    for backup in saved.iter().chain([&of_origin]) {
        back(backup).await?;
    }
    origin.publish("a", "new", &[]).await?;
    origin.publish("a", "newer", &[]).await?;
    for (name, _) in &copies {
        let expected = ["1", "2", "3", "4", "5", "6", "new", "newer"];
        assert_eq!(bodies(client, name, 8).await?, expected, "{name}");
    }
    Ok(())
}

pub(crate) async fn a_restore_that_is_asked_for_again_before_anything_came_goes_on(
    ground: &Ground,
) -> Result<()> {
    let stream = filled(ground, "ASKED", json!({})).await?;
    let saved = backup(&stream.client, &stream.name, &json!({})).await?;
    delete(&stream).await?;
    let request = json!({"config": saved.config, "state": saved.state});

    let lost = stream.api("STREAM.RESTORE", &request).await?;
    let answer = restore(&stream.client, &request, &saved.archive, 1000).await?;

    assert_eq!(answer["state"]["messages"], 35, "{answer}");
    let subject = lost["deliver_subject"].as_str().context("where the first one listened")?.to_owned();
    assert!(stream.client.request(subject, "x".into()).await.is_err(), "nobody listens there any more");
    delete(&stream).await?;

    // As soon as something came it is somebody's.
    let begun = stream.api("STREAM.RESTORE", &request).await?;
    let subject = begun["deliver_subject"].as_str().context("where to send it")?.to_owned();
    stream.client.request(subject.clone(), saved.archive[..100].to_vec().into()).await?;
    let again = stream.api("STREAM.RESTORE", &request).await?;
    assert_eq!(again["error"]["err_code"], 10130, "{again}");
    stream.client.request(subject.clone(), saved.archive[100..].to_vec().into()).await?;
    let last = stream.client.request(subject, "".into()).await?;
    let last: Value = serde_json::from_slice(&last.payload)?;
    assert_eq!(last["state"]["messages"], 35, "{last}");
    Ok(())
}

pub(crate) async fn a_stream_comes_back_under_a_changed_configuration(ground: &Ground) -> Result<()> {
    let stream = filled(ground, "CHANGED", json!({})).await?;
    let saved = backup(&stream.client, &stream.name, &json!({"no_consumers": true})).await?;
    delete(&stream).await?;

    let mut config = saved.config.clone();
    config["max_msgs_per_subject"] = json!(2);
    config["subjects"] = json!([format!("{}.k1", stream.name)]);
    let request = json!({"config": config, "state": saved.state});
    let answer = restore(&stream.client, &request, &saved.archive, 100_000).await?;

    assert_eq!(answer["state"]["messages"], 14, "{answer}");
    assert_eq!(answer["state"]["consumer_count"], 0, "{answer}");
    assert_eq!(stream.publish("k1", "new", &[]).await?["seq"], 41);
    let elsewhere = stream.client.request(format!("{}.k2", stream.name), "".into()).await;
    assert!(elsewhere.is_err(), "nobody takes what the stream does not capture any more");
    Ok(())
}

pub(crate) async fn a_bad_archive_is_refused_and_leaves_nothing_behind(ground: &Ground) -> Result<()> {
    let stream = filled(ground, "BAD", json!({})).await?;
    let saved = backup(&stream.client, &stream.name, &json!({})).await?;
    let request = json!({"config": saved.config, "state": saved.state});
    let exists = restore(&stream.client, &request, &saved.archive, 1000).await?;
    assert_eq!(exists["error"]["err_code"], 10130, "{exists}");
    delete(&stream).await?;

    let good = &saved.archive;
    let mut flipped = good.clone();
    // In the first checksum: elsewhere a changed bit can mean the same bytes, copied from another place.
    flipped[b"\xff\x06\x00\x00S2sTwO\x00len".len()] ^= 4;
    let bad: [(&str, Vec<u8>, &str); 6] = [
        ("nothing", Vec::new(), "truncated"),
        ("cut", good[..good.len() - 30].to_vec(), "truncated"),
        ("flipped", flipped, "damaged"),
        ("garbage", vec![b'x'; 5000], "not an S2 stream"),
        ("tar", b"\xff\x06\x00\x00S2sTwO\x01\x0c\x00\x00".to_vec(), "truncated"),
        ("twice", [&good[..], &good[10..]].concat(), "behind its end"),
    ];
    for (what, archive, why) in bad {
        let answer = restore(&stream.client, &request, &archive, 1000).await?;
        assert_eq!(answer["error"]["err_code"], 10062, "{what}: {answer}");
        let text = answer["error"]["description"].as_str().unwrap_or_default();
        assert!(text.starts_with("restore failed: ") && text.contains(why), "{what}: {text}");
        let gone = stream.api("STREAM.INFO", &json!({})).await?;
        assert_eq!(gone["error"]["err_code"], 10059, "{what}: {gone}");
    }
    let mut other = request.clone();
    other["config"]["name"] = json!("ANOTHER");
    let call = format!("STREAM.RESTORE.{}", stream.name);
    assert_eq!(api(&stream.client, &call, &other).await?["error"]["err_code"], 10056);
    assert_eq!(api(&stream.client, &call, &json!({})).await?["error"]["err_code"], 10003);

    let answer = restore(&stream.client, &request, good, 1000).await?;
    assert_eq!(answer["state"]["messages"], 35, "{answer}");
    Ok(())
}

pub(crate) async fn nobody_sees_a_stream_before_it_is_restored(ground: &Ground) -> Result<()> {
    let stream = filled(ground, "HIDDEN", json!({})).await?;
    let saved = backup(&stream.client, &stream.name, &json!({})).await?;
    delete(&stream).await?;
    let request = json!({"config": saved.config, "state": saved.state});
    let begun = stream.api("STREAM.RESTORE", &request).await?;
    let subject = begun["deliver_subject"].as_str().context("where to send it")?.to_owned();
    let half = saved.archive[..saved.archive.len() / 2].to_vec();
    stream.client.request(subject.clone(), half.into()).await?;

    assert_eq!(stream.api("STREAM.INFO", &json!({})).await?["error"]["err_code"], 10059);
    let names = api(&stream.client, "STREAM.NAMES", &json!({})).await?;
    let names = names["streams"].as_array().cloned().unwrap_or_default();
    assert!(!names.contains(&json!(stream.name)), "{names:?}");
    assert!(stream.client.request(format!("{}.k1", stream.name), "".into()).await.is_err());
    let again = stream.api("STREAM.CREATE", &saved.config).await?;
    assert_eq!(again["error"]["err_code"], 10058, "{again}");

    // The client goes away: after a while nothing of it is left.
    wait_until("the restore that nobody goes on with is given up", Duration::from_secs(20), async || {
        let created = stream.api("STREAM.CREATE", &saved.config).await?;
        Ok((created.get("error").is_none()).then_some(()))
    })
    .await?;
    assert_eq!(stream.state().await?["messages"], 0);
    assert!(stream.client.request(subject, "x".into()).await.is_err(), "nobody listens any more");
    Ok(())
}

pub(crate) async fn a_snapshot_keeps_to_its_window_and_says_why_it_ends(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "WINDOW", json!({})).await?;
    for number in 0..30_u32 {
        let noise: String = (0..1000_u32)
            .map(|at| char::from(b'a' + (number * 7919 + at * at).to_le_bytes()[1] % 26))
            .collect();
        stream.publish("x", &noise, &[]).await?;
    }
    let inbox = stream.client.new_inbox();
    let mut chunks = stream.client.subscribe(inbox.clone()).await?;
    let request = json!({"deliver_subject": inbox, "chunk_size": 1024, "window_size": 4096});
    let begun = stream.api("STREAM.SNAPSHOT", &request).await?;
    ensure!(begun.get("error").is_none(), "{begun}");

    let mut sizes = Vec::new();
    let end = loop {
        let chunk = timeout(PATIENCE, chunks.next()).await?.context("a chunk")?;
        if chunk.payload.is_empty() {
            break chunk;
        }
        let reply = chunk.reply.context("where acks go")?.to_string();
        assert!(reply.starts_with(&format!("$JS.SNAPSHOT.ACK.{}.", stream.name)), "{reply}");
        assert!(reply.ends_with(&format!(".1024.{}", sizes.len() + 1)), "{reply}");
        sizes.push(chunk.payload.len());
    };
    assert_eq!(sizes, [1024; 4], "without acks a window and no more");
    assert_eq!(end.status.map(|status| status.as_u16()), Some(408));
    assert_eq!(end.description.as_deref(), Some("No Flow Response"));
    for (body, code) in
        [(json!({}), 10003), (json!({"deliver_subject": "a.*"}), 10015), (json!({"chunk_size": 1}), 10015)]
    {
        assert_eq!(stream.api("STREAM.SNAPSHOT", &body).await?["error"]["err_code"], code, "{body}");
    }
    Ok(())
}
