//! The messages of a stream, by sequence: what apply stored and removed, read back by consumers.
//!
//! A message lies where the log put it, in its block; this is the index over the blocks, kept in memory for what
//! changed and written by checkpoints. Removing is bookkeeping here; blocks are dropped, and mostly dead ones emptied
//! into `kept`, by `cleaning.rs`.
//!
//! One caller changes it (the group's state machine), any number read.
//!
//! Hot path: `stored` costs one row per block; `scan` costs two short locks per block and nothing per message.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::Seq;
use levee_protocol::record::single::{self, Wanted};
use levee_protocol::record::{Block, Record, RecordRef};
use levee_protocol::time::Timestamp;
use parking_lot::{Mutex, RwLock};

use crate::batch::Batch;
use crate::block_index::{Index, KeptBounds};
use crate::block_row::BlockRow;
use crate::engine::{Cursor, Scan};
use crate::error::Error;
use crate::group::Group;
use crate::kept;
use crate::keys::{self, KeyRange, Space, Table};
use crate::moments::{self, Moment};
use crate::storage::Storage;

/// Smaller blocks are read whole and kept: their other records may be asked for next.
const SINGLE_BYTES_MIN: u32 = 32 << 10;
/// Rows that a scan fetches under one lock.
const ROWS_PER_LOOK: usize = 64;
/// The first look is a short one: many scans end in their first block.
const ROWS_FIRST_LOOK: usize = 4;
/// A reader that wanted this many messages at once, and found them on the disk, probably wants the next block soon.
const READ_AHEAD_FROM: usize = 32;
/// It gets about so much of what comes next.
const READ_AHEAD_BYTES: u32 = 2 << 20;
/// How often a reader looks again when a block moved away underneath it.
const LOOKS: usize = 8;
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// A bulk cursor is cheaper than a seek until it has to step over this many log indexes.
const STEPS_MAX: u64 = 64;

/// The messages of one stream. Shared by its state machine, which alone changes it, and its readers.
pub struct MessageStore {
    pub(crate) storage: Arc<Storage>,
    pub(crate) group: Arc<Group>,
    pub(crate) index: RwLock<Index>,
    pub(crate) cleaning: Mutex<()>,
}

impl MessageStore {
    pub(crate) fn open(storage: &Arc<Storage>, group: Arc<Group>) -> Result<Arc<Self>, Error> {
        let index = Index::load(storage.engine(), group.space())?;
        Ok(Arc::new(Self {
            storage: Arc::clone(storage),
            group,
            index: RwLock::new(index),
            cleaning: Mutex::new(()),
        }))
    }

    /// The records of `block` at all positions but `holes` (sorted) became consecutive sequences from `first_seq`
    /// on. Repeating what is part of the loaded checkpoint, or was said before, changes nothing.
    pub fn stored(&self, log_index: u64, block: &Block, first_seq: Seq, holes: &[u32]) {
        let mut index = self.index.write();
        index.stored(log_index, block, first_seq.0, holes);
        moments::reached(Moment::Applied);
    }

    /// Keeps a block in memory that was just stored and will be read soon.
    pub fn keep(&self, log_index: u64, block: &Block) {
        let space = self.index.read().space;
        self.storage.cache().keep(space, log_index, block);
    }

    /// These sequences, inclusive, are gone. Repeating it changes nothing.
    pub fn removed(&self, first: Seq, last: Seq) -> Result<(), Error> {
        if first > last {
            return Ok(());
        }
        self.index.write().removed(self.storage.engine(), first.0, last.0)
    }

    /// The message with this sequence. May still return one that was removed: the state machine knows.
    pub fn record(&self, seq: Seq) -> Result<Option<Record>, Error> {
        let mut lost = None;
        for _ in 0..LOOKS {
            let (row, space, kept) = {
                let index = self.index.read();
                (index.containing(self.storage.engine(), seq.0)?, index.space, index.kept)
            };
            let Some(row) = row else { return self.kept(space, kept, seq) };
            if row.is_dead(seq.0) {
                return Ok(None);
            }
            let whole = |block: Block| Ok(Some(block.record_owned(row.position(seq.0), seq)));
            if let Some(block) = self.near_block(space, &row)? {
                return whole(block);
            }
            if let Some(record) = self.single(space, &row, seq)? {
                return Ok(Some(record));
            }
            if let Some(block) = self.read_block(space, &row)? {
                return whole(block);
            }
            if let Some(record) = self.kept(space, kept, seq)? {
                return Ok(Some(record));
            }
            lost = Some(row);
            std::thread::sleep(LOOK_PAUSE);
        }
        Err(self.lost(lost.as_deref()))
    }

