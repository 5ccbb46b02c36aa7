//! How load is made. Each file is one kind; all of them are closed loops for throughput, and open loops, at a rate
//! that is the same for both sides, for latency.

use std::time::Duration;

use serde_json::json;

use crate::figures::{Figure, Meter, Outcome};
use crate::load::one_at_a_time::Publisher;
use crate::messages::{Header, Messages, Subjects};
use crate::pace::Lasting;
use crate::rows::Row;
use crate::servers::Servers;
use crate::setup::{self, STREAM};

pub mod batches;
pub mod core;
pub mod delivery;
pub mod durables;
pub mod ephemerals;
pub mod expiry;
pub mod fast_ingest;
pub mod fetch;
pub mod filtered;
pub mod get;
pub mod idle;
pub mod key_value;
pub mod many_consumers;
pub mod many_streams;
pub mod one_at_a_time;
pub mod probe;
pub mod publish;
pub mod push;
pub mod recovery;
pub mod replay;
pub mod request_reply;
pub mod resting;
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
        /// What each carries.
        header: Header,
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
    /// Batches that are stored whole or not at all.
    AtomicBatches {
        /// Messages of a batch.
        batch: u64,
        /// Batches without their acknowledgement, at most.
        at_once: u64,
    },
    /// One long batch that is acknowledged now and then.
    FastIngest,
    /// Messages that expire.
    Expiry {
        /// What they leave behind.
        leaves: expiry::Leaves,
        /// Messages published.
        messages: u64,
    },
    /// Direct gets.
    Get {
        /// What a request asks for.
        get: get::Get,
        /// Connections that read, each waiting for its answer.
        readers: u64,
    },
    /// A key-value bucket.
    KeyValue {
        /// What clients do.
        what: key_value::Use,
        /// Connections, each waiting for its answer.
        clients: u64,
    },
    /// A push consumer on a filled stream.
    Push {
        /// What happens to messages.
        acks: fetch::Acks,
    },
    /// Messages through a stream to a consumer that waits.
    Delivery {
        /// Who asks whom.
        mode: delivery::Mode,
    },
    /// Many consumers on a filled stream.
    ManyConsumers {
        /// Consumers there are.
        consumers: u64,
        /// Who gets what.
        share: many_consumers::Share,
    },
    /// A consumer that wants a hundredth of a stream.
    Filtered {
        /// Subjects there are, each with a message.
        subjects: u64,
    },
    /// Durable consumers, made and then without a leader for a while.
    Durables {
        /// Consumers there are.
        consumers: u64,
    },
    /// Durable consumers that wait for something.
    Resting {
        /// Consumers there are.
        consumers: u64,
        /// For what.
        what: resting::For,
    },
    /// Consumers that are used once.
    Ephemerals {
        /// Consumers there were.
        consumers: u64,
        /// How they end.
        ending: ephemerals::Ending,
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
    /// What a side can not do within this is cut off: creating consumers, and waiting until things are gone.
    pub limit: Duration,
}

impl Effort {
    /// For figures that are to be believed.
    pub const FULL: Self = Self {
        divide_by: 1,
        latency: Lasting { warm: Duration::from_secs(2), recorded: Duration::from_secs(5) },
        settle_within: Duration::from_secs(30),
        limit: Duration::from_secs(180),
    };
    /// All ordinary rows in a few minutes.
    pub const QUICK: Self = Self {
        divide_by: 5,
        latency: Lasting { warm: Duration::from_millis(500), recorded: Duration::from_secs(1) },
        settle_within: Duration::from_secs(1),
        limit: Duration::from_secs(10),
    };
    /// To see that everything works.
    pub const TINY: Self = Self {
        divide_by: 100,
        latency: Lasting { warm: Duration::from_millis(100), recorded: Duration::from_millis(200) },
        settle_within: Duration::from_millis(500),
        limit: Duration::from_secs(5),
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
        Load::Publish { window, header, subjects } => {
            let more =
                if header == Header::Increment { json!({ "allow_msg_counter": true }) } else { json!({}) };
            setup::create_stream(servers, row.storage, more)?;
            let address = setup::leader(servers, STREAM)?;
            let text = Messages { subjects, header, ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
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
        Load::AtomicBatches { batch, at_once } => {
            let shape = batches::Shape { batch, at_once, payload_bytes };
            batches::run(servers, shape, messages, effort)?
        }
        Load::FastIngest => fast_ingest::run(servers, payload_bytes, messages, effort)?,
        Load::Expiry { leaves, messages } => expiry::run(servers, leaves, payload_bytes, messages, effort)?,
        Load::Get { get, readers } => get::run(servers, get, readers, payload_bytes, messages)?,
        Load::KeyValue { what, clients } => {
            let shape = key_value::Shape { what, clients, payload_bytes };
            key_value::run(servers, shape, messages, row.offered, effort)?
        }
        Load::Push { acks } => push::run(servers, acks, payload_bytes, messages, row.offered, effort)?,
        Load::Delivery { mode } => delivery::run(servers, mode, payload_bytes, row.offered, effort)?,
        Load::ManyConsumers { consumers, share } => {
            many_consumers::run(servers, consumers, share, payload_bytes, messages)?
        }
        Load::Filtered { subjects } => filtered::run(servers, subjects, payload_bytes)?,
        Load::Durables { consumers } => durables::run(servers, consumers, payload_bytes, effort)?,
        Load::Resting { consumers, what } => {
            resting::run(servers, consumers, what, payload_bytes, row.offered, effort)?
        }
        Load::Ephemerals { consumers, ending } => {
            ephemerals::run(servers, ending, consumers, payload_bytes, effort)?
        }
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
