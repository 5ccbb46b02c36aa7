//! Group commit: appends from many Raft groups become one synced write.
//!
//! Sits between `entry_log.rs` and the engine. Everything that changes the store goes through this one queue, so the
//! write-ahead log has log entries, checkpoints and purges in the order in which they were meant, and nothing durable
//! refers to something that is not. Callbacks run in queue order, after the write and, if any job of the batch asked
//! for it, after the sync; never before.
//!
//! It does not retry: a failed write or sync stops it for good, because what reached the disk is then unknown.
//!
//! Hot path: per batch one write, one sync, one lock per job; no copy of payloads but the one into the write batch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

use levee_protocol::ids::GroupId;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::batch::Batch;
use crate::engine::{Durability, Engine, Keep, WriteSet};
use crate::entry_row::{EntryRow, kind};
use crate::error::Error;
use crate::group::{Group, LogEntry, LogId, LostEnd, Sync, encode_log_id};
use crate::keys::{self, HardItem, Scope, Table};
use crate::metrics;
use crate::moments::{self, Moment, Moments};
use crate::sealed::seal;
use crate::snapshot;

/// Called once with the outcome. Runs on the writer's thread: it must not block and must not write to the storage
/// synchronously.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// One thing to write.
pub(crate) struct Job {
    pub(crate) group: Option<Arc<Group>>,
    pub(crate) work: Work,
    pub(crate) bytes: usize,
    pub(crate) done: Option<Done>,
}

