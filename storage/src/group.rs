//! What a group's log looks like right now, shared by its writer and its readers.
//!
//! Hot path: one lock per append and per read, no copy of payloads.

use std::collections::VecDeque;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};
use parking_lot::{Mutex, RwLock};

use crate::block_index::Meta;
use crate::engine::{Engine, Scan};
use crate::entry_row::{EntryRow, kind};
use crate::error::Error;
use crate::keys::{self, HardItem, KeyRange, Space, Table};
use crate::messages::MessageStore;
use crate::sealed::{Fields, seal, unseal};

/// Identifies an entry: two logs that agree on it agree on everything before it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LogId {
    /// The election term in which it was proposed.
    pub raft_term: u64,
    /// The leader that proposed it.
    pub node: NodeId,
    /// Its position in the log. The first is 0.
    pub index: u64,
}

/// One entry of a group's log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogEntry {
    /// Where it is.
    pub id: LogId,
    /// What the payload is: one of `kind`.
    pub kind: u8,
    /// The command, or the encoded block of messages.
    pub payload: Bytes,
}

impl LogEntry {
    /// What it takes in memory, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.payload.len() + size_of::<Self>() + 32
    }
}

/// Whether a group's appends are synced before they are reported.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sync {
    /// Every append is on stable storage when it is reported. The default.
    Always,
    /// Appends are reported once written; a power cut may lose the newest, and the log ends before the first that is
    /// lost. For streams in memory. Votes are synced all the same.
    Never,
}

/// Entries that a power cut took from the end of a log that is not synced, and what is known to be committed without
/// them.
pub(crate) struct LostEnd {
    pub(crate) from: u64,
    /// The last one that has a row.
    pub(crate) to: u64,
    pub(crate) committed: Option<LogId>,
}

/// One per group that was opened since the storage was.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    generation: AtomicU32,
    unsynced: AtomicBool,
    removed: AtomicBool,
    pub(crate) log: RwLock<LogState>,
    pub(crate) messages: Mutex<Weak<MessageStore>>,
}

/// Bounds, hard state and tail of the log. Changes here first; the writer follows in the same order.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pub(crate) recovered: bool,
    pub(crate) purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) committed: Option<LogId>,
    /// `committed` is newer than its row. It goes along with the next write of this group.
    pub(crate) committed_dirty: bool,
    /// A row of the node, key and value, that goes along with the first write that makes this log more than nothing.
    pub(crate) first_mark: Option<(Vec<u8>, Vec<u8>)>,
    /// The newest entries without a gap up to `last`. Everything that is not written yet is in here.
    pub(crate) tail: VecDeque<LogEntry>,
    pub(crate) tail_bytes: usize,
    /// Every entry up to here is written, in the log as truncated `epoch` times.
    pub(crate) written: Option<u64>,
    pub(crate) epoch: u64,
}

impl Group {
    /// Reads the group's rows in `hard_state`; discards what a crashed snapshot import left.
    pub(crate) fn load(engine: &dyn Engine, id: GroupId) -> Result<Self, Error> {
        let item = |item| -> Result<Option<Bytes>, Error> {
            let Some(value) = engine.read(Table::HardState, &keys::hard_state(id, item))? else {
                return Ok(None);
            };
            match unseal(&value) {
                Some(value) => Ok(Some(Bytes::copy_from_slice(value))),
                None => Err(Error::damaged(
                    id,
                    Table::HardState,
                    format!("{item:?}"),
                    "its checksum does not match",
                )),
            }
        };
        let log_id = |name| -> Result<Option<LogId>, Error> {
            item(name)?
                .map(|value| {
                    decode_log_id(&value).ok_or_else(|| {
                        Error::damaged(id, Table::HardState, format!("{name:?}"), "it does not decode")
                    })
                })
                .transpose()
        };
        let generation = match item(HardItem::Generation)? {
            Some(value) => Fields(&value)
                .u32()
                .ok_or_else(|| Error::damaged(id, Table::HardState, "generation", "it does not decode"))?,
            None => 0,
        };
        let log = LogState {
            purged: log_id(HardItem::Purged)?,
            committed: log_id(HardItem::Committed)?,
            vote: item(HardItem::Vote)?.map(|vote| vote.to_vec()),
            ..LogState::default()
        };
        Ok(Self {
            id,
            generation: AtomicU32::new(generation),
            unsynced: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            log: RwLock::new(log),
            messages: Mutex::new(Weak::new()),
        })
    }

