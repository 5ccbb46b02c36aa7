//! The rows of the comparison: what runs, what an acknowledgement means on each side, and what is aimed at.
//!
//! The rates at which latency is taken are about half of what the slower side could do on two CPUs.

use crate::figures::Figure;
use crate::load::Load;
use crate::load::fetch::Acks;
use crate::load::key_value::Use;
use crate::load::space::Loss;
use crate::messages::{Header, Subjects};
use crate::report::number;
use crate::servers::Side;
use crate::setup::Storage;

mod consumers;
mod streams;

const WINDOW: u64 = 4000;
const KIB: usize = 1024;
const GIB: f64 = (1_u64 << 30) as f64;

/// Message sizes of rows, with their names.
const SIZES: [(usize, &str); 3] = [(128, "128 B"), (KIB, "1 KiB"), (16 * KIB, "16 KiB")];

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// For tables and for `--only`. Two rows never have the same.
    pub name: String,
    /// When it runs.
    pub group: Group,
    /// Server processes, and replicas of streams.
    pub nodes: usize,
    /// Whom Levee is compared with.
    pub against: Side,
    /// Where streams lie.
    pub storage: Storage,
    /// What runs.
    pub load: Load,
    /// Body bytes.
    pub payload_bytes: usize,
    /// Messages of one full run.
    pub messages: u64,
    /// Messages a second while latency is taken.
    pub offered: u64,
    /// What is aimed at.
    pub targets: Vec<Target>,
}

/// When a row runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Group {
    /// In quick and full mode.
    Ordinary,
    /// In full mode only.
    Long,
    /// The same, shown in charts and not in tables.
    Sweep,
}

/// An aim. Ratios are ours divided by theirs.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The ratio is at least this.
    AtLeast(Figure, f64),
    /// The ratio is at most this.
    AtMost(Figure, f64),
    /// Our figure is at most this.
    Limit(Figure, f64),
    /// Our figure is at least that of our own row of this name.
    NotBelow(Figure, String),
}

/// Sizes of the long rows. With --tiny, what is not given is a thousandth (streams: a tenth).
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Sizes {
    /// GiB of payload in the stream that is replayed. Default: 5.
    #[arg(long, value_name = "GIB")]
    pub replay_gib: Option<f64>,
    /// Streams of the rows with very many. Default: 1000.
    #[arg(long, value_name = "STREAMS")]
    pub many_streams: Option<u64>,
    /// GiB of payload in the stream of the node that is killed. Default: 10.
    #[arg(long, value_name = "GIB")]
    pub recovery_gib: Option<f64>,
    /// Keys that are overwritten, ten times each. Default: 1000000.
    #[arg(long, value_name = "KEYS")]
    pub space_keys: Option<u64>,
    /// GiB of payload of the other rows about disk use. Default: 4.
    #[arg(long, value_name = "GIB")]
    pub space_gib: Option<f64>,
    /// Subjects of the streams with very many. Default: 1000000,10000000.
    #[arg(long, value_name = "SUBJECTS", value_delimiter = ',')]
    pub subjects: Vec<u64>,
    /// Messages that expire, and subjects that a consumer filters. Default: 1000000, with --quick a tenth.
    #[arg(long, value_name = "COUNT")]
    pub expiring: Option<u64>,
    /// Durable consumers of one stream. Default: 10000, with --quick a tenth.
    #[arg(long, value_name = "CONSUMERS")]
    pub durables: Option<u64>,
    /// Consumers that are used once. Default: 100000, with --quick a twentieth.
    #[arg(long, value_name = "CONSUMERS")]
    pub ephemerals: Option<u64>,
    /// Divides the defaults.
    #[arg(skip = 1.0)]
    pub divide_by: f64,
    /// The part of expiring messages, filtered subjects and consumers.
    #[arg(skip)]
    pub part: Part,
}

/// How much of the rows that take their time for each object.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Part {
    /// All.
    #[default]
    Full,
    /// What takes about ten seconds.
    Quick,
    /// To see that it works.
    Tiny,
}

impl Part {
    /// The default that goes with it.
    pub(crate) fn of(self, full: u64, quick: u64, tiny: u64) -> u64 {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Tiny => tiny,
        }
    }
}

impl Sizes {
    /// What is not given is a thousandth.
    #[must_use]
    pub fn tiny(self) -> Self {
        Self { divide_by: 1000.0, part: Part::Tiny, ..self }
    }

