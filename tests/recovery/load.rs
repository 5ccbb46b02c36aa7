//! Clients that keep a node busy in all the ways that reach its disk, and remember what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::Client;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, ContextBuilder};
use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::task::JoinSet;

/// Longer than a cut and what follows it: whoever is not answered by then is not answered at all.
const NEVER: Duration = Duration::from_secs(60);
/// Messages that a worker takes at once.
const HANDFUL: usize = 32;

/// What the clients of one stream know of it.
#[derive(Clone, Default)]
pub(crate) struct Story(Arc<Mutex<Known>>);

#[derive(Default)]
pub(crate) struct Known {
    /// By message id.
    pub(crate) sent: BTreeMap<String, Sent>,
    /// By acknowledged sequence, the ids.
    pub(crate) given: BTreeMap<u64, String>,
    /// Removals that were asked for, and those that were confirmed.
    pub(crate) asked: Removals,
    pub(crate) confirmed: Removals,
    /// What a worker got, and what of that was confirmed to be settled.
    pub(crate) delivered: BTreeSet<u64>,
    pub(crate) settled: BTreeSet<u64>,
    /// Sequences that were given twice.
    pub(crate) given_again: Vec<String>,
    /// Goes on where the last round ended, so that no id comes twice.
    count: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) subject: String,
    pub(crate) bytes: usize,
    pub(crate) acknowledged: Option<Acknowledged>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) seq: u64,
    pub(crate) at: Instant,
}

/// Messages that are not to be there: all before a sequence, and some behind it.
#[derive(Default)]
pub(crate) struct Removals {
    pub(crate) before: u64,
    pub(crate) seqs: BTreeSet<u64>,
}

impl Removals {
    pub(crate) fn has(&self, seq: u64) -> bool {
        seq < self.before || self.seqs.contains(&seq)
    }
}

impl Story {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a message and remembers what came of it. The same id may be published again.
    pub(crate) async fn publish(
        &self,
        js: &Context,
        id: &str,
        subject: &str,
        bytes: usize,
    ) -> Result<Answer> {
        let sent = Sent { subject: subject.to_owned(), bytes, acknowledged: None };
        self.known().sent.entry(id.to_owned()).or_insert(sent);
        let message = PublishMessage::build().payload(body(id, bytes).into()).message_id(id);
        let ack = js.send_publish(subject.to_owned(), message).await?.await?;
        let mut known = self.known();
        let acknowledged = Acknowledged { seq: ack.sequence, at: Instant::now() };
        if let Some(sent) = known.sent.get_mut(id) {
            sent.acknowledged.get_or_insert(acknowledged);
        }
        let owner = known.given.entry(ack.sequence).or_insert_with(|| id.to_owned()).clone();
        if owner != id {
            known.given_again.push(format!("{} of {owner} was given to {id} as well", ack.sequence));
        }
        Ok(Answer { seq: ack.sequence, duplicate: ack.duplicate })
    }

    fn next_id(&self, subject: &str) -> String {
        let mut known = self.known();
        known.count += 1;
        format!("{subject}-{}", known.count)
    }
}

/// What a publisher was told.
pub(crate) struct Answer {
    pub(crate) seq: u64,
    pub(crate) duplicate: bool,
}

/// The payload of a message: nothing else has the same.
pub(crate) fn body(id: &str, bytes: usize) -> String {
    let mut body = format!("{id} ").repeat(bytes / (id.len() + 1) + 1);
    body.truncate(bytes);
    body
}

pub(crate) fn patient(client: Client) -> Context {
    ContextBuilder::new().timeout(NEVER).ack_timeout(NEVER).build(client)
}

/// Work that goes on until it is dropped.
#[derive(Default)]
pub(crate) struct Work(JoinSet<()>);

