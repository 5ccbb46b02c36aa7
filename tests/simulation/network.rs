//! What goes wrong with single messages between nodes: lost, late, twice. It sits between a node's groups and its
//! way into the network of the process, which keeps order and knows partitions.
//!
//! A message that is late is overtaken by later ones, as when a connection breaks and what it still carried is taken
//! in after what the next one brought. One that comes twice comes again when nobody waits for its answer any more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use levee_protocol::ids::NodeId;
use levee_raft::transport::{Answer, Frame, Lane, Receiver, TransportError};
use levee_raft::{LocalTransport, Transport};
use parking_lot::Mutex;

use crate::chance::Chance;

/// How often messages fare badly, in a thousand. Shared by all nodes.
#[derive(Default)]
pub(crate) struct Weather(Mutex<Odds>);

/// Chances in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Odds {
    /// Never arrives, and nobody is told.
    pub(crate) lost: u64,
    /// The connection breaks instead.
    pub(crate) broken: u64,
    /// Arrives later than what is sent after it.
    pub(crate) late: u64,
    /// Arrives a second time, later.
    pub(crate) twice: u64,
}

impl Weather {
    /// From now on.
    pub(crate) fn set(&self, odds: Odds) {
        *self.0.lock() = odds;
    }
}

/// One process's way into the network.
pub(crate) struct BadTransport {
    inner: Arc<LocalTransport>,
    weather: Arc<Weather>,
    /// One sequence for each way, so that draws on one do not move those on another.
    chances: Mutex<BTreeMap<(NodeId, bool), Chance>>,
    seed: u64,
    name: String,
    dead: AtomicBool,
}

impl BadTransport {
    /// A way for one incarnation of a node, which `name` names.
    pub(crate) fn new(
        inner: Arc<LocalTransport>,
        weather: Arc<Weather>,
        seed: u64,
        name: String,
    ) -> Arc<Self> {
        Arc::new(Self { inner, weather, chances: Mutex::default(), seed, name, dead: AtomicBool::new(false) })
    }

    /// The process is gone and sends nothing more.
    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    fn fate(&self, to: NodeId, lane: Lane) -> Fate {
        let odds = *self.weather.0.lock();
        let bulk = lane == Lane::Bulk;
        let mut chances = self.chances.lock();
        let chance = chances
            .entry((to, bulk))
            .or_insert_with(|| Chance::new(self.seed, &format!("{} to {to} {bulk}", self.name)));
        let drawn = chance.below(1000);
        let later = chance.millis(1, 400);
        let bounds = [odds.lost, odds.broken, odds.late, odds.twice];
        let mut bound = 0;
        for (share, fate) in
            bounds.into_iter().zip([Fate::Lost, Fate::Broken, Fate::Late(later), Fate::Twice(later)])
        {
            bound += share;
            if drawn < bound {
                return fate;
            }
        }
        Fate::Arrives
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Arrives,
    Lost,
    Broken,
    Late(Duration),
    Twice(Duration),
}

impl Transport for BadTransport {
    fn start(&self, receiver: Weak<dyn Receiver>) {
        self.inner.start(receiver);
    }

    fn call(&self, to: NodeId, lane: Lane, frame: Frame) -> Answer {
        if self.dead.load(Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err(TransportError::Disconnected)));
        }
        match self.fate(to, lane) {
            Fate::Arrives => self.inner.call(to, lane, frame),
            Fate::Lost => Box::pin(std::future::pending()),
            Fate::Broken => Box::pin(std::future::ready(Err(TransportError::Disconnected))),
            Fate::Late(later) => {
                let inner = Arc::clone(&self.inner);
                let late = tokio::spawn(async move {
                    tokio::time::sleep(later).await;
                    inner.call(to, lane, frame).await
                });
                Box::pin(async move { late.await.unwrap_or(Err(TransportError::Disconnected)) })
            }
            Fate::Twice(later) => {
                let (inner, again) = (Arc::clone(&self.inner), frame.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(later).await;
                    let _ = inner.call(to, lane, again).await;
                });
                self.inner.call(to, lane, frame)
            }
        }
    }

    fn stop(&self) {
        self.inner.stop();
    }
}
