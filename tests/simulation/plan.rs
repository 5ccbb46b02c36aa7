//! What one run is like: the stream's limits, the timing of the groups, and which faults there are. All of it drawn
//! from the seed, so that few seeds see many combinations.

use std::time::Duration;

use levee_protocol::api::{
    AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, SourceConsumer, StreamConfig, StreamSource,
};
use levee_protocol::time::Nanos;
use levee_raft::Config;

use crate::attached;
use crate::chance::Chance;
use crate::consumers;
use crate::faults::FaultKind;
use crate::letters;
use crate::model::WINDOW_BEYOND_RETRIES;
use crate::streams::Which;

/// What is broken on purpose, to see the oracle notice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Breakage {
    /// Nothing.
    None,
    /// The log acknowledges what it has not synced.
    AckBeforeSync,
    /// A publisher that tries again leaves the message id out.
    RetryWithoutId,
    /// One replica removes another message than it was told.
    OneReplicaDiffers,
    /// Stored blocks vanish from one disk.
    DiskForgetsBlocks,
    /// Readers do not ask who leads before they look.
    ReadWithoutBarrier,
    /// Leaders confirm acks and do nothing else about them.
    AcksAreForgotten,
    /// Leaders do not send some of what they mark as delivered.
    DeliveriesAreSkipped,
    /// Dead letters are said to be stored, and are not.
    LettersAreLost,
    /// Leaders know no keys, no `max_deliver` and no `max_ack_pending`.
    LeadersForgetOptions,
    /// Leaders do not hear of pauses and updates.
    ChangesAreForgotten,
    /// Leaders do not hear of resets.
    ResetsAreForgotten,
    /// A client of a counter that tries again says that it is another increment.
    RetriesCountAgain,
    /// Leaders take a part of a batch for all of it.
    BatchesAreTorn,
    /// Leaders do not say that messages of a batch depend on those before them.
    ChainsAreLoose,
    /// Leaders tell publishers of fast batches that messages are stored when they are proposed.
    OutcomesAreAssumed,
    /// Leaders do not look at schedules.
    SchedulesAreForgotten,
    /// Leaders have one message in clients' hands at a time, whatever is configured.
    LeadersAreMean,
    /// Origins leave messages out of what they answer.
    OriginForgets,
    /// Whoever restores a stream leaves out a part of the archive.
    RestoreLeavesOut,
    /// Readers answer flow control before they have stored what came.
    AnswersAreEarly,
    /// Readers do not look at the numbers of what a consumer delivers to them.
    GapsAreOverlooked,
}

impl Breakage {
    /// All of them.
    pub(crate) const ALL: [Self; 22] = [
        Self::None,
        Self::AckBeforeSync,
        Self::RetryWithoutId,
        Self::OneReplicaDiffers,
        Self::DiskForgetsBlocks,
        Self::ReadWithoutBarrier,
        Self::AcksAreForgotten,
        Self::DeliveriesAreSkipped,
        Self::LettersAreLost,
        Self::LeadersForgetOptions,
        Self::ChangesAreForgotten,
        Self::ResetsAreForgotten,
        Self::RetriesCountAgain,
        Self::BatchesAreTorn,
        Self::ChainsAreLoose,
        Self::OutcomesAreAssumed,
        Self::SchedulesAreForgotten,
        Self::LeadersAreMean,
        Self::OriginForgets,
        Self::RestoreLeavesOut,
        Self::AnswersAreEarly,
        Self::GapsAreOverlooked,
    ];

    /// A word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AckBeforeSync => "ack-before-sync",
            Self::RetryWithoutId => "retry-without-id",
            Self::OneReplicaDiffers => "one-replica-differs",
            Self::DiskForgetsBlocks => "disk-forgets-blocks",
            Self::ReadWithoutBarrier => "read-without-barrier",
            Self::AcksAreForgotten => "acks-are-forgotten",
            Self::DeliveriesAreSkipped => "deliveries-are-skipped",
            Self::LettersAreLost => "letters-are-lost",
            Self::LeadersForgetOptions => "leaders-forget-options",
            Self::ChangesAreForgotten => "changes-are-forgotten",
            Self::ResetsAreForgotten => "resets-are-forgotten",
            Self::RetriesCountAgain => "retries-count-again",
            Self::BatchesAreTorn => "batches-are-torn",
            Self::ChainsAreLoose => "chains-are-loose",
            Self::OutcomesAreAssumed => "outcomes-are-assumed",
            Self::SchedulesAreForgotten => "schedules-are-forgotten",
            Self::LeadersAreMean => "leaders-are-mean",
            Self::OriginForgets => "origin-forgets",
            Self::RestoreLeavesOut => "restore-leaves-out",
            Self::AnswersAreEarly => "answers-are-early",
            Self::GapsAreOverlooked => "gaps-are-overlooked",
        }
    }
}

