//! Bodies of requests about streams, servers and the cluster.

use serde::{Deserialize, Serialize};

use crate::api::stream_config::{Placement, StreamConfig, is_false, is_zero};

/// Create or update a stream.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamConfigRequest {
    /// The configuration.
    #[serde(flatten)]
    pub config: StreamConfig,
    /// Refuse rather than adjust.
    #[serde(skip_serializing_if = "is_false")]
    pub pedantic: bool,
}

/// Remove many messages.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PurgeRequest {
    /// Only messages whose subject matches; empty is all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Only messages below this sequence; 0 is all.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// Keep this many of the newest; 0 is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep: u64,
}

/// Stream info.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInfoRequest {
    /// First subject to show.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// Show which sequences are gone.
    #[serde(skip_serializing_if = "is_false")]
    pub deleted_details: bool,
    /// Show counts of subjects that match.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subjects_filter: String,
}

/// One page of stream or consumer names, or of their infos.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesRequest {
    /// How many to skip.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// Only streams with a subject that collides with this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
}

/// Ask a leader to step down.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepDownRequest {
    /// Who should lead instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// Name a peer of a stream or consumer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerRequest {
    /// Server name or peer id.
    pub peer: String,
}

/// Name a server of the cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerPeerRequest {
    /// Server name.
    pub peer: String,
    /// Peer id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_id: String,
}
