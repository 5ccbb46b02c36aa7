//! A consumer's configuration: what is filled in, and what is refused for what it and its stream's configuration
//! say.
//!
//! Rules that compare with other consumers, or with the configuration before an update, are not here. Checking
//! twice changes nothing more, so apply may check what the leader has checked with its own limits before.

use crate::api::consumer_config::{AckPolicy, ConsumerConfig, DeliverPolicy, PriorityPolicy};
use crate::api::consumer_request::ConsumerCreateRequest;
use crate::api::endpoint::{Endpoint, Request};
use crate::api::error::ApiError;
use crate::api::stream_check::{
    Adjust, DESCRIPTION_BYTES_MAX, METADATA_BYTES_MAX, ServerLimits, metadata_bytes,
};
use crate::api::stream_config::{RetentionPolicy, StreamConfig};
use crate::ids::{ConsumerName, InvalidName};
use crate::subject;
use crate::time::Nanos;

/// Wait for an ack unless configured.
pub const ACK_WAIT_DEFAULT: Nanos = Nanos::from_secs(30);
/// Most unacknowledged messages unless configured.
pub const MAX_ACK_PENDING_DEFAULT: i64 = 1000;
/// Most waiting pull requests unless configured.
pub const MAX_WAITING_DEFAULT: i64 = 512;
/// Inactivity after which an ephemeral consumer is removed unless configured.
pub const INACTIVE_THRESHOLD_DEFAULT: Nanos = Nanos::from_secs(5);
/// The heartbeat of consumers that are acked by answers to flow control: readers take a longer silence for an end.
pub const FLOW_CONTROL_HEARTBEAT: Nanos = Nanos::from_secs(1);
/// How long a pinned client stays pinned unless configured.
pub const PRIORITY_TIMEOUT_DEFAULT: Nanos = Nanos::from_secs(120);

impl ConsumerCreateRequest {
    /// Makes the request agree with the subject it came on, and checks the name. `None`: a name is to be drawn.
    pub fn bind(&mut self, subject: &Request<'_>) -> Result<Option<ConsumerName>, ApiError> {
        if self.stream_name != subject.stream {
            return Err(ApiError::stream_mismatch());
        }
        let config = &mut self.config;
        if subject.consumer.is_empty() {
            if !config.durable_name.is_empty() {
                return Err(ApiError::ephemeral_with_durable_name());
            }
        } else if subject.endpoint == Endpoint::ConsumerDurableCreate {
            if config.durable_name.is_empty() {
                return Err(ApiError::durable_name_not_set());
            }
            if config.durable_name != subject.consumer {
                return Err(ApiError::durable_name_not_match_subject());
            }
        } else {
            if !config.durable_name.is_empty() && config.durable_name != subject.consumer {
                return Err(ApiError::durable_name_not_match_subject());
            }
            subject.consumer.clone_into(&mut config.name);
        }
        if !subject.rest.is_empty() {
            if !config.filter_subjects.is_empty() {
                return Err(ApiError::multiple_filters_in_subject());
            }
            if config.filter_subject != subject.rest {
                return Err(ApiError::create_filter_mismatch());
            }
        }
        let name = if config.name.is_empty() { &config.durable_name } else { &config.name };
        match ConsumerName::parse(name) {
            Ok(name) => Ok(Some(name)),
            Err(InvalidName::Empty) => Ok(None),
            Err(InvalidName::TooLong) => Err(ApiError::consumer_name_too_long(255)),
            Err(InvalidName::PathSeparator) => Err(ApiError::consumer_name_path_separators()),
            Err(InvalidName::Character) => {
                Err(ApiError::stream_invalid_config(r"consumer name can not contain '.', '*', '>', '\', '/'"))
            }
        }
    }
}

impl ConsumerConfig {
    /// Fills in defaults and checks everything that needs no other consumer.
    pub fn apply_defaults_and_validate(
        &mut self,
        stream: &StreamConfig,
        limits: &ServerLimits,
        adjust: Adjust,
    ) -> Result<(), ApiError> {
        self.check_names()?;
        self.apply_defaults(stream, limits, adjust)?;
        self.check_replicas(stream)?;
        if self.ack_policy == AckPolicy::FlowControl {
            self.check_flow_control_acks()?;
        }
        self.check_redelivery()?;
        self.check_texts()?;
        if self.is_push() {
            self.check_push(stream)?
        } else {
            self.check_pull(stream, limits)?
        }
        self.check_bounds(stream, limits)?;
        self.check_direct()?;
        self.check_filters()?;
        self.check_start()?;
        self.check_sampling()?;
        self.check_priority()?;
        self.check_retention(stream)?;
        self.check_extensions(stream)
    }

