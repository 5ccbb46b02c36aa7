//! A network within the process, for tests and simulation, with faults controlled from outside.
//!
//! It behaves like connections: what is sent arrives in order, or the connection breaks and every call under way
//! fails. A partition is silence: calls hang until it heals or the caller gives up. Delays and resets are drawn from
//! a seed.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use levee_protocol::ids::NodeId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Answer, Frame, Lane, PeerSign, Receiver, Transport, TransportError};
use crate::tasks::spawn;

/// The network that [`LocalTransport`]s of one test share.
pub struct LocalNetwork {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    receivers: HashMap<NodeId, Weak<dyn Receiver>>,
    blocked: HashSet<(NodeId, NodeId)>,
    ways: HashMap<Way, Arc<Connection>>,
    delay: Option<(Duration, Duration)>,
    resets_per_million: u32,
    chance: u64,
}

#[derive(Clone, Copy, Eq, Hash, PartialEq)]
struct Way {
    from: NodeId,
    to: NodeId,
    lane: Lane,
}

struct Connection {
    /// Goes up when the connection breaks.
    breaks: watch::Sender<u64>,
    queue: mpsc::Sender<Queued>,
    last_arrival: Mutex<Instant>,
}

struct Queued {
    arrives: Instant,
    frame: Frame,
    answer: oneshot::Sender<Frame>,
}

/// Calls that wait for their delay, per way; more are refused.
const QUEUE: usize = 65_536;

impl LocalNetwork {
    /// A network without faults. Everything random in it comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { chance: seed, ..State::default() }) })
    }

    /// A node's way into it. A node that was killed comes back with a new one.
    #[must_use]
    pub fn transport(self: &Arc<Self>, node: NodeId) -> Arc<LocalTransport> {
        Arc::new(LocalTransport { network: Arc::clone(self), node, receiver: OnceLock::new() })
    }

    /// Silence between two nodes, both ways.
    pub fn partition(&self, one: NodeId, other: NodeId) {
        let mut state = self.state.lock();
        state.blocked.insert((one, other));
        state.blocked.insert((other, one));
    }

    /// What `from` sends to `to` is lost; the other way works.
    pub fn block(&self, from: NodeId, to: NodeId) {
        self.state.lock().blocked.insert((from, to));
    }

    /// Silence between a node and all others.
    pub fn isolate(&self, node: NodeId) {
        let others: Vec<_> =
            self.state.lock().receivers.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.partition(node, other);
        }
    }

    /// Ends all partitions. Calls that were lost in them fail now.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        let blocked = std::mem::take(&mut state.blocked);
        state
            .break_ways(|way| blocked.contains(&(way.from, way.to)) || blocked.contains(&(way.to, way.from)));
    }

    /// Every frame takes between `min` and `max` from now on. Order is kept.
    pub fn set_delay(&self, min: Duration, max: Duration) {
        self.state.lock().delay = (max > Duration::ZERO).then_some((min, max.max(min)));
    }

    /// Of a million frames, how many break their connection instead of arriving.
    pub fn set_resets(&self, per_million: u32) {
        self.state.lock().resets_per_million = per_million;
    }

    /// Breaks the connections between two nodes. They connect again at once.
    pub fn reset(&self, one: NodeId, other: NodeId) {
        let pair = [one, other];
        self.state.lock().break_ways(|way| pair.contains(&way.from) && pair.contains(&way.to));
    }

    /// The process of a node ends: its connections break and the others see that its address refuses new ones.
    pub fn kill(&self, node: NodeId) {
        let others: Vec<_> = {
            let mut state = self.state.lock();
            if state.receivers.remove(&node).is_none() {
                return;
            }
            state.break_ways(|way| way.from == node || way.to == node);
            let reachable = |other: &NodeId| !state.blocked.contains(&(node, *other));
            let others = state.receivers.iter().filter(|(other, _)| reachable(other));
            others.filter_map(|(_, receiver)| receiver.upgrade()).collect()
        };
        for other in others {
            other.sign(node, PeerSign::Died);
        }
    }

    fn connection(self: &Arc<Self>, state: &mut State, way: Way) -> Arc<Connection> {
        if let Some(connection) = state.ways.get(&way) {
            return Arc::clone(connection);
        }
        let (queue, queued) = mpsc::channel(QUEUE);
        let connection = Arc::new(Connection {
            breaks: watch::Sender::new(0),
            queue,
            last_arrival: Mutex::new(Instant::now()),
        });
        state.ways.insert(way, Arc::clone(&connection));
        spawn("local link", deliver_late(Arc::downgrade(self), way, queued));
        connection
    }

    fn receiver(&self, way: Way) -> Option<Arc<dyn Receiver>> {
        let state = self.state.lock();
        if state.blocked.contains(&(way.from, way.to)) {
            return None;
        }
        state.receivers.get(&way.to).and_then(Weak::upgrade)
    }

    fn is_blocked(&self, from: NodeId, to: NodeId) -> bool {
        self.state.lock().blocked.contains(&(from, to))
    }

    fn draw_delay(&self) -> Duration {
        self.state.lock().draw_delay().unwrap_or_default()
    }
}

