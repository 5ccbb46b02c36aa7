//! A stream on this node: the replica that every voter holds, and what exists only while this node leads it.
//!
//! [`Replica`] ties the pure rules (`broker-core`) to their messages (`storage`) and their log (`raft`).
//! [`Leader`] is built when leadership is gained and dropped when it is lost; nothing asks "do I lead?" twice.

pub mod adoption;
mod announce;
mod batches;
pub(crate) mod compose;
pub mod directory;
pub mod forward;
mod held;
pub mod ingest;
pub mod leader;
pub mod machine;
mod queue;
pub mod quota;
pub mod reads;
pub mod removals;
pub mod single;
pub mod ticker;
pub mod told;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use levee_broker_core::stream::{Event, MessageView, ReadFailed, StreamMachine};
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::{GroupId, Seq};
use levee_protocol::record::{Block, Record, RecordRef};
use levee_protocol::time::Timestamp;
use levee_raft::Group;
use levee_storage::{MessageStore, Storage};
use parking_lot::{Mutex, RwLock};

use crate::runtime::clock::Clock;

pub use leader::Leader;
use removals::Removals;

/// This node's copy of one stream.
pub struct Replica {
    group_id: GroupId,
    group: OnceLock<Group>,
    assignment: ArcSwap<StreamAssignment>,
    machine: RwLock<StreamMachine>,
    messages: Arc<MessageStore>,
    storage: Arc<Storage>,
    /// What apply reported since the last flush; only a leader reads them.
    events: Mutex<Vec<Event>>,
    /// What was removed, while there is somebody who keeps count.
    removals: Mutex<Removals>,
    leader: ArcSwapOption<Leader>,
}

impl Replica {
    /// Loads the stream as of its last checkpoint. The log behind it is applied when the group opens.
    pub fn load(
        storage: &Arc<Storage>,
        assignment: StreamAssignment,
    ) -> Result<Arc<Self>, levee_storage::Error> {
        let group_id = assignment.group;
        Ok(Arc::new(Self {
            group_id,
            group: OnceLock::new(),
            assignment: ArcSwap::from_pointee(assignment),
            machine: RwLock::new(machine::load(storage, group_id)?),
            messages: storage.messages(group_id)?,
            storage: Arc::clone(storage),
            events: Mutex::new(Vec::new()),
            removals: Mutex::default(),
            leader: ArcSwapOption::empty(),
        }))
    }

    /// The group's number.
    #[must_use]
    pub fn group_id(&self) -> GroupId {
        self.group_id
    }

    /// The Raft group. Present as soon as the replica can be found by anybody but its opener.
    #[must_use]
    pub fn group(&self) -> &Group {
        self.group.get().expect("a replica is published after its group opened")
    }

    /// Ties the opened group to the replica.
    pub fn attach(&self, group: Group) {
        assert!(self.group.set(group).is_ok(), "a group opens once");
    }

    /// What meta says of this stream now.
    #[must_use]
    pub fn assignment(&self) -> Arc<StreamAssignment> {
        self.assignment.load_full()
    }

    /// Meta changed its mind.
    pub fn assign(&self, assignment: StreamAssignment) {
        self.assignment.store(Arc::new(assignment));
    }

    /// The leading half, while this node leads.
    #[must_use]
    pub fn leader(&self) -> Option<Arc<Leader>> {
        self.leader.load_full()
    }

    /// Leadership came or went.
    pub fn set_leader(&self, leader: Option<Arc<Leader>>) {
        if leader.is_none() {
            self.events.lock().clear();
            self.removals.lock().forget();
        }
        self.leader.store(leader);
    }

    /// The time to stamp on a command: now, but never before what the stream has seen already, whatever happened to
    /// this node's clock or to that of the leader before it.
    #[must_use]
    pub fn now(&self, clock: &Clock) -> Timestamp {
        clock.now().max(self.machine.read().clock())
    }

    /// Looks at what was removed lately.
    pub fn with_removals<T>(&self, look: impl FnOnce(&Removals) -> T) -> T {
        look(&self.removals.lock())
    }

    /// Notes whom the records of a block concern, all but those at `holes`, before anybody can see that they are stored.
    fn note_stored(&self, log_index: u64, block: &Block, first_seq: Seq, holes: &[u32]) {
        let Some(leader) = self.leader() else { return };
        // A replica that does not lead reads little: what it removes.
        self.messages.keep(log_index, block);
        let mut holes = holes.iter().copied().peekable();
        let stored = (0..block.count()).filter(|position| holes.next_if_eq(position).is_none());
        leader.listeners().stored(first_seq, stored.map(|position| block.record(position).subject));
    }

    /// Notes what an entry removed, before anybody can see that it is applied.
    fn note_removals(&self, events: &[Event]) {
        let Some(leader) = self.leader() else { return };
        for event in events {
            if let Event::Removed { first, last } = event {
                leader.listeners().removed(*first, *last);
            }
        }
        let mut removals = self.removals.lock();
        if !leader.is_anybody_awake() {
            return removals.forget();
        }
        for event in events {
            if let Event::Removed { first, last } = event {
                removals.push(*first, *last);
            }
        }
    }

    /// Looks at the machine and the stored messages in one consistent moment.
    pub fn read<T>(&self, look: impl FnOnce(&StreamMachine, &dyn MessageView) -> T) -> T {
        let machine = self.machine.read();
        look(&machine, &StoredMessages(&self.messages))
    }
}

/// The stored messages, as the rules see them.
pub struct StoredMessages<'a>(pub &'a MessageStore);

impl MessageView for StoredMessages<'_> {
    fn record(&self, seq: Seq) -> Result<Option<Record>, ReadFailed> {
        self.0.record(seq).map_err(read_failed)
    }

    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        self.0.scan(from, visit).map_err(read_failed)
    }

    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        self.0.seek_time(at).map_err(read_failed)
    }
}

fn read_failed(error: levee_storage::Error) -> ReadFailed {
    ReadFailed(error.to_string())
}
