//! What acknowledgements do, and what happens without them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::Config;
use futures::StreamExt as _;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::Value;

use crate::ground::{Ground, Home, attempt, bodies, sequence, settle, settle_confirmed, take, take_within};

/// A stream with `count` messages on one subject.
pub(crate) async fn with_messages(ground: &Ground, name: &str, count: u64) -> Result<Home> {
    let home = ground.stream(Config { name: name.into(), ..Default::default() }).await?;
    home.publish_many("a", count).await?;
    Ok(home)
}

/// A durable consumer with defaults.
pub(crate) fn worker() -> pull::Config {
    pull::Config { durable_name: Some("worker".into()), ..Default::default() }
}

/// Waits until the consumer counts this many unsettled messages, and has its ack floor there.
async fn settled(home: &Home, unsettled: usize, floor: u64) -> Result<()> {
    wait_until("acks are counted", PATIENCE, async || {
        let info = home.stream.consumer_info("worker").await?;
        ensure!((info.num_ack_pending, info.ack_floor.stream_sequence) == (unsettled, floor), "{info:?}");
        Ok(Some(()))
    })
    .await
}

pub(crate) async fn explicit_acks_settle_one_message_each(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "EXPLICIT", 4).await?;
    let consumer = home.pull(worker()).await?;
    let messages = take(&consumer, 4).await?;

    settle(&messages[0], AckKind::Ack).await?;
    settle(&messages[2], AckKind::Ack).await?;

    settled(&home, 2, 1).await?;
    settle(&messages[1], AckKind::Ack).await?;
    settled(&home, 1, 3).await
}

pub(crate) async fn ack_all_settles_everything_before(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "ALL", 5).await?;
    let consumer = home.pull(pull::Config { ack_policy: AckPolicy::All, ..worker() }).await?;
    let messages = take(&consumer, 5).await?;

    settle(&messages[2], AckKind::Ack).await?;

    settled(&home, 2, 3).await
}

pub(crate) async fn ack_none_needs_no_ack(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "NONE", 3).await?;
    let config = pull::Config { ack_policy: AckPolicy::None, ..worker() };
    let consumer = home.pull(config).await?;

    assert_eq!(bodies(&take(&consumer, 3).await?), ["1", "2", "3"]);

    assert_eq!(home.stream.consumer_info("worker").await?.num_ack_pending, 0);
    assert!(take_within(&consumer, 1, Duration::from_millis(300)).await?.is_empty());
    Ok(())
}

pub(crate) async fn an_unacked_message_is_delivered_again_with_its_attempt(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "AGAIN", 2).await?;
    let wait = Duration::from_millis(400);
    let consumer = home.pull(pull::Config { ack_wait: wait, ..worker() }).await?;
    let begin = Instant::now();
    let first = take(&consumer, 2).await?;
    settle(&first[1], AckKind::Ack).await?;

    let again = take(&consumer, 1).await?;

    assert_eq!(bodies(&again), ["1"]);
    assert_eq!((attempt(&first[0])?, attempt(&again[0])?), (1, 2));
    assert!(begin.elapsed() >= wait, "delivered again after {:?}", begin.elapsed());
    assert_eq!(home.stream.consumer_info("worker").await?.num_redelivered, 1);
    Ok(())
}

pub(crate) async fn a_nak_delivers_again_and_its_delay_is_kept(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "NAK", 1).await?;
    let consumer = home.pull(worker()).await?;
    let first = take(&consumer, 1).await?;

    settle(&first[0], AckKind::Nak(None)).await?;
    let second = take(&consumer, 1).await?;
    assert_eq!(attempt(&second[0])?, 2);

    let begin = Instant::now();
    let delay = Duration::from_millis(500);
    settle(&second[0], AckKind::Nak(Some(delay))).await?;
    let third = take(&consumer, 1).await?;
    assert_eq!(attempt(&third[0])?, 3);
    assert!(begin.elapsed() >= delay, "delivered again after {:?}", begin.elapsed());
    Ok(())
}

