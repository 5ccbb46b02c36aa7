//! Hot path: the subject index. One hash look-up per publish, no allocation for a known subject.
//!
//! For every subject that has messages: how many, and the first and last sequence. Entries lie in one vector and a
//! hash table holds their positions, which keeps a subject under 100 bytes beyond its text. Filters with wildcards find
//! theirs by the first tokens (`branches.rs`). Nothing that replicas must agree on depends on the order of either: rows
//! are keyed by subject and lists are sorted.

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use levee_protocol::command::Undecodable;
use levee_protocol::subject::Filter;

use crate::rows::{RowKind, RowReader, StateRow};
use crate::stream::branches::Branches;

/// Up to this many messages per subject, a stream with such a limit remembers the sequence of every message of a
/// subject, so that the one to evict is known without reading. Above it, the store is searched.
pub(crate) const HISTORY_MAX: u64 = 256;

/// What lives on one subject.
#[derive(Debug, Default)]
pub(crate) struct SubjectEntry {
    text: Box<[u8]>,
    /// Lower bound of the first sequence; exact unless `FIRST_IS_BOUND` is set.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) count: u64,
    /// With a short history: every message, oldest first.
    #[allow(
        clippy::box_collection,
        reason = "most streams keep none, and 24 bytes a subject are much for nothing"
    )]
    history: Option<Box<VecDeque<Held>>>,
    /// Stored bytes of the last message.
    last_bytes: u32,
    flags: u8,
}

/// The first message was removed and the next one was not looked for yet.
const FIRST_IS_BOUND: u8 = 1;
/// Differs from its row.
const DIRTY: u8 = 2;
/// Has a row.
const HAS_ROW: u8 = 4;
/// The last message was removed by the command at hand, which looks for the new last one at its end. Not in rows.
const LAST_IS_GONE: u8 = 8;

/// One message of a subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Held {
    pub(crate) seq: u64,
    pub(crate) bytes: u32,
}

impl SubjectEntry {
    pub(crate) fn subject(&self) -> &[u8] {
        &self.text
    }

    /// Whether `first` is the sequence of a message, rather than a lower bound.
    pub(crate) fn first_is_exact(&self) -> bool {
        self.flags & FIRST_IS_BOUND == 0
    }

    /// Every message of the subject, oldest first, when that is known without reading.
    pub(crate) fn held(&self) -> Option<Vec<Held>> {
        match &self.history {
            Some(history) => Some(history.iter().copied().collect()),
            None => self.only().map(|held| vec![held]),
        }
    }

    /// The oldest message, when that is known without reading.
    pub(crate) fn oldest(&self) -> Option<Held> {
        match &self.history {
            Some(history) => history.front().copied(),
            None => self.only(),
        }
    }

    /// The only message, if there is one and it is known.
    fn only(&self) -> Option<Held> {
        let is_known = self.count == 1 && self.flags & LAST_IS_GONE == 0;
        is_known.then_some(Held { seq: self.last, bytes: self.last_bytes })
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(24);
        let mut put = |number: u64| prost::encoding::encode_varint(number, &mut value);
        put(u64::from(self.flags & FIRST_IS_BOUND));
        put(self.count);
        put(self.first);
        put(self.last - self.first);
        put(u64::from(self.last_bytes));
        let mut before = 0;
        for held in self.history.iter().flat_map(|history| history.iter()) {
            put(held.seq - before);
            put(u64::from(held.bytes));
            before = held.seq;
        }
        value
    }

    fn decode(text: &[u8], value: &[u8]) -> Result<Self, Undecodable> {
        let mut reader = RowReader::new(RowKind::Subject, value);
        let damaged = reader.damaged();
        let mut entry = Self { text: text.into(), flags: HAS_ROW, ..Self::default() };
        entry.flags |= u8::try_from(reader.number()?).map_err(|_| damaged.clone())? & FIRST_IS_BOUND;
        entry.count = reader.number()?;
        entry.first = reader.number()?;
        entry.last = entry.first.checked_add(reader.number()?).ok_or_else(|| damaged.clone())?;
        entry.last_bytes = u32::try_from(reader.number()?).map_err(|_| damaged.clone())?;
        let mut history = VecDeque::new();
        let mut seq = 0_u64;
        while !reader.is_empty() {
            seq = seq.checked_add(reader.number()?).ok_or_else(|| damaged.clone())?;
            let bytes = u32::try_from(reader.number()?).map_err(|_| damaged.clone())?;
            history.push_back(Held { seq, bytes });
        }
        if !history.is_empty() {
            entry.history = Some(Box::new(history));
        }
        Ok(entry)
    }
}

/// What a removal leaves open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AfterRemoval {
    /// The entry is as exact as it was, or gone.
    Settled,
    /// The last message of the subject was removed and older ones remain: the new last one must be looked for.
    LastUnknown(u32),
}

