//! Fast batches: publishers that keep to the flow that they are granted, ask again when they hear nothing, and go on in
//! a further batch where one ended too early; and what must be so of all that they were told, whether it reached them
//! or not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::fast::Said;
use levee_protocol::api::fast_batch::Gap;
use levee_protocol::ids::Seq;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::ingest::Arrived;
use crate::post::Parcel;
use crate::streams::{Stream, Which};
use crate::world::World;

/// The subject of all of them.
pub(crate) const SUBJECT: &[u8] = b"batch.fast";
/// What no message of the stream may ask for: whatever asks for it is refused.
const SPOILS: &str = "Nats-TTL: 1s\r\n";
/// How long a publisher hears nothing before it asks.
const PING_AFTER: Duration = Duration::from_millis(300);

/// What leaders said of each batch.
#[derive(Default)]
pub(crate) struct Told(Mutex<BTreeMap<Bytes, Batch>>);

/// One batch, as its leader told of it.
#[derive(Clone, Debug)]
struct Batch {
    /// What its messages are part of.
    job: String,
    /// Which attempt at it this is.
    attempt: u64,
    /// The message of the job before its first one.
    base: u64,
    gap: Gap,
    /// Up to here, messages are stored that nothing else was said about.
    acked: u64,
    /// The last message that counts, and the sequence of the last one that is stored.
    ended: Option<(u64, Seq)>,
    /// Messages that are said to be missing or refused.
    missing: BTreeSet<u64>,
}

impl Told {
    /// A leader says something about a batch.
    pub(crate) fn said(&self, id: &Bytes, said: &Said) {
        let mut batches = self.0.lock();
        let batch = batches.get_mut(id).expect("a batch is begun before something is said of it");
        match said {
            Said::Ack { seq, .. } => batch.acked = batch.acked.max(*seq),
            Said::Gap { expected, seq } => batch.missing.extend(*expected..*seq),
            Said::Error { seq, .. } => drop(batch.missing.insert(*seq)),
            // What was stored before is there by another batch.
            Said::Ended { count, duplicate: true, .. } => batch.acked = *count,
            Said::Ended { seq, count, .. } => {
                batch.acked = *count;
                batch.ended = Some((*count, *seq));
            }
            Said::Refused(_) => {}
        }
    }
}

/// What a publisher brings into the stream.
struct Job {
    /// Begins the body of each of its messages; no other job has it.
    word: String,
    /// How many messages it has.
    size: u64,
    gap: Gap,
    /// Whether its messages have ids. Without, nothing is sent again of which nobody knows what became of it.
    ids: bool,
    /// Most messages between two acks.
    flow: u16,
    /// So many acks may be missing before it waits.
    outstanding: u64,
    /// Whether the last message commits the batch.
    commits: bool,
    /// Up to here everything is done.
    done: u64,
    attempts: u64,
}

/// Publishes one thing after the other.
pub(crate) async fn publisher(world: Arc<World>, number: u64) {
    let mut chance = Chance::new(world.seed, &format!("publisher of fast batches {number}"));
    let mut next = 0;
    loop {
        tokio::time::sleep(chance.millis(0, 400)).await;
        if world.is_closing() {
            return;
        }
        next += 1;
        let mut job = Job {
            word: format!("f{number}-{next}"),
            size: chance.pick(&[1, 2, 5, 12, 40]),
            gap: if chance.percent(50) { Gap::Fail } else { Gap::Ok },
            ids: chance.percent(70),
            flow: chance.pick(&[1, 2, 5, 20]),
            outstanding: chance.between(1, 2),
            commits: chance.percent(50),
            done: 0,
            attempts: 0,
        };
        while job.attempt(&world, &mut chance).await {
            tokio::time::sleep(chance.millis(0, 150)).await;
        }
    }
}

