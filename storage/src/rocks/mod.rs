//! The engine in production: one RocksDB per node, one write-ahead log, a column family per table, and the value log
//! beside it for blocks that come in bulk.
//!
//! A block lies either in its table or, as a place, in the column family `places`; never in both. Small writes stay
//! in RocksDB, where they cost one sync and not two.

mod cursor;
mod setup;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::GroupId;
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, LiveFile, Snapshot, WriteBatch, WriteOptions,
};

use self::cursor::{BlocksCursor, RocksCursor, ValueReader, read_options};
use self::setup::{database_options, family_options, places_options};
use crate::engine::{Cursor, DiskUsage, Durability, Engine, Keep, Operation, Scan, Value, View, WriteSet};
use crate::error::Error;
use crate::keys::{self, KeyRange, Table};
use crate::mark::SyncMark;
use crate::moments::{self, Moment};
use crate::options::{Options, Payloads, RESERVE_BYTES_MIN};
use crate::values::{Census, Place, ValueLog, Writes};

/// The column family of places in the value log, with the keys of `blocks`.
const PLACES: &str = "places";
/// Smaller values stay in RocksDB: a place is not worth it.
const VALUE_BYTES_MIN: usize = 4 << 10;
/// Writes with less than this in such values stay in RocksDB as a whole: the value log is a second file to sync.
const BULK_BYTES_MIN: usize = 16 << 10;
/// What cleaning copies between two writes.
const COPY_BYTES: usize = 4 << 20;
/// Files of the write-ahead log that are filled when a store is opened, one to be written over after the other.
const PREPARED_LOGS: usize = 2;
/// One write of filling: small, or the kernel keeps the file in large pieces of its cache and counts a whole piece as
/// written for every small write over it.
const FILLER_BYTES: usize = 4000;
/// The only row outside of any table.
const FILLER_KEY: &[u8] = b"filler";
/// How often a reader follows a value that cleaning moves meanwhile.
const MOVES_MAX: usize = 8;

const RESTORE: &str = "if this node has replicas elsewhere, move the directory away and let them restore it";

/// Sees a key of `blocks` and where its value lies.
type PlaceVisitor<'a> = dyn FnMut(&[u8], Place) -> Result<(), Error> + 'a;

pub(crate) struct RocksEngine {
    db: DB,
    values: ValueLog,
    payloads: Payloads,
    reserve_bytes: u64,
    /// Whether a block was removed since cleaning looked.
    removed: AtomicBool,
    dir: PathBuf,
    mark: SyncMark,
}

impl RocksEngine {
    /// Opens or creates the database in `dir`, which the caller has locked.
    pub(crate) fn open(dir: &Path, options: &Options) -> Result<Self, Error> {
        let broken = |reason: String| Error::Open { dir: dir.to_path_buf(), reason };
        let database = dir.join("db");
        std::fs::create_dir_all(&database).map_err(|error| broken(error.to_string()))?;
        let (mark, synced) =
            SyncMark::open(&dir.join("synced")).map_err(|error| broken(format!("{error}; {RESTORE}")))?;
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let mut families = Table::ALL
            .map(|table| ColumnFamilyDescriptor::new(table.name(), family_options(table, options, &cache)))
            .into_iter()
            .collect::<Vec<_>>();
        families.push(ColumnFamilyDescriptor::new(PLACES, places_options(options, &cache)));
        let db = DB::open_cf_descriptors(&database_options(&database, options), &database, families)
            .map_err(|error| broken(format!("{error}; {RESTORE}")))?;
        let recovered = db.latest_sequence_number();
        if recovered < synced {
            return Err(broken(format!(
                "it was synced up to write {synced} and now ends at {recovered}: the write-ahead log is cut or \
                 damaged; {RESTORE}"
            )));
        }
        let values = ValueLog::open(&dir.join("values"), options.value_segment_bytes)
            .map_err(|error| broken(format!("{error}; {RESTORE}")))?;
        let engine = Self {
            db,
            values,
            payloads: options.payloads,
            reserve_bytes: options.reserve_bytes.max(RESERVE_BYTES_MIN),
            removed: AtomicBool::new(true),
            dir: dir.to_path_buf(),
            mark,
        };
        engine.check_places().map_err(|error| broken(error.to_string()))?;
        engine.prepare_logs(options.prepared_log_bytes).map_err(|error| broken(error.to_string()))?;
        Ok(engine)
    }

