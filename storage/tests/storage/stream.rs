//! A stream without rules: every message of a block is stored, what is removed is what the test says.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::channel;

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId, Seq};
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::Timestamp;
use levee_storage::{Batch, EntryLog, Error, LogEntry, LogId, MessageStore, Storage, Sync, kind};

pub(crate) const GROUP: GroupId = GroupId(16);

pub(crate) fn id(index: u64) -> LogId {
    LogId { raft_term: 1, node: NodeId(1), index }
}

pub(crate) fn inline(index: u64, payload: &[u8]) -> LogEntry {
    LogEntry { id: id(index), kind: kind::INLINE, payload: Bytes::copy_from_slice(payload) }
}

pub(crate) fn block(messages: &[&str], time: i64) -> Block {
    let mut builder = BlockBuilder::default();
    for message in messages {
        builder.push(b"orders.eu", b"", message.as_bytes());
    }
    builder.finish(Timestamp(time))
}

pub(crate) fn block_entry(index: u64, block: &Block) -> LogEntry {
    LogEntry { id: id(index), kind: kind::BLOCK, payload: block.as_bytes().clone() }
}

/// Appends and waits until it is durable.
pub(crate) fn append(log: &EntryLog, entries: Vec<LogEntry>) -> Result<(), Error> {
    let (sender, receiver) = channel();
    log.append(entries, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap()
}

pub(crate) fn vote(log: &EntryLog, vote: &[u8]) -> Result<(), Error> {
    let (sender, receiver) = channel();
    log.save_vote(vote.to_vec(), Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap()
}

pub(crate) struct Stream {
    pub(crate) storage: Arc<Storage>,
    pub(crate) log: EntryLog,
    pub(crate) messages: Arc<MessageStore>,
    pub(crate) group: GroupId,
    pub(crate) last_seq: u64,
}

impl Stream {
    pub(crate) fn open(storage: &Arc<Storage>) -> Self {
        Self::of_group(storage, GROUP)
    }

    pub(crate) fn of_group(storage: &Arc<Storage>, group: GroupId) -> Self {
        Self::with(storage, group, Sync::Always)
    }

    pub(crate) fn with(storage: &Arc<Storage>, group: GroupId, sync: Sync) -> Self {
        let log = storage.entry_log(group, sync).unwrap();
        let messages = storage.messages(group).unwrap();
        let mut last_seq = 0;
        storage
            .state_rows(group, &mut |_, _, value| last_seq = u64::from_le_bytes(value.try_into().unwrap()))
            .unwrap();
        Self { storage: Arc::clone(storage), log, messages, group, last_seq }
    }

    /// Appends a block, applies it, and returns its log index.
    pub(crate) fn publish(&mut self, texts: &[&str], time: i64) -> u64 {
        self.publish_block(&block(texts, time))
    }

    pub(crate) fn publish_block(&mut self, block: &Block) -> u64 {
        let index = self.log.last().map_or(0, |last| last.index + 1);
        append(&self.log, vec![block_entry(index, block)]).unwrap();
        self.messages.stored(index, block, Seq(self.last_seq + 1), &[]);
        self.last_seq += u64::from(block.count());
        index
    }

    /// Appends and applies a block of messages with sequences from `first` on and these times.
    pub(crate) fn place(&mut self, first: u64, times: &[i64], now: i64) {
        let mut builder = BlockBuilder::placed(Seq(first), 0);
        for (seq, time) in (first..).zip(times) {
            let payload = seq.to_string();
            let record = RecordRef {
                timestamp: Timestamp(*time),
                subject: b"orders.eu",
                header: b"",
                payload: payload.as_bytes(),
            };
            builder.push_timed(RecordFlags::PUBLISHED, &record);
        }
        let block = builder.finish(Timestamp(now));
        let index = self.log.last().map_or(0, |last| last.index + 1);
        append(&self.log, vec![block_entry(index, &block)]).unwrap();
        self.messages.stored(index, &block, Seq(first), &[]);
        self.last_seq = first + times.len() as u64 - 1;
    }

    pub(crate) fn remove(&self, first: u64, last: u64) {
        self.messages.removed(Seq(first), Seq(last)).unwrap();
    }

    pub(crate) fn checkpoint(&self) {
        let mut batch = Batch::new();
        self.messages.checkpoint(&mut batch);
        batch.put_state(self.group, 1, b"state", &self.last_seq.to_le_bytes());
        let (sender, receiver) = channel();
        self.storage.checkpoint(self.group, batch, Box::new(move |result| sender.send(result).unwrap()));
        receiver.recv().unwrap().unwrap();
    }

    /// Checkpoints, purges the whole log, and cleans until there is nothing left to do.
    pub(crate) fn clean(&self) {
        self.checkpoint();
        let last = self.log.last().unwrap();
        self.log.purge_to(last).unwrap();
        while self.messages.clean(last.index).unwrap().more {}
        // Behind the cleaning in the queue.
        self.checkpoint();
    }

    pub(crate) fn text(&self, seq: u64) -> Option<String> {
        let record = self.messages.record(Seq(seq)).unwrap()?;
        assert_eq!(record.seq, Seq(seq));
        Some(String::from_utf8(record.payload.to_vec()).unwrap())
    }

    pub(crate) fn scan(&self, from: u64) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        self.messages
            .scan(Seq(from), &mut |seq, record| {
                found.push((seq.0, String::from_utf8(record.payload.to_vec()).unwrap()));
                ControlFlow::Continue(())
            })
            .unwrap();
        found
    }
}
