//! Atomic batches: their publishers, who try again, and readers who must see all of a batch or nothing.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::record::{BlockBuilder, RecordFlags};

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::World;

/// What no message of the stream may ask for: whatever asks for it is refused.
const SPOILS: &str = "Nats-TTL: 1s\r\n";

/// One batch, with single messages around it in its block.
struct Batch {
    /// Begins the body of each of its messages; no other batch has it.
    word: String,
    size: usize,
    /// Whether its messages have ids. One without is not sent again when nobody knows what became of it.
    ids: bool,
    /// The message that can't be stored.
    spoiled: Option<usize>,
    before: usize,
    after: usize,
    attempts: u32,
}

impl Batch {
    fn draw(chance: &mut Chance, word: String) -> Self {
        let size = chance.pick(&[1, 2, 3, 8, 30]);
        let at = usize::try_from(chance.below(size)).unwrap_or(0);
        Self {
            word,
            size: usize::try_from(size).unwrap_or(1),
            ids: chance.percent(80),
            spoiled: chance.percent(15).then_some(at),
            before: chance.pick(&[0, 0, 1, 3]),
            after: chance.pick(&[0, 0, 1, 3]),
            attempts: 0,
        }
    }

    /// Where in the block it is.
    fn positions(&self) -> RangeInclusive<usize> {
        self.before..=self.before + self.size - 1
    }

    fn write(&self, breakage: Breakage, block: &mut BlockBuilder) {
        for at in 0..self.before {
            self.write_single(&format!("{}<{at}", self.word), block);
        }
        for at in 0..self.size {
            let is_last = at + 1 == self.size;
            let mut header = format!("NATS/1.0\r\nNats-Batch-Id: {}-{}\r\n", self.word, self.attempts);
            header.push_str(&format!("Nats-Batch-Sequence: {}\r\n", at + 1));
            if is_last {
                header.push_str("Nats-Batch-Commit: 1\r\n");
            }
            if self.ids {
                header.push_str(&format!("Nats-Msg-Id: {}:{at}\r\n", self.word));
            }
            if self.spoiled == Some(at) {
                header.push_str(SPOILS);
            }
            header.push_str("\r\n");
            let is_torn = breakage == Breakage::BatchesAreTorn && at == self.size / 2;
            let ends = if is_last || is_torn { RecordFlags::ENDS_BATCH } else { RecordFlags::PUBLISHED };
            let body = format!("{}:{at}:{} of a batch", self.word, self.size);
            let subject = format!("batch.{}", at % 3);
            let flags = RecordFlags::IN_BATCH.and(ends);
            block.push_flagged(flags, subject.as_bytes(), header.as_bytes(), body.as_bytes());
        }
        for at in 0..self.after {
            self.write_single(&format!("{}>{at}", self.word), block);
        }
    }

    fn write_single(&self, word: &str, block: &mut BlockBuilder) {
        let header =
            if self.ids { format!("NATS/1.0\r\nNats-Msg-Id: {word}\r\n\r\n") } else { String::new() };
        block.push(b"batch.single", header.as_bytes(), format!("{word} alone").as_bytes());
    }

    /// What is wrong with the answer to the whole block.
    fn check(&self, replies: &[PublishReply]) -> Result<(), String> {
        let is_stored = |reply: &&PublishReply| matches!(reply, PublishReply::Stored { .. });
        let own = replies.get(self.positions()).unwrap_or_default();
        let stored = own.iter().filter(is_stored).count();
        let wrong = |what: &str| Err(format!("batch {} of {}: {what}: {own:?}", self.word, self.size));
        if own.len() != self.size || stored != 0 && stored != self.size {
            return wrong("only part of it is stored");
        }
        if self.spoiled.is_some() && stored > 0 {
            return wrong("it is stored, and part of it must not be");
        }
        if self.spoiled.is_none() && stored == 0 && self.attempts == 0 {
            return wrong("it is refused without a reason");
        }
        Ok(())
    }
}

/// Publishes one batch after the other, each until it is answered.
pub(crate) async fn batcher(world: Arc<World>, number: u64) {
    let mut chance = Chance::new(world.seed, &format!("batcher {number}"));
    let mut next = 0;
    loop {
        tokio::time::sleep(chance.millis(0, 300)).await;
        if world.is_closing() {
            return;
        }
        next += 1;
        let mut batch = Batch::draw(&mut chance, format!("b{number}-{next}"));
        while world.oracle.violation().is_none() && attempt(&world, &mut chance, &mut batch).await {}
    }
}

/// Sends a batch once. Whether it has to be sent again.
async fn attempt(world: &World, chance: &mut Chance, batch: &mut Batch) -> bool {
    let Some((host, process)) = world.target_of(Which::Batches, chance) else {
        tokio::time::sleep(chance.millis(20, 200)).await;
        return true;
    };
    let stream = process.stream(Which::Batches);
    let patience = Duration::from_millis(chance.pick(&[150, 800, 4000]));
    let command = |now| {
        let mut block = BlockBuilder::default();
        batch.write(world.plan.breakage, &mut block);
        StreamCommand::Publish(block.finish(now))
    };
    match propose(world, &host, stream, command, patience).await {
        Told::Answer(reply) => {
            let checked = match &*reply {
                Reply::Publish(replies) => batch.check(replies),
                other => Err(format!("batch {} was answered with {other:?}", batch.word)),
            };
            if let Err(what) = checked {
                world.oracle.violated(what);
            }
            false
        }
        Told::NotTaken => {
            tokio::time::sleep(chance.millis(5, 150)).await;
            true
        }
        Told::Nothing => {
            batch.attempts += 1;
            tokio::time::sleep(chance.millis(0, 100)).await;
            batch.ids
        }
    }
}

/// Reads everything that some node has, at any time.
pub(crate) async fn reader(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "reader of batches");
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(20, 400)).await;
        let running = world.processes();
        if running.is_empty() {
            continue;
        }
        let at = usize::try_from(chance.below(running.len() as u64)).unwrap_or(0);
        let (host, process) = &running[at];
        let stream = process.stream(Which::Batches);
        if let Err(what) = inspect(stream)
            && stream.replica.is_alive()
        {
            world.oracle.violated(format!("{}: {what}", host.id));
        }
    }
}

/// Whatever one replica has of a batch must be all of it, in one piece.
pub(crate) fn inspect(stream: &Stream) -> Result<(), String> {
    let mut batches: BTreeMap<String, (u64, Vec<Seq>)> = BTreeMap::new();
    let scanned = stream.replica.read(|machine, view| {
        view.scan(Seq(1), &mut |seq, record| {
            let body = String::from_utf8_lossy(record.payload);
            let mut parts = body.split([':', ' ']);
            if machine.is_live(seq)
                && let (Some(word), Some(_), Some(size)) = (parts.next(), parts.next(), parts.next())
                && let Ok(size) = size.parse()
            {
                batches.entry(word.to_owned()).or_insert((size, Vec::new())).1.push(seq);
            }
            ControlFlow::Continue(())
        })
    });
    scanned.map_err(|error| error.to_string())?;
    for (word, (size, seqs)) in batches {
        let is_whole = seqs.len() as u64 == size;
        let in_one_piece = seqs.windows(2).all(|pair| pair[0].next() == pair[1]);
        if !is_whole || !in_one_piece {
            return Err(format!("only part of batch {word} of {size} is there: {seqs:?}"));
        }
    }
    Ok(())
}
