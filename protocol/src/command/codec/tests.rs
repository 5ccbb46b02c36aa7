use proptest::prelude::*;

use super::*;
use crate::api::{AccountLimits, ConsumerConfig, StreamConfig, StreamSource};
use crate::archive::consumer::{ArchivedConsumer, ConsumerState};
use crate::command::meta::NodeRegistration;
use crate::ids::{AccountName, GroupId, NodeId, StreamName};
use crate::record::{BlockBuilder, RecordFlags, RecordRef};
use crate::time::Nanos;

fn names() -> impl Strategy<Value = ConsumerName> {
    "[a-zA-Z0-9_-]{1,20}".prop_map(|text| ConsumerName::parse(&text).unwrap())
}

fn times() -> impl Strategy<Value = Timestamp> {
    prop_oneof![Just(Timestamp::ZERO), any::<i64>().prop_map(Timestamp)]
}

fn stream_names() -> impl Strategy<Value = StreamName> {
    "[a-zA-Z0-9_-]{1,20}".prop_map(|name| StreamName::parse(&name).unwrap())
}

fn tags() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[!a-z:]{1,8}", 0..3)
}

fn streams() -> impl Strategy<Value = Box<StreamConfig>> {
    let text = "[a-zA-Z.>*\"]{0,12}";
    let texts = prop::collection::vec(text, 0..3);
    let map = prop::collection::btree_map(text, text, 0..3);
    (text, texts, map, any::<(i64, i64, i32, u64, bool, bool)>()).prop_map(
        |(name, subjects, metadata, (max_msgs, max_age, replicas, first_seq, no_ack, has_mirror))| {
            Box::new(StreamConfig {
                mirror: has_mirror.then(|| StreamSource { name: name.clone(), ..StreamSource::default() }),
                name,
                subjects,
                metadata,
                max_msgs,
                max_age: Nanos(max_age),
                num_replicas: replicas,
                first_seq,
                no_ack,
                ..StreamConfig::default()
            })
        },
    )
}

fn consumers() -> impl Strategy<Value = Box<ConsumerConfig>> {
    ("[a-z]{0,9}", prop::collection::vec(any::<i64>(), 0..3), any::<(u64, i64, Option<i64>, bool)>())
        .prop_map(|(name, backoff, (opt_start_seq, max_deliver, time, headers_only))| {
            Box::new(ConsumerConfig {
                name,
                backoff: backoff.into_iter().map(Nanos).collect(),
                opt_start_seq,
                opt_start_time: time.map(Timestamp),
                max_deliver,
                headers_only,
                ..ConsumerConfig::default()
            })
        })
}

fn progress() -> impl Strategy<Value = Progress> {
    let delivered =
        (any::<(u64, u64, u32, u32)>(), times()).prop_map(|((consumer_seq, seq, count, attempt), at)| {
            DeliveredRun { first_consumer_seq: consumer_seq, first_seq: Seq(seq), count, attempt, at }
        });
    let settled = (any::<(u64, u64)>(), 0_u32..4).prop_map(|((first, last), how)| SettledRun {
        first: Seq(first),
        last: Seq(last),
        how: settlement_from(how).unwrap(),
    });
    let dead = (any::<u64>(), 0_u32..2, "[a-z ]{0,9}").prop_map(|(seq, cause, detail)| DeadMessage {
        seq: Seq(seq),
        cause: DeathCause::from_number(cause).unwrap(),
        detail,
    });
    let consumer = (
        (names(), any::<u64>()),
        prop::collection::vec(any::<u64>().prop_map(Seq), 0..3),
        prop::collection::vec(delivered, 0..4),
        (any::<u64>().prop_map(Seq), prop::collection::vec((any::<u64>().prop_map(Seq), times()), 0..3)),
        prop::collection::vec(dead, 0..3),
        prop::collection::vec(settled, 0..4),
    )
        .prop_map(|((name, incarnation), passed, delivered, (through, waits), dead, settled)| {
            ConsumerProgress { name, incarnation, passed, delivered, through, waits, dead, settled }
        });
    (times(), prop::collection::vec(consumer, 0..4)).prop_map(|(now, consumers)| Progress { now, consumers })
}

