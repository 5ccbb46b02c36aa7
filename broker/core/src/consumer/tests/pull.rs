//! Pull requests, deliver policies and their transcripts from nats-server.

use levee_protocol::api::DeliverPolicy;

use super::*;

fn expiring(batch: i64, millis: i64) -> PullRequest {
    PullRequest { batch, expires: Nanos::from_millis(millis), ..PullRequest::default() }
}

#[test]
fn a_session_with_explicit_acks_is_that_of_nats_server() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    assert_eq!(world.numbers(), [0, 0, 0, 0, 0, 0, 6]);

    assert_eq!(world.next(1), ["mine c1.0 1.1.1.5 0"]);
    assert_eq!(world.next(2), ["mine c1.1 1.2.2.4 1", "mine c1.2 1.3.3.3 2"]);
    assert_eq!(world.fetch(2), ["mine c1.0 1.4.4.2 3", "mine c1.1 1.5.5.1 4"]);
    assert_eq!(world.ack(1, AckKind::Ack).confirm, Confirm::AfterProgress);
    world.ack(2, AckKind::Nak(Nanos::ZERO));
    assert_eq!(world.pull(expiring(2, 300)), ["mine c1.1 2.2.6.1 1", "mine c1.2 1.6.7.0 5"]);
    world.ack(3, AckKind::Nak(Nanos::from_millis(200)));
    assert_eq!(world.pull(PullRequest { no_wait: true, ..expiring(1, 1000) }), [""; 0]);
    assert_eq!(world.pass(Nanos::from_millis(200)), ["mine c1.2 2.3.8.0 2"]);
    assert_eq!(world.fetch(10), ["mine 404 No Messages"]);
    world.pull(expiring(1, 150));
    assert_eq!(
        world.pass(Nanos::from_millis(150)),
        ["mine 408 Request Timeout, Nats-Pending-Messages: 1, Nats-Pending-Bytes: 0"]
    );
    assert_eq!(world.ack(4, AckKind::Terminate(b"bad")).confirm, Confirm::AfterProgress);
    assert_eq!(world.ack(5, AckKind::InProgress).confirm, Confirm::Now);
    assert_eq!(world.ack(999, AckKind::Ack), AckOutcome::default());

    assert_eq!(world.numbers(), [8, 6, 1, 1, 4, 2, 0]);
    world.commit();
    let marks = world.machine.consumer(&world.name).unwrap().marks();
    assert_eq!((marks.num_unacked(), marks.num_redelivered(), marks.floor().stream), (4, 2, Seq(1)));

    world.pull(PullRequest { idle_heartbeat: Nanos::from_millis(200), ..expiring(5, 600) });
    assert_eq!(
        world.pass(Nanos::from_millis(600)),
        [
            "mine 100 Idle Heartbeat, Nats-Last-Consumer: 8, Nats-Last-Stream: 6",
            "mine 100 Idle Heartbeat, Nats-Last-Consumer: 8, Nats-Last-Stream: 6",
            "mine 408 Request Timeout, Nats-Pending-Messages: 5, Nats-Pending-Bytes: 0",
        ]
    );
}

#[test]
fn ack_all_settles_everything_up_to_its_message() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_policy: AckPolicy::All, ..explicit() });
    world.next(4);

    world.ack(3, AckKind::Ack);

    assert_eq!(world.numbers(), [4, 4, 3, 3, 1, 0, 2]);
    world.commit();
    let marks = world.machine.consumer(&world.name).unwrap().marks();
    assert_eq!((marks.floor().stream, marks.num_unacked()), (Seq(3), 1));
}

#[test]
fn max_deliver_gives_up_and_makes_room() {
    let mut world = World::with_six_messages();
    let wait = Nanos::from_millis(200);
    world.consumer(ConsumerConfig { max_deliver: 2, ack_wait: wait, max_ack_pending: 1, ..explicit() });
    assert_eq!(world.pull(expiring(3, 1200)), ["mine c1.0 1.1.1.5 0"]);

    assert_eq!(
        world.pass(Nanos::from_millis(1200)),
        ["mine c1.0 2.1.2.5 0", "MaxDeliveries { stream_seq: Seq(1), deliveries: 2 }", "mine c1.1 1.2.3.4 1",]
    );

    assert_eq!(world.numbers(), [3, 2, 0, 0, 1, 1, 4]);
    world.commit();
    let ledger = world.machine.consumer(&world.name).unwrap();
    assert!(ledger.needs(Seq(1), b"c1.0"), "the message stays");
    assert_eq!(ledger.marks().num_unacked(), 1);

    world.ack(1, AckKind::Ack);
    world.commit();
    assert!(!world.machine.consumer(&world.name).unwrap().needs(Seq(1), b"c1.0"), "a late ack still counts");
}

