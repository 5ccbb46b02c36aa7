//! Entries of progress on their way to the log: they must come there in the order in which they were made, for marks
//! of later deliveries hide those of earlier ones.
//!
//! An entry that the group did not take is proposed again, however often: a leader that hands over is refused until
//! its successor leads, and the marks are right all the while. An entry of which nobody knows whether it is in the
//! log, or one that another has overtaken, ends it all: what the leader's half believes is then in doubt.

use std::collections::VecDeque;

/// Entries on their way at one time.
const IN_FLIGHT_MAX: usize = 4;

/// The entries of one leadership that are not applied yet.
#[derive(Debug)]
pub struct Outbox<T> {
    /// In order.
    waiting: VecDeque<Numbered<T>>,
    in_flight: usize,
    last: u64,
}

/// An entry and its place.
#[derive(Debug, Eq, PartialEq)]
pub struct Numbered<T> {
    number: u64,
    /// What it was made of.
    pub entry: T,
}

/// What became of an entry that was proposed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It is in the log, and applied here.
    Applied,
    /// It is not in the log, and never will be.
    NotTaken,
    /// It may be in the log.
    Unknown,
}

/// The log may not hold what was reported: all that builds on it has to begin again from the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InDoubt;

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), in_flight: 0, last: 0 }
    }
}

impl<T> Outbox<T> {
    /// Whether a new entry may be made. While one is refused, and while many are on their way, reports gather.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.in_flight < IN_FLIGHT_MAX
    }

    /// Whether what was refused may be proposed again: not before it is known which of those behind it were too.
    #[must_use]
    pub fn may_retry(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight == 0
    }

    /// A new entry, behind all others.
    pub fn add(&mut self, entry: T) {
        self.last += 1;
        self.waiting.push_back(Numbered { number: self.last, entry });
    }

    /// The next entry to propose. What became of it is said with [`settle`](Self::settle).
    pub fn take(&mut self) -> Option<Numbered<T>> {
        let next = self.waiting.pop_front()?;
        self.in_flight += 1;
        Some(next)
    }

    /// Takes note of what became of an entry, and returns it if it is in the log.
    pub fn settle(&mut self, numbered: Numbered<T>, fate: Fate) -> Result<Option<T>, InDoubt> {
        self.in_flight -= 1;
        match fate {
            Fate::Applied if self.waiting.front().is_some_and(|first| first.number < numbered.number) => {
                Err(InDoubt)
            }
            Fate::Applied => Ok(Some(numbered.entry)),
            Fate::NotTaken => {
                let place = self.waiting.partition_point(|other| other.number < numbered.number);
                self.waiting.insert(place, numbered);
                Ok(None)
            }
            Fate::Unknown => Err(InDoubt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An outbox with this many entries, all proposed.
    fn proposed(count: u64) -> (Outbox<u64>, VecDeque<Numbered<u64>>) {
        let mut outbox = Outbox::default();
        let entries = (1..=count).map(|entry| {
            outbox.add(entry);
            outbox.take().unwrap()
        });
        let entries = entries.collect();
        (outbox, entries)
    }

    fn taken(outbox: &mut Outbox<u64>) -> Vec<u64> {
        std::iter::from_fn(|| outbox.take()).map(|numbered| numbered.entry).collect()
    }

    #[test]
    fn what_is_applied_leaves() {
        let (mut outbox, mut entries) = proposed(2);

        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Applied), Ok(Some(1)));
        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Applied), Ok(Some(2)));

        assert!(outbox.has_room() && !outbox.may_retry());
    }

    #[test]
    fn no_more_than_four_are_on_their_way() {
        let (mut outbox, mut entries) = proposed(4);

        assert!(!outbox.has_room());
        outbox.settle(entries.pop_front().unwrap(), Fate::Applied).unwrap();
        assert!(outbox.has_room());
    }

    #[test]
    fn what_was_not_taken_is_proposed_again_in_order_and_nothing_is_in_doubt() {
        let (mut outbox, mut entries) = proposed(3);

        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Applied), Ok(Some(1)));
        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::NotTaken), Ok(None));
        assert!(!outbox.has_room(), "nothing overtakes it");
        assert!(!outbox.may_retry(), "the next one may be in the log");
        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::NotTaken), Ok(None));

        assert!(outbox.may_retry());
        assert_eq!(taken(&mut outbox), [2, 3]);
    }

    #[test]
    fn one_refused_at_once_comes_before_those_that_wait_behind_it() {
        let (mut outbox, mut entries) = proposed(2);
        outbox.settle(entries.pop_front().unwrap(), Fate::NotTaken).unwrap();
        outbox.settle(entries.pop_front().unwrap(), Fate::NotTaken).unwrap();

        let first = outbox.take().unwrap();
        outbox.settle(first, Fate::NotTaken).unwrap();

        assert_eq!(taken(&mut outbox), [1, 2]);
    }

    #[test]
    fn an_entry_that_was_overtaken_is_doubted() {
        let (mut outbox, mut entries) = proposed(2);

        outbox.settle(entries.pop_front().unwrap(), Fate::NotTaken).unwrap();

        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Applied), Err(InDoubt));
    }

    #[test]
    fn an_entry_before_the_one_that_was_refused_is_not() {
        let (mut outbox, mut entries) = proposed(2);
        let second = entries.pop_back().unwrap();

        outbox.settle(second, Fate::NotTaken).unwrap();

        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Applied), Ok(Some(1)));
        assert!(outbox.may_retry());
    }

    #[test]
    fn one_of_which_nobody_knows_is_doubted() {
        let (mut outbox, mut entries) = proposed(1);

        assert_eq!(outbox.settle(entries.pop_front().unwrap(), Fate::Unknown), Err(InDoubt));
    }
}
