//! What is known of a consumer at one moment.

use serde::{Deserialize, Serialize};

use crate::api::consumer_config::ConsumerConfig;
use crate::api::stream_config::{is_false, is_zero};
use crate::api::stream_info::ClusterInfo;
use crate::ids::Seq;
use crate::time::{Nanos, Timestamp};

/// The answer to consumer info; part of several other answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerInfo {
    /// Its stream.
    pub stream_name: String,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// Its configuration, with the shown metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<ConsumerConfig>,
    /// The last delivery.
    pub delivered: SequenceInfo,
    /// Up to where everything is settled.
    pub ack_floor: SequenceInfo,
    /// Delivered and not settled.
    pub num_ack_pending: u64,
    /// Delivered more than once and not settled.
    pub num_redelivered: u64,
    /// Waiting pull requests.
    pub num_waiting: u64,
    /// Matching messages not delivered yet.
    pub num_pending: u64,
    /// Who leads and follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterInfo>,
    /// Whether somebody subscribes to its deliver subject.
    #[serde(skip_serializing_if = "is_false")]
    pub push_bound: bool,
    /// Whether it is paused.
    #[serde(skip_serializing_if = "is_false")]
    pub paused: bool,
    /// For how long still.
    #[serde(skip_serializing_if = "is_zero")]
    pub pause_remaining: Nanos,
    /// When this was true.
    pub ts: Timestamp,
    /// Its priority groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_groups: Vec<PriorityGroupState>,
}

/// A position in a consumer and in its stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SequenceInfo {
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// Sequence of the message.
    pub stream_seq: Seq,
    /// When this last moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_active: Option<Timestamp>,
}

/// State of one priority group.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PriorityGroupState {
    /// Its name.
    pub group: String,
    /// Who is pinned.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pinned_client_id: String,
    /// Since when; `ZERO` when nobody is.
    pub pinned_ts: Timestamp,
}

impl Default for PriorityGroupState {
    fn default() -> Self {
        Self { group: String::new(), pinned_client_id: String::new(), pinned_ts: Timestamp::ZERO }
    }
}