impl Work {
    /// A publisher on subjects that `subject` gives, with messages of these sizes in turn, so many unanswered at a time and
    /// so many between two pauses.
    pub(crate) fn publisher(
        &mut self,
        client: Client,
        story: &Story,
        subject: impl Fn(u64) -> String + Send + 'static,
        sizes: &'static [usize],
        window: usize,
        pause: Duration,
    ) {
        let (js, story) = (patient(client), story.clone());
        self.0.spawn(async move {
            let mut waiting = FuturesUnordered::new();
            for (number, bytes) in sizes.iter().cycle().enumerate() {
                let number = number as u64;
                let (subject, js, story) = (subject(number), js.clone(), story.clone());
                let id = story.next_id(&subject);
                waiting.push(async move { story.publish(&js, &id, &subject, *bytes).await });
                if waiting.len() == window && waiting.next().await.is_none_or(|done| done.is_err()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if number.is_multiple_of(window as u64) && !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
        });
    }

    /// A worker that confirms every message it gets.
    pub(crate) fn worker(&mut self, consumer: PullConsumer, story: &Story) {
        let story = story.clone();
        self.0.spawn(async move {
            loop {
                if settle(&consumer, &story).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }

    /// Somebody who removes all but the newest messages, now and then, and single ones of those.
    pub(crate) fn remover(&mut self, client: Client, stream: &'static str, story: &Story) {
        let (js, story) = (patient(client), story.clone());
        self.0.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(40)).await;
                let _ = remove(&js, stream, &story).await;
            }
        });
    }

    /// Somebody who looks where a stream begins: what it said to be gone is to stay gone.
    pub(crate) fn watcher(&mut self, client: Client, stream: &'static str, story: &Story) {
        let (js, story) = (patient(client), story.clone());
        self.0.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(40)).await;
                let Ok(handle) = js.get_stream_no_info(stream).await else { continue };
                let Ok(info) = handle.get_info().await else { continue };
                let mut known = story.known();
                known.confirmed.before = known.confirmed.before.max(info.state.first_sequence);
            }
        });
    }
}

/// Takes what there is and confirms it. Gives what was delivered.
pub(crate) async fn settle(consumer: &PullConsumer, story: &Story) -> Result<Vec<u64>> {
    let batch = consumer.batch().max_messages(HANDFUL).expires(Duration::from_millis(500)).messages().await?;
    let messages: Vec<jetstream::Message> = batch.try_collect().await.map_err(anyhow::Error::from_boxed)?;
    let mut delivered = Vec::new();
    for message in &messages {
        let seq = message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence;
        story.known().delivered.insert(seq);
        delivered.push(seq);
    }
    let confirmed = futures::future::join_all(messages.iter().map(jetstream::Message::double_ack)).await;
    for (seq, confirmed) in delivered.iter().zip(confirmed) {
        if confirmed.is_ok() {
            story.known().settled.insert(*seq);
        }
    }
    Ok(delivered)
}

async fn remove(js: &Context, stream: &str, story: &Story) -> Result<()> {
    let last = story.known().given.last_key_value().map_or(0, |(seq, _)| *seq);
    // A purge up to sequence 0 is one of everything.
    let Some(before) = last.checked_sub(200).filter(|before| *before > 0) else { return Ok(()) };
    let single = last - last % 100;
    let handle = js.get_stream_no_info(stream).await?;
    story.known().asked.seqs.insert(single);
    if handle.delete_message(single).await.is_ok_and(|deleted| deleted) {
        story.known().confirmed.seqs.insert(single);
    }
    {
        let mut known = story.known();
        known.asked.before = known.asked.before.max(before);
    }
    handle.purge().sequence(before).await?;
    let mut known = story.known();
    known.confirmed.before = known.confirmed.before.max(before);
    Ok(())
}

/// The consumer of a worker.
pub(crate) async fn consumer(js: &Context, stream: &str, replicas: usize) -> Result<PullConsumer> {
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_wait: Duration::from_secs(2),
        max_ack_pending: 10_000,
        num_replicas: replicas,
        ..Default::default()
    };
    Ok(js.get_stream_no_info(stream).await?.get_or_create_consumer("worker", config).await?)
}
