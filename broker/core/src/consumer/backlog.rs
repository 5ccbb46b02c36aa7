//! What a consumer has not delivered yet: the exact count, and records read ahead of delivery.
//!
//! Hot path: a fetch reads runs of records with one scan into one buffer; per message there is one copy and no
//! allocation of its own.
//!
//! The count is kept, not computed: appended messages are counted once, removed ones taken out, delivered ones too.
//! What it was last brought in line with is remembered as the pair of the stream's last sequence and its number of
//! messages. One of the two moves with every append or removal and neither moves back, so an equal pair means an
//! unchanged stream, and a pair that the reported removals explain means that nothing else happened. Anything
//! unexplained (a report that comes late, a sequence that was skipped) leads to counting again, never to a wrong
//! count.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use bytes::BytesMut;
use levee_protocol::ids::Seq;
use levee_protocol::record::{Record, RecordRef};
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;

use crate::consumer::settle::{Marks, Run};
use crate::consumer::source::Source;
use crate::stream::{MessageView, ReadFailed};

/// Records read by one scan.
const READ_RECORDS_MAX: usize = 512;
/// Bytes read by one scan; one record may exceed it.
const READ_BYTES_MAX: usize = 512 * 1024;
/// From this payload size on, a shared record costs less than a copy.
const SHARE_BYTES_MIN: usize = 4 * 1024;
/// After so many records in a row that do not match, the stream's subject index knows better where the next one is.
const MISSES_MAX: usize = 256;
/// Removed messages whose subjects are looked up one by one; more are counted again instead.
const LOOKUPS_MAX: u64 = 64;
/// Reported removals kept until the next look at the stream.
const REMOVED_RUNS_MAX: usize = 4096;

/// The stream at one moment, and what may be read of it.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) stream: &'a dyn Source,
    pub(crate) view: &'a dyn MessageView,
    pub(crate) filters: &'a [Filter],
}

impl Reading<'_> {
    fn matches(&self, subject: &[u8]) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(subject))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// What `count` is in line with; `None` counts again.
    stamp: Option<Stamp>,
    /// Live matching messages after the delivered position, those settled early included.
    count: u64,
    removed: Vec<Run>,
    /// All undelivered messages up to `read_to`, ascending.
    ahead: VecDeque<Record>,
    read_to: Seq,
    /// The stream's last sequence when this began to be told of messages that match.
    listens_from: Option<Seq>,
    /// No message in here matches.
    silence: Option<Run>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    last: Seq,
    messages: u64,
}

impl Stamp {
    fn of(stream: &dyn Source) -> Self {
        Self { last: stream.last_seq(), messages: stream.messages() }
    }
}

impl Backlog {
    /// Forgets everything; the filters or the position have changed.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// These messages are gone, by the stream's own account.
    pub(crate) fn removed(&mut self, run: Run) {
        if self.removed.len() < REMOVED_RUNS_MAX {
            self.removed.push(run);
        } else {
            self.stamp = None;
        }
    }

    /// As of the last `sync`: from here on `heard` is told of what matches.
    pub(crate) fn listens(&mut self) {
        self.listens_from = self.last_seq();
    }

    /// This is the first message that matches, of those that came since `listens`. What is known to have been read before
    /// that, and what comes before this one, need not be read to find it.
    pub(crate) fn heard(&mut self, first: Seq) {
        let Some(from) = self.listens_from.filter(|from| *from < first) else { return };
        let silence = Run { first: from.next(), last: first.previous() };
        if self.read_to >= from {
            self.read_to = self.read_to.max(silence.last);
        }
        self.silence = Some(silence);
    }

    /// Sequences that are or may be gone since the last `sync`; more than is reported when a report may be missing.
    pub(crate) fn gone(&self, stream: &dyn Source) -> Vec<Run> {
        let now = Stamp::of(stream);
        match self.stamp {
            Some(old) if old == now && self.removed.is_empty() => Vec::new(),
            Some(old) if self.explained(old, now) => self.removed.clone(),
            _ => vec![Run { first: Seq::NONE, last: now.last }],
        }
    }

    /// The stream's last sequence, as of the last `sync`.
    pub(crate) fn last_seq(&self) -> Option<Seq> {
        self.stamp.map(|stamp| stamp.last)
    }

    /// Brings the count and the records read ahead in line with the stream. Everything else expects this first.
    pub(crate) fn sync(&mut self, reading: Reading<'_>, marks: &Marks) -> Result<(), ReadFailed> {
        let now = Stamp::of(reading.stream);
        if self.stamp == Some(now) && self.removed.is_empty() {
            return Ok(());
        }
        let old = self.stamp.filter(|old| self.explained(*old, now));
        let removed = std::mem::take(&mut self.removed);
        let in_line = match old {
            Some(old) => self.follow(old, now, &removed, reading, marks)?,
            None => false,
        };
        if !in_line {
            self.count_again(reading, marks)?;
        }
        self.stamp = Some(now);
        Ok(())
    }