impl Job {
    /// Publishes what is left in one batch. Whether something is left to do.
    async fn attempt(&mut self, world: &Arc<World>, chance: &mut Chance) -> bool {
        self.attempts += 1;
        let id = Bytes::from(format!("{}-{}", self.word, self.attempts));
        let batch = Batch {
            job: self.word.clone(),
            attempt: self.attempts,
            base: self.done,
            gap: self.gap,
            acked: 0,
            ended: None,
            missing: BTreeSet::new(),
        };
        world.told.0.lock().insert(id.clone(), batch);
        let mut sending = Sending {
            world,
            job: self,
            inbox: world.post.open(&id),
            id: id.clone(),
            sent: 0,
            acked: None,
            flow: 0,
            gives_up: (!world.post.is_reliable()).then(|| chance.millis(500, 4000)),
        };
        let ended = sending.publish(chance).await;
        let acked = sending.acked.unwrap_or(0);
        world.post.close(&id);
        match ended {
            Ended::After(count) if self.gap == Gap::Fail => self.done += count,
            // Those that are missing are not sent again.
            Ended::After(_) => return false,
            Ended::Unknown if self.ids => self.done += acked,
            Ended::Unknown => return false,
        }
        self.done < self.size
    }
}

/// How a batch ended, as far as its publisher knows.
enum Ended {
    /// This was its last message.
    After(u64),
    /// Nobody says.
    Unknown,
}

/// A batch that is being published.
struct Sending<'a> {
    world: &'a Arc<World>,
    job: &'a Job,
    id: Bytes,
    inbox: mpsc::UnboundedReceiver<Parcel>,
    /// The last message that was sent.
    sent: u64,
    /// The last one that was acked; `None` until the batch is known to have begun.
    acked: Option<u64>,
    /// Messages between two acks.
    flow: u64,
    /// How long it waits. For ever if nothing is lost from its beginning on: then it must come to an end.
    gives_up: Option<Duration>,
}

impl Sending<'_> {
    async fn publish(&mut self, chance: &mut Chance) -> Ended {
        let count = self.job.size - self.job.done;
        for position in 1..=count {
            if chance.percent(20) {
                tokio::time::sleep(chance.millis(0, 20)).await;
            }
            let op = match position {
                _ if position == count && self.job.commits => 2,
                1 => 0,
                _ => 1,
            };
            self.sent = position;
            self.send(op, chance.percent(8));
            if op != 2
                && let Some(ended) = self.hear(Self::may_go_on).await
            {
                return ended;
            }
        }
        if !self.job.commits {
            self.sent += 1;
            self.send(3, false);
        }
        self.hear(|_| false).await.unwrap_or(Ended::Unknown)
    }

    /// Whether fewer acks are missing than may be.
    fn may_go_on(&self) -> bool {
        self.acked.is_some_and(|acked| acked + self.flow * self.job.outstanding > self.sent)
    }

    /// Takes in what comes until that is enough, and asks when nothing comes. How the batch ended, if it did.
    async fn hear(&mut self, is_enough: impl Fn(&Self) -> bool) -> Option<Ended> {
        let began = Instant::now();
        while !is_enough(self) {
            match tokio::time::timeout(PING_AFTER, self.inbox.recv()).await {
                Ok(Some(Parcel::Fast(Said::Ack { seq, msgs }))) => {
                    self.acked = self.acked.max(Some(seq));
                    self.flow = u64::from(msgs);
                }
                Ok(Some(Parcel::Fast(Said::Ended { count, .. }))) => return Some(Ended::After(count)),
                Ok(Some(Parcel::Fast(Said::Refused(_))) | None) => return Some(Ended::Unknown),
                Ok(Some(_)) => {}
                Err(_) if self.gives_up.is_some_and(|patience| began.elapsed() > patience) => {
                    return Some(Ended::Unknown);
                }
                Err(_) => self.send(4, false),
            }
        }
        None
    }

    /// Sends a message, or something about the last one. Messages come in the order in which they are sent, or not.
    fn send(&self, op: u8, spoiled: bool) {
        let (id, sent, Job { word, flow, .. }) = (shown(&self.id), self.sent, self.job);
        let gap = if self.job.gap == Gap::Ok { "ok" } else { "fail" };
        let position = self.job.done + sent;
        let mut header = String::new();
        if self.job.ids && op < 3 {
            header.push_str(&format!("Nats-Msg-Id: {word}:{position}\r\n"));
        }
        if spoiled {
            header.push_str(SPOILS);
        }
        if !header.is_empty() {
            header = format!("NATS/1.0\r\n{header}\r\n");
        }
        let message = Arrived {
            reply: format!("{id}.{id}.{flow}.{gap}.{sent}.{op}.$FI").into(),
            header: header.into(),
            body: format!("{word}:{position} attempt {}", self.job.attempts).into(),
        };
        let leading = self.world.leading(Which::Batches);
        let leader = leading.and_then(|(_, process)| process.stream(Which::Batches).replica.leader());
        if let (Some(leader), Some(_)) = (leader, self.world.post.fate()) {
            leader.ingest.accept(message);
        }
    }
}

