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
