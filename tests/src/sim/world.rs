//! Three nodes, their disks and their network, within one thread.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use levee_protocol::ids::NodeId;
use levee_protocol::time::{Nanos, Timestamp};
use levee_raft::{Birth, Group, Groups, LocalNetwork};
use levee_storage::{MemoryDisk, Options, Storage, Sync};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::chance::Chance;
use super::oracle::Oracle;
use super::plan::Plan;
use super::replica::{GROUP, Machine, Replica};
use super::trace::Trace;

/// Virtual time begins here, on every node.
const EPOCH: Timestamp = Timestamp(1_767_225_600_000_000_000);

/// Everything there is in a run.
pub struct World {
    /// What everything random comes from.
    pub seed: u64,
    /// The run's circumstances.
    pub plan: Plan,
    /// What happened.
    pub trace: Arc<Trace>,
    /// What must be so.
    pub oracle: Arc<Oracle>,
    /// Between the nodes.
    pub network: Arc<LocalNetwork>,
    /// The nodes, running or not.
    pub hosts: Vec<Arc<Host>>,
}

/// A node's machine: what outlives its process.
pub struct Host {
    /// The node.
    pub id: NodeId,
    /// Its disk.
    pub disk: MemoryDisk,
    /// How far its clock is off, in nanoseconds.
    pub skew: AtomicI64,
    /// Its process, while it has one.
    running: Mutex<Option<Arc<Process>>>,
    starts: AtomicU64,
    /// Held while the process starts or ends; holds what is left of the last one.
    lifecycle: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// A node's process.
pub struct Process {
    /// Its store.
    pub storage: Arc<Storage>,
    /// Its groups.
    pub groups: Arc<Groups>,
    /// The stream's group.
    pub group: Group,
    /// The stream.
    pub replica: Arc<Replica>,
}

/// What becomes of writes that were not synced when a process ends.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// The process was killed: the disk has everything.
    Nothing,
    /// Power was cut, and this share of the unsynced writes, in percent, happened to be on the disk.
    AllBut(u64),
}

impl World {
    /// Three nodes that do not run yet.
    #[must_use]
    pub fn new(seed: u64, plan: Plan) -> Arc<Self> {
        let trace = Arc::new(Trace::new());
        let network = LocalNetwork::new(seed);
        network.set_delay(plan.delay.0, plan.delay.1);
        let host = |number| {
            Arc::new(Host {
                id: NodeId(number),
                disk: MemoryDisk::new(),
                skew: AtomicI64::new(0),
                running: Mutex::default(),
                starts: AtomicU64::new(0),
                lifecycle: tokio::sync::Mutex::default(),
            })
        };
        Arc::new(Self {
            seed,
            plan,
            oracle: Arc::new(Oracle::new(Arc::clone(&trace))),
            trace,
            network,
            hosts: (1..=3).map(host).collect(),
        })
    }

