//! Readers as consumers of their origin. An origin that keeps messages until its consumers are done with them has to
//! know who reads it, and up to where that one has stored what it read. So its leader makes a consumer for each reader,
//! as nats-server does, and settles what the reader says it has. Other origins know nothing of their readers.
//!
//! The consumer begins where the reader does: what lies before is not the reader's, and stays.

use levee_protocol::api::stream_source::short_hash;
use levee_protocol::api::{
    AckPolicy, ConsumerConfig, ConsumerCreateAction, DeliverPolicy, ReplayPolicy, RetentionPolicy,
    StreamConfig, StreamSource,
};
use levee_protocol::command::progress::{SettledRun, Settlement};
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::mirror::{FetchRequest, Reader};
use levee_protocol::time::{Nanos, Timestamp};

use super::server;
use crate::consumer::Ledger;
use crate::stream::{MessageView, ReadFailed, StreamMachine};

/// What nats-server lets be under way to such a consumer.
const MAX_ACK_PENDING: i64 = 1000;
/// Where the consumer's metadata has the number of the group of the reader's stream.
const GROUP: &str = "_levee.reader.group";

/// The consumer that stands for a reader, by the reader's stream and what names the origin among its sources.
#[must_use]
pub fn consumer_name(stream: &str, key: &str) -> String {
    let kind = if key.is_empty() { "MIRROR" } else { "SRC" };
    format!("JS_{kind}_{}", short_hash(&format!("{stream} {key}")))
}

/// What the origin has to note about a reader before it answers; `None` if nothing is new. Its effect may ask for more.
pub fn note(
    machine: &StreamMachine,
    view: &dyn MessageView,
    request: &FetchRequest,
    now: Timestamp,
) -> Result<Option<StreamCommand>, ReadFailed> {
    let Some(reader) = &request.reader else { return Ok(None) };
    let Ok(name) = ConsumerName::parse(&reader.consumer) else { return Ok(None) };
    let known = machine.consumer(&name);
    if known.is_some_and(|known| !known.config().sourcing) {
        return Ok(None);
    }
    if reader.leaves {
        let is_its_own = known.is_some_and(|known| group_of(known) <= reader.group);
        return Ok(is_its_own.then_some(StreamCommand::DeleteConsumer { now, name, incarnation: None }));
    }
    let retention = machine.config().map_or(RetentionPolicy::Limits, |config| config.retention);
    if retention == RetentionPolicy::Limits {
        return Ok(None);
    }
    let identity = server::identity(machine);
    // One that was restored from an archive has what the one before it had, as far as the archive goes.
    let restored_to = machine.restored_to();
    let has = if reader.identity == identity { reader.stored } else { reader.stored.min(restored_to) };
    let Some(known) = known else {
        let from = match (has, restored_to) {
            (0, _) => server::first_wanted(machine, view, request, &identity)?,
            // What the archive brought back of it is settled next.
            (_, 1..) => server::first_wanted(machine, view, &from_its_start(request), &identity)?,
            (has, 0) => Seq(has).next(),
        };
        let start = (from > machine.first_seq().max(Seq(1))).then_some(from);
        let config = config(request, reader, start);
        let action = ConsumerCreateAction::Create;
        return Ok(Some(StreamCommand::CreateConsumer {
            now,
            name,
            config: Box::new(config),
            action,
            default_max: 0,
        }));
    };
    let group = group_of(known);
    if group < reader.group {
        return Ok(Some(succeed(retention, known, reader, name, now)));
    }
    let stored = Seq(has).min(machine.last_seq());
    if group > reader.group || stored <= known.marks().floor().stream {
        return Ok(None);
    }
    let settled = SettledRun { first: stored, last: stored, how: Settlement::AckedAll };
    let progress = ConsumerProgress {
        name,
        incarnation: known.incarnation(),
        delivered: Vec::new(),
        passed: Vec::new(),
        through: Seq::NONE,
        waits: Vec::new(),
        dead: Vec::new(),
        settled: vec![settled],
    };
    Ok(Some(StreamCommand::Progress(Progress { now, consumers: vec![progress] })))
}

fn from_its_start(request: &FetchRequest) -> FetchRequest {
    FetchRequest { from: 0, ..request.clone() }
}

/// The consumer stands for a stream that is gone, and another one has its name. A work queue keeps its messages when the
/// consumer goes, so the stream gets one of its own; elsewhere they would go with it, so it takes over this one.
fn succeed(
    retention: RetentionPolicy,
    known: &Ledger,
    reader: &Reader,
    name: ConsumerName,
    now: Timestamp,
) -> StreamCommand {
    if retention == RetentionPolicy::WorkQueue {
        return StreamCommand::DeleteConsumer { now, name, incarnation: None };
    }
    let mut config = Box::new(known.config().clone());
    config.metadata.insert(GROUP.to_owned(), reader.group.to_string());
    StreamCommand::CreateConsumer { now, name, config, action: ConsumerCreateAction::Update, default_max: 0 }
}

/// The group of the stream that a consumer stands for.
fn group_of(known: &Ledger) -> u64 {
    known.config().metadata.get(GROUP).and_then(|group| group.parse().ok()).unwrap_or(0)
}

/// Whether a consumer stands for a reader that there is not. `find` knows the streams of the origin's account.
pub fn is_orphan<'a>(
    consumer: &ConsumerConfig,
    origin: &str,
    find: impl FnOnce(&str) -> Option<&'a StreamConfig>,
) -> bool {
    let metadata = ["_nats.mirror.stream", "_nats.src.stream"];
    let Some(reader) = metadata.iter().find_map(|key| consumer.metadata.get(*key)) else { return false };
    let Some(stream) = find(reader).filter(|_| consumer.sourcing) else { return consumer.sourcing };
    let is_it = |source: &StreamSource, key: &str| {
        source.name == origin && consumer_name(reader, key) == consumer.durable_name
    };
    let mirrors = stream.mirror.iter().any(|mirror| is_it(mirror, ""));
    let sources = stream.sources.iter().any(|source| is_it(source, &source.key()));
    stream.sealed || !(mirrors || sources)
}

fn config(request: &FetchRequest, reader: &Reader, start: Option<Seq>) -> ConsumerConfig {
    let (letter, kind) = if reader.mirrors { ('M', "mirror") } else { ('S', "src") };
    let metadata = [
        (format!("_nats.{kind}.acc"), request.account.clone()),
        (format!("_nats.{kind}.stream"), reader.stream.clone()),
        (GROUP.to_owned(), reader.group.to_string()),
    ];
    let (deliver_policy, opt_start_seq) = match start {
        Some(seq) => (DeliverPolicy::ByStartSequence, seq.0),
        None => (DeliverPolicy::All, 0),
    };
    let (filter_subject, filter_subjects) = match &request.filters[..] {
        [] => (String::new(), Vec::new()),
        [one] => (one.clone(), Vec::new()),
        several => (String::new(), several.to_vec()),
    };
    ConsumerConfig {
        durable_name: reader.consumer.clone(),
        name: reader.consumer.clone(),
        deliver_policy,
        opt_start_seq,
        ack_policy: AckPolicy::FlowControl,
        replay_policy: ReplayPolicy::Instant,
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        flow_control: true,
        idle_heartbeat: Nanos::from_secs(1),
        deliver_subject: format!("$JS.{letter}.{}", short_hash(&reader.consumer)),
        sourcing: true,
        filter_subject,
        filter_subjects,
        metadata: metadata.into(),
        ..ConsumerConfig::default()
    }
}
