//! What the meta group replicates, what can be asked of it, and how it lies on disk.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::command::Undecodable;
use levee_protocol::command::meta::{NodeRegistration, StreamAssignment};
use levee_protocol::ids::{AccountName, GroupId, NodeId, StreamName};
use levee_protocol::subject::Trie;
use levee_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::placement::Load;
use crate::rows::{RowKind, StateRow};

/// First byte of every row's value. Persisted: a new layout gets a new number, and old ones stay readable.
const VERSION: u8 = 1;

pub(super) type StreamKey = (AccountName, StreamName);

/// The cluster's streams and nodes, as replicated.
#[derive(Debug)]
pub struct MetaMachine {
    pub(super) clock: Timestamp,
    pub(super) next_group: GroupId,
    pub(super) nodes: BTreeMap<NodeId, NodeRegistration>,
    /// Nodes that were removed. They stay it.
    pub(super) removed: BTreeSet<NodeId>,
    streams: BTreeMap<AccountName, BTreeMap<StreamName, StreamAssignment>>,
    /// Which stream captures a subject. Follows from `streams`.
    pub(super) captures: BTreeMap<AccountName, Trie<StreamName>>,
    /// Follows from `streams`.
    groups: BTreeMap<GroupId, StreamKey>,
    /// By a stream, those of its account that mirror it. Follows from `streams`.
    mirrors: BTreeMap<StreamKey, BTreeSet<StreamName>>,
    /// Follows from `streams`.
    pub(super) load: Load,
    /// Streams that have fewer replicas than they should, or one on a removed node. Follows from `streams` and `removed`.
    pub(super) lacking: BTreeSet<GroupId>,
    touched: Touched,
    dirty_counters: bool,
    dirty_nodes: BTreeSet<NodeId>,
    dirty_streams: BTreeSet<StreamKey>,
}

/// Streams that changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Touched {
    /// Any of them, deleted ones included.
    All,
    /// The streams of these groups were created, changed or deleted.
    Groups(BTreeSet<GroupId>),
}

/// What belongs to no single stream or node.
#[derive(Serialize, Deserialize)]
struct Counters {
    clock: i64,
    next_group: GroupId,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    removed: BTreeSet<NodeId>,
}

impl Default for MetaMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl MetaMachine {
    /// A cluster without nodes and streams.
    #[must_use]
    pub fn new() -> Self {
        Self {
            clock: Timestamp::ZERO,
            next_group: GroupId::FIRST_STREAM,
            nodes: BTreeMap::new(),
            removed: BTreeSet::new(),
            streams: BTreeMap::new(),
            captures: BTreeMap::new(),
            groups: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            load: Load::default(),
            lacking: BTreeSet::new(),
            touched: Touched::All,
            dirty_counters: false,
            dirty_nodes: BTreeSet::new(),
            dirty_streams: BTreeSet::new(),
        }
    }

    /// The streams of an account, in order of their names, without those that are being filled from an archive: of
    /// them clients do not know yet.
    pub fn streams(&self, account: &AccountName) -> impl Iterator<Item = &StreamAssignment> {
        let streams = self.streams.get(account).into_iter().flat_map(BTreeMap::values);
        streams.filter(|stream| !stream.restoring)
    }

    /// The same with those that are being filled.
    pub(super) fn streams_of(
        &self,
        account: &AccountName,
    ) -> impl Iterator<Item = (&StreamName, &StreamAssignment)> {
        self.streams.get(account).into_iter().flatten()
    }

    /// The streams of all accounts, and those that are being filled from an archive.
    pub fn all_streams(&self) -> impl Iterator<Item = &StreamAssignment> {
        self.streams.values().flat_map(BTreeMap::values)
    }

    /// One stream.
    #[must_use]
    pub fn stream(&self, account: &AccountName, name: &StreamName) -> Option<&StreamAssignment> {
        self.streams.get(account)?.get(name)
    }

    /// The streams of the account that mirror this one.
    pub fn mirrors_of(
        &self,
        account: &AccountName,
        origin: &StreamName,
    ) -> impl Iterator<Item = &StreamAssignment> {
        // Without any it costs nothing.
        let key = (!self.mirrors.is_empty()).then(|| (account.clone(), origin.clone()));
        let names = key.and_then(|key| self.mirrors.get(&key)).into_iter().flatten();
        names.filter_map(|name| self.stream(account, name))
    }

    /// The stream that a group holds.
    #[must_use]
    pub fn stream_of_group(&self, group: GroupId) -> Option<&StreamAssignment> {
        self.groups.get(&group).and_then(|(account, name)| self.stream(account, name))
    }

