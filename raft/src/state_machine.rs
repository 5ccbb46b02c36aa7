//! openraft's state machine over [`ReplicatedMachine`]: apply in memory, checkpoint behind.
//!
//! A checkpoint is one atomic, unsynced batch: the machine's dirty rows and the applied row (log id and members).
//! Checkpoint, log and purge share one write-ahead log in that order, so after a crash the rows are never newer than
//! the log and the log always reaches back to the rows. openraft calls a checkpoint a snapshot; the bytes of one are
//! only read when a follower needs them.
//!
//! Applying goes on while a checkpoint is written: its rows were taken, and what changes meanwhile is for the next one.
//! One at a time is under way, and nothing counts as checkpointed before it is written.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::{Stream, TryStreamExt};
use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::{Batch, EntryLog, SnapshotReader, SnapshotWriter, Storage, Sync};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::checkpoints::Dirty;
use crate::codec;
use crate::config::Config;
use crate::error::Error;
use crate::machine::{CommittedEntry, ReplicatedMachine};
use crate::types::{Answered, LeaderId, LogId, SnapshotMeta, StoredMembership, TypeConfig, stored_log_id};

/// Kind of the state row in which a group keeps its applied position. Machines must not use it.
///
/// Persisted: never change.
pub const APPLIED_ROW_KIND: u8 = 0xff;

/// The bytes behind a snapshot, on either side of its way.
pub(crate) enum SnapshotData {
    /// Only the position is of interest: openraft asked for a checkpoint.
    Described,
    /// On its way to a follower.
    Outgoing(Box<SnapshotReader>),
    /// Received in full and checked, not yet in place.
    Incoming(Box<SnapshotWriter>),
}

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What the rest of the group may see of its state machine.
#[derive(Debug)]
pub(crate) struct Applied {
    /// Next index to apply; 0 when nothing was applied.
    pub(crate) next: AtomicU64,
    /// Next index after the last checkpoint.
    pub(crate) checkpointed_next: AtomicU64,
    /// The last leadership of this node whose first entry was applied here.
    pub(crate) own: watch::Sender<Option<LeaderId>>,
    /// Set when the group runs: before, openraft reads the stored state only.
    pub(crate) running: AtomicBool,
}

impl Applied {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            checkpointed_next: AtomicU64::new(0),
            own: watch::Sender::new(None),
            running: AtomicBool::new(false),
        }
    }
}

/// Where the log may be cut, seen from the last checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floors {
    /// Last index that the checkpoint covers.
    pub(crate) checkpointed: u64,
    /// Last index that may go when every follower has it.
    pub(crate) ordinary: u64,
    /// Last index that goes even if a follower still needs it.
    pub(crate) forced: u64,
    /// Bytes of entries that were applied and not purged, as far as that is known.
    pub(crate) unpurged_bytes: u64,
}

/// One group's machine, its position, and what is not checkpointed yet.
pub(crate) struct StateMachine {
    group: GroupId,
    node: NodeId,
    storage: Arc<Storage>,
    log: EntryLog,
    /// Never contended: openraft asks for `Sync`, and `get_mut` takes no lock.
    machine: Mutex<Box<dyn ReplicatedMachine>>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// What the last written checkpoint covers.
    checkpointed: SnapshotMeta,
    /// The checkpoint that is being written.
    under_way: Option<UnderWay>,
    /// Applied bytes after which a checkpoint does not wait.
    checkpoint_bytes: u64,
    /// Applied bytes after which applying waits for the checkpoint under way.
    lag_bytes: u64,
    /// Bytes applied since the group was opened, and where it stood at earlier checkpoints.
    bytes: u64,
    bytes_taken: u64,
    bytes_purged: u64,
    marks: VecDeque<Mark>,
    told_purged: Option<u64>,
    config: Arc<Config>,
    shared: Arc<Applied>,
    dirty: Arc<Dirty>,
    /// Dropped with the machine and its last write, so that closing a group can wait for both.
    gone: Arc<oneshot::Sender<()>>,
}

/// A checkpoint on its way to the disk.
struct UnderWay {
    covers: SnapshotMeta,
    bytes: u64,
    written: oneshot::Receiver<Result<(), levee_storage::Error>>,
}

#[derive(Clone, Copy)]
struct Mark {
    index: u64,
    bytes: u64,
}

