//! Create and update: what is refused, with which number and words.

use levee_protocol::api::{ApiError, DeliverPolicy, RetentionPolicy};

use super::*;

fn refusal(reply: Reply) -> (u16, String) {
    match reply {
        Reply::Rejected(ApiError { err_code, description, .. }) => (err_code, description),
        other => panic!("not refused: {other:?}"),
    }
}

const ANY: ConsumerCreateAction = ConsumerCreateAction::CreateOrUpdate;

#[test]
fn fields_that_can_not_be_updated_are_refused_in_the_words_of_nats() {
    let check = |config: ConsumerConfig, text: &str| {
        let mut world = World::with_six_messages();
        world.consumer(explicit());
        assert_eq!(refusal(world.request(config, ANY)), (10012, text.to_owned()));
    };

    check(ConsumerConfig { ack_policy: AckPolicy::All, ..explicit() }, "ack policy can not be updated");
    let push = ConsumerConfig { deliver_subject: "z".into(), ..explicit() };
    check(push, "can not update pull consumer to push based");
    check(ConsumerConfig { max_waiting: 7, ..explicit() }, "max waiting can not be updated");
    check(
        ConsumerConfig { deliver_policy: DeliverPolicy::New, ..explicit() },
        "deliver policy can not be updated",
    );
    check(ConsumerConfig { mem_storage: true, ..explicit() }, "storage type can not be updated");
}

#[test]
fn create_update_and_either_do_what_they_say() {
    let mut world = World::with_six_messages();
    let changed = ConsumerConfig { ack_wait: Nanos::from_secs(1), ..explicit() };

    assert_eq!(refusal(world.request(explicit(), ConsumerCreateAction::Update)).0, 10149);
    assert!(matches!(world.request(explicit(), ConsumerCreateAction::Create), Reply::Consumer(_)));
    assert!(
        matches!(world.request(explicit(), ConsumerCreateAction::Create), Reply::Consumer(_)),
        "the same again"
    );
    assert_eq!(refusal(world.request(changed.clone(), ConsumerCreateAction::Create)).0, 10148);
    assert!(matches!(world.request(changed, ConsumerCreateAction::Update), Reply::Consumer(_)));

    let ledger = world.machine.consumer(&world.name).unwrap();
    assert_eq!(ledger.config().ack_wait, Nanos::from_secs(1));
}

#[test]
fn an_update_keeps_the_pause_and_takes_effect_at_once() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    let (now, name) = (world.now, world.name.clone());
    let until = now.plus(Nanos::from_secs(9));
    world.apply(StreamCommand::PauseConsumer { now, name, until });

    world.consumer(ConsumerConfig { max_ack_pending: 1, filter_subject: "c1.1".into(), ..explicit() });

    assert_eq!(world.info().num_pending, 2);
    assert!(world.info().paused);
    let level = world.info().config.unwrap().metadata["_nats.req.level"].clone();
    assert_eq!(level, "1", "pausing needs an API level");
    let told = ["true", "false"].map(|paused| format!("Paused {{ paused: {paused}, until: {until:?} }}"));
    assert_eq!(world.pass(Nanos::from_secs(9)), told);
    assert_eq!(world.next(2), ["mine c1.1 1.2.1.1 1"]);
}

#[test]
fn a_reset_consumer_begins_again_and_old_reports_do_not_count() {
    let mut world = World::with_six_messages();
    world.consumer(explicit());
    assert_eq!(world.next(3).len(), 3);
    let old = world.dispatch.as_mut().unwrap().take_progress().unwrap();
    let (now, name) = (world.now, world.name.clone());
    let mut reset = |seq| {
        let outcome = world.apply(StreamCommand::ResetConsumer { now, name: name.clone(), seq: Seq(seq) });
        let info = world.info();
        (outcome.reply, info.delivered.stream_seq, info.delivered.consumer_seq, info.num_pending)
    };

    assert_eq!(reset(3), (Reply::Reset { seq: Seq(3) }, Seq(2), 0, 4));
    assert_eq!(reset(0), (Reply::Reset { seq: Seq(3) }, Seq(2), 0, 4), "to the ack floor");
    world.apply(StreamCommand::Progress(Progress { now, consumers: vec![old] }));
    assert_eq!(world.machine.consumer(&world.name).unwrap().marks().delivered().stream, Seq(2));
    assert_eq!(world.next(1).len(), 1);
    assert_eq!(world.info().delivered.stream_seq, Seq(3));
}