    /// Fills two files that RocksDB will write its log over. Without them the first syncs of a process, and those
    /// after each switch to a new file, would cost about twice as much.
    fn prepare_logs(&self, bytes: usize) -> Result<(), Error> {
        let needed = self.reserve_bytes + (PREPARED_LOGS * bytes) as u64;
        if bytes == 0 || self.disk_free()? < needed {
            // A full disk must not keep a node from starting: deleting is what frees it.
            return Ok(());
        }
        let filler = vec![0; FILLER_BYTES.min(bytes)];
        for _ in 0..PREPARED_LOGS {
            for _ in 0..bytes / filler.len() {
                let mut batch = WriteBatch::default();
                // In the log and nowhere else.
                batch.put_log_data(&filler);
                self.db.write(batch)?;
            }
            // A row and its flush make RocksDB begin another log and give this one up.
            self.db.put(FILLER_KEY, [])?;
            self.db.flush()?;
        }
        Ok(())
    }

    /// Whether every value is where its place says, as far as files and their sizes tell. What a crash took of volatile
    /// values is seen when the log that they belong to is opened.
    fn check_places(&self) -> Result<(), Error> {
        let segments = self.values.segments();
        self.each_place(&mut |key, place| match segments.get(&place.segment) {
            Some(segment) if segment.writes == Writes::Volatile || segment.holds(place) => Ok(()),
            Some(_) => Err(lost(key, place, "the file is cut")),
            None => Err(lost(key, place, "the file is missing")),
        })
    }

    fn each_place(&self, visit: &mut PlaceVisitor<'_>) -> Result<(), Error> {
        let all = KeyRange::all();
        let iterator = self.db.raw_iterator_cf_opt(self.places(), read_options(&all, Scan::Bulk));
        let mut cursor = RocksCursor::new(iterator, Scan::Bulk);
        while let Some((key, row)) = cursor.next()? {
            visit(key, place_of(key, row)?)?;
        }
        Ok(())
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(table.name()).expect("every table was opened as a column family")
    }

    /// Whether a file holds nothing but keys of the range, and can go as a whole: not one of the newest level, whose files
    /// RocksDB does not drop.
    fn has_file_within(&self, table: Table, range: &KeyRange) -> Result<bool, Error> {
        let is_within = |file: &LiveFile| {
            file.level > 0
                && file.column_family_name == table.name()
                && file.start_key.as_ref().is_some_and(|start| *start >= range.from)
                && file.end_key.as_ref().is_some_and(|end| *end <= range.to)
        };
        Ok(self.db.live_files()?.iter().any(is_within))
    }

    fn places(&self) -> &ColumnFamily {
        self.db.cf_handle(PLACES).expect("it was opened with the tables")
    }

    /// Appends what is bulk to the value log.
    fn append_bulk(&self, set: &WriteSet) -> Result<BulkPlaces, Error> {
        let append = |wanted: Keep| {
            let large = set.operations.iter().filter_map(large_value);
            let bulk: Vec<&[u8]> =
                large.filter(|(keep, _)| *keep == wanted).map(|(_, value)| value).collect();
            let bytes: usize = bulk.iter().map(|value| value.len()).sum();
            if self.payloads != Payloads::ValueLog || bytes < BULK_BYTES_MIN {
                return Ok(Vec::new());
            }
            match wanted {
                Keep::WithItsWrite => self.values.append(&bulk),
                Keep::Volatile => self.values.append_volatile(&bulk),
            }
        };
        let places = |wanted| append(wanted).map(Vec::into_iter).map_err(value_log);
        Ok(BulkPlaces { kept: places(Keep::WithItsWrite)?, volatile: places(Keep::Volatile)? })
    }

