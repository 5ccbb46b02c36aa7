//! What clients do to consumers that no client should: too many requests, senseless ones, acks of what they never got, and
//! connections that break while a request waits. Others are served as if nothing had happened, and no message is lost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::Config;
use levee_tests::raw::{Frame, Raw};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

use crate::ground::{Ground, Home, bodies, settle_confirmed, take, take_within};
use crate::pull::{by_hand, inbox};

/// Until nodes have heard that a client is gone.
const HEARSAY: Duration = Duration::from_millis(500);
/// What a message takes at most that nobody holds up: much less than an ack wait.
const SOON: Duration = Duration::from_secs(3);

fn worker() -> pull::Config {
    pull::Config { durable_name: Some("worker".into()), ..Default::default() }
}

fn next(home: &Home) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", home.name)
}

/// The statuses of messages, and the payloads of those that have none.
fn heard(frames: &[Frame]) -> Vec<String> {
    let messages = frames.iter().filter_map(|frame| match frame {
        Frame::Message(message) if message.header.is_empty() => Some(message.payload.clone()),
        Frame::Message(message) => Some(message.status().to_owned()),
        _ => None,
    });
    messages.collect()
}

pub(crate) async fn requests_beyond_those_that_may_wait_are_refused(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "BEYOND".into(), ..Default::default() }).await?;
    home.pull(pull::Config { max_waiting: 5, ..worker() }).await?;
    let mut raw = by_hand(ground, &home).await?;

    for _ in 0..100 {
        raw.publish(&next(&home), &inbox(&home), "", r#"{"batch":1,"expires":60000000000}"#).await?;
    }
    let refused = heard(&raw.until_quiet(HEARSAY).await?);
    assert_eq!(refused, vec!["409 Exceeded MaxWaiting"; 95]);

    home.publish_many("a", 6).await?;
    assert_eq!(heard(&raw.until_quiet(HEARSAY).await?), ["1", "2", "3", "4", "5"]);
    Ok(())
}

pub(crate) async fn senseless_requests_are_answered_and_hold_nobody_up(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "SENSE".into(), ..Default::default() }).await?;
    let consumer = home.pull(worker()).await?;
    let mut raw = by_hand(ground, &home).await?;
    let malformed = [
        "{",
        "{\"batch\":\"x\"}",
        "{\"batch\":1e30,\"no_wait\":true}",
        "{\"batch\":99999999999999999999}",
        "{\"expires\":1.5}",
        "{\"expires\":true}",
    ];
    for body in malformed {
        raw.publish(&next(&home), &inbox(&home), "", body).await?;
        let answer = raw.next_message(PATIENCE).await.context(body)?;
        ensure!(answer.status().starts_with("400 Bad Request"), "{body:?}: {:?}", answer.header);
    }

    // Taken for what can be meant by them: they end at once, or wait.
    let ends = [
        ("{\"batch\":-1,\"no_wait\":true}", "404 No Messages"),
        ("{\"batch\":9223372036854775807,\"no_wait\":true}", "404 No Messages"),
        ("{\"batch\":-9223372036854775808,\"no_wait\":true,\"max_bytes\":-5}", "404 No Messages"),
        ("{\"batch\":1,\"expires\":-1}", "408 Request Timeout"),
        ("{\"batch\":1,\"expires\":-9223372036854775808}", "408 Request Timeout"),
        ("{\"batch\":1,\"expires\":1}", "408 Request Timeout"),
    ];
    for (body, status) in ends {
        raw.publish(&next(&home), &inbox(&home), "", body).await?;
        let answer = raw.next_message(PATIENCE).await.context(body)?;
        ensure!(answer.status().starts_with(status), "{body:?}: {:?}", answer.header);
    }
    for body in [
        "nonsense",
        "[1",
        "\u{0}\u{1}",
        "99999999999999999999",
        "-5",
        "{\"batch\":9223372036854775807,\"expires\":9223372036854775807,\"max_bytes\":9223372036854775807}",
        "{\"batch\":9223372036854775807,\"max_bytes\":9223372036854775807,\"min_pending\":0}",
    ] {
        raw.publish(&next(&home), &inbox(&home), "", body).await?;
    }
    assert_eq!(heard(&raw.until_quiet(HEARSAY).await?), [""; 0]);

    home.publish_many("a", 4).await?;
    assert_eq!(heard(&raw.until_quiet(HEARSAY).await?), ["1", "2", "3", "4"]);
    // They are gone with their client, and take nothing any more.
    drop(raw);
    tokio::time::sleep(HEARSAY).await;
    home.publish("a", "5").await?;
    assert_eq!(bodies(&take_within(&consumer, 1, SOON).await?), ["5"]);
    Ok(())
}

