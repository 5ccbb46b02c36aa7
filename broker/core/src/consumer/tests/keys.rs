//! Of the messages of a key, one is in flight at a time, in the order of the stream.

use std::collections::BTreeMap;

use super::*;
use crate::consumer::keyed::PASSED_MAX;

fn config() -> ConsumerConfig {
    let metadata = [("levee.key".to_owned(), "token:2".to_owned())].into();
    ConsumerConfig { ack_wait: Nanos::from_secs(1), metadata, ..explicit() }
}

impl World {
    /// Runs, commits, and gives what may be sent then, as `seq/attempt`.
    fn sent(&mut self) -> Vec<String> {
        let lines = self.run();
        self.commit();
        let ledger = self.machine.consumer(&self.name).unwrap().clone();
        let mut sent = Vec::new();
        while let Some(delivery) = self.dispatch().committed(&ledger) {
            sent.push(format!("{}/{}", delivery.record.seq, delivery.attempt));
        }
        assert!(!lines.iter().any(|line| line.contains("c1.")), "before it is committed: {lines:?}");
        sent
    }

    fn keyed() -> Self {
        let mut world = Self::with_six_messages();
        world.consumer(config());
        world
    }
}

#[test]
fn a_message_waits_for_the_one_before_it_of_its_key_and_others_do_not() {
    let mut world = World::keyed();
    world.next(9);
    assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    assert_eq!(world.numbers()[6], 3, "those that were passed over are pending");

    world.ack(2, AckKind::Ack);
    assert_eq!(world.sent(), ["5/1"]);
    world.ack(1, AckKind::Nak(Nanos::ZERO));
    assert_eq!(world.sent(), ["1/2"]);
    world.ack(1, AckKind::Ack);
    world.ack(3, AckKind::Terminate(b""));
    assert_eq!(world.sent(), ["4/1", "6/1"]);
    for seq in [4, 5, 6] {
        world.ack(seq, AckKind::Ack);
    }
    assert_eq!(world.sent(), [""; 0]);
    assert_eq!(world.numbers()[3..], [6, 0, 0, 0]);
}

#[test]
fn nothing_is_sent_before_its_mark_is_committed() {
    let mut world = World::keyed();
    world.next(1);
    let ledger = world.machine.consumer(&world.name).unwrap().clone();

    assert!(world.dispatch().committed(&ledger).is_none());
    assert!(world.dispatch().waits_for_commit());
    assert_eq!(world.sent(), ["1/1"]);
}

#[test]
fn what_is_acked_while_it_waits_for_its_mark_is_not_sent_again() {
    let mut world = World::keyed();
    world.next(3);
    assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    world.now = world.now.plus(Nanos::from_secs(1));
    world.next(1);
    assert!(world.dispatch().waits_for_commit(), "the second attempt of the first message");

    world.ack(1, AckKind::Ack);

    assert_eq!(world.sent(), [""; 0], "the next one of its key may be on its way");
    let lines = world.run();
    assert!(lines.iter().any(|line| line.contains("408")), "its request is over: {lines:?}");
}

#[test]
fn a_request_gets_another_message_for_one_that_is_left_out() {
    let mut world = World::keyed();
    world.next(3);
    assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    world.now = world.now.plus(Nanos::from_secs(1));
    world.next(5);
    assert!(world.dispatch().waits_for_commit(), "second attempts of the three");

    world.ack(1, AckKind::Ack);

    assert_eq!(world.sent(), ["2/2", "3/2", "4/1"]);
    world.ack(2, AckKind::Ack);
    assert_eq!(world.sent(), ["5/1"], "it takes the place that was left");
    world.ack(3, AckKind::Ack);
    assert_eq!(world.sent(), ["6/1"], "and this one that which was given back");
}

#[test]
fn a_request_that_was_filled_ends_after_what_it_still_gets() {
    let mut world = World::keyed();
    world.next(3);
    assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    world.now = world.now.plus(Nanos::from_secs(1));
    world.next(2);
    world.run();
    world.ack(1, AckKind::Ack);

    world.commit();
    let ledger = world.machine.consumer(&world.name).unwrap().clone();
    let sent = world.dispatch().committed(&ledger).expect("the second one is sent");
    assert_eq!(sent.record.seq, Seq(2));
    assert!(world.dispatch().committed(&ledger).is_none());
    let lines = world.run();
    assert!(lines.iter().any(|line| line.contains("408")), "{lines:?}");
}

