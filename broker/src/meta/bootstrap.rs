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
    /// Promised to, invited into, or founder of `uid`.
    Member {
        /// The cluster.
        uid: String,
        /// The founders, on the node that founds; empty elsewhere.
        founders: BTreeSet<NodeId>,
    },
}

impl Membership {
    /// Reads it from the directory.
    pub fn load(storage: &Storage) -> Result<Self, levee_storage::Error> {
        match storage.node_row(ROW)? {
            None => Ok(Self::Fresh),
            Some(row) => serde_json::from_slice(&row).map_err(|error| {
                levee_storage::Error::Corrupt(format!("the directory's membership row does not decode: {error}"))
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

/// What a node's peers know of its membership: enough to decide who founds and who is to be invited. It travels
/// with what a node tells about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The cluster the node is bound to.
    pub uid: Option<String>,
}

impl Standing {
    /// The standing of a membership.
    #[must_use]
    pub fn of(membership: &Membership) -> Self {
        Self { uid: membership.uid().map(str::to_owned) }
    }

    /// For peers.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut text = b"1".to_vec();
        text.extend_from_slice(self.uid.as_deref().unwrap_or_default().as_bytes());
        text.into()
    }

    /// From a peer; `None` until it has told.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let uid = std::str::from_utf8(bytes.strip_prefix(b"1")?).ok()?;
        Some(Self { uid: (!uid.is_empty()).then(|| uid.to_owned()) })
    }
}

/// The one place that changes this node's membership.
pub struct Bootstrap {
    node: NodeId,
    name: String,
    storage: Arc<Storage>,
    current: watch::Sender<Membership>,
}

impl Bootstrap {
    /// Reads what the directory knows.
    pub fn open(node: NodeId, name: String, storage: Arc<Storage>) -> Result<Arc<Self>, levee_storage::Error> {
        let membership = Membership::load(&storage)?;
        Ok(Arc::new(Self { node, name, storage, current: watch::Sender::new(membership) }))
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
        self.set(Membership::Member { uid, founders: BTreeSet::from([self.node]) })
    }

    /// Answers a peer that asks us to found `uid` with it, or to join it. Never changes its mind.
    pub fn adopt(&self, uid: &str) -> Result<bool, levee_storage::Error> {
        match self.membership() {
            Membership::Member { uid: bound, .. } => Ok(bound == uid),
            // Whoever asks with a lower name wins over our own asking; the caller has checked that.
            Membership::Fresh | Membership::Asking { .. } => {
                self.set(Membership::Member { uid: uid.to_owned(), founders: BTreeSet::new() })?;
                Ok(true)
            }
        }
    }

    fn set(&self, membership: Membership) -> Result<(), levee_storage::Error> {
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
                Some(Standing { uid: Some(uid) }) if Some(&uid) == asking.as_ref() => {
                    fresh.push((peer.node, peer.name));
                }
                Some(Standing { uid: Some(_) }) => return None,
                Some(Standing { uid: None }) => fresh.push((peer.node, peer.name)),
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
        let uid = match self.membership() {
            Membership::Asking { uid } => uid,
            Membership::Fresh | Membership::Member { .. } => {
                let uid = draw_uid();
                self.set(Membership::Asking { uid: uid.clone() })?;
                uid
            }
        };
        let mut founders = BTreeSet::from([self.node]);
        for (node, name) in fresh {
            match peers.call(*node, CALL_ADOPT, Bytes::from(uid.clone()), ASK_TIMEOUT).await {
                Ok(answer) if answer.as_ref() == b"yes" => {
                    founders.insert(*node);
                }
                Ok(_) => tracing::warn!("server {name} belongs to another cluster and does not found one with us"),
                Err(error) => tracing::warn!("server {name} did not answer while founding the cluster: {error}"),
            }
        }
        if founders.len() < majority {
            return Ok(false);
        }
        tracing::info!("JetStream cluster founded by {} nodes, cluster id {uid}", founders.len());
        self.set(Membership::Member { uid, founders })?;
        Ok(true)
    }
}
