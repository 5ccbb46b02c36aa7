//! A full disk refuses messages, stays healthy, and takes them again when space returns.

use std::io::Write;

use levee_protocol::ids::Seq;
use levee_storage::{Error, MemoryDisk, Options, Room, Storage, Sync};

use crate::stream::{GROUP, Stream, append, block, block_entry, inline, vote};

#[test]
fn a_full_disk_refuses_messages_lets_small_entries_pass_and_recovers() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    let message = |index| vec![block_entry(index, &block(&["x"], 1))];
    let settle = || std::thread::sleep(std::time::Duration::from_millis(120));
    append(&log, message(0)).unwrap();

    disk.set_free(Some(100 << 20));
    settle();
    assert!(matches!(append(&log, message(1)), Err(Error::DiskFull { .. })));
    assert!(storage.room(Room::Messages).is_err());
    assert!(storage.room(Room::SmallEntries).is_ok());
    append(&log, vec![inline(1, b"purge")]).unwrap();

    disk.set_free(Some(10 << 20));
    settle();
    assert!(matches!(append(&log, vec![inline(2, b"ack")]), Err(Error::DiskFull { .. })));
    vote(&log, b"votes always pass").unwrap();

    disk.set_free(None);
    settle();
    append(&log, message(2)).unwrap();
    assert_eq!(storage.failed(), None);
}

/// On a small file system of its own, named by `LEVEE_SMALL_DISK` (say, a tmpfs of 600 MiB).
#[test]
#[ignore = "needs a small file system"]
fn a_really_full_disk_refuses_messages_and_takes_them_again_after_a_purge() {
    let dir = std::path::PathBuf::from(std::env::var_os("LEVEE_SMALL_DISK").unwrap());
    let options = Options { reserve_bytes: 128 << 20, ..Options::default() };
    let storage = Storage::open(&dir.join("store"), options.clone()).unwrap();
    let mut stream = Stream::open(&storage);
    let text = "x".repeat(1000);
    let mut first_live = 1;
    for round in 0..6 {
        let refused = (0..)
            .find_map(|number| {
                let block = block(&[text.as_str(); 200], number);
                let index = stream.log.last().map_or(0, |last| last.index + 1);
                let result = append(&stream.log, vec![block_entry(index, &block)]);
                if result.is_ok() {
                    stream.messages.stored(index, &block, Seq(stream.last_seq + 1), &[]);
                    stream.last_seq += 200;
                }
                result.err()
            })
            .unwrap();
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        println!("round {round}: full at message {}, {:?}", stream.last_seq, storage.disk_usage().unwrap());
        if round == 4 {
            // Filled up to the last byte by somebody else.
            let filler = dir.join("filler");
            while std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&filler)
                .unwrap()
                .write_all(&[1; 65536])
                .is_ok()
            {}
            std::thread::sleep(std::time::Duration::from_secs(1));
            std::fs::remove_file(filler).unwrap();
        }

        let index = stream.log.last().unwrap().index + 1;
        append(&stream.log, vec![inline(index, b"purge")]).unwrap();
        stream.remove(first_live, stream.last_seq);
        first_live = stream.last_seq + 1;
        stream.clean();
        for _ in 0..100 {
            if storage.room(Room::Messages).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        println!("round {round}: after purge {:?}", storage.disk_usage().unwrap());
        assert_eq!(storage.failed(), None);
        stream.publish(&["taken again"], 1);
    }
    stream.checkpoint();
    let expected = stream.scan(0);
    assert_eq!(expected.len(), 1);
    drop((stream, storage));
    let storage = Storage::open(&dir.join("store"), options).unwrap();
    assert_eq!(Stream::open(&storage).scan(0), expected);
}
