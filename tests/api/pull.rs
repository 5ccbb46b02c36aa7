//! Pull consumers: requests and how they end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use levee_tests::raw::{Frame, Raw};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

use crate::ground::{Ground, Home, bodies, settle, settle_confirmed, take, take_within};

fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.into()), ..Default::default() }
}

/// A connection by hand to the node that is not the leader's, with an inbox of its own.
pub(crate) async fn by_hand(ground: &Ground, home: &Home) -> Result<Raw> {
    let info = home.client.server_info();
    let mut raw =
        Raw::connect(ground.cluster.node(ground.cluster.index_of(&info.server_name)?).address()).await?;
    raw.hello(&json!({})).await?;
    raw.send(format!("SUB {} 1\r\n", inbox(home)).as_bytes()).await?;
    if !home.prompt {
        // Requests and interest go different ways between nodes of nats-server, and a request may be first.
        for node in 0..ground.replicas {
            let client = ground.cluster.client(node).await?;
            wait_until("the inbox is known", PATIENCE, async || {
                client.publish(inbox(home), "probe".into()).await?;
                client.flush().await?;
                Ok(raw.next_message(Duration::from_millis(200)).await.is_ok().then_some(()))
            })
            .await?;
        }
        raw.until_quiet(Duration::from_millis(200)).await?;
    }
    Ok(raw)
}

/// The inbox of [`by_hand`].
pub(crate) fn inbox(home: &Home) -> String {
    format!("{}-inbox", home.name)
}

pub(crate) async fn a_durable_consumer_goes_on_where_it_was(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "DURABLE".into(), ..Default::default() }).await?;
    home.publish_many("a", 6).await?;
    let consumer = home.pull(durable("worker")).await?;
    for message in take(&consumer, 3).await? {
        settle_confirmed(&message, AckKind::Ack).await?;
    }

    let elsewhere = async_nats::jetstream::new(ground.cluster.client(ground.replicas - 1).await?);
    let again = elsewhere.get_consumer_from_stream("worker", &home.name).await?;

    assert_eq!(bodies(&take(&again, 3).await?), ["4", "5", "6"]);
    Ok(())
}

pub(crate) async fn a_fetch_gives_what_is_there_and_waits_for_the_rest(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "FETCH".into(), ..Default::default() }).await?;
    home.publish_many("a", 2).await?;
    let consumer = home.pull(durable("worker")).await?;

    let (batch, published) = tokio::join!(take_within(&consumer, 3, Duration::from_secs(20)), async {
        // The request is there when the first two went out.
        wait_until("two are delivered", PATIENCE, async || {
            let info = home.stream.consumer_info("worker").await?;
            Ok((info.delivered.stream_sequence == 2).then_some(()))
        })
        .await?;
        home.publish("a", "3").await
    });

    published?;
    assert_eq!(bodies(&batch?), ["1", "2", "3"]);

    let begin = Instant::now();
    let none = take_within(&consumer, 1, Duration::from_millis(300)).await?;
    assert!(none.is_empty());
    assert!(begin.elapsed() >= Duration::from_millis(250), "expired after {:?}", begin.elapsed());
    Ok(())
}

pub(crate) async fn no_wait_on_an_empty_stream_ends_at_once(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "NOWAIT".into(), ..Default::default() }).await?;
    home.pull(durable("worker")).await?;
    let mut raw = by_hand(ground, &home).await?;

    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", home.name);
    raw.publish(&next, &inbox(&home), "", r#"{"batch":5,"no_wait":true}"#).await?;
    assert_eq!(raw.next_message(PATIENCE).await?.status(), "404 No Messages");

    raw.publish(&next, &inbox(&home), "", r#"{"batch":5,"expires":200000000}"#).await?;
    let answer = raw.next_message(PATIENCE).await?;
    assert_eq!(answer.status(), "408 Request Timeout");
    assert!(answer.header.contains("Nats-Pending-Messages: 5\r\n"), "{answer:?}");
    Ok(())
}

pub(crate) async fn max_bytes_bounds_a_batch(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "MAXBYTES".into(), ..Default::default() }).await?;
    for _ in 0..10 {
        home.publish("a", &"x".repeat(1000)).await?;
    }
    home.pull(durable("worker")).await?;
    let mut raw = by_hand(ground, &home).await?;

    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", home.name);
    raw.publish(&next, &inbox(&home), "", r#"{"batch":10,"max_bytes":3500,"expires":30000000000}"#).await?;

    // nats-server may send the end before the messages, which wait for a majority.
    let (mut got, mut end) = (0, None);
    while got == 0 || end.is_none() {
        let message = raw.next_message(PATIENCE).await?;
        if message.payload.is_empty() {
            end = Some(message);
        } else {
            got += 1;
        }
    }
    let late = raw.until_quiet(Duration::from_millis(200)).await?;
    got += late.iter().filter(|frame| matches!(frame, Frame::Message(_))).count();
    let end = end.context("no end")?;
    assert!((1..=3).contains(&got), "{got} messages of 1000 bytes within 3500, then {end:?}");
    assert_eq!(end.status(), "409 Message Size Exceeds MaxBytes");
    Ok(())
}

