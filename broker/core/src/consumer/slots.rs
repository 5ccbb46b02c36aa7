//! Unacked messages that take no place in `max_ack_pending`.
//!
//! Dead letters that wait to be stored never do: a subject that nobody can publish to holds up nothing else. Messages whose
//! nak asked for a delay do not while that lasts, if the consumer is configured so. When it is over they wait for a
//! place before they are delivered again, so that no more than `max_ack_pending` are in clients' hands.
//!
//! A new leader knows of the delays and not of the freed places: to it these are messages that were delivered and not
//! acked.

use std::collections::BTreeSet;

use levee_protocol::ids::Seq;

/// So many messages of a consumer are without a place; what is beyond them takes one. They are held in memory.
const FREED_MAX: usize = 65_536;

/// Messages whose place is free for others.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    delayed: BTreeSet<Seq>,
    due: BTreeSet<Seq>,
}

impl Slots {
    /// How many more messages may be delivered, given the limit, how many are unacked, and how many of those are dead
    /// letters. A limit that is not positive is none.
    pub(crate) fn room(&self, max: i64, unacked: u64, dead: usize) -> u64 {
        let Some(max) = u64::try_from(max).ok().filter(|max| *max > 0) else { return u64::MAX };
        let freed = self.delayed.len() + self.due.len() + dead.min(FREED_MAX);
        max.saturating_sub(unacked.saturating_sub(freed as u64))
    }

    /// A message is to be delivered later.
    pub(crate) fn delay(&mut self, seq: Seq) {
        if self.delayed.len() + self.due.len() < FREED_MAX {
            self.due.remove(&seq);
            self.delayed.insert(seq);
        }
    }

    /// The delay of a message is over. Says whether it waits for a place.
    pub(crate) fn is_due(&mut self, seq: Seq) -> bool {
        if self.delayed.remove(&seq) {
            self.due.insert(seq);
        }
        self.due.contains(&seq)
    }

    /// The message takes a place again, or is done.
    pub(crate) fn forget(&mut self, seq: Seq) {
        self.delayed.remove(&seq);
        self.due.remove(&seq);
    }

    /// Messages that wait for a place, to be delivered again.
    pub(crate) fn due(&self) -> &BTreeSet<Seq> {
        &self.due
    }

    /// Gives up what it holds: all take a place. Returns those that are to be delivered again.
    pub(crate) fn clear(&mut self) -> BTreeSet<Seq> {
        self.delayed.clear();
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delayed_and_dead_messages_take_no_place() {
        let mut slots = Slots::default();
        assert_eq!(slots.room(-1, 9, 0), u64::MAX);
        assert_eq!(slots.room(5, 9, 0), 0);
        assert_eq!(slots.room(5, 9, 6), 2);

        slots.delay(Seq(1));
        slots.delay(Seq(2));
        assert_eq!(slots.room(5, 5, 0), 2);
        assert!(slots.is_due(Seq(1)) && !slots.is_due(Seq(3)));
        assert_eq!(slots.room(5, 5, 0), 2, "it waits for a place");
        slots.forget(Seq(1));
        assert_eq!(slots.room(5, 5, 0), 1);
    }

    #[test]
    fn places_are_freed_up_to_a_bound() {
        let mut slots = Slots::default();
        for seq in 0..FREED_MAX as u64 + 5 {
            slots.delay(Seq(seq));
        }

        assert_eq!(slots.delayed.len(), FREED_MAX);
        assert_eq!(slots.room(5, FREED_MAX as u64 + 5, 0), 0);
        assert_eq!(Slots::default().room(5, FREED_MAX as u64 + 5, FREED_MAX + 5), 0);
    }
}
