//! Clusters within one test process, and the machine they run: a list that remembers what was applied.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};
use levee_raft::{
    APPLIED_ROW_KIND, Birth, CommittedEntry, Config, Group, Groups, LocalNetwork, ReplicatedMachine, Reply,
    Transport,
};
use levee_storage::kind::INLINE;
use levee_storage::{Batch, MemoryDisk, Storage, Sync};
use parking_lot::Mutex;

pub type Floor = Arc<AtomicU64>;

pub type Items = Arc<Mutex<BTreeMap<u64, Bytes>>>;

const ITEM: u8 = 1;

/// Keeps every applied payload under its log index. A payload that starts with `poison` breaks it.
pub struct ListMachine {
    storage: Arc<Storage>,
    group: GroupId,
    items: Items,
    dirty: Vec<u64>,
    pub flushes: Arc<Mutex<u64>>,
    /// Set to break only this replica.
    broken: Arc<AtomicBool>,
    /// The highest purge floor it was told.
    told_purged: Floor,
}

impl ListMachine {
    pub fn load(storage: &Arc<Storage>, group: GroupId) -> (Box<Self>, Items) {
        let items = Items::default();
        let mut machine = Box::new(Self {
            storage: Arc::clone(storage),
            group,
            items: Arc::clone(&items),
            dirty: Vec::new(),
            flushes: Arc::default(),
            broken: Arc::default(),
            told_purged: Floor::default(),
        });
        machine.reload().expect("the store reads");
        (machine, items)
    }
}

impl ReplicatedMachine for ListMachine {
    fn apply(&mut self, entry: CommittedEntry) -> Result<Reply, levee_storage::Error> {
        if entry.payload.starts_with(b"poison") || self.broken.load(Ordering::SeqCst) {
            return Err(levee_storage::Error::Engine("injected".to_owned()));
        }
        let before = self.items.lock().insert(entry.index, entry.payload.clone());
        assert_eq!(before, None, "an entry was applied twice");
        self.dirty.push(entry.index);
        Ok(Box::new(entry.payload))
    }

    fn flushed(&mut self) {
        *self.flushes.lock() += 1;
    }

    fn checkpoint(&mut self, batch: &mut Batch) -> Result<(), levee_storage::Error> {
        let items = self.items.lock();
        for index in self.dirty.drain(..) {
            batch.put_state(self.group, ITEM, &index.to_be_bytes(), &items[&index]);
        }
        Ok(())
    }

    fn purged(&mut self, index: u64) {
        self.told_purged.fetch_max(index, Ordering::SeqCst);
    }

    fn reload(&mut self) -> Result<(), levee_storage::Error> {
        let mut items = self.items.lock();
        items.clear();
        self.dirty.clear();
        self.storage.state_rows(self.group, &mut |kind, key, value| {
            if kind != APPLIED_ROW_KIND {
                let index = u64::from_be_bytes(key.try_into().expect("our key"));
                items.insert(index, Bytes::copy_from_slice(value));
            }
        })
    }
}

/// Quick checkpoints, so that tests are.
pub fn quick() -> Config {
    Config { checkpoint_after: Duration::from_millis(100), ..Config::default() }
}

pub fn node_id(number: u64) -> NodeId {
    NodeId(number)
}