    /// The same with fewer objects where each takes its time. The others are the same: no quick run has them.
    #[must_use]
    pub fn quick(self) -> Self {
        Self { part: Part::Quick, ..self }
    }

    fn streams(&self) -> u64 {
        self.many_streams.unwrap_or(if self.divide_by > 1.0 { 100 } else { 1000 })
    }

    fn messages(&self, given: Option<f64>, default_gib: f64, payload_bytes: usize) -> (f64, u64) {
        let gib = given.unwrap_or(default_gib / self.divide_by);
        (gib, (gib * GIB / payload_bytes as f64) as u64)
    }

    fn keys(&self) -> u64 {
        self.space_keys.unwrap_or((1e6 / self.divide_by) as u64)
    }

    fn subjects(&self) -> Vec<u64> {
        if self.subjects.is_empty() {
            return [1e6, 1e7].iter().map(|subjects| (subjects / self.divide_by) as u64).collect();
        }
        self.subjects.clone()
    }
}

impl Row {
    /// A row of 128 byte messages on files, without aims.
    #[must_use]
    pub fn new(name: impl Into<String>, nodes: usize, load: Load) -> Self {
        Self {
            name: name.into(),
            group: Group::Ordinary,
            nodes,
            against: Side::Nats,
            storage: Storage::File,
            load,
            payload_bytes: 128,
            messages: 0,
            offered: 1,
            targets: Vec::new(),
        }
    }

    fn payload(self, payload_bytes: usize) -> Self {
        Self { payload_bytes, ..self }
    }

    fn messages(self, messages: u64) -> Self {
        Self { messages, ..self }
    }

    fn offered(self, offered: u64) -> Self {
        Self { offered, ..self }
    }

    fn long(self) -> Self {
        Self { group: Group::Long, ..self }
    }

    fn target(mut self, target: Target) -> Self {
        self.targets.push(target);
        self
    }

    /// Aims at ratios of throughput and of server CPU.
    fn aims(self, rate: f64, cpu: f64) -> Self {
        self.target(Target::AtLeast(Figure::Rate, rate)).target(Target::AtMost(Figure::CpuPerMillion, cpu))
    }

    fn has_memory_variant(&self) -> bool {
        self.name.contains(" file,") && self.against == Side::Nats
    }

    /// The same in memory, which must not be slower.
    fn in_memory(&self) -> Self {
        Self {
            name: self.name.replacen(" file,", " memory,", 1),
            group: Group::Long,
            storage: Storage::Memory,
            targets: vec![Target::NotBelow(Figure::Rate, self.name.clone())],
            ..self.clone()
        }
    }

    /// What an acknowledgement means, ours and theirs.
    #[must_use]
    pub fn guarantee(&self) -> &'static str {
        match (self.load, self.storage, self.against, self.nodes) {
            (Load::Core { .. } | Load::RequestReply { .. }, ..) => "no acks",
            (
                Load::Fetch { .. }
                | Load::Replay { .. }
                | Load::Get { .. }
                | Load::KeyValue { what: Use::Get, .. }
                | Load::Push { .. }
                | Load::Delivery { .. }
                | Load::ManyConsumers { .. }
                | Load::Filtered { .. },
                ..,
            ) => "reading",
            (Load::Idle { .. }, ..) => "idle",
            (Load::Ephemerals { .. }, ..) => "consumers in memory / in memory",
            (_, Storage::Memory, _, 1) => "in memory / in memory",
            (_, Storage::Memory, ..) => "in memory of 2 of 3 / in memory of 2 of 3",
            (_, _, Side::NatsSynced, 1) => "synced / synced",
            (_, _, Side::NatsSynced, _) => "synced on 2 of 3 / synced on 2 of 3",
            (_, _, _, 1) => "synced / before sync",
            (_, _, _, _) => "synced on 2 of 3 / before sync, on 2 of 3",
        }
    }
}

/// All rows, in the order of the tables.
#[must_use]
pub fn all(sizes: &Sizes) -> Vec<Row> {
    let mut rows = core();
    for nodes in [1, 3] {
        rows.extend(windowed(nodes));
        rows.extend(one_at_a_time(nodes));
    }
    rows.extend(many_streams(sizes));
    rows.extend(fetches());
    let in_memory: Vec<Row> =
        rows.iter().filter(|row| row.has_memory_variant()).map(Row::in_memory).collect();
    rows.extend(in_memory);
    rows.extend(streams::rows(sizes));
    rows.extend(consumers::rows(sizes));
    rows.push(replay(sizes));
    rows.push(idle(sizes));
    rows.extend(recovery(sizes));
    rows.extend(space(sizes));
    rows.extend(sizes.subjects().into_iter().map(|subjects| {
        Row::new(
            format!("subjects: {} in one R1 stream, 128 B", number(subjects as f64)),
            1,
            Load::ManySubjects { subjects },
        )
        .long()
    }));
    rows
}

