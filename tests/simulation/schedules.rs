//! Scheduled messages: who plans them, the leader that stores what is due, and what must come of each: what is due is
//! stored once for each time that it is due, not before, and nothing is left out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::api::PublishIntent;
use levee_protocol::command::StreamCommand;
use levee_protocol::record::{Block, BlockBuilder, RecordRef};
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBlock;
use levee_storage::kind::BLOCK;

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::leading::Leader;
use crate::plan::Breakage;
use crate::streams::Which;
use crate::world::World;

/// The leader looks this often at least, and not more often than this.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1000));
/// Subjects of one planner.
const PLANS: u64 = 3;
const SECOND: i64 = 1_000_000_000;

/// The schedules in force, as they must be, by subject.
#[derive(Default)]
pub(crate) struct Timetable(BTreeMap<Bytes, Waiting>);

/// A schedule that waits for its time.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    seq: u64,
    next: Timestamp,
    /// `None` is once.
    every: Option<Nanos>,
}

/// What stands in front of a message of a schedule.
#[derive(Clone, Copy, Debug)]
struct Claim {
    seq: u64,
    due: Timestamp,
    next: Option<Timestamp>,
}

impl Claim {
    fn read(body: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(i64::from_le_bytes(body.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let next = Timestamp(number(2)?);
        Some(Self {
            seq: number(0)?.cast_unsigned(),
            due: Timestamp(number(1)?),
            next: (next != Timestamp::ZERO).then_some(next),
        })
    }
}

impl Timetable {
    /// A message is stored. The newest one of a subject says whether there is a schedule in force.
    pub(crate) fn stored(&mut self, subject: &Bytes, seq: u64, header: &[u8], at: Timestamp) {
        self.0.remove(subject);
        let Some(pattern) = HeaderBlock(header).get_str("Nats-Schedule") else { return };
        let waiting = match pattern.split_once(' ') {
            Some(("@at", time)) => {
                let next = Timestamp::parse(time).unwrap_or(Timestamp::ZERO);
                Waiting { seq, next, every: None }
            }
            Some(("@every", span)) => {
                let every = levee_protocol::api::duration_text::parse_duration(span).unwrap_or(Nanos::ZERO);
                Waiting { seq, next: whole_second(at).plus(every), every: Some(every) }
            }
            _ => return,
        };
        self.0.insert(subject.clone(), waiting);
    }

    /// A leader claims that a schedule is due. The message to remove if it was the last time; `None` if the claim is
    /// about no schedule in force, or about a time that was claimed before.
    pub(crate) fn claimed(
        &mut self,
        claim: &RecordRef<'_>,
        now: Timestamp,
        is_live: impl Fn(u64) -> bool,
    ) -> Result<Option<Option<u64>>, String> {
        let subject = Bytes::copy_from_slice(claim.subject);
        let Some(claim) = Claim::read(claim.payload) else { return Ok(None) };
        let Some(waiting) = self.0.get(&subject).copied().filter(|waiting| waiting.seq == claim.seq) else {
            return Ok(None);
        };
        if !is_live(waiting.seq) || claim.due < waiting.next {
            return Ok(None);
        }
        let wrong = |what: &str| Err(format!("{claim:?} of {waiting:?} at {now} {what}"));
        if claim.due > waiting.next {
            return wrong("leaves out a time");
        }
        if claim.due > now {
            return wrong("comes too early");
        }
        let next = waiting.every.map(|every| {
            let next = claim.due.plus(every);
            if next > now { next } else { whole_second(now).plus(every) }
        });
        if claim.next != next {
            return wrong("goes on at another time");
        }
        match next {
            Some(next) => {
                self.0.insert(subject, Waiting { next, ..waiting });
                Ok(Some(None))
            }
            None => {
                self.0.remove(&subject);
                Ok(Some(Some(waiting.seq)))
            }
        }
    }

    /// Whether there is none in force whose message is live.
    pub(crate) fn is_done(&self, is_live: impl Fn(u64) -> bool) -> bool {
        !self.0.values().any(|waiting| is_live(waiting.seq))
    }
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp(time.0 - time.0.rem_euclid(SECOND))
}

/// Begins to store what is due, if the stream has schedules.
pub(crate) fn start(leader: &Arc<Leader>) {
    let forgets = leader.world.plan.breakage == Breakage::SchedulesAreForgotten;
    if leader.stream.which == Which::Schedules && !forgets {
        leader.spawn(tick(Arc::clone(leader)));
    }
}

/// Time, for the stream, as the broker's ticker has it.
async fn tick(leader: Arc<Leader>) {
    let Leader { world, host, stream, .. } = &*leader;
    loop {
        while let Some(block) = due(&leader)
            && fires(&leader, &block).await
        {}
        let due = stream.replica.read(|machine, _| machine.next_tick());
        let wait = due.map_or(LOOK.1, |due| due.since(world.now(host)).max(Nanos::ZERO).to_std());
        tokio::time::sleep(wait.clamp(LOOK.0, LOOK.1)).await;
        if stream.replica.read(|machine, _| machine.next_tick()).is_some_and(|due| due <= world.now(host)) {
            let command = |now| StreamCommand::Tick { now };
            propose(world, host, stream, command, Duration::from_secs(5)).await;
        }
    }
}

fn due(leader: &Leader) -> Option<Block> {
    let Leader { world, host, stream, .. } = leader;
    let now = world.stamp(host, stream);
    match stream.replica.read(|machine, view| machine.due_schedules(now, view)) {
        Ok(block) => block,
        Err(error) => {
            if leader.is_alive() {
                world.oracle.violated(format!("schedules of {} can't be read: {error}", host.id));
            }
            None
        }
    }
}

async fn fires(leader: &Leader, block: &Block) -> bool {
    let proposal = leader.stream.group.propose(BLOCK, block.as_bytes().clone());
    let Ok((_, reply)) = proposal.await else { return false };
    let Ok(reply) = reply.downcast::<Reply>() else { return false };
    matches!(*reply, Reply::Publish(replies) if replies.iter().any(|it| *it != PublishReply::Outdated))
}

/// What a planner publishes to one of its subjects.
struct Plan {
    subject: String,
    word: String,
    /// When its message is to be published; `None` ends what was planned.
    pattern: Option<String>,
    ttl: &'static str,
    attempts: u32,
}

impl Plan {
    fn repeats(&self) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.starts_with("@every"))
    }

