//! One row of `block_index`: where the sequences of a block are, and which of them are gone.
//!
//! ```text
//! row  := version u8 | log_index u64 | count u32 | size u32 | checksum u32 | time i64 | runs (holes) | runs (dead)
//!         | crc32c u32
//! runs := count u32 | (start u32, len u32) *
//! ```
//!
//! Holes count positions in the block, dead runs count sequences from the row's first one.

use bytes::Bytes;
use levee_protocol::record::Block;
use levee_protocol::time::Timestamp;

use crate::sealed::{Fields, seal, unseal};

const VERSION: u8 = 1;

/// Consecutive sequences and the block they are in. At least one record was accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct BlockRow {
    pub(crate) first_seq: u64,
    pub(crate) log_index: u64,
    /// Records in the block, accepted or not.
    pub(crate) count: u32,
    pub(crate) size: u32,
    pub(crate) checksum: u32,
    /// The latest time of this block and all before it, so that times can be searched although leaders' clocks differ.
    pub(crate) time: Timestamp,
    /// Positions whose record was not accepted.
    pub(crate) holes: Runs,
    /// Accepted records that were removed since.
    pub(crate) dead: Runs,
}

impl BlockRow {
    /// How many sequences it covers, live or dead.
    pub(crate) fn accepted(&self) -> u32 {
        self.count - self.holes.total()
    }

    pub(crate) fn live(&self) -> u32 {
        self.accepted() - self.dead.total()
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.next_seq() - 1
    }

    /// The first sequence behind this block.
    pub(crate) fn next_seq(&self) -> u64 {
        self.first_seq + u64::from(self.accepted())
    }

    pub(crate) fn contains(&self, seq: u64) -> bool {
        self.first_seq <= seq && seq < self.next_seq()
    }

    /// Where in the block a covered sequence is.
    pub(crate) fn position(&self, seq: u64) -> u32 {
        let mut position = self.rank(seq);
        for (start, len) in &self.holes.0 {
            if *start > position {
                break;
            }
            position += len;
        }
        position
    }

    /// Whether a covered sequence was removed.
    pub(crate) fn is_dead(&self, seq: u64) -> bool {
        self.dead.contains(self.rank(seq))
    }

    /// Marks covered sequences as removed; those that are already stay so.
    pub(crate) fn remove(&mut self, first: u64, last: u64) {
        let start = self.rank(first);
        self.dead.insert(start, self.rank(last) - start + 1);
    }

    /// The live sequences from `from` on with their positions, in order.
    pub(crate) fn live_from(&self, from: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        let from = from.max(self.first_seq);
        let mut position = if from < self.next_seq() { self.position(from) } else { self.count };
        (from..self.next_seq()).filter_map(move |seq| {
            while self.holes.contains(position) {
                position += 1;
            }
            let at = position;
            position += 1;
            (!self.is_dead(seq)).then_some((seq, at))
        })
    }

    /// Dead from the front only, as the oldest block of a stream with limits is: it will be gone soon anyway.
    pub(crate) fn is_dying_in_order(&self) -> bool {
        matches!(self.dead.0.as_slice(), [(0, _)])
    }

    /// Whether half of it or more is dead weight.
    pub(crate) fn is_mostly_dead(&self) -> bool {
        self.live() * 2 <= self.accepted()
    }

    /// Whether these are the bytes the row was written for.
    pub(crate) fn describes(&self, block: &Block) -> bool {
        block.checksum() == self.checksum && block.count() == self.count
    }

    pub(crate) fn encode(&self) -> Bytes {
        let runs = self.holes.0.len() + self.dead.0.len();
        let mut row = Vec::with_capacity(48 + runs * 8);
        row.push(VERSION);
        row.extend_from_slice(&self.log_index.to_le_bytes());
        row.extend_from_slice(&self.count.to_le_bytes());
        row.extend_from_slice(&self.size.to_le_bytes());
        row.extend_from_slice(&self.checksum.to_le_bytes());
        row.extend_from_slice(&self.time.0.to_le_bytes());
        self.holes.encode(&mut row);
        self.dead.encode(&mut row);
        seal(row)
    }

    pub(crate) fn decode(first_seq: u64, value: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(value)?);
        if fields.u8()? != VERSION {
            return None;
        }
        let row = Self {
            first_seq,
            log_index: fields.u64()?,
            count: fields.u32()?,
            size: fields.u32()?,
            checksum: fields.u32()?,
            time: Timestamp(fields.i64()?),
            holes: Runs::decode(&mut fields)?,
            dead: Runs::decode(&mut fields)?,
        };
        fields.end()?;
        let accepted = row.count.checked_sub(row.holes.end()?.1)?;
        let (dead_end, _) = row.dead.end()?;
        let holes_fit = row.holes.end()?.0 <= row.count;
        let fits = accepted > 0 && holes_fit && dead_end <= accepted;
        (fits && first_seq.checked_add(u64::from(accepted)).is_some()).then_some(row)
    }

    fn rank(&self, seq: u64) -> u32 {
        debug_assert!(self.contains(seq));
        u32::try_from(seq - self.first_seq).unwrap_or(u32::MAX)
    }
}