/// One run's circumstances.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The stream as it is created.
    pub(crate) stream: StreamConfig,
    /// Its consumers.
    pub(crate) consumers: Vec<ConsumerConfig>,
    /// Whether they are reset, and deleted and made again.
    pub(crate) begins_again: bool,
    /// Clients of each consumer.
    pub(crate) subscribers: u64,
    /// Percent of what is sent to and by clients of consumers that is lost, while there is trouble.
    pub(crate) client_loss: u64,
    /// Whether there are streams that mirror and source others.
    pub(crate) copies: bool,
    /// Consumers made by hand, through which some of those read the first stream.
    pub(crate) attached: Vec<(Which, ConsumerConfig)>,
    /// Streams with publishers of their own.
    pub(crate) further: Vec<Which>,
    /// Increments of each counter that are kept.
    counted: i64,
    /// Whether one is filled from an archive.
    pub(crate) restores: bool,
    /// Percent of the messages that ask for an end of their own, or for the end of those before them.
    pub(crate) asking: u64,
    /// Timing and bounds of the groups.
    pub(crate) raft: Config,
    /// What goes wrong; a kind that is listed twice goes wrong more often.
    pub(crate) faults: Vec<FaultKind>,
    /// How long things go wrong.
    pub(crate) trouble: Duration,
    /// Longest pause between two faults, in milliseconds.
    pub(crate) fault_pause_ms: u64,
    /// Publishers that wait for each answer.
    pub(crate) publishers: u64,
    /// Longest pause of a publisher between two batches, in milliseconds.
    pub(crate) publish_pause_ms: u64,
    /// Base delay of the network.
    pub(crate) delay: (Duration, Duration),
    /// Whether leaders stamp commands without looking at the stream's clock, so that times run backwards in the log.
    pub(crate) stamps_run_back: bool,
    /// Whether nothing of the run happens on other threads, so that it repeats byte for byte. Snapshots are read on
    /// threads of their own: which of two things of one moment comes first is then up to the scheduler.
    pub(crate) repeats_exactly: bool,
    /// What is broken on purpose.
    pub(crate) breakage: Breakage,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn draw(seed: u64, breakage: Breakage) -> Self {
        let mut chance = Chance::new(seed, "plan");
        // Snapshots and disks that hold writes back exclude each other: an import waits for its writes on the one
        // thread that could also let the disk go on.
        let snapshots = chance.percent(50);
        let kinds = if snapshots { FaultKind::with_snapshots() } else { FaultKind::with_slow_disks() };
        // Few kinds often, or many: a run of nothing but power cuts finds other things than one of everything.
        let mut faults: Vec<FaultKind> = (0..chance.between(2, 20)).map(|_| chance.pick(&kinds)).collect();
        faults.push(FaultKind::PowerCut);
        faults.push(FaultKind::Isolate);
        if breakage == Breakage::DiskForgetsBlocks {
            faults.extend([FaultKind::LostBlock; 20]);
        }
        if breakage == Breakage::AckBeforeSync {
            faults.extend([FaultKind::PowerCutOfAll; 20]);
        }
        let quick = chance.percent(50);
        let millis = Duration::from_millis;
        let delay = chance.pick(&[(0, 2), (1, 5), (5, 40)]);
        Self {
            stream: stream(&mut chance),
            raft: Config {
                heartbeat: if quick { millis(60) } else { millis(200) },
                election_min: if quick { millis(250) } else { millis(600) },
                election_max: if quick { millis(400) } else { millis(900) },
                group_heartbeat: if quick { millis(500) } else { millis(5000) },
                majority_lost_after: if quick { millis(900) } else { millis(1800) },
                append_timeout: chance.pick(&[millis(500), Duration::from_secs(3), Duration::from_secs(15)]),
                checkpoint_after: chance.pick(&[millis(50), millis(200), millis(1000)]),
                checkpoint_bytes: chance.pick(&[4 << 10, 16 << 20]),
                checkpoint_rows: if quick { 4 } else { 4096 },
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
            repeats_exactly: !snapshots,
            consumers: consumers::draw(&mut chance),
            begins_again: false,
            further: Vec::new(),
            counted: -1,
            subscribers: chance.between(1, 3),
            client_loss: chance.pick(&[0, 0, 2, 10]),
            asking: 0,
            restores: chance.percent(40) || breakage == Breakage::RestoreLeavesOut,
            copies: chance.percent(50) || breakage == Breakage::OriginForgets || attaches(breakage),
            attached: Vec::new(),
            breakage,
        }
        .varied(&mut chance)
        .extended(&mut Chance::new(seed, "what else is in the plan"))
        .attached(&mut Chance::new(seed, "consumers made by hand"))
    }

    /// What else there is, in some runs.
    fn extended(mut self, chance: &mut Chance) -> Self {
        self.begins_again = chance.percent(40) || self.breakage == Breakage::ResetsAreForgotten;
        let kinds = [
            (Which::Counters, Breakage::RetriesCountAgain),
            (Which::Batches, Breakage::BatchesAreTorn),
            (Which::Batches, Breakage::ChainsAreLoose),
            (Which::Batches, Breakage::OutcomesAreAssumed),
            (Which::Schedules, Breakage::SchedulesAreForgotten),
        ];
        for (which, breakage) in kinds {
            let is_drawn = chance.percent(25) && self.breakage == Breakage::None;
            if (is_drawn || self.breakage == breakage) && !self.further.contains(&which) {
                self.further.push(which);
            }
        }
        self.counted = chance.pick(&[-1, 1, 5]);
        self
    }

    /// Copies through consumers made by hand, in some runs.
    fn attached(mut self, chance: &mut Chance) -> Self {
        let is_drawn = chance.percent(60) && self.breakage == Breakage::None;
        // The model of interest knows no ack floors, to which readers have their consumers reset.
        let can_be = self.copies && self.stream.retention != RetentionPolicy::Interest;
        if !can_be || !(is_drawn || attaches(self.breakage)) {
            return self;
        }
        let mut copies = vec![Which::Mirror, Which::Sourced];
        match chance.below(3) {
            0 => drop(copies.pop()),
            1 => drop(copies.remove(0)),
            _ => {}
        }
        if self.stream.retention == RetentionPolicy::WorkQueue {
            copies.truncate(1);
            self.consumers.clear();
        }
        self.attached = copies.into_iter().map(|copy| (copy, attached::config(copy, chance))).collect();
        if self.breakage == Breakage::GapsAreOverlooked {
            self.client_loss = 30;
        }
        self
    }

    /// Every consumer of the first stream.
    pub(crate) fn all_consumers(&self) -> impl Iterator<Item = &ConsumerConfig> {
        self.consumers.iter().chain(self.attached.iter().map(|(_, config)| config))
    }

    /// How a copy reads one of its origins.
    pub(crate) fn source(&self, copy: Which, origin: Which) -> StreamSource {
        let attached = self.attached.iter().find(|(of, _)| *of == copy && origin == Which::Origin);
        StreamSource {
            name: origin.name().to_owned(),
            consumer: attached.map(|(_, config)| SourceConsumer {
                name: config.name.clone(),
                deliver_subject: config.deliver_subject.clone(),
            }),
            ..StreamSource::default()
        }
    }

    /// Further rules of the stream, in some runs.
    fn varied(mut self, chance: &mut Chance) -> Self {
        if chance.percent(40) {
            self.stream.allow_msg_ttl = true;
            self.stream.allow_rollup_hdrs = true;
            // Whether a message that rolls up finds room is another rule.
            self.stream.discard = DiscardPolicy::Old;
            self.asking = chance.pick(&[2, 10, 30]);
        }
        if chance.percent(25) {
            self.stream.retention = RetentionPolicy::WorkQueue;
            let explicit = |config: &ConsumerConfig| config.ack_policy == AckPolicy::Explicit;
            // Consumers of a work queue share nothing: one will do.
            self.consumers.retain(explicit);
            self.consumers.truncate(1);
        } else if chance.percent(25) && self.breakage == Breakage::None {
            self.stream.retention = RetentionPolicy::Interest;
            self.consumers.retain(|config| config.ack_policy == AckPolicy::Explicit);
        }
        // What is stored twice can't be told apart in copies.
        if chance.percent(20) && !self.copies && self.breakage == Breakage::None {
            self.stream.duplicate_window = Nanos::from_millis(chance.pick(&[200, 1000, 5000]));
        }
        self
    }

    /// The streams there are.
    pub(crate) fn streams(&self) -> Vec<Which> {
        let dies = |config: &ConsumerConfig| config.metadata.contains_key("levee.dead_letter");
        let dead = self.consumers.iter().any(dies).then_some(Which::Dead);
        let copies = [Which::Mirror, Which::Sourced].into_iter().filter(|_| self.copies);
        let restored = self.restores.then_some(Which::Restored);
        let first = [Which::Origin].into_iter().chain(dead).chain(copies).chain(restored);
        first.chain(self.further.iter().copied()).collect()
    }

    /// A stream as it is created.
    pub(crate) fn config(&self, which: Which) -> StreamConfig {
        match which {
            Which::Origin => self.stream.clone(),
            Which::Dead => StreamConfig {
                name: which.name().to_owned(),
                subjects: vec![letters::SUBJECT.to_owned()],
                num_replicas: 3,
                duplicate_window: Nanos::from_secs(3600),
                ..unlimited()
            },
            Which::Mirror => StreamConfig {
                name: which.name().to_owned(),
                num_replicas: 3,
                mirror: Some(self.source(which, Which::Origin)),
                ..unlimited()
            },
            Which::Restored => StreamConfig {
                name: which.name().to_owned(),
                subjects: self.stream.subjects.clone(),
                num_replicas: 3,
                ..unlimited()
            },
            Which::Sourced => StreamConfig {
                name: which.name().to_owned(),
                num_replicas: 3,
                sources: self
                    .streams()
                    .into_iter()
                    .filter(|it| which.may_copy().contains(it))
                    .map(|origin| self.source(which, origin))
                    .collect(),
                ..unlimited()
            },
            Which::Counters => StreamConfig {
                name: which.name().to_owned(),
                subjects: vec!["count.*".to_owned()],
                num_replicas: 3,
                duplicate_window: WINDOW_BEYOND_RETRIES,
                allow_msg_counter: true,
                max_msgs_per_subject: self.counted,
                ..unlimited()
            },
            Which::Batches => StreamConfig {
                name: which.name().to_owned(),
                subjects: vec!["batch.*".to_owned()],
                num_replicas: 3,
                duplicate_window: WINDOW_BEYOND_RETRIES,
                allow_atomic: true,
                allow_batched: true,
                ..unlimited()
            },
            Which::Schedules => StreamConfig {
                name: which.name().to_owned(),
                subjects: vec!["plan.>".to_owned(), "fired.>".to_owned()],
                num_replicas: 3,
                duplicate_window: WINDOW_BEYOND_RETRIES,
                allow_msg_schedules: true,
                allow_msg_ttl: true,
                allow_rollup_hdrs: true,
                ..unlimited()
            },
        }
    }
}

/// Whether what is broken is about copies through consumers made by hand.
fn attaches(breakage: Breakage) -> bool {
    matches!(breakage, Breakage::AnswersAreEarly | Breakage::GapsAreOverlooked)
}

fn unlimited() -> StreamConfig {
    StreamConfig {
        max_consumers: -1,
        max_msgs: -1,
        max_bytes: -1,
        max_msgs_per_subject: -1,
        ..StreamConfig::default()
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
        duplicate_window: WINDOW_BEYOND_RETRIES,
        ..StreamConfig::default()
    };
    if discard == DiscardPolicy::Old {
        config.max_age = Nanos::from_millis(chance.pick(&[0, 0, 0, 2000, 8000]));
    }
    config
}
