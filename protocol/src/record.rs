//! Hot path: stored messages. One copy per message (into the block), no allocation per message.
//!
//! A publish batch is one block; the block is the body of one Raft entry and is what lies on disk. It carries
//! the leader's time once, the records one after another, an offset table so that one record is read without
//! reading the rest ([`single`]), and a checksum that is verified when the block leaves a disk or a network. So that a
//! record that is read alone is verified as well, each has a checksum of its own, over the block's time and itself.
//!
//! ```text
//! block  := version u8 | flags u8 | zero u16 | count u32 | timestamp i64 | record* | offset u32 * count | crc32c u32
//! record := flags u8 | chain u8 | subject_len u16 | header_len u32 | payload_len u32 | crc32c u32
//!           | subject | header | payload
//! ```
//!
//! Version 1 had no checksum in its records; such blocks are read whole. In a block of version 3 each record has a time
//! of its own, behind its checksum: `time i64`. That is for messages that keep the time at which another stream took
//! them; the time of the block is still that of the leader that proposed it.
//!
//! In a block of version 4 records have times as well, and consecutive sequences from `first_seq u64` on, which stands
//! behind the block's timestamp. That is for messages that keep their sequences: those of a stream that is restored. A
//! record without a subject stands for a sequence that is gone.
//!
//! Records of a chain, of the same number that is not zero, are stored up to the first that is refused.
//!
//! All numbers are little endian; offsets count from the start of the block. The flags of a record are
//! [`RecordFlags`]; those of the block are zero.

pub mod single;

use bytes::Bytes;

use crate::api::StorageType;
use crate::ids::Seq;
use crate::time::Timestamp;

const VERSION_WITHOUT_RECORD_CHECKSUMS: u8 = 1;
const VERSION: u8 = 2;
const VERSION_TIMED: u8 = 3;
const VERSION_PLACED: u8 = 4;
const BLOCK_HEAD_BYTES: usize = 16;
const BLOCK_HEAD_BYTES_PLACED: usize = 24;
const RECORD_HEAD_BYTES: usize = 16;
const RECORD_HEAD_BYTES_WITHOUT_CHECKSUM: usize = 12;
const RECORD_HEAD_BYTES_TIMED: usize = 24;
/// Room for what a message takes in a block besides its subject, header and payload: a head, and where it begins.
pub const RECORD_ROOM_BYTES: usize = RECORD_HEAD_BYTES_TIMED;
/// Where a record has its own time, if it has one.
const TIME_AT: usize = 16;
const CHECKSUM_BYTES: usize = 4;

/// Collects the messages of one publish batch.
#[derive(Debug)]
pub struct BlockBuilder {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    version: u8,
}

impl Default for BlockBuilder {
    fn default() -> Self {
        Self::with_capacity(4096)
    }
}

