//! The messages of a stream as the rules see them: counters, which sequences live, and the subject index.
//!
//! Every way a message can leave ends in [`Messages::forget`]; whoever calls it knows the subject and size, from the
//! index when it can and from the store when it must. The store is asked once per run, not once per message.

use std::ops::ControlFlow;

use levee_protocol::api::StorageType;
use levee_protocol::ids::Seq;
use levee_protocol::record::RecordRef;
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};

use super::deleted::DeletedSet;
use super::markers;
use super::reads::Reads;
use super::subjects::{AfterRemoval, Held, SubjectIndex};
use super::view::ReadFailed;
use crate::rows::RowKind;

/// What lives, and how much it is.
#[derive(Debug)]
pub(crate) struct Messages {
    /// The first live sequence; without messages one more than `last`, or 0 in a stream that was never touched.
    pub(crate) first: u64,
    /// The last sequence that was given out.
    pub(crate) last: u64,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) first_time: Timestamp,
    pub(crate) last_time: Timestamp,
    pub(crate) deleted: DeletedSet,
    pub(crate) subjects: SubjectIndex,
    pub(crate) storage: StorageType,
    /// Whether subjects remember every one of their messages.
    pub(crate) keep_history: bool,
    /// Messages that no age removes; some may be gone.
    pub(crate) exempt: DeletedSet,
    /// Below this, all messages are exempt. Zero while none are.
    pub(crate) aged: u64,
    /// No message that is not exempt is older than this, while some are exempt.
    pub(crate) aged_time: Timestamp,
    /// Whether a subject that expires is owed a marker.
    pub(crate) leaves_markers: bool,
    /// The head moved within this command, and the time of the new first message was not read yet.
    first_time_unknown: bool,
    /// Subjects that lost their last message within this command.
    last_unknown: Vec<u32>,
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            first: 0,
            last: 0,
            count: 0,
            bytes: 0,
            first_time: Timestamp::ZERO,
            last_time: Timestamp::ZERO,
            deleted: DeletedSet::default(),
            subjects: SubjectIndex::default(),
            storage: StorageType::File,
            keep_history: false,
            exempt: DeletedSet::of_kind(RowKind::Exempt),
            aged: 0,
            aged_time: Timestamp::ZERO,
            leaves_markers: false,
            first_time_unknown: false,
            last_unknown: Vec::new(),
        }
    }
}

/// Sequences that a command removed, as runs in the order of removal.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    pub(crate) runs: Vec<(u64, u64)>,
    pub(crate) count: u64,
    /// Subjects whose last message was too old, or was due to leave, and that are owed a marker for it.
    pub(crate) expired: Vec<Box<[u8]>>,
}

impl Removals {
    pub(crate) fn push(&mut self, first: u64, last: u64) {
        self.count += last - first + 1;
        match self.runs.last_mut() {
            Some(run) if run.1 + 1 == first => run.1 = last,
            _ => self.runs.push((first, last)),
        }
    }
}

/// What a new message did to its subject.
pub(crate) struct Appended {
    pub(crate) seq: u64,
    /// Where the subject's entry is.
    pub(crate) subject: u32,
    /// The subject's last message until now; 0 is none.
    pub(crate) before: u64,
    /// The subject's only message until now.
    pub(crate) only_before: Option<Held>,
}

impl Messages {
    pub(crate) fn is_live(&self, seq: u64) -> bool {
        self.count > 0 && self.first <= seq && seq <= self.last && !self.deleted.contains(seq)
    }

    /// The first live sequence not below `from`.
    pub(crate) fn next_live(&self, from: u64) -> Option<u64> {
        let seq = self.deleted.next_outside(from.max(self.first));
        (self.count > 0 && seq <= self.last).then_some(seq)
    }

    /// The last live sequence.
    pub(crate) fn last_live(&self) -> Option<u64> {
        (self.count > 0).then(|| self.deleted.previous_outside(self.last))
    }