pub(crate) async fn in_progress_keeps_a_message_from_being_delivered_again(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "PROGRESS", 1).await?;
    let wait = Duration::from_millis(1000);
    let consumer = home.pull(pull::Config { ack_wait: wait, ..worker() }).await?;
    let first = take(&consumer, 1).await?;
    let delivered = Instant::now();

    // Says so before each ack wait is over, until well after the first would have been.
    while delivered.elapsed() < wait * 2 {
        settle(&first[0], AckKind::Progress).await?;
        let early = take_within(&consumer, 1, wait / 5).await?;
        assert!(early.is_empty(), "delivered again after {:?}", delivered.elapsed());
    }

    let again = take(&consumer, 1).await?;
    assert_eq!(attempt(&again[0])?, 2);
    Ok(())
}

pub(crate) async fn a_terminated_message_is_never_delivered_again(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "TERM", 1).await?;
    let config = pull::Config { ack_wait: Duration::from_millis(300), ..worker() };
    let consumer = home.pull(config).await?;
    let mut advisories = home
        .client
        .subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{}.worker", home.name))
        .await?;
    home.client.flush().await?;
    let first = take(&consumer, 1).await?;

    settle_confirmed(&first[0], AckKind::Term).await?;

    assert!(take_within(&consumer, 1, Duration::from_millis(900)).await?.is_empty());
    settled(&home, 0, 1).await?;
    let advisory = tokio::time::timeout(PATIENCE, advisories.next()).await?.context("no advisory")?;
    let advisory: Value = serde_json::from_slice(&advisory.payload)?;
    assert_eq!(advisory["type"], "io.nats.jetstream.advisory.v1.terminated");
    assert_eq!((&advisory["stream_seq"], &advisory["deliveries"]), (&1.into(), &1.into()));
    Ok(())
}

pub(crate) async fn max_deliver_ends_the_attempts_and_says_so(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "ATTEMPTS", 1).await?;
    let config = pull::Config { ack_wait: Duration::from_millis(200), max_deliver: 2, ..worker() };
    let consumer = home.pull(config).await?;
    let mut advisories = home
        .client
        .subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.worker", home.name))
        .await?;
    home.client.flush().await?;

    assert_eq!(attempt(&take(&consumer, 1).await?[0])?, 1);
    assert_eq!(attempt(&take(&consumer, 1).await?[0])?, 2);
    assert!(take_within(&consumer, 1, Duration::from_millis(800)).await?.is_empty());

    let advisory = tokio::time::timeout(PATIENCE, advisories.next()).await?.context("no advisory")?;
    let advisory: Value = serde_json::from_slice(&advisory.payload)?;
    assert_eq!(advisory["type"], "io.nats.jetstream.advisory.v1.max_deliver");
    assert_eq!((&advisory["stream_seq"], &advisory["deliveries"]), (&1.into(), &2.into()));
    Ok(())
}

pub(crate) async fn max_ack_pending_holds_deliveries_back(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "HELD", 5).await?;
    let consumer = home.pull(pull::Config { max_ack_pending: 2, ..worker() }).await?;

    let first = take_within(&consumer, 5, Duration::from_millis(600)).await?;
    assert_eq!(bodies(&first), ["1", "2"]);
    settle_confirmed(&first[1], AckKind::Ack).await?;

    let next = take(&consumer, 1).await?;
    assert_eq!(bodies(&next), ["3"]);
    Ok(())
}

pub(crate) async fn a_confirmed_ack_is_seen_in_the_next_info(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "CONFIRM", 3).await?;
    let consumer = home.pull(worker()).await?;

    for message in take(&consumer, 3).await? {
        settle_confirmed(&message, AckKind::Ack).await?;

        let info = home.stream.consumer_info("worker").await?;
        assert_eq!(info.ack_floor.stream_sequence, sequence(&message)?);
    }
    Ok(())
}