/// What a state machine is built from.
pub(crate) struct Parts {
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    pub(crate) storage: Arc<Storage>,
    pub(crate) log: EntryLog,
    pub(crate) machine: Box<dyn ReplicatedMachine>,
    pub(crate) config: Arc<Config>,
    pub(crate) shared: Arc<Applied>,
    pub(crate) dirty: Arc<Dirty>,
    pub(crate) gone: oneshot::Sender<()>,
}

impl StateMachine {
    /// The machine as the caller loaded it, at the position of the stored applied row.
    pub(crate) fn open(parts: Parts) -> Result<Self, Error> {
        let meta = read_applied_row(&parts.storage, parts.group)?.unwrap_or_default();
        let next = meta.last_log_id.as_ref().map_or(0, |id| id.index + 1);
        parts.shared.next.store(next, Ordering::Relaxed);
        parts.shared.checkpointed_next.store(next, Ordering::Relaxed);
        let config = &parts.config;
        let (checkpoint_bytes, lag_bytes) = match parts.log.sync() {
            Sync::Always => (config.checkpoint_bytes, config.checkpoint_bytes),
            Sync::Never => (config.volatile_checkpoint_bytes, config.volatile_lag_bytes),
        };
        Ok(Self {
            group: parts.group,
            node: parts.node,
            storage: parts.storage,
            log: parts.log,
            machine: Mutex::new(parts.machine),
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            checkpointed: meta,
            under_way: None,
            checkpoint_bytes,
            lag_bytes,
            bytes: 0,
            bytes_taken: 0,
            bytes_purged: 0,
            marks: VecDeque::new(),
            told_purged: None,
            config: parts.config,
            shared: parts.shared,
            dirty: parts.dirty,
            gone: Arc::new(parts.gone),
        })
    }

    /// Writes what is not checkpointed yet and waits for it.
    pub(crate) async fn checkpoint(&mut self) -> Result<(), levee_storage::Error> {
        self.wait_until_written().await?;
        self.begin_checkpoint()?;
        self.wait_until_written().await
    }

    /// Begins to write what is not checkpointed yet, unless a checkpoint is under way. Says where the log may be cut as of
    /// the last one that is written; `None` before the first. The group is dirty again when this one is written.
    pub(crate) fn checkpoint_behind(&mut self) -> Result<Option<Floors>, levee_storage::Error> {
        self.take_written()?;
        self.begin_checkpoint()?;
        self.tell_purged();
        Ok(self.floors())
    }

    fn begin_checkpoint(&mut self) -> Result<(), levee_storage::Error> {
        if self.under_way.is_some() {
            return Ok(());
        }
        self.dirty.clean(self.group);
        if self.applied == self.checkpointed.last_log_id {
            return Ok(());
        }
        let covers = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let mut batch = Batch::new();
        self.machine.get_mut().checkpoint(&mut batch)?;
        batch.put_state(self.group, APPLIED_ROW_KIND, &[], &codec::encode_meta(&covers));
        let (sender, written) = oneshot::channel();
        let (dirty, group, gone) = (Arc::clone(&self.dirty), self.group, Arc::clone(&self.gone));
        let done = move |result| {
            let _ = sender.send(result);
            // The log may be cut now.
            dirty.mark(group);
            drop(gone);
        };
        self.storage.checkpoint(self.group, batch, Box::new(done));
        self.under_way = Some(UnderWay { covers, bytes: self.bytes, written });
        self.bytes_taken = self.bytes;
        Ok(())
    }

    /// Takes note of the checkpoint under way if it is written.
    fn take_written(&mut self) -> Result<(), levee_storage::Error> {
        match self.under_way.as_mut().map(|checkpoint| checkpoint.written.try_recv()) {
            None | Some(Err(oneshot::error::TryRecvError::Empty)) => Ok(()),
            Some(Ok(result)) => self.written(result),
            Some(Err(oneshot::error::TryRecvError::Closed)) => self.written(Err(writer_stopped())),
        }
    }

    /// Waits for the writer without holding up this thread, which other groups need.
    async fn wait_until_written(&mut self) -> Result<(), levee_storage::Error> {
        let Some(checkpoint) = &mut self.under_way else { return Ok(()) };
        let result = (&mut checkpoint.written).await.unwrap_or_else(|_| Err(writer_stopped()));
        self.written(result)
    }

