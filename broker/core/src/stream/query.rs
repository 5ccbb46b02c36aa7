//! What can be asked of a stream. Nothing here changes anything.
//!
//! Answers come from the subject index where it knows them; otherwise the store is read, and only the part that the
//! index can not speak for.

use std::ops::ControlFlow;

use levee_protocol::api::{StreamConfig, StreamState};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::Record;
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;

use super::StreamMachine;
use super::reads::Reads;
use super::subjects::SubjectEntry;
use super::view::{MessageView, ReadFailed};
use crate::consumer::{Ledger, Source};

impl StreamMachine {
    /// The configuration in force; `None` before the first command.
    #[must_use]
    pub fn config(&self) -> Option<&StreamConfig> {
        self.settings.as_ref().map(|settings| &settings.config)
    }

    /// When meta created the stream.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The newest time any command carried. A leader stamps nothing older.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// What the stream holds, without the details that are listed on request.
    #[must_use]
    pub fn state(&self) -> StreamState {
        let messages = &self.messages;
        StreamState {
            messages: messages.count,
            bytes: messages.bytes,
            first_seq: Seq(messages.first),
            first_ts: messages.first_time,
            last_seq: Seq(messages.last),
            last_ts: messages.last_time,
            num_subjects: messages.subjects.len() as u64,
            num_deleted: if messages.count == 0 {
                0
            } else {
                messages.last + 1 - messages.first - messages.count
            },
            consumer_count: self.consumers.values().filter(|ledger| !ledger.config().direct).count() as u64,
            ..StreamState::default()
        }
    }

    /// Sequence of the first message; of an empty stream one more than the last, or 0 when nothing ever happened.
    #[must_use]
    pub fn first_seq(&self) -> Seq {
        Seq(self.messages.first)
    }

