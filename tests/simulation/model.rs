//! What a stream must do, written down a second time: no indexes, no blocks, no laziness. It follows the committed
//! commands and says which answers and which messages every replica must have.
//!
//! It covers what the workload uses: limits, message ids, times to live, rollups, purge, removal of single messages,
//! counters, atomic batches, schedules, changed limits, duplicate windows that end, work queues with one consumer, which
//! acks one by one or by answers to flow control, and interest of several that ack one by one and are reset, deleted and
//! made again. What consumers promise is in [`deliveries`](crate::deliveries).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use bytes::Bytes;
use levee_protocol::api::{ConsumerCreateAction, DiscardPolicy, RetentionPolicy, StreamConfig};
use levee_protocol::command::progress::Settlement;
use levee_protocol::command::{ConsumerProgress, StreamCommand};
use levee_protocol::ids::ConsumerName;
use levee_protocol::record::{Block, RecordFlags, RecordRef, stored_bytes};
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBlock;

use crate::counters;
use crate::schedules::Timetable;

/// One message as it must be read back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    /// Its subject.
    pub(crate) subject: Bytes,
    /// Its header block.
    pub(crate) header: Bytes,
    /// Its body, which begins with a word that no other publish uses.
    pub(crate) payload: Bytes,
    /// When the leader took it.
    pub(crate) at: Timestamp,
    bytes: u64,
}

impl Message {
    /// One that was read.
    pub(crate) fn of(record: &RecordRef<'_>) -> Self {
        Self {
            subject: Bytes::copy_from_slice(record.subject),
            header: Bytes::copy_from_slice(record.header),
            payload: Bytes::copy_from_slice(record.payload),
            at: record.timestamp,
            bytes: 0,
        }
    }

    /// Whether another stream has this message from where the other one is stored. Headers may be added to it.
    pub(crate) fn is_copy_of(&self, stored: &Self) -> bool {
        (&self.subject, &self.payload) == (&stored.subject, &stored.payload)
    }
}

/// The counters every replica must show after the same command.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Totals {
    /// Live messages.
    pub(crate) messages: u64,
    /// What they count for.
    pub(crate) bytes: u64,
    /// First live sequence, or one more than the last.
    pub(crate) first: u64,
    /// Last sequence given out.
    pub(crate) last: u64,
}

/// The answer a command must have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Expected {
    /// One per record.
    Publish(Vec<Verdict>),
    /// So many were removed.
    Purged(u64),
    /// The message was removed.
    Deleted,
    /// The configuration is in force.
    Configured,
    /// A rule refused it.
    Refused,
    /// The model does not know.
    Anything,
}

/// What becomes of one record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Stored under this sequence.
    Stored(u64),
    /// Known under this sequence.
    Duplicate(u64),
    /// Refused by a limit.
    Refused,
}

/// What one consumer wants.
struct Wanting {
    /// The log index of its creation or last reset.
    incarnation: u64,
    filters: Vec<Filter>,
}

/// The stream, as it must be.
#[derive(Default)]
pub(crate) struct Model {
    config: Option<StreamConfig>,
    live: BTreeMap<u64, Message>,
    /// Every message that was ever stored, by sequence.
    ever: BTreeMap<u64, Message>,
    /// Every message that was ever stored, by what identifies it.
    stored: BTreeMap<Bytes, u64>,
    /// Under which sequence an id was stored, and when.
    ids: BTreeMap<String, (u64, Timestamp)>,
    /// When messages leave that said so.
    ends: BTreeMap<u64, Timestamp>,
    /// What consumers want.
    wanted: BTreeMap<ConsumerName, Wanting>,
    timetable: Timetable,
    /// What consumers are done with.
    done: BTreeSet<(ConsumerName, u64)>,
    bytes: u64,
    /// First sequence while the stream is empty.
    empty_first: u64,
    last: u64,
}

impl Model {
    /// The live messages.
    pub(crate) fn live(&self) -> &BTreeMap<u64, Message> {
        &self.live
    }

    /// The sequence under which a body that begins with this word was stored, at any time.
    pub(crate) fn stored(&self, word: &[u8]) -> Option<u64> {
        self.stored.get(word).copied()
    }

    /// The message that was stored under this sequence, at any time.
    pub(crate) fn ever(&self, seq: u64) -> Option<&Message> {
        self.ever.get(&seq)
    }

    /// How many messages were ever stored.
    pub(crate) fn stored_count(&self) -> usize {
        self.stored.len()
    }