    /// The first feature of the configuration that this server does not have yet.
    #[must_use]
    pub fn unsupported_yet(&self) -> Option<&'static str> {
        (self.direct || self.sourcing).then_some("sourcing consumers")
    }

    fn check_names(&mut self) -> Result<(), ApiError> {
        if !self.durable_name.is_empty() {
            if self.name.is_empty() {
                self.name.clone_from(&self.durable_name);
            } else if self.name != self.durable_name {
                return Err(ApiError::durable_and_name_differ());
            }
        }
        Ok(())
    }

    fn apply_defaults(
        &mut self,
        stream: &StreamConfig,
        limits: &ServerLimits,
        adjust: Adjust,
    ) -> Result<(), ApiError> {
        if self.max_deliver < -1 {
            adjust.allow("max_deliver must be set to -1")?;
        }
        if self.max_deliver <= 0 {
            self.max_deliver = -1;
        }
        if self.ack_wait.0 < 0 {
            return Err(ApiError::ack_wait_negative());
        }
        if self.backoff.iter().any(|wait| wait.0 < 0) {
            return Err(ApiError::backoff_negative());
        }
        if let Some(first) = self.backoff.first() {
            if self.ack_wait != *first {
                adjust.allow("first backoff value has to equal batch AckWait")?;
            }
            self.ack_wait = *first;
        } else if self.ack_wait.is_zero() && self.ack_policy.is_of_messages() {
            self.ack_wait = ACK_WAIT_DEFAULT;
        }
        let bounds = stream.consumer_limits;
        self.inactive_threshold = self.inactive_threshold.max(Nanos::ZERO);
        if self.inactive_threshold.is_zero() && !bounds.inactive_threshold.is_zero() {
            adjust.allow("inactive_threshold must be set if it's configured in stream limits")?;
            self.inactive_threshold = bounds.inactive_threshold;
        }
        if self.inactive_threshold.is_zero() && !self.is_durable() {
            self.inactive_threshold = INACTIVE_THRESHOLD_DEFAULT;
        }
        if self.max_ack_pending == 0 && self.ack_policy != AckPolicy::None {
            if bounds.max_ack_pending > 0 {
                adjust.allow("max_ack_pending must be set if it's configured in stream limits")?;
            }
            let lower =
                [bounds.max_ack_pending, limits.max_ack_pending].into_iter().filter(|bound| *bound > 0);
            self.max_ack_pending = lower.fold(MAX_ACK_PENDING_DEFAULT, i64::min);
        }
        if self.max_ack_pending < -1 {
            adjust.allow("max_ack_pending must be set to -1")?;
            self.max_ack_pending = -1;
        }
        if !self.is_push() {
            if self.max_waiting <= 0 {
                if self.max_waiting < 0 {
                    adjust.allow("max_waiting must be set to 0 or greater")?;
                }
                self.max_waiting = MAX_WAITING_DEFAULT;
            }
            if self.max_batch <= 0 {
                if self.max_batch < 0 {
                    adjust.allow("max_batch must be set to 0 or greater")?;
                }
                self.max_batch = limits.max_request_batch;
            }
            if self.max_bytes < 0 {
                adjust.allow("max_bytes must be set to 0 or greater")?;
                self.max_bytes = 0;
            }
        }
        if self.priority_timeout < Nanos::ZERO {
            adjust.allow("priority_timeout must not be negative")?;
            self.priority_timeout = Nanos::ZERO;
        }
        if self.priority_policy == PriorityPolicy::PinnedClient && self.priority_timeout.is_zero() {
            self.priority_timeout = PRIORITY_TIMEOUT_DEFAULT;
        }
        if self.ack_policy == AckPolicy::FlowControl && adjust == Adjust::Silently {
            self.flow_control = true;
            self.idle_heartbeat = FLOW_CONTROL_HEARTBEAT;
        }
        Ok(())
    }

    fn check_replicas(&self, stream: &StreamConfig) -> Result<(), ApiError> {
        match self.num_replicas {
            0 => Ok(()),
            ..0 => Err(ApiError::replicas_negative()),
            asked if asked > stream.num_replicas => Err(ApiError::consumer_replicas_exceed_stream()),
            asked if asked != stream.num_replicas && stream.retention != RetentionPolicy::Limits => {
                Err(ApiError::consumer_replicas_not_retention())
            }
            _ => Ok(()),
        }
    }

    fn check_redelivery(&self) -> Result<(), ApiError> {
        let waits = i64::try_from(self.backoff.len()).unwrap_or(i64::MAX);
        if self.max_deliver != -1 && waits > self.max_deliver {
            return Err(ApiError::max_deliver_below_backoff());
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), ApiError> {
        if self.description.len() > DESCRIPTION_BYTES_MAX {
            return Err(ApiError::consumer_description_too_long(DESCRIPTION_BYTES_MAX));
        }
        if metadata_bytes(&self.metadata) > METADATA_BYTES_MAX {
            return Err(ApiError::consumer_metadata_too_large("128KB"));
        }
        Ok(())
    }

    fn check_push(&self, stream: &StreamConfig) -> Result<(), ApiError> {
        let deliver = self.deliver_subject.as_bytes();
        if subject::has_wildcard(deliver) {
            return Err(ApiError::deliver_subject_has_wildcards());
        }
        if !subject::is_valid_literal(deliver) {
            return Err(ApiError::invalid_deliver_subject());
        }
        if stream.subjects.iter().any(|filter| subject::matches(filter.as_bytes(), deliver)) {
            return Err(ApiError::deliver_subject_forms_cycle());
        }
        if self.max_waiting != 0 {
            return Err(ApiError::push_max_waiting());
        }
        if self.max_ack_pending > 0 && self.ack_policy == AckPolicy::None {
            return Err(ApiError::max_ack_pending_without_ack_policy());
        }
        if !self.idle_heartbeat.is_zero() && self.idle_heartbeat < Nanos::from_millis(100) {
            return Err(ApiError::idle_heartbeat_too_small());
        }
        if self.flow_control && self.idle_heartbeat.is_zero() {
            return Err(ApiError::flow_control_without_heartbeat());
        }
        Ok(())
    }

    fn check_flow_control_acks(&self) -> Result<(), ApiError> {
        if !self.is_push() {
            return Err(ApiError::flow_control_ack_requires_push());
        }
        if !self.flow_control {
            return Err(ApiError::flow_control_ack_requires_flow_control());
        }
        if self.idle_heartbeat != FLOW_CONTROL_HEARTBEAT {
            return Err(ApiError::stream_invalid_config("flow control ack policy heartbeat needs to be 1s"));
        }
        if self.max_ack_pending <= 0 {
            return Err(ApiError::flow_control_ack_requires_max_ack_pending());
        }
        if !self.ack_wait.is_zero() || !self.backoff.is_empty() {
            return Err(ApiError::flow_control_ack_requires_no_ack_wait());
        }
        if self.max_deliver > 0 {
            return Err(ApiError::flow_control_ack_requires_no_max_deliver());
        }
        Ok(())
    }

    fn check_pull(&self, stream: &StreamConfig, limits: &ServerLimits) -> Result<(), ApiError> {
        if self.ack_policy == AckPolicy::None && stream.retention == RetentionPolicy::WorkQueue {
            return Err(ApiError::pull_requires_ack_on_workqueue());
        }
        if self.rate_limit_bps > 0 {
            return Err(ApiError::pull_with_rate_limit());
        }
        if !self.idle_heartbeat.is_zero() {
            return Err(ApiError::heartbeat_requires_push());
        }
        if self.flow_control {
            return Err(ApiError::flow_control_requires_push());
        }
        if !self.max_expires.is_zero() && self.max_expires < Nanos::from_millis(1) {
            return Err(ApiError::max_request_expires_too_small());
        }
        if limits.max_request_batch > 0 && self.max_batch > limits.max_request_batch {
            return Err(ApiError::max_request_batch_exceeded(limits.max_request_batch));
        }
        Ok(())
    }

    fn check_bounds(&self, stream: &StreamConfig, limits: &ServerLimits) -> Result<(), ApiError> {
        let bounds = stream.consumer_limits;
        for bound in [limits.max_ack_pending, bounds.max_ack_pending] {
            if bound > 0 && self.max_ack_pending > bound {
                return Err(ApiError::max_ack_pending_exceeded(bound));
            }
        }
        if bounds.inactive_threshold.0 > 0 && self.inactive_threshold > bounds.inactive_threshold {
            let limit = crate::api::duration_text::format_duration(bounds.inactive_threshold);
            return Err(ApiError::inactive_threshold_exceeded(limit));
        }
        Ok(())
    }

    fn check_direct(&self) -> Result<(), ApiError> {
        if self.direct && !self.is_push() {
            return Err(ApiError::direct_requires_push());
        }
        if self.direct && self.is_durable() {
            return Err(ApiError::direct_requires_ephemeral());
        }
        Ok(())
    }

    fn check_filters(&self) -> Result<(), ApiError> {
        if !self.filter_subject.is_empty() && !self.filter_subjects.is_empty() {
            return Err(ApiError::duplicate_filter_subjects());
        }
        for (position, filter) in self.filter_subjects.iter().enumerate() {
            if filter.is_empty() {
                return Err(ApiError::filter_subject_empty());
            }
            if self.filter_subjects[..position]
                .iter()
                .any(|other| subject::collides(filter.as_bytes(), other.as_bytes()))
            {
                return Err(ApiError::filter_subjects_overlap());
            }
        }
        if self.filters().any(|filter| !subject::is_valid_filter(filter.as_bytes())) {
            return Err(ApiError::stream_invalid_config("invalid subject"));
        }
        Ok(())
    }

    fn check_start(&self) -> Result<(), ApiError> {
        let policy = match self.deliver_policy {
            DeliverPolicy::All => "all",
            DeliverPolicy::Last => "last",
            DeliverPolicy::New => "new",
            DeliverPolicy::ByStartSequence => "by start sequence",
            DeliverPolicy::ByStartTime => "by start time",
            DeliverPolicy::LastPerSubject => "last per subject",
        };
        let refuse = |what: &str, how: &str| {
            Err(ApiError::invalid_start_policy(format_args!(
                "consumer delivery policy is deliver {policy}, but optional {what} {how}"
            )))
        };
        let by_sequence = self.deliver_policy == DeliverPolicy::ByStartSequence;
        let by_time = self.deliver_policy == DeliverPolicy::ByStartTime;
        if by_sequence && self.opt_start_seq == 0 {
            return refuse("start sequence", "is not set");
        }
        if by_time && self.opt_start_time.is_none() {
            return refuse("start time", "is not set");
        }
        if !by_sequence && self.opt_start_seq > 0 {
            // The text of nats-server, its slip included.
            return refuse(if by_time { "start start sequence" } else { "start sequence" }, "is also set");
        }
        if !by_time && self.opt_start_time.is_some() {
            return refuse("start time", "is also set");
        }
        if self.deliver_policy == DeliverPolicy::LastPerSubject && self.filters().next().is_none() {
            return refuse("filter subject", "is not set");
        }
        Ok(())
    }

    fn check_sampling(&self) -> Result<(), ApiError> {
        match parse_sampling(&self.sample_freq) {
            Ok(_) => Ok(()),
            Err(why) => Err(ApiError::invalid_sampling(why)),
        }
    }

    fn check_priority(&self) -> Result<(), ApiError> {
        if self.priority_policy == PriorityPolicy::None {
            if !self.priority_groups.is_empty() {
                return Err(ApiError::priority_group_without_policy());
            }
            if !self.priority_timeout.is_zero() {
                return Err(ApiError::priority_timeout_without_policy());
            }
            return Ok(());
        }
        if self.is_push() {
            return Err(ApiError::priority_with_push());
        }
        if self.priority_groups.is_empty() {
            return Err(ApiError::priority_policy_without_group());
        }
        for group in &self.priority_groups {
            if group.is_empty() {
                return Err(ApiError::priority_group_empty());
            }
            check_group_name(group)?;
        }
        Ok(())
    }

    fn check_retention(&self, stream: &StreamConfig) -> Result<(), ApiError> {
        if stream.retention != RetentionPolicy::WorkQueue || self.direct {
            return Ok(());
        }
        if !matches!(self.ack_policy, AckPolicy::Explicit | AckPolicy::FlowControl) {
            return Err(ApiError::workqueue_requires_explicit_ack());
        }
        if self.deliver_policy != DeliverPolicy::All && !self.sourcing {
            return Err(ApiError::workqueue_requires_deliver_all());
        }
        Ok(())
    }
}

/// Refuses what can not be the name of a priority group.
pub fn check_group_name(group: &str) -> Result<(), ApiError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_=-".contains(&byte);
    let is_good = (1..=16).contains(&group.len()) && group.bytes().all(is_allowed);
    if is_good { Ok(()) } else { Err(ApiError::priority_group_invalid()) }
}

/// The share of acks that are sampled, in percent; `Err` says why the text is none.
pub fn parse_sampling(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.strip_suffix('%').unwrap_or(text);
    match digits.parse::<i64>() {
        Ok(percent) => u32::try_from(percent).map_err(|_| format!("sampling rate {percent} is out of range")),
        Err(error) => {
            let why = match error.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                    "value out of range"
                }
                _ => "invalid syntax",
            };
            Err(format!("strconv.Atoi: parsing {digits:?}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests;
