//! Advisories and metrics: events that are published for whoever wants to know.
//!
//! An event says where it goes ([`Advisory::subject`]) and becomes a document ([`Advisory::encode`]) with an id
//! and a time that the caller gives it. Events about streams and consumers belong to the account that owns
//! those; what the subject and the type are called differs, and stays that way.

use serde::{Deserialize, Serialize};

use crate::api::envelope::push_json;
use crate::api::stream_config::{is_false, is_zero};
use crate::api::stream_info::{PeerInfo, StreamState};
use crate::ids::Seq;
use crate::time::{Nanos, Timestamp};

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Advisory {
    /// A call of the API was answered.
    ApiAudit(Box<ApiAudit>),
    /// Calls of the API were dropped.
    ApiLimitReached {
        /// Server name.
        server: String,
        /// How many.
        dropped: u64,
    },
    /// A stream was created, changed or deleted.
    StreamAction {
        /// Its name.
        stream: String,
        /// What was done.
        action: Action,
    },
    /// An atomic batch was given up before it was committed.
    BatchAbandoned {
        /// The stream.
        stream: String,
        /// Its id.
        batch: String,
        /// Why.
        reason: Abandoned,
    },
    /// A consumer was created or deleted.
    ConsumerAction {
        /// Its stream.
        stream: String,
        /// Its name.
        consumer: String,
        /// What was done.
        action: Action,
    },
    /// A consumer was paused or resumed.
    ConsumerPause {
        /// Its stream.
        stream: String,
        /// Its name.
        consumer: String,
        /// Whether it is paused now.
        paused: bool,
        /// Until when.
        #[serde(skip_serializing_if = "Option::is_none")]
        pause_until: Option<Timestamp>,
    },
    /// A message was delivered as often as allowed and not acknowledged.
    MaxDeliver {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// The message.
        stream_seq: Seq,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// A client refused a delivery for now.
    Nak(Delivered),
    /// A client refused a message for good, or it was deleted while it was pending.
    Terminated {
        /// Which delivery.
        #[serde(flatten)]
        delivered: Delivered,
        /// What the client said.
        #[serde(skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// An acknowledged delivery, sampled.
    ConsumerAck {
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// Number of the delivery.
        consumer_seq: u64,
        /// The message.
        stream_seq: Seq,
        /// From delivery to ack.
        ack_time: Nanos,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// A client got hold of a priority group.
    GroupPinned {
        /// The account, which NATS names in these events and not in others about consumers.
        account: String,
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// The group.
        group: String,
        /// Who got hold of it.
        pinned_id: String,
    },
    /// A client lost its hold of a priority group.
    GroupUnpinned {
        /// The account.
        account: String,
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// The group.
        group: String,
        /// `timeout` or `admin`.
        reason: String,
    },
    /// A stream is being sent to a client as an archive.
    SnapshotCreate {
        /// The stream.
        stream: String,
        /// What it held at that time.
        state: Box<StreamState>,
        /// Who asked for it.
        client: Box<ClientInfo>,
    },
    /// The archive was sent, or given up.
    SnapshotComplete {
        /// The stream.
        stream: String,
        /// When it began.
        start: Timestamp,
        /// When it ended.
        end: Timestamp,
        /// Who asked for it.
        client: Box<ClientInfo>,
        /// Why it was given up; empty if it was not.
        #[serde(skip_serializing_if = "String::is_empty")]
        error: String,
    },
    /// A stream is being restored from an archive.
    RestoreCreate {
        /// The stream.
        stream: String,
        /// Who asked for it.
        client: Box<ClientInfo>,
    },
    /// The restore ended, well or not.
    RestoreComplete {
        /// The stream.
        stream: String,
        /// When it began.
        start: Timestamp,
        /// When it ended.
        end: Timestamp,
        /// Bytes of the archive that came.
        bytes: u64,
        /// Who asked for it.
        client: Box<ClientInfo>,
    },
    /// A stream has a new leader.
    StreamLeaderElected {
        /// The account.
        #[serde(skip_serializing_if = "String::is_empty")]
        account: String,
        /// The stream.
        stream: String,
        /// Server name of the leader.
        leader: String,
        /// The nodes that hold it.
        replicas: Vec<PeerInfo>,
    },
    /// A stream has too few nodes to go on.
    StreamQuorumLost {
        /// The account.
        #[serde(skip_serializing_if = "String::is_empty")]
        account: String,
        /// The stream.
        stream: String,
        /// The nodes that hold it.
        replicas: Vec<PeerInfo>,
    },
    /// A consumer has a new leader.
    ConsumerLeaderElected {
        /// The account.
        #[serde(skip_serializing_if = "String::is_empty")]
        account: String,
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// Server name of the leader.
        leader: String,
        /// The nodes that hold it.
        replicas: Vec<PeerInfo>,
    },
    /// A consumer has too few nodes to go on.
    ConsumerQuorumLost {
        /// The account.
        #[serde(skip_serializing_if = "String::is_empty")]
        account: String,
        /// The stream.
        stream: String,
        /// The consumer.
        consumer: String,
        /// The nodes that hold it.
        replicas: Vec<PeerInfo>,
    },
    /// The meta group has a new leader.
    DomainLeaderElected {
        /// Server name of the leader.
        leader: String,
        /// The nodes of the group.
        replicas: Vec<PeerInfo>,
        /// The cluster's name.
        cluster: String,
    },
    /// A server can store nothing more.
    ServerOutOfStorage {
        /// Server name.
        server: String,
        /// Server id.
        server_id: String,
        /// The stream that noticed.
        #[serde(skip_serializing_if = "String::is_empty")]
        stream: String,
        /// The cluster's name.
        cluster: String,
    },
    /// A server was taken out of the cluster for good.
    ServerRemoved {
        /// Server name.
        server: String,
        /// Server id.
        server_id: String,
        /// The cluster's name.
        cluster: String,
    },
}

/// A call of the API and its answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ApiAudit {
    /// Name of the server that answered.
    pub server: String,
    /// Who called.
    pub client: ClientInfo,
    /// The subject of the call.
    pub subject: String,
    /// Its body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// The answer.
    pub response: String,
}

/// A client connection as events describe it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// When it connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Timestamp>,
    /// Its address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Its connection id.
    #[serde(skip_serializing_if = "is_zero")]
    pub id: u64,
    /// Its account.
    pub acc: String,
    /// Who it logged in as.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// What it calls itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Language of its library.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lang: String,
    /// Version of its library.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ver: String,
    /// Round-trip time in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub rtt: i64,
    /// Name of its server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// Name of the server's cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// `Client`, `Router`, ...
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// `nats`, `mqtt`, `websocket`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_type: String,
    /// Whether it stands for a service of another account.
    #[serde(skip_serializing_if = "is_false")]
    pub svc: bool,
}

/// One delivery of one message.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Delivered {
    /// The stream.
    pub stream: String,
    /// The consumer.
    pub consumer: String,
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// The message.
    pub stream_seq: Seq,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// Why a batch was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Abandoned {
    /// Nothing of it came for too long.
    Timeout,
    /// It had more messages than a batch may have.
    Large,
    /// A message of it was missing.
    Incomplete,
    /// A message of it was refused.
    Unsupported,
}

