//! Messages by sequence.

use std::ops::ControlFlow;

use levee_protocol::ids::Seq;
use levee_protocol::record::{BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::Timestamp;
use levee_storage::{MemoryDisk, Options, Storage, Table};

use crate::stream::{Stream, block};

#[test]
fn messages_are_read_back_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut stream = Stream::open(&Storage::open(dir.path(), Options::default()).unwrap());
        stream.publish(&["a", "b"], 1);
        stream.publish(&["c"], 2);
        stream.checkpoint();
        append_marker(&stream);
    }

    let stream = Stream::open(&Storage::open(dir.path(), Options::default()).unwrap());

    assert_eq!(stream.last_seq, 3);
    assert_eq!(stream.scan(0), [(1, "a".into()), (2, "b".into()), (3, "c".into())]);
    assert_eq!(stream.scan(3), [(3, "c".into())]);
    assert_eq!(stream.text(2).unwrap(), "b");
    assert_eq!(stream.text(4), None);
    let record = stream.messages.record(Seq(3)).unwrap().unwrap();
    assert_eq!((&record.subject[..], record.timestamp), (&b"orders.eu"[..], Timestamp(2)));
}

fn append_marker(stream: &Stream) {
    let index = stream.log.last().unwrap().index + 1;
    crate::stream::append(&stream.log, vec![crate::stream::inline(index, b"")]).unwrap();
}

#[test]
fn holes_get_no_sequence() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    stream.publish(&["a"], 1);
    let batch = block(&["dup", "b", "dup", "dup", "c"], 2);
    crate::stream::append(&stream.log, vec![crate::stream::block_entry(1, &batch)]).unwrap();

    stream.messages.stored(1, &batch, Seq(2), &[0, 2, 3]);

    assert_eq!(stream.scan(1), [(1, "a".into()), (2, "b".into()), (3, "c".into())]);
    assert_eq!(stream.text(3).unwrap(), "c");
    stream.checkpoint();
    let nothing = block(&["dup", "dup"], 3);
    crate::stream::append(&stream.log, vec![crate::stream::block_entry(2, &nothing)]).unwrap();
    stream.messages.stored(2, &nothing, Seq(4), &[0, 1]);
    stream.clean();
    assert_eq!(stream.scan(1).len(), 3);
}

#[test]
fn repeating_what_a_checkpoint_covers_changes_nothing() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    stream.publish(&["a", "b"], 1);
    stream.remove(1, 1);
    stream.checkpoint();
    stream.messages.reload().unwrap();

    stream.messages.stored(0, &block(&["a", "b"], 1), Seq(1), &[]);
    stream.remove(1, 1);

    assert_eq!(stream.scan(1), [(2, "b".into())]);
}

#[test]
fn a_scan_ends_where_its_visitor_says() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    for _ in 0..10 {
        stream.publish(&["x", "y", "z"], 1);
    }
    let mut seen = Vec::new();

    stream
        .messages
        .scan(Seq(5), &mut |seq, _| {
            seen.push(seq.0);
            if seq == Seq(8) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();

    assert_eq!(seen, [5, 6, 7, 8]);
}

#[test]
fn times_are_found_also_when_a_new_leaders_clock_is_behind() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    for time in [10, 20, 15, 30] {
        stream.publish(&["a", "b"], time);
    }
    let seek = |at| stream.messages.seek_time(Timestamp(at)).unwrap().map(|seq| seq.0);

    let check = || {
        assert_eq!(seek(0), Some(1));
        assert_eq!(seek(10), Some(1));
        assert_eq!(seek(11), Some(3));
        assert_eq!(seek(20), Some(3));
        assert_eq!(seek(21), Some(7));
        assert_eq!(seek(31), None);
    };
    check();
    // The same from `kept`: every block loses one of its two records and is emptied.
    for removed in [2, 4, 6, 8] {
        stream.remove(removed, removed);
    }
    stream.clean();
    assert!(storage.disk_usage().unwrap().used > 0);
    check();
}

#[test]
fn times_of_records_are_found_within_a_block() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    stream.publish(&["a"], 5);
    let mut timed = BlockBuilder::timed(0);
    for time in [10, 10, 20, 30] {
        let record = RecordRef { timestamp: Timestamp(time), subject: b"s", header: b"", payload: b"x" };
        timed.push_timed(RecordFlags::COPIED, &record);
    }
    stream.publish_block(&timed.finish(Timestamp(1000)));
    stream.publish(&["b"], 40);
    let seek = |at| stream.messages.seek_time(Timestamp(at)).unwrap().map(|seq| seq.0);

    let check = || {
        assert_eq!(
            [5, 6, 10, 11, 21, 31, 41].map(seek),
            [Some(1), Some(2), Some(2), Some(4), Some(5), Some(6), None]
        );
    };
    check();
    // The same from `kept`, but for the second of the two at time 10.
    stream.remove(3, 3);
    stream.remove(5, 5);
    stream.clean();
    assert_eq!([6, 11, 21].map(seek), [Some(2), Some(4), Some(6)]);
    let record = stream.messages.record(Seq(4)).unwrap().unwrap();
    assert_eq!(record.timestamp, Timestamp(20));
}