fn replay(sizes: &Sizes) -> Row {
    let (gib, messages) = sizes.messages(sizes.replay_gib, 5.0, KIB);
    Row::new(format!("replay: {gib} GiB in one R1 stream, 1 KiB"), 1, Load::Replay { messages })
        .payload(KIB)
        .long()
        .aims(1.5, 0.6)
        .target(Target::Limit(Figure::FirstMessageMs, 50.0))
}

fn idle(sizes: &Sizes) -> Row {
    let streams = sizes.streams();
    Row::new(format!("idle: {streams} R3 streams"), 3, Load::Idle { streams })
        .long()
        .target(Target::Limit(Figure::IdleCores, 0.05))
        .target(Target::Limit(Figure::MemoryAboveEmptyMib, 200.0))
}

fn recovery(sizes: &Sizes) -> [Row; 2] {
    let (gib, messages_each) = sizes.messages(sizes.recovery_gib, 10.0, KIB);
    let large = Load::Recovery { streams: 1, messages_each };
    let streams = sizes.streams();
    let many = Load::Recovery { streams, messages_each: 100 };
    [
        Row::new(format!("recovery: {gib} GiB in one R1 stream, 1 KiB"), 1, large).payload(KIB).long(),
        Row::new(format!("recovery: {streams} R1 streams, 100 messages of 1 KiB each"), 1, many)
            .payload(KIB)
            .long(),
    ]
}

fn space(sizes: &Sizes) -> Vec<Row> {
    let keys = sizes.keys();
    let overwritten = Load::Space { loss: Loss::Overwritten { keys }, messages: 10 * keys };
    let name = format!("space: {} keys, overwritten ten times at random, 128 B", number(keys as f64));
    let mut rows = vec![Row::new(name, 1, overwritten).long()];
    let (gib, messages) = sizes.messages(sizes.space_gib, 4.0, KIB);
    for (loss, what) in [
        (Loss::Acknowledged, "work queue, 1 of 100 not acknowledged"),
        (Loss::LimitedPerSubject, "10 messages for each of 10k subjects"),
        (Loss::Purged, "purge"),
        (Loss::Expired, "expiry after 10 s"),
    ] {
        let name = format!("space: {what}, {gib} GiB, 1 KiB");
        rows.push(Row::new(name, 1, Load::Space { loss, messages }).payload(KIB).long());
    }
    rows
}

fn core() -> Vec<Row> {
    let core = |publishers, subscribers| Load::Core { publishers, subscribers };
    let ask = |requesters| Load::RequestReply { requesters };
    vec![
        Row::new("core 1 to 1, 16 B", 1, core(1, 1)).payload(16).messages(10_000_000).offered(500_000),
        Row::new("core 1 to 1, 128 B", 1, core(1, 1)).messages(10_000_000).offered(500_000),
        Row::new("core 1 to 5, 128 B", 1, core(1, 5)).messages(2_000_000).offered(100_000),
        Row::new("core 5 to 5, 128 B", 1, core(5, 5)).messages(2_000_000).offered(100_000),
    ]
    .into_iter()
    .map(|row| row.aims(2.5, 0.35))
    .chain(
        [
            Row::new("core request/reply, 1 requester, 128 B", 1, ask(1)).messages(100_000).offered(5000),
            Row::new("core request/reply, 50 requesters, 128 B", 1, ask(50))
                .messages(400_000)
                .offered(20_000),
        ]
        .into_iter()
        .map(|row| row.aims(1.2, 0.6)),
    )
    .collect()
}