    /// The set for RocksDB, and whether it removes blocks.
    fn rocks_batch(&self, set: &WriteSet, mut places: BulkPlaces) -> Result<(WriteBatch, bool), Error> {
        let mut removes = false;
        let mut batch =
            WriteBatch::with_capacity_bytes(if places.is_empty() { set.bytes + 64 } else { 4096 });
        for operation in &set.operations {
            match operation {
                Operation::Put { table, key, value, .. } => {
                    match large_value(operation).and_then(|(keep, _)| places.next(keep)) {
                        Some(place) => batch.put_cf(self.places(), key, place.encode()),
                        None => batch.put_cf(self.family(*table), key, value),
                    }
                }
                Operation::Delete { table, key } => {
                    batch.delete_cf(self.family(*table), key);
                    if *table == Table::Blocks {
                        batch.delete_cf(self.places(), key);
                        removes = true;
                    }
                }
                Operation::DeleteRange { table, range } => {
                    batch.delete_range_cf(self.family(*table), &range.from, &range.to);
                    if *table == Table::Blocks {
                        batch.delete_range_cf(self.places(), &range.from, &range.to);
                        removes = true;
                    }
                }
                Operation::Move { key, from, to } => {
                    if self.place(key)? == Some(*from) {
                        batch.put_cf(self.places(), key, to.encode());
                    }
                }
            }
        }
        Ok((batch, removes))
    }

    fn place(&self, key: &[u8]) -> Result<Option<Place>, Error> {
        let row = self.db.get_pinned_cf(self.places(), key)?;
        row.map(|row| place_of(key, &row)).transpose()
    }

    fn open_block(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        for _ in 0..MOVES_MAX {
            let Some(place) = self.place(key)? else {
                let value = self.db.get_pinned_cf(self.family(Table::Blocks), key)?;
                return Ok(value.map(|value| Value::Whole(Bytes::copy_from_slice(&value))));
            };
            if let Some(segment) = self.values.segment(place) {
                return Ok(Some(Value::Placed(segment, place)));
            }
        }
        match self.place(key)? {
            Some(place) => Err(lost(key, place, "the file is missing")),
            None => Ok(None),
        }
    }

    /// Moves what lives in the given segments; what was removed meanwhile stays removed.
    fn move_survivors(
        &self,
        is_victim: impl Fn(u64) -> bool,
        write: &mut dyn FnMut(WriteSet) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut survivors: Vec<(Vec<u8>, Place)> = Vec::new();
        let mut bytes = 0;
        self.each_place(&mut |key, place| {
            if is_victim(place.segment) {
                bytes += place.len as usize;
                survivors.push((key.to_vec(), place));
                if bytes >= COPY_BYTES {
                    bytes = 0;
                    return self.move_values(std::mem::take(&mut survivors), write);
                }
            }
            Ok(())
        })?;
        self.move_values(survivors, write)
    }

    /// Removes empty segments, and moves survivors out of a few of the emptiest. Says whether it moved any.
    fn clean_some(&self, write: &mut dyn FnMut(WriteSet) -> Result<(), Error>) -> Result<bool, Error> {
        let census = self.count_values()?;
        self.remove_dead(&census)?;
        let victims = self.values.victims(&census);
        // Copies need room before they give any back.
        if victims.is_empty() || self.disk_free()? < self.reserve_bytes {
            return Ok(false);
        }
        self.move_survivors(|segment| victims.contains(&segment), write)?;
        moments::reached(Moment::ValuesMoved);
        self.remove_dead(&self.count_values()?)?;
        Ok(true)
    }

    fn count_values(&self) -> Result<Census, Error> {
        let mut census = self.values.census();
        self.each_place(&mut |_, place| {
            census.count(place);
            Ok(())
        })?;
        Ok(census)
    }

    fn remove_dead(&self, census: &Census) -> Result<(), Error> {
        if !self.values.has_dead(census) {
            return Ok(());
        }
        // The removal of their values may not be on the disk yet, and a place must never point to nothing.
        self.db.flush_wal(true)?;
        moments::reached(Moment::SegmentsEmpty);
        self.values.remove_dead(census).map_err(value_log)?;
        moments::reached(Moment::SegmentsRemoved);
        Ok(())
    }