#[test]
fn requests_whose_messages_wait_for_their_marks_outlive_a_reset_or_end() {
    for (batch, ended) in [(2, true), (9, false)] {
        let mut world = World::keyed();
        world.next(batch);
        world.run();
        assert!(world.dispatch().waits_for_commit());
        let (now, name) = (world.now, world.name.clone());

        world.apply(StreamCommand::ResetConsumer { now, name, seq: Seq(0) });

        let lines = world.run();
        assert_eq!(lines.iter().any(|line| line.contains("408")), ended, "{lines:?}");
        if ended {
            assert!(lines[0].contains("Nats-Pending-Messages: 2"), "{lines:?}");
            world.next(3);
        }
        assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    }
}

#[test]
fn the_wait_for_an_ack_does_not_end_before_the_message_is_sent() {
    let mut world = World::empty(StreamConfig::default());
    world.publish("c1.0", "0");
    world.consumer(ConsumerConfig { max_deliver: 1, ..config() });
    world.next(1);

    world.now = world.now.plus(Nanos::from_secs(2));
    world.run();

    assert_eq!(world.sent(), ["1/1"]);
    assert_eq!(world.numbers()[4], 1, "it is not given up");
}

#[test]
fn an_ack_of_what_nobody_has_yet_is_not_confirmed() {
    let mut world = World::keyed();
    world.next(9);
    assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);

    assert_eq!(
        world.ack(4, AckKind::Ack),
        AckOutcome::default(),
        "it is of an earlier consumer of this name"
    );
    world.ack(1, AckKind::Ack);
    assert_eq!(world.sent(), ["4/1"]);
}

#[test]
fn an_ack_of_what_waits_for_its_first_mark_takes_nothing_away() {
    for kind in [AckKind::Ack, AckKind::Terminate(b""), AckKind::Nak(Nanos::ZERO)] {
        let mut world = World::keyed();
        world.next(9);

        let outcome = world.ack(2, kind);

        assert_eq!(outcome, AckOutcome::default(), "it is of an earlier consumer of this name");
        assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
    }
}

#[test]
fn a_nak_of_a_delivery_before_the_one_that_waits_for_its_mark_changes_nothing() {
    for delay in [Nanos::ZERO, Nanos::from_secs(2)] {
        let mut world = World::with_six_messages();
        world.publish("c1.other", "");
        let mut config = ConsumerConfig { max_deliver: 2, max_ack_pending: 3, ..config() };
        config.metadata.insert("levee.nak_delay_frees_slot".into(), "true".into());
        world.consumer(config);
        world.next(3);
        assert_eq!(world.sent(), ["1/1", "2/1", "3/1"]);
        world.now = world.now.plus(Nanos::from_secs(1));
        world.next(9);
        assert!(world.dispatch().waits_for_commit(), "second attempts of the three");

        world.ack(1, AckKind::Nak(delay));

        assert_eq!(world.sent(), ["1/2", "2/2", "3/2"], "nak with {delay:?}");
        assert_eq!(world.sent(), [""; 0], "no more than three are in clients' hands");
    }
}

#[test]
fn the_floor_stays_below_what_was_passed_over() {
    let mut world = World::keyed();
    world.next(9);
    world.sent();
    world.ack(2, AckKind::Ack);
    world.ack(3, AckKind::Ack);
    world.sent();
    world.ack(5, AckKind::Ack);
    world.ack(6, AckKind::Ack);
    world.sent();

    assert_eq!(world.numbers()[3..], [0, 1, 0, 1]);
    world.ack(4, AckKind::Ack);
    assert_eq!(world.numbers()[6], 1, "an ack of what nobody got changes nothing");
    world.ack(1, AckKind::Ack);
    assert_eq!(world.sent(), ["4/1"]);
    assert_eq!(world.numbers()[3], 3);
}

#[test]
fn a_new_leader_keeps_to_it() {
    let mut world = World::keyed();
    world.next(9);
    world.sent();
    world.ack(3, AckKind::Ack);
    world.commit();

    world.lead();
    world.next(9);
    assert_eq!(world.sent(), ["6/1"]);
    world.ack(1, AckKind::Ack);
    assert_eq!(world.sent(), ["4/1"]);
    let bytes = world.machine.consumer(&world.name).unwrap().encode();
    assert_eq!(&Ledger::decode(&bytes).unwrap(), world.machine.consumer(&world.name).unwrap());
}

#[test]
fn messages_that_are_removed_hold_nothing_up() {
    let mut world = World::keyed();
    world.next(9);
    world.sent();
    world.publish("c1.0", "7");
    world.delete(4);
    assert_eq!(world.sent(), [""; 0]);
    world.delete(1);

    assert_eq!(world.sent(), ["7/1"]);
}

