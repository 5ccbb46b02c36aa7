//! What the configuration bounds besides storage.

use std::time::Duration;

use crate::config::Config;

/// Bounds that are fixed for as long as the process runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// `max_payload`: bytes of a message's header and body together.
    pub message_bytes_max: usize,
    /// `jetstream { limits { batch {} } }`
    pub batches: BatchLimits,
}

/// Bounds of batches, atomic and fast.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BatchLimits {
    /// `max_inflight_per_stream`: open atomic batches of a stream. Default: 50.
    pub atomic_per_stream_max: usize,
    /// The same for fast batches. Default: 1000.
    pub fast_per_stream_max: usize,
    /// `max_inflight_total`: open atomic batches of all streams that a node leads. Default: 1000.
    pub atomic_on_node_max: usize,
    /// The same for fast batches. Default: 50,000.
    pub fast_on_node_max: usize,
    /// `max_msgs`: messages of an atomic batch. Default: 1000.
    pub messages_max: u64,
    /// `timeout`: a batch to which nothing is added for so long is given up. Default: 10 s.
    pub idle_max: Duration,
}

impl BatchLimits {
    /// Those of nats-server.
    pub const DEFAULT: Self = Self {
        atomic_per_stream_max: 50,
        fast_per_stream_max: 1000,
        atomic_on_node_max: 1000,
        fast_on_node_max: 50_000,
        messages_max: 1000,
        idle_max: Duration::from_secs(10),
    };
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Limits {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let batches = config.jetstream.as_ref().map_or(BatchLimits::DEFAULT, |jetstream| jetstream.batches);
        Self { message_bytes_max: config.max_payload as usize, batches }
    }
}
