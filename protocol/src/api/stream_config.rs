//! A stream's configuration, field by field.
//!
//! In a request 0, "", `false` and an absent field all mean "not set"; [`StreamConfig::default`] is that. The
//! defaults and rules are in [`stream_check`](super::stream_check).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::envelope::json_words;
use crate::api::error::ApiError;
use crate::time::{Nanos, Timestamp};

/// What the owner of a stream asked for. Also the stored form: it round-trips through JSON.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// Its name, unique in the account.
    pub name: String,
    /// Words for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Filters of what it captures. Default: its own name, unless it is a mirror or has sources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// When messages leave other than by limits.
    pub retention: RetentionPolicy,
    /// Most consumers; -1 is no limit.
    pub max_consumers: i64,
    /// Most messages; -1 is no limit.
    pub max_msgs: i64,
    /// Most stored bytes, overhead per message included; -1 is no limit.
    pub max_bytes: i64,
    /// Nanoseconds a message may stay; 0 is no limit.
    pub max_age: Nanos,
    /// Most messages of one subject; -1 is no limit.
    pub max_msgs_per_subject: i64,
    /// Most bytes of header and payload of one message; -1 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_msg_size: i32,
    /// Who gives way at a limit: old messages or new ones.
    pub discard: DiscardPolicy,
    /// Disk or memory.
    pub storage: StorageType,
    /// How many nodes hold it, 1 to 5.
    pub num_replicas: i32,
    /// Publishes are not answered.
    #[serde(skip_serializing_if = "is_false")]
    pub no_ack: bool,
    /// Nanoseconds in which a message id is remembered. Default: two minutes, at most `max_age`.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub duplicate_window: Nanos,
    /// Where its replicas may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// The stream it copies one to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<StreamSource>,
    /// Streams it gathers messages from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<StreamSource>,
    /// Asked of the store; a detail of storage that is echoed back.
    pub compression: Compression,
    /// The sequence of the first message; 0 is 1.
    #[serde(skip_serializing_if = "is_zero")]
    pub first_seq: u64,
    /// Rewrites subjects before anything else looks at them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject_transform: Option<SubjectTransform>,
    /// Publishes stored messages again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub republish: Option<Republish>,
    /// Any replica answers direct gets.
    pub allow_direct: bool,
    /// A mirror answers direct gets for its origin.
    pub mirror_direct: bool,
    /// `discard: new` also for the limit per subject.
    #[serde(skip_serializing_if = "is_false")]
    pub discard_new_per_subject: bool,
    /// Nothing changes any more.
    pub sealed: bool,
    /// Single messages can not be deleted.
    pub deny_delete: bool,
    /// Messages can not be purged.
    pub deny_purge: bool,
    /// `Nats-Rollup` headers are followed.
    pub allow_rollup_hdrs: bool,
    /// Bounds and defaults for its consumers.
    pub consumer_limits: ConsumerLimits,
    /// `Nats-TTL` headers are followed.
    pub allow_msg_ttl: bool,
    /// How long the marker of an expired subject stays; 0 is no markers.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub subject_delete_marker_ttl: Nanos,
    /// Messages are increments of counters.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_msg_counter: bool,
    /// Batches that are stored all or not at all.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_atomic: bool,
    /// Messages may be schedules.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_msg_schedules: bool,
    /// Whether publishes wait for the disk.
    #[serde(skip_serializing_if = "PersistMode::is_default")]
    pub persist_mode: PersistMode,
    /// Fast ingest batches.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_batched: bool,
    /// Anything the owner wants to remember.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl StreamConfig {
    /// How many nodes are to hold the stream.
    #[must_use]
    pub fn replica_count(&self) -> usize {
        usize::try_from(self.num_replicas).unwrap_or(1).max(1)
    }
}

json_words! {
    /// When messages leave other than by limits.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum RetentionPolicy {
        /// By limits only.
        #[default]
        Limits = "limits",
        /// When every interested consumer is done with them.
        Interest = "interest",
        /// When their one consumer is done with them.
        WorkQueue = "workqueue",
    }
}

json_words! {
    /// Who gives way at a limit.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum DiscardPolicy {
        /// The oldest messages are removed.
        #[default]
        Old = "old",
        /// New messages are refused.
        New = "new",
    }
}

json_words! {
    /// Where messages are kept.
    #[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
    pub enum StorageType {
        /// On disk.
        #[default]
        File = "file",
        /// In memory; lost when all replicas stop.
        Memory = "memory",
    }
}

impl StorageType {
    /// What is said when there is no room for what a stream of this kind asks for.
    #[must_use]
    pub fn exceeded(self) -> ApiError {
        match self {
            Self::File => ApiError::storage_exceeded(),
            Self::Memory => ApiError::memory_exceeded(),
        }
    }
}

json_words! {
    /// Compression asked of the store.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum Compression: refused_compression {
        /// None asked for.
        #[default]
        None = "none",
        /// The S2 algorithm.
        S2 = "s2",
    }
}

fn refused_compression(_: &serde_json::Value) -> &'static str {
    "unknown compression algorithm"
}

json_words! {
    /// Whether publishes wait for the disk.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum PersistMode {
        /// They do.
        #[default]
        Default = "default",
        /// They do not.
        Async = "async",
    }
}

impl PersistMode {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// Where replicas may be.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Placement {
    /// Name of the cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Tags that a server must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The server that should lead; only in requests to step down.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub preferred: String,
}

/// A stream that is mirrored or sourced.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamSource {
    /// Its name.
    pub name: String,
    /// Begin at this sequence; 0 is not set.
    #[serde(skip_serializing_if = "is_zero")]
    pub opt_start_seq: u64,
    /// Begin at this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_start_time: Option<Timestamp>,
    /// Only messages whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Filters that also rewrite the subject.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_transforms: Vec<SubjectTransform>,
    /// How to reach it in another account or domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalStream>,
    /// The consumer, made by the owner, to read it through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<SourceConsumer>,
}

/// Prefixes under which a stream of another account or domain is reached.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalStream {
    /// Replaces `$JS.API`.
    pub api: String,
    /// Prefix of the delivery subject.
    pub deliver: String,
}

/// A consumer that its owner made for a mirror or source.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConsumer {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where it delivers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_subject: String,
}

/// Rewrites subjects that match `src` to `dest`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubjectTransform {
    /// Filter.
    pub src: String,
    /// Destination with placeholders.
    pub dest: String,
}

/// Publishes stored messages again under another subject.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Republish {
    /// Filter; default `>`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub src: String,
    /// Destination with placeholders.
    pub dest: String,
    /// Without the body.
    #[serde(skip_serializing_if = "is_false")]
    pub headers_only: bool,
}

/// Bounds and defaults for consumers of a stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerLimits {
    /// Longest, and default, inactivity before an idle consumer is removed.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub inactive_threshold: Nanos,
    /// Largest, and default, number of unacknowledged messages.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_ack_pending: i64,
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

pub(crate) fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
