//! The duplicate window: which message ids were stored lately, and under which sequence.
//!
//! Memory holds a 128-bit hash per id; the ids themselves are in the messages. The hash is the same on every node
//! and in every release, because it is persisted. It is keyed, with a key that everybody can read: that stops
//! accidents, and finding two ids with one hash on purpose takes about 2^64 tries.

use std::collections::VecDeque;

use hashbrown::HashTable;
use levee_protocol::command::Undecodable;
use levee_protocol::ids::Seq;
use levee_protocol::time::{Nanos, Timestamp};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::rows::{RowKind, RowReader, StateRow, number_of_key};

/// Ids per row.
const PAGE: u64 = 256;

/// The ids of one stream, oldest first.
#[derive(Debug, Default)]
pub(crate) struct DuplicateWindow {
    seen: VecDeque<Seen>,
    /// Ordinal of the oldest id. Ordinals count every id ever remembered.
    head: u64,
    /// Ordinals by the hash of their id.
    table: HashTable<u64>,
    /// The first ordinal that is not in a row.
    unwritten: u64,
    /// Pages below this have no row any more.
    rows_from: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Seen {
    id: u128,
    seq: Seq,
    at: Timestamp,
}

impl DuplicateWindow {
    /// The sequence under which this id was stored.
    pub(crate) fn find(&self, MsgId(id): MsgId) -> Option<Seq> {
        let ordinal = self.table.find(table_hash(id), |ordinal| self.at(*ordinal).id == id)?;
        Some(self.at(*ordinal).seq)
    }

    /// Remembers an id that is not in the window. Times do not go backwards.
    pub(crate) fn remember(&mut self, MsgId(id): MsgId, seq: Seq, at: Timestamp) {
        let ordinal = self.next();
        self.seen.push_back(Seen { id, seq, at });
        let (seen, head) = (&self.seen, self.head);
        self.table
            .insert_unique(table_hash(id), ordinal, |ordinal| table_hash(seen[index(*ordinal, head)].id));
    }

    /// Forgets ids that are older than the window.
    pub(crate) fn expire(&mut self, now: Timestamp, window: Nanos) {
        while let Some(oldest) = self.seen.front()
            && now.since(oldest.at) >= window
        {
            let ordinal = self.head;
            if let Ok(slot) = self.table.find_entry(table_hash(oldest.id), |other| *other == ordinal) {
                slot.remove();
            }
            self.seen.pop_front();
            self.head += 1;
        }
        if self.seen.is_empty() && self.seen.capacity() > 4096 {
            self.seen = VecDeque::new();
            self.table = HashTable::new();
        }
    }

    /// When the last id leaves the window. While publishes come in they expire ids themselves; a tick is only needed
    /// to give the memory back after the last one.
    pub(crate) fn empty_at(&self, window: Nanos) -> Option<Timestamp> {
        self.seen.back().map(|newest| newest.at.plus(window))
    }

    /// When the last id was remembered.
    pub(crate) fn newest(&self) -> Timestamp {
        self.seen.back().map_or(Timestamp::ZERO, |newest| newest.at)
    }

    /// Ids in the window.
    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }

    /// The ordinals in the window, first to one past the last; they are part of the state row.
    pub(crate) fn ordinals(&self) -> (u64, u64) {
        (self.head, self.next())
    }

    fn next(&self) -> u64 {
        self.head + self.seen.len() as u64
    }

    fn at(&self, ordinal: u64) -> &Seen {
        &self.seen[index(ordinal, self.head)]
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        let first_page = self.head / PAGE;
        for page in self.rows_from..first_page.min(self.unwritten.div_ceil(PAGE)) {
            rows.push(StateRow::delete(RowKind::Dedup, &page.to_be_bytes()));
        }
        self.rows_from = first_page;
        let mut from = self.unwritten.max(self.head);
        while from < self.next() {
            let page = from / PAGE;
            rows.push(self.page_row(page));
            from = (page + 1) * PAGE;
        }
        self.unwritten = self.next();
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        if !self.seen.is_empty() {
            rows.extend((self.head / PAGE..=(self.next() - 1) / PAGE).map(|page| self.page_row(page)));
        }
    }

    fn page_row(&self, page: u64) -> StateRow {
        let first = (page * PAGE).max(self.head);
        let end = ((page + 1) * PAGE).min(self.next());
        let mut value = Vec::with_capacity(8 + usize::try_from(end - first).expect("a page is small") * 32);
        value.extend_from_slice(&first.to_le_bytes());
        for ordinal in first..end {
            let seen = self.at(ordinal);
            value.extend_from_slice(&seen.id.to_le_bytes());
            value.extend_from_slice(&seen.seq.0.to_le_bytes());
            value.extend_from_slice(&seen.at.0.to_le_bytes());
        }
        StateRow::put(RowKind::Dedup, &page.to_be_bytes(), value)
    }

