//! What lives on a node only while it leads a stream: its consumers' drivers, the folding of their progress and the way
//! into the log, put together as the broker does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use levee_broker_core::stream::Event;
use levee_protocol::ids::ConsumerName;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::copies;
use crate::driver::Driver;
use crate::ingest::{self, Ingest};
use crate::progress::{self, Collector};
use crate::schedules;
use crate::streams::Stream;
use crate::world::{Host, World};

/// How long a leader waits before all that follows from leading is built again within one leadership.
const REBUILD_PAUSE: Duration = Duration::from_millis(50);

/// The leading half of a stream.
pub(crate) struct Leader {
    /// The run.
    pub(crate) world: Arc<World>,
    /// Where.
    pub(crate) host: Arc<Host>,
    /// What it leads.
    pub(crate) stream: Stream,
    /// The term it leads.
    pub(crate) raft_term: u64,
    /// Where consumers' deliveries and acks are folded.
    pub(crate) progress: Arc<Collector>,
    /// Where messages of fast batches come.
    pub(crate) ingest: Ingest,
    epoch: u64,
    in_doubt: AtomicBool,
    doubt: Arc<Notify>,
    drivers: Mutex<BTreeMap<ConsumerName, Arc<Driver>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Follows a stream's leadership on one node until its process ends.
pub(crate) async fn watch(world: Arc<World>, host: Arc<Host>, stream: Stream) {
    let mut leadership = stream.group.leadership();
    let doubt = Arc::new(Notify::new());
    loop {
        let mut pause = None;
        let now = *leadership.borrow_and_update();
        if !stream.replica.is_alive() {
            return;
        }
        let leader = stream.replica.leader();
        let is_same = |leader: &Arc<Leader>| now.leading && leader.epoch == now.epoch;
        if !leader.as_ref().is_some_and(|leader| is_same(leader) && !leader.in_doubt.load(Ordering::Relaxed))
        {
            if leader.as_ref().is_some_and(is_same) {
                // What was taken and not applied is in doubt only when leadership, the group or the process goes with it.
                if host.process().is_some() && stream.group.status().stopped.is_none() {
                    let which = stream.which.name();
                    world
                        .oracle
                        .violated(format!("{} builds its half of {which} again without need", host.id));
                }
                pause = Some(REBUILD_PAUSE);
            }
            if let Some(leader) = leader {
                stream.replica.set_leader(None);
                leader.end();
            }
            if now.leading && pause.is_none() {
                Leader::start(&world, &host, &stream, (now.epoch, now.raft_term), &doubt);
            }
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = doubt.notified(), if pause.is_none() => {}
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

impl Leader {
    fn start(
        world: &Arc<World>,
        host: &Arc<Host>,
        stream: &Stream,
        (epoch, raft_term): (u64, u64),
        doubt: &Arc<Notify>,
    ) {
        let leader = Arc::new(Self {
            world: Arc::clone(world),
            host: Arc::clone(host),
            stream: stream.clone(),
            raft_term,
            progress: Arc::default(),
            ingest: Ingest::default(),
            epoch,
            in_doubt: AtomicBool::new(false),
            doubt: Arc::clone(doubt),
            drivers: Mutex::default(),
            tasks: Mutex::default(),
        });
        let doubted = Arc::clone(&leader);
        leader.spawn(async move {
            progress::run(Arc::clone(&doubted)).await;
            // What the drivers believe may not be what the log holds.
            doubted.in_doubt.store(true, Ordering::Relaxed);
            doubted.doubt.notify_one();
        });
        stream.replica.set_leader(Some(Arc::clone(&leader)));
        copies::start(&leader);
        schedules::start(&leader);
        ingest::start(&leader);
        let names: Vec<ConsumerName> =
            stream.replica.read(|machine, _| machine.consumers().map(|(name, _)| name.clone()).collect());
        for name in names {
            leader.start_driver(&name);
        }
    }

    /// Runs until this is over.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().spawn(task);
    }

    /// Whether the node still has its process, and the process its store.
    pub(crate) fn is_alive(&self) -> bool {
        self.stream.replica.is_alive()
    }

    /// What apply reported, once for each batch of applied entries.
    pub(crate) fn on_events(self: &Arc<Self>, events: &[Event]) {
        for event in events {
            match event {
                Event::ConsumerCreated { name } => self.start_driver(name),
                Event::ConsumerUpdated { name } => {
                    if let Some(driver) = self.driver(name) {
                        driver.ledger_changed();
                    }
                }
                Event::ConsumerDeleted { name, .. } => {
                    if let Some(driver) = self.drivers.lock().remove(name) {
                        driver.end();
                    }
                }
                Event::Configured | Event::Appended { .. } | Event::Removed { .. } => {}
            }
        }
        for driver in self.drivers.lock().values() {
            driver.on_stream_events(events);
        }
    }

    /// The driver of a consumer, if there is such a consumer.
    pub(crate) fn driver(&self, name: &ConsumerName) -> Option<Arc<Driver>> {
        self.drivers.lock().get(name).cloned()
    }

    /// Stops at once.
    pub(crate) fn end(&self) {
        for (_, driver) in std::mem::take(&mut *self.drivers.lock()) {
            driver.end();
        }
        self.tasks.lock().abort_all();
    }

    fn start_driver(self: &Arc<Self>, name: &ConsumerName) {
        if self.drivers.lock().contains_key(name) {
            return;
        }
        if let Some(driver) = Driver::new(self, name) {
            self.drivers.lock().insert(name.clone(), Arc::clone(&driver));
            self.spawn(driver.run());
        }
    }
}
