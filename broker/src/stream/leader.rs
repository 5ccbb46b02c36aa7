//! What exists only while this node leads a stream: the ingest, the ticker, the consumers' drivers, the folding
//! of their progress, and the adoption of what meta decides. Built on gaining leadership, dropped on losing it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use levee_broker_core::stream::{Event, Reply};
use levee_protocol::api::advisory::Action;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::ConsumerName;
use levee_protocol::time::Timestamp;
use levee_raft::{Leadership, ProposeError};
use levee_storage::kind::INLINE;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::advisory;
use crate::consumer::alarms::Alarms;
use crate::consumer::driver::{Beginning, Driver, Ended};
use crate::consumer::listeners::Listeners;
use crate::consumer::progress::{self, Collector};
use crate::jetstream::JetStream;
use crate::mirror::Receivers;
use crate::runtime::clock::Clock;
use crate::runtime::tasks;
use crate::stream::ingest::{Ingest, PubAckStream};
use crate::stream::{Replica, adoption, announce, ticker};
use crate::transfer::restore;

/// How long a leader waits before all that follows from leading is built again within one leadership.
const REBUILD_PAUSE: Duration = Duration::from_millis(50);
/// A consumer whose messages can't be read is started again after this long.
const DRIVER_RETRY: Duration = Duration::from_secs(1);

/// The leading half of a stream.
pub struct Leader {
    replica: Weak<Replica>,
    jetstream: Weak<JetStream>,
    /// Of the leadership it was built for.
    epoch: u64,
    since: Timestamp,
    clock: Clock,
    /// Nobody knows whether an entry of it was committed, or a part of it broke.
    in_doubt: AtomicBool,
    doubt: Arc<Notify>,
    /// Where publishes go.
    pub ingest: Arc<Ingest>,
    /// Where consumers' deliveries and acks are folded.
    pub progress: Arc<Collector>,
    drivers: RwLock<BTreeMap<ConsumerName, Arc<Driver>>>,
    /// Those with a task.
    awake: Mutex<BTreeMap<ConsumerName, Arc<Driver>>>,
    /// Who wants to hear of what is stored, and those without a task of what is removed.
    listeners: Listeners<Arc<Driver>>,
    /// When those without one look again.
    alarms: Arc<Alarms>,
    /// Who reads the streams that this one mirrors or sources.
    receivers: Receivers,
    /// For those who read this one: something was stored, or this is over.
    moved: Notify,
    tick_changed: Arc<Notify>,
    assignment_changed: Arc<Notify>,
    tasks: tasks::Scope,
}

/// Follows the group's leadership for as long as the replica is open.
pub fn watch(jetstream: &Arc<JetStream>, replica: Arc<Replica>) {
    let jetstream = Arc::downgrade(jetstream);
    let mut leadership = replica.group().leadership();
    let replica = Arc::downgrade(&replica);
    let doubt = Arc::new(Notify::new());
    tasks::spawn("stream leadership", async move {
        let mut told = 0;
        loop {
            let mut pause = None;
            {
                let (Some(jetstream), Some(replica)) = (jetstream.upgrade(), replica.upgrade()) else {
                    return;
                };
                let now = *leadership.borrow_and_update();
                let leader = replica.leader();
                let stays = leader.as_ref().is_some_and(|leader| {
                    now.leading && leader.epoch == now.epoch && !leader.in_doubt.load(Ordering::Acquire)
                });
                if !stays {
                    // What broke may break again at once, while a leader hands over or goes.
                    if leader.as_ref().is_some_and(|leader| now.leading && leader.epoch == now.epoch) {
                        pause = Some(REBUILD_PAUSE);
                    }
                    if let Some(leader) = leader {
                        replica.set_leader(None);
                        leader.leadership_lost();
                        if now.majority_lost {
                            announce::leadership(&jetstream, &replica, false);
                        }
                    }
                    if now.leading && pause.is_none() {
                        Leader::start(&jetstream, &replica, &now, &doubt);
                        // What is built again within one leadership is no news.
                        if std::mem::replace(&mut told, now.epoch) != now.epoch {
                            announce::leadership(&jetstream, &replica, true);
                        }
                    }
                }
                jetstream.leadership_moved(replica.group_id(), &now);
            }
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { return },
                () = doubt.notified(), if pause.is_none() => {}
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
        }
    });
}

