//! Ordered consumers, as libraries make them, and plain push consumers.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull, push};
use async_nats::jetstream::stream::Config;
use futures::{Stream, StreamExt as _};
use levee_tests::wait::PATIENCE;
use tokio::time::timeout;

use crate::ground::{Ground, settle, text};

/// The next `count` payloads.
async fn next<E: std::error::Error + Send + Sync + 'static>(
    messages: &mut (impl Stream<Item = Result<Message, E>> + Unpin),
    count: usize,
) -> Result<Vec<String>> {
    let mut got = Vec::new();
    while got.len() < count {
        let message = timeout(PATIENCE, messages.next()).await.context("no message")?;
        got.push(text(&message.context("the messages ended")??.payload));
    }
    Ok(got)
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

pub(crate) async fn an_ordered_pull_consumer_gives_everything_in_order(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "ORDPULL".into(), ..Default::default() }).await?;
    home.publish_many("a", 300).await?;

    let config = pull::OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: 101 },
        ..Default::default()
    };
    let consumer = home.stream.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;

    assert_eq!(next(&mut messages, 200).await?, numbers(101..=300));
    home.publish("a", "301").await?;
    assert_eq!(next(&mut messages, 1).await?, ["301"]);
    Ok(())
}

pub(crate) async fn an_ordered_push_consumer_gives_everything_in_order_and_then_what_is_new(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "ORDPUSH".into(), ..Default::default() }).await?;
    // Larger than one window of flow control.
    let body = "x".repeat(4000);
    for number in 1..=400_u64 {
        home.publish("a", &format!("{number}:{body}")).await?;
    }

    let config = push::OrderedConfig { deliver_subject: home.client.new_inbox(), ..Default::default() };
    let consumer = home.stream.create_consumer(config).await?;
    let mut messages = consumer.messages().await?;

    for number in 1..=400_u64 {
        let got = next(&mut messages, 1).await?;
        assert!(got[0].starts_with(&format!("{number}:")), "{number}: {:.20}", got[0]);
    }
    home.publish("a", "new").await?;
    assert_eq!(next(&mut messages, 1).await?, ["new"]);
    Ok(())
}

pub(crate) async fn a_push_consumer_delivers_to_its_subject_and_to_one_of_its_queue_group(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "PUSH".into(), ..Default::default() }).await?;
    let deliver = home.client.new_inbox();
    let config = push::Config {
        durable_name: Some("pushed".into()),
        deliver_subject: deliver.clone(),
        deliver_group: Some("workers".into()),
        ack_policy: AckPolicy::Explicit,
        idle_heartbeat: Duration::from_secs(1),
        ..Default::default()
    };
    let consumer = home.stream.create_consumer(config).await?;
    let mut here = consumer.messages().await?;
    let elsewhere = ground.cluster.client(ground.replicas - 1).await?;
    let mut there = elsewhere.queue_subscribe(deliver, "workers".into()).await?;
    elsewhere.flush().await?;
    home.client.flush().await?;
    home.publish_many("a", 20).await?;

    let mut got = Vec::new();
    while got.len() < 20 {
        tokio::select! {
            message = timeout(PATIENCE, here.next()) => {
                let message = message?.context("the messages ended")??;
                settle(&message, async_nats::jetstream::AckKind::Ack).await?;
                got.push(text(&message.payload).parse::<u64>()?);
            }
            message = there.next() => {
                let message = message.context("the messages ended")?;
                // Heartbeats go to one of the group too.
                if message.status.is_none() {
                    let reply = message.reply.context("no ack subject")?;
                    elsewhere.publish(reply, "+ACK".into()).await?;
                    got.push(text(&message.payload).parse::<u64>()?);
                }
            }
        }
    }

    got.sort_unstable();
    assert_eq!(got, (1..=20).collect::<Vec<_>>());
    Ok(())
}
