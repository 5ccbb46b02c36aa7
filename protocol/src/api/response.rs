//! Bodies of answers that are made of other documents. The envelope adds the type in front.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::api::consumer_info::ConsumerInfo;
use crate::api::message::StoredMessage;
use crate::api::stream_config::{StreamConfig, is_false};
use crate::api::stream_info::{StreamInfo, StreamState};
use crate::ids::Seq;
use crate::time::{Nanos, Timestamp};

/// Names on one page.
pub const NAMES_PAGE: usize = 1024;
/// Descriptions on one page.
pub const LIST_PAGE: usize = 256;
/// Subjects with their counts on one page.
pub const SUBJECTS_PAGE: usize = 100_000;

/// The answer of calls that only do something.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Done {
    success: bool,
}

impl Done {
    /// It was done.
    pub const OK: Self = Self { success: true };
}

/// The answer to the purge of an account.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PurgeInitiated {
    /// Whether the account's streams go.
    pub initiated: bool,
}

/// The answer to unpin, which says nothing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Unpinned {}

/// The answer to stream create.
#[derive(Clone, Debug, Serialize)]
pub struct StreamCreated {
    /// The stream.
    #[serde(flatten)]
    pub info: StreamInfo,
    /// Set also when it existed with the same configuration.
    #[serde(skip_serializing_if = "is_false")]
    pub did_create: bool,
}

/// The answer to stream info. The page is about `state.subjects`; all zero when they were not asked for.
#[derive(Clone, Debug, Serialize)]
pub struct StreamDescribed {
    /// Matching subjects in all.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// Most on one page.
    pub limit: usize,
    /// The stream.
    #[serde(flatten)]
    pub info: StreamInfo,
}

/// The answer to stream names.
#[derive(Clone, Debug, Serialize)]
pub struct StreamNames {
    /// How many there are in all.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// Most on one page.
    pub limit: usize,
    /// This page; no names are written as `null`.
    #[serde(serialize_with = "null_if_empty")]
    pub streams: Vec<String>,
}

/// The answer to stream list.
#[derive(Clone, Debug, Serialize)]
pub struct StreamList {
    /// How many there are in all.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// Most on one page.
    pub limit: usize,
    /// This page.
    pub streams: Vec<StreamInfo>,
    /// Names of streams that could not be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Names of streams that are offline, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub offline: BTreeMap<String, String>,
}

/// The answer to stream snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotBegun {
    /// The stream's configuration.
    pub config: StreamConfig,
    /// What the archive will hold.
    pub state: StreamState,
}

/// The answer to stream restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreBegun {
    /// Where the archive is to be sent.
    pub deliver_subject: String,
}

/// The answer to stream purge.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Purged {
    success: bool,
    purged: u64,
}

impl Purged {
    /// This many messages were removed.
    #[must_use]
    pub const fn count(purged: u64) -> Self {
        Self { success: true, purged }
    }
}

/// The answer to a consumer's reset.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerReset {
    /// The consumer after it.
    #[serde(flatten)]
    pub info: ConsumerInfo,
    /// The next message it looks at.
    pub reset_seq: Seq,
}

/// The answer to message get.
#[derive(Clone, Debug, Serialize)]
pub struct MessageFound {
    /// The message.
    pub message: StoredMessage,
}

/// The answer to consumer names.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerNames {
    /// How many there are in all.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// Most on one page.
    pub limit: usize,
    /// This page.
    pub consumers: Vec<String>,
}

/// The answer to consumer list.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerList {
    /// How many there are in all.
    pub total: usize,
    /// How many were skipped.
    pub offset: usize,
    /// Most on one page.
    pub limit: usize,
    /// This page.
    pub consumers: Vec<ConsumerInfo>,
    /// Names of consumers that could not be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Names of consumers that are offline, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub offline: BTreeMap<String, String>,
}