impl BlockBuilder {
    /// A builder with room for about `bytes` of messages.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self::in_memory(Vec::with_capacity(bytes + BLOCK_HEAD_BYTES + CHECKSUM_BYTES))
    }

    /// A builder that writes into memory that was used before.
    #[must_use]
    pub fn in_memory(mut memory: Vec<u8>) -> Self {
        memory.clear();
        memory.resize(BLOCK_HEAD_BYTES, 0);
        Self { bytes: memory, offsets: Vec::new(), version: VERSION }
    }

    /// A builder of a block whose records have times of their own.
    #[must_use]
    pub fn timed(bytes: usize) -> Self {
        Self { version: VERSION_TIMED, ..Self::with_capacity(bytes) }
    }

    /// A builder of a block whose records have times of their own, and consecutive sequences from `first` on.
    #[must_use]
    pub fn placed(first: Seq, bytes: usize) -> Self {
        let mut builder = Self { version: VERSION_PLACED, ..Self::with_capacity(bytes) };
        builder.bytes.extend_from_slice(&first.0.to_le_bytes());
        builder
    }

    /// Adds one message; its position in the block is the number of messages added before it.
    pub fn push(&mut self, subject: &[u8], header: &[u8], payload: &[u8]) {
        self.push_flagged(RecordFlags::PUBLISHED, subject, header, payload);
    }

    /// The same for a record that is not just what a client published.
    pub fn push_flagged(&mut self, flags: RecordFlags, subject: &[u8], header: &[u8], payload: &[u8]) {
        debug_assert_eq!(self.version, VERSION, "records of this block have times of their own");
        self.push_head(flags, subject, header, payload);
        self.push_body(subject, header, payload);
    }

    /// Adds one message with a time of its own, to a block made for those.
    pub fn push_timed(&mut self, flags: RecordFlags, record: &RecordRef<'_>) {
        debug_assert!(is_timed(self.version), "records of this block have the block's time");
        let RecordRef { timestamp, subject, header, payload } = *record;
        self.push_head(flags, subject, header, payload);
        self.bytes.extend_from_slice(&timestamp.0.to_le_bytes());
        self.push_body(subject, header, payload);
    }

    fn push_head(&mut self, flags: RecordFlags, subject: &[u8], header: &[u8], payload: &[u8]) {
        let subject_len = u16::try_from(subject.len()).expect("subjects are shorter than a control line");
        let header_len = u32::try_from(header.len()).expect("headers are bounded by max_payload");
        let payload_len = u32::try_from(payload.len()).expect("payloads are bounded by max_payload");
        self.offsets.push(u32::try_from(self.bytes.len()).expect("blocks are bounded by the ingest batch"));
        self.bytes.reserve(RECORD_HEAD_BYTES_TIMED + subject.len() + header.len() + payload.len());
        self.bytes.extend_from_slice(&[flags.0, 0]);
        self.bytes.extend_from_slice(&subject_len.to_le_bytes());
        self.bytes.extend_from_slice(&header_len.to_le_bytes());
        self.bytes.extend_from_slice(&payload_len.to_le_bytes());
        // Its checksum, which needs the block's time.
        self.bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
    }

    fn push_body(&mut self, subject: &[u8], header: &[u8], payload: &[u8]) {
        self.bytes.extend_from_slice(subject);
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(payload);
    }

    /// Makes the last record one of a chain.
    pub fn chain_last(&mut self, chain: u8) {
        if let Some(last) = self.offsets.last() {
            self.bytes[*last as usize + 1] = chain;
        }
    }

    /// Messages added so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether no message was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Bytes collected so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Stamps the batch with the leader's time and seals it.
    #[must_use]
    pub fn finish(self, now: Timestamp) -> Block {
        self.finish_with(now, Bytes::from)
    }

    /// The same; `share` makes bytes of the memory, and may want it back when nobody has them any more.
    #[must_use]
    pub fn finish_with(mut self, now: Timestamp, share: impl FnOnce(Vec<u8>) -> Bytes) -> Block {
        let count = u32::try_from(self.offsets.len()).expect("blocks are bounded by the ingest batch");
        self.bytes[0] = self.version;
        self.bytes[4..8].copy_from_slice(&count.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&now.0.to_le_bytes());
        let mut end = self.bytes.len();
        for start in self.offsets.iter().rev().map(|offset| *offset as usize) {
            let checksum = single::checksum(now, &self.bytes[start..end]);
            let at = start + single::CHECKSUM_AT;
            self.bytes[at..at + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
            end = start;
        }
        self.bytes.reserve_exact(self.offsets.len() * 4 + CHECKSUM_BYTES);
        for offset in &self.offsets {
            self.bytes.extend_from_slice(&offset.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&self.bytes);
        self.bytes.extend_from_slice(&checksum.to_le_bytes());
        Block { bytes: share(self.bytes), count }
    }
}

/// What a record is besides a message of a client. Persisted: never change a bit, add new ones.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RecordFlags(u8);

impl RecordFlags {
    /// A message as a client published it.
    pub const PUBLISHED: Self = Self(0);
    /// A delete marker that the leader wrote for a subject that expired.
    pub const MARKER: Self = Self(1);
    /// Part of an atomic batch: it is stored if all records are up to the one that ends the batch, or none.
    pub const IN_BATCH: Self = Self(2);
    /// The last record of an atomic batch.
    pub const ENDS_BATCH: Self = Self(4);
    /// The increment of a counter, with the sum as its body.
    pub const COUNTED: Self = Self(8);

    /// Which schedule the next record is of. It is never stored.
    pub const CLAIM: Self = Self(16);
    /// A message of a schedule, behind its claim.
    pub const FIRED: Self = Self(32);
    /// A message of another stream that is mirrored or sourced, behind a claim that has this flag as well. Without a
    /// subject it stands for a sequence that the other stream does not have.
    pub const COPIED: Self = Self(64);

    const KNOWN: u8 = Self::MARKER.0
        | Self::IN_BATCH.0
        | Self::ENDS_BATCH.0
        | Self::COUNTED.0
        | Self::CLAIM.0
        | Self::FIRED.0
        | Self::COPIED.0;

    /// Both of them.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A sealed publish batch. Cloning shares the bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Block {
    bytes: Bytes,
    count: u32,
}

/// Bytes that are not a whole, undamaged block.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DamagedBlock {
    /// Shorter than its own tables.
    #[error("block is cut short")]
    Short,
    /// Written by a version we do not know.
    #[error("block has unknown version {0}; it may come from a newer release")]
    Version(u8),
    /// A record is marked as something we do not know.
    #[error("block has a record with unknown flags {0}; it may come from a newer release")]
    Flags(u8),
    /// The checksum does not match.
    #[error("block checksum does not match")]
    Checksum,
    /// An offset or a length points outside of the block.
    #[error("block tables are inconsistent")]
    Layout,
}

