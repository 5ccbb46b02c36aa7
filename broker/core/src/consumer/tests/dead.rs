//! Messages that are given up become dead letters, once, and are settled when those are stored.

use levee_protocol::api::RetentionPolicy;

use super::*;

const WAIT: Nanos = Nanos::from_secs(1);

fn config() -> ConsumerConfig {
    ConsumerConfig {
        ack_wait: WAIT,
        max_deliver: 1,
        metadata: [("levee.dead_letter".to_owned(), "dead".to_owned())].into(),
        ..explicit()
    }
}

impl World {
    /// Dead letters to publish now, as `seq deliveries`.
    fn letters(&mut self) -> Vec<(u64, String)> {
        let ledger = self.machine.consumer(&self.name).unwrap();
        let dispatch = self.dispatch.as_mut().unwrap();
        let letters = dispatch.dead_letters(ledger, &self.machine, &self.view, self.now).unwrap();
        let of = |letter: &DeadLetter| {
            assert_eq!(&letter.subject[..], b"dead");
            let header = levee_protocol::wire::headers::HeaderBlock(&letter.header);
            let deliveries = header.get_str("Levee-Dead-Deliveries").unwrap();
            let reason = header.get_str("Levee-Dead-Reason").unwrap();
            (letter.seq.0, format!("{deliveries} {reason}"))
        };
        letters.iter().map(of).collect()
    }

    fn posted(&mut self, seq: u64, posted: Posted) {
        let (now, incarnation) = (self.now, self.machine.consumer(&self.name).unwrap().incarnation());
        self.dispatch().on_dead_letter(Seq(seq), incarnation, posted, now);
    }

    fn moment(&mut self) {
        self.now = self.now.plus(Nanos::from_millis(5));
    }
}

#[test]
fn the_last_failure_is_published_when_it_is_committed_and_settled_when_it_is_stored() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    assert_eq!(world.pass(WAIT), ["MaxDeliveries { stream_seq: Seq(1), deliveries: 1 }"]);

    world.moment();
    assert_eq!(world.letters(), [], "not committed");
    world.commit();
    world.moment();
    assert_eq!(world.letters(), [(1, "1 max_deliver".into())]);
    assert_eq!(world.numbers(), [1, 1, 0, 0, 1, 0, 5], "unacked until it is stored");

    world.posted(1, Posted::Stored);
    world.commit();
    assert_eq!(world.numbers(), [1, 1, 1, 1, 0, 0, 5]);
    assert_eq!(world.machine.consumer(&world.name).unwrap().marks().num_dead(), 0);
}

#[test]
fn a_terminated_message_is_published_and_no_ack_changes_that() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { max_deliver: -1, ..config() });
    world.next(1);

    let outcome = world.ack(1, AckKind::Terminate(b"no such order"));
    assert_eq!((outcome.confirm, outcome.advisories.len()), (Confirm::AfterProgress, 1));
    for kind in [AckKind::Ack, AckKind::Nak(Nanos::ZERO), AckKind::Terminate(b""), AckKind::InProgress] {
        assert_eq!(world.ack(1, kind).advisories, []);
    }
    world.commit();
    world.moment();

    assert_eq!(world.letters(), [(1, "1 terminated".into())]);
    assert_eq!(world.pass(Nanos::from_secs(60)), [""; 0]);
}

#[test]
fn a_new_leader_takes_it_up_and_delivers_it_to_nobody() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    world.pass(WAIT);
    world.commit();

    world.lead();

    assert_eq!(world.letters(), [(1, "1 max_deliver".into())]);
    assert_eq!(world.letters(), [], "it is under way");
    world.now = world.now.plus(WAIT);
    assert_eq!(world.next(1), ["mine c1.1 1.2.2.4 1"]);
    world.posted(1, Posted::Failed);
    assert_eq!(world.letters(), [], "it waits");
    world.now = world.now.plus(WAIT);
    assert_eq!(world.letters(), [(1, "1 max_deliver".into())]);
}

