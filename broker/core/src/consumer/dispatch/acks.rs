//! How deliveries end: by acks, by time, by the message being gone.

use bytes::Bytes;
use levee_protocol::api::consumer_check::parse_sampling;
use levee_protocol::api::{AckKind, AckPolicy, AckReply, ConsumerConfig};
use levee_protocol::command::progress::{DeadMessage, DeathCause, Settlement};
use levee_protocol::ids::Seq;
use levee_protocol::time::{Nanos, Timestamp};

use super::{AckOutcome, Advisory, Confirm, Dispatch, Step};
use crate::consumer::backoff::wait_after;
use crate::consumer::dead_letter;
use crate::consumer::settle::{Marks, Run};
use crate::consumer::source::Source;

/// Deliveries whose marks a leader can lose at most: more are not proposed at one time.
const LOST_MAX: u64 = 16_384;

const DELETED_BY_LIMITS: &str = "Message deleted by stream limits";
const DELETED_UNACKED: &str = "Unacknowledged message was deleted";

impl Dispatch {
    /// An ack. Changes the working copy and what is to be proposed.
    pub fn on_ack(&mut self, ack: &AckReply<'_>, kind: AckKind<'_>, now: Timestamp) -> AckOutcome {
        let mut outcome = AckOutcome::default();
        let seq = ack.stream_seq;
        if !self.config.ack_policy.is_of_messages() {
            outcome.confirm = Confirm::Nobody;
            return outcome;
        }
        if seq == Seq::NONE {
            outcome.confirm = Confirm::Now;
            return outcome;
        }
        if seq > self.backlog.last_seq().unwrap_or(self.began_at) {
            return outcome;
        }
        if seq > self.marks.delivered.stream && !self.is_of_former_leader(ack, now) {
            return outcome;
        }
        self.used_at = now;
        if self.marks.dead.contains_key(&seq) {
            return answer_only(kind, Confirm::AfterProgress);
        }
        if self.marks.passed.contains(&seq) || self.is_held_first(seq) {
            // Nobody has it yet, so this is of before a reset, or meant for an earlier consumer of the same name; the
            // message is still to be delivered, and nothing is to be promised about it.
            return answer_only(kind, Confirm::No);
        }
        if seq > self.marks.delivered.stream
            && self.extensions.dead_letter.is_some()
            && matches!(kind, AckKind::Terminate(_))
        {
            // The letter could not tell how often it was delivered, so it is delivered again.
            return outcome;
        }
        outcome.confirm = Confirm::Now;
        match kind {
            AckKind::Ack => {
                self.sample(seq, ack, now, &mut outcome.advisories);
                self.settle(seq, Settlement::Acked, now);
                outcome.confirm = Confirm::AfterProgress;
            }
            AckKind::Next(request) => {
                self.sample(seq, ack, now, &mut outcome.advisories);
                self.settle(seq, Settlement::Acked, now);
                outcome.confirm = Confirm::No;
                outcome.next = Some(Bytes::copy_from_slice(request));
            }
            AckKind::Terminate(reason) => {
                if self.marks.unacked.contains_key(&seq) {
                    outcome.advisories.push(Advisory::Terminated {
                        consumer_seq: ack.consumer_seq,
                        stream_seq: seq,
                        deliveries: ack.attempt,
                        reason: String::from_utf8_lossy(reason).into_owned(),
                    });
                }
                if !self.give_up(seq, DeathCause::Terminated, reason, now) {
                    self.settle(seq, Settlement::Terminated, now);
                }
                outcome.confirm = Confirm::AfterProgress;
            }
            AckKind::Nak(delay) => self.nak(ack, delay, now, &mut outcome.advisories),
            AckKind::InProgress => {
                self.slots.forget(seq);
                self.wait_from(seq, now);
            }
            AckKind::Unknown => {}
        }
        outcome
    }

    /// Whether an ack of something that this leader has not delivered can be of the leader before, whose last marks were
    /// lost. Other acks are strays, perhaps of before a reset or meant for an earlier consumer of the same name, and would
    /// make messages disappear. An ack for all before it is never believed that far: those it speaks of are delivered again.
    fn is_of_former_leader(&self, ack: &AckReply<'_>, now: Timestamp) -> bool {
        let delivered = self.marks.delivered;
        let Some(later) = ack.consumer_seq.checked_sub(delivered.consumer).filter(|later| *later > 0) else {
            return false;
        };
        now <= self.inherits_until
            && self.config.ack_policy == AckPolicy::Explicit
            && later <= LOST_MAX
            && ack.stream_seq.0 - delivered.stream.0 >= later
    }