impl Block {
    /// Checks everything: version, checksum, and that every record lies inside. After this, reads cannot fail.
    pub fn parse(bytes: Bytes) -> Result<Self, DamagedBlock> {
        let body = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(DamagedBlock::Short)?;
        if bytes.first().is_some_and(|version| record_head_bytes(*version).is_some())
            && crc32c::crc32c(&bytes[..body]) != u32_at(&bytes, body)
        {
            return Err(DamagedBlock::Checksum);
        }
        Self::parse_compared(bytes)
    }

    /// The same for bytes whose checksum was compared already.
    pub fn parse_compared(bytes: Bytes) -> Result<Self, DamagedBlock> {
        if bytes.len() < BLOCK_HEAD_BYTES + CHECKSUM_BYTES {
            return Err(DamagedBlock::Short);
        }
        let head_bytes = record_head_bytes(bytes[0]).ok_or(DamagedBlock::Version(bytes[0]))?;
        let body = bytes.len() - CHECKSUM_BYTES;
        let count = u32_at(&bytes, 4);
        let table = (count as usize)
            .checked_mul(4)
            .and_then(|table| body.checked_sub(table))
            .filter(|start| *start >= block_head_bytes(bytes[0]))
            .ok_or(DamagedBlock::Short)?;
        let mut expected = block_head_bytes(bytes[0]);
        for position in 0..count as usize {
            let start = u32_at(&bytes, table + position * 4) as usize;
            if start != expected || start + head_bytes > table {
                return Err(DamagedBlock::Layout);
            }
            if bytes[start] & !RecordFlags::KNOWN != 0 {
                return Err(DamagedBlock::Flags(bytes[start]));
            }
            let lens = u64::from(u16_at(&bytes, start + 2))
                + u64::from(u32_at(&bytes, start + 4))
                + u64::from(u32_at(&bytes, start + 8));
            expected = usize::try_from(lens)
                .ok()
                .and_then(|lens| (start + head_bytes).checked_add(lens))
                .filter(|end| *end <= table)
                .ok_or(DamagedBlock::Layout)?;
        }
        if expected != table {
            return Err(DamagedBlock::Layout);
        }
        Ok(Self { bytes, count })
    }