    /// All nodes.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.hosts.iter().map(|host| host.id).collect()
    }

    /// The processes there are.
    #[must_use]
    pub fn processes(&self) -> Vec<(Arc<Host>, Arc<Process>)> {
        let pair = |host: &Arc<Host>| Some((Arc::clone(host), host.process()?));
        self.hosts.iter().filter_map(pair).collect()
    }

    /// A process that says it leads and has applied everything before.
    #[must_use]
    pub fn leading(&self) -> Option<(Arc<Host>, Arc<Process>)> {
        self.processes().into_iter().find(|(_, process)| process.group.leadership().borrow().leading)
    }

    /// A host's clock.
    #[must_use]
    pub fn now(&self, host: &Host) -> Timestamp {
        let elapsed = i64::try_from(self.trace.elapsed().as_nanos()).unwrap_or(i64::MAX);
        EPOCH.plus(Nanos(elapsed)).plus(Nanos(host.skew.load(Ordering::Relaxed)))
    }

    /// What a leader stamps a command with.
    #[must_use]
    pub fn stamp(&self, host: &Host, process: &Process) -> Timestamp {
        let now = self.now(host);
        if self.plan.stamps_run_back { now } else { now.max(process.replica.read(|machine, _| machine.clock())) }
    }

    /// Starts a node, unless it runs.
    pub async fn start(self: &Arc<Self>, host: &Arc<Host>) {
        let mut lifecycle = host.lifecycle.lock().await;
        if host.process().is_some() {
            return;
        }
        if let Some(leaving) = lifecycle.take() {
            let _ = leaving.await;
        }
        host.disk.resume();
        host.disk.fail_after(None);
        let incarnation = host.starts.fetch_add(1, Ordering::Relaxed) + 1;
        self.trace.note(format_args!("{}.{incarnation} starts", host.id));
        match self.open(host, incarnation).await {
            Ok(process) => {
                self.follow(host.id, incarnation, &process);
                *host.running.lock() = Some(Arc::new(process));
            }
            Err(error) => self.oracle.violated(format!("{}.{incarnation} does not start: {error}", host.id)),
        }
    }

    async fn open(&self, host: &Host, incarnation: u64) -> Result<Process, levee_raft::Error> {
        let storage = Storage::open_memory(host.disk.clone(), Options::default())?;
        let chance = Chance::new(self.seed, &format!("reads of {}.{incarnation}", host.id));
        let replica = Replica::load(&storage, &self.oracle, host.id, incarnation, chance)?;
        let transport = self.network.transport(host.id);
        let groups = Groups::new(host.id, Arc::clone(&storage), transport, self.plan.raft.clone());
        let birth = if incarnation == 1 { Birth::Founding } else { Birth::Existing };
        let machine = Box::new(Machine(Arc::clone(&replica)));
        let group = groups.open(GROUP, Sync::Always, machine, birth).await?;
        if incarnation == 1 {
            group.initialize(&self.voters()).await?;
        }
        Ok(Process { storage, groups, group, replica })
    }

    /// Writes changes of leadership down.
    fn follow(&self, node: NodeId, incarnation: u64, process: &Process) {
        let mut leadership = process.group.leadership();
        let trace = Arc::clone(&self.trace);
        tokio::spawn(async move {
            loop {
                let now = *leadership.borrow_and_update();
                let leader = now.leader.map_or(0, |leader| leader.0);
                let leading = if now.leading { ", leading" } else { "" };
                trace.note(format_args!("{node}.{incarnation} sees {leader} lead term {}{leading}", now.raft_term));
                if leadership.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Ends a node's process without warning.
    pub async fn crash(&self, host: &Arc<Host>, loss: Loss) {
        let mut lifecycle = host.lifecycle.lock().await;
        let Some(process) = host.running.lock().take() else { return };
        process.replica.die();
        let unsynced = host.disk.unsynced_writes();
        let kept = match loss {
            Loss::Nothing => unsynced,
            Loss::AllBut(share) => unsynced * usize::try_from(share).unwrap_or(0) / 100,
        };
        self.trace.note(format_args!("{} crashes, {kept} of {unsynced} unsynced writes stay", host.id));
        self.network.kill(host.id);
        host.disk.crash_keeping(kept);
        // What waited for the disk hears that it is gone.
        while process.storage.step() {}
        // What a real process would take with it.
        *lifecycle = Some(tokio::spawn(async move { process.groups.shutdown().await }));
    }

    /// Ends a node's process in order.
    pub async fn stop(&self, host: &Arc<Host>) {
        let _lifecycle = host.lifecycle.lock().await;
        let Some(process) = host.running.lock().take() else { return };
        self.trace.note(format_args!("{} stops", host.id));
        host.disk.resume();
        while process.storage.step() {}
        process.groups.shutdown().await;
        process.replica.die();
    }

    /// Ends everything that goes wrong, and starts every node.
    pub async fn heal(self: &Arc<Self>) {
        self.trace.note(format_args!("everything heals"));
        self.network.heal();
        self.network.set_delay(self.plan.delay.0, self.plan.delay.1);
        self.network.set_resets(0);
        for host in &self.hosts {
            host.disk.set_free(None);
            host.disk.resume();
            host.disk.fail_after(None);
            let process = host.process();
            if let Some(process) = &process {
                while process.storage.step() {}
            }
            // A store that failed takes no further writes until it is opened again.
            if process.is_some_and(|process| process.storage.failed().is_some()) {
                self.crash(host, Loss::Nothing).await;
            }
            self.start(host).await;
        }
    }

    /// Waits for a condition, at most for `limit` of virtual time.
    pub async fn until<T>(&self, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(value) = condition() {
                return Some(value);
            }
            if tokio::time::Instant::now() >= deadline || self.oracle.violation().is_some() {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Host {
    /// Its process, if it has one.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.running.lock().clone()
    }
}
