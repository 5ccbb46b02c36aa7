//! A group's data out of one node and into another: state rows, block index, kept records, and the blocks that hold
//! live records.
//!
//! ```text
//! stream := row* end
//! row    := table u8 | key_len u32 | value_len u32 | key | value      key without group and generation
//! end    := 0 u8 | rows u64
//! chunk  := number u32 | crc32c u32 | part of the stream, at most CHUNK_BYTES
//! ```
//!
//! An export shows the last checkpoint, whatever is written while it runs. An import fills the group's next
//! generation beside the current one; a crash in between leaves the group as it was and the rest marked for removal
//! at the next start. `finish` switches in one synced batch. The log's vote and what the log has behind the snapshot
//! survive, because a follower may have promised to hold them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf, Bytes, BytesMut};
use levee_protocol::record::Block;

use crate::batch::state_suffix;
use crate::block_index::{TAG_CANDIDATE, TAG_DEAD, TAG_META, TAG_ROW, decode_row};
use crate::engine::{Engine, Scan, View, WriteSet};
use crate::entry_row::EntryRow;
use crate::error::Error;
use crate::group::{Group, LogId, encode_log_id};
use crate::keys::{self, HardItem, KeyRange, Scope, Space, Table};
use crate::sealed::{Fields, seal, unseal};
use crate::storage::Storage;
use crate::writer::Work;

/// Payload of a chunk: well under the message limits of transports.
const CHUNK_BYTES: usize = 512 << 10;
const CHUNK_HEAD_BYTES: usize = 8;
const ROW_HEAD_BYTES: usize = 9;
const END: u8 = 0;
/// Larger rows are nothing that was ever exported; refusing them bounds an importer's memory.
const ROW_BYTES_MAX: usize = 256 << 20;
/// Chunks that wait for whoever reads them.
const CHUNKS_AHEAD: usize = 2;

/// The chunks of an export, in order. Dropping it ends the export.
pub struct SnapshotReader {
    chunks: Receiver<Result<Bytes, Error>>,
    failed: bool,
}

impl SnapshotReader {
    /// Starts an export. Also returns the state row with this kind and key as the export shows it.
    pub(crate) fn start(
        storage: &Arc<Storage>,
        space: Space,
        kind: u8,
        key: &[u8],
    ) -> Result<(Self, Option<Bytes>), Error> {
        let (chunk_sender, chunks) = sync_channel(CHUNKS_AHEAD);
        let (row_sender, row) = sync_channel(1);
        let storage = Arc::clone(storage);
        let row_key = space.key(&state_suffix(kind, key));
        std::thread::Builder::new()
            .name(format!("export-{}", space.group))
            .spawn(move || {
                let _reading = storage.export_started();
                storage.engine().with_snapshot(&mut |view| {
                    let _ = row_sender.send(view.read(Table::State, &row_key));
                    let mut chunks = ChunkWriter::new(&chunk_sender);
                    if let Err(Stop::Failed(error)) = export(view, space, &mut chunks) {
                        let _ = chunk_sender.send(Err(error));
                    }
                });
            })
            .map_err(|error| Error::Engine(format!("export thread: {error}")))?;
        let row = row.recv().map_err(|_| Error::Engine("the export ended early".into()))??;
        let row = match row {
            Some(row) => Some(unseal(&row).map(Bytes::copy_from_slice).ok_or_else(|| {
                Error::damaged(
                    space.group,
                    Table::State,
                    format!("row {kind}"),
                    "its checksum does not match",
                )
            })?),
            None => None,
        };
        Ok((Self { chunks, failed: false }, row))
    }
}

impl Iterator for SnapshotReader {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let chunk = self.chunks.recv().ok()?;
        self.failed = chunk.is_err();
        Some(chunk)
    }
}

/// An import in progress. Dropping it unfinished discards it.
pub struct SnapshotWriter {
    storage: Arc<Storage>,
    group: Arc<Group>,
    space: Space,
    pending: BytesMut,
    chunks: u32,
    rows: u64,
    ended: bool,
    finished: bool,
}

impl SnapshotWriter {
    pub(crate) fn start(storage: &Arc<Storage>, group: Arc<Group>) -> Result<Self, Error> {
        let space = Space { group: group.id, generation: group.space().generation + 1 };
        let mut writer = Self {
            storage: Arc::clone(storage),
            group,
            space,
            pending: BytesMut::new(),
            chunks: 0,
            rows: 0,
            ended: false,
            finished: false,
        };
        // What an import that was dropped a moment ago may have left.
        writer.discard()?;
        let work =
            Work::HardRow { item: HardItem::Importing, value: space.generation.to_le_bytes().to_vec() };
        writer.run(work, 0)?;
        Ok(writer)
    }

