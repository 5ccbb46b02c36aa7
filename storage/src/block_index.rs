//! Which block holds which sequence, and which blocks are dead: the rows that changed since the last checkpoint and
//! the newest ones in memory, the rest in `block_index`, found by one seek.
//!
//! The rows on disk are those of the last checkpoint. What a crash forgets is told again when the log behind the
//! checkpoint is re-applied, so every change here is made durable only together with the state that caused it.
//!
//! ```text
//! block_index := 0 0          -> Meta                          written by checkpoints
//!              | 0 1          -> KeptBounds                    written by cleaning
//!              | 1 first_seq  -> BlockRow                      a block with live records
//!              | 2 from_index -> Dead                          blocks to be dropped once the log is purged
//!              | 3 first_seq  -> (empty)                       a block worth cleaning
//! ```
//!
//! Never seeks from the start of a deleted range: scans start at `Meta::floor`, below which no row is left, and leave out
//! what is known to be vacant.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use levee_protocol::record::Block;
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::block_row::{BlockRow, Runs};
use crate::engine::{Scan, View};
use crate::error::Error;
use crate::keys::{self, KeyRange, Space, Table};
use crate::sealed::{Fields, seal, unseal};
use crate::vacancies::Vacancies;

/// Tags of keys. Persisted: never renumber, add at the end.
pub(crate) const TAG_META: u8 = 0;
pub(crate) const TAG_ROW: u8 = 1;
pub(crate) const TAG_DEAD: u8 = 2;
pub(crate) const TAG_CANDIDATE: u8 = 3;

const META: u64 = 0;
pub(crate) const KEPT_BOUNDS: u64 = 1;

/// So many rows are deleted one by one; a range tombstone costs every later read of the table a little.
const KEYS_BEFORE_RANGE: usize = 64;

/// Unchanged rows that stay in memory for readers at the head, per stream.
const RECENT_ROWS: usize = 256;

/// What is known about a stream's blocks.
pub(crate) struct Index {
    pub(crate) space: Space,
    pub(crate) meta: Meta,
    meta_dirty: bool,
    pub(crate) kept: KeptBounds,
    rows: BTreeMap<u64, Slot>,
    /// Below `complete_from`. Readers add to it, too.
    vacant: Mutex<Vacancies>,
    /// Every row that ends here or later is in `rows`.
    complete_from: u64,
    dirty: BTreeSet<u64>,
    /// Rows that are gone since the last checkpoint, by the first of a range; what the table says there is old.
    dropped: BTreeMap<u64, Dropped>,
    /// Blocks that died since the last checkpoint, by their first log index.
    died: BTreeMap<u64, Dead>,
    /// Sequences that left `kept` since the last checkpoint.
    kept_gone: Vec<Range<u64>>,
    candidates_new: BTreeSet<u64>,
    candidates_gone: Vec<u64>,
    /// Dropped and died as of checkpoints that are queued and not written yet.
    in_flight: Vec<InFlight>,
    epoch: u64,
    /// Dead as of a written checkpoint: may be dropped once the log is purged.
    pub(crate) droppable: BTreeMap<u64, Dead>,
    /// Mostly dead: worth cleaning.
    pub(crate) candidates: BTreeSet<u64>,
}

struct Slot {
    row: Arc<BlockRow>,
    state: SlotState,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SlotState {
    /// As in the table.
    Clean,
    /// Newer than the table.
    Dirty,
    /// In a checkpoint that is queued.
    Writing,
    /// Its live records are being moved to `kept`; it is gone as soon as that is written.
    Moving,
}

struct InFlight {
    epoch: u64,
    rows: Vec<u64>,
    dropped: BTreeMap<u64, Dropped>,
    died: BTreeMap<u64, Dead>,
}

/// Rows that went since the last checkpoint: every one up to `end`. A few are deleted by key, many by range.
#[derive(Debug)]
struct Dropped {
    end: u64,
    keys: Option<Vec<u64>>,
}

/// Blocks without a live record: log indexes, and the sequences that were in them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Dead {
    pub(crate) from_index: u64,
    pub(crate) to_index: u64,
    pub(crate) first_seq: u64,
    pub(crate) next_seq: u64,
}

