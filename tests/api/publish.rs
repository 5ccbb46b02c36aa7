//! Publishes and their acknowledgements.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::Config;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};

use crate::ground::{Ground, Home, take, text};

async fn send(home: &Home, last: &str, message: PublishMessage) -> Result<PublishAck> {
    Ok(home.js.send_publish(home.subject(last), message).await?.await?)
}

/// Sends, and gives why it was refused.
async fn refused(home: &Home, last: &str, message: PublishMessage) -> Result<String> {
    match send(home, last, message).await {
        Ok(ack) => anyhow::bail!("acked: {ack:?}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn message(body: &'static str) -> PublishMessage {
    PublishMessage::build().payload(body.into())
}

pub(crate) async fn acks_count_up_and_tell_the_stream(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "ACKS".into(), ..Default::default() }).await?;

    for expected in 1..=5 {
        let ack = send(&home, "a", message("x")).await?;

        assert_eq!((ack.sequence, ack.stream.as_str(), ack.duplicate), (expected, home.name.as_str(), false));
    }
    Ok(())
}

pub(crate) async fn a_repeated_msg_id_is_acked_with_the_first_sequence_and_stored_once(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "DEDUP".into(), ..Default::default() }).await?;
    send(&home, "a", message("before")).await?;

    let first = send(&home, "a", message("pay").message_id("order-7")).await?;
    let again = send(&home, "b", message("pay again").message_id("order-7")).await?;

    assert_eq!((first.sequence, first.duplicate), (2, false));
    assert_eq!((again.sequence, again.duplicate), (2, true));
    assert_eq!(home.messages().await?, 2);
    assert_eq!(text(&home.stream.get_raw_message(2).await?.payload), "pay");
    Ok(())
}

pub(crate) async fn a_msg_id_may_come_back_after_the_duplicate_window(ground: &Ground) -> Result<()> {
    let config =
        Config { name: "WINDOW".into(), duplicate_window: Duration::from_millis(200), ..Default::default() };
    let home = ground.stream(config).await?;
    send(&home, "a", message("one").message_id("id")).await?;

    let stored = wait_until("the window passes", PATIENCE, async || {
        let ack = send(&home, "a", message("two").message_id("id")).await?;
        Ok((!ack.duplicate).then_some(ack.sequence))
    })
    .await?;

    assert_eq!(stored, 2);
    Ok(())
}

pub(crate) async fn a_wrong_expected_sequence_is_refused_and_stores_nothing(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "EXPECT".into(), ..Default::default() }).await?;
    send(&home, "a", message("1").expected_last_sequence(0)).await?;

    let why = refused(&home, "a", message("2").expected_last_sequence(0)).await?;
    assert!(why.contains("wrong last sequence: 1"), "{why}");
    let ack = send(&home, "a", message("2").expected_last_sequence(1)).await?;

    assert_eq!(ack.sequence, 2);
    assert_eq!(home.messages().await?, 2);
    Ok(())
}

pub(crate) async fn a_wrong_expected_subject_sequence_is_refused(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "SUBJECT".into(), ..Default::default() }).await?;
    send(&home, "a", message("1").expected_last_subject_sequence(0)).await?;
    send(&home, "b", message("1").expected_last_subject_sequence(0)).await?;

    let why = refused(&home, "a", message("2").expected_last_subject_sequence(2)).await?;
    assert!(why.contains("wrong last sequence: 1"), "{why}");

    assert_eq!(send(&home, "a", message("2").expected_last_subject_sequence(1)).await?.sequence, 3);
    Ok(())
}

pub(crate) async fn a_wrong_expected_msg_id_or_stream_is_refused(ground: &Ground) -> Result<()> {
    if ground.replicas > 1 && !ground.cluster.program().is_levee() {
        let reason =
            "nats-server 2.15.1 answers nothing more on a replicated stream after a wrong last message id";
        skip::not_claimed("a_wrong_expected_msg_id_or_stream_is_refused", reason);
        return Ok(());
    }
    let home = ground.stream(Config { name: "LASTID".into(), ..Default::default() }).await?;
    send(&home, "a", message("1").message_id("one")).await?;

    let why = refused(&home, "a", message("2").expected_last_message_id("zero")).await?;
    assert!(why.contains("wrong last msg ID: one"), "{why}");
    let why = refused(&home, "a", message("2").expected_stream("OTHER")).await?;
    assert!(why.contains("expected stream does not match"), "{why}");

    let fine = message("2").expected_last_message_id("one").expected_stream(&home.name);
    assert_eq!(send(&home, "a", fine).await?.sequence, 2);
    Ok(())
}

pub(crate) async fn many_publishes_in_flight_are_acked_in_order(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "FLIGHT".into(), ..Default::default() }).await?;

    let mut waiting = Vec::new();
    for number in 1..=1000_u64 {
        let message = PublishMessage::build().payload(number.to_string().into());
        waiting.push(home.js.send_publish(home.subject("a"), message).await?);
    }

    for (ack, expected) in waiting.into_iter().zip(1..) {
        assert_eq!(ack.await?.sequence, expected);
    }
    assert_eq!(text(&home.stream.get_raw_message(500).await?.payload), "500");
    Ok(())
}

pub(crate) async fn a_message_above_the_size_limit_of_its_stream_is_refused(ground: &Ground) -> Result<()> {
    let config = Config { name: "SIZE".into(), max_message_size: 100, ..Default::default() };
    let home = ground.stream(config).await?;

    let large = PublishMessage::build().payload("x".repeat(101).into());
    let why = refused(&home, "a", large).await?;

    assert!(why.contains("message size exceeds maximum allowed"), "{why}");
    assert_eq!(home.publish("a", &"x".repeat(100)).await?, 1);
    Ok(())
}

pub(crate) async fn headers_and_empty_payloads_are_kept(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "HEAD".into(), ..Default::default() }).await?;
    let mut headers = HeaderMap::new();
    headers.append("Color", "red");
    headers.append("Color", "blue");
    headers.insert("Empty", "");

    home.js.publish_with_headers(home.subject("a"), headers, "".into()).await?.await?;

    // Through a consumer: the client's read by sequence keeps one value of each header.
    let consumer = home.pull(pull::Config::default()).await?;
    let taken = take(&consumer, 1).await?;
    let stored = taken.first().context("no message")?;
    assert!(stored.payload.is_empty());
    let headers = stored.headers.as_ref().context("no headers")?;
    let colors: Vec<&str> = headers.get_all("Color").map(|value| value.as_str()).collect();
    assert_eq!(colors, ["red", "blue"]);
    assert_eq!(headers.get("Empty").map(|value| value.as_str()), Some(""));
    Ok(())
}
