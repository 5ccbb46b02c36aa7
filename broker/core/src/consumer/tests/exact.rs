//! Whatever happens, the numbers are exact, nothing is skipped, and both halves agree.

use std::collections::BTreeMap;

use levee_protocol::api::{DeliverPolicy, PurgeRequest};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Publish(u8, u8),
    Delete(u64),
    Purge(u64),
    Pull(i64),
    PullBytes(i64, i64),
    Ack(usize),
    Nak(usize),
    Pass(i64),
    Commit,
    Lead,
    Filter(u8),
    Report(bool),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (0_u8..4, 1_u8..5).prop_map(|(subject, count)| Action::Publish(subject, count)),
        3 => (1_u64..40).prop_map(Action::Delete),
        1 => (1_u64..40).prop_map(Action::Purge),
        4 => (1_i64..6).prop_map(Action::Pull),
        2 => (2_i64..9, 40_i64..200).prop_map(|(batch, bytes)| Action::PullBytes(batch, bytes)),
        3 => (0_usize..20).prop_map(Action::Ack),
        1 => (0_usize..20).prop_map(Action::Nak),
        1 => (1_i64..3).prop_map(Action::Pass),
        2 => Just(Action::Commit),
        1 => Just(Action::Lead),
        1 => (0_u8..4).prop_map(Action::Filter),
        1 => any::<bool>().prop_map(Action::Report),
    ]
}

fn filters(choice: u8) -> Vec<String> {
    match choice {
        0 => vec![],
        1 => vec!["c1.1".into()],
        2 => vec!["c1.0".into(), "c1.2".into()],
        _ => vec!["c1.*".into()],
    }
}

fn policy(choice: u8) -> ConsumerConfig {
    let deliver_policy = match choice % 5 {
        0 => DeliverPolicy::All,
        1 => DeliverPolicy::Last,
        2 => DeliverPolicy::New,
        3 => DeliverPolicy::ByStartSequence,
        _ => DeliverPolicy::LastPerSubject,
    };
    let ack_policy = [AckPolicy::Explicit, AckPolicy::All, AckPolicy::None][usize::from(choice) % 3];
    ConsumerConfig {
        deliver_policy,
        opt_start_seq: match deliver_policy {
            DeliverPolicy::ByStartSequence if choice < 15 => 3,
            DeliverPolicy::ByStartSequence => 12,
            _ => 0,
        },
        ack_policy,
        ack_wait: if ack_policy == AckPolicy::None { Nanos::ZERO } else { Nanos::from_secs(1) },
        max_ack_pending: if ack_policy == AckPolicy::None { 0 } else { 6 },
        ..explicit()
    }
}

/// What should be pending, counted the slow way.
fn brute_force(world: &World, chosen: Option<&(Vec<Seq>, Seq)>, early: &[Seq], position: Seq) -> u64 {
    let ledger_filters = world.machine.consumer(&world.name).unwrap().filters();
    let wanted = |record: &levee_protocol::record::Record| {
        ledger_filters.is_empty() || ledger_filters.iter().any(|filter| filter.matches(&record.subject))
    };
    let counts = |record: &&levee_protocol::record::Record| {
        if record.seq <= position || early.contains(&record.seq) || !world.machine.is_live(record.seq) {
            return false;
        }
        match chosen {
            Some((seqs, resume)) if record.seq <= *resume => seqs.contains(&record.seq),
            _ => wanted(record),
        }
    };
    world.view.records().filter(counts).count() as u64
}

