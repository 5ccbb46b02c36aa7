//! Hot path: where a client's publishes go besides subscribers: a stream's ingest, the consumers' acks, the API.
//! One lookup per subject and connection (cached by the session), one handover per read chunk and sink.

use std::sync::Arc;

use futures::future::BoxFuture;
use levee_protocol::api::AckReply;
use levee_protocol::ids::{AccountName, GroupId};
use levee_protocol::wire::headers::HeaderBuilder;

use crate::api;
use crate::jetstream::{FORWARD_ACK, FORWARD_PUBLISH, JetStream};
use crate::router::{ClientInfo, Inbound, InboundItem, MessageRef, Resolved, RouteBatch, Services, Sink};
use crate::stream::forward;
use crate::transfer::{self, TransferSink};

const API_PREFIX: &[u8] = b"$JS.API.";
const ACK_PREFIX: &[u8] = b"$JS.ACK.";
const FLOW_PREFIX: &[u8] = b"$JS.FC.";

/// Sink ids are group numbers; these are below the first stream's.
const API_SINK: u64 = 2;
const ACK_SINK: u64 = 3;
pub(crate) const TRANSFER_SINK: u64 = 4;

/// How a batch came to this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrival {
    /// From a client of this node: it is forwarded if another node leads.
    Client,
    /// From a peer that believed us to lead: it is dropped if we don't, or it could travel for ever.
    Forwarded,
}

/// The stream side, as the message path sees it.
pub struct StreamServices {
    jetstream: Arc<JetStream>,
    api: Arc<dyn Sink>,
    acks: Arc<dyn Sink>,
    transfers: Arc<dyn Sink>,
    domain_prefix: Option<Vec<u8>>,
}

impl StreamServices {
    /// Services of this node.
    #[must_use]
    pub fn new(jetstream: Arc<JetStream>) -> Arc<Self> {
        let domain = jetstream.domain();
        Arc::new(Self {
            api: Arc::new(ApiSink { jetstream: Arc::clone(&jetstream) }),
            acks: Arc::new(AckSink { jetstream: Arc::clone(&jetstream) }),
            transfers: Arc::new(TransferSink::new(Arc::clone(&jetstream))),
            domain_prefix: (!domain.is_empty()).then(|| format!("$JS.{domain}.API.").into_bytes()),
            jetstream,
        })
    }
}

impl Services for StreamServices {
    fn resolve(&self, account: &AccountName, subject: &[u8]) -> Resolved {
        if subject.starts_with(b"$JS.") {
            if subject.starts_with(ACK_PREFIX) || subject.starts_with(FLOW_PREFIX) {
                return Resolved { sinks: vec![Arc::clone(&self.acks)], responders: true };
            }
            let in_domain = self.domain_prefix.as_ref().is_some_and(|prefix| subject.starts_with(prefix));
            if in_domain || subject.starts_with(API_PREFIX) {
                let answered = api::is_answered(&self.jetstream, account, subject);
                let sinks = if answered { vec![Arc::clone(&self.api)] } else { Vec::new() };
                return Resolved { sinks, responders: answered };
            }
            if let Some(resolved) = transfer::resolve(&self.jetstream, account, &self.transfers, subject) {
                return resolved;
            }
        }
        let Some(group) = self.jetstream.directory().capturing(account, subject) else {
            return Resolved { sinks: Vec::new(), responders: false };
        };
        let responders = self.jetstream.directory().leader(group).is_some();
        Resolved {
            sinks: vec![Arc::new(StreamSink { jetstream: Arc::clone(&self.jetstream), group })],
            responders,
        }
    }

    fn generation(&self) -> u64 {
        self.jetstream.directory().generation()
    }
}

/// Publishes into one stream.
struct StreamSink {
    jetstream: Arc<JetStream>,
    group: GroupId,
}

