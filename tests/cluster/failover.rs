//! Leaders die under load. Nothing acknowledged may be lost, changed, doubled or out of order, on any replica.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use levee_tests::checker::{Stored, check};
use levee_tests::client::{leader, read_all, read_replica, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::{Acknowledged, Workload, gap_around};
use serde_json::json;

/// From the death of a leader to the next acknowledgement. The aim is two seconds; the bound is for small, busy
/// machines.
const GAP_MAX: Duration = Duration::from_secs(10);

async fn stream(cluster: &Cluster, name: &str, storage: StorageType) -> Result<()> {
    let config = Config {
        name: name.into(),
        subjects: vec![format!("{name}.>")],
        num_replicas: 3,
        storage,
        allow_direct: true,
        ..Default::default()
    };
    jetstream::new(cluster.client(0).await?).create_stream(config).await?;
    Ok(())
}

/// Publishers that may go to any node, each beginning with another.
async fn workload(cluster: &Cluster, publishers: usize, subject: &str) -> Result<Workload> {
    let mut clients = Vec::new();
    for _ in 0..publishers {
        clients.push(cluster.any_client().await?);
    }
    Ok(Workload::start(clients, subject))
}

/// Holds each replica, read through its own node, and the leader against what was acknowledged.
async fn check_replicas(
    cluster: &Cluster,
    stream: &str,
    acknowledged: &[Acknowledged],
) -> Result<Vec<Stored>> {
    let expected: Vec<Stored> = acknowledged.iter().map(|one| one.message.clone()).collect();
    let client = cluster.client(0).await?;
    replicas_current(&client, stream, 3).await?;
    let leading = read_all(&client, stream).await?;
    check(&expected, &leading).context("read from the leader")?;
    for (index, node) in cluster.nodes().iter().enumerate() {
        let client = cluster.client(index).await?;
        wait_until("the replica has what the leader has", PATIENCE, async || {
            let read = read_replica(&client, stream).await?;
            check(&expected, &read).with_context(|| format!("read from {}", node.name()))?;
            ensure!(
                read == leading,
                "{} has {} messages, the leader {}",
                node.name(),
                read.len(),
                leading.len()
            );
            Ok(Some(()))
        })
        .await?;
    }
    Ok(leading)
}

/// Lets the publishers work until this many more messages are stored.
async fn progress(cluster: &Cluster, stream: &str, more: u64) -> Result<()> {
    let client = cluster.any_client().await?;
    let js = jetstream::new(client);
    let mut begin = None;
    wait_until("publishers go on", PATIENCE, async || {
        let handle = js.get_stream_no_info(stream).await?;
        let last = handle.get_info().await?.state.last_sequence;
        let begin = *begin.get_or_insert(last);
        Ok((last >= begin + more).then_some(()))
    })
    .await
}

async fn leaders_die(storage: StorageType, rounds: usize) -> Result<()> {
    let mut cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    stream(&cluster, "ORDERS", storage).await?;
    let publishers = workload(&cluster, 4, "ORDERS").await?;

    let mut deaths: Vec<Instant> = Vec::new();
    for _ in 0..rounds {
        progress(&cluster, "ORDERS", rand::random_range(50..150)).await?;
        let client = cluster.any_client().await?;
        let leading = cluster.index_of(&leader(&client, "ORDERS").await?)?;
        deaths.push(cluster.kill(leading)?);
        progress(&cluster, "ORDERS", 50).await.context("after a leader died")?;
        cluster.start(leading)?;
        cluster.answers(leading).await?;
        let client = cluster.any_client().await?;
        replicas_current(&client, "ORDERS", 3).await?;
    }
    let acknowledged = publishers.finish().await?;

    let gaps: Vec<Duration> = deaths.iter().filter_map(|death| gap_around(&acknowledged, *death)).collect();
    // Past the capture of the test runner: a number to watch, not only to pass.
    let _ = writeln!(
        std::io::stderr(),
        "leader failure to next acknowledgement ({storage:?}): {gaps:?}; {} messages, {} sent again",
        acknowledged.len(),
        acknowledged.iter().filter(|one| one.duplicate).count()
    );
    check_replicas(&cluster, "ORDERS", &acknowledged).await?;
    ensure!(gaps.len() == rounds && gaps.iter().all(|gap| *gap < GAP_MAX), "{gaps:?}");
    Ok(())
}

#[tokio::test]
async fn leaders_that_are_killed_at_random_lose_nothing_acknowledged() -> Result<()> {
    leaders_die(StorageType::File, 3).await
}

#[tokio::test]
async fn leaders_of_memory_streams_that_are_killed_lose_nothing_acknowledged() -> Result<()> {
    leaders_die(StorageType::Memory, 1).await
}

#[tokio::test]
async fn followers_that_are_killed_hold_nobody_up() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    stream(&cluster, "CALM", StorageType::File).await?;
    let client = cluster.client(0).await?;
    let leading = cluster.index_of(&leader(&client, "CALM").await?)?;
    let follower = cluster.other_than(leading)?;
    let stays: Vec<usize> = cluster.running().filter(|node| *node != follower).collect();
    let mut clients = Vec::new();
    for node in stays {
        clients.push(cluster.client(node).await?);
    }
    let publishers = Workload::start(clients, "CALM");

    progress(&cluster, "CALM", 50).await?;
    let death = cluster.kill(follower)?;
    progress(&cluster, "CALM", 100).await?;
    cluster.start(follower)?;
    cluster.answers(follower).await?;

    let acknowledged = publishers.finish().await?;
    let gap = gap_around(&acknowledged, death).context("nothing was acknowledged afterwards")?;
    ensure!(gap < GAP_MAX, "{gap:?}");
    check_replicas(&cluster, "CALM", &acknowledged).await?;
    Ok(())
}

