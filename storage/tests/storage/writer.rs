//! Group commit: order, durability, failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use levee_protocol::ids::GroupId;
use levee_storage::{Batch, Durability, Error, MemoryDisk, Options, Storage, Sync};

use crate::stream::{GROUP, append, id, inline, vote};

#[test]
fn callbacks_of_a_group_run_in_append_order_whoever_else_writes() {
    const GROUPS: u64 = 8;
    const APPENDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path(), Options::default()).unwrap();
    let orders: Vec<_> = (0..GROUPS).map(|_| Arc::new(Mutex::new(Vec::new()))).collect();

    std::thread::scope(|threads| {
        for group in 0..GROUPS {
            let (storage, order) = (&storage, &orders[group as usize]);
            threads.spawn(move || {
                let log = storage.entry_log(GroupId(16 + group), Sync::Always).unwrap();
                let (sender, receiver) = channel();
                for index in 0..APPENDS {
                    let (order, sender) = (Arc::clone(order), sender.clone());
                    let done = move |result: Result<(), Error>| {
                        result.unwrap();
                        order.lock().unwrap().push(index);
                        sender.send(()).unwrap();
                    };
                    log.append(vec![inline(index, &[group as u8; 200])], Box::new(done));
                }
                drop(sender);
                assert_eq!(receiver.iter().count() as u64, APPENDS);
            });
        }
    });

    for order in orders {
        assert!(order.lock().unwrap().iter().copied().eq(0..APPENDS));
    }
}

#[test]
fn many_groups_share_one_sync() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let logs: Vec<_> =
        (0..50).map(|group| storage.entry_log(GroupId(16 + group), Sync::Always).unwrap()).collect();
    let before = disk.syncs();
    disk.pause();
    for log in &logs {
        log.append(vec![inline(0, b"x")], Box::new(|result| result.unwrap()));
    }

    while storage.step() {}

    assert_eq!(disk.syncs() - before, 1);
}

#[test]
fn unsynced_groups_force_no_sync_but_their_votes_do() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Never).unwrap();
    let before = disk.syncs();

    append(&log, vec![inline(0, b"x")]).unwrap();
    storage.write(Batch::new(), Durability::Ordered).unwrap();
    assert_eq!(disk.syncs(), before);

    vote(&log, b"vote").unwrap();
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn a_checkpoint_never_reaches_the_disk_before_the_entries_it_stands_for() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    disk.pause();
    // Committed by the others and applied here before our own disk has it.
    log.append(vec![inline(0, b"x")], Box::new(|_| {}));
    let mut batch = Batch::new();
    batch.put_state(GROUP, 1, b"applied", b"0");
    storage.submit(batch, Durability::Ordered, Box::new(|_| {}));

    disk.crash();
    drop((log, storage));

    let storage = Storage::in_memory(disk);
    let mut rows = 0;
    storage.state_rows(GROUP, &mut |_, _, _| rows += 1).unwrap();
    assert_eq!((rows, storage.entry_log(GROUP, Sync::Always).unwrap().last()), (0, None));
}

#[test]
fn a_failed_write_stops_the_store_for_good_and_says_so() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    append(&log, vec![inline(0, b"x")]).unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let teller = Arc::clone(&told);
    storage.on_failure(Box::new(move |_| teller.store(true, Ordering::SeqCst)));
    disk.fail_after(Some(0));

    assert!(matches!(append(&log, vec![inline(1, b"y")]), Err(Error::Failed(_))));
    disk.fail_after(None);

    assert!(matches!(append(&log, vec![inline(2, b"z")]), Err(Error::Failed(_))));
    assert!(matches!(vote(&log, b"v"), Err(Error::Failed(_))));
    assert!(storage.put_node_row("k", b"v").is_err());
    assert!(storage.write(Batch::new(), Durability::Ordered).is_err());
    assert!(storage.failed().unwrap().contains("injected"));
    assert!(told.load(Ordering::SeqCst));
}

