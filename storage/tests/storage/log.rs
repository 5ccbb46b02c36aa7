//! The Raft log of a group.

use std::path::Path;
use std::sync::Arc;

use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::{Batch, Durability, Error, LogId, MemoryDisk, Options, Storage, Sync};

use crate::stream::{GROUP, append, block, block_entry, id, inline, vote};

fn rocks(dir: &Path) -> Arc<Storage> {
    Storage::open(dir, Options::default()).unwrap()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let block = block(&["one", "two"], 5);
    {
        let storage = rocks(dir.path());
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        vote(&log, b"vote").unwrap();
        append(&log, vec![inline(0, b"zero"), block_entry(1, &block)]).unwrap();
        log.save_committed(Some(id(1)));
        append(&log, vec![inline(2, b"two")]).unwrap();
        storage.put_node_row("name", b"n1").unwrap();
    }

    let storage = rocks(dir.path());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();

    assert_eq!(log.last(), Some(id(2)));
    assert_eq!(log.vote().unwrap(), b"vote");
    assert_eq!(log.committed(), Some(id(1)));
    assert_eq!(log.log_id(1).unwrap(), Some(id(1)));
    let expected = vec![inline(0, b"zero"), block_entry(1, &block), inline(2, b"two")];
    assert_eq!(log.read(0, 10, usize::MAX).unwrap(), expected);
    assert_eq!(storage.node_row("name").unwrap().unwrap(), b"n1");
    assert_eq!(storage.groups().unwrap(), [GROUP]);
}

#[test]
fn a_directory_in_use_is_refused_by_name_and_free_again_after_closing() {
    let dir = tempfile::tempdir().unwrap();
    let storage = rocks(dir.path());

    let refused = Storage::open(dir.path(), Options::default()).err().unwrap();

    assert!(matches!(&refused, Error::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&dir.path().display().to_string()));
    drop(storage);
    rocks(dir.path());
}

#[test]
fn entries_are_readable_before_they_are_durable() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    let before = disk.unsynced_writes();
    disk.pause();

    log.append(vec![inline(0, b"a"), inline(1, b"b")], Box::new(|result| result.unwrap()));

    assert_eq!(disk.unsynced_writes(), before);
    assert_eq!(log.read(0, 5, usize::MAX).unwrap(), [inline(0, b"a"), inline(1, b"b")]);
    disk.resume();
}

#[test]
fn a_read_returns_one_entry_at_least_and_stops_at_its_bytes() {
    for tail_bytes in [0, 1 << 20] {
        let options = Options { tail_bytes, ..Options::default() };
        let storage = Storage::open_memory(MemoryDisk::new(), options).unwrap();
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        for index in 0..5 {
            append(&log, vec![inline(index, &[7; 100])]).unwrap();
        }
        let indexes = |from, to, bytes| -> Vec<u64> {
            log.read(from, to, bytes).unwrap().iter().map(|entry| entry.id.index).collect()
        };

        assert_eq!(indexes(0, 5, 0), [0]);
        assert_eq!(indexes(1, 5, 250), [1, 2]);
        assert_eq!(indexes(3, 9, 10_000), [3, 4]);
        assert_eq!(indexes(2, 3, 10_000), [2]);
        assert_eq!(indexes(5, 9, 10_000), [] as [u64; 0]);
        assert_eq!(log.tail_bytes() == 0, tail_bytes == 0);
    }
}

#[test]
fn a_gap_or_an_older_term_is_refused_and_changes_nothing() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    let in_term = |index, raft_term| {
        let mut entry = inline(index, b"x");
        entry.id.raft_term = raft_term;
        entry
    };
    append(&log, vec![in_term(0, 4)]).unwrap();

    for refused in [in_term(2, 4), in_term(0, 4), in_term(1, 3)] {
        assert!(matches!(append(&log, vec![refused]), Err(Error::OutOfOrder { .. })));
    }

    append(&log, vec![in_term(1, 4)]).unwrap();
    assert_eq!(log.last().unwrap().index, 1);
    assert_eq!(storage.failed(), None);
}

#[test]
fn a_damaged_block_is_refused_before_it_is_stored() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    let mut entry = block_entry(0, &block(&["x"], 1));
    let mut bytes = entry.payload.to_vec();
    bytes[20] ^= 1;
    entry.payload = bytes.into();

    assert!(matches!(append(&log, vec![entry]), Err(Error::Damaged { .. })));

    assert_eq!(log.last(), None);
}

#[test]
fn truncated_entries_stay_gone_and_their_places_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let replacement = {
        let mut entry = block_entry(2, &block(&["new"], 2));
        entry.id.raft_term = 9;
        entry
    };
    {
        let storage = rocks(dir.path());
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        let old = |index| block_entry(index, &block(&["old"], 1));
        append(&log, (0..60).map(old).collect()).unwrap();
        log.truncate_after(Some(1)).unwrap();
        assert_eq!(log.last(), Some(id(1)));
        assert_eq!(log.read(0, 60, usize::MAX).unwrap().len(), 2);
        append(&log, vec![replacement.clone()]).unwrap();
    }

    let storage = rocks(dir.path());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();

    assert_eq!(log.last(), Some(replacement.id));
    assert_eq!(log.read(2, 60, usize::MAX).unwrap(), [replacement]);
    log.truncate_after(None).unwrap();
    assert_eq!(log.last(), None);
    append(&log, vec![inline(0, b"first again")]).unwrap();
}