    /// The encoded block, checksum included.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many records it holds.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The leader's time when the batch was proposed. Every record in it has this time, unless they have their own.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        Timestamp(u64_at(&self.bytes, 8).cast_signed())
    }

    /// Whether records have times of their own.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        is_timed(self.bytes[0])
    }

    /// The sequence of the first record, if records have sequences of their own.
    #[must_use]
    pub fn placed_at(&self) -> Option<Seq> {
        (self.bytes[0] == VERSION_PLACED).then(|| Seq(u64_at(&self.bytes, BLOCK_HEAD_BYTES)))
    }

    /// The latest time of a record.
    #[must_use]
    pub fn latest(&self) -> Timestamp {
        if !self.is_timed() {
            return self.timestamp();
        }
        let latest = (0..self.count).map(|position| self.record(position).timestamp).max();
        latest.unwrap_or_else(|| self.timestamp())
    }

    /// The checksum over the block, which also identifies its content.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        u32_at(&self.bytes, self.bytes.len() - CHECKSUM_BYTES)
    }

    /// What the record at `position` is. Panics when `position` is not below `count`.
    #[must_use]
    pub fn flags(&self, position: u32) -> RecordFlags {
        RecordFlags(self.bytes[self.start(position)])
    }

    /// The chain of the record at `position`; zero is none. Panics when `position` is not below `count`.
    #[must_use]
    pub fn chain(&self, position: u32) -> u8 {
        self.bytes[self.start(position) + 1]
    }

    /// The record at `position`, borrowed. Panics when `position` is not below `count`.
    #[must_use]
    pub fn record(&self, position: u32) -> RecordRef<'_> {
        let (start, subject_len, header_len, payload_len) = self.layout(position);
        let header_start = start + subject_len;
        let payload_start = header_start + header_len;
        RecordRef {
            timestamp: self.time_of(start),
            subject: &self.bytes[start..header_start],
            header: &self.bytes[header_start..payload_start],
            payload: &self.bytes[payload_start..payload_start + payload_len],
        }
    }

    /// The record at `position`, sharing the block's bytes. Panics when `position` is not below `count`.
    #[must_use]
    pub fn record_owned(&self, position: u32, seq: Seq) -> Record {
        let (start, subject_len, header_len, payload_len) = self.layout(position);
        let header_start = start + subject_len;
        let payload_start = header_start + header_len;
        Record {
            seq,
            timestamp: self.time_of(start),
            subject: self.bytes.slice(start..header_start),
            header: self.bytes.slice(header_start..payload_start),
            payload: self.bytes.slice(payload_start..payload_start + payload_len),
        }
    }

    /// The time of the record whose subject begins at `start`.
    fn time_of(&self, start: usize) -> Timestamp {
        if !self.is_timed() {
            return self.timestamp();
        }
        let at = start + TIME_AT - RECORD_HEAD_BYTES_TIMED;
        Timestamp(u64_at(&self.bytes, at).cast_signed())
    }

    fn layout(&self, position: u32) -> (usize, usize, usize, usize) {
        let start = self.start(position);
        let head_bytes = record_head_bytes(self.bytes[0]).unwrap_or(RECORD_HEAD_BYTES);
        (
            start + head_bytes,
            u16_at(&self.bytes, start + 2) as usize,
            u32_at(&self.bytes, start + 4) as usize,
            u32_at(&self.bytes, start + 8) as usize,
        )
    }

    fn start(&self, position: u32) -> usize {
        assert!(position < self.count, "record {position} of a block of {}", self.count);
        let table = self.bytes.len() - CHECKSUM_BYTES - self.count as usize * 4;
        u32_at(&self.bytes, table + position as usize * 4) as usize
    }
}

/// A stored message, borrowed from its block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordRef<'a> {
    /// When the leader took it.
    pub timestamp: Timestamp,
    /// The subject it was published on.
    pub subject: &'a [u8],
    /// The whole header block, or empty.
    pub header: &'a [u8],
    /// The body.
    pub payload: &'a [u8],
}

impl RecordRef<'_> {
    /// The bytes this message counts for against limits.
    #[must_use]
    pub fn stored_bytes(&self, storage: StorageType) -> u64 {
        stored_bytes(storage, self.subject.len(), self.header.len(), self.payload.len())
    }

    /// The bytes it takes at most in a block.
    #[must_use]
    pub fn framed_bytes(&self) -> usize {
        RECORD_HEAD_BYTES_TIMED + self.subject.len() + self.header.len() + self.payload.len()
    }
}

