//! One record out of an encoded block, without reading the rest of it.
//!
//! A stored block may be a megabyte, and a get by subject wants a hundred bytes of it. Three short reads find them: the
//! block's head, the record's offset, the record.

use bytes::Bytes;

use super::{
    BLOCK_HEAD_BYTES, CHECKSUM_BYTES, DamagedBlock, Record, TIME_AT, VERSION, VERSION_PLACED, VERSION_TIMED,
    block_head_bytes, is_timed, record_head_bytes, u16_at, u32_at, u64_at,
};
use crate::ids::Seq;
use crate::time::Timestamp;

/// Where a record has its checksum.
pub(super) const CHECKSUM_AT: usize = 12;

/// Which record of what block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Bytes of the encoded block.
    pub block_bytes: usize,
    /// How many records it holds.
    pub count: u32,
    /// Which of them.
    pub position: u32,
    /// Its sequence.
    pub seq: Seq,
}

/// Reads bytes of a block by offset and length; `None` when it is not that long.
pub type ReadPart<'a, E> = dyn FnMut(usize, usize) -> Result<Option<Bytes>, E> + 'a;

/// The record, or `None` if blocks of this version must be read whole. What the block is like is checked as far as it
/// is read; the outer error is the reader's own.
pub fn read<E>(
    wanted: Wanted,
    read: &mut ReadPart<'_, E>,
) -> Result<Result<Option<Record>, DamagedBlock>, E> {
    let Some(head) = read(0, BLOCK_HEAD_BYTES)? else { return Ok(Err(DamagedBlock::Short)) };
    let (VERSION | VERSION_TIMED | VERSION_PLACED, Some(head_bytes)) = (head[0], record_head_bytes(head[0]))
    else {
        return Ok(Ok(None));
    };
    if u32_at(&head, 4) != wanted.count || wanted.position >= wanted.count {
        return Ok(Err(DamagedBlock::Layout));
    }
    let time = Timestamp(u64_at(&head, 8).cast_signed());
    let tables = CHECKSUM_BYTES + wanted.count as usize * 4;
    let Some(table) = wanted.block_bytes.checked_sub(tables) else { return Ok(Err(DamagedBlock::Short)) };
    // The offset of the record and of the next, which for the last is where the table begins.
    let is_last = wanted.position + 1 == wanted.count;
    let offsets = read(table + wanted.position as usize * 4, if is_last { 4 } else { 8 })?;
    let Some(offsets) = offsets else { return Ok(Err(DamagedBlock::Short)) };
    let start = u32_at(&offsets, 0) as usize;
    let end = if is_last { table } else { u32_at(&offsets, 4) as usize };
    if start < block_head_bytes(head[0]) || end > table || start + head_bytes > end {
        return Ok(Err(DamagedBlock::Layout));
    }
    let Some(bytes) = read(start, end - start)? else { return Ok(Err(DamagedBlock::Short)) };
    Ok(decode(&bytes, (head[0], head_bytes), time, wanted.seq).map(Some))
}

fn decode(
    bytes: &Bytes,
    (version, head_bytes): (u8, usize),
    block_time: Timestamp,
    seq: Seq,
) -> Result<Record, DamagedBlock> {
    if checksum(block_time, bytes) != u32_at(bytes, CHECKSUM_AT) {
        return Err(DamagedBlock::Checksum);
    }
    let timestamp =
        if is_timed(version) { Timestamp(u64_at(bytes, TIME_AT).cast_signed()) } else { block_time };
    let header = head_bytes + u16_at(bytes, 2) as usize;
    let payload = header.checked_add(u32_at(bytes, 4) as usize).ok_or(DamagedBlock::Layout)?;
    if payload.checked_add(u32_at(bytes, 8) as usize) != Some(bytes.len()) {
        return Err(DamagedBlock::Layout);
    }
    Ok(Record {
        seq,
        timestamp,
        subject: bytes.slice(head_bytes..header),
        header: bytes.slice(header..payload),
        payload: bytes.slice(payload..),
    })
}