    /// Messages that were delivered and are gone from the stream are not waited for any more.
    pub(super) fn drop_unacked(&mut self, run: Run, stream: &dyn Source, now: Timestamp) {
        let unacked = self.marks.unacked.range(run.first..=run.last).map(|(seq, _)| seq);
        let lost: Vec<Seq> = unacked.chain(self.marks.passed.range(run.first..=run.last)).copied().collect();
        for seq in lost.into_iter().filter(|seq| !stream.is_live(*seq)) {
            if let Some(unacked) = self.marks.unacked.get(&seq) {
                let reason = if seq < stream.first_seq() { DELETED_BY_LIMITS } else { DELETED_UNACKED };
                self.outbox.push_back(Step::Advisory(Advisory::Terminated {
                    consumer_seq: unacked.consumer_seq,
                    stream_seq: seq,
                    deliveries: unacked.attempt.into(),
                    reason: reason.into(),
                }));
            }
            self.settle_one(seq, Settlement::Terminated, now);
        }
        self.marks.forget_exhausted_below(stream.first_seq());
    }

    /// After taking over: whatever was removed while nobody watched.
    pub(super) fn drop_dead(&mut self, stream: &dyn Source) {
        let open = self.marks.unacked.keys().chain(&self.marks.passed).copied();
        let dead: Vec<Seq> = open.filter(|seq| !stream.is_live(*seq)).collect();
        for seq in dead {
            self.marks.settle(seq);
            self.fold.settled(seq, Settlement::Terminated);
        }
    }

    fn settle(&mut self, seq: Seq, how: Settlement, now: Timestamp) {
        if self.config.ack_policy != AckPolicy::All {
            self.settle_one(seq, how, now);
            return;
        }
        self.settle_through(seq, now);
    }

    pub(super) fn settle_through(&mut self, seq: Seq, now: Timestamp) {
        if seq <= self.marks.floor.stream {
            return;
        }
        let unheard = seq > self.marks.delivered.stream;
        self.marks.settle_all(seq);
        self.marks.settled_at = Some(now);
        self.ready = self.ready.split_off(&seq.next());
        self.fold.settled(seq, Settlement::AckedAll);
        if unheard {
            self.backlog.reset();
        }
    }

    fn settle_one(&mut self, seq: Seq, how: Settlement, now: Timestamp) {
        let unheard = seq > self.marks.delivered.stream;
        if !self.marks.settle(seq) {
            return;
        }
        self.marks.settled_at = Some(now);
        self.let_go(seq);
        self.fold.settled(seq, how);
        if unheard {
            self.backlog.settled_early(seq);
        }
    }

    fn nak(&mut self, ack: &AckReply<'_>, delay: Nanos, now: Timestamp, advisories: &mut Vec<Advisory>) {
        let seq = ack.stream_seq;
        let Some(attempt) = self.marks.unacked.get(&seq).map(|unacked| unacked.attempt) else { return };
        advisories.push(Advisory::Naked {
            consumer_seq: ack.consumer_seq,
            stream_seq: seq,
            deliveries: ack.attempt,
        });
        if self.is_held(seq) {
            // Of the delivery before: the next one is on its way, and has its place.
            return;
        }
        if delay > Nanos::ZERO {
            if self.extensions.nak_delay_frees_slot {
                self.slots.delay(seq);
            }
            let wait = wait_after(&self.config, attempt);
            self.wait_from(seq, now.plus(delay).plus(Nanos(-wait.0)));
        } else if let Some(advisory) = self.deliver_again(seq, attempt, now) {
            advisories.push(advisory);
        }
    }

    /// Starts the wait for an ack over, as if the message had been sent at this time.
    fn wait_from(&mut self, seq: Seq, at: Timestamp) {
        let Some(unacked) = self.marks.unacked.get_mut(&seq) else { return };
        let was_ready = self.ready.remove(&seq);
        if unacked.at != at || was_ready {
            unacked.at = at;
            let attempt = unacked.attempt;
            self.fold.waits(seq, at);
            self.wait_for_ack(seq, at, attempt);
        }
    }

    pub(super) fn wait_for_ack(&mut self, seq: Seq, from: Timestamp, attempt: u32) {
        let (config, marks) = (&self.config, &self.marks);
        self.deadlines.sweep(marks.unacked.len(), |at, seq| is_due_at(config, marks, seq, at));
        self.deadlines.add(from.plus(wait_after(config, attempt)), seq);
    }

    /// Queues a message for its next attempt, or gives up on it.
    fn deliver_again(&mut self, seq: Seq, attempt: u32, now: Timestamp) -> Option<Advisory> {
        let exhausted = u32::try_from(self.config.max_deliver).is_ok_and(|max| max > 0 && attempt >= max);
        if !exhausted {
            if !self.slots.is_due(seq) {
                self.ready.insert(seq);
            }
            return None;
        }
        if !self.give_up(seq, DeathCause::MaxDeliver, b"", now) {
            self.marks.exhaust(seq);
            self.let_go(seq);
            self.fold.settled(seq, Settlement::Exhausted);
        }
        Some(Advisory::MaxDeliveries { stream_seq: seq, deliveries: attempt.into() })
    }