fn commands() -> impl Strategy<Value = StreamCommand> {
    let block = (prop::collection::vec(("[a-z.]{1,9}", any::<Vec<u8>>()), 1..4), times()).prop_map(
        |(records, now)| {
            let mut builder = BlockBuilder::default();
            for (subject, payload) in records {
                builder.push(subject.as_bytes(), b"", &payload);
            }
            StreamCommand::Publish(builder.finish(now))
        },
    );
    prop_oneof![
        block,
        (times(), times(), streams()).prop_map(|(now, created, config)| StreamCommand::Configure {
            now,
            created,
            config
        }),
        (times(), "[a-z.>]{0,9}", any::<(u64, u64)>()).prop_map(|(now, filter, (seq, keep))| {
            StreamCommand::Purge { now, request: PurgeRequest { filter, seq, keep } }
        }),
        (times(), any::<u64>()).prop_map(|(now, seq)| StreamCommand::DeleteMessage { now, seq: Seq(seq) }),
        times().prop_map(|now| StreamCommand::Tick { now }),
        (times(), names(), consumers(), 0_u32..3, any::<i64>()).prop_map(
            |(now, name, config, action, default_max)| {
                let action = action_from(action).unwrap();
                StreamCommand::CreateConsumer { now, name, config, action, default_max }
            }
        ),
        (times(), names(), proptest::option::of(1..u64::MAX)).prop_map(|(now, name, incarnation)| {
            StreamCommand::DeleteConsumer { now, name, incarnation }
        }),
        progress().prop_map(StreamCommand::Progress),
        (times(), names(), times()).prop_map(|(now, name, until)| StreamCommand::PauseConsumer {
            now,
            name,
            until
        }),
        (times(), any::<u64>()).prop_map(|(now, seq)| StreamCommand::RestoreBegin { now, first: Seq(seq) }),
        (times(), any::<u64>(), times()).prop_map(|(now, seq, last_time)| StreamCommand::RestoreEnd {
            now,
            last: Seq(seq),
            last_time
        }),
        (times(), names(), consumers(), any::<(u64, u64)>()).prop_map(|(now, name, config, (seq, again))| {
            let state =
                ConsumerState { redelivered: Some([(seq, again)].into()), ..ConsumerState::default() };
            let consumer = Box::new(ArchivedConsumer { config: *config, state });
            StreamCommand::RestoreConsumer { now, name, consumer }
        }),
        (times(), any::<u64>(), any::<Vec<u8>>()).prop_map(|(now, seq, payload)| {
            let mut builder = BlockBuilder::placed(Seq(seq), 0);
            let record = RecordRef { timestamp: now, subject: b"a", header: b"", payload: &payload };
            builder.push_timed(RecordFlags::PUBLISHED, &record);
            StreamCommand::Restore(builder.finish(now))
        }),
        (times(), names(), any::<u64>()).prop_map(|(now, name, seq)| StreamCommand::ResetConsumer {
            now,
            name,
            seq: Seq(seq)
        }),
    ]
}