/// Over the block's time and all of the record but the checksum itself.
pub(super) fn checksum(time: Timestamp, record: &[u8]) -> u32 {
    let (head, rest) = record.split_at(CHECKSUM_AT);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&time.0.to_le_bytes()), head);
    crc32c::crc32c_append(checksum, &rest[CHECKSUM_BYTES..])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{Block, BlockBuilder, RecordFlags, RecordRef};

    type Message = (Vec<u8>, Vec<u8>, Vec<u8>);

    fn block(messages: &[Message], timed: bool) -> Block {
        let mut builder = match timed {
            true if messages.len().is_multiple_of(2) => BlockBuilder::placed(Seq(5), 0),
            true => BlockBuilder::timed(0),
            false => BlockBuilder::default(),
        };
        for (time, (subject, header, payload)) in (1..).zip(messages) {
            if timed {
                let record = RecordRef { timestamp: Timestamp(time), subject, header, payload };
                builder.push_timed(RecordFlags::PUBLISHED, &record);
            } else {
                builder.push(subject, header, payload);
            }
        }
        builder.finish(Timestamp(7))
    }

    fn single(bytes: &Bytes, count: u32, position: u32) -> Result<Option<Record>, DamagedBlock> {
        let wanted = Wanted { block_bytes: bytes.len(), count, position, seq: Seq(9) };
        let mut part = |from: usize, len: usize| {
            let end = from.checked_add(len).filter(|end| *end <= bytes.len());
            Ok::<_, Infallible>(end.map(|end| bytes.slice(from..end)))
        };
        let Ok(read) = read(wanted, &mut part);
        read
    }

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
        prop::collection::vec((prop::collection::vec(1_u8.., 1..40), bytes(60), bytes(300)), 1..20)
    }

    proptest! {
        #[test]
        fn a_record_read_alone_is_the_one_in_the_block(messages in messages(), timed in any::<bool>()) {
            let block = block(&messages, timed);

            for position in 0..block.count() {
                let alone = single(block.as_bytes(), block.count(), position);
                prop_assert_eq!(alone, Ok(Some(block.record_owned(position, Seq(9)))));
            }
        }

        #[test]
        fn damage_is_an_error_or_the_record_is_unharmed(
            messages in messages(), flip in any::<usize>(), timed in any::<bool>(),
        ) {
            let whole = block(&messages, timed);
            let mut flipped = whole.as_bytes().to_vec();
            let at = flip % (flipped.len() * 8);
            flipped[at / 8] ^= 1 << (at % 8);
            let flipped = Bytes::from(flipped);

            for position in 0..whole.count() {
                match single(&flipped, whole.count(), position) {
                    Ok(Some(record)) => prop_assert_eq!(record, whole.record_owned(position, Seq(9))),
                    // A version that must be read whole, which finds the damage.
                    Ok(None) => prop_assert!(Block::parse(flipped.clone()).is_err()),
                    Err(_) => {}
                }
            }
        }

        #[test]
        fn bytes_cut_short_and_wrong_counts_never_panic(
            messages in messages(), cut in any::<usize>(), count in any::<u32>(), position in any::<u32>(),
        ) {
            let whole = block(&messages, true);
            let cut = whole.as_bytes().slice(..cut % whole.as_bytes().len());
            prop_assert!(!matches!(single(&cut, whole.count(), 0), Ok(Some(_)))
                || single(&cut, whole.count(), 0) == single(whole.as_bytes(), whole.count(), 0));
            let _ = single(whole.as_bytes(), count, position);
        }
    }

    /// A block of one message `x` on `a` at time 7, as the first release wrote it.
    const VERSION_1: [u8; 38] = [
        1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, //
        0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a', b'x', //
        16, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn a_block_without_record_checksums_is_read_whole() {
        let mut bytes = VERSION_1.to_vec();
        let body = bytes.len() - CHECKSUM_BYTES;
        let checksum = crc32c::crc32c(&bytes[..body]);
        bytes[body..].copy_from_slice(&checksum.to_le_bytes());
        let bytes = Bytes::from(bytes);

        assert_eq!(single(&bytes, 1, 0), Ok(None));
        let block = Block::parse(bytes).unwrap();
        assert_eq!((block.record(0).subject, block.record(0).payload), (&b"a"[..], &b"x"[..]));
        assert_eq!(block.timestamp(), Timestamp(7));
    }
}
