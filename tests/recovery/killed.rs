//! SIGKILL, also of everybody at once. What was acknowledged is there afterwards, in order.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::Config;
use futures::TryStreamExt as _;
use levee_tests::checker::{Stored, check};
use levee_tests::client::{read_all, read_replica, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;

async fn nodes(count: usize) -> Result<Cluster> {
    // nats-server syncs every two minutes unless told otherwise; Levee before each acknowledgement, always.
    let jetstream = "sync_interval: always".to_owned();
    Cluster::with(Setup { nodes: count, jetstream, ..Setup::default() }).await
}

async fn stream(cluster: &Cluster, name: &str) -> Result<()> {
    let config = Config {
        name: name.into(),
        subjects: vec![format!("{name}.>")],
        num_replicas: cluster.nodes().len(),
        allow_direct: true,
        ..Default::default()
    };
    jetstream::new(cluster.client(0).await?).create_stream(config).await?;
    Ok(())
}

/// Waits until this many messages are stored.
async fn stored(cluster: &Cluster, name: &str, count: u64) -> Result<()> {
    let js = jetstream::new(cluster.any_client().await?);
    wait_until("publishers get on", PATIENCE, async || {
        let last = js.get_stream_no_info(name).await?.get_info().await?.state.last_sequence;
        Ok((last >= count).then_some(()))
    })
    .await
}

/// Kills all nodes while publishers work, starts them again, lets the same publishers go on, and compares.
async fn all_die_under_load(count: usize) -> Result<()> {
    let mut cluster = nodes(count).await?;
    stream(&cluster, "LOAD").await?;
    let mut clients = Vec::new();
    for publisher in 0..4 {
        clients.push(cluster.client(publisher % count).await?);
    }
    let publishers = Workload::start(clients, "LOAD");

    for round in 1..=2_u64 {
        stored(&cluster, "LOAD", round * 150).await?;
        for index in 0..count {
            cluster.kill(index)?;
        }
        for index in 0..count {
            cluster.start(index)?;
        }
        cluster.ready().await?;
    }
    stored(&cluster, "LOAD", 400).await?;
    let acknowledged = publishers.finish().await?;

    let expected: Vec<Stored> = acknowledged.into_iter().map(|one| one.message).collect();
    let client = cluster.client(0).await?;
    if count > 1 {
        replicas_current(&client, "LOAD", count).await?;
    }
    check(&expected, &read_all(&client, "LOAD").await?).context("read from the leader")?;
    for index in 0..count {
        let client = cluster.client(index).await?;
        wait_until("each replica has everything", PATIENCE, async || {
            check(&expected, &read_replica(&client, "LOAD").await?)?;
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_node_killed_under_load_loses_nothing_acknowledged() -> Result<()> {
    all_die_under_load(1).await
}

#[tokio::test]
async fn three_nodes_killed_at_once_under_load_lose_nothing_acknowledged() -> Result<()> {
    all_die_under_load(3).await
}

/// What a fetch gives within two seconds.
async fn take(consumer: &PullConsumer, count: usize) -> Result<Vec<jetstream::Message>> {
    let batch = consumer.batch().max_messages(count).expires(Duration::from_secs(2)).messages().await?;
    batch.try_collect().await.map_err(anyhow::Error::from_boxed)
}

async fn consumers_survive(count: usize) -> Result<()> {
    let mut cluster = nodes(count).await?;
    stream(&cluster, "KEPT").await?;
    let client = cluster.any_client().await?;
    let js = jetstream::new(client);
    for number in 1..=10 {
        js.publish("KEPT.a", number.to_string().into()).await?.await?;
    }
    let handle = js.get_stream_no_info("KEPT").await?;
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_wait: Duration::from_secs(2),
        num_replicas: count,
        ..Default::default()
    };
    let consumer = handle.create_consumer(config).await?;
    let messages =
        wait_until("six are delivered", PATIENCE, async || Ok(Some(take(&consumer, 6).await?))).await?;
    assert_eq!(messages.len(), 6);
    for index in [0, 1, 3] {
        messages[index].double_ack().await.map_err(anyhow::Error::from_boxed)?;
    }

    for index in 0..count {
        cluster.kill(index)?;
    }
    for index in 0..count {
        cluster.start(index)?;
    }
    cluster.ready().await?;

    let info = wait_until("the consumer is back", PATIENCE, async || {
        Ok(Some(handle.consumer_info("worker").await?))
    })
    .await?;
    assert_eq!(info.ack_floor.stream_sequence, 2, "{info:?}");
    let mut seen = std::collections::BTreeSet::new();
    wait_until("what is not settled is delivered", PATIENCE, async || {
        for message in take(&consumer, 10).await? {
            let sequence = message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence;
            ensure!(![1, 2, 4].contains(&sequence), "{sequence} was settled and is delivered again");
            seen.insert(sequence);
            message.double_ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        Ok((seen.len() == 7).then_some(()))
    })
    .await?;
    let info = handle.consumer_info("worker").await?;
    assert_eq!((info.num_pending, info.num_ack_pending, info.ack_floor.stream_sequence), (0, 0, 10));
    Ok(())
}

#[tokio::test]
async fn a_consumer_of_one_node_keeps_what_was_settled_and_delivers_the_rest() -> Result<()> {
    if !Program::subject()?.is_levee() {
        let reason = "nats-server confirms the acknowledgements of a single replica before it writes them";
        skip::not_claimed("a_consumer_of_one_node_keeps_what_was_settled_and_delivers_the_rest", reason);
        return Ok(());
    }
    consumers_survive(1).await
}

#[tokio::test]
async fn a_consumer_of_three_nodes_keeps_what_was_settled_and_delivers_the_rest() -> Result<()> {
    consumers_survive(3).await
}

#[tokio::test]
async fn limits_purges_and_deletes_survive() -> Result<()> {
    let mut cluster = nodes(1).await?;
    stream(&cluster, "GONE").await?;
    let js = jetstream::new(cluster.client(0).await?);
    for number in 1..=20 {
        js.publish(format!("GONE.{}", number % 2), number.to_string().into()).await?.await?;
    }
    let handle = js.get_stream_no_info("GONE").await?;
    handle.purge().sequence(5).await?;
    handle.purge().filter("GONE.1").keep(1).await?;
    handle.delete_message(10).await?;
    let before = handle.get_info().await?;

    cluster.kill(0)?;
    cluster.start(0)?;
    cluster.ready().await?;

    let after =
        wait_until("the stream is back", PATIENCE, async || Ok(Some(handle.get_info().await?))).await?;
    assert_eq!(
        (after.state.messages, after.state.bytes, after.state.first_sequence, after.state.last_sequence),
        (before.state.messages, before.state.bytes, before.state.first_sequence, before.state.last_sequence)
    );
    assert_eq!(after.config, before.config);
    assert!(handle.get_raw_message(10).await.is_err(), "a deleted message is back");
    Ok(())
}

#[tokio::test]
async fn a_message_id_is_known_after_a_crash() -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed(
            "a_message_id_is_known_after_a_crash",
            "nats-server counts the window from its own start",
        );
        return Ok(());
    }
    let mut cluster = nodes(1).await?;
    stream(&cluster, "IDS").await?;
    let js = jetstream::new(cluster.client(0).await?);
    let send = async || {
        wait_until("acknowledged", PATIENCE, async || {
            let message = jetstream::message::PublishMessage::build().payload("x".into()).message_id("one");
            Ok(Some(js.send_publish("IDS.a", message).await?.await?))
        })
        .await
    };
    let first = send().await?;

    cluster.kill(0)?;
    cluster.start(0)?;
    cluster.ready().await?;

    let again = send().await?;
    assert_eq!((first.sequence, again.sequence, again.duplicate), (1, 1, true));
    Ok(())
}