/// A stored message that keeps its block's bytes alive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its position in the stream.
    pub seq: Seq,
    /// When the leader took it.
    pub timestamp: Timestamp,
    /// The subject it was published on.
    pub subject: Bytes,
    /// The whole header block, or empty.
    pub header: Bytes,
    /// The body.
    pub payload: Bytes,
}

impl Record {
    /// The same message, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> RecordRef<'_> {
        RecordRef {
            timestamp: self.timestamp,
            subject: &self.subject,
            header: &self.header,
            payload: &self.payload,
        }
    }
}

/// What a message counts for in `state.bytes` and against `max_bytes`: nats-server's own accounting, so that
/// limits bite at the same message.
#[must_use]
pub fn stored_bytes(storage: StorageType, subject_len: usize, header_len: usize, payload_len: usize) -> u64 {
    let text = subject_len + header_len + payload_len;
    let overhead = match (storage, header_len) {
        (StorageType::File, 0) => 30,
        (StorageType::File, _) => 34,
        (StorageType::Memory, _) => 16,
    };
    (text + overhead) as u64
}

fn is_timed(version: u8) -> bool {
    matches!(version, VERSION_TIMED | VERSION_PLACED)
}

fn block_head_bytes(version: u8) -> usize {
    if version == VERSION_PLACED { BLOCK_HEAD_BYTES_PLACED } else { BLOCK_HEAD_BYTES }
}

