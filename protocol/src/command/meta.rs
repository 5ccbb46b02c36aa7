//! Commands of the meta group: which nodes there are, which streams there are, and which nodes hold them.

use serde::{Deserialize, Serialize};

use crate::api::{AccountLimits, Placement, StreamConfig};
use crate::ids::{AccountName, GroupId, NodeId, StreamName};
use crate::time::Timestamp;

/// One entry of the meta log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// A node takes part, or tells a new address. The name must not belong to another node.
    RegisterNode {
        /// The leader's time.
        now: Timestamp,
        /// Who.
        node: NodeRegistration,
    },
    /// A node left for good: its name is free again, and its replicas go to others, as far as there are any. It can't be
    /// registered again.
    RemoveNode {
        /// The leader's time.
        now: Timestamp,
        /// Who.
        node: NodeId,
        /// Nodes that were alive when the leader looked.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        alive: Vec<NodeId>,
    },
    /// Create a stream, or answer with the existing one if its configuration is the same.
    CreateStream {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// As requested, defaults filled in.
        config: Box<StreamConfig>,
        /// Nodes that were alive when the leader looked; replicas are placed on these only.
        alive: Vec<NodeId>,
        /// What the owner may use, as the leader is configured.
        #[serde(default)]
        limits: AccountLimits,
        /// Whether an archive is to fill it: then it must not exist, and is hidden until `EndRestore`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        restoring: bool,
    },
    /// Change a stream's configuration.
    UpdateStream {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// The whole new configuration, defaults filled in.
        config: Box<StreamConfig>,
        /// Nodes that were alive when the leader looked.
        alive: Vec<NodeId>,
        /// What the owner may use, as the leader is configured.
        #[serde(default)]
        limits: AccountLimits,
    },
    /// Delete a stream and everything in it.
    DeleteStream {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// Which.
        name: StreamName,
    },
    /// One node gives its replica of a stream to another one.
    MoveReplica {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// Which stream.
        name: StreamName,
        /// The node that gives.
        from: NodeId,
        /// Nodes that were alive when the leader looked.
        alive: Vec<NodeId>,
    },
    /// Like `MoveReplica`, and it can be taken back until the replica has arrived.
    MoveStream {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// Which stream.
        name: StreamName,
        /// The node that gives; without one, the one that is preferred least for leading.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<NodeId>,
        /// What the node that takes must be, besides what the stream asks for anyway.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tags: Vec<String>,
        /// Nodes that were alive when the leader looked.
        alive: Vec<NodeId>,
    },
    /// A stream stays where it was before it was moved or scaled.
    CancelMove {
        /// The leader's time.
        now: Timestamp,
        /// Owner.
        account: AccountName,
        /// Which stream.
        name: StreamName,
    },
    /// The nodes that a stream was to go to hold it, and nobody else does.
    EndMove {
        /// The leader's time.
        now: Timestamp,
        /// The stream's group.
        group: GroupId,
        /// Who holds it. If it is to go elsewhere by now, it has not arrived.
        replicas: Vec<NodeId>,
    },
    /// A node gives its replicas to others, as far as there are any. It stays in the cluster and may get new ones.
    EvacuateNode {
        /// The leader's time.
        now: Timestamp,
        /// Who.
        node: NodeId,
        /// Nodes that were alive when the leader looked.
        alive: Vec<NodeId>,
    },
    /// Streams that lack replicas because nodes were removed get new ones, as far as there are nodes.
    FillUp {
        /// The leader's time.
        now: Timestamp,
        /// Nodes that were alive when the leader looked.
        alive: Vec<NodeId>,
    },
    /// What an archive held is in the stream, or the restore failed and nothing of it stays.
    EndRestore {
        /// The leader's time.
        now: Timestamp,
        /// The stream's group.
        group: GroupId,
        /// Whether the stream stays.
        complete: bool,
    },
}

/// What the cluster knows of one node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct NodeRegistration {
    /// Its id.
    pub id: NodeId,
    /// Its server name.
    pub name: String,
    /// `host:port` where other nodes reach it; empty when it runs alone.
    pub cluster_address: String,
    /// What it is, for streams that ask for it: `server_tags` of its configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What the tags begin with of which no two replicas of a stream may have the same: `unique_tag` of its configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unique_tag: String,
}

/// One stream, as meta assigns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamAssignment {
    /// Owner.
    pub account: AccountName,
    /// The group that holds it; never reused.
    pub group: GroupId,
    /// Its configuration.
    pub config: StreamConfig,
    /// When it was created.
    pub created: Timestamp,
    /// The nodes that vote, in order of preference for leading.
    pub replicas: Vec<NodeId>,
    /// Counts configuration changes; the stream's own log adopts them in this order.
    pub revision: u64,
    /// Whether other nodes held it once: then not everybody who holds it is a founder of its group.
    #[serde(default)]
    pub replicas_changed: bool,
    /// Set while it goes to other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    /// Whether it is being filled from an archive: until that has ended, only its leader knows of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restoring: bool,
}

/// A stream on its way to other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// When it began.
    pub since: Timestamp,
    /// Where it goes back to if it is cancelled. None when it has to go: a replica was taken away from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<MoveOrigin>,
}

/// What a stream was before it began to move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveOrigin {
    /// The nodes that held it.
    pub replicas: Vec<NodeId>,
    /// How many it asked for.
    pub num_replicas: i32,
    /// Where it asked to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}