/// What was done to a stream or consumer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was created.
    Create,
    /// Its configuration was changed.
    Modify,
    /// It was deleted.
    Delete,
}

impl Action {
    const fn token(self) -> &'static str {
        match self {
            Self::Create => "CREATED",
            Self::Modify => "UPDATED",
            Self::Delete => "DELETED",
        }
    }
}

/// What an event needs besides itself to become a document.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// A new unique id.
    pub id: &'a str,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The JetStream domain, or empty.
    pub domain: &'a str,
}

impl Advisory {
    /// Where it is published.
    #[must_use]
    pub fn subject(&self) -> String {
        const ADVISORY: &str = "$JS.EVENT.ADVISORY";
        match self {
            Self::ApiAudit(_) => format!("{ADVISORY}.API"),
            Self::ApiLimitReached { .. } => format!("{ADVISORY}.API.LIMIT_REACHED"),
            Self::BatchAbandoned { stream, .. } => format!("{ADVISORY}.STREAM.BATCH_ABANDONED.{stream}"),
            Self::StreamAction { stream, action } => format!("{ADVISORY}.STREAM.{}.{stream}", action.token()),
            Self::ConsumerAction { stream, consumer, action } => {
                format!("{ADVISORY}.CONSUMER.{}.{stream}.{consumer}", action.token())
            }
            Self::ConsumerPause { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.PAUSE.{stream}.{consumer}")
            }
            Self::MaxDeliver { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.MAX_DELIVERIES.{stream}.{consumer}")
            }
            Self::Nak(Delivered { stream, consumer, .. }) => {
                format!("{ADVISORY}.CONSUMER.MSG_NAKED.{stream}.{consumer}")
            }
            Self::Terminated { delivered: Delivered { stream, consumer, .. }, .. } => {
                format!("{ADVISORY}.CONSUMER.MSG_TERMINATED.{stream}.{consumer}")
            }
            Self::ConsumerAck { stream, consumer, .. } => {
                format!("$JS.EVENT.METRIC.CONSUMER.ACK.{stream}.{consumer}")
            }
            Self::GroupPinned { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.PINNED.{stream}.{consumer}")
            }
            Self::GroupUnpinned { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.UNPINNED.{stream}.{consumer}")
            }
            Self::SnapshotCreate { stream, .. } => format!("{ADVISORY}.STREAM.SNAPSHOT_CREATE.{stream}"),
            Self::SnapshotComplete { stream, .. } => format!("{ADVISORY}.STREAM.SNAPSHOT_COMPLETE.{stream}"),
            Self::RestoreCreate { stream, .. } => format!("{ADVISORY}.STREAM.RESTORE_CREATE.{stream}"),
            Self::RestoreComplete { stream, .. } => format!("{ADVISORY}.STREAM.RESTORE_COMPLETE.{stream}"),
            Self::StreamLeaderElected { stream, .. } => format!("{ADVISORY}.STREAM.LEADER_ELECTED.{stream}"),
            Self::StreamQuorumLost { stream, .. } => format!("{ADVISORY}.STREAM.QUORUM_LOST.{stream}"),
            Self::ConsumerLeaderElected { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.LEADER_ELECTED.{stream}.{consumer}")
            }
            Self::ConsumerQuorumLost { stream, consumer, .. } => {
                format!("{ADVISORY}.CONSUMER.QUORUM_LOST.{stream}.{consumer}")
            }
            Self::DomainLeaderElected { .. } => format!("{ADVISORY}.DOMAIN.LEADER_ELECTED"),
            Self::ServerOutOfStorage { .. } => format!("{ADVISORY}.SERVER.OUT_OF_STORAGE"),
            Self::ServerRemoved { .. } => format!("{ADVISORY}.SERVER.REMOVED"),
        }
    }

    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ApiAudit(_) => "io.nats.jetstream.advisory.v1.api_audit",
            Self::ApiLimitReached { .. } => "io.nats.jetstream.advisory.v1.api_limit_reached",
            Self::BatchAbandoned { .. } => "io.nats.jetstream.advisory.v1.stream_batch_abandoned",
            Self::StreamAction { .. } => "io.nats.jetstream.advisory.v1.stream_action",
            Self::ConsumerAction { .. } => "io.nats.jetstream.advisory.v1.consumer_action",
            Self::ConsumerPause { .. } => "io.nats.jetstream.advisory.v1.consumer_pause",
            Self::MaxDeliver { .. } => "io.nats.jetstream.advisory.v1.max_deliver",
            Self::Nak(_) => "io.nats.jetstream.advisory.v1.nak",
            Self::Terminated { .. } => "io.nats.jetstream.advisory.v1.terminated",
            Self::ConsumerAck { .. } => "io.nats.jetstream.metric.v1.consumer_ack",
            Self::GroupPinned { .. } => "io.nats.jetstream.advisory.v1.consumer_group_pinned",
            Self::GroupUnpinned { .. } => "io.nats.jetstream.advisory.v1.consumer_group_unpinned",
            Self::SnapshotCreate { .. } => "io.nats.jetstream.advisory.v1.snapshot_create",
            Self::SnapshotComplete { .. } => "io.nats.jetstream.advisory.v1.snapshot_complete",
            Self::RestoreCreate { .. } => "io.nats.jetstream.advisory.v1.restore_create",
            Self::RestoreComplete { .. } => "io.nats.jetstream.advisory.v1.restore_complete",
            Self::StreamLeaderElected { .. } => "io.nats.jetstream.advisory.v1.stream_leader_elected",
            Self::StreamQuorumLost { .. } => "io.nats.jetstream.advisory.v1.stream_quorum_lost",
            Self::ConsumerLeaderElected { .. } => "io.nats.jetstream.advisory.v1.consumer_leader_elected",
            Self::ConsumerQuorumLost { .. } => "io.nats.jetstream.advisory.v1.consumer_quorum_lost",
            Self::DomainLeaderElected { .. } => "io.nats.jetstream.advisory.v1.domain_leader_elected",
            Self::ServerOutOfStorage { .. } => "io.nats.jetstream.advisory.v1.server_out_of_space",
            Self::ServerRemoved { .. } => "io.nats.jetstream.advisory.v1.server_removed",
        }
    }

    /// The document.
    #[must_use]
    pub fn encode(&self, stamp: Stamp<'_>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(rename = "type")]
            kind: &'a str,
            id: &'a str,
            timestamp: Timestamp,
            #[serde(flatten)]
            event: &'a Advisory,
            #[serde(skip_serializing_if = "str::is_empty")]
            domain: &'a str,
        }
        let document = Document {
            kind: self.kind(),
            id: stamp.id,
            timestamp: stamp.timestamp,
            event: self,
            domain: stamp.domain,
        };
        let mut out = Vec::with_capacity(256);
        push_json(&mut out, &document);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(advisory: &Advisory, subject: &str, document: &str) {
        let stamp = Stamp {
            id: "OIxN4XL7W2PPeRRl8rLC2R",
            timestamp: Timestamp::parse("2026-11-21T09:28:31.159460185Z").unwrap(),
            domain: "",
        };
        assert_eq!(advisory.subject(), subject);
        assert_eq!(String::from_utf8(advisory.encode(stamp)).unwrap(), document);
    }

    #[test]
    fn events_are_the_documents_of_nats() {
        check(
            &Advisory::StreamAction { stream: "EV".to_owned(), action: Action::Create },
            "$JS.EVENT.ADVISORY.STREAM.CREATED.EV",
            r#"{"type":"io.nats.jetstream.advisory.v1.stream_action","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","stream":"EV","action":"create"}"#,
        );
        check(
            &Advisory::ConsumerAck {
                stream: "EV".to_owned(),
                consumer: "c".to_owned(),
                consumer_seq: 1,
                stream_seq: Seq(1),
                ack_time: Nanos(101_019_079),
                deliveries: 1,
            },
            "$JS.EVENT.METRIC.CONSUMER.ACK.EV.c",
            r#"{"type":"io.nats.jetstream.metric.v1.consumer_ack","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","stream":"EV","consumer":"c","consumer_seq":1,"stream_seq":1,"ack_time":101019079,"deliveries":1}"#,
        );
        let delivered = Delivered {
            stream: "EV".to_owned(),
            consumer: "c".to_owned(),
            consumer_seq: 2,
            stream_seq: Seq(2),
            deliveries: 1,
        };
        check(
            &Advisory::Terminated { delivered, reason: "nogo1".to_owned() },
            "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.EV.c",
            r#"{"type":"io.nats.jetstream.advisory.v1.terminated","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","stream":"EV","consumer":"c","consumer_seq":2,"stream_seq":2,"deliveries":1,"reason":"nogo1"}"#,
        );
        check(
            &Advisory::MaxDeliver {
                stream: "EV".to_owned(),
                consumer: "c".to_owned(),
                stream_seq: Seq(3),
                deliveries: 1,
            },
            "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.EV.c",
            r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","stream":"EV","consumer":"c","stream_seq":3,"deliveries":1}"#,
        );
        check(
            &Advisory::GroupPinned {
                account: "$G".to_owned(),
                stream: "EV".to_owned(),
                consumer: "c".to_owned(),
                group: "g".to_owned(),
                pinned_id: "bOVALvxAuHHSJVqZFKfSrM".to_owned(),
            },
            "$JS.EVENT.ADVISORY.CONSUMER.PINNED.EV.c",
            r#"{"type":"io.nats.jetstream.advisory.v1.consumer_group_pinned","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","account":"$G","stream":"EV","consumer":"c","group":"g","pinned_id":"bOVALvxAuHHSJVqZFKfSrM"}"#,
        );
        check(
            &Advisory::GroupUnpinned {
                account: "$G".to_owned(),
                stream: "EV".to_owned(),
                consumer: "c".to_owned(),
                group: "g".to_owned(),
                reason: "timeout".to_owned(),
            },
            "$JS.EVENT.ADVISORY.CONSUMER.UNPINNED.EV.c",
            r#"{"type":"io.nats.jetstream.advisory.v1.consumer_group_unpinned","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","account":"$G","stream":"EV","consumer":"c","group":"g","reason":"timeout"}"#,
        );
        check(
            &Advisory::ServerRemoved {
                server: "n3".to_owned(),
                server_id: "NC5ZPM4U3CBO3DTJF3MVYEYKUV55BAXZJLHS5OAELNVAWBFFJCF7VEOC".to_owned(),
                cluster: "west".to_owned(),
            },
            "$JS.EVENT.ADVISORY.SERVER.REMOVED",
            r#"{"type":"io.nats.jetstream.advisory.v1.server_removed","id":"OIxN4XL7W2PPeRRl8rLC2R","timestamp":"2026-11-21T09:28:31.159460185Z","server":"n3","server_id":"NC5ZPM4U3CBO3DTJF3MVYEYKUV55BAXZJLHS5OAELNVAWBFFJCF7VEOC","cluster":"west"}"#,
        );
    }
}
