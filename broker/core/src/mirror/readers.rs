//! Readers as consumers of their origin. An origin that keeps messages until its consumers are done with them has to
//! know who reads it, and up to where that one has stored what it read. So its leader makes a consumer for each reader,
//! as nats-server does, and settles what the reader says it has. Other origins know nothing of their readers.

use levee_protocol::api::stream_source::short_hash;
use levee_protocol::api::{
    AckPolicy, ConsumerConfig, ConsumerCreateAction, DeliverPolicy, ReplayPolicy, RetentionPolicy,
};
use levee_protocol::command::progress::{SettledRun, Settlement};
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::mirror::{FetchRequest, Reader};
use levee_protocol::time::{Nanos, Timestamp};

use super::server;
use crate::stream::StreamMachine;

/// What nats-server lets be under way to such a consumer.
const MAX_ACK_PENDING: i64 = 1000;

/// The consumer that stands for a reader, by the reader's stream and what names the origin among its sources.
#[must_use]
pub fn consumer_name(stream: &str, key: &str) -> String {
    let kind = if key.is_empty() { "MIRROR" } else { "SRC" };
    format!("JS_{kind}_{}", short_hash(&format!("{stream} {key}")))
}

/// What the origin has to note about a reader before it answers; `None` if nothing is new.
#[must_use]
pub fn note(machine: &StreamMachine, request: &FetchRequest, now: Timestamp) -> Option<StreamCommand> {
    let reader = request.reader.as_ref()?;
    let name = ConsumerName::parse(&reader.consumer).ok()?;
    let known = machine.consumer(&name);
    if reader.leaves {
        return known
            .filter(|known| known.config().sourcing)
            .map(|_| StreamCommand::DeleteConsumer { now, name });
    }
    if machine.config()?.retention == RetentionPolicy::Limits {
        return None;
    }
    let Some(known) = known else {
        let config = Box::new(config(request, reader));
        return Some(StreamCommand::CreateConsumer {
            now,
            name,
            config,
            action: ConsumerCreateAction::Create,
        });
    };
    let is_about_this = reader.mirrors || reader.identity == server::identity(machine);
    let stored = Seq(reader.stored).min(machine.last_seq());
    if !known.config().sourcing || !is_about_this || stored <= known.marks().floor().stream {
        return None;
    }
    let settled = SettledRun { first: stored, last: stored, how: Settlement::AckedAll };
    let progress = ConsumerProgress {
        name,
        incarnation: known.incarnation(),
        delivered: Vec::new(),
        settled: vec![settled],
    };
    Some(StreamCommand::Progress(Progress { now, consumers: vec![progress] }))
}

fn config(request: &FetchRequest, reader: &Reader) -> ConsumerConfig {
    let (letter, kind) = if reader.mirrors { ('M', "mirror") } else { ('S', "src") };
    let metadata = [
        (format!("_nats.{kind}.acc"), request.account.clone()),
        (format!("_nats.{kind}.stream"), reader.stream.clone()),
    ];
    let (filter_subject, filter_subjects) = match &request.filters[..] {
        [] => (String::new(), Vec::new()),
        [one] => (one.clone(), Vec::new()),
        several => (String::new(), several.to_vec()),
    };
    ConsumerConfig {
        durable_name: reader.consumer.clone(),
        name: reader.consumer.clone(),
        deliver_policy: DeliverPolicy::All,
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
