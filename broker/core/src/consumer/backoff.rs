//! How long to wait for an ack, and timers for many messages.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use levee_protocol::api::ConsumerConfig;
use levee_protocol::ids::Seq;
use levee_protocol::time::{Nanos, Timestamp};

/// The wait after the delivery with this number: `backoff[n - 1]`, the last one for all that follow, `ack_wait`
/// without a backoff; but never less than a millisecond, or a message would be sent again while it is being sent.
pub(crate) fn wait_after(config: &ConsumerConfig, attempt: u32) -> Nanos {
    let position = (attempt.max(1) - 1) as usize;
    let wait = config.backoff.get(position).or_else(|| config.backoff.last());
    wait.copied().unwrap_or(config.ack_wait).max(WAIT_MIN)
}

const WAIT_MIN: Nanos = Nanos::from_millis(1);

/// Times at which messages have to be looked at.
///
/// Entries are not removed when their message is settled: whoever takes one out checks whether it still holds.
/// Times mostly come in ascending order, so that adding is O(1); leftovers are swept out when they outnumber what
/// is current, so that memory stays within a small multiple of the unacked messages.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Timestamp, Seq)>>,
}

impl Deadlines {
    pub(crate) fn add(&mut self, at: Timestamp, seq: Seq) {
        self.heap.push(Reverse((at, seq)));
    }

    /// When the first one is due that still holds. Those before it are dropped.
    pub(crate) fn next(&mut self, holds: impl Fn(Timestamp, Seq) -> bool) -> Option<Timestamp> {
        while let Some(Reverse((at, seq))) = self.heap.peek().copied() {
            if holds(at, seq) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }

    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<(Timestamp, Seq)> {
        self.heap.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    /// Drops entries that no longer hold, if there are many.
    pub(crate) fn sweep(&mut self, current: usize, holds: impl Fn(Timestamp, Seq) -> bool) {
        if self.heap.len() > current * 2 + 256 {
            self.heap.retain(|Reverse((at, seq))| holds(*at, *seq));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.heap.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_backoff_holds_for_all_later_attempts() {
        let mut config = ConsumerConfig { ack_wait: Nanos::from_millis(7), ..ConsumerConfig::default() };
        assert_eq!(wait_after(&config, 3), Nanos::from_millis(7));

        config.backoff = vec![Nanos::ZERO, Nanos::from_millis(2)];
        let waits: Vec<Nanos> = (1..=4).map(|attempt| wait_after(&config, attempt)).collect();

        assert_eq!(waits, [1, 2, 2, 2].map(Nanos::from_millis));
    }

    #[test]
    fn leftovers_are_swept_when_they_outnumber_what_is_current() {
        let mut deadlines = Deadlines::default();
        for seq in 0..1000 {
            deadlines.add(Timestamp(seq), Seq(seq.cast_unsigned()));
        }

        deadlines.sweep(2, |_, seq| seq.0 >= 998);

        assert_eq!(deadlines.heap.len(), 2);
        assert_eq!(deadlines.pop_due(Timestamp(998)), Some((Timestamp(998), Seq(998))));
        assert_eq!(deadlines.pop_due(Timestamp(998)), None);
    }

    #[test]
    fn what_does_not_hold_any_more_is_no_reason_to_wake() {
        let mut deadlines = Deadlines::default();
        for seq in [3, 1, 2] {
            deadlines.add(Timestamp(seq), Seq(seq.cast_unsigned()));
        }

        assert_eq!(deadlines.next(|_, seq| seq != Seq(1)), Some(Timestamp(2)));
        assert_eq!(deadlines.heap.len(), 2);
        assert_eq!(deadlines.next(|_, _| false), None);
    }
}