    /// Visits messages from a sequence on, in order, until the visitor breaks. May still visit ones that were removed.
    pub fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut at = from.0;
        let mut blocks = BlockReader::new(self);
        let mut looks_left = LOOKS;
        let mut limit = ROWS_FIRST_LOOK;
        let mut visited = 0;
        loop {
            let (rows, space, kept) = {
                let index = self.index.read();
                (index.rows_from(self.storage.engine(), at, limit)?, index.space, index.kept)
            };
            limit = ROWS_PER_LOOK;
            if rows.is_empty() {
                return self.scan_kept(space, kept, at, u64::MAX, visit).map(drop);
            }
            for (at_row, row) in rows.iter().enumerate() {
                let start = row.first_seq.max(at);
                if self.scan_kept(space, kept, at, start, visit)?.is_break() {
                    return Ok(());
                }
                at = start;
                match blocks.read(space, row)? {
                    Some(block) => {
                        looks_left = LOOKS;
                        for (seq, position) in row.live_from(at) {
                            visited += 1;
                            if visit(Seq(seq), block.record(position)).is_break() {
                                self.storage.cache().keep(space, row.log_index, &block);
                                if visited >= READ_AHEAD_FROM {
                                    self.read_ahead(space, &rows[at_row + 1..]);
                                }
                                return Ok(());
                            }
                        }
                        at = row.next_seq();
                    }
                    None if looks_left == 0 => return Err(self.lost(Some(row))),
                    // It was dropped or moved to `kept` meanwhile: look again.
                    None => {
                        looks_left -= 1;
                        let kept = self.index.read().kept;
                        let (flow, visited) = self.count_kept(space, kept, at, row.next_seq(), visit)?;
                        if flow.is_break() {
                            return Ok(());
                        }
                        if visited > 0 {
                            at = row.next_seq();
                        } else {
                            std::thread::sleep(LOOK_PAUSE);
                        }
                        break;
                    }
                }
            }
        }
    }

    fn read_ahead(&self, space: Space, rows: &[Arc<BlockRow>]) {
        let Some(read_ahead) = self.storage.read_ahead() else { return };
        let mut bytes = 0;
        for row in rows {
            if bytes >= READ_AHEAD_BYTES || self.group.tail_block(row.log_index).is_some() {
                return;
            }
            bytes += row.size;
            if !self.storage.cache().contains(space, row.log_index) {
                read_ahead.request(&self.group, space, row);
            }
        }
    }

    /// The first message that was stored at this time or later. May be one that was removed since; the next live one
    /// is then the answer.
    pub fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, Error> {
        let (meta, kept) = {
            let index = self.index.read();
            (index.meta, index.kept)
        };
        if meta.last_seq == 0 || meta.last_time < at {
            return Ok(None);
        }
        let (mut low, mut high) =
            (if kept.last > 0 { meta.floor.min(kept.floor) } else { meta.floor }, meta.last_seq);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.time_from(middle)? {
                Some((seq, time)) if time < at => low = seq.0.max(middle) + 1,
                _ => high = middle,
            }
        }
        match self.time_from(low)?.filter(|(_, time)| *time >= at) {
            Some((seq, _)) => self.seek_within(seq, at).map(Some),
            None => Ok(None),
        }
    }

    /// In a block whose records have times of their own, the first one of this time or later.
    fn seek_within(&self, from: Seq, at: Timestamp) -> Result<Seq, Error> {
        let (row, space) = {
            let index = self.index.read();
            (index.containing(self.storage.engine(), from.0)?, index.space)
        };
        let Some(row) = row else { return Ok(from) };
        // A block that is gone meanwhile was emptied into rows that are found one by one.
        let Some(block) = self.block(space, &row)?.filter(Block::is_timed) else { return Ok(from) };
        let mut live = row.live_from(from.0);
        let found = live.find(|(_, position)| block.record(*position).timestamp >= at);
        Ok(found.map_or(from, |(seq, _)| Seq(seq)))
    }

    /// Adds the index rows that changed since the last checkpoint. The batch must also hold the state that caused them,
    /// and must be written or the storage be failed: what is added here is not added again.
    pub fn checkpoint(self: &Arc<Self>, batch: &mut Batch) {
        let epoch = self.index.write().checkpoint(batch);
        let store = Arc::downgrade(self);
        batch.on_written(move || {
            if let Some(store) = store.upgrade() {
                store.index.write().written(epoch);
            }
        });
    }

    /// Forgets everything in memory and loads the last checkpoint, as after a snapshot was installed.
    pub fn reload(&self) -> Result<(), Error> {
        let mut index = self.index.write();
        *index = Index::load(self.storage.engine(), self.group.space())?;
        Ok(())
    }

    /// One record of a large block that is not in memory, without reading the rest of it. `None` where that is not the
    /// way: the block is near, small, of an older version, or gone.
    fn single(&self, space: Space, row: &BlockRow, seq: Seq) -> Result<Option<Record>, Error> {
        if row.size < SINGLE_BYTES_MIN {
            return Ok(None);
        }
        let Some(value) = self.storage.engine().open_value(Table::Blocks, &space.numbered(row.log_index))?
        else {
            return Ok(None);
        };
        if value.len() != row.size as usize {
            return Ok(None);
        }
        let position = row.position(seq.0);
        let wanted = Wanted { block_bytes: row.size as usize, count: row.count, position, seq };
        single::read(wanted, &mut |from, len| value.part(from, len))?.map_err(|error| {
            Error::damaged(self.group.id, Table::Blocks, format!("block {}", row.log_index), error)
        })
    }

    /// The block of a row: from the cache, from the log's tail if it is not written yet, from the disk.
    pub(crate) fn block(&self, space: Space, row: &BlockRow) -> Result<Option<Block>, Error> {
        match self.near_block(space, row)? {
            Some(block) => Ok(Some(block)),
            None => self.read_block(space, row),
        }
    }

    fn read_block(&self, space: Space, row: &BlockRow) -> Result<Option<Block>, Error> {
        let Some(bytes) = self.storage.engine().read(Table::Blocks, &space.numbered(row.log_index))? else {
            return Ok(None);
        };
        let block = self.parse(row, bytes)?;
        self.storage.cache().keep(space, row.log_index, &block);
        Ok(Some(block))
    }

    fn near_block(&self, space: Space, row: &BlockRow) -> Result<Option<Block>, Error> {
        if let Some(block) = self.storage.cache().find(space, row.log_index)
            && row.describes(&block)
        {
            return Ok(Some(block));
        }
        let Some(bytes) = self.group.tail_block(row.log_index) else { return Ok(None) };
        let block = self.parse(row, bytes)?;
        // A follower that looks up what it removes comes back for the next message.
        self.storage.cache().keep(space, row.log_index, &block);
        Ok(Some(block))
    }

    fn parse(&self, row: &BlockRow, bytes: Bytes) -> Result<Block, Error> {
        let damaged = |reason: String| {
            Error::damaged(self.group.id, Table::Blocks, format!("block {}", row.log_index), reason)
        };
        let block = Block::parse(bytes).map_err(|error| damaged(error.to_string()))?;
        if row.describes(&block) {
            Ok(block)
        } else {
            Err(damaged("it is not the block that was stored".into()))
        }
    }

    fn kept(&self, space: Space, kept: KeptBounds, seq: Seq) -> Result<Option<Record>, Error> {
        if kept.last < seq.0 || seq.0 < kept.floor {
            return Ok(None);
        }
        let Some(row) = self.storage.engine().read(Table::Kept, &space.numbered(seq.0))? else {
            return Ok(None);
        };
        Ok(Some(self.decode_kept(seq, &row)?.0))
    }

    fn scan_kept(
        &self,
        space: Space,
        kept: KeptBounds,
        from: u64,
        to: u64,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        Ok(self.count_kept(space, kept, from, to, visit)?.0)
    }

    /// Visits the kept records in `from..to` and says how many there were.
    fn count_kept(
        &self,
        space: Space,
        kept: KeptBounds,
        from: u64,
        to: u64,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(ControlFlow<()>, usize), Error> {
        let from = from.max(kept.floor);
        let to = to.min(kept.last.saturating_add(1));
        let mut visited = 0;
        if from >= to {
            return Ok((ControlFlow::Continue(()), visited));
        }
        let range = KeyRange { from: space.numbered(from), to: space.numbered(to) };
        let mut cursor = self.storage.engine().scan(Table::Kept, &range, Scan::Forward);
        while let Some((key, value)) = cursor.next()? {
            let seq = Seq(keys::trailing_number(key).unwrap_or(0));
            let (record, _) = self.decode_kept(seq, &Bytes::copy_from_slice(value))?;
            visited += 1;
            if visit(seq, record.borrowed()).is_break() {
                return Ok((ControlFlow::Break(()), visited));
            }
        }
        Ok((ControlFlow::Continue(()), visited))
    }

    fn decode_kept(&self, seq: Seq, row: &Bytes) -> Result<(Record, Timestamp), Error> {
        kept::decode(seq, row).ok_or_else(|| {
            Error::damaged(
                self.group.id,
                Table::Kept,
                format!("message {seq}"),
                "its checksum does not match",
            )
        })
    }

    /// The first message at or behind a sequence, with its time as searches see it.
    fn time_from(&self, from: u64) -> Result<Option<(Seq, Timestamp)>, Error> {
        let engine = self.storage.engine();
        let index = self.index.read();
        let row = index.rows_from(engine, from, 1)?.into_iter().next();
        let row = row.map(|row| (Seq(row.first_seq.max(from)), row.time));
        if index.kept.last < from {
            return Ok(row);
        }
        let first = from.max(index.kept.floor);
        let range = KeyRange { from: index.space.numbered(first), to: index.space.range().to };
        let mut cursor = engine.scan(Table::Kept, &range, Scan::Forward);
        let kept = match cursor.next()? {
            Some((key, value)) => {
                let seq = Seq(keys::trailing_number(key).unwrap_or(0));
                Some((seq, self.decode_kept(seq, &Bytes::copy_from_slice(value))?.1))
            }
            None => None,
        };
        Ok(row.into_iter().chain(kept).min_by_key(|(seq, _)| *seq))
    }

    fn lost(&self, row: Option<&BlockRow>) -> Error {
        let what = row.map_or_else(|| "a block".into(), |row| format!("block {}", row.log_index));
        Error::damaged(self.group.id, Table::Blocks, what, "it is missing")
    }
}