    /// Walks the whole log once: no gap, terms in order, every checksum right. A group that fails this must not
    /// serve: what it lacks may have been acknowledged.
    ///
    /// Of a log that is not synced a power cut may have taken any block that no checkpoint covers, and the log ends before
    /// the first of them: then this says what must leave the disk.
    pub(crate) fn recover_log(&self, engine: &dyn Engine) -> Result<Option<LostEnd>, Error> {
        let mut log = self.log.write();
        if log.recovered {
            return Ok(None);
        }
        let first = log.purged.map_or(0, |purged| purged.index + 1);
        let space = self.space();
        let entries = KeyRange { from: keys::entry(self.id, first), to: keys::group_range(self.id).to };
        let blocks = KeyRange { from: space.numbered(first), to: space.range().to };
        let mut rows = engine.scan(Table::Entries, &entries, Scan::Bulk);
        let mut blocks = engine.scan(Table::Blocks, &blocks, Scan::Bulk);
        let checkpointed = Meta::load(engine, space)?.next_index;
        let may_lose = |index| self.sync() == Sync::Never && index >= checkpointed;
        let mut last = log.purged;
        let mut lost_from = None;
        while let Some((key, value)) = rows.next()? {
            let index = keys::trailing_number(key).unwrap_or(u64::MAX);
            let expected = last.map_or(0, |last| last.index + 1);
            if index != expected {
                return Err(Error::LogGap { group: self.id, index: expected });
            }
            let row = EntryRow::decode(self.id, index, value)?;
            if last.is_some_and(|last| last.raft_term > row.id.raft_term) {
                return Err(Error::damaged(
                    self.id,
                    Table::Entries,
                    format!("entry {index}"),
                    "its term is below the entry before it",
                ));
            }
            if row.kind == kind::BLOCK {
                let found = match blocks.next() {
                    Ok(Some((key, block))) if keys::trailing_number(key) == Some(index) => {
                        row.check_block(self.id, block)
                    }
                    Ok(_) => Err(row.lost_block(self.id)),
                    Err(error) => Err(error),
                };
                match found {
                    Ok(()) => {}
                    Err(Error::Damaged { .. }) if may_lose(index) => {
                        lost_from = Some(index);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            last = Some(row.id);
        }
        let lost = match lost_from {
            Some(from) => {
                log.committed = log
                    .committed
                    .and_then(|id| last.map(|last| if id.index > last.index { last } else { id }));
                Some(LostEnd { from, to: end_of(engine, self.id, from)?, committed: log.committed })
            }
            None => None,
        };
        // The row is written behind the entries it names, so an end before it is an end that was cut off.
        if let Some(committed) = log.committed
            && last.is_none_or(|last| last.index < committed.index)
        {
            return Err(Error::LogGap { group: self.id, index: last.map_or(0, |last| last.index + 1) });
        }
        log.last = last;
        log.written = last.map(|last| last.index);
        log.recovered = true;
        Ok(lost)
    }

    pub(crate) fn space(&self) -> Space {
        Space { group: self.id, generation: self.generation.load(Ordering::Acquire) }
    }

    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Release);
    }

    pub(crate) fn sync(&self) -> Sync {
        if self.unsynced.load(Ordering::Relaxed) { Sync::Never } else { Sync::Always }
    }

    pub(crate) fn set_sync(&self, sync: Sync) {
        self.unsynced.store(sync == Sync::Never, Ordering::Relaxed);
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// The encoded block at `index`, if the tail still has it.
    pub(crate) fn tail_block(&self, index: u64) -> Option<Bytes> {
        let log = self.log.read();
        let position = log.tail_position(index)?;
        let entry = log.tail.get(position)?;
        (entry.kind == kind::BLOCK).then(|| entry.payload.clone())
    }
}

impl LogState {
    /// The index that an append must start with.
    pub(crate) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// The first index that is in the log, or would be.
    pub(crate) fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The last entry that is known to be committed. What is purged was.
    pub(crate) fn settled(&self) -> Option<LogId> {
        self.committed.into_iter().chain(self.purged).max_by_key(|id| id.index)
    }

    /// The first index in the tail; the next one when the tail is empty.
    pub(crate) fn tail_first(&self) -> u64 {
        self.tail.front().map_or_else(|| self.next_index(), |entry| entry.id.index)
    }

    pub(crate) fn tail_position(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.tail.front()?.id.index)?).ok()
    }

    pub(crate) fn push(&mut self, entry: LogEntry) {
        debug_assert_eq!(entry.id.index, self.next_index());
        self.last = Some(entry.id);
        self.tail_bytes += entry.memory_bytes();
        self.tail.push_back(entry);
    }

    /// What the next write of the group says about `committed`, if that is news. Taken when the write is queued, and
    /// only for entries that are queued already: a row that names an entry which a crash then takes away would keep
    /// the group from opening.
    pub(crate) fn take_committed(&mut self) -> Option<LogId> {
        let news = self
            .committed
            .filter(|id| self.committed_dirty && self.last.is_some_and(|last| id.index <= last.index))?;
        self.committed_dirty = false;
        Some(news)
    }

    /// Drops the tail's entries above `keep`.
    pub(crate) fn cut_tail_after(&mut self, keep: Option<u64>) {
        while self.tail.back().is_some_and(|entry| keep.is_none_or(|keep| entry.id.index > keep))
            && let Some(entry) = self.tail.pop_back()
        {
            self.tail_bytes -= entry.memory_bytes();
        }
        self.epoch += 1;
        self.written = self.written.min(keep);
    }

    /// Drops the tail's entries up to `through`, as far as they are written.
    pub(crate) fn evict_through(&mut self, through: u64) {
        let Some(written) = self.written else { return };
        let through = through.min(written);
        while self.tail.front().is_some_and(|entry| entry.id.index <= through)
            && let Some(entry) = self.tail.pop_front()
        {
            self.tail_bytes -= entry.memory_bytes();
        }
    }
}

/// The last index that has a row, at or behind `from`, which has one.
fn end_of(engine: &dyn Engine, group: GroupId, from: u64) -> Result<u64, Error> {
    let rows = KeyRange { from: keys::entry(group, from), to: keys::group_range(group).to };
    let mut rows = engine.scan(Table::Entries, &rows, Scan::Backward);
    Ok(rows.next()?.and_then(|(key, _)| keys::trailing_number(key)).unwrap_or(from))
}

pub(crate) fn encode_log_id(id: LogId) -> Bytes {
    let mut value = Vec::with_capacity(28);
    value.extend_from_slice(&id.raft_term.to_le_bytes());
    value.extend_from_slice(&id.node.0.to_le_bytes());
    value.extend_from_slice(&id.index.to_le_bytes());
    seal(value)
}

fn decode_log_id(value: &[u8]) -> Option<LogId> {
    let mut fields = Fields(value);
    let id = LogId { raft_term: fields.u64()?, node: NodeId(fields.u64()?), index: fields.u64()? };
    fields.end()?;
    Some(id)
}