    /// Messages that wait to be delivered again and have been as often as is allowed now.
    pub(super) fn give_up_late(&mut self, now: Timestamp) {
        let ready: Vec<Seq> = self.ready.iter().chain(self.slots.due()).copied().collect();
        for seq in ready {
            let attempt = self.marks.unacked.get(&seq).map_or(0, |unacked| unacked.attempt);
            if let Some(advisory) = self.deliver_again(seq, attempt, now) {
                self.outbox.push_back(Step::Advisory(advisory));
            }
        }
    }

    /// Makes an unacked message a dead letter, if the consumer is configured so. Says whether it is one now.
    fn give_up(&mut self, seq: Seq, cause: DeathCause, words: &[u8], now: Timestamp) -> bool {
        if self.extensions.dead_letter.is_none() {
            return false;
        }
        let message = DeadMessage { seq, cause, detail: dead_letter::detail(words) };
        if !self.marks.give_up(&message) {
            return false;
        }
        self.let_go(seq);
        self.fold.given_up(message);
        self.dead_letters.add(seq, now.plus(dead_letter::COMMIT_LOOK));
        true
    }

    /// A dead letter is stored: its message is done.
    pub(super) fn bury(&mut self, seq: Seq, now: Timestamp) {
        if self.marks.dead.contains_key(&seq) {
            self.settle_one(seq, Settlement::Terminated, now);
        }
    }

    /// Nothing is to be done with the message any more.
    pub(super) fn let_go(&mut self, seq: Seq) {
        self.ready.remove(&seq);
        self.slots.forget(seq);
        if let Some(keyed) = &mut self.keyed {
            keyed.close(seq, &self.marks.passed);
        }
    }

    pub(super) fn expire_acks(&mut self, now: Timestamp) {
        while let Some((at, seq)) = self.deadlines.pop_due(now) {
            if !self.is_awaited(at, seq) {
                continue;
            }
            if self.is_held(seq) {
                // No client has it yet.
                self.wait_from(seq, now);
                continue;
            }
            let attempt = self.marks.unacked.get(&seq).map_or(1, |unacked| unacked.attempt);
            if let Some(advisory) = self.deliver_again(seq, attempt, now) {
                self.outbox.push_back(Step::Advisory(advisory));
            }
        }
    }

    /// When the first wait for an ack is over.
    pub(super) fn next_deadline(&mut self) -> Option<Timestamp> {
        let mut deadlines = std::mem::take(&mut self.deadlines);
        let next = deadlines.next(|at, seq| self.is_awaited(at, seq));
        self.deadlines = deadlines;
        next
    }

    /// Whether the wait for the ack of a message ends at this time. One that is queued to be delivered again, or given up,
    /// is not waited for.
    fn is_awaited(&self, at: Timestamp, seq: Seq) -> bool {
        let is_queued = self.ready.contains(&seq)
            || self.slots.due().contains(&seq)
            || self.marks.dead.contains_key(&seq);
        !is_queued && is_due_at(&self.config, &self.marks, seq, at)
    }

    fn sample(&mut self, seq: Seq, ack: &AckReply<'_>, now: Timestamp, advisories: &mut Vec<Advisory>) {
        let Some(unacked) = self.marks.unacked.get(&seq) else { return };
        if self.samples.choose() {
            advisories.push(Advisory::Sampled {
                consumer_seq: ack.consumer_seq,
                stream_seq: seq,
                deliveries: unacked.attempt.into(),
                ack_time: now.since(unacked.at),
            });
        }
    }
}

/// What is said to an ack that changes nothing. One that asks for more has no other answer.
fn answer_only(kind: AckKind<'_>, confirm: Confirm) -> AckOutcome {
    match kind {
        AckKind::Next(request) => {
            AckOutcome { next: Some(Bytes::copy_from_slice(request)), ..AckOutcome::default() }
        }
        _ => AckOutcome { confirm, ..AckOutcome::default() },
    }
}

/// Chooses an even share of acks, without a random number.
#[derive(Debug, Default)]
pub(super) struct Samples {
    percent: u32,
    collected: u32,
}

impl Samples {
    pub(super) fn parse(frequency: &str) -> Self {
        Self { percent: parse_sampling(frequency).unwrap_or(0).min(100), collected: 0 }
    }

    fn choose(&mut self) -> bool {
        self.collected += self.percent;
        let chosen = self.collected >= 100;
        self.collected %= 100;
        chosen
    }
}

/// Whether the wait for this message's ack ends at this time; it may have been settled, or started over.
fn is_due_at(config: &ConsumerConfig, marks: &Marks, seq: Seq, at: Timestamp) -> bool {
    marks.unacked.get(&seq).is_some_and(|unacked| unacked.at.plus(wait_after(config, unacked.attempt)) == at)
}
