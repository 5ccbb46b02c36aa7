//! A stream's configuration: what is filled in, and what is refused for what the configuration itself says.
//!
//! Rules that compare with other streams, with the cluster, or with the configuration before an update, are not
//! here. Checking twice changes nothing more, so a node may check what the leader has checked before.

mod origins;

use std::collections::BTreeMap;

use crate::api::duration_text::format_duration;
use crate::api::error::ApiError;
use crate::api::stream_config::{
    DiscardPolicy, PersistMode, Placement, RetentionPolicy, StorageType, StreamConfig, SubjectTransform,
};
use crate::ids::{InvalidName, StreamName};
use crate::subject::{self, InvalidTransform, Transform};
use crate::time::Nanos;

/// Most bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Most bytes of all keys and values of metadata.
pub const METADATA_BYTES_MAX: usize = 128 * 1024;
/// Most replicas.
pub const REPLICAS_MAX: i32 = 5;
/// How long message ids are remembered unless configured.
pub const DUPLICATE_WINDOW_DEFAULT: Nanos = Nanos::from_secs(120);

/// Consumers of a stream that does not bound them itself, unless configured.
pub const CONSUMERS_MAX_DEFAULT: i64 = 1000;

const SHORTEST: Nanos = Nanos::from_millis(100);

/// Bounds that a server sets for everybody; zero is no bound.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServerLimits {
    /// Longest duplicate window.
    pub duplicate_window_max: Nanos,
    /// Largest `max_ack_pending` of consumers.
    pub max_ack_pending: i64,
    /// Largest batch of a pull request.
    pub max_request_batch: i64,
    /// Consumers of a stream that does not bound them itself: 0 is [`CONSUMERS_MAX_DEFAULT`], less is no bound.
    pub default_max_consumers: i64,
}

/// The bound that [`ServerLimits::default_max_consumers`] means.
#[must_use]
pub const fn consumers_max(default_max_consumers: i64) -> i64 {
    if default_max_consumers == 0 { CONSUMERS_MAX_DEFAULT } else { default_max_consumers }
}

/// What to do with values that can be made right.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Adjust {
    /// Make them right.
    #[default]
    Silently,
    /// Refuse them with 10157: the request was pedantic.
    Refuse,
}

impl Adjust {
    /// The mode a request asks for.
    #[must_use]
    pub const fn from_pedantic(pedantic: bool) -> Self {
        if pedantic { Self::Refuse } else { Self::Silently }
    }

    /// Fails with `reason` when nothing may be adjusted.
    pub(crate) fn allow(self, reason: &str) -> Result<(), ApiError> {
        match self {
            Self::Silently => Ok(()),
            Self::Refuse => Err(ApiError::pedantic(reason)),
        }
    }

    /// The same with the code of an invalid configuration, which is what nats-server gives for permissions.
    fn permit(self, reason: &str) -> Result<(), ApiError> {
        match self {
            Self::Silently => Ok(()),
            Self::Refuse => refuse(reason),
        }
    }
}

/// Fills in defaults and checks the configuration of a stream to create.
pub fn validate_create(
    config: &mut StreamConfig,
    limits: &ServerLimits,
    adjust: Adjust,
) -> Result<(), ApiError> {
    check(config, limits, adjust)?;
    if config.sealed {
        return refuse("stream configuration for create can not be sealed");
    }
    Ok(())
}

/// Fills in defaults and checks the configuration of a stream that is made of an archive. It may be sealed.
pub fn validate_restored(config: &mut StreamConfig, limits: &ServerLimits) -> Result<(), ApiError> {
    check(config, limits, Adjust::Silently)
}

/// Fills in defaults and checks the new configuration of an existing stream. What sealing implies is added when it is
/// compared with the one in force.
pub fn validate_update(
    config: &mut StreamConfig,
    limits: &ServerLimits,
    adjust: Adjust,
) -> Result<(), ApiError> {
    check(config, limits, adjust)
}

impl StreamConfig {
    /// Whether the name in the subject of a request is the one in its body, and one that a stream can have.
    pub fn check_subject_name(&self, name_in_subject: &str) -> Result<(), ApiError> {
        if self.name != name_in_subject {
            return Err(ApiError::stream_mismatch());
        }
        if self.name.contains(['/', '\\']) {
            return Err(ApiError::stream_name_path_separators());
        }
        Ok(())
    }
}

fn refuse<T>(why: impl std::fmt::Display) -> Result<T, ApiError> {
    Err(ApiError::stream_invalid_config(why))
}

fn check(config: &mut StreamConfig, limits: &ServerLimits, adjust: Adjust) -> Result<(), ApiError> {
    check_texts(config)?;
    fill_numbers(config, adjust)?;
    check_times(config, limits, adjust)?;
    check_permissions(config, adjust)?;
    check_features(config, adjust)?;
    origins::check_mirror(config)?;
    origins::check_sources(config)?;
    check_subjects(config)
}

