//! Who uses the stream: publishers that try again, an operator who removes and changes things, and readers who expect
//! to see what was acknowledged before they asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::api::PurgeRequest;
use levee_protocol::command::{Encoded, StreamCommand};
use levee_protocol::ids::Seq;
use levee_protocol::record::BlockBuilder;
use levee_protocol::time::{Nanos, Timestamp};
use levee_raft::ProposeError;
use levee_storage::kind::{BLOCK, INLINE};

use crate::chance::Chance;
use crate::consumers;
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::{Host, World};

/// What became of a proposal, as far as its client knows.
pub(crate) enum Told {
    /// It is committed at this index, with this reply.
    Answer(Box<Reply>),
    /// It was not taken.
    NotTaken,
    /// Nobody knows.
    Nothing,
}

/// Has something committed that needs to be, however often it takes.
pub(crate) async fn insist(world: &World, which: Which, command: impl Fn(Timestamp) -> StreamCommand) {
    let mut chance = Chance::new(world.seed, "insist");
    loop {
        if let Some((host, process)) = world.target_of(which, &mut chance)
            && let Told::Answer(_) =
                propose(world, &host, process.stream(which), &command, Duration::from_secs(5)).await
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Has a stream's group decide something, and waits for its answer.
pub(crate) async fn propose(
    world: &World,
    host: &Host,
    stream: &Stream,
    command: impl Fn(Timestamp) -> StreamCommand,
    patience: Duration,
) -> Told {
    let (kind, sent) = match command(world.stamp(host, stream)).encode() {
        Encoded::Block(bytes) => (BLOCK, bytes),
        Encoded::Inline(bytes) => (INLINE, bytes),
    };
    let proposal = stream.group.propose(kind, sent.clone());
    match tokio::time::timeout(patience, proposal).await {
        Ok(Ok((index, reply))) => match reply.downcast::<Reply>() {
            Ok(reply) => {
                world.oracles[&stream.which].acknowledged_at(index, &sent, &reply);
                Told::Answer(reply)
            }
            Err(_) => {
                world.oracle.violated(format!("entry {index} was answered with something else than a reply"));
                Told::Nothing
            }
        },
        Ok(Err(ProposeError::NotLeader { .. } | ProposeError::Full | ProposeError::NoRoom)) => Told::NotTaken,
        Ok(Err(ProposeError::Unknown { .. } | ProposeError::Stopped)) | Err(_) => Told::Nothing,
    }
}

/// What messages ask for beyond being stored.
const ASKS: [&str; 5] = [
    "Nats-TTL: 1s\r\n",
    "Nats-TTL: 3s\r\n",
    "Nats-TTL: 3s\r\n",
    "Nats-Rollup: sub\r\n",
    "Nats-Rollup: all\r\n",
];

/// One message of a publisher.
struct Item {
    /// First word of its body; no other message has it.
    word: String,
    /// Whether it carries a message id. Ones without are not sent again when nobody knows what became of them.
    id: bool,
    expected_last: Option<u64>,
    subject: u64,
    filling: usize,
    /// A further header line, with its end.
    asks: &'static str,
    attempts: u32,
}

impl Item {
    fn push(&self, breakage: Breakage, block: &mut BlockBuilder) {
        let mut header = String::new();
        if self.id && (breakage != Breakage::RetryWithoutId || self.attempts == 0) {
            header.push_str(&format!("Nats-Msg-Id: {}\r\n", self.word));
        }
        if let Some(expected) = self.expected_last {
            header.push_str(&format!("Nats-Expected-Last-Sequence: {expected}\r\n"));
        }
        header.push_str(self.asks);
        if !header.is_empty() {
            header = format!("NATS/1.0\r\n{header}\r\n");
        }
        let payload = format!("{} {:0filling$}", self.word, 0, filling = self.filling);
        block.push(format!("sim.{}", self.subject).as_bytes(), header.as_bytes(), payload.as_bytes());
    }
}

/// Publishes one batch after the other, each until it is answered.
pub(crate) async fn publisher(world: Arc<World>, number: u64) {
    let mut chance = Chance::new(world.seed, &format!("publisher {number}"));
    let mut next = 0;
    let mut last_known = 0;
    loop {
        tokio::time::sleep(chance.millis(0, world.plan.publish_pause_ms)).await;
        if world.is_closing() {
            return;
        }
        let size = chance.pick(&[1, 1, 2, 5, 20]);
        let mut batch: Vec<Item> = (0..size)
            .map(|_| {
                next += 1;
                Item {
                    word: format!("p{number}-{next}"),
                    id: chance.percent(80),
                    expected_last: chance.percent(5).then_some(last_known),
                    subject: chance.below(12),
                    filling: usize::try_from(chance.pick(&[0, 20, 300])).unwrap_or(0),
                    asks: if chance.percent(world.plan.asking) { chance.pick(&ASKS) } else { "" },
                    attempts: 0,
                }
            })
            .collect();
        while !batch.is_empty() {
            attempt(&world, &mut chance, &mut batch, &mut last_known).await;
            if world.oracle.violation().is_some() {
                return;
            }
        }
    }
}

/// Sends a batch once. What needs no further attempt leaves it.
async fn attempt(world: &World, chance: &mut Chance, batch: &mut Vec<Item>, last_known: &mut u64) {
    let Some((host, process)) = world.target(chance) else {
        return tokio::time::sleep(chance.millis(20, 200)).await;
    };
    let patience = chance.pick(&[150, 800, 4000]);
    let command = |now| {
        let mut block = BlockBuilder::default();
        batch.iter().for_each(|item| item.push(world.plan.breakage, &mut block));
        StreamCommand::Publish(block.finish(now))
    };
    match propose(world, &host, process.stream(Which::Origin), command, Duration::from_millis(patience)).await
    {
        Told::Answer(reply) => {
            let Reply::Publish(replies) = *reply else {
                world.oracle.violated(format!("a publish was answered with {reply:?}"));
                return batch.clear();
            };
            for (item, reply) in batch.drain(..).zip(replies) {
                match reply {
                    PublishReply::Stored { seq, .. } if seq.0 <= *last_known => {
                        world
                            .oracle
                            .violated(format!("{} was stored as {seq}, after {last_known}", item.word));
                    }
                    PublishReply::Stored { seq, .. } => *last_known = seq.0,
                    PublishReply::Duplicate { seq } if item.attempts == 0 => {
                        world
                            .oracle
                            .violated(format!("{} was never sent and is a duplicate of {seq}", item.word));
                    }
                    PublishReply::Duplicate { .. }
                    | PublishReply::Outdated
                    | PublishReply::Skipped
                    | PublishReply::Rejected(_) => {}
                }
            }
        }
        Told::NotTaken => tokio::time::sleep(chance.millis(5, 150)).await,
        Told::Nothing => {
            batch.retain(|item| item.id);
            batch.iter_mut().for_each(|item| item.attempts += 1);
            tokio::time::sleep(chance.millis(0, 100)).await;
        }
    }
}

/// Removes messages, purges, changes limits, pauses and updates consumers, and lets time pass in the stream.
pub(crate) async fn operator(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "operator");
    let mut ordinary = world.plan.stream.clone();
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(20, 600)).await;
        let Some((host, process)) = world.target(&mut chance) else { continue };
        let (first, last) = process
            .stream(Which::Origin)
            .replica
            .read(|machine, _| (machine.first_seq().0, machine.last_seq().0));
        let some_seq = chance.between(first.min(last), last + 1);
        let which = chance.below(100);
        let created = world.created();
        let command: Box<dyn Fn(Timestamp) -> StreamCommand + Send + Sync> = match which {
            0..50 => Box::new(move |now| StreamCommand::DeleteMessage { now, seq: Seq(some_seq) }),
            50..58 => {
                let request = match chance.below(4) {
                    0 => PurgeRequest { seq: some_seq, ..PurgeRequest::default() },
                    1 => PurgeRequest { keep: chance.between(1, 30), ..PurgeRequest::default() },
                    2 => PurgeRequest {
                        filter: format!("sim.{}", chance.below(12)),
                        ..PurgeRequest::default()
                    },
                    _ => PurgeRequest::default(),
                };
                Box::new(move |now| StreamCommand::Purge { now, request: request.clone() })
            }
            58..62 => {
                ordinary.max_msgs = chance.pick(&[-1, 30, 200, world.plan.stream.max_msgs]);
                let config = ordinary.clone();
                Box::new(move |now| StreamCommand::Configure {
                    now,
                    created,
                    config: Box::new(config.clone()),
                })
            }
            62..72 if !world.plan.consumers.is_empty() => {
                let at = usize::try_from(chance.below(world.plan.consumers.len() as u64)).unwrap_or(0);
                let config = world.plan.consumers[at].clone();
                let span = Nanos::from_millis(chance.pick(&[0, 200, 600, 2000]));
                let span = Some(span).filter(|span| *span > Nanos::ZERO);
                let bounds = (chance.pick(&[300, 1000, 4000]), chance.pick(&[1, 3, 10, 100]));
                if chance.percent(50) {
                    Box::new(move |now| consumers::pause(&config, span, now))
                } else {
                    Box::new(move |now| consumers::update(&config, bounds, now))
                }
            }
            _ => Box::new(|now| StreamCommand::Tick { now }),
        };
        propose(&world, &host, process.stream(Which::Origin), command, Duration::from_secs(1)).await;
    }
}

/// Reads at any node, and must see what was acknowledged before.
pub(crate) async fn reader(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "reader");
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(5, 150)).await;
        let running = world.processes();
        if running.is_empty() {
            continue;
        }
        let at = usize::try_from(chance.below(running.len() as u64)).unwrap_or(0);
        let (host, process) = &running[at];
        let (_, acknowledged) = world.oracle.acknowledged();
        if world.plan.breakage != Breakage::ReadWithoutBarrier
            && process.stream(Which::Origin).group.read_barrier().await.is_err()
        {
            continue;
        }
        let applied = process.stream(Which::Origin).group.applied_next();
        if applied <= acknowledged {
            world.oracle.violated(format!(
                "{}: a read returned before entry {acknowledged}, which was acknowledged; the next there is {applied}",
                host.id
            ));
        }
    }
}

/// Bytes that a replica must hold for a message.
pub(crate) fn shown(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
