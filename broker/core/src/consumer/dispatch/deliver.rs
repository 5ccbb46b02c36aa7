//! Hot path: the next delivery, or why there is none.
//!
//! Redeliveries go first, in order of their sequences, and are not held back by `max_ack_pending`.

use bytes::Bytes;
use levee_protocol::api::AckPolicy;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBuilder;

use super::{Delivery, Dispatch, Step};
use crate::consumer::backlog::Reading;
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
        if let Some(delivery) = self.redeliver(stream, view, interest, now)? {
            return Ok(Next::Deliver(delivery));
        }
        if !self.ready.is_empty() {
            return Ok(Next::Nothing { look_again: None });
        }
        let room = match u64::try_from(self.config.max_ack_pending) {
            Ok(max) if max > 0 && self.config.ack_policy != AckPolicy::None => {
                max.saturating_sub(self.marks.num_unacked())
            }
            _ => u64::MAX,
        };
        if room == 0 {
            return Ok(Next::Nothing { look_again: None });
        }
        self.deliver_new(appetite.min(room), stream, view, interest, now)
    }

    fn redeliver(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<Option<Delivery>, ReadFailed> {
        while let Some(seq) = self.ready.first().copied() {
            let Some(unacked) = self.marks.unacked.get(&seq) else {
                self.ready.remove(&seq);
                continue;
            };
            let attempt = unacked.attempt.saturating_add(1);
            if !stream.is_live(seq) {
                self.drop_unacked(Run { first: seq, last: seq }, stream, now);
                continue;
            }
            let record = view.record(seq)?.ok_or_else(|| ReadFailed::missing(seq))?;
            let reading = Reading { stream, view, filters: &self.filters };
            let pending = self.backlog.undelivered(reading, &self.marks)?;
            let record = self.shown(record);
            let Some(to) = self.recipient(&record, attempt, pending, interest, now) else { return Ok(None) };
            self.ready.remove(&seq);
            return Ok(Some(self.sent(to, record, attempt, pending, now)));
        }
        Ok(None)
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
            let outbox = &mut self.outbox;
            self.waiting.nothing_left(|notice| outbox.push_back(Step::Notify(notice)));
            return Ok(Next::Nothing { look_again: None });
        };
        if let Some(at) = self.replay_pause(&record, now) {
            return Ok(Next::Nothing { look_again: Some(at) });
        }
        let timestamp = record.timestamp;
        let seq = record.seq;
        let pending = self.backlog.undelivered(reading, &self.marks)?.saturating_sub(1);
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
        Ok(Next::Deliver(self.sent(to, record, 1, pending, now)))
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
        if let Some(push) = &mut self.push {
            let follows = push.sent(size, now);
            return Some(Recipient { to: push.subject.clone(), follows });
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
        Some(Recipient { to: grant.inbox, follows: grant.completed })
    }

    fn sent(
        &mut self,
        to: Recipient,
        mut record: Record,
        attempt: u32,
        pending: u64,
        now: Timestamp,
    ) -> Delivery {
        if let Some(pin_id) = self.priority.pin_header() {
            let mut header = HeaderBuilder::from_block(&record.header);
            header.push("Nats-Pin-Id", pin_id);
            record.header = header.finish().into();
        }
        let consumer_seq = self.marks.delivered.consumer + 1;
        let sent = Sent { seq: record.seq, consumer_seq, attempt, at: now };
        self.marks.deliver(self.config.ack_policy, sent);
        self.fold.delivered(sent);
        if self.config.ack_policy != AckPolicy::None {
            self.wait_for_ack(record.seq, now, attempt);
        }
        self.outbox.extend(to.follows.map(Step::Notify));
        Delivery { to: to.to, record, attempt: attempt.into(), consumer_seq, pending }
    }

    /// Until when the original pace holds the message back.
    fn replay_pause(&self, record: &Record, now: Timestamp) -> Option<Timestamp> {
        let (timestamp, sent_at) = self.replay.as_ref()?.before?;
        let pause = record.timestamp.since(timestamp);
        let at = sent_at.plus(pause);
        (pause > REPLAY_PAUSE_MIN && at > now).then_some(at)
    }

    /// While paused there is nothing to have for requests that do not wait.
    fn end_one_shots(&mut self) {
        let outbox = &mut self.outbox;
        self.waiting.nothing_left(|notice| outbox.push_back(Step::Notify(notice)));
    }
}

pub(super) enum Next {
    Deliver(Delivery),
    Nothing { look_again: Option<Timestamp> },
}

struct Recipient {
    to: Bytes,
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
