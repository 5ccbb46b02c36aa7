//! What a stream lost lately, for consumers that keep count of what is left.
//!
//! Written while an entry is applied and read while nothing can be, so a consumer always knows of just those removals
//! that the stream shows. One that was told later, or earlier, would have to count again: on a long stream, for each
//! time, a read of much of it.

use std::collections::VecDeque;

use levee_protocol::ids::Seq;

/// Runs that are remembered. Who is further behind counts again.
const RUNS_MAX: usize = 4096;

/// The last runs of sequences that went, numbered.
#[derive(Debug, Default)]
pub struct Removals {
    /// The number of the oldest that is remembered.
    first: u64,
    runs: VecDeque<(Seq, Seq)>,
}

impl Removals {
    /// These are gone, inclusive.
    pub fn push(&mut self, first: Seq, last: Seq) {
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
            self.first += 1;
        }
        self.runs.push_back((first, last));
    }

    /// Nobody will ask for what was so far.
    pub fn forget(&mut self) {
        self.first = self.next();
        self.runs.clear();
    }

    /// The number of the next one.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.first + self.runs.len() as u64
    }

    /// Those from a number on, as far as they are remembered.
    pub fn since(&self, number: u64) -> impl Iterator<Item = (Seq, Seq)> {
        let known = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.runs.iter().skip(known).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(removals: &Removals, number: u64) -> Vec<u64> {
        removals.since(number).map(|(first, _)| first.0).collect()
    }

    #[test]
    fn each_reader_gets_what_came_since_it_looked() {
        let mut removals = Removals::default();
        removals.push(Seq(1), Seq(4));
        let looked = removals.next();
        removals.push(Seq(7), Seq(7));

        assert_eq!(firsts(&removals, 0), [1, 7]);
        assert_eq!(firsts(&removals, looked), [7]);
        assert!(firsts(&removals, removals.next()).is_empty());
    }

    #[test]
    fn only_so_much_is_remembered() {
        let mut removals = Removals::default();
        for seq in 0..RUNS_MAX as u64 + 10 {
            removals.push(Seq(seq), Seq(seq));
        }

        assert_eq!(firsts(&removals, 0).len(), RUNS_MAX);
        assert_eq!(firsts(&removals, 0)[0], 10);
        assert_eq!(removals.next(), RUNS_MAX as u64 + 10);
        removals.forget();
        assert!(firsts(&removals, 0).is_empty());
        assert_eq!(removals.next(), RUNS_MAX as u64 + 10);
    }
}