impl Leader {
    fn start(jetstream: &Arc<JetStream>, replica: &Arc<Replica>, now: &Leadership, doubt: &Arc<Notify>) {
        let acks = PubAckStream {
            name: replica.assignment().config.name.clone(),
            domain: jetstream.domain().to_owned(),
        };
        // What the leader before had seen may lie in the future of this node.
        let clock = jetstream.clock().going_on_from(replica.read(|machine, _| machine.clock()));
        let leader = Arc::new(Self {
            clock: clock.clone(),
            epoch: now.epoch,
            since: jetstream.clock().now(),
            in_doubt: AtomicBool::new(false),
            doubt: Arc::clone(doubt),
            replica: Arc::downgrade(replica),
            jetstream: Arc::downgrade(jetstream),
            ingest: Ingest::new(acks, replica, jetstream),
            progress: Arc::default(),
            drivers: RwLock::new(BTreeMap::new()),
            awake: Mutex::new(BTreeMap::new()),
            listeners: Listeners::default(),
            alarms: Arc::default(),
            receivers: Receivers::default(),
            moved: Notify::new(),
            tick_changed: Arc::new(Notify::new()),
            assignment_changed: Arc::new(Notify::new()),
            tasks: tasks::Scope::default(),
        });
        leader.spawn_vital("stream ingest", Arc::clone(&leader.ingest).run());
        leader.tasks.spawn(
            "stream ticker",
            ticker::run(
                Arc::clone(replica),
                Arc::clone(jetstream.router()),
                clock.clone(),
                Arc::clone(&leader.tick_changed),
            ),
        );
        let progress = progress::run(
            Arc::clone(&leader.progress),
            now.raft_term,
            Arc::clone(replica),
            Arc::clone(jetstream.router()),
            clock,
        );
        // When it ends, what the drivers believe may not be what the log holds.
        leader.spawn_vital("consumer progress", progress);
        leader.tasks.spawn(
            "stream adoption",
            adoption::run(Arc::clone(jetstream), Arc::clone(replica), Arc::clone(&leader.assignment_changed)),
        );
        if replica.assignment().restoring {
            let abandoned = restore::look_for_abandoned(Arc::clone(jetstream), replica.group_id());
            leader.tasks.spawn("abandoned restore", abandoned);
        }
        replica.set_leader(Some(Arc::clone(&leader)));
        leader.receivers.configure(jetstream, replica);
        leader.start_drivers(replica);
    }

    /// Starts what does not run yet. Consumers of a stream that is being restored wait for meta's word that it is
    /// there: until then it may all be taken back.
    fn start_drivers(self: &Arc<Self>, replica: &Replica) {
        let consumers: Vec<ConsumerName> = replica.read(|machine, _| {
            let names = machine.consumers().map(|(name, _)| name.clone());
            if machine.is_restoring() { Vec::new() } else { names.collect() }
        });
        for name in consumers {
            self.start_driver(&name, Beginning::TakenOver);
        }
    }

    /// Spawns a task without which the stream does not work. When it ends although this leader did not end it, be it
    /// by a panic, all of this is built again from the log.
    fn spawn_vital(self: &Arc<Self>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guard = Vital(Arc::downgrade(self));
        self.tasks.spawn(name, async move {
            let _guard = guard;
            task.await;
        });
    }

    /// The time by which what is led goes.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Since when this node leads the stream.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Whether a consumer has something to do, and keeps count of the stream.
    pub(super) fn is_anybody_awake(&self) -> bool {
        !self.awake.lock().is_empty()
    }

    /// What apply reported, once for each batch of applied entries.
    pub fn on_events(self: &Arc<Self>, events: &[Event]) {
        for event in events {
            match event {
                Event::ConsumerCreated { name } => {
                    self.start_driver(name, Beginning::Created);
                    self.announce_consumer(name);
                }
                Event::ConsumerUpdated { name } => {
                    if let Some(driver) = self.driver(name) {
                        driver.ledger_changed();
                    }
                }
                Event::ConsumerDeleted { name, .. } => {
                    let driver = self.drivers.write().remove(name);
                    if let Some(driver) = driver {
                        self.end_drivers([(name.clone(), driver)], Ended::Deleted);
                    }
                    // What has ended comes back to neither.
                    self.alarms.remove(name);
                    self.listeners.remove(name);
                }
                Event::Configured => self.configure_receivers(),
                Event::Appended { .. } | Event::Removed { .. } => {}
            }
        }
        for (driver, first) in self.listeners.take_told() {
            driver.on_told(first);
        }
        if events.iter().any(|event| matches!(event, Event::Removed { .. })) {
            for driver in self.awake.lock().values() {
                driver.on_removals(events);
            }
        }
        self.tick_changed.notify_one();
        self.moved.notify_waiters();
    }

