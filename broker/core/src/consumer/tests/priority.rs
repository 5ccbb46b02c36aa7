//! Priority groups: who gets which message, and what the others hear.

use levee_protocol::api::PriorityPolicy;

use super::*;

fn grouped(policy: PriorityPolicy) -> ConsumerConfig {
    ConsumerConfig {
        priority_policy: policy,
        priority_groups: vec!["g".into()],
        priority_timeout: Nanos::from_secs(10),
        ..explicit()
    }
}

fn ask(batch: i64) -> PullRequest {
    PullRequest { batch, group: "g".into(), ..PullRequest::default() }
}

fn plain() -> PullRequest {
    PullRequest { is_plain: true, ..PullRequest::default() }
}

#[test]
fn a_request_with_a_bound_waits_until_enough_is_pending() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::Overflow));

    assert_eq!(world.pull(PullRequest { min_pending: 7, ..ask(2) }), [""; 0]);
    assert_eq!(world.pull_from("other", ask(1)), ["other c1.0 1.1.1.5 0"]);
    world.publish("c1.0", "6");
    assert_eq!(world.run(), [""; 0]);
    world.publish("c1.0", "7");
    assert_eq!(world.run(), ["mine c1.1 1.2.2.6 1"], "the second would leave too few");
}

#[test]
fn a_request_with_a_bound_waits_until_enough_is_unacknowledged() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::Overflow));

    assert_eq!(world.pull(PullRequest { min_ack_pending: 2, ..ask(1) }), [""; 0]);

    assert_eq!(
        world.pull_from("other", ask(2)),
        ["other c1.0 1.1.1.5 0", "other c1.1 1.2.2.4 1", "mine c1.2 1.3.3.3 2"]
    );
}

#[test]
fn a_request_that_does_not_wait_ends_when_there_is_no_message_for_it() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::Overflow));

    let request = PullRequest { min_pending: 7, no_wait: true, ..ask(1) };

    assert_eq!(world.pull(request), ["mine 404 No Messages"]);
}

#[test]
fn lower_numbers_are_served_first() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(grouped(PriorityPolicy::Prioritized));
    for (inbox, request) in [
        ("plain", plain()),
        ("nine", PullRequest { priority: 9, ..ask(1) }),
        ("one", PullRequest { priority: 1, ..ask(2) }),
        ("another", PullRequest { priority: 1, ..ask(1) }),
    ] {
        assert_eq!(world.pull_from(inbox, request), [""; 0]);
    }

    for number in 0..5 {
        world.publish("c1.0", &number.to_string());
    }

    let served: Vec<_> =
        world.run().iter().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(served, ["one", "another", "one", "nine", "plain"]);
}

#[test]
fn one_client_is_pinned_until_its_time_is_over_and_then_the_next() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::PinnedClient));
    world.dispatch().supply_pin_id("first".into());

    assert_eq!(
        world.pull(ask(1)),
        ["mine c1.0 1.1.1.5 NATS/1.0|Nats-Pin-Id: first||0", r#"Pinned { group: "g", id: "first" }"#,]
    );
    assert_eq!(world.pull_from("standby", ask(1)), [""; 0]);
    assert_eq!(
        world.pull(PullRequest { id: "first".into(), ..ask(1) }),
        ["mine c1.1 1.2.2.4 NATS/1.0|Nats-Pin-Id: first||1"]
    );
    assert_eq!(world.pull(PullRequest { id: "second".into(), ..ask(1) }), ["mine 423 Nats-Pin-Id mismatch"]);
    assert_eq!(world.info().priority_groups[0].pinned_client_id, "first");

    world.dispatch().supply_pin_id("second".into());
    assert_eq!(
        world.pass(Nanos::from_secs(10)),
        [
            r#"Unpinned { group: "g", reason: Timeout }"#,
            "standby c1.2 1.3.3.3 NATS/1.0|Nats-Pin-Id: second||2",
            r#"Pinned { group: "g", id: "second" }"#,
        ]
    );
}

#[test]
fn what_waits_under_an_old_pin_is_told_so_after_an_unpin() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(grouped(PriorityPolicy::PinnedClient));
    world.dispatch().supply_pin_id("first".into());
    world.pull(ask(5));
    world.publish("c1.0", "0");
    assert_eq!(world.run().len(), 2);

    world.dispatch().unpin("g");
    world.dispatch().supply_pin_id("second".into());
    world.pull_from("standby", ask(1));
    world.publish("c1.0", "1");

    assert_eq!(
        world.run(),
        [
            "standby c1.0 1.2.2.0 NATS/1.0|Nats-Pin-Id: second||1",
            "mine 423 Nats-Wrong-Pin-Id, Nats-Pending-Messages: 4, Nats-Pending-Bytes: 0",
            r#"Pinned { group: "g", id: "second" }"#,
        ]
    );
}

#[test]
fn nobody_who_can_not_take_the_message_gets_pinned() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::PinnedClient));
    world.dispatch().supply_pin_id("first".into());

    let small = world.pull(PullRequest { max_bytes: 1, ..ask(1) });

    assert_eq!(
        small,
        ["mine 409 Message Size Exceeds MaxBytes, Nats-Pending-Messages: 1, Nats-Pending-Bytes: 1"]
    );
    assert_eq!(world.info().priority_groups[0].pinned_client_id, "");
}

#[test]
fn a_pin_does_not_outlive_its_leader_or_its_policy() {
    let mut world = World::with_six_messages();
    world.consumer(grouped(PriorityPolicy::PinnedClient));
    let pin = |world: &mut World| {
        world.dispatch().supply_pin_id("first".into());
        world.pull(ask(1));
        assert_eq!(world.info().priority_groups[0].pinned_client_id, "first");
    };
    pin(&mut world);

    world.lead();
    assert_eq!(world.info().priority_groups[0].pinned_client_id, "");
    pin(&mut world);
    world.consumer(grouped(PriorityPolicy::Overflow));

    assert_eq!(world.run(), [r#"Unpinned { group: "g", reason: Admin }"#]);
    assert_eq!(world.info().priority_groups[0].pinned_client_id, "");
}
