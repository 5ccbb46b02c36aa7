//! Acks, redelivery, and what survives a change of leader.

use levee_protocol::api::RetentionPolicy;

use super::*;

const WAIT: Nanos = Nanos::from_secs(1);

fn waiting_world() -> World {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: WAIT, ..explicit() });
    world
}

#[test]
fn what_is_not_acked_in_time_comes_again_in_order_and_before_new_messages() {
    let mut world = waiting_world();
    world.next(3);
    world.ack(2, AckKind::Ack);
    world.pass(WAIT);

    let expected = ["mine c1.0 2.1.4.3 0", "mine c1.2 2.3.5.3 2", "mine c1.0 1.4.6.2 3"];
    assert_eq!(world.next(3), expected);
    assert_eq!(world.numbers(), [6, 4, 0, 0, 3, 2, 2]);
}

#[test]
fn backoff_spreads_the_attempts() {
    let mut world = World::with_six_messages();
    let backoff = vec![Nanos::from_secs(1), Nanos::from_secs(5)];
    world.consumer(ConsumerConfig { backoff, max_deliver: 3, filter_subject: "c1.0".into(), ..explicit() });
    world.next(1);
    world.next(9);
    world.ack(4, AckKind::Ack);

    assert_eq!(world.pass(Nanos::from_secs(1)), ["mine c1.0 2.1.3.0 0"]);
    assert_eq!(world.pass(Nanos::from_millis(4999)), [""; 0]);
    assert_eq!(world.pass(Nanos::from_millis(1)), ["mine c1.0 3.1.4.0 0"]);
    assert_eq!(world.pass(Nanos::from_secs(5)), ["MaxDeliveries { stream_seq: Seq(1), deliveries: 3 }"]);
}

#[test]
fn in_progress_starts_the_wait_over() {
    let mut world = waiting_world();
    world.next(1);
    world.pass(Nanos::from_millis(900));
    world.ack(1, AckKind::InProgress);
    world.pass(Nanos::from_millis(900));

    assert_eq!(world.next(1), ["mine c1.1 1.2.2.4 1"]);
    assert_eq!(world.pass(Nanos::from_millis(100)), [""; 0]);
    assert_eq!(world.next(1), ["mine c1.0 2.1.3.4 0"]);
}

#[test]
fn a_nak_tells_and_a_late_one_of_a_given_up_message_does_not() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: WAIT, max_deliver: 1, ..explicit() });
    world.next(2);

    let naked = Advisory::Naked { consumer_seq: 1, stream_seq: Seq(1), deliveries: 1 };
    let given_up = Advisory::MaxDeliveries { stream_seq: Seq(1), deliveries: 1 };
    assert_eq!(world.ack(1, AckKind::Nak(Nanos::ZERO)).advisories, [naked, given_up]);
    assert_eq!(world.pass(WAIT), ["MaxDeliveries { stream_seq: Seq(2), deliveries: 1 }"]);
    assert_eq!(world.ack(2, AckKind::Nak(Nanos::ZERO)).advisories, []);
}

#[test]
fn a_terminated_message_never_comes_again_and_the_reason_is_told() {
    let mut world = waiting_world();
    world.next(1);

    let outcome = world.ack(1, AckKind::Terminate(b"no good"));

    let reason = "no good".to_owned();
    let terminated = Advisory::Terminated { consumer_seq: 1, stream_seq: Seq(1), deliveries: 1, reason };
    assert_eq!(outcome.advisories, [terminated]);
    assert_eq!(world.pass(WAIT), [""; 0]);
    assert_eq!(world.numbers(), [1, 1, 1, 1, 0, 0, 5]);
}

#[test]
fn next_settles_and_asks_for_more() {
    let mut world = waiting_world();
    world.next(1);

    let outcome = world.ack(1, AckKind::Next(b"2"));

    assert_eq!(outcome.next.as_deref(), Some(&b"2"[..]));
    assert_eq!(outcome.confirm, Confirm::No);
    assert_eq!(world.numbers()[4], 0);
}

