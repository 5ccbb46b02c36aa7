//! Gives the space of dropped blocks back to the file system, in the background.
//!
//! Dropping rows only notes that they are gone. Files that hold nothing else go at once, which needs no free space and
//! so also works on a full disk. The rest goes when RocksDB merges files, which it does as long as it is written to;
//! for a store that was purged and is then left alone, a table is compacted once half of it is dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use crate::background::Background;
use crate::engine::{Engine, WriteSet};
use crate::error::Error;
use crate::keys::{KeyRange, Table};
use crate::space::now;
use crate::writer::{Queue, Work};

/// Less garbage than this is left to RocksDB's own compaction.
const GARBAGE_BYTES_MIN: u64 = 64 << 20;
/// Ranges that are remembered to see whether they still take space.
const RANGES_MAX: usize = 1024;
/// Requests that wait. When there are more, they are left out: RocksDB gets to them, only later.
const REQUESTS_MAX: usize = 64;

/// How often it is looked whether values were removed, at most.
const VALUES_INTERVAL: Duration = Duration::from_secs(2);
/// Share of the time that cleaning of values may take: one part of this many.
const VALUES_SHARE: u32 = 20;

pub(crate) struct Reclaimer(Background<Vec<KeyRange>>);

impl Reclaimer {
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        queue: Arc<Queue>,
        exports: Arc<AtomicUsize>,
    ) -> Result<Self, Error> {
        let thread = Background::start("storage-reclaim", REQUESTS_MAX, move |requests| {
            let mut dropped = Vec::new();
            let mut next_values = now() + VALUES_INTERVAL;
            loop {
                match requests.recv_timeout(next_values.saturating_duration_since(now())) {
                    Ok(ranges) => reclaim(engine.as_ref(), &exports, ranges, &mut dropped),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                let started = now();
                if started >= next_values {
                    clean_values(engine.as_ref(), &queue);
                    next_values = now() + VALUES_INTERVAL.max(started.elapsed() * VALUES_SHARE);
                }
            }
        })?;
        Ok(Self(thread))
    }

    /// These ranges of `blocks` hold nothing anymore.
    pub(crate) fn request(&self, ranges: Vec<KeyRange>) {
        if !ranges.is_empty() {
            self.0.request(ranges);
        }
    }

    /// Lets it end by itself.
    pub(crate) fn detach(self) {
        self.0.detach();
    }
}

fn reclaim(engine: &dyn Engine, exports: &AtomicUsize, ranges: Vec<KeyRange>, dropped: &mut Vec<KeyRange>) {
    // Dropping files ignores snapshots, and an export would miss what it still has to send.
    if exports.load(Ordering::SeqCst) == 0 {
        for range in &ranges {
            if let Err(error) = engine.drop_files(Table::Blocks, range) {
                tracing::warn!(%error, "dropping files of removed messages failed");
            }
        }
    }
    for range in ranges {
        match dropped.last_mut() {
            Some(last) if last.to <= range.from && last.from[..8] == range.from[..8] => last.to = range.to,
            _ => dropped.push(range),
        }
    }
    dropped.drain(..dropped.len().saturating_sub(RANGES_MAX));
    let (garbage, all) = engine.file_bytes(Table::Blocks, dropped);
    if garbage >= GARBAGE_BYTES_MIN && garbage * 2 >= all {
        engine.compact(Table::Blocks);
        dropped.clear();
    }
}

fn clean_values(engine: &dyn Engine, queue: &Queue) {
    let mut write = |set: WriteSet| queue.push_watched(None, Work::Moves(set), 0)();
    if let Err(error) = engine.clean_values(&mut write) {
        tracing::warn!(%error, "giving back the space of removed messages failed; it is tried again");
    }
}

/// Counts a running export.
pub(crate) struct ExportGuard(Arc<AtomicUsize>);

impl ExportGuard {
    pub(crate) fn new(exports: &Arc<AtomicUsize>) -> Self {
        exports.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(exports))
    }
}

impl Drop for ExportGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