impl State {
    fn break_ways(&self, broken: impl Fn(&Way) -> bool) {
        for (_, connection) in self.ways.iter().filter(|(way, _)| broken(way)) {
            connection.breaks.send_modify(|breaks| *breaks += 1);
        }
    }

    /// splitmix64: enough for delays, and the same on every machine.
    fn draw(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn draw_delay(&mut self) -> Option<Duration> {
        let (min, max) = self.delay?;
        let span = u64::try_from((max - min).as_micros()).unwrap_or(u64::MAX).max(1);
        Some(min + Duration::from_micros(self.draw() % span))
    }

    fn draw_reset(&mut self) -> bool {
        self.resets_per_million > 0 && self.draw() % 1_000_000 < u64::from(self.resets_per_million)
    }
}

/// One node's end of a [`LocalNetwork`].
pub struct LocalTransport {
    network: Arc<LocalNetwork>,
    node: NodeId,
    receiver: OnceLock<Weak<dyn Receiver>>,
}

impl Transport for LocalTransport {
    fn start(&self, receiver: Weak<dyn Receiver>) {
        let others: Vec<_> = {
            let mut state = self.network.state.lock();
            let _ = self.receiver.set(Weak::clone(&receiver));
            state.receivers.insert(self.node, receiver);
            let others = state.receivers.iter().filter(|(other, _)| **other != self.node);
            others.filter_map(|(_, receiver)| receiver.upgrade()).collect()
        };
        for other in others {
            other.sign(self.node, PeerSign::Up);
        }
    }

    fn call(&self, to: NodeId, lane: Lane, frame: Frame) -> Answer {
        let way = Way { from: self.node, to, lane };
        let mut state = self.network.state.lock();
        if !state.receivers.contains_key(&self.node) || !state.receivers.contains_key(&to) {
            return refused(TransportError::Disconnected);
        }
        let connection = self.network.connection(&mut state, way);
        if state.draw_reset() {
            connection.breaks.send_modify(|breaks| *breaks += 1);
            return refused(TransportError::Disconnected);
        }
        let blocked = state.blocked.contains(&(way.from, way.to));
        let delay = state.draw_delay();
        drop(state);

        let mut breaks = connection.breaks.subscribe();
        breaks.mark_unchanged();
        if blocked {
            return until_broken(breaks, std::future::pending());
        }
        let network = Arc::clone(&self.network);
        let Some(delay) = delay else {
            let Some(receiver) = self.network.receiver(way) else {
                return refused(TransportError::Disconnected);
            };
            let answering = receiver.receive(way.from, frame);
            return until_broken(breaks, async move {
                let answer = answering.await;
                if network.is_blocked(way.to, way.from) {
                    std::future::pending::<()>().await;
                }
                answer
            });
        };
        let arrives = {
            let mut last = connection.last_arrival.lock();
            *last = (*last).max(Instant::now() + delay);
            *last
        };
        let (answer, answered) = oneshot::channel();
        if connection.queue.try_send(Queued { arrives, frame, answer }).is_err() {
            return refused(TransportError::Full);
        }
        until_broken(breaks, async move {
            match answered.await {
                Ok(answer) => answer,
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn stop(&self) {
        // The node may be back already, with another transport.
        let ours = self.receiver.get();
        let still = self.network.state.lock().receivers.get(&self.node).cloned();
        if ours.zip(still).is_some_and(|(ours, still)| ours.ptr_eq(&still)) {
            self.network.kill(self.node);
        }
    }
}

fn refused(error: TransportError) -> Answer {
    Box::pin(std::future::ready(Err(error)))
}

fn until_broken(
    mut breaks: watch::Receiver<u64>,
    answer: impl Future<Output = Frame> + Send + 'static,
) -> Answer {
    Box::pin(async move {
        tokio::select! {
            biased;
            _ = breaks.changed() => Err(TransportError::Disconnected),
            answer = answer => Ok(answer),
        }
    })
}

async fn deliver_late(network: Weak<LocalNetwork>, way: Way, mut queued: mpsc::Receiver<Queued>) {
    while let Some(Queued { arrives, frame, answer }) = queued.recv().await {
        tokio::time::sleep_until(arrives).await;
        let Some(network) = network.upgrade() else { return };
        // Lost in a partition: the caller keeps waiting.
        let Some(receiver) = network.receiver(way) else { continue };
        let answering = receiver.receive(way.from, frame);
        spawn("local answer", async move {
            let frame = answering.await;
            tokio::time::sleep(network.draw_delay()).await;
            if !network.is_blocked(way.to, way.from) {
                let _ = answer.send(frame);
            }
        });
    }
}