    fn written(&mut self, result: Result<(), levee_storage::Error>) -> Result<(), levee_storage::Error> {
        let Some(UnderWay { covers, bytes, .. }) = self.under_way.take() else { return Ok(()) };
        result?;
        if let Some(last) = &covers.last_log_id {
            self.marks.push_back(Mark { index: last.index, bytes });
            self.shared.checkpointed_next.store(last.index + 1, Ordering::Relaxed);
        }
        self.checkpointed = covers;
        // What the machine may give up depends on what a written checkpoint knows to be dead.
        self.told_purged = None;
        self.tell_purged();
        Ok(())
    }

    /// Tells the machine of the purge floor, when that or the checkpoint is a new one.
    fn tell_purged(&mut self) {
        let Some(purged) = self.log.purged().map(|id| id.index) else { return };
        if self.told_purged == Some(purged) {
            return;
        }
        self.told_purged = Some(purged);
        while let Some(mark) = self.marks.front().filter(|mark| mark.index <= purged) {
            self.bytes_purged = mark.bytes;
            self.marks.pop_front();
        }
        self.machine.get_mut().purged(purged);
    }

    fn floors(&self) -> Option<Floors> {
        let checkpointed = self.checkpointed.last_log_id.as_ref()?.index;
        let by_entries = checkpointed.saturating_sub(self.config.keep_entries);
        Some(Floors {
            checkpointed,
            ordinary: by_entries.max(self.index_behind(self.config.keep_bytes)),
            forced: self.index_behind(self.config.keep_lagging_bytes),
            unpurged_bytes: self.bytes - self.bytes_purged,
        })
    }

    /// The last checkpoint that lies at least `bytes` of entries back.
    fn index_behind(&self, bytes: u64) -> u64 {
        let upto = self.bytes.saturating_sub(bytes);
        self.marks.iter().take_while(|mark| mark.bytes <= upto).last().map_or(0, |mark| mark.index)
    }

    fn apply_one(&mut self, (entry, responder): EntryResponder<TypeConfig>) -> Result<(), io::Error> {
        let id = entry.log_id;
        debug_assert_eq!(
            self.applied.as_ref().map_or(0, |id| id.index + 1),
            id.index,
            "entries are applied in order"
        );
        let reply = match entry.payload {
            EntryPayload::Blank => {
                if id.leader_id.node_id == self.node {
                    self.shared.own.send_replace(Some(id.leader_id));
                }
                Box::new(())
            }
            EntryPayload::Membership(members) => {
                self.membership = StoredMembership::new(Some(id), members);
                Box::new(())
            }
            EntryPayload::Normal(proposed) => {
                self.bytes += proposed.payload.len() as u64 + 64;
                let stored = stored_log_id(&id);
                let entry = CommittedEntry {
                    index: id.index,
                    raft_term: stored.raft_term,
                    kind: proposed.kind,
                    payload: proposed.payload,
                };
                self.machine
                    .get_mut()
                    .apply(entry)
                    .map_err(|error| self.broken("applying an entry", id.index, &error))?
            }
        };
        self.applied = Some(id);
        self.shared.next.store(id.index + 1, Ordering::Release);
        if let Some(responder) = responder {
            responder.send(Answered(reply));
        }
        Ok(())
    }

    fn broken(&self, attempted: &str, index: u64, error: &dyn std::fmt::Display) -> io::Error {
        tracing::error!(group = %self.group, index, "{attempted} failed; the group stops on this node: {error}");
        io::Error::other(format!("group {}: {attempted} at {index}: {error}", self.group))
    }

    async fn checkpoint_or_stop(&mut self) -> Result<(), io::Error> {
        let index = self.applied.as_ref().map_or(0, |id| id.index);
        self.checkpoint().await.map_err(|error| self.broken("a checkpoint", index, &error))
    }

