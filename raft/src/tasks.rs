//! The one place of this crate that starts tasks.

use std::future::Future;

use tokio::task::JoinHandle;

/// Starts a task. It must end by itself when what it serves is gone; `name` is for the log.
#[allow(clippy::disallowed_methods, reason = "this crate sits below the broker's task registry")]
pub(crate) fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        future.await;
        tracing::trace!(task = name, "ended");
    })
}