#[test]
fn a_start_sequence_after_the_end_skips_what_comes_before_it() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig {
        deliver_policy: DeliverPolicy::ByStartSequence,
        opt_start_seq: 8,
        ..explicit()
    });
    assert_eq!(world.next(5), [""; 0]);

    world.publish("c1.7", "skipped");
    world.publish("c1.8", "wanted");
    world.commit();
    world.lead();

    assert_eq!(world.next(5), ["mine c1.8 1.8.1.0 wanted"]);
}

#[test]
fn a_request_whose_time_is_over_before_it_comes_is_told_so() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    let late = PullRequest { expires: Nanos(-1), ..PullRequest::default() };
    let timeout = "mine 408 Request Timeout, Nats-Pending-Messages: 1, Nats-Pending-Bytes: 0";
    assert_eq!(world.pull(late), [timeout]);
}

#[test]
fn deliver_policies_begin_where_nats_server_begins() {
    let check = |config: ConsumerConfig, delivered: u64, pending: u64, lines: &[&str]| {
        let mut world = World::with_six_messages();
        world.consumer(ConsumerConfig { durable_name: "C".into(), ..config });
        assert_eq!(world.numbers(), [0, delivered, 0, delivered, 0, 0, pending]);
        assert_eq!(world.next(5), lines);
    };
    let policy = |deliver_policy| ConsumerConfig { deliver_policy, ..ConsumerConfig::default() };

    let last_per_subject =
        ConsumerConfig { filter_subject: "c1.>".into(), ..policy(DeliverPolicy::LastPerSubject) };
    check(last_per_subject, 3, 3, &["mine c1.0 1.4.1.2 3", "mine c1.1 1.5.2.1 4", "mine c1.2 1.6.3.0 5"]);
    let fifth = ConsumerConfig { opt_start_seq: 5, ..policy(DeliverPolicy::ByStartSequence) };
    check(fifth, 4, 2, &["mine c1.1 1.5.1.1 4", "mine c1.2 1.6.2.0 5"]);
    let beyond = ConsumerConfig { opt_start_seq: 50, ..policy(DeliverPolicy::ByStartSequence) };
    check(beyond, 49, 0, &[]);
    check(policy(DeliverPolicy::Last), 5, 1, &["mine c1.2 1.6.1.0 5"]);
    let last_of = ConsumerConfig { filter_subject: "c1.1".into(), ..policy(DeliverPolicy::Last) };
    check(last_of, 4, 1, &["mine c1.1 1.5.1.0 4"]);
    check(policy(DeliverPolicy::New), 6, 0, &[]);
    let at_start = ConsumerConfig { opt_start_time: Some(START), ..policy(DeliverPolicy::ByStartTime) };
    check(
        ConsumerConfig { filter_subject: "c1.2".into(), ..at_start },
        0,
        2,
        &["mine c1.2 1.3.1.1 2", "mine c1.2 1.6.2.0 5"],
    );
    let later = Some(START.plus(Nanos(1)));
    check(ConsumerConfig { opt_start_time: later, ..policy(DeliverPolicy::ByStartTime) }, 6, 0, &[]);
}

#[test]
fn several_filters_deliver_in_order_of_the_stream() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { filter_subjects: vec!["c1.2".into(), "c1.0".into()], ..no_acks() });

    let lines = world.next(9);

    let expected =
        ["mine c1.0 1.1.1.3 0", "mine c1.2 1.3.2.2 2", "mine c1.0 1.4.3.1 3", "mine c1.2 1.6.4.0 5"];
    assert_eq!(lines, expected);
}

#[test]
fn last_per_subject_continues_with_everything_that_came_later() {
    let mut world = World::with_six_messages();
    let config = ConsumerConfig {
        deliver_policy: DeliverPolicy::LastPerSubject,
        filter_subject: "c1.>".into(),
        ..explicit()
    };
    world.consumer(config);
    world.publish("c1.0", "6");
    world.publish("c1.0", "7");
    world.delete(5);

    assert_eq!(world.numbers(), [0, 3, 0, 3, 0, 0, 4]);
    assert_eq!(world.next(1), ["mine c1.0 1.4.1.3 3"]);
    world.commit();
    world.lead();
    assert_eq!(
        world.next(9),
        ["mine c1.2 1.6.2.2 5", "mine c1.0 1.7.3.1 6", "mine c1.0 1.8.4.0 7"],
        "also under a new leader"
    );
}

#[test]
fn headers_only_sends_the_size_instead_of_the_body() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { headers_only: true, ..no_acks() });

    assert_eq!(world.next(1), ["mine c1.0 1.1.1.5 NATS/1.0|Nats-Msg-Size: 1||"]);
}

