//! Which fields of a stream's configuration may change, and how.
//!
//! Meta decides an update with these rules, once; the stream's own log then adopts the result at one position, so
//! that limits change at the same message on every replica.

use levee_protocol::api::{ApiError, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig};
use levee_protocol::time::Nanos;

/// Checks a new configuration, with defaults filled in, against the one in force, and makes the changes that it
/// implies. The order of the checks is nats-server's.
pub fn check_update(old: &StreamConfig, new: &mut StreamConfig) -> Result<(), ApiError> {
    let refuse = |why| Err(ApiError::stream_invalid_config(why));
    if new.name != old.name {
        return refuse("stream configuration name must match original");
    }
    if new.storage != old.storage {
        return refuse("stream configuration update can not change storage type");
    }
    let from_or_to_work_queue = [old.retention, new.retention].contains(&RetentionPolicy::WorkQueue);
    if new.retention != old.retention && from_or_to_work_queue {
        return refuse("stream configuration update can not change retention policy to/from workqueue");
    }
    if old.sealed && !new.sealed {
        return refuse("stream configuration update can not unseal a sealed stream");
    }
    if old.deny_delete && !new.deny_delete {
        return refuse("stream configuration update can not cancel deny message deletes");
    }
    if old.deny_purge && !new.deny_purge {
        return refuse("stream configuration update can not cancel deny purge");
    }
    if new.mirror.is_some() && new.mirror != old.mirror {
        return Err(ApiError::mirror_not_updatable());
    }
    if old.allow_msg_counter != new.allow_msg_counter {
        return refuse("stream configuration update can not change message counter setting");
    }
    if old.allow_msg_ttl && !new.allow_msg_ttl {
        return refuse("message TTL status can not be disabled");
    }
    if old.allow_msg_schedules && !new.allow_msg_schedules {
        return refuse("message schedules can not be disabled");
    }
    if old.persist_mode != new.persist_mode {
        return refuse("stream configuration update can not change persist mode");
    }
    // Who asks for nothing any more may stay.
    let is_placed_anew = new.placement.is_some() && old.placement != new.placement;
    if old.num_replicas != new.num_replicas && is_placed_anew {
        return Err(ApiError::move_and_scale());
    }
    if new.sealed {
        seal(new);
    }
    Ok(())
}

/// What a sealed stream is: nothing comes, nothing goes.
fn seal(config: &mut StreamConfig) {
    config.max_age = Nanos::ZERO;
    config.discard = DiscardPolicy::New;
    config.deny_delete = true;
    config.deny_purge = true;
    config.allow_rollup_hdrs = false;
}

