//! What an account uses and may use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::error::ApiError;
use crate::api::stream_check::ServerLimits;
use crate::api::stream_config::{StorageType, StreamConfig, is_zero};

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

impl AccountLimits {
    /// Whether an account may have such a stream, whatever else it has.
    pub fn check_stream(&self, config: &StreamConfig) -> Result<(), ApiError> {
        let bytes_max = match config.storage {
            StorageType::File => self.storage_max_stream_bytes,
            StorageType::Memory => self.memory_max_stream_bytes,
        };
        if self.max_bytes_required && config.max_bytes <= 0 {
            return Err(ApiError::max_bytes_required());
        }
        if bytes_max > 0 && config.max_bytes > bytes_max {
            return Err(ApiError::stream_max_bytes_exceeded());
        }
        Ok(())
    }

    /// Whether an account may have a stream with so many consumers.
    pub fn check_consumers(&self, config: &StreamConfig) -> Result<(), ApiError> {
        let is_over = self.max_consumers > 0 && config.max_consumers > self.max_consumers;
        if is_over { Err(ApiError::maximum_consumers_reached()) } else { Ok(()) }
    }

    /// Whether an account may have another stream besides so many.
    pub fn check_count(&self, streams: usize) -> Result<(), ApiError> {
        let max = usize::try_from(self.max_streams).unwrap_or(0);
        if max > 0 && streams >= max { Err(ApiError::maximum_streams_reached()) } else { Ok(()) }
    }

    /// Whether an account's streams of one kind may be promised so many bytes in all, replicas counted.
    pub fn check_reserved(&self, storage: StorageType, reserved: i64) -> Result<(), ApiError> {
        let max = match storage {
            StorageType::File => self.max_storage,
            StorageType::Memory => self.max_memory,
        };
        if max >= 0 && reserved > max { Err(storage.exceeded()) } else { Ok(()) }
    }

    /// The bounds of a server as they are for this account.
    #[must_use]
    pub fn within(&self, server: &ServerLimits) -> ServerLimits {
        let smaller = |of_server: i64, own: i64| match (of_server > 0, own > 0) {
            (true, true) => of_server.min(own),
            (false, true) => own,
            (_, false) => of_server,
        };
        ServerLimits {
            max_ack_pending: smaller(server.max_ack_pending, self.max_ack_pending),
            default_max_consumers: smaller(server.default_max_consumers, self.max_consumers),
            ..*server
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
