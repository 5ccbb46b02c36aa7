//! The writer of the store: appends of a group become one write. In memory, so that what counts is our own work, and
//! on disk with its syncs.

use std::sync::Arc;
use std::sync::mpsc::channel;

use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::{EntryLog, LogEntry, LogId, MemoryDisk, Options, Storage, Sync, kind};

use crate::micro::{Call, Case, apply};

/// Messages of an entry.
const BATCH: u64 = 200;
/// Entries that are kept before the log is purged.
const KEPT: u64 = 64;

/// The cases.
pub const CASES: [Case; 2] = [
    Case { name: "append a block, memory", per_call: BATCH, prepare: in_memory },
    Case { name: "append a block, disk", per_call: BATCH, prepare: on_disk },
];

fn in_memory() -> Call {
    let storage =
        Storage::open_memory(MemoryDisk::default(), Options::default()).expect("memory does not fail");
    appends(storage, None)
}

fn on_disk() -> Call {
    let dir = tempfile::tempdir_in(".").expect("the current directory is writable");
    let storage = Storage::open(dir.path(), Options::default()).expect("the disk works");
    appends(storage, Some(dir))
}

/// Appends one entry a call and waits until it is durable.
fn appends(storage: Arc<Storage>, dir: Option<tempfile::TempDir>) -> Call {
    let log: EntryLog = storage.entry_log(GroupId(16), Sync::Always).expect("the store is open");
    let block = apply::block(0, BATCH, 1, |_| String::new());
    let mut index = 0;
    Box::new(move || {
        let _kept = (&storage, &dir);
        let id = LogId { raft_term: 1, node: NodeId(1), index };
        let entry = LogEntry { id, kind: kind::BLOCK, payload: block.as_bytes().clone() };
        let (sender, receiver) = channel();
        log.append(vec![entry], Box::new(move |result| drop(sender.send(result))));
        receiver.recv().expect("the writer answers").expect("the disk works");
        if index % KEPT == KEPT - 1 {
            log.purge_to(id).expect("the disk works");
        }
        index += 1;
    })
}
