//! What a configuration says of the streams that it mirrors or sources. The order of the checks is nats-server's.

use crate::api::error::ApiError;
use crate::api::stream_config::{ExternalStream, SourceConsumer, StreamConfig, StreamSource};
use crate::ids::{ConsumerName, StreamName};
use crate::subject::{self, InvalidTransform, Transform};

pub(super) fn check_mirror(config: &StreamConfig) -> Result<(), ApiError> {
    let Some(mirror) = &config.mirror else { return Ok(()) };
    if config.first_seq > 0 {
        return Err(ApiError::mirror_with_first_seq());
    }
    if !config.subjects.is_empty() {
        return Err(ApiError::mirror_with_subjects());
    }
    if !config.sources.is_empty() {
        return Err(ApiError::mirror_with_sources());
    }
    if config.allow_msg_counter {
        return Err(ApiError::mirror_with_counters());
    }
    if config.allow_msg_schedules {
        return Err(ApiError::mirror_with_schedules());
    }
    if config.allow_atomic {
        return Err(ApiError::mirror_with_atomic());
    }
    if config.allow_batched {
        return Err(ApiError::mirror_with_batch());
    }
    if !consumer_is_sound(mirror) {
        return Err(ApiError::mirror_consumer_invalid());
    }
    if !config.subject_delete_marker_ttl.is_zero() {
        return Err(ApiError::stream_invalid_config("subject delete markers forbidden on mirrors"));
    }
    if !mirror.filter_subject.is_empty() && !mirror.subject_transforms.is_empty() {
        return Err(ApiError::mirror_filter_and_transforms());
    }
    check_transforms(mirror).map_err(|wrong| match wrong {
        Wrong::Source(error) => ApiError::mirror_transform_source(error),
        Wrong::Destination(error) => ApiError::mirror_transform(words(&error)),
        Wrong::Overlap => ApiError::mirror_filters_overlap(),
    })?;
    if mirror.external.is_none() && StreamName::parse(&mirror.name).is_err() {
        return Err(ApiError::mirror_name_invalid());
    }
    check_cycle(config, mirror)?;
    check_external(mirror.external.as_ref())?;
    check_filter(mirror, "the mirror")
}

pub(super) fn check_sources(config: &StreamConfig) -> Result<(), ApiError> {
    if !config.sources.is_empty() && config.allow_msg_schedules {
        return Err(ApiError::source_with_schedules());
    }
    for (position, source) in config.sources.iter().enumerate() {
        let key = source.key();
        if config.sources[..position].iter().any(|other| other.key() == key) {
            return Err(ApiError::source_duplicate());
        }
        if source.external.is_none() && StreamName::parse(&source.name).is_err() {
            return Err(ApiError::source_name_invalid());
        }
        if !source.filter_subject.is_empty() && !source.subject_transforms.is_empty() {
            return Err(ApiError::source_filter_and_transforms());
        }
        check_transforms(source).map_err(|wrong| match wrong {
            Wrong::Source(error) => ApiError::source_transform_source(error),
            Wrong::Destination(error) => ApiError::source_transform(words(&error)),
            Wrong::Overlap => ApiError::source_filters_overlap(),
        })?;
        if !consumer_is_sound(source) {
            return Err(ApiError::source_consumer_invalid());
        }
        if shares_consumer(source, &config.sources[..position]) {
            return Err(ApiError::source_consumer_duplicate());
        }
        check_cycle(config, source)?;
        check_external(source.external.as_ref())?;
        check_filter(source, "the source:")?;
    }
    Ok(())
}

/// What is said of a destination: here nats-server does not tell the number that is out of range.
fn words(error: &InvalidTransform) -> String {
    match error {
        InvalidTransform::OutOfRange(token, _) => {
            format!("invalid mapping destination: wildcard index out of range in {token}")
        }
        other => other.to_string(),
    }
}

/// What is wrong with the transforms of an origin.
enum Wrong {
    Source(InvalidTransform),
    Destination(InvalidTransform),
    Overlap,
}

fn check_transforms(origin: &StreamSource) -> Result<(), Wrong> {
    let transforms = &origin.subject_transforms;
    for (position, one) in transforms.iter().enumerate() {
        if !one.src.is_empty() && !subject::is_valid_filter(one.src.as_bytes()) {
            return Err(Wrong::Source(InvalidTransform::Source(one.src.clone())));
        }
        if !one.dest.is_empty() {
            Transform::parse(&one.src, &one.dest).map_err(Wrong::Destination)?;
        }
        let others = transforms.iter().enumerate().filter(|(other, _)| *other != position);
        let overlaps = |other: &str| {
            !one.src.is_empty()
                && !other.is_empty()
                && subject::collides(one.src.as_bytes(), other.as_bytes())
        };
        if others.into_iter().any(|(_, other)| overlaps(&other.src)) {
            return Err(Wrong::Overlap);
        }
    }
    Ok(())
}

fn check_cycle(config: &StreamConfig, origin: &StreamSource) -> Result<(), ApiError> {
    if origin.external.is_none() && origin.name == config.name {
        return Err(ApiError::stream_invalid_config("detected cycle"));
    }
    Ok(())
}

fn check_external(external: Option<&ExternalStream>) -> Result<(), ApiError> {
    let Some(ExternalStream { api, deliver }) = external else { return Ok(()) };
    let is_subject = |text: &str| text.is_empty() || subject::Subject::parse(text).is_ok();
    if !is_subject(deliver) {
        return Err(ApiError::external_deliver_prefix_wildcards(deliver));
    }
    if !is_subject(api) {
        return Err(ApiError::stream_invalid_config(format_args!(
            "stream external api prefix {api:?} must be a valid subject without wildcards"
        )));
    }
    Ok(())
}

fn check_filter(origin: &StreamSource, whose: &str) -> Result<(), ApiError> {
    let filter = &origin.filter_subject;
    if !filter.is_empty() && !subject::is_valid_filter(filter.as_bytes()) {
        return Err(ApiError::stream_create_failed(format_args!(
            "subject filter '{filter}' for {whose} invalid subject"
        )));
    }
    Ok(())
}

/// A consumer that the owner made says itself where to begin and what is read. What subjects become is another thing.
fn consumer_is_sound(origin: &StreamSource) -> bool {
    let Some(SourceConsumer { name, deliver_subject }) = &origin.consumer else { return true };
    ConsumerName::parse(name).is_ok()
        && subject::Subject::parse(deliver_subject).is_ok()
        && origin.opt_start_seq == 0
        && origin.opt_start_time.is_none()
        && origin.filter_subject.is_empty()
}

/// A consumer has one reader.
fn shares_consumer(source: &StreamSource, others: &[StreamSource]) -> bool {
    let Some(consumer) = &source.consumer else { return false };
    others.iter().any(|other| {
        let is_same = other.consumer.as_ref().is_some_and(|known| known.name == consumer.name);
        is_same && other.full_name() == source.full_name()
    })
}
