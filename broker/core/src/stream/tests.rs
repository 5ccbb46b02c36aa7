use std::collections::BTreeMap;
use std::path::Path;

use levee_protocol::api::{
    AckPolicy, ConsumerConfig, ConsumerCreateAction, DiscardPolicy, PublishIntent, PurgeRequest,
    RetentionPolicy, StreamConfig, Ttl,
};
use levee_protocol::command::progress::{DeliveredRun, SettledRun, Settlement};
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::BlockBuilder;
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::testing::{Bench, run_script};

mod many_subjects;
mod removals;

/// Every script says what the machine does today. `UPDATE_EXPECT=1` rewrites them; review the diff.
#[test]
fn scripts_come_out_as_written() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stream");
    let rewrites = std::env::var("UPDATE_EXPECT").is_ok_and(|value| value == "1");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let expected = std::fs::read_to_string(&path).unwrap();
        let actual = run_script(&expected);
        if rewrites {
            std::fs::write(&path, &actual).unwrap();
        } else {
            assert_eq!(actual, expected, "{}", path.display());
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        later_ms: i16,
        records: Vec<Draft>,
    },
    Configure {
        max_msgs: u8,
        per_subject: u8,
        max_age_s: u8,
        discard_new: bool,
        interest: bool,
        markers: bool,
    },
    Purge {
        filter: u8,
        seq: u8,
        keep: u8,
    },
    Delete {
        at: u8,
    },
    Tick {
        later_ms: u16,
    },
    Markers,
    Consumer {
        which: u8,
        filter: u8,
    },
    DeleteConsumer {
        which: u8,
    },
    Progress {
        which: u8,
        deliver: u8,
        settle: u8,
    },
}

#[derive(Clone, Debug)]
struct Draft {
    subject: u8,
    size: u8,
    id: u8,
    rollup: u8,
    expect: u8,
    ttl: u8,
}

fn draft() -> impl Strategy<Value = Draft> {
    (0..6_u8, 0..40_u8, 0..30_u8, 0..60_u8, 0..30_u8, 0..12_u8)
        .prop_map(|(subject, size, id, rollup, expect, ttl)| Draft { subject, size, id, rollup, expect, ttl })
}

fn step() -> impl Strategy<Value = Step> {
    let blocks =
        prop_oneof![4 => prop::collection::vec(draft(), 1..6), 1 => prop::collection::vec(draft(), 1..60)];
    prop_oneof![
        12 => (-60..250_i16, blocks).prop_map(|(later_ms, records)| Step::Publish { later_ms, records }),
        1 => (0..30_u8, 0..8_u8, 0..4_u8, any::<bool>(), 0..3_u8, any::<bool>()).prop_map(
            |(max_msgs, per_subject, max_age_s, discard_new, interest, markers)| {
                Step::Configure { max_msgs, per_subject, max_age_s, discard_new, interest: interest == 0, markers }
            }
        ),
        1 => (0..5_u8, any::<u8>(), 0..9_u8).prop_map(|(filter, seq, keep)| Step::Purge { filter, seq, keep }),
        3 => any::<u8>().prop_map(|at| Step::Delete { at }),
        2 => (0..3000_u16).prop_map(|later_ms| Step::Tick { later_ms }),
        2 => Just(Step::Markers),
        1 => (0..3_u8, 0..5_u8).prop_map(|(which, filter)| Step::Consumer { which, filter }),
        1 => (0..3_u8).prop_map(|which| Step::DeleteConsumer { which }),
        4 => (0..3_u8, 1..9_u8, any::<u8>())
            .prop_map(|(which, deliver, settle)| Step::Progress { which, deliver, settle }),
    ]
}