/// A name that is missing or is not one.
#[must_use]
pub fn name_required() -> ApiError {
    ApiError::stream_invalid_config(r"stream name is required and can not contain '.', '*', '>', '\', '/'")
}

fn check_texts(config: &StreamConfig) -> Result<(), ApiError> {
    match StreamName::parse(&config.name) {
        Ok(_) => {}
        Err(InvalidName::TooLong) => return refuse("stream name is too long, maximum allowed is 255"),
        Err(InvalidName::Empty | InvalidName::Character | InvalidName::PathSeparator) => {
            return Err(name_required());
        }
    }
    if config.description.len() > DESCRIPTION_BYTES_MAX {
        return refuse("stream description is too long, maximum allowed is 4096");
    }
    if metadata_bytes(&config.metadata) > METADATA_BYTES_MAX {
        return refuse("stream metadata exceeds maximum size of 131072 bytes");
    }
    Ok(())
}

pub(crate) fn metadata_bytes(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn fill_numbers(config: &mut StreamConfig, adjust: Adjust) -> Result<(), ApiError> {
    match config.num_replicas {
        0 => config.num_replicas = 1,
        ..0 => return Err(ApiError::replicas_negative()),
        1..=REPLICAS_MAX => {}
        _ => return refuse("maximum replicas is 5"),
    }
    let max_msg_size = &mut i64::from(config.max_msg_size);
    for (name, limit) in [
        ("max_msgs", &mut config.max_msgs),
        ("max_msgs_per_subject", &mut config.max_msgs_per_subject),
        ("max_bytes", &mut config.max_bytes),
        ("max_msg_size", &mut *max_msg_size),
        ("max_consumers", &mut config.max_consumers),
    ] {
        if *limit < -1 {
            adjust.allow(&format!("{name} must be set to -1"))?;
        }
        if *limit <= 0 {
            *limit = -1;
        }
    }
    config.max_msg_size = i32::try_from(*max_msg_size).expect("it was an i32 or is -1");
    Ok(())
}

fn check_times(config: &mut StreamConfig, limits: &ServerLimits, adjust: Adjust) -> Result<(), ApiError> {
    if config.max_age.0 < 0 {
        return refuse("max age can not be negative");
    }
    if config.max_age.0 > 0 && config.max_age < SHORTEST {
        return refuse("max age needs to be >= 100ms");
    }
    let longest = limits.duplicate_window_max;
    if config.duplicate_window.is_zero() && config.mirror.is_none() && config.sources.is_empty() {
        if config.max_age.0 > 0 && config.max_age < DUPLICATE_WINDOW_DEFAULT {
            adjust.allow("duplicate window cannot be bigger than max age")?;
        }
        let bounds = [config.max_age, longest].into_iter().filter(|bound| bound.0 > 0);
        config.duplicate_window = bounds.fold(DUPLICATE_WINDOW_DEFAULT, Nanos::min);
    }
    let window = config.duplicate_window;
    if window.0 < 0 {
        return refuse("duplicates window can not be negative");
    }
    if config.max_age.0 > 0 && window > config.max_age {
        return refuse("duplicates window can not be larger then max age");
    }
    if longest.0 > 0 && window > longest {
        return refuse(format_args!(
            "duplicates window can not be larger then server limit of {}",
            format_duration(longest)
        ));
    }
    if window.0 > 0 && window < SHORTEST {
        return refuse("duplicates window needs to be >= 100ms");
    }
    Ok(())
}

fn check_permissions(config: &mut StreamConfig, adjust: Adjust) -> Result<(), ApiError> {
    let marker = config.subject_delete_marker_ttl;
    if !marker.is_zero() {
        if marker.0 < 0 {
            return refuse("subject delete marker TTL must not be negative");
        }
        if marker < Nanos::from_secs(1) {
            return refuse("subject delete marker TTL must be at least 1 second");
        }
        if !config.allow_msg_ttl {
            adjust.permit("subject delete marker cannot be set if message TTLs are disabled")?;
            config.allow_msg_ttl = true;
        }
        if !config.allow_rollup_hdrs {
            adjust.permit("subject delete marker cannot be set if roll-ups are disabled")?;
            config.allow_rollup_hdrs = true;
        }
        // Where nothing is adjusted, the contradiction to roll-ups is refused below.
        config.deny_purge &= adjust == Adjust::Refuse;
    }
    if config.allow_msg_schedules && !config.allow_rollup_hdrs {
        adjust.permit("message scheduling cannot be set if roll-ups are disabled")?;
        config.allow_rollup_hdrs = true;
    }
    if config.allow_msg_schedules {
        config.deny_purge &= adjust == Adjust::Refuse;
    }
    if config.deny_purge && config.allow_rollup_hdrs {
        return refuse("roll-ups require the purge permission");
    }
    if config.discard_new_per_subject {
        if config.discard != DiscardPolicy::New {
            return refuse("discard new per subject requires discard new policy to be set");
        }
        if config.max_msgs_per_subject <= 0 {
            return refuse("discard new per subject requires max msgs per subject > 0");
        }
    }
    if config.mirror_direct && config.mirror.is_none() {
        return refuse("stream has no mirror but does have mirror direct");
    }
    if config.placement == Some(Placement::default()) {
        config.placement = None;
    }
    if config.placement.as_ref().is_some_and(|placement| !placement.preferred.is_empty()) {
        return refuse("preferred server not permitted in placement");
    }
    Ok(())
}

fn check_features(config: &mut StreamConfig, adjust: Adjust) -> Result<(), ApiError> {
    let discards_new = config.discard == DiscardPolicy::New;
    if config.allow_msg_counter {
        if discards_new {
            return refuse("counter stream cannot use discard new");
        }
        if config.allow_msg_ttl {
            return refuse("counter stream cannot use message TTLs");
        }
        if config.allow_msg_schedules {
            return refuse("counter stream cannot use message schedules");
        }
        if config.retention != RetentionPolicy::Limits {
            return refuse("counter stream can only use limits retention");
        }
    }
    if config.allow_msg_schedules && discards_new {
        return refuse("message scheduling cannot use discard new");
    }
    if config.persist_mode == PersistMode::Async {
        if config.storage != StorageType::File {
            return refuse("async persist mode is only supported on file storage");
        }
        if config.num_replicas > 1 {
            return refuse("async persist mode is not supported on replicated streams");
        }
        if config.allow_atomic {
            return refuse("async persist mode is not supported with atomic batch publish");
        }
    }
    if let Some(SubjectTransform { src, dest }) = &config.subject_transform
        && !dest.is_empty()
    {
        match Transform::parse(src, dest) {
            Ok(_) => {}
            Err(error @ InvalidTransform::Source(_)) => return Err(ApiError::stream_transform_source(error)),
            Err(error) => return Err(ApiError::stream_transform(error)),
        }
    }
    if let Some(republish) = &mut config.republish {
        if republish.src.is_empty() {
            adjust.allow("republish source can not be empty")?;
            ">".clone_into(&mut republish.src);
        }
        let destination = placeholders_as_wildcards(&republish.dest);
        if config.subjects.iter().any(|subject| subject::collides(subject.as_bytes(), destination.as_bytes()))
        {
            return refuse("stream configuration for republish destination forms a cycle");
        }
        if !republish.dest.is_empty() && Transform::parse(&republish.src, &republish.dest).is_err() {
            return refuse(format_args!(
                "stream configuration for republish with transform from '{}' to '{}' not valid",
                republish.src, republish.dest
            ));
        }
    }
    Ok(())
}

/// `a.{{wildcard(1)}}` as the filter of everything it can become.
fn placeholders_as_wildcards(destination: &str) -> String {
    let stands_for_others = |token: &str| {
        token.contains("{{") || token.strip_prefix('$').is_some_and(|number| number.parse::<usize>().is_ok())
    };
    let tokens = destination.split('.').map(|token| if stands_for_others(token) { "*" } else { token });
    tokens.collect::<Vec<_>>().join(".")
}

fn check_subjects(config: &mut StreamConfig) -> Result<(), ApiError> {
    if config.subjects.is_empty() && config.mirror.is_none() && config.sources.is_empty() {
        config.subjects.push(config.name.clone());
    }
    for (position, one) in config.subjects.iter().enumerate() {
        for other in &config.subjects[position + 1..] {
            if subject::collides(one.as_bytes(), other.as_bytes()) {
                return refuse(format_args!("subject {one:?} overlaps with {other:?}"));
            }
        }
    }
    for filter in &config.subjects {
        let filter = filter.as_bytes();
        if !subject::is_valid_filter(filter) {
            return refuse("invalid subject");
        }
        if filter == b">" {
            if !config.no_ack {
                return refuse("capturing all subjects requires no-ack to be true");
            }
            if config.num_replicas != 1 {
                return refuse("capturing all subjects requires replicas of 1");
            }
        }
        if config.no_ack {
            continue;
        }
        // An ack would be an answer to what the server itself sends there.
        let is_api = [&b"$JS.>"[..], b"$JSC.>", b"$NRG.>"].iter().any(|api| subject::collides(filter, api));
        if is_api && !subject::is_subset(filter, b"$JS.EVENT.>") {
            return refuse("subjects that overlap with jetstream api require no-ack to be true");
        }
        if subject::collides(filter, b"$SYS.>") && !subject::is_subset(filter, b"$SYS.ACCOUNT.>") {
            return refuse("subjects that overlap with system api require no-ack to be true");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