    /// Takes the next chunk. Blocks until it is written (not synced). After an error the import can only be dropped.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let refused = |why: &str| Error::Snapshot(format!("chunk {}: {why}", self.chunks));
        let mut head = Fields(chunk);
        let (number, checksum) = head.u32().zip(head.u32()).ok_or_else(|| refused("it is cut short"))?;
        if number != self.chunks {
            return Err(refused(&format!("it is number {number}")));
        }
        if self.ended {
            return Err(refused("it comes after the end"));
        }
        if crc32c::crc32c(head.0) != checksum {
            return Err(refused("its checksum does not match"));
        }
        self.chunks += 1;
        self.pending.extend_from_slice(head.0);
        let mut set = WriteSet::default();
        while let Some((table, key, value)) = self.next_row()? {
            set.put(table, self.space.key(&key), value);
        }
        let bytes = set.bytes;
        self.run(Work::Raw(set), bytes)
    }

    /// Makes the import the group's data, in one synced write. `applied` is the last entry that the snapshot covers:
    /// the log is purged up to it, and what it holds behind it stays if the log agrees about `applied` itself.
    pub fn finish(mut self, applied: LogId) -> Result<(), Error> {
        if !self.ended || !self.pending.is_empty() {
            return Err(Error::Snapshot(format!("it is cut short after {} chunks", self.chunks)));
        }
        let replaced = self.group.space();
        let mark = self.group.log.write().first_mark.take();
        self.run(Work::Install { generation: self.space.generation, applied, mark }, 0)?;
        self.finished = true;
        self.storage.reclaim(vec![replaced.range()]);
        Ok(())
    }

    /// Takes one whole row off the stream, if there is one.
    fn next_row(&mut self) -> Result<Option<(Table, Bytes, Bytes)>, Error> {
        if self.ended {
            return if self.pending.is_empty() { Ok(None) } else { Err(self.refused("bytes after the end")) };
        }
        let mut head = Fields(&self.pending);
        let Some(table) = head.u8() else { return Ok(None) };
        if table == END {
            let Some(rows) = head.u64() else { return Ok(None) };
            if rows != self.rows {
                return Err(self.refused(&format!("{rows} rows were sent, {} arrived", self.rows)));
            }
            self.ended = true;
            self.pending.advance(9);
            return self.next_row();
        }
        let Some((key_len, value_len)) = head.u32().zip(head.u32()) else { return Ok(None) };
        let (key_len, value_len) = (key_len as usize, value_len as usize);
        if key_len.saturating_add(value_len) > ROW_BYTES_MAX {
            return Err(self.refused("a row is too large"));
        }
        if self.pending.len() < ROW_HEAD_BYTES + key_len + value_len {
            return Ok(None);
        }
        let table =
            Table::from_number(table).filter(|table| table.scope() == Scope::Data).ok_or_else(|| {
                self.refused("a row is of an unknown table; the sender may be of a newer release")
            })?;
        self.pending.advance(ROW_HEAD_BYTES);
        let key = self.pending.split_to(key_len).freeze();
        // Copied, so that a small row does not keep a whole chunk alive.
        let value = Bytes::copy_from_slice(&self.pending.split_to(value_len));
        if !is_undamaged(table, &key, &value) {
            return Err(self.refused(&format!("a row of table {table:?} is damaged")));
        }
        self.rows += 1;
        Ok(Some((table, key, value)))
    }

    fn refused(&self, why: &str) -> Error {
        Error::Snapshot(why.to_owned())
    }

    fn discard(&mut self) -> Result<(), Error> {
        let mut set = WriteSet::default();
        discard(&mut set, self.space);
        self.run(Work::Raw(set), 0)
    }

    fn run(&mut self, work: Work, bytes: usize) -> Result<(), Error> {
        self.storage.run(Some(Arc::clone(&self.group)), work, bytes)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            // If this fails, the storage is stopped, and the next start discards the import.
            let mut set = WriteSet::default();
            discard(&mut set, self.space);
            self.storage.push(Some(Arc::clone(&self.group)), Work::Raw(set));
        }
    }
}

/// Adds the removal of an unfinished import.
pub(crate) fn discard(set: &mut WriteSet, space: Space) {
    for table in data_tables() {
        set.delete_range(table, space.range());
    }
    set.delete(Table::HardState, keys::hard_state(space.group, HardItem::Importing));
}