#[test]
fn head_eviction_drops_blocks_and_later_scans_find_the_rest() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let mut stream = Stream::open(&storage);
    for number in 0..2000 {
        stream.publish(&[&format!("{number}"), "x"], number);
        if stream.last_seq > 20 {
            stream.remove(stream.last_seq - 21, stream.last_seq - 20);
        }
        if number % 100 == 99 {
            stream.clean();
        }
    }
    stream.clean();

    let kept: Vec<u64> = stream.scan(0).into_iter().map(|(seq, _)| seq).collect();
    assert!(kept.iter().copied().eq(3981..=4000), "{kept:?}");
    let block_bytes = block(&["1234", "x"], 1).as_bytes().len() as u64;
    assert!(disk.table_bytes(Table::Blocks) <= 12 * block_bytes);
    assert!(disk.table_bytes(Table::BlockIndex) < 2000);
}

#[test]
fn a_purge_of_everything_drops_every_block_also_those_known_only_to_the_disk() {
    let disk = MemoryDisk::new();
    let mut stream = Stream::open(&Storage::in_memory(disk.clone()));
    for number in 0..3000 {
        stream.publish(&["x"], number);
    }
    stream.clean();
    assert_eq!(stream.scan(0).len(), 3000);

    stream.remove(1, 3000);
    stream.publish(&["new"], 3001);
    stream.clean();

    assert_eq!(stream.scan(0), [(3001, "new".into())]);
    assert_eq!(disk.table_bytes(Table::Blocks), block(&["new"], 1).as_bytes().len() as u64);
}

#[test]
fn random_overwrites_keep_the_disk_within_twice_the_live_bytes() {
    const KEYS: usize = 200;
    const TEXT: usize = 500;
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let mut stream = Stream::open(&storage);
    let mut newest = vec![0_u64; KEYS];
    let mut random = 7_u64;
    for round in 0..400 {
        let text = "v".repeat(TEXT);
        let first = stream.last_seq + 1;
        stream.publish(&[text.as_str(); 50], round);
        for seq in first..first + 50 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let key = (random >> 33) as usize % KEYS;
            let replaced = std::mem::replace(&mut newest[key], seq);
            if replaced > 0 {
                stream.remove(replaced, replaced);
            }
        }
        if round % 20 == 19 {
            stream.clean();
        }
    }
    stream.clean();

    let mut expected: Vec<u64> = newest.into_iter().filter(|seq| *seq > 0).collect();
    expected.sort_unstable();
    assert!(stream.scan(0).into_iter().map(|(seq, _)| seq).eq(expected.iter().copied()));
    let stored = disk.table_bytes(Table::Blocks) + disk.table_bytes(Table::Kept);
    let live = (expected.len() * TEXT) as u64;
    assert!(stored < live * 5 / 2, "{stored} bytes for {live} live ones");
}

#[test]
fn readers_see_every_live_message_while_blocks_are_moved_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { read_cache_bytes: 4096, tail_bytes: 4096, ..Options::default() };
    let storage = Storage::open(dir.path(), options).unwrap();
    let mut stream = Stream::open(&storage);
    let done = std::sync::atomic::AtomicBool::new(false);
    // Every tenth message stays forever.
    std::thread::scope(|threads| {
        for _ in 0..2 {
            let messages = std::sync::Arc::clone(&stream.messages);
            let done = &done;
            threads.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut expected = 10;
                    messages
                        .scan(Seq(1), &mut |seq, _| {
                            if seq.0 % 10 == 0 {
                                assert_eq!(seq.0, expected);
                                expected += 10;
                            }
                            ControlFlow::Continue(())
                        })
                        .unwrap();
                    for seq in (10..expected).step_by(10) {
                        assert!(messages.record(Seq(seq)).unwrap().is_some(), "message {seq}");
                    }
                }
            });
        }
        for round in 0..60 {
            for _ in 0..5 {
                stream.publish(&["0123456789"; 20], round);
                let last = stream.last_seq;
                for tens in [last - 19, last - 9] {
                    stream.remove(tens, tens + 8);
                }
            }
            stream.clean();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(stream.scan(0).len(), 600);
}

#[test]
fn placed_records_are_found_by_their_own_times() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let mut stream = Stream::open(&storage);
    let times: Vec<i64> = (1..=6).map(|number| number * 10).collect();
    stream.place(7, &times[..4], 1000);
    stream.place(20, &times[4..], 1000);
    let seek = |at| stream.messages.seek_time(Timestamp(at)).unwrap().map(|seq| seq.0);

    let check = || {
        assert_eq!([0, 10].map(seek), [Some(7), Some(7)]);
        assert_eq!([31, 40, 41].map(seek), [Some(10), Some(10), Some(20)]);
        assert_eq!([51, 60, 61].map(seek), [Some(21), Some(21), None]);
        let record = stream.messages.record(Seq(10)).unwrap().unwrap();
        assert_eq!((record.timestamp, &record.payload[..]), (Timestamp(40), &b"10"[..]));
    };
    check();
    assert_eq!(seek(11), Some(8));
    // The same from `kept`: the first block loses half of its records and is emptied.
    stream.remove(8, 9);
    stream.clean();
    check();
    assert_eq!(seek(11), Some(10));
}
