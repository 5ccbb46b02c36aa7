//! What is measured: named figures, the measurements of one run, and the meter that takes those of processes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::process;
use crate::servers::Servers;

/// Something that can be measured in a run. Names are written to files of results.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Messages a second; deliveries for core publish and subscribe.
    Rate,
    /// Server CPU seconds for a million messages, until the last is answered.
    CpuPerMillion,
    /// The same with what servers still did afterwards, compactions for instance.
    CpuPerMillionSettled,
    /// Bytes written to files for each byte of payload, after servers have settled.
    WrittenPerPayloadByte,
    /// Peak resident memory of all servers, MiB.
    PeakMemoryMib,
    /// CPU seconds of the load client for a million messages.
    ClientCpuPerMillion,
    /// Part of the machine's CPU that neither servers nor client used.
    OthersShare,
    /// Messages a second that were offered while latency was taken.
    Offered,
    /// Messages a second that were answered while latency was taken.
    Kept,
    /// Latency from the moment a message was due, microseconds.
    LatencyP50Us,
    /// The same.
    LatencyP99Us,
    /// The same.
    LatencyP999Us,
    /// From asking for a sequence to the first message, milliseconds, median.
    FirstMessageMs,
    /// The same, the longest.
    FirstMessageMaxMs,
    /// CPU cores in use while nothing happens.
    IdleCores,
    /// Resident memory above that of empty servers, MiB.
    MemoryAboveEmptyMib,
    /// Creating all streams of a row, seconds.
    CreateSeconds,
    /// From the start of a killed server until its streams answer, seconds.
    ReadySeconds,
    /// From the start of a killed server until a publish is acknowledged, seconds.
    FirstAckSeconds,
    /// Resident memory when ready again, MiB.
    ReadyMemoryMib,
    /// Stopping and starting until streams answer, seconds.
    RestartSeconds,
    /// Disk used, MiB, after it no longer changes.
    DiskMib,
    /// Bytes of messages that the stream has, MiB.
    LiveMib,
    /// Disk used for each live byte.
    DiskPerLiveByte,
    /// From the last publish until disk use no longer changes, seconds.
    SettleSeconds,
    /// Resident memory above that of empty servers, bytes for each subject.
    MemoryPerSubject,
    /// Direct gets of the last message of a subject, a second.
    LastBySubjectRate,
    /// Messages a second of a consumer that filters a hundredth of the stream.
    FilteredRate,
    /// Time from a request to its whole answer, microseconds, one request after the other.
    AnswerP50Us,
    /// The same.
    AnswerP99Us,
    /// From when the last thing was due to go until all are gone, seconds.
    GoneSeconds,
    /// What is still there at the time limit.
    LeftAtLimit,
    /// Server CPU seconds from the last publish until all are gone, for a million.
    GoingCpuPerMillion,
    /// Consumers created, before the time limit.
    ConsumersCreated,
    /// Consumers created a second.
    ConsumerRate,
    /// Resident memory of all nodes above that before the consumers, bytes for each consumer.
    MemoryPerConsumer,
    /// Subscribing and unsubscribing on another subject, beside the consumers, pairs a second.
    SubscribeRate,
    /// Server CPU seconds for a million of those.
    SubscribeCpuPerMillion,
    /// Publishing into the stream of consumers that nobody uses, by ten publishers one at a time, messages a second.
    PublishBesideRate,
    /// Server CPU seconds for a million of those.
    PublishBesideCpuPerMillion,
    /// Resident memory before the consumers, MiB.
    MemoryBeforeMib,
    /// Resident memory when half of them have come and gone, MiB.
    MemoryHalfwayMib,
    /// Resident memory when they are gone, MiB.
    MemoryAfterMib,
    /// From killing the leader of a stream until it has another, and every consumer that was asked gave a message,
    /// seconds.
    FailoverSeconds,
    /// How late messages without an ack are delivered again, milliseconds, median.
    LateP50Ms,
    /// The same, the last.
    LateMaxMs,
}

