//! The groups of a node: open, look up, close, remove.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::{EntryLog, Error as StorageError, LogEntry, LogId as StoredLogId, Storage, Sync};
use openraft::EntryPayload;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use crate::checkpoints::{self, Dirty};
use crate::codec;
use crate::config::Config;
use crate::elections::{self, Asking, Restless, turn};
use crate::error::Error;
use crate::group::{Group, GroupCore, Stopping};
use crate::leadership;
use crate::log_store::LogStore;
use crate::machine::ReplicatedMachine;
use crate::network::{Links, Network};
use crate::peers::Peers;
use crate::proposals::Waiting;
use crate::starting_over::{Overruled, read_floor, stored_vote};
use crate::state_machine::{self, Applied, Parts, StateMachine};
use crate::suspects::Suspects;
use crate::tasks::spawn;
use crate::transport::{Receiver, Transport};
use crate::types::{Membership, Raft, log_id};

/// How this node comes to hold a group. It matters only when the store knows nothing of the group: an empty log
/// must not vote unless the group itself is new.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Birth {
    /// The group is new, and these are its first voters, of whom this node is one. Every founder opens it with the
    /// same ones; a group that has begun is left alone.
    Founding(BTreeSet<NodeId>),
    /// The group is new, and this node promised another to be one of its first voters; that one says who they are.
    Promised,
    /// The group exists; this node is added as a learner. Until its leader fills the log it takes no part in
    /// elections.
    Joining,
    /// The group was here before. If it is not, it was lost, and is refused.
    Existing,
}

/// All groups of one node.
pub struct Groups {
    node: NodeId,
    pub(crate) storage: Arc<Storage>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) config: Arc<Config>,
    durable: Arc<openraft::Config>,
    volatile: Arc<openraft::Config>,
    open: RwLock<HashMap<GroupId, Slot>>,
    pub(crate) dirty: Arc<Dirty>,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) restless: Arc<Restless>,
    pub(crate) overruled: Arc<Overruled>,
    /// Rings when a group was opened.
    opened: Notify,
    pub(crate) this: Weak<Self>,
    /// Numbers for received snapshots.
    pub(crate) transfers: Mutex<u64>,
}

enum Slot {
    Opening,
    Open(Group),
}

