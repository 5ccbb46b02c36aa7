//! The marks of a consumer: what was delivered and how deliveries ended.
//!
//! Both halves of a consumer keep these marks, so the rules that move them are written once. Redeliveries get new
//! consumer sequences, but an unacked message keeps the number of its first delivery, because the ack floor is the
//! pair of numbers below the first message that is still unacked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use levee_protocol::api::AckPolicy;
use levee_protocol::command::progress::{DeadMessage, DeathCause};
use levee_protocol::ids::Seq;
use levee_protocol::time::Timestamp;

/// Consecutive stream sequences, both ends inclusive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// First sequence.
    pub first: Seq,
    /// Last sequence.
    pub last: Seq,
}

/// Adds a sequence to ascending runs, making the last one longer where it can.
pub(crate) fn push_run(runs: &mut Vec<Run>, seq: Seq) {
    match runs.last_mut() {
        Some(run) if run.last.next() == seq => run.last = seq,
        _ => runs.push(Run { first: seq, last: seq }),
    }
}

/// A place in the deliveries and in the stream.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// Number of the delivery.
    pub consumer: u64,
    /// Sequence of the message.
    pub stream: Seq,
}

/// One sending of one message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sent {
    /// The message.
    pub seq: Seq,
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// 1 for the first time this message is sent.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
}

/// A message that was delivered and is not settled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unacked {
    /// Number of its first delivery, which later attempts do not change.
    pub consumer_seq: u64,
    /// How often it was sent.
    pub attempt: u32,
    /// When the wait for an ack began.
    pub at: Timestamp,
}

/// Why an unacked message becomes a dead letter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Death {
    /// What happened.
    pub cause: DeathCause,
    /// In the words of the client that terminated it, or empty.
    pub detail: String,
}

/// Messages chosen when the consumer was created (`last_per_subject`): only these, up to `resume`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Chosen {
    /// Chosen and not delivered, ascending, never empty.
    pub(crate) seqs: VecDeque<Seq>,
    /// Last sequence of the stream when they were chosen; after it, everything counts again.
    pub(crate) resume: Seq,
}

/// What was delivered and settled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Marks {
    pub(crate) delivered: Position,
    pub(crate) delivered_at: Option<Timestamp>,
    pub(crate) floor: Position,
    pub(crate) settled_at: Option<Timestamp>,
    pub(crate) unacked: BTreeMap<Seq, Unacked>,
    /// Those of `unacked` that were given up and wait to be stored as dead letters. They are not delivered again.
    pub(crate) dead: BTreeMap<Seq, Death>,
    /// Below the delivered position and not delivered: the key of each was in flight when its turn came.
    pub(crate) passed: BTreeSet<Seq>,
    /// Messages that reached `max_deliver`, with the number of attempts. They stay in the stream, and a late ack
    /// still settles them.
    pub(crate) exhausted: BTreeMap<Seq, u32>,
    /// Settled by an ack although this log never heard of their delivery: the leader that sent them died first.
    pub(crate) early: BTreeSet<Seq>,
    pub(crate) chosen: Option<Chosen>,
    /// How many of `unacked` were sent more than once.
    repeated: u64,
}

impl Marks {
    /// Marks of a consumer that begins after `position`.
    pub(crate) fn starting_after(position: Seq, chosen: Option<Chosen>) -> Self {
        let place = Position { consumer: 0, stream: position };
        Self { delivered: place, floor: place, chosen, ..Self::default() }
    }

    /// Forgets all deliveries and goes on at `seq`, or after the ack floor. Of messages that were chosen, those above
    /// the floor that are not settled stay chosen.
    pub(crate) fn reset(&mut self, seq: Seq) {
        let before = if seq == Seq::NONE { self.floor.stream } else { seq.previous() };
        let unsettled: BTreeSet<Seq> = self.unacked.keys().chain(&self.passed).copied().collect();
        let chosen = self.chosen.take().map(|chosen| Chosen {
            seqs: unsettled.into_iter().chain(chosen.seqs).filter(|seq| *seq > before).collect(),
            resume: chosen.resume,
        });
        *self = Self::starting_after(before, chosen.filter(|chosen| !chosen.seqs.is_empty()));
    }

    /// Delivered and not settled.
    #[must_use]
    pub fn num_unacked(&self) -> u64 {
        self.unacked.len() as u64
    }

    /// Up to now unacked, and neither to be delivered again nor to be acked: dead letters that are not stored yet.
    #[must_use]
    pub fn num_dead(&self) -> u64 {
        self.dead.len() as u64
    }

    /// Sent more than once and not settled, or given up above the ack floor.
    #[must_use]
    pub fn num_redelivered(&self) -> u64 {
        let given_up = self.exhausted.range(self.floor.stream.next()..);
        self.repeated + given_up.filter(|(_, attempts)| **attempts > 1).count() as u64
    }

    /// Up to where messages were sent, and under which number.
    #[must_use]
    pub fn delivered(&self) -> Position {
        self.delivered
    }

    /// Up to where everything is settled.
    #[must_use]
    pub fn floor(&self) -> Position {
        self.floor
    }

    /// A message was sent. Marks that come late, for a message that is settled already, change nothing but numbers.
    pub(crate) fn deliver(&mut self, policy: AckPolicy, sent: Sent) {
        let first_time = sent.seq > self.delivered.stream || self.passed.remove(&sent.seq);
        self.delivered.consumer = self.delivered.consumer.max(sent.consumer_seq);
        self.delivered_at = self.delivered_at.max(Some(sent.at));
        let settled_early = self.early.contains(&sent.seq);
        self.advance(sent.seq);
        if policy == AckPolicy::None {
            self.floor = self.floor.max(self.delivered);
            return;
        }
        if settled_early {
            return;
        }
        match self.unacked.get_mut(&sent.seq) {
            Some(unacked) => {
                if unacked.attempt == 1 && sent.attempt > 1 {
                    self.repeated += 1;
                }
                unacked.attempt = unacked.attempt.max(sent.attempt);
                unacked.at = sent.at;
            }
            None if first_time => {
                let Sent { consumer_seq, attempt, at, .. } = sent;
                self.repeated += u64::from(attempt > 1);
                self.unacked.insert(sent.seq, Unacked { consumer_seq, attempt, at });
            }
            None => {}
        }
    }