    /// Begins a checkpoint when much changed since the last one. Where much was applied it waits if that one is still being
    /// written: what is in memory only stays bounded.
    async fn checkpoint_if_much_changed(&mut self) -> Result<(), io::Error> {
        let bytes = self.bytes - self.bytes_taken;
        let begun = if bytes >= self.lag_bytes {
            match self.wait_until_written().await {
                Ok(()) => self.begin_checkpoint(),
                failed => failed,
            }
        } else if bytes >= self.checkpoint_bytes
            || self.machine.get_mut().unwritten_rows() >= self.config.checkpoint_rows
        {
            self.take_written().and_then(|()| self.begin_checkpoint())
        } else {
            Ok(())
        };
        let index = self.applied.as_ref().map_or(0, |id| id.index);
        begun.map_err(|error| self.broken("a checkpoint", index, &error))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Checkpointed;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.try_next().await? {
            self.apply_one(entry)?;
        }
        self.machine.get_mut().flushed();
        self.checkpoint_if_much_changed().await?;
        // Also right after a checkpoint: the purge that it allows is decided by the next round.
        self.dirty.mark(self.group);
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Checkpointed> {
        // Asked for when a log is to be cut behind the last checkpoint, and while opening: that one is recent enough.
        Some(Checkpointed(Ok(self.checkpointed.clone())))
    }

    async fn get_snapshot_builder(&mut self) -> Checkpointed {
        Checkpointed(self.checkpoint_or_stop().await.map(|()| self.checkpointed.clone()))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let index = meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let SnapshotData::Incoming(writer) = snapshot else {
            return Err(io::Error::other(format!("group {}: a snapshot without content", self.group)));
        };
        let covered = meta.last_log_id.as_ref().map(stored_log_id);
        let covered = covered.ok_or_else(|| io::Error::other("a snapshot that covers nothing"))?;
        // Rows that were taken from what is replaced are on the disk before it, or refused.
        let _ = self.wait_until_written().await;
        // Takes the stored state, and with it the log up to there, from the old to the new in one synced write.
        writer.finish(covered).map_err(|error| self.broken("putting a snapshot in place", index, &error))?;
        let stored = read_applied_row(&self.storage, self.group)
            .map_err(|error| self.broken("reading an installed snapshot", index, &error))?;
        if stored.as_ref().map(|stored| &stored.last_log_id) != Some(&meta.last_log_id) {
            return Err(self.broken(
                "checking an installed snapshot",
                index,
                &"it ends elsewhere than announced",
            ));
        }
        self.machine.get_mut().reload().map_err(|error| self.broken("loading a snapshot", index, &error))?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.checkpointed = meta.clone();
        self.bytes_taken = self.bytes;
        self.bytes_purged = self.bytes;
        self.marks.clear();
        self.shared.next.store(index + 1, Ordering::Release);
        self.shared.checkpointed_next.store(index + 1, Ordering::Relaxed);
        self.machine.get_mut().flushed();
        tracing::info!(group = %self.group, index, "a snapshot replaced the state");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if !self.shared.running.load(Ordering::Acquire) {
            return Ok(None);
        }
        self.checkpoint_or_stop().await?;
        // The row comes from the same view as the chunks, so what is announced is what is sent.
        let (reader, row) =
            self.storage.export_with_row(self.group, APPLIED_ROW_KIND, &[]).map_err(io::Error::other)?;
        let Some(row) = row else { return Ok(None) };
        let meta = codec::decode_meta(&row).map_err(|_| io::Error::other(Error::AppliedRow(self.group)))?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Outgoing(Box::new(reader)) }))
    }
}

/// openraft's builder: the checkpoint is written by the time it exists.
pub(crate) struct Checkpointed(Result<SnapshotMeta, io::Error>);

impl RaftSnapshotBuilder<TypeConfig> for Checkpointed {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        match &self.0 {
            Ok(meta) => Ok(Snapshot { meta: meta.clone(), snapshot: SnapshotData::Described }),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }
}

fn writer_stopped() -> levee_storage::Error {
    levee_storage::Error::Failed("the writer stopped".to_owned())
}

/// The stored position of a group's state; `None` before its first checkpoint.
pub(crate) fn read_applied_row(
    storage: &Arc<Storage>,
    group: GroupId,
) -> Result<Option<SnapshotMeta>, Error> {
    let mut found = None;
    storage.state_rows(group, &mut |kind, _key, value| {
        if kind == APPLIED_ROW_KIND {
            found = Some(codec::decode_meta(value));
        }
    })?;
    found.transpose().map_err(|_| Error::AppliedRow(group))
}

#[cfg(test)]
mod tests {
    use levee_storage::MemoryDisk;

    use super::*;
    use crate::machine::Reply;
    use crate::types::{Entry, Proposed};

