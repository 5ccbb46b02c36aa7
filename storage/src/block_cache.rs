//! Recently stored and recently read blocks, parsed once, shared by all streams of a node.
//!
//! Second chance: a block that was asked for since the hand last passed stays one more round, so that one replay of
//! a large stream does not push out what many consumers read at the head.
//!
//! Hot path: one short lock per block, none per message.

use std::collections::{HashMap, VecDeque};

use levee_protocol::ids::GroupId;
use levee_protocol::record::Block;
use parking_lot::Mutex;

use crate::keys::Space;

const SHARDS: usize = 8;
/// What a cached block costs beside its bytes.
const OVERHEAD_BYTES: usize = 128;

pub(crate) struct BlockCache {
    shards: [Mutex<Shard>; SHARDS],
    bytes_max: usize,
}

#[derive(Default)]
struct Shard {
    blocks: HashMap<(Space, u64), Cached>,
    order: VecDeque<(Space, u64)>,
    bytes: usize,
}

struct Cached {
    block: Block,
    asked: bool,
}

impl BlockCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { shards: Default::default(), bytes_max: bytes_max / SHARDS }
    }

    pub(crate) fn find(&self, space: Space, index: u64) -> Option<Block> {
        let mut shard = self.shard(space, index).lock();
        let cached = shard.blocks.get_mut(&(space, index))?;
        cached.asked = true;
        Some(cached.block.clone())
    }

    pub(crate) fn contains(&self, space: Space, index: u64) -> bool {
        self.shard(space, index).lock().blocks.contains_key(&(space, index))
    }

    pub(crate) fn keep(&self, space: Space, index: u64, block: &Block) {
        let bytes = cost(block);
        if bytes > self.bytes_max {
            return;
        }
        let mut shard = self.shard(space, index).lock();
        if shard.blocks.contains_key(&(space, index)) {
            return;
        }
        shard.blocks.insert((space, index), Cached { block: block.clone(), asked: false });
        shard.order.push_back((space, index));
        shard.bytes += bytes;
        shard.make_room(self.bytes_max);
    }

    /// Forgets a group that was removed.
    pub(crate) fn forget(&self, group: GroupId) {
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            shard.blocks.retain(|(space, _), _| space.group != group);
            shard.order.retain(|(space, _)| space.group != group);
            shard.bytes = shard.blocks.values().map(|cached| cost(&cached.block)).sum();
        }
    }

    fn shard(&self, space: Space, index: u64) -> &Mutex<Shard> {
        // Groups and indexes are dense numbers: neighbors go to different shards.
        let mixed = index.wrapping_add(space.group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32);
        &self.shards[usize::try_from(mixed % SHARDS as u64).unwrap_or(0)]
    }
}

impl Shard {
    fn make_room(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some(key) = self.order.pop_front()
        {
            match self.blocks.get_mut(&key) {
                Some(cached) if cached.asked => {
                    cached.asked = false;
                    self.order.push_back(key);
                }
                Some(cached) => {
                    self.bytes -= cost(&cached.block);
                    self.blocks.remove(&key);
                }
                None => {}
            }
        }
    }
}

fn cost(block: &Block) -> usize {
    block.as_bytes().len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use levee_protocol::record::BlockBuilder;
    use levee_protocol::time::Timestamp;

    use super::*;

    #[test]
    fn the_cache_stays_within_its_bytes_and_keeps_what_was_asked_for() {
        let mut builder = BlockBuilder::default();
        builder.push(b"subject", b"", &[7; 1000]);
        let block = builder.finish(Timestamp(1));
        let space = Space { group: GroupId(16), generation: 0 };
        let cache = BlockCache::new(SHARDS * 10 * cost(&block));

        for index in 0..400 {
            cache.keep(space, index, &block);
            assert!(cache.find(space, 0).is_some(), "block 0 is asked for all the time");
        }

        let held = (0..400).filter(|index| cache.find(space, *index).is_some()).count();
        assert!(held <= SHARDS * 10, "{held} blocks are held");
        assert!(cache.find(space, 399).is_some());
        cache.forget(space.group);
        assert!(cache.find(space, 399).is_none());
    }
}
