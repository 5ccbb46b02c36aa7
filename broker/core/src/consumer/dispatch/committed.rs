//! What waits for the ledger: deliveries of keyed consumers, and dead letters.
//!
//! Other deliveries leave before their mark is committed. One of a keyed consumer does not: if its leader died, the next
//! one would not know that the message is in flight, and might deliver the one behind it while a client still works.

use std::collections::BTreeMap;

use bytes::Bytes;
use levee_protocol::ids::Seq;
use levee_protocol::time::{Nanos, Timestamp};

use super::{Delivery, Dispatch, Step};
use crate::consumer::dead_letter::{self, DeadLetter};
use crate::consumer::ledger::Ledger;
use crate::consumer::notice::{Left, Notice};
use crate::consumer::settle::Unacked;
use crate::consumer::source::Source;
use crate::stream::{MessageView, ReadFailed};

/// When to look again whether a delivery is committed.
const COMMIT_LOOK: Nanos = Nanos::from_millis(1);

/// A delivery that waits for its mark to be committed, and what follows it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// Bytes of the message as requests count them.
    pub(super) size: u64,
    pub(super) follows: Option<Step>,
}

/// What became of a dead letter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Posted {
    /// A stream has it.
    Stored,
    /// No stream has it, as far as is known.
    Failed,
}

impl Dispatch {
    /// Whether a delivery waits for its mark to be committed.
    #[must_use]
    pub fn waits_for_commit(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether it is time to look into the ledger for what waits for it.
    #[must_use]
    pub fn waits_for_ledger(&self, now: Timestamp) -> bool {
        self.waits_for_commit() || self.dead_letters.next().is_some_and(|at| at <= now)
    }

    /// The next delivery whose mark this ledger has. One whose message was settled or given up meanwhile is left out:
    /// the next one of its key may be on its way.
    pub fn committed(&mut self, ledger: &Ledger) -> Option<Delivery> {
        loop {
            let first = self.held.front()?;
            if ledger.incarnation != self.incarnation
                || first.delivery.consumer_seq > ledger.marks.delivered.consumer
            {
                return None;
            }
            let Held { delivery, size, follows } = self.held.pop_front()?;
            let seq = delivery.record.seq;
            let is_open = self.marks.unacked.contains_key(&seq) && !self.marks.dead.contains_key(&seq);
            if !is_open && follows.is_none() && self.push.is_none() {
                self.leave_out(delivery.to, size);
                continue;
            }
            self.outbox.extend(follows);
            if is_open {
                return Some(delivery);
            }
        }
    }

    /// A request that took a message does not get it: it waits for another one instead. If it was the last one of its
    /// request, that ends with one left, after what it still gets.
    fn leave_out(&mut self, to: Bytes, size: u64) {
        if self.waiting.give_back(&to, size) {
            return;
        }
        let ends = Step::Notify(Notice::request_timeout(to.clone(), Left { messages: 1, bytes: 0 }));
        match self.held.iter_mut().rfind(|held| held.delivery.to == to) {
            Some(last) => last.follows = last.follows.take().or(Some(ends)),
            None => self.outbox.push_back(ends),
        }
    }

    /// Nothing that waits for its mark is sent. Requests that took some of it wait for other messages; those that are over
    /// are told so.
    pub(super) fn leave_out_all(&mut self) {
        let mut unserved: BTreeMap<Bytes, u64> = BTreeMap::new();
        for Held { delivery, size, follows } in std::mem::take(&mut self.held) {
            if follows.is_some() {
                // What follows ends the request.
                unserved.remove(&delivery.to);
                self.outbox.extend(follows);
            } else if self.push.is_none() && !self.waiting.give_back(&delivery.to, size) {
                *unserved.entry(delivery.to).or_default() += 1;
            }
        }
        for (inbox, messages) in unserved {
            let left = Left { messages, bytes: 0 };
            self.outbox.push_back(Step::Notify(Notice::request_timeout(inbox, left)));
        }
    }

    /// Whether a delivery of this message waits for its mark to be committed.
    pub(super) fn is_held(&self, seq: Seq) -> bool {
        self.held.iter().any(|held| held.delivery.record.seq == seq)
    }

    /// Whether no client has got this message: its first delivery waits for its mark. Those that wait are the last ones.
    pub(super) fn is_held_first(&self, seq: Seq) -> bool {
        let Some(held) = self.held.front() else { return false };
        let unacked = self.marks.unacked.get(&seq);
        unacked.is_some_and(|it| it.attempt == 1 && it.consumer_seq >= held.delivery.consumer_seq)
    }

    /// Dead letters to publish now, as this ledger knows them. What became of each is to be said to
    /// [`Dispatch::on_dead_letter`].
    pub fn dead_letters(
        &mut self,
        ledger: &Ledger,
        stream: &dyn Source,
        view: &dyn MessageView,
        now: Timestamp,
    ) -> Result<Vec<DeadLetter>, ReadFailed> {
        let mut letters = Vec::new();
        let Some(subject) = self.extensions.dead_letter.clone() else { return Ok(letters) };
        if ledger.incarnation != self.incarnation || self.dead_letters.next().is_none_or(|at| at > now) {
            return Ok(letters);
        }
        while let Some(seq) = self.next_letter(ledger, now) {
            let (Some(death), Some(Unacked { attempt, .. })) =
                (ledger.marks.dead.get(&seq), self.marks.unacked.get(&seq))
            else {
                continue;
            };
            // Gone: that it is settled follows when the stream's report comes.
            let record = if stream.is_live(seq) { view.record(seq)? } else { None };
            match record {
                None => self.dead_letters.stored(seq),
                Some(record) => {
                    let origin = (self.stream_name.as_str(), ledger);
                    letters.push(dead_letter::compose(origin, &subject, record, (death, *attempt)));
                }
            }
        }
        Ok(letters)
    }

    /// What became of a dead letter. One that is stored is settled.
    pub fn on_dead_letter(&mut self, seq: Seq, incarnation: u64, posted: Posted, now: Timestamp) {
        if incarnation != self.incarnation {
            return;
        }
        match posted {
            Posted::Stored => {
                self.dead_letters.stored(seq);
                self.bury(seq, now);
            }
            Posted::Failed => self.dead_letters.failed(seq, now),
        }
    }

    /// After taking over: the keys of what is open are in the messages.
    pub(super) fn reopen_keys(&mut self, view: &dyn MessageView) -> Result<(), ReadFailed> {
        let Some(keyed) = &mut self.keyed else { return Ok(()) };
        let marks = &self.marks;
        let in_flight = marks.unacked.keys().filter(|seq| !marks.dead.contains_key(seq));
        for seq in in_flight.chain(&marks.passed) {
            let key = view.record(*seq)?.and_then(|record| keyed.key(&record));
            if let Some(key) = key {
                keyed.open(*seq, key);
            }
        }
        keyed.release(&marks.passed);
        Ok(())
    }

    pub(super) fn look_for_commits(&self, now: Timestamp) -> Option<Timestamp> {
        (!self.held.is_empty()).then(|| now.plus(COMMIT_LOOK))
    }

    fn next_letter(&mut self, ledger: &Ledger, now: Timestamp) -> Option<Seq> {
        let marks = &self.marks;
        self.dead_letters.take_due(ledger, |seq| marks.unacked.contains_key(&seq), now)
    }
}
