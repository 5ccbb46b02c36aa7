//! Bodies of requests about consumers.

use serde::{Deserialize, Serialize};

use crate::api::consumer_config::ConsumerConfig;
use crate::api::envelope::json_words;
use crate::api::stream_config::{is_false, is_zero};
use crate::time::Timestamp;

json_words! {
    /// What a create request may do.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub enum ConsumerCreateAction: refused_action {
        /// Whatever is needed.
        #[default]
        CreateOrUpdate = "",
        /// Create only; the same configuration again is fine.
        Create = "create",
        /// Update only.
        Update = "update",
    }
}

fn refused_action(action: &serde_json::Value) -> String {
    format!("unknown consumer action: {action}")
}

impl ConsumerCreateAction {
    fn is_default(&self) -> bool {
        *self == Self::CreateOrUpdate
    }
}

/// Create or update a consumer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerCreateRequest {
    /// Must equal the stream in the subject.
    pub stream_name: String,
    /// The configuration.
    pub config: ConsumerConfig,
    /// What this may do.
    #[serde(skip_serializing_if = "ConsumerCreateAction::is_default")]
    pub action: ConsumerCreateAction,
    /// Refuse rather than adjust.
    #[serde(skip_serializing_if = "is_false")]
    pub pedantic: bool,
}

/// Deliver nothing until a time.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerPauseRequest {
    /// Until when; absent resumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_until: Option<Timestamp>,
}

/// Start over.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerResetRequest {
    /// The next sequence to deliver; 0 is after the ack floor.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
}

/// Release the pinned client of a priority group.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnpinRequest {
    /// Which group.
    pub group: String,
}
