//! openraft's log storage over [`EntryLog`].
//!
//! Appends are readable when `append` returns and reported when the writer has synced them; the writer keeps the
//! order of one group's appends, votes and truncations, so a vote can never overtake an append or the other way
//! around. Reads come from the log's tail in memory unless a follower is far behind.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use levee_protocol::ids::GroupId;
use levee_storage::{EntryLog, Error, LogEntry};
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::codec;
use crate::types::{Entry, LogId, TypeConfig, Vote, log_id, stored_log_id};

/// The log of one group. Clones share it; openraft reads through clones.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: GroupId,
    log: EntryLog,
    /// Bytes of entries that one read returns, give or take one entry.
    read_bytes: usize,
    closing: Arc<AtomicBool>,
    /// Set when a leader asked to truncate what is committed.
    taken_back: Arc<AtomicBool>,
}

/// How often a full disk is looked at again.
const ROOM_RETRY: Duration = Duration::from_millis(200);

impl LogStore {
    pub(crate) fn new(
        group: GroupId,
        log: EntryLog,
        read_bytes: usize,
        closing: Arc<AtomicBool>,
        taken_back: Arc<AtomicBool>,
    ) -> Self {
        Self { group, log, read_bytes, closing, taken_back }
    }

    /// Appends unless the disk is full; gives the callback back if it is.
    fn append_if_room(
        &self,
        entries: Vec<LogEntry>,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), IOFlushed<TypeConfig>> {
        let refused = Arc::new(Mutex::new(None));
        let when_refused = Arc::clone(&refused);
        self.log.append(
            entries,
            Box::new(move |result| match result {
                Err(Error::DiskFull { .. }) => *when_refused.lock() = Some(callback),
                result => callback.io_completed(result.map_err(io::Error::other)),
            }),
        );
        // A refusal for want of room comes before the call returns, and nothing was changed.
        refused.lock().take().map_or(Ok(()), Err)
    }

    fn read(&self, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Entry>, io::Error> {
        if from >= to {
            return Ok(Vec::new());
        }
        let stored = self.log.read(from, to, max_bytes).map_err(io::Error::other)?;
        stored.into_iter().map(|stored| self.decode(stored)).collect()
    }

    fn decode(&self, stored: LogEntry) -> Result<Entry, io::Error> {
        let id = log_id(stored.id);
        codec::entry(id, stored.kind, stored.payload).map_err(|error| {
            io::Error::other(format!("group {}: log entry {}: {error}", self.group, stored.id.index))
        })
    }

    /// The range as `[from, to)`, cut at the end of the log.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        let first = self.log.purged().map_or(0, |id| id.index + 1);
        let end = self.log.last().map_or(0, |id| id.index + 1);
        (from.max(first), to.min(end))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    /// Entries in pieces, so that applying a long stretch does not hold all of it in memory.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        let pieces = Pieces { store: self.clone(), next: from, to, ready: Vec::new().into_iter() };
        futures::stream::unfold(
            pieces,
            |mut pieces| async move { pieces.next().map(|entry| (entry, pieces)) },
        )
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        self.read(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let Some(bytes) = self.log.vote() else { return Ok(None) };
        codec::decode_vote(&bytes).map(Some).map_err(|error| {
            io::Error::other(format!("group {}: the stored vote does not decode: {error}", self.group))
        })
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, self.read_bytes)
    }
}

/// Reads a range piece by piece.
struct Pieces {
    store: LogStore,
    next: u64,
    to: u64,
    ready: std::vec::IntoIter<Entry>,
}

impl Pieces {
    fn next(&mut self) -> Option<Result<Entry, io::Error>> {
        if let Some(entry) = self.ready.next() {
            return Some(Ok(entry));
        }
        if self.next >= self.to {
            return None;
        }
        match self.store.read(self.next, self.to, self.store.read_bytes) {
            Ok(entries) if entries.is_empty() => {
                let (group, next) = (self.store.group, self.next);
                self.next = self.to;
                Some(Err(io::Error::other(format!("group {group}: log entry {next} is missing"))))
            }
            Ok(entries) => {
                self.next += entries.len() as u64;
                self.ready = entries.into_iter();
                self.ready.next().map(Ok)
            }
            Err(error) => {
                self.next = self.to;
                Some(Err(error))
            }
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.log.purged().map(log_id);
        let last_log_id = self.log.last().map(log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (sender, saved) = oneshot::channel();
        self.log.save_vote(
            codec::encode_vote(vote),
            Box::new(move |result| {
                let _ = sender.send(result);
            }),
        );
        match saved.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the storage writer stopped before the vote was saved")),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.as_ref().map(stored_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|entry| {
                let (kind, payload): (u8, Bytes) = codec::stored_payload(entry.payload);
                LogEntry { id: stored_log_id(&entry.log_id), kind, payload }
            })
            .collect::<Vec<_>>();
        let Err(mut callback) = self.append_if_room(entries.clone(), callback) else { return Ok(()) };
        // Proposals and appends from leaders are refused before it comes to this; what slips through waits. The group
        // stands still meanwhile, and another node takes over the lead if it can.
        tracing::warn!(group = %self.group, "the disk is full; the log waits for room");
        while !self.closing.load(Ordering::Acquire) {
            tokio::time::sleep(ROOM_RETRY).await;
            match self.append_if_room(entries.clone(), callback) {
                Ok(()) => return Ok(()),
                Err(back) => callback = back,
            }
        }
        Err(io::Error::other(format!(
            "group {}: closed while its log waited for room on the disk",
            self.group
        )))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        tracing::debug!(group = %self.group, after = ?last.as_ref().map(|id| id.index), "conflicting log entries go");
        let truncated = self.log.truncate_after(last.map(|id| id.index));
        if matches!(truncated, Err(Error::Committed { .. })) {
            self.taken_back.store(true, Ordering::Release);
        }
        truncated.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge_to(stored_log_id(&upto)).map_err(io::Error::other)
    }
}