    fn move_values(
        &self,
        survivors: Vec<(Vec<u8>, Place)>,
        write: &mut dyn FnMut(WriteSet) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let places: Vec<Place> = survivors.iter().map(|(_, place)| *place).collect();
        let copies = self.values.copy(&places).map_err(value_log)?;
        moments::reached(Moment::ValuesCopied);
        let mut set = WriteSet::default();
        for ((key, from), to) in survivors.into_iter().zip(copies) {
            if let Some(to) = to {
                set.operations.push(Operation::Move { key, from, to });
            }
        }
        if set.is_empty() { Ok(()) } else { write(set) }
    }
}

impl View for RocksEngine {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        if table == Table::Blocks {
            return match self.open_block(key)? {
                Some(Value::Placed(segment, place)) => found(key, place, segment.read(place).map(Some)),
                Some(Value::Whole(value)) => Ok(Some(value)),
                None => Ok(None),
            };
        }
        let value = self.db.get_pinned_cf(self.family(table), key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn open_value(&self, table: Table, key: &[u8]) -> Result<Option<Value>, Error> {
        if table == Table::Blocks {
            self.open_block(key)
        } else {
            Ok(self.read(table, key)?.map(Value::Whole))
        }
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        let reader = ValueReader::new(&self.values);
        let cursor =
            |family| RocksCursor::new(self.db.raw_iterator_cf_opt(family, read_options(range, how)), how);
        if table == Table::Blocks {
            // Two views, the second at most newer: both show what was written before the call.
            let inline = cursor(self.family(table));
            return Box::new(BlocksCursor::new(inline, cursor(self.places()), reader));
        }
        Box::new(cursor(self.family(table)))
    }
}

impl Engine for RocksEngine {
    fn write(&self, set: WriteSet, durability: Durability) -> Result<(), Error> {
        let places = self.append_bulk(&set)?;
        if !places.is_empty() {
            moments::reached(Moment::ValuesAppended);
        }
        let mut how = WriteOptions::default();
        how.set_sync(durability == Durability::Synced);
        let (batch, removes) = self.rocks_batch(&set, places)?;
        self.db.write_opt(batch, &how)?;
        // After the write: whoever clears it must see what it stands for.
        if removes {
            self.removed.store(true, Ordering::Release);
        }
        if durability == Durability::Synced {
            self.mark
                .advance(self.db.latest_sequence_number())
                .map_err(|error| Error::Engine(format!("mark of the last sync: {error}")))?;
        }
        Ok(())
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn View)) {
        let reader = ValueReader::new(&self.values);
        read(&RocksSnapshot { engine: self, reader, snapshot: self.db.snapshot() });
    }

    fn compact(&self, table: Table) {
        self.db.compact_range_cf(self.family(table), None::<&[u8]>, None::<&[u8]>);
    }

    fn file_bytes(&self, table: Table, ranges: &[KeyRange]) -> (u64, u64) {
        let family = self.family(table);
        let ranges: Vec<_> = ranges.iter().map(|range| rocksdb::Range::new(&range.from, &range.to)).collect();
        let all = self.db.property_int_value_cf(family, rocksdb::properties::LIVE_SST_FILES_SIZE);
        (self.db.get_approximate_sizes_cf(family, &ranges).iter().sum(), all.ok().flatten().unwrap_or(0))
    }

    fn drop_files(&self, table: Table, range: &KeyRange) -> Result<(), Error> {
        if !self.has_file_within(table, range)? {
            return Ok(());
        }
        // The files go at once. That nobody needs them may not be on the disk yet, and who comes up with an older
        // checkpoint, or with a log that is not purged so far, needs them.
        self.db.flush_wal(true)?;
        moments::reached(Moment::FilesDead);
        self.db.delete_file_in_range_cf(self.family(table), &range.from, &range.to)?;
        moments::reached(Moment::FilesDropped);
        Ok(())
    }

