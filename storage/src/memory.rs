//! A disk in memory, for tests and simulation: it forgets what was not synced, it fills up, it fails, it rots.
//!
//! `MemoryDisk` is the disk and outlives the storage that uses it, as a real disk outlives a process: crash it, then
//! open a new storage on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::engine::{Cursor, DiskUsage, Durability, Engine, Keep, Operation, Scan, View, WriteSet};
use crate::error::Error;
use crate::keys::{KeyRange, Table};

type Rows = BTreeMap<Vec<u8>, Bytes>;

/// A disk in memory with injected faults. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<DiskState>>,
}

#[derive(Default)]
struct DiskState {
    /// What a reader sees. Shared with cursors, copied when written while one is open.
    now: Tables,
    /// What survives losing power.
    synced: Tables,
    /// Written and not synced, oldest first.
    unsynced: Vec<WriteSet>,
    /// Keys of blocks that a crash takes, whatever becomes of their writes.
    volatile: BTreeSet<Vec<u8>>,
    /// Counts crashes: an engine from before a crash is dead.
    era: u64,
    writes_before_failure: Option<u64>,
    free: Option<u64>,
    /// Writes are held back until `step` or `resume`.
    paused: bool,
    syncs: u64,
}

#[derive(Clone, Default)]
struct Tables([Arc<Rows>; Table::ALL.len()]);

impl MemoryDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses power: everything that was not synced is gone. Storages opened before are dead from here on.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Loses power after the oldest `kept` unsynced writes happened to reach the disk: writes are lost from the
    /// newest backwards, never out of the middle. Volatile values that were not synced are lost all the same.
    pub fn crash_keeping(&self, kept: usize) {
        let mut state = self.state.lock();
        let unsynced = std::mem::take(&mut state.unsynced);
        for set in unsynced.iter().take(kept) {
            state.synced.apply(set);
        }
        for key in std::mem::take(&mut state.volatile) {
            Arc::make_mut(state.synced.rows(Table::Blocks)).remove(&key);
        }
        state.now = state.synced.clone();
        state.era += 1;
        state.paused = false;
        state.writes_before_failure = None;
    }

    /// How many writes a crash would lose now.
    #[must_use]
    pub fn unsynced_writes(&self) -> usize {
        self.state.lock().unsynced.len()
    }

    /// How many synced writes there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// After `writes` more, every write fails; `None` heals.
    pub fn fail_after(&self, writes: Option<u64>) {
        self.state.lock().writes_before_failure = writes;
    }

    /// Pretends that this many bytes are free; `None` is plenty.
    pub fn set_free(&self, bytes: Option<u64>) {
        self.state.lock().free = bytes;
    }

    /// Holds back everything queued from here on, until `resume` or until a storage is asked to step.
    pub fn pause(&self) {
        self.state.lock().paused = true;
    }

    /// Ends `pause`. What was held back is written with the next thing that is queued.
    pub fn resume(&self) {
        self.state.lock().paused = false;
    }

    /// Flips one bit of one stored value, chosen by `choice`. False when the table is empty.
    pub fn flip_bit(&self, table: Table, choice: u64) -> bool {
        self.damage(table, choice, |value| {
            let bit = usize::try_from(choice / 7).unwrap_or(0) % (value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
        })
    }

    /// Cuts one stored value short, chosen by `choice`. False when the table is empty.
    pub fn cut_value(&self, table: Table, choice: u64) -> bool {
        self.damage(table, choice, |value| {
            value.pop();
        })
    }

    /// Loses one row, chosen by `choice`. False when the table is empty.
    pub fn lose_row(&self, table: Table, choice: u64) -> bool {
        let mut state = self.state.lock();
        let Some(key) = nth_key(&state.now.0[table.slot()], choice) else { return false };
        for tables in [Half::Now, Half::Synced] {
            Arc::make_mut(state.half(tables).rows(table)).remove(&key);
        }
        true
    }

    /// Bytes of all values of a table.
    #[must_use]
    pub fn table_bytes(&self, table: Table) -> u64 {
        self.state.lock().now.0[table.slot()].values().map(|value| value.len() as u64).sum()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state.lock().paused
    }

    fn damage(&self, table: Table, choice: u64, change: impl Fn(&mut Vec<u8>)) -> bool {
        let mut state = self.state.lock();
        let Some(key) = nth_key(&state.now.0[table.slot()], choice) else { return false };
        for half in [Half::Now, Half::Synced] {
            if let Some(value) = Arc::make_mut(state.half(half).rows(table)).get_mut(&key) {
                let mut damaged = value.to_vec();
                change(&mut damaged);
                *value = damaged.into();
            }
        }
        true
    }
}

