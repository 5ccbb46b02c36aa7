//! Memory of large blocks, to be used again.
//!
//! Memory that is new to the process costs a page fault for every 4 KiB, and the allocator gives back what is as large as a
//! block. So the ingest of a busy stream writes its next block where one was that nobody needs any more, and a follower
//! puts there what it receives.

use std::sync::Arc;

use bytes::Bytes;
use levee_protocol::record::{Block, BlockBuilder};
use levee_protocol::time::Timestamp;
use parking_lot::Mutex;

/// Smaller blocks are left to the allocator, which is good at them.
const BYTES_MIN: usize = 128 << 10;
/// What is kept while no block is made, all sizes together.
const FREE_BYTES_MAX: usize = 16 << 20;
/// Sizes of blocks to be built are multiples of it, so that blocks of about the same size take each other's memory.
const STEP: usize = 256 << 10;
/// The same for copies, whose sizes are known.
const COPY_STEP: usize = 32 << 10;

/// Memory that a node's blocks share.
#[derive(Debug, Default)]
pub struct BlockMemory {
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
    #[must_use]
    pub fn builder(&self, bytes: usize) -> BlockBuilder {
        if bytes < BYTES_MIN {
            return BlockBuilder::with_capacity(bytes);
        }
        let size = (bytes + STEP / 4).next_multiple_of(STEP);
        BlockBuilder::in_memory(self.take(size, 2 * size).unwrap_or_else(|| Vec::with_capacity(size)))
    }

    /// Seals a block. Its memory comes back when the last one lets go of it.
    #[must_use]
    pub fn finish(self: &Arc<Self>, builder: BlockBuilder, now: Timestamp) -> Block {
        builder.finish_with(now, |memory| {
            if memory.capacity() < BYTES_MIN {
                return Bytes::from(memory);
            }
            self.lend(memory)
        })
    }

    /// Bytes of their own, so that who keeps them does not keep what lies around `bytes`.
    #[must_use]
    pub fn copy(self: &Arc<Self>, bytes: &[u8]) -> Bytes {
        if bytes.len() < BYTES_MIN {
            return Bytes::copy_from_slice(bytes);
        }
        let size = bytes.len().next_multiple_of(COPY_STEP);
        let mut memory = self.take(size, size + size / 4).unwrap_or_else(|| Vec::with_capacity(size));
        memory.clear();
        memory.extend_from_slice(bytes);
        self.lend(memory)
    }

    fn lend(self: &Arc<Self>, memory: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { memory, home: Arc::clone(self) })
    }

    fn take(&self, size: usize, size_max: usize) -> Option<Vec<u8>> {
        let mut free = self.free.lock();
        let fits = |memory: &Vec<u8>| (size..=size_max).contains(&memory.capacity());
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
    fn a_copy_takes_memory_that_fits_and_is_what_was_copied() {
        let memory = Arc::new(BlockMemory::default());
        let first = memory.copy(&vec![1; LARGE]);
        let at = first.as_ptr();
        drop(first);

        let smaller = memory.copy(&vec![2; LARGE / 2]);
        let alike = memory.copy(&vec![3; LARGE - 1000]);

        assert_ne!(smaller.as_ptr(), at, "it would keep twice what it needs");
        assert_eq!(alike.as_ptr(), at);
        assert_eq!(alike, vec![3; LARGE - 1000]);
        assert_eq!(memory.copy(b"small"), b"small"[..]);
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
