//! Consumers that are left alone for a while and then have to be there in time: for messages whose acks do not come, for
//! requests that wait, for subscribers that come.
//!
//! A consumer of Levee keeps no task after two seconds without work, so each claim waits longer than that first.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{pull, push};
use async_nats::jetstream::stream::Config;
use futures::StreamExt as _;
use levee_tests::client::api;
use levee_tests::wait::PATIENCE;
use serde_json::json;

use crate::acks::{with_messages, worker};
use crate::ground::{Ground, attempt, bodies, settle, settle_confirmed, take, take_within, text};

/// Longer than a consumer keeps its task.
const REST: Duration = Duration::from_millis(2600);
/// Later than this nobody is in time.
const LATE: Duration = Duration::from_millis(1500);

/// Something came between `after` and a moment later, since `begin`.
fn in_time(begin: Instant, after: Duration) -> Result<()> {
    let took = begin.elapsed();
    ensure!((after..after + LATE).contains(&took), "it came after {took:?} instead of {after:?}");
    Ok(())
}

pub(crate) async fn messages_whose_acks_do_not_come_are_delivered_again_to_who_waits(
    ground: &Ground,
) -> Result<()> {
    let home = with_messages(ground, "OVERDUE", 3).await?;
    let wait = Duration::from_secs(6);
    let consumer = home.pull(pull::Config { ack_wait: wait, ..worker() }).await?;
    let begin = Instant::now();
    let first = take(&consumer, 3).await?;
    // One is worked on, and one is to come sooner than its ack would be overdue.
    tokio::time::sleep(REST).await;
    let worked = Instant::now();
    settle_confirmed(&first[0], AckKind::Progress).await?;
    let delay = Duration::from_secs(3);
    let naked = Instant::now();
    settle(&first[1], AckKind::Nak(Some(delay))).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;

    let second = take_within(&consumer, 1, PATIENCE).await?;
    in_time(naked, delay)?;
    let third = take_within(&consumer, 1, PATIENCE).await?;
    in_time(begin, wait)?;
    let fourth = take_within(&consumer, 1, PATIENCE).await?;
    in_time(worked, wait)?;

    assert_eq!([bodies(&second), bodies(&third), bodies(&fourth)].concat(), ["2", "3", "1"]);
    assert_eq!(attempt(&fourth[0])?, 2);
    Ok(())
}

pub(crate) async fn the_end_of_the_last_attempt_is_told_in_time(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "GIVEN", 1).await?;
    let wait = Duration::from_secs(5);
    let consumer = home.pull(pull::Config { ack_wait: wait, max_deliver: 1, ..worker() }).await?;
    let told = format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.worker", home.name);
    let mut told = home.client.subscribe(told).await?;
    home.client.flush().await?;

    let begin = Instant::now();
    take(&consumer, 1).await?;

    tokio::time::timeout(PATIENCE, told.next()).await?.context("no advisory")?;
    in_time(begin, wait)
}

pub(crate) async fn a_request_that_waits_gets_what_matches_and_ends_in_time(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "WAITS".into(), ..Default::default() }).await?;
    let filtered = pull::Config { filter_subject: home.subject("b.*"), ..worker() };
    let filtered = home.pull(filtered).await?;
    let everything =
        home.pull(pull::Config { durable_name: Some("all".into()), ..Default::default() }).await?;
    let wanted = Duration::from_secs(8);

    let begin = Instant::now();
    let publish = async {
        tokio::time::sleep(REST).await;
        home.publish("a", "1").await?;
        home.publish("b.x", "2").await?;
        tokio::time::sleep(REST).await;
        home.publish("c", "3").await?;
        home.publish("b.y", "4").await
    };
    let (two, all, published) = tokio::join!(
        take_within(&filtered, 3, wanted),
        async {
            let all = take_within(&everything, 4, wanted).await;
            anyhow::Ok((all?, begin.elapsed()))
        },
        publish
    );

    published?;
    assert_eq!(bodies(&two?), ["2", "4"]);
    in_time(begin, wanted)?;
    let (all, took) = all?;
    assert_eq!(bodies(&all), ["1", "2", "3", "4"]);
    ensure!(took < REST * 2 + LATE, "the last of four came after {took:?}");
    Ok(())
}