    /// The last sequence that was given out.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        Seq(self.messages.last)
    }

    /// Whether the message is stored and not removed.
    #[must_use]
    pub fn is_live(&self, seq: Seq) -> bool {
        self.messages.is_live(seq.0)
    }

    /// Removed sequences between the first and the last, as inclusive runs in order.
    pub fn deleted(&self) -> impl Iterator<Item = (Seq, Seq)> {
        self.messages
            .deleted
            .runs(self.messages.first, self.messages.last)
            .map(|(first, last)| (Seq(first), Seq(last)))
    }

    /// Subjects that match and how many messages each has, in order of the subjects.
    pub fn subjects(&self, filter: &Filter) -> impl Iterator<Item = (&[u8], u64)> {
        let mut matching = self.matching(std::slice::from_ref(filter));
        matching.sort_unstable_by_key(|entry| entry.subject());
        matching.into_iter().map(|entry| (entry.subject(), entry.count))
    }

    /// The newest live message that matches.
    #[must_use]
    pub fn last_for(&self, filter: &Filter) -> Option<Seq> {
        if self.covers(filter) {
            return self.messages.last_live().map(Seq);
        }
        self.matching(std::slice::from_ref(filter)).into_iter().map(|entry| Seq(entry.last)).max()
    }

    /// The newest live message of every subject that matches one of `filters`, ascending.
    #[must_use]
    pub fn last_per_subject(&self, filters: &[Filter]) -> Vec<Seq> {
        let mut seqs: Vec<Seq> = self.matching(filters).into_iter().map(|entry| Seq(entry.last)).collect();
        seqs.sort_unstable();
        seqs
    }

    /// The first live message at or after `from` that matches one of `filters`; no filters match everything.
    pub fn next_match(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<Option<Record>, ReadFailed> {
        let Some(mut from) = self.messages.next_live(from.0) else { return Ok(None) };
        let reads = Reads::stored_only(view);
        if filters.is_empty() || filters.iter().any(|filter| self.covers(filter)) {
            return reads.record(from).map(Some);
        }
        let mut last = self.messages.last;
        if let [filter] = filters
            && filter.is_literal()
        {
            let Some(entry) = self.messages.subjects.get(filter.as_bytes()) else { return Ok(None) };
            if let Some(held) = entry.held() {
                let next = held.into_iter().find(|held| held.seq >= from);
                return next.map(|held| reads.record(held.seq)).transpose();
            }
            if from == entry.last || (from <= entry.first && entry.first_is_exact()) {
                return reads.record(from.max(entry.first)).map(Some);
            }
            (from, last) = (from.max(entry.first), entry.last);
        }
        let mut found = None;
        reads.scan(from, &mut |seq, record| {
            if seq > last {
                return ControlFlow::Break(());
            }
            if matches_any(filters, record.subject) && self.messages.is_live(seq) {
                found = Some(seq);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        found.map(|seq| reads.record(seq)).transpose()
    }

    /// Between which sequences all live messages are that match one of `filters` and come at or after `from`, as far as
    /// the subject index knows without looking at more than `subjects_max` subjects. `None` when there are none.
    pub(crate) fn span_of(&self, filters: &[Filter], from: Seq, subjects_max: usize) -> Option<(Seq, Seq)> {
        let messages = &self.messages;
        let (first, last) = (messages.next_live(from.0)?, messages.last);
        if filters.is_empty() || filters.iter().any(|filter| self.covers(filter)) {
            return Some((Seq(first), Seq(last)));
        }
        if messages.subjects.candidates(filters) > subjects_max {
            return Some((Seq(first), Seq(last)));
        }
        let matching = messages.subjects.matching(filters).into_iter().filter(|entry| entry.last >= first);
        let bounds = matching.map(|entry| (entry.first.max(first), entry.last));
        let span = bounds.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
        span.map(|(first, last)| (Seq(first), Seq(last)))
    }

    /// How many live messages at or after `from` match one of `filters`; no filters match everything.
    pub fn count_matching(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<u64, ReadFailed> {
        let from = from.0;
        if self.messages.count == 0 || from > self.messages.last {
            return Ok(0);
        }
        if filters.is_empty() || filters.iter().any(|filter| self.covers(filter)) {
            return Ok(self.messages.count_from(from));
        }
        let messages_left = self.messages.last - from;
        if messages_left.saturating_mul(READ_COST) < self.messages.subjects.candidates(filters) as u64 {
            return self.count_read(filters, from, view);
        }
        let matching = self.matching(filters);
        let mut count = 0;
        let mut cut: Vec<&SubjectEntry> = Vec::new();
        for entry in matching {
            if entry.first >= from || from <= self.messages.first {
                count += entry.count;
            } else if entry.last >= from {
                match entry.held() {
                    Some(held) => count += held.iter().filter(|held| held.seq >= from).count() as u64,
                    None => cut.push(entry),
                }
            }
        }
        Ok(count + self.count_cut(&cut, from, view)?)
    }

    /// Counts messages at or after `from` by reading them.
    fn count_read(&self, filters: &[Filter], from: u64, view: &dyn MessageView) -> Result<u64, ReadFailed> {
        let mut count = 0;
        Reads::stored_only(view).scan(from.max(self.messages.first), &mut |seq, record| {
            if seq > self.messages.last {
                return ControlFlow::Break(());
            }
            count += u64::from(matches_any(filters, record.subject) && self.messages.is_live(seq));
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Counts messages at or after `from` of subjects that have messages on both sides of it, by reading whichever
    /// side is shorter.
    fn count_cut(&self, cut: &[&SubjectEntry], from: u64, view: &dyn MessageView) -> Result<u64, ReadFailed> {
        let bounds = |entry: &&SubjectEntry| (entry.first, entry.last);
        let Some((lowest, highest)) =
            cut.iter().map(bounds).reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
        else {
            return Ok(0);
        };
        let wanted: std::collections::BTreeSet<&[u8]> = cut.iter().map(|entry| entry.subject()).collect();
        let total: u64 = cut.iter().map(|entry| entry.count).sum();
        let below = from - lowest < highest - from;
        let (first, last) = if below { (lowest, from - 1) } else { (from, highest) };
        let mut count = 0;
        Reads::stored_only(view).scan(first.max(self.messages.first), &mut |seq, record| {
            if seq > last {
                return ControlFlow::Break(());
            }
            if wanted.contains(record.subject) && self.messages.is_live(seq) {
                count += 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(if below { total - count } else { count })
    }

    /// One consumer.
    #[must_use]
    pub fn consumer(&self, name: &ConsumerName) -> Option<&Ledger> {
        self.consumers.get(name)
    }

    /// All consumers, in order of their names.
    pub fn consumers(&self) -> impl Iterator<Item = (&ConsumerName, &Ledger)> {
        self.consumers.iter()
    }

    /// Message ids that are remembered.
    #[must_use]
    pub fn message_ids(&self) -> usize {
        self.window.len()
    }

    fn matching(&self, filters: &[Filter]) -> Vec<&SubjectEntry> {
        if filters.iter().any(|filter| self.covers(filter)) {
            return self.messages.subjects.matching(&[]);
        }
        self.messages.subjects.matching(filters)
    }

    /// Whether every message there can be matches the filter.
    fn covers(&self, filter: &Filter) -> bool {
        if filter.as_str() == ">" {
            return true;
        }
        self.settings.as_ref().is_some_and(|settings| {
            !self.has_foreign_subjects
                && settings.stores_only_its_subjects()
                && settings.subjects.iter().all(|subject| subject.is_subset_of(filter))
        })
    }
}

impl Source for StreamMachine {
    fn config(&self) -> Option<&StreamConfig> {
        self.config()
    }

    fn first_seq(&self) -> Seq {
        self.first_seq()
    }

    fn last_seq(&self) -> Seq {
        self.last_seq()
    }

    fn messages(&self) -> u64 {
        self.messages.count
    }

    fn is_live(&self, seq: Seq) -> bool {
        self.is_live(seq)
    }

    fn next_match(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<Option<Record>, ReadFailed> {
        self.next_match(filters, from, view)
    }

    fn count_matching(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<u64, ReadFailed> {
        self.count_matching(filters, from, view)
    }

    fn last_for(&self, filter: &Filter) -> Option<Seq> {
        self.last_for(filter)
    }

    fn last_per_subject(&self, filters: &[Filter]) -> Vec<Seq> {
        self.last_per_subject(filters)
    }
}

/// Reading a message costs about as much as looking at so many subjects of the index.
const READ_COST: u64 = 4;

fn matches_any(filters: &[Filter], subject: &[u8]) -> bool {
    filters.iter().any(|filter| filter.matches(subject))
}