    fn header(&self) -> String {
        let mut header = format!("NATS/1.0\r\nNats-Msg-Id: {}\r\n", self.word);
        if let Some(pattern) = &self.pattern {
            let target = self.subject.replace("plan.", "fired.");
            header.push_str(&format!("Nats-Schedule: {pattern}\r\nNats-Schedule-Target: {target}\r\n"));
            header.push_str(self.ttl);
        }
        header.push_str("\r\n");
        header
    }
}

/// Plans messages, changes plans, and gives them up. At the end nothing is left that comes again and again.
pub(crate) async fn planner(world: Arc<World>, number: u64) {
    let mut chance = Chance::new(world.seed, &format!("planner {number}"));
    let mut next = 0;
    let mut repeating: BTreeMap<String, bool> = BTreeMap::new();
    while !world.is_closing() {
        tokio::time::sleep(chance.millis(50, 1500)).await;
        let subject = format!("plan.{number}.{}", chance.below(PLANS));
        if chance.percent(10) {
            delete(&world, &mut chance, &subject).await;
            continue;
        }
        next += 1;
        let plan = Plan {
            pattern: draw_pattern(&world, &mut chance),
            word: format!("s{number}-{next}"),
            ttl: chance.pick(&["", "", "Nats-Schedule-TTL: 2s\r\n"]),
            subject: subject.clone(),
            attempts: 0,
        };
        repeating.insert(subject, plan.repeats());
        publish(&world, &mut chance, plan).await;
    }
    for (subject, _) in repeating.into_iter().filter(|(_, repeats)| *repeats) {
        next += 1;
        let word = format!("s{number}-{next}");
        publish(&world, &mut chance, Plan { subject, word, pattern: None, ttl: "", attempts: 0 }).await;
    }
}

fn draw_pattern(world: &World, chance: &mut Chance) -> Option<String> {
    match chance.below(100) {
        0..60 => {
            let soon = Nanos::from_millis(chance.pick(&[0, 100, 700, 3000]));
            let now = world.hosts.first().map_or(Timestamp::ZERO, |host| world.now(host));
            Some(format!("@at {}", now.plus(soon)))
        }
        60..85 => Some(format!("@every {}", chance.pick(&["1s", "1500ms", "4s"]))),
        _ => None,
    }
}

/// Publishes until it is answered.
async fn publish(world: &World, chance: &mut Chance, mut plan: Plan) {
    while world.oracle.violation().is_none() {
        let Some((host, process)) = world.target_of(Which::Schedules, chance) else {
            tokio::time::sleep(chance.millis(20, 200)).await;
            continue;
        };
        let stream = process.stream(Which::Schedules);
        let header = plan.header();
        let header = stream.replica.read(|machine, _| {
            let intent = PublishIntent::parse(header.as_bytes()).unwrap_or_default();
            let header = Cow::Borrowed(header.as_bytes());
            match machine.composition() {
                Some(composition) => composition.header(header, &intent).into_owned(),
                None => header.into_owned(),
            }
        });
        let command = |now| {
            let mut block = BlockBuilder::default();
            block.push(plan.subject.as_bytes(), &header, format!("{} planned", plan.word).as_bytes());
            StreamCommand::Publish(block.finish(now))
        };
        let patience = Duration::from_millis(chance.pick(&[150, 800, 4000]));
        match propose(world, &host, stream, command, patience).await {
            Told::Answer(reply) => match &*reply {
                Reply::Publish(replies)
                    if matches!(replies[..], [PublishReply::Stored { .. }])
                        || plan.attempts > 0 && matches!(replies[..], [PublishReply::Duplicate { .. }]) =>
                {
                    return;
                }
                other => world.oracle.violated(format!("{} was answered with {other:?}", plan.word)),
            },
            Told::NotTaken => tokio::time::sleep(chance.millis(5, 150)).await,
            Told::Nothing => {
                plan.attempts += 1;
                tokio::time::sleep(chance.millis(0, 100)).await;
            }
        }
    }
}

/// Removes the newest message of a subject.
async fn delete(world: &World, chance: &mut Chance, subject: &str) {
    let Some((host, process)) = world.target_of(Which::Schedules, chance) else { return };
    let stream = process.stream(Which::Schedules);
    let Ok(filter) = Filter::parse(subject) else { return };
    let Some(seq) = stream.replica.read(|machine, _| machine.last_for(&filter)) else { return };
    propose(world, &host, stream, |now| StreamCommand::DeleteMessage { now, seq }, Duration::from_secs(1))
        .await;
}