pub(crate) async fn a_removed_message_gives_its_place_to_the_next(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "PLACE", 2).await?;
    let consumer = home.pull(pull::Config { max_ack_pending: 1, ..worker() }).await?;
    assert_eq!(bodies(&take(&consumer, 1).await?), ["1"]);

    let begin = Instant::now();
    let (next, removed) = tokio::join!(take_within(&consumer, 1, PATIENCE), async {
        tokio::time::sleep(REST).await;
        home.stream.delete_message(1).await
    });

    removed?;
    assert_eq!(bodies(&next?), ["2"]);
    in_time(begin, REST)
}

pub(crate) async fn a_pause_ends_for_who_waits(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "PAUSE", 1).await?;
    let consumer = home.pull(worker()).await?;
    let pause = Duration::from_secs(5);
    let begin = Instant::now();
    let until = (std::time::SystemTime::now() + pause).duration_since(std::time::UNIX_EPOCH)?;
    let until = time::OffsetDateTime::from_unix_timestamp_nanos(until.as_nanos().cast_signed())?;
    let until = until.format(&time::format_description::well_known::Rfc3339)?;
    let paused =
        api(&home.client, &format!("CONSUMER.PAUSE.{}.worker", home.name), &json!({ "pause_until": until }))
            .await?;
    assert_eq!(paused["paused"], true, "{paused}");

    let batch = take_within(&consumer, 1, PATIENCE).await?;

    assert_eq!(bodies(&batch), ["1"]);
    in_time(begin, pause)
}

pub(crate) async fn a_push_consumer_hears_of_subscribers_and_messages(ground: &Ground) -> Result<()> {
    let home = with_messages(ground, "PUSHED", 1).await?;
    let deliver = format!("{}-deliver.one", home.name);
    let config = push::Config {
        durable_name: Some("pushed".into()),
        deliver_subject: deliver.clone(),
        ..Default::default()
    };
    home.stream.create_consumer(config).await?;
    let is_bound = async || {
        let info = api(&home.client, &format!("CONSUMER.INFO.{}.pushed", home.name), &json!({})).await?;
        anyhow::Ok(info["push_bound"] == true)
    };
    tokio::time::sleep(REST).await;
    assert!(!is_bound().await?);

    let mut subscriber = ground.client.subscribe(deliver.clone()).await?;
    let next = async |subscriber: &mut async_nats::Subscriber| {
        let message = tokio::time::timeout(PATIENCE, subscriber.next()).await?.context("closed")?;
        ground.client.publish(message.reply.context("no reply")?, "+ACK".into()).await?;
        anyhow::Ok(text(&message.payload))
    };
    assert_eq!(next(&mut subscriber).await?, "1");
    tokio::time::sleep(REST).await;
    home.publish("a", "2").await?;
    assert_eq!(next(&mut subscriber).await?, "2");

    tokio::time::sleep(REST).await;
    assert!(is_bound().await?);
    drop(subscriber);
    levee_tests::wait::wait_until(
        "nobody listens",
        PATIENCE,
        async || Ok((!is_bound().await?).then_some(())),
    )
    .await?;
    home.publish("a", "3").await?;
    tokio::time::sleep(REST).await;
    // By a wildcard this time.
    let mut subscriber = ground.client.subscribe(format!("{}-deliver.*", home.name)).await?;
    assert_eq!(next(&mut subscriber).await?, "3");
    Ok(())
}

pub(crate) async fn heartbeats_go_on(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "BEATS".into(), ..Default::default() }).await?;
    let deliver = format!("{}-deliver", home.name);
    let beat = Duration::from_millis(700);
    let mut subscriber = home.client.subscribe(deliver.clone()).await?;
    home.client.flush().await?;
    let config = push::Config {
        durable_name: Some("beats".into()),
        deliver_subject: deliver,
        idle_heartbeat: beat,
        ..Default::default()
    };
    home.stream.create_consumer(config).await?;

    let begin = Instant::now();
    for _ in 0..6 {
        let message = tokio::time::timeout(PATIENCE, subscriber.next()).await?.context("closed")?;
        ensure!(message.status == Some(async_nats::StatusCode::IDLE_HEARTBEAT), "{message:?}");
    }
    let took = begin.elapsed();
    ensure!((beat * 5..beat * 7 + LATE).contains(&took), "six heartbeats took {took:?}");
    Ok(())
}