#[tokio::test]
async fn a_message_id_is_known_to_the_next_leader() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    stream(&cluster, "IDS", StorageType::File).await?;
    let client = cluster.any_client().await?;
    let js = jetstream::new(client.clone());
    let send = async |number: u64| {
        wait_until("the message is acknowledged", PATIENCE, async || {
            let message = jetstream::message::PublishMessage::build()
                .payload(number.to_string().into())
                .message_id(format!("id-{number}"));
            Ok(Some(js.send_publish("IDS.a", message).await?.await?))
        })
        .await
    };
    for number in 1..=20 {
        assert_eq!(send(number).await?.sequence, number);
    }

    let leading = cluster.index_of(&leader(&client, "IDS").await?)?;
    cluster.kill(leading)?;

    for number in (1..=20).rev() {
        let again = send(number).await?;
        assert_eq!((again.sequence, again.duplicate), (number, true));
    }
    let new = send(21).await?;
    assert_eq!((new.sequence, new.duplicate), (21, false));
    Ok(())
}

#[tokio::test]
async fn a_consumer_goes_on_after_its_leader_died_and_settled_messages_stay_settled() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    stream(&cluster, "WORK", StorageType::File).await?;
    let client = cluster.any_client().await?;
    let js = jetstream::new(client.clone());
    for number in 1..=40 {
        js.publish("WORK.a", number.to_string().into()).await?.await?;
    }
    let handle = js.get_stream_no_info("WORK").await?;
    let config = jetstream::consumer::pull::Config {
        durable_name: Some("worker".into()),
        ack_wait: Duration::from_secs(2),
        ..Default::default()
    };
    let consumer = handle.create_consumer(config).await?;
    let first = take(&consumer, 20).await?;
    assert_eq!(first.len(), 20);
    for message in &first[..10] {
        message.double_ack().await.map_err(anyhow::Error::from_boxed)?;
    }

    let leading = cluster.index_of(&leader(&client, "WORK").await?)?;
    cluster.kill(leading)?;

    let mut seen = std::collections::BTreeSet::new();
    wait_until("the rest is delivered", PATIENCE, async || {
        for message in take(&consumer, 30).await? {
            let info = message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence;
            ensure!(info > 10, "{info} was acknowledged with a confirmation and is delivered again");
            seen.insert(info);
            message.double_ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        Ok((seen.len() == 30).then_some(()))
    })
    .await?;
    let info = handle.consumer_info("worker").await?;
    assert_eq!((info.num_pending, info.num_ack_pending, info.ack_floor.stream_sequence), (0, 0, 40));
    Ok(())
}

/// What a fetch gives within two seconds.
async fn take(consumer: &jetstream::consumer::PullConsumer, count: usize) -> Result<Vec<jetstream::Message>> {
    use futures::TryStreamExt as _;
    let batch = consumer.batch().max_messages(count).expires(Duration::from_secs(2)).messages().await?;
    batch.try_collect().await.map_err(anyhow::Error::from_boxed)
}

#[tokio::test]
async fn the_api_serves_on_while_any_one_node_is_down() -> Result<()> {
    let mut cluster = Cluster::three().await?;

    for down in 0..3 {
        cluster.kill(down)?;
        let other = cluster.client((down + 1) % 3).await?;
        let name = format!("DOWN{down}");
        let config = json!({ "name": name, "subjects": [format!("{name}.>")], "num_replicas": 1 });
        wait_until("a stream is made with one node down", PATIENCE, async || {
            let endpoint = format!("STREAM.CREATE.{name}");
            Ok(Some(levee_tests::client::api_ok(&other, &endpoint, &config).await?))
        })
        .await?;
        cluster.start(down)?;
        cluster.answers(down).await?;
    }
    Ok(())
}
