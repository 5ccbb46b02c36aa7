//! Counters: clients that add to them and try again, readers that look at the sums, and what a sum may be: all that
//! was acknowledged, and of what was sent and not acknowledged any part, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::counter::{PendingSums, body};
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::command::StreamCommand;
use levee_protocol::record::{BlockBuilder, RecordFlags};
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::model::WORD_HEADER;
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::World;

/// Counters of a run.
const COUNTERS: u64 = 3;

/// What clients have added, by counter.
#[derive(Default)]
pub(crate) struct Tallies(Mutex<BTreeMap<u64, Tally>>);

/// What was added to one counter: what makes it larger apart from what makes it smaller.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: (i64, i64),
    acknowledged: (i64, i64),
}

impl Tallies {
    fn of(&self, counter: u64) -> Tally {
        self.0.lock().get(&counter).copied().unwrap_or_default()
    }

    fn sends(&self, counter: u64, increment: i64) {
        add(&mut self.0.lock().entry(counter).or_default().sent, increment);
    }

    fn acknowledged(&self, counter: u64, increment: i64) {
        add(&mut self.0.lock().entry(counter).or_default().acknowledged, increment);
    }
}

fn add((up, down): &mut (i64, i64), increment: i64) {
    *up += increment.max(0);
    *down += increment.min(0);
}

/// Whether a counter may show this, between two looks at what was added.
fn check(counter: u64, shown: i64, before: Tally, after: Tally) -> Result<(), String> {
    let least = before.acknowledged.0 + after.sent.1;
    let most = after.sent.0 + before.acknowledged.1;
    if shown < least || shown > most {
        return Err(format!("counter {counter} shows {shown}, and must be between {least} and {most}"));
    }
    Ok(())
}

/// One increment.
struct Item {
    counter: u64,
    increment: i64,
    /// Tells it from all others.
    word: String,
    /// Whether it carries a message id. One without is not sent again when nobody knows what became of it.
    id: bool,
    attempts: u32,
}

/// Adds to counters, a few increments at a time.
pub(crate) async fn adder(world: Arc<World>, number: u64) {
    let mut chance = Chance::new(world.seed, &format!("adder {number}"));
    let mut next = 0;
    loop {
        tokio::time::sleep(chance.millis(0, 200)).await;
        if world.is_closing() {
            return;
        }
        let mut items: Vec<Item> = (0..chance.pick(&[1, 1, 2, 4]))
            .map(|_| {
                next += 1;
                Item {
                    counter: chance.below(COUNTERS),
                    increment: chance.pick(&[1, 1, 7, 1000, -3]),
                    word: format!("a{number}-{next}"),
                    id: chance.percent(85),
                    attempts: 0,
                }
            })
            .collect();
        for item in &items {
            world.tallies.sends(item.counter, item.increment);
        }
        while !items.is_empty() && world.oracle.violation().is_none() {
            attempt(&world, &mut chance, &mut items).await;
        }
    }
}

/// Sends increments once. What needs no further attempt leaves.
async fn attempt(world: &World, chance: &mut Chance, items: &mut Vec<Item>) {
    let Some((host, process)) = world.target_of(Which::Counters, chance) else {
        return tokio::time::sleep(chance.millis(20, 200)).await;
    };
    let stream = process.stream(Which::Counters);
    let patience = Duration::from_millis(chance.pick(&[150, 800, 4000]));
    let command = |now| written(world, stream, items, now);
    match propose(world, &host, stream, command, patience).await {
        Told::Answer(reply) => {
            let Reply::Publish(replies) = *reply else {
                world.oracle.violated(format!("increments were answered with {reply:?}"));
                return items.clear();
            };
            let mut replies = replies.into_iter();
            items.retain(|item| match replies.next() {
                // What was added up before is not there any more.
                Some(PublishReply::Outdated) => true,
                Some(PublishReply::Duplicate { .. }) if item.attempts == 0 => {
                    world.oracle.violated(format!("{} was never sent and is a duplicate", item.word));
                    false
                }
                Some(PublishReply::Stored { .. } | PublishReply::Duplicate { .. }) => {
                    world.tallies.acknowledged(item.counter, item.increment);
                    false
                }
                other => {
                    world.oracle.violated(format!("{} was answered with {other:?}", item.word));
                    false
                }
            });
        }
        Told::NotTaken => tokio::time::sleep(chance.millis(5, 150)).await,
        Told::Nothing => {
            items.retain(|item| item.id);
            items.iter_mut().for_each(|item| item.attempts += 1);
            tokio::time::sleep(chance.millis(0, 100)).await;
        }
    }
}

/// The leader adds up and writes the sums, as the broker's composer does.
fn written(world: &World, stream: &Stream, items: &[Item], now: Timestamp) -> StreamCommand {
    let mut block = BlockBuilder::default();
    let mut pending = PendingSums::new();
    stream.replica.read(|machine, view| {
        for item in items {
            let subject = subject(item.counter).into_bytes();
            let is_another = world.plan.breakage == Breakage::RetriesCountAgain && item.attempts > 0;
            let word =
                if is_another { format!("{}+{}", item.word, item.attempts) } else { item.word.clone() };
            let id = if item.id { format!("Nats-Msg-Id: {word}\r\n") } else { String::new() };
            let increment = item.increment.to_string();
            let header = format!("NATS/1.0\r\n{id}{WORD_HEADER}: {word}\r\nNats-Incr: {increment}\r\n\r\n");
            let sum = match machine.next_sum(&subject, &increment, &pending, view) {
                Ok(Ok(sum)) => sum,
                other => return world.oracle.violated(format!("{word} can't be added: {other:?}")),
            };
            block.push_flagged(RecordFlags::COUNTED, &subject, header.as_bytes(), &body(&sum));
            pending.insert(subject.into(), sum);
        }
    });
    StreamCommand::Publish(block.finish(now))
}

/// Looks at the counters of any node, after it has heard from the leader.
pub(crate) async fn summer(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "summer");
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(20, 300)).await;
        let Some((_, process)) = world.target_of(Which::Counters, &mut chance) else { continue };
        let stream = process.stream(Which::Counters);
        let counter = chance.below(COUNTERS);
        let before = world.tallies.of(counter);
        if stream.group.read_barrier().await.is_err() || !stream.replica.is_alive() {
            continue;
        }
        if let Err(what) = look(&world, stream, counter, before) {
            world.oracle.violated(what);
        }
    }
}

fn look(world: &World, stream: &Stream, counter: u64, before: Tally) -> Result<(), String> {
    let filter = Filter::parse(&subject(counter)).map_err(|error| error.to_string())?;
    let last = stream.replica.read(|machine, view| match machine.last_for(&filter) {
        Some(seq) => view.record(seq),
        None => Ok(None),
    });
    let last = last.map_err(|error| error.to_string())?;
    let shown = last.map_or(Some(0), |record| shown(&record.payload));
    let shown = shown.ok_or_else(|| format!("counter {counter} shows no sum"))?;
    check(counter, shown, before, world.tallies.of(counter))
}

/// What every replica must show at the end.
pub(crate) fn inspect(world: &World, stream: &Stream) -> Result<(), String> {
    (0..COUNTERS).try_for_each(|counter| look(world, stream, counter, world.tallies.of(counter)))
}

/// The sum in a message.
pub(crate) fn shown(payload: &[u8]) -> Option<i64> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    value.get("val")?.as_str()?.parse().ok()
}

fn subject(counter: u64) -> String {
    format!("count.{counter}")
}
