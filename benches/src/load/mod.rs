//! How load is made. Each file is one kind; all of them are closed loops for throughput, and open loops, at a rate
//! that is the same for both sides, for latency.

use std::time::Duration;

use serde_json::json;

use crate::figures::{Figure, Meter, Outcome};
use crate::load::one_at_a_time::Publisher;
use crate::messages::{Messages, Subjects};
use crate::pace::Lasting;
use crate::rows::Row;
use crate::servers::Servers;
use crate::setup::{self, STREAM};

pub mod core;
pub mod fetch;
pub mod idle;
pub mod many_streams;
pub mod one_at_a_time;
pub mod probe;
pub mod publish;
pub mod recovery;
pub mod replay;
pub mod request_reply;
pub mod space;
pub mod subjects;

/// A kind of load.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Core publish and subscribe on one subject: every subscriber gets every message.
    Core {
        /// Connections that publish.
        publishers: u64,
        /// Connections that subscribe.
        subscribers: u64,
    },
    /// Core requests, one responder.
    RequestReply {
        /// Connections that ask, each waiting for its answer.
        requesters: u64,
    },
    /// Publishes into a stream by one connection.
    Publish {
        /// How many may be unacknowledged.
        window: u64,
        /// Whether each carries a `Nats-Msg-Id`.
        msg_ids: bool,
        /// Where they go.
        subjects: Subjects,
    },
    /// Publishers that wait for every acknowledgement.
    OneAtATime {
        /// Connections that publish.
        publishers: u64,
    },
    /// Streams with a slow publisher each, which waits for every acknowledgement.
    ManyStreams {
        /// Streams there are.
        streams: u64,
        /// Streams that are published to.
        active: u64,
        /// Messages a second into each of those.
        per_second: u64,
    },
    /// A pull consumer on a filled stream.
    Fetch {
        /// Messages asked for at a time.
        batch: u64,
        /// What happens to them.
        acks: fetch::Acks,
    },
    /// Reading on from an arbitrary sequence of a large stream.
    Replay {
        /// Messages in the stream.
        messages: u64,
    },
    /// A kill, and a start.
    Recovery {
        /// Streams there are.
        streams: u64,
        /// Messages in each.
        messages_each: u64,
    },
    /// Disk use of a stream that loses messages.
    Space {
        /// How it loses them.
        loss: space::Loss,
        /// Messages published.
        messages: u64,
    },
    /// One stream with very many subjects, a message for each.
    ManySubjects {
        /// Subjects there are.
        subjects: u64,
    },
    /// Nothing, with many streams.
    Idle {
        /// Streams there are.
        streams: u64,
    },
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Messages of a row are divided by this.
    pub divide_by: u64,
    /// How long latency is taken.
    pub latency: Lasting,
    /// How long servers may take to settle before written bytes are read.
    pub settle_within: Duration,
}

impl Effort {
    /// For figures that are to be believed.
    pub const FULL: Self = Self {
        divide_by: 1,
        latency: Lasting { warm: Duration::from_secs(2), recorded: Duration::from_secs(5) },
        settle_within: Duration::from_secs(30),
    };
    /// All ordinary rows in a few minutes.
    pub const QUICK: Self = Self {
        divide_by: 5,
        latency: Lasting { warm: Duration::from_millis(500), recorded: Duration::from_secs(1) },
        settle_within: Duration::from_secs(1),
    };
    /// To see that everything works.
    pub const TINY: Self = Self {
        divide_by: 100,
        latency: Lasting { warm: Duration::from_millis(100), recorded: Duration::from_millis(200) },
        settle_within: Duration::from_millis(500),
    };
}

/// Runs a row once, on servers that were just started.
pub fn run(row: &Row, servers: &mut Servers, effort: &Effort) -> anyhow::Result<Outcome> {
    let messages = (row.messages / effort.divide_by).max(1);
    let payload_bytes = row.payload_bytes;
    let mut outcome = match row.load {
        Load::Core { publishers, subscribers } => {
            let shape = core::Shape { publishers, subscribers, payload_bytes };
            let mut outcome = core::latency(servers, shape, row.offered, effort)?;
            outcome.add(core::throughput(servers, shape, messages)?);
            outcome
        }
        Load::RequestReply { requesters } => {
            request_reply::run(servers, requesters, payload_bytes, messages, row.offered, effort)?
        }
        Load::Publish { window, msg_ids, subjects } => {
            setup::create_stream(servers, row.storage, json!({}))?;
            let address = setup::leader(servers, STREAM)?;
            let text = Messages { subjects, msg_ids, ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
            let (latency, first) = publish::latency(address, &text, row.offered, effort)?;
            let outcome = stored(servers, messages, payload_bytes, effort, || {
                publish::windowed(address, &text, first..first + messages, window)
            })?;
            setup::expect_stored(servers, first + messages)?;
            with(latency, outcome)
        }
        Load::OneAtATime { publishers } => {
            setup::create_stream(servers, row.storage, json!({}))?;
            let address = setup::leader(servers, STREAM)?;
            let clients = || Publisher::connect_all(address, publishers, payload_bytes);
            let latency = one_at_a_time::latency(clients()?, row.offered, effort.latency)?;
            let (each, clients) = ((messages / publishers).max(1), clients()?);
            let outcome = stored(servers, each * publishers, payload_bytes, effort, || {
                one_at_a_time::throughput(clients, each)
            })?;
            setup::expect_stored(servers, each * publishers)?;
            with(latency, outcome)
        }
        Load::ManyStreams { streams, active, per_second } => {
            let shape = many_streams::Shape { streams, active, per_second, payload_bytes };
            let lasting = Lasting { recorded: effort.latency.recorded * 4, ..effort.latency };
            many_streams::run(servers, shape, lasting)?
        }
        Load::Fetch { batch, acks } => {
            let shape = fetch::Shape { batch, acks, payload_bytes };
            fetch::run(servers, row.storage, shape, messages, row.offered, effort)?
        }
        Load::Replay { messages } => replay::run(servers, messages, payload_bytes)?,
        Load::Recovery { streams, messages_each } => {
            recovery::run(servers, recovery::Shape { streams, messages_each, payload_bytes })?
        }
        Load::Space { loss, messages } => space::run(servers, loss, messages, payload_bytes, effort)?,
        Load::ManySubjects { subjects } => subjects::run(servers, subjects, payload_bytes, effort)?,
        Load::Idle { streams } => idle::run(servers, streams, effort.latency.recorded * 6)?,
    };
    if outcome.get(Figure::PeakMemoryMib).is_none() {
        outcome.set(Figure::PeakMemoryMib, mib(servers.peak_memory()?));
    }
    Ok(outcome)
}

/// Bytes in tables.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Runs work that ends in so many stored messages, and what it cost, with what was written.
fn stored(
    servers: &Servers,
    messages: u64,
    payload_bytes: usize,
    effort: &Effort,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let meter = Meter::start(servers)?;
    work()?;
    let mut outcome = meter.finish(servers, messages)?;
    let payload = messages * payload_bytes as u64;
    meter.settle(servers, &mut outcome, messages, payload, effort.settle_within)?;
    Ok(outcome)
}

fn with(mut first: Outcome, second: Outcome) -> Outcome {
    first.add(second);
    first
}

/// Waits for threads of load and gives the first error.
fn join<T>(threads: Vec<std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>>) -> anyhow::Result<Vec<T>> {
    let results: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
    results.into_iter().map(|result| result.map_err(|_| anyhow::anyhow!("a load thread panicked"))?).collect()
}