impl Figure {
    /// Those that have a table of their own, line by line.
    pub const OF_FEW_ROWS: &[Self] = &[
        Self::FirstMessageMs,
        Self::FirstMessageMaxMs,
        Self::IdleCores,
        Self::MemoryAboveEmptyMib,
        Self::CreateSeconds,
        Self::ReadySeconds,
        Self::FirstAckSeconds,
        Self::ReadyMemoryMib,
        Self::RestartSeconds,
        Self::LiveMib,
        Self::DiskMib,
        Self::DiskPerLiveByte,
        Self::SettleSeconds,
        Self::MemoryPerSubject,
        Self::LastBySubjectRate,
        Self::FilteredRate,
        Self::AnswerP50Us,
        Self::AnswerP99Us,
        Self::GoneSeconds,
        Self::LeftAtLimit,
        Self::GoingCpuPerMillion,
        Self::ConsumersCreated,
        Self::ConsumerRate,
        Self::MemoryPerConsumer,
        Self::SubscribeRate,
        Self::SubscribeCpuPerMillion,
        Self::PublishBesideRate,
        Self::PublishBesideCpuPerMillion,
        Self::MemoryBeforeMib,
        Self::MemoryHalfwayMib,
        Self::MemoryAfterMib,
        Self::FailoverSeconds,
        Self::LateP50Ms,
        Self::LateMaxMs,
    ];

    /// For tables.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Rate => "msg/s",
            Self::CpuPerMillion => "CPU s/M",
            Self::CpuPerMillionSettled => "CPU s/M with afterwork",
            Self::WrittenPerPayloadByte => "bytes written per payload byte",
            Self::PeakMemoryMib => "peak memory, MiB",
            Self::ClientCpuPerMillion => "client CPU s/M",
            Self::OthersShare => "CPU used by others",
            Self::Offered => "offered msg/s",
            Self::Kept => "answered msg/s",
            Self::LatencyP50Us => "p50, us",
            Self::LatencyP99Us => "p99, us",
            Self::LatencyP999Us => "p99.9, us",
            Self::FirstMessageMs => "time to first message, ms",
            Self::FirstMessageMaxMs => "longest time to first message, ms",
            Self::IdleCores => "CPU cores while idle",
            Self::MemoryAboveEmptyMib => "memory above empty, MiB",
            Self::CreateSeconds => "creating the streams, s",
            Self::ReadySeconds => "SIGKILL, start, ready, s",
            Self::FirstAckSeconds => "SIGKILL, start, first ack, s",
            Self::ReadyMemoryMib => "memory when ready, MiB",
            Self::RestartSeconds => "restart, s",
            Self::DiskMib => "disk, MiB",
            Self::LiveMib => "live, MiB",
            Self::DiskPerLiveByte => "disk per live byte",
            Self::SettleSeconds => "until disk use settled, s",
            Self::MemoryPerSubject => "memory per subject, bytes",
            Self::LastBySubjectRate => "last-by-subject gets/s",
            Self::FilteredRate => "filtered consumer msg/s",
            Self::AnswerP50Us => "request to answer, p50, us",
            Self::AnswerP99Us => "request to answer, p99, us",
            Self::GoneSeconds => "all gone after the last was due, s",
            Self::LeftAtLimit => "still there at the time limit",
            Self::GoingCpuPerMillion => "CPU s/M from the last publish until all are gone",
            Self::ConsumersCreated => "consumers created within the time limit",
            Self::ConsumerRate => "consumers created/s",
            Self::MemoryPerConsumer => "memory of all nodes per consumer, bytes",
            Self::SubscribeRate => "SUB and UNSUB beside the consumers, pairs/s",
            Self::SubscribeCpuPerMillion => "SUB and UNSUB beside the consumers, CPU s/M",
            Self::PublishBesideRate => "10 publishers, one at a time, beside the consumers, msg/s",
            Self::PublishBesideCpuPerMillion => "publishing beside the consumers, CPU s/M",
            Self::MemoryBeforeMib => "memory before the consumers, MiB",
            Self::MemoryHalfwayMib => "memory when half of them have come and gone, MiB",
            Self::MemoryAfterMib => "memory when they are gone, MiB",
            Self::FailoverSeconds => "SIGKILL of the leader, stream and consumers answer again, s",
            Self::LateP50Ms => "unacked messages delivered again, late by, p50, ms",
            Self::LateMaxMs => "unacked messages delivered again, late by, at most, ms",
        }
    }
}

