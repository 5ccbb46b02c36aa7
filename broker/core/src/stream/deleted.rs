//! Which sequences between the first and the last are gone, and other large sets of sequences.
//!
//! Never find the next live message by trying sequences one by one: after a million removals that is a million
//! tries, and one look here. Sequences lie in pages of 4096, a bit each; a page without removals is not there, and
//! one that is wholly removed has no bits. A page is also one checkpoint row, so that a million removals in random
//! order are a few hundred rows.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::command::Undecodable;

use crate::rows::{RowKind, RowReader, StateRow, number_of_key};

const PAGE: u64 = 4096;
const PAGE_COUNT: u16 = 4096;
const WORDS: usize = 64;

/// A row lists offsets while they are fewer than this, and has a bit map otherwise.
const LISTED_MAX: u16 = 200;

/// Removed sequences, or others that are worth a page of bits.
#[derive(Debug)]
pub(crate) struct DeletedSet {
    /// What its rows are.
    kind: RowKind,
    pages: BTreeMap<u64, Page>,
    /// Pages that differ from their rows.
    dirty: Vec<u64>,
    /// Pages that have a row and hold nothing any more, unless they came back.
    gone: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Page {
    /// `None`: all of them are removed.
    bits: Option<Box<[u64; WORDS]>>,
    count: u16,
    is_dirty: bool,
    has_row: bool,
}

impl Default for DeletedSet {
    fn default() -> Self {
        Self::of_kind(RowKind::Deleted)
    }
}

impl DeletedSet {
    /// An empty set whose rows are of this kind.
    pub(crate) fn of_kind(kind: RowKind) -> Self {
        Self { kind, pages: BTreeMap::new(), dirty: Vec::new(), gone: BTreeSet::new() }
    }

    /// Adds a sequence that is not in the set.
    pub(crate) fn insert(&mut self, seq: u64) {
        let number = seq / PAGE;
        let page = self.pages.entry(number).or_insert_with(Page::empty);
        page.set(seq % PAGE);
        if !page.is_dirty {
            page.is_dirty = true;
            self.dirty.push(number);
        }
    }

    /// Adds sequences that are not in the set, inclusive. Costs a step per page.
    pub(crate) fn insert_run(&mut self, first: u64, last: u64) {
        let mut from = first;
        while from <= last {
            let number = from / PAGE;
            let to = last.min(number * PAGE + (PAGE - 1));
            let page = self.pages.entry(number).or_insert_with(Page::empty);
            if to - from + 1 == PAGE {
                (page.bits, page.count) = (None, PAGE_COUNT);
            } else {
                (from % PAGE..=to % PAGE).for_each(|offset| page.set(offset));
            }
            if !page.is_dirty {
                page.is_dirty = true;
                self.dirty.push(number);
            }
            from = to + 1;
        }
    }