#[test]
fn without_acks_deliveries_are_settled_and_acks_find_nobody() {
    let mut world = World::with_six_messages();
    world.consumer(no_acks());
    world.next(2);

    assert_eq!(world.ack(1, AckKind::Ack).confirm, Confirm::Nobody);
    assert_eq!(world.numbers(), [2, 2, 2, 2, 0, 0, 4]);
    assert_eq!(world.dispatch().take_progress().unwrap().settled, []);
}

#[test]
fn an_unknown_body_and_a_second_ack_are_confirmed_and_change_nothing() {
    let mut world = waiting_world();
    world.next(1);
    world.ack(1, AckKind::Ack);
    world.commit();

    assert_eq!(world.ack(1, AckKind::Ack).confirm, Confirm::AfterProgress);
    assert_eq!(world.ack(1, AckKind::Unknown).confirm, Confirm::Now);
    assert_eq!(world.dispatch().take_progress(), None);
}

#[test]
fn a_new_leader_repeats_what_was_unacked_when_its_wait_is_over() {
    let mut world = waiting_world();
    world.next(3);
    world.ack(2, AckKind::Ack);
    world.commit();
    world.now = world.now.plus(Nanos::from_millis(400));
    world.lead();

    assert_eq!(world.numbers(), [3, 3, 0, 0, 2, 0, 3]);
    assert_eq!(world.next(1), ["mine c1.0 1.4.4.2 3"]);
    world.next(2);
    assert_eq!(world.pass(Nanos::from_millis(600)), ["mine c1.0 2.1.7.0 0", "mine c1.2 2.3.8.0 2"][..0]);
    assert_eq!(world.next(2), ["mine c1.0 2.1.7.0 0", "mine c1.2 2.3.8.0 2"]);
}

#[test]
fn marks_that_were_lost_with_a_leader_repeat_a_delivery_and_skip_none() {
    let mut world = waiting_world();
    world.next(2);
    world.commit();
    world.next(2);
    world.lead();

    assert_eq!(world.next(2), ["mine c1.2 1.3.3.3 2", "mine c1.0 1.4.4.2 3"]);
}

#[test]
fn an_ack_of_a_delivery_that_only_the_dead_leader_knew_is_kept() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    world.now = world.now.plus(Nanos::from_secs(61));
    world.next(1);
    world.commit();
    world.next(3);
    assert_eq!(
        world.ack(5, AckKind::Ack),
        AckOutcome::default(),
        "never delivered, and there was no other leader"
    );
    world.dispatch().close(Closed::LeadershipChange);
    world.lead();

    assert_eq!(world.ack(3, AckKind::Ack).confirm, Confirm::AfterProgress);
    assert_eq!(world.numbers()[6], 4);
    world.commit();
    world.lead();

    assert_eq!(world.numbers()[6], 4);
    assert_eq!(world.next(2), ["mine c1.1 1.2.2.3 1", "mine c1.0 1.4.3.2 3"]);
}

#[test]
fn progress_of_an_earlier_consumer_of_the_same_name_is_dropped() {
    let mut world = waiting_world();
    world.next(3);
    let progress = world.dispatch().take_progress().unwrap();
    let (now, name) = (world.now, world.name.clone());
    world.dispatch = None;
    world.apply(StreamCommand::DeleteConsumer { now, name, incarnation: None });
    world.consumer(explicit());

    world.apply(StreamCommand::Progress(Progress { now, consumers: vec![progress] }));

    assert_eq!(world.machine.consumer(&world.name).unwrap().marks().delivered().consumer, 0);
}

#[test]
fn a_deleted_message_is_not_waited_for() {
    let mut world = waiting_world();
    world.next(2);

    world.delete(2);

    let text = "Terminated { consumer_seq: 2, stream_seq: Seq(2), deliveries: 1, reason: \"Unacknowledged message was deleted\" }";
    assert_eq!(world.run(), [text]);
    assert_eq!(world.numbers(), [2, 2, 0, 0, 1, 0, 4]);
    world.delete(1);
    assert!(world.run()[0].contains("Message deleted by stream limits"));
    assert_eq!(world.numbers(), [2, 2, 2, 2, 0, 0, 4]);
}