/// What is known without looking at rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Meta {
    /// No row starts below.
    pub(crate) floor: u64,
    /// The newest sequence that was stored.
    pub(crate) last_seq: u64,
    /// The log index of the newest block that was applied, plus one.
    pub(crate) next_index: u64,
    /// The latest time of all blocks.
    pub(crate) last_time: Timestamp,
}

/// Where kept records can be. Cleaning changes it outside of checkpoints, so it is a row of its own: `Meta` must never
/// be newer than the checkpoint it belongs to.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct KeptBounds {
    /// No kept record lies below.
    pub(crate) floor: u64,
    /// No kept record lies above; 0 when there is none.
    pub(crate) last: u64,
}

fn damaged(space: Space, what: &str) -> Error {
    Error::damaged(space.group, Table::BlockIndex, what, "it does not decode")
}

impl Index {
    /// The index as of the last checkpoint.
    pub(crate) fn load(view: &dyn View, space: Space) -> Result<Self, Error> {
        let damaged = |what| damaged(space, what);
        let meta = Meta::load(view, space)?;
        let kept = match view.read(Table::BlockIndex, &space.tagged(TAG_META, KEPT_BOUNDS))? {
            Some(value) => KeptBounds::decode(&value).ok_or_else(|| damaged("the bounds of kept records"))?,
            None => KeptBounds::default(),
        };
        let mut droppable = BTreeMap::new();
        each(view, space, TAG_DEAD, 0, &mut |from_index, value| {
            let dead = Dead::decode(from_index, value).ok_or_else(|| damaged("a list of dead blocks"))?;
            droppable.insert(from_index, dead);
            Ok(())
        })?;
        let mut candidates = BTreeSet::new();
        each(view, space, TAG_CANDIDATE, 0, &mut |first_seq, _| {
            candidates.insert(first_seq);
            Ok(())
        })?;
        Ok(Self {
            space,
            meta,
            meta_dirty: false,
            kept,
            rows: BTreeMap::new(),
            vacant: Mutex::default(),
            complete_from: meta.last_seq + 1,
            dirty: BTreeSet::new(),
            dropped: BTreeMap::new(),
            died: BTreeMap::new(),
            kept_gone: Vec::new(),
            candidates_new: BTreeSet::new(),
            candidates_gone: Vec::new(),
            in_flight: Vec::new(),
            epoch: 0,
            droppable,
            candidates,
        })
    }

    /// Notes an applied block. Blocks that were noted before, or are part of the loaded checkpoint, are ignored.
    pub(crate) fn stored(&mut self, log_index: u64, block: &Block, first_seq: u64, holes: &[u32]) {
        if log_index < self.meta.next_index {
            return;
        }
        let time = self.meta.last_time.max(block.latest());
        self.meta.next_index = log_index + 1;
        self.meta.last_time = time;
        self.meta_dirty = true;
        let holes = Runs::from_sorted(holes);
        if holes.total() >= block.count() {
            self.died(Dead { from_index: log_index, to_index: log_index, first_seq, next_seq: first_seq });
            return;
        }
        let row = BlockRow {
            first_seq,
            log_index,
            count: block.count(),
            size: u32::try_from(block.as_bytes().len()).unwrap_or(u32::MAX),
            checksum: block.checksum(),
            time,
            holes,
            dead: Runs::default(),
        };
        if self.meta.last_seq == 0 || self.meta.floor > self.meta.last_seq {
            self.meta.floor = first_seq;
        }
        self.meta.last_seq = row.last_seq();
        self.rows.insert(first_seq, Slot { row: Arc::new(row), state: SlotState::Dirty });
        self.dirty.insert(first_seq);
    }

