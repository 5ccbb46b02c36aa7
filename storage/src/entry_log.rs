//! A group's Raft log: append, read, truncate, purge, vote.
//!
//! An appended entry is readable at once, from the tail in memory, and durable when its callback runs; so
//! replication overlaps with the sync. The payload of a block is stored once, in `blocks`, and outlives the entry.
//!
//! Hot path: one lock per append, no copy of payloads, one pass over a block for its checksum.

use std::sync::Arc;

use crate::engine::Scan;
use crate::entry_row::{EntryRow, is_whole_block, kind};
use crate::error::Error;
use crate::group::{Group, LogEntry, LogId, Sync};
use crate::keys::{self, KeyRange, Table};
use crate::metrics;
use crate::space::Room;
use crate::storage::Storage;
use crate::writer::{Done, Job, Work};

/// Handle to the log of one group. Clones are the same log. Appends, truncations and purges come from one caller at
/// a time, as Raft does it; reads may come from anywhere.
#[derive(Clone)]
pub struct EntryLog {
    storage: Arc<Storage>,
    group: Arc<Group>,
}

impl EntryLog {
    pub(crate) fn open(storage: &Arc<Storage>, group: Arc<Group>, sync: Sync) -> Result<Self, Error> {
        group.set_sync(sync);
        if let Some(lost) = group.recover_log(storage.engine())? {
            let entries = lost.to - lost.from + 1;
            tracing::warn!(
                group = group.id.0,
                from = lost.from,
                entries,
                "a power cut took the end of a log that is not synced"
            );
            storage.push(Some(Arc::clone(&group)), Work::LoseEnd(lost));
        }
        Ok(Self { storage: Arc::clone(storage), group })
    }

