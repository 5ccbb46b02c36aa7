//! A process that dies between appends, votes, truncations and purges of a log.
//!
//! It says what it is about to do and what was confirmed. Whatever was confirmed must be there afterwards; a truncation
//! may come undone as long as nothing was appended in its place.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::ids::NodeId;
use levee_storage::{LogEntry, LogId, Options, Storage, Sync};

use crate::dying::{die_at, dir, say};
use crate::stream::{GROUP, append, block, block_entry, inline, vote};

/// Entries of one append. Every other is a block that is large enough for the value log.
const ENTRIES: u64 = 4;
const KEPT: u64 = 20;

fn options() -> Options {
    // A tail of nothing, so that reads come from the disk.
    Options { tail_bytes: 0, value_segment_bytes: 1 << 20, ..Options::default() }
}

fn text(index: u64, raft_term: u64) -> String {
    format!("{index} of {raft_term} ").repeat(if index.is_multiple_of(2) { 2000 } else { 2 })
}

fn entry(index: u64, raft_term: u64) -> LogEntry {
    let text = text(index, raft_term);
    let mut entry = if index.is_multiple_of(2) {
        block_entry(index, &block(&[&text], 1))
    } else {
        inline(index, text.as_bytes())
    };
    entry.id = LogId { raft_term, node: NodeId(1), index };
    entry
}

#[test]
#[ignore = "the process that dies; started by the tests below"]
fn writes_a_log_until_it_dies() {
    let storage = Storage::open(&dir(), options()).unwrap();
    let log = storage.entry_log(GROUP, Sync::Always).unwrap();
    let mut term = log.vote().map_or(0, |vote| u64::from_le_bytes(vote.try_into().unwrap()));
    for round in 1..=10_000_u64 {
        if round % 3 == 1 {
            term += 1;
            vote(&log, &term.to_le_bytes()).unwrap();
            say(&format!("voted {term}"));
            let last = log.last().map_or(0, |last| last.index);
            let keep = last.saturating_sub(round % 5).max(log.purged().map_or(0, |purged| purged.index));
            if keep < last {
                say(&format!("truncating {keep}"));
                log.truncate_after(Some(keep)).unwrap();
            }
        }
        let next = log.last().map_or(0, |last| last.index + 1);
        let entries: Vec<_> = (next..next + ENTRIES).map(|index| entry(index, term)).collect();
        say(&format!("appending {next} {term}"));
        append(&log, entries).unwrap();
        say(&format!("appended {next} {term}"));
        if round % 7 == 0
            && let Some(upto) = (next + ENTRIES - 1).checked_sub(KEPT)
        {
            let id = log.log_id(upto).unwrap().unwrap();
            log.purge_to(id).unwrap();
        }
    }
}

/// What a log may hold, as far as its process said.
#[derive(Default)]
struct Told {
    /// Terms of the entries that must be there.
    sure: BTreeMap<u64, u64>,
    /// Terms that an entry may have besides.
    possible: BTreeMap<u64, BTreeSet<u64>>,
    vote: u64,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (what, first, second) = (words.next(), words.next(), words.next());
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
        match (what, number(first), number(second)) {
            (Some("voted"), Some(term), _) => self.vote = term,
            (Some("truncating"), Some(keep), _) => {
                for (index, term) in self.sure.split_off(&(keep + 1)) {
                    self.possible.entry(index).or_default().insert(term);
                }
            }
            (Some("appending"), Some(first), Some(term)) => {
                for index in first..first + ENTRIES {
                    self.possible.entry(index).or_default().insert(term);
                }
            }
            (Some("appended"), Some(first), Some(term)) => {
                // What was truncated behind it went with the same write, or an earlier one.
                self.possible.split_off(&first);
                self.sure.extend((first..first + ENTRIES).map(|index| (index, term)));
            }
            (_, _, _) => {}
        }
    }
}

fn survives(moments: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    for moment in moments {
        for line in die_at("log_moments::writes_a_log_until_it_dies", moment, dir.path()) {
            told.hear(&line);
        }

        let storage = Storage::open(dir.path(), options()).unwrap();
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();

        let vote = log.vote().map_or(0, |vote| u64::from_le_bytes(vote.try_into().unwrap()));
        assert!(vote == told.vote || vote == told.vote + 1, "{moment}: {vote} after {}", told.vote);
        let first = log.purged().map_or(0, |purged| purged.index + 1);
        let last = log.last().map(|last| last.index);
        assert!(told.sure.keys().next_back().copied() <= last, "{moment}: the log ends at {last:?}");
        for found in log.read(first, u64::MAX, usize::MAX).unwrap() {
            let (index, term) = (found.id.index, found.id.raft_term);
            match told.sure.get(&index) {
                Some(sure) => assert_eq!(term, *sure, "{moment}: entry {index}"),
                None => assert!(told.possible[&index].contains(&term), "{moment}: entry {index} of {term}"),
            }
            assert_eq!(found.payload, entry(index, term).payload, "{moment}: entry {index}");
            // From here on it is what the log has.
            told.sure.insert(index, term);
        }
        told.possible.clear();
        told.vote = vote;
    }
}

#[test]
fn a_process_that_dies_while_it_votes_and_truncates_keeps_its_votes_and_what_it_appended() {
    survives(&[
        "vote-synced",
        "vote-synced:20",
        "truncated",
        "truncated:9",
        "append-synced:2",
        "append-answered:30",
        "truncated:2",
        "values-appended:3",
    ]);
}

#[test]
fn a_process_that_dies_after_it_purged_a_log_has_the_rest_without_a_gap() {
    survives(&["log-purged", "log-purged:5", "append-synced:9", "log-purged:12", "segment-begun:2"]);
}
