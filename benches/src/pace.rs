//! The schedule of an open loop. Message `n` is due at a time that does not depend on how the server does, and its
//! latency counts from then: a server that stalls delays everything that was due meanwhile, and all of it shows.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::messages::Messages;

/// A publisher writes about so much at once.
pub const WRITE_BYTES: usize = 64 << 10;

/// What messages say of themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stamps {
    /// Nothing.
    None,
    /// When they were due.
    Due,
}

/// Messages that are due at even distances from a start.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Instant,
    interval_ns: f64,
    warm_ns: u64,
}

/// How long an open loop lasts.
#[derive(Clone, Copy, Debug)]
pub struct Lasting {
    /// What is due in the beginning is not recorded: fresh servers lay out files and fill caches then.
    pub warm: Duration,
    /// What is due later is.
    pub recorded: Duration,
}

impl Lasting {
    /// How many messages are due altogether, at so many a second; at least one.
    #[must_use]
    pub fn messages(&self, per_second: f64) -> u64 {
        (per_second * (self.warm + self.recorded).as_secs_f64()).ceil().max(1.0) as u64
    }
}

impl Pace {
    /// So many a second, from now on, all of them recorded.
    #[must_use]
    pub fn start(per_second: f64) -> Self {
        Self { start: Instant::now(), interval_ns: 1e9 / per_second, warm_ns: 0 }
    }

    /// The same, with messages in the beginning that are not recorded.
    #[must_use]
    pub fn start_warm(per_second: f64, lasting: Lasting) -> Self {
        Self { warm_ns: lasting.warm.as_nanos() as u64, ..Self::start(per_second) }
    }

    /// Records what has passed since a message was due, given as nanoseconds from the start.
    pub fn record(&self, latency: &mut Histogram<u64>, due_ns: u64) {
        if due_ns >= self.warm_ns {
            latency.saturating_record(self.since_ns(due_ns));
        }
    }

    /// The same pace, begun later by a part of an interval, so that many publishers do not send at once.
    #[must_use]
    pub fn offset(self, part: f64) -> Self {
        Self { start: self.start + Duration::from_nanos((self.interval_ns * part) as u64), ..self }
    }

    /// When message `n` is due.
    #[must_use]
    pub fn due(&self, n: u64) -> Instant {
        self.start + Duration::from_nanos(self.due_ns(n))
    }

    /// When message `n` is due, from the start.
    #[must_use]
    pub fn due_ns(&self, n: u64) -> u64 {
        (n as f64 * self.interval_ns) as u64
    }

    /// Sleeps until message `n` is due, and answers how many messages are due by then: `n + 1` or more.
    #[must_use]
    pub fn wait_for(&self, n: u64) -> u64 {
        let due = self.due(n);
        loop {
            let now = Instant::now();
            if now >= due {
                let passed = now.duration_since(self.start).as_nanos() as f64;
                return ((passed / self.interval_ns) as u64 + 1).max(n + 1);
            }
            std::thread::sleep(due - now);
        }
    }

    /// Sends messages when they are due, whatever the server does. Those that are late go in writes of ordinary size.
    pub fn send(
        &self,
        text: &Messages,
        count: u64,
        stamps: Stamps,
        mut write: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        sleep_exactly();
        let (mut buffer, mut sent) = (Vec::new(), 0);
        while sent < count {
            let due = self.wait_for(sent).min(count);
            buffer.clear();
            while sent < due && buffer.len() < WRITE_BYTES {
                text.append(&mut buffer, sent, (stamps == Stamps::Due).then(|| self.due_ns(sent)));
                sent += 1;
            }
            write(&buffer)?;
        }
        Ok(())
    }

    /// Messages a second since the start, now that so many are through.
    #[must_use]
    pub fn kept(&self, messages: u64) -> f64 {
        messages as f64 / (self.since_ns(0) as f64 / 1e9)
    }

    /// What has passed since a moment given as nanoseconds from the start.
    #[must_use]
    pub fn since_ns(&self, due_ns: u64) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_sub(due_ns)
    }
}

/// Makes this thread's sleeps end on time. Linux rounds them up by 50 us otherwise.
pub fn sleep_exactly() {
    // Where it is refused, latencies have those 50 us in them, on both sides.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

/// Latencies in nanoseconds, up to a minute, to three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("fixed bounds")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_message_tells_all_that_are_due() {
        let pace = Pace::start(10_000.0);

        std::thread::sleep(Duration::from_millis(2));

        assert!(pace.wait_for(0) >= 20, "twenty were due after two milliseconds");
        let due = pace.wait_for(500);
        assert!(due >= 501);
        assert!(pace.since_ns(pace.due_ns(500)) < 60_000_000_000, "message 500 is in the past");
    }

    #[test]
    fn what_was_due_while_warming_up_is_not_recorded() {
        let lasting = Lasting { warm: Duration::from_millis(5), recorded: Duration::from_millis(5) };
        let pace = Pace::start_warm(1000.0, lasting);
        let mut latency = histogram();

        (0..lasting.messages(1000.0)).for_each(|n| pace.record(&mut latency, pace.due_ns(n)));

        assert_eq!(lasting.messages(1000.0), 10);
        assert_eq!(latency.len(), 5);
    }

    #[test]
    fn an_offset_moves_every_message_by_the_same_part_of_an_interval() {
        let pace = Pace::start(1000.0);

        assert_eq!(pace.offset(0.5).due(3) - pace.due(3), Duration::from_micros(500));
    }
}
