//! A stream on one simulated node: the real rules over the real message store, driven by the real group, with the
//! oracle looking on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use levee_broker_core::rows::{RowKind, StateRow};
use levee_broker_core::stream::{Change, Event, MessageView, ReadFailed, StreamMachine};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, GroupId, NodeId, Seq};
use levee_protocol::record::{Record, RecordRef};
use levee_protocol::time::Timestamp;
use levee_raft::{APPLIED_ROW_KIND, CommittedEntry, ReplicatedMachine, Reply};
use levee_storage::{Batch, Error, MessageStore, Storage};
use parking_lot::{Mutex, RwLock};

use crate::chance::Chance;
use crate::leading::Leader;
use crate::oracle::{Oracle, Seen};
use crate::plan::Breakage;
use crate::streams::Which;

/// One node's copy, from the start of its process to its end.
pub(crate) struct Replica {
    /// The node.
    pub(crate) node: NodeId,
    /// How often the node was started before, and this one.
    pub(crate) incarnation: u64,
    group: GroupId,
    machine: RwLock<StreamMachine>,
    /// The stored messages.
    pub(crate) messages: Arc<MessageStore>,
    storage: Arc<Storage>,
    oracle: Arc<Oracle>,
    /// Cleared when the process ends. What fails after that is what ended.
    alive: AtomicBool,
    leader: Mutex<Option<Arc<Leader>>>,
    events: Mutex<Vec<Event>>,
    breakage: Breakage,
    chance: Mutex<Chance>,
}

impl Replica {
    /// Loads the stream as of the last checkpoint.
    pub(crate) fn load(
        storage: &Arc<Storage>,
        oracle: &Arc<Oracle>,
        which: Which,
        (node, incarnation): (NodeId, u64),
        chance: Chance,
        breakage: Breakage,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            node,
            incarnation,
            group: which.group(),
            machine: RwLock::new(load(storage, which.group())?),
            messages: storage.messages(which.group())?,
            storage: Arc::clone(storage),
            oracle: Arc::clone(oracle),
            alive: AtomicBool::new(true),
            leader: Mutex::default(),
            events: Mutex::default(),
            breakage,
            chance: Mutex::new(chance),
        }))
    }

    /// Looks at the rules and the stored messages in one moment.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&StreamMachine, &dyn MessageView) -> T) -> T {
        look(&self.machine.read(), &StoredMessages(&self.messages))
    }

    /// The process ends: errors are expected from here on.
    pub(crate) fn die(&self) {
        self.alive.store(false, Ordering::Relaxed);
        if let Some(leader) = self.leader.lock().take() {
            leader.end();
        }
    }

    /// Whether the process is there.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// The leading half, while the node leads.
    pub(crate) fn leader(&self) -> Option<Arc<Leader>> {
        self.leader.lock().clone()
    }

    /// Leadership came or went.
    pub(crate) fn set_leader(&self, leader: Option<Arc<Leader>>) {
        if leader.is_none() {
            self.events.lock().clear();
        }
        *self.leader.lock() = leader;
    }

    /// A consumer can't read what is stored.
    pub(crate) fn unreadable(&self, consumer: &ConsumerName, error: &ReadFailed) {
        self.failed(&format!("reading for {consumer}"), &Error::Engine(error.to_string()));
    }

    /// Reads one live message back and holds it against what was committed.
    fn read_one_back(&self) {
        let seq = {
            let machine = self.machine.read();
            let (first, last) = (machine.first_seq().0, machine.last_seq().0);
            if last < first {
                return;
            }
            let from = self.chance.lock().between(first, last);
            (from..=last).map(Seq).find(|seq| machine.is_live(*seq))
        };
        let Some(seq) = seq else { return };
        let read = self.messages.record(seq);
        if self.alive.load(Ordering::Relaxed) {
            self.oracle.read_back(self.node, seq, read);
        }
    }

    fn failed(&self, attempted: &str, error: &Error) {
        // A store that failed to write says so everywhere; whoever made it fail knows.
        if self.alive.load(Ordering::Relaxed) && self.storage.failed().is_none() {
            self.oracle.violated(format!("{}: {attempted} failed: {error}", self.node));
        }
    }
}

/// The stored messages, as the rules see them.
pub(crate) struct StoredMessages<'a>(pub(crate) &'a MessageStore);