fn nth_key(rows: &Rows, choice: u64) -> Option<Vec<u8>> {
    let count = u64::try_from(rows.len()).ok().filter(|count| *count > 0)?;
    rows.keys().nth(usize::try_from(choice % count).ok()?).cloned()
}

enum Half {
    Now,
    Synced,
}

impl DiskState {
    fn half(&mut self, half: Half) -> &mut Tables {
        match half {
            Half::Now => &mut self.now,
            Half::Synced => &mut self.synced,
        }
    }
}

impl Tables {
    fn rows(&mut self, table: Table) -> &mut Arc<Rows> {
        &mut self.0[table.slot()]
    }

    fn apply(&mut self, set: &WriteSet) {
        for operation in &set.operations {
            match operation {
                Operation::Put { table, key, value, .. } => {
                    Arc::make_mut(self.rows(*table)).insert(key.clone(), value.clone());
                }
                Operation::Delete { table, key } => {
                    Arc::make_mut(self.rows(*table)).remove(key);
                }
                // Nothing lies elsewhere.
                Operation::Move { .. } => {}
                Operation::DeleteRange { table, range } => {
                    let rows = Arc::make_mut(self.rows(*table));
                    let gone: Vec<_> = rows
                        .range(range.from.clone()..range.to.clone())
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in gone {
                        rows.remove(&key);
                    }
                }
            }
        }
    }
}

/// The engine over a `MemoryDisk`, from its opening until the disk crashes.
pub(crate) struct MemEngine {
    disk: MemoryDisk,
    era: u64,
}

impl MemEngine {
    pub(crate) fn open(disk: &MemoryDisk) -> Self {
        let era = disk.state.lock().era;
        Self { disk: disk.clone(), era }
    }

    fn tables(&self) -> Result<Tables, Error> {
        let state = self.disk.state.lock();
        if state.era != self.era {
            return Err(Error::Engine("the machine lost power".into()));
        }
        Ok(state.now.clone())
    }
}

impl View for MemEngine {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        self.tables()?.read(table, key)
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        match self.tables() {
            Ok(tables) => Box::new(tables.cursor(table, range, how)),
            Err(error) => Box::new(BrokenCursor(error)),
        }
    }
}

impl Engine for MemEngine {
    fn write(&self, set: WriteSet, durability: Durability) -> Result<(), Error> {
        let mut state = self.disk.state.lock();
        if state.era != self.era {
            return Err(Error::Engine("the machine lost power".into()));
        }
        if let Some(left) = &mut state.writes_before_failure {
            if *left == 0 {
                return Err(Error::Engine("injected write failure".into()));
            }
            *left -= 1;
        }
        state.now.apply(&set);
        for operation in &set.operations {
            if let Operation::Put { table: Table::Blocks, key, keep, .. } = operation {
                match keep {
                    Keep::Volatile => state.volatile.insert(key.clone()),
                    Keep::WithItsWrite => state.volatile.remove(key),
                };
            }
        }
        state.unsynced.push(set);
        if durability == Durability::Synced {
            state.syncs += 1;
            for set in std::mem::take(&mut state.unsynced) {
                state.synced.apply(&set);
            }
        }
        Ok(())
    }

    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn View)) {
        match self.tables() {
            Ok(tables) => read(&tables),
            Err(_) => read(self),
        }
    }

    fn compact(&self, _table: Table) {}

    fn file_bytes(&self, _table: Table, _ranges: &[KeyRange]) -> (u64, u64) {
        (0, 0)
    }

    fn drop_files(&self, _table: Table, _range: &KeyRange) -> Result<(), Error> {
        Ok(())
    }

    fn sync_values(&self) -> Result<(), Error> {
        let mut state = self.disk.state.lock();
        if state.era != self.era {
            return Err(Error::Engine("the machine lost power".into()));
        }
        state.volatile.clear();
        Ok(())
    }

    fn disk_free(&self) -> Result<u64, Error> {
        Ok(self.disk.state.lock().free.unwrap_or(1 << 40))
    }

    fn disk_usage(&self) -> Result<DiskUsage, Error> {
        let state = self.disk.state.lock();
        let used = state
            .now
            .0
            .iter()
            .flat_map(|rows| rows.iter())
            .map(|(key, value)| (key.len() + value.len()) as u64);
        let total = 1 << 40;
        Ok(DiskUsage { used: used.sum(), free: state.free.unwrap_or(total), total })
    }
}