fn windowed(nodes: usize) -> Vec<Row> {
    let plain = Load::Publish { window: WINDOW, header: Header::None, subjects: Subjects::One };
    let (messages, offered, aims) = if nodes == 1 {
        ([2_000_000, 500_000, 50_000], [100_000, 50_000, 2000], [(2.5, 0.3), (1.3, 0.6), (1.1, 0.9)])
    } else {
        ([500_000, 200_000, 25_000], [50_000, 10_000, 1000], [(4.0, 0.25), (2.5, 0.4), (1.5, 0.6)])
    };
    let mut rows = Vec::new();
    for (at, (payload_bytes, size)) in SIZES.into_iter().enumerate() {
        rows.push(
            Row::new(format!("R{nodes} file, window {WINDOW}, {size}"), nodes, plain)
                .payload(payload_bytes)
                .messages(messages[at])
                .offered(offered[at])
                .aims(aims[at].0, aims[at].1),
        );
    }
    if nodes == 1 {
        // The disk bounds these: what nats-server's acks do not wait for shows beside what they do.
        let large = rows.last().map(|row| synced(row).messages(5000).offered(500));
        rows.extend(large);
        let ids = Load::Publish { window: WINDOW, header: Header::MsgId, subjects: Subjects::One };
        let subjects =
            Load::Publish { window: WINDOW, header: Header::None, subjects: Subjects::InTurns(100_000) };
        for (what, load) in [("message ids", ids), ("100k subjects", subjects)] {
            rows.push(
                Row::new(format!("R1 file, {what}, window {WINDOW}, 128 B"), 1, load)
                    .messages(1_000_000)
                    .offered(50_000)
                    .aims(2.0, 0.5),
            );
        }
    }
    rows
}

/// The same at equal durability. nats-server syncs for each message, so that there are to be fewer of them.
fn synced(row: &Row) -> Row {
    let name = format!("{}, both synced", row.name);
    Row { name, against: Side::NatsSynced, targets: Vec::new(), ..row.clone() }
}

fn one_at_a_time(nodes: usize) -> Vec<Row> {
    let row = |publishers, what: &str| {
        let name = format!("R{nodes} file, {what}, one at a time, 128 B");
        Row::new(name, nodes, Load::OneAtATime { publishers })
    };
    let (fifty, one) = (row(50, "50 publishers"), row(1, "1 publisher"));
    if nodes == 1 {
        return vec![
            synced(&fifty).messages(40_000).offered(2000),
            synced(&one).messages(20_000).offered(1000).aims(1.5, 0.6),
            fifty.messages(200_000).offered(20_000).aims(1.3, 0.8),
            one.messages(20_000).offered(1000),
        ];
    }
    vec![
        synced(&fifty).messages(20_000).offered(500),
        synced(&one).messages(4000).offered(200),
        fifty.messages(100_000).offered(5000).aims(1.3, 0.7),
        one.messages(10_000).offered(300).aims(1.0, 0.7),
    ]
}

fn many_streams(sizes: &Sizes) -> Vec<Row> {
    let many = sizes.streams();
    let few = 100.min(many);
    let load = |streams| Load::ManyStreams { streams, active: few, per_second: 20 };
    let name = |what: String| format!("{what} at 20/s, one at a time, 128 B");
    let mut rows = vec![Row::new(name(format!("{few} R3 streams, each")), 3, load(few)).aims(1.0, 1.0)];
    if many > few {
        let what = format!("{many} R3 streams, {few} active, each");
        rows.push(Row::new(name(what), 3, load(many)).long().aims(1.0, 1.0));
    }
    rows
}

fn fetches() -> Vec<Row> {
    let mut rows = Vec::new();
    for nodes in [1, 3] {
        for (acks, what, rate) in [
            (Acks::None, "no acks", 1.5),
            (Acks::Explicit, "explicit acks", 2.0),
            (Acks::WorkQueue, "work queue", 2.0),
        ] {
            let name = format!("R{nodes} file, fetch 500, {what}, 128 B");
            rows.push(
                Row::new(name, nodes, Load::Fetch { batch: 500, acks })
                    .messages(500_000)
                    .offered(if nodes == 1 { 20_000 } else { 10_000 })
                    .aims(rate, 0.6),
            );
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows() -> Vec<Row> {
        all(&Sizes { divide_by: 1.0, ..Sizes::default() })
    }

    #[test]
    fn names_are_unique_and_own_rows_that_targets_name_exist() {
        let rows = rows();
        let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();

        assert_eq!(names.len(), rows.len());
        for target in rows.iter().flat_map(|row| &row.targets) {
            if let Target::NotBelow(_, name) = target {
                assert!(names.contains(name.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn rows_with_files_have_a_memory_variant_that_differs_in_name_and_storage_only() {
        let rows = rows();
        let memory: Vec<&Row> = rows.iter().filter(|row| row.storage == Storage::Memory).collect();

        assert_eq!(memory.len(), rows.iter().filter(|row| row.has_memory_variant()).count());
        assert!(memory.iter().all(|row| row.name.contains(" memory,")));
    }
}
