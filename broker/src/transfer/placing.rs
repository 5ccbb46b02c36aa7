//! Messages of an archive become blocks that keep their sequences and times.

use bytes::Bytes;
use levee_protocol::ids::Seq;
use levee_protocol::record::{BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::Timestamp;

const BLOCK_BYTES_MAX: usize = 1 << 20;
const BLOCK_MESSAGES_MAX: usize = 2048;
/// So many missing sequences are written into a block as such; with more, another block begins behind them.
const GAP_WRITTEN_MAX: u64 = 32;

/// The block that is being filled.
#[derive(Default)]
pub(super) struct Placing {
    block: Option<BlockBuilder>,
    next: u64,
}

impl Placing {
    /// Adds a message. Gives the block before it, if this one does not go into it.
    pub(super) fn put(&mut self, seq: Seq, record: &RecordRef<'_>, now: Timestamp) -> Option<Bytes> {
        let gap = seq.0.saturating_sub(self.next);
        let size = record.subject.len() + record.header.len() + record.payload.len();
        let goes_in = self.block.as_ref().is_some_and(|block| {
            block.bytes() + size <= BLOCK_BYTES_MAX
                && block.len() < BLOCK_MESSAGES_MAX
                && gap <= GAP_WRITTEN_MAX
        });
        let full = if goes_in { None } else { self.take(now) };
        let block = self.block.get_or_insert_with(|| {
            self.next = seq.0;
            BlockBuilder::placed(seq, size)
        });
        for _ in self.next..seq.0 {
            let absent = RecordRef { timestamp: record.timestamp, subject: b"", header: b"", payload: b"" };
            block.push_timed(RecordFlags::PUBLISHED, &absent);
        }
        block.push_timed(RecordFlags::PUBLISHED, record);
        self.next = seq.0 + 1;
        full
    }

    /// The block as far as it is filled.
    pub(super) fn take(&mut self, now: Timestamp) -> Option<Bytes> {
        Some(self.block.take()?.finish(now).as_bytes().clone())
    }
}

#[cfg(test)]
mod tests {
    use levee_protocol::record::Block;

    use super::*;

    fn blocks(messages: &[(u64, usize)]) -> Vec<(u64, u32)> {
        let mut placing = Placing::default();
        let mut blocks = Vec::new();
        for (seq, size) in messages {
            let payload = vec![0; *size];
            let record = RecordRef { timestamp: Timestamp(5), subject: b"a", header: b"", payload: &payload };
            blocks.extend(placing.put(Seq(*seq), &record, Timestamp(9)));
        }
        blocks.extend(placing.take(Timestamp(9)));
        let parsed = blocks.into_iter().map(|bytes| Block::parse(bytes).unwrap());
        parsed.map(|block| (block.placed_at().unwrap().0, block.count())).collect()
    }

    #[test]
    fn small_gaps_are_written_and_large_ones_begin_another_block() {
        assert_eq!(blocks(&[(7, 1), (8, 1), (41, 1)]), [(7, 35)]);
        assert_eq!(blocks(&[(7, 1), (8, 1), (42, 1), (43, 1)]), [(7, 2), (42, 2)]);
    }

    #[test]
    fn blocks_are_bounded_and_a_large_message_has_its_own() {
        assert_eq!(blocks(&[(1, 600_000), (2, 600_000), (3, 9)]), [(1, 1), (2, 2)]);
        assert_eq!(blocks(&[(1, 9), (2, 5_000_000), (3, 9)]), [(1, 1), (2, 1), (3, 1)]);
        let many: Vec<(u64, usize)> = (1..=2049).map(|seq| (seq, 0)).collect();
        assert_eq!(blocks(&many), [(1, 2048), (2049, 1)]);
    }
}