    /// The stream of this account that captures messages of this subject.
    #[must_use]
    pub fn stream_for_subject(&self, account: &AccountName, subject: &[u8]) -> Option<&StreamAssignment> {
        let mut name = None;
        self.captures.get(account)?.for_each_match(subject, |stream| name = Some(stream));
        self.stream(account, name?)
    }

    /// Every node that was ever registered and not removed, in order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRegistration> {
        self.nodes.values()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeRegistration> {
        self.nodes.get(&id)
    }

    /// Whether the node was removed from the cluster.
    #[must_use]
    pub fn was_removed(&self, id: NodeId) -> bool {
        self.removed.contains(&id)
    }

    /// Whether a stream had this group once. If it has none now, it was deleted.
    #[must_use]
    pub fn was_given(&self, group: GroupId) -> bool {
        group < self.next_group
    }

    /// Streams that changed since this was last called.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::replace(&mut self.touched, Touched::Groups(BTreeSet::new()))
    }

    fn touch(&mut self, group: GroupId) {
        if let Touched::Groups(groups) = &mut self.touched {
            groups.insert(group);
        }
    }

    /// Adds or replaces a stream.
    pub(super) fn put_stream(&mut self, assignment: StreamAssignment, name: &StreamName) {
        let key = (assignment.account.clone(), name.clone());
        self.take_stream(&key);
        self.index(&key, &assignment);
        self.touch(assignment.group);
        self.streams.entry(key.0.clone()).or_default().insert(key.1.clone(), assignment);
        self.dirty_streams.insert(key);
    }

    /// Puts a stream that exists in the place of itself.
    pub(super) fn replace_stream(&mut self, assignment: StreamAssignment) {
        if let Some((_, name)) = self.groups.get(&assignment.group).cloned() {
            self.put_stream(assignment, &name);
        }
    }

    pub(super) fn take_stream(&mut self, key: &StreamKey) -> Option<StreamAssignment> {
        let assignment = self.streams.get_mut(&key.0)?.remove(&key.1)?;
        self.groups.remove(&assignment.group);
        self.lacking.remove(&assignment.group);
        if let Some(origin) = mirrored(&assignment) {
            let origin = (key.0.clone(), origin);
            if let Some(names) = self.mirrors.get_mut(&origin) {
                names.remove(&key.1);
                if names.is_empty() {
                    self.mirrors.remove(&origin);
                }
            }
        }
        self.load.remove(&assignment.replicas);
        self.touch(assignment.group);
        if let Some(captures) = self.captures.get_mut(&key.0) {
            for subject in &assignment.config.subjects {
                captures.remove(subject.as_bytes(), |name| *name == key.1);
            }
        }
        self.dirty_streams.insert(key.clone());
        Some(assignment)
    }

    pub(super) fn put_node(&mut self, node: NodeRegistration) {
        self.dirty_nodes.insert(node.id);
        self.nodes.insert(node.id, node);
    }

    /// Removes a node for good. False if it is not known.
    pub(super) fn take_node(&mut self, id: NodeId) -> bool {
        let known = self.nodes.remove(&id).is_some();
        if known {
            self.dirty_nodes.insert(id);
            self.removed.insert(id);
            self.dirty_counters = true;
        }
        known
    }

    /// The number of a new stream's group; never given out again.
    pub(super) fn take_group(&mut self) -> GroupId {
        let group = self.next_group;
        self.next_group = GroupId(group.0 + 1);
        self.dirty_counters = true;
        group
    }

    /// The rows that changed since this was last called.
    pub fn dirty_rows(&mut self) -> Vec<StateRow> {
        let mut rows = Vec::new();
        let streams = std::mem::take(&mut self.dirty_streams);
        let nodes = std::mem::take(&mut self.dirty_nodes);
        if std::mem::take(&mut self.dirty_counters) || !streams.is_empty() || !nodes.is_empty() {
            rows.push(self.counters_row());
        }
        rows.extend(streams.iter().map(|key| match self.stream(&key.0, &key.1) {
            Some(assignment) => stream_row(key, assignment),
            None => StateRow::delete(RowKind::MetaStream, &stream_row_key(key)),
        }));
        rows.extend(nodes.iter().map(|id| match self.nodes.get(id) {
            Some(node) => node_row(node),
            None => StateRow::delete(RowKind::MetaNode, &id.0.to_be_bytes()),
        }));
        rows
    }

    /// All rows.
    #[must_use]
    pub fn all_rows(&self) -> Vec<StateRow> {
        let mut rows = vec![self.counters_row()];
        for (account, streams) in &self.streams {
            rows.extend(
                streams.iter().map(|(name, stream)| stream_row(&(account.clone(), name.clone()), stream)),
            );
        }
        rows.extend(self.nodes.values().map(node_row));
        rows
    }

    /// The machine that the rows were written by.
    pub fn load(rows: impl Iterator<Item = StateRow>) -> Result<Self, Undecodable> {
        let mut machine = Self::new();
        for row in rows {
            let Some(value) = row.value else { continue };
            match row.kind {
                RowKind::Meta => {
                    let counters: Counters = from_value(row.kind, &value)?;
                    machine.clock = Timestamp(counters.clock);
                    machine.next_group = counters.next_group;
                    machine.removed = counters.removed;
                }
                RowKind::MetaStream => {
                    let assignment: StreamAssignment = from_value(row.kind, &value)?;
                    let name = StreamName::parse(&assignment.config.name)
                        .map_err(|error| Undecodable(format!("stream assignment: {error}")))?;
                    let key = (assignment.account.clone(), name);
                    machine.index(&key, &assignment);
                    machine.streams.entry(key.0).or_default().insert(key.1, assignment);
                }
                RowKind::MetaNode => {
                    let node: NodeRegistration = from_value(row.kind, &value)?;
                    machine.nodes.insert(node.id, node);
                }
                RowKind::State
                | RowKind::Subject
                | RowKind::Consumer
                | RowKind::Dedup
                | RowKind::Deleted
                | RowKind::Expiry
                | RowKind::Exempt
                | RowKind::Marker
                | RowKind::Schedule
                | RowKind::Source => {
                    return Err(Undecodable(format!("{:?} row in the meta group", row.kind)));
                }
            }
        }
        let lacking = machine.all_streams().filter(|stream| machine.lacks_replicas(stream));
        machine.lacking = lacking.map(|stream| stream.group).collect();
        let highest = machine.groups.last_key_value().map_or(GroupId(0), |(group, _)| *group);
        if highest >= machine.next_group {
            return Err(Undecodable(format!("group {highest} is in use and would be given out again")));
        }
        Ok(machine)
    }

    fn index(&mut self, key: &StreamKey, assignment: &StreamAssignment) {
        self.groups.insert(assignment.group, key.clone());
        if let Some(origin) = mirrored(assignment) {
            self.mirrors.entry((key.0.clone(), origin)).or_default().insert(key.1.clone());
        }
        self.load.add(&assignment.replicas);
        if self.lacks_replicas(assignment) {
            self.lacking.insert(assignment.group);
        }
        let captures = self.captures.entry(key.0.clone()).or_default();
        for subject in &assignment.config.subjects {
            captures.insert(subject.as_bytes(), key.1.clone());
        }
    }

    fn counters_row(&self) -> StateRow {
        let counters =
            Counters { clock: self.clock.0, next_group: self.next_group, removed: self.removed.clone() };
        StateRow::put(RowKind::Meta, &[], to_value(&counters))
    }
}