    /// Forgets the sequences of `from..to`; nothing below `from` is in the set.
    pub(crate) fn forget(&mut self, from: u64, to: u64) {
        while let Some(first) = self.pages.first_entry()
            && *first.key() < to / PAGE
        {
            let (number, page) = first.remove_entry();
            if page.has_row {
                self.gone.insert(number);
            }
        }
        let Some(mut first) = self.pages.first_entry() else { return };
        let number = to / PAGE;
        if *first.key() != number || to == number * PAGE {
            return;
        }
        let page = first.get_mut();
        let before = page.count;
        page.clear(from.saturating_sub(number * PAGE).min(to % PAGE), to % PAGE);
        if page.count == 0 {
            if first.remove().has_row {
                self.gone.insert(number);
            }
        } else if page.count != before && !page.is_dirty {
            page.is_dirty = true;
            self.dirty.push(number);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    #[inline]
    pub(crate) fn contains(&self, seq: u64) -> bool {
        !self.pages.is_empty() && self.pages.get(&(seq / PAGE)).is_some_and(|page| page.has(seq % PAGE))
    }

    /// The first sequence not below `seq` that is not in the set.
    pub(crate) fn next_outside(&self, seq: u64) -> u64 {
        let mut at = seq;
        for (&number, page) in self.pages.range(seq / PAGE..) {
            if number != at / PAGE {
                break;
            }
            match page.find(at % PAGE, false) {
                Some(offset) => return number * PAGE + offset,
                None => at = (number + 1) * PAGE,
            }
        }
        at
    }

    /// The first sequence not below `seq` that is in the set.
    fn next_inside(&self, seq: u64) -> Option<u64> {
        self.pages.range(seq / PAGE..).find_map(|(&number, page)| {
            let from = if number == seq / PAGE { seq % PAGE } else { 0 };
            page.find(from, true).map(|offset| number * PAGE + offset)
        })
    }

    /// The last sequence not above `seq` that is not in the set; 0 is never in it.
    pub(crate) fn previous_outside(&self, seq: u64) -> u64 {
        let mut at = seq;
        for (&number, page) in self.pages.range(..=seq / PAGE).rev() {
            if number != at / PAGE {
                break;
            }
            match page.find_back(at % PAGE) {
                Some(offset) => return number * PAGE + offset,
                None if number == 0 => return 0,
                None => at = number * PAGE - 1,
            }
        }
        at
    }

    /// How many sequences of `first..=last` are in the set.
    pub(crate) fn count_within(&self, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        self.pages
            .range(first / PAGE..=last / PAGE)
            .map(|(&number, page)| {
                let from = first.saturating_sub(number * PAGE);
                let to = (last - number * PAGE).min(PAGE - 1);
                if from == 0 && to == PAGE - 1 { u64::from(page.count) } else { page.count_within(from, to) }
            })
            .sum()
    }

    /// The removed parts of `first..=last`, in order.
    pub(crate) fn runs(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut from = first;
        std::iter::from_fn(move || {
            let start = self.next_inside(from).filter(|start| *start <= last)?;
            from = self.next_outside(start);
            Some((start, from.min(last + 1) - 1))
        })
    }

    /// The parts of `first..=last` that are not removed, in order.
    pub(crate) fn gaps(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut from = first;
        std::iter::from_fn(move || {
            let start = self.next_outside(from);
            if start > last {
                return None;
            }
            from = self.next_inside(start).unwrap_or(last + 1).min(last + 1);
            Some((start, from - 1))
        })
    }

    /// About as many as `dirty_rows` has.
    pub(crate) fn unwritten_rows(&self) -> usize {
        self.dirty.len() + self.gone.len()
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for number in std::mem::take(&mut self.gone) {
            if !self.pages.contains_key(&number) {
                rows.push(StateRow::delete(self.kind, &number.to_be_bytes()));
            }
        }
        for number in std::mem::take(&mut self.dirty) {
            // A page is listed twice when it went and came back.
            if let Some(page) = self.pages.get_mut(&number)
                && page.is_dirty
            {
                page.is_dirty = false;
                page.has_row = true;
                rows.push(page.row(self.kind, number));
            }
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(self.pages.iter().map(|(number, page)| page.row(self.kind, *number)));
    }

    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Undecodable> {
        let number = number_of_key(self.kind, key)?;
        self.pages.insert(number, Page::from_row(self.kind, value)?);
        Ok(())
    }
}

impl Page {
    fn empty() -> Self {
        Self { bits: Some(Box::new([0; WORDS])), ..Self::default() }
    }

    fn has(&self, offset: u64) -> bool {
        let (word, bit) = place(offset);
        self.bits.as_ref().is_none_or(|bits| bits[word] & bit != 0)
    }

    fn set(&mut self, offset: u64) {
        let (word, bit) = place(offset);
        let Some(bits) = &mut self.bits else {
            debug_assert!(false, "{offset} is removed already");
            return;
        };
        debug_assert!(bits[word] & bit == 0, "{offset} is removed already");
        bits[word] |= bit;
        self.count += 1;
        if self.count == PAGE_COUNT {
            self.bits = None;
        }
    }

    /// Takes the offsets `from..to` out.
    fn clear(&mut self, from: u64, to: u64) {
        if from == to {
            return;
        }
        let bits = self.bits.get_or_insert_with(|| Box::new([u64::MAX; WORDS]));
        let mut offset = from;
        while offset < to {
            let (word, bit) = place(offset);
            if bit == 1 && to - offset >= 64 {
                self.count -= small(bits[word].count_ones().into());
                bits[word] = 0;
                offset += 64;
            } else {
                self.count -= u16::from(bits[word] & bit != 0);
                bits[word] &= !bit;
                offset += 1;
            }
        }
        if self.count == PAGE_COUNT {
            self.bits = None;
        }
    }

    /// The first offset not below `from` that is in the set, or is not.
    fn find(&self, from: u64, inside: bool) -> Option<u64> {
        let Some(bits) = &self.bits else { return inside.then_some(from) };
        let (first, bit) = place(from);
        let mut mask = !(bit - 1);
        for (word, bits) in bits.iter().enumerate().skip(first) {
            let wanted = if inside { *bits } else { !*bits } & mask;
            if wanted != 0 {
                return Some(word as u64 * 64 + u64::from(wanted.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The last offset not above `from` that is not in the set.
    fn find_back(&self, from: u64) -> Option<u64> {
        let bits = self.bits.as_ref()?;
        let (last, bit) = place(from);
        let mut mask = bit | (bit - 1);
        for (word, bits) in bits.iter().enumerate().take(last + 1).rev() {
            let outside = !*bits & mask;
            if outside != 0 {
                return Some(word as u64 * 64 + 63 - u64::from(outside.leading_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    fn count_within(&self, from: u64, to: u64) -> u64 {
        let Some(bits) = &self.bits else { return to - from + 1 };
        let ((first, first_bit), (last, last_bit)) = (place(from), place(to));
        let mut count = 0;
        for (word, bits) in bits.iter().enumerate().take(last + 1).skip(first) {
            let above = if word == first { !(first_bit - 1) } else { u64::MAX };
            let below = if word == last { last_bit | (last_bit - 1) } else { u64::MAX };
            count += u64::from((bits & above & below).count_ones());
        }
        count
    }

    fn offsets(&self, inside: bool) -> impl Iterator<Item = u16> {
        (0..PAGE).filter(move |offset| self.has(*offset) == inside).map(small)
    }

    /// `0`: all; `1`: bit map; `2`: offsets that are in the set; `3`: offsets that are not. Little endian. Persisted.
    fn row(&self, kind: RowKind, number: u64) -> StateRow {
        let mut value = Vec::new();
        let list = |value: &mut Vec<u8>, inside| {
            for offset in self.offsets(inside) {
                value.extend_from_slice(&offset.to_le_bytes());
            }
        };
        match &self.bits {
            None => value.push(0),
            Some(_) if self.count <= LISTED_MAX => {
                value.push(2);
                list(&mut value, true);
            }
            Some(_) if PAGE_COUNT - self.count <= LISTED_MAX => {
                value.push(3);
                list(&mut value, false);
            }
            Some(bits) => {
                value.reserve(1 + WORDS * 8);
                value.push(1);
                for word in bits.iter() {
                    value.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
        StateRow::put(kind, &number.to_be_bytes(), value)
    }

    fn from_row(kind: RowKind, value: &[u8]) -> Result<Self, Undecodable> {
        let mut reader = RowReader::new(kind, value);
        let [tag] = reader.bytes()?;
        let mut bits = Box::new([0; WORDS]);
        match tag {
            0 => *bits = [u64::MAX; WORDS],
            1 => {
                for word in bits.iter_mut() {
                    *word = u64::from_le_bytes(reader.bytes()?);
                }
            }
            2 | 3 => {
                while !reader.is_empty() {
                    let offset = u16::from_le_bytes(reader.bytes()?);
                    if offset >= PAGE_COUNT {
                        return Err(reader.damaged());
                    }
                    let (word, bit) = place(offset.into());
                    bits[word] |= bit;
                }
                if tag == 3 {
                    bits.iter_mut().for_each(|word| *word = !*word);
                }
            }
            _ => return Err(reader.damaged()),
        }
        let count = small(bits.iter().map(|word| u64::from(word.count_ones())).sum());
        if count == 0 || !reader.is_empty() {
            return Err(reader.damaged());
        }
        Ok(Self { bits: (count < PAGE_COUNT).then_some(bits), count, is_dirty: false, has_row: true })
    }
}

fn place(offset: u64) -> (usize, u64) {
    (usize::from(small(offset)) / 64, 1 << (offset % 64))
}

fn small(number: u64) -> u16 {
    u16::try_from(number).expect("a page has 4096 offsets")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sequences around the borders of pages, where mistakes would be.
    fn near_borders() -> impl Strategy<Value = u64> {
        (0_u64..3, 0_u64..140).prop_map(|(page, offset)| (page * PAGE + offset + PAGE - 70).max(1))
    }

    proptest! {
        #[test]
        fn a_run_is_as_good_as_its_sequences_one_by_one(first in near_borders(), more in 0..2 * PAGE) {
            let (mut at_once, mut one_by_one) = (DeletedSet::default(), DeletedSet::default());
            let last = first + more;

            at_once.insert(last + 2);
            at_once.insert_run(first, last);
            (first..=last).for_each(|seq| one_by_one.insert(seq));
            one_by_one.insert(last + 2);

            let rows = |set: &mut DeletedSet| {
                let mut rows = Vec::new();
                set.dirty_rows(&mut rows);
                rows.sort_unstable();
                rows
            };
            prop_assert_eq!(rows(&mut at_once), rows(&mut one_by_one));
            prop_assert_eq!(at_once.next_outside(first), last + 1);
        }

        #[test]
        fn the_set_answers_like_a_plain_one(
            removed in prop::collection::btree_set(near_borders(), 0..200),
            whole in prop::option::of(1_u64..3),
            from in near_borders(),
            to in near_borders(),
            forget in near_borders(),
        ) {
            let mut set = DeletedSet::default();
            let mut model = removed;
            model.extend(whole.into_iter().flat_map(|page| page * PAGE..(page + 1) * PAGE));
            let mut order: Vec<u64> = model.iter().copied().collect();
            order.sort_by_key(|seq| seq.wrapping_mul(0x9e37_79b9) % 61);
            order.into_iter().for_each(|seq| set.insert(seq));
            let forget = set.next_outside(forget);
            set.forget(1, forget);
            model.retain(|seq| *seq >= forget);

            let end = 4 * PAGE;
            for seq in 1..end {
                prop_assert_eq!(set.contains(seq), model.contains(&seq));
            }
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.count_within(from, to), (from..=to).filter(|seq| model.contains(seq)).count() as u64);
            prop_assert_eq!(set.next_outside(from), (from..).find(|seq| !model.contains(seq)).unwrap());
            prop_assert_eq!(set.previous_outside(from), (0..=from).rev().find(|seq| !model.contains(seq)).unwrap());
            let gaps: BTreeSet<u64> = set.gaps(from, to).flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(gaps, (from..=to).filter(|seq| !model.contains(seq)).collect::<BTreeSet<u64>>());
            let runs: BTreeSet<u64> = set.runs(from, to).flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(runs, (from..=to).filter(|seq| model.contains(seq)).collect::<BTreeSet<u64>>());

            let mut written = Vec::new();
            set.all_rows(&mut written);
            let mut loaded = DeletedSet::default();
            for row in &written {
                loaded.load_row(&row.key, row.value.as_ref().unwrap()).unwrap();
            }
            let mut again = Vec::new();
            loaded.all_rows(&mut again);
            prop_assert_eq!(again, written);
            prop_assert_eq!(loaded.count_within(1, end), model.len() as u64);
        }

        #[test]
        fn damaged_rows_are_refused_and_never_panic(value in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = DeletedSet::default().load_row(&[0; 8], &value);
        }
    }
}