    fn clean_values(&self, write: &mut dyn FnMut(WriteSet) -> Result<(), Error>) -> Result<(), Error> {
        if !self.removed.swap(false, Ordering::Acquire) {
            return Ok(());
        }
        let cleaned = self.clean_some(write);
        if !matches!(cleaned, Ok(false)) {
            // There is more, or it is tried again.
            self.removed.store(true, Ordering::Release);
        }
        cleaned.map(drop)
    }

    fn sync_values(&self) -> Result<(), Error> {
        self.values.sync().map_err(value_log)?;
        moments::reached(Moment::ValuesSynced);
        Ok(())
    }

    fn disk_free(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|error| Error::Engine(error.to_string()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let failed = |error: io::Error| Error::Engine(error.to_string());
        let stat = rustix::fs::statvfs(&self.dir).map_err(|error| failed(error.into()))?;
        let mut used = self.values.bytes();
        for file in std::fs::read_dir(self.dir.join("db")).map_err(failed)? {
            // A file that compaction removed meanwhile counts as nothing.
            used += file.map_err(failed)?.metadata().map_or(0, |metadata| metadata.len());
        }
        Ok(DiskUsage { used, free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        // Waits, so that a directory that was just closed can be opened, copied or removed.
        self.db.cancel_all_background_work(true);
    }
}

struct RocksSnapshot<'db> {
    engine: &'db RocksEngine,
    reader: ValueReader<'db>,
    snapshot: Snapshot<'db>,
}

impl View for RocksSnapshot<'_> {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        if table == Table::Blocks
            && let Some(row) = self.snapshot.get_pinned_cf(self.engine.places(), key)?
        {
            return self.reader.read(key, &row).map(Some);
        }
        let value = self.snapshot.get_pinned_cf(self.engine.family(table), key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        let cursor = |family| {
            RocksCursor::new(self.snapshot.raw_iterator_cf_opt(family, read_options(range, how)), how)
        };
        if table == Table::Blocks {
            let inline = cursor(self.engine.family(table));
            return Box::new(BlocksCursor::new(inline, cursor(self.engine.places()), self.reader.clone()));
        }
        Box::new(cursor(self.engine.family(table)))
    }
}

/// Where the large values of a set lie, those of each kind in the order of the set; none of a kind that is not bulk.
struct BulkPlaces {
    kept: std::vec::IntoIter<Place>,
    volatile: std::vec::IntoIter<Place>,
}

impl BulkPlaces {
    fn is_empty(&self) -> bool {
        self.kept.len() + self.volatile.len() == 0
    }

    fn next(&mut self, keep: Keep) -> Option<Place> {
        match keep {
            Keep::WithItsWrite => self.kept.next(),
            Keep::Volatile => self.volatile.next(),
        }
    }
}

/// The value of a put that may go to the value log.
fn large_value(operation: &Operation) -> Option<(Keep, &[u8])> {
    match operation {
        Operation::Put { table: Table::Blocks, value, keep, .. } if value.len() >= VALUE_BYTES_MIN => {
            Some((*keep, value))
        }
        _ => None,
    }
}

fn place_of(key: &[u8], row: &[u8]) -> Result<Place, Error> {
    Place::decode(row).ok_or_else(|| block_error(key, "its place does not decode".into()))
}

/// A value that was read, or the error that names it.
fn found(key: &[u8], place: Place, read: io::Result<Option<Bytes>>) -> Result<Option<Bytes>, Error> {
    match read {
        Ok(value) => Ok(value),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(lost(key, place, "the file is cut"))
        }
        Err(error) => Err(Error::Engine(format!("value segment {}: {error}", place.segment))),
    }
}

fn value_log(error: io::Error) -> Error {
    Error::Engine(format!("value log: {error}"))
}

fn lost(key: &[u8], place: Place, reason: &str) -> Error {
    block_error(key, format!("it lies in value segment {}: {reason}", place.segment))
}

fn block_error(key: &[u8], reason: String) -> Error {
    let group = GroupId(keys::leading_number(key).unwrap_or(0));
    let index = keys::trailing_number(key).unwrap_or(0);
    Error::damaged(group, Table::Blocks, format!("block {index}"), reason)
}

/// How long opening may wait for a process that is just ending.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_millis(500);
