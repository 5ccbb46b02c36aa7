//! What one run is like: the stream's limits, the timing of the groups, and which faults there are. All of it drawn
//! from the seed, so that few seeds see many combinations.

use std::time::Duration;

use levee_protocol::api::{DiscardPolicy, StreamConfig};
use levee_protocol::time::Nanos;
use levee_raft::Config;

use super::chance::Chance;
use super::faults::FaultKind;

/// One run's circumstances.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The stream as it is created.
    pub stream: StreamConfig,
    /// Timing and bounds of the groups.
    pub raft: Config,
    /// What goes wrong; a kind that is listed twice goes wrong more often.
    pub faults: Vec<FaultKind>,
    /// How long things go wrong.
    pub trouble: Duration,
    /// Longest pause between two faults, in milliseconds.
    pub fault_pause_ms: u64,
    /// Publishers that wait for each answer.
    pub publishers: u64,
    /// Longest pause of a publisher between two batches, in milliseconds.
    pub publish_pause_ms: u64,
    /// Base delay of the network.
    pub delay: (Duration, Duration),
    /// Whether leaders stamp commands without looking at the stream's clock, so that times run backwards in the log.
    pub stamps_run_back: bool,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "plan");
        // Snapshots and disks that hold writes back exclude each other: an import waits for its writes on the one
        // thread that could also let the disk go on.
        let snapshots = chance.percent(50);
        let mut kinds = if snapshots { FaultKind::WITH_SNAPSHOTS.to_vec() } else { FaultKind::WITH_SLOW_DISKS.to_vec() };
        let left = chance.between(2, kinds.len() as u64);
        while (kinds.len() as u64) < 40 {
            kinds.push(chance.pick(&kinds));
        }
        let mut faults: Vec<FaultKind> = (0..left * 2).map(|_| chance.pick(&kinds)).collect();
        faults.push(FaultKind::PowerCut);
        faults.push(FaultKind::Isolate);
        let quick = chance.percent(50);
        let millis = Duration::from_millis;
        let delay = chance.pick(&[(0, 2), (1, 5), (5, 40)]);
        Self {
            stream: stream(&mut chance),
            raft: Config {
                heartbeat: if quick { millis(60) } else { millis(200) },
                election_min: if quick { millis(250) } else { millis(600) },
                election_max: if quick { millis(400) } else { millis(900) },
                majority_lost_after: if quick { millis(900) } else { millis(1800) },
                append_timeout: chance.pick(&[millis(500), Duration::from_secs(3), Duration::from_secs(15)]),
                checkpoint_after: chance.pick(&[millis(50), millis(200), millis(1000)]),
                checkpoint_bytes: chance.pick(&[4 << 10, 16 << 20]),
                append_entries: chance.pick(&[4, 64, 1024]),
                append_bytes: chance.pick(&[512, 16 << 10, 1 << 20]),
                appends_in_flight: chance.pick(&[1, 4, 16]),
                keep_entries: if snapshots { chance.pick(&[1, 8, 64]) } else { 1 << 40 },
                keep_bytes: 1 << 40,
                keep_lagging_bytes: if snapshots { chance.pick(&[1 << 10, 32 << 10]) } else { 1 << 40 },
                purge_batch: if snapshots { chance.pick(&[4, 16, 64]) } else { 1 << 40 },
                snapshot_chunks_in_flight: chance.pick(&[1, 4]),
                snapshot_timeout: Duration::from_secs(5),
                ..Config::default()
            },
            faults,
            trouble: chance.millis(12_000, 30_000),
            fault_pause_ms: chance.pick(&[300, 1000, 3000]),
            publishers: chance.between(2, 5),
            publish_pause_ms: chance.pick(&[5, 40, 150]),
            delay: (millis(delay.0), millis(delay.1)),
            stamps_run_back: chance.percent(25),
        }
    }
}

fn stream(chance: &mut Chance) -> StreamConfig {
    let unlimited = [-1, -1, -1];
    let discard = if chance.percent(25) { DiscardPolicy::New } else { DiscardPolicy::Old };
    let mut config = StreamConfig {
        name: "SIM".to_owned(),
        subjects: vec!["sim.>".to_owned()],
        max_consumers: -1,
        max_msgs: chance.pick(&[-1, -1, 50, 400]),
        max_bytes: chance.pick(&[-1, -1, 20_000]),
        max_msgs_per_subject: chance.pick(&unlimited).max(chance.pick(&[-1, -1, 1, 5, 70])),
        discard,
        num_replicas: 3,
        // Longer than a run and all its clock jumps: a publish that is tried again always finds its id.
        duplicate_window: Nanos::from_secs(3600),
        ..StreamConfig::default()
    };
    if discard == DiscardPolicy::Old {
        config.max_age = Nanos::from_millis(chance.pick(&[0, 0, 0, 2000, 8000]));
    }
    config
}
