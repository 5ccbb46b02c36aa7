//! The one place of this crate that starts tasks, and what is done without one.

use std::future::Future;

use futures::FutureExt as _;
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

/// Polls once. openraft's calls put their message into the group's queue on the first poll if there is room, so this is
/// what keeps the order of calls; `None` if there is none. Unconstrained, because tokio would otherwise let a task that
/// did a lot wait on a queue that has room.
pub(crate) fn at_once<T>(sending: impl Future<Output = T>) -> Option<T> {
    tokio::task::unconstrained(sending).now_or_never()
}