    fn announce_consumer(&self, name: &ConsumerName) {
        if let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) {
            announce::new_consumer(&jetstream, &replica, name);
        }
    }

    fn configure_receivers(&self) {
        if let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) {
            self.receivers.configure(&jetstream, &replica);
        }
    }

    /// Who reads the streams that this one mirrors or sources.
    pub fn receivers(&self) -> &Receivers {
        &self.receivers
    }

    /// Wakes when something was stored, or when this is over.
    pub fn moved(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// The driver of a consumer, if there is such a consumer.
    pub fn driver(&self, name: &ConsumerName) -> Option<Arc<Driver>> {
        self.drivers.read().get(name).cloned()
    }

    /// The driver of a consumer by the text of its name.
    pub fn driver_named(&self, name: &str) -> Option<Arc<Driver>> {
        self.driver(&ConsumerName::parse(name).ok()?)
    }

    /// Meta changed the stream's assignment.
    pub fn assignment_changed(self: &Arc<Self>) {
        self.assignment_changed.notify_one();
        if let Some(replica) = self.replica.upgrade() {
            self.start_drivers(&replica);
        }
        // A stream that was being restored begins to read its origins.
        self.configure_receivers();
    }

    /// The stream is deleted: whoever waits for messages is told.
    pub fn stream_deleted(&self) {
        self.receivers.leave();
        self.end(Ended::Deleted);
    }

    /// This node stops without a successor that is known: whoever waits for messages is told.
    pub fn node_stops(&self) {
        self.end(Ended::Stopped);
    }

    /// Another node leads, or nobody.
    pub fn leadership_lost(&self) {
        self.end(Ended::LeadershipLost);
    }

    /// Stops at once, whoever still holds this.
    fn end(&self, why: Ended) {
        self.end_drivers(self.take_drivers(), why);
        self.ingest.close();
        self.receivers.stop();
        self.moved.notify_waiters();
        self.tasks.stop();
    }

    fn take_drivers(&self) -> BTreeMap<ConsumerName, Arc<Driver>> {
        self.awake.lock().clear();
        self.listeners.clear();
        std::mem::take(&mut *self.drivers.write())
    }

    fn end_drivers(&self, drivers: impl IntoIterator<Item = (ConsumerName, Arc<Driver>)>, why: Ended) {
        let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) else {
            return;
        };
        let assignment = replica.assignment();
        let stream = &assignment.config.name;
        for (name, driver) in drivers {
            driver.end(&jetstream, why);
            if why == Ended::Deleted {
                advisory::consumer_action(
                    &jetstream,
                    &assignment.account,
                    stream,
                    name.as_str(),
                    Action::Delete,
                );
            }
        }
    }

    /// Who hears of what.
    pub(crate) fn listeners(&self) -> &Listeners<Arc<Driver>> {
        &self.listeners
    }

    /// From here on a consumer hears of all that is removed.
    pub(crate) fn enter(&self, driver: &Arc<Driver>) {
        let mut awake = self.awake.lock();
        // One that has ended has nothing to hear, and another one may have its name by now.
        if !driver.is_over() {
            awake.insert(driver.name().clone(), Arc::clone(driver));
        }
    }

    /// A consumer has no task any more.
    pub(crate) fn leave(&self, driver: &Arc<Driver>) {
        let mut awake = self.awake.lock();
        // Another one may have its name by now.
        if awake.get(driver.name()).is_some_and(|known| Arc::ptr_eq(known, driver)) {
            awake.remove(driver.name());
        }
    }

    /// A consumer without a task gets one at `due`, or not before something happens.
    pub(crate) fn set_alarm(self: &Arc<Self>, driver: &Driver, due: Option<Timestamp>) {
        if self.alarms.set(driver.name(), due, || driver.is_over()) {
            let watch = Arc::clone(&self.alarms).watch(Arc::downgrade(self), self.clock.clone());
            self.tasks.spawn("consumer alarms", watch);
        }
    }

    /// Gives a consumer a task. May be called while a stream is looked at, so it must not wait for `drivers`.
    pub(crate) fn run_driver(self: &Arc<Self>, driver: &Arc<Driver>) {
        let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) else {
            return;
        };
        self.enter(driver);
        let (guard, driver) = (Vital(Arc::downgrade(self)), Arc::clone(driver));
        let progress = Arc::clone(&self.progress);
        self.tasks.spawn("consumer driver", async move {
            driver.run(jetstream, replica, progress).await;
            guard.disarm();
        });
    }

    fn start_driver(self: &Arc<Self>, name: &ConsumerName, beginning: Beginning) {
        let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) else {
            return;
        };
        if replica.assignment().restoring {
            return;
        }
        let mut drivers = self.drivers.write();
        // One that was deleted and created again has been taken out before.
        if drivers.contains_key(name) {
            return;
        }
        match Driver::new(&jetstream, &replica, self, name, beginning) {
            Ok(Some(driver)) => {
                drivers.insert(name.clone(), Arc::clone(&driver));
                drop(drivers);
                driver.begin(&replica);
            }
            // Created and deleted within one batch of entries.
            Ok(None) => {}
            Err(error) => {
                tracing::error!(
                    "consumer '{name}' of stream '{}' can't start and is tried again: {error}",
                    replica.assignment().config.name
                );
                let (leader, name) = (Arc::downgrade(self), name.clone());
                self.tasks.spawn("start a consumer again", async move {
                    tokio::time::sleep(DRIVER_RETRY).await;
                    if let Some(leader) = leader.upgrade() {
                        leader.start_driver(&name, beginning);
                    }
                });
            }
        }
    }
}

/// Has a leader built again when it is dropped.
struct Vital(Weak<Leader>);

impl Vital {
    fn disarm(mut self) {
        self.0 = Weak::new();
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if let Some(leader) = self.0.upgrade() {
            leader.in_doubt.store(true, Ordering::Release);
            leader.doubt.notify_one();
        }
    }
}

impl Replica {
    /// Has the stream's group decide something. Fails on every node but the leader.
    pub async fn propose(&self, command: &StreamCommand) -> Result<Reply, ProposeError> {
        let (_, reply) = self.group().propose(INLINE, command.encode().into_bytes()).await?;
        Ok(*reply.downcast::<Reply>().expect("a stream machine answers with a Reply"))
    }
}