pub fn ids(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

pub fn memory_storage(disk: &MemoryDisk) -> Arc<Storage> {
    Storage::in_memory(disk.clone())
}

/// One node: its store, its groups and what their machines hold.
pub struct Node {
    pub id: NodeId,
    pub disk: MemoryDisk,
    pub storage: Arc<Storage>,
    pub groups: Arc<Groups>,
    /// How its groups are opened.
    pub sync: Sync,
    pub items: BTreeMap<GroupId, Items>,
    pub told_purged: BTreeMap<GroupId, Floor>,
    pub broken: BTreeMap<GroupId, Arc<AtomicBool>>,
}

impl Node {
    pub fn new(id: NodeId, disk: MemoryDisk, transport: Arc<dyn Transport>, config: Config) -> Self {
        let storage = memory_storage(&disk);
        Self::on(id, disk, storage, transport, config)
    }

    pub fn on(
        id: NodeId,
        disk: MemoryDisk,
        storage: Arc<Storage>,
        transport: Arc<dyn Transport>,
        config: Config,
    ) -> Self {
        let groups = Groups::new(id, Arc::clone(&storage), transport, config);
        Self {
            id,
            disk,
            storage,
            groups,
            sync: Sync::Always,
            items: BTreeMap::new(),
            told_purged: BTreeMap::new(),
            broken: BTreeMap::new(),
        }
    }

    pub async fn open(&mut self, group: GroupId, birth: Birth) -> Group {
        let (machine, items) = ListMachine::load(&self.storage, group);
        self.items.insert(group, items);
        self.told_purged.insert(group, Arc::clone(&machine.told_purged));
        self.broken.insert(group, Arc::clone(&machine.broken));
        self.groups.open(group, self.sync, machine, birth).await.expect("the group opens")
    }

    pub fn group(&self, group: GroupId) -> Group {
        self.groups.group(group).expect("the group is open")
    }

    pub fn payloads(&self, group: GroupId) -> Vec<Bytes> {
        self.items[&group].lock().values().cloned().collect()
    }
}

/// Nodes 1..=n on one local network.
pub struct Cluster {
    pub network: Arc<LocalNetwork>,
    pub nodes: BTreeMap<u64, Node>,
    pub config: Config,
    pub sync: Sync,
}

impl Cluster {
    /// Nodes whose groups do not sync their logs: who is killed loses power.
    pub fn volatile(count: u64, config: Config) -> Self {
        let mut cluster = Self { sync: Sync::Never, ..Self::new(count, config) };
        cluster.nodes.values_mut().for_each(|node| node.sync = Sync::Never);
        cluster
    }

    pub fn new(count: u64, config: Config) -> Self {
        let network = LocalNetwork::new(7);
        let nodes = (1..=count).map(|number| {
            let id = NodeId(number);
            (number, Node::new(id, MemoryDisk::new(), network.transport(id), config.clone()))
        });
        let nodes = nodes.collect();
        Self { network, nodes, config, sync: Sync::Always }
    }

    /// Founds a group on all nodes.
    pub async fn found(&mut self, group: GroupId) {
        let founders: BTreeSet<_> = self.nodes.keys().copied().map(NodeId).collect();
        for node in self.nodes.values_mut() {
            node.open(group, Birth::Founding(founders.clone())).await;
        }
    }

    /// Waits for a leader among the running nodes and returns its number.
    pub async fn leader(&self, group: GroupId) -> u64 {
        until("a leader", || {
            self.nodes
                .iter()
                .find(|(_, node)| {
                    node.groups.group(group).is_some_and(|group| group.leadership().borrow().leading)
                })
                .map(|(number, _)| *number)
        })
        .await
    }

    /// The process of a node ends: nothing of it is written any more, and its unsynced writes are gone.
    pub fn kill(&mut self, number: u64) -> MemoryDisk {
        let node = self.nodes.remove(&number).expect("the node runs");
        self.network.kill(node.id);
        node.disk.crash();
        let disk = node.disk.clone();
        let groups = Arc::clone(&node.groups);
        // What a real process would take with it.
        tokio::spawn(async move { groups.shutdown().await });
        disk
    }

    pub fn start(&mut self, number: u64, disk: MemoryDisk) {
        let id = NodeId(number);
        let mut node = Node::new(id, disk, self.network.transport(id), self.config.clone());
        node.sync = self.sync;
        self.nodes.insert(number, node);
    }

    /// Waits until all running nodes hold the same, at least `count` entries.
    pub async fn converged(&self, group: GroupId, count: usize) -> Vec<Bytes> {
        until("all nodes to hold the same", || {
            let mut lists = self.nodes.values().map(|node| node.payloads(group));
            let first = lists.next()?;
            (first.len() >= count && lists.all(|list| list == first)).then_some(first)
        })
        .await
    }
}

/// Waits for a condition, and gives up loudly.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2000 {
        if let Some(value) = condition() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for {what}");
}

pub fn payload(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

/// Proposes and awaits; returns the log index.
pub async fn put(group: &Group, text: impl Into<String>) -> Result<u64, levee_raft::ProposeError> {
    group.propose(INLINE, payload(text)).await.map(|(index, _)| index)
}

/// Proposes through whoever leads until it is acknowledged.
pub async fn put_somewhere(cluster: &Cluster, group: GroupId, text: &str) -> u64 {
    for _ in 0..500 {
        for node in cluster.nodes.values() {
            let Some(group) = node.groups.group(group) else { continue };
            if !group.leadership().borrow().leading {
                continue;
            }
            if let Ok(Ok(index)) = tokio::time::timeout(Duration::from_secs(3), put(&group, text)).await {
                return index;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{text:?} was never acknowledged");
}

pub fn logged() {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
}