/// Turns a step into a command that makes sense for the machine as it is.
fn command(
    machine: &StreamMachine,
    config: &mut StreamConfig,
    now: &mut Timestamp,
    step: &Step,
) -> StreamCommand {
    let filter = |which: u8| ["", ">", "s.*.x", "s.1.x", "s.2.>"][usize::from(which)];
    let name = |which: u8| ConsumerName::parse(&format!("c{which}")).unwrap();
    match step {
        Step::Publish { later_ms, records } => {
            *now = now.plus(Nanos::from_millis(i64::from(*later_ms)));
            let mut block = BlockBuilder::default();
            for record in records {
                block.push(
                    subject(record.subject).as_bytes(),
                    &header(machine, record),
                    &vec![0; record.size.into()],
                );
            }
            StreamCommand::Publish(block.finish(*now))
        }
        Step::Configure { max_msgs, per_subject, max_age_s, discard_new, interest, markers } => {
            config.subject_delete_marker_ttl = Nanos::from_secs(i64::from(*markers));
            config.max_msgs = if *max_msgs < 5 { -1 } else { i64::from(*max_msgs) };
            config.max_msgs_per_subject = [-1, -1, 1, 1, 2, 5, 257, 260][usize::from(*per_subject)];
            config.max_age = Nanos::from_secs(i64::from(*max_age_s));
            config.discard = if *discard_new { DiscardPolicy::New } else { DiscardPolicy::Old };
            config.retention = if *interest { RetentionPolicy::Interest } else { RetentionPolicy::Limits };
            StreamCommand::Configure { now: *now, created: Timestamp(0), config: Box::new(config.clone()) }
        }
        Step::Purge { filter: which, seq, keep } => {
            let seq =
                if *seq < 128 { 0 } else { machine.last_seq().0.saturating_sub(u64::from(*seq - 128) / 4) };
            let keep = if seq > 0 { 0 } else { u64::from(*keep) };
            let request = PurgeRequest { filter: filter(*which).into(), seq, keep };
            StreamCommand::Purge { now: *now, request }
        }
        Step::Delete { at } => {
            let span = machine.last_seq().0.saturating_sub(machine.first_seq().0) + 1;
            let seq = Seq(machine.first_seq().0 + u64::from(*at) % span);
            StreamCommand::DeleteMessage { now: *now, seq }
        }
        Step::Tick { later_ms } => {
            *now = now.plus(Nanos::from_millis(i64::from(*later_ms)));
            StreamCommand::Tick { now: *now }
        }
        Step::Markers => match machine.owed_markers(*now) {
            Some(block) => StreamCommand::Publish(block),
            None => StreamCommand::Tick { now: *now },
        },
        Step::Consumer { which, filter: other } => {
            let config = ConsumerConfig {
                durable_name: name(*which).as_str().into(),
                name: name(*which).as_str().into(),
                ack_policy: AckPolicy::Explicit,
                filter_subject: filter(*other).into(),
                ..ConsumerConfig::default()
            };
            let action = ConsumerCreateAction::CreateOrUpdate;
            StreamCommand::CreateConsumer {
                now: *now,
                name: name(*which),
                config: Box::new(config),
                action,
                default_max: 0,
            }
        }
        Step::DeleteConsumer { which } => {
            StreamCommand::DeleteConsumer { now: *now, name: name(*which), incarnation: None }
        }
        Step::Progress { which, deliver, settle } => {
            let mut consumers = Vec::new();
            if let Some(ledger) = machine.consumer(&name(*which)) {
                consumers.push(progress(machine, ledger, *now, u64::from(*deliver), *settle));
            }
            StreamCommand::Progress(Progress { now: *now, consumers })
        }
    }
}

fn progress(
    machine: &StreamMachine,
    ledger: &Ledger,
    now: Timestamp,
    deliver: u64,
    settle: u8,
) -> ConsumerProgress {
    let (first, count, delivering) = delivering(machine, ledger, now, deliver);
    let settled = (0..8)
        .filter(|bit| settle & (1 << bit) != 0)
        .map(|bit| Seq(first.0.saturating_sub(3) + bit))
        .filter(|seq| *seq >= machine.first_seq() && seq.0 < first.0 + count)
        .map(|seq| SettledRun { first: seq, last: seq, how: Settlement::Acked });
    let mut settled: Vec<SettledRun> = settled.collect();
    // Clients ack in any order.
    if settle & 1 != 0 {
        settled.reverse();
    }
    if settle & 2 != 0 && !settled.is_empty() {
        settled.rotate_left(1);
    }
    ConsumerProgress { settled, ..delivering }
}

/// Delivers so many of the messages that come next, or as many as there are: the first of them, how many, and the report.
fn delivering(
    machine: &StreamMachine,
    ledger: &Ledger,
    now: Timestamp,
    deliver: u64,
) -> (Seq, u64, ConsumerProgress) {
    let position = ledger.marks().delivered();
    let first = position.stream.next().max(machine.first_seq());
    let count = deliver.min((machine.last_seq().0 + 1).saturating_sub(first.0));
    let delivered = DeliveredRun {
        first_consumer_seq: position.consumer + 1,
        first_seq: first,
        count: u32::try_from(count).unwrap(),
        attempt: 1,
        at: now,
    };
    let progress = ConsumerProgress {
        name: ledger.name().clone(),
        incarnation: ledger.incarnation(),
        delivered: if count > 0 { vec![delivered] } else { Vec::new() },
        passed: Vec::new(),
        through: Seq::NONE,
        waits: Vec::new(),
        dead: Vec::new(),
        settled: Vec::new(),
    };
    (first, count, progress)
}

