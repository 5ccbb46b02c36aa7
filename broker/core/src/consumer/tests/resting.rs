//! What a consumer says before it is left alone, and what it must still do when it is looked at again.

use std::cell::Cell;
use std::ops::ControlFlow;

use super::*;
use crate::consumer::dispatch::Attention;
use crate::stream::ReadFailed;

/// Counts what is read of the messages.
struct Counting<'a> {
    view: &'a MemoryView,
    read: Cell<u64>,
}

impl MessageView for Counting<'_> {
    fn record(&self, seq: Seq) -> Result<Option<levee_protocol::record::Record>, ReadFailed> {
        self.read.set(self.read.get() + 1);
        self.view.record(seq)
    }

    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, levee_protocol::record::RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        self.view.scan(from, &mut |seq, record| {
            self.read.set(self.read.get() + 1);
            visit(seq, record)
        })
    }

    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        self.view.seek_time(at)
    }
}

fn waits(world: &mut World) {
    let request = PullRequest { batch: 10, expires: Nanos::from_secs(1000), ..PullRequest::default() };
    assert_eq!(world.pull(request), [""; 0]);
}

#[test]
fn what_matches_is_found_without_reading_what_does_not() {
    let mut world = World::empty(StreamConfig::default());
    let filter = vec!["c1.mine.*".into()];
    world.consumer(ConsumerConfig { filter_subjects: filter, ..explicit() });
    waits(&mut world);
    for number in 0..1000 {
        world.publish("c1.other.x", &number.to_string());
    }
    world.publish("c1.mine.x", "mine");
    let World { machine, view, now, dispatch, .. } = &mut world;
    let (dispatch, counting) = (dispatch.as_mut().unwrap(), Counting { view, read: Cell::new(0) });

    let step = dispatch.poll(machine, &counting, &|_| true, *now).unwrap();

    assert!(matches!(&step, Step::Deliver(delivery) if delivery.record.seq == Seq(1001)), "{step:?}");
    assert!(counting.read.get() < 10, "{} messages were read", counting.read.get());
    assert_eq!(world.info().num_pending, 0);
}

#[test]
fn it_asks_for_what_concerns_it_and_for_no_more() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    assert_eq!(world.dispatch().attention(), Attention::None);
    assert_eq!(world.dispatch().open().count(), 0);
    let (first, last) = world.dispatch().open_between();
    assert!(first > last);

    world.next(2);
    world.run();
    assert_eq!(world.dispatch().attention(), Attention::Removals);
    assert_eq!(world.dispatch().open().collect::<Vec<_>>(), [Seq(1), Seq(2)]);

    world.fetch(9);
    waits(&mut world);
    assert_eq!(world.dispatch().attention(), Attention::All);
    assert_eq!(world.dispatch().num_open(), 6);
    assert_eq!(world.dispatch().open_between(), (Seq(1), Seq(6)));
}

#[test]
fn its_timer_is_that_of_the_first_message_that_is_still_waited_for() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: Nanos::from_secs(30), ..explicit() });
    world.next(1);
    let first = world.now.plus(Nanos::from_secs(30));
    assert_eq!(world.run_until_sleep().1, Some(first));
    world.now = world.now.plus(Nanos::from_secs(10));
    world.next(1);
    assert_eq!(world.run_until_sleep().1, Some(first));

    world.ack(1, AckKind::Ack);
    assert_eq!(world.run_until_sleep().1, Some(first.plus(Nanos::from_secs(10))));
    world.ack(2, AckKind::Ack);
    assert_eq!(world.run_until_sleep().1, None);
}

#[test]
fn a_leader_that_takes_over_knows_without_looking_when_it_has_to() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: Nanos::from_secs(30), ..explicit() });
    world.next(1);
    world.commit();
    let due = world.now.plus(Nanos::from_secs(30));
    world.now = world.now.plus(Nanos::from_secs(5));

    world.lead();

    let now = world.now;
    assert!(!world.dispatch().has_news());
    assert_eq!(world.dispatch().attention(), Attention::Removals);
    assert_eq!(world.dispatch().next_timer(now), Some(due));
    world.now = due;
    world.run();
    assert_eq!(world.next(1), ["mine c1.0 2.1.2.5 0"]);
}

#[test]
fn info_shows_no_message_as_unacked_that_is_gone_and_what_follows_is_still_told() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    world.next(2);
    world.commit();
    world.delete(2);

    assert_eq!(world.info().num_ack_pending, 1);

    assert!(world.dispatch().has_news());
    let told = world.run();
    assert!(
        told.len() == 1 && told[0].starts_with("Terminated { consumer_seq: 2, stream_seq: Seq(2)"),
        "{told:?}"
    );
    world.commit();
    assert!(!world.dispatch().has_news());
    assert_eq!(world.machine.consumer(&world.name).unwrap().marks().num_unacked(), 1);
}

#[test]
fn requests_that_nobody_waits_for_are_found_when_it_matters() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(ConsumerConfig { max_waiting: 2, ..explicit() });
    let now = world.now;
    waits(&mut world);
    waits(&mut world);
    world.deaf.insert(b"mine".to_vec());
    let request = PullRequest { batch: 1, no_wait: true, ..PullRequest::default() };
    assert!(world.dispatch().is_full());

    let interest = |inbox: &[u8]| inbox != b"mine";
    world.dispatch().look_for_interest(&interest, now);
    assert!(!world.dispatch().is_full());
    world.deaf.clear();
    waits(&mut world);
    world.deaf.insert(b"mine".to_vec());

    // Ten are asked for, by nobody.
    world.publish("c1.0", "one");
    assert_eq!(world.pull_from("other", request), ["other c1.0 1.1.1.0 one"]);
}

#[test]
fn a_push_consumer_without_subscribers_waits_for_them_and_not_for_messages() {
    let mut world = World::with_six_messages();
    world.deaf.insert(b"deliver".to_vec());
    world.consumer(ConsumerConfig { deliver_subject: "deliver".into(), ..explicit() });
    assert_eq!(world.run(), [""; 0]);
    assert_eq!(world.dispatch().attention(), Attention::None);
    assert_eq!(world.dispatch().deliver_subject().map(|subject| &subject[..]), Some(&b"deliver"[..]));

    world.deaf.clear();
    world.dispatch().on_interest_changed();
    assert_eq!(world.run().len(), 6);
    assert_eq!(world.dispatch().attention(), Attention::All);
}