#[test]
fn a_reset_respects_the_deliver_policy() {
    let refused = |config: ConsumerConfig, seq: u64| {
        let mut world = World::with_six_messages();
        world.consumer(config);
        let (now, name, seq) = (world.now, world.name.clone(), Seq(seq));
        match world.apply(StreamCommand::ResetConsumer { now, name, seq }).reply {
            Reply::Rejected(error) => error.description,
            reply => format!("{reply:?}"),
        }
    };
    let from = |policy| ConsumerConfig { deliver_policy: policy, ..explicit() };
    let from_four = || ConsumerConfig { opt_start_seq: 4, ..from(DeliverPolicy::ByStartSequence) };

    assert_eq!(refused(from_four(), 3), "invalid reset: below start seq");
    assert_eq!(refused(from_four(), 4), "Reset { seq: Seq(4) }");
    assert_eq!(refused(from(DeliverPolicy::Last), 6), "invalid reset: not allowed");
    assert_eq!(refused(from(DeliverPolicy::Last), 0), "Reset { seq: Seq(6) }");
}

#[test]
fn the_number_of_consumers_is_limited() {
    let mut world = World::with_six_messages();
    let limited = StreamConfig { max_consumers: 1, ..world.machine.config().unwrap().clone() };
    let (now, created) = (world.now, START);
    world.apply(StreamCommand::Configure { now, created, config: Box::new(limited) });
    world.consumer(explicit());

    world.name = ConsumerName::parse("second").unwrap();
    let second = ConsumerConfig { durable_name: "second".into(), ..explicit() };

    assert_eq!(refusal(world.request(second, ANY)).0, 10026);
}

#[test]
fn the_server_bounds_consumers_of_streams_that_do_not() {
    let mut world = World::with_six_messages();
    let mut create = |which: u32, default_max| {
        let name = ConsumerName::parse(&format!("c{which}")).unwrap();
        let config = Box::new(ConsumerConfig { durable_name: name.to_string(), ..explicit() });
        let command =
            StreamCommand::CreateConsumer { now: world.now, name, config, action: ANY, default_max };
        matches!(world.apply(command).reply, Reply::Consumer(_))
    };

    assert!(create(1, 2) && create(2, 2));
    assert!(!create(3, 2), "no more than are allowed");
    assert!((3..=1000).all(|which| create(which, 0)), "a thousand by default");
    assert!(!create(1001, 0));
    assert!(create(1001, -1), "as many as wanted");
}

#[test]
fn consumers_of_a_work_queue_do_not_share_messages() {
    let mut world =
        World::empty(StreamConfig { retention: RetentionPolicy::WorkQueue, ..StreamConfig::default() });
    let mut create = |name: &str, filter: &str| {
        world.name = ConsumerName::parse(name).unwrap();
        let config =
            ConsumerConfig { durable_name: name.into(), filter_subject: filter.into(), ..explicit() };
        match world.request(config, ANY) {
            Reply::Rejected(error) => error.err_code,
            _ => 0,
        }
    };

    assert_eq!(create("a", "c1.a.>"), 0);
    assert_eq!(create("b", ""), 10099);
    assert_eq!(create("b", "c1.*.x"), 10100);
    assert_eq!(create("b", "c1.b.>"), 0);
    assert_eq!(create("b", "c1.>"), 10100, "an update is held to it too");
}

#[test]
fn what_is_not_built_yet_is_refused() {
    let mut world = World::with_six_messages();
    let config = ConsumerConfig {
        deliver_subject: "to".into(),
        durable_name: String::new(),
        direct: true,
        ..no_acks()
    };

    assert_eq!(
        refusal(world.request(config, ANY)),
        (10012, "sourcing consumers are not supported yet".to_owned())
    );
}