#[test]
fn an_ack_removes_a_work_queue_message_and_giving_up_does_not() {
    let mut world =
        World::empty(StreamConfig { retention: RetentionPolicy::WorkQueue, ..StreamConfig::default() });
    for number in 0..3 {
        world.publish("c1.0", &number.to_string());
    }
    world.consumer(ConsumerConfig { max_deliver: 1, ack_wait: WAIT, ..explicit() });
    world.next(3);
    world.ack(1, AckKind::Ack);
    world.ack(2, AckKind::Terminate(b""));
    world.pass(WAIT);
    world.commit();

    assert_eq!(world.machine.state().messages, 1);
    assert!(world.machine.is_live(Seq(3)));
}

#[test]
fn interest_keeps_a_message_until_all_who_want_it_are_done() {
    let mut world =
        World::empty(StreamConfig { retention: RetentionPolicy::Interest, ..StreamConfig::default() });
    world.consumer(explicit());
    let other = ConsumerName::parse("other").unwrap();
    let config = ConsumerConfig { durable_name: "other".into(), filter_subject: "c1.1".into(), ..explicit() };
    let now = world.now;
    let action = ConsumerCreateAction::Create;
    world.apply(StreamCommand::CreateConsumer {
        now,
        name: other.clone(),
        config: Box::new(config),
        action,
        default_max: 0,
    });
    world.publish("c1.0", "0");
    world.publish("c1.1", "1");
    world.next(2);
    world.ack(1, AckKind::Ack);
    world.ack(2, AckKind::Ack);
    world.commit();

    assert_eq!(world.machine.state().messages, 1, "the other consumer wants c1.1");
    world.apply(StreamCommand::DeleteConsumer { now, name: other, incarnation: None });
    assert_eq!(world.machine.state().messages, 0);
}

#[test]
fn acks_are_sampled_evenly() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { sample_freq: "50%".into(), ..explicit() });
    world.next(6);
    world.now = world.now.plus(Nanos(7));

    let sampled: Vec<usize> = (1..=6).map(|seq| world.ack(seq, AckKind::Ack).advisories.len()).collect();

    assert_eq!(sampled, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_new_leader_knows_of_delays_and_of_work_in_progress() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: Nanos::from_secs(10), max_ack_pending: 2, ..explicit() });
    world.next(2);
    world.ack(1, AckKind::Nak(Nanos::from_secs(60)));
    world.pass(Nanos::from_secs(9));
    world.ack(2, AckKind::InProgress);
    world.commit();

    world.lead();
    world.pull(PullRequest { batch: 9, ..PullRequest::default() });

    assert_eq!(world.pass(Nanos::from_secs(9)), [""; 0], "the client still works on the second");
    assert_eq!(world.pass(Nanos::from_secs(1)), ["mine c1.1 2.2.3.4 1"]);
    assert_eq!(
        world.pass(Nanos::from_secs(31)),
        ["mine c1.1 3.2.4.4 1", "mine c1.1 4.2.5.4 1", "mine c1.1 5.2.6.4 1"]
    );
    assert_eq!(world.pass(Nanos::from_secs(1)), [""; 0]);
    assert_eq!(world.pass(Nanos::from_secs(9)), ["mine c1.1 6.2.7.4 1", "mine c1.0 2.1.8.4 0"]);
}