fn meta_commands() -> impl Strategy<Value = MetaCommand> {
    let account = || AccountName::global();
    let nodes = || prop::collection::vec(any::<u64>().prop_map(NodeId), 0..4);
    prop_oneof![
        (times(), any::<u64>(), ".{0,9}", ".{0,9}").prop_map(|(now, id, name, cluster_address)| {
            MetaCommand::RegisterNode {
                now,
                node: NodeRegistration {
                    id: NodeId(id),
                    tags: vec![name.clone()],
                    unique_tag: name.clone(),
                    name,
                    cluster_address,
                },
            }
        }),
        (times(), any::<u64>(), nodes()).prop_map(|(now, id, alive)| MetaCommand::RemoveNode {
            now,
            node: NodeId(id),
            alive
        }),
        (times(), any::<u64>(), nodes()).prop_map(|(now, id, alive)| MetaCommand::EvacuateNode {
            now,
            node: NodeId(id),
            alive
        }),
        (times(), nodes()).prop_map(|(now, alive)| MetaCommand::FillUp { now, alive }),
        (times(), stream_names(), any::<u64>(), nodes()).prop_map(move |(now, name, id, alive)| {
            MetaCommand::MoveReplica { now, account: account(), name, from: NodeId(id), alive }
        }),
        (times(), stream_names(), prop::option::of(any::<u64>()), tags(), nodes()).prop_map(
            move |(now, name, from, tags, alive)| {
                let from = from.map(NodeId);
                MetaCommand::MoveStream { now, account: account(), name, from, tags, alive }
            }
        ),
        (times(), stream_names()).prop_map(move |(now, name)| MetaCommand::CancelMove {
            now,
            account: account(),
            name
        }),
        (times(), any::<u64>(), nodes()).prop_map(|(now, group, replicas)| MetaCommand::EndMove {
            now,
            group: GroupId(group),
            replicas
        }),
        (times(), streams(), nodes()).prop_map(move |(now, config, alive)| MetaCommand::CreateStream {
            now,
            account: account(),
            config,
            alive,
            limits: AccountLimits::default(),
            restoring: now == Timestamp::ZERO,
        }),
        (times(), any::<(u64, bool)>()).prop_map(|(now, (group, complete))| MetaCommand::EndRestore {
            now,
            group: GroupId(group),
            complete
        }),
        (times(), streams(), nodes()).prop_map(move |(now, config, alive)| MetaCommand::UpdateStream {
            now,
            account: account(),
            config,
            alive,
            limits: AccountLimits { max_streams: now.0, ..AccountLimits::default() },
        }),
        (times(), "[a-zA-Z0-9_-]{1,20}").prop_map(move |(now, name)| MetaCommand::DeleteStream {
            now,
            account: account(),
            name: StreamName::parse(&name).unwrap()
        }),
    ]
}