    /// The message's turn came while its key was in flight: it is delivered when that is done. The delivered position
    /// does not move: it is raised by [`Marks::advance`] when what came before it is marked.
    pub(crate) fn pass(&mut self, seq: Seq) {
        if seq > self.delivered.stream && !self.early.contains(&seq) {
            self.passed.insert(seq);
        }
    }

    /// The message was given up: it is not delivered again, and settled when it is stored as a dead letter. Says whether
    /// it was unacked.
    pub(crate) fn give_up(&mut self, message: &DeadMessage) -> bool {
        if !self.unacked.contains_key(&message.seq) {
            return false;
        }
        let death = Death { cause: message.cause, detail: message.detail.clone() };
        self.dead.entry(message.seq).or_insert(death);
        true
    }

    /// The wait for an ack counts from this time, which may be to come.
    pub(crate) fn wait_from(&mut self, seq: Seq, at: Timestamp) {
        if let Some(unacked) = self.unacked.get_mut(&seq) {
            unacked.at = at;
        }
    }

    /// Everything up to `seq` was sent or does not concern this consumer.
    pub(crate) fn advance(&mut self, seq: Seq) {
        if seq <= self.delivered.stream {
            return;
        }
        self.delivered.stream = seq;
        if let Some(chosen) = &mut self.chosen {
            while chosen.seqs.front().is_some_and(|first| *first <= seq) {
                chosen.seqs.pop_front();
            }
            if chosen.seqs.is_empty() {
                self.delivered.stream = seq.max(chosen.resume);
                self.chosen = None;
            }
        }
        while self.early.first().is_some_and(|first| *first <= self.delivered.stream) {
            self.early.pop_first();
        }
    }

    /// One message is done. Says whether it was not before.
    pub(crate) fn settle(&mut self, seq: Seq) -> bool {
        if seq > self.delivered.stream {
            return self.early.insert(seq);
        }
        let was_first = self.first_open() == Some(seq);
        if !self.forget_unacked(seq) && !self.passed.remove(&seq) {
            return self.exhausted.remove(&seq).is_some();
        }
        if was_first {
            self.raise_floor();
        }
        true
    }

    /// Everything up to `seq` is done. Returns what was not before.
    pub(crate) fn settle_all(&mut self, seq: Seq) -> Vec<Run> {
        let mut done = Vec::new();
        let last_numbered = self.unacked.get(&seq).map_or(0, |unacked| unacked.consumer_seq);
        let later = self.unacked.split_off(&seq.next());
        for (seq, unacked) in std::mem::replace(&mut self.unacked, later) {
            self.repeated -= u64::from(unacked.attempt > 1);
            push_run(&mut done, seq);
        }
        self.dead = self.dead.split_off(&seq.next());
        if seq > self.delivered.stream {
            // The leader that sent them died before its marks were committed.
            done.push(Run { first: self.delivered.stream.next(), last: seq });
            self.advance(seq);
        }
        if seq > self.floor.stream {
            let below_first = match self.unacked.values().next() {
                None => self.delivered.consumer,
                Some(first) => first.consumer_seq.saturating_sub(1),
            };
            let consumer = if last_numbered > 0 { last_numbered } else { below_first };
            self.floor = Position { consumer: self.floor.consumer.max(consumer), stream: seq };
        }
        done
    }

    /// `max_deliver` is reached: no longer unacked, but not settled either. The floor moves with the next ack.
    pub(crate) fn exhaust(&mut self, seq: Seq) -> bool {
        let Some(attempt) = self.unacked.get(&seq).map(|unacked| unacked.attempt) else { return false };
        self.forget_unacked(seq);
        self.exhausted.insert(seq, attempt);
        true
    }

    /// The stream holds nothing below `first` any more.
    pub(crate) fn forget_exhausted_below(&mut self, first: Seq) {
        while self.exhausted.first_key_value().is_some_and(|(seq, _)| *seq < first) {
            self.exhausted.pop_first();
        }
    }

    /// Counts what is kept redundantly; after decoding.
    pub(crate) fn recount(&mut self) {
        self.repeated = self.unacked.values().filter(|unacked| unacked.attempt > 1).count() as u64;
    }

    fn forget_unacked(&mut self, seq: Seq) -> bool {
        let removed = self.unacked.remove(&seq);
        self.dead.remove(&seq);
        self.repeated -= u64::from(removed.is_some_and(|unacked| unacked.attempt > 1));
        removed.is_some()
    }

    fn raise_floor(&mut self) {
        let mut floor = match self.unacked.first_key_value() {
            None => self.delivered,
            Some((seq, unacked)) => {
                Position { consumer: unacked.consumer_seq.saturating_sub(1), stream: seq.previous() }
            }
        };
        if let Some(seq) = self.passed.first() {
            floor.stream = floor.stream.min(seq.previous());
        }
        self.floor = self.floor.max(floor);
    }

    /// The first message below the delivered position that is not done.
    fn first_open(&self) -> Option<Seq> {
        let unacked = self.unacked.first_key_value().map(|(seq, _)| seq);
        unacked.into_iter().chain(self.passed.first()).min().copied()
    }
}
