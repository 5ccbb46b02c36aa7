//! Named tasks. A panic in one is an incident that is logged with the task's name, not a silent hole.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

/// Spawns a task that lives until it ends, or the process does. `name` is what it does, for the log.
#[allow(clippy::disallowed_methods, reason = "this is the door that the lint points to")]
pub fn spawn<T: Send + 'static>(
    name: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<Option<T>> {
    tokio::spawn(async move {
        let ended = AssertUnwindSafe(task).catch_unwind().await;
        if let Err(panic) = &ended {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!("task '{name}' panicked: {text}");
        }
        ended.ok()
    })
}

/// Runs blocking work away from the tasks. `name` is what it does, for the log.
pub fn spawn_blocking(name: &'static str, work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(move || {
        // The panic hook has logged what and where; this says which work was lost.
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("work '{name}' panicked");
        }
    });
}

/// Tasks that end with what owns them: dropping the scope aborts them.
#[derive(Default)]
pub struct Scope {
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Scope {
    /// Spawns a task that is aborted, at its next await, when the scope is dropped or stopped.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let handle = spawn(name, task).abort_handle();
        let mut tasks = self.tasks.lock();
        // When it would grow: what is kept is looked at once for each time it doubles.
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle);
    }

    /// Aborts what is running.
    pub fn stop(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells many tasks at once that it is time to finish by themselves.
#[derive(Clone, Debug)]
pub struct Stop {
    told: Arc<tokio::sync::watch::Sender<bool>>,
}

impl Stop {
    /// A signal that was not given yet.
    #[must_use]
    pub fn new() -> Self {
        Self { told: Arc::new(tokio::sync::watch::Sender::new(false)) }
    }

    /// Gives the signal. It stays given.
    pub fn stop(&self) {
        self.told.send_replace(true);
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        *self.told.borrow()
    }

    /// Waits for it. Cancel safe.
    pub async fn stopped(&self) {
        // The sender lives as long as self: waiting can't fail.
        let _ = self.told.subscribe().wait_for(|told| *told).await;
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_of_a_dropped_scope_are_gone() {
        let (alive, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        let scope = Scope::default();
        scope.spawn("waits for ever", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });

        drop(scope);

        assert_eq!(gone.recv().await, None);
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task() {
        assert_eq!(spawn("panics", async { panic!("on purpose") }).await.unwrap(), None::<()>);
    }

    #[tokio::test]
    async fn a_stop_that_was_given_stays_given() {
        let stop = Stop::new();
        stop.stop();
        stop.stopped().await;
        assert!(stop.is_stopped());
    }
}
