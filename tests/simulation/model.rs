//! What a stream must do, written down a second time: no indexes, no blocks, no laziness. It follows the committed
//! commands and says which answers and which messages every replica must have.
//!
//! It covers what the workload uses: limits, message ids, times to live, rollups, purge, removal of single messages,
//! changed limits, duplicate windows that end, work queues with one consumer, and interest of several that ack one by
//! one. What consumers promise is in [`deliveries`](crate::deliveries).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use levee_protocol::api::{DiscardPolicy, RetentionPolicy, StreamConfig};
use levee_protocol::command::progress::Settlement;
use levee_protocol::command::{ConsumerProgress, StreamCommand};
use levee_protocol::ids::ConsumerName;
use levee_protocol::record::{Block, RecordRef, stored_bytes};
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBlock;

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
    wanted: BTreeMap<ConsumerName, Vec<Filter>>,
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

    /// Follows one committed command. `Err` when what was committed breaks a promise by itself.
    pub(crate) fn apply(&mut self, command: &StreamCommand, clock: Timestamp) -> Result<Expected, String> {
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
            StreamCommand::CreateConsumer { name, config, .. } => {
                let filters = config.filters().filter_map(|filter| Filter::parse(filter).ok());
                self.wanted.insert(name.clone(), filters.collect());
                Ok(Expected::Anything)
            }
            StreamCommand::Progress(progress) => {
                if self.retention() != RetentionPolicy::Limits {
                    progress.consumers.iter().for_each(|row| self.progress(row));
                }
                Ok(Expected::Anything)
            }
            StreamCommand::DeleteConsumer { .. }
            | StreamCommand::PauseConsumer { .. }
            | StreamCommand::ResetConsumer { .. } => Ok(Expected::Anything),
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
        for position in 0..block.count() {
            let record = block.record_owned(position, levee_protocol::ids::Seq::NONE);
            let id = HeaderBlock(&record.header).get_str("Nats-Msg-Id").map(str::to_owned);
            if let Some((seq, _)) = id.as_ref().and_then(|id| self.ids.get(id)) {
                verdicts.push(Verdict::Duplicate(*seq));
                continue;
            }
            let expected = HeaderBlock(&record.header).get_str("Nats-Expected-Last-Sequence");
            if expected.is_some_and(|expected| expected.parse() != Ok(self.last)) {
                verdicts.push(Verdict::Refused);
                continue;
            }
            let config = self.config.clone().unwrap_or_default();
            let message = Message {
                bytes: stored_bytes(
                    config.storage,
                    record.subject.len(),
                    record.header.len(),
                    record.payload.len(),
                ),
                subject: record.subject,
                header: record.header,
                payload: record.payload,
                at: block.timestamp(),
            };
            if config.discard == DiscardPolicy::New && !self.has_room(&config, &message) {
                verdicts.push(Verdict::Refused);
                continue;
            }
            self.last += 1;
            if let Some(id) = id {
                self.ids.insert(id, (self.last, clock));
            }
            if self.retention() == RetentionPolicy::Interest && !self.is_wanted(&message.subject) {
                verdicts.push(Verdict::Stored(self.last));
                if self.live.is_empty() {
                    self.empty_first = self.last + 1;
                }
                continue;
            }
            let word = identity(&message.header, &message.payload);
            // Who tries again after the window is told nothing of the first time.
            if let Some(before) = self.stored.insert(word.clone(), self.last)
                && window >= WINDOW_BEYOND_RETRIES
            {
                let word = String::from_utf8_lossy(&word).into_owned();
                return Err(format!("{word} is stored twice, as {before} and as {}", self.last));
            }
            verdicts.push(Verdict::Stored(self.last));
            self.bytes += message.bytes;
            let header = HeaderBlock(&message.header);
            if let Some(ttl) = header.get_str("Nats-TTL") {
                self.ends.insert(self.last, end(block.timestamp(), ttl));
            }
            let rollup = header.get_str("Nats-Rollup").map(str::to_owned);
            let subject = message.subject.clone();
            self.ever.insert(self.last, message.clone());
            self.live.insert(self.last, message);
            match rollup {
                None => self.enforce_subject(&subject),
                Some(scope) => self.roll_up((scope == "sub").then_some(&subject)),
            }
        }
        self.enforce(clock);
        Ok(verdicts)
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
        self.wanted.values().any(|filters| wants(filters, subject))
    }

    /// A message leaves when all consumers that want it are done with it.
    fn progress(&mut self, row: &ConsumerProgress) {
        for run in row.settled.iter().filter(|run| run.how != Settlement::Exhausted) {
            for seq in run.first.0..=run.last.0 {
                self.done.insert((row.name.clone(), seq));
                let Some(message) = self.live.get(&seq) else { continue };
                let mut wanting =
                    self.wanted.iter().filter(|(_, filters)| wants(filters, &message.subject)).peekable();
                let is_wanted = wanting.peek().is_some();
                if is_wanted && wanting.all(|(name, _)| self.done.contains(&(name.clone(), seq))) {
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

/// What no other message has: the id of a dead letter, the first word of another message's body.
pub(crate) fn identity(header: &[u8], payload: &Bytes) -> Bytes {
    let header = HeaderBlock(header);
    match header.get("Levee-Dead-Sequence").and_then(|_| header.get("Nats-Msg-Id")) {
        Some(id) => Bytes::copy_from_slice(id),
        None => first_word(payload),
    }
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
