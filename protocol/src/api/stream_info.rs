//! What is known of a stream at one moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::error::ApiError;
use crate::api::stream_config::{
    ExternalStream, Placement, RetentionPolicy, StreamConfig, SubjectTransform, is_false, is_zero,
};
use crate::ids::Seq;
use crate::time::Timestamp;

/// The answer to stream info; part of several other answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInfo {
    /// Its configuration, with the shown metadata.
    pub config: StreamConfig,
    /// When it was created.
    pub created: Timestamp,
    /// What it holds.
    pub state: StreamState,
    /// The JetStream domain of the answering server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Who leads and follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterInfo>,
    /// How its mirroring is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<StreamSourceInfo>,
    /// How its sources are doing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StreamSourceInfo>,
    /// Mirrors that may be read instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternates: Vec<StreamAlternate>,
    /// When this was true.
    pub ts: Timestamp,
}

/// What a stream holds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Number of messages.
    pub messages: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Sequence of the first message; of an empty stream one more than the last, or 0 when it never had any.
    pub first_seq: Seq,
    /// Time of the first message; `ZERO` when there is none.
    pub first_ts: Timestamp,
    /// The last sequence given out.
    pub last_seq: Seq,
    /// Time of the last message; `ZERO` when there never was one.
    pub last_ts: Timestamp,
    /// Number of different subjects.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_subjects: u64,
    /// Messages per subject, when asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subjects: BTreeMap<String, u64>,
    /// Number of sequences between first and last that are gone.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_deleted: u64,
    /// Which ones, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<u64>,
    /// Messages lost by damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostMessages>,
    /// Number of consumers.
    pub consumer_count: u64,
}

impl Default for StreamState {
    fn default() -> Self {
        Self {
            messages: 0,
            bytes: 0,
            first_seq: Seq::NONE,
            first_ts: Timestamp::ZERO,
            last_seq: Seq::NONE,
            last_ts: Timestamp::ZERO,
            num_subjects: 0,
            subjects: BTreeMap::new(),
            num_deleted: 0,
            deleted: Vec::new(),
            lost: None,
            consumer_count: 0,
        }
    }
}

/// Messages lost by damage.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LostMessages {
    /// Their sequences.
    pub msgs: Vec<u64>,
    /// Their bytes.
    pub bytes: u64,
}

/// Who leads and follows.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterInfo {
    /// The cluster's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The Raft group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub raft_group: String,
    /// Server name of the leader.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub leader: String,
    /// Since when it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader_since: Option<Timestamp>,
    /// Whether replication uses the system account.
    #[serde(skip_serializing_if = "is_false")]
    pub system_account: bool,
    /// The account that replication uses.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traffic_account: String,
    /// The followers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<PeerInfo>,
    /// Where it is going, while replicas change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired: Option<DesiredCluster>,
}

/// Where a stream is going while its replicas change.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredCluster {
    /// When the change began.
    pub created: Timestamp,
    /// The cluster's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// All nodes that will hold it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<DesiredPeer>,
    /// Where it comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<DesiredOrigin>,
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<DesiredStatus>,
}

/// A node that will hold a stream.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredPeer {
    /// Its server name.
    pub name: String,
    /// Its peer id.
    pub peer: String,
}

/// Where a stream comes from while its replicas change.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredOrigin {
    /// How many nodes held it.
    pub replicas: i32,
    /// Where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// What its retention was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionPolicy>,
}

/// How far a change of replicas is.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DesiredStatus {
    /// Words for people.
    pub description: String,
    /// One of `meta membership snapshot catchup quorum blocked unavailable`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Why it stands still.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub err: String,
}

/// One follower.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerInfo {
    /// Its server name.
    pub name: String,
    /// Whether it has everything.
    pub current: bool,
    /// Whether it is known to be down.
    #[serde(skip_serializing_if = "is_false")]
    pub offline: bool,
    /// Nanoseconds since it was last heard of.
    pub active: i64,
    /// Log entries it still lacks.
    #[serde(skip_serializing_if = "is_zero")]
    pub lag: u64,
    /// Its peer id.
    pub peer: String,
    /// Whether it is still on its way into the group.
    #[serde(skip_serializing_if = "is_false")]
    pub pending: bool,
}

/// How a mirror or source is doing.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSourceInfo {
    /// Name of the origin.
    pub name: String,
    /// How it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalStream>,
    /// Messages behind.
    pub lag: u64,
    /// Last origin sequence stored.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// Nanoseconds since anything came; -1 is never.
    pub active: i64,
    /// Why it stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// Only messages whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Filters that also rewrite the subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_transforms: Vec<SubjectTransform>,
}

/// A mirror that may be read instead.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamAlternate {
    /// Its name.
    pub name: String,
    /// Its domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Its cluster.
    pub cluster: String,
}