    /// Notes that these sequences are gone. Those that are unknown, or gone already, are ignored.
    pub(crate) fn removed(&mut self, view: &dyn View, first: u64, last: u64) -> Result<(), Error> {
        let mut at = first;
        if let Some(row) = self.containing(view, first)? {
            self.remove_within(&row, first, last.min(row.last_seq()));
            at = row.next_seq();
            if at > last {
                return Ok(());
            }
        }
        if self.kept.last >= first && self.kept.floor <= last {
            push_range(&mut self.kept_gone, first..last + 1);
        }
        let end_row = self.containing(view, last)?.filter(|row| row.first_seq >= at);
        let end = end_row.as_ref().map_or(last + 1, |row| row.first_seq);
        self.drop_rows(view, at, end)?;
        if let Some(row) = end_row {
            self.remove_within(&row, row.first_seq, last);
        }
        Ok(())
    }

    /// The row whose block holds `seq`, live or dead.
    pub(crate) fn containing(&self, view: &dyn View, seq: u64) -> Result<Option<Arc<BlockRow>>, Error> {
        if let Some((_, slot)) = self.rows.range(..=seq).next_back()
            && slot.row.contains(seq)
        {
            return Ok(Some(Arc::clone(&slot.row)));
        }
        if seq >= self.complete_from || seq < self.meta.floor {
            return Ok(None);
        }
        let from = {
            let vacant = self.vacant.lock();
            if vacant.around(seq).is_some() {
                return Ok(None);
            }
            vacant.end_below(seq).max(self.meta.floor)
        };
        let range = self.row_range(from..seq + 1);
        let mut cursor = view.scan(Table::BlockIndex, &range, Scan::Backward);
        let below = match cursor.next()? {
            Some((key, value)) => {
                let row = self.decode_row(key, value)?;
                if row.contains(seq) && !self.is_dropped(row.first_seq) {
                    return Ok(Some(Arc::new(row)));
                }
                if row.contains(seq) { row.first_seq } else { row.next_seq() }
            }
            None => from,
        };
        self.nothing_between(below, seq + 1);
        Ok(None)
    }

    /// The table has no row of this range, which begins in no block: it is vacant up to the first row in memory.
    fn nothing_from(&self, start: u64, end: u64) {
        let known = self.rows.range(start..end).next().map_or(end, |(first_seq, _)| *first_seq);
        self.vacant.lock().add(start..known);
    }

    /// The table has no row of this range, which is below `complete_from`: it is vacant behind the last row in memory.
    fn nothing_between(&self, start: u64, end: u64) {
        let known = self.rows.range(..end).next_back().map_or(0, |(_, slot)| slot.row.next_seq());
        self.vacant.lock().add(start.max(known)..end);
    }