    const GROUP: GroupId = GroupId(16);

    /// Counts what it applied; a row tells how much that was.
    #[derive(Default)]
    struct Counter {
        applied: u64,
        unwritten: usize,
    }

    impl ReplicatedMachine for Counter {
        fn apply(&mut self, _: CommittedEntry) -> Result<Reply, levee_storage::Error> {
            self.applied += 1;
            self.unwritten += 1;
            Ok(Box::new(()))
        }

        fn unwritten_rows(&self) -> usize {
            self.unwritten
        }

        fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), levee_storage::Error> {
            self.unwritten = 0;
            batch.put_state(GROUP, 1, b"applied", &self.applied.to_le_bytes());
            Ok(())
        }

        fn reload(&mut self) -> Result<(), levee_storage::Error> {
            Ok(())
        }
    }

    fn machine(storage: &Arc<Storage>, config: Config) -> StateMachine {
        StateMachine::open(Parts {
            group: GROUP,
            node: NodeId(1),
            storage: Arc::clone(storage),
            log: storage.entry_log(GROUP, Sync::Always).unwrap(),
            machine: Box::new(Counter::default()),
            config: Arc::new(config),
            shared: Arc::new(Applied::new()),
            dirty: Arc::default(),
            gone: oneshot::channel().0,
        })
        .unwrap()
    }

    /// Applies entries up to and with `last`, one by one as single batches.
    async fn apply_to(machine: &mut StateMachine, last: u64) {
        for index in machine.applied.as_ref().map_or(1, |id| id.index + 1)..=last {
            let log_id = LogId::new(LeaderId { term: 1, node_id: NodeId(1) }, index);
            let payload =
                EntryPayload::Normal(Proposed { kind: 0, payload: bytes::Bytes::from_static(b"x") });
            machine.apply_one((Entry { log_id, payload }, None)).unwrap();
            machine.checkpoint_if_much_changed().await.unwrap();
        }
    }

    fn stored(storage: &Storage) -> Option<u64> {
        let mut found = None;
        let mut visit = |kind: u8, _: &[u8], value: &[u8]| {
            if kind == 1 {
                found = value.try_into().ok().map(u64::from_le_bytes);
            }
        };
        storage.state_rows(GROUP, &mut visit).unwrap();
        found
    }

    #[tokio::test]
    async fn applying_goes_on_while_a_checkpoint_is_written_and_nothing_counts_before_it_is() {
        let disk = MemoryDisk::new();
        let storage = Storage::in_memory(disk.clone());
        let mut machine = machine(&storage, Config { checkpoint_rows: 3, ..Config::default() });
        disk.pause();

        apply_to(&mut machine, 9).await;

        assert_eq!(machine.checkpoint_behind().unwrap().map(|floors| floors.checkpointed), None);
        assert_eq!(stored(&storage), None);

        disk.resume();
        storage.step();

        assert_eq!(machine.checkpoint_behind().unwrap().map(|floors| floors.checkpointed), Some(3));
        assert_eq!(stored(&storage), Some(9), "the next one was begun with all that was applied meanwhile");
    }

    #[tokio::test]
    async fn a_group_is_dirty_again_when_its_checkpoint_is_written() {
        let storage = Storage::in_memory(MemoryDisk::new());
        let mut machine = machine(&storage, Config { checkpoint_rows: 3, ..Config::default() });

        apply_to(&mut machine, 3).await;

        assert!(machine.dirty.is_marked(GROUP), "so that the log is cut behind it");
    }

    #[tokio::test]
    async fn a_failed_write_of_a_checkpoint_stops_the_group() {
        let disk = MemoryDisk::new();
        let storage = Storage::in_memory(disk.clone());
        let mut machine = machine(&storage, Config { checkpoint_rows: 3, ..Config::default() });
        apply_to(&mut machine, 2).await;
        disk.fail_after(Some(0));

        let id = LogId::new(LeaderId { term: 1, node_id: NodeId(1) }, 3);
        let payload = EntryPayload::Normal(Proposed { kind: 0, payload: bytes::Bytes::from_static(b"x") });
        machine.apply_one((Entry { log_id: id, payload }, None)).unwrap();
        machine.checkpoint_if_much_changed().await.unwrap();

        assert!(machine.checkpoint_behind().is_err());
    }
}
