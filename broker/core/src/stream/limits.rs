//! The bounds of a stream, and who gives way at them.

use levee_protocol::api::{ApiError, DiscardPolicy, StreamConfig};
use levee_protocol::record::RecordRef;
use levee_protocol::time::{Nanos, Timestamp};

use super::batch::Ahead;
use super::messages::{Appended, Messages, Removals};
use super::reads::Reads;
use super::subjects::HISTORY_MAX;
use super::view::ReadFailed;

/// nats-server keeps the length of a header block in 16 bits, and clients know its error.
const HEADER_BYTES_MAX: usize = 65_535;

/// Room for one more message.
pub(crate) struct Wanted<'a> {
    pub(crate) record: &'a RecordRef<'a>,
    pub(crate) bytes: u64,
    pub(crate) rolls_up: bool,
    /// What its batch takes before it.
    pub(crate) ahead: Option<&'a Ahead<'a>>,
}

/// The bounds of a stream as its configuration sets them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limits {
    max_msgs: Option<u64>,
    max_bytes: Option<u64>,
    pub(crate) max_age: Option<Nanos>,
    per_subject: Option<u64>,
    max_msg_size: Option<usize>,
    discard: DiscardPolicy,
    discard_new_per_subject: bool,
}

impl Limits {
    pub(crate) fn of(config: &StreamConfig) -> Self {
        let bound = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        Self {
            max_msgs: bound(config.max_msgs),
            max_bytes: bound(config.max_bytes),
            max_age: (config.max_age > Nanos::ZERO).then_some(config.max_age),
            per_subject: bound(config.max_msgs_per_subject),
            max_msg_size: usize::try_from(config.max_msg_size).ok().filter(|size| *size > 0),
            discard: config.discard,
            discard_new_per_subject: config.discard_new_per_subject,
        }
    }

    /// Whether subjects should remember every one of their messages.
    pub(crate) fn keep_history(&self) -> bool {
        self.per_subject.is_some_and(|limit| (2..=HISTORY_MAX).contains(&limit))
    }

    /// What is wrong with the size of a message, in nats-server's order.
    pub(crate) fn check_size(&self, record: &RecordRef<'_>) -> Result<(), ApiError> {
        if self.max_msg_size.is_some_and(|max| record.header.len() + record.payload.len() > max) {
            return Err(ApiError::message_exceeds_maximum());
        }
        if record.header.len() > HEADER_BYTES_MAX {
            return Err(ApiError::header_exceeds_maximum());
        }
        Ok(())
    }

    /// Why there is no room for one more message, when it is new messages that give way. A message that will push an
    /// older one of its subject out takes that one's place, and one that rolls up takes the place of all.
    pub(crate) fn check_room(
        &self,
        messages: &mut Messages,
        wanted: &Wanted<'_>,
        reads: &Reads<'_>,
    ) -> Result<Option<ApiError>, ReadFailed> {
        if self.discard == DiscardPolicy::Old {
            return Ok(None);
        }
        let Wanted { record, bytes, rolls_up, ahead } = *wanted;
        let full = |what| Ok(Some(ApiError::stream_store_failed(what)));
        let (count, stored) = ahead.map_or((0, 0), |ahead| (ahead.count, ahead.bytes));
        let own = ahead.and_then(|ahead| ahead.subjects.get(record.subject)).copied().unwrap_or(0);
        if self.discard_new_per_subject && !rolls_up && self.per_subject.is_some_and(|limit| own >= limit) {
            return full("maximum messages per subject exceeded");
        }
        let subject = messages.subjects.position(record.subject).filter(|_| self.per_subject.is_some());
        let at_limit = subject.filter(|subject| {
            self.per_subject.is_some_and(|limit| messages.subjects.at(*subject).count + own >= limit)
        });
        if at_limit.is_some() && self.discard_new_per_subject && !rolls_up {
            return full("maximum messages per subject exceeded");
        }
        if at_limit.is_none() && self.max_msgs.is_some_and(|max| messages.count + count >= max) {
            return full("maximum messages exceeded");
        }
        // The comparison is nats-server's: bytes never quite reach the limit.
        if self.max_bytes.is_some_and(|max| messages.bytes + stored + bytes >= max) {
            let freed = match at_limit {
                Some(subject) => u64::from(messages.oldest_of(subject, reads)?.bytes),
                None => 0,
            };
            if freed < bytes {
                return full("maximum bytes exceeded");
            }
        }
        Ok(None)
    }

    /// A message was stored: the oldest ones of its subject give way.
    pub(crate) fn enforce_subject(
        &self,
        messages: &mut Messages,
        appended: &Appended,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let Some(limit) = self.per_subject else { return Ok(()) };
        if limit == 1
            && let Some(before) = appended.only_before
        {
            messages.remove_held(appended.subject, before, removals);
            return Ok(());
        }
        while messages.subjects.at(appended.subject).count > limit {
            let oldest = messages.oldest_of(appended.subject, reads)?;
            messages.remove_held(appended.subject, oldest, removals);
        }
        Ok(())
    }

    /// The oldest messages give way to the bounds of the whole stream, and to age.
    pub(crate) fn enforce(
        &self,
        messages: &mut Messages,
        now: Timestamp,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let bounded = self.discard == DiscardPolicy::Old;
        let max_msgs = self.max_msgs.filter(|_| bounded).unwrap_or(u64::MAX);
        let max_bytes = self.max_bytes.filter(|_| bounded).unwrap_or(u64::MAX);
        let mut max_age = self.max_age;
        if let Some(age) = max_age
            && (messages.leaves_markers || !messages.exempt.is_empty())
        {
            messages.evict_aged(age, now, reads, removals)?;
            max_age = None;
        }
        let mut over = |messages: &Messages, first_time: Timestamp| {
            messages.count > max_msgs
                || messages.bytes > max_bytes
                || max_age.is_some_and(|age| first_time.plus(age) <= now)
        };
        messages.evict_while(&mut over, reads, removals)
    }

    /// Every subject within its limit, after the limit became smaller.
    pub(crate) fn enforce_all_subjects(
        &self,
        messages: &mut Messages,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let Some(limit) = self.per_subject else { return Ok(()) };
        // In order of subjects, so that all replicas remove in the same order.
        let mut over: Vec<(Box<[u8]>, u64)> = messages
            .subjects
            .iter()
            .filter(|entry| entry.count > limit)
            .map(|entry| (entry.subject().into(), entry.count - limit))
            .collect();
        if over.is_empty() {
            return Ok(());
        }
        over.sort_unstable();
        let mut surplus: std::collections::BTreeMap<Box<[u8]>, u64> = over.into_iter().collect();
        let mut unwanted = |_, subject: &[u8]| match surplus.get_mut(subject) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        };
        messages.remove_run((messages.first, messages.last), &mut unwanted, reads, removals)
    }
}