#[test]
fn a_message_counts_with_its_subject_and_ack_subject_against_max_bytes() {
    let mut world = World::with_six_messages();
    world.consumer(no_acks());
    let size = |ack: &str| ("c1.0".len() + ack.len() + 1) as i64;
    let one = size("$JS.ACK.S.C.1.1.1.1000000000000.5");

    assert_eq!(
        world.pull(PullRequest { max_bytes: one - 1, ..expiring(3, 200) }),
        [format!(
            "mine 409 Message Size Exceeds MaxBytes, Nats-Pending-Messages: 3, Nats-Pending-Bytes: {}",
            one - 1
        )]
    );
    assert_eq!(world.pull(PullRequest { max_bytes: one, ..expiring(3, 200) }), ["mine c1.0 1.1.1.5 0"]);
    assert_eq!(world.info().num_waiting, 0, "an exact fill ends the request");
    assert_eq!(
        world.pull(PullRequest { max_bytes: one + 7, ..expiring(1, 200) }),
        ["mine c1.1 1.2.2.4 1", "mine 409 Batch Completed, Nats-Pending-Messages: 0, Nats-Pending-Bytes: 7"]
    );
}

#[test]
fn wrong_and_excessive_requests_are_refused_in_the_words_of_nats() {
    let mut world = World::with_six_messages();
    let config = ConsumerConfig {
        max_batch: 5,
        max_expires: Nanos::from_secs(60),
        max_bytes: 100,
        max_waiting: 1,
        ..explicit()
    };
    world.consumer(config);

    let heartbeat = PullRequest { idle_heartbeat: Nanos::from_secs(1), ..expiring(1, 1999) };
    assert_eq!(world.pull(heartbeat), ["mine 400 Bad Request - heartbeat value too large"]);
    assert_eq!(world.next(6), ["mine 409 Exceeded MaxRequestBatch of 5"]);
    assert_eq!(world.pull(expiring(1, 60_001)), ["mine 409 Exceeded MaxRequestExpires of 1m0s"]);
    let bytes = PullRequest { max_bytes: 101, ..expiring(1, 1) };
    assert_eq!(world.pull(bytes), ["mine 409 Exceeded MaxRequestMaxBytes of 100"]);

    world.next(5);
    world.next(5);
    assert_eq!(world.next(1), ["mine 409 Exceeded MaxWaiting"]);
    let silent = PullRequest { idle_heartbeat: Nanos::from_millis(100), ..expiring(1, 200) };
    assert_eq!(world.pull(silent), [""; 0]);
}

#[test]
fn a_no_wait_request_that_others_would_leave_nothing_for_is_told_so() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(explicit());
    world.next(3);
    world.publish("c1.0", "0");

    let request = || PullRequest { batch: 1, no_wait: true, ..PullRequest::default() };
    assert_eq!(world.pull_from("other", request()), ["other 408 Requests Pending", "mine c1.0 1.1.1.0 0"]);

    // Those of clients that are gone leave it.
    world.deaf.insert(b"mine".to_vec());
    world.publish("c1.0", "1");
    assert_eq!(world.pull_from("other", request()), ["other c1.0 1.2.2.0 1"]);
}

#[test]
fn a_request_whose_inbox_is_gone_takes_no_message_with_it() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { ack_wait: Nanos::from_secs(1), ..explicit() });
    world.deaf.insert(b"mine".to_vec());

    assert_eq!(world.next(3), [""; 0]);

    assert_eq!(world.numbers(), [0, 0, 0, 0, 0, 0, 6]);
    assert_eq!(world.info().num_waiting, 0);
    world.deaf.clear();
    assert_eq!(world.next(1), ["mine c1.0 1.1.1.5 0"]);
}

#[test]
fn an_abandoned_request_stops_waiting_when_interest_changes() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(explicit());
    world.next(1);
    assert_eq!(world.info().num_waiting, 1);

    world.deaf.insert(b"mine".to_vec());
    world.dispatch().on_interest_changed();
    world.run();

    assert_eq!(world.info().num_waiting, 0);
}

#[test]
fn max_ack_pending_makes_requests_wait_and_acks_make_room() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { max_ack_pending: 2, ..explicit() });

    assert_eq!(world.fetch(5).len(), 2);
    assert_eq!(world.info().num_waiting, 1, "it is not told that there are no messages");
    world.ack(1, AckKind::Ack);
    assert_eq!(world.run(), ["mine c1.2 1.3.3.3 2"]);
}

