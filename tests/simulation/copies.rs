//! Streams that mirror or source others: their readers, as the broker runs them on the leader, and what the copies must
//! hold at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::mirror::{Ask, Copied, Copier, Puller, server};
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::ids::Seq;
use levee_protocol::mirror::{FetchAnswer, FetchRequest, Reader as Asking};
use levee_protocol::record::Block;
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};
use levee_storage::kind::BLOCK;

use crate::attached::Attached;
use crate::chance::Chance;
use crate::leading::Leader;
use crate::model::{Message, Model, identity};
use crate::plan::Breakage;
use crate::streams::{Stream, Which};
use crate::world::World;

/// How long an origin waits for a message.
const WAIT_MS: u64 = 1000;
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// Nothing of an answer is stored, or it is not known.
struct NotStored;

/// One reader of one origin, on the leader of the copy.
struct Reader {
    leader: Arc<Leader>,
    copier: Copier,
    puller: Puller,
    chance: Chance,
}

/// How a reader comes to what the origin has.
enum Link {
    /// It asks whoever leads it.
    Cluster { world: Arc<World>, origin: Which },
    /// A consumer that was made by hand delivers.
    Attached(Box<Attached>),
}

impl Link {
    async fn fetch(&mut self, request: FetchRequest) -> FetchAnswer {
        match self {
            Self::Cluster { world, origin } => fetch(world, *origin, request).await,
            Self::Attached(attached) => attached.fetch(request).await,
        }
    }
}

/// Begins to read everything that the stream copies.
pub(crate) fn start(leader: &Arc<Leader>) {
    let which = leader.stream.which;
    for origin in which.origins(&leader.world) {
        let source = leader.world.plan.source(which, origin);
        let link = match &source.consumer {
            Some(consumer) => Link::Attached(Box::new(Attached::new(&leader.world, &leader.host, consumer))),
            None => Link::Cluster { world: Arc::clone(&leader.world), origin },
        };
        let copier =
            if which == Which::Mirror { Copier::of_mirror(&source) } else { Copier::of_source(&source) };
        let copier = copier.expect("a source without transforms is valid");
        let has = leader.stream.replica.read(|machine, _| machine.source(copier.key()));
        let puller = if copier.mirrors() {
            Puller::of_mirror(&source, has.seq)
        } else {
            Puller::of_source(&source, &has)
        };
        let label = format!("reader of {} for {}", origin.name(), which.name());
        let chance = Chance::new(leader.world.seed, &label);
        let reader = Reader { leader: Arc::clone(leader), copier, puller, chance };
        leader.spawn(reader.run(link));
    }
}

impl Reader {
    async fn run(mut self, mut link: Link) {
        let mut ahead = None;
        let mut is_attached = false;
        while !self.leader.world.is_over() {
            let answer = match ahead.take() {
                Some(answer) => answer,
                None => {
                    let request = self.ask(Ask::Wait(WAIT_MS));
                    link.fetch(request).await
                }
            };
            let stored = if answer.elsewhere || answer.refusal().is_some() {
                Err(NotStored)
            } else {
                self.puller.on_answer(&answer, self.leader.world.now(&self.leader.host));
                let request = (answer.through < answer.last_seq).then(|| self.ask(Ask::AtOnce));
                let store = self.store(&answer, is_attached);
                match request {
                    Some(request) => {
                        let (stored, next) = tokio::join!(store, link.fetch(request));
                        ahead = Some(next);
                        stored
                    }
                    None => store.await,
                }
            };
            if stored.is_ok() {
                is_attached = true;
                self.puller.on_stored();
            } else {
                (ahead, is_attached) = (None, false);
                let has = self.leader.stream.replica.read(|machine, _| machine.source(self.copier.key()));
                tokio::time::sleep(self.puller.on_failure(&has, None).to_std()).await;
            }
        }
    }

