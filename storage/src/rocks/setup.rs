//! How RocksDB is set up: one function per kind of table, each option with its reason.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DBCompactionStyle, DBCompressionType, DBRecoveryMode, LogLevel,
    Options as RocksOptions, UniversalCompactOptions,
};
use rustix::fs::OFlags;

use crate::keys::Table;
use crate::options::{Options, Payloads};
use crate::space::now;
use crate::values::AlignedBuffer;

const MEBIBYTE: usize = 1 << 20;
/// Files of the write-ahead log that are kept for reuse.
const REUSED_LOGS: usize = 8;
/// The limits of background writes that are chosen: a disk that looks slow may have been busy, and none needs more.
const RATE_MIN: u64 = 640 << 20;
const RATE_MAX: u64 = 16 << 30;
/// How often background writes get their share.
const RATE_PERIOD_US: i64 = 10_000;
/// Compactions come first once in so many turns. RocksDB's default.
const RATE_FAIRNESS: i32 = 10;
/// What is written to see how fast the disk is: some milliseconds' worth.
const PROBE_WRITES: usize = 8;

pub(super) fn database_options(dir: &Path, options: &Options) -> RocksOptions {
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
    // Writing over a file that is there needs no new blocks and no new size, so a sync writes data alone: about half
    // the time and CPU of a sync that also commits the file system's journal.
    db.set_recycle_log_file_num(REUSED_LOGS);
    // Memtables of all tables together.
    db.set_db_write_buffer_size(options.write_buffer_bytes);
    db.set_paranoid_checks(true);
    let probe = dir.join("disk-probe");
    let disk = open_direct(&probe);
    if disk.is_ok() {
        // Flushes and compactions of bulk data that nobody reads soon: the page cache is worth more to consumers.
        db.set_use_direct_io_for_flush_and_compaction(true);
    }
    db.set_compaction_readahead_size(2 * MEBIBYTE);
    // Spreads write-back of table files, so that the sync of the log does not wait behind it.
    db.set_bytes_per_sync(MEBIBYTE as u64);
    // Replays read files in order: let the kernel read ahead.
    db.set_advise_random_on_open(false);
    db.set_max_open_files(512);
    // A memtable that is flushed at the speed of the disk makes every sync meanwhile wait behind it, for 100 ms and more
    // on a disk of some 300 MB/s. So background writes begin at a twentieth of a limit, which is a tenth of what the disk
    // takes, in steps of 10 ms, and get 5 % more with every second in which they needed all they had; flushes come before
    // compactions.
    let limit = options.background_bytes_per_second.unwrap_or_else(|| {
        let takes = disk.and_then(|disk| bytes_per_second(&disk)).unwrap_or(0);
        takes.saturating_mul(2).clamp(RATE_MIN, RATE_MAX)
    });
    let _ = std::fs::remove_file(&probe);
    db.set_auto_tuned_ratelimiter(
        i64::try_from(limit).unwrap_or(i64::MAX).max(1),
        RATE_PERIOD_US,
        RATE_FAIRNESS,
    );
    // RocksDB's own log is for its developers; ours says what an operator must know.
    db.set_log_level(LogLevel::Warn);
    db.set_max_log_file_size(MEBIBYTE);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db
}

/// File systems in memory refuse direct I/O, and RocksDB would fail its first flush.
fn open_direct(path: &Path) -> io::Result<File> {
    let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits()).unwrap_or(0);
    OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)
}

/// How much a disk takes, in writes that return when it has them.
fn bytes_per_second(file: &File) -> io::Result<u64> {
    let mut buffer = AlignedBuffer::default();
    let piece = buffer.fill(&[&vec![0; MEBIBYTE]]);
    let begun = now();
    for at in 0..PROBE_WRITES {
        file.write_all_at(piece, (at * MEBIBYTE) as u64)?;
    }
    let nanos = begun.elapsed().as_nanos().max(1);
    let bytes = (PROBE_WRITES * MEBIBYTE) as u128;
    Ok(u64::try_from(bytes * 1_000_000_000 / nanos).unwrap_or(u64::MAX))
}

pub(super) fn family_options(table: Table, options: &Options, cache: &Cache) -> RocksOptions {
    let mut family = RocksOptions::default();
    let mut blocks = table_options(cache);
    match table {
        Table::Blocks => bulk_table(&mut family, &mut blocks, options),
        Table::Entries => log_table(&mut family, &mut blocks, options),
        Table::Kept | Table::State | Table::BlockIndex => row_table(&mut family, &mut blocks, options),
        Table::HardState | Table::Node => tiny_table(&mut family, options),
    }
    family.set_block_based_table_factory(&blocks);
    family
}

/// Where values of the value log lie: like log entries, small and in order.
pub(super) fn places_options(options: &Options, cache: &Cache) -> RocksOptions {
    let mut family = RocksOptions::default();
    let mut blocks = table_options(cache);
    log_table(&mut family, &mut blocks, options);
    blocks.set_bloom_filter(10.0, false);
    family.set_block_based_table_factory(&blocks);
    family
}

fn table_options(cache: &Cache) -> BlockBasedOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_format_version(6);
    // Index and filter blocks of large tables are counted against the cache, so that memory stays bounded.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks
}

/// Large values, written in order per group, deleted by range: everything is about moving bytes rarely.
fn bulk_table(family: &mut RocksOptions, blocks: &mut BlockBasedOptions, options: &Options) {
    // Half of all memtable memory: three quarters of all bytes go here.
    family.set_write_buffer_size(options.write_buffer_bytes / 2);
    family.set_max_write_buffer_number(3);
    // Few large allocations for values of up to a MiB.
    family.set_arena_block_size((options.write_buffer_bytes / 16).clamp(MEBIBYTE, 8 * MEBIBYTE));
    universal(family, 100);
    if options.payloads == Payloads::BlobFiles {
        family.set_enable_blob_files(true);
        family.set_min_blob_size(512);
        family.set_blob_file_size(128 * MEBIBYTE as u64);
        family.set_enable_blob_gc(true);
    }
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

/// A handful of rows per group at most, but written often. A memtable that is full begins a new write-ahead log, which
/// should not happen every few thousand messages for their sake.
fn tiny_table(family: &mut RocksOptions, options: &Options) {
    family.set_write_buffer_size((options.write_buffer_bytes / 8).max(MEBIBYTE));
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
