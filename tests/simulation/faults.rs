//! What goes wrong, one thing after another, each for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use levee_storage::Table;

use crate::chance::Chance;
use crate::network::Odds;
use crate::streams::Which;
use crate::world::{Host, Loss, World};

/// A kind of fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FaultKind {
    /// A process is killed and started again.
    Kill,
    /// A node loses power, and what it had not synced, or the newer part of it.
    PowerCut,
    /// All nodes lose power at once.
    PowerCutOfAll,
    /// The leader's process is killed.
    KillLeader,
    /// A process stops in order.
    Stop,
    /// A node is gone for long, so that others may forget the log it needs.
    LongAbsence,
    /// A node talks to nobody.
    Isolate,
    /// Two nodes do not talk to each other.
    Partition,
    /// One node is not heard by another, and hears it.
    OneWay,
    /// Connections between two nodes break.
    Reset,
    /// Single messages are lost, late, or come twice.
    BadWeather,
    /// Everything takes long.
    SlowNetwork,
    /// Leadership is handed over.
    Transfer,
    /// A clock jumps.
    Clock,
    /// A disk fails to write, and the process with it.
    BrokenDisk,
    /// A disk takes long to sync.
    SlowDisk,
    /// A disk loses a block that it had synced: only where the oracle is to notice it.
    LostBlock,
}

impl FaultKind {
    const COMMON: [Self; 14] = [
        Self::Kill,
        Self::PowerCut,
        Self::PowerCutOfAll,
        Self::KillLeader,
        Self::Stop,
        Self::Isolate,
        Self::Partition,
        Self::OneWay,
        Self::Reset,
        Self::BadWeather,
        Self::SlowNetwork,
        Self::Transfer,
        Self::Clock,
        Self::BrokenDisk,
    ];

    /// Those that a run can have whose logs are cut.
    pub(crate) fn with_snapshots() -> Vec<Self> {
        [Self::COMMON.as_slice(), &[Self::LongAbsence, Self::LongAbsence]].concat()
    }

    /// Those that a run can have in which nothing waits for the disk on the only thread.
    pub(crate) fn with_slow_disks() -> Vec<Self> {
        [Self::COMMON.as_slice(), &[Self::SlowDisk, Self::SlowDisk]].concat()
    }
}

/// Causes trouble for as long as planned.
pub(crate) async fn trouble(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "faults");
    let until = tokio::time::Instant::now() + world.plan.trouble;
    let mut lasting = tokio::task::JoinSet::new();
    loop {
        tokio::time::sleep(chance.millis(0, world.plan.fault_pause_ms)).await;
        if tokio::time::Instant::now() >= until || world.oracle.violation().is_some() {
            break;
        }
        let kind = chance.pick(&world.plan.faults);
        let fault = Fault { world: Arc::clone(&world), chance: Chance::new(chance.draw(), "fault") };
        world.trace.note(format_args!("fault: {kind:?}"));
        lasting.spawn(fault.happen(kind));
        while lasting.len() > 2 {
            lasting.join_next().await;
        }
    }
    while let Some(ended) = lasting.join_next().await {
        if let Err(panicked) = ended {
            world.oracle.violated(format!("causing trouble failed: {panicked}"));
        }
    }
}

/// One fault, from its beginning to its end.
struct Fault {
    world: Arc<World>,
    chance: Chance,
}

