//! THE TABLE of keys: what lies where, in which order, written by whom.
//!
//! | table | key | value | written by |
//! |---|---|---|---|
//! | `entries` | group, index | log id, kind, checksum; small payload inline | log append, truncate, purge |
//! | `blocks` | group, generation, index | a publish batch as it was proposed | log append; truncate, cleaning |
//! | `hard_state` | group, item | vote, committed, purge floor, generation | log store |
//! | `block_index` | group, generation, tag, number | where sequences are, what is dead | checkpoint, cleaning |
//! | `kept` | group, generation, sequence | one record moved out of a mostly dead block | cleaning, checkpoint |
//! | `state` | group, generation, kind, key | the state machine's rows, opaque | checkpoint |
//! | `node` | text | identity and format of the directory | the node |
//!
//! Numbers in keys are big endian, so that the order of bytes is the order of numbers. Every table but `node`
//! starts with the group: removing a group is one range per table.
//!
//! A group's **generation** makes a snapshot import atomic: the import fills the next generation beside the
//! current one, and one synced batch switches. The log itself (`entries`, `hard_state`) has no generation, because
//! a vote and the entries above a snapshot must survive its installation.

use levee_protocol::ids::GroupId;

/// Persisted: never renumber, add at the end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Table {
    /// The Raft log without its publish batches. Purged by range.
    Entries = 1,
    /// Publish batches. Dropped by retention, never by a log purge.
    Blocks = 2,
    /// Votes and floors of the Raft log.
    HardState = 3,
    /// Where sequences are. Written by checkpoints and cleaning only.
    BlockIndex = 4,
    /// Records that outlived their block.
    Kept = 5,
    /// Rows of state machines. Written by checkpoints only.
    State = 6,
    /// Identity of the directory.
    Node = 7,
}

impl Table {
    /// Every table, in the order of their numbers.
    pub(crate) const ALL: [Self; 7] =
        [Self::Entries, Self::Blocks, Self::HardState, Self::BlockIndex, Self::Kept, Self::State, Self::Node];

    /// What a group's data is keyed by, which decides how it is removed and whether a snapshot carries it.
    pub(crate) const fn scope(self) -> Scope {
        match self {
            Self::Entries | Self::HardState => Scope::Log,
            Self::Blocks | Self::BlockIndex | Self::Kept | Self::State => Scope::Data,
            Self::Node => Scope::Node,
        }
    }

    /// The column family.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Entries => "entries",
            Self::Blocks => "blocks",
            Self::HardState => "hard_state",
            Self::BlockIndex => "block_index",
            Self::Kept => "kept",
            Self::State => "state",
            Self::Node => "node",
        }
    }

    /// Position in arrays over all tables.
    pub(crate) const fn slot(self) -> usize {
        self as usize - 1
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }
}

/// What the key of a table starts with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// The group: the Raft log, which a snapshot import leaves in place.
    Log,
    /// The group and its generation: what a snapshot carries.
    Data,
    /// Nothing of a group.
    Node,
}

/// A group's data as of one snapshot import.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Space {
    pub(crate) group: GroupId,
    pub(crate) generation: u32,
}

impl Space {
    /// Bytes that every key of this space starts with.
    pub(crate) const PREFIX_BYTES: usize = 12;

    pub(crate) fn key(self, suffix: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(Self::PREFIX_BYTES + suffix.len());
        key.extend_from_slice(&self.group.0.to_be_bytes());
        key.extend_from_slice(&self.generation.to_be_bytes());
        key.extend_from_slice(suffix);
        key
    }

    pub(crate) fn numbered(self, number: u64) -> Vec<u8> {
        self.key(&number.to_be_bytes())
    }

    pub(crate) fn tagged(self, tag: u8, number: u64) -> Vec<u8> {
        let mut suffix = [0; 9];
        suffix[0] = tag;
        suffix[1..].copy_from_slice(&number.to_be_bytes());
        self.key(&suffix)
    }

    /// All keys of this space.
    pub(crate) fn range(self) -> KeyRange {
        KeyRange { from: self.key(&[]), to: after_prefix(&self.key(&[])) }
    }
}

/// Keys from `from` up to and without `to`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct KeyRange {
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
}

impl KeyRange {
    /// All keys of a table, none of which is longer than 256 bytes of the highest value.
    pub(crate) fn all() -> Self {
        Self { from: Vec::new(), to: vec![u8::MAX; 256] }
    }
}

/// Rows of `hard_state`. Persisted: never renumber, add at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum HardItem {
    Vote = 1,
    Committed = 2,
    Purged = 3,
    Generation = 4,
    Importing = 5,
}

pub(crate) fn entry(group: GroupId, index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    key.extend_from_slice(&group.0.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

pub(crate) fn hard_state(group: GroupId, item: HardItem) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.extend_from_slice(&group.0.to_be_bytes());
    key.push(item as u8);
    key
}

/// All keys of a group, in any table that has groups.
pub(crate) fn group_range(group: GroupId) -> KeyRange {
    let from = group.0.to_be_bytes().to_vec();
    KeyRange { to: after_prefix(&from), from }
}

/// The number at the end of a key.
pub(crate) fn trailing_number(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// The number at the start of a key.
pub(crate) fn leading_number(key: &[u8]) -> Option<u64> {
    key.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// The smallest key above every key that starts with `prefix`.
fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Only for the largest group of the largest generation, which nobody gets: above every key that is not longer.
    vec![u8::MAX; 256]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table_numbers_and_names_are_pinned_and_unique() {
        let rows: Vec<_> = Table::ALL.iter().map(|table| (*table as u8, table.name())).collect();

        assert_eq!(
            rows,
            [
                (1, "entries"),
                (2, "blocks"),
                (3, "hard_state"),
                (4, "block_index"),
                (5, "kept"),
                (6, "state"),
                (7, "node")
            ]
        );
        for table in Table::ALL {
            assert_eq!(Table::from_number(table as u8), Some(table));
            assert_eq!(Table::ALL[table.slot()], table);
        }
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_numbers(a in any::<(u64, u32, u64)>(), b in any::<(u64, u32, u64)>()) {
            let key = |(group, generation, number)| {
                Space { group: GroupId(group), generation }.numbered(number)
            };

            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
            prop_assert_eq!(trailing_number(&key(a)), Some(a.2));
            prop_assert_eq!(leading_number(&key(a)), Some(a.0));
        }

        #[test]
        fn a_range_holds_the_keys_of_its_space_and_no_others(
            group in prop_oneof![any::<u64>(), Just(u64::MAX), Just(u64::MAX - 1)],
            generation in prop_oneof![any::<u32>(), Just(u32::MAX)],
            suffix in prop::collection::vec(any::<u8>(), 0..20),
            other in any::<(u64, u32)>(),
        ) {
            let space = Space { group: GroupId(group), generation };
            let range = space.range();
            let inside = |key: &[u8]| range.from.as_slice() <= key && key < range.to.as_slice();
            let whole = group_range(GroupId(group));

            prop_assert!(inside(&space.key(&suffix)));
            prop_assert!(whole.from <= space.key(&suffix) && space.key(&suffix) < whole.to);
            if other != (group, generation) {
                let other = Space { group: GroupId(other.0), generation: other.1 };
                prop_assert!(!inside(&other.key(&suffix)));
            }
        }
    }
}
