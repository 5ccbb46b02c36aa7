//! What a consumer asks its stream.

use levee_protocol::api::StreamConfig;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::subject::Filter;

use crate::stream::{MessageView, ReadFailed};

/// The stream as its consumers see it. A trait, so that consumers are tested against a list of messages too.
pub trait Source {
    /// The stream's configuration; `None` before the first one was applied.
    fn config(&self) -> Option<&StreamConfig>;
    /// First live sequence; 0 or the next one when the stream is empty.
    fn first_seq(&self) -> Seq;
    /// Last sequence that was given out.
    fn last_seq(&self) -> Seq;
    /// How many messages live.
    fn messages(&self) -> u64;
    /// Whether the message is stored and not removed.
    fn is_live(&self, seq: Seq) -> bool;
    /// The first live message at or after `from` that matches one of `filters`; no filters is every message.
    fn next_match(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<Option<Record>, ReadFailed>;
    /// How many live messages at or after `from` match one of `filters`; no filters is every message.
    fn count_matching(
        &self,
        filters: &[Filter],
        from: Seq,
        view: &dyn MessageView,
    ) -> Result<u64, ReadFailed>;
    /// The newest live message that matches.
    fn last_for(&self, filter: &Filter) -> Option<Seq>;
    /// The newest live message of every subject that matches one of `filters`, ascending, each once.
    fn last_per_subject(&self, filters: &[Filter]) -> Vec<Seq>;
}