/// The stream of the same account that this one mirrors.
fn mirrored(assignment: &StreamAssignment) -> Option<StreamName> {
    let origin = assignment.config.mirror.as_ref().filter(|origin| origin.external.is_none())?;
    StreamName::parse(&origin.name).ok()
}

fn stream_row(key: &StreamKey, assignment: &StreamAssignment) -> StateRow {
    StateRow::put(RowKind::MetaStream, &stream_row_key(key), to_value(assignment))
}

/// Names hold no control characters, so a zero byte keeps accounts apart.
fn stream_row_key((account, name): &StreamKey) -> Vec<u8> {
    [account.as_str().as_bytes(), b"\0", name.as_str().as_bytes()].concat()
}

fn node_row(node: &NodeRegistration) -> StateRow {
    StateRow::put(RowKind::MetaNode, &node.id.0.to_be_bytes(), to_value(node))
}

fn to_value(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value).expect("these structures have only string keys");
    bytes
}

fn from_value<'a, T: Deserialize<'a>>(kind: RowKind, bytes: &'a [u8]) -> Result<T, Undecodable> {
    match bytes.split_first() {
        Some((&VERSION, json)) => {
            serde_json::from_slice(json).map_err(|error| Undecodable(format!("{kind:?} row: {error}")))
        }
        Some((version, _)) => Err(Undecodable(format!(
            "{kind:?} row has unknown version {version}; it may come from a newer release"
        ))),
        None => Err(Undecodable(format!("{kind:?} row is empty"))),
    }
}
