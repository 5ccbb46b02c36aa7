//! The meta group on this node: which nodes there are, which streams there are, who holds them.
//!
//! [`machine`] applies what the group commits; [`bootstrap`] decides, once in a cluster's life, who founds it;
//! [`membership`] runs on its leader and takes nodes in; [`reconcile`] runs on every node and opens and closes
//! stream replicas until they are what meta says.

pub mod bootstrap;
pub mod machine;
pub mod membership;
pub mod reconcile;

use std::sync::{Arc, OnceLock};

use levee_broker_core::meta::{MetaMachine, MetaReply, Touched};
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::GroupId;
use levee_raft::{Group, ProposeError};
use levee_storage::Storage;
use levee_storage::kind::INLINE;
use parking_lot::RwLock;
use tokio::sync::watch;

/// This node's copy of the meta state.
pub struct Meta {
    group: OnceLock<Group>,
    machine: RwLock<MetaMachine>,
    storage: Arc<Storage>,
    /// Counts changes of the machine.
    changed: watch::Sender<u64>,
}

impl Meta {
    /// Loads the state as of the last checkpoint.
    pub fn load(storage: &Arc<Storage>) -> Result<Arc<Self>, levee_storage::Error> {
        Ok(Arc::new(Self {
            group: OnceLock::new(),
            machine: RwLock::new(machine::load(storage)?),
            storage: Arc::clone(storage),
            changed: watch::Sender::new(0),
        }))
    }

    /// The meta group's Raft group, once it is open.
    #[must_use]
    pub fn group(&self) -> Option<&Group> {
        self.group.get()
    }

    /// Ties the opened group to the state.
    pub fn attach(&self, group: Group) {
        assert!(self.group.set(group).is_ok(), "the meta group opens once");
        self.changed.send_modify(|count| *count += 1);
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&MetaMachine) -> T) -> T {
        look(&self.machine.read())
    }

    /// Streams that changed since this was last called. For the one who follows them.
    fn take_touched(&self) -> Touched {
        self.machine.write().take_touched()
    }

    /// Moves whenever the state has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Has the group decide something. Fails on every node but the leader.
    pub async fn propose(&self, command: &MetaCommand) -> Result<MetaReply, ProposeError> {
        let group = self.group.get().ok_or(ProposeError::NotLeader { leader: None })?;
        let (_, reply) = group.propose(INLINE, command.encode().into_bytes()).await?;
        Ok(*reply.downcast::<MetaReply>().expect("the meta machine answers with a MetaReply"))
    }
}

/// The meta group's number, for those who look it up among others.
pub const GROUP: GroupId = GroupId::META;
