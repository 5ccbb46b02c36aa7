//! Gives back the disk space of removed messages: drops blocks without a live record, and empties mostly dead ones
//! into `kept`.
//!
//! Two rules keep it safe. Only what a *written* checkpoint knows to be dead goes, because re-applying the log behind
//! that checkpoint may read everything that was alive then. And only blocks at or below the purge floor go, because
//! the log above it may still have to be sent to a follower.

use std::sync::Arc;

use crate::batch::Batch;
use crate::block_index::{Dead, TAG_CANDIDATE, TAG_DEAD, TAG_ROW, suffix};
use crate::block_row::BlockRow;
use crate::engine::Durability;
use crate::error::Error;
use crate::kept;
use crate::keys::{KeyRange, Space, Table};
use crate::messages::MessageStore;
use crate::metrics;
use crate::moments::{self, Moment};

/// Bytes of blocks that one call reads and empties, so that cleaning never holds up a stream for long.
const BYTES_PER_CALL: u64 = 8 << 20;
/// Blocks that one call looks at.
const CANDIDATES_PER_CALL: usize = 256;

/// What a call to `MessageStore::clean` did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CleanReport {
    /// Runs of log indexes whose blocks were dropped because no record in them was live.
    pub dropped_runs: u64,
    /// Mostly dead blocks that were emptied and dropped.
    pub cleaned_blocks: u64,
    /// Records that were moved to `kept`.
    pub kept_records: u64,
    /// There is more to do: call again soon.
    pub more: bool,
}

impl MessageStore {
    /// Drops dead blocks at or below the purge floor and empties some of the mostly dead ones. Call it after a
    /// checkpoint and a purge; each call does a bounded amount of work. Changes nothing a reader can see.
    ///
    /// Returns once the changes are queued, in order before any later checkpoint.
    pub fn clean(self: &Arc<Self>, purged_index: u64) -> Result<CleanReport, Error> {
        let _one_at_a_time = self.cleaning.lock();
        let mut report = CleanReport::default();
        self.drop_dead(purged_index, &mut report)?;
        self.empty_mostly_dead(purged_index, &mut report)?;
        self.index.write().raise_floors(self.storage.engine())?;
        metrics::cleaned(report.cleaned_blocks, report.kept_records);
        Ok(report)
    }

    /// Whether `clean` would find something to do.
    #[must_use]
    pub fn has_garbage(&self, purged_index: u64) -> bool {
        let index = self.index.read();
        !index.candidates.is_empty() || index.droppable.range(..=purged_index).next().is_some()
    }

    fn drop_dead(&self, purged_index: u64, report: &mut CleanReport) -> Result<(), Error> {
        let (space, dropped) = {
            let mut index = self.index.write();
            let dead: Vec<Dead> = index.droppable.range(..=purged_index).map(|(_, dead)| *dead).collect();
            for dead in &dead {
                index.droppable.remove(&dead.from_index);
                if dead.to_index > purged_index {
                    let rest = Dead { from_index: purged_index + 1, ..*dead };
                    index.droppable.insert(rest.from_index, rest);
                }
            }
            (index.space, dead)
        };
        if dropped.is_empty() {
            return Ok(());
        }
        let group = space.group;
        let mut batch = Batch::new();
        batch.made_from(space);
        for dead in &dropped {
            batch.delete(group, Table::BlockIndex, suffix(TAG_DEAD, dead.from_index));
            if dead.to_index > purged_index {
                let rest = Dead { from_index: purged_index + 1, ..*dead };
                batch.put(group, Table::BlockIndex, suffix(TAG_DEAD, rest.from_index), rest.encode());
            }
        }
        let runs = join_neighbors(&dropped, purged_index);
        report.dropped_runs += runs.len() as u64;
        for (from, to) in &runs {
            if from == to {
                batch.delete(group, Table::Blocks, from.to_be_bytes().to_vec());
            } else {
                let range = (from.to_be_bytes().to_vec(), (to + 1).to_be_bytes().to_vec());
                batch.delete_range(group, Table::Blocks, range.0, range.1);
            }
        }
        let storage = Arc::downgrade(&self.storage);
        let ranges: Vec<KeyRange> = runs
            .iter()
            .filter(|(from, to)| from != to)
            .map(|(from, to)| KeyRange { from: space.numbered(*from), to: space.numbered(*to) })
            .collect();
        batch.on_written(move || {
            if let Some(storage) = storage.upgrade() {
                storage.reclaim(ranges);
            }
        });
        self.storage.submit(batch, Durability::Ordered, Box::new(|_| {}));
        Ok(())
    }