    fn ask(&mut self, how: Ask) -> FetchRequest {
        let Leader { world, host, stream, .. } = &*self.leader;
        let has = stream.replica.read(|machine, _| machine.source(self.copier.key()));
        let reader = Asking {
            stream: stream.which.name().to_owned(),
            mirrors: self.copier.mirrors(),
            stored: has.seq,
            identity: has.identity,
            ..Asking::default()
        };
        FetchRequest { reader: Some(reader), ..self.puller.ask(how, world.now(host)) }
    }

    async fn store(&mut self, answer: &FetchAnswer, is_attached: bool) -> Result<(), NotStored> {
        let Leader { world, host, stream, .. } = &*self.leader;
        if world.is_over() {
            return Err(NotStored);
        }
        let messages = answer.messages().map_err(|_| NotStored)?;
        let Some(block) = messages else {
            let now = world.stamp(host, stream);
            let skips = self.copier.mirrors() && !is_attached;
            let skipped = stream.replica.read(|machine, _| self.copier.skip(machine, answer, now));
            return match skipped.filter(|_| skips) {
                Some(block) => propose(stream, &block).await,
                None => Ok(()),
            };
        };
        let copied = Copied {
            identity: &answer.identity,
            born: answer.born,
            block: &block,
            seqs: &answer.seqs,
            through: answer.through,
            restored_to: answer.restored_to,
        };
        loop {
            let now = world.stamp(host, stream);
            let draw = &mut || self.chance.draw();
            let next =
                stream.replica.read(|machine, view| self.copier.block((machine, view), &copied, now, draw));
            match next {
                Ok(Ok(Some(block))) => propose(stream, &block).await?,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(_)) | Err(_) => return Err(NotStored),
            }
            world.trace.note(format_args!("{} copies up to {}", stream.which.name(), answer.through));
        }
    }
}

async fn propose(stream: &Stream, block: &Block) -> Result<(), NotStored> {
    let (_, reply) = stream.group.propose(BLOCK, block.as_bytes().clone()).await.map_err(|_| NotStored)?;
    let Ok(reply) = reply.downcast::<Reply>() else { return Err(NotStored) };
    let Reply::Publish(replies) = *reply else { return Err(NotStored) };
    let is_stored =
        |reply: &PublishReply| matches!(reply, PublishReply::Stored { .. } | PublishReply::Duplicate { .. });
    if replies.iter().skip(1).all(is_stored) { Ok(()) } else { Err(NotStored) }
}

/// Brings a question to whoever leads the origin, and its answer back, if nothing is lost.
async fn fetch(world: &Arc<World>, origin: Which, request: FetchRequest) -> FetchAnswer {
    let elsewhere = || FetchAnswer { elsewhere: true, ..FetchAnswer::default() };
    world.post.call(answer(world, origin, request)).await.flatten().unwrap_or_else(elsewhere)
}

async fn answer(world: &Arc<World>, origin: Which, mut request: FetchRequest) -> Option<FetchAnswer> {
    let (_, process) = world.leading(origin)?;
    let replica = &process.stream(origin).replica;
    let until = tokio::time::Instant::now() + Duration::from_millis(request.wait_ms);
    let mut began = None;
    loop {
        replica.leader()?;
        let mut answer = replica.read(|machine, view| server::answer(machine, view, &request)).ok()?;
        answer.from = *began.get_or_insert(answer.from);
        if !answer.seqs.is_empty() || tokio::time::Instant::now() >= until {
            if world.plan.breakage == Breakage::OriginForgets && answer.seqs.len() > 1 {
                forget_the_last(&mut answer);
            }
            return Some(answer);
        }
        request.from = (answer.through + 1).max(answer.from);
        request.identity.clone_from(&answer.identity);
        tokio::time::sleep(LOOK).await;
    }
}

/// The last message of an answer is left out of it, though it says that it goes that far.
fn forget_the_last(answer: &mut FetchAnswer) {
    let Ok(Some(block)) = answer.messages() else { return };
    answer.seqs.pop();
    let mut shorter = levee_protocol::record::BlockBuilder::timed(0);
    for position in 0..block.count() - 1 {
        shorter.push_timed(levee_protocol::record::RecordFlags::COPIED, &block.record(position));
    }
    answer.block = shorter.finish(block.timestamp()).as_bytes().clone();
}

