//! A process that dies at a step of installing a snapshot, or of removing a group: the group is what it was or what it
//! becomes, whole, and nothing of the other is left.

use std::path::Path;

use levee_storage::{Error, Options, Storage};

use crate::dying::{die_at, dir, say};
use crate::stream::{GROUP, Stream, id, vote};

/// The last log entry that the snapshot covers.
const APPLIED: u64 = 59;

fn options() -> Options {
    Options { value_segment_bytes: 1 << 20, tail_bytes: 0, read_cache_bytes: 0, ..Options::default() }
}

/// Every third message is large and alone in its block, so that it lies in the value log.
fn text(what: &str, number: u64) -> String {
    format!("{what} {number} ").repeat(if number.is_multiple_of(3) { 12_000 } else { 1 })
}

/// A stream with a few messages, some of them removed.
fn fill(dir: &Path, what: &str, messages: u64) -> Stream {
    let mut stream = Stream::open(&Storage::open(dir, options()).unwrap());
    for number in 1..=messages {
        stream.publish(&[&text(what, number)], 1);
    }
    stream.remove(2, 7);
    stream.remove(messages - 3, messages - 2);
    stream.checkpoint();
    vote(&stream.log, b"promised").unwrap();
    stream
}

fn expected(what: &str, messages: u64) -> Vec<(u64, String)> {
    let live = |seq: &u64| !(2..=7).contains(seq) && !(messages - 3..=messages - 2).contains(seq);
    (1..=messages).filter(live).map(|seq| (seq, text(what, seq))).collect()
}

#[test]
#[ignore = "the process that dies; started by the tests below"]
fn imports_until_it_dies() {
    let dir = dir();
    let source = fill(&dir.join("source"), "new", APPLIED + 1);
    let target = Stream::open(&Storage::open(&dir.join("target"), options()).unwrap());
    loop {
        let mut import = target.storage.import(GROUP).unwrap();
        for chunk in source.storage.export(GROUP).unwrap() {
            import.push(&chunk.unwrap()).unwrap();
        }
        import.finish(id(APPLIED)).unwrap();
        say("installed");
        target.storage.remove_group(GROUP).unwrap();
        say("removed");
    }
}

/// What is there after it died at the moment.
fn after(moment: &str) -> (Vec<String>, Option<Vec<(u64, String)>>) {
    let dir = tempfile::tempdir().unwrap();
    drop(fill(&dir.path().join("target"), "old", 20));
    let said = die_at("import_moments::imports_until_it_dies", moment, dir.path());

    let storage = Storage::open(&dir.path().join("target"), options()).unwrap();
    if storage.groups().unwrap().is_empty() {
        return (said, None);
    }
    let mut stream = Stream::open(&storage);
    assert_eq!(stream.log.vote().unwrap(), b"promised", "{moment}");
    let found = stream.scan(0);
    // It goes on as what it is.
    if stream.log.purged().is_some() {
        assert_eq!((stream.log.last(), stream.last_seq), (Some(id(APPLIED)), APPLIED + 1), "{moment}");
    }
    stream.publish(&["next"], 2);
    stream.clean();
    assert_eq!(stream.scan(0).len(), found.len() + 1, "{moment}");
    (said, Some(found))
}

#[test]
fn a_process_that_dies_before_a_snapshot_is_installed_has_what_it_had() {
    for number in 1..=4 {
        let (said, found) = after(&format!("import-written:{number}"));

        assert!(!said.contains(&"installed".to_owned()), "{number}");
        assert_eq!(found, Some(expected("old", 20)), "{number}");
    }
}

#[test]
fn a_process_that_dies_after_a_snapshot_is_installed_has_all_of_it() {
    let (_, found) = after("installed");

    assert_eq!(found, Some(expected("new", APPLIED + 1)));
}

#[test]
fn a_process_that_dies_after_a_group_is_removed_has_nothing_of_it() {
    let (said, found) = after("group-removed");

    assert!(said.contains(&"installed".to_owned()));
    assert_eq!(found, None);
}

#[test]
fn a_handle_of_a_removed_group_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let stream = fill(dir.path(), "old", 20);

    stream.storage.remove_group(GROUP).unwrap();

    assert!(matches!(vote(&stream.log, b"late"), Err(Error::GroupRemoved(GROUP))));
}
