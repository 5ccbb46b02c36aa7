//! Push consumers whose client answers flow control instead of messages.

use levee_protocol::api::RetentionPolicy;

use super::*;

const REPLY: &[u8] = b"$JS.FC.S.C.0001";

fn flow_acked() -> ConsumerConfig {
    ConsumerConfig {
        durable_name: "C".into(),
        ack_policy: AckPolicy::FlowControl,
        deliver_subject: "pd".into(),
        max_ack_pending: 4,
        ..ConsumerConfig::default()
    }
}

fn work_queue() -> World {
    let retention = RetentionPolicy::WorkQueue;
    let mut world = World::empty(StreamConfig { retention, ..StreamConfig::default() });
    for number in 0..6 {
        world.publish("c1.0", &number.to_string());
    }
    world.consumer(flow_acked());
    world
}

fn header(through: u64) -> String {
    format!("NATS/1.0\r\nNats-Last-Consumer: {through}\r\nNats-Last-Stream: {through}\r\n\r\n")
}

impl World {
    fn answer(&mut self, subject: &[u8], through: u64) -> Vec<String> {
        let now = self.now;
        self.dispatch().on_flow_reply(subject, header(through).as_bytes(), now);
        self.run()
    }
}

#[test]
fn it_asks_when_no_more_may_be_unacked_and_goes_on_when_it_is_answered() {
    let mut world = work_queue();

    let lines = world.run();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[4], "pd 100 FlowControl Request reply $JS.FC.S.C.0001");
    assert_eq!(world.numbers(), [4, 4, 0, 0, 4, 0, 2]);

    assert_eq!(world.answer(REPLY, 3), ["pd c1.0 1.5.5.1 4", "pd c1.0 1.6.6.0 5"]);
    assert_eq!(world.numbers(), [6, 6, 3, 3, 3, 0, 0]);
}

#[test]
fn messages_leave_a_work_queue_when_the_answer_says_that_they_are_stored() {
    let mut world = work_queue();
    world.run();
    world.commit();
    assert_eq!(world.machine.first_seq(), Seq(1));

    world.answer(REPLY, 3);
    world.commit();

    assert_eq!(world.machine.first_seq(), Seq(4));
    let ledger = world.machine.consumer(&world.name).unwrap();
    assert_eq!((ledger.marks().floor().stream, ledger.marks().num_unacked()), (Seq(3), 3));
}

#[test]
fn it_asks_for_what_is_unacked_when_there_is_nothing_else_to_say() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { max_ack_pending: 100, ..flow_acked() });
    assert_eq!(world.run().len(), 6);

    let idle = "pd 100 Idle Heartbeat, Nats-Last-Consumer: 6, Nats-Last-Stream: 6";
    let request = "pd 100 FlowControl Request reply $JS.FC.S.C.0001";
    assert_eq!(world.pass(Nanos::from_secs(1)), [idle, request]);
    let stalled = format!("{idle}, Nats-Consumer-Stalled: $JS.FC.S.C.0001");
    assert_eq!(world.pass(Nanos::from_secs(1)), [stalled.as_str()]);

    world.answer(REPLY, 6);
    assert_eq!(world.pass(Nanos::from_secs(2)), [idle, idle], "nothing is unacked");
    assert_eq!(world.numbers(), [6, 6, 6, 6, 0, 0, 0]);
}

#[test]
fn only_the_answer_that_is_waited_for_counts() {
    let mut world = work_queue();
    world.run();

    assert_eq!(world.answer(b"$JS.FC.S.C.0000", 4), [""; 0]);
    assert_eq!(world.ack(1, AckKind::Ack).confirm, Confirm::Nobody, "messages are not acked");
    assert_eq!(world.answer(REPLY, 7), [""; 0], "the stream has no such message");
    assert_eq!(world.numbers(), [4, 4, 0, 0, 4, 0, 2]);
}

#[test]
fn nothing_is_delivered_again_before_a_reset() {
    let mut world = work_queue();
    world.run();
    world.answer(REPLY, 2);
    world.commit();
    let again = world.pass(Nanos::from_secs(3600)).iter().filter(|line| line.starts_with("pd c1.0 ")).count();
    assert_eq!(again, 0);

    let (now, name) = (world.now, world.name.clone());
    world.apply(StreamCommand::ResetConsumer { now, name, seq: Seq::NONE });

    let lines = world.run();
    assert_eq!(lines[0], "pd c1.0 1.3.1.3 2", "numbered anew from after what was acked");
    assert_eq!(lines.len(), 5, "four messages, and a request for flow control");
}

#[test]
fn an_answer_settles_what_the_leader_before_had_sent() {
    let mut world = work_queue();
    world.run();
    world.lead();
    world.deaf.insert(b"pd".to_vec());
    world.run();
    // Its marks were lost, but what it sent was stored. This leader has sent a part of that again.
    world.deaf.clear();
    world.dispatch().on_interest_changed();
    assert_eq!(world.run().len(), 5);

    world.answer(REPLY, 6);
    world.commit();

    assert_eq!(world.numbers()[2..], [4, 6, 0, 0, 0]);
    assert_eq!(world.machine.state().messages, 0);
}
