//! What a group runs: the contract between a replicated log and the state it is applied to.

use std::any::Any;

use bytes::Bytes;
use levee_storage::{Batch, Error};

/// A committed entry on its way into the machine. Blank and membership entries never get here.
#[derive(Clone, Debug)]
pub struct CommittedEntry {
    /// Position in the group's log.
    pub index: u64,
    /// Term of the leader that proposed it.
    pub raft_term: u64,
    /// `INLINE` or `BLOCK` of `levee_storage::kind`, as it was proposed.
    pub kind: u8,
    /// The bytes that were proposed.
    pub payload: Bytes,
}

/// What applying an entry returns to the proposer; only the node it was proposed on ever sees it.
pub type Reply = Box<dyn Any + Send + Sync>;

/// A deterministic machine behind a log. Every replica gets the same entries in the same order.
///
/// Calls come one at a time, from the group's apply task, and may block on the disk for short.
pub trait ReplicatedMachine: Send + 'static {
    /// Applies one entry in memory. A rejection is a reply; an `Err` means that this replica is broken, and stops
    /// the group.
    fn apply(&mut self, entry: CommittedEntry) -> Result<Reply, Error>;

    /// Called once after each batch of applies: wake whoever waits for news here, not per entry.
    fn flushed(&mut self) {}

    /// About how many rows the next checkpoint would have. Asked after each batch of applies, so it must be cheap.
    fn unwritten_rows(&self) -> usize {
        0
    }

    /// Adds the rows that changed since the last checkpoint. The group adds its own applied row and writes all of
    /// it in one atomic batch. Rows of kind [`APPLIED_ROW_KIND`](crate::APPLIED_ROW_KIND) belong to the group.
    fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), Error>;

    /// The stored state was replaced by a snapshot: forget what is in memory and load again.
    fn reload(&mut self) -> Result<(), Error>;

    /// The log no longer needs entries at or below `index`: blocks there live on for the machine's sake alone.
    fn purged(&mut self, _index: u64) {}
}