impl Groups {
    /// The groups of `node`; none is open yet. Call within a tokio runtime.
    pub fn new(
        node: NodeId,
        storage: Arc<Storage>,
        network: Arc<dyn Transport>,
        config: Config,
    ) -> Arc<Self> {
        let openraft = |volatile| Arc::new(config.openraft(volatile));
        let groups = Arc::new_cyclic(|this| Self {
            node,
            storage,
            transport: network,
            durable: openraft(false),
            volatile: openraft(true),
            config: Arc::new(config.clone()),
            open: RwLock::default(),
            dirty: Arc::default(),
            suspects: Arc::default(),
            peers: Arc::new(Peers::new(config.election_max)),
            restless: Arc::default(),
            overruled: Arc::default(),
            opened: Notify::new(),
            this: Weak::clone(this),
            transfers: Mutex::new(0),
        });
        let receiver: Weak<dyn Receiver> = groups.this.clone();
        groups.transport.start(receiver);
        spawn("checkpoints", checkpoints::run(groups.this.clone()));
        spawn("elections", elections::run(groups.this.clone()));
        groups
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Opens a group. The machine is as the caller loaded it from the last checkpoint; what the log holds behind it
    /// is applied again before this returns, as far as it is known to be committed.
    pub async fn open(
        &self,
        group: GroupId,
        sync: Sync,
        machine: Box<dyn ReplicatedMachine>,
        birth: Birth,
    ) -> Result<Group, Error> {
        match self.open.write().entry(group) {
            MapEntry::Occupied(_) => return Err(Error::AlreadyOpen(group)),
            MapEntry::Vacant(slot) => slot.insert(Slot::Opening),
        };
        let opened = self.start(group, sync, machine, birth).await;
        let mut open = self.open.write();
        match &opened {
            Ok(group) => open.insert(group.id(), Slot::Open(group.clone())),
            Err(_) => open.remove(&group),
        };
        drop(open);
        self.opened.notify_waiters();
        opened
    }

    async fn start(
        &self,
        group: GroupId,
        sync: Sync,
        machine: Box<dyn ReplicatedMachine>,
        birth: Birth,
    ) -> Result<Group, Error> {
        let volatile = matches!(sync, Sync::Never);
        let log = self.storage.entry_log(group, sync)?;
        let unborn = self.check_birth(group, &log, &birth)?;
        let floor = read_floor(&self.storage, group)?;
        let founders = match birth {
            // What was started over is empty and not new.
            Birth::Founding(founders)
                if log.last().is_none() && log.purged().is_none() && floor.is_none() =>
            {
                Some(founders)
            }
            Birth::Founding(_) | Birth::Promised | Birth::Joining | Birth::Existing => None,
        };
        if let Some(founders) = &founders {
            found(&log, group, self.node, founders)?;
        }
        let applied = Arc::new(Applied::new());
        let (gone, when_gone) = oneshot::channel();
        let machine = StateMachine::open(Parts {
            group,
            node: self.node,
            storage: Arc::clone(&self.storage),
            log: log.clone(),
            machine,
            config: Arc::clone(&self.config),
            shared: Arc::clone(&applied),
            dirty: Arc::clone(&self.dirty),
            gone,
        })?;
        let network = Arc::new(Network {
            node: self.node,
            group,
            transport: Arc::clone(&self.transport),
            config: Arc::clone(&self.config),
            suspects: Arc::clone(&self.suspects),
            peers: Arc::clone(&self.peers),
            members: OnceLock::new(),
        });
        let closing = Arc::new(AtomicBool::new(false));
        let taken_back = Arc::new(AtomicBool::new(false));
        let store = LogStore::new(
            group,
            log.clone(),
            self.config.append_bytes,
            Arc::clone(&closing),
            Arc::clone(&taken_back),
        );
        let config = Arc::clone(if volatile { &self.volatile } else { &self.durable });
        let raft = Raft::new(self.node, config, Links(Arc::clone(&network)), store, machine)
            .await
            .map_err(|fatal| Error::Stopped { group, reason: fatal.to_string() })?;
        let _ = network.members.set(raft.server_metrics());
        applied.running.store(true, Ordering::Release);
        let core = Arc::new(GroupCore {
            id: group,
            node: self.node,
            raft,
            log,
            storage: Arc::clone(&self.storage),
            config: Arc::clone(&self.config),
            waiting: Arc::new(Waiting::default()),
            applied,
            leadership: leadership::channel(),
            majority_lost: watch::Sender::new(false),
            majority_lost_since: Mutex::new(None),
            doubted: AtomicU64::new(0),
            leader_heard: AtomicU64::new(0),
            led_since: AtomicU64::new(0),
            promise: Mutex::new(None),
            given_up: AtomicU64::new(0),
            restless: Arc::clone(&self.restless),
            peers: Arc::clone(&self.peers),
            stopping: watch::Sender::new(Stopping::No),
            unborn: AtomicBool::new(unborn),
            is_volatile: volatile,
            taken_back,
            overruled_by: Mutex::new(None),
            vote_floor: Mutex::new(floor),
            overruled: Arc::clone(&self.overruled),
            closing,
            transfer: Mutex::new(None),
            gone: Mutex::new(Some(when_gone)),
        });
        core.look_whether_filled();
        leadership::follow(&core);
        self.restless.mark(group);
        if founders.is_some_and(|founders| turn(&founders, group, self.node) == 0) {
            core.stand(Asking::Votes);
        }
        Ok(Group(core))
    }

    /// Whether the group must keep out of elections for now.
    fn check_birth(&self, group: GroupId, log: &EntryLog, birth: &Birth) -> Result<bool, Error> {
        let vote = stored_vote(group, log)?;
        let applied = state_machine::read_applied_row(&self.storage, group)?.and_then(|row| row.last_log_id);
        let last = log.last().map(log_id);
        let born = is_born(&self.storage, group)?;
        if last.is_none() && vote.is_none() && applied.is_none() {
            return match (born, birth) {
                (true, _) | (false, Birth::Existing) => {
                    tracing::error!(%group, "the group was in this store and its log is gone; refusing to open it");
                    Err(Error::Lost(group))
                }
                (false, Birth::Founding(_) | Birth::Promised) => {
                    // Nothing of the group was ever written here, so this member never voted. The mark goes along
                    // with what is: a founder that dies before may found again.
                    mark_born(log, group);
                    Ok(false)
                }
                (false, Birth::Joining) => Ok(true),
            };
        }
        // Votes are written before the entries of their term, entries before the state that they lead to. A store
        // that breaks either order lost something, and may have promised what it no longer knows.
        let is_vote_lost = last.as_ref().is_some_and(|last| match &vote {
            Some(vote) => last.leader_id > *vote.leader_id(),
            // The founders' members are written before anybody voted.
            None => last.leader_id.term > 0,
        });
        if is_vote_lost {
            tracing::error!(%group, "the vote is older than the log or gone; refusing to open the group");
            return Err(Error::Lost(group));
        }
        let next = last.as_ref().map_or(0, |last| last.index + 1);
        if applied.is_some_and(|applied| applied.index >= next) {
            return Err(StorageError::LogGap { group, index: next }.into());
        }
        Ok(!born)
    }

    /// A group that is open here.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<Group> {
        match self.open.read().get(&id) {
            Some(Slot::Open(group)) => Some(group.clone()),
            Some(Slot::Opening) | None => None,
        }
    }

