//! A write set in the words of groups: what a checkpoint collects and writes at once.

use bytes::Bytes;
use levee_protocol::ids::GroupId;

use crate::engine::WriteSet;
use crate::keys::{KeyRange, Space, Table};
use crate::sealed::seal;

/// Rows to be written together. Order within the batch is kept.
#[derive(Default)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    written: Vec<Box<dyn FnOnce() + Send>>,
    made_from: Vec<Space>,
}

struct Change {
    group: GroupId,
    table: Table,
    change: RowChange,
}

enum RowChange {
    Put { suffix: Vec<u8>, value: Bytes },
    Delete { suffix: Vec<u8> },
    DeleteRange { from: Vec<u8>, to: Vec<u8> },
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores a row of the group's state machine.
    pub fn put_state(&mut self, group: GroupId, kind: u8, key: &[u8], value: &[u8]) {
        self.put(group, Table::State, state_suffix(kind, key), seal(value.to_vec()));
    }

    /// Deletes a row of the group's state machine.
    pub fn delete_state(&mut self, group: GroupId, kind: u8, key: &[u8]) {
        self.delete(group, Table::State, state_suffix(kind, key));
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// About how many bytes this will write.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn put(&mut self, group: GroupId, table: Table, suffix: Vec<u8>, value: Bytes) {
        self.push(suffix.len() + value.len(), group, table, RowChange::Put { suffix, value });
    }

    pub(crate) fn delete(&mut self, group: GroupId, table: Table, suffix: Vec<u8>) {
        self.push(suffix.len(), group, table, RowChange::Delete { suffix });
    }

    pub(crate) fn delete_range(&mut self, group: GroupId, table: Table, from: Vec<u8>, to: Vec<u8>) {
        self.push(from.len() + to.len(), group, table, RowChange::DeleteRange { from, to });
    }

    /// Called on the writer's thread once the batch was written, before anything queued later; never if it failed.
    pub(crate) fn on_written(&mut self, call: impl FnOnce() + Send + 'static) {
        self.written.push(Box::new(call));
    }

    /// The batch follows from what lies in this space, and must not land in another one: a snapshot may replace the
    /// group's data between making the batch and writing it.
    pub(crate) fn made_from(&mut self, space: Space) {
        if self.made_from.last() != Some(&space) {
            self.made_from.push(space);
        }
    }

    /// A group whose data was replaced since.
    pub(crate) fn outdated(&self, now: impl Fn(GroupId) -> Option<Space>) -> Option<GroupId> {
        let replaced = |space: &&Space| now(space.group).is_some_and(|now| now != **space);
        self.made_from.iter().find(replaced).map(|space| space.group)
    }

    /// The groups this touches, each once.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        let mut groups: Vec<_> = self.changes.iter().map(|change| change.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Adds the rows to `set`, each in the space its group has now, and hands back what to call after writing.
    /// Rows of groups without a space (removed ones) are left out.
    pub(crate) fn resolve(
        self,
        set: &mut WriteSet,
        space: impl Fn(GroupId) -> Option<Space>,
    ) -> Vec<Box<dyn FnOnce() + Send>> {
        for Change { group, table, change } in self.changes {
            let Some(space) = space(group) else { continue };
            match change {
                RowChange::Put { suffix, value } => set.put(table, space.key(&suffix), value),
                RowChange::Delete { suffix } => set.delete(table, space.key(&suffix)),
                RowChange::DeleteRange { from, to } => {
                    set.delete_range(table, KeyRange { from: space.key(&from), to: space.key(&to) });
                }
            }
        }
        self.written
    }

    fn push(&mut self, bytes: usize, group: GroupId, table: Table, change: RowChange) {
        self.bytes += bytes + 32;
        self.changes.push(Change { group, table, change });
    }
}

pub(crate) fn state_suffix(kind: u8, key: &[u8]) -> Vec<u8> {
    let mut suffix = Vec::with_capacity(1 + key.len());
    suffix.push(kind);
    suffix.extend_from_slice(key);
    suffix
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Durability;
    use crate::error::Error;
    use crate::group::LogId;
    use crate::memory::MemoryDisk;
    use crate::storage::Storage;
    use levee_protocol::ids::NodeId;

    const GROUP: GroupId = GroupId(16);

    #[test]
    fn what_was_made_from_data_that_a_snapshot_replaced_is_not_written() {
        let source = Storage::in_memory(MemoryDisk::new());
        let storage = Storage::in_memory(MemoryDisk::new());
        let old = Space { group: GROUP, generation: 0 };
        let mut stale = Batch::new();
        stale.made_from(old);
        stale.put_state(GROUP, 1, b"stale", b"");
        stale.on_written(|| panic!("it was not written"));
        let mut import = storage.import(GROUP).unwrap();
        for chunk in source.export(GROUP).unwrap() {
            import.push(&chunk.unwrap()).unwrap();
        }
        import.finish(LogId { raft_term: 1, node: NodeId(1), index: 5 }).unwrap();

        let refused = storage.write(stale, Durability::Ordered);

        assert!(matches!(refused, Err(Error::OutOfOrder { group: GROUP, .. })), "{refused:?}");
        let mut rows = 0;
        storage.state_rows(GROUP, &mut |_, _, _| rows += 1).unwrap();
        assert_eq!(rows, 0);
        assert_eq!(storage.failed(), None);
    }
}
