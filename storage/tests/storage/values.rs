//! Blocks that lie beside RocksDB, in the value log.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use levee_protocol::ids::Seq;
use levee_storage::{Error, Options, Payloads, Storage, Sync};

use crate::stream::{GROUP, Stream};

/// Small files, so that little data fills many of them.
fn options() -> Options {
    Options { value_segment_bytes: 1 << 20, ..Options::default() }
}

/// A message that is alone in its block and makes it large enough for the value log.
fn text(number: u64) -> String {
    format!("{number:08}").repeat(16 << 10)
}

fn publish(stream: &mut Stream, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        stream.publish(&[&text(number)], number as i64);
    }
}

fn check(stream: &Stream, expected: impl Iterator<Item = u64>) {
    let found = stream.scan(0);
    let expected: Vec<u64> = expected.collect();
    assert_eq!(found.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), expected);
    for (seq, found) in found {
        assert_eq!(found, text(seq));
        assert_eq!(stream.text(seq), Some(found));
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join("values")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn segment_bytes(dir: &Path) -> u64 {
    segments(dir).iter().map(|file| fs::metadata(file).map_or(0, |file| file.len())).sum()
}

/// Bounds a wait that ends by condition.
#[allow(clippy::disallowed_methods)]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn large_blocks_lie_beside_the_database_and_small_ones_in_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut stream = Stream::open(&Storage::open(dir.path(), options()).unwrap());
        stream.publish(&["small"], 0);
        publish(&mut stream, 2..=30);
        stream.publish(&["small as well"], 31);
        stream.checkpoint();
    }
    assert!(segment_bytes(dir.path()) > 29 * (128 << 10));

    // A tail and a cache of nothing, so that all is read from the disk.
    let options = Options { tail_bytes: 0, read_cache_bytes: 0, ..options() };
    let stream = Stream::open(&Storage::open(dir.path(), options).unwrap());

    assert_eq!(stream.log.read(0, 40, usize::MAX).unwrap().len(), 31);
    let found = stream.scan(1);
    assert_eq!((found.len(), found[0].1.as_str(), found[30].1.as_str()), (31, "small", "small as well"));
    assert!(found[1..30].iter().all(|(seq, found)| *found == text(*seq)));
}

#[test]
fn a_store_opens_with_either_home_of_payloads_whatever_it_was_written_with() {
    let dir = tempfile::tempdir().unwrap();
    let with = |payloads| Options { payloads, tail_bytes: 0, read_cache_bytes: 0, ..options() };
    for (round, payloads) in [Payloads::Tables, Payloads::ValueLog, Payloads::Tables].into_iter().enumerate()
    {
        let mut stream = Stream::open(&Storage::open(dir.path(), with(payloads)).unwrap());
        let from = round as u64 * 5 + 1;
        publish(&mut stream, from..=from + 4);
        stream.checkpoint();
        check(&stream, 1..=from + 4);
    }
    let stream = Stream::open(&Storage::open(dir.path(), with(Payloads::ValueLog)).unwrap());

    check(&stream, 1..=15);
}

#[test]
fn space_of_removed_messages_returns_and_survivors_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path(), options()).unwrap();
    let mut stream = Stream::open(&storage);
    publish(&mut stream, 1..=200);
    let all = segment_bytes(dir.path());
    // Every tenth survives: no segment becomes empty by itself.
    for seq in (1..=200).filter(|seq| seq % 10 != 0) {
        stream.remove(seq, seq);
    }

    stream.clean();

    let live = 20 * (128 << 10);
    wait_until("survivors were never copied", || segment_bytes(dir.path()) < 2 * live + (3 << 20));
    assert!(segment_bytes(dir.path()) < all / 2);
    check(&stream, (1..=200).filter(|seq| seq % 10 == 0));
    drop(stream);
    drop(storage);
    let stream = Stream::open(&Storage::open(dir.path(), options()).unwrap());
    check(&stream, (1..=200).filter(|seq| seq % 10 == 0));
}

#[test]
fn a_removed_group_takes_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path(), options()).unwrap();
    let mut stream = Stream::open(&storage);
    publish(&mut stream, 1..=40);

    storage.remove_group(GROUP).unwrap();

    wait_until("its segments stayed", || segments(dir.path()).len() <= 1);
}