pub(crate) async fn heartbeats_come_while_there_is_nothing(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "HEART".into(), ..Default::default() }).await?;
    home.pull(durable("worker")).await?;
    let mut raw = by_hand(ground, &home).await?;

    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", home.name);
    raw.publish(&next, &inbox(&home), "", r#"{"batch":1,"expires":900000000,"idle_heartbeat":300000000}"#)
        .await?;

    let mut heard = Vec::new();
    loop {
        let said = raw.next_message(PATIENCE).await?.status().to_owned();
        let last = !said.starts_with("100");
        heard.push(said);
        if last {
            break;
        }
    }
    assert_eq!(heard.pop().as_deref(), Some("408 Request Timeout"));
    assert!(
        (1..=3).contains(&heard.len()) && heard.iter().all(|one| one == "100 Idle Heartbeat"),
        "{heard:?}"
    );
    Ok(())
}

pub(crate) async fn filters_give_only_what_they_match(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "FILTER".into(), ..Default::default() }).await?;
    for (last, body) in [("a", "1"), ("b", "2"), ("c.x", "3"), ("a", "4"), ("c.y", "5")] {
        home.publish(last, body).await?;
    }

    let one = pull::Config { filter_subject: home.subject("c.*"), ..durable("one") };
    let one = home.pull(one).await?;
    assert_eq!(bodies(&take(&one, 2).await?), ["3", "5"]);

    let two = pull::Config { filter_subjects: vec![home.subject("a"), home.subject("b")], ..durable("two") };
    let two = home.pull(two).await?;
    assert_eq!(bodies(&take(&two, 3).await?), ["1", "2", "4"]);
    Ok(())
}

/// Two subjects and a backlog: what is pending can not be told from the size of the stream, and must be right all the
/// same while messages come and go.
pub(crate) async fn a_filtered_work_queue_is_emptied_while_it_is_filled(ground: &Ground) -> Result<()> {
    const MESSAGES: usize = 5000;
    const LEFT_OUT: usize = 100;
    let retention = RetentionPolicy::WorkQueue;
    let home = ground.stream(Config { name: "FILLED".into(), retention, ..Default::default() }).await?;
    let filter_subject = home.subject("mine");
    let max_ack_pending = MESSAGES as i64;
    let consumer = home.pull(pull::Config { filter_subject, max_ack_pending, ..durable("worker") }).await?;
    let fill = async {
        let mut acks = Vec::new();
        for number in 0..MESSAGES {
            for subject in ["mine", "other"] {
                acks.push(home.js.publish(home.subject(subject), number.to_string().into()).await?);
            }
            if acks.len() >= 500 {
                for ack in acks.drain(..) {
                    ack.await?;
                }
            }
        }
        for ack in acks {
            ack.await?;
        }
        anyhow::Ok(())
    };
    let empty = async {
        let mut taken = 0;
        while taken < MESSAGES {
            for message in take_within(&consumer, 500, Duration::from_secs(1)).await? {
                taken += 1;
                if taken % LEFT_OUT != 0 {
                    settle(&message, AckKind::Ack).await?;
                }
            }
        }
        anyhow::Ok(taken)
    };

    let (filled, taken) = tokio::join!(fill, empty);

    filled?;
    assert_eq!(taken?, MESSAGES);
    let left = MESSAGES / LEFT_OUT;
    wait_until("acks have arrived", PATIENCE, async || {
        let info = consumer.get_info().await?;
        anyhow::ensure!(info.num_pending == 0, "{} pending", info.num_pending);
        Ok((info.num_ack_pending == left).then_some(()))
    })
    .await?;
    // The consumer counts an ack as it comes, the stream when it is stored.
    wait_until("what was acked is gone", PATIENCE, async || {
        let messages = home.stream.get_info().await?.state.messages;
        anyhow::ensure!(messages >= (MESSAGES + left) as u64, "{messages} are left");
        Ok((messages == (MESSAGES + left) as u64).then_some(()))
    })
    .await
}

pub(crate) async fn two_clients_share_one_consumer_without_doubles(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "SHARE".into(), ..Default::default() }).await?;
    home.publish_many("a", 200).await?;
    let first = home.pull(pull::Config { ack_policy: AckPolicy::None, ..durable("worker") }).await?;
    let elsewhere = async_nats::jetstream::new(ground.cluster.client(ground.replicas - 1).await?);
    let second: async_nats::jetstream::consumer::PullConsumer =
        elsewhere.get_consumer_from_stream("worker", &home.name).await?;

    let (one, two) = tokio::join!(take(&first, 100), take(&second, 100));

    let mut all: Vec<u64> =
        bodies(&one?).iter().chain(&bodies(&two?)).map(|body| body.parse()).collect::<Result<_, _>>()?;
    all.sort_unstable();
    assert_eq!(all, (1..=200).collect::<Vec<_>>());
    Ok(())
}

pub(crate) async fn a_deleted_consumer_ends_its_waiting_requests(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "ENDED".into(), ..Default::default() }).await?;
    home.pull(durable("worker")).await?;
    let mut raw = by_hand(ground, &home).await?;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", home.name);
    raw.publish(&next, &inbox(&home), "", r#"{"batch":1,"expires":30000000000}"#).await?;
    wait_until("the request waits", PATIENCE, async || {
        Ok((home.stream.consumer_info("worker").await?.num_waiting == 1).then_some(()))
    })
    .await?;

    home.stream.delete_consumer("worker").await?;

    assert_eq!(raw.next_message(PATIENCE).await?.status(), "409 Consumer Deleted");
    home.pull(durable("worker")).await.context("the name is free again")?;
    Ok(())
}