/// The measurements of one run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Outcome(pub BTreeMap<Figure, f64>);

impl Outcome {
    /// One figure, if this run has it.
    #[must_use]
    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.0.get(&figure).copied()
    }

    /// Notes a figure.
    pub fn set(&mut self, figure: Figure, value: f64) {
        self.0.insert(figure, value);
    }

    /// Notes latencies.
    pub fn set_latency(&mut self, nanoseconds: &Histogram<u64>) {
        let at = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        self.set(Figure::LatencyP50Us, at(0.5));
        self.set(Figure::LatencyP99Us, at(0.99));
        self.set(Figure::LatencyP999Us, at(0.999));
    }

    /// Notes how long answers took in a closed loop.
    pub fn set_answers(&mut self, nanoseconds: &Histogram<u64>) {
        self.set(Figure::AnswerP50Us, nanoseconds.value_at_quantile(0.5) as f64 / 1e3);
        self.set(Figure::AnswerP99Us, nanoseconds.value_at_quantile(0.99) as f64 / 1e3);
    }

    /// An open loop with so many messages a second wished for and so many had.
    #[must_use]
    pub fn of_open_loop(nanoseconds: &Histogram<u64>, offered: u64, kept: f64) -> Self {
        let mut outcome = Self::default();
        outcome.set_latency(nanoseconds);
        outcome.set(Figure::Offered, offered as f64);
        outcome.set(Figure::Kept, kept);
        outcome
    }

    /// Takes over another's figures.
    pub fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What was spent up to a moment.
pub struct Meter {
    start: Instant,
    servers_cpu: f64,
    client_cpu: f64,
    machine_busy: f64,
    written: u64,
}

impl Meter {
    /// Reads everything now.
    pub fn start(servers: &Servers) -> anyhow::Result<Self> {
        Ok(Self {
            start: Instant::now(),
            servers_cpu: servers.cpu_seconds()?,
            client_cpu: process::cpu_seconds(std::process::id())?,
            machine_busy: process::machine_busy_seconds()?,
            written: servers.written_bytes()?,
        })
    }

    /// What `messages` messages cost since the start.
    pub fn finish(&self, servers: &Servers, messages: u64) -> anyhow::Result<Outcome> {
        let seconds = self.start.elapsed().as_secs_f64();
        let servers_cpu = servers.cpu_seconds()? - self.servers_cpu;
        let client_cpu = process::cpu_seconds(std::process::id())? - self.client_cpu;
        let busy = process::machine_busy_seconds()? - self.machine_busy;
        let cpus = std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
        let millions = messages as f64 / 1e6;
        let mut outcome = Outcome::default();
        outcome.set(Figure::Rate, messages as f64 / seconds);
        outcome.set(Figure::CpuPerMillion, servers_cpu / millions);
        outcome.set(Figure::ClientCpuPerMillion, client_cpu / millions);
        outcome
            .set(Figure::OthersShare, ((busy - servers_cpu - client_cpu) / (seconds * cpus)).clamp(0.0, 1.0));
        Ok(outcome)
    }

    /// Waits, not longer than `within`, until servers write nothing for a while, and adds what that came to.
    pub fn settle(
        &self,
        servers: &Servers,
        outcome: &mut Outcome,
        messages: u64,
        payload_bytes: u64,
        within: Duration,
    ) -> anyhow::Result<()> {
        let (deadline, mut quiet) = (Instant::now() + within, 0);
        let mut written = servers.written_bytes()?;
        while quiet < 4 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let now = servers.written_bytes()?;
            quiet = if now - written < 64 << 10 { quiet + 1 } else { 0 };
            written = now;
        }
        let cpu = servers.cpu_seconds()? - self.servers_cpu;
        outcome.set(Figure::CpuPerMillionSettled, cpu / (messages as f64 / 1e6));
        if payload_bytes > 0 {
            outcome
                .set(Figure::WrittenPerPayloadByte, (written - self.written) as f64 / payload_bytes as f64);
        }
        Ok(())
    }
}