    /// How many live messages have a sequence of at least `from`.
    pub(crate) fn count_from(&self, from: u64) -> u64 {
        if self.count == 0 || from > self.last {
            return 0;
        }
        if from <= self.first {
            return self.count;
        }
        self.last - from + 1 - self.deleted_from(from)
    }

    /// How many sequences from `from` to the last are gone, counted on the shorter side of it.
    fn deleted_from(&self, from: u64) -> u64 {
        if self.last - from < from - self.first {
            return self.deleted.count_within(from, self.last);
        }
        let all = self.last + 1 - self.first - self.count;
        all - self.deleted.count_within(self.first, from - 1)
    }

    /// The first message will have this sequence; 0 and 1 are the same.
    pub(crate) fn begin_at(&mut self, first: u64) {
        if first > 1 {
            self.first = first;
            self.last = first - 1;
        }
    }

    /// Gives the next sequence to a message.
    pub(crate) fn append(&mut self, record: &RecordRef<'_>, bytes: u64, now: Timestamp) -> Appended {
        let seq = self.last + 1;
        self.last = seq;
        self.last_time = now;
        if self.count == 0 {
            self.first = seq;
            self.first_time = record.timestamp;
            self.first_time_unknown = false;
        }
        self.count += 1;
        self.bytes += bytes;
        let held = Held { seq, bytes: held_bytes(bytes) };
        let (subject, before, only_before) = self.subjects.stored(record.subject, held, self.keep_history);
        Appended { seq, subject, before, only_before }
    }

    /// Sequences up to this one count as given out, without messages.
    pub(crate) fn skip_to(&mut self, last: u64) {
        if last <= self.last {
            return;
        }
        if self.count == 0 {
            self.first = last + 1;
        } else {
            self.deleted.insert_run(self.last + 1, last);
        }
        self.last = last;
    }

    /// Gives the next sequence to a message that nobody wants and that is gone at once.
    pub(crate) fn skip(&mut self, now: Timestamp, removals: &mut Removals) -> u64 {
        let seq = self.last + 1;
        self.last = seq;
        self.last_time = now;
        if self.count == 0 {
            self.first = seq + 1;
        } else {
            self.deleted.insert(seq);
        }
        removals.push(seq, seq);
        seq
    }

    /// Removes a live message.
    pub(crate) fn remove(
        &mut self,
        seq: u64,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let record = reads.record(seq)?;
        self.forget_record(seq, &record.borrowed(), removals);
        Ok(())
    }

    /// Removes a live message of a subject whose entry is known.
    pub(crate) fn remove_held(&mut self, subject: u32, held: Held, removals: &mut Removals) {
        let after = self.subjects.removed_at(subject, held.seq);
        self.forget(held.seq, u64::from(held.bytes), after, removals);
    }

    /// Removes the live messages of a run that `unwanted` picks by their subject.
    pub(crate) fn remove_run(
        &mut self,
        run: (u64, u64),
        unwanted: &mut dyn FnMut(u64, &[u8]) -> bool,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let mut from = self.next_live(run.0);
        if run.0 == run.1 {
            // The common case of acks one by one: a look-up instead of a scan.
            if from == Some(run.0) {
                let record = reads.record(run.0)?;
                if unwanted(run.0, &record.subject) {
                    self.forget_record(run.0, &record.borrowed(), removals);
                }
            }
            return Ok(());
        }
        if from.is_none_or(|from| from > run.1) {
            return Ok(());
        }
        reads.scan(from.unwrap_or(run.0), &mut |seq, record| {
            if from.is_none_or(|from| from > run.1 || from < seq) {
                return ControlFlow::Break(());
            }
            if from == Some(seq) {
                if unwanted(seq, record.subject) {
                    self.forget_record(seq, &record, removals);
                }
                from = self.next_live(seq + 1);
            }
            ControlFlow::Continue(())
        })?;
        match from {
            Some(from) if from <= run.1 => Err(ReadFailed::missing(Seq(from))),
            _ => Ok(()),
        }
    }