pub(crate) enum Work {
    Append {
        entries: Vec<LogEntry>,
        epoch: u64,
        committed: Option<LogId>,
        mark: Option<Mark>,
    },
    Vote {
        vote: Vec<u8>,
        mark: Option<Mark>,
    },
    /// Entries from `from` up to and with `to` leave the end of the log.
    Truncate {
        from: u64,
        to: u64,
    },
    /// Entries that a power cut took are no longer in the log.
    LoseEnd(LostEnd),
    /// Entries from `from` up to the id leave the front of the log.
    Purge {
        from: u64,
        id: LogId,
    },
    Rows {
        batch: Batch,
        durability: Durability,
        committed: Vec<(GroupId, LogId)>,
    },
    NodeRow {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// A new group, an import that begins.
    HardRow {
        item: HardItem,
        value: Vec<u8>,
    },
    /// Raw rows of an import, and what discards one.
    Raw(WriteSet),
    /// Values that cleaning copied.
    Moves(WriteSet),
    /// Nothing: it is done when what was queued before is written.
    Nothing,
    /// Volatile values that were queued before come to stable storage. Where there is no thread for it.
    SyncValues,
    /// The import of `generation` becomes the group's data.
    Install {
        generation: u32,
        applied: LogId,
        mark: Option<Mark>,
    },
    /// Everything of the group, and a row of the node that told of it.
    Remove {
        node_row: Option<Vec<u8>>,
    },
    /// Everything of the group but its vote. A row of the node says so.
    StartOver {
        vote: Vec<u8>,
        generation: u32,
        mark: Mark,
    },
}

/// Key and value of a node row that must be written together with something.
pub(crate) type Mark = (Vec<u8>, Vec<u8>);

/// What everybody who queues shares with whoever writes.
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    room: Condvar,
    bytes_max: usize,
    pub(crate) health: Health,
    pub(crate) groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            bytes_max,
            health: Health::default(),
            groups: RwLock::default(),
        }
    }

    /// Waits until `bytes` fit and takes the room. A job larger than the whole queue fits when it is empty. The room
    /// is given back when the job that is pushed with it was written.
    pub(crate) fn reserve(&self, bytes: usize) {
        let mut state = self.state.lock();
        while state.bytes > 0 && state.bytes + bytes > self.bytes_max && !state.closed {
            self.room.wait(&mut state);
        }
        state.bytes += bytes;
    }

    /// Gives back room that was not used.
    pub(crate) fn release(&self, bytes: usize) {
        self.state.lock().bytes -= bytes;
        self.room.notify_all();
    }

    /// Queues a job whose room was reserved. Never blocks. After the storage was closed, the job fails.
    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            if let Some(done) = job.done {
                done(Err(closed()));
            }
            return;
        }
        state.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
    }

    /// Queues a job like [`push`](Self::push). What is returned blocks until it is done.
    pub(crate) fn push_watched(
        &self,
        group: Option<Arc<Group>>,
        work: Work,
        bytes: usize,
    ) -> impl FnOnce() -> Result<(), Error> + use<> {
        let (sender, written) = sync_channel(1);
        let done: Done = Box::new(move |result| drop(sender.send(result)));
        self.push(Job { group, work, bytes, done: Some(done) });
        move || written.recv().unwrap_or_else(|_| Err(closed()))
    }

    /// Queues rows, waiting for room.
    pub(crate) fn push_rows(&self, batch: Batch, durability: Durability, done: Done) {
        let bytes = batch.bytes();
        self.reserve(bytes);
        let committed = self.committed_news(&batch);
        let work = Work::Rows { batch, durability, committed };
        self.push(Job { group: None, work, bytes, done: Some(done) });
    }

    /// How far the logs of a batch's groups are committed, as far as that is not stored yet.
    fn committed_news(&self, batch: &Batch) -> Vec<(GroupId, LogId)> {
        let groups = self.groups.read();
        let known = batch.groups().into_iter().filter_map(|id| groups.get(&id));
        known.filter_map(|group| Some((group.id, group.log.write().take_committed()?))).collect()
    }

    /// Ends the writer once everything queued is written.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().jobs.is_empty()
    }

    /// The next jobs, at most about `bytes_max` of them and at least one if there is any.
    pub(crate) fn take(&self, bytes_max: usize) -> Vec<Job> {
        Self::take_from(&mut self.state.lock(), bytes_max)
    }

    /// The same, waiting for one. `None` once the queue is closed and empty.
    fn wait(&self, bytes_max: usize) -> Option<Vec<Job>> {
        let mut state = self.state.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            self.work.wait(&mut state);
        }
        Some(Self::take_from(&mut state, bytes_max))
    }

    fn take_from(state: &mut QueueState, bytes_max: usize) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(state.jobs.len().min(64));
        let mut bytes = 0;
        while state.jobs.front().is_some_and(|job| bytes == 0 || bytes + job.bytes <= bytes_max)
            && let Some(job) = state.jobs.pop_front()
        {
            bytes += job.bytes.max(1);
            jobs.push(job);
        }
        jobs
    }
}

/// Told once, why the store failed.
type Watcher = Box<dyn Fn(&str) + Send>;

/// Whether the store can still be written, and who wants to know.
#[derive(Default)]
pub(crate) struct Health {
    failed: RwLock<Option<String>>,
    watchers: Mutex<Vec<Watcher>>,
}

impl Health {
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.read().clone()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.failed.read().clone().map_or(Ok(()), |reason| Err(Error::Failed(reason)))
    }

    pub(crate) fn watch(&self, watcher: Box<dyn Fn(&str) + Send>) {
        let mut watchers = self.watchers.lock();
        match self.failed() {
            Some(reason) => watcher(&reason),
            None => watchers.push(watcher),
        }
    }

    pub(crate) fn fail(&self, reason: &str) {
        tracing::error!(reason, "writing to the store failed, it takes no further writes; restart the node");
        metrics::failed();
        let watchers = self.watchers.lock();
        self.failed.write().get_or_insert_with(|| reason.to_owned());
        for watcher in &*watchers {
            watcher(reason);
        }
    }
}

