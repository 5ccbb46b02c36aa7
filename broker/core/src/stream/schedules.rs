//! Scheduled messages: a message that says when another one is to be published.
//!
//! The newest message of a subject that is a schedule is in force. When it is due the leader writes what it asks for,
//! and in front of that a claim: which schedule this is of, when that was due, and when it is due next. Whoever
//! applies the block stores the message if the claim is about the schedule in force and about a time that was not
//! claimed before. A claim decides by itself what follows, so nodes need not agree on the rules of time zones.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::api::schedule::Schedule;
use levee_protocol::api::{ApiError, PublishIntent, RareIntent, Rollup, Ttl};
use levee_protocol::command::Undecodable;
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::subject::Subject;
use levee_protocol::time::Timestamp;
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};

use super::StreamMachine;
use super::limits::Wanted;
use super::messages::{Messages, Removals};
use super::outcome::PublishReply;
use super::publish::Admitted;
use super::reads::Reads;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};
use crate::rows::{RowKind, RowReader, StateRow};

/// Messages of schedules in one block.
const FIRED_MAX: usize = 256;
/// A block of them is not added to once it has so many bytes.
const FIRED_BYTES_MAX: usize = 1 << 20;
/// Fewer schedules than this are not worth a look for those whose message is gone.
const SWEEP_MIN: usize = 1024;
/// What `Nats-Schedule-Next` says when there is no next time.
const PURGE: &str = "purge";

/// The schedules in force.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    subjects: BTreeMap<Box<[u8]>, Pending>,
    due: BTreeSet<(Timestamp, Box<[u8]>)>,
    dirty: BTreeSet<Box<[u8]>>,
}

/// A schedule that waits for its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Pending {
    seq: u64,
    /// The last time that was claimed. `None` while none was.
    claimed: Option<Timestamp>,
    next: Timestamp,
}

impl Schedules {
    pub(crate) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(next, _)| *next)
    }

    /// A message was stored that is a schedule.
    pub(crate) fn set(&mut self, subject: &[u8], seq: u64, next: Timestamp) {
        self.remove(subject);
        self.put(subject.into(), Pending { seq, claimed: None, next });
    }

    /// The subject has no schedule in force any more.
    pub(crate) fn remove(&mut self, subject: &[u8]) -> Option<u64> {
        let (subject, pending) = self.subjects.remove_entry(subject)?;
        self.due.remove(&(pending.next, subject.clone()));
        self.dirty.insert(subject);
        Some(pending.seq)
    }

    /// Forgets schedules that are due and whose message is gone.
    pub(crate) fn forget_gone(&mut self, now: Timestamp, is_live: impl Fn(u64) -> bool) {
        let due = self.due.iter().take_while(|(next, _)| *next <= now);
        let gone =
            due.filter(|(_, subject)| self.subjects.get(subject).is_none_or(|pending| !is_live(pending.seq)));
        self.remove_all(gone.map(|(_, subject)| subject.clone()).collect());
    }

    /// Forgets schedules whose message is gone, if there are more of them than messages.
    pub(crate) fn sweep(&mut self, messages: &Messages) {
        if self.subjects.len() < SWEEP_MIN || (self.subjects.len() as u64) / 2 < messages.count {
            return;
        }
        let gone = self.subjects.iter().filter(|(_, pending)| !messages.is_live(pending.seq));
        self.remove_all(gone.map(|(subject, _)| subject.clone()).collect());
    }

    fn remove_all(&mut self, subjects: Vec<Box<[u8]>>) {
        for subject in subjects {
            self.remove(&subject);
        }
    }

    /// Whether the claim is in order; then it is noted.
    fn claim(&mut self, subject: &[u8], claim: Claim) -> bool {
        let Some(pending) = self.subjects.get(subject).copied() else { return false };
        if pending.seq != claim.seq || pending.claimed.is_some_and(|claimed| claim.due <= claimed) {
            return false;
        }
        self.remove(subject);
        if let Some(next) = claim.next {
            self.put(subject.into(), Pending { claimed: Some(claim.due), next, ..pending });
        }
        true
    }

    fn put(&mut self, subject: Box<[u8]>, pending: Pending) {
        self.due.insert((pending.next, subject.clone()));
        self.dirty.insert(subject.clone());
        self.subjects.insert(subject, pending);
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for subject in std::mem::take(&mut self.dirty) {
            let value = self.subjects.get(&subject).map(Pending::encode);
            rows.push(StateRow { kind: RowKind::Schedule, key: subject.into_vec(), value });
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(
            self.subjects
                .iter()
                .map(|(subject, pending)| StateRow::put(RowKind::Schedule, subject, pending.encode())),
        );
    }

    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Undecodable> {
        let mut reader = RowReader::new(RowKind::Schedule, value);
        let seq = u64::from_le_bytes(reader.bytes()?);
        let claimed = Timestamp(i64::from_le_bytes(reader.bytes()?));
        let claimed = (claimed != Timestamp::ZERO).then_some(claimed);
        let next = Timestamp(i64::from_le_bytes(reader.bytes()?));
        self.due.insert((next, key.into()));
        self.subjects.insert(key.into(), Pending { seq, claimed, next });
        Ok(())
    }
}

