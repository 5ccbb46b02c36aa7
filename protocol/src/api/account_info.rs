//! What an account uses and may use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::stream_config::is_zero;

/// The answer to `$JS.API.INFO`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountInfo {
    /// Bytes in memory streams.
    pub memory: u64,
    /// Bytes in file streams.
    pub storage: u64,
    /// Bytes promised to memory streams.
    pub reserved_memory: u64,
    /// Bytes promised to file streams.
    pub reserved_storage: u64,
    /// Number of streams.
    pub streams: u64,
    /// Number of consumers.
    pub consumers: u64,
    /// What it may use.
    pub limits: AccountLimits,
    /// The JetStream domain of the answering server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Calls so far.
    pub api: ApiStats,
    /// The same per number of replicas, for accounts with tiers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tiers: BTreeMap<String, AccountTier>,
}

/// What an account may use; -1 is no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    /// Bytes in memory streams.
    pub max_memory: i64,
    /// Bytes in file streams.
    pub max_storage: i64,
    /// Number of streams.
    pub max_streams: i64,
    /// Number of consumers of one stream.
    pub max_consumers: i64,
    /// Largest `max_ack_pending` of a consumer.
    pub max_ack_pending: i64,
    /// Largest `max_bytes` of a memory stream.
    pub memory_max_stream_bytes: i64,
    /// Largest `max_bytes` of a file stream.
    pub storage_max_stream_bytes: i64,
    /// Whether streams must set `max_bytes`.
    pub max_bytes_required: bool,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self {
            max_memory: -1,
            max_storage: -1,
            max_streams: -1,
            max_consumers: -1,
            max_ack_pending: -1,
            memory_max_stream_bytes: -1,
            storage_max_stream_bytes: -1,
            max_bytes_required: false,
        }
    }
}

/// Calls so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApiStats {
    /// The API level of the server.
    pub level: u32,
    /// All calls.
    pub total: u64,
    /// Those that were answered with an error.
    pub errors: u64,
    /// Those being worked on.
    #[serde(skip_serializing_if = "is_zero")]
    pub inflight: u64,
}

/// Usage and limits of one tier.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountTier {
    /// Bytes in memory streams.
    pub memory: u64,
    /// Bytes in file streams.
    pub storage: u64,
    /// Bytes promised to memory streams.
    pub reserved_memory: u64,
    /// Bytes promised to file streams.
    pub reserved_storage: u64,
    /// Number of streams.
    pub streams: u64,
    /// Number of consumers.
    pub consumers: u64,
    /// What it may use.
    pub limits: AccountLimits,
}