/// A set of small numbers as sorted, separated runs of (start, length).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Runs(Vec<(u32, u32)>);

impl Runs {
    pub(crate) fn from_sorted(numbers: &[u32]) -> Self {
        let mut runs = Self::default();
        for number in numbers {
            runs.insert(*number, 1);
        }
        runs
    }

    pub(crate) fn total(&self) -> u32 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= number);
        after.checked_sub(1).is_some_and(|at| number - self.0[at].0 < self.0[at].1)
    }

    pub(crate) fn insert(&mut self, start: u32, len: u32) {
        let (mut from, mut to) = (start, start + len);
        // Every run that touches the new one becomes part of it.
        let first = self.0.partition_point(|(start, len)| start + len < from);
        let mut last = first;
        while let Some((start, len)) = self.0.get(last).filter(|(start, _)| *start <= to) {
            from = from.min(*start);
            to = to.max(start + len);
            last += 1;
        }
        self.0.splice(first..last, [(from, to - from)]);
    }

    /// The end of the last run and the total, if the runs are sorted, separated and not empty.
    fn end(&self) -> Option<(u32, u32)> {
        let (mut end, mut total) = (0_u32, 0_u32);
        for (position, (start, len)) in self.0.iter().enumerate() {
            if *len == 0 || (position > 0 && *start <= end) {
                return None;
            }
            end = start.checked_add(*len)?;
            total = total.checked_add(*len)?;
        }
        Some((end, total))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            &u32::try_from(self.0.len()).expect("at most one run per record").to_le_bytes(),
        );
        for (start, len) in &self.0 {
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&len.to_le_bytes());
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let count = fields.u32()? as usize;
        if count > fields.0.len() / 8 {
            return None;
        }
        (0..count).map(|_| Some((fields.u32()?, fields.u32()?))).collect::<Option<Vec<_>>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn row(count: u32, holes: &[u32], dead: &[u32]) -> BlockRow {
        BlockRow {
            first_seq: 100,
            log_index: 7,
            count,
            size: 1,
            checksum: 2,
            time: Timestamp(3),
            holes: Runs::from_sorted(holes),
            dead: Runs::from_sorted(dead),
        }
    }

    proptest! {
        #[test]
        fn runs_are_the_set_of_what_was_inserted(ranges in prop::collection::vec((0_u32..60, 1_u32..8), 0..20)) {
            let mut runs = Runs::default();
            let mut model = BTreeSet::new();
            for (start, len) in ranges {
                runs.insert(start, len);
                model.extend(start..start + len);
            }

            prop_assert_eq!(runs.total() as usize, model.len());
            for number in 0..70 {
                prop_assert_eq!(runs.contains(number), model.contains(&number));
            }
            prop_assert!(runs.end().is_some(), "sorted and separated: {:?}", runs);
        }

        #[test]
        fn live_sequences_and_their_positions_skip_holes_and_dead(
            holes in prop::collection::btree_set(0_u32..20, 0..19), dead in prop::collection::btree_set(0_u32..20, 0..20),
            from in 90_u64..130,
        ) {
            let accepted: Vec<u32> = (0..20).filter(|position| !holes.contains(position)).collect();
            let dead: Vec<u32> = dead.into_iter().filter(|rank| (*rank as usize) < accepted.len()).collect();
            let row = row(20, &holes.iter().copied().collect::<Vec<_>>(), &dead);
            let expected: Vec<_> = accepted
                .iter()
                .enumerate()
                .map(|(rank, position)| (100 + rank as u64, *position))
                .filter(|(seq, _)| *seq >= from && !dead.contains(&((seq - 100) as u32)))
                .collect();

            prop_assert_eq!(&row.live_from(from).collect::<Vec<_>>(), &expected);
            for (seq, position) in expected {
                prop_assert_eq!(row.position(seq), position);
            }
            prop_assert_eq!(BlockRow::decode(100, &row.encode()), Some(row));
        }

        #[test]
        fn rows_that_do_not_add_up_are_refused_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = bytes;
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            if let Some(row) = BlockRow::decode(1, &seal(bytes)) {
                prop_assert!(row.live() <= row.accepted());
                prop_assert!(row.live_from(0).take(10).count() <= 10);
            }
        }
    }
}