impl Pending {
    fn encode(&self) -> Vec<u8> {
        // Only `@at` can be due at `ZERO`, and nothing is left of it once that is claimed.
        let claimed = self.claimed.unwrap_or(Timestamp::ZERO);
        [self.seq.to_le_bytes(), claimed.0.to_le_bytes(), self.next.0.to_le_bytes()].concat()
    }
}

/// The body of a record in front of a message of a schedule; its subject is that of the schedule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Claim {
    /// Sequence of the schedule.
    seq: u64,
    /// When it was due.
    due: Timestamp,
    /// When it is due next; `None` is never.
    next: Option<Timestamp>,
}

impl Claim {
    fn encode(self) -> Vec<u8> {
        let next = self.next.unwrap_or(Timestamp::ZERO);
        [self.seq.to_le_bytes(), self.due.0.to_le_bytes(), next.0.to_le_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = RowReader::new(RowKind::Schedule, bytes);
        let seq = u64::from_le_bytes(reader.bytes().ok()?);
        let due = Timestamp(i64::from_le_bytes(reader.bytes().ok()?));
        let next = Timestamp(i64::from_le_bytes(reader.bytes().ok()?));
        Some(Self { seq, due, next: (next != Timestamp::ZERO).then_some(next) })
    }
}

/// What a message means for schedules.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Scheduling {
    /// Nothing. It ends a schedule on its subject.
    #[default]
    None,
    /// It is a schedule that is due at this time.
    Next(Timestamp),
    /// It ends the schedule on that subject.
    Ends(Box<[u8]>),
}

impl StreamMachine {
    /// What is wrong with the schedule in a message, in nats-server's order, or what the message means.
    pub(super) fn check_schedule(
        &self,
        settings: &Settings,
        record: &RecordRef<'_>,
        intent: &PublishIntent<'_>,
        rare: &RareIntent<'_>,
    ) -> Result<Scheduling, ApiError> {
        let Some(pattern) = rare.schedule else {
            return self.check_end_of_schedule(settings, record, rare);
        };
        if !settings.config.allow_msg_schedules {
            return Err(ApiError::schedules_disabled());
        }
        let schedule = Schedule::parse(pattern, rare.schedule_time_zone)?;
        match rare.schedule_ttl.map(Ttl::parse) {
            None => {}
            Some(Ttl::Invalid) => return Err(ApiError::schedule_ttl_invalid()),
            Some(_) if !settings.config.allow_msg_ttl => return Err(ApiError::ttl_disabled()),
            Some(_) => {}
        }
        if rare.schedule_rollup.is_some_and(|rollup| rollup != "sub") {
            return Err(ApiError::schedule_rollup_invalid());
        }
        let is_captured = |text: &str| {
            Subject::parse(text).is_ok()
                && settings.subjects.iter().any(|filter| filter.matches(text.as_bytes()))
        };
        let target =
            rare.schedule_target.filter(|target| target.as_bytes() != record.subject && is_captured(target));
        let Some(target) = target else { return Err(ApiError::schedule_target_invalid()) };
        let source = rare.schedule_source;
        if source.is_some_and(|source| {
            source.as_bytes() == record.subject || source == target || !is_captured(source)
        }) {
            return Err(ApiError::schedule_source_invalid());
        }
        if intent.rollup.is_some_and(|rollup| rollup != Rollup::Subject) {
            return Err(ApiError::schedule_rollup_invalid());
        }
        let next = schedule.first(record.timestamp).ok_or_else(ApiError::schedule_pattern_invalid)?;
        Ok(Scheduling::Next(next))
    }

