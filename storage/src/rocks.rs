//! The engine in production: one RocksDB per node, one write-ahead log, a column family per table.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompactionStyle, DBCompressionType,
    DBRawIterator, DBRecoveryMode, LogLevel, Options as RocksOptions, ReadOptions, Snapshot,
    UniversalCompactOptions, WriteBatch, WriteOptions,
};
use rustix::fs::{Mode, OFlags};

use crate::engine::{Cursor, DiskUsage, Durability, Engine, Operation, Scan, View, WriteSet};
use crate::error::Error;
use crate::keys::{KeyRange, Table};
use crate::mark::SyncMark;
use crate::options::Options;

const BULK_READAHEAD_BYTES: usize = 2 << 20;
const MEBIBYTE: usize = 1 << 20;

pub(crate) struct RocksEngine {
    db: DB,
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
        let families = Table::ALL
            .map(|table| ColumnFamilyDescriptor::new(table.name(), family_options(table, options, &cache)));
        let db = DB::open_cf_descriptors(&database_options(&database, options), &database, families)
            .map_err(|error| broken(format!("{error}; {RESTORE}")))?;
        let recovered = db.latest_sequence_number();
        if recovered < synced {
            return Err(broken(format!(
                "it was synced up to write {synced} and now ends at {recovered}: the write-ahead log is cut or \
                 damaged; {RESTORE}"
            )));
        }
        Ok(Self { db, dir: dir.to_path_buf(), mark })
    }

    fn family(&self, table: Table) -> &ColumnFamily {
        self.db.cf_handle(table.name()).expect("every table was opened as a column family")
    }

    fn rocks_batch(&self, set: &WriteSet) -> WriteBatch {
        let mut batch = WriteBatch::with_capacity_bytes(set.bytes + 64);
        for operation in &set.operations {
            match operation {
                Operation::Put { table, key, value } => batch.put_cf(self.family(*table), key, value),
                Operation::Delete { table, key } => batch.delete_cf(self.family(*table), key),
                Operation::DeleteRange { table, range } => {
                    batch.delete_range_cf(self.family(*table), &range.from, &range.to);
                }
            }
        }
        batch
    }
}

const RESTORE: &str = "if this node has replicas elsewhere, move the directory away and let them restore it";

impl View for RocksEngine {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let value = self.db.get_pinned_cf(self.family(table), key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        let iterator = self.db.raw_iterator_cf_opt(self.family(table), read_options(range, how));
        Box::new(RocksCursor { iterator, how, started: false })
    }
}

impl Engine for RocksEngine {
    fn write(&self, set: WriteSet, durability: Durability) -> Result<(), Error> {
        let mut how = WriteOptions::default();
        how.set_sync(durability == Durability::Synced);
        self.db.write_opt(self.rocks_batch(&set), &how)?;
        if durability == Durability::Synced {
            self.mark
                .advance(self.db.latest_sequence_number())
                .map_err(|error| Error::Engine(format!("mark of the last sync: {error}")))?;
        }
        Ok(())
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn View)) {
        read(&RocksSnapshot { engine: self, snapshot: self.db.snapshot() });
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
        Ok(self.db.delete_file_in_range_cf(self.family(table), &range.from, &range.to)?)
    }

    fn disk_free(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|error| Error::Engine(error.to_string()))?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let failed = |error: std::io::Error| Error::Engine(error.to_string());
        let stat = rustix::fs::statvfs(&self.dir).map_err(|error| failed(error.into()))?;
        let mut used = 0;
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
    snapshot: Snapshot<'db>,
}

impl View for RocksSnapshot<'_> {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let value = self.snapshot.get_pinned_cf(self.engine.family(table), key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        let iterator = self.snapshot.raw_iterator_cf_opt(self.engine.family(table), read_options(range, how));
        Box::new(RocksCursor { iterator, how, started: false })
    }
}

struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    how: Scan,
    started: bool,
}

impl Cursor for RocksCursor<'_> {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, Error> {
        match (self.started, self.how) {
            (false, Scan::Forward | Scan::Bulk) => self.iterator.seek_to_first(),
            (false, Scan::Backward) => self.iterator.seek_to_last(),
            (true, _) if !self.iterator.valid() => return Ok(None),
            (true, Scan::Forward | Scan::Bulk) => self.iterator.next(),
            (true, Scan::Backward) => self.iterator.prev(),
        }
        self.started = true;
        if !self.iterator.valid() {
            // An iterator stops at damage as it does at the end; only the status tells them apart.
            self.iterator.status()?;
        }
        Ok(self.iterator.item())
    }
}

/// Always bounded: an unbounded iterator walks over the tombstones of other groups.
fn read_options(range: &KeyRange, how: Scan) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.from.as_slice());
    options.set_iterate_upper_bound(range.to.as_slice());
    if how == Scan::Bulk {
        options.set_readahead_size(BULK_READAHEAD_BYTES);
        // A replay of a large stream must not push everything else out of the cache.
        options.fill_cache(false);
    }
    options
}