proptest! {
    #[test]
    fn stream_commands_come_back(command in commands()) {
        prop_assert_eq!(StreamCommand::decode(command.encode().into_bytes()), Ok(command));
    }

    #[test]
    fn meta_commands_come_back(command in meta_commands()) {
        prop_assert_eq!(MetaCommand::decode(&command.encode().into_bytes()), Ok(command));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = StreamCommand::decode(bytes.clone().into());
        let _ = MetaCommand::decode(&bytes);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pinned(command: &StreamCommand, bytes: &str) {
    let encoded = command.encode().into_bytes();
    assert_eq!(hex(&encoded), bytes, "{command:?}");
    assert_eq!(StreamCommand::decode(encoded).as_ref(), Ok(command));
}

#[test]
fn bytes_of_stream_commands_are_pinned() {
    let now = Timestamp(0x0102_0304_0506_0708);
    let name = || ConsumerName::parse("c").unwrap();
    let request = PurgeRequest { filter: "a.>".to_owned(), seq: 300, keep: 1 };

    pinned(&StreamCommand::Tick { now }, "13090807060504030201");
    pinned(&StreamCommand::RestoreBegin { now, first: Seq(7) }, "200908070605040302011007");
    pinned(
        &StreamCommand::RestoreEnd { now, last: Seq(7), last_time: Timestamp(2) },
        "220908070605040302011007190200000000000000",
    );
    let consumer = StreamCommand::RestoreConsumer { now, name: name(), consumer: Box::default() };
    assert_eq!(consumer.encode().into_bytes()[0], 33);
    pinned(&StreamCommand::DeleteMessage { now, seq: Seq(7) }, "120908070605040302011007");
    pinned(&StreamCommand::Purge { now, request }, "110908070605040302011203612e3e18ac022001");
    pinned(
        &StreamCommand::DeleteConsumer { now, name: name(), incarnation: None },
        "15090807060504030201120163",
    );
    pinned(
        &StreamCommand::PauseConsumer { now, name: name(), until: Timestamp::ZERO },
        "17090807060504030201120163190000000000000080",
    );
    pinned(
        &StreamCommand::ResetConsumer { now, name: name(), seq: Seq(7) },
        "300908070605040302011201631807",
    );
    let consumer = ConsumerProgress {
        name: name(),
        incarnation: 5,
        delivered: vec![DeliveredRun {
            first_consumer_seq: 1,
            first_seq: Seq(2),
            count: 3,
            attempt: 1,
            at: Timestamp(4),
        }],
        passed: Vec::new(),
        through: Seq::NONE,
        waits: Vec::new(),
        dead: Vec::new(),
        settled: vec![SettledRun { first: Seq(2), last: Seq(3), how: Settlement::Terminated }],
    };
    pinned(
        &StreamCommand::Progress(Progress { now, consumers: vec![consumer.clone()] }),
        "1609080706050403020112200a016310051a1108011002180320012904000000000000002206080210031802",
    );
    let extended = ConsumerProgress {
        passed: vec![Seq(7)],
        delivered: Vec::new(),
        through: Seq(9),
        waits: vec![(Seq(7), Timestamp(4))],
        dead: vec![DeadMessage { seq: Seq(2), cause: DeathCause::Terminated, detail: "x".into() }],
        settled: Vec::new(),
        ..consumer
    };
    pinned(
        &StreamCommand::Progress(Progress { now, consumers: vec![extended] }),
        "3109080706050403020112200a016310052a07080210011a01783201073a0b08071104000000000000004009",
    );
    let block = {
        let mut builder = BlockBuilder::default();
        builder.push(b"a", b"", b"x");
        builder.finish(Timestamp(1))
    };
    assert_eq!(BlockBuilder::placed(Seq(1), 0).finish(Timestamp(1)).as_bytes()[0], 4);
    assert_eq!(block.as_bytes()[0], 2, "the version of a block is what tells it from other commands");
}

#[test]
fn numbers_of_configurations_in_commands_are_pinned() {
    let now = Timestamp(1);
    let configure =
        StreamCommand::Configure { now, created: now, config: Box::new(StreamConfig::default()) }.encode();
    assert_eq!(configure.into_bytes()[0], 16);
    let create = StreamCommand::CreateConsumer {
        now,
        name: ConsumerName::parse("c").unwrap(),
        config: Box::new(ConsumerConfig::default()),
        action: ConsumerCreateAction::Update,
        default_max: 0,
    };
    let bytes = create.encode().into_bytes();
    assert_eq!(bytes[0], 20);
    assert!(bytes.ends_with(&[0x20, 2]));
}

#[test]
fn bytes_of_meta_commands_are_pinned() {
    let end = MetaCommand::EndRestore { now: Timestamp::ZERO, group: GroupId(9), complete: true };
    assert_eq!(
        &end.encode().into_bytes()[..],
        b"\x10{\"EndRestore\":{\"now\":\"0001-01-01T00:00:00Z\",\"group\":9,\"complete\":true}}"
    );
    let remove = MetaCommand::RemoveNode { now: Timestamp::ZERO, node: NodeId(9), alive: Vec::new() };
    let bytes = remove.encode().into_bytes();

    assert_eq!(&bytes[..], b"\x02{\"RemoveNode\":{\"now\":\"0001-01-01T00:00:00Z\",\"node\":9}}");
    let fill = MetaCommand::FillUp { now: Timestamp::ZERO, alive: vec![NodeId(9)] };
    assert_eq!(
        &fill.encode().into_bytes()[..],
        b"\x13{\"FillUp\":{\"now\":\"0001-01-01T00:00:00Z\",\"alive\":[9]}}"
    );
    let mut renumbered = bytes.to_vec();
    renumbered[0] = 3;
    assert!(MetaCommand::decode(&renumbered).is_err());
}

#[test]
fn commands_of_a_newer_release_are_refused_with_a_hint() {
    let error = StreamCommand::decode(Bytes::from_static(&[200])).unwrap_err();
    assert!(error.to_string().contains("newer release"), "{error}");
    assert!(StreamCommand::decode(Bytes::new()).is_err());
    assert!(StreamCommand::decode(Bytes::from_static(&[2, 0, 0])).is_err());
}