    /// Up to `limit` rows that hold sequences from `from` on, in order.
    pub(crate) fn rows_from(
        &self,
        view: &dyn View,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Arc<BlockRow>>, Error> {
        let from = from.max(self.meta.floor);
        let start = match self.containing(view, from)? {
            Some(row) => row.first_seq,
            None => self.vacant.lock().around(from).map_or(from, |vacant| vacant.end),
        };
        let mut newer = self.rows.range(start..).map(|(_, slot)| &slot.row).peekable();
        let mut found = Vec::new();
        if start < self.complete_from {
            let range = self.row_range(start..self.complete_from);
            let mut cursor = view.scan(Table::BlockIndex, &range, Scan::Forward);
            let mut is_first = true;
            while found.len() < limit
                && let Some((key, value)) = cursor.next()?
            {
                let row = self.decode_row(key, value)?;
                if std::mem::take(&mut is_first) {
                    self.nothing_from(start, row.first_seq);
                }
                while let Some(known) = newer.next_if(|known| known.first_seq < row.first_seq) {
                    found.push(Arc::clone(known));
                }
                let known = newer.next_if(|known| known.first_seq == row.first_seq);
                match known {
                    Some(known) => found.push(Arc::clone(known)),
                    None if self.is_dropped(row.first_seq) => {}
                    None => found.push(Arc::new(row)),
                }
            }
            if is_first {
                self.nothing_from(start, self.complete_from);
            }
        }
        let missing = limit.saturating_sub(found.len());
        found.extend(newer.take(missing).cloned());
        found.truncate(limit);
        Ok(found)
    }

    /// Adds what changed to a checkpoint. Returns what to hand to `written` once it is.
    pub(crate) fn checkpoint(&mut self, batch: &mut Batch) -> u64 {
        self.epoch += 1;
        batch.made_from(self.space);
        let group = self.space.group;
        let table = Table::BlockIndex;
        for (start, dropped) in &self.dropped {
            match &dropped.keys {
                Some(keys) => keys.iter().for_each(|seq| batch.delete(group, table, suffix(TAG_ROW, *seq))),
                None => {
                    batch.delete_range(group, table, suffix(TAG_ROW, *start), suffix(TAG_ROW, dropped.end));
                }
            }
        }
        for first_seq in std::mem::take(&mut self.candidates_gone) {
            batch.delete(group, table, suffix(TAG_CANDIDATE, first_seq));
        }
        for range in std::mem::take(&mut self.kept_gone) {
            if range.end - range.start <= KEYS_BEFORE_RANGE as u64 {
                range.for_each(|seq| batch.delete(group, Table::Kept, seq.to_be_bytes().to_vec()));
            } else {
                let (from, to) = (range.start.to_be_bytes().to_vec(), range.end.to_be_bytes().to_vec());
                batch.delete_range(group, Table::Kept, from, to);
            }
        }
        for dead in self.died.values() {
            batch.put(group, table, suffix(TAG_DEAD, dead.from_index), dead.encode());
        }
        let rows: Vec<u64> = std::mem::take(&mut self.dirty).into_iter().collect();
        for first_seq in &rows {
            if let Some(slot) = self.rows.get_mut(first_seq) {
                slot.state = SlotState::Writing;
                batch.put(group, table, suffix(TAG_ROW, *first_seq), slot.row.encode());
            }
        }
        for first_seq in std::mem::take(&mut self.candidates_new) {
            batch.put(group, table, suffix(TAG_CANDIDATE, first_seq), Bytes::new());
        }
        if std::mem::take(&mut self.meta_dirty) {
            batch.put(group, table, suffix(TAG_META, META), self.meta.encode());
        }
        self.in_flight.push(InFlight {
            epoch: self.epoch,
            rows,
            dropped: std::mem::take(&mut self.dropped),
            died: std::mem::take(&mut self.died),
        });
        self.epoch
    }

    /// A checkpoint is written: what died by then may be dropped, and rows need not stay in memory.
    pub(crate) fn written(&mut self, epoch: u64) {
        let (done, waiting) =
            std::mem::take(&mut self.in_flight).into_iter().partition(|part| part.epoch <= epoch);
        self.in_flight = waiting;
        let done: Vec<InFlight> = done;
        for part in done {
            self.droppable.extend(part.died);
            for first_seq in part.rows {
                if let Some(slot) = self.rows.get_mut(&first_seq)
                    && slot.state == SlotState::Writing
                    && !self.in_flight.iter().any(|later| later.rows.binary_search(&first_seq).is_ok())
                {
                    slot.state = SlotState::Clean;
                }
            }
        }
        self.forget_old_rows();
    }

    /// A row that may be cleaned: unchanged since the last checkpoint, so that what would be re-applied after a crash
    /// still finds every record it may ask for.
    pub(crate) fn cleanable(&self, view: &dyn View, first_seq: u64) -> Result<Option<Arc<BlockRow>>, Error> {
        if let Some(slot) = self.rows.get(&first_seq) {
            return Ok((slot.state == SlotState::Clean).then(|| Arc::clone(&slot.row)));
        }
        Ok(self.containing(view, first_seq)?.filter(|row| row.first_seq == first_seq))
    }

    /// The row's live records are on their way to `kept`, in `batch`.
    pub(crate) fn moving(&mut self, row: &Arc<BlockRow>, batch: &mut Batch) {
        self.candidates.remove(&row.first_seq);
        self.candidates_new.remove(&row.first_seq);
        self.rows.insert(row.first_seq, Slot { row: Arc::clone(row), state: SlotState::Moving });
        let empty = self.kept.last == 0;
        for (seq, _) in row.live_from(0) {
            self.kept.floor = if empty && self.kept.last == 0 { seq } else { self.kept.floor.min(seq) };
            self.kept.last = self.kept.last.max(seq);
        }
        batch.put(self.space.group, Table::BlockIndex, suffix(TAG_META, KEPT_BOUNDS), self.kept.encode());
    }

    /// They are there.
    pub(crate) fn moved(&mut self, first_seq: u64) {
        if self.rows.get(&first_seq).is_some_and(|slot| slot.state == SlotState::Moving)
            && let Some(slot) = self.rows.remove(&first_seq)
        {
            self.vacate(first_seq..slot.row.next_seq());
        }
    }

    fn vacate(&mut self, range: Range<u64>) {
        self.vacant.get_mut().add(range.start..range.end.min(self.complete_from));
    }

    /// Moves the floors up to what is really left. Costs a seek over what died since it was last called.
    pub(crate) fn raise_floors(&mut self, view: &dyn View) -> Result<(), Error> {
        let floor = match self.rows_from(view, self.meta.floor, 1)?.first() {
            Some(row) => row.first_seq,
            None => self.meta.last_seq + 1,
        };
        self.meta_dirty |= floor != self.meta.floor;
        self.meta.floor = floor;
        let moving = self.rows.values().any(|slot| slot.state == SlotState::Moving);
        if self.kept.last > 0 && !moving {
            let range = KeyRange { from: self.space.numbered(self.kept.floor), to: self.space.range().to };
            // In memory only: the row on disk stays valid, because bounds may be too wide.
            match view.scan(Table::Kept, &range, Scan::Forward).next()? {
                Some((key, _)) => self.kept.floor = keys::trailing_number(key).unwrap_or(self.kept.floor),
                None => self.kept = KeptBounds::default(),
            }
        }
        Ok(())
    }

    fn remove_within(&mut self, row: &Arc<BlockRow>, first: u64, last: u64) {
        let first_seq = row.first_seq;
        let slot = self
            .rows
            .entry(first_seq)
            .or_insert_with(|| Slot { row: Arc::clone(row), state: SlotState::Clean });
        if slot.state == SlotState::Moving {
            push_range(&mut self.kept_gone, first..last + 1);
            return;
        }
        let row = Arc::make_mut(&mut slot.row);
        row.remove(first, last);
        if row.live() == 0 {
            let dead = Dead {
                from_index: row.log_index,
                to_index: row.log_index,
                first_seq,
                next_seq: row.next_seq(),
            };
            self.rows.remove(&first_seq);
            self.vacate(first_seq..dead.next_seq);
            self.dropped_rows(first_seq..dead.next_seq, Some(first_seq));
            self.died(dead);
            return;
        }
        let worth_cleaning = row.is_mostly_dead();
        slot.state = SlotState::Dirty;
        self.dirty.insert(first_seq);
        if worth_cleaning && self.candidates.insert(first_seq) {
            self.candidates_new.insert(first_seq);
        }
    }

    /// Every row that starts in `from..to` is gone as a whole.
    fn drop_rows(&mut self, view: &dyn View, from: u64, to: u64) -> Result<(), Error> {
        if from >= to || self.vacant.lock().around(from).is_some_and(|vacant| to <= vacant.end) {
            return Ok(());
        }
        let mut ends: Option<(BlockRow, BlockRow)> = None;
        let stored = from.max(self.meta.floor)..to.min(self.complete_from);
        if stored.start < stored.end {
            let range = self.row_range(stored);
            let lowest = self.end_row(view, &range, Scan::Forward)?;
            ends = lowest.zip(self.end_row(view, &range, Scan::Backward)?);
        }
        let known: Vec<u64> = self.rows.range(from..to).map(|(first_seq, _)| *first_seq).collect();
        if ends.is_none() && known.is_empty() {
            return Ok(());
        }
        let mut is_vacant = true;
        for first_seq in known {
            if self.rows.get(&first_seq).is_some_and(|slot| slot.state == SlotState::Moving) {
                is_vacant = false;
                continue;
            }
            if let Some(Slot { row, .. }) = self.rows.remove(&first_seq) {
                let index = row.log_index;
                self.died(Dead { from_index: index, to_index: index, first_seq, next_seq: row.next_seq() });
            }
        }
        if let Some((lowest, highest)) = ends {
            self.died(Dead {
                from_index: lowest.log_index,
                to_index: highest.log_index,
                first_seq: lowest.first_seq,
                next_seq: highest.next_seq(),
            });
        }
        if is_vacant {
            self.vacate(from..to);
        }
        self.dropped_rows(from..to, None);
        Ok(())
    }

    fn end_row(&self, view: &dyn View, range: &KeyRange, how: Scan) -> Result<Option<BlockRow>, Error> {
        let mut cursor = view.scan(Table::BlockIndex, range, how);
        while let Some((key, value)) = cursor.next()? {
            let row = self.decode_row(key, value)?;
            if !self.is_dropped(row.first_seq) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Notes that every row that starts in the range is gone; `only` if that is a single one.
    fn dropped_rows(&mut self, range: Range<u64>, only: Option<u64>) {
        let gone: Vec<u64> = self.candidates.range(range.clone()).copied().collect();
        for first_seq in gone {
            self.candidates.remove(&first_seq);
            if !self.candidates_new.remove(&first_seq) {
                self.candidates_gone.push(first_seq);
            }
        }
        let gone: Vec<u64> = self.dirty.range(range.clone()).copied().collect();
        for first_seq in gone {
            self.dirty.remove(&first_seq);
        }
        let mut all = Dropped { end: range.end, keys: only.map(|first_seq| vec![first_seq]) };
        let mut start = range.start;
        if let Some((before, dropped)) = self.dropped.range(..=start).next_back()
            && dropped.end >= start
        {
            start = *before;
        }
        // Ranges stay apart from each other, so that one look finds whether a row is gone.
        while let Some(touching) =
            self.dropped.range(start..).next().map(|(from, _)| *from).filter(|from| *from <= all.end)
            && let Some(dropped) = self.dropped.remove(&touching)
        {
            all.end = all.end.max(dropped.end);
            all.keys = all.keys.zip(dropped.keys).map(|(mut keys, others)| {
                keys.extend(others);
                keys
            });
        }
        all.keys = all.keys.filter(|keys| keys.len() <= KEYS_BEFORE_RANGE);
        self.dropped.insert(start, all);
    }

    /// Neighbors become one: a purge or a head that moves on is one range delete, however many blocks it was.
    fn died(&mut self, mut dead: Dead) {
        if dead.first_seq <= self.meta.floor && dead.next_seq > self.meta.floor {
            self.meta.floor = dead.next_seq;
            self.meta_dirty = true;
        }
        if let Some((_, before)) = self.died.range(..=dead.from_index).next_back()
            && (before.next_seq == dead.first_seq || before.to_index >= dead.from_index)
        {
            dead.from_index = before.from_index;
            dead.first_seq = dead.first_seq.min(before.first_seq);
            dead.to_index = dead.to_index.max(before.to_index);
            dead.next_seq = dead.next_seq.max(before.next_seq);
            self.died.remove(&dead.from_index);
        }
        while let Some((from, after)) = self.died.range(dead.from_index..).next()
            && (*from <= dead.to_index || after.first_seq == dead.next_seq)
        {
            let (from, after) = (*from, *after);
            dead.to_index = dead.to_index.max(after.to_index);
            dead.next_seq = dead.next_seq.max(after.next_seq);
            self.died.remove(&from);
        }
        self.died.insert(dead.from_index, dead);
    }

    fn is_dropped(&self, first_seq: u64) -> bool {
        let flying = self.in_flight.iter().map(|part| &part.dropped);
        std::iter::once(&self.dropped).chain(flying).any(|dropped| {
            dropped.range(..=first_seq).next_back().is_some_and(|(_, dropped)| first_seq < dropped.end)
        })
    }

    fn forget_old_rows(&mut self) {
        if self.rows.len() <= 2 * RECENT_ROWS {
            return;
        }
        let Some(oldest_recent) = self.rows.keys().rev().nth(RECENT_ROWS).copied() else { return };
        self.rows.retain(|first_seq, slot| *first_seq >= oldest_recent || slot.state != SlotState::Clean);
        self.complete_from = self.complete_from.max(oldest_recent);
    }

    fn row_range(&self, first_seqs: Range<u64>) -> KeyRange {
        KeyRange {
            from: self.space.tagged(TAG_ROW, first_seqs.start),
            to: self.space.tagged(TAG_ROW, first_seqs.end),
        }
    }

    fn decode_row(&self, key: &[u8], value: &[u8]) -> Result<BlockRow, Error> {
        decode_row(self.space, key, value)
    }
}

/// A row as it lies in the table.
pub(crate) fn decode_row(space: Space, key: &[u8], value: &[u8]) -> Result<BlockRow, Error> {
    let first_seq = keys::trailing_number(key).unwrap_or(0);
    BlockRow::decode(first_seq, value).ok_or_else(|| {
        Error::damaged(
            space.group,
            Table::BlockIndex,
            format!("the row of sequence {first_seq}"),
            "it does not decode",
        )
    })
}

pub(crate) fn suffix(tag: u8, number: u64) -> Vec<u8> {
    let mut suffix = Vec::with_capacity(9);
    suffix.push(tag);
    suffix.extend_from_slice(&number.to_be_bytes());
    suffix
}

/// Sees a row: its number and its value.
type EachRow<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

fn each(view: &dyn View, space: Space, tag: u8, from: u64, visit: &mut EachRow<'_>) -> Result<(), Error> {
    let range = KeyRange { from: space.tagged(tag, from), to: space.tagged(tag + 1, 0) };
    let mut cursor = view.scan(Table::BlockIndex, &range, Scan::Forward);
    while let Some((key, value)) = cursor.next()? {
        visit(keys::trailing_number(key).unwrap_or(0), value)?;
    }
    Ok(())
}

fn push_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

impl Dead {
    pub(crate) fn encode(self) -> Bytes {
        let mut value = Vec::with_capacity(28);
        for number in [self.to_index, self.first_seq, self.next_seq] {
            value.extend_from_slice(&number.to_le_bytes());
        }
        seal(value)
    }

    fn decode(from_index: u64, value: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(value)?);
        let dead =
            Self { from_index, to_index: fields.u64()?, first_seq: fields.u64()?, next_seq: fields.u64()? };
        fields.end()?;
        (dead.to_index >= from_index).then_some(dead)
    }
}

impl Default for Meta {
    fn default() -> Self {
        Self { floor: 1, last_seq: 0, next_index: 0, last_time: Timestamp::ZERO }
    }
}

impl Meta {
    /// As of the last checkpoint.
    pub(crate) fn load(view: &dyn View, space: Space) -> Result<Self, Error> {
        match view.read(Table::BlockIndex, &space.tagged(TAG_META, META))? {
            Some(value) => Self::decode(&value).ok_or_else(|| damaged(space, "the block index")),
            None => Ok(Self::default()),
        }
    }

    fn encode(self) -> Bytes {
        let mut value = Vec::with_capacity(36);
        for number in [self.floor, self.last_seq, self.next_index] {
            value.extend_from_slice(&number.to_le_bytes());
        }
        value.extend_from_slice(&self.last_time.0.to_le_bytes());
        seal(value)
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(value)?);
        let meta = Self {
            floor: fields.u64()?,
            last_seq: fields.u64()?,
            next_index: fields.u64()?,
            last_time: Timestamp(fields.i64()?),
        };
        fields.end()?;
        Some(meta)
    }
}

impl KeptBounds {
    pub(crate) fn encode(self) -> Bytes {
        let mut value = Vec::with_capacity(20);
        value.extend_from_slice(&self.floor.to_le_bytes());
        value.extend_from_slice(&self.last.to_le_bytes());
        seal(value)
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(value)?);
        let bounds = Self { floor: fields.u64()?, last: fields.u64()? };
        fields.end()?;
        Some(bounds)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use levee_protocol::ids::GroupId;
    use levee_protocol::record::BlockBuilder;

