//! Checkpoints of groups whose logs are not synced, in the background: what they cover is brought to stable storage, then
//! they are written. Nothing else waits for it.

use std::sync::Arc;

use crate::background::Background;
use crate::batch::Batch;
use crate::engine::{Durability, Engine};
use crate::error::Error;
use crate::writer::{Done, Queue, Work, closed};

/// More than wait at once, unless thousands of groups are written to: there is one of a group at a time.
const REQUESTS_MAX: usize = 1024;

/// A checkpoint that waits.
pub(crate) struct Checkpoint {
    pub(crate) batch: Batch,
    pub(crate) done: Done,
}

pub(crate) struct Flusher(Background<Checkpoint>);

impl Flusher {
    pub(crate) fn start(engine: Arc<dyn Engine>, queue: Arc<Queue>) -> Result<Self, Error> {
        let thread = Background::start("storage-flusher", REQUESTS_MAX, move |requests| {
            while let Ok(first) = requests.recv() {
                let waiting: Vec<Checkpoint> = std::iter::once(first).chain(requests.try_iter()).collect();
                let flushed = flush(engine.as_ref(), &queue);
                for Checkpoint { batch, done } in waiting {
                    match &flushed {
                        Ok(()) => queue.push_rows(batch, Durability::Ordered, done),
                        Err(error) => done(Err(error.clone())),
                    }
                }
            }
        })?;
        Ok(Self(thread))
    }

    /// Waits only when very many do.
    pub(crate) fn request(&self, checkpoint: Checkpoint) {
        if let Err(Checkpoint { done, .. }) = self.0.hand_over(checkpoint) {
            done(Err(closed()));
        }
    }

    /// Lets it end by itself.
    pub(crate) fn detach(self) {
        self.0.detach();
    }
}

/// Everything that was queued before is written, and its values are on stable storage.
fn flush(engine: &dyn Engine, queue: &Queue) -> Result<(), Error> {
    queue.push_watched(None, Work::Nothing, 0)()?;
    engine.sync_values().inspect_err(|error| queue.health.fail(&error.to_string()))
}