    /// Removes messages from the head while `over`, which is told the time of the first one, says so.
    pub(crate) fn evict_while(
        &mut self,
        over: &mut dyn FnMut(&Self, Timestamp) -> bool,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        self.read_first_time(reads)?;
        if self.count == 0 || !over(self, self.first_time) {
            return Ok(());
        }
        let mut missing = true;
        reads.scan(self.first, &mut |seq, record| {
            if seq < self.first {
                return ControlFlow::Continue(());
            }
            if seq > self.first {
                return ControlFlow::Break(());
            }
            if !over(self, record.timestamp) {
                self.first_time = record.timestamp;
                self.first_time_unknown = false;
                missing = false;
                return ControlFlow::Break(());
            }
            self.forget_record(seq, &record, removals);
            missing = self.count > 0;
            if missing { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if missing { Err(ReadFailed::missing(Seq(self.first))) } else { Ok(()) }
    }

    /// No age removes the newest message.
    pub(crate) fn exempt_last(&mut self) {
        if self.exempt.is_empty() {
            (self.aged, self.aged_time) = (0, Timestamp::ZERO);
        }
        self.exempt.insert(self.last);
    }

    /// A time that no message is older than that an age could remove.
    pub(crate) fn oldest_aging(&self) -> Timestamp {
        if self.exempt.is_empty() { self.first_time } else { self.aged_time }
    }

    /// Removes messages that are older than `age`, from the head up to the first that is not; exempt ones stay. Older
    /// messages of a subject may so outlive newer ones, which is why this settles at once.
    pub(crate) fn evict_aged(
        &mut self,
        age: Nanos,
        now: Timestamp,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        self.read_first_time(reads)?;
        if self.count == 0 || self.oldest_aging().plus(age) > now {
            return Ok(());
        }
        let mut next = self.next_aging(self.aged);
        let mut younger = None;
        if let Some(from) = next {
            reads.scan(from, &mut |seq, record| {
                match next {
                    Some(next) if seq < next => return ControlFlow::Continue(()),
                    Some(next) if seq == next => {}
                    _ => return ControlFlow::Break(()),
                }
                if record.timestamp.plus(age) > now {
                    younger = Some(record.timestamp);
                    return ControlFlow::Break(());
                }
                self.expire_record(seq, &record, removals);
                next = self.next_aging(seq + 1);
                if next.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        if let (Some(next), None) = (next, younger) {
            return Err(ReadFailed::missing(Seq(next)));
        }
        self.aged = next.unwrap_or(self.last + 1);
        self.aged_time = younger.unwrap_or(now);
        self.settle(reads)
    }

    /// The first live message not below `from` that is not exempt.
    fn next_aging(&self, from: u64) -> Option<u64> {
        let mut seq = self.next_live(from)?;
        while self.exempt.contains(seq) {
            seq = self.next_live(self.exempt.next_outside(seq))?;
        }
        Some(seq)
    }

    /// Removes those of these messages that still live, ascending: it was time for them to leave.
    pub(crate) fn expire(
        &mut self,
        due: &[u64],
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let mut due =
            due.iter().copied().filter(|seq| self.is_live(*seq)).collect::<Vec<_>>().into_iter().peekable();
        while let Some(first) = due.next() {
            // One scan serves messages that lie close to each other.
            let mut wanted = Some(first);
            reads.scan(first, &mut |seq, record| {
                match wanted {
                    Some(wanted) if seq < wanted => return ControlFlow::Continue(()),
                    Some(wanted) if seq == wanted => {}
                    _ => return ControlFlow::Break(()),
                }
                self.expire_record(seq, &record, removals);
                wanted = due.next_if(|next| *next - seq <= SCANNED_GAP_MAX);
                if wanted.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if let Some(wanted) = wanted {
                return Err(ReadFailed::missing(Seq(wanted)));
            }
        }
        self.settle(reads)
    }

    fn expire_record(&mut self, seq: u64, record: &RecordRef<'_>, removals: &mut Removals) {
        self.forget_record(seq, record, removals);
        if self.leaves_markers
            && !markers::is_marker(record.header)
            && self.subjects.position(record.subject).is_none()
        {
            removals.expired.push(record.subject.into());
        }
    }

    /// Removes every message below `target`.
    pub(crate) fn remove_below(
        &mut self,
        target: u64,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        if self.count == 0 || target <= self.first {
            return Ok(());
        }
        let remaining = self.count_from(target);
        if remaining > self.count - remaining {
            return self.evict_while(&mut |messages, _| messages.first < target, reads, removals);
        }
        for (first, last) in self.deleted.gaps(self.first, self.last.min(target - 1)) {
            removals.push(first, last);
        }
        self.advance_to(target.min(self.last + 1));
        self.index_again(remaining, reads)
    }

    /// Builds counters and subject index anew from the messages themselves: for a purge that removes more than it
    /// leaves, and when the way subjects are indexed changes.
    pub(crate) fn index_again(&mut self, count: u64, reads: &Reads<'_>) -> Result<(), ReadFailed> {
        self.subjects.clear();
        self.last_unknown.clear();
        self.count = 0;
        self.bytes = 0;
        self.first_time = Timestamp::ZERO;
        self.first_time_unknown = false;
        if count == 0 {
            return Ok(());
        }
        let mut expected = self.first;
        reads.scan(self.first, &mut |seq, record| {
            if seq < expected {
                return ControlFlow::Continue(());
            }
            if seq > expected {
                return ControlFlow::Break(());
            }
            if self.count == 0 {
                self.first_time = record.timestamp;
            }
            let bytes = record.stored_bytes(self.storage);
            self.count += 1;
            self.bytes += bytes;
            self.subjects.stored(record.subject, Held { seq, bytes: held_bytes(bytes) }, self.keep_history);
            expected = self.deleted.next_outside(seq + 1);
            if self.count == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if self.count == count { Ok(()) } else { Err(ReadFailed::missing(Seq(expected))) }
    }

    /// Removes the messages of one subject below `below`.
    pub(crate) fn remove_older(
        &mut self,
        subject: u32,
        below: u64,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let entry = self.subjects.at(subject);
        if let Some(held) = entry.held() {
            for held in held.into_iter().filter(|held| held.seq < below) {
                self.remove_held(subject, held, removals);
            }
            return Ok(());
        }
        let text: Box<[u8]> = entry.subject().into();
        self.remove_run((entry.first, below - 1), &mut |_, subject| *subject == *text, reads, removals)
    }

    /// Removes messages that match, below `below`, oldest first and leaving the newest `keep` of all that match.
    pub(crate) fn remove_matching(
        &mut self,
        filter: &Filter,
        below: u64,
        keep: u64,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        let matching = self.subjects.matching(std::slice::from_ref(filter));
        let total: u64 = matching.iter().map(|entry| entry.count).sum();
        let mut left = total.saturating_sub(keep);
        if left == 0 {
            return Ok(());
        }
        let known: Option<Vec<_>> = matching
            .iter()
            .map(|entry| entry.held().map(|held| (self.subjects.position(entry.subject()), held)))
            .collect();
        if let Some(known) = known {
            let mut messages: Vec<(u32, Held)> = known
                .into_iter()
                .flat_map(|(subject, held)| held.into_iter().filter_map(move |held| Some((subject?, held))))
                .filter(|(_, held)| held.seq < below)
                .collect();
            messages.sort_unstable_by_key(|(_, held)| held.seq);
            for (subject, held) in messages.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                self.remove_held(subject, held, removals);
            }
            return Ok(());
        }
        let first = matching.iter().map(|entry| entry.first).min().unwrap_or(self.first);
        let last =
            matching.iter().map(|entry| entry.last).max().unwrap_or(self.last).min(below.saturating_sub(1));
        if first > last {
            return Ok(());
        }
        let mut unwanted = |_, subject: &[u8]| {
            let gone = left > 0 && filter.matches(subject);
            left -= u64::from(gone);
            gone
        };
        self.remove_run((first, last), &mut unwanted, reads, removals)
    }

    /// The oldest message of a subject.
    pub(crate) fn oldest_of(&mut self, subject: u32, reads: &Reads<'_>) -> Result<Held, ReadFailed> {
        let entry = self.subjects.at(subject);
        if let Some(held) = entry.oldest() {
            return Ok(held);
        }
        if entry.first_is_exact() {
            let bytes = reads.record(entry.first)?.borrowed().stored_bytes(self.storage);
            return Ok(Held { seq: entry.first, bytes: held_bytes(bytes) });
        }
        let mut found = None;
        let from = entry.first.max(self.first);
        reads.scan(from, &mut |seq, record| {
            if record.subject == entry.subject() && self.is_live(seq) {
                found = Some(Held { seq, bytes: held_bytes(record.stored_bytes(self.storage)) });
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        let held = found.ok_or_else(|| ReadFailed::missing(Seq(from)))?;
        self.subjects.found_first(subject, held.seq);
        Ok(held)
    }

    /// Looks up what removals of this command left open.
    pub(crate) fn settle(&mut self, reads: &Reads<'_>) -> Result<(), ReadFailed> {
        for subject in std::mem::take(&mut self.last_unknown) {
            let entry = self.subjects.at(subject);
            if entry.count == 0 || self.is_live(entry.last) {
                continue;
            }
            let mut seq = entry.last;
            let newest = loop {
                seq = self.deleted.previous_outside(seq - 1);
                if seq < entry.first.max(self.first) {
                    return Err(ReadFailed::missing(Seq(entry.first)));
                }
                let record = reads.record(seq)?;
                if record.subject == entry.subject() {
                    break Held { seq, bytes: held_bytes(record.borrowed().stored_bytes(self.storage)) };
                }
            };
            self.subjects.found_last(subject, newest);
        }
        self.read_first_time(reads)
    }

    fn read_first_time(&mut self, reads: &Reads<'_>) -> Result<(), ReadFailed> {
        if self.first_time_unknown {
            self.first_time = reads.record(self.first)?.timestamp;
            self.first_time_unknown = false;
        }
        Ok(())
    }

    fn forget_record(&mut self, seq: u64, record: &RecordRef<'_>, removals: &mut Removals) {
        let after = self.subjects.removed(record.subject, seq);
        self.forget(seq, record.stored_bytes(self.storage), after, removals);
    }

    fn forget(&mut self, seq: u64, bytes: u64, after: AfterRemoval, removals: &mut Removals) {
        debug_assert!(self.is_live(seq), "message {seq} was gone already");
        removals.push(seq, seq);
        self.bytes -= bytes;
        self.count -= 1;
        if let AfterRemoval::LastUnknown(subject) = after {
            self.last_unknown.push(subject);
        }
        if self.count == 0 {
            self.advance_to(self.last + 1);
            self.first_time = Timestamp::ZERO;
            self.first_time_unknown = false;
        } else if seq == self.first {
            self.advance_to(seq + 1);
            self.first_time_unknown = true;
        } else {
            self.deleted.insert(seq);
        }
    }

    /// The head moves to the first live sequence not below `target`, which is at most one past the last.
    pub(crate) fn advance_to(&mut self, target: u64) {
        let before = self.first;
        if !self.exempt.is_empty() {
            self.exempt.forget(0, target);
        }
        if self.deleted.is_empty() {
            self.first = target;
            return;
        }
        self.first = self.deleted.next_outside(target);
        self.deleted.forget(before, self.first);
    }
}

/// Reading over so many messages is cheaper than looking one up.
const SCANNED_GAP_MAX: u64 = 64;

fn held_bytes(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("a message is far below 4 GiB")
}