#[test]
fn an_export_shows_what_is_removed_and_moved_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path(), options()).unwrap();
    let mut stream = Stream::open(&storage);
    publish(&mut stream, 1..=100);
    stream.checkpoint();

    let mut export = storage.export(GROUP).unwrap();
    let first = export.next().unwrap().unwrap();
    stream.remove(1, 99);
    stream.clean();
    wait_until("nothing was cleaned", || segment_bytes(dir.path()) < 4 << 20);
    let target = tempfile::tempdir().unwrap();
    let imported = Storage::open(target.path(), options()).unwrap();
    let mut import = imported.import(GROUP).unwrap();
    import.push(&first).unwrap();
    for chunk in export {
        import.push(&chunk.unwrap()).unwrap();
    }
    import.finish(crate::stream::id(99)).unwrap();

    check(&Stream::open(&imported), 1..=100);
    check(&stream, 100..=100);
}

#[test]
fn a_missing_or_cut_segment_is_refused_by_name() {
    for damage in [remove as fn(&Path), cut] {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut stream = Stream::open(&Storage::open(dir.path(), options()).unwrap());
            publish(&mut stream, 1..=30);
        }
        let damaged = segments(dir.path()).remove(1);
        damage(&damaged);

        let refused = Storage::open(dir.path(), options()).err().unwrap().to_string();

        assert!(refused.contains("value segment 2"), "{refused}");
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
    }
}

fn remove(segment: &Path) {
    fs::remove_file(segment).unwrap();
}

fn cut(segment: &Path) {
    let bytes = fs::metadata(segment).unwrap().len();
    fs::File::options().write(true).open(segment).unwrap().set_len(bytes / 2).unwrap();
}

#[test]
fn a_flipped_bit_in_a_segment_is_an_error_and_never_other_data() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut stream = Stream::open(&Storage::open(dir.path(), options()).unwrap());
        publish(&mut stream, 1..=30);
        stream.checkpoint();
    }
    let damaged = segments(dir.path()).remove(1);
    let mut bytes = fs::read(&damaged).unwrap();
    // In the middle of the first value, behind the head and away from what pads values.
    bytes[64 << 10] ^= 0x10;
    fs::write(&damaged, bytes).unwrap();

    let storage = Storage::open(dir.path(), options()).unwrap();
    let refused = storage.entry_log(GROUP, Sync::Always).err().unwrap();

    assert!(matches!(refused, Error::Damaged { group: GROUP, .. }), "{refused}");
}

#[test]
fn several_who_read_on_in_pieces_get_everything_in_order_from_a_disk_that_is_read_ahead() {
    const MESSAGES: u64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { read_cache_bytes: 4 << 20, tail_bytes: 1 << 20, ..options() };
    {
        let storage = Storage::open(dir.path(), options()).unwrap();
        let mut stream = Stream::open(&storage);
        let texts: Vec<String> = (1..=MESSAGES).map(|number| format!("{number:08}").repeat(128)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        // Blocks of 100 KiB and of 300 KiB.
        let (small, large) = texts.split_at(texts.len() / 2);
        for block in small.chunks(100).chain(large.chunks(300)) {
            stream.publish(block, 1);
        }
        stream.checkpoint();
    }

    for _ in 0..3 {
        let storage = Storage::open(dir.path(), options()).unwrap();
        let stream = Stream::open(&storage);
        std::thread::scope(|scope| {
            for piece in [40, 130, 500] {
                let messages = &stream.messages;
                scope.spawn(move || {
                    let mut next = 1;
                    while next <= MESSAGES {
                        let (from, end) = (Seq(next), next + piece);
                        let visit = &mut |seq: Seq, record: levee_protocol::record::RecordRef<'_>| {
                            assert_eq!(seq.0, next);
                            assert_eq!(record.payload[..8], *format!("{next:08}").as_bytes());
                            next += 1;
                            if next == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                        };
                        messages.scan(from, visit).unwrap();
                    }
                });
            }
        });
    }
}