    /// Adds entries behind the last one. They can be read when this returns; `done` is called once they are on
    /// stable storage (or merely written, with `Sync::Never`), after the `done` of every earlier append.
    ///
    /// When the writer's queue is full, this blocks the calling thread until there is room: the disk is behind, and
    /// memory is not where a backlog belongs. `done` may be called before this returns.
    ///
    /// `done` gets an error, and the log is as it was before, if the entries do not continue the log
    /// (`OutOfOrder`), a block is damaged (`Damaged`), or the disk is nearly full (`DiskFull`; ask
    /// `Storage::room` before proposing, a Raft log store may not refuse).
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) {
        let bytes: usize = entries.iter().map(LogEntry::memory_bytes).sum();
        if let Err(error) = self.admit(&entries, bytes) {
            return done(Err(error));
        }
        self.storage.queue().reserve(bytes);
        let mut log = self.group.log.write();
        if let Err(error) = continues(&self.group, log.last, log.next_index(), &entries) {
            drop(log);
            self.storage.queue().release(bytes);
            return done(Err(error));
        }
        for entry in &entries {
            log.push(entry.clone());
        }
        let mark = if entries.is_empty() { None } else { log.first_mark.take() };
        let committed = log.take_committed();
        let work = Work::Append { entries, epoch: log.epoch, committed, mark };
        // Still under the lock: the queue must have appends of a group in the order of its tail.
        self.storage.queue().push(self.job(work, bytes, Some(done)));
        drop(log);
        self.storage.kick();
    }

    /// Entries from `from` up to and without `to_exclusive` or the end, at least one if there is any and no more than
    /// about `bytes_max`. `Purged` if the first is no longer there.
    pub fn read(&self, from: u64, to_exclusive: u64, bytes_max: usize) -> Result<Vec<LogEntry>, Error> {
        let mut found = Vec::new();
        let mut budget = Budget { left: bytes_max };
        loop {
            let next = from + found.len() as u64;
            let end = {
                let log = self.group.log.read();
                self.check_not_purged(log.purged, next)?;
                let end = to_exclusive.min(log.next_index());
                if next >= end || (budget.left == 0 && !found.is_empty()) {
                    return Ok(found);
                }
                if let Some(position) = log.tail_position(next) {
                    for entry in log.tail.range(position.min(log.tail.len())..) {
                        if entry.id.index >= end || (!budget.take(entry.payload.len()) && !found.is_empty()) {
                            break;
                        }
                        found.push(entry.clone());
                    }
                    return Ok(found);
                }
                end.min(log.tail_first())
            };
            // What is not in the tail is written; what leaves the tail while we read is found in the next round.
            if let Err(error) = self.read_stored(next, end, &mut budget, &mut found) {
                // Purged while we were reading: that is what happened, not damage.
                self.check_not_purged(self.purged(), next)?;
                return Err(error);
            }
        }
    }

    /// The id of one entry; the purge floor counts as one.
    pub fn log_id(&self, index: u64) -> Result<Option<LogId>, Error> {
        if let Some(purged) = self.purged()
            && purged.index == index
        {
            return Ok(Some(purged));
        }
        Ok(self.read(index, index.saturating_add(1), 0)?.first().map(|entry| entry.id))
    }

    /// The newest entry, the purge floor when there is none behind it, or `None` in a log that never had one.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        self.group.log.read().last
    }

    /// The newest entry that was purged.
    #[must_use]
    pub fn purged(&self) -> Option<LogId> {
        self.group.log.read().purged
    }

    /// Drops every entry above `index`, all with `None`. What is known to be committed is not dropped: that is refused
    /// (`Committed`), and a majority that asks for it has lost its logs. Later appends continue there. Ordered with
    /// appends; not synced by itself, because an append that replaces the entries is.
    pub fn truncate_after(&self, index: Option<u64>) -> Result<(), Error> {
        self.check_usable()?;
        let keep = {
            let log = self.group.log.read();
            let Some(last) = log.last else { return Ok(()) };
            if index.is_some_and(|index| index >= last.index) {
                return Ok(());
            }
            // Applied, then, and answered: this replica would go on with state that no other has.
            if let Some(committed) =
                log.settled().filter(|settled| index.is_none_or(|index| index < settled.index))
            {
                return Err(Error::Committed { group: self.group.id, index: committed.index });
            }
            match index {
                Some(index) => self.log_id(index)?,
                None => None,
            }
        };
        let mut log = self.group.log.write();
        let Some(last) = log.last else { return Ok(()) };
        let from = keep.map_or(0, |keep| keep.index + 1);
        log.cut_tail_after(index);
        log.last = keep;
        self.storage.queue().push(self.job(Work::Truncate { from, to: last.index }, 0, None));
        drop(log);
        self.storage.kick();
        Ok(())
    }

    /// Forgets the entries up to and with `id`, which the newest checkpoint covers. Blocks of messages stay. `id` may
    /// lie behind the last entry: a snapshot stands for what was never here.
    pub fn purge_to(&self, id: LogId) -> Result<(), Error> {
        self.check_usable()?;
        let mut log = self.group.log.write();
        if log.purged.is_some_and(|purged| purged.index >= id.index) {
            return Ok(());
        }
        let from = log.first_index();
        log.purged = Some(id);
        if log.last.is_none_or(|last| last.index <= id.index) {
            log.last = Some(id);
            log.cut_tail_after(None);
        } else {
            while log.tail.front().is_some_and(|entry| entry.id.index <= id.index)
                && let Some(entry) = log.tail.pop_front()
            {
                log.tail_bytes -= entry.memory_bytes();
            }
        }
        self.storage.queue().push(self.job(Work::Purge { from, id }, 0, None));
        drop(log);
        self.storage.kick();
        Ok(())
    }

    /// Stores the vote. `done` is called once it is on stable storage, in order with appends, whatever the group's
    /// `Sync`: a forgotten vote is a second vote.
    pub fn save_vote(&self, vote: Vec<u8>, done: Done) {
        if let Err(error) = self.check_usable() {
            return done(Err(error));
        }
        let mut log = self.group.log.write();
        log.vote = Some(vote.clone());
        let mark = log.first_mark.take();
        self.storage.queue().push(self.job(Work::Vote { vote, mark }, 0, Some(done)));
        drop(log);
        self.storage.kick();
    }

    /// Whether appends are synced before they are reported.
    #[must_use]
    pub fn sync(&self) -> Sync {
        self.group.sync()
    }

    /// The newest vote.
    #[must_use]
    pub fn vote(&self) -> Option<Vec<u8>> {
        self.group.log.read().vote.clone()
    }

    /// Stores a row of the node in the same write as the next append, vote or installed snapshot of this log: who
    /// remembers by it that there is a log here finds both after a crash, or neither.
    pub fn mark_with_first_write(&self, key: &str, value: &[u8]) {
        self.group.log.write().first_mark = Some((key.as_bytes().to_vec(), value.to_vec()));
    }

    /// Notes how far the log is committed. It reaches the disk with the next append or checkpoint of the group.
    pub fn save_committed(&self, committed: Option<LogId>) {
        let mut log = self.group.log.write();
        log.committed_dirty |= log.committed != committed;
        log.committed = committed;
    }

    /// How far the log was known to be committed. May be old after a crash.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        self.group.log.read().committed
    }

    /// Whether a log with these entries, of which the terms do not fall, is another one than this up to where this one is
    /// committed: then a majority lost what it had agreed on. Sees that in the entry at that very place, and before it in
    /// entries of later terms.
    #[must_use]
    pub fn is_contradicted_by(&self, ids: impl IntoIterator<Item = LogId>) -> bool {
        let Some(committed) = self.group.log.read().settled() else { return false };
        ids.into_iter().take_while(|id| id.index <= committed.index).any(|id| {
            let is_later = (id.raft_term, id.node) > (committed.raft_term, committed.node);
            is_later || (id.index == committed.index && id != committed)
        })
    }

    /// What the tail holds in memory.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.group.log.read().tail_bytes
    }

    fn admit(&self, entries: &[LogEntry], bytes: usize) -> Result<(), Error> {
        self.check_usable()?;
        let mut room = Room::SmallEntries;
        for entry in entries {
            if u32::try_from(entry.payload.len()).is_err() {
                let what = format!("entry {} is larger than 4 GiB", entry.id.index);
                return Err(Error::OutOfOrder { group: self.group.id, what });
            }
            if entry.kind == kind::BLOCK {
                room = Room::Messages;
                if !is_whole_block(&entry.payload) {
                    let what = format!("block {}, not stored yet,", entry.id.index);
                    return Err(Error::damaged(
                        self.group.id,
                        Table::Blocks,
                        what,
                        "its checksum does not match",
                    ));
                }
            }
        }
        let admitted = self.storage.admit(room, bytes as u64);
        if admitted.is_err() {
            metrics::disk_full();
        }
        admitted
    }

    fn check_usable(&self) -> Result<(), Error> {
        if self.group.is_removed() {
            return Err(Error::GroupRemoved(self.group.id));
        }
        self.storage.queue().health.check()
    }

    fn check_not_purged(&self, purged: Option<LogId>, from: u64) -> Result<(), Error> {
        match purged {
            Some(purged) if from <= purged.index => {
                Err(Error::Purged { group: self.group.id, index: from, purged: purged.index })
            }
            _ => Ok(()),
        }
    }

    fn read_stored(
        &self,
        from: u64,
        to: u64,
        budget: &mut Budget,
        found: &mut Vec<LogEntry>,
    ) -> Result<(), Error> {
        let (group, engine) = (self.group.id, self.storage.engine());
        let space = self.group.space();
        let rows = KeyRange { from: keys::entry(group, from), to: keys::entry(group, to) };
        let mut rows = engine.scan(Table::Entries, &rows, Scan::Forward);
        let blocks = KeyRange { from: space.numbered(from), to: space.numbered(to) };
        let mut blocks = engine.scan(Table::Blocks, &blocks, Scan::Forward);
        for index in from..to {
            let row = match rows.next()? {
                Some((key, value)) if keys::trailing_number(key) == Some(index) => {
                    EntryRow::decode(group, index, value)?
                }
                _ => return Err(Error::LogGap { group, index }),
            };
            let entry = if row.kind == kind::BLOCK {
                match blocks.next()? {
                    Some((key, block)) if keys::trailing_number(key) == Some(index) => {
                        row.check_block(group, block)?;
                        LogEntry { id: row.id, kind: row.kind, payload: bytes::Bytes::copy_from_slice(block) }
                    }
                    _ => return Err(row.lost_block(group)),
                }
            } else {
                row.inline()
            };
            if !budget.take(entry.payload.len()) && !found.is_empty() {
                return Ok(());
            }
            found.push(entry);
        }
        Ok(())
    }

    fn job(&self, work: Work, bytes: usize, done: Option<Done>) -> Job {
        Job { group: Some(Arc::clone(&self.group)), work, bytes, done }
    }
}

/// Whether the entries go where the log ends.
fn continues(group: &Group, last: Option<LogId>, next: u64, entries: &[LogEntry]) -> Result<(), Error> {
    let mut term = last.map_or(0, |last| last.raft_term);
    for (expected, entry) in (next..).zip(entries) {
        if entry.id.index != expected || entry.id.raft_term < term {
            let what = format!(
                "append of entry {} in term {} where entry {expected} in term {term} or later belongs",
                entry.id.index, entry.id.raft_term
            );
            return Err(Error::OutOfOrder { group: group.id, what });
        }
        term = entry.id.raft_term;
    }
    Ok(())
}

/// Bytes that may still be read. The first entry always fits, so that a reader gets on.
struct Budget {
    left: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left;
        self.left = self.left.saturating_sub(bytes.max(1));
        fits
    }
}