impl Sink for StreamSink {
    fn id(&self) -> u64 {
        self.group.0
    }

    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        if let Some(leader) = self.jetstream.replica(self.group).and_then(|replica| replica.leader()) {
            return leader.ingest.accept(&from.account, batch);
        }
        // Without a leader, or with a peer that just went: silence, and the publisher retries.
        let leader = self.jetstream.directory().leader(self.group)?;
        let frame = forward::encode(&from.account, self.group, &batch);
        let _ = self.jetstream.peers().forward(leader, FORWARD_PUBLISH, frame);
        self.jetstream.peers().relieved(leader)
    }
}

/// Acks and flow control answers.
struct AckSink {
    jetstream: Arc<JetStream>,
}

impl Sink for AckSink {
    fn id(&self) -> u64 {
        ACK_SINK
    }

    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        take_acks(&self.jetstream, &from.account, &batch, Arrival::Client);
        None
    }
}

/// Hands acks to the consumers they belong to, here or at the node that leads their stream.
pub fn take_acks(jetstream: &Arc<JetStream>, account: &AccountName, batch: &Inbound, arrival: Arrival) {
    let mut at = 0;
    while let Some(first) = batch.items.get(at) {
        let Some((stream, consumer)) = addressee(batch.subject(first)) else {
            at += 1;
            continue;
        };
        // Acks come in runs for one consumer: look it up once for each run.
        let run = batch.items[at..]
            .iter()
            .take_while(|item| addressee(batch.subject(item)) == Some((stream, consumer)))
            .count();
        let items = &batch.items[at..at + run];
        at += run;
        let Some(group) = jetstream.directory().group(account, stream) else {
            nobody_takes(jetstream, account, batch, items);
            continue;
        };
        if let Some(leader) = jetstream.replica(group).and_then(|replica| replica.leader()) {
            if !leader.driver_named(consumer).is_some_and(|driver| driver.on_acks(batch, items)) {
                nobody_takes(jetstream, account, batch, items);
            }
        } else if arrival == Arrival::Client
            && let Some(leader) = jetstream.directory().leader(group)
        {
            let part = Inbound { chunk: batch.chunk.clone(), items: items.to_vec() };
            let frame = forward::encode(account, group, &part);
            let _ = jetstream.peers().forward(leader, FORWARD_ACK, frame);
        }
    }
}

/// Acks for a consumer that does not exist: whoever wants one confirmed need not wait for it.
fn nobody_takes(jetstream: &JetStream, account: &AccountName, batch: &Inbound, items: &[InboundItem]) {
    let mut route = jetstream.router().batch();
    for item in items.iter().filter(|item| !batch.reply(item).is_empty()) {
        no_responders(&mut route, account, batch.reply(item), batch.subject(item));
    }
}

/// What a client gets when nobody is there to answer on `subject`: it tries again or gives up at once.
pub fn no_responders(route: &mut RouteBatch, account: &AccountName, to: &[u8], subject: &[u8]) {
    let mut header = HeaderBuilder::status(503, "");
    header.push("Nats-Subject", subject);
    route.send(account, to, MessageRef { subject: to, header: &header.finish(), ..MessageRef::default() });
}

/// The stream and consumer that an ack or a flow control answer is for.
fn addressee(subject: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(subject).ok()?;
    if let Some(ack) = AckReply::parse(subject) {
        return Some((ack.stream, ack.consumer));
    }
    let mut tokens = text.strip_prefix("$JS.FC.")?.split('.');
    Some((tokens.next()?, tokens.next()?))
}

/// Calls of the API.
struct ApiSink {
    jetstream: Arc<JetStream>,
}

impl Sink for ApiSink {
    fn id(&self) -> u64 {
        API_SINK
    }

    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        api::accept(&self.jetstream, from, batch);
        None
    }
}

/// A message of a batch, for those who keep one.
#[must_use]
pub fn owned(batch: &Inbound, item: &InboundItem) -> Inbound {
    Inbound { chunk: batch.chunk.clone(), items: vec![*item] }
}