/// All subjects of a stream.
#[derive(Debug, Default)]
pub(crate) struct SubjectIndex {
    table: HashTable<u32>,
    entries: Vec<SubjectEntry>,
    free: Vec<u32>,
    /// Where the subject of the newest message is.
    newest: u32,
    branches: Branches,
    /// The seed may differ between nodes, and should: a client that knew it could choose subjects that collide.
    hasher: RandomState,
    dirty: Vec<u32>,
    /// Subjects that have a row and no messages any more, unless they came back.
    gone: BTreeSet<Box<[u8]>>,
}

impl SubjectIndex {
    /// How many subjects have messages.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn get(&self, subject: &[u8]) -> Option<&SubjectEntry> {
        let position = self.position(subject)?;
        Some(&self.entries[position as usize])
    }

    pub(crate) fn at(&self, position: u32) -> &SubjectEntry {
        &self.entries[position as usize]
    }

    /// Every subject, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SubjectEntry> {
        self.entries.iter().filter(|entry| entry.count > 0)
    }

    /// The subjects that match one of the filters, each once, in no particular order. No filters match everything.
    pub(crate) fn matching(&self, filters: &[Filter]) -> Vec<&SubjectEntry> {
        match filters {
            [] => self.iter().collect(),
            [filter] => self.positions(filter).map(|position| self.at(position)).collect(),
            _ => {
                let mut positions: Vec<u32> =
                    filters.iter().flat_map(|filter| self.positions(filter)).collect();
                positions.sort_unstable();
                positions.dedup();
                positions.into_iter().map(|position| self.at(position)).collect()
            }
        }
    }

    /// How many subjects are looked at to find those that match one of the filters.
    pub(crate) fn candidates(&self, filters: &[Filter]) -> usize {
        let of = |filter: &Filter| {
            if filter.is_literal() { 1 } else { self.branches.candidates_len(filter) }
        };
        if filters.is_empty() { self.len() } else { filters.iter().map(of).sum() }
    }

    fn positions<'a>(&'a self, filter: &'a Filter) -> impl Iterator<Item = u32> + 'a {
        let (literal, wild) = if filter.is_literal() {
            (self.position(filter.as_bytes()), None)
        } else {
            (None, Some(self.branches.candidates(filter)))
        };
        let wild = wild.into_iter().flatten();
        literal.into_iter().chain(wild.filter(|position| filter.matches(self.at(*position).subject())))
    }

    /// Takes note of a new message, the newest of the stream. Returns where the subject's entry is, the sequence of the
    /// subject's last message until now, 0 if it had none, and that message if it had exactly one.
    pub(crate) fn stored(
        &mut self,
        subject: &[u8],
        message: Held,
        keep_history: bool,
    ) -> (u32, u64, Option<Held>) {
        let position = match self.entries.get(self.newest as usize) {
            // Messages of a subject often come one behind another.
            Some(entry) if entry.count > 0 && *entry.text == *subject => self.newest,
            _ => self.find_or_add(subject, message.seq),
        };
        self.newest = position;
        let entry = &mut self.entries[position as usize];
        let only_before = entry.only();
        let before = entry.last;
        entry.flags &= !LAST_IS_GONE;
        entry.count += 1;
        entry.last = message.seq;
        entry.last_bytes = message.bytes;
        if keep_history {
            entry.history.get_or_insert_default().push_back(message);
        }
        self.mark(position);
        (position, before, only_before)
    }

    fn find_or_add(&mut self, subject: &[u8], seq: u64) -> u32 {
        let hash = self.hasher.hash_one(subject);
        let slot = self.table.entry(
            hash,
            |position| *self.entries[*position as usize].text == *subject,
            |position| self.hasher.hash_one(&*self.entries[*position as usize].text),
        );
        match slot {
            Slot::Occupied(slot) => *slot.get(),
            Slot::Vacant(slot) => {
                let entry = SubjectEntry { text: subject.into(), first: seq, ..SubjectEntry::default() };
                let position = match self.free.pop() {
                    Some(position) => {
                        self.entries[position as usize] = entry;
                        position
                    }
                    None => {
                        self.entries.push(entry);
                        u32::try_from(self.entries.len() - 1)
                            .expect("memory ends before four billion subjects")
                    }
                };
                slot.insert(position);
                self.branches.insert(position, |position| &self.entries[position as usize].text);
                position
            }
        }
    }

    /// Takes note that a message is gone.
    pub(crate) fn removed(&mut self, subject: &[u8], seq: u64) -> AfterRemoval {
        let Some(position) = self.position(subject) else {
            debug_assert!(false, "removed message {seq} was not indexed");
            return AfterRemoval::Settled;
        };
        self.removed_at(position, seq)
    }

    /// The same for a subject whose entry is known.
    pub(crate) fn removed_at(&mut self, position: u32, seq: u64) -> AfterRemoval {
        let entry = &mut self.entries[position as usize];
        entry.count -= 1;
        if entry.count == 0 {
            self.forget(position);
            return AfterRemoval::Settled;
        }
        let mut after = AfterRemoval::Settled;
        if let Some(history) = &mut entry.history {
            if let Ok(index) = history.binary_search_by_key(&seq, |held| held.seq) {
                history.remove(index);
            }
            if let (Some(oldest), Some(newest)) = (history.front(), history.back()) {
                entry.first = oldest.seq;
                entry.last = newest.seq;
                entry.last_bytes = newest.bytes;
            }
        } else {
            if seq == entry.first {
                entry.first = seq + 1;
                entry.flags |= FIRST_IS_BOUND;
            }
            if seq == entry.last {
                entry.flags |= LAST_IS_GONE;
                after = AfterRemoval::LastUnknown(position);
            } else if entry.only().is_some() {
                entry.first = entry.last;
                entry.flags &= !FIRST_IS_BOUND;
            }
        }
        self.mark(position);
        after
    }

    /// The newest message of a subject was looked for and found.
    pub(crate) fn found_last(&mut self, position: u32, newest: Held) {
        let entry = &mut self.entries[position as usize];
        entry.last = newest.seq;
        entry.last_bytes = newest.bytes;
        entry.flags &= !LAST_IS_GONE;
        if entry.count == 1 {
            entry.first = newest.seq;
            entry.flags &= !FIRST_IS_BOUND;
        }
        self.mark(position);
    }

    /// The oldest message of a subject was looked for and found.
    pub(crate) fn found_first(&mut self, position: u32, seq: u64) {
        let entry = &mut self.entries[position as usize];
        entry.first = seq;
        entry.flags &= !FIRST_IS_BOUND;
        self.mark(position);
    }

    /// Forgets every subject.
    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.free.clear();
        self.dirty.clear();
        self.branches = Branches::default();
        let with_rows =
            std::mem::take(&mut self.entries).into_iter().filter(|entry| entry.flags & HAS_ROW != 0);
        self.gone.extend(with_rows.map(|entry| entry.text));
    }

    /// Forgets which messages subjects have beyond first and last.
    pub(crate) fn drop_history(&mut self) {
        for position in 0..self.entries.len() {
            if self.entries[position].history.take().is_some() {
                self.mark(u32::try_from(position).expect("positions are u32"));
            }
        }
    }

    pub(crate) fn position(&self, subject: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(subject);
        self.table.find(hash, |position| *self.entries[*position as usize].text == *subject).copied()
    }

    fn forget(&mut self, position: u32) {
        let entry = std::mem::take(&mut self.entries[position as usize]);
        let hash = self.hasher.hash_one(&*entry.text);
        if let Ok(slot) = self.table.find_entry(hash, |other| *other == position) {
            slot.remove();
        }
        self.branches.remove(position);
        self.free.push(position);
        if entry.flags & HAS_ROW != 0 {
            self.gone.insert(entry.text);
        }
    }

    fn mark(&mut self, position: u32) {
        let entry = &mut self.entries[position as usize];
        if entry.flags & DIRTY == 0 {
            entry.flags |= DIRTY;
            self.dirty.push(position);
        }
    }

    /// About as many as `dirty_rows` has.
    pub(crate) fn unwritten_rows(&self) -> usize {
        self.dirty.len() + self.gone.len()
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for subject in std::mem::take(&mut self.gone) {
            if self.position(&subject).is_none() {
                rows.push(StateRow::delete(RowKind::Subject, &subject));
            }
        }
        for position in std::mem::take(&mut self.dirty) {
            let entry = &mut self.entries[position as usize];
            // A position is listed twice when its subject went and another one took its place.
            if entry.flags & DIRTY != 0 {
                entry.flags = (entry.flags & !DIRTY) | HAS_ROW;
                rows.push(StateRow::put(RowKind::Subject, &entry.text, entry.encode()));
            }
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(self.iter().map(|entry| StateRow::put(RowKind::Subject, &entry.text, entry.encode())));
    }

    /// Takes one row; returns how many messages it counts.
    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<u64, Undecodable> {
        let entry = SubjectEntry::decode(key, value)?;
        let count = entry.count;
        let position =
            u32::try_from(self.entries.len()).map_err(|_| Undecodable("too many subjects".into()))?;
        self.entries.push(entry);
        let hash = self.hasher.hash_one(key);
        self.table.insert_unique(hash, position, |position| {
            self.hasher.hash_one(&*self.entries[*position as usize].text)
        });
        self.branches.insert(position, |position| &self.entries[position as usize].text);
        Ok(count)
    }
}
