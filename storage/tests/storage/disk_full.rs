//! A full disk refuses messages, stays healthy, and takes them again when space returns.

use levee_storage::{Error, MemoryDisk, Room, Storage, Sync};

use crate::stream::{GROUP, append, block, block_entry, inline, vote};

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