    fn check_end_of_schedule(
        &self,
        settings: &Settings,
        record: &RecordRef<'_>,
        rare: &RareIntent<'_>,
    ) -> Result<Scheduling, ApiError> {
        let (next, scheduler) = match (rare.schedule_next, rare.scheduler) {
            (None, None) => return Ok(Scheduling::None),
            (next, scheduler) => (next, scheduler.unwrap_or_default()),
        };
        let is_literal = Subject::parse(scheduler).is_ok();
        if next != Some(PURGE) || !is_literal || scheduler.as_bytes() == record.subject {
            return Err(ApiError::scheduler_invalid());
        }
        if !settings.config.allow_msg_schedules {
            return Err(ApiError::schedules_disabled());
        }
        let subject = scheduler.as_bytes();
        let is_schedule = self.schedules.subjects.contains_key(subject);
        if !is_schedule && self.messages.subjects.get(subject).is_some() {
            return Err(ApiError::scheduler_invalid());
        }
        Ok(Scheduling::Ends(subject.into()))
    }

    /// A message was stored under `seq`: what that means for schedules.
    pub(super) fn note_schedule(
        &mut self,
        subject: &[u8],
        seq: u64,
        scheduling: Scheduling,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        match scheduling {
            Scheduling::None if self.schedules.is_empty() => {}
            Scheduling::None => drop(self.schedules.remove(subject)),
            Scheduling::Next(next) => self.schedules.set(subject, seq, next),
            Scheduling::Ends(scheduler) => {
                self.schedules.remove(subject);
                self.end_schedule(&scheduler, reads, removals)?;
            }
        }
        Ok(())
    }

    fn end_schedule(
        &mut self,
        scheduler: &[u8],
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        if let Some(seq) = self.schedules.remove(scheduler)
            && self.messages.is_live(seq)
        {
            self.messages.remove(seq, reads, removals)?;
            self.messages.settle(reads)?;
        }
        Ok(())
    }