    fn empty_mostly_dead(self: &Arc<Self>, purged_index: u64, report: &mut CleanReport) -> Result<(), Error> {
        let candidates: Vec<u64> =
            self.index.read().candidates.iter().take(CANDIDATES_PER_CALL).copied().collect();
        let (before, mut bytes) = (report.cleaned_blocks, 0);
        for first_seq in &candidates {
            if bytes >= BYTES_PER_CALL {
                report.more = true;
                break;
            }
            bytes += self.empty(*first_seq, purged_index, report)?;
        }
        // Candidates that may not be emptied yet are looked at again when more is purged, not at once.
        report.more |= candidates.len() == CANDIDATES_PER_CALL && report.cleaned_blocks > before;
        Ok(())
    }

    /// Empties one block if it may be; returns the bytes that took.
    fn empty(
        self: &Arc<Self>,
        first_seq: u64,
        purged_index: u64,
        report: &mut CleanReport,
    ) -> Result<u64, Error> {
        // The lock is held while the block is read, so that what is kept is what is live.
        let mut index = self.index.write();
        let engine = self.storage.engine();
        let Some(row) = index.cleanable(engine, first_seq)? else { return Ok(0) };
        let is_oldest = row.first_seq <= index.meta.floor;
        if row.log_index > purged_index || (is_oldest && row.is_dying_in_order()) {
            return Ok(0);
        }
        let space = index.space;
        let Some(block) = self.block(space, &row)? else {
            return Err(Error::damaged(
                space.group,
                Table::Blocks,
                format!("block {}", row.log_index),
                "it is missing",
            ));
        };
        let mut batch = Batch::new();
        batch.made_from(space);
        for (seq, position) in row.live_from(0) {
            let record = block.record(position);
            let order_time = if block.is_timed() { record.timestamp } else { row.time };
            let kept = kept::encode(record, order_time);
            batch.put(space.group, Table::Kept, seq.to_be_bytes().to_vec(), kept);
            report.kept_records += 1;
        }
        drop_row(&mut batch, space, &row);
        index.moving(&row, &mut batch);
        let store = Arc::downgrade(self);
        batch.on_written(move || {
            moments::reached(Moment::BlockEmptied);
            if let Some(store) = store.upgrade() {
                store.index.write().moved(first_seq);
            }
        });
        // Queued under the lock: a checkpoint that follows must follow in the log as well.
        self.storage.enqueue(batch, Durability::Ordered)?;
        drop(index);
        self.storage.kick();
        report.cleaned_blocks += 1;
        Ok(u64::from(row.size))
    }
}

fn drop_row(batch: &mut Batch, space: Space, row: &BlockRow) {
    batch.delete(space.group, Table::BlockIndex, suffix(TAG_ROW, row.first_seq));
    batch.delete(space.group, Table::BlockIndex, suffix(TAG_CANDIDATE, row.first_seq));
    batch.delete(space.group, Table::Blocks, row.log_index.to_be_bytes().to_vec());
}

/// Runs of log indexes without a live block between them: dead blocks whose sequences follow each other.
fn join_neighbors(dead: &[Dead], purged_index: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for dead in dead {
        let to = dead.to_index.min(purged_index);
        match runs.last_mut() {
            Some((_, last, next_seq)) if *next_seq == dead.first_seq => {
                *last = to;
                *next_seq = dead.next_seq;
            }
            _ => runs.push((dead.from_index, to, dead.next_seq)),
        }
    }
    runs.into_iter().map(|(from, to, _)| (from, to)).collect()
}