#[test]
fn messages_without_the_key_are_free() {
    let mut world = World::empty(StreamConfig::default());
    let metadata = [("levee.key".to_owned(), "token:3".to_owned())].into();
    for subject in ["c1.a", "c1.a", "c1.a.x", "c1.a", "c1.b.x"] {
        world.publish(subject, "");
    }
    world.consumer(ConsumerConfig { metadata, ..explicit() });
    world.next(9);

    assert_eq!(world.sent(), ["1/1", "2/1", "3/1", "4/1"]);
}

#[test]
fn the_look_ahead_is_bounded() {
    let mut world = World::empty(StreamConfig::default());
    let blocked = vec![("c1.hot", ""); PASSED_MAX + 2];
    world.publish_all(&blocked);
    world.publish_all(&[("c1.hot", ""), ("c1.cold", "")]);
    world.consumer(config());
    world.next(9);

    assert_eq!(world.sent(), ["1/1"]);
    let passed = world.machine.consumer(&world.name).unwrap().marks.passed.len();
    assert_eq!(passed, PASSED_MAX);
    world.ack(1, AckKind::Ack);
    assert_eq!(world.sent(), ["2/1"]);
    world.ack(2, AckKind::Ack);
    let cold = PASSED_MAX + 4;
    assert_eq!(world.sent(), ["3/1".to_owned(), format!("{cold}/1")]);
}

#[test]
fn an_interest_stream_keeps_what_was_passed_over() {
    use levee_protocol::api::RetentionPolicy;
    let retention = RetentionPolicy::WorkQueue;
    let mut world = World::empty(StreamConfig { retention, ..StreamConfig::default() });
    world.consumer(config());
    world.publish_all(&[("c1.a", ""), ("c1.a", ""), ("c1.b", "")]);
    world.next(9);
    assert_eq!(world.sent(), ["1/1", "3/1"]);
    world.ack(3, AckKind::Ack);
    world.commit();
    assert_eq!(world.machine.messages(), 2);
    world.ack(1, AckKind::Ack);
    assert_eq!(world.sent(), ["2/1"]);
    assert_eq!(world.machine.messages(), 1);
}

#[test]
fn the_key_of_a_consumer_does_not_change() {
    let mut world = World::keyed();
    for changed in [None, Some("token:1")] {
        let metadata = changed.map(|value| ("levee.key".to_owned(), value.to_owned())).into_iter().collect();
        let reply = world.request(ConsumerConfig { metadata, ..config() }, ConsumerCreateAction::Update);
        assert!(
            matches!(&reply, Reply::Rejected(error) if error.description.contains("levee.key")),
            "{reply:?}"
        );
    }
}

#[test]
fn workers_that_fail_at_random_get_each_key_in_order_and_one_at_a_time() {
    let mut world = World::empty(StreamConfig::default());
    let mut expected: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for number in 0..300_u64 {
        let key = number * number % 7;
        world.publish(&format!("c1.{key}"), "");
        expected.entry(key).or_default().push(number + 1);
    }
    world.consumer(ConsumerConfig { max_ack_pending: 20, ..config() });
    let mut done: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut in_flight: BTreeMap<u64, u64> = BTreeMap::new();
    let mut dice = 12_345_u64;
    let mut rolls = 0;
    while done.values().map(Vec::len).sum::<usize>() < 300 {
        rolls += 1;
        assert!(rolls < 20_000, "it stands still");
        world.next(3);
        for sent in world.sent() {
            let seq: u64 = sent.split_once('/').unwrap().0.parse().unwrap();
            let key = (seq - 1) * (seq - 1) % 7;
            let before = in_flight.insert(key, seq);
            assert!(before.is_none_or(|before| before == seq), "{before:?} and {seq} of {key}");
        }
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let roll = (dice >> 33) % 10;
        let Some((key, seq)) = in_flight.iter().nth(roll as usize % in_flight.len().max(1)) else { continue };
        let (key, seq) = (*key, *seq);
        match roll {
            0 => {
                world.ack(seq, AckKind::Nak(Nanos::ZERO));
            }
            1 => {
                world.commit();
                world.lead();
            }
            _ => {
                world.ack(seq, AckKind::Ack);
                in_flight.remove(&key);
                done.entry(key).or_default().push(seq);
            }
        }
        world.now = world.now.plus(Nanos::from_millis(30));
    }

    assert_eq!(done, expected);
}