impl Fault {
    async fn happen(mut self, kind: FaultKind) {
        let world = Arc::clone(&self.world);
        let host = self.any_host();
        match kind {
            FaultKind::Kill => self.gone_for(&host, Loss::Nothing, 3000).await,
            FaultKind::PowerCut => {
                let loss = self.loss();
                self.gone_for(&host, loss, 3000).await;
            }
            FaultKind::PowerCutOfAll => self.all_lose_power().await,
            FaultKind::KillLeader => {
                let leader = world.leading(self.any_stream()).map_or(host, |(leader, _)| leader);
                self.gone_for(&leader, Loss::Nothing, 3000).await;
            }
            FaultKind::LongAbsence => {
                let loss = self.loss();
                self.gone_for(&host, loss, 12_000).await;
            }
            FaultKind::Stop => {
                world.stop(&host).await;
                self.pause(10, 2000).await;
                world.start(&host).await;
            }
            FaultKind::Isolate => {
                world.network.isolate(host.id);
                self.pause(100, 4000).await;
                world.network.heal();
            }
            FaultKind::Partition => {
                world.network.partition(host.id, self.other(&host).id);
                self.pause(100, 4000).await;
                world.network.heal();
            }
            FaultKind::OneWay => {
                world.network.block(host.id, self.other(&host).id);
                self.pause(100, 4000).await;
                world.network.heal();
            }
            FaultKind::Reset => world.network.reset(host.id, self.other(&host).id),
            FaultKind::BadWeather => {
                let mut odds = || self.chance.pick(&[0, 0, 10, 60, 200]);
                world.weather.set(Odds { lost: odds() / 4, broken: odds(), late: odds(), twice: odds() });
                self.pause(500, 6000).await;
                world.weather.set(Odds::default());
            }
            FaultKind::SlowNetwork => {
                let most = Duration::from_millis(self.chance.pick(&[50, 150, 500]));
                world.network.set_delay(most / 5, most);
                self.pause(500, 4000).await;
                world.network.set_delay(world.plan.delay.0, world.plan.delay.1);
            }
            FaultKind::Transfer => {
                let which = self.any_stream();
                if let Some((_, process)) = world.leading(which) {
                    let _ = process.stream(which).group.transfer(host.id).await;
                }
            }
            FaultKind::Clock => {
                let skew = i64::try_from(self.chance.between(0, 4_000_000_000)).unwrap_or(0) - 2_000_000_000;
                host.skew.store(skew, Ordering::Relaxed);
            }
            FaultKind::BrokenDisk => {
                host.disk.fail_after(Some(self.chance.below(20)));
                self.pause(100, 3000).await;
                host.disk.fail_after(None);
                // A store that failed says so and takes nothing more; whoever runs the node starts it again.
                if host.process().is_some_and(|process| process.storage.failed().is_some()) {
                    let loss = self.loss();
                    self.gone_for(&host, loss, 1000).await;
                }
            }
            FaultKind::SlowDisk => self.slow_disk(&host).await,
            FaultKind::LostBlock => {
                host.disk.lose_row(Table::Blocks, self.chance.draw());
            }
        }
    }

    async fn gone_for(&mut self, host: &Arc<Host>, loss: Loss, most_ms: u64) {
        self.world.crash(host, loss).await;
        self.pause(1, most_ms).await;
        self.world.start(host).await;
    }

    async fn all_lose_power(&mut self) {
        let hosts = self.world.hosts.clone();
        for host in &hosts {
            let loss = self.loss();
            self.world.crash(host, loss).await;
        }
        for host in &hosts {
            self.pause(1, 500).await;
            self.world.start(host).await;
        }
    }

    /// Holds writes back, and lets some through now and then.
    async fn slow_disk(&mut self, host: &Arc<Host>) {
        let rounds = self.chance.between(1, 30);
        for _ in 0..rounds {
            host.disk.pause();
            self.pause(5, 120).await;
            if let Some(process) = host.process() {
                process.storage.step();
            }
        }
        host.disk.resume();
        if let Some(process) = host.process() {
            while process.storage.step() {}
        }
    }

    fn loss(&mut self) -> Loss {
        Loss::AllBut(self.chance.pick(&[0, 0, 30, 70, 100]))
    }

    fn any_host(&mut self) -> Arc<Host> {
        let at = self.chance.below(self.world.hosts.len() as u64);
        Arc::clone(&self.world.hosts[usize::try_from(at).unwrap_or(0)])
    }

    fn any_stream(&mut self) -> Which {
        let streams: Vec<Which> = self.world.oracles.keys().copied().collect();
        self.chance.pick(&streams)
    }

    fn other(&mut self, host: &Host) -> Arc<Host> {
        loop {
            let other = self.any_host();
            if other.id != host.id {
                return other;
            }
        }
    }

    async fn pause(&mut self, low_ms: u64, high_ms: u64) {
        let pause = self.chance.millis(low_ms, high_ms);
        tokio::time::sleep(pause).await;
    }
}
