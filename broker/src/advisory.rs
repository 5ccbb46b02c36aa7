//! Events become advisories on `$JS.EVENT`: published in the account of what they are about, on the leader only.

use levee_broker_core::consumer::{Advisory as Advice, UnpinReason};
use levee_protocol::api::advisory::{Abandoned, Action, Advisory, ApiAudit, ClientInfo, Delivered, Stamp};
use levee_protocol::ids::{AccountName, ConsumerName};

use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{self, MessageRef, RouteBatch};

const ID_CHARS: usize = 22;

/// Something happened to a message or to a priority group of a consumer.
pub fn consumer(
    jetstream: &JetStream,
    route: &mut RouteBatch,
    account: &AccountName,
    stream: &str,
    consumer: &ConsumerName,
    advice: &Advice,
) {
    let (stream, consumer) = (stream.to_owned(), consumer.to_string());
    let advisory = match advice.clone() {
        Advice::Paused { paused, until } => {
            Advisory::ConsumerPause { stream, consumer, paused, pause_until: Some(until) }
        }
        Advice::MaxDeliveries { stream_seq, deliveries } => {
            Advisory::MaxDeliver { stream, consumer, stream_seq, deliveries }
        }
        Advice::Naked { consumer_seq, stream_seq, deliveries } => {
            Advisory::Nak(Delivered { stream, consumer, consumer_seq, stream_seq, deliveries })
        }
        Advice::Terminated { consumer_seq, stream_seq, deliveries, reason } => Advisory::Terminated {
            delivered: Delivered { stream, consumer, consumer_seq, stream_seq, deliveries },
            reason,
        },
        Advice::Sampled { consumer_seq, stream_seq, deliveries, ack_time } => {
            Advisory::ConsumerAck { stream, consumer, consumer_seq, stream_seq, ack_time, deliveries }
        }
        Advice::Pinned { group, id } => {
            let account = account.as_str().to_owned();
            Advisory::GroupPinned { account, stream, consumer, group, pinned_id: id }
        }
        Advice::Unpinned { group, reason } => {
            let reason = match reason {
                UnpinReason::Admin => "admin",
                UnpinReason::Timeout => "timeout",
            };
            let (account, reason) = (account.as_str().to_owned(), reason.to_owned());
            Advisory::GroupUnpinned { account, stream, consumer, group, reason }
        }
    };
    publish(jetstream, route, account, &advisory);
}

/// A stream came, went or changed.
pub fn stream_action(jetstream: &JetStream, account: &AccountName, stream: &str, action: Action) {
    publish_one(jetstream, account, &Advisory::StreamAction { stream: stream.to_owned(), action });
}

/// An atomic batch was given up.
pub fn batch_abandoned(
    jetstream: &JetStream,
    account: &AccountName,
    stream: &str,
    batch: &str,
    reason: Abandoned,
) {
    let (stream, batch) = (stream.to_owned(), batch.to_owned());
    publish_one(jetstream, account, &Advisory::BatchAbandoned { stream, batch, reason });
}

/// A consumer came or went.
pub fn consumer_action(
    jetstream: &JetStream,
    account: &AccountName,
    stream: &str,
    consumer: &str,
    action: Action,
) {
    let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
    publish_one(jetstream, account, &Advisory::ConsumerAction { stream, consumer, action });
}

/// A call of the API was answered.
pub fn api_audit(
    jetstream: &JetStream,
    account: &AccountName,
    client: &ClientInfo,
    subject: &[u8],
    (request, response): (&[u8], &[u8]),
) {
    // Calls are many, and who wants to hear of them is rare.
    let on = b"$JS.EVENT.ADVISORY.API";
    if !jetstream.router().has_interest(account, on) && jetstream.directory().capturing(account, on).is_none()
    {
        return;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let audit = ApiAudit {
        server: jetstream.identity().name.clone(),
        client: client.clone(),
        subject: text(subject),
        request: text(request),
        response: text(response),
    };
    publish_one(jetstream, account, &Advisory::ApiAudit(Box::new(audit)));
}

/// A client as advisories describe it.
#[must_use]
pub fn client(jetstream: &JetStream, from: &router::ClientInfo) -> ClientInfo {
    let identity = jetstream.identity();
    ClientInfo {
        host: from.remote.map(|remote| remote.ip().to_string()).unwrap_or_default(),
        id: from.cid,
        acc: from.account.as_str().to_owned(),
        user: from.user.clone(),
        name: from.name.clone(),
        lang: from.lang.clone(),
        ver: from.version.clone(),
        server: identity.name.clone(),
        cluster: identity.cluster.clone(),
        kind: "Client".to_owned(),
        client_type: "nats".to_owned(),
        ..ClientInfo::default()
    }
}

/// Publishes one that comes alone.
pub fn publish_one(jetstream: &JetStream, account: &AccountName, advisory: &Advisory) {
    publish(jetstream, &mut jetstream.router().batch(), account, advisory);
}

/// Publishes like a client, so that streams may capture `$JS.EVENT.>`.
fn publish(jetstream: &JetStream, route: &mut RouteBatch, account: &AccountName, advisory: &Advisory) {
    let id = nuid::draw(ID_CHARS);
    let stamp = Stamp { id: &id, timestamp: jetstream.clock().now(), domain: jetstream.domain() };
    let (subject, payload) = (advisory.subject(), advisory.encode(stamp));
    route.publish(
        account,
        MessageRef { subject: subject.as_bytes(), payload: &payload, ..MessageRef::default() },
    );
}
