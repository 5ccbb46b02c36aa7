//! The only reader of clocks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use levee_protocol::time::Timestamp;
use tokio::time::Instant;

/// Where the time of day comes from. Cloning shares it.
#[derive(Clone, Default)]
pub struct Clock {
    scripted: Option<Arc<dyn Fn() -> Timestamp + Send + Sync>>,
}

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that a test or a simulation turns.
    #[must_use]
    pub fn scripted(read: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        Self { scripted: Some(read) }
    }

    /// The time of day. It may jump when the machine's clock is set; what needs order stamps and clamps.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.scripted.as_ref().map_or_else(wall, |read| read())
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(if self.scripted.is_some() { "Clock(scripted)" } else { "Clock(system)" })
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
}
