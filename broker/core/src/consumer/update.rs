//! Create or update a consumer: what may change, and the rules between the consumers of one stream.
//!
//! What a configuration says about itself is checked in `protocol`. A rule that needs to know who is connected (a
//! deliver subject changes only while nobody is bound) is for the leader, before it proposes.

use std::collections::BTreeMap;

use levee_protocol::api::stream_check::{Adjust, ServerLimits, consumers_max};
use levee_protocol::api::{ApiError, ConsumerConfig, ConsumerCreateAction, RetentionPolicy, StreamConfig};
use levee_protocol::ids::ConsumerName;
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;

use crate::consumer::ledger::{Ledger, parse_filters};
use crate::consumer::source::Source;
use crate::consumer::start::starting_marks;
use crate::stream::{MessageView, ReadFailed};

/// A request to create or update a consumer.
#[derive(Clone, Copy, Debug)]
pub struct CreateRequest<'a> {
    /// Its name.
    pub name: &'a ConsumerName,
    /// Its configuration as requested, before defaults.
    pub config: &'a ConsumerConfig,
    /// Create only, update only, or either.
    pub action: ConsumerCreateAction,
    /// Consumers of a stream that does not bound them itself, as in `ServerLimits`.
    pub default_max: i64,
    /// The log index of the command.
    pub log_index: u64,
    /// The time of the command.
    pub now: Timestamp,
}

/// What a request leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Creation {
    /// A new consumer, to be kept under its name.
    Created(Box<Ledger>),
    /// The existing consumer takes on this configuration, by [`Ledger::update`].
    Updated(Box<ConsumerConfig>),
    /// The consumer exists with just this configuration.
    Unchanged,
    /// Refused by a rule.
    Rejected(ApiError),
}

/// Decides on a request, given all consumers of the stream.
pub fn create_or_update(
    request: CreateRequest<'_>,
    consumers: &BTreeMap<ConsumerName, Ledger>,
    stream: &dyn Source,
    view: &dyn MessageView,
) -> Result<Creation, ReadFailed> {
    let existing = consumers.get(request.name);
    let config = match check(request, existing, consumers, stream) {
        Ok(config) => config,
        Err(error) => return Ok(Creation::Rejected(error)),
    };
    if let Some(existing) = existing {
        let unchanged = existing.config == config;
        return Ok(if unchanged { Creation::Unchanged } else { Creation::Updated(Box::new(config)) });
    }
    let filters = parse_filters(&config);
    let marks = starting_marks(&config, &filters, stream, view)?;
    Ok(Creation::Created(Box::new(Ledger {
        name: request.name.clone(),
        config,
        filters,
        created: request.now,
        began: request.now,
        incarnation: request.log_index,
        marks,
    })))
}

fn check(
    request: CreateRequest<'_>,
    existing: Option<&Ledger>,
    consumers: &BTreeMap<ConsumerName, Ledger>,
    stream: &dyn Source,
) -> Result<ConsumerConfig, ApiError> {
    let stream_config = stream.config().ok_or_else(ApiError::stream_not_found)?;
    let mut config = request.config.clone();
    // The leader has checked with its own limits before it proposed; those of the request itself hold everywhere.
    config.apply_defaults_and_validate(stream_config, &ServerLimits::default(), Adjust::Silently)?;
    // Readers of other streams are made by this stream's leader, for itself: nothing is delivered to them.
    if !config.sourcing
        && let Some(feature) = config.unsupported_yet()
    {
        return Err(ApiError::consumer_create_failed(format_args!("{feature} are not supported yet")));
    }
    if let Some(existing) = existing {
        config.pause_until = existing.config.pause_until;
    }
    config.store_metadata();
    match (existing, request.action) {
        (Some(existing), ConsumerCreateAction::Create) if existing.config != config => {
            return Err(ApiError::consumer_already_exists());
        }
        (Some(existing), _) => {
            check_changes(&existing.config, &config)?;
            check_extensions(existing, &config)?;
        }
        (None, ConsumerCreateAction::Update) => return Err(ApiError::consumer_does_not_exist()),
        (None, _) => check_room(&config, consumers, stream_config, request.default_max)?,
    }
    if stream_config.retention == RetentionPolicy::WorkQueue && !config.direct {
        check_work_queue(request.name, &config, consumers)?;
    }
    Ok(config)
}