impl MessageView for StoredMessages<'_> {
    fn record(&self, seq: Seq) -> Result<Option<Record>, ReadFailed> {
        self.0.record(seq).map_err(|error| ReadFailed(error.to_string()))
    }

    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        self.0.scan(from, visit).map_err(|error| ReadFailed(error.to_string()))
    }

    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        self.0.seek_time(at).map_err(|error| ReadFailed(error.to_string()))
    }
}

/// The machine as of the last checkpoint.
pub(crate) fn load(storage: &Storage, group: GroupId) -> Result<StreamMachine, Error> {
    let mut rows = Vec::new();
    let mut unknown = None;
    storage.state_rows(group, &mut |kind, key, value| match RowKind::from_number(kind) {
        Ok(kind) => rows.push(StateRow { kind, key: key.to_vec(), value: Some(value.to_vec()) }),
        Err(_) if kind == APPLIED_ROW_KIND => {}
        Err(error) => unknown = Some(error),
    })?;
    let machine = unknown.map_or_else(|| StreamMachine::load(rows.into_iter()), Err);
    machine.map_err(|error| Error::Engine(error.to_string()))
}

/// The machine of a [`Replica`], as the group drives it.
pub(crate) struct Machine(pub(crate) Arc<Replica>);

impl Machine {
    fn apply_command(&mut self, entry: &CommittedEntry) -> Result<Reply, Error> {
        let replica = &*self.0;
        let mut command =
            StreamCommand::decode(entry.payload.clone()).map_err(|error| Error::Engine(error.to_string()))?;
        if replica.breakage == Breakage::OneReplicaDiffers
            && replica.node == NodeId(2)
            && let StreamCommand::DeleteMessage { seq, .. } = &mut command
        {
            *seq = seq.next();
        }
        let mut machine = replica.machine.write();
        let outcome = machine
            .apply(entry.index, &command, &StoredMessages(&replica.messages))
            .map_err(|error| Error::Engine(error.to_string()))?;
        for change in &outcome.changes {
            match change {
                Change::Stored { first_seq, holes } => {
                    let (StreamCommand::Publish(block) | StreamCommand::Restore(block)) = &command else {
                        return Err(Error::Engine(
                            "something else than a publish stored messages".to_owned(),
                        ));
                    };
                    replica.messages.stored(entry.index, block, *first_seq, holes);
                }
                Change::Removed { first, last } => {
                    replica.messages.removed(*first, *last)?;
                }
            }
        }
        let seen = Seen { node: replica.node, incarnation: replica.incarnation, entry, command: &command };
        replica.oracle.applied(&seen, &outcome, &machine);
        drop(machine);
        if !outcome.events.is_empty() && replica.leader.lock().is_some() {
            replica.events.lock().extend(outcome.events);
        }
        Ok(Box::new(outcome.reply))
    }
}

impl ReplicatedMachine for Machine {
    fn apply(&mut self, entry: CommittedEntry) -> Result<Reply, Error> {
        self.apply_command(&entry)
            .inspect_err(|error| self.0.failed(&format!("applying {}", entry.index), error))
    }

    fn flushed(&mut self) {
        self.0.read_one_back();
        let events = std::mem::take(&mut *self.0.events.lock());
        if let Some(leader) = self.0.leader()
            && !events.is_empty()
        {
            leader.on_events(&events);
        }
    }

    fn unwritten_rows(&self) -> usize {
        self.0.machine.read().unwritten_rows()
    }

    fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), Error> {
        for row in self.0.machine.write().dirty_rows() {
            match row.value {
                Some(value) => batch.put_state(self.0.group, row.kind as u8, &row.key, &value),
                None => batch.delete_state(self.0.group, row.kind as u8, &row.key),
            }
        }
        self.0.messages.checkpoint(batch);
        Ok(())
    }

    fn reload(&mut self) -> Result<(), Error> {
        let loaded = load(&self.0.storage, self.0.group).and_then(|machine| {
            self.0.messages.reload()?;
            Ok(machine)
        });
        let machine = loaded.inspect_err(|error| self.0.failed("loading a snapshot", error))?;
        self.0.oracle.reloaded(self.0.node, self.0.incarnation, &machine);
        *self.0.machine.write() = machine;
        Ok(())
    }

    fn purged(&mut self, index: u64) {
        if let Err(error) = self.0.messages.clean(index) {
            self.0.failed("cleaning", &error);
        }
    }
}