fn database_options(dir: &Path, options: &Options) -> RocksOptions {
    let mut db = RocksOptions::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_max_background_jobs(options.background_jobs.max(2));
    // Replay up to the first record that does not check out: after a power cut the tail that was never synced may
    // have holes, and refusing to start for it would lose a healthy node. That nothing *synced* is missing is checked
    // against the mark (mark.rs), which this mode alone could not tell.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // All tables share the log; without this bound one quiet table would keep gigabytes of it.
    db.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    // Memtables of all tables together.
    db.set_db_write_buffer_size(options.write_buffer_bytes);
    db.set_paranoid_checks(true);
    if direct_io_works(dir) {
        // Flushes and compactions of bulk data that nobody reads soon: the page cache is worth more to consumers.
        db.set_use_direct_io_for_flush_and_compaction(true);
    }
    db.set_compaction_readahead_size(2 * MEBIBYTE);
    // Spreads write-back of table files, so that the sync of the log does not wait behind it.
    db.set_bytes_per_sync(MEBIBYTE as u64);
    // Replays read files in order: let the kernel read ahead.
    db.set_advise_random_on_open(false);
    db.set_max_open_files(512);
    if let Some(limit) = options.compaction_bytes_per_second {
        db.set_ratelimiter(i64::try_from(limit).unwrap_or(i64::MAX), 100_000, 10);
    }
    // RocksDB's own log is for its developers; ours says what an operator must know.
    db.set_log_level(LogLevel::Warn);
    db.set_max_log_file_size(MEBIBYTE);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db
}

/// File systems in memory refuse direct I/O, and RocksDB would fail its first flush.
fn direct_io_works(dir: &Path) -> bool {
    let probe = dir.join("direct-io-probe");
    let opened = rustix::fs::open(
        &probe,
        OFlags::CREATE | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    );
    let _ = std::fs::remove_file(&probe);
    opened.is_ok()
}

/// One function per kind of table; each option with its reason.
fn family_options(table: Table, options: &Options, cache: &Cache) -> RocksOptions {
    let mut family = RocksOptions::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_format_version(6);
    // Index and filter blocks of large tables are counted against the cache, so that memory stays bounded.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match table {
        Table::Blocks => bulk_table(&mut family, &mut blocks, options),
        Table::Entries => log_table(&mut family, &mut blocks, options),
        Table::Kept | Table::State | Table::BlockIndex => row_table(&mut family, &mut blocks, options),
        Table::HardState | Table::Node => tiny_table(&mut family),
    }
    family.set_block_based_table_factory(&blocks);
    family
}

/// Large values, written in order per group, deleted by range: everything is about moving bytes rarely.
fn bulk_table(family: &mut RocksOptions, blocks: &mut BlockBasedOptions, options: &Options) {
    // Half of all memtable memory: three quarters of all bytes go here.
    family.set_write_buffer_size(options.write_buffer_bytes / 2);
    family.set_max_write_buffer_number(3);
    // Few large allocations for values of up to a MiB.
    family.set_arena_block_size((options.write_buffer_bytes / 16).clamp(MEBIBYTE, 8 * MEBIBYTE));
    universal(family, 100);
    // Payloads are often compressed already; compressing is a stream's choice.
    family.set_compression_type(DBCompressionType::None);
    // A value is usually larger than this, so that a table block is one value.
    blocks.set_block_size(16 * 1024);
    // Point reads of a block look into every sorted run whose range covers the group; the filter leaves one.
    blocks.set_bloom_filter(10.0, false);
}

/// Small values, appended, purged by range soon after.
fn log_table(family: &mut RocksOptions, blocks: &mut BlockBasedOptions, options: &Options) {
    family.set_write_buffer_size((options.write_buffer_bytes / 8).max(MEBIBYTE));
    family.set_max_write_buffer_number(3);
    universal(family, 100);
    family.set_compression_type(DBCompressionType::Lz4);
    blocks.set_block_size(16 * 1024);
}

/// Small rows that are replaced and deleted at random.
fn row_table(family: &mut RocksOptions, blocks: &mut BlockBasedOptions, options: &Options) {
    family.set_write_buffer_size((options.write_buffer_bytes / 8).max(MEBIBYTE));
    family.set_max_write_buffer_number(2);
    family.set_level_compaction_dynamic_level_bytes(true);
    family.set_compression_type(DBCompressionType::Lz4);
    // Acked and expired rows leave runs of tombstones that every seek would step over.
    family.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    blocks.set_block_size(8 * 1024);
    blocks.set_bloom_filter(10.0, false);
}

/// A handful of rows per group at most.
fn tiny_table(family: &mut RocksOptions) {
    family.set_write_buffer_size(MEBIBYTE);
    family.set_max_write_buffer_number(2);
}

/// Universal compaction writes each byte a few times where levels write it ten to thirty times; the price is
/// transient space, bounded by `amplification_percent`.
fn universal(family: &mut RocksOptions, amplification_percent: i32) {
    family.set_compaction_style(DBCompactionStyle::Universal);
    let mut universal = UniversalCompactOptions::default();
    universal.set_max_size_amplification_percent(amplification_percent);
    // Merging two runs at a time rewrites the older one too often when flushes are alike in size.
    universal.set_min_merge_width(4);
    family.set_universal_compaction_options(&universal);
    // Files small enough that a purged stream's files can be dropped whole.
    family.set_target_file_size_base(64 * MEBIBYTE as u64);
}

/// How long opening may wait for a process that is just ending.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_millis(500);
