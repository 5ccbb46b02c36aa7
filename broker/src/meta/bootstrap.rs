//! Founding a cluster, once in its life.
//!
//! Nodes know each other by `routes` only, start in any order, and must not found two clusters. The rules:
//!
//! 1. A store directory belongs to at most one cluster, named by a random uid that is written into it. A node
//!    whose directory has a uid never founds anything again.
//! 2. A node without a uid that meets a cluster waits to be invited by its meta leader.
//! 3. Otherwise, when nodes without a uid make up a majority of those the configuration speaks of, the one with
//!    the lowest name asks the others to adopt its uid. Adopting is a promise, written and synced before the
//!    answer, and given to one uid only. Founders are exactly those who promised; a majority of the
//!    configured nodes must be among them, and two majorities share a node, so only one uid can win.
//! 4. The founder that asked keeps its uid in its own directory before it asks, so that a crash between asking
//!    and founding resumes with the same uid.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::NodeId;
use levee_storage::Storage;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::router::peers::Peers;

/// Peer calls of this module; the numbers are part of the protocol between nodes.
pub const CALL_ADOPT: u8 = 2;
/// The meta leader asks a node without a uid to join.
pub const CALL_INVITE: u8 = 3;

/// How long a majority waits for the rest before it founds the cluster without them.
const PATIENCE: Duration = Duration::from_secs(2);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const ROW: &str = "membership";

/// What a store directory knows of its cluster.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Membership {
    /// Nothing yet.
    Fresh,
    /// This node asks others to found `uid` with it.
    Asking {
        /// The cluster that would be founded.
        uid: String,
    },
    /// Bound to a cluster.
    Member {
        /// The cluster.
        uid: String,
        /// How it came to that.
        origin: Origin,
    },
}

/// How a node came to its cluster.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// It collected the promises and founded it.
    Founded {
        /// This node and those who promised.
        founders: BTreeSet<NodeId>,
    },
    /// It promised before there was a cluster, so it votes from the first entry on.
    Promised,
    /// It was invited into one that existed, and votes when its leader says so.
    Invited,
}

/// Who asks a node to belong to a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asker<'a> {
    /// A node of this name that wants to found one.
    Founder(&'a str),
    /// The meta leader of one that exists.
    Leader,
}

impl Membership {
    /// Reads it from the directory.
    pub fn load(storage: &Storage) -> Result<Self, levee_storage::Error> {
        match storage.node_row(ROW)? {
            None => Ok(Self::Fresh),
            Some(row) => serde_json::from_slice(&row).map_err(|error| {
                levee_storage::Error::Corrupt(format!(
                    "the directory's membership row does not decode: {error}"
                ))
            }),
        }
    }

    /// The cluster this node is bound to.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Fresh | Self::Asking { .. } => None,
            Self::Member { uid, .. } => Some(uid),
        }
    }
}

/// What a node's peers know of its membership: enough to decide who founds and who is to be invited, and how to register
/// it. It travels with what a node tells about itself.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The cluster the node is bound to.
    #[serde(default)]
    pub uid: Option<String>,
    /// The node's tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// What tags begin with that are to differ between a stream's replicas.
    #[serde(default)]
    pub unique_tag: String,
}

impl Standing {
    /// For peers.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("plain data encodes").into()
    }

    /// From a peer; `None` until it has told.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The one place that changes this node's membership.
pub struct Bootstrap {
    node: NodeId,
    name: String,
    storage: Arc<Storage>,
    current: watch::Sender<Membership>,
    /// Held from looking at the membership to changing it.
    changing: Mutex<()>,
}

impl Bootstrap {
    /// Reads what the directory knows.
    pub fn open(
        node: NodeId,
        name: String,
        storage: Arc<Storage>,
    ) -> Result<Arc<Self>, levee_storage::Error> {
        let membership = Membership::load(&storage)?;
        Ok(Arc::new(Self {
            node,
            name,
            storage,
            current: watch::Sender::new(membership),
            changing: Mutex::new(()),
        }))
    }