#[test]
fn a_full_queue_blocks_appends_until_the_writer_caught_up() {
    let disk = MemoryDisk::new();
    let options = Options { queue_bytes: 10_000, ..Options::default() };
    let storage = Storage::open_memory(disk.clone(), options).unwrap();
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    disk.pause();
    log.append(vec![inline(0, &[1; 9_000])], Box::new(|_| {}));
    let (sender, receiver) = channel();
    let second = std::thread::spawn(move || {
        log.append(vec![inline(1, &[2; 9_000])], Box::new(|_| {}));
        sender.send(()).unwrap();
    });

    assert!(receiver.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    storage.step();
    receiver.recv().unwrap();
    second.join().unwrap();
}

#[test]
fn everything_queued_is_written_before_the_store_closes() {
    let dir = tempfile::tempdir().unwrap();
    {
        let storage = Storage::open(dir.path(), Options::default()).unwrap();
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        for index in 0..500 {
            log.append(vec![inline(index, b"x")], Box::new(|result| result.unwrap()));
        }
    }

    let storage = Storage::open(dir.path(), Options::default()).unwrap();
    assert_eq!(storage.entry_log(GROUP, Sync::Always).unwrap().last().unwrap().index, 499);
}

#[test]
fn how_far_the_log_is_committed_never_reaches_the_disk_before_the_entries_it_names() {
    for written in 0..4 {
        let disk = MemoryDisk::new();
        // One job at a time.
        let options = Options { batch_bytes: 1, ..Options::default() };
        let storage = Storage::open_memory(disk.clone(), options).unwrap();
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        disk.pause();
        log.append(vec![inline(0, b"x")], Box::new(|_| {}));
        log.append(vec![inline(1, b"y")], Box::new(|_| {}));
        // The others have it; our own disk does not yet.
        log.save_committed(Some(id(1)));
        log.append(vec![inline(2, b"z")], Box::new(|_| {}));
        for _ in 0..written {
            storage.step();
        }

        disk.crash();
        drop((log, storage));

        let log = Storage::in_memory(disk).entry_log(GROUP, Sync::Always).unwrap();
        assert_eq!(log.last().map(|last| last.index + 1), (written > 0).then_some(written));
        assert_eq!(log.committed(), (written == 3).then_some(id(1)));
    }
}

#[test]
fn a_mark_is_stored_with_the_first_write_of_its_log_and_never_without() {
    let first_writes: [fn(&levee_storage::EntryLog); 2] = [
        |log| log.append(vec![inline(0, b"x")], Box::new(|_| {})),
        |log| log.save_vote(b"vote".to_vec(), Box::new(|_| {})),
    ];
    for first_write in first_writes {
        for written in 0..2 {
            let disk = MemoryDisk::new();
            let storage = Storage::in_memory(disk.clone());
            let log = storage.entry_log(GROUP, Sync::Always).unwrap();
            log.mark_with_first_write("begun", b"1");
            assert_eq!(storage.node_row("begun").unwrap(), None);
            disk.pause();
            first_write(&log);
            for _ in 0..written {
                storage.step();
            }

            disk.crash();
            drop((log, storage));

            let storage = Storage::in_memory(disk);
            let log = storage.entry_log(GROUP, Sync::Always).unwrap();
            let is_begun = log.last().is_some() || log.vote().is_some();
            assert_eq!(is_begun, written > 0);
            assert_eq!(storage.node_row("begun").unwrap().is_some(), is_begun);
        }
    }
}

#[test]
fn a_row_that_tells_of_a_group_goes_together_with_it() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    log.mark_with_first_write("begun", b"1");
    append(&log, vec![inline(0, b"x")]).unwrap();
    let before = disk.syncs();

    storage.remove_group_and_row(GROUP, "begun").unwrap();

    assert_eq!(disk.syncs() - before, 1);
    assert_eq!(storage.node_row("begun").unwrap(), None);
    assert_eq!(storage.entry_log(GROUP, Sync::Always).unwrap().last(), None);
}

#[test]
fn a_group_that_starts_over_has_its_vote_and_nothing_else() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Never).unwrap();
    append(&log, vec![inline(0, b"x"), inline(1, b"x")]).unwrap();
    log.save_committed(Some(id(1)));
    let mut batch = Batch::new();
    batch.put_state(GROUP, 1, b"key", b"value");
    storage.write(batch, Durability::Ordered).unwrap();

    storage.start_group_over(GROUP, b"vote".to_vec(), "begun", b"again").unwrap();

    assert!(matches!(append(&log, vec![inline(2, b"late")]), Err(Error::GroupRemoved(GROUP))));
    disk.crash();
    let storage = Storage::in_memory(disk);
    let log = storage.entry_log(GROUP, Sync::Never).unwrap();
    assert_eq!((log.last(), log.purged(), log.committed()), (None, None, None));
    assert_eq!(log.vote(), Some(b"vote".to_vec()));
    assert_eq!(storage.node_row("begun").unwrap(), Some(b"again".to_vec()));
    storage.state_rows(GROUP, &mut |_, _, _| panic!("no state is left")).unwrap();
    append(&log, vec![inline(0, b"new")]).unwrap();
}
