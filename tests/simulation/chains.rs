//! Fast batches that must have no hole: a message is stored only if those of its batch before it are. Their publishers
//! give up where an answer is missing; up to what was acknowledged everything is there, and nothing behind a hole.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::record::BlockBuilder;
use parking_lot::Mutex;

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::World;

/// What no message of the stream may ask for: whatever asks for it is refused.
const SPOILED: &[u8] = b"NATS/1.0\r\nNats-TTL: 1s\r\n\r\n";

/// How far each batch was acknowledged.
#[derive(Default)]
pub(crate) struct Acknowledged(Mutex<BTreeMap<String, u64>>);

/// A fast batch that is open.
struct Chain {
    /// Begins the body of each of its messages; no other batch has it.
    word: String,
    /// What the next message is.
    next: u64,
    /// How many more there are.
    left: u64,
}

impl Chain {
    /// Writes some messages, all of them in this chain of the block.
    fn write(&mut self, chance: &mut Chance, chain: u8, breakage: Breakage, block: &mut BlockBuilder) -> u64 {
        let count = chance.between(1, 5).min(self.left);
        for position in self.next..self.next + count {
            let header = if chance.percent(8) { SPOILED } else { b"" };
            block.push(b"batch.fast", header, format!("{}:{position} of a fast batch", self.word).as_bytes());
            if breakage != Breakage::ChainsAreLoose {
                block.chain_last(chain);
            }
        }
        self.left -= count;
        count
    }

    /// Looks at the answers to its messages. Whether it goes on.
    fn hears(&mut self, replies: &[PublishReply]) -> Result<bool, String> {
        let is_stored = |reply: &PublishReply| matches!(reply, PublishReply::Stored { .. });
        let held = replies.iter().take_while(|reply| is_stored(reply)).count();
        if replies[held..].iter().skip(1).any(|reply| *reply != PublishReply::Skipped) {
            return Err(format!("there is a hole in {} from {} on: {replies:?}", self.word, self.next));
        }
        self.next += held as u64;
        Ok(held == replies.len() && self.left > 0)
    }
}

/// Publishes two batches at a time, in the same blocks.
pub(crate) async fn chainer(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "chainer");
    let mut next = 0;
    let mut chains: Vec<Chain> = Vec::new();
    loop {
        tokio::time::sleep(chance.millis(0, 150)).await;
        if world.is_closing() {
            return;
        }
        while chains.len() < 2 {
            next += 1;
            chains.push(Chain { word: format!("f{next}"), next: 1, left: chance.between(1, 30) });
        }
        attempt(&world, &mut chance, &mut chains).await;
    }
}

/// Sends some messages of each batch at once. Those that have ended leave.
async fn attempt(world: &World, chance: &mut Chance, chains: &mut Vec<Chain>) {
    let Some((host, process)) = world.target_of(Which::Batches, chance) else {
        return tokio::time::sleep(chance.millis(20, 200)).await;
    };
    let mut counts = Vec::new();
    let mut block = BlockBuilder::default();
    for (number, chain) in (1..).zip(chains.iter_mut()) {
        counts.push(chain.write(chance, number, world.plan.breakage, &mut block));
    }
    let stream = process.stream(Which::Batches);
    let block = block.finish(world.stamp(&host, stream));
    let command = |_| StreamCommand::Publish(block.clone());
    let patience = Duration::from_millis(chance.pick(&[150, 800, 4000]));
    let Told::Answer(reply) = propose(world, &host, stream, command, patience).await else {
        // What comes next might be stored without what was sent now.
        return chains.clear();
    };
    let Reply::Publish(replies) = *reply else {
        return world.oracle.violated(format!("messages of fast batches were answered with {reply:?}"));
    };
    let mut replies = &replies[..];
    let mut counts = counts.into_iter();
    chains.retain_mut(|chain| {
        let count = usize::try_from(counts.next().unwrap_or(0)).unwrap_or(0);
        let (own, rest) = replies.split_at(count.min(replies.len()));
        replies = rest;
        let goes_on = chain.hears(own).unwrap_or_else(|what| {
            world.oracle.violated(what);
            false
        });
        world.acknowledged.0.lock().insert(chain.word.clone(), chain.next - 1);
        goes_on
    });
}

/// Looks at any node that has heard from the leader.
pub(crate) async fn reader(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "reader of fast batches");
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(20, 400)).await;
        let Some((host, process)) = world.target_of(Which::Batches, &mut chance) else { continue };
        let stream = process.stream(Which::Batches);
        let acknowledged = world.acknowledged.0.lock().clone();
        if stream.group.read_barrier().await.is_err() || !stream.replica.is_alive() {
            continue;
        }
        if let Err(what) = look(stream, &acknowledged) {
            world.oracle.violated(format!("{}: {what}", host.id));
        }
    }
}

/// What every replica must have at the end.
pub(crate) fn inspect(world: &World, stream: &Stream) -> Result<(), String> {
    look(stream, &world.acknowledged.0.lock())
}

fn look(stream: &Stream, acknowledged: &BTreeMap<String, u64>) -> Result<(), String> {
    let mut held: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let scanned = stream.replica.read(|machine, view| {
        view.scan(Seq(1), &mut |seq, record| {
            let body = String::from_utf8_lossy(record.payload);
            if machine.is_live(seq)
                && record.subject == b"batch.fast"
                && let Some((word, rest)) = body.split_once(':')
                && let Some(Ok(position)) = rest.split(' ').next().map(str::parse)
            {
                held.entry(word.to_owned()).or_default().push(position);
            }
            ControlFlow::Continue(())
        })
    });
    scanned.map_err(|error| error.to_string())?;
    for (word, positions) in &held {
        if !positions.iter().copied().eq(1..=positions.len() as u64) {
            return Err(format!("there is a hole in {word}: {positions:?}"));
        }
    }
    for (word, upto) in acknowledged {
        let count = held.get(word).map_or(0, Vec::len) as u64;
        if count < *upto {
            return Err(format!("{word} was acknowledged up to {upto}, and is there up to {count}"));
        }
    }
    Ok(())
}