fn record_head_bytes(version: u8) -> Option<usize> {
    match version {
        VERSION => Some(RECORD_HEAD_BYTES),
        VERSION_TIMED | VERSION_PLACED => Some(RECORD_HEAD_BYTES_TIMED),
        VERSION_WITHOUT_RECORD_CHECKSUMS => Some(RECORD_HEAD_BYTES_WITHOUT_CHECKSUM),
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_room_of_its_messages_is_enough_for_a_block() {
        for count in [1, 2, 2048] {
            let bytes = count * (RECORD_ROOM_BYTES + "subject".len() + "payload".len());
            let mut builder = BlockBuilder::with_capacity(bytes);
            for _ in 0..count {
                builder.push(b"subject", b"", b"payload");
            }
            let mut capacity = 0;
            let block = builder.finish_with(Timestamp(7), |memory| {
                capacity = memory.capacity();
                Bytes::from(memory)
            });

            assert_eq!(capacity, bytes + BLOCK_HEAD_BYTES + CHECKSUM_BYTES);
            assert!(block.as_bytes().len() <= capacity);
        }
    }

    #[test]
    fn flags_are_pinned_and_unknown_ones_are_refused() {
        let flags = [
            RecordFlags::MARKER,
            RecordFlags::IN_BATCH,
            RecordFlags::ENDS_BATCH,
            RecordFlags::COUNTED,
            RecordFlags::CLAIM,
            RecordFlags::FIRED,
            RecordFlags::COPIED,
        ];
        assert_eq!(flags.map(|flags| flags.0), [1, 2, 4, 8, 16, 32, 64]);
        let block = |flags| {
            let mut builder = BlockBuilder::default();
            builder.push_flagged(flags, b"a", b"", b"x");
            Block::parse(builder.finish(Timestamp(7)).as_bytes().clone())
        };
        assert_eq!(block(RecordFlags(127)).map(|block| block.flags(0)), Ok(RecordFlags(127)));
        assert_eq!(block(RecordFlags(128)), Err(DamagedBlock::Flags(128)));
    }

    #[test]
    fn records_with_times_of_their_own_keep_them() {
        let record =
            |time, payload| RecordRef { timestamp: Timestamp(time), subject: b"a", header: b"", payload };
        let mut builder = BlockBuilder::timed(0);
        builder.push_timed(RecordFlags::PUBLISHED, &record(9, b"one"));
        builder.push_timed(RecordFlags::PUBLISHED, &record(3, b""));

        let block = Block::parse(builder.finish(Timestamp(100)).as_bytes().clone()).unwrap();

        assert_eq!(block.as_bytes()[0], 3);
        assert_eq!((block.record(0), block.record(1)), (record(9, b"one"), record(3, b"")));
        assert_eq!(block.record_owned(0, Seq(1)).borrowed(), record(9, b"one"));
        assert_eq!(
            (block.timestamp(), block.latest(), block.is_timed()),
            (Timestamp(100), Timestamp(9), true)
        );
        assert_eq!(block.placed_at(), None);
    }

    #[test]
    fn records_tell_their_chain() {
        let mut builder = BlockBuilder::default();
        builder.chain_last(9);
        builder.push(b"a", b"", b"x");
        builder.push(b"a", b"", b"y");
        builder.chain_last(7);

        let block = Block::parse(builder.finish(Timestamp(7)).as_bytes().clone()).unwrap();

        assert_eq!((block.chain(0), block.chain(1)), (0, 7));
    }

    #[test]
    fn a_placed_block_knows_its_first_sequence() {
        let record =
            |time, subject| RecordRef { timestamp: Timestamp(time), subject, header: b"", payload: b"" };
        let mut builder = BlockBuilder::placed(Seq(7), 0);
        builder.push_timed(RecordFlags::PUBLISHED, &record(9, b"a"));
        builder.push_timed(RecordFlags::PUBLISHED, &record(3, b""));

        let block = Block::parse(builder.finish(Timestamp(100)).as_bytes().clone()).unwrap();

        assert_eq!((block.as_bytes()[0], block.placed_at()), (4, Some(Seq(7))));
        assert_eq!((block.record(0), block.record(1)), (record(9, b"a"), record(3, b"")));
        assert_eq!(
            (block.timestamp(), block.latest(), block.is_timed()),
            (Timestamp(100), Timestamp(9), true)
        );
        let empty = BlockBuilder::placed(Seq(7), 0).finish(Timestamp(100));
        assert_eq!(Block::parse(empty.as_bytes().clone()).unwrap().placed_at(), Some(Seq(7)));
        assert_eq!(Block::parse(empty.as_bytes().slice(..20)), Err(DamagedBlock::Checksum));
    }

    proptest! {
        #[test]
        fn what_went_into_a_block_comes_out(
            records in prop::collection::vec(
                (prop::collection::vec(1_u8.., 1..40), prop::collection::vec(any::<u8>(), 0..60), prop::collection::vec(any::<u8>(), 0..300)),
                0..20,
            ),
        ) {
            let mut builder = BlockBuilder::default();
            for (subject, header, payload) in &records {
                builder.push(subject, header, payload);
            }
            let block = Block::parse(builder.finish(Timestamp(7)).as_bytes().clone()).expect("just written");

            prop_assert_eq!(block.count() as usize, records.len());
            for (position, (subject, header, payload)) in records.iter().enumerate() {
                let record = block.record(position as u32);
                prop_assert_eq!((record.subject, record.header, record.payload), (&subject[..], &header[..], &payload[..]));
                let owned = block.record_owned(position as u32, Seq(1));
                prop_assert_eq!(owned.borrowed(), record);
            }
        }

        #[test]
        fn damaged_bytes_are_refused_and_never_panic(flip in any::<usize>(), cut in any::<usize>()) {
            let mut builder = BlockBuilder::default();
            builder.push(b"orders.eu", b"NATS/1.0\r\nA: b\r\n\r\n", b"pay");
            builder.push(b"orders.us", b"", b"");
            let whole = builder.finish(Timestamp(7)).as_bytes().clone();

            let mut flipped = whole.to_vec();
            let at = flip % (whole.len() * 8);
            flipped[at / 8] ^= 1 << (at % 8);
            prop_assert!(Block::parse(flipped.clone().into()).is_err());
            reads_or_refuses(flipped);
            prop_assert!(Block::parse(whole.slice(..cut % whole.len())).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Block::parse(bytes.clone().into()).is_err());
            reads_or_refuses(bytes);
        }
    }

    /// Without its checksum a block may be another one than was written, but never one that can't be read.
    fn reads_or_refuses(bytes: Vec<u8>) {
        if let Ok(block) = Block::parse_compared(bytes.into()) {
            for position in 0..block.count() {
                let _ = block.record(position);
                let _ = block.record_owned(position, Seq(1));
            }
        }
    }
}
