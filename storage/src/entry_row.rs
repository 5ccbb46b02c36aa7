//! A log entry as a row of `entries`.
//!
//! ```text
//! row := version u8 | kind u8 | raft_term u64 | node u64 | size u32 | checksum u32 | inline payload | crc32c u32
//! ```
//!
//! For a block, size and checksum describe the bytes in `blocks`, where the payload lies once and for all; for
//! everything else the payload is inline. The checksum of a block is the one it carries at its own end.

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};

use crate::error::Error;
use crate::group::{LogEntry, LogId};
use crate::keys::Table;
use crate::sealed::{Fields, seal, unseal};

/// What the payload of an entry is. Persisted: never renumber, add at the end.
pub mod kind {
    /// Nothing; a new leader's first entry.
    pub const BLANK: u8 = 0;
    /// A membership of the Raft group.
    pub const MEMBERSHIP: u8 = 1;
    /// A command that is stored in the log itself.
    pub const INLINE: u8 = 2;
    /// A block of messages, stored apart because it outlives the log.
    pub const BLOCK: u8 = 3;
}

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 26;
const BLOCK_CHECKSUM_BYTES: usize = 4;

pub(crate) struct EntryRow<'a> {
    pub(crate) id: LogId,
    pub(crate) kind: u8,
    size: u32,
    checksum: u32,
    inline: &'a [u8],
}

impl<'a> EntryRow<'a> {
    /// The row of an entry whose block was checked.
    pub(crate) fn encode(entry: &LogEntry) -> Bytes {
        let (size, checksum, inline) = if entry.kind == kind::BLOCK {
            (entry.payload.len(), block_checksum(&entry.payload).unwrap_or(0), &[][..])
        } else {
            (entry.payload.len(), 0, &entry.payload[..])
        };
        let mut row = Vec::with_capacity(HEAD_BYTES + inline.len() + 4);
        row.extend_from_slice(&[VERSION, entry.kind]);
        row.extend_from_slice(&entry.id.raft_term.to_le_bytes());
        row.extend_from_slice(&entry.id.node.0.to_le_bytes());
        row.extend_from_slice(
            &u32::try_from(size).expect("payloads are checked when appended").to_le_bytes(),
        );
        row.extend_from_slice(&checksum.to_le_bytes());
        row.extend_from_slice(inline);
        seal(row)
    }

    pub(crate) fn decode(group: GroupId, index: u64, value: &'a [u8]) -> Result<Self, Error> {
        let damaged = |reason: &str| Error::damaged(group, Table::Entries, format!("entry {index}"), reason);
        let value = unseal(value).ok_or_else(|| damaged("its checksum does not match"))?;
        if value.first() != Some(&VERSION) {
            return Err(damaged("its version is unknown; it may come from a newer release"));
        }
        Self::fields(index, value).ok_or_else(|| damaged("it does not decode"))
    }

    fn fields(index: u64, value: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(value);
        fields.u8()?;
        let kind = fields.u8()?;
        let id = LogId { raft_term: fields.u64()?, node: NodeId(fields.u64()?), index };
        let (size, checksum) = (fields.u32()?, fields.u32()?);
        let inline = fields.0;
        let expected = if kind == kind::BLOCK { 0 } else { size as usize };
        (inline.len() == expected).then_some(Self { id, kind, size, checksum, inline })
    }

    pub(crate) fn inline(&self) -> LogEntry {
        LogEntry { id: self.id, kind: self.kind, payload: Bytes::copy_from_slice(self.inline) }
    }

    /// Whether `block` is the one this row stands for, undamaged.
    pub(crate) fn check_block(&self, group: GroupId, block: &[u8]) -> Result<(), Error> {
        let damaged = |reason: &str| {
            Err(Error::damaged(group, Table::Blocks, format!("block {}", self.id.index), reason))
        };
        if block.len() != self.size as usize {
            return damaged("its size is not the one in the log");
        }
        match block_checksum(block) {
            Some(checksum) if checksum != self.checksum => damaged("it is not the block that was logged"),
            Some(_) if is_whole_block(block) => Ok(()),
            _ => damaged("its checksum does not match"),
        }
    }

    pub(crate) fn lost_block(&self, group: GroupId) -> Error {
        Error::damaged(group, Table::Blocks, format!("block {}", self.id.index), "it is missing")
    }
}

/// The checksum at the end of an encoded block, which covers everything before it.
fn block_checksum(block: &[u8]) -> Option<u32> {
    block.last_chunk::<BLOCK_CHECKSUM_BYTES>().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Whether the bytes match the checksum at their end.
pub(crate) fn is_whole_block(block: &[u8]) -> bool {
    unseal(block).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(kind: u8, payload: Vec<u8>) -> LogEntry {
        LogEntry { id: LogId { raft_term: 3, node: NodeId(9), index: 7 }, kind, payload: payload.into() }
    }

    proptest! {
        #[test]
        fn an_inline_entry_comes_back(kind in 0_u8..3, payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let entry = entry(kind, payload);
            let row = EntryRow::encode(&entry);

            prop_assert_eq!(EntryRow::decode(GroupId(1), 7, &row).unwrap().inline(), entry);
        }

        #[test]
        fn a_block_row_accepts_its_block_and_no_other_bytes(
            payload in prop::collection::vec(any::<u8>(), 1..100), flip in any::<usize>(),
        ) {
            let block = seal(payload);
            let row = EntryRow::encode(&entry(kind::BLOCK, block.to_vec()));
            let row = EntryRow::decode(GroupId(1), 7, &row).unwrap();
            let mut other = block.to_vec();
            let bit = flip % (other.len() * 8);
            other[bit / 8] ^= 1 << (bit % 8);

            prop_assert!(row.check_block(GroupId(1), &block).is_ok());
            prop_assert!(row.check_block(GroupId(1), &other).is_err());
            prop_assert!(row.check_block(GroupId(1), &block[1..]).is_err());
        }

        #[test]
        fn arbitrary_rows_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = EntryRow::decode(GroupId(1), 7, &bytes);
            let mut sealed_row = bytes;
            if let Some(first) = sealed_row.first_mut() {
                *first = VERSION;
            }
            let _ = EntryRow::decode(GroupId(1), 7, &seal(sealed_row));
        }
    }

    #[test]
    fn the_format_of_rows_is_pinned() {
        let row = EntryRow::encode(&entry(kind::INLINE, b"ab".to_vec()));

        let expected =
            [1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b'];
        assert_eq!(&row[..28], expected);
    }
}
