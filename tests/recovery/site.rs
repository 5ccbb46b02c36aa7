//! Nodes under a load that reaches all of their store, and what must hold when they come back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use levee_tests::client::{read_replica, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::power::Disk;
use levee_tests::wait::{PATIENCE, wait_until};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::facts::{Keeps, check};
use crate::load::{Story, Work, consumer, patient, settle};

/// Small enough for one record of the write-ahead log, large enough for the value log when several come together, and
/// large enough for it alone.
pub(crate) const SMALL: usize = 128;
pub(crate) const MIDDLE: usize = 1024;
pub(crate) const LARGE: usize = 16 << 10;
const KEPT: usize = 3000;
/// How many acknowledged messages of a stream are published again.
const REPEATED: usize = 40;

/// The streams of the load, and what each keeps.
const STREAMS: [(&str, Keeps); 6] = [
    ("LOGS", Keeps::Newest(KEPT)),
    ("KEYS", Keeps::NewestOfSubject),
    ("WORK", Keeps::Unsettled),
    ("ACKS", Keeps::Newest(KEPT)),
    ("GONE", Keeps::All),
    ("AGED", Keeps::Young),
];
/// Who publishes to the first of them: sizes of messages, and how many at a time.
const PUBLISHERS: [(&[usize], usize); 5] =
    [(&[SMALL], 1), (&[SMALL], 64), (&[LARGE], 1), (&[LARGE], 12), (&[MIDDLE, SMALL, LARGE], 24)];
/// How old messages of the last become.
const AGE: Duration = Duration::from_secs(2);

pub(crate) fn config(name: &str, replicas: usize) -> Config {
    let mut config = Config {
        name: name.into(),
        subjects: vec![format!("{name}.>")],
        num_replicas: replicas,
        allow_direct: true,
        // Longer than a long run.
        duplicate_window: Duration::from_secs(3600),
        ..Default::default()
    };
    match name {
        "LOGS" | "ACKS" => config.max_messages = KEPT as i64,
        "KEYS" => config.max_messages_per_subject = 1,
        "WORK" => config.retention = RetentionPolicy::WorkQueue,
        "AGED" => (config.max_age, config.duplicate_window) = (AGE, AGE),
        _ => {}
    }
    config
}

/// The nodes, their disks if those can lose power, and what clients know. The disks go last.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) chance: StdRng,
    stories: Vec<Story>,
    pub(crate) disks: Vec<Disk>,
}

impl Site {
    /// What chance decides follows from `LEVEE_POWER_SEED`, which is printed.
    pub(crate) async fn new(mut setup: Setup, disks: Vec<Disk>) -> Result<Self> {
        let seed =
            std::env::var("LEVEE_POWER_SEED").ok().map_or_else(|| Ok(rand::random()), |seed| seed.parse())?;
        println!("LEVEE_POWER_SEED={seed}");
        setup.stores = disks.iter().map(|disk| disk.path().join("store")).collect();
        let cluster = Cluster::with(setup).await?;
        let stories = STREAMS.iter().map(|_| Story::default()).collect();
        Ok(Self { cluster, chance: StdRng::seed_from_u64(seed), stories, disks })
    }

    pub(crate) fn nodes(&self) -> usize {
        self.cluster.nodes().len()
    }

    /// The streams and consumers.
    pub(crate) async fn create(&self) -> Result<()> {
        let js = patient(self.cluster.client(0).await?);
        for (name, _) in STREAMS {
            js.create_stream(config(name, self.nodes())).await?;
        }
        for name in ["WORK", "ACKS"] {
            consumer(&js, name, self.nodes()).await?;
        }
        Ok(())
    }

    /// Starts everything that keeps the nodes busy.
    pub(crate) async fn load(&self) -> Result<Work> {
        let mut work = Work::default();
        let [logs, keys, queue, acks, gone, aged] = &self.stories[..] else {
            unreachable!("one story for each stream")
        };
        let none = Duration::ZERO;
        let some = Duration::from_millis(10);
        for (number, (sizes, window)) in PUBLISHERS.into_iter().enumerate() {
            let subject = move |_| format!("LOGS.{number}");
            let pause = if window > 1 { some } else { none };
            work.publisher(self.client(number).await?, logs, subject, sizes, window, pause);
        }
        let key = |number: u64| format!("KEYS.{}", number * number % 61);
        work.publisher(self.client(0).await?, keys, key, &[SMALL, LARGE], 1, none);
        let key = |number: u64| format!("KEYS.{}", number * 7 % 50);
        work.publisher(self.client(1).await?, keys, key, &[MIDDLE, LARGE], 8, some);
        for (name, story) in [("WORK", queue), ("ACKS", acks)] {
            let subject = move |number: u64| format!("{name}.{}", number % 3);
            work.publisher(self.client(2).await?, story, subject, &[SMALL, MIDDLE, LARGE], 4, some);
            let js = patient(self.client(1).await?);
            work.worker(consumer(&js, name, self.nodes()).await?, story);
        }
        work.publisher(self.client(0).await?, gone, |_| "GONE.a".into(), &[SMALL, MIDDLE, LARGE], 8, some);
        work.remover(self.client(2).await?, "GONE", gone);
        work.publisher(self.client(1).await?, aged, |_| "AGED.a".into(), &[SMALL], 1, some / 5);
        work.watcher(self.client(0).await?, "AGED", aged);
        Ok(work)
    }