    /// How many messages are not delivered yet.
    pub(crate) fn undelivered(&self, reading: Reading<'_>, marks: &Marks) -> Result<u64, ReadFailed> {
        if marks.early.is_empty() {
            return Ok(self.count);
        }
        Ok(self.count.saturating_sub(count_early(marks.early.iter(), reading, marks)?))
    }

    /// A message that is not delivered was settled: it will be passed over.
    pub(crate) fn settled_early(&mut self, seq: Seq) {
        if let Ok(at) = self.ahead.binary_search_by_key(&seq, |record| record.seq) {
            self.ahead.remove(at);
        }
    }

    /// The next message to deliver for the first time. `appetite` is how many are wanted, which is as far as it
    /// makes sense to read ahead.
    pub(crate) fn peek(
        &mut self,
        appetite: u64,
        reading: Reading<'_>,
        marks: &Marks,
    ) -> Result<Option<&Record>, ReadFailed> {
        self.read_to = self.read_to.max(marks.delivered.stream);
        while self.ahead.is_empty() && self.read_to < reading.stream.last_seq() {
            let appetite = usize::try_from(appetite).unwrap_or(usize::MAX).clamp(1, READ_RECORDS_MAX);
            match &marks.chosen {
                Some(chosen) if self.read_to < chosen.resume => self.read_chosen(appetite, reading, marks)?,
                _ => self.read(appetite, reading, marks)?,
            }
        }
        Ok(self.ahead.front())
    }

    /// Takes the message that `peek` has shown; the delivered position moves to it next.
    pub(crate) fn take(&mut self, reading: Reading<'_>, marks: &Marks) -> Result<(), ReadFailed> {
        let Some(record) = self.ahead.pop_front() else { return Ok(()) };
        let passed_over = count_early(marks.early.range(..record.seq), reading, marks)?;
        self.count = self.count.saturating_sub(passed_over + 1);
        Ok(())
    }

    /// There was nothing to peek at: the delivered position moves to the end of the stream, which is returned.
    pub(crate) fn take_rest(&mut self) -> Option<Seq> {
        debug_assert!(self.ahead.is_empty(), "messages would be skipped");
        self.count = 0;
        self.stamp.map(|stamp| stamp.last)
    }

    /// Whether appends and the reported removals lead from one stamp to the other.
    fn explained(&self, old: Stamp, now: Stamp) -> bool {
        let gone: u64 = self.removed.iter().map(|run| run.last.0 - run.first.0 + 1).sum();
        now.last >= old.last
            && (old.messages + (now.last.0 - old.last.0)).checked_sub(gone) == Some(now.messages)
    }

    /// Applies what happened between two stamps. Says whether that was possible without counting again.
    fn follow(
        &mut self,
        old: Stamp,
        now: Stamp,
        removed: &[Run],
        reading: Reading<'_>,
        marks: &Marks,
    ) -> Result<bool, ReadFailed> {
        for run in removed {
            if !self.forget(*run, old.last, reading, marks)? {
                return Ok(false);
            }
        }
        if now.last > old.last {
            let mut from = old.last.max(marks.delivered.stream).next();
            if let Some(silence) = self.silence.filter(|silence| silence.first <= from) {
                from = from.max(silence.last.next());
            }
            self.count += reading.stream.count_matching(reading.filters, from, reading.view)?;
        }
        Ok(true)
    }