    /// The counters.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            messages: self.live.len() as u64,
            bytes: self.bytes,
            first: self.live.keys().next().copied().unwrap_or(self.empty_first),
            last: self.last,
        }
    }

    /// Follows the command that was committed at this index. `Err` when what was committed breaks a promise by itself.
    pub(crate) fn apply(
        &mut self,
        index: u64,
        command: &StreamCommand,
        clock: Timestamp,
    ) -> Result<Expected, String> {
        match command {
            StreamCommand::Configure { config, .. } => {
                self.configure((**config).clone(), clock);
                Ok(Expected::Configured)
            }
            StreamCommand::Publish(block) => self.publish(block, clock).map(Expected::Publish),
            StreamCommand::Purge { request, .. } => {
                if request.seq > 0 && request.keep > 0 {
                    return Ok(Expected::Refused);
                }
                Ok(Expected::Purged(self.purge(&request.filter, request.seq, request.keep)))
            }
            StreamCommand::DeleteMessage { seq, .. } => {
                Ok(if self.remove(seq.0) { Expected::Deleted } else { Expected::Refused })
            }
            StreamCommand::Tick { .. } => {
                let due: Vec<u64> =
                    self.ends.iter().filter(|(_, end)| **end <= clock).map(|(seq, _)| *seq).collect();
                for seq in due {
                    self.ends.remove(&seq);
                    self.remove(seq);
                }
                self.enforce(clock);
                Ok(Expected::Anything)
            }
            StreamCommand::CreateConsumer { name, config, action, .. } => {
                if *action != ConsumerCreateAction::Update {
                    let filters = config.filters().filter_map(|filter| Filter::parse(filter).ok());
                    let wanting = || Wanting { incarnation: index, filters: filters.collect() };
                    self.wanted.entry(name.clone()).or_insert_with(wanting);
                }
                Ok(Expected::Anything)
            }
            StreamCommand::DeleteConsumer { name, .. } => {
                if !self.wanted.contains_key(name) {
                    return Ok(Expected::Refused);
                }
                self.release(name, |model| {
                    model.wanted.remove(name);
                    model.done.retain(|(of, _)| of != name);
                });
                Ok(Expected::Anything)
            }
            StreamCommand::ResetConsumer { name, seq, .. } => {
                if !self.wanted.contains_key(name) {
                    return Ok(Expected::Refused);
                }
                self.release(name, |model| model.begins_again(name, (seq.0, index)));
                Ok(Expected::Anything)
            }
            StreamCommand::Progress(progress) => {
                if self.retention() != RetentionPolicy::Limits {
                    progress.consumers.iter().for_each(|row| self.progress(row));
                }
                Ok(Expected::Anything)
            }
            StreamCommand::PauseConsumer { .. } => Ok(Expected::Anything),
            // No simulated client restores a stream.
            StreamCommand::RestoreBegin { .. }
            | StreamCommand::RestoreConsumer { .. }
            | StreamCommand::Restore(_)
            | StreamCommand::RestoreEnd { .. } => Err("a restore that nobody asked for".to_owned()),
        }
    }

    fn configure(&mut self, config: StreamConfig, clock: Timestamp) {
        let first = self.config.is_none();
        self.config = Some(config);
        if !first {
            let subjects: Vec<Bytes> = self.live.values().map(|message| message.subject.clone()).collect();
            for subject in subjects {
                self.enforce_subject(&subject);
            }
            self.enforce(clock);
        }
    }

    fn publish(&mut self, block: &Block, clock: Timestamp) -> Result<Vec<Verdict>, String> {
        let mut verdicts = Vec::new();
        let window = self.config.as_ref().map_or(Nanos::ZERO, |config| config.duplicate_window);
        if window < WINDOW_BEYOND_RETRIES {
            self.ids.retain(|_, (_, at)| clock.since(*at) < window);
        }
        let mut broken = BTreeSet::new();
        let mut position = 0;
        while position < block.count() {
            let (flags, chain) = (block.flags(position), block.chain(position));
            let last = match flags {
                _ if chain > 0 && broken.contains(&chain) => {
                    verdicts.push(Verdict::Refused);
                    position
                }
                RecordFlags::CLAIM => {
                    verdicts.push(Verdict::Refused);
                    verdicts.push(self.fire(block, position)?);
                    position + 1
                }
                _ if flags.contains(RecordFlags::IN_BATCH) => {
                    let last = end_of(block, position);
                    self.publish_batch(block, position..=last, clock, &mut verdicts)?;
                    last
                }
                _ => {
                    let message = self.message(block, position);
                    let verdict = match self.judge(&message) {
                        Some(verdict) => verdict,
                        None => self.store(message, clock)?,
                    };
                    if verdict == Verdict::Refused {
                        broken.insert(chain);
                    }
                    verdicts.push(verdict);
                    position
                }
            };
            position = last + 1;
        }
        self.enforce(clock);
        Ok(verdicts)
    }

    /// All of it, or nothing.
    fn publish_batch(
        &mut self,
        block: &Block,
        positions: RangeInclusive<u32>,
        clock: Timestamp,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), String> {
        let messages: Vec<Message> = positions.map(|position| self.message(block, position)).collect();
        let is_stored = messages.iter().all(|message| self.judge(message).is_none());
        for message in messages {
            verdicts.push(if is_stored { self.store(message, clock)? } else { Verdict::Refused });
        }
        Ok(())
    }

    /// A message of a schedule, and in front of it what the leader says of that.
    fn fire(&mut self, block: &Block, position: u32) -> Result<Verdict, String> {
        let live = &self.live;
        let is_live = |seq| live.contains_key(&seq);
        let claim = block.record(position);
        let Some(gone) = self.timetable.claimed(&claim, block.timestamp(), is_live)? else {
            return Ok(Verdict::Refused);
        };
        let verdict = self.store(self.message(block, position + 1), block.timestamp())?;
        if let Some(seq) = gone {
            self.remove(seq);
        }
        Ok(verdict)
    }

    fn message(&self, block: &Block, position: u32) -> Message {
        let record = block.record_owned(position, levee_protocol::ids::Seq::NONE);
        let storage = self.config.as_ref().map(|config| config.storage).unwrap_or_default();
        Message {
            bytes: stored_bytes(storage, record.subject.len(), record.header.len(), record.payload.len()),
            subject: record.subject,
            header: record.header,
            payload: record.payload,
            at: block.timestamp(),
        }
    }

    /// Why a message is not stored, if it is not.
    fn judge(&self, message: &Message) -> Option<Verdict> {
        let header = HeaderBlock(&message.header);
        let config = self.config.clone().unwrap_or_default();
        if header.get("Nats-TTL").is_some() && !config.allow_msg_ttl {
            return Some(Verdict::Refused);
        }
        if let Some((seq, _)) = header.get_str("Nats-Msg-Id").and_then(|id| self.ids.get(id)) {
            return Some(Verdict::Duplicate(*seq));
        }
        let expected = header.get_str("Nats-Expected-Last-Sequence");
        if expected.is_some_and(|expected| expected.parse() != Ok(self.last)) {
            return Some(Verdict::Refused);
        }
        if config.allow_msg_counter && !self.adds_up(message) {
            return Some(Verdict::Refused);
        }
        let refused = config.discard == DiscardPolicy::New && !self.has_room(&config, message);
        refused.then_some(Verdict::Refused)
    }

    /// Whether the sum in an increment is that of the message before it and itself.
    fn adds_up(&self, message: &Message) -> bool {
        let before = self.live.values().rev().find(|other| other.subject == message.subject);
        let before = before.map_or(Some(0), |other| counters::shown(&other.payload));
        let increment = HeaderBlock(&message.header).get_str("Nats-Incr").and_then(|text| text.parse().ok());
        let sum = before.zip(increment).map(|(before, increment): (i64, i64)| before + increment);
        sum.is_some() && sum == counters::shown(&message.payload)
    }

    fn store(&mut self, message: Message, clock: Timestamp) -> Result<Verdict, String> {
        self.last += 1;
        let header = HeaderBlock(&message.header);
        if let Some(id) = header.get_str("Nats-Msg-Id") {
            self.ids.insert(id.to_owned(), (self.last, clock));
        }
        let stored = Ok(Verdict::Stored(self.last));
        if self.retention() == RetentionPolicy::Interest && !self.is_wanted(&message.subject) {
            if self.live.is_empty() {
                self.empty_first = self.last + 1;
            }
            return stored;
        }
        let word = identity(&message.header, &message.payload);
        let window = self.config.as_ref().map_or(Nanos::ZERO, |config| config.duplicate_window);
        // Who tries again after the window is told nothing of the first time.
        if let Some(before) = self.stored.insert(word.clone(), self.last)
            && window >= WINDOW_BEYOND_RETRIES
        {
            let word = String::from_utf8_lossy(&word).into_owned();
            return Err(format!("{word} is stored twice, as {before} and as {}", self.last));
        }
        self.bytes += message.bytes;
        if let Some(ttl) = header.get_str("Nats-TTL") {
            self.ends.insert(self.last, end(message.at, ttl));
        }
        self.timetable.stored(&message.subject, self.last, &message.header, message.at);
        let rollup = header.get_str("Nats-Rollup").map(str::to_owned);
        let subject = message.subject.clone();
        self.ever.insert(self.last, message.clone());
        self.live.insert(self.last, message);
        match rollup {
            None => self.enforce_subject(&subject),
            Some(scope) => self.roll_up((scope == "sub").then_some(&subject)),
        }
        stored
    }

    /// Whether no schedule is left whose time will come.
    pub(crate) fn nothing_is_scheduled(&self) -> bool {
        self.timetable.is_done(|seq| self.live.contains_key(&seq))
    }

    /// The last message stands for all before it, or for those of its subject.
    fn roll_up(&mut self, subject: Option<&Bytes>) {
        let before = self.live.range(..self.last);
        let rolled = before.filter(|(_, message)| subject.is_none_or(|subject| message.subject == *subject));
        let gone: Vec<u64> = rolled.map(|(seq, _)| *seq).collect();
        for seq in gone {
            self.remove(seq);
        }
    }

    fn retention(&self) -> RetentionPolicy {
        self.config.as_ref().map_or(RetentionPolicy::Limits, |config| config.retention)
    }

    fn is_wanted(&self, subject: &[u8]) -> bool {
        self.wanted.values().any(|wanting| wants(&wanting.filters, subject))
    }

    /// Whether a consumer is not done with a message that it wants.
    fn needs(&self, name: &ConsumerName, seq: u64) -> bool {
        let Some((wanting, message)) = self.wanted.get(name).zip(self.live.get(&seq)) else { return false };
        wants(&wanting.filters, &message.subject) && !self.done.contains(&(name.clone(), seq))
    }

    /// It wants everything from this message on, or what was not removed when that is none, and nothing before.
    fn begins_again(&mut self, name: &ConsumerName, (start, index): (u64, u64)) {
        self.done.retain(|(of, _)| of != name);
        self.done.extend(self.live.range(..start).map(|(seq, _)| (name.clone(), *seq)));
        if let Some(wanting) = self.wanted.get_mut(name) {
            wanting.incarnation = index;
        }
    }

    /// A consumer changes: under interest retention that leaves which only it needed.
    fn release(&mut self, name: &ConsumerName, change: impl FnOnce(&mut Self)) {
        let needed: Vec<u64> = self.live.keys().copied().filter(|seq| self.needs(name, *seq)).collect();
        change(self);
        if self.retention() == RetentionPolicy::Interest {
            for seq in needed {
                if !self.wanted.keys().any(|name| self.needs(name, seq)) {
                    self.remove(seq);
                }
            }
        }
    }

    /// A message leaves when all consumers that want it are done with it.
    fn progress(&mut self, row: &ConsumerProgress) {
        // What is said of before a reset, or of another consumer that had the name, counts no more.
        if self.wanted.get(&row.name).is_none_or(|wanting| wanting.incarnation != row.incarnation) {
            return;
        }
        for run in row.settled.iter().filter(|run| run.how != Settlement::Exhausted) {
            let settled: Vec<u64> = match run.how {
                Settlement::AckedAll => self.live.range(..=run.last.0).map(|(seq, _)| *seq).collect(),
                _ => (run.first.0..=run.last.0).collect(),
            };
            for seq in settled {
                self.done.insert((row.name.clone(), seq));
                let Some(message) = self.live.get(&seq) else { continue };
                let is_wanted = wants(&self.wanted[&row.name].filters, &message.subject);
                if is_wanted && !self.wanted.keys().any(|name| self.needs(name, seq)) {
                    self.remove(seq);
                }
            }
        }
    }

    fn has_room(&self, config: &StreamConfig, message: &Message) -> bool {
        let same_subject = || self.live.values().filter(|other| other.subject == message.subject);
        let takes_a_place =
            limit(config.max_msgs_per_subject).is_some_and(|max| same_subject().count() as u64 >= max);
        if !takes_a_place && limit(config.max_msgs).is_some_and(|max| self.live.len() as u64 >= max) {
            return false;
        }
        if limit(config.max_bytes).is_some_and(|max| self.bytes + message.bytes >= max) {
            let freed =
                if takes_a_place { same_subject().next().map_or(0, |oldest| oldest.bytes) } else { 0 };
            return freed >= message.bytes;
        }
        true
    }

    fn enforce_subject(&mut self, subject: &Bytes) {
        let Some(max) = self.config.as_ref().and_then(|config| limit(config.max_msgs_per_subject)) else {
            return;
        };
        loop {
            let mut of_subject = self.live.iter().filter(|(_, message)| message.subject == subject);
            let oldest = of_subject.next().map(|(seq, _)| *seq);
            match oldest {
                Some(oldest) if of_subject.count() as u64 + 1 > max => self.remove(oldest),
                _ => return,
            };
        }
    }

    fn enforce(&mut self, clock: Timestamp) {
        let config = self.config.clone().unwrap_or_default();
        let bounded = config.discard == DiscardPolicy::Old;
        while let Some((seq, oldest)) = self.live.first_key_value() {
            let too_many = limit(config.max_msgs).is_some_and(|max| self.live.len() as u64 > max);
            let too_large = limit(config.max_bytes).is_some_and(|max| self.bytes > max);
            let too_old = config.max_age.0 > 0 && oldest.at.plus(config.max_age) <= clock;
            let over = bounded && (too_many || too_large) || too_old;
            if !over {
                return;
            }
            self.remove(*seq);
        }
    }

    fn purge(&mut self, filter: &str, below: u64, keep: u64) -> u64 {
        let everything = filter.is_empty() || filter == ">";
        let filter =
            Filter::parse(if everything { ">" } else { filter }).expect("the workload's filters are valid");
        let below = if below > 0 { below } else { u64::MAX };
        let matching =
            self.live.iter().filter(|(seq, message)| **seq < below && filter.matches(&message.subject));
        let mut gone: Vec<u64> = matching.map(|(seq, _)| *seq).collect();
        gone.truncate(gone.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX)));
        for seq in &gone {
            self.remove(*seq);
        }
        if everything && keep == 0 && below == u64::MAX {
            self.empty_first = self.empty_first.max(self.last + 1);
        } else if everything && keep == 0 && below > self.last {
            // As in NATS: sequences up to the one that was named count as given out.
            self.last = below - 1;
            self.empty_first = below;
        }
        gone.len() as u64
    }

    fn remove(&mut self, seq: u64) -> bool {
        let Some(gone) = self.live.remove(&seq) else { return false };
        self.bytes -= gone.bytes;
        self.empty_first = self.last + 1;
        true
    }
}

