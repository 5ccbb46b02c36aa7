//! A stream that is filled from an archive of another one while everything fails: it becomes whole, or nobody ever sees
//! it. Whoever restores it gives up when an answer is missing, as the broker does when the leader is lost.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::Reply;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::model::Message;
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::World;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Messages of a block.
const BLOCK_MESSAGES: usize = 20;

/// Stands for a sequence without a message.
const ABSENT: RecordRef<'_> =
    RecordRef { timestamp: Timestamp::ZERO, subject: b"", header: b"", payload: b"" };

/// The archive, and how far its restore has come.
#[derive(Default)]
pub(crate) struct Restore(Mutex<Progress>);

#[derive(Default)]
struct Progress {
    messages: BTreeMap<Seq, Message>,
    first: Seq,
    last: Seq,
    last_time: Timestamp,
    stage: Stage,
}

/// How far it has come, as its client knows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Stage {
    /// Not to the end: nobody may see the stream.
    #[default]
    Part,
    /// It was asked to be ended, and nobody knows what came of that.
    Unknown,
    /// The client was told that it is whole.
    Whole,
}

/// Restores an archive of the first stream once.
pub(crate) async fn restorer(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "restorer");
    tokio::time::sleep(chance.millis(2000, 12_000)).await;
    while !world.is_closing() {
        if world.leading(Which::Restored).is_some() && take_down(&world) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !world.is_closing() {
        restore(&world, &mut chance).await;
    }
}

/// Takes the stream down as it is in one moment.
fn take_down(world: &World) -> bool {
    let Some((_, process)) = world.leading(Which::Origin) else { return false };
    let mut archive = Progress::default();
    let read = process.stream(Which::Origin).replica.read(|machine, view| {
        let state = machine.state();
        (archive.first, archive.last) = (state.first_seq, state.last_seq);
        archive.last_time = machine.clock();
        view.scan(state.first_seq.max(Seq(1)), &mut |seq, record| {
            if machine.is_live(seq) {
                archive.messages.insert(seq, Message::of(&record));
            }
            ControlFlow::Continue(())
        })
    });
    let is_read = read.is_ok() && !archive.messages.is_empty();
    if is_read {
        *world.restore.0.lock() = archive;
    }
    is_read
}

async fn restore(world: &World, chance: &mut Chance) {
    let (first, last, last_time, messages) = {
        let archive = world.restore.0.lock();
        (archive.first, archive.last, archive.last_time, archive.messages.clone())
    };
    world.trace.note(format_args!("restores {} messages, {first} to {last}", messages.len()));
    if !decide(world, |now| StreamCommand::RestoreBegin { now, first }).await {
        return;
    }
    let messages: Vec<(Seq, Message)> = messages.into_iter().collect();
    for (number, run) in messages.chunks(BLOCK_MESSAGES).enumerate() {
        if world.plan.breakage == Breakage::RestoreLeavesOut && number == 1 {
            continue;
        }
        if !decide(world, |now| StreamCommand::Restore(block(run, now))).await {
            return;
        }
        if chance.percent(10) {
            interfere(world).await;
        }
        tokio::time::sleep(chance.millis(0, 40)).await;
    }
    world.restore.0.lock().stage = Stage::Unknown;
    if decide(world, |now| StreamCommand::RestoreEnd { now, last, last_time }).await {
        world.restore.0.lock().stage = Stage::Whole;
        world.trace.note(format_args!("the restore is whole"));
    }
}

/// Messages in the order of their sequences, and a place for each that is missing between them.
fn block(run: &[(Seq, Message)], now: Timestamp) -> Block {
    let first = run.first().map_or(Seq::NONE, |(seq, _)| *seq);
    let mut block = BlockBuilder::placed(first, 0);
    let mut next = first;
    for (seq, message) in run {
        while next < *seq {
            block.push_timed(RecordFlags::PUBLISHED, &ABSENT);
            next = next.next();
        }
        let record = RecordRef {
            timestamp: message.at,
            subject: &message.subject,
            header: &message.header,
            payload: &message.payload,
        };
        block.push_timed(RecordFlags::PUBLISHED, &record);
        next = next.next();
    }
    block.finish(now)
}

/// Whether the group has decided it, and has not refused.
async fn decide(world: &World, command: impl Fn(Timestamp) -> StreamCommand) -> bool {
    let Some((host, process)) = world.leading(Which::Restored) else { return false };
    let told = propose(world, &host, process.stream(Which::Restored), command, PATIENCE).await;
    match told {
        Told::Answer(reply) if matches!(*reply, Reply::Rejected(_)) => {
            world.oracle.violated(format!("a step of a restore was answered with {reply:?}"));
            false
        }
        Told::Answer(_) => true,
        Told::NotTaken | Told::Nothing => false,
    }
}

/// Somebody else wants to remove everything meanwhile, and must not be able to.
async fn interfere(world: &World) {
    let Some((host, process)) = world.leading(Which::Restored) else { return };
    let purge = |now| StreamCommand::Purge { now, request: Default::default() };
    let told = propose(world, &host, process.stream(Which::Restored), purge, PATIENCE).await;
    if let Told::Answer(reply) = told
        && !matches!(*reply, Reply::Rejected(_))
    {
        world.oracle.violated(format!("a purge of a stream that is being restored gave {reply:?}"));
    }
}

/// What one replica must hold: all of the archive and nothing else, or a stream that is not to be seen.
pub(crate) fn inspect(world: &World, stream: &Stream) -> Result<(), String> {
    let archive = world.restore.0.lock();
    let mut held = BTreeMap::new();
    let (is_seen, state, scanned) = stream.replica.read(|machine, view| {
        let scanned = view.scan(Seq(1), &mut |seq, record| {
            if machine.is_live(seq) {
                held.insert(seq, Message::of(&record));
            }
            ControlFlow::Continue(())
        });
        (!machine.is_restoring(), machine.state(), scanned)
    });
    scanned.map_err(|error| error.to_string())?;
    if archive.stage == Stage::Whole && !is_seen {
        return Err("the restore was whole, and the stream is not to be seen".to_owned());
    }
    if archive.stage == Stage::Part && is_seen && state.last_seq > Seq::NONE {
        return Err(format!("it is to be seen up to {}, and its restore was not whole", state.last_seq));
    }
    if archive.stage == Stage::Part || !is_seen {
        return Ok(());
    }
    if let Some((seq, _)) = archive.messages.iter().find(|(seq, message)| held.get(seq) != Some(message)) {
        return Err(format!("{seq} of the archive is not there, or is another"));
    }
    if held.len() != archive.messages.len() || state.last_seq != archive.last {
        return Err(format!(
            "it has {} messages up to {}, the archive {} up to {}",
            held.len(),
            state.last_seq,
            archive.messages.len(),
            archive.last
        ));
    }
    Ok(())
}
