//! Push consumers: binding, heartbeats, flow control.

use super::*;

fn push(config: ConsumerConfig) -> ConsumerConfig {
    ConsumerConfig { deliver_subject: "pd".into(), ..config }
}

#[test]
fn messages_flow_while_somebody_listens() {
    let mut world = World::with_six_messages();
    world.deaf.insert(b"pd".to_vec());
    world.consumer(push(ConsumerConfig {
        idle_heartbeat: Nanos::from_millis(400),
        flow_control: true,
        ..no_acks()
    }));
    assert_eq!(world.pass(Nanos::from_secs(2)), [""; 0]);
    assert!(!world.info().push_bound);

    world.deaf.clear();
    world.dispatch().on_interest_changed();
    let lines = world.run();

    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0], "pd c1.0 1.1.1.5 0");
    assert!(world.info().push_bound);
    let heartbeat = "pd 100 Idle Heartbeat, Nats-Last-Consumer: 6, Nats-Last-Stream: 6";
    assert_eq!(world.pass(Nanos::from_millis(800)), [heartbeat, heartbeat]);
}

#[test]
fn a_pull_request_to_a_push_consumer_is_refused() {
    let mut world = World::with_six_messages();
    world.consumer(push(no_acks()));

    assert_eq!(world.next(1)[0], "mine 409 Consumer is push based");
}

#[test]
fn a_slow_client_is_not_sent_more_than_its_window() {
    let mut world = World::empty(StreamConfig::default());
    let body = "x".repeat(512 * 1024);
    for _ in 0..12 {
        world.publish("c1.0", &body);
    }
    world.consumer(push(ConsumerConfig {
        idle_heartbeat: Nanos::from_secs(1),
        flow_control: true,
        ..no_acks()
    }));

    let lines: Vec<String> = world.run().into_iter().map(|line| line.chars().take(60).collect()).collect();
    let messages = lines.iter().filter(|line| line.starts_with("pd c1.0")).count();
    assert_eq!(messages, 4);
    assert_eq!(
        lines[2], "pd 100 FlowControl Request reply $JS.FC.S.C.0001",
        "after more than half of the window"
    );

    let stalled = world.pass(Nanos::from_secs(1));
    assert!(stalled[0].ends_with("Nats-Consumer-Stalled: $JS.FC.S.C.0001"), "{stalled:?}");

    let now = world.now;
    world.dispatch().on_flow_reply(b"$JS.FC.S.C.0001", b"", now);
    assert_eq!(world.run().iter().filter(|line| line.starts_with("pd c1.0")).count(), 6, "twice the window");
}

#[test]
fn an_ephemeral_push_consumer_goes_when_nobody_listens() {
    let mut world = World::with_six_messages();
    world.consumer(push(ConsumerConfig { durable_name: String::new(), ..no_acks() }));
    assert_eq!(world.pass(Nanos::from_secs(60)).len(), 6);

    world.deaf.insert(b"pd".to_vec());
    world.dispatch().on_interest_changed();

    assert_eq!(world.pass(Nanos::from_millis(4999)), [""; 0]);
    assert_eq!(world.pass(Nanos::from_millis(1)), ["inactive"]);
}

#[test]
fn an_update_may_move_the_deliver_subject() {
    let mut world = World::with_six_messages();
    world.deaf.insert(b"pd".to_vec());
    world.consumer(push(no_acks()));
    world.run();

    world.consumer(ConsumerConfig { deliver_subject: "elsewhere".into(), ..no_acks() });

    assert_eq!(world.run()[0], "elsewhere c1.0 1.1.1.5 0");
}