#[test]
fn a_decision_that_was_lost_is_made_again() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    world.commit();
    world.ack(1, AckKind::Terminate(b""));

    world.lead();
    assert_eq!(world.letters(), []);

    assert_eq!(world.pass(WAIT), ["MaxDeliveries { stream_seq: Seq(1), deliveries: 1 }"]);
    world.commit();
    world.moment();
    assert_eq!(world.letters(), [(1, "1 max_deliver".into())]);
}

#[test]
fn a_work_queue_keeps_the_message_until_its_letter_is_stored() {
    let retention = RetentionPolicy::WorkQueue;
    let mut world = World::empty(StreamConfig { retention, ..StreamConfig::default() });
    world.publish("c1.0", "x");
    world.consumer(config());
    world.next(1);
    world.ack(1, AckKind::Nak(Nanos::ZERO));
    world.commit();
    world.moment();
    assert_eq!(world.letters().len(), 1);
    assert!(world.machine.is_live(Seq(1)));

    world.posted(1, Posted::Stored);
    world.commit();

    assert!(!world.machine.is_live(Seq(1)));
}

#[test]
fn a_message_that_is_removed_first_leaves_no_letter() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    world.pass(WAIT);
    world.commit();
    world.delete(1);
    world.moment();

    assert_eq!(world.letters(), []);
    world.run();
    world.commit();
    assert_eq!(world.numbers(), [1, 1, 1, 1, 0, 0, 5]);
}

#[test]
fn dead_letters_that_can_not_be_stored_do_not_hold_the_consumer_up() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { max_ack_pending: 2, ..config() });

    for expected in [1, 3, 5] {
        assert_eq!(world.next(2).len(), 2, "from {expected}");
        world.now = world.now.plus(WAIT);
        world.run();
    }

    assert_eq!(world.numbers()[4], 6);
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    world.pass(WAIT);
    world.commit();
    world.moment();
    assert_eq!(world.letters().len(), 1);
    let before = world.machine.consumer(&world.name).unwrap().incarnation();

    world.apply(StreamCommand::ResetConsumer { now: world.now, name: world.name.clone(), seq: Seq(1) });
    let now = world.now;
    world.dispatch().on_dead_letter(Seq(1), before, Posted::Stored, now);

    assert_eq!(world.next(1), ["mine c1.0 1.1.1.5 0"]);
}

#[test]
fn the_subject_stays_while_letters_wait() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(1);
    world.pass(WAIT);
    world.commit();

    let without = ConsumerConfig { metadata: Default::default(), ..config() };
    let Reply::Rejected(error) = world.request(without, ConsumerCreateAction::Update) else {
        panic!("it was changed")
    };

    assert!(error.description.contains("1 dead letters wait"), "{error}");
}

#[test]
fn a_ledger_with_dead_letters_lies_on_disk_and_one_of_before_is_read() {
    let mut world = World::with_six_messages();
    world.consumer(config());
    world.next(2);
    world.ack(1, AckKind::Terminate(b"why"));
    world.commit();
    let ledger = world.machine.consumer(&world.name).unwrap();

    let bytes = ledger.encode();
    assert_eq!(&Ledger::decode(&bytes).unwrap(), ledger);

    let mut plain = ledger.clone();
    plain.marks.dead.clear();
    let mut bytes = plain.encode();
    assert_eq!(bytes.split_off(bytes.len() - 2), [0, 0], "no dead letters, nothing passed over");
    bytes[0] = 1;
    assert_eq!(Ledger::decode(&bytes).unwrap(), plain);
}

#[test]
fn what_this_leader_has_not_delivered_is_not_terminated_and_that_is_not_confirmed() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { max_deliver: -1, ..config() });
    world.now = world.now.plus(Nanos::from_secs(2));
    world.lead();

    assert_eq!(world.ack(1, AckKind::Terminate(b"")).confirm, Confirm::No, "it is delivered again");

    world.next(1);
    assert_eq!(world.ack(1, AckKind::Terminate(b"")).confirm, Confirm::AfterProgress);
}