    /// A window that waits for its rows, which come in order of their keys.
    pub(crate) fn loading(head: u64) -> Self {
        Self { head, unwritten: head, rows_from: head / PAGE, ..Self::default() }
    }

    /// Takes one row. A row may hold ids that left the window after it was written.
    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Undecodable> {
        number_of_key(RowKind::Dedup, key)?;
        let mut reader = RowReader::new(RowKind::Dedup, value);
        let mut ordinal = u64::from_le_bytes(reader.bytes()?);
        while !reader.is_empty() {
            let id = u128::from_le_bytes(reader.bytes()?);
            let seq = Seq(u64::from_le_bytes(reader.bytes()?));
            let at = Timestamp(i64::from_le_bytes(reader.bytes()?));
            if ordinal >= self.head {
                if ordinal != self.next() {
                    return Err(reader.damaged());
                }
                self.seen.push_back(Seen { id, seq, at });
            }
            ordinal += 1;
        }
        Ok(())
    }

    /// All rows were taken.
    pub(crate) fn loaded(&mut self, next: u64) -> Result<(), Undecodable> {
        if self.next() != next {
            return Err(Undecodable(format!("duplicate window ends at {} instead of {next}", self.next())));
        }
        self.unwritten = next;
        let (seen, head) = (&self.seen, self.head);
        self.table.reserve(seen.len(), |ordinal| table_hash(seen[index(*ordinal, head)].id));
        for (ordinal, entry) in (head..).zip(seen) {
            self.table.insert_unique(table_hash(entry.id), ordinal, |ordinal| {
                table_hash(seen[index(*ordinal, head)].id)
            });
        }
        Ok(())
    }
}

fn index(ordinal: u64, head: u64) -> usize {
    usize::try_from(ordinal - head).expect("the window is in memory")
}

/// A message id, as its hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct MsgId(u128);

impl MsgId {
    pub(crate) fn of(text: &str) -> Self {
        let mut hasher = SipHasher13::new_with_keys(0x6c65_7665_655f_6964, 0x6475_706c_6963_6174);
        std::hash::Hasher::write(&mut hasher, text.as_bytes());
        Self(hasher.finish128().as_u128())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the low half of a good hash is a good hash")]
fn table_hash(id: u128) -> u64 {
    id as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_an_id_is_pinned() {
        assert_eq!(format!("{:032x}", MsgId::of("order-7").0), "5de071f9ceeea20faff1cb2f1af1a68b");
        assert_eq!(format!("{:032x}", MsgId::of("").0), "aa4fba948141ac8f56e8d9440a544198");
    }

    #[test]
    fn an_id_leaves_when_it_is_as_old_as_the_window() {
        let mut window = DuplicateWindow::default();
        window.remember(MsgId::of("a"), Seq(1), Timestamp(0));
        window.remember(MsgId::of("b"), Seq(2), Timestamp(5));

        window.expire(Timestamp(9), Nanos(10));
        assert_eq!((window.find(MsgId::of("a")), window.find(MsgId::of("b"))), (Some(Seq(1)), Some(Seq(2))));
        window.expire(Timestamp(10), Nanos(10));
        assert_eq!((window.find(MsgId::of("a")), window.find(MsgId::of("b"))), (None, Some(Seq(2))));
        assert_eq!(window.empty_at(Nanos(10)), Some(Timestamp(15)));
    }

    #[test]
    fn rows_written_along_the_way_load_as_the_same_window() {
        let id = |step: u64| MsgId::of(&format!("id-{step}"));
        let mut window = DuplicateWindow::default();
        let mut rows = std::collections::BTreeMap::new();
        for step in 0..2000_u64 {
            window.remember(id(step), Seq(step + 1), Timestamp(step.cast_signed()));
            if step % 7 == 0 {
                window.expire(Timestamp(step.cast_signed()), Nanos(300));
            }
            if step % 113 == 0 {
                let mut dirty = Vec::new();
                window.dirty_rows(&mut dirty);
                for row in dirty {
                    match row.value {
                        Some(value) => rows.insert(row.key, value),
                        None => rows.remove(&row.key),
                    };
                }
                let (head, next) = window.ordinals();
                let mut loaded = DuplicateWindow::loading(head);
                for (key, value) in &rows {
                    loaded.load_row(key, value).unwrap();
                }
                loaded.loaded(next).unwrap();

                assert_eq!(loaded.seen, window.seen);
                assert!(rows.len() <= 3, "expired pages are deleted");
                for seen in 0..=step {
                    assert_eq!(loaded.find(id(seen)), window.find(id(seen)));
                }
            }
        }
    }
}
