//! Atomic batches: all of their messages are stored, or none.
//!
//! The leader collects a batch and proposes it as consecutive records of one block. Here all are looked at before the
//! first one is stored. An expectation speaks of the stream before the batch, so one about what the batch itself
//! changes can not be met.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::api::{ApiError, PublishIntent, Rollup};
use levee_protocol::record::{Block, RecordFlags, RecordRef};
use levee_protocol::subject::Filter;

use super::StreamMachine;
use super::counter::PendingSums;
use super::messages::Removals;
use super::outcome::PublishReply;
use super::publish::{Admitted, Offered};
use super::reads::Reads;
use super::state::Settings;
use super::view::ReadFailed;

/// What the messages of a batch, of those that were looked at already, will change.
#[derive(Debug, Default)]
pub(crate) struct Ahead<'a> {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) subjects: BTreeMap<&'a [u8], u64>,
    pub(crate) ids: BTreeSet<&'a str>,
    pub(crate) sums: PendingSums,
}

impl<'a> Ahead<'a> {
    /// Whether a message of the batch is stored under a subject that matches.
    pub(crate) fn touches(&self, filter: &[u8]) -> bool {
        if self.subjects.contains_key(filter) {
            return true;
        }
        Filter::parse(filter).is_ok_and(|filter| {
            !filter.is_literal() && self.subjects.keys().any(|subject| filter.matches(subject))
        })
    }

    /// What a message of a batch may not ask for, besides what no message may.
    pub(crate) fn check(&self, record: &RecordRef<'_>, intent: &PublishIntent<'_>) -> Result<(), ApiError> {
        let Some(rollup) = intent.rollup else { return Ok(()) };
        match rollup {
            Rollup::Subject if self.subjects.contains_key(record.subject) => {
                Err(ApiError::rollup_failed("batch rollup sub invalid"))
            }
            Rollup::All if self.count > 0 => Err(ApiError::rollup_failed("batch rollup all invalid")),
            Rollup::Subject | Rollup::All | Rollup::Invalid(_) => Ok(()),
        }
    }

    fn note(&mut self, record: &RecordRef<'a>, intent: &PublishIntent<'a>, bytes: u64, sum: Option<String>) {
        self.count += 1;
        self.bytes += bytes;
        *self.subjects.entry(record.subject).or_default() += 1;
        self.ids.extend(intent.msg_id);
        if let Some(sum) = sum {
            self.sums.insert(record.subject.into(), sum);
        }
    }
}

/// Where the batch that begins at `first` ends.
pub(super) fn end_of(block: &Block, first: u32) -> u32 {
    let ends = |position: &u32| block.flags(*position).contains(RecordFlags::ENDS_BATCH);
    (first..block.count()).find(ends).unwrap_or_else(|| block.count() - 1)
}

impl StreamMachine {
    /// Stores the records from `first` to `last`, or none of them. One reply for each.
    pub(super) fn publish_batch(
        &mut self,
        settings: &Settings,
        (block, first, last): (&Block, u32, u32),
        reads: &mut Reads<'_>,
        removals: &mut Removals,
        replies: &mut Vec<PublishReply>,
    ) -> Result<(), ReadFailed> {
        let mut ahead = Ahead::default();
        let mut admitted: Vec<Admitted<'_>> = Vec::new();
        for position in first..=last {
            let record = block.record(position);
            let intent = match PublishIntent::parse(record.header) {
                Ok(intent) => intent,
                Err(error) => {
                    refuse(&PublishReply::Rejected(error), first..=last, replies);
                    return Ok(());
                }
            };
            let offered =
                Offered { record, intent: &intent, flags: block.flags(position), ahead: Some(&ahead) };
            match self.admit(settings, &offered, reads, removals)? {
                Ok(message) => {
                    ahead.note(&record, &intent, message.bytes(), message.sum().map(str::to_owned));
                    admitted.push(message);
                }
                Err(reply) => {
                    refuse(&reply, first..=last, replies);
                    return Ok(());
                }
            }
        }
        for (position, message) in (first..=last).zip(admitted) {
            reads.accept(position);
            replies.push(self.store(settings, &block.record(position), message, reads, removals)?);
        }
        Ok(())
    }
}

fn refuse(reply: &PublishReply, positions: std::ops::RangeInclusive<u32>, replies: &mut Vec<PublishReply>) {
    replies.extend(positions.map(|_| reply.clone()));
}
