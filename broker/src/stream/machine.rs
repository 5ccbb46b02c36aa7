//! A stream's group, as `raft` drives it: the rules decide, the message store and the checkpoint follow.
//!
//! The state lock is held until the message store knows what the rules decided, so a reader never sees a
//! sequence without its message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use levee_broker_core::rows::{RowKind, StateRow};
use levee_broker_core::stream::{Change, StreamMachine};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::GroupId;
use levee_raft::{APPLIED_ROW_KIND, CommittedEntry, ReplicatedMachine, Reply};
use levee_storage::{Batch, Error, MessageStore, Storage};

use crate::runtime::tasks;
use crate::stream::{Replica, StoredMessages};

/// The replicated half of a stream.
pub struct Machine {
    replica: Arc<Replica>,
    cleaner: Arc<Cleaner>,
}

/// Drops stored blocks that neither the log nor a reader needs, away from the apply task.
#[derive(Default)]
struct Cleaner {
    /// Up to where the log is purged.
    purged: AtomicU64,
    running: AtomicBool,
}

impl Cleaner {
    fn run(&self, messages: &Arc<MessageStore>) {
        let mut done = None;
        loop {
            let purged = self.purged.load(Ordering::Acquire);
            if done == Some(purged) {
                self.running.store(false, Ordering::Release);
                // A purge in between saw us running: it counts on us.
                if self.purged.load(Ordering::Acquire) == purged || self.running.swap(true, Ordering::AcqRel)
                {
                    return;
                }
                continue;
            }
            match messages.clean(purged) {
                Ok(report) if report.more => {}
                Ok(_) => done = Some(purged),
                Err(error) => {
                    tracing::warn!("space of removed messages can't be given back yet: {error}");
                    self.running.store(false, Ordering::Release);
                    return;
                }
            }
        }
    }
}

impl Machine {
    /// A machine that applies to `replica`.
    #[must_use]
    pub fn new(replica: Arc<Replica>) -> Self {
        Self { replica, cleaner: Arc::default() }
    }
}

/// The machine as of the last checkpoint of `group`.
pub fn load(storage: &Storage, group: GroupId) -> Result<StreamMachine, Error> {
    let rows = read_rows(storage, group)?;
    StreamMachine::load(rows.into_iter())
        .map_err(|error| Error::Corrupt(format!("state of group {group}: {error}")))
}

/// All checkpointed rows of `group`.
pub fn read_rows(storage: &Storage, group: GroupId) -> Result<Vec<StateRow>, Error> {
    let mut rows = Vec::new();
    let mut unknown = None;
    storage.state_rows(group, &mut |kind, key, value| match RowKind::from_number(kind) {
        // The group's own: how far the log is applied.
        _ if kind == APPLIED_ROW_KIND => {}
        Ok(kind) => rows.push(StateRow { kind, key: key.to_vec(), value: Some(value.to_vec()) }),
        Err(error) => unknown = Some(error),
    })?;
    match unknown {
        Some(error) => Err(Error::Corrupt(format!("state of group {group}: {error}"))),
        None => Ok(rows),
    }
}

/// Adds rows to a checkpoint.
pub fn write_rows(batch: &mut Batch, group: GroupId, rows: Vec<StateRow>) {
    for row in rows {
        match row.value {
            Some(value) => batch.put_state(group, row.kind as u8, &row.key, &value),
            None => batch.delete_state(group, row.kind as u8, &row.key),
        }
    }
}

impl ReplicatedMachine for Machine {
    fn apply(&mut self, entry: CommittedEntry) -> Result<Reply, Error> {
        let replica = &*self.replica;
        let command = StreamCommand::decode(entry.payload).map_err(|error| {
            Error::Corrupt(format!("log entry {} of group {}: {error}", entry.index, replica.group_id))
        })?;
        let mut machine = replica.machine.write();
        let outcome = machine
            .apply(entry.index, &command, &StoredMessages(&replica.messages))
            .map_err(|error| Error::Corrupt(error.to_string()))?;
        for change in outcome.changes {
            match change {
                Change::Stored { first_seq, holes } => {
                    let (StreamCommand::Publish(block) | StreamCommand::Restore(block)) = &command else {
                        unreachable!("only a publish stores messages")
                    };
                    replica.messages.stored(entry.index, block, first_seq, &holes);
                    replica.note_stored(entry.index, block, first_seq, &holes);
                }
                Change::Removed { first, last } => replica.messages.removed(first, last)?,
            }
        }
        if !outcome.events.is_empty() {
            replica.note_removals(&outcome.events);
        }
        drop(machine);
        if !outcome.events.is_empty() && replica.leader.load().is_some() {
            replica.events.lock().extend(outcome.events);
        }
        Ok(Box::new(outcome.reply))
    }

    fn flushed(&mut self) {
        let events = std::mem::take(&mut *self.replica.events.lock());
        if let Some(leader) = self.replica.leader()
            && !events.is_empty()
        {
            leader.on_events(&events);
        }
    }

    fn unwritten_rows(&self) -> usize {
        self.replica.machine.read().unwritten_rows()
    }

    fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let rows = self.replica.machine.write().dirty_rows();
        write_rows(batch, self.replica.group_id, rows);
        self.replica.messages.checkpoint(batch);
        Ok(())
    }

    fn purged(&mut self, index: u64) {
        if !self.replica.messages.has_garbage(index) {
            return;
        }
        let cleaner = &self.cleaner;
        cleaner.purged.fetch_max(index, Ordering::AcqRel);
        if !cleaner.running.swap(true, Ordering::AcqRel) {
            let (cleaner, messages) = (Arc::clone(cleaner), Arc::clone(&self.replica.messages));
            tasks::spawn_blocking("clean stored messages", move || cleaner.run(&messages));
        }
    }

    fn reload(&mut self) -> Result<(), Error> {
        let mut machine = self.replica.machine.write();
        *machine = load(&self.replica.storage, self.replica.group_id)?;
        self.replica.messages.reload()
    }
}
