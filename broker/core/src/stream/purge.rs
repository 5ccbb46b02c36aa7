//! Purge, and removal of single messages.

use levee_protocol::api::{ApiError, PurgeRequest, StreamConfig};
use levee_protocol::subject::Filter;

use super::messages::{Messages, Removals};
use super::reads::Reads;
use super::view::ReadFailed;

/// Sequences beyond this are not given out, and no request may skip to them.
pub(crate) const SEQ_MAX: u64 = u64::MAX / 2;

/// A purge that was found to be in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Purge {
    filter: Filter,
    /// Only below this sequence; 0 is all.
    below: u64,
    /// Leave this many of the newest.
    keep: u64,
}

impl Purge {
    pub(crate) fn check(config: &StreamConfig, request: &PurgeRequest) -> Result<Self, ApiError> {
        if config.sealed {
            return Err(ApiError::stream_sealed());
        }
        if config.deny_purge {
            return Err(ApiError::stream_purge_failed("stream purge not permitted"));
        }
        // A sequence that far away would leave no sequences to give out.
        if (request.seq > 0 && request.keep > 0) || request.seq > SEQ_MAX {
            return Err(ApiError::bad_request());
        }
        let (filter, keep) = match request.filter.as_str() {
            "" => (Filter::everything(), request.keep),
            // No subject is like a filter that does not parse: everything stays.
            filter => match Filter::parse(filter) {
                Ok(filter) => (filter, request.keep),
                Err(_) => (Filter::everything(), u64::MAX),
            },
        };
        Ok(Self { filter, below: request.seq, keep })
    }

    pub(crate) fn run(
        &self,
        messages: &mut Messages,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        if self.filter != Filter::everything() {
            let below = if self.below > 0 { self.below } else { u64::MAX };
            return messages.remove_matching(&self.filter, below, self.keep, reads, removals);
        }
        if self.keep > 0 {
            return remove_all_but_newest(messages, self.keep, reads, removals);
        }
        if self.below == 0 {
            messages.remove_below(messages.last + 1, reads, removals)?;
            messages.first = messages.first.max(messages.last + 1);
            return Ok(());
        }
        messages.remove_below(self.below, reads, removals)?;
        if self.below > messages.last {
            // As nats-server: sequences up to the one that was named count as given out.
            messages.first = self.below;
            messages.last = self.below - 1;
        }
        Ok(())
    }
}

/// Removes the oldest messages and leaves `keep`.
pub(crate) fn remove_all_but_newest(
    messages: &mut Messages,
    keep: u64,
    reads: &Reads<'_>,
    removals: &mut Removals,
) -> Result<(), ReadFailed> {
    if keep >= messages.count {
        return Ok(());
    }
    let mut target = messages.last + 1;
    let mut left = keep;
    let live: Vec<(u64, u64)> = messages.deleted.gaps(messages.first, messages.last).collect();
    for (first, last) in live.into_iter().rev() {
        let count = last - first + 1;
        if count >= left {
            target = last + 1 - left;
            break;
        }
        left -= count;
    }
    messages.remove_below(target, reads, removals)
}

/// Whether a single message may be removed.
pub(crate) fn check_delete(config: &StreamConfig, messages: &Messages, seq: u64) -> Result<(), ApiError> {
    if config.sealed {
        return Err(ApiError::stream_sealed());
    }
    if config.deny_delete {
        return Err(ApiError::message_delete_failed("message delete not permitted"));
    }
    if seq > messages.last {
        return Err(ApiError::message_delete_failed("stream store EOF"));
    }
    if seq < messages.first || seq == 0 {
        return Err(ApiError::message_delete_failed("no message found"));
    }
    if !messages.is_live(seq) {
        return Err(ApiError::sequence_not_found(seq));
    }
    Ok(())
}
