//! Random work, a crash anywhere, and what must be true afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use levee_protocol::ids::{GroupId, Seq};
use levee_storage::{
    Batch, Durability, EntryLog, LogEntry, MemoryDisk, MessageStore, Options, Storage, Sync,
};
use proptest::prelude::*;

use crate::stream::{block, block_entry, inline};

#[derive(Clone, Debug)]
enum Step {
    Append { group: u64, entries: u64, block: bool },
    Truncate { group: u64, back: u64 },
    Vote { group: u64 },
    Write,
    Crash { kept: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..3_u64, 1..4_u64, any::<bool>())
            .prop_map(|(group, entries, block)| Step::Append { group, entries, block }),
        1 => (0..3_u64, 1..5_u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        1 => (0..3_u64).prop_map(|group| Step::Vote { group }),
        4 => Just(Step::Write),
        1 => (0..6_usize).prop_map(|kept| Step::Crash { kept }),
    ]
}

/// What a group must still have, and what it may have.
#[derive(Default)]
struct Promise {
    /// The log as it was told to be.
    wanted: Vec<LogEntry>,
    /// Everything below was acknowledged, and not truncated since.
    acknowledged: Arc<Mutex<usize>>,
    vote: Arc<Mutex<u64>>,
    votes: u64,
}

fn open(disk: &MemoryDisk, group: u64) -> (Arc<Storage>, Vec<EntryLog>) {
    // A tail of nothing, so that reads come from the disk.
    let storage =
        Storage::open_memory(disk.clone(), Options { tail_bytes: 0, ..Options::default() }).unwrap();
    let logs =
        (0..group).map(|group| storage.entry_log(GroupId(16 + group), Sync::Always).unwrap()).collect();
    (storage, logs)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn acknowledged_entries_and_votes_survive_a_crash_anywhere(steps in prop::collection::vec(step(), 1..60)) {
        let disk = MemoryDisk::new();
        let (mut storage, mut logs) = open(&disk, 3);
        disk.pause();
        let mut promises: Vec<Promise> = (0..3).map(|_| Promise::default()).collect();
        let mut term = 1;
        for step in steps {
            match step {
                Step::Append { group, entries, block: as_block } => {
                    let promise = &mut promises[group as usize];
                    let from = promise.wanted.len() as u64;
                    let new: Vec<_> = (from..from + entries).map(|index| {
                        let text = format!("{group} {index} {term}");
                        let mut entry = if as_block {
                            block_entry(index, &block(&[&text], 1))
                        } else {
                            inline(index, text.as_bytes())
                        };
                        entry.id.raft_term = term;
                        entry
                    }).collect();
                    promise.wanted.extend(new.iter().cloned());
                    let (acknowledged, len) = (Arc::clone(&promise.acknowledged), promise.wanted.len());
                    let expected = promise.wanted.clone();
                    let promised = Arc::new(Mutex::new(expected));
                    logs[group as usize].append(new, Box::new(move |result| {
                        if result.is_ok() {
                            let mut acknowledged = acknowledged.lock().unwrap();
                            *acknowledged = (*acknowledged).max(len.min(promised.lock().unwrap().len()));
                        }
                    }));
                }
                Step::Truncate { group, back } => {
                    // Everything queued is written first: a truncation of unwritten entries may come back with a crash.
                    while storage.step() {}
                    let promise = &mut promises[group as usize];
                    let keep = (promise.wanted.len() as u64).saturating_sub(back) as usize;
                    promise.wanted.truncate(keep);
                    *promise.acknowledged.lock().unwrap() = keep;
                    term += 1;
                    logs[group as usize].truncate_after(keep.checked_sub(1).map(|last| last as u64)).unwrap();
                }
                Step::Vote { group } => {
                    let promise = &mut promises[group as usize];
                    promise.votes += 1;
                    let (voted, vote) = (Arc::clone(&promise.vote), promise.votes);
                    logs[group as usize].save_vote(vote.to_le_bytes().to_vec(), Box::new(move |result| {
                        if result.is_ok() {
                            *voted.lock().unwrap() = vote;
                        }
                    }));
                }
                Step::Write => { storage.step(); }
                Step::Crash { kept } => {
                    disk.crash_keeping(kept);
                    drop((std::mem::take(&mut logs), storage));
                    (storage, logs) = open(&disk, 3);
                    disk.pause();
                    for (promise, log) in promises.iter_mut().zip(&logs) {
                        let stored = log.read(0, u64::MAX, usize::MAX).unwrap();
                        let acknowledged = *promise.acknowledged.lock().unwrap();
                        prop_assert!(stored.len() >= acknowledged, "{} < {acknowledged}", stored.len());
                        prop_assert_eq!(&stored[..acknowledged], &promise.wanted[..acknowledged]);
                        prop_assert_eq!(log.last(), stored.last().map(|entry| entry.id));
                        let voted = log.vote().map_or(0, |vote| u64::from_le_bytes(vote.try_into().unwrap()));
                        prop_assert!(voted >= *promise.vote.lock().unwrap());
                        promise.votes = promise.votes.max(voted);
                        promise.wanted = stored;
                        term += 1;
                    }
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Deed {
    Publish { count: usize },
    Remove { choice: u64, len: u64 },
    Checkpoint,
    Purge,
    Clean,
    Write,
    Crash { kept: usize },
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (1..6_usize).prop_map(|count| Deed::Publish { count }),
        6 => (any::<u64>(), 1..8_u64).prop_map(|(choice, len)| Deed::Remove { choice, len }),
        2 => Just(Deed::Checkpoint),
        1 => Just(Deed::Purge),
        2 => Just(Deed::Clean),
        2 => Just(Deed::Write),
        1 => (0..6_usize).prop_map(|kept| Deed::Crash { kept }),
    ]
}

/// A stream machine of the simplest kind: commands are blocks to store and ranges to remove, the state is which
/// sequences are live, and its checkpoint is written together with the index.
struct Replica {
    storage: Arc<Storage>,
    log: EntryLog,
    messages: Arc<MessageStore>,
    live: BTreeMap<u64, String>,
    last_seq: u64,
    applied: Option<u64>,
    /// What a written checkpoint covers, which is how far the log may be purged.
    checkpointed: Arc<Mutex<Option<u64>>>,
}

const GROUP: GroupId = GroupId(16);

impl Replica {
    fn open(disk: &MemoryDisk) -> Self {
        let storage =
            Storage::open_memory(disk.clone(), Options { tail_bytes: 0, ..Options::default() }).unwrap();
        let log = storage.entry_log(GROUP, Sync::Always).unwrap();
        let messages = storage.messages(GROUP).unwrap();
        let (mut live, mut last_seq, mut applied) = (BTreeMap::new(), 0, None);
        storage
            .state_rows(GROUP, &mut |kind, key, value| {
                let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
                if kind == 1 {
                    (last_seq, applied) = (number(&value[..8]), Some(number(&value[8..])));
                } else {
                    live.insert(number(key), String::from_utf8(value.to_vec()).unwrap());
                }
            })
            .unwrap();
        let checkpointed = Arc::new(Mutex::new(applied));
        let mut replica = Self { storage, log, messages, live, last_seq, applied, checkpointed };
        let from = applied.map_or(0, |applied| applied + 1);
        for entry in replica.log.read(from, u64::MAX, usize::MAX).unwrap() {
            replica.apply(&entry);
        }
        replica
    }

    fn propose(&mut self, entry: LogEntry) {
        self.log.append(vec![entry.clone()], Box::new(|_| {}));
        self.apply(&entry);
    }

    fn apply(&mut self, entry: &LogEntry) {
        if entry.kind == levee_storage::kind::BLOCK {
            let block = levee_protocol::record::Block::parse(entry.payload.clone()).unwrap();
            // Every third position is a duplicate.
            let holes: Vec<u32> = (0..block.count()).filter(|position| position % 3 == 2).collect();
            let first = self.last_seq + 1;
            for position in (0..block.count()).filter(|position| !holes.contains(position)) {
                self.last_seq += 1;
                let text = String::from_utf8(block.record(position).payload.to_vec()).unwrap();
                self.live.insert(self.last_seq, text);
            }
            self.messages.stored(entry.id.index, &block, Seq(first), &holes);
        } else {
            let number = |at: usize| u64::from_be_bytes(entry.payload[at..at + 8].try_into().unwrap());
            let (first, last) = (number(0), number(8));
            for seq in first..=last {
                // As the rules do: what a removed message was is looked up while removing it.
                let expected = self.live.remove(&seq).expect("only live ranges are removed");
                let record = self.messages.record(Seq(seq)).unwrap().expect("a live message can be read");
                assert_eq!(record.payload, expected);
            }
            self.messages.removed(Seq(first), Seq(last)).unwrap();
        }
        self.applied = Some(entry.id.index);
    }

    fn checkpoint(&mut self) {
        let Some(applied) = self.applied else { return };
        let mut batch = Batch::new();
        for seq in 1..=self.last_seq {
            match self.live.get(&seq) {
                Some(text) => batch.put_state(GROUP, 2, &seq.to_be_bytes(), text.as_bytes()),
                None => batch.delete_state(GROUP, 2, &seq.to_be_bytes()),
            }
        }
        let state = [self.last_seq.to_be_bytes(), applied.to_be_bytes()].concat();
        batch.put_state(GROUP, 1, b"", &state);
        self.messages.checkpoint(&mut batch);
        let checkpointed = Arc::clone(&self.checkpointed);
        let written = Box::new(move |result: Result<(), _>| {
            if result.is_ok() {
                *checkpointed.lock().unwrap() = Some(applied);
            }
        });
        self.storage.submit(batch, Durability::Ordered, written);
    }

    fn check(&self) {
        let mut found = Vec::new();
        self.messages
            .scan(Seq(0), &mut |seq, record| {
                if self.live.contains_key(&seq.0) {
                    found.push((seq.0, String::from_utf8(record.payload.to_vec()).unwrap()));
                }
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        let expected: Vec<_> = self.live.iter().map(|(seq, text)| (*seq, text.clone())).collect();
        assert_eq!(found, expected);
        for (seq, text) in &self.live {
            assert_eq!(self.messages.record(Seq(*seq)).unwrap().expect("live").payload, *text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn live_messages_stay_readable_through_removal_cleaning_and_crashes(deeds in prop::collection::vec(deed(), 1..120)) {
        let disk = MemoryDisk::new();
        let mut replica = Replica::open(&disk);
        disk.pause();
        for (number, deed) in deeds.into_iter().enumerate() {
            match deed {
                Deed::Publish { count } => {
                    let texts: Vec<String> = (0..count).map(|at| format!("{number}.{at}")).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let index = replica.log.last().map_or(0, |last| last.index + 1);
                    replica.propose(block_entry(index, &block(&texts, number as i64)));
                }
                Deed::Remove { choice, len } => {
                    let Some(first) = replica.live.keys().nth((choice % (replica.live.len().max(1) as u64)) as usize)
                        .copied() else { continue };
                    let mut last = first;
                    while last + 1 < first + len && replica.live.contains_key(&(last + 1)) {
                        last += 1;
                    }
                    let index = replica.log.last().map_or(0, |last| last.index + 1);
                    let command = [first.to_be_bytes(), last.to_be_bytes()].concat();
                    replica.propose(inline(index, &command));
                }
                Deed::Checkpoint => replica.checkpoint(),
                Deed::Purge => {
                    let checkpointed = *replica.checkpointed.lock().unwrap();
                    if let Some(index) = checkpointed
                        && replica.log.purged().is_none_or(|purged| purged.index < index)
                    {
                        let id = replica.log.log_id(index).unwrap().unwrap();
                        replica.log.purge_to(id).unwrap();
                    }
                }
                Deed::Clean => {
                    if let Some(purged) = replica.log.purged() {
                        replica.messages.clean(purged.index).unwrap();
                    }
                }
                Deed::Write => while replica.storage.step() {},
                Deed::Crash { kept } => {
                    disk.crash_keeping(kept);
                    drop(replica);
                    replica = Replica::open(&disk);
                    disk.pause();
                }
            }
            replica.check();
        }
        // Heal, and demand that dead blocks are really gone.
        disk.resume();
        while replica.storage.step() {}
        replica.checkpoint();
        while replica.storage.step() {}
        if let Some(last) = replica.log.last() {
            replica.log.purge_to(last).unwrap();
            replica.messages.clean(last.index).unwrap();
            replica.checkpoint();
            while replica.storage.step() {}
            replica.messages.clean(last.index).unwrap();
            replica.check();
            if replica.live.is_empty() {
                prop_assert_eq!(disk.table_bytes(levee_storage::Table::Blocks), 0);
                prop_assert_eq!(disk.table_bytes(levee_storage::Table::Kept), 0);
            }
        }
    }
}
