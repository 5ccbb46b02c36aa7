//! Groups whose logs are not synced, after a power cut: the log ends before the first block that is lost, and nothing is
//! lost that a checkpoint covers.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use levee_protocol::ids::Seq;
use levee_storage::{Error, LogEntry, LogId, MemoryDisk, Options, Storage, Sync};
use proptest::prelude::*;

use crate::stream::{GROUP, Stream, append, block, block_entry, id, inline, vote};

/// A message that is alone in its block and makes it large enough for the value log.
fn text(number: u64) -> String {
    format!("{number:08}").repeat(4 << 10)
}

fn open(storage: &Arc<Storage>) -> Stream {
    Stream::with(storage, GROUP, Sync::Never)
}

/// Without a tail and a cache, so that all is read from the disk.
fn opened(dir: &Path) -> Stream {
    let options = Options { tail_bytes: 0, read_cache_bytes: 0, ..Options::default() };
    open(&Storage::open(dir, options).unwrap())
}

/// A stream with twenty messages, all of them known to be committed, the first `checkpointed` in a checkpoint.
fn twenty(dir: &Path, checkpointed: u64) {
    let mut stream = opened(dir);
    vote(&stream.log, b"vote").unwrap();
    for number in 1..=20 {
        stream.log.save_committed(stream.log.last());
        stream.publish(&[&text(number)], 1);
        if number == checkpointed {
            stream.checkpoint();
        }
    }
}

fn volatile_file(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("values")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "volatile")).min().unwrap()
}

/// Where the block of a message begins in the file, behind its head: they are all as long.
fn offset(number: u64) -> u64 {
    4096 + (number - 1) * block(&[&text(number)], 1).as_bytes().len() as u64
}

fn zero(dir: &Path, number: u64) {
    let file = File::options().write(true).open(volatile_file(dir)).unwrap();
    file.write_all_at(&[0; 4096], offset(number) + 9000).unwrap();
}

fn cut(dir: &Path, number: u64) {
    File::options().write(true).open(volatile_file(dir)).unwrap().set_len(offset(number) + 100).unwrap();
}

/// The log has these messages and no others, and it is a log like any other.
fn goes_on_behind(dir: &Path, last: u64) {
    let stream = opened(dir);
    assert_eq!(stream.log.last(), last.checked_sub(1).map(id));
    assert_eq!(stream.log.committed(), last.checked_sub(1).map(id));
    assert_eq!(stream.log.vote().as_deref(), Some(&b"vote"[..]));
    assert_eq!(stream.log.read(0, 100, usize::MAX).unwrap().len() as u64, last);

    // Other entries of a later term, fewer than are lost.
    let other = block(&["other"], 1);
    let entry = LogEntry { id: LogId { raft_term: 2, ..id(last) }, ..block_entry(last, &other) };
    append(&stream.log, vec![entry.clone()]).unwrap();
    drop(stream);

    let stream = opened(dir);
    assert_eq!(stream.log.last(), Some(entry.id));
    assert_eq!(stream.log.read(last, 100, usize::MAX).unwrap(), [entry]);
    assert!(stream.log.committed().is_none_or(|id| id.index < last));
}

#[test]
fn nothing_is_lost_without_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    twenty(dir.path(), 10);

    let stream = opened(dir.path());

    assert_eq!(stream.log.last(), Some(id(19)));
    assert_eq!(stream.log.committed(), Some(id(18)));
    for (number, entry) in (1..).zip(stream.log.read(0, 100, usize::MAX).unwrap()) {
        assert_eq!(entry.payload, block(&[&text(number)], 1).as_bytes());
    }
    assert_eq!(stream.scan(1), (1..=10).map(|number| (number, text(number))).collect::<Vec<_>>());
}

#[test]
fn the_log_ends_before_the_first_block_that_is_lost() {
    for harm in [zero, cut] {
        let dir = tempfile::tempdir().unwrap();
        twenty(dir.path(), 10);

        harm(dir.path(), 15);

        goes_on_behind(dir.path(), 14);
        let stream = opened(dir.path());
        assert_eq!(stream.scan(1), (1..=10).map(|number| (number, text(number))).collect::<Vec<_>>());
    }
}