pub(crate) async fn acks_of_what_nobody_got_change_nothing(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "STRAY".into(), ..Default::default() }).await?;
    home.publish_many("a", 5).await?;
    let consumer = home.pull(worker()).await?;
    let other = home.pull(pull::Config { durable_name: Some("other".into()), ..Default::default() }).await?;
    let all = pull::Config { durable_name: Some("all".into()), ack_policy: AckPolicy::All, ..worker() };
    let all = home.pull(all).await?;
    let taken = take(&consumer, 2).await?;
    take(&all, 2).await?;
    settle_confirmed(&taken[0], async_nats::jetstream::AckKind::Ack).await?;
    let stream = &home.name;

    let mut strays = vec![
        // Of messages that were not delivered, that are not there, that never can be.
        format!("$JS.ACK.{stream}.worker.1.4.3.1700000000000000000.0"),
        format!("$JS.ACK.{stream}.worker.1.999.999.1700000000000000000.0"),
        format!("$JS.ACK.{stream}.worker.1.18446744073709551615.18446744073709551615.0.0"),
        format!("$JS.ACK.{stream}.all.1.999.999.1700000000000000000.0"),
        format!("$JS.ACK.{stream}.all.1.18446744073709551615.3.1700000000000000000.0"),
        format!("$JS.ACK.{stream}.worker.1.0.0.0.0"),
        // Of a message that is acked already.
        taken[0].reply.as_ref().context("a reply")?.to_string(),
        // Of what another consumer delivered, and of a consumer and a stream that are not there.
        format!("$JS.ACK.{stream}.other.1.1.1.1700000000000000000.4"),
        format!("$JS.ACK.{stream}.nobody.1.2.2.1700000000000000000.3"),
        format!("$JS.ACK.{stream}-not.worker.1.2.2.1700000000000000000.3"),
        // What is no subject of an ack.
        format!("$JS.ACK.{stream}.worker"),
        format!("$JS.ACK.{stream}.worker.1.2"),
        format!("$JS.ACK.{stream}.worker.x.y.z.1.1"),
        format!("$JS.ACK.{stream}.worker.1.-2.2.1700000000000000000.3"),
        format!("$JS.ACK.{stream}.worker.1.99999999999999999999.2.1700000000000000000.3"),
        "$JS.ACK".into(),
        "$JS.ACK.x".into(),
    ];
    strays.push(format!("$JS.ACK.{stream}.worker.{}", "1.".repeat(200) + "1"));
    for subject in &strays {
        for kind in ["+ACK", "-NAK", "+TERM", "+WPI", "-NAK {\"delay\":", "+NXT", "+NXT {", "what", ""] {
            // A nak or a request for more of what is acked already is fine; only acks say that something is done.
            home.client.publish(subject.clone(), kind.into()).await?;
        }
    }
    home.client.flush().await?;
    tokio::time::sleep(HEARSAY).await;

    let info = home.stream.consumer_info("worker").await?;
    assert_eq!(
        (info.num_ack_pending, info.num_pending, info.ack_floor.stream_sequence),
        (1, 3, 1),
        "{info:?}"
    );
    let info = home.stream.consumer_info("all").await?;
    assert_eq!(
        (info.num_ack_pending, info.num_pending, info.ack_floor.stream_sequence),
        (2, 3, 0),
        "{info:?}"
    );
    assert_eq!(bodies(&take(&consumer, 3).await?), ["3", "4", "5"]);
    assert_eq!(bodies(&take(&other, 5).await?), ["1", "2", "3", "4", "5"]);
    settle_confirmed(&taken[1], async_nats::jetstream::AckKind::Ack).await?;
    assert_eq!(home.stream.consumer_info("worker").await?.ack_floor.stream_sequence, 2);
    Ok(())
}

pub(crate) async fn a_client_that_breaks_off_while_its_request_waits_takes_no_message_along(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "BREAKS".into(), ..Default::default() }).await?;
    let consumer = home.pull(worker()).await?;
    for number in 1..=3 {
        let mut raw = by_hand(ground, &home).await?;
        raw.publish(&next(&home), &inbox(&home), "", r#"{"batch":10,"expires":60000000000}"#).await?;
        raw.until_pong().await?;
        wait_until("the request waits", PATIENCE, async || {
            Ok((home.stream.consumer_info("worker").await?.num_waiting >= 1).then_some(()))
        })
        .await?;
        drop(raw);
        tokio::time::sleep(HEARSAY).await;

        home.publish("a", &number.to_string()).await?;

        let begin = Instant::now();
        let message = take_within(&consumer, 1, SOON).await?;
        assert_eq!(bodies(&message), [number.to_string()], "after {:?}", begin.elapsed());
        settle_confirmed(&message[0], async_nats::jetstream::AckKind::Ack).await?;
    }
    Ok(())
}

pub(crate) async fn a_thousand_requests_of_clients_that_are_gone_hold_nobody_up(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "CROWD".into(), ..Default::default() }).await?;
    let consumer = home.pull(worker()).await?;
    let mut crowd = Vec::new();
    for number in 0..50 {
        let mut raw = Raw::connect(ground.cluster.node(number % ground.replicas).address()).await?;
        raw.hello(&json!({})).await?;
        for request in 0..20 {
            let inbox = format!("{}-crowd.{number}.{request}", home.name);
            raw.send(format!("SUB {inbox} {request}\r\n").as_bytes()).await?;
            raw.publish(&next(&home), &inbox, "", r#"{"batch":5,"expires":60000000000}"#).await?;
        }
        raw.until_pong().await?;
        crowd.push(raw);
    }

    drop(crowd);
    tokio::time::sleep(HEARSAY).await;

    home.publish_many("a", 20).await?;
    let taken = take_within(&consumer, 20, SOON).await?;
    let expected: Vec<String> = (1..=20).map(|number: u32| number.to_string()).collect();
    assert_eq!(bodies(&taken), expected);
    Ok(())
}
