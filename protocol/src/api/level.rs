//! API levels: which configuration needs which, and the reserved metadata keys that tell it.
//!
//! The level a configuration needs is stored with it. The server's version and level are only shown: clients
//! send them back with updates, so they are dropped when a configuration comes in.

use std::collections::BTreeMap;

use crate::api::consumer_config::{AckPolicy, ConsumerConfig, PriorityPolicy};
use crate::api::error::ApiError;
use crate::api::stream_config::{PersistMode, StreamConfig};
use crate::time::Timestamp;

/// The level of this server, that of NATS 2.15.
pub const API_LEVEL: u32 = 5;

/// The version of NATS whose behavior this server has; clients gate features on it.
pub const NATS_VERSION: &str = "2.15.1";

/// Stored: the level that the configuration needs.
pub const REQUIRED_LEVEL_KEY: &str = "_nats.req.level";
/// Shown: the version of the answering server.
pub const VERSION_KEY: &str = "_nats.ver";
/// Shown: the level of the answering server.
pub const LEVEL_KEY: &str = "_nats.level";

/// The level a stream's configuration needs.
#[must_use]
pub fn stream_level(config: &StreamConfig) -> u32 {
    let rows = [
        (1, config.allow_msg_ttl || !config.subject_delete_marker_ttl.is_zero()),
        (2, config.allow_msg_counter || config.allow_atomic || config.allow_msg_schedules),
        (2, config.persist_mode == PersistMode::Async),
        (4, config.allow_batched),
    ];
    highest(&rows)
}

/// The level a consumer's configuration needs.
#[must_use]
pub fn consumer_level(config: &ConsumerConfig) -> u32 {
    let rows = [
        // The command line sends the empty time.
        (1, config.pause_until.is_some_and(|until| until != Timestamp::ZERO)),
        (1, config.priority_policy != PriorityPolicy::None || !config.priority_groups.is_empty()),
        (1, !config.priority_timeout.is_zero()),
        (4, config.ack_policy == AckPolicy::FlowControl),
    ];
    highest(&rows)
}

fn highest(rows: &[(u32, bool)]) -> u32 {
    rows.iter().filter(|(_, needed)| *needed).map(|(level, _)| *level).max().unwrap_or(0)
}

/// Makes the metadata of a request what is stored: the shown keys are dropped, the needed level is set.
pub fn store(metadata: &mut BTreeMap<String, String>, level: u32) {
    metadata.remove(VERSION_KEY);
    metadata.remove(LEVEL_KEY);
    metadata.insert(REQUIRED_LEVEL_KEY.to_owned(), level.to_string());
}

/// Adds what answers about a single stream or consumer show besides the stored metadata.
pub fn show(metadata: &mut BTreeMap<String, String>) {
    metadata.insert(VERSION_KEY.to_owned(), NATS_VERSION.to_owned());
    metadata.insert(LEVEL_KEY.to_owned(), API_LEVEL.to_string());
}

impl StreamConfig {
    /// Makes its metadata what is stored.
    pub fn store_metadata(&mut self) {
        let level = stream_level(self);
        store(&mut self.metadata, level);
    }

    /// A copy as single answers show it; lists show the stored form.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        show(&mut shown.metadata);
        shown
    }
}

impl ConsumerConfig {
    /// Makes its metadata what is stored.
    pub fn store_metadata(&mut self) {
        let level = consumer_level(self);
        store(&mut self.metadata, level);
    }

    /// A copy as single answers show it; lists show the stored form.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        show(&mut shown.metadata);
        shown
    }
}

/// The value of a `Nats-Required-Api-Level` header: a level this server has, or 10185.
pub fn check_required(value: &str) -> Result<(), ApiError> {
    match value.trim().parse::<u32>() {
        Ok(level) if level <= API_LEVEL => Ok(()),
        Ok(_) | Err(_) => Err(ApiError::api_level_required()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_needs_the_highest_level_of_its_features() {
        let mut stream = StreamConfig::default();
        assert_eq!(stream_level(&stream), 0);
        stream.allow_msg_ttl = true;
        assert_eq!(stream_level(&stream), 1);
        stream.allow_atomic = true;
        assert_eq!(stream_level(&stream), 2);
        stream.allow_batched = true;
        assert_eq!(stream_level(&stream), 4);

        let mut consumer = ConsumerConfig::default();
        assert_eq!(consumer_level(&consumer), 0);
        consumer.pause_until = Some(Timestamp(1));
        assert_eq!(consumer_level(&consumer), 1);
    }

    #[test]
    fn shown_keys_that_come_back_are_not_stored() {
        let mut config = StreamConfig::default();
        config.metadata.insert("mine".to_owned(), "kept".to_owned());
        config.store_metadata();
        let mut echoed = config.shown();
        assert_eq!(echoed.metadata.len(), 4);

        echoed.store_metadata();

        assert_eq!(echoed, config);
        assert_eq!(config.metadata[REQUIRED_LEVEL_KEY], "0");
    }

    #[test]
    fn a_level_above_ours_or_no_number_is_refused() {
        assert_eq!(check_required("5"), Ok(()));
        for refused in ["6", "", "x", "-1"] {
            assert_eq!(check_required(refused).unwrap_err().err_code, 10185, "{refused:?}");
        }
    }
}
