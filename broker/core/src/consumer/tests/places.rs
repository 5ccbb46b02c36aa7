//! Naks with a delay that free their place.

use super::*;

fn world(max_ack_pending: i64) -> World {
    let mut world = World::with_six_messages();
    world.consumer(config(max_ack_pending, "true"));
    world
}

fn config(max_ack_pending: i64, frees: &str) -> ConsumerConfig {
    let metadata = [("levee.nak_delay_frees_slot".to_owned(), frees.to_owned())].into();
    ConsumerConfig { max_ack_pending, metadata, ..explicit() }
}

#[test]
fn a_delayed_message_makes_room_and_waits_for_it_when_its_delay_is_over() {
    let mut world = world(2);
    assert_eq!(world.next(9).len(), 2);
    world.ack(1, AckKind::Nak(Nanos::from_secs(5)));

    assert_eq!(world.run(), ["mine c1.2 1.3.3.3 2"]);
    assert_eq!(world.pass(Nanos::from_secs(6)), [""; 0], "two are in clients' hands");
    world.ack(3, AckKind::Ack);
    assert_eq!(world.run(), ["mine c1.0 2.1.4.3 0"]);
    world.ack(2, AckKind::Ack);
    assert_eq!(world.run(), ["mine c1.0 1.4.5.2 3"], "one place, one message");
    assert_eq!(world.numbers()[4], 2);
}

#[test]
fn without_the_option_a_delayed_message_keeps_its_place() {
    let mut world = World::with_six_messages();
    world.consumer(config(2, "false"));
    world.next(9);
    world.ack(1, AckKind::Nak(Nanos::from_secs(5)));

    assert_eq!(world.run(), [""; 0]);
    assert_eq!(world.pass(Nanos::from_secs(5)).len(), 1);
}

#[test]
fn a_settled_message_and_one_in_progress_give_no_room_twice() {
    let mut world = world(2);
    world.next(9);
    world.ack(1, AckKind::Nak(Nanos::from_secs(5)));
    world.ack(1, AckKind::Ack);
    world.ack(2, AckKind::Nak(Nanos::from_secs(5)));
    world.ack(2, AckKind::InProgress);

    assert_eq!(world.run().len(), 1);
    assert_eq!(world.numbers()[4], 2);
}

#[test]
fn an_update_gives_the_places_back() {
    let mut world = world(2);
    world.next(9);
    world.ack(1, AckKind::Nak(Nanos::from_secs(5)));
    world.run();
    world.commit();

    world.consumer(config(2, "false"));

    assert_eq!(world.pass(Nanos::from_secs(5)), ["mine c1.0 2.1.4.3 0"], "redeliveries need no place");
}
