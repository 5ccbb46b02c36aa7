//! Leaders die while messages are given up, and while keys are in flight. Only Levee claims either.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use async_nats::jetstream::{self, AckKind, Message};
use futures::StreamExt as _;
use levee_tests::client::{lead, leader, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

const DEATHS: usize = 3;
const FETCH: Duration = Duration::from_millis(500);
const ACK_WITHIN: Duration = Duration::from_secs(1);

async fn cluster(test: &str) -> Result<Option<Cluster>> {
    let cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    if !cluster.program().is_levee() {
        skip::not_claimed(test, "it is Levee's own");
        return Ok(None);
    }
    Ok(Some(cluster))
}

async fn stream(cluster: &Cluster, name: &str, retention: RetentionPolicy) -> Result<()> {
    let subjects = vec![format!("{name}.>")];
    let config = Config { name: name.into(), subjects, num_replicas: 3, retention, ..Default::default() };
    jetstream::new(cluster.client(0).await?).create_stream(config).await?;
    Ok(())
}

async fn worker(cluster: &Cluster, stream: &str) -> Result<PullConsumer> {
    let js = jetstream::new(cluster.any_client().await?);
    let stream = js.get_stream_no_info(stream).await?;
    wait_until("the consumer is found", PATIENCE, async || {
        Ok(stream.get_consumer::<pull::Config>("worker").await.ok())
    })
    .await
}

/// What comes in a moment. Whatever goes wrong while a leader is away is tried again by the caller.
async fn fetch(consumer: &PullConsumer, count: usize) -> Vec<Message> {
    let Ok(batch) = consumer.batch().max_messages(count).expires(FETCH).messages().await else {
        return Vec::new();
    };
    batch
        .take_until(tokio::time::sleep(FETCH * 2))
        .filter_map(|message| async { message.ok() })
        .collect()
        .await
}

/// Kills whoever leads the stream and starts it again, some times. The leader of another stream is spared.
async fn kill_leaders(
    cluster: &mut Cluster,
    stream: &str,
    spared: Option<&str>,
    between: Duration,
) -> Result<()> {
    for _ in 0..DEATHS {
        tokio::time::sleep(between).await;
        let client = cluster.any_client().await?;
        if let Some(spared) = spared
            && leader(&client, stream).await? == leader(&client, spared).await?
        {
            let leading = cluster.index_of(&leader(&client, spared).await?)?;
            let other = cluster.node((leading + 1) % 3).name();
            lead(&client, stream, other).await?;
        }
        let leading = cluster.index_of(&leader(&client, stream).await?)?;
        cluster.kill(leading)?;
        leader(&cluster.any_client().await?, stream).await?;
        cluster.start(leading)?;
        cluster.answers(leading).await?;
        replicas_current(&cluster.any_client().await?, stream, 3).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_becomes_one_dead_letter_whoever_dies_meanwhile() -> Result<()> {
    become_letters("a_message_becomes_one_dead_letter_whoever_dies_meanwhile", "WORK", None).await
}

#[tokio::test]
async fn a_message_becomes_one_dead_letter_when_only_the_leader_of_letters_dies() -> Result<()> {
    let test = "a_message_becomes_one_dead_letter_when_only_the_leader_of_letters_dies";
    become_letters(test, "DEAD", Some("WORK")).await
}

/// Messages are given up while those who lead the `victim` die.
async fn become_letters(test: &str, victim: &str, spared: Option<&str>) -> Result<()> {
    const MESSAGES: u64 = 600;
    let Some(mut cluster) = cluster(test).await? else { return Ok(()) };
    stream(&cluster, "WORK", RetentionPolicy::WorkQueue).await?;
    stream(&cluster, "DEAD", RetentionPolicy::Limits).await?;
    let js = jetstream::new(cluster.any_client().await?);
    let work = js.get_stream_no_info("WORK").await?;
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_wait: Duration::from_secs(1),
        max_deliver: 2,
        metadata: [("levee.dead_letter".to_owned(), "DEAD.work".to_owned())].into(),
        ..Default::default()
    };
    work.create_consumer(config).await?;
    for number in 0..MESSAGES {
        js.publish("WORK.a", number.to_string().into()).await?.await?;
    }

    let mut workers: Vec<JoinHandle<Result<()>>> = Vec::new();
    for number in 0..3 {
        let consumer = worker(&cluster, "WORK").await?;
        workers.push(tokio::spawn(async move {
            loop {
                for message in fetch(&consumer, 10).await {
                    let kind = if number == 0 { AckKind::Term } else { AckKind::Nak(None) };
                    let _ = message.ack_with(kind).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }));
    }
    kill_leaders(&mut cluster, victim, spared, Duration::from_millis(700)).await?;
    let client = cluster.any_client().await?;
    let js = jetstream::new(client.clone());
    let work = js.get_stream_no_info("WORK").await?;
    wait_until("everything is given up and gone", PATIENCE * 2, async || {
        let left = work.get_info().await?.state.messages;
        ensure!(left == 0, "{left} are left");
        Ok(Some(()))
    })
    .await?;
    for worker in workers {
        worker.abort();
    }

    let dead = js.get_stream_no_info("DEAD").await?;
    let state = dead.get_info().await?.state;
    let mut origins = BTreeSet::new();
    for sequence in 1..=state.last_sequence {
        let letter = dead.get_raw_message(sequence).await?;
        let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
        let origin: u64 = header("Levee-Dead-Sequence").context("no sequence")?.parse()?;
        assert!(origins.insert(origin), "{origin} is there twice");
        assert_eq!(String::from_utf8_lossy(&letter.payload), (origin - 1).to_string());
        let deliveries: u64 = header("Levee-Dead-Deliveries").context("no deliveries")?.parse()?;
        assert!(deliveries <= 2, "{origin} was delivered {deliveries} times");
    }
    assert_eq!(origins, (1..=MESSAGES).collect());
    Ok(())
}

/// What workers have in hand, and what they finished, by key.
#[derive(Default)]
struct Board {
    in_hand: BTreeMap<String, u64>,
    done: BTreeMap<String, Vec<u64>>,
    finished: usize,
}

impl Board {
    fn take(&mut self, key: &str, seq: u64) -> Result<()> {
        let done = self.done.entry(key.to_owned()).or_default();
        if let Some(before) = self.in_hand.insert(key.to_owned(), seq) {
            // The same again after its wait is over is no other message, and one that was finished is in nobody's hands.
            ensure!(before == seq || done.contains(&before), "{key}: {seq} came while {before} was in hand");
        }
        Ok(())
    }

    fn finish(&mut self, key: &str, seq: u64) {
        self.in_hand.remove(key);
        let done = self.done.entry(key.to_owned()).or_default();
        if !done.contains(&seq) {
            done.push(seq);
            self.finished += 1;
        }
    }
}

#[tokio::test]
async fn one_message_of_a_key_is_in_flight_whoever_dies_meanwhile() -> Result<()> {
    const KEYS: usize = 5;
    const EACH: usize = 60;
    let Some(mut cluster) = cluster("one_message_of_a_key_is_in_flight").await? else { return Ok(()) };
    stream(&cluster, "KEYED", RetentionPolicy::Limits).await?;
    let js = jetstream::new(cluster.any_client().await?);
    let keyed = js.get_stream_no_info("KEYED").await?;
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_wait: Duration::from_secs(6),
        metadata: [("levee.key".to_owned(), "token:2".to_owned())].into(),
        ..Default::default()
    };
    keyed.create_consumer(config).await?;
    let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..EACH {
        for key in 0..KEYS {
            let subject = format!("KEYED.{key}");
            let ack = js.publish(subject.clone(), "".into()).await?.await?;
            expected.entry(subject).or_default().push(ack.sequence);
        }
    }

    let board = Arc::new(Mutex::new(Board::default()));
    let mut workers = Vec::new();
    for _ in 0..4 {
        let consumer = worker(&cluster, "KEYED").await?;
        workers.push(tokio::spawn(work(consumer, Arc::clone(&board), KEYS * EACH)));
    }
    kill_leaders(&mut cluster, "KEYED", None, Duration::from_millis(500)).await?;
    for worker in workers {
        tokio::time::timeout(PATIENCE * 3, worker).await.context("the workers stand still")???;
    }

    assert_eq!(board.lock().await.done, expected);
    Ok(())
}

async fn work(consumer: PullConsumer, board: Arc<Mutex<Board>>, total: usize) -> Result<()> {
    while board.lock().await.finished < total {
        let messages = fetch(&consumer, 2).await;
        let seq = |message: &Message| -> Result<u64> {
            Ok(message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence)
        };
        for message in &messages {
            board.lock().await.take(message.subject.as_str(), seq(message)?)?;
        }
        for message in messages {
            tokio::time::sleep(Duration::from_millis(20)).await;
            board.lock().await.finish(message.subject.as_str(), seq(&message)?);
            while !matches!(tokio::time::timeout(ACK_WITHIN, message.double_ack()).await, Ok(Ok(()))) {}
        }
    }
    Ok(())
}