/// Reads blocks in ascending order: single ones by key, from the second miss on through a cursor that reads ahead.
struct BlockReader<'a> {
    store: &'a MessageStore,
    misses: u32,
    cursor: Option<(Space, Box<dyn Cursor + 'a>, u64)>,
}

impl<'a> BlockReader<'a> {
    fn new(store: &'a MessageStore) -> Self {
        Self { store, misses: 0, cursor: None }
    }

    fn read(&mut self, space: Space, row: &BlockRow) -> Result<Option<Block>, Error> {
        if let Some(block) = self.store.near_block(space, row)? {
            return Ok(Some(block));
        }
        if self.store.storage.read_ahead().is_some_and(|ahead| ahead.wait_for(space, row.log_index))
            && let Some(block) = self.store.near_block(space, row)?
        {
            return Ok(Some(block));
        }
        self.misses += 1;
        if self.misses < 2 {
            return self.store.block(space, row);
        }
        match self.read_ahead(space, row)? {
            Some(block) => Ok(Some(block)),
            // The cursor shows an older state than the row.
            None => self.store.block(space, row),
        }
    }

    fn read_ahead(&mut self, space: Space, row: &BlockRow) -> Result<Option<Block>, Error> {
        let near = |(of, _, at): &(Space, _, u64)| {
            *of == space && *at <= row.log_index && row.log_index - at <= STEPS_MAX
        };
        if !self.cursor.as_ref().is_some_and(near) {
            let range = KeyRange { from: space.numbered(row.log_index), to: space.range().to };
            let cursor = self.store.storage.engine().scan(Table::Blocks, &range, Scan::Bulk);
            self.cursor = Some((space, cursor, row.log_index));
        }
        let Some((_, cursor, at)) = &mut self.cursor else { return Ok(None) };
        while let Some((key, value)) = cursor.next()? {
            let index = keys::trailing_number(key).unwrap_or(u64::MAX);
            *at = index.saturating_add(1);
            if index == row.log_index {
                return self.store.parse(row, Bytes::copy_from_slice(value)).map(Some);
            }
            if index > row.log_index {
                break;
            }
        }
        self.cursor = None;
        Ok(None)
    }
}