    /// Takes removed messages out of the count. Says whether that was possible without counting again.
    fn forget(
        &mut self,
        run: Run,
        counted_to: Seq,
        reading: Reading<'_>,
        marks: &Marks,
    ) -> Result<bool, ReadFailed> {
        let first = run.first.max(marks.delivered.stream.next());
        let last = run.last.min(counted_to);
        if first > last {
            return Ok(true);
        }
        if marks.early.range(first..=last).next().is_some() {
            return Ok(false);
        }
        let start = self.ahead.partition_point(|record| record.seq < first);
        let end = self.ahead.partition_point(|record| record.seq <= last);
        self.ahead.drain(start..end);
        self.count = self.count.saturating_sub((end - start) as u64);

        let mut first = first.max(self.read_to.next());
        if let Some(chosen) = &marks.chosen {
            let start = chosen.seqs.partition_point(|seq| *seq < first);
            let end = chosen.seqs.partition_point(|seq| *seq <= last);
            self.count = self.count.saturating_sub(end.saturating_sub(start) as u64);
            first = first.max(chosen.resume.next());
        }
        if first > last {
            return Ok(true);
        }
        let gone = last.0 - first.0 + 1;
        if reading.filters.is_empty() {
            self.count = self.count.saturating_sub(gone);
            return Ok(true);
        }
        if gone > LOOKUPS_MAX {
            return Ok(false);
        }
        for seq in (first.0..=last.0).map(Seq) {
            match reading.view.record(seq)? {
                Some(record) => {
                    self.count = self.count.saturating_sub(u64::from(reading.matches(&record.subject)))
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn count_again(&mut self, reading: Reading<'_>, marks: &Marks) -> Result<(), ReadFailed> {
        let Reading { stream, view, filters } = reading;
        self.ahead.retain(|record| stream.is_live(record.seq));
        let position = marks.delivered.stream;
        let (chosen, from) = match &marks.chosen {
            None => (0, position.next()),
            Some(chosen) => {
                let live = chosen.seqs.iter().filter(|seq| stream.is_live(**seq)).count() as u64;
                (live, position.max(chosen.resume).next())
            }
        };
        self.count = chosen + stream.count_matching(filters, from, view)?;
        Ok(())
    }

    fn read_chosen(
        &mut self,
        appetite: usize,
        reading: Reading<'_>,
        marks: &Marks,
    ) -> Result<(), ReadFailed> {
        let Some(chosen) = &marks.chosen else { return Ok(()) };
        let start = chosen.seqs.partition_point(|seq| *seq <= self.read_to);
        for seq in chosen.seqs.range(start..) {
            if self.ahead.len() == appetite {
                return Ok(());
            }
            self.read_to = *seq;
            if reading.stream.is_live(*seq) && !marks.early.contains(seq) {
                let record = reading.view.record(*seq)?.ok_or_else(|| ReadFailed::missing(*seq))?;
                self.ahead.push_back(record);
            }
        }
        self.read_to = chosen.resume;
        Ok(())
    }

    fn read(&mut self, appetite: usize, reading: Reading<'_>, marks: &Marks) -> Result<(), ReadFailed> {
        let Reading { stream, view, filters } = reading;
        let Some(first) = stream.next_match(filters, self.read_to.next(), view)? else {
            self.read_to = stream.last_seq();
            return Ok(());
        };
        self.read_to = first.seq;
        if !marks.early.contains(&first.seq) {
            self.ahead.push_back(first);
        }
        if self.ahead.len() < appetite && self.read_to < stream.last_seq() {
            self.scan(appetite, reading, marks)?;
        }
        Ok(())
    }

    /// Reads on from `read_to` until there is enough, or too little of it matches.
    fn scan(&mut self, appetite: usize, reading: Reading<'_>, marks: &Marks) -> Result<(), ReadFailed> {
        let Reading { stream, view, .. } = reading;
        let last = stream.last_seq();
        let mut found = Found::default();
        let room = appetite - self.ahead.len();
        let mut misses = 0;
        let mut stopped = false;
        let mut read_to = self.read_to;
        view.scan(self.read_to.next(), &mut |seq, record| {
            if seq > last {
                return ControlFlow::Break(());
            }
            read_to = seq;
            if !stream.is_live(seq) || !reading.matches(record.subject) || marks.early.contains(&seq) {
                misses += 1;
            } else {
                misses = 0;
                found.push(seq, record);
            }
            stopped =
                found.layout.len() >= room || found.bytes.len() >= READ_BYTES_MAX || misses >= MISSES_MAX;
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.read_to = if stopped { read_to } else { last };
        found.records(view, &mut self.ahead)
    }
}

/// How many of these, which were settled without being delivered, are in the count.
fn count_early<'a>(
    early: impl Iterator<Item = &'a Seq>,
    reading: Reading<'_>,
    marks: &Marks,
) -> Result<u64, ReadFailed> {
    let mut count = 0;
    for seq in early.filter(|seq| reading.stream.is_live(**seq)) {
        let counted = match &marks.chosen {
            Some(chosen) if *seq <= chosen.resume => chosen.seqs.binary_search(seq).is_ok(),
            _ => reading.view.record(*seq)?.is_some_and(|record| reading.matches(&record.subject)),
        };
        count += u64::from(counted);
    }
    Ok(count)
}

/// Records found by one scan, one after another in one buffer.
#[derive(Default)]
struct Found {
    bytes: BytesMut,
    layout: Vec<Layout>,
}

struct Layout {
    seq: Seq,
    timestamp: Timestamp,
    start: usize,
    subject: usize,
    header: usize,
    payload: usize,
    shared: bool,
}

impl Found {
    fn push(&mut self, seq: Seq, record: RecordRef<'_>) {
        let shared = record.payload.len() >= SHARE_BYTES_MIN;
        self.layout.push(Layout {
            seq,
            timestamp: record.timestamp,
            start: self.bytes.len(),
            subject: record.subject.len(),
            header: record.header.len(),
            payload: record.payload.len(),
            shared,
        });
        if !shared {
            self.bytes.extend_from_slice(record.subject);
            self.bytes.extend_from_slice(record.header);
            self.bytes.extend_from_slice(record.payload);
        }
    }

    fn records(self, view: &dyn MessageView, into: &mut VecDeque<Record>) -> Result<(), ReadFailed> {
        let bytes = self.bytes.freeze();
        for at in self.layout {
            if at.shared {
                into.push_back(view.record(at.seq)?.ok_or_else(|| ReadFailed::missing(at.seq))?);
                continue;
            }
            let header = at.start + at.subject;
            let payload = header + at.header;
            into.push_back(Record {
                seq: at.seq,
                timestamp: at.timestamp,
                subject: bytes.slice(at.start..header),
                header: bytes.slice(header..payload),
                payload: bytes.slice(payload..payload + at.payload),
            });
        }
        Ok(())
    }
}
