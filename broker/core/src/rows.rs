//! Checkpoint rows: how a machine's state lies on disk, one small row per thing that changes on its own.
//!
//! The shell stores rows without looking into them. A machine hands out the rows that became dirty since the last
//! call; loading everything that was ever handed out, newest row per key, gives exactly the same machine.

use levee_protocol::command::Undecodable;

/// What a row holds, and the first half of its key. Persisted: never renumber, add at the end.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum RowKind {
    /// Stream: counters and configuration. One row, empty key.
    State = 1,
    /// Stream: one subject's count, first and last sequence. Key: the subject.
    Subject = 2,
    /// Stream: one consumer's configuration and ledger. Key: its name.
    Consumer = 3,
    /// Stream: one page of the duplicate window. Key: page number, big endian.
    Dedup = 4,
    /// Stream: one page of removed sequences. Key: page number, big endian.
    Deleted = 5,
    /// Stream: one page of messages that leave at one time. Key: that time and the page number, big endian.
    Expiry = 6,
    /// Stream: one page of messages that no age removes. Key: page number, big endian.
    Exempt = 7,
    /// Stream: a subject that expired and is owed a delete marker. Key: the subject.
    Marker = 8,
    /// Stream: a schedule in force. Key: its subject.
    Schedule = 9,
    /// Stream: how far it has got with one source. Key: what names the source.
    Source = 10,
    /// Meta: counters that belong to no single stream or node. One row, empty key.
    Meta = 16,
    /// Meta: one stream's assignment.
    MetaStream = 17,
    /// Meta: one node's registration.
    MetaNode = 18,
}

impl RowKind {
    /// Every kind, in order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::State,
        Self::Subject,
        Self::Consumer,
        Self::Dedup,
        Self::Deleted,
        Self::Expiry,
        Self::Exempt,
        Self::Marker,
        Self::Schedule,
        Self::Source,
        Self::Meta,
        Self::MetaStream,
        Self::MetaNode,
    ];

    /// The kind with this number.
    pub fn from_number(number: u8) -> Result<Self, Undecodable> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number).ok_or_else(|| {
            Undecodable(format!("state row of unknown kind {number}; it may come from a newer release"))
        })
    }
}

/// One row. Ordered by kind, then key.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct StateRow {
    /// What it holds.
    pub kind: RowKind,
    /// Which one.
    pub key: Vec<u8>,
    /// Its value; `None` deletes the row.
    pub value: Option<Vec<u8>>,
}

impl StateRow {
    /// A row to write.
    #[must_use]
    pub fn put(kind: RowKind, key: &[u8], value: Vec<u8>) -> Self {
        Self { kind, key: key.to_vec(), value: Some(value) }
    }

    /// A row to delete.
    #[must_use]
    pub fn delete(kind: RowKind, key: &[u8]) -> Self {
        Self { kind, key: key.to_vec(), value: None }
    }
}

/// Reads the fields of a row that was written by hand rather than by prost.
pub(crate) struct RowReader<'a> {
    kind: RowKind,
    rest: &'a [u8],
}

impl<'a> RowReader<'a> {
    pub(crate) fn new(kind: RowKind, rest: &'a [u8]) -> Self {
        Self { kind, rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Undecodable> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.damaged())?;
        self.rest = rest;
        Ok(*head)
    }

    /// What is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// An unsigned LEB128 number.
    pub(crate) fn number(&mut self) -> Result<u64, Undecodable> {
        prost::encoding::decode_varint(&mut self.rest).map_err(|_| self.damaged())
    }

    pub(crate) fn damaged(&self) -> Undecodable {
        Undecodable(format!("{:?} row does not decode", self.kind))
    }
}

/// The number in a key of eight bytes, big endian so that keys sort as numbers.
pub(crate) fn number_of_key(kind: RowKind, key: &[u8]) -> Result<u64, Undecodable> {
    let bytes =
        key.try_into().map_err(|_| Undecodable(format!("{kind:?} row has a key of {} bytes", key.len())))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn row_kinds_are_pinned_and_unique() {
        let numbers: Vec<u8> = RowKind::ALL.into_iter().map(|kind| kind as u8).collect();

        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18]);
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
        for kind in RowKind::ALL {
            assert_eq!(RowKind::from_number(kind as u8), Ok(kind));
        }
        assert!(RowKind::from_number(200).is_err());
    }
}