    pub(crate) async fn client(&self, number: usize) -> Result<async_nats::Client> {
        self.cluster.client(number % self.nodes()).await
    }

    /// Reads every replica of every stream.
    pub(crate) async fn check(&self) -> Result<()> {
        for ((name, keeps), story) in STREAMS.into_iter().zip(&self.stories) {
            for index in 0..self.nodes() {
                let client = self.cluster.client(index).await?;
                if self.nodes() > 1 {
                    replicas_current(&client, name, self.nodes()).await?;
                }
                let read = wait_until("the stream is back", PATIENCE, async || {
                    Ok(Some(read_replica(&client, name).await?))
                })
                .await?;
                let known = story.known();
                println!(
                    "{name} on {}: {} sent, {} acknowledged, {} settled, {} there",
                    self.cluster.node(index).name(),
                    known.sent.len(),
                    known.given.len(),
                    known.settled.len(),
                    read.len()
                );
                check(&known, keeps, &read).with_context(|| name.to_owned())?;
            }
        }
        Ok(())
    }

    /// Publishes again what was acknowledged last, and what nobody knows the fate of: nothing is stored twice, and no
    /// sequence is given twice.
    pub(crate) async fn repeat(&self) -> Result<()> {
        // Ids of the last stream are not known for long.
        for ((name, _), story) in STREAMS.into_iter().zip(&self.stories).take(STREAMS.len() - 1) {
            let js = patient(self.client(0).await?);
            let (last, repeated): (u64, BTreeSet<String>) = {
                let known = story.known();
                let newest = known.given.values().rev().take(REPEATED).cloned();
                let unknown = known.sent.iter().filter(|(_, sent)| sent.acknowledged.is_none());
                let last = known.given.last_key_value().map_or(0, |(seq, _)| *seq);
                (last, newest.chain(unknown.map(|(id, _)| id.clone())).collect())
            };
            let mut waiting = Vec::new();
            for id in repeated {
                let sent = story.known().sent[&id].clone();
                let js = &js;
                waiting.push(async move {
                    let answer = story.publish(js, &id, &sent.subject, sent.bytes).await?;
                    let seq = answer.seq;
                    match sent.acknowledged {
                        Some(before) => ensure!(
                            answer.duplicate && before.seq == seq,
                            "{name}: {id} was acknowledged as {} and is stored again as {seq}",
                            before.seq
                        ),
                        // Stored and not told, or new.
                        None => ensure!(
                            answer.duplicate || seq > last,
                            "{name}: {id} gets the old sequence {seq}"
                        ),
                    }
                    anyhow::Ok(())
                });
            }
            futures::future::try_join_all(waiting).await?;
            ensure!(story.known().given_again.is_empty(), "{name}: {:?}", story.known().given_again);
        }
        Ok(())
    }

    /// Consumers go on: what was confirmed does not come again, and everything else comes.
    pub(crate) async fn settle(&self) -> Result<()> {
        for (name, story) in [("WORK", &self.stories[2]), ("ACKS", &self.stories[3])] {
            let js = patient(self.client(0).await?);
            let consumer = consumer(&js, name, self.nodes()).await?;
            let settled = story.known().settled.clone();
            let what = format!("the consumer of {name} delivers what is left");
            let mut again = Vec::new();
            wait_until(&what, PATIENCE, async || {
                let delivered = settle(&consumer, story).await?;
                again.extend(delivered.into_iter().filter(|seq| settled.contains(seq)));
                let info = js.get_stream_no_info(name).await?.consumer_info("worker").await?;
                ensure!(info.num_pending == 0 && info.num_ack_pending == 0, "{info:?}");
                Ok(Some(()))
            })
            .await?;
            ensure!(again.is_empty(), "{name}: {again:?} were settled and are delivered again");
            let known = story.known();
            let missed: Vec<u64> =
                known.given.keys().filter(|seq| !known.delivered.contains(seq)).copied().take(5).collect();
            ensure!(missed.is_empty(), "{name}: {missed:?} were never delivered");
        }
        Ok(())
    }
}
