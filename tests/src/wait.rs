//! Waiting for a condition, with a deadline that says what was waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How long a cluster may take for what it normally does within a second or two. Long, because the machines that
/// run the tests are small and busy, and a condition that holds ends the wait at once.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at `condition` until it gives a value. An error is taken as "not yet" and told when time is up.
///
/// # Errors
/// When `limit` has passed, with `what` was waited for and why the last look failed.
pub async fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begin = Instant::now();
    let mut last = anyhow!("the condition did not hold");
    while begin.elapsed() < limit {
        let left = limit.saturating_sub(begin.elapsed()).max(PAUSE);
        match tokio::time::timeout(left, condition()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow!("the last look at the condition did not end"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last.context(format!("waited {limit:?} for: {what}")))
}
