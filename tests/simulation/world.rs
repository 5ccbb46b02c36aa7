//! Three nodes, their disks and their network, within one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use levee_protocol::ids::NodeId;
use levee_protocol::time::{Nanos, Timestamp};
use levee_raft::{Birth, Groups, LocalNetwork, Transport};
use levee_storage::{MemoryDisk, Options, Storage, Sync};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::chance::Chance;
use crate::counters::Tallies;
use crate::deliveries::{Copied, Deliveries, Letters};
use crate::fast::Told;
use crate::leading;
use crate::network::{BadTransport, Odds, Weather};
use crate::oracle::{Attached, Oracle, Verdicts};
use crate::plan::{Breakage, Plan};
use crate::post::Post;
use crate::replica::{Machine, Replica};
use crate::restores::Restore;
use crate::streams::{Stream, Which};
use crate::trace::Trace;

/// Virtual time begins here, on every node.
const EPOCH: Timestamp = Timestamp(1_767_225_600_000_000_000);

/// Everything there is in a run.
pub(crate) struct World {
    /// What everything random comes from.
    pub(crate) seed: u64,
    /// The run's circumstances.
    pub(crate) plan: Plan,
    /// What happened.
    pub(crate) trace: Arc<Trace>,
    /// What must be so of the stream that clients use.
    pub(crate) oracle: Arc<Oracle>,
    /// What must be so of each stream.
    pub(crate) oracles: BTreeMap<Which, Arc<Oracle>>,
    /// What was said of fast batches.
    pub(crate) told: Told,
    /// What was added to counters.
    pub(crate) tallies: Tallies,
    /// What is restored.
    pub(crate) restore: Restore,
    /// Between nodes and clients.
    pub(crate) post: Arc<Post>,
    /// Between the nodes.
    pub(crate) network: Arc<LocalNetwork>,
    /// What becomes of single messages in it.
    pub(crate) weather: Arc<Weather>,
    /// The nodes, running or not.
    pub(crate) hosts: Vec<Arc<Host>>,
    /// Clients finish what they have begun.
    closing: AtomicBool,
    /// Clients end.
    over: AtomicBool,
}

/// A node's machine: what outlives its process.
pub(crate) struct Host {
    /// The node.
    pub(crate) id: NodeId,
    /// Its disk.
    pub(crate) disk: MemoryDisk,
    /// How far its clock is off, in nanoseconds.
    pub(crate) skew: AtomicI64,
    /// Its process, while it has one.
    running: Mutex<Option<Arc<Process>>>,
    starts: AtomicU64,
    /// Held while the process starts or ends; holds what is left of the last one.
    lifecycle: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// A node's process.
pub(crate) struct Process {
    /// Its store.
    pub(crate) storage: Arc<Storage>,
    /// Its groups.
    pub(crate) groups: Arc<Groups>,
    streams: BTreeMap<Which, Stream>,
    transport: Arc<BadTransport>,
}

/// What becomes of writes that were not synced when a process ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// The process was killed: the disk has everything.
    Nothing,
    /// Power was cut, and this share of the unsynced writes, in percent, happened to be on the disk.
    AllBut(u64),
}

