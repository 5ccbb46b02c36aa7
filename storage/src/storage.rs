//! One node's store: opens it, hands out logs and message stores, and is the one door to the writer.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use bytes::Bytes;
use levee_protocol::ids::GroupId;
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::block_cache::BlockCache;
use crate::block_memory::BlockMemory;
use crate::engine::{DiskUsage, Durability, Engine, Scan, WriteSet};
use crate::entry_log::EntryLog;
use crate::error::Error;
use crate::flusher::{Checkpoint, Flusher};
use crate::format::{DirectoryLock, check_version};
use crate::group::{Group, Sync};
use crate::keys::{self, HardItem, KeyRange, Space, Table};
use crate::memory::{MemEngine, MemoryDisk};
use crate::messages::MessageStore;
use crate::options::{Options, RESERVE_BYTES_MIN};
use crate::read_ahead::ReadAhead;
use crate::reclaim::{ExportGuard, Reclaimer};
use crate::rocks::RocksEngine;
use crate::sealed::{Fields, unseal};
use crate::snapshot::{self, SnapshotReader, SnapshotWriter};
use crate::space::{Room, SpaceGate};
use crate::writer::{Done, Job, Queue, Work, Writer, closed};

/// Sees a checkpointed row: kind, key, value.
pub type RowVisitor<'a> = dyn FnMut(u8, &[u8], &[u8]) + 'a;

/// The store of one node. Everything of every group on it.
pub struct Storage {
    queue: Arc<Queue>,
    pump: Pump,
    reclaimer: Option<Reclaimer>,
    flusher: Option<Flusher>,
    read_ahead: Option<ReadAhead>,
    cache: BlockCache,
    block_memory: Arc<BlockMemory>,
    space: SpaceGate,
    exports: Arc<AtomicUsize>,
    written_bytes: Arc<AtomicU64>,
    opening: Mutex<()>,
    // Last: the database closes before the directory is given up.
    engine: Arc<dyn Engine>,
    _lock: Option<DirectoryLock>,
}

/// Who calls the writer.
enum Pump {
    /// A thread of its own.
    Thread(Option<JoinHandle<()>>),
    /// Whoever queues something, so that a simulation in one thread is deterministic.
    Inline { writer: Mutex<Writer>, disk: MemoryDisk },
}