/// What becomes of the log when a snapshot is installed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LogCut {
    /// It was purged further than the snapshot goes.
    Nothing,
    /// It agrees with the snapshot: what lies behind stays.
    UpToApplied,
    /// It does not have the snapshot's last entry, or another one in its place.
    Everything,
}

/// Adds the switch to another generation. Runs on the writer, with everything queued before already written.
pub(crate) fn install(
    engine: &dyn Engine,
    set: &mut WriteSet,
    group: &Group,
    generation: u32,
    applied: LogId,
) -> Result<LogCut, Error> {
    let (old, new) = (group.space(), Space { group: group.id, generation });
    let cut = log_cut(engine, group, applied)?;
    match cut {
        LogCut::Nothing => {}
        LogCut::UpToApplied => {
            let range = KeyRange {
                from: keys::group_range(group.id).from,
                to: keys::entry(group.id, applied.index + 1),
            };
            set.delete_range(Table::Entries, range);
        }
        LogCut::Everything => set.delete_range(Table::Entries, keys::group_range(group.id)),
    }
    if cut != LogCut::Everything {
        // The log behind the snapshot keeps its blocks. A follower that needs a snapshot is behind, so there are few.
        let behind = KeyRange { from: old.numbered(applied.index + 1), to: old.range().to };
        let mut cursor = engine.scan(Table::Blocks, &behind, Scan::Bulk);
        while let Some((key, block)) = cursor.next()? {
            let index = keys::trailing_number(key).unwrap_or(u64::MAX);
            set.put(Table::Blocks, new.numbered(index), Bytes::copy_from_slice(block));
        }
    }
    if cut != LogCut::Nothing {
        set.put(Table::HardState, keys::hard_state(group.id, HardItem::Purged), encode_log_id(applied));
    }
    for table in data_tables() {
        set.delete_range(table, old.range());
    }
    let generation = seal(generation.to_le_bytes().to_vec());
    set.put(Table::HardState, keys::hard_state(group.id, HardItem::Generation), generation);
    set.delete(Table::HardState, keys::hard_state(group.id, HardItem::Importing));
    Ok(cut)
}

/// The switch is written: memory follows.
pub(crate) fn installed(group: &Group, generation: u32, applied: LogId, cut: LogCut) {
    group.set_generation(generation);
    let mut log = group.log.write();
    match cut {
        LogCut::Nothing => {}
        LogCut::UpToApplied => {
            log.purged = Some(applied);
            log.evict_through(applied.index);
        }
        LogCut::Everything => {
            log.purged = Some(applied);
            log.last = Some(applied);
            log.cut_tail_after(None);
        }
    }
    drop(log);
    let messages = group.messages.lock().upgrade();
    if let Some(messages) = messages
        && let Err(error) = messages.reload()
    {
        // The state machine reloads as well and meets the same error where somebody can act on it.
        tracing::error!(group = group.id.0, %error, "an installed snapshot cannot be read");
    }
}

fn log_cut(engine: &dyn Engine, group: &Group, applied: LogId) -> Result<LogCut, Error> {
    let purged = group.log.read().purged;
    if purged.is_some_and(|purged| purged.index >= applied.index) {
        return Ok(LogCut::Nothing);
    }
    let Some(value) = engine.read(Table::Entries, &keys::entry(group.id, applied.index))? else {
        return Ok(LogCut::Everything);
    };
    let agrees = EntryRow::decode(group.id, applied.index, &value)?.id == applied;
    Ok(if agrees { LogCut::UpToApplied } else { LogCut::Everything })
}

fn data_tables() -> impl Iterator<Item = Table> {
    Table::ALL.into_iter().filter(|table| table.scope() == Scope::Data)
}