/// The one that writes: a thread's state in production, called inline in simulation.
pub(crate) struct Writer {
    engine: Arc<dyn Engine>,
    queue: Arc<Queue>,
    batch_bytes: usize,
    tail_bytes_max: usize,
    /// Appends that are in tails, oldest first over all groups; the oldest leave first when tails are over budget.
    /// Entries that were truncated or purged meanwhile make a row here a no-op.
    tails: VecDeque<(Arc<Group>, u64, usize)>,
    tail_bytes: usize,
    written_bytes: Arc<AtomicU64>,
}

impl Writer {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        queue: Arc<Queue>,
        batch_bytes: usize,
        tail_bytes_max: usize,
        written_bytes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            engine,
            queue,
            batch_bytes,
            tail_bytes_max,
            tails: VecDeque::new(),
            tail_bytes: 0,
            written_bytes,
        }
    }

    /// Writes until the queue is closed.
    pub(crate) fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        while let Some(jobs) = queue.wait(self.batch_bytes) {
            self.write(jobs);
        }
    }

    /// Writes at most one batch of what is queued. False when nothing was.
    pub(crate) fn step(&mut self) -> bool {
        let jobs = self.queue.take(self.batch_bytes);
        let any = !jobs.is_empty();
        self.write(jobs);
        any
    }

    fn write(&mut self, jobs: Vec<Job>) {
        let mut batch = Assembled::default();
        for job in jobs {
            // These are about what lies before them, so that must be written first.
            if let Work::Install { .. } | Work::Moves(_) | Work::SyncValues = job.work {
                self.finish(std::mem::take(&mut batch));
                self.assemble(&mut batch, job);
                self.finish(std::mem::take(&mut batch));
            } else {
                self.assemble(&mut batch, job);
            }
        }
        self.finish(batch);
    }

    fn assemble(&self, batch: &mut Assembled, job: Job) {
        let refused = match &job.group {
            Some(group)
                if group.is_removed()
                    && !matches!(job.work, Work::Remove { .. } | Work::StartOver { .. }) =>
            {
                Some(Error::GroupRemoved(group.id))
            }
            _ => None,
        };
        let mut outcome =
            Outcome { bytes: job.bytes, group: job.group, done: job.done, effect: Effect::None, refused };
        if outcome.refused.is_none()
            && let Err(error) = self.add(batch, job.work, &mut outcome)
        {
            outcome.refused = Some(error);
        }
        batch.outcomes.push(outcome);
    }

    fn add(&self, batch: &mut Assembled, work: Work, outcome: &mut Outcome) -> Result<(), Error> {
        let set = &mut batch.set;
        let group = outcome.group.as_deref();
        match (work, group) {
            (Work::Append { entries, epoch, committed, mark }, Some(group)) => {
                let space = group.space();
                if let Some(last) = entries.last() {
                    let bytes = entries.iter().map(LogEntry::memory_bytes).sum();
                    outcome.effect = Effect::Appended { last: last.id.index, epoch, bytes };
                }
                let keep = match group.sync() {
                    Sync::Always => Keep::WithItsWrite,
                    Sync::Never => Keep::Volatile,
                };
                for entry in entries {
                    set.put(Table::Entries, keys::entry(group.id, entry.id.index), EntryRow::encode(&entry));
                    if entry.kind == kind::BLOCK {
                        set.put_kept(Table::Blocks, space.numbered(entry.id.index), entry.payload, keep);
                    }
                }
                put_committed(set, group.id, committed);
                put_mark(set, mark);
                batch.appends = true;
                batch.moments.add(Moment::AppendSynced);
                batch.sync |= group.sync() == Sync::Always;
            }
            (Work::Vote { vote, mark }, Some(group)) => {
                put_mark(set, mark);
                set.put(Table::HardState, keys::hard_state(group.id, HardItem::Vote), seal(vote));
                batch.moments.add(Moment::VoteSynced);
                batch.sync = true;
            }
            (Work::Truncate { from, to }, Some(group)) => {
                truncate(set, group, from, to);
                batch.moments.add(Moment::Truncated);
            }
            (Work::LoseEnd(LostEnd { from, to, committed }), Some(group)) => {
                truncate(set, group, from, to);
                // What follows on these places is other than what the row says to be committed.
                match committed {
                    Some(_) => put_committed(set, group.id, committed),
                    None => set.delete(Table::HardState, keys::hard_state(group.id, HardItem::Committed)),
                }
                batch.moments.add(Moment::Truncated);
            }
            (Work::Purge { from, id }, Some(group)) => {
                set.put(Table::HardState, keys::hard_state(group.id, HardItem::Purged), encode_log_id(id));
                set.delete_numbered(Table::Entries, from, id.index + 1, |index| keys::entry(group.id, index));
                batch.moments.add(Moment::LogPurged);
            }
            (Work::Rows { batch: rows, durability, committed }, _) => {
                let groups = self.queue.groups.read();
                let live = |id| groups.get(&id).filter(|group| !group.is_removed());
                if let Some(stale) = rows.outdated(|id| live(id).map(|group| group.space())) {
                    let what = "a snapshot replaced the data that these rows were made from".to_owned();
                    return Err(Error::OutOfOrder { group: stale, what });
                }
                for (id, committed) in committed {
                    if live(id).is_some() {
                        put_committed(set, id, Some(committed));
                    }
                }
                let hooks = rows.resolve(set, |id| live(id).map(|group| group.space()));
                outcome.effect = Effect::Written(hooks);
                batch.moments.add(Moment::RowsWritten);
                batch.sync |= durability == Durability::Synced;
            }
            (Work::NodeRow { key, value }, _) => {
                set.put(Table::Node, key, seal(value));
                batch.sync = true;
            }
            (Work::HardRow { item, value }, Some(group)) => {
                if item == HardItem::Importing {
                    batch.moments.add(Moment::ImportWritten);
                }
                set.put(Table::HardState, keys::hard_state(group.id, item), seal(value));
            }
            (Work::Raw(rows), _) => {
                batch.moments.add(Moment::ImportWritten);
                set.extend(rows);
            }
            (Work::Moves(rows), _) => set.extend(rows),
            (Work::Nothing, _) => {}
            (Work::SyncValues, _) => self.engine.sync_values()?,
            (Work::Install { generation, applied, mark }, Some(group)) => {
                put_mark(set, mark);
                let cut = snapshot::install(self.engine.as_ref(), set, group, generation, applied)?;
                outcome.effect = Effect::Installed { generation, applied, cut };
                batch.moments.add(Moment::Installed);
                batch.sync = true;
            }
            (Work::Remove { node_row }, Some(group)) => {
                delete_all(set, group.id);
                if let Some(key) = node_row {
                    set.delete(Table::Node, key);
                }
                batch.moments.add(Moment::GroupRemoved);
                batch.sync = true;
            }
            (Work::StartOver { vote, generation, mark }, Some(group)) => {
                delete_all(set, group.id);
                let generation = generation.to_le_bytes().to_vec();
                set.put(Table::HardState, keys::hard_state(group.id, HardItem::Vote), seal(vote));
                set.put(Table::HardState, keys::hard_state(group.id, HardItem::Generation), seal(generation));
                put_mark(set, Some(mark));
                batch.moments.add(Moment::GroupRemoved);
                batch.sync = true;
            }
            (_, None) => unreachable!("jobs about a log name their group"),
        }
        Ok(())
    }

    fn finish(&mut self, batch: Assembled) {
        if batch.outcomes.is_empty() {
            return;
        }
        let durability = if batch.sync { Durability::Synced } else { Durability::Ordered };
        let bytes = batch.set.bytes;
        let result = self.queue.health.check().and_then(|()| {
            if batch.set.is_empty() && !batch.sync {
                return Ok(());
            }
            let timer = metrics::write_started();
            let result = self.engine.write(batch.set, durability);
            metrics::write_finished(timer, bytes, durability);
            result
        });
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let result = match result {
            Err(Error::Failed(reason)) => Err(reason),
            Err(error) => {
                let reason = error.to_string();
                self.queue.health.fail(&reason);
                Err(reason)
            }
            Ok(()) => Ok(()),
        };
        batch.moments.reached();
        let room = batch.outcomes.iter().map(|outcome| outcome.bytes).sum();
        for outcome in batch.outcomes {
            let result = match (outcome.refused, &result) {
                (_, Err(reason)) => Err(Error::Failed(reason.clone())),
                (Some(refused), _) => Err(refused),
                (None, Ok(())) => Ok(()),
            };
            if result.is_ok() {
                self.take_effect(outcome.effect, outcome.group.as_ref());
            }
            if let Some(done) = outcome.done {
                done(result);
            }
        }
        if batch.appends {
            moments::reached(Moment::AppendAnswered);
        }
        self.queue.release(room);
    }

    fn take_effect(&mut self, effect: Effect, group: Option<&Arc<Group>>) {
        match (effect, group) {
            (Effect::Appended { last, epoch, bytes }, Some(group)) => {
                let mut log = group.log.write();
                // Truncated since it was queued: what is in the tail now is something else.
                if log.epoch == epoch {
                    log.written = log.written.max(Some(last));
                }
                drop(log);
                self.tails.push_back((Arc::clone(group), last, bytes));
                self.tail_bytes += bytes;
                self.trim_tails();
            }
            (Effect::Installed { generation, applied, cut }, Some(group)) => {
                snapshot::installed(group, generation, applied, cut);
            }
            (Effect::Written(hooks), _) => hooks.into_iter().for_each(|hook| hook()),
            (Effect::None | Effect::Appended { .. } | Effect::Installed { .. }, _) => {}
        }
    }

    fn trim_tails(&mut self) {
        while self.tail_bytes > self.tail_bytes_max
            && let Some((group, through, bytes)) = self.tails.pop_front()
        {
            self.tail_bytes -= bytes;
            group.log.write().evict_through(through);
        }
    }
}