/// Looks at any node that has heard from the leader.
pub(crate) async fn reader(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "reader of fast batches");
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(20, 400)).await;
        let Some((host, process)) = world.target_of(Which::Batches, &mut chance) else { continue };
        let stream = process.stream(Which::Batches);
        let told = world.told.0.lock().clone();
        if stream.group.read_barrier().await.is_err() || !stream.replica.is_alive() {
            continue;
        }
        if let Err(what) = look(stream, &told) {
            world.oracle.violated(format!("{}: {what}", host.id));
        }
    }
}

/// What every replica must have at the end.
pub(crate) fn inspect(world: &World, stream: &Stream) -> Result<(), String> {
    look(stream, &world.told.0.lock())
}

/// A message of a job that is there.
#[derive(Debug)]
struct Held {
    position: u64,
    /// In which attempt it came.
    attempt: u64,
    seq: Seq,
}

fn look(stream: &Stream, told: &BTreeMap<Bytes, Batch>) -> Result<(), String> {
    let mut held: BTreeMap<String, Vec<Held>> = BTreeMap::new();
    let scanned = stream.replica.read(|machine, view| {
        view.scan(Seq(1), &mut |seq, record| {
            let body = String::from_utf8_lossy(record.payload);
            let mut parts = body.split([':', ' ']);
            if machine.is_live(seq)
                && record.subject == SUBJECT
                && let (Some(job), Some(position), Some(attempt)) = (parts.next(), parts.next(), parts.nth(1))
                && let (Ok(position), Ok(attempt)) = (position.parse(), attempt.parse())
            {
                held.entry(job.to_owned()).or_default().push(Held { position, attempt, seq });
            }
            ControlFlow::Continue(())
        })
    });
    scanned.map_err(|error| error.to_string())?;
    for (id, batch) in told {
        let held = held.get(&batch.job).map(Vec::as_slice).unwrap_or_default();
        batch.check(held).map_err(|what| format!("fast batch {}: {what}: {batch:?}, {held:?}", shown(id)))?;
    }
    Ok(())
}

impl Batch {
    /// What is wrong with the messages of its job that are there.
    fn check(&self, held: &[Held]) -> Result<(), &'static str> {
        let all: BTreeSet<u64> = held.iter().map(|held| held.position).collect();
        if all.len() < held.len() {
            return Err("a message is there twice");
        }
        let may_miss = |position| self.gap == Gap::Ok && self.missing.contains(&position);
        let is_there = |position: u64| all.contains(&(self.base + position));
        if !(1..=self.acked).all(|position| is_there(position) || may_miss(position)) {
            return Err("what was acknowledged is not there");
        }
        if self.gap == Gap::Fail && !held.iter().map(|held| held.position).eq(1..=held.len() as u64) {
            return Err("there is a hole in it");
        }
        let own: Vec<&Held> = held.iter().filter(|held| held.attempt == self.attempt).collect();
        if !own.is_sorted_by_key(|held| held.position) {
            return Err("it is not in order");
        }
        let Some((count, seq)) = self.ended else { return Ok(()) };
        if own.iter().any(|held| held.position > self.base + count) {
            return Err("more is there than was counted at its end");
        }
        if own.last().map_or(Seq::NONE, |held| held.seq) != seq {
            return Err("it ends at another sequence");
        }
        Ok(())
    }
}

fn shown(id: &Bytes) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(id)
}
