//! So many subjects that they divide into branches: whatever came, went, or was loaded, filters find what a scan finds.

use super::*;

fn publish(bench: &mut Bench, subjects: impl Iterator<Item = String>) {
    let mut block = BlockBuilder::default();
    subjects.for_each(|subject| block.push(subject.as_bytes(), b"", b"x"));
    bench.apply(&StreamCommand::Publish(block.finish(Timestamp(1))));
}

fn purge(bench: &mut Bench, filter: &str) -> u64 {
    let request = PurgeRequest { filter: filter.into(), seq: 0, keep: 0 };
    match bench.apply(&StreamCommand::Purge { now: Timestamp(2), request }).reply {
        Reply::Purged(purged) => purged,
        other => panic!("a purge is answered with a count, not {other:?}"),
    }
}

fn check(machine: &StreamMachine, view: &dyn MessageView) {
    let everything: Vec<(Vec<u8>, u64)> =
        machine.subjects(&Filter::everything()).map(|(subject, count)| (subject.to_vec(), count)).collect();
    for filter in ["s.3.>", "s.*.7", "s.3.*.x", "s.*.*.x", "s.4.8", "s.40.>", "*.5.>", "s.*"] {
        let filter = Filter::parse(filter).unwrap();
        let expected: Vec<_> =
            everything.iter().filter(|(subject, _)| filter.matches(subject)).cloned().collect();
        let found: Vec<_> =
            machine.subjects(&filter).map(|(subject, count)| (subject.to_vec(), count)).collect();
        assert_eq!(found, expected, "{filter:?}");
        let count = machine.count_matching(std::slice::from_ref(&filter), Seq(1), view).unwrap();
        assert_eq!(count, expected.iter().map(|(_, count)| count).sum::<u64>(), "{filter:?}");
    }
    let overlapping = ["s.1.>", "s.*.7", "s.1.7"].map(|filter| Filter::parse(filter).unwrap());
    let once = everything
        .iter()
        .filter(|(subject, _)| overlapping.iter().any(|filter| filter.matches(subject)))
        .count();
    assert_eq!(machine.last_per_subject(&overlapping).len(), once);
}

#[test]
fn filters_find_their_subjects_among_many() {
    let mut bench = Bench::default();
    let config = Box::new(StreamConfig { subjects: vec!["s.>".into()], ..StreamConfig::default() });
    bench.apply(&StreamCommand::Configure { now: Timestamp(1), created: Timestamp(1), config });
    let of = |n: u64| {
        if n.is_multiple_of(11) { format!("s.{}.{n}.x", n % 12) } else { format!("s.{}.{n}", n % 12) }
    };
    for round in 0..10 {
        publish(&mut bench, (round * 500..(round + 1) * 500).map(of));
    }
    check(&bench.machine, &bench.view);

    let before = bench.machine.state().num_subjects;
    let purged = purge(&mut bench, "s.3.>");
    assert_eq!(purged, 5000 / 12 + 1);
    assert_eq!(bench.machine.state().num_subjects, before - purged);
    check(&bench.machine, &bench.view);

    // Places that became free are taken by others.
    publish(&mut bench, (0..1000).map(|n| format!("s.{}.again.{n}", n % 3)));
    publish(&mut bench, (0..100).map(|n| format!("s.3.{n}")));
    check(&bench.machine, &bench.view);

    bench.checkpoint();
    check(&bench.loaded(), &bench.view);
}