impl World {
    /// Three nodes that do not run yet.
    pub(crate) fn new(seed: u64, plan: Plan) -> Arc<Self> {
        let trace = Arc::new(Trace::new());
        let verdicts = Arc::new(Verdicts::new(Arc::clone(&trace)));
        let (letters, copied) = (Letters::default(), Copied::default());
        let oracles: BTreeMap<Which, Arc<Oracle>> = plan
            .streams()
            .into_iter()
            .map(|which| {
                let deliveries = Deliveries::new(Arc::clone(&letters), Arc::clone(&copied));
                let source = plan.source(which, Which::Origin);
                let attached = source.consumer.as_ref().map(|consumer| Attached {
                    consumer: consumer.name.clone(),
                    key: if which == Which::Mirror { String::new() } else { source.key() },
                    copied: Arc::clone(&copied),
                });
                let letters = Arc::clone(&letters);
                (which, Arc::new(Oracle::new(which, &verdicts, deliveries, letters, attached)))
            })
            .collect();
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
            oracle: Arc::clone(&oracles[&Which::Origin]),
            oracles,
            told: Told::default(),
            tallies: Tallies::default(),
            restore: Restore::default(),
            post: Arc::new(Post::new(seed, plan.client_loss, plan.delay.1)),
            plan,
            trace,
            network,
            weather: Arc::default(),
            closing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            hosts: (1..=3).map(host).collect(),
        })
    }

    /// All nodes.
    pub(crate) fn voters(&self) -> BTreeSet<NodeId> {
        self.hosts.iter().map(|host| host.id).collect()
    }

    /// The processes there are.
    pub(crate) fn processes(&self) -> Vec<(Arc<Host>, Arc<Process>)> {
        let pair = |host: &Arc<Host>| Some((Arc::clone(host), host.process()?));
        self.hosts.iter().filter_map(pair).collect()
    }

    /// Whom a client asks: mostly one that says it leads, sometimes any.
    pub(crate) fn target(&self, chance: &mut Chance) -> Option<(Arc<Host>, Arc<Process>)> {
        self.target_of(Which::Origin, chance)
    }

    /// The same, of any stream.
    pub(crate) fn target_of(&self, which: Which, chance: &mut Chance) -> Option<(Arc<Host>, Arc<Process>)> {
        let mut running = self.processes();
        if chance.percent(90) {
            running.retain(|(_, process)| process.leads(which));
        }
        let count = u64::try_from(running.len()).ok().filter(|count| *count > 0)?;
        Some(running.swap_remove(usize::try_from(chance.below(count)).ok()?))
    }

    /// When the stream was created.
    pub(crate) fn created(&self) -> Timestamp {
        EPOCH
    }

    /// Clients begin nothing new from here on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Clients end here.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether clients are to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.oracle.violation().is_some()
    }

    /// Whether clients begin nothing new.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed) || self.oracle.violation().is_some()
    }

    /// A process that says it leads and has applied everything before.
    pub(crate) fn leading(&self, which: Which) -> Option<(Arc<Host>, Arc<Process>)> {
        self.processes().into_iter().find(|(_, process)| process.leads(which))
    }

    /// A host's clock.
    pub(crate) fn now(&self, host: &Host) -> Timestamp {
        let elapsed = i64::try_from(self.trace.elapsed().as_nanos()).unwrap_or(i64::MAX);
        EPOCH.plus(Nanos(elapsed)).plus(Nanos(host.skew.load(Ordering::Relaxed)))
    }

    /// What a leader stamps a command with.
    pub(crate) fn stamp(&self, host: &Host, stream: &Stream) -> Timestamp {
        let now = self.now(host);
        if self.plan.stamps_run_back {
            now
        } else {
            now.max(stream.replica.read(|machine, _| machine.clock()))
        }
    }

    /// Starts a node, unless it runs.
    pub(crate) async fn start(self: &Arc<Self>, host: &Arc<Host>) {
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
                self.follow(host, incarnation, &process);
                *host.running.lock() = Some(Arc::new(process));
            }
            Err(error) => self.oracle.violated(format!("{}.{incarnation} does not start: {error}", host.id)),
        }
    }

    async fn open(&self, host: &Host, incarnation: u64) -> Result<Process, levee_raft::Error> {
        let storage = Storage::open_memory(host.disk.clone(), Options::default())?;
        let transport = BadTransport::new(
            self.network.transport(host.id),
            Arc::clone(&self.weather),
            self.seed,
            format!("{}.{incarnation}", host.id),
        );
        let way: Arc<dyn Transport> = Arc::<BadTransport>::clone(&transport);
        let groups = Groups::new(host.id, Arc::clone(&storage), way, self.plan.raft.clone());
        let sync = if self.plan.breakage == Breakage::AckBeforeSync { Sync::Never } else { Sync::Always };
        let birth = if incarnation == 1 { Birth::Founding(self.voters()) } else { Birth::Existing };
        let mut streams = BTreeMap::new();
        for (which, oracle) in &self.oracles {
            let chance =
                Chance::new(self.seed, &format!("reads of {} on {}.{incarnation}", which.name(), host.id));
            let life = (host.id, incarnation);
            let replica = Replica::load(&storage, oracle, *which, life, chance, self.plan.breakage)?;
            let machine = Box::new(Machine(Arc::clone(&replica)));
            let group = groups.open(which.group(), sync, machine, birth.clone()).await?;
            streams.insert(*which, Stream { which: *which, group, replica });
        }
        Ok(Process { storage, groups, streams, transport })
    }

    /// Follows who leads: writes it down, and does what follows from leading.
    fn follow(self: &Arc<Self>, host: &Arc<Host>, incarnation: u64, process: &Process) {
        for stream in process.streams.values() {
            tokio::spawn(leading::watch(Arc::clone(self), Arc::clone(host), stream.clone()));
            let mut leadership = stream.group.leadership();
            let (node, name) = (host.id, stream.which.name());
            let (trace, oracle) = (Arc::clone(&self.trace), Arc::clone(&self.oracles[&stream.which]));
            tokio::spawn(async move {
                loop {
                    let now = *leadership.borrow_and_update();
                    let leader = now.leader.map_or(0, |leader| leader.0);
                    let leading = if now.leading { ", leading" } else { "" };
                    trace.note(format_args!(
                        "{node}.{incarnation} sees {leader} lead term {} of {name}{leading}",
                        now.raft_term
                    ));
                    if now.leading {
                        oracle.leads(now.raft_term, node, incarnation);
                    }
                    if leadership.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// Ends a node's process without warning.
    pub(crate) async fn crash(&self, host: &Arc<Host>, loss: Loss) {
        let mut lifecycle = host.lifecycle.lock().await;
        let Some(process) = host.running.lock().take() else { return };
        process.die();
        process.transport.die();
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
    pub(crate) async fn stop(&self, host: &Arc<Host>) {
        let _lifecycle = host.lifecycle.lock().await;
        let Some(process) = host.running.lock().take() else { return };
        self.trace.note(format_args!("{} stops", host.id));
        host.disk.resume();
        while process.storage.step() {}
        process.groups.shutdown().await;
        process.die();
    }

    /// Ends everything that goes wrong, and starts every node.
    pub(crate) async fn heal(self: &Arc<Self>) {
        self.trace.note(format_args!("everything heals"));
        self.network.heal();
        self.network.set_delay(self.plan.delay.0, self.plan.delay.1);
        self.network.set_resets(0);
        self.weather.set(Odds::default());
        self.post.heal();
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
    pub(crate) async fn until<T>(
        &self,
        limit: Duration,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
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

impl Process {
    /// A stream of it.
    pub(crate) fn stream(&self, which: Which) -> &Stream {
        &self.streams[&which]
    }

    /// All of them.
    pub(crate) fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.streams.values()
    }

    /// Whether it says that it leads a stream.
    pub(crate) fn leads(&self, which: Which) -> bool {
        self.stream(which).group.leadership().borrow().leading
    }

    /// It ends: nothing of it does anything from here on.
    fn die(&self) {
        for stream in self.streams.values() {
            stream.replica.die();
        }
    }
}

impl Host {
    /// Its process, if it has one.
    pub(crate) fn process(&self) -> Option<Arc<Process>> {
        self.running.lock().clone()
    }
}