fn subject(which: u8) -> String {
    format!("s.{}.{}", which % 3, if which < 3 { "x" } else { "y" })
}

fn header(machine: &StreamMachine, record: &Draft) -> Vec<u8> {
    let mut lines = String::new();
    if record.id < 15 {
        lines.push_str(&format!("Nats-Msg-Id: {}\r\n", record.id));
    }
    match record.rollup {
        0 => lines.push_str("Nats-Rollup: all\r\n"),
        1 | 2 => lines.push_str("Nats-Rollup: sub\r\n"),
        _ => {}
    }
    if record.expect < 3 {
        let last = machine.last_for(&Filter::parse(&subject(record.subject)).unwrap()).map_or(0, |seq| seq.0);
        lines.push_str(&format!("Nats-Expected-Last-Subject-Sequence: {last}\r\n"));
    }
    match record.ttl {
        0 => lines.push_str("Nats-TTL: never\r\n"),
        ttl @ 1..4 => lines.push_str(&format!("Nats-TTL: {ttl}\r\n")),
        _ => {}
    }
    if lines.is_empty() { Vec::new() } else { format!("NATS/1.0\r\n{lines}\r\n").into_bytes() }
}

fn started() -> StreamConfig {
    StreamConfig {
        name: "S".into(),
        subjects: vec!["s.>".into()],
        max_msgs: -1,
        max_bytes: -1,
        max_msgs_per_subject: -1,
        max_msg_size: -1,
        num_replicas: 1,
        duplicate_window: Nanos::from_secs(2),
        allow_rollup_hdrs: true,
        allow_msg_ttl: true,
        ..StreamConfig::default()
    }
}

/// Nothing lives that should have left by now.
fn check_expired(bench: &Bench) {
    let (machine, now) = (&bench.machine, bench.machine.clock());
    let settings = machine.settings.as_ref().unwrap();
    for record in bench.view.records().filter(|record| machine.is_live(record.seq)) {
        let ttl = PublishIntent::parse(&record.header).unwrap().ttl;
        if let Some(Ttl::After(span)) = ttl {
            let due = record.timestamp.plus(span.max(settings.config.subject_delete_marker_ttl));
            assert!(due.plus(Nanos::from_secs(1)) > now, "message {} was due at {due}", record.seq);
        }
        if let Some(age) = settings.limits.max_age
            && ttl != Some(Ttl::Never)
        {
            assert!(record.timestamp.plus(age) > now, "message {} is too old", record.seq);
        }
    }
}

