//! Hot path: the next delivery, or why there is none.
//!
//! Redeliveries go first, in order of their sequences, and are not held back by `max_ack_pending`. Then come those that
//! gave their place up and wait for one, then those that were passed over and whose key is done, then new ones.

use bytes::Bytes;
use levee_protocol::api::AckPolicy;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBuilder;

use super::committed::Held;
use super::{Delivery, Dispatch, Step};
use crate::consumer::backlog::Reading;
use crate::consumer::keyed::{Key, PASSED_MAX};
use crate::consumer::notice::Notice;
use crate::consumer::priority::Load;
use crate::consumer::settle::{Run, Sent};
use crate::consumer::source::Source;
use crate::stream::{MessageView, ReadFailed};

/// Pauses between messages shorter than this are not replayed.
const REPLAY_PAUSE_MIN: Nanos = Nanos::from_millis(1);

impl Dispatch {
    pub(super) fn next_delivery(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<Next, ReadFailed> {
        if let Some(until) = self.paused_until(now) {
            self.end_one_shots();
            return Ok(Next::Nothing { look_again: Some(until) });
        }
        let appetite = match &mut self.push {
            None if self.waiting.is_empty() => return Ok(Next::Nothing { look_again: None }),
            None => self.waiting.wanted(),
            Some(push) if !push.open() => return Ok(Next::Nothing { look_again: None }),
            Some(push) => match push.held_until(now) {
                Some(at) => return Ok(Next::Nothing { look_again: Some(at) }),
                None => u64::MAX,
            },
        };
        while let Some(seq) = self.next_ready() {
            if let Some(next) = self.deliver_open(seq, stream, view, interest, now)? {
                return Ok(next);
            }
        }
        let room = match self.config.ack_policy {
            AckPolicy::None => u64::MAX,
            _ => {
                let dead = self.marks.dead.len();
                self.slots.room(self.config.max_ack_pending, self.marks.num_unacked(), dead)
            }
        };
        if room == 0 {
            return Ok(Next::Nothing { look_again: None });
        }
        while let Some(seq) = self.next_waiting() {
            if let Some(next) = self.deliver_open(seq, stream, view, interest, now)? {
                return Ok(next);
            }
        }
        self.deliver_new(appetite.min(room), stream, view, interest, now)
    }

    /// The next message to deliver again, whatever is in flight.
    fn next_ready(&self) -> Option<Seq> {
        match &self.keyed {
            None => self.ready.first().copied(),
            Some(keyed) => self.ready.iter().copied().find(|seq| keyed.is_first(*seq)),
        }
    }

    /// The next message that had its turn and needs a place.
    fn next_waiting(&self) -> Option<Seq> {
        let due = self.slots.due();
        let Some(keyed) = &self.keyed else { return due.first().copied() };
        due.iter().copied().find(|seq| keyed.is_first(*seq)).or_else(|| keyed.next_free())
    }

    /// Delivers a message that had its turn before. `None` is that it is gone.
    fn deliver_open(
        &mut self,
        seq: Seq,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<Option<Next>, ReadFailed> {
        let is_passed = self.marks.passed.contains(&seq);
        let attempt = match self.marks.unacked.get(&seq) {
            Some(unacked) => unacked.attempt.saturating_add(1),
            None if is_passed => 1,
            None => {
                self.let_go(seq);
                return Ok(None);
            }
        };
        if !stream.is_live(seq) {
            self.drop_unacked(Run { first: seq, last: seq }, stream, now);
            return Ok(None);
        }
        let record = view.record(seq)?.ok_or_else(|| ReadFailed::missing(seq))?;
        let pending = self.undelivered(stream, view)?.saturating_sub(u64::from(is_passed));
        let record = self.shown(record);
        let Some(to) = self.recipient(&record, attempt, pending, interest, now) else {
            return Ok(Some(Next::Nothing { look_again: None }));
        };
        self.ready.remove(&seq);
        self.slots.forget(seq);
        if let Some(keyed) = &mut self.keyed {
            keyed.delivered(seq);
        }
        Ok(Some(self.sent(to, record, attempt, pending, now)))
    }

    fn deliver_new(
        &mut self,
        appetite: u64,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<Next, ReadFailed> {
        let reading = Reading { stream, view, filters: &self.filters };
        let Some(record) = self.backlog.peek(appetite, reading, &self.marks)?.cloned() else {
            if let Some(last) = self.backlog.take_rest() {
                self.marks.advance(last);
            }
            self.end_one_shots();
            return Ok(Next::Nothing { look_again: None });
        };
        let key = self.keyed.as_ref().and_then(|keyed| keyed.key(&record));
        if key.is_some_and(|key| self.is_taken(key)) {
            return self.pass(&record, key, stream, view);
        }
        if let Some(at) = self.replay_pause(&record, now) {
            return Ok(Next::Nothing { look_again: Some(at) });
        }
        let timestamp = record.timestamp;
        let seq = record.seq;
        let pending = self.undelivered(stream, view)?.saturating_sub(1);
        let record = self.shown(record);
        let Some(to) = self.recipient(&record, 1, pending, interest, now) else {
            return Ok(Next::Nothing { look_again: None });
        };
        self.backlog.take(Reading { stream, view, filters: &self.filters }, &self.marks)?;
        if let Some(replay) = &mut self.replay {
            replay.before = Some((timestamp, now));
            if seq >= replay.until {
                self.replay = None;
            }
        }
        if let (Some(keyed), Some(key)) = (&mut self.keyed, key) {
            keyed.open(seq, key);
        }
        Ok(self.sent(to, record, 1, pending, now))
    }

    fn is_taken(&self, key: Key) -> bool {
        self.keyed.as_ref().is_some_and(|keyed| keyed.is_taken(key))
    }

    /// The turn of the message that was read last has come, but its key is in flight.
    fn pass(
        &mut self,
        record: &Record,
        key: Option<Key>,
        stream: &dyn Source,
        view: &dyn MessageView,
    ) -> Result<Next, ReadFailed> {
        if self.marks.passed.len() >= PASSED_MAX {
            self.end_one_shots();
            return Ok(Next::Nothing { look_again: None });
        }
        self.backlog.take(Reading { stream, view, filters: &self.filters }, &self.marks)?;
        self.marks.pass(record.seq);
        self.marks.advance(record.seq);
        self.fold.passed(record.seq);
        if let (Some(keyed), Some(key)) = (&mut self.keyed, key) {
            keyed.open(record.seq, key);
        }
        Ok(Next::Held)
    }

    /// The record as clients of this consumer get it.
    fn shown(&self, mut record: Record) -> Record {
        if self.config.headers_only {
            let mut header = HeaderBuilder::from_block(&record.header);
            header.push_number("Nats-Msg-Size", record.payload.len() as u64);
            record.header = header.finish().into();
            record.payload = Bytes::new();
        }
        record
    }

    /// Who gets the message: a waiting request that can take it, or the deliver subject.
    fn recipient(
        &mut self,
        record: &Record,
        attempt: u32,
        pending: u64,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Option<Recipient> {
        let numbers = [
            u64::from(attempt),
            record.seq.0,
            self.marks.delivered.consumer + 1,
            record.timestamp.0.unsigned_abs(),
            pending,
        ];
        let digits: usize = numbers.into_iter().map(digits).sum();
        let size = record.subject.len()
            + self.ack_subject_base
            + digits
            + record.header.len()
            + record.payload.len();
        let size = size as u64;
        let room = self.room_after_next();
        if let Some(push) = &mut self.push {
            let follows = push.sent(size, room, now);
            return Some(Recipient { to: push.subject.clone(), size, follows });
        }
        let load = Load { pending, ack_pending: self.marks.num_unacked() };
        let outbox = &mut self.outbox;
        let notify = |notice| outbox.push_back(Step::Notify(notice));
        let Some(grant) = self.waiting.offer(size, &mut self.priority, load, interest, now, notify) else {
            // Those that are left wait for a message of another priority; for now there is none for them.
            self.end_one_shots();
            return None;
        };
        self.outbox.extend(grant.pinned.map(Step::Advisory));
        Some(Recipient { to: grant.inbox, size, follows: grant.completed })
    }

    fn sent(
        &mut self,
        to: Recipient,
        mut record: Record,
        attempt: u32,
        pending: u64,
        now: Timestamp,
    ) -> Next {
        if let Some(pin_id) = self.priority.pin_header() {
            let mut header = HeaderBuilder::from_block(&record.header);
            header.push("Nats-Pin-Id", pin_id);
            record.header = header.finish().into();
        }
        let consumer_seq = self.marks.delivered.consumer + 1;
        let sent = Sent { seq: record.seq, consumer_seq, attempt, at: now };
        self.marks.deliver(self.config.ack_policy, sent);
        self.fold.delivered(sent);
        if self.config.ack_policy.is_of_messages() {
            self.wait_for_ack(record.seq, now, attempt);
        }
        let Recipient { to, size, follows } = to;
        let follows = follows.map(Step::Notify);
        let delivery = Delivery { to, record, attempt: attempt.into(), consumer_seq, pending };
        if self.keyed.is_some() {
            self.held.push_back(Held { delivery, size, follows });
            return Next::Held;
        }
        self.outbox.extend(follows);
        Next::Deliver(delivery)
    }

    /// Until when the original pace holds the message back.
    fn replay_pause(&self, record: &Record, now: Timestamp) -> Option<Timestamp> {
        let (timestamp, sent_at) = self.replay.as_ref()?.before?;
        let pause = record.timestamp.since(timestamp);
        let at = sent_at.plus(pause);
        (pause > REPLAY_PAUSE_MIN && at > now).then_some(at)
    }

    /// There is nothing to have for requests that do not wait.
    fn end_one_shots(&mut self) {
        let outbox = &mut self.outbox;
        self.waiting.nothing_left(|notice| outbox.push_back(Step::Notify(notice)));
    }
}

pub(super) enum Next {
    Deliver(Delivery),
    /// Something was done, and nothing is to be sent yet.
    Held,
    Nothing {
        look_again: Option<Timestamp>,
    },
}

struct Recipient {
    to: Bytes,
    /// Bytes of the message as requests count them.
    size: u64,
    /// A status that follows the message.
    follows: Option<Notice>,
}

/// The original pace, up to the last message there was at the start.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) until: Seq,
    /// When the message before was stored, and when it was sent.
    pub(super) before: Option<(Timestamp, Timestamp)>,
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}
