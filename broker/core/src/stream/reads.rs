//! Reading messages while a command is applied: what the store had before, and behind it the block at hand.

use std::ops::ControlFlow;

use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, Record, RecordRef};

use super::view::{MessageView, ReadFailed};

/// The store before the command, and the part of the command's block that was accepted so far.
pub(crate) struct Reads<'a> {
    view: &'a dyn MessageView,
    fresh: Option<Fresh<'a>>,
}

struct Fresh<'a> {
    block: &'a Block,
    /// Sequence of the first accepted record.
    first_seq: u64,
    /// Positions of the accepted records; their sequences are consecutive.
    accepted: Vec<u32>,
}

impl<'a> Reads<'a> {
    pub(crate) fn stored_only(view: &'a dyn MessageView) -> Self {
        Self { view, fresh: None }
    }

    pub(crate) fn with_block(view: &'a dyn MessageView, block: &'a Block, first_seq: u64) -> Self {
        let accepted = Vec::with_capacity(block.count() as usize);
        Self { view, fresh: Some(Fresh { block, first_seq, accepted }) }
    }

    /// The record at `position` got the next sequence.
    pub(crate) fn accept(&mut self, position: u32) {
        if let Some(fresh) = &mut self.fresh {
            fresh.accepted.push(position);
        }
    }

    /// The positions that were accepted.
    pub(crate) fn into_accepted(self) -> Vec<u32> {
        self.fresh.map(|fresh| fresh.accepted).unwrap_or_default()
    }

    /// A live message.
    pub(crate) fn record(&self, seq: u64) -> Result<Record, ReadFailed> {
        if let Some(fresh) = &self.fresh
            && let Some(index) = seq.checked_sub(fresh.first_seq)
        {
            let position = usize::try_from(index).ok().and_then(|index| fresh.accepted.get(index));
            let position = position.ok_or_else(|| ReadFailed::missing(Seq(seq)))?;
            return Ok(fresh.block.record_owned(*position, Seq(seq)));
        }
        self.view.record(Seq(seq))?.ok_or_else(|| ReadFailed::missing(Seq(seq)))
    }

    /// Visits messages from `from` on, removed ones possibly included, until the visitor breaks.
    pub(crate) fn scan(
        &self,
        from: u64,
        visit: &mut dyn FnMut(u64, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        let fresh_from = self.fresh.as_ref().map_or(u64::MAX, |fresh| fresh.first_seq);
        if from < fresh_from {
            let mut broke = false;
            self.view.scan(Seq(from), &mut |seq, record| {
                if seq.0 >= fresh_from {
                    return ControlFlow::Break(());
                }
                let flow = visit(seq.0, record);
                broke = flow.is_break();
                flow
            })?;
            if broke {
                return Ok(());
            }
        }
        if let Some(fresh) = &self.fresh {
            let skipped = usize::try_from(from.saturating_sub(fresh.first_seq)).unwrap_or(usize::MAX);
            for (seq, position) in (fresh.first_seq..).zip(&fresh.accepted).skip(skipped) {
                if visit(seq, fresh.block.record(*position)).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }
}