/// Compares what the machine says with what its live messages say.
fn check_against_messages(bench: &Bench) {
    let machine = &bench.machine;
    let state = machine.state();
    let live: Vec<_> = bench.view.records().filter(|record| machine.is_live(record.seq)).collect();
    assert_eq!(state.messages, live.len() as u64);
    assert_eq!(
        state.bytes,
        live.iter().map(|record| record.borrowed().stored_bytes(Default::default())).sum::<u64>()
    );
    match live.first() {
        Some(first) => assert_eq!((state.first_seq, state.first_ts), (first.seq, first.timestamp)),
        None => assert_eq!(state.first_ts, Timestamp::ZERO),
    }
    let mut subjects: BTreeMap<&[u8], Vec<Seq>> = BTreeMap::new();
    for record in &live {
        subjects.entry(&record.subject).or_default().push(record.seq);
    }
    assert_eq!(state.num_subjects, subjects.len() as u64);
    let listed: Vec<_> = machine.subjects(&Filter::everything()).collect();
    assert_eq!(
        listed,
        subjects.iter().map(|(subject, seqs)| (*subject, seqs.len() as u64)).collect::<Vec<_>>()
    );
    for (subject, seqs) in &subjects {
        let filter = Filter::parse(subject).unwrap();
        assert_eq!(machine.last_for(&filter), seqs.last().copied(), "last of {filter:?}");
    }
    for filters in [vec![], vec!["s.*.x"], vec!["s.1.x"], vec!["s.2.>", "s.0.y"]] {
        let filters: Vec<Filter> = filters.into_iter().map(|filter| Filter::parse(filter).unwrap()).collect();
        for from in (state.first_seq.0..=state.last_seq.0 + 1).step_by(3).map(Seq) {
            let matching: Vec<Seq> = live
                .iter()
                .filter(|record| record.seq >= from)
                .filter(|record| {
                    filters.is_empty() || filters.iter().any(|filter| filter.matches(&record.subject))
                })
                .map(|record| record.seq)
                .collect();
            assert_eq!(machine.count_matching(&filters, from, &bench.view).unwrap(), matching.len() as u64);
            let next = machine.next_match(&filters, from, &bench.view).unwrap();
            assert_eq!(next.map(|record| record.seq), matching.first().copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// One machine applies straight through, and its store forgets removed messages. The other one checkpoints and is
    /// loaded again now and then, and its store goes on returning removed messages.
    #[test]
    fn a_machine_that_was_reloaded_goes_on_as_if_nothing_happened(
        steps in prop::collection::vec((step(), 0..4_u8), 1..60),
    ) {
        let mut straight = Bench::default();
        let mut reloaded = Bench::default();
        reloaded.view.keeps_removed = true;
        let mut config = started();
        let mut now = Timestamp(0);
        let mut clock_ran_back = false;
        let first = StreamCommand::Configure { now, created: now, config: Box::new(config.clone()) };
        straight.apply(&first);
        reloaded.apply(&first);

        for (step, interruption) in &steps {
            let command = command(&straight.machine, &mut config, &mut now, step);
            let outcome = straight.apply(&command);
            prop_assert_eq!(&reloaded.apply(&command), &outcome, "{:?}", command);
            check_against_messages(&straight);
            clock_ran_back |= command.now() < straight.machine.clock();
            if matches!(command, StreamCommand::Tick { .. }) && !clock_ran_back {
                check_expired(&straight);
            }
            if *interruption == 0 {
                reloaded.checkpoint();
                reloaded.machine = reloaded.loaded();
            } else if *interruption == 1 {
                reloaded.checkpoint();
            }
        }

        prop_assert_eq!(reloaded.machine.all_rows(), straight.machine.all_rows());
        reloaded.checkpoint();
        prop_assert_eq!(reloaded.loaded().all_rows(), straight.machine.all_rows());
    }
}

#[test]
fn rows_that_contradict_each_other_are_refused() {
    let mut bench = Bench::default();
    let config = Box::new(started());
    bench.apply(&StreamCommand::Configure { now: Timestamp(0), created: Timestamp(0), config });
    let mut block = BlockBuilder::default();
    block.push(b"s.a", b"", b"x");
    block.push(b"s.b", b"", b"x");
    bench.apply(&StreamCommand::Publish(block.finish(Timestamp(1))));

    let rows = || bench.machine.all_rows().into_iter();
    assert!(StreamMachine::load(rows()).is_ok());
    for missing in 0..rows().count() {
        let damaged = rows().enumerate().filter(|(index, _)| *index != missing).map(|(_, row)| row);
        assert!(StreamMachine::load(damaged).is_err(), "without row {missing}");
    }
    for damaged in 0..rows().count() {
        let cut = rows().enumerate().map(|(index, mut row)| {
            if index == damaged {
                row.value.as_mut().unwrap().pop();
            }
            row
        });
        let _ = StreamMachine::load(cut);
    }
}

#[test]
fn a_chain_is_stored_up_to_the_first_message_that_is_refused() {
    let mut bench = Bench::default();
    let config = Box::new(StreamConfig { subjects: vec!["a".into()], ..StreamConfig::default() });
    bench.apply(&StreamCommand::Configure { now: Timestamp(1), created: Timestamp(1), config });
    let mut block = BlockBuilder::default();
    let wrong = b"NATS/1.0\r\nNats-Expected-Last-Sequence: 99\r\n\r\n";
    for (chain, header) in [(1, &b""[..]), (2, b""), (1, wrong), (1, b""), (2, b""), (0, wrong), (0, b"")] {
        block.push(b"a", header, b"x");
        block.chain_last(chain);
    }

    let Reply::Publish(replies) = bench.apply(&StreamCommand::Publish(block.finish(Timestamp(1)))).reply
    else {
        panic!("a publish is answered with replies");
    };

    let stored = |reply: &PublishReply| matches!(reply, PublishReply::Stored { .. });
    assert_eq!(replies.iter().map(stored).collect::<Vec<_>>(), [true, true, false, false, true, false, true]);
    assert_eq!(replies[3], PublishReply::Skipped);
    assert_eq!(bench.machine.state().messages, 4);
}
