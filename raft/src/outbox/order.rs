//! Which entries are under way, which wait to be proposed again, and whether their order in the log is still sure.

use std::collections::VecDeque;

use crate::error::ProposeError;

/// Entries on their way at one time.
const IN_FLIGHT_MAX: usize = 4;

/// The entries of one leadership that are not applied yet.
#[derive(Debug)]
pub(super) struct Order<T> {
    /// In order.
    waiting: VecDeque<Numbered<T>>,
    in_flight: usize,
    last: u64,
}

/// An entry and its place.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Numbered<T> {
    number: u64,
    /// What it was made of.
    pub(super) entry: T,
}

/// The log may not hold what was reported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InDoubt;

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), in_flight: 0, last: 0 }
    }
}

impl<T> Order<T> {
    /// Whether a new entry may be made. While one is refused, and while many are on their way, reports gather.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.in_flight < IN_FLIGHT_MAX
    }

    /// Whether what was refused may be proposed again: not before it is known which of those behind it were too.
    pub(super) fn may_retry(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight == 0
    }

    /// A new entry, behind all others.
    pub(super) fn add(&mut self, entry: T) {
        self.last += 1;
        self.waiting.push_back(Numbered { number: self.last, entry });
    }

    /// The next entry to propose. What became of it is said with [`settle`](Self::settle).
    pub(super) fn take(&mut self) -> Option<Numbered<T>> {
        let next = self.waiting.pop_front()?;
        self.in_flight += 1;
        Some(next)
    }

    /// An entry was not taken: it is to be proposed again, in front of those that were made after it.
    pub(super) fn put_back(&mut self, numbered: Numbered<T>) {
        self.in_flight -= 1;
        let place = self.waiting.partition_point(|other| other.number < numbered.number);
        self.waiting.insert(place, numbered);
    }

    /// Takes note of what became of an entry, and returns it with its answer if it is in the log.
    pub(super) fn settle<A>(
        &mut self,
        numbered: Numbered<T>,
        outcome: Result<A, ProposeError>,
    ) -> Result<Option<(T, A)>, InDoubt> {
        match outcome {
            Ok(_) if self.waiting.front().is_some_and(|first| first.number < numbered.number) => Err(InDoubt),
            Ok(answer) => {
                self.in_flight -= 1;
                Ok(Some((numbered.entry, answer)))
            }
            Err(error) if error.may_be_committed() => Err(InDoubt),
            Err(_) => {
                self.put_back(numbered);
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some entries, all proposed.
    fn proposed(count: u64) -> (Order<u64>, VecDeque<Numbered<u64>>) {
        let mut order = Order::default();
        let entries = (1..=count).map(|entry| {
            order.add(entry);
            order.take().unwrap()
        });
        let entries = entries.collect();
        (order, entries)
    }

    fn taken(order: &mut Order<u64>) -> Vec<u64> {
        std::iter::from_fn(|| order.take()).map(|numbered| numbered.entry).collect()
    }

    const APPLIED: Result<(), ProposeError> = Ok(());
    const NOT_TAKEN: Result<(), ProposeError> = Err(ProposeError::NotLeader { leader: None });
    const UNKNOWN: Result<(), ProposeError> = Err(ProposeError::Unknown { leader: None });

    #[test]
    fn what_is_applied_leaves() {
        let (mut order, mut entries) = proposed(2);

        assert_eq!(order.settle(entries.pop_front().unwrap(), APPLIED), Ok(Some((1, ()))));
        assert_eq!(order.settle(entries.pop_front().unwrap(), APPLIED), Ok(Some((2, ()))));

        assert!(order.has_room() && !order.may_retry());
    }

    #[test]
    fn no_more_than_four_are_on_their_way() {
        let (mut order, mut entries) = proposed(4);

        assert!(!order.has_room());
        order.settle(entries.pop_front().unwrap(), APPLIED).unwrap();
        assert!(order.has_room());
    }

    #[test]
    fn what_was_not_taken_is_proposed_again_in_order_and_nothing_is_in_doubt() {
        let (mut order, mut entries) = proposed(3);

        assert_eq!(order.settle(entries.pop_front().unwrap(), APPLIED), Ok(Some((1, ()))));
        assert_eq!(order.settle(entries.pop_front().unwrap(), NOT_TAKEN), Ok(None));
        assert!(!order.has_room(), "nothing overtakes it");
        assert!(!order.may_retry(), "the next one may be in the log");
        assert_eq!(order.settle(entries.pop_front().unwrap(), NOT_TAKEN), Ok(None));

        assert!(order.may_retry());
        assert_eq!(taken(&mut order), [2, 3]);
    }

    #[test]
    fn one_refused_at_once_comes_before_those_that_wait_behind_it() {
        let (mut order, mut entries) = proposed(2);
        order.put_back(entries.pop_front().unwrap());
        order.put_back(entries.pop_front().unwrap());

        let first = order.take().unwrap();
        order.put_back(first);

        assert_eq!(taken(&mut order), [1, 2]);
    }

    #[test]
    fn an_entry_that_was_overtaken_is_doubted() {
        let (mut order, mut entries) = proposed(2);

        order.settle(entries.pop_front().unwrap(), NOT_TAKEN).unwrap();

        assert_eq!(order.settle(entries.pop_front().unwrap(), APPLIED), Err(InDoubt));
    }

    #[test]
    fn an_entry_before_the_one_that_was_refused_is_not() {
        let (mut order, mut entries) = proposed(2);
        let second = entries.pop_back().unwrap();

        order.settle(second, NOT_TAKEN).unwrap();

        assert_eq!(order.settle(entries.pop_front().unwrap(), APPLIED), Ok(Some((1, ()))));
        assert!(order.may_retry());
    }

    #[test]
    fn one_of_which_nobody_knows_is_doubted() {
        let (mut order, mut entries) = proposed(1);

        assert_eq!(order.settle(entries.pop_front().unwrap(), UNKNOWN), Err(InDoubt));
    }
}