#[test]
fn closing_ends_all_requests() {
    let mut world = World::empty(StreamConfig::default());
    world.consumer(explicit());
    world.next(1);
    let now = world.now;
    world.dispatch().on_pull(&PullRequest::default(), Bytes::from_static(b"late"), now);

    let ended: Vec<String> = world.dispatch().close(Closed::Deleted).iter().map(notice).collect();

    assert_eq!(ended, ["mine 409 Consumer Deleted", "late 409 Consumer Deleted"]);
    assert_eq!(world.info().num_waiting, 0);
}

#[test]
fn a_paused_consumer_delivers_nothing_until_its_time() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    let until = world.now.plus(Nanos::from_secs(5));
    let (now, name) = (world.now, world.name.clone());
    world.apply(StreamCommand::PauseConsumer { now, name, until });

    assert_eq!(world.next(1), ["Paused { paused: true, until: Timestamp(1005000000000) }"]);
    let info = world.info();
    assert_eq!((info.paused, info.pause_remaining), (true, Nanos::from_secs(5)));
    assert_eq!(world.fetch(1), ["mine 404 No Messages"]);
    assert_eq!(world.pass(Nanos::from_secs(4)), [""; 0]);
    assert_eq!(
        world.pass(Nanos::from_secs(1)),
        ["Paused { paused: false, until: Timestamp(1005000000000) }", "mine c1.0 1.1.1.5 0"]
    );
}

#[test]
fn an_ephemeral_consumer_goes_after_its_threshold_without_requests() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { durable_name: String::new(), ..no_acks() });
    assert_eq!(world.info().config.unwrap().inactive_threshold, Nanos::from_secs(5));

    world.pass(Nanos::from_secs(3));
    world.next(1);
    assert_eq!(world.pass(Nanos::from_secs(4)), [""; 0]);
    world.next(9);
    assert_eq!(world.pass(Nanos::from_secs(60)), [""; 0], "a waiting request keeps it");
    world.deaf.insert(b"mine".to_vec());
    assert_eq!(world.pass(Nanos::from_secs(11)).first().map(String::as_str), Some("inactive"));
}

#[test]
fn a_filtered_consumer_at_the_end_has_seen_the_whole_stream() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { filter_subject: "c1.0".into(), ..no_acks() });

    world.next(9);

    assert_eq!(world.numbers()[..2], [2, 6]);
    world.publish("c1.1", "6");
    assert_eq!(world.run(), [""; 0]);
    world.publish("c1.0", "7");
    assert_eq!(world.run(), ["mine c1.0 1.8.3.0 7"]);
}

#[test]
fn the_original_pace_is_kept_up_to_where_it_began() {
    let mut world = World::empty(StreamConfig::default());
    for number in 0..3 {
        world.publish("c1.0", &number.to_string());
        world.now = world.now.plus(Nanos::from_millis(100));
    }
    world
        .consumer(ConsumerConfig { replay_policy: levee_protocol::api::ReplayPolicy::Original, ..no_acks() });

    assert_eq!(world.next(9).len(), 1);
    assert_eq!(world.pass(Nanos::from_millis(99)).len(), 0);
    assert_eq!(world.pass(Nanos::from_millis(1)).len(), 1);
    assert_eq!(world.pass(Nanos::from_millis(100)).len(), 1);
    world.publish("c1.0", "3");
    assert_eq!(world.run().len(), 1);
}

#[test]
fn a_client_that_works_on_a_message_uses_the_consumer() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { durable_name: String::new(), ..explicit() });
    world.next(1);

    assert_eq!(world.pass(Nanos::from_secs(20)), [""; 0], "the ack is not overdue yet");
    world.ack(1, AckKind::Ack);
    assert_eq!(world.pass(Nanos::from_secs(4)), [""; 0]);
    assert_eq!(world.pass(Nanos::from_secs(11)).first().map(String::as_str), Some("inactive"));
}

#[test]
fn a_threshold_counts_from_when_it_was_set() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    world.pass(Nanos::from_secs(3600));

    world.consumer(ConsumerConfig { inactive_threshold: Nanos::from_secs(5), ..explicit() });

    assert_eq!(world.pass(Nanos::from_secs(4)), [""; 0]);
    assert_eq!(world.pass(Nanos::from_secs(1)), ["inactive"]);
}

#[test]
fn messages_that_only_new_filters_match_are_not_delivered_later_by_another_leader() {
    let mut world = World::with_six_messages();
    world.consumer(ConsumerConfig { filter_subject: "c1.0".into(), ..explicit() });
    assert_eq!(world.next(2).len(), 2);
    world.next(1);
    world.commit();
    let both = ConsumerConfig { filter_subjects: vec!["c1.0".into(), "c1.2".into()], ..explicit() };

    world.consumer(both);
    world.run();
    world.commit();
    world.lead();

    assert_eq!(world.info().num_pending, 0);
    world.publish("c1.2", "new");
    assert_eq!(world.info().num_pending, 1);
}