#[test]
fn what_is_committed_is_not_truncated() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let log = storage.entry_log(GROUP, Sync::Never).unwrap();
    append(&log, (0..10).map(|index| inline(index, b"x")).collect()).unwrap();
    log.save_committed(Some(id(5)));

    for keep in [None, Some(4)] {
        let refused = log.truncate_after(keep);
        assert!(matches!(refused, Err(Error::Committed { index: 5, .. })), "{refused:?}");
    }
    log.truncate_after(Some(5)).unwrap();

    assert_eq!((log.last(), storage.failed()), (Some(id(5)), None));
}

#[test]
fn a_log_is_contradicted_by_others_up_to_where_it_is_committed() {
    let storage = Storage::in_memory(MemoryDisk::new());
    let log = storage.entry_log(GROUP, Sync::Never).unwrap();
    append(&log, (0..10).map(|index| inline(index, b"x")).collect()).unwrap();
    let later = |index| LogId { raft_term: 9, ..id(index) };
    assert!(!log.is_contradicted_by([later(0)]), "nothing is known to be committed");
    log.save_committed(Some(id(5)));

    let contradicted = |ids: &[LogId]| log.is_contradicted_by(ids.iter().copied());

    assert!(!contradicted(&[]));
    assert!(!contradicted(&[id(3), id(4), id(5), later(6), later(7)]));
    assert!(!contradicted(&[later(6)]));
    assert!(contradicted(&[later(4)]));
    assert!(contradicted(&[id(4), later(5)]));
    assert!(contradicted(&[LogId { raft_term: 0, ..id(5) }]), "an earlier term's entry at the very place");

    log.purge_to(id(7)).unwrap();
    assert!(contradicted(&[later(7)]), "what is purged was committed");
    assert!(!contradicted(&[id(7), later(8)]));
}

#[test]
fn an_append_that_was_truncated_before_it_was_written_never_evicts_its_successor() {
    let disk = MemoryDisk::new();
    let options = Options { tail_bytes: 0, ..Options::default() };
    let storage = Storage::open_memory(disk.clone(), options).unwrap();
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    append(&log, vec![inline(0, b"kept")]).unwrap();
    disk.pause();
    log.append(vec![inline(1, b"old"), inline(2, b"old")], Box::new(|_| {}));
    storage.step();
    log.append(vec![inline(3, b"old")], Box::new(|_| {}));
    log.truncate_after(Some(0)).unwrap();
    log.append(vec![inline(1, b"new"), inline(2, b"new"), inline(3, b"new")], Box::new(|_| {}));

    while storage.step() {
        let texts: Vec<_> =
            log.read(1, 4, usize::MAX).unwrap().into_iter().map(|entry| entry.payload).collect();
        assert_eq!(texts, ["new", "new", "new"]);
    }
}

#[test]
fn a_purge_forgets_the_log_and_keeps_the_blocks_messages_need() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut stream = crate::stream::Stream::open(&rocks(dir.path()));
        for number in 0..100 {
            stream.publish(&[&format!("message {number}")], number);
        }
        stream.checkpoint();
        stream.log.purge_to(id(89)).unwrap();
        assert!(matches!(stream.log.read(89, 95, 1000), Err(Error::Purged { purged: 89, .. })));
        assert_eq!(stream.log.log_id(89).unwrap(), Some(id(89)));
        append(&stream.log, vec![inline(100, b"")]).unwrap();
    }

    let stream = crate::stream::Stream::open(&rocks(dir.path()));

    assert_eq!(stream.log.purged(), Some(id(89)));
    assert_eq!(stream.log.read(90, 200, usize::MAX).unwrap().len(), 11);
    assert_eq!(stream.text(1).unwrap(), "message 0");
    assert_eq!(stream.scan(1).len(), 100);
}

#[test]
fn a_purge_may_go_beyond_the_end() {
    let disk = MemoryDisk::new();
    let storage = Storage::in_memory(disk.clone());
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    append(&log, vec![inline(0, b"a")]).unwrap();
    let snapshot = LogId { raft_term: 3, node: NodeId(2), index: 50 };

    log.purge_to(snapshot).unwrap();

    assert_eq!((log.last(), log.purged()), (Some(snapshot), Some(snapshot)));
    let mut next = inline(51, b"b");
    next.id.raft_term = 3;
    append(&log, vec![next.clone()]).unwrap();
    drop((log, storage));
    let log = Storage::in_memory(disk).entry_log(GROUP, Sync::Always).unwrap();
    assert_eq!(log.read(51, 60, usize::MAX).unwrap(), [next]);
}

#[test]
fn a_removed_group_leaves_nothing_and_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let other = GroupId(GROUP.0 + 1);
    {
        let storage = rocks(dir.path());
        let mut stream = crate::stream::Stream::open(&storage);
        let mut neighbor = crate::stream::Stream::of_group(&storage, other);
        for (at, stream) in [(1, &mut stream), (2, &mut neighbor)] {
            stream.publish(&["a", "b", "c"], at);
            stream.remove(1, 2);
            stream.clean();
            stream.publish(&["d"], at);
            stream.checkpoint();
        }
        storage.remove_group(GROUP).unwrap();
        assert!(matches!(append(&stream.log, vec![inline(2, b"")]), Err(Error::GroupRemoved(GROUP))));
        let mut late = Batch::new();
        late.put_state(GROUP, 1, b"late", b"");
        assert!(matches!(storage.write(late, Durability::Ordered), Err(Error::GroupRemoved(GROUP))));
        assert_eq!(storage.groups().unwrap(), [other]);
    }

    let storage = rocks(dir.path());

    assert_eq!(storage.groups().unwrap(), [other]);
    let neighbor = crate::stream::Stream::of_group(&storage, other);
    assert_eq!(neighbor.scan(1), [(3, "c".into()), (4, "d".into())]);
    let removed = crate::stream::Stream::open(&storage);
    assert_eq!((removed.log.last(), removed.log.purged(), removed.scan(1)), (None, None, vec![]));
}