impl Storage {
    /// Opens or creates the store in `dir`. Refuses a directory that a running process holds, one of a newer release,
    /// and one that has lost what it had promised to keep.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let lock = DirectoryLock::acquire(dir)?;
        let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(dir, &options)?);
        Self::start(engine, &options, Some(lock), None)
    }

    /// Opens the store on a disk in memory. Writes happen on the calling thread before the call returns, unless the
    /// disk is paused. Panics if the disk was damaged; `open_memory` says so instead.
    #[must_use]
    pub fn in_memory(disk: MemoryDisk) -> Arc<Self> {
        Self::open_memory(disk, Options::default()).expect("an undamaged disk in memory opens")
    }

    /// Opens the store on a disk in memory that may be damaged.
    pub fn open_memory(disk: MemoryDisk, options: Options) -> Result<Arc<Self>, Error> {
        let engine: Arc<dyn Engine> = Arc::new(MemEngine::open(&disk));
        Self::start(engine, &options, None, Some(disk))
    }

    fn start(
        engine: Arc<dyn Engine>,
        options: &Options,
        lock: Option<DirectoryLock>,
        inline: Option<MemoryDisk>,
    ) -> Result<Arc<Self>, Error> {
        check_version(engine.as_ref())?;
        discard_imports(engine.as_ref())?;
        let queue = Arc::new(Queue::new(options.queue_bytes));
        let written_bytes = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(
            Arc::clone(&engine),
            Arc::clone(&queue),
            options.batch_bytes,
            options.tail_bytes,
            Arc::clone(&written_bytes),
        );
        let exports = Arc::new(AtomicUsize::new(0));
        let (pump, reclaimer, flusher, read_ahead) = match inline {
            Some(disk) => (Pump::Inline { writer: Mutex::new(writer), disk }, None, None, None),
            None => {
                let spawned =
                    std::thread::Builder::new().name("storage-writer".into()).spawn(|| writer.run());
                let thread = spawned.map_err(|error| Error::Engine(format!("writer thread: {error}")))?;
                let reclaimer =
                    Reclaimer::start(Arc::clone(&engine), Arc::clone(&queue), Arc::clone(&exports))?;
                let flusher = Flusher::start(Arc::clone(&engine), Arc::clone(&queue))?;
                (Pump::Thread(Some(thread)), Some(reclaimer), Some(flusher), Some(ReadAhead::start()?))
            }
        };
        Ok(Arc::new(Self {
            queue,
            pump,
            reclaimer,
            flusher,
            read_ahead,
            cache: BlockCache::new(options.read_cache_bytes),
            block_memory: Arc::default(),
            space: SpaceGate::new(options.reserve_bytes.max(RESERVE_BYTES_MIN)),
            exports,
            written_bytes,
            opening: Mutex::new(()),
            engine,
            _lock: lock,
        }))
    }

    /// A row of the node itself.
    pub fn node_row(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(value) = self.engine.read(Table::Node, key.as_bytes())? else { return Ok(None) };
        match unseal(&value) {
            Some(value) => Ok(Some(value.to_vec())),
            None => Err(Error::damaged(GroupId(0), Table::Node, key, "its checksum does not match")),
        }
    }

    /// Stores a row of the node, synced. Blocks until it is.
    pub fn put_node_row(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        let work = Work::NodeRow { key: key.as_bytes().to_vec(), value: value.to_vec() };
        self.run(None, work, 0)
    }

    /// The log of a group, created if there is none. Walks the stored log and refuses one with a gap or damage.
    pub fn entry_log(self: &Arc<Self>, group: GroupId, sync: Sync) -> Result<EntryLog, Error> {
        let group = self.group(group)?;
        EntryLog::open(self, group, sync)
    }

    /// The messages of a group, as of its last checkpoint if nobody holds them yet.
    pub fn messages(self: &Arc<Self>, group: GroupId) -> Result<Arc<MessageStore>, Error> {
        let group = self.group(group)?;
        let mut known = group.messages.lock();
        if let Some(messages) = known.upgrade() {
            return Ok(messages);
        }
        let messages = MessageStore::open(self, Arc::clone(&group))?;
        *known = Arc::downgrade(&messages);
        Ok(messages)
    }

    /// Visits the rows of a group's state machine as of the last checkpoint: kind, key, value, in order.
    pub fn state_rows(&self, group: GroupId, visit: &mut RowVisitor<'_>) -> Result<(), Error> {
        let space = self.group(group)?.space();
        let mut cursor = self.engine.scan(Table::State, &space.range(), Scan::Bulk);
        while let Some((key, value)) = cursor.next()? {
            let damaged = |why| Error::damaged(group, Table::State, "a row", why);
            let (kind, key) =
                key[Space::PREFIX_BYTES..].split_first().ok_or_else(|| damaged("its key is short"))?;
            let value = unseal(value).ok_or_else(|| damaged("its checksum does not match"))?;
            visit(*kind, key, value);
        }
        Ok(())
    }

    /// Writes a batch behind everything queued before. Blocks until it is written, or synced if asked for.
    pub fn write(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        let (sender, receiver) = sync_channel(1);
        self.submit(batch, durability, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// The same without blocking for the write; waits only if the queue is full.
    pub fn submit(&self, batch: Batch, durability: Durability, done: Done) {
        // So that every group of the batch is known to the writer.
        if let Err(error) = batch.groups().into_iter().try_for_each(|group| self.writable(group)) {
            return done(Err(error));
        }
        self.queue.push_rows(batch, durability, done);
        self.kick();
    }

    /// Writes a checkpoint of a group's state, unsynced and behind everything that it covers. For a group whose log is not
    /// synced that is brought to stable storage first, in the background: a log may lose its end, and nothing before its
    /// last checkpoint.
    pub fn checkpoint(&self, group: GroupId, batch: Batch, done: Done) {
        let is_synced = match self.group(group) {
            Ok(group) => group.sync() == Sync::Always,
            Err(error) => return done(Err(error)),
        };
        match &self.flusher {
            _ if is_synced => self.submit(batch, Durability::Ordered, done),
            Some(flusher) => flusher.request(Checkpoint { batch, done }),
            None => {
                self.push(None, Work::SyncValues);
                self.submit(batch, Durability::Ordered, done);
            }
        }
    }

    /// The groups that have anything stored.
    pub fn groups(&self) -> Result<Vec<GroupId>, Error> {
        let mut groups: BTreeSet<GroupId> = self.queue.groups.read().keys().copied().collect();
        let mut cursor = self.engine.scan(Table::HardState, &KeyRange::all(), Scan::Forward);
        while let Some((key, _)) = cursor.next()? {
            groups.extend(keys::leading_number(key).map(GroupId));
        }
        groups.retain(|id| self.queue.groups.read().get(id).is_none_or(|group| !group.is_removed()));
        Ok(groups.into_iter().collect())
    }

    /// Removes everything of a group, synced. Handles that are still around get `GroupRemoved`.
    pub fn remove_group(&self, id: GroupId) -> Result<(), Error> {
        self.remove(id, None)
    }

    /// The same, and in the same write a row of the node that tells of the group.
    pub fn remove_group_and_row(&self, id: GroupId, row: &str) -> Result<(), Error> {
        self.remove(id, Some(row.as_bytes().to_vec()))
    }

    /// Removes everything of a group but its vote, which becomes `vote`, and stores a row of the node that tells of it: in
    /// one write, synced. Handles that are still around get `GroupRemoved`.
    pub fn start_group_over(&self, id: GroupId, vote: Vec<u8>, row: &str, value: &[u8]) -> Result<(), Error> {
        let space = self.group(id)?.space();
        // What is still to be given back of the old data's space lies apart from what is written from now on.
        let generation = space.generation + 1;
        let mark = (row.as_bytes().to_vec(), value.to_vec());
        self.remove_by(id, Work::StartOver { vote, generation, mark })?;
        self.reclaim(vec![space.range()]);
        Ok(())
    }

    fn remove(&self, id: GroupId, node_row: Option<Vec<u8>>) -> Result<(), Error> {
        self.remove_by(id, Work::Remove { node_row })?;
        self.reclaim(vec![keys::group_range(id)]);
        Ok(())
    }

    fn remove_by(&self, id: GroupId, work: Work) -> Result<(), Error> {
        let group = self.group(id)?;
        // Nobody opens it again before it is gone.
        let _one_at_a_time = self.opening.lock();
        group.set_removed();
        // It stays known as removed, so that a late checkpoint does not bring half of it back.
        self.run(Some(group), work, 0)?;
        self.cache.forget(id);
        Ok(())
    }

    /// Why the store takes no further writes, if it does not. Only a restart changes that.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.queue.health.failed()
    }

    /// Calls back once when the store fails; at once if it has. On the writer's thread: hand over and return.
    pub fn on_failure(&self, watcher: Box<dyn Fn(&str) + Send>) {
        self.queue.health.watch(watcher);
    }

    /// Whether there is room to append. Ask before proposing and before accepting entries from a leader: a Raft log
    /// store that fails an append stops its group, a proposal that is refused is only an error to its client.
    pub fn room(&self, room: Room) -> Result<(), Error> {
        self.admit(room, 0)
    }

    /// Space taken and left.
    pub fn disk_usage(&self) -> Result<DiskUsage, Error> {
        self.engine.disk_usage()
    }

    /// Bytes written since the store was opened.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// A group's data as of its last checkpoint, as a stream of chunks.
    pub fn export(self: &Arc<Self>, group: GroupId) -> Result<SnapshotReader, Error> {
        Ok(SnapshotReader::start(self, self.group(group)?.space(), 0, &[])?.0)
    }

    /// The same, with the state row that says what the snapshot covers, read from the same view.
    pub fn export_with_row(
        self: &Arc<Self>,
        group: GroupId,
        kind: u8,
        key: &[u8],
    ) -> Result<(SnapshotReader, Option<Bytes>), Error> {
        SnapshotReader::start(self, self.group(group)?.space(), kind, key)
    }

    /// Begins to replace a group's data by an export of another node. One import per group at a time.
    pub fn import(self: &Arc<Self>, group: GroupId) -> Result<SnapshotWriter, Error> {
        SnapshotWriter::start(self, self.group(group)?)
    }

    /// Writes one batch of what a paused disk in memory holds back. False when there was nothing.
    pub fn step(&self) -> bool {
        match &self.pump {
            Pump::Thread(_) => false,
            Pump::Inline { writer, .. } => writer.lock().step(),
        }
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Memory for blocks of messages, which all that goes into this store may share.
    #[must_use]
    pub fn block_memory(&self) -> &Arc<BlockMemory> {
        &self.block_memory
    }

    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(crate) fn read_ahead(&self) -> Option<&ReadAhead> {
        self.read_ahead.as_ref()
    }

    pub(crate) fn admit(&self, room: Room, bytes: u64) -> Result<(), Error> {
        self.space.admit(self.engine.as_ref(), room, bytes)
    }

    /// Lets what was pushed be written, if nobody else does. Never under a lock that the writer takes.
    pub(crate) fn kick(&self) {
        let Pump::Inline { writer, disk } = &self.pump else { return };
        // Whoever is writing takes what was queued meanwhile; looking again closes the gap between its last look and
        // its unlock. A callback that queues something ends up here while its own thread is writing.
        while !disk.is_paused()
            && !self.queue.is_empty()
            && let Some(mut writer) = writer.try_lock()
        {
            while !disk.is_paused() && writer.step() {}
        }
    }

    /// Queues work without waiting for room, for callers that hold a lock the writer takes, and for the few bytes of
    /// bookkeeping.
    pub(crate) fn push(&self, group: Option<Arc<Group>>, work: Work) {
        self.queue.push(Job { group, work, bytes: 0, done: None });
        self.kick();
    }

    /// Queues a batch without waiting for room; `kick` afterwards.
    pub(crate) fn enqueue(&self, batch: Batch, durability: Durability) -> Result<(), Error> {
        self.queue.health.check()?;
        let work = Work::Rows { batch, durability, committed: Vec::new() };
        self.queue.push(Job { group: None, work, bytes: 0, done: None });
        Ok(())
    }

    /// Queues work and blocks until it is done.
    pub(crate) fn run(&self, group: Option<Arc<Group>>, work: Work, bytes: usize) -> Result<(), Error> {
        self.queue.reserve(bytes);
        let written = self.queue.push_watched(group, work, bytes);
        self.kick();
        written()
    }

    /// Gives the space of deleted blocks back to the file system, in the background.
    pub(crate) fn reclaim(&self, ranges: Vec<KeyRange>) {
        if let Some(reclaimer) = &self.reclaimer {
            reclaimer.request(ranges);
        }
    }

    /// Files stay as long as the returned value lives.
    pub(crate) fn export_started(&self) -> ExportGuard {
        ExportGuard::new(&self.exports)
    }

    /// Whether the group may be written without being opened by whoever writes.
    fn writable(&self, id: GroupId) -> Result<(), Error> {
        if self.queue.groups.read().get(&id).is_some_and(|group| group.is_removed()) {
            return Err(Error::GroupRemoved(id));
        }
        self.group(id).map(drop)
    }

    /// The group, new if there is none or if it was removed.
    fn group(&self, id: GroupId) -> Result<Arc<Group>, Error> {
        let known = || self.queue.groups.read().get(&id).filter(|group| !group.is_removed()).cloned();
        if let Some(group) = known() {
            return Ok(group);
        }
        let _one_at_a_time = self.opening.lock();
        if let Some(group) = known() {
            return Ok(group);
        }
        let group = Arc::new(Group::load(self.engine.as_ref(), id)?);
        self.queue.groups.write().insert(id, Arc::clone(&group));
        let value = group.space().generation.to_le_bytes().to_vec();
        // So that the group is listed after a restart, however little was written to it.
        self.push(Some(Arc::clone(&group)), Work::HardRow { item: HardItem::Generation, value });
        Ok(group)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.queue.close();
        self.read_ahead = None;
        let writer = match &self.pump {
            Pump::Thread(Some(thread)) => Some(thread.thread().id()),
            _ => None,
        };
        // They may wait for the writer, which must not wait for them.
        let is_writer = writer == Some(std::thread::current().id());
        if let Some(reclaimer) = self.reclaimer.take() {
            if is_writer { reclaimer.detach() } else { drop(reclaimer) }
        }
        if let Some(flusher) = self.flusher.take() {
            if is_writer { flusher.detach() } else { drop(flusher) }
        }
        match &mut self.pump {
            Pump::Thread(thread) => {
                // The last handle may be dropped by a callback, on the writer's own thread.
                if let Some(thread) = thread.take()
                    && thread.thread().id() != std::thread::current().id()
                    && thread.join().is_err()
                {
                    tracing::error!("the storage writer panicked");
                }
            }
            Pump::Inline { writer, disk } => while !disk.is_paused() && writer.get_mut().step() {},
        }
        // Callbacks and tails refer back to groups.
        self.queue.groups.write().clear();
    }
}

/// Removes what imports left that a crash interrupted.
fn discard_imports(engine: &dyn Engine) -> Result<(), Error> {
    let all = KeyRange::all();
    let mut set = WriteSet::default();
    {
        let mut cursor = engine.scan(Table::HardState, &all, Scan::Forward);
        while let Some((key, value)) = cursor.next()? {
            if key.get(8) != Some(&(HardItem::Importing as u8)) {
                continue;
            }
            let group = GroupId(keys::leading_number(key).unwrap_or(0));
            let generation = unseal(value).and_then(|value| Fields(value).u32()).ok_or_else(|| {
                Error::damaged(
                    group,
                    Table::HardState,
                    "the mark of an import",
                    "its checksum does not match",
                )
            })?;
            tracing::info!(group = group.0, "discarding a snapshot import that was interrupted");
            snapshot::discard(&mut set, Space { group, generation });
        }
    }
    if set.is_empty() { Ok(()) } else { engine.write(set, Durability::Ordered) }
}
