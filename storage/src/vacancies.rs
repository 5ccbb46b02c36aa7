//! Sequences that are known to be in no block, so that nobody has to look for the block again.
//!
//! Where messages are overwritten at random, all blocks of a region go in the end, and the few messages that stay are
//! kept one by one. What the table has there is tombstones, and a seek steps over each of them. Sequences are never used
//! again, so what was vacant once stays so.
//!
//! Only a cache: it holds a bounded number of ranges, and the narrow ones go first.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges at most; beyond, the narrower half is forgotten. Two numbers each.
const RANGES_MAX: usize = 4096;

/// Disjoint ranges that do not touch each other, by their starts.
#[derive(Debug, Default)]
pub(crate) struct Vacancies(BTreeMap<u64, u64>);

impl Vacancies {
    /// These sequences are in no block.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((from, to)) = self.0.range(..=end).next_back().map(|(from, to)| (*from, *to))
            && to >= start
        {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
        if self.0.len() > RANGES_MAX {
            let mut widths: Vec<u64> = self.0.iter().map(|(from, to)| to - from).collect();
            let (_, median, _) = widths.select_nth_unstable(RANGES_MAX / 2);
            let median = *median;
            let mut left = RANGES_MAX / 2;
            self.0.retain(|from, to| {
                let stays = *to - *from >= median && left > 0;
                left -= usize::from(stays);
                stays
            });
        }
    }

    /// The vacant range around a sequence.
    pub(crate) fn around(&self, seq: u64) -> Option<Range<u64>> {
        let (from, to) = self.0.range(..=seq).next_back()?;
        (*to > seq).then_some(*from..*to)
    }

    /// The end of the last vacant range below a sequence that is not vacant itself. No block reaches across it.
    pub(crate) fn end_below(&self, seq: u64) -> u64 {
        self.0.range(..=seq).next_back().map_or(0, |(_, to)| *to)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_narrow_ones_are_forgotten_when_there_are_too_many() {
        let mut vacant = Vacancies::default();
        vacant.add(0..1000);
        for at in 1..=RANGES_MAX as u64 {
            vacant.add(at * 2000..at * 2000 + 1 + at % 7);
        }

        assert_eq!(vacant.0.len(), RANGES_MAX / 2);
        assert_eq!(vacant.around(500), Some(0..1000));
    }

    proptest! {
        #[test]
        fn what_was_added_is_vacant_and_nothing_else(ranges in prop::collection::vec((0_u64..60, 0_u64..9), 0..20)) {
            let mut vacant = Vacancies::default();
            let mut expected = BTreeSet::new();
            for (start, width) in ranges {
                vacant.add(start..start + width);
                expected.extend(start..start + width);
            }

            for seq in 0..80 {
                let around = vacant.around(seq);
                prop_assert_eq!(around.is_some(), expected.contains(&seq));
                match around {
                    Some(range) => {
                        prop_assert!(range.contains(&seq) && range.clone().all(|seq| expected.contains(&seq)));
                        prop_assert!(!expected.contains(&range.end), "ranges that touch are one");
                    }
                    None => {
                        let below = (0..seq).rev().find(|seq| expected.contains(seq)).map_or(0, |last| last + 1);
                        prop_assert_eq!(vacant.end_below(seq), below);
                    }
                }
            }
        }
    }
}
