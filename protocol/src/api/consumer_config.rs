//! A consumer's configuration, field by field.
//!
//! In a request 0, "", `false` and an absent field all mean "not set"; [`ConsumerConfig::default`] is that. The
//! defaults and rules are in [`consumer_check`](super::consumer_check).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::envelope::json_words;
use crate::api::stream_config::{RetentionPolicy, StreamConfig, is_false, is_zero};
use crate::time::{Nanos, Timestamp};

/// What the owner of a consumer asked for. Also the stored form: it round-trips through JSON.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerConfig {
    /// Set exactly on consumers that stay when unused; equals `name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub durable_name: String,
    /// Its name, unique in the stream.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Words for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Where it begins.
    pub deliver_policy: DeliverPolicy,
    /// First sequence, for `by_start_sequence`; 0 is not set.
    #[serde(skip_serializing_if = "is_zero")]
    pub opt_start_seq: u64,
    /// First time, for `by_start_time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opt_start_time: Option<Timestamp>,
    /// What an ack means.
    pub ack_policy: AckPolicy,
    /// Nanoseconds to wait for an ack before delivering again.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub ack_wait: Nanos,
    /// Most deliveries of one message; -1 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_deliver: i64,
    /// Waits after the first, second, ... delivery, instead of `ack_wait`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backoff: Vec<Nanos>,
    /// Only messages whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter_subject: String,
    /// Only messages whose subject matches one of these; instead of `filter_subject`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter_subjects: Vec<String>,
    /// As fast as possible, or at the original pace.
    pub replay_policy: ReplayPolicy,
    /// Bits per second; push only; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub rate_limit_bps: u64,
    /// Share of acks that are sampled, as `"50%"` or `"50"`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sample_freq: String,
    /// Most waiting pull requests.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_waiting: i64,
    /// Most unacknowledged messages; -1 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_ack_pending: i64,
    /// Push: the client paces the server.
    #[serde(skip_serializing_if = "is_false")]
    pub flow_control: bool,
    /// Bodies are replaced by a header with their size.
    #[serde(skip_serializing_if = "is_false")]
    pub headers_only: bool,
    /// Largest batch of a pull request; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_batch: i64,
    /// Longest expiry of a pull request; 0 is no limit.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub max_expires: Nanos,
    /// Largest `max_bytes` of a pull request; 0 is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bytes: i64,
    /// Where messages go. Set exactly on push consumers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_subject: String,
    /// Queue group on the deliver subject.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub deliver_group: String,
    /// Push: a sign of life after this long without messages.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub idle_heartbeat: Nanos,
    /// Removed after this long without use; 0 is never.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub inactive_threshold: Nanos,
    /// Asked for number of replicas; 0 inherits the stream's.
    pub num_replicas: i32,
    /// Keep its state in memory.
    #[serde(skip_serializing_if = "is_false")]
    pub mem_storage: bool,
    /// Internal consumer of a mirror or source.
    #[serde(skip_serializing_if = "is_false")]
    pub direct: bool,
    /// Internal durable consumer of a mirror or source.
    #[serde(skip_serializing_if = "is_false")]
    pub sourcing: bool,
    /// Anything the owner wants to remember.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Nothing is delivered before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_until: Option<Timestamp>,
    /// Names of priority groups; only the first one matters today.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_groups: Vec<String>,
    /// How requests of a priority group are chosen.
    #[serde(skip_serializing_if = "PriorityPolicy::is_none")]
    pub priority_policy: PriorityPolicy,
    /// How long a pinned client stays pinned without pulling.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub priority_timeout: Nanos,
}

impl ConsumerConfig {
    /// Whether it delivers to a subject, rather than to pull requests.
    #[must_use]
    pub fn is_push(&self) -> bool {
        !self.deliver_subject.is_empty()
    }

    /// Whether it stays when unused.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        !self.durable_name.is_empty()
    }

    /// How many nodes hold it: as many as asked for, or as hold the stream. Without a durable name and without an own
    /// wish it is one, where the stream does not count who still needs a message.
    #[must_use]
    pub fn effective_replicas(&self, stream: &StreamConfig) -> i32 {
        let counts = stream.retention != RetentionPolicy::Limits;
        match self.num_replicas {
            0 if self.is_durable() || counts => stream.num_replicas,
            0 => 1,
            asked => asked.min(stream.num_replicas),
        }
    }

    /// All its filters; none means everything.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        let single = (!self.filter_subject.is_empty()).then_some(self.filter_subject.as_str());
        single.into_iter().chain(self.filter_subjects.iter().map(String::as_str))
    }
}

json_words! {
    /// Where a consumer begins.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum DeliverPolicy {
        /// At the first message.
        #[default]
        All = "all",
        /// At the last message.
        Last = "last",
        /// After the last message.
        New = "new",
        /// At `opt_start_seq`.
        ByStartSequence = "by_start_sequence",
        /// At `opt_start_time`.
        ByStartTime = "by_start_time",
        /// The last message of every subject.
        LastPerSubject = "last_per_subject",
    }
}

json_words! {
    /// What an ack means.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum AckPolicy {
        /// Delivered is done.
        #[default]
        None = "none",
        /// An ack settles everything up to its message.
        All = "all",
        /// An ack settles its message.
        Explicit = "explicit",
        /// Settled by answers to flow control, for durable sourcing.
        FlowControl = "flow_control",
    }
}

impl AckPolicy {
    /// Whether clients ack messages.
    #[must_use]
    pub const fn is_of_messages(self) -> bool {
        match self {
            Self::All | Self::Explicit => true,
            Self::None | Self::FlowControl => false,
        }
    }
}

json_words! {
    /// The pace of delivery.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum ReplayPolicy {
        /// As fast as possible.
        #[default]
        Instant = "instant",
        /// With the pauses with which messages came.
        Original = "original",
    }
}

json_words! {
    /// How requests of a priority group are chosen.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum PriorityPolicy: refused_policy {
        /// No groups.
        #[default]
        None = "none",
        /// Requests may ask to be served only when much is pending.
        Overflow = "overflow",
        /// One client gets everything until it goes away.
        PinnedClient = "pinned_client",
        /// Requests carry a number; lower goes first.
        Prioritized = "prioritized",
    }
}

fn refused_policy(policy: &serde_json::Value) -> String {
    format!("unknown priority policy: {policy}")
}

impl PriorityPolicy {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}
