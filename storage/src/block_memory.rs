//! Memory of large blocks, to be used again.
//!
//! Memory that is new to the process costs a page fault for every 4 KiB, and the allocator gives back what is as large as a
//! block. So the ingest of a busy stream writes its next block where one was that nobody needs any more.

use std::sync::Arc;

use bytes::Bytes;
use levee_protocol::record::{Block, BlockBuilder};
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

/// Smaller blocks are left to the allocator, which is good at them.
const BYTES_MIN: usize = 128 << 10;
/// What is kept while no block is made, all sizes together.
const FREE_BYTES_MAX: usize = 16 << 20;
/// Sizes are multiples of it, so that blocks of about the same size take each other's memory.
const STEP: usize = 256 << 10;

/// Memory that a node's blocks share.
#[derive(Debug, Default)]
pub(crate) struct BlockMemory {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// The one that was used last comes last: it is the nearest to the CPU.
    memories: Vec<Vec<u8>>,
    bytes: usize,
}

impl BlockMemory {
    /// A builder with room for about `bytes` of messages.
    pub(crate) fn builder(&self, bytes: usize) -> BlockBuilder {
        if bytes < BYTES_MIN {
            return BlockBuilder::with_capacity(bytes);
        }
        let size = (bytes + STEP / 4).next_multiple_of(STEP);
        BlockBuilder::in_memory(self.take(size).unwrap_or_else(|| Vec::with_capacity(size)))
    }

    /// Seals a block. Its memory comes back when the last one lets go of it.
    pub(crate) fn finish(self: &Arc<Self>, builder: BlockBuilder, now: Timestamp) -> Block {
        builder.finish_with(now, |memory| {
            if memory.capacity() < BYTES_MIN {
                return Bytes::from(memory);
            }
            Bytes::from_owner(Lent { memory, home: Arc::clone(self) })
        })
    }

    fn take(&self, size: usize) -> Option<Vec<u8>> {
        let mut free = self.free.lock();
        let fits = |memory: &Vec<u8>| (size..=2 * size).contains(&memory.capacity());
        let at = free.memories.iter().rposition(fits)?;
        let memory = free.memories.remove(at);
        free.bytes -= memory.capacity();
        Some(memory)
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut free = self.free.lock();
        if free.bytes + memory.capacity() <= FREE_BYTES_MAX {
            free.bytes += memory.capacity();
            free.memories.push(memory);
        }
    }
}

struct Lent {
    memory: Vec<u8>,
    home: Arc<BlockMemory>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 1 << 20;

    fn block(memory: &Arc<BlockMemory>, payload: u8) -> Block {
        let mut builder = memory.builder(LARGE);
        builder.push(b"a", b"", &vec![payload; LARGE]);
        memory.finish(builder, Timestamp(7))
    }

    #[test]
    fn a_block_takes_the_memory_of_one_that_nobody_needs_any_more() {
        let memory = Arc::new(BlockMemory::default());
        let first = block(&memory, 1);
        let at = first.as_bytes().as_ptr();
        let second = block(&memory, 2);
        assert_ne!(second.as_bytes().as_ptr(), at, "the first is still there");

        drop(first);
        let third = block(&memory, 3);

        assert_eq!(third.as_bytes().as_ptr(), at);
        assert!(third.record(0).payload.iter().all(|byte| *byte == 3));
        assert_eq!(second.record(0).payload, vec![2; LARGE]);
        assert!(Block::parse(third.as_bytes().clone()).is_ok());
    }

    #[test]
    fn no_more_than_a_bound_is_kept() {
        let memory = Arc::new(BlockMemory::default());
        let blocks: Vec<_> = (0..40).map(|number| block(&memory, number)).collect();

        drop(blocks);

        let free = memory.free.lock();
        assert!(free.bytes <= FREE_BYTES_MAX && free.bytes > FREE_BYTES_MAX / 2, "{}", free.bytes);
        assert_eq!(free.bytes, free.memories.iter().map(Vec::capacity).sum::<usize>());
    }

    #[test]
    fn small_blocks_are_left_to_the_allocator() {
        let memory = Arc::new(BlockMemory::default());
        let mut builder = memory.builder(100);
        builder.push(b"a", b"", b"x");

        drop(memory.finish(builder, Timestamp(7)));

        assert_eq!(memory.free.lock().bytes, 0);
    }
}