    use super::*;
    use crate::engine::{Cursor, Durability, Operation, WriteSet};
    use crate::memory::MemoryDisk;
    use crate::storage::Storage;

    const SPACE: Space = Space { group: GroupId(16), generation: 0 };
    const RECORDS: u64 = 4;
    const BLOCKS: u64 = 3 * RECENT_ROWS as u64;

    /// Counts how often somebody looks into a table.
    struct Counting<'a>(&'a dyn View, AtomicUsize);

    impl View for Counting<'_> {
        fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
            self.0.read(table, key)
        }

        fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.scan(table, range, how)
        }
    }

    fn write(storage: &Storage, index: &mut Index) {
        let mut batch = Batch::new();
        let epoch = index.checkpoint(&mut batch);
        storage.write(batch, Durability::Ordered).unwrap();
        index.written(epoch);
    }

    /// All blocks but the first and the last have lost their messages, and that is on disk.
    fn hollow(storage: &Arc<Storage>) -> Index {
        drop(storage.messages(SPACE.group).unwrap());
        let mut index = Index::load(storage.engine(), SPACE).unwrap();
        for at in 0..BLOCKS {
            let mut block = BlockBuilder::default();
            (0..RECORDS).for_each(|_| block.push(b"a", b"", b""));
            index.stored(at + 1, &block.finish(Timestamp(1)), 1 + at * RECORDS, &[]);
        }
        write(storage, &mut index);
        index.removed(storage.engine(), 1 + RECORDS, (BLOCKS - 1) * RECORDS).unwrap();
        write(storage, &mut index);
        index
    }

    #[test]
    fn nobody_looks_twice_for_blocks_where_there_are_none() {
        let storage = Storage::in_memory(MemoryDisk::new());
        let mut index = hollow(&storage);
        // As if the messages there had been moved before their blocks went.
        index.kept = KeptBounds { floor: 1 + RECORDS, last: (BLOCKS - 1) * RECORDS };
        let view = Counting(storage.engine(), AtomicUsize::new(0));

        let moved = 1 + RECORDS..=(BLOCKS - 1) * RECORDS;
        for seq in moved.clone().step_by(7).chain(moved.rev().step_by(5)) {
            assert!(index.containing(&view, seq).unwrap().is_none());
            index.removed(&view, seq, seq).unwrap();
        }

        let looks = view.1.load(Ordering::Relaxed);
        assert!(looks <= 4, "{looks} looks into the table");
        let mut batch = Batch::new();
        index.checkpoint(&mut batch);
        let mut set = WriteSet::default();
        batch.resolve(&mut set, |_| Some(SPACE));
        let ranges = set.operations.iter().filter(|one| matches!(one, Operation::DeleteRange { .. })).count();
        assert_eq!(ranges, 0, "range tombstones for rows that are not there");
        assert!(
            index.containing(&view, 1).unwrap().is_some()
                && index.containing(&view, BLOCKS * RECORDS).unwrap().is_some()
        );
    }

    #[test]
    fn a_scan_leaves_out_what_it_has_found_vacant() {
        let storage = Storage::in_memory(MemoryDisk::new());
        let index = hollow(&storage);
        let view = Counting(storage.engine(), AtomicUsize::new(0));

        for from in 1 + RECORDS..(BLOCKS - 300) * RECORDS {
            let rows = index.rows_from(&view, from, 1).unwrap();
            assert_eq!(rows[0].first_seq, (BLOCKS - 1) * RECORDS + 1);
        }

        let looks = view.1.load(Ordering::Relaxed);
        assert!(looks <= 4, "{looks} looks into the table");
    }

    #[test]
    fn after_a_start_each_region_is_looked_at_once() {
        let storage = Storage::in_memory(MemoryDisk::new());
        drop(hollow(&storage));
        let mut index = Index::load(storage.engine(), SPACE).unwrap();
        let view = Counting(storage.engine(), AtomicUsize::new(0));

        let all = 1 + RECORDS..(BLOCKS - 1) * RECORDS;
        for seq in all.clone().rev().chain(all) {
            index.removed(&view, seq, seq).unwrap();
            assert_eq!(index.rows_from(&view, seq, 1).unwrap().len(), 1);
        }

        // The one that finds the last row is there for each.
        let looks = view.1.load(Ordering::Relaxed) as u64;
        assert!(looks <= 2 * BLOCKS * RECORDS + 8, "{looks} looks into the table");
    }
}