enum Stop {
    /// Nobody reads anymore.
    Unread,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Sends every row of the space. A new table is a new arm here.
fn export(view: &dyn View, space: Space, chunks: &mut ChunkWriter<'_>) -> Result<(), Stop> {
    for table in data_tables() {
        match table {
            Table::State | Table::Kept => export_rows(view, space, table, chunks)?,
            Table::BlockIndex => export_rows(view, space, table, chunks)?,
            Table::Blocks => export_blocks(view, space, chunks)?,
            Table::Entries | Table::HardState | Table::Node => {}
        }
    }
    chunks.finish()
}

fn export_rows(
    view: &dyn View,
    space: Space,
    table: Table,
    chunks: &mut ChunkWriter<'_>,
) -> Result<(), Stop> {
    let mut cursor = view.scan(table, &space.range(), Scan::Bulk);
    while let Some((key, value)) = cursor.next()? {
        let suffix = &key[Space::PREFIX_BYTES..];
        // Blocks without live records are not sent, so there is nothing to drop either.
        if table == Table::BlockIndex && suffix.first() == Some(&TAG_DEAD) {
            continue;
        }
        if !is_undamaged(table, suffix, value) {
            return Err(Stop::Failed(Error::damaged(
                space.group,
                table,
                "a row",
                "its checksum does not match",
            )));
        }
        chunks.row(table, suffix, value)?;
    }
    Ok(())
}

/// The blocks that the index refers to; dead ones and those of the log behind the checkpoint stay.
fn export_blocks(view: &dyn View, space: Space, chunks: &mut ChunkWriter<'_>) -> Result<(), Stop> {
    let rows = KeyRange { from: space.tagged(TAG_ROW, 0), to: space.tagged(TAG_ROW + 1, 0) };
    let mut rows = view.scan(Table::BlockIndex, &rows, Scan::Bulk);
    while let Some((key, value)) = rows.next()? {
        let row = decode_row(space, key, value)?;
        let damaged =
            |why: &str| Error::damaged(space.group, Table::Blocks, format!("block {}", row.log_index), why);
        let block = view
            .read(Table::Blocks, &space.numbered(row.log_index))?
            .ok_or_else(|| damaged("it is missing"))?;
        let block = Block::parse(block).map_err(|error| damaged(&error.to_string()))?;
        if !row.describes(&block) {
            return Err(Stop::Failed(damaged("it is not the block that was stored")));
        }
        chunks.row(Table::Blocks, &row.log_index.to_be_bytes(), block.as_bytes())?;
    }
    Ok(())
}

fn is_undamaged(table: Table, suffix: &[u8], value: &[u8]) -> bool {
    match table {
        Table::Blocks => Block::parse(Bytes::copy_from_slice(value)).is_ok() && suffix.len() == 8,
        Table::BlockIndex => match suffix.first() {
            Some(&TAG_CANDIDATE) => value.is_empty(),
            Some(&(TAG_META | TAG_ROW)) => unseal(value).is_some(),
            _ => false,
        },
        Table::Kept | Table::State => unseal(value).is_some(),
        Table::Entries | Table::HardState | Table::Node => false,
    }
}

struct ChunkWriter<'a> {
    sender: &'a SyncSender<Result<Bytes, Error>>,
    chunk: Vec<u8>,
    number: u32,
    rows: u64,
}

impl<'a> ChunkWriter<'a> {
    fn new(sender: &'a SyncSender<Result<Bytes, Error>>) -> Self {
        Self { sender, chunk: vec![0; CHUNK_HEAD_BYTES], number: 0, rows: 0 }
    }

    fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Stop> {
        let sizes = u32::try_from(key.len()).ok().zip(u32::try_from(value.len()).ok());
        let Some((key_len, value_len)) = sizes else {
            return Err(Stop::Failed(Error::Snapshot(format!("a row of table {table:?} is too large"))));
        };
        self.rows += 1;
        self.write(&[table as u8])?;
        self.write(&key_len.to_le_bytes())?;
        self.write(&value_len.to_le_bytes())?;
        self.write(key)?;
        self.write(value)
    }

    fn finish(&mut self) -> Result<(), Stop> {
        let rows = self.rows;
        self.write(&[END])?;
        self.write(&rows.to_le_bytes())?;
        self.send()
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        loop {
            let room = CHUNK_BYTES + CHUNK_HEAD_BYTES - self.chunk.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(now);
            if later.is_empty() {
                return Ok(());
            }
            self.send()?;
            bytes = later;
        }
    }

    fn send(&mut self) -> Result<(), Stop> {
        let next = Vec::with_capacity(CHUNK_BYTES + CHUNK_HEAD_BYTES);
        let mut chunk = std::mem::replace(&mut self.chunk, next);
        self.chunk.resize(CHUNK_HEAD_BYTES, 0);
        let checksum = crc32c::crc32c(&chunk[CHUNK_HEAD_BYTES..]);
        chunk[..4].copy_from_slice(&self.number.to_le_bytes());
        chunk[4..CHUNK_HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
        self.number += 1;
        self.sender.send(Ok(chunk.into())).map_err(|_| Stop::Unread)
    }
}