fn check(choice: u8, first_filter: u8, keeps_removed: bool, actions: &[Action]) -> Result<(), TestCaseError> {
    let mut world = World::empty(StreamConfig::default());
    world.view.keeps_removed = keeps_removed;
    for number in 0..5 {
        world.publish(&format!("c1.{}", number % 3), "x");
    }
    let mut config = ConsumerConfig { filter_subjects: filters(first_filter), ..policy(choice) };
    if config.deliver_policy == DeliverPolicy::LastPerSubject && config.filter_subjects.is_empty() {
        config.filter_subjects = filters(3);
    }
    world.consumer(config.clone());
    world.now = world.now.plus(Nanos::from_secs(2));
    let marks = world.machine.consumer(&world.name).unwrap().marks().clone();
    let chosen = marks.chosen.map(|chosen| (Vec::from(chosen.seqs), chosen.resume));
    let mut unacked: BTreeMap<u64, u64> = BTreeMap::new();

    for action in actions {
        match action {
            Action::Publish(subject, count) => {
                let subject = format!("c1.{subject}");
                world.publish_all(&vec![(subject.as_str(), "x"); usize::from(*count)]);
            }
            Action::Delete(seq) => world.delete(*seq),
            Action::Purge(seq) => {
                let request = PurgeRequest { seq: *seq, ..PurgeRequest::default() };
                world.apply(StreamCommand::Purge { now: world.now, request });
            }
            Action::Pull(_) | Action::PullBytes(..) => {
                let (batch, max_bytes) = match action {
                    Action::PullBytes(batch, bytes) => (*batch, *bytes),
                    Action::Pull(batch) => (*batch, 0),
                    _ => (1, 0),
                };
                let position = world.info().delivered.stream_seq;
                let early = world.dispatch().early();
                for line in
                    world.pull(PullRequest { batch, max_bytes, no_wait: true, ..PullRequest::default() })
                {
                    let Some(numbers) = line.strip_prefix("mine c1").and_then(|line| line.split(' ').nth(1))
                    else {
                        continue;
                    };
                    let numbers: Vec<u64> =
                        numbers.split('.').map(|number| number.parse().unwrap()).collect();
                    unacked.insert(numbers[1], numbers[0]);
                    if numbers[0] == 1 {
                        prop_assert!(Seq(numbers[1]) > position);
                        prop_assert_eq!(
                            numbers[3],
                            brute_force(&world, chosen.as_ref(), &early, Seq(numbers[1]))
                        );
                    }
                }
                world.dispatch().close(Closed::Shutdown);
            }
            Action::Ack(index) => {
                if let Some(seq) = unacked.keys().nth(*index).copied() {
                    world.ack(seq, AckKind::Ack);
                    unacked.remove(&seq);
                }
            }
            Action::Nak(index) => {
                if let Some(seq) = unacked.keys().nth(*index).copied() {
                    world.ack(seq, AckKind::Nak(Nanos::ZERO));
                }
            }
            Action::Pass(seconds) => {
                world.pass(Nanos::from_secs(*seconds));
            }
            Action::Commit => {
                world.run();
                world.commit();
            }
            Action::Lead => world.lead(),
            Action::Filter(choice) => {
                if config.deliver_policy != DeliverPolicy::LastPerSubject {
                    config.filter_subjects = filters(*choice);
                    world.consumer(config.clone());
                }
            }
            Action::Report(reports) => world.reports = *reports,
        }
        world.run();
        let info = world.info();
        let early = world.dispatch().early();
        let expected = brute_force(&world, chosen.as_ref(), &early, info.delivered.stream_seq);
        prop_assert_eq!(info.num_pending, expected, "after {:?}", action);
        prop_assert!(info.num_ack_pending <= 6 || config.ack_policy == AckPolicy::None);
        prop_assert!(info.ack_floor.stream_seq <= info.delivered.stream_seq);
        prop_assert!(info.ack_floor.consumer_seq <= info.delivered.consumer_seq);

        let ledger = world.machine.consumer(&world.name).unwrap();
        prop_assert_eq!(&Ledger::decode(&ledger.encode()).unwrap(), ledger);
    }

    world.run();
    world.commit();
    let info = world.info();
    let marks = world.machine.consumer(&world.name).unwrap().marks();
    prop_assert_eq!(marks.num_unacked(), info.num_ack_pending);
    prop_assert_eq!(marks.num_redelivered(), info.num_redelivered);
    prop_assert_eq!(marks.delivered().consumer, info.delivered.consumer_seq);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_numbers_are_those_of_a_slow_count(
        choice in 0_u8..30,
        filter in 0_u8..4,
        keeps_removed in any::<bool>(),
        actions in prop::collection::vec(action(), 0..60),
    ) {
        check(choice, filter, keeps_removed, &actions)?;
    }

    #[test]
    fn every_message_reaches_a_consumer_that_acks_exactly_once(
        batches in prop::collection::vec((1_u8..9, 1_i64..9, any::<bool>()), 1..30),
    ) {
        let mut world = World::empty(StreamConfig::default());
        world.consumer(explicit());
        let mut seen = Vec::new();
        let mut published = 0;
        for (publish, fetch, commit) in batches {
            for _ in 0..publish {
                published += 1;
                world.publish("c1.0", "x");
            }
            for line in world.fetch(fetch) {
                let Some(numbers) = line.strip_prefix("mine c1.0 1.") else { continue };
                let seq: u64 = numbers.split('.').next().unwrap().parse().unwrap();
                seen.push(seq);
                world.ack(seq, AckKind::Ack);
            }
            if commit {
                world.commit();
                world.lead();
            }
        }
        prop_assert_eq!(&seen, &(1..=seen.len() as u64).collect::<Vec<_>>());
        prop_assert_eq!(world.info().num_pending, published - seen.len() as u64);
    }

    #[test]
    fn damaged_ledgers_are_refused_and_never_panic(flip in any::<usize>(), cut in any::<usize>()) {
        let mut world = World::with_six_messages();
        world.consumer(explicit());
        world.next(4);
        world.ack(2, AckKind::Ack);
        world.commit();
        let whole = world.machine.consumer(&world.name).unwrap().encode();

        prop_assert!(Ledger::decode(&whole[..cut % whole.len()]).is_err());
        let mut flipped = whole.clone();
        let at = flip % (whole.len() * 8);
        flipped[at / 8] ^= 1 << (at % 8);
        let _ = Ledger::decode(&flipped);
    }
}