/// No client tries again for so long.
pub(crate) const WINDOW_BEYOND_RETRIES: Nanos = Nanos::from_secs(3600);

fn wants(filters: &[Filter], subject: &[u8]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.matches(subject))
}

/// Names a message whose body has no word of its own.
pub(crate) const WORD_HEADER: &str = "Sim-Word";

/// What no other message has: the id of a dead letter, the word in the header, or the first one of the body, of a message
/// of a schedule with the time that follows.
pub(crate) fn identity(header: &[u8], payload: &Bytes) -> Bytes {
    let header = HeaderBlock(header);
    let named = header.get("Levee-Dead-Sequence").and_then(|_| header.get("Nats-Msg-Id"));
    let word =
        named.or_else(|| header.get(WORD_HEADER)).map_or_else(|| first_word(payload), Bytes::copy_from_slice);
    match (header.get("Nats-Scheduler"), header.get("Nats-Schedule-Next")) {
        (Some(scheduler), Some(next)) => [&word, scheduler, next].join(&b" "[..]).into(),
        _ => word,
    }
}

/// Where the batch that begins at `first` ends.
fn end_of(block: &Block, first: u32) -> u32 {
    let ends = |position: &u32| block.flags(*position).contains(RecordFlags::ENDS_BATCH);
    (first..block.count()).find(ends).expect("the workload ends its batches")
}

/// What identifies a body.
fn first_word(payload: &Bytes) -> Bytes {
    let end = payload.iter().position(|byte| *byte == b' ').unwrap_or(payload.len());
    payload.slice(..end)
}

/// When a message leaves by its own word: times are looked at in steps of 250 ms.
fn end(at: Timestamp, ttl: &str) -> Timestamp {
    let span = levee_protocol::api::duration_text::parse_duration(ttl).unwrap_or(Nanos::ZERO);
    let step = Nanos::from_millis(250).0;
    Timestamp((at.plus(span).0 + step - 1).div_euclid(step) * step)
}

fn limit(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|value| *value > 0)
}
