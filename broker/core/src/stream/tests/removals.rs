//! Few messages of few subjects that leave in any order, several within one entry: the index must know the first and the
//! last message of a subject after each, whichever of them went before.

use super::*;

/// What one entry does.
#[derive(Clone, Debug)]
enum Entry {
    /// Stores messages, each on one of two subjects; some stand for those before them.
    Publish(Vec<(u8, u8)>),
    /// Settles some of the messages there are, in this order, for one or both consumers.
    Settle { picks: Vec<u8>, by: u8 },
    /// Deletes one.
    Delete(u8),
    /// Purges a subject, but for so many.
    Purge { subject: u8, keep: u8 },
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        4 => prop::collection::vec((0..2_u8, 0..12_u8), 1..5).prop_map(Entry::Publish),
        6 => (prop::collection::vec(any::<u8>(), 1..6), 0..4_u8)
            .prop_map(|(picks, by)| Entry::Settle { picks, by }),
        1 => any::<u8>().prop_map(Entry::Delete),
        1 => (0..2_u8, 0..3_u8).prop_map(|(subject, keep)| Entry::Purge { subject, keep }),
    ]
}

fn consumer(which: u8, now: Timestamp) -> StreamCommand {
    let name = format!("c{which}");
    let config = ConsumerConfig {
        durable_name: name.clone(),
        name: name.clone(),
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    };
    let name = ConsumerName::parse(&name).unwrap();
    let action = ConsumerCreateAction::Create;
    StreamCommand::CreateConsumer { now, name, config: Box::new(config), action, default_max: 0 }
}

fn command(bench: &Bench, entry: &Entry, now: Timestamp) -> StreamCommand {
    let machine = &bench.machine;
    let live: Vec<Seq> =
        bench.view.records().map(|record| record.seq).filter(|seq| machine.is_live(*seq)).collect();
    let pick = |at: u8| live.get(usize::from(at) % live.len().max(1)).copied();
    match entry {
        Entry::Publish(records) => {
            let mut block = BlockBuilder::default();
            for (subject, rollup) in records {
                let header: &[u8] = if *rollup == 0 { b"NATS/1.0\r\nNats-Rollup: sub\r\n\r\n" } else { b"" };
                block.push(format!("s.{subject}").as_bytes(), header, b"x");
            }
            StreamCommand::Publish(block.finish(now))
        }
        Entry::Settle { picks, by } => {
            let picks: Vec<Seq> = picks.iter().filter_map(|at| pick(*at)).collect();
            // Mostly both: what only one of two wants to be rid of stays.
            let consumers = machine.consumers().enumerate().filter(|(at, _)| usize::from(*by) != *at);
            let consumers = consumers.map(|(_, (_, ledger))| settled(machine, ledger, &picks, now)).collect();
            StreamCommand::Progress(Progress { now, consumers })
        }
        Entry::Delete(at) => StreamCommand::DeleteMessage { now, seq: pick(*at).unwrap_or(Seq(1)) },
        Entry::Purge { subject, keep } => {
            let request = PurgeRequest { filter: format!("s.{subject}"), seq: 0, keep: u64::from(*keep) };
            StreamCommand::Purge { now, request }
        }
    }
}

/// Everything is delivered, and these are acked one by one.
fn settled(machine: &StreamMachine, ledger: &Ledger, acked: &[Seq], now: Timestamp) -> ConsumerProgress {
    let (_, _, delivering) = delivering(machine, ledger, now, u64::MAX);
    let one = |seq: &Seq| SettledRun { first: *seq, last: *seq, how: Settlement::Acked };
    ConsumerProgress { settled: acked.iter().map(one).collect(), ..delivering }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_first_and_the_last_message_of_a_subject_are_known_whatever_left_before(
        entries in prop::collection::vec(entry(), 1..25),
        consumers in 1..3_u8,
        per_subject in prop_oneof![3 => Just(-1_i64), 1 => Just(3), 1 => Just(260)],
        reloads in any::<bool>(),
    ) {
        let mut bench = Bench::default();
        bench.view.keeps_removed = reloads;
        let retention = if consumers == 1 { RetentionPolicy::WorkQueue } else { RetentionPolicy::Interest };
        let config = StreamConfig { retention, max_msgs_per_subject: per_subject, ..started() };
        let mut now = Timestamp(1);
        bench.apply(&StreamCommand::Configure { now, created: now, config: Box::new(config) });
        for which in 0..consumers {
            bench.apply(&consumer(which, now));
        }

        for entry in &entries {
            now = now.plus(Nanos::from_millis(1));
            let command = command(&bench, entry, now);
            bench.apply(&command);
            check_against_messages(&bench);
            if reloads {
                bench.checkpoint();
                bench.machine = bench.loaded();
                check_against_messages(&bench);
            }
        }
    }
}
