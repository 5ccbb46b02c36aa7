//! Events become advisories on `$JS.EVENT`: published in the account of what they are about, on the leader only. Those of
//! leaders and of nodes are (also) in the system account.

use levee_broker_core::consumer::{Advisory as Advice, UnpinReason};
use levee_protocol::api::PeerInfo;
use levee_protocol::api::advisory::{Abandoned, Action, Advisory, ApiAudit, ClientInfo, Delivered, Stamp};
use levee_protocol::command::meta::NodeRegistration;
use levee_protocol::ids::{AccountName, ConsumerName};
use levee_raft::Group;

use crate::api::stream_info;
use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{self, MessageRef, RouteBatch};
use crate::stream::Replica;

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

/// Who leads a stream, or that nobody can.
pub fn stream_leadership(jetstream: &JetStream, replica: &Replica, leads: bool) {
    let assignment = replica.assignment();
    tell_both(jetstream, &assignment.account, replica.group(), |account, replicas| {
        let stream = assignment.config.name.clone();
        if leads {
            let leader = jetstream.identity().name.clone();
            Advisory::StreamLeaderElected { account, stream, leader, replicas }
        } else {
            Advisory::StreamQuorumLost { account, stream, replicas }
        }
    });
}

/// The same for one of its consumers.
pub fn consumer_leadership(jetstream: &JetStream, replica: &Replica, consumer: &str, leads: bool) {
    let assignment = replica.assignment();
    tell_both(jetstream, &assignment.account, replica.group(), |account, replicas| {
        let (stream, consumer) = (assignment.config.name.clone(), consumer.to_owned());
        if leads {
            let leader = jetstream.identity().name.clone();
            Advisory::ConsumerLeaderElected { account, stream, consumer, leader, replicas }
        } else {
            Advisory::ConsumerQuorumLost { account, stream, consumer, replicas }
        }
    });
}

/// This node leads the meta group.
pub fn meta_leadership(jetstream: &JetStream, group: &Group) {
    let identity = jetstream.identity();
    let advisory = Advisory::DomainLeaderElected {
        leader: identity.name.clone(),
        replicas: peers(jetstream, group),
        cluster: identity.cluster.clone(),
    };
    publish_one(jetstream, jetstream.accounts().system(), &advisory);
}

/// A node was removed from the cluster.
pub fn server_removed(jetstream: &JetStream, node: &NodeRegistration) {
    let advisory = Advisory::ServerRemoved {
        server: node.name.clone(),
        server_id: stream_info::peer_id(node.id),
        cluster: jetstream.identity().cluster.clone(),
    };
    publish_one(jetstream, jetstream.accounts().system(), &advisory);
}

/// This node can store nothing more.
pub fn out_of_storage(jetstream: &JetStream) {
    let identity = jetstream.identity();
    let advisory = Advisory::ServerOutOfStorage {
        server: identity.name.clone(),
        server_id: identity.server_id.clone(),
        stream: String::new(),
        cluster: identity.cluster.clone(),
    };
    publish_one(jetstream, jetstream.accounts().system(), &advisory);
}

/// Tells the account of what happened to a group, and the system account, which is told the account, too. Who is in the
/// group is only asked if somebody wants to hear it: there may be many to tell of.
fn tell_both(
    jetstream: &JetStream,
    account: &AccountName,
    group: &Group,
    advisory: impl Fn(String, Vec<PeerInfo>) -> Advisory,
) {
    let subject = advisory(String::new(), Vec::new()).subject();
    for (to, named) in [(account, String::new()), (jetstream.accounts().system(), account.to_string())] {
        if is_wanted(jetstream, to, subject.as_bytes()) {
            publish_one(jetstream, to, &advisory(named, peers(jetstream, group)));
        }
    }
}

/// All nodes of a group, this one among them.
fn peers(jetstream: &JetStream, group: &Group) -> Vec<PeerInfo> {
    let mut peers = stream_info::followers(jetstream, group);
    peers.push(PeerInfo {
        name: jetstream.identity().name.clone(),
        current: true,
        peer: stream_info::peer_id(jetstream.node()),
        ..PeerInfo::default()
    });
    peers
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
    if !is_wanted(jetstream, account, b"$JS.EVENT.ADVISORY.API") {
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

/// Whether a client or a stream takes what is published on `subject`.
fn is_wanted(jetstream: &JetStream, account: &AccountName, subject: &[u8]) -> bool {
    jetstream.router().has_interest(account, subject)
        || jetstream.directory().capturing(account, subject).is_some()
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