/// Which fields may change, in the order and with the words of NATS.
fn check_changes(old: &ConsumerConfig, new: &ConsumerConfig) -> Result<(), ApiError> {
    let fixed =
        |field: &str| Err(ApiError::consumer_create_failed(format_args!("{field} can not be updated")));
    if old.deliver_policy != new.deliver_policy {
        return fixed("deliver policy");
    }
    if old.opt_start_seq != new.opt_start_seq {
        return fixed("start sequence");
    }
    if old.opt_start_time != new.opt_start_time {
        return fixed("start time");
    }
    if old.ack_policy != new.ack_policy {
        return fixed("ack policy");
    }
    if old.replay_policy != new.replay_policy {
        return fixed("replay policy");
    }
    if old.idle_heartbeat != new.idle_heartbeat {
        return fixed("heart beats");
    }
    if old.flow_control != new.flow_control {
        return fixed("flow control");
    }
    if old.is_push() != new.is_push() {
        let change =
            if new.is_push() { "pull consumer to push based" } else { "push consumer to pull based" };
        return Err(ApiError::consumer_create_failed(format_args!("can not update {change}")));
    }
    if old.max_waiting != new.max_waiting {
        return fixed("max waiting");
    }
    if old.mem_storage != new.mem_storage {
        return fixed("storage type");
    }
    if old.direct != new.direct {
        return fixed("direct");
    }
    if old.sourcing != new.sourcing {
        return fixed("sourcing");
    }
    if old.is_durable() != new.is_durable() {
        return Err(ApiError::consumer_name_in_use());
    }
    Ok(())
}

/// Which extensions may change. What is in flight must not fall out of the rule that it was delivered by.
fn check_extensions(existing: &Ledger, new: &ConsumerConfig) -> Result<(), ApiError> {
    let (old, new) = (existing.config.extensions().unwrap_or_default(), new.extensions()?);
    if old.key != new.key {
        let why = "metadata levee.key can not be updated: create another consumer";
        return Err(ApiError::consumer_extension_invalid(why));
    }
    let waiting = existing.marks.num_dead();
    if new.dead_letter.is_none() && waiting > 0 {
        return Err(ApiError::consumer_extension_invalid(format_args!(
            "metadata levee.dead_letter can not be removed while {waiting} dead letters wait to be stored: give them a \
             subject that a stream captures"
        )));
    }
    Ok(())
}

fn check_room(
    config: &ConsumerConfig,
    consumers: &BTreeMap<ConsumerName, Ledger>,
    stream: &StreamConfig,
    default_max: i64,
) -> Result<(), ApiError> {
    if config.direct {
        return Ok(());
    }
    let max = if stream.max_consumers > 0 { stream.max_consumers } else { consumers_max(default_max) };
    let Ok(max) = usize::try_from(max) else { return Ok(()) };
    let count = consumers.values().filter(|ledger| !ledger.config.direct).count();
    if count >= max { Err(ApiError::maximum_consumers_reached()) } else { Ok(()) }
}

/// Every message of a work queue has exactly one consumer.
fn check_work_queue(
    name: &ConsumerName,
    config: &ConsumerConfig,
    consumers: &BTreeMap<ConsumerName, Ledger>,
) -> Result<(), ApiError> {
    let filters = parse_filters(config);
    let mut others =
        consumers.values().filter(|other| other.name != *name && !other.config.direct).peekable();
    if others.peek().is_some() && filters.is_empty() {
        return Err(ApiError::workqueue_multiple_unfiltered());
    }
    if others.any(|other| other.filters.is_empty() || collide(&other.filters, &filters)) {
        return Err(ApiError::workqueue_filter_not_unique());
    }
    Ok(())
}

fn collide(one: &[Filter], other: &[Filter]) -> bool {
    one.iter().any(|filter| other.iter().any(|other| filter.collides(other)))
}
