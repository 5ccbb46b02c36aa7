//! A process that dies between any two steps of append, sync, apply, checkpoint and cleaning.
//!
//! Each case is a process of its own that publishes, forgets what its stream may not keep, checkpoints, purges and
//! cleans until it kills itself. Then the store is opened here, the log behind the last checkpoint is applied again,
//! and the stream must be what its log says: everything acknowledged, and nothing that was removed.

use std::collections::BTreeSet;
use std::path::Path;

use levee_protocol::ids::Seq;
use levee_protocol::record::Block;
use levee_storage::{Batch, Durability, Options, Storage, kind};

use crate::dying::{die_at, dir, say};
use crate::stream::{GROUP, Stream, append, block, block_entry};

/// What the stream keeps: its newest messages, and of those before them every eighth, so that segments neither stay
/// full nor become empty by themselves.
const KEPT: u64 = 30;
const SURVIVES: u64 = 8;
/// Messages of every fourth block: most of them go before the block does, so that the rest is moved out of it.
const SOMETIMES: u64 = 12;

fn options() -> Options {
    Options {
        value_segment_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        read_cache_bytes: 1 << 20,
        ..Options::default()
    }
}

/// Every third message is small and stays in RocksDB.
fn text(seq: u64) -> String {
    format!("{seq:08}").repeat(if seq.is_multiple_of(3) { 3 } else { 10 << 10 })
}

fn applied_row(index: u64, last_seq: u64) -> Vec<u8> {
    [index.to_le_bytes(), last_seq.to_le_bytes()].concat()
}

struct Machine {
    stream: Stream,
    next_index: u64,
}

impl Machine {
    /// Loads the last checkpoint and applies what the log has behind it.
    fn open(dir: &Path) -> Self {
        let storage = Storage::open(dir, options()).unwrap();
        let log = storage.entry_log(GROUP, levee_storage::Sync::Always).unwrap();
        let messages = storage.messages(GROUP).unwrap();
        let mut stream = Stream { storage, log, messages, group: GROUP, last_seq: 0 };
        let mut next_index = 0;
        stream
            .storage
            .state_rows(GROUP, &mut |_, _, row| {
                next_index = u64::from_le_bytes(row[..8].try_into().unwrap());
                stream.last_seq = u64::from_le_bytes(row[8..].try_into().unwrap());
            })
            .unwrap();
        let end = stream.log.last().map_or(0, |last| last.index + 1);
        let mut machine = Self { stream, next_index };
        for entry in machine.stream.log.read(next_index, end, usize::MAX).unwrap() {
            assert_eq!((entry.id.index, entry.kind), (machine.next_index, kind::BLOCK));
            machine.apply(&Block::parse(entry.payload).unwrap());
        }
        machine
    }

    fn publish(&mut self) -> u64 {
        let count = if self.next_index % 4 == 3 { SOMETIMES } else { 1 };
        let first = self.stream.last_seq + 1;
        let texts: Vec<String> = (first..first + count).map(text).collect();
        let block = block(&texts.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        append(&self.stream.log, vec![block_entry(self.next_index, &block)]).unwrap();
        self.apply(&block);
        self.stream.last_seq
    }

    fn apply(&mut self, block: &Block) {
        let first = self.stream.last_seq + 1;
        self.stream.last_seq += u64::from(block.count());
        self.stream.messages.stored(self.next_index, block, Seq(first), &[]);
        self.next_index += 1;
        for seq in first..=self.stream.last_seq {
            if let Some(old) = seq.checked_sub(KEPT).filter(|old| *old > 0 && old % SURVIVES != 0) {
                self.stream.remove(old, old);
            }
        }
    }

    fn checkpoint(&self) {
        let mut batch = Batch::new();
        self.stream.messages.checkpoint(&mut batch);
        let row = applied_row(self.next_index, self.stream.last_seq);
        batch.put_state(GROUP, 1, b"applied", &row);
        self.stream.storage.write(batch, Durability::Ordered).unwrap();
    }

    fn clean(&self) {
        let last = self.stream.log.last().unwrap();
        self.stream.log.purge_to(last).unwrap();
        while self.stream.messages.clean(last.index).unwrap().more {}
    }

    /// Whether the stream is what its length says it must be.
    fn check(&self) {
        let last = self.stream.last_seq;
        let expected: BTreeSet<u64> =
            (1..=last).filter(|seq| seq % SURVIVES == 0 || seq + KEPT > last).collect();
        let found = self.stream.scan(0);
        assert_eq!(found.iter().map(|(seq, _)| *seq).collect::<BTreeSet<_>>(), expected);
        for (seq, found) in found {
            assert!(found == text(seq), "message {seq} is not what was published");
        }
    }
}

#[test]
#[ignore = "the process that dies; started by the test below"]
fn works_until_it_dies() {
    let mut machine = Machine::open(&dir());
    for round in 1..=100_000 {
        let acknowledged = machine.publish();
        say(&format!("acknowledged {acknowledged}"));
        if round % 5 == 0 {
            machine.checkpoint();
        }
        if round % 10 == 0 {
            machine.clean();
        }
    }
}

/// Runs a process until it dies at the moment; returns the last sequence it saw acknowledged, 0 for none.
fn last_acknowledged(moment: &str, dir: &Path) -> u64 {
    let said = die_at("moments::works_until_it_dies", moment, dir);
    said.iter().filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()).next_back().unwrap_or(0)
}

/// Opens what a process left that saw `last` acknowledged.
pub(crate) fn check_after_crash(dir: &Path, last: u64) {
    let mut machine = Machine::open(dir);
    assert!((last..=last + SOMETIMES).contains(&machine.stream.last_seq), "{last} was acknowledged");
    machine.check();
    // It goes on behind whatever was torn.
    for _ in 0..5 {
        machine.publish();
    }
    machine.check();
}

/// The same store dies again and again, each time later in its life.
fn survives(moments: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for moment in moments {
        last = last.max(last_acknowledged(moment, dir.path()));

        let machine = Machine::open(dir.path());

        assert!(machine.stream.last_seq >= last, "{moment}: {last} was acknowledged");
        assert!(machine.stream.last_seq <= last + SOMETIMES, "{moment}: only one block was under way");
        machine.check();
        last = machine.stream.last_seq;
    }
    let mut machine = Machine::open(dir.path());
    for _ in 0..50 {
        machine.publish();
    }
    machine.checkpoint();
    machine.clean();
    machine.check();
}

#[test]
fn a_process_that_dies_while_it_appends_loses_nothing_acknowledged() {
    survives(&[
        "values-appended",
        "values-appended:100",
        "append-synced",
        "append-synced:77",
        "append-answered:9",
    ]);
}

#[test]
fn a_process_that_dies_while_it_applies_or_checkpoints_applies_the_rest_again() {
    survives(&[
        "applied",
        "applied:63",
        "rows-written",
        "rows-written:17",
        "rows-written:18",
        "rows-written:40",
    ]);
}

#[test]
fn a_process_that_dies_while_space_is_given_back_loses_nothing_and_revives_nothing() {
    survives(&["values-copied", "values-moved", "segments-empty", "segments-removed", "values-copied:2"]);
    survives(&["block-emptied", "block-emptied:7", "log-purged:3", "segment-begun:2", "block-emptied:30"]);
}