/// Whether bounds for consumers would be violated by consumers that exist. Known only to the stream itself, so it is
/// asked for them before an update goes to meta.
pub fn check_consumer_limits<'a>(
    new: &StreamConfig,
    consumers: impl Iterator<Item = &'a ConsumerConfig>,
) -> Result<(), ApiError> {
    let limits = &new.consumer_limits;
    let violates = |config: &&ConsumerConfig| {
        let inactive =
            limits.inactive_threshold.0 > 0 && config.inactive_threshold > limits.inactive_threshold;
        // nats-server lets those be that have no bound at all.
        let unacked = limits.max_ack_pending > 0 && config.max_ack_pending > limits.max_ack_pending;
        inactive || unacked
    };
    let violating: Vec<&str> = consumers.filter(violates).map(|config| config.name.as_str()).collect();
    if violating.is_empty() {
        return Ok(());
    }
    Err(ApiError::stream_update_failed(format_args!(
        "change to limits violates consumers: {}",
        violating.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::{StorageType, StreamSource};

    use super::*;

    /// Starts from a configuration, changes it one way, and says what came of it.
    fn update(
        from: impl FnOnce(&mut StreamConfig),
        to: impl FnOnce(&mut StreamConfig),
    ) -> Result<StreamConfig, String> {
        let mut old = StreamConfig { name: "S".into(), num_replicas: 1, ..StreamConfig::default() };
        from(&mut old);
        let mut new = old.clone();
        to(&mut new);
        check_update(&old, &mut new).map(|()| new).map_err(|error| error.description)
    }

    #[test]
    fn what_may_not_change_is_refused_in_the_words_of_nats() {
        let refused = |from: fn(&mut StreamConfig), to: fn(&mut StreamConfig), words: &str| {
            assert_eq!(update(from, to).unwrap_err(), words);
        };

        refused(|_| {}, |c| c.name = "T".into(), "stream configuration name must match original");
        refused(
            |_| {},
            |c| c.storage = StorageType::Memory,
            "stream configuration update can not change storage type",
        );
        refused(
            |_| {},
            |c| c.retention = RetentionPolicy::WorkQueue,
            "stream configuration update can not change retention policy to/from workqueue",
        );
        refused(
            |c| c.sealed = true,
            |c| c.sealed = false,
            "stream configuration update can not unseal a sealed stream",
        );
        refused(
            |c| c.deny_delete = true,
            |c| c.deny_delete = false,
            "stream configuration update can not cancel deny message deletes",
        );
        refused(
            |c| c.deny_purge = true,
            |c| c.deny_purge = false,
            "stream configuration update can not cancel deny purge",
        );
        refused(
            |_| {},
            |c| c.mirror = Some(StreamSource::default()),
            "stream mirror configuration can not be updated",
        );
        refused(
            |c| c.allow_msg_ttl = true,
            |c| c.allow_msg_ttl = false,
            "message TTL status can not be disabled",
        );
        refused(
            |c| c.num_replicas = 1,
            |c| {
                c.num_replicas = 3;
                c.placement = Some(levee_protocol::api::Placement::default());
            },
            "can not move and scale a stream in a single update",
        );
    }

    #[test]
    fn bounds_for_consumers_hold_for_those_that_exist() {
        let consumer = |name: &str, max_ack_pending, inactive_threshold| ConsumerConfig {
            name: name.into(),
            max_ack_pending,
            inactive_threshold: Nanos::from_secs(inactive_threshold),
            ..ConsumerConfig::default()
        };
        let consumers = [consumer("a", 500, 10), consumer("b", -1, 0), consumer("c", 0, 30)];
        let check = |max_ack_pending, inactive_threshold, violating: Option<&str>| {
            let mut config = StreamConfig::default();
            config.consumer_limits.max_ack_pending = max_ack_pending;
            config.consumer_limits.inactive_threshold = Nanos::from_secs(inactive_threshold);
            let error = check_consumer_limits(&config, consumers.iter()).err();
            let words = violating.map(|names| format!("change to limits violates consumers: {names}"));
            assert_eq!(error.as_ref().map(|error| error.description.to_string()), words);
            assert!(error.is_none_or(|error| error.err_code == 10069));
        };

        check(0, 0, None);
        check(500, 30, None);
        check(100, 0, Some("a"));
        check(100, 10, Some("a, c"));
        check(-5, -5, None);
    }

    #[test]
    fn limits_subjects_and_replicas_may_change_and_a_mirror_may_become_a_stream() {
        assert!(update(|_| {}, |c| c.max_msgs = 5).is_ok());
        assert!(update(|_| {}, |c| c.retention = RetentionPolicy::Interest).is_ok());
        assert!(update(|_| {}, |c| c.num_replicas = 3).is_ok());
        assert!(update(|_| {}, |c| c.subjects = vec!["b".into()]).is_ok());
        assert!(update(|c| c.mirror = Some(StreamSource::default()), |c| c.mirror = None).is_ok());
    }

    #[test]
    fn sealing_shuts_every_way_in_and_out() {
        let sealed = update(
            |c| {
                c.max_age = Nanos::from_secs(1);
                c.allow_rollup_hdrs = true;
            },
            |c| c.sealed = true,
        )
        .unwrap();

        assert_eq!(sealed.max_age, Nanos::ZERO);
        assert_eq!(sealed.discard, DiscardPolicy::New);
        assert!(sealed.deny_delete && sealed.deny_purge && !sealed.allow_rollup_hdrs);
    }
}