    /// What holds now.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.current.borrow().clone()
    }

    /// Moves when the membership does.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Membership> {
        self.current.subscribe()
    }

    /// Founds a cluster of this node alone.
    pub fn found_alone(&self, uid: String) -> Result<(), levee_storage::Error> {
        let founders = BTreeSet::from([self.node]);
        self.set(&mut self.changing.lock(), Membership::Member { uid, origin: Origin::Founded { founders } })
    }

    /// Answers a peer that asks us to found `uid` with it, or to join it. Never changes its mind.
    pub fn adopt(&self, uid: &str, asker: Asker<'_>) -> Result<bool, levee_storage::Error> {
        let mut changing = self.changing.lock();
        let origin = match (self.membership(), asker) {
            (Membership::Member { uid: bound, .. }, _) => return Ok(bound == uid),
            // Both ask each other: the lower name goes on, the other one gives up.
            (Membership::Asking { .. }, Asker::Founder(name)) if name > self.name.as_str() => {
                return Ok(false);
            }
            (_, Asker::Founder(_)) => Origin::Promised,
            (_, Asker::Leader) => Origin::Invited,
        };
        self.set(&mut changing, Membership::Member { uid: uid.to_owned(), origin })?;
        Ok(true)
    }

    /// Takes the lock that makes looking and changing one step.
    fn set(&self, (): &mut (), membership: Membership) -> Result<(), levee_storage::Error> {
        let row = serde_json::to_vec(&membership).expect("plain data encodes");
        self.storage.put_node_row(ROW, &row)?;
        self.current.send_replace(membership);
        Ok(())
    }

    /// Waits until this node belongs to a cluster, founding one if that falls to it. `configured` is how many
    /// nodes the configuration speaks of, this one included.
    pub async fn belong(
        &self,
        peers: &Peers,
        configured: usize,
        draw_uid: &(dyn Fn() -> String + Send + Sync),
    ) -> Result<Membership, levee_storage::Error> {
        let mut waited = Duration::ZERO;
        let mut told = false;
        loop {
            if let member @ Membership::Member { .. } = self.membership() {
                return Ok(member);
            }
            let fresh = self.fresh_peers(peers);
            let majority = configured / 2 + 1;
            let together = fresh.as_ref().map_or(0, |fresh| fresh.len() + 1);
            let ready = together >= configured || (together >= majority && waited >= PATIENCE);
            if let Some(fresh) = fresh
                && ready
                && fresh.iter().all(|(_, name)| *name > self.name)
            {
                if self.found(peers, &fresh, majority, draw_uid).await? {
                    continue;
                }
            } else if !told && waited >= PATIENCE {
                told = true;
                tracing::info!(
                    "JetStream cluster waits for peers: {together} of {configured} configured nodes are here, {majority} are needed to form it"
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            waited += LOOK_INTERVAL;
        }
    }

    /// Peers that could found with us, or `None` if one of them already belongs to a cluster: then we wait to be
    /// invited.
    fn fresh_peers(&self, peers: &Peers) -> Option<Vec<(NodeId, String)>> {
        let asking = match self.membership() {
            Membership::Asking { uid } => Some(uid),
            Membership::Fresh | Membership::Member { .. } => None,
        };
        let mut fresh = Vec::new();
        for peer in peers.peers().into_iter().filter(|peer| peer.jetstream) {
            match Standing::decode(&peer.meta) {
                // It promised and its answer was lost, or we died before we could use it: it will say yes again.
                Some(Standing { uid: Some(uid), .. }) if Some(&uid) == asking.as_ref() => {
                    fresh.push((peer.node, peer.name));
                }
                Some(Standing { uid: Some(_), .. }) => return None,
                Some(Standing { uid: None, .. }) => fresh.push((peer.node, peer.name)),
                None => {}
            }
        }
        Some(fresh)
    }

    async fn found(
        &self,
        peers: &Peers,
        fresh: &[(NodeId, String)],
        majority: usize,
        draw_uid: &(dyn Fn() -> String + Send + Sync),
    ) -> Result<bool, levee_storage::Error> {
        let uid = {
            let mut changing = self.changing.lock();
            match self.membership() {
                Membership::Asking { uid } => uid,
                Membership::Fresh => {
                    let uid = draw_uid();
                    self.set(&mut changing, Membership::Asking { uid: uid.clone() })?;
                    uid
                }
                // Somebody asked first.
                Membership::Member { .. } => return Ok(true),
            }
        };
        let mut founders = BTreeSet::from([self.node]);
        for (node, name) in fresh {
            match peers.call(*node, CALL_ADOPT, Bytes::from(uid.clone()), ASK_TIMEOUT).await {
                Ok(answer) if answer.as_ref() == b"yes" => {
                    founders.insert(*node);
                }
                Ok(_) => tracing::info!(
                    "server {name} does not found a cluster with us: it belongs to one or founds one itself"
                ),
                Err(error) => {
                    tracing::warn!("server {name} did not answer while founding the cluster: {error}")
                }
            }
        }
        if founders.len() < majority {
            return Ok(false);
        }
        let mut changing = self.changing.lock();
        if self.membership() != (Membership::Asking { uid: uid.clone() }) {
            // We promised to somebody else in the meantime, and a promise binds.
            return Ok(true);
        }
        tracing::info!("JetStream cluster founded by {} nodes, cluster id {uid}", founders.len());
        self.set(&mut changing, Membership::Member { uid, origin: Origin::Founded { founders } })?;
        Ok(true)
    }
}