    /// Stores a message of a schedule, if the claim in front of it is in order.
    pub(super) fn fire(
        &mut self,
        settings: &Settings,
        claim: &RecordRef<'_>,
        (record, position): (&RecordRef<'_>, u32),
        reads: &mut Reads<'_>,
        removals: &mut Removals,
    ) -> Result<PublishReply, ReadFailed> {
        let claimed = Claim::decode(claim.payload).filter(|_| !settings.config.sealed);
        let Some(claimed) = claimed.filter(|claimed| self.messages.is_live(claimed.seq)) else {
            return Ok(PublishReply::Outdated);
        };
        if !self.schedules.claim(claim.subject, claimed) {
            return Ok(PublishReply::Outdated);
        }
        let bytes = record.stored_bytes(settings.config.storage);
        let intent = PublishIntent::parse(record.header).unwrap_or_default();
        let wanted = Wanted { record, bytes, rolls_up: intent.rollup.is_some(), ahead: None };
        let refused = match settings.limits.check_size(record) {
            Err(error) => Some(error),
            Ok(()) => settings.limits.check_room(&mut self.messages, &wanted, reads)?,
        };
        let reply = match refused {
            Some(error) => PublishReply::Rejected(error),
            None => {
                reads.accept(position);
                let ttl = intent.ttl.filter(|_| settings.config.allow_msg_ttl);
                let message = Admitted::of_schedule(bytes, ttl, intent.rollup.is_some());
                self.store(settings, record, message, reads, removals)?
            }
        };
        if claimed.next.is_none() && self.messages.is_live(claimed.seq) {
            self.messages.remove(claimed.seq, reads, removals)?;
            self.messages.settle(reads)?;
        }
        Ok(reply)
    }

    /// The messages of schedules that are due, as the leader proposes them; not necessarily all. `None` when none are.
    pub fn due_schedules(&self, now: Timestamp, view: &dyn MessageView) -> Result<Option<Block>, ReadFailed> {
        let sealed = self.config().is_none_or(|config| config.sealed);
        if sealed || self.schedules.next_due().is_none_or(|next| next > now) {
            return Ok(None);
        }
        let reads = Reads::stored_only(view);
        let mut block = BlockBuilder::default();
        let due = self.schedules.due.iter().take_while(|(next, _)| *next <= now).take(FIRED_MAX);
        for (next, subject) in due {
            if block.bytes() >= FIRED_BYTES_MAX {
                break;
            }
            if let Some(pending) = self.schedules.subjects.get(subject)
                && self.messages.is_live(pending.seq)
            {
                self.write_fired(*next, subject, pending.seq, now, &reads, &mut block)?;
            }
        }
        Ok((!block.is_empty()).then(|| block.finish(now)))
    }

    fn write_fired(
        &self,
        due: Timestamp,
        subject: &[u8],
        seq: u64,
        now: Timestamp,
        reads: &Reads<'_>,
        block: &mut BlockBuilder,
    ) -> Result<(), ReadFailed> {
        let schedule = reads.record(seq)?;
        let intent = PublishIntent::parse(&schedule.header).unwrap_or_default();
        // It was checked when it was stored.
        let Some(rare) = &intent.rare else { return Ok(()) };
        let pattern = Schedule::parse(rare.schedule.unwrap_or_default(), rare.schedule_time_zone);
        let next = pattern.ok().and_then(|pattern| pattern.next(due, now));
        let source = rare.schedule_source.and_then(|source| self.messages.subjects.get(source.as_bytes()));
        let content = match source {
            Some(entry) => reads.record(entry.last)?,
            None => schedule.clone(),
        };
        block.push_flagged(RecordFlags::CLAIM, subject, b"", &Claim { seq, due, next }.encode());
        let mut header = HeaderBuilder::from_block(&content.header);
        header.remove_prefix("Nats-Schedule").remove_prefix("Nats-Expected-");
        for name in ["Nats-Scheduler", "Nats-Msg-Id", "Nats-TTL", "Nats-Rollup"] {
            header.remove(name);
        }
        header.push("Nats-Scheduler", subject);
        match next {
            Some(next) => header.push("Nats-Schedule-Next", next.to_string()),
            None => header.push("Nats-Schedule-Next", PURGE),
        };
        if let Some(ttl) = rare.schedule_ttl {
            header.push("Nats-TTL", ttl);
        }
        if let Some(rollup) = rare.schedule_rollup {
            header.push("Nats-Rollup", rollup);
        }
        let target = rare.schedule_target.unwrap_or_default();
        block.push_flagged(RecordFlags::FIRED, target.as_bytes(), &header.finish(), &content.payload);
        Ok(())
    }
}

/// The header block of a schedule as it is stored: the newest one of a subject replaces what was there.
pub(crate) fn with_rollup(header: &[u8]) -> Option<Vec<u8>> {
    if HeaderBlock(header).get("Nats-Rollup").is_some() {
        return None;
    }
    let mut rolling = HeaderBuilder::from_block(header);
    rolling.push("Nats-Rollup", "sub");
    Some(rolling.finish())
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::{PurgeRequest, StreamConfig};
    use levee_protocol::command::StreamCommand;
    use levee_protocol::ids::Seq;
    use levee_protocol::subject::Filter;

    use super::*;
    use crate::testing::Bench;

    fn bench() -> Bench {
        let now = Timestamp(0);
        let mut bench = Bench::default();
        let config = StreamConfig {
            name: "S".into(),
            subjects: vec!["s.>".into(), "out".into()],
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            allow_msg_schedules: true,
            allow_rollup_hdrs: true,
            ..StreamConfig::default()
        };
        bench.apply(&StreamCommand::Configure { now, created: now, config: Box::new(config) });
        bench
    }

    fn publish(bench: &mut Bench, pattern: &str, count: usize, payload: &[u8]) {
        let header = format!("NATS/1.0\r\nNats-Schedule: {pattern}\r\nNats-Schedule-Target: out\r\n\r\n");
        let mut block = BlockBuilder::default();
        for number in 0..count {
            block.push(format!("s.{number}").as_bytes(), header.as_bytes(), payload);
        }
        bench.apply(&StreamCommand::Publish(block.finish(Timestamp(0))));
    }

    fn due(bench: &Bench, now: Timestamp) -> Option<Block> {
        bench.machine.due_schedules(now, &bench.view).unwrap()
    }

    fn restart(bench: &mut Bench) {
        bench.checkpoint();
        bench.machine = bench.loaded();
    }

    #[test]
    fn a_block_of_large_messages_ends_early_and_the_rest_follow() {
        let mut bench = bench();
        publish(&mut bench, "@at 1970-01-01T00:00:01Z", 3, &vec![b'x'; FIRED_BYTES_MAX / 2]);

        let now = Timestamp(2_000_000_000);
        for fired in [2, 1] {
            let block = due(&bench, now).unwrap();
            assert_eq!(block.count(), fired * 2, "a claim and a message each");
            bench.apply(&StreamCommand::Publish(block));
        }
        assert_eq!(due(&bench, now), None);
    }

    #[test]
    fn a_time_that_no_clock_shows_is_at_once_or_never() {
        for restarts in [false, true] {
            let mut bench = bench();
            publish(&mut bench, "@at 1600-01-01T00:00:00Z", 1, b"past");
            if restarts {
                restart(&mut bench);
            }
            let block = due(&bench, Timestamp(0)).unwrap();
            bench.apply(&StreamCommand::Publish(block));
            assert_eq!(bench.view.records().map(|record| &*record.payload).collect::<Vec<_>>(), [b"past"]);
            assert_eq!(bench.machine.last_for(&Filter::parse("out").unwrap()), Some(Seq(2)));
            assert_eq!(bench.machine.next_tick(), None);
        }

        let mut bench = bench();
        publish(&mut bench, "@at 2300-01-01T00:00:00Z", 1, b"future");
        assert_eq!(bench.machine.next_tick(), Some(Timestamp(i64::MAX)));
        assert_eq!(due(&bench, Timestamp(i64::MAX - 1)), None);
    }

    #[test]
    fn a_time_is_claimed_once() {
        let mut bench = bench();
        publish(&mut bench, "@every 1s", 1, b"x");
        let block = due(&bench, Timestamp(1_000_000_000)).unwrap();
        bench.apply(&StreamCommand::Publish(block.clone()));
        restart(&mut bench);
        let before = bench.machine.state();
        bench.apply(&StreamCommand::Publish(block));
        assert_eq!(bench.machine.state(), before);
    }

    #[test]
    fn schedules_whose_messages_are_gone_are_forgotten_when_they_are_most() {
        let now = Timestamp(0);
        let mut bench = bench();
        publish(&mut bench, "@at 2200-01-01T00:00:00Z", SWEEP_MIN, b"x");
        let held = |bench: &Bench| bench.machine.schedules.subjects.len();
        let kept = SWEEP_MIN / 2;
        let request = PurgeRequest { seq: (SWEEP_MIN - kept) as u64, ..PurgeRequest::default() };
        bench.apply(&StreamCommand::Purge { now, request });
        bench.apply(&StreamCommand::Tick { now });
        assert_eq!(held(&bench), SWEEP_MIN, "not yet twice as many as messages");

        bench.apply(&StreamCommand::DeleteMessage { now, seq: Seq(SWEEP_MIN as u64) });
        bench.apply(&StreamCommand::Tick { now });
        assert_eq!(held(&bench) as u64, bench.machine.messages.count);
        assert_eq!(bench.machine.schedules.due.len(), held(&bench));
        bench.checkpoint();
        assert_eq!(bench.loaded().all_rows(), bench.machine.all_rows());
    }
}