fn truncate(set: &mut WriteSet, group: &Group, from: u64, to: u64) {
    let space = group.space();
    set.delete_numbered(Table::Entries, from, to + 1, |index| keys::entry(group.id, index));
    set.delete_numbered(Table::Blocks, from, to + 1, |index| space.numbered(index));
}

fn delete_all(set: &mut WriteSet, group: GroupId) {
    let range = keys::group_range(group);
    for table in Table::ALL.into_iter().filter(|table| table.scope() != Scope::Node) {
        set.delete_range(table, range.clone());
    }
}

/// How far the log is known to be committed is worth keeping and not worth a write of its own.
fn put_committed(set: &mut WriteSet, group: GroupId, committed: Option<LogId>) {
    if let Some(id) = committed {
        set.put(Table::HardState, keys::hard_state(group, HardItem::Committed), encode_log_id(id));
    }
}

fn put_mark(set: &mut WriteSet, mark: Option<Mark>) {
    if let Some((key, value)) = mark {
        set.put(Table::Node, key, seal(value));
    }
}

#[derive(Default)]
struct Assembled {
    set: WriteSet,
    sync: bool,
    /// Whether log entries are in the set.
    appends: bool,
    /// What its being written is the moment of.
    moments: Moments,
    outcomes: Vec<Outcome>,
}

struct Outcome {
    bytes: usize,
    group: Option<Arc<Group>>,
    done: Option<Done>,
    effect: Effect,
    /// Why this job is not in the write set.
    refused: Option<Error>,
}

enum Effect {
    None,
    Appended { last: u64, epoch: u64, bytes: usize },
    Written(Vec<Box<dyn FnOnce() + Send>>),
    Installed { generation: u32, applied: LogId, cut: snapshot::LogCut },
}

pub(crate) fn closed() -> Error {
    Error::Failed("the storage is closed".into())
}