#[test]
fn a_log_without_a_checkpoint_may_be_lost_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    twenty(dir.path(), 0);

    zero(dir.path(), 1);

    goes_on_behind(dir.path(), 0);
}

#[test]
fn what_a_checkpoint_covers_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    twenty(dir.path(), 10);

    zero(dir.path(), 10);

    let storage = Storage::open(dir.path(), Options::default()).unwrap();
    let refused = storage.entry_log(GROUP, Sync::Never).map(drop);
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
}

#[test]
fn a_lost_block_of_a_synced_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    twenty(dir.path(), 10);

    zero(dir.path(), 15);

    let storage = Storage::open(dir.path(), Options::default()).unwrap();
    let refused = storage.entry_log(GROUP, Sync::Always).map(drop);
    assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Publish { count: u64 },
    Other,
    Commit { back: u64 },
    Checkpoint,
    Crash { kept: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..4_u64).prop_map(|count| Step::Publish { count }),
        2 => Just(Step::Other),
        2 => (0..3_u64).prop_map(|back| Step::Commit { back }),
        2 => Just(Step::Checkpoint),
        2 => (0..12_usize).prop_map(|kept| Step::Crash { kept }),
    ]
}

proptest! {
    #[test]
    fn a_power_cut_takes_an_end_and_no_checkpoint(steps in prop::collection::vec(step(), 1..60)) {
        let disk = MemoryDisk::new();
        let without_tail = || Options { tail_bytes: 0, ..Options::default() };
        let mut stream = open(&Storage::open_memory(disk.clone(), without_tail()).unwrap());
        // What was published, and how much of it a checkpoint covered when it was written.
        let mut wanted: Vec<LogEntry> = Vec::new();
        let mut term = 1;
        for step in steps {
            let next = wanted.len() as u64;
            let of_term = |entry: LogEntry| LogEntry { id: LogId { raft_term: term, ..entry.id }, ..entry };
            match step {
                Step::Publish { count } => {
                    let block = block(&vec!["x"; count as usize], term as i64);
                    wanted.push(of_term(block_entry(next, &block)));
                    append(&stream.log, wanted[next as usize..].to_vec()).unwrap();
                    stream.messages.stored(next, &block, Seq(stream.last_seq + 1), &[]);
                    stream.last_seq += count;
                }
                Step::Other => {
                    wanted.push(of_term(inline(next, b"x")));
                    append(&stream.log, wanted[next as usize..].to_vec()).unwrap();
                }
                Step::Commit { back } => {
                    if let Some(entry) = wanted.iter().rev().nth(back as usize) {
                        stream.log.save_committed(Some(entry.id));
                    }
                }
                Step::Checkpoint => stream.checkpoint(),
                Step::Crash { kept } => {
                    disk.crash_keeping(kept);
                    stream = open(&Storage::open_memory(disk.clone(), without_tail()).unwrap());
                    let stored = stream.log.read(0, u64::MAX, usize::MAX).unwrap();
                    prop_assert_eq!(&stored[..], &wanted[..stored.len()]);
                    prop_assert_eq!(stream.log.last(), stored.last().map(|entry| entry.id));
                    let committed = stream.log.committed();
                    prop_assert!(committed.is_none_or(|id| stored.get(id.index as usize).is_some_and(|entry| entry.id == id)));
                    // Whatever checkpoint is there, what it covers is there, too: as many messages as it says.
                    prop_assert_eq!(stream.scan(1).len() as u64, stream.last_seq);
                    wanted.truncate(stored.len());
                    term += 1;
                    // Applies what is behind the checkpoint again.
                    let mut seq = 1;
                    for entry in &stored {
                        if let Ok(block) = levee_protocol::record::Block::parse(entry.payload.clone()) {
                            stream.messages.stored(entry.id.index, &block, Seq(seq), &[]);
                            seq += u64::from(block.count());
                        }
                    }
                    stream.last_seq = seq - 1;
                }
            }
        }
    }
}