    /// A group that is open here, or will be in a moment: of the founders of a group, the first to have it open asks
    /// the others for their votes.
    pub(crate) async fn group_soon(&self, id: GroupId) -> Option<Group> {
        let deadline = tokio::time::Instant::now() + OPENING_WAIT;
        loop {
            let opened = self.opened.notified();
            if let Some(group) = self.group(id) {
                return Some(group);
            }
            tokio::time::timeout_at(deadline, opened).await.ok()?;
        }
    }

    /// Stops a group on this node. Its data stays.
    pub async fn close(&self, id: GroupId) {
        let Some(group) = self.group(id) else { return };
        group.stop().await;
        self.open.write().remove(&id);
    }

    /// Stops a group on this node and deletes its data. Also works when it is not open.
    pub async fn remove(&self, id: GroupId) -> Result<(), Error> {
        self.close(id).await;
        self.storage.remove_group_and_row(id, &birth_row(id))?;
        Ok(())
    }

    /// Stops all groups and the transport.
    pub async fn shutdown(&self) {
        let open: Vec<_> = self.open.read().values().filter_map(Slot::group).collect();
        futures::future::join_all(open.iter().map(Group::stop)).await;
        self.open.write().clear();
        self.transport.stop();
    }

    /// The process of `node` was seen to end. Groups that it led elect at once, one candidate after the other.
    ///
    /// Voters skip the dead leader's lease only if they saw it die themselves. The transport calls this when a
    /// connection broke and its address refuses new ones; callers may have better means to know.
    pub fn peer_down(&self, node: NodeId) {
        tracing::warn!(peer = %node, "a peer died; groups that it led elect");
        self.suspects.add(node);
    }

    /// The open groups whose number is wanted.
    pub(crate) fn groups_where(&self, wanted: impl Fn(GroupId) -> bool) -> Vec<Group> {
        let open = self.open.read();
        open.iter().filter(|(id, _)| wanted(**id)).filter_map(|(_, slot)| slot.group()).collect()
    }

    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Group)) {
        for group in self.open.read().values().filter_map(Slot::group) {
            visit(&group);
        }
    }
}

impl Slot {
    fn group(&self) -> Option<Group> {
        match self {
            Self::Opening => None,
            Self::Open(group) => Some(group.clone()),
        }
    }
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Groups").field("node", &self.node).field("open", &self.open.read().len()).finish()
    }
}

/// Node row that says a group's log was begun in this store, and whether it was started over since. Persisted: never
/// change.
pub(crate) fn birth_row(group: GroupId) -> String {
    format!("raft/born/{group}")
}

/// The log is begun here: with the first thing that is written to it, losing it is noticed.
pub(crate) fn mark_born(log: &EntryLog, group: GroupId) {
    log.mark_with_first_write(&birth_row(group), &[1]);
}

/// Begins the log of a new group with its first members. All founders write the same, so whoever of them is elected
/// finds it in the others' logs. It is synced with whatever follows it.
fn found(log: &EntryLog, group: GroupId, node: NodeId, founders: &BTreeSet<NodeId>) -> Result<(), Error> {
    let Some(first) = founders.first().filter(|_| founders.contains(&node)) else {
        return Err(Error::Membership { group, reason: format!("{node} is not one of its founders") });
    };
    let membership = Membership::new_with_defaults(vec![founders.clone()], []);
    let (kind, payload) = codec::stored_payload(EntryPayload::Membership(membership));
    let id = StoredLogId { raft_term: 0, node: *first, index: 0 };
    let (sender, mut refused) = oneshot::channel();
    log.append(
        vec![LogEntry { id, kind, payload }],
        Box::new(move |result| {
            let _ = sender.send(result);
        }),
    );
    // A refusal comes before the call returns.
    refused.try_recv().unwrap_or(Ok(())).map_err(Error::from)
}

fn is_born(storage: &Storage, group: GroupId) -> Result<bool, levee_storage::Error> {
    Ok(storage.node_row(&birth_row(group))?.is_some_and(|row| !row.is_empty()))
}

/// How long a vote waits for its group to be opened here.
const OPENING_WAIT: Duration = Duration::from_millis(250);

/// How long a voter waits to see for itself what a candidate says it saw.
pub(crate) const SUSPICION_WAIT: Duration = Duration::from_millis(250);
