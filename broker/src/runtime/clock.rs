//! The only reader of clocks.
//!
//! The time of day is what is stored with messages and marks, so timers of consumers are in it too. A machine's clock that
//! is set back would hold them all up by as much: so the time that is shown goes on meanwhile, by the clock that can not be
//! set, and loses a tenth until the other has caught up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use levee_protocol::time::{Nanos, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A clock that is further behind was wrong before it was set: then it is right now, and what waits has to wait.
const BEHIND_MAX: Nanos = Nanos::from_secs(3600);
/// Part of the time that is lost while the machine's clock catches up.
const LOST_PART: u64 = 10;

/// Where the time of day comes from. Cloning shares it.
#[derive(Clone)]
pub struct Clock {
    source: Source,
}

#[derive(Clone)]
enum Source {
    System(Arc<Mutex<Steady>>),
    Scripted(Arc<dyn Fn() -> Timestamp + Send + Sync>),
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub fn system() -> Self {
        Self { source: Source::System(Arc::new(Mutex::new(Steady { shown: wall(), ticks: ticks() }))) }
    }

    /// A clock that a test or a simulation turns.
    #[must_use]
    pub fn scripted(read: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        Self { source: Source::Scripted(read) }
    }

    /// The same clock for whoever goes on from a time that was seen elsewhere: where the clock of another node was ahead,
    /// it goes on from there.
    #[must_use]
    pub fn going_on_from(&self, seen: Timestamp) -> Self {
        match &self.source {
            Source::System(_) => {
                let shown = self.now().max(seen);
                Self { source: Source::System(Arc::new(Mutex::new(Steady { shown, ticks: ticks() }))) }
            }
            Source::Scripted(_) => self.clone(),
        }
    }

    /// The time of day. It may jump when the machine's clock is set, forward or far back; what needs order stamps and
    /// clamps.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.source {
            Source::System(steady) => {
                let mut steady = steady.lock();
                steady.read(wall(), ticks())
            }
            Source::Scripted(read) => read(),
        }
    }
}

/// What was shown last, and when by the clock that can not be set.
#[derive(Debug)]
struct Steady {
    shown: Timestamp,
    ticks: u64,
}

impl Steady {
    fn read(&mut self, wall: Timestamp, ticks: u64) -> Timestamp {
        let passed = ticks.saturating_sub(self.ticks);
        let kept = i64::try_from(passed - passed / LOST_PART).unwrap_or(i64::MAX);
        let goes_on = self.shown.plus(Nanos(kept));
        let is_behind = wall < goes_on && goes_on.since(wall) <= BEHIND_MAX;
        *self = Self { shown: if is_behind { goes_on } else { wall }, ticks: ticks.max(self.ticks) };
        self.shown
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self.source {
            Source::System(_) => "Clock(system)",
            Source::Scripted(_) => "Clock(scripted)",
        })
    }
}

/// Time for intervals: never jumps, follows tokio's clock when that is paused.
#[must_use]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Nanoseconds since the first call in this process: an [`Instant`] that fits an atomic.
#[must_use]
pub fn ticks() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(Instant::now().saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

/// How long ago [`ticks`] read `then`.
#[must_use]
pub fn since(then: u64) -> Duration {
    Duration::from_nanos(ticks().saturating_sub(then))
}

#[allow(clippy::disallowed_methods, reason = "this is the door that the lint points to")]
fn wall() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripted_clock_says_what_the_script_says() {
        let clock = Clock::scripted(Arc::new(|| Timestamp(7)));

        assert_eq!(clock.now(), Timestamp(7));
        assert!(Clock::system().now() > Timestamp(1_600_000_000_000_000_000));
    }

    const SECOND: i64 = 1_000_000_000;
    const START: i64 = 1_000_000 * SECOND;

    /// Reads at so many seconds since the start, by the clock that can not be set and by the other.
    fn read(steady: &mut Steady, passed: i64, wall: i64) -> i64 {
        let ticks = (passed * SECOND).cast_unsigned();
        (steady.read(Timestamp(START + wall * SECOND), ticks).0 - START) / SECOND
    }

    #[test]
    fn a_clock_that_is_set_back_goes_on_a_little_slower_until_it_is_right() {
        let mut steady = Steady { shown: Timestamp(START), ticks: 0 };
        assert_eq!(read(&mut steady, 10, 10), 10);
        assert_eq!(read(&mut steady, 20, -40), 19, "set back by a minute");
        assert_eq!(read(&mut steady, 120, 60), 109);
        assert_eq!(read(&mut steady, 720, 660), 660);
        assert_eq!(read(&mut steady, 730, 670), 670);
    }

    #[test]
    fn a_clock_that_is_set_forward_or_very_far_back_is_believed() {
        let mut steady = Steady { shown: Timestamp(START), ticks: 0 };
        assert_eq!(read(&mut steady, 1, 5000), 5000);
        assert_eq!(read(&mut steady, 2, 0), 0);
    }

    #[test]
    fn who_goes_on_from_what_another_node_has_seen_does_not_wait_for_it() {
        let clock = Clock::system();
        let ahead = clock.now().plus(Nanos::from_secs(60));

        let shown = clock.going_on_from(ahead).now();

        assert!((0..SECOND).contains(&shown.since(ahead).0), "{shown} {ahead}");
        assert!(clock.now() < ahead);
        let behind = clock.now().plus(Nanos::from_secs(-60));
        assert!(clock.going_on_from(behind).now().since(behind) >= Nanos::from_secs(60));
    }
}