#[test]
fn a_stray_ack_after_a_takeover_takes_nothing_away() {
    for policy in [AckPolicy::Explicit, AckPolicy::All] {
        let mut world = World::with_six_messages();
        world.consumer(ConsumerConfig { ack_policy: policy, ..explicit() });
        world.now = world.now.plus(Nanos::from_secs(61));
        world.lead();
        let (now, far) = (world.now, 1 << 20);
        let stray = AckReply {
            stream: "S",
            consumer: "C",
            attempt: 1,
            stream_seq: Seq(5),
            consumer_seq: far,
            timestamp: Timestamp(0),
            pending: 0,
        };

        let outcome = world.dispatch().on_ack(&stray, AckKind::Ack, now);

        assert_eq!(outcome.confirm, Confirm::No);
        assert_eq!(world.next(9).len(), 6, "{policy:?}");
    }
}

#[test]
fn after_a_takeover_acks_of_before_a_reset_or_of_an_earlier_consumer_take_nothing_away() {
    for is_reset in [true, false] {
        let mut world = World::with_six_messages();
        world.consumer(explicit());
        world.now = world.now.plus(Nanos::from_secs(61));
        world.next(4);
        world.commit();
        let (now, name) = (world.now, world.name.clone());
        if is_reset {
            world.apply(StreamCommand::ResetConsumer { now, name, seq: Seq(1) });
        } else {
            world.apply(StreamCommand::DeleteConsumer { now, name, incarnation: None });
            world.consumer(explicit());
        }
        world.now = world.now.plus(Nanos::from_secs(59));
        let ledger = world.machine.consumer(&world.name).unwrap();
        assert_eq!(&Ledger::decode(&ledger.encode()).unwrap(), ledger);
        world.lead();

        assert_eq!(world.ack(3, AckKind::Ack), AckOutcome::default());
        assert_eq!(world.next(9).len(), 6, "is_reset: {is_reset}");
    }
}

#[test]
fn what_was_sent_too_often_for_a_new_limit_is_given_up() {
    let mut world = World::with_six_messages();
    let config = ConsumerConfig { max_deliver: 5, ..explicit() };
    world.consumer(config.clone());
    world.next(1);
    world.ack(1, AckKind::Nak(Nanos::ZERO));
    world.next(1);
    world.ack(1, AckKind::Nak(Nanos::ZERO));

    world.consumer(ConsumerConfig { max_deliver: 2, ..config });

    assert_eq!(world.next(1), ["MaxDeliveries { stream_seq: Seq(1), deliveries: 2 }", "mine c1.1 1.2.3.4 1"]);
}

#[test]
fn a_backoff_of_nothing_does_not_spin() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig {
        backoff: vec![Nanos::ZERO],
        max_deliver: 3,
        max_ack_pending: 1,
        ..explicit()
    });

    assert_eq!(world.next(9), ["mine c1.0 1.1.1.5 0"]);
    assert_eq!(world.pass(Nanos::from_millis(1)), ["mine c1.0 2.1.2.5 0"]);
}

#[test]
fn new_filters_take_nothing_out_of_a_work_queue_and_leave_nothing_in_a_stream_of_interest() {
    for (retention, left) in [(RetentionPolicy::WorkQueue, 2), (RetentionPolicy::Interest, 0)] {
        let mut world = World::empty(StreamConfig { retention, ..StreamConfig::default() });
        world.consumer(ConsumerConfig { filter_subject: "c1.a".into(), ..explicit() });
        let (now, other) = (world.now, ConsumerName::parse("OTHER").unwrap());
        let config = ConsumerConfig { filter_subject: "c1.b".into(), ..explicit() };
        world.apply(StreamCommand::CreateConsumer {
            now,
            name: other.clone(),
            config: Box::new(ConsumerConfig { durable_name: "OTHER".into(), ..config }),
            action: ConsumerCreateAction::CreateOrUpdate,
            default_max: 0,
        });
        world.publish("c1.b", "1");
        world.publish("c1.b", "2");
        world.next(1);
        world.apply(StreamCommand::DeleteConsumer { now, name: other, incarnation: None });

        let both = vec!["c1.a".into(), "c1.b".into()];
        world.consumer(ConsumerConfig { filter_subjects: both, ..explicit() });
        world.run();
        world.commit();

        assert_eq!(world.machine.state().messages, left, "{retention:?}");
    }
}
