//! A thread of the storage that works off requests, and what ends it.

use std::sync::mpsc::{Receiver, SendError, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::Error;

pub(crate) struct Background<T> {
    requests: Option<SyncSender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Background<T> {
    /// Runs `work`, which is to return when its requests end. At most `requests_max` of them wait.
    pub(crate) fn start(
        name: &str,
        requests_max: usize,
        work: impl FnOnce(Receiver<T>) + Send + 'static,
    ) -> Result<Self, Error> {
        let (requests, receiver) = sync_channel(requests_max);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(receiver))
            .map_err(|error| Error::Engine(format!("{name} thread: {error}")))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// For requests that are hints: one that finds the queue full is left out.
    pub(crate) fn request(&self, request: T) {
        if let Some(requests) = &self.requests {
            let _ = requests.try_send(request);
        }
    }

    /// For requests that count: waits for room, and gives the request back if the thread is gone.
    pub(crate) fn hand_over(&self, request: T) -> Result<(), T> {
        match &self.requests {
            Some(requests) => requests.send(request).map_err(|SendError(request)| request),
            None => Err(request),
        }
    }

    /// Lets it end by itself.
    pub(crate) fn detach(mut self) {
        self.thread = None;
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.requests = None;
        // It may hold what keeps the store open, and so be the one that closes it.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