impl View for Tables {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(self.0[table.slot()].get(key).cloned())
    }

    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a> {
        Box::new(self.cursor(table, range, how))
    }
}

impl Tables {
    fn cursor(&self, table: Table, range: &KeyRange, how: Scan) -> MemCursor {
        MemCursor { rows: Arc::clone(&self.0[table.slot()]), range: range.clone(), how, at: None }
    }
}

struct MemCursor {
    rows: Arc<Rows>,
    range: KeyRange,
    how: Scan,
    at: Option<Vec<u8>>,
}

impl Cursor for MemCursor {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, Error> {
        if self.range.from >= self.range.to {
            return Ok(None);
        }
        let (from, to) = (self.range.from.clone(), self.range.to.clone());
        let found = match (self.how, self.at.take()) {
            (Scan::Forward | Scan::Bulk, None) => self.rows.range(from..to).next(),
            (Scan::Forward | Scan::Bulk, Some(at)) if at < to => {
                self.rows.range((Bound::Excluded(at), Bound::Excluded(to))).next()
            }
            (Scan::Forward | Scan::Bulk, Some(_)) => None,
            (Scan::Backward, at) => self.rows.range(from..at.unwrap_or(to)).next_back(),
        };
        let Some((key, value)) = found else {
            // A finished cursor stays finished.
            self.range.to = self.range.from.clone();
            return Ok(None);
        };
        self.at = Some(key.clone());
        Ok(Some((key, value)))
    }
}

struct BrokenCursor(Error);

impl Cursor for BrokenCursor {
    fn next(&mut self) -> Result<Option<(&[u8], &[u8])>, Error> {
        Err(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> WriteSet {
        let mut set = WriteSet::default();
        set.put(Table::Node, key.into(), Bytes::from_static(b"value"));
        set
    }

    fn keys(disk: &MemoryDisk, how: Scan) -> Vec<String> {
        let engine = MemEngine::open(disk);
        let range = KeyRange { from: b"a".to_vec(), to: b"z".to_vec() };
        let mut cursor = engine.scan(Table::Node, &range, how);
        let mut keys = Vec::new();
        while let Some((key, _)) = cursor.next().unwrap() {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
        }
        keys
    }

    #[test]
    fn a_crash_forgets_unsynced_writes_from_the_newest_backwards() {
        let disk = MemoryDisk::new();
        let engine = MemEngine::open(&disk);
        engine.write(put("a"), Durability::Synced).unwrap();
        engine.write(put("b"), Durability::Ordered).unwrap();
        engine.write(put("c"), Durability::Ordered).unwrap();

        disk.crash_keeping(1);

        assert_eq!(keys(&disk, Scan::Forward), ["a", "b"]);
        assert_eq!(keys(&disk, Scan::Backward), ["b", "a"]);
        assert!(
            engine.write(put("d"), Durability::Synced).is_err(),
            "an engine from before the crash is dead"
        );
    }

    #[test]
    fn a_synced_write_syncs_everything_before_it() {
        let disk = MemoryDisk::new();
        let engine = MemEngine::open(&disk);
        engine.write(put("a"), Durability::Ordered).unwrap();
        engine.write(put("b"), Durability::Synced).unwrap();

        disk.crash();

        assert_eq!(keys(&disk, Scan::Forward), ["a", "b"]);
    }
}
