//! Events become advisories on `$JS.EVENT`: published in the account of what they are about, on the leader only.

use levee_broker_core::consumer::Advisory as Advice;
use levee_protocol::api::advisory::{Abandoned, Action, Advisory, Delivered, Stamp};
use levee_protocol::ids::{AccountName, ConsumerName};

use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{MessageRef, RouteBatch};

const ID_CHARS: usize = 22;

/// Something happened to a message of a consumer.
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
    };
    publish(jetstream, route, account, &advisory);
}

/// A stream came, went or changed.
pub fn stream_action(jetstream: &JetStream, account: &AccountName, stream: &str, action: Action) {
    let mut route = jetstream.router().batch();
    publish(jetstream, &mut route, account, &Advisory::StreamAction { stream: stream.to_owned(), action });
}

/// An atomic batch was given up.
pub fn batch_abandoned(
    jetstream: &JetStream,
    account: &AccountName,
    stream: &str,
    batch: &str,
    reason: Abandoned,
) {
    let mut route = jetstream.router().batch();
    let (stream, batch) = (stream.to_owned(), batch.to_owned());
    publish(jetstream, &mut route, account, &Advisory::BatchAbandoned { stream, batch, reason });
}

/// A consumer came or went.
pub fn consumer_action(
    jetstream: &JetStream,
    account: &AccountName,
    stream: &str,
    consumer: &str,
    action: Action,
) {
    let mut route = jetstream.router().batch();
    let (stream, consumer) = (stream.to_owned(), consumer.to_owned());
    publish(jetstream, &mut route, account, &Advisory::ConsumerAction { stream, consumer, action });
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