/// Whether the copy has come to the end of its origins.
pub(crate) fn has_caught_up(world: &World, which: Which) -> bool {
    let Some((_, process)) = world.leading(which) else { return false };
    let replica = &process.stream(which).replica;
    which.origins(world).into_iter().all(|origin| {
        let source = world.plan.source(which, origin);
        let key = if which == Which::Mirror { String::new() } else { source.key() };
        let last = world.oracles[&origin].model().live().keys().next_back().copied().unwrap_or(0);
        replica.read(|machine, _| machine.source(&key)).seq >= last
    })
}

/// What one replica of a copy must hold: of a mirror, messages under their origin's sequences; of a stream with sources,
/// each message once and those of an origin in its order; of both, every one that lives in the origin, or that was acked
/// there because it is here.
pub(crate) fn inspect(world: &World, stream: &Stream) -> Result<(), String> {
    let mut held: BTreeMap<Seq, Message> = BTreeMap::new();
    let scanned = stream.replica.read(|machine, view| {
        let is_live = |seq| machine.is_live(seq);
        view.scan(Seq(1), &mut |seq, record| {
            if is_live(seq) {
                held.insert(seq, Message::of(&record));
            }
            std::ops::ControlFlow::Continue(())
        })
    });
    scanned.map_err(|error| error.to_string())?;
    for origin in stream.which.origins(world) {
        let consumer = world.plan.source(stream.which, origin).consumer;
        let acked = consumer.map(|it| world.oracles[&origin].acked_by_flow(&it.name)).unwrap_or_default();
        let model = world.oracles[&origin].model();
        let wanted: BTreeSet<u64> = model.live().keys().copied().chain(acked).collect();
        if stream.which == Which::Mirror {
            inspect_mirror(&held, &model, &wanted)?;
        } else {
            inspect_sourced(&held, &model, &wanted)
                .map_err(|what| format!("of {}: {what}", origin.name()))?;
        }
    }
    Ok(())
}

/// The header block as copies have it: what a publisher expected of the origin is no concern of theirs.
fn without_expectations(header: &[u8]) -> Vec<u8> {
    let mut kept = HeaderBuilder::new();
    let mut is_empty = true;
    for (name, value) in HeaderBlock(header).iter().filter(|(name, _)| !name.starts_with(b"Nats-Expected-")) {
        is_empty = false;
        kept.push(&String::from_utf8_lossy(name), value);
    }
    if is_empty { Vec::new() } else { kept.finish() }
}

fn inspect_mirror(
    held: &BTreeMap<Seq, Message>,
    model: &Model,
    wanted: &BTreeSet<u64>,
) -> Result<(), String> {
    for (seq, message) in held {
        let stored = model.ever(seq.0);
        if stored.is_none_or(|stored| {
            !message.is_copy_of(stored)
                || message.header != without_expectations(&stored.header)
                || message.at != stored.at
        }) {
            return Err(format!("{seq} is {message:?}, and was {stored:?}"));
        }
    }
    match wanted.iter().find(|seq| !held.contains_key(&Seq(**seq))) {
        Some(seq) => Err(format!("{seq} is not there")),
        None => Ok(()),
    }
}

fn inspect_sourced(
    held: &BTreeMap<Seq, Message>,
    model: &Model,
    wanted: &BTreeSet<u64>,
) -> Result<(), String> {
    let mut last = 0;
    let mut copied = BTreeMap::new();
    for (seq, message) in held {
        let word = identity(&message.header, &message.payload);
        let Some(stored) = model.stored(&word) else { continue };
        if stored <= last {
            return Err(format!("{stored} is stored as {seq}, after {last}"));
        }
        last = stored;
        if !model.ever(stored).is_some_and(|stored| message.is_copy_of(stored)) {
            return Err(format!("{stored} is {message:?}"));
        }
        copied.insert(stored, *seq);
    }
    match wanted.iter().find(|seq| !copied.contains_key(*seq)) {
        Some(seq) => Err(format!("{seq} is not there")),
        None => Ok(()),
    }
}
