//! What rules may read beyond their own state: the messages that were stored before the command at hand.

use std::ops::ControlFlow;

use levee_protocol::ids::Seq;
use levee_protocol::record::{Record, RecordRef};
use levee_protocol::time::Timestamp;

/// Stored messages. May still return messages that were removed: the machine knows which ones live.
pub trait MessageView {
    /// The message with this sequence.
    fn record(&self, seq: Seq) -> Result<Option<Record>, ReadFailed>;

    /// Visits stored messages with sequence `from` and above, in order, until the visitor breaks.
    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed>;

    /// The first message that is not older than `at`.
    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed>;
}

/// The disk failed, or what it should hold is not there. Never a rejection: the group stops and says so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("reading stored messages failed: {0}")]
pub struct ReadFailed(pub String);

impl ReadFailed {
    /// A message that lives by the machine's state is not in the store.
    #[must_use]
    pub fn missing(seq: Seq) -> Self {
        Self(format!("message {seq} should be stored and is not"))
    }
}
