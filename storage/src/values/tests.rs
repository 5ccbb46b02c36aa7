use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;

use super::*;

const SEGMENT_BYTES: u64 = 64 << 10;

fn value(number: u8, bytes: usize) -> Vec<u8> {
    vec![number; bytes]
}

fn append(log: &ValueLog, number: u8, bytes: usize) -> Place {
    log.append(&[&value(number, bytes)]).unwrap()[0]
}

fn read(log: &ValueLog, place: Place) -> Option<Vec<u8>> {
    log.read(place).unwrap().map(|value| value.to_vec())
}

#[test]
fn values_are_read_back_also_after_the_log_was_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [1, 4096, 100_000, 5000, 12_345];
    let places: Vec<Place> = {
        let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
        let values: Vec<Vec<u8>> = sizes.iter().map(|bytes| value(7, *bytes)).collect();
        let together: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        log.append(&together).unwrap()
    };

    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let later = append(&log, 8, 9000);

    for (place, bytes) in places.iter().zip(sizes) {
        assert_eq!(read(&log, *place), Some(value(7, bytes)));
    }
    assert_eq!(read(&log, later), Some(value(8, 9000)));
}

#[test]
fn a_full_segment_is_left_and_one_that_is_not_full_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let first = append(&log, 1, 100_000);
    let second = append(&log, 2, 10_000);
    drop(log);

    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let third = append(&log, 3, 10_000);

    assert_eq!([first.segment, second.segment, third.segment], [1, 2, 2]);
    assert_eq!(read(&log, second), Some(value(2, 10_000)));
}

#[test]
fn what_a_crash_left_at_the_end_of_a_segment_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let before = append(&ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap(), 1, 5000);
    let file = File::options().write(true).open(dir.path().join(format!("{:020}.values", 1))).unwrap();
    file.write_all_at(&[9; 777], file.metadata().unwrap().len()).unwrap();

    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let after = append(&log, 2, 5000);

    assert_eq!(read(&log, before), Some(value(1, 5000)));
    assert_eq!(read(&log, after), Some(value(2, 5000)));
}

#[test]
fn segments_without_a_live_value_go_and_what_is_appended_to_stays() {
    let dir = tempfile::tempdir().unwrap();
    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let dead = append(&log, 1, 100_000);
    let live = append(&log, 2, 100_000);
    let appended_to = append(&log, 3, 10);
    let held = log.segments();

    let mut census = log.census();
    census.count(live);
    assert!(log.has_dead(&census));
    log.remove_dead(&census).unwrap();

    assert_eq!(read(&log, dead), None);
    assert_eq!(read(&log, live), Some(value(2, 100_000)));
    assert_eq!(read(&log, appended_to), Some(value(3, 10)));
    assert_eq!(held[&dead.segment].read(dead).unwrap(), value(1, 100_000), "a reader keeps what it found");
    assert!(!dir.path().join(format!("{:020}.values", dead.segment)).exists());
}

#[test]
fn survivors_of_the_emptiest_segments_are_copied_when_most_of_the_log_is_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let rows: Vec<Vec<Place>> = (0..6_u8)
        .map(|number| {
            let values: Vec<Vec<u8>> = (0..10).map(|_| value(number, 8192)).collect();
            log.append(&values.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap()
        })
        .collect();
    append(&log, 9, 1);
    let mut census = log.census();
    // One value lives in the first segments, nine in the last.
    let live = |segment: usize| if segment < 4 { 1 } else { 9 };
    for (segment, places) in rows.iter().enumerate() {
        places.iter().take(live(segment)).for_each(|place| census.count(*place));
    }

    let victims = log.victims(&census);
    let copies = log.copy(&[rows[0][0], rows[1][0]]).unwrap();

    assert!(victims.is_subset(&BTreeSet::from([1, 2, 3, 4])) && victims.len() >= 2, "{victims:?}");
    for (copy, number) in copies.iter().zip(0..) {
        let copy = copy.unwrap();
        assert!(copy.segment > rows[5][0].segment);
        assert_eq!(read(&log, copy), Some(value(number, 8192)));
    }
    assert!(!log.census().counts(copies[0].unwrap().segment), "it is still appended to");
}

#[test]
fn little_garbage_is_left_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let places: Vec<Place> = (0..8).map(|number| append(&log, number, 80_000)).collect();
    let mut census = log.census();
    places.iter().skip(2).for_each(|place| census.count(*place));

    assert!(log.victims(&census).is_empty());
}

#[test]
fn a_file_that_is_no_segment_is_refused_by_name() {
    for (name, damage) in [("head", 0), ("number", 14)] {
        let dir = tempfile::tempdir().unwrap();
        append(&ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap(), 1, 5000);
        let path = dir.path().join(format!("{:020}.values", 1));
        let mut bytes = fs::read(&path).unwrap();
        bytes[damage] ^= 1;
        fs::write(&path, bytes).unwrap();

        let refused = ValueLog::open(dir.path(), SEGMENT_BYTES).err().unwrap().to_string();

        assert!(refused.contains("00001.values") && refused.contains("checksum"), "{name}: {refused}");
    }
}

#[test]
fn volatile_values_lie_in_files_of_their_own_that_no_later_process_continues() {
    let dir = tempfile::tempdir().unwrap();
    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let kept = append(&log, 1, 5000);
    let volatile = log.append_volatile(&[&value(2, 10_001), &value(3, 70_000)]).unwrap();
    let behind = append(&log, 4, 5000);
    log.sync().unwrap();
    drop(log);

    let log = ValueLog::open(dir.path(), SEGMENT_BYTES).unwrap();
    let later = log.append_volatile(&[&value(5, 5000)]).unwrap()[0];

    assert_eq!([kept.segment, volatile[0].segment, volatile[1].segment, behind.segment], [1, 2, 2, 1]);
    assert!(later.segment > 2);
    assert!(dir.path().join(format!("{:020}.volatile", 2)).exists());
    for (place, number, bytes) in [(volatile[0], 2, 10_001), (volatile[1], 3, 70_000), (later, 5, 5000)] {
        assert_eq!(read(&log, place), Some(value(number, bytes)));
    }
    assert!(!log.census().counts(later.segment), "it is still appended to");
    let mut census = log.census();
    census.count(kept);
    log.remove_dead(&census).unwrap();
    assert!(!dir.path().join(format!("{:020}.volatile", 2)).exists());
}