/// The answer to consumer pause.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ConsumerPaused {
    /// Whether it is paused now.
    pub paused: bool,
    /// Until when; `ZERO` when it is not.
    pub pause_until: Timestamp,
    /// For how long still.
    #[serde(skip_serializing_if = "Nanos::is_zero")]
    pub pause_remaining: Nanos,
}

/// The answer to consumer reset.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerWasReset {
    /// The consumer.
    #[serde(flatten)]
    pub info: ConsumerInfo,
    /// The next sequence it delivers.
    pub reset_seq: Seq,
}

fn null_if_empty<S: serde::Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if names.is_empty() { serializer.serialize_none() } else { names.serialize(serializer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::endpoint::Endpoint;
    use crate::api::stream_check::{Adjust, ServerLimits, validate_create};
    use crate::api::stream_config::StreamConfig;

    #[test]
    fn a_created_stream_has_the_fields_in_the_order_of_nats() {
        let mut config = StreamConfig {
            name: "G1".to_owned(),
            subjects: vec!["g1.>".to_owned()],
            ..StreamConfig::default()
        };
        validate_create(&mut config, &ServerLimits::default(), Adjust::Silently).unwrap();
        config.store_metadata();
        let created = Timestamp::parse("2026-11-21T09:24:13.874525997Z").unwrap();
        let ts = Timestamp::parse("2026-11-21T09:24:13.876037538Z").unwrap();
        let info = StreamInfo { config: config.shown(), created, ts, ..StreamInfo::default() };

        let answer = Endpoint::StreamCreate.success(&StreamCreated { info, did_create: true });

        assert_eq!(
            String::from_utf8(answer).unwrap(),
            r#"{"type":"io.nats.jetstream.api.v1.stream_create_response","config":{"name":"G1","subjects":["g1.\u003e"],"retention":"limits","max_consumers":-1,"max_msgs":-1,"max_bytes":-1,"max_age":0,"max_msgs_per_subject":-1,"max_msg_size":-1,"discard":"old","storage":"file","num_replicas":1,"duplicate_window":120000000000,"compression":"none","allow_direct":false,"mirror_direct":false,"sealed":false,"deny_delete":false,"deny_purge":false,"allow_rollup_hdrs":false,"consumer_limits":{},"allow_msg_ttl":false,"metadata":{"_nats.level":"5","_nats.req.level":"0","_nats.ver":"2.15.1"}},"created":"2026-11-21T09:24:13.874525997Z","state":{"messages":0,"bytes":0,"first_seq":0,"first_ts":"0001-01-01T00:00:00Z","last_seq":0,"last_ts":"0001-01-01T00:00:00Z","consumer_count":0},"ts":"2026-11-21T09:24:13.876037538Z","did_create":true}"#
        );
    }

    #[test]
    fn no_stream_names_are_null_and_no_consumer_names_are_a_list() {
        let page = StreamNames { total: 0, offset: 0, limit: NAMES_PAGE, streams: Vec::new() };
        assert_eq!(
            Endpoint::StreamNames.success(&page),
            br#"{"type":"io.nats.jetstream.api.v1.stream_names_response","total":0,"offset":0,"limit":1024,"streams":null}"#
        );
        let page = ConsumerNames { total: 0, offset: 0, limit: NAMES_PAGE, consumers: Vec::new() };
        assert_eq!(
            Endpoint::ConsumerNames.success(&page),
            br#"{"type":"io.nats.jetstream.api.v1.consumer_names_response","total":0,"offset":0,"limit":1024,"consumers":[]}"#
        );
        assert_eq!(
            Endpoint::StreamPurge.success(&Purged::count(2)),
            br#"{"type":"io.nats.jetstream.api.v1.stream_purge_response","success":true,"purged":2}"#
        );
        assert_eq!(
            Endpoint::StreamDelete.success(&Done::OK),
            br#"{"type":"io.nats.jetstream.api.v1.stream_delete_response","success":true}"#
        );
    }
}
