//! What a dispatch wants done.

use bytes::Bytes;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::notice::Notice;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Send a message.
    Deliver(Delivery),
    /// Send a status.
    Notify(Notice),
    /// Publish an event.
    Advisory(Advisory),
    /// Nobody has used this consumer for its `inactive_threshold`: propose to delete it.
    Inactive,
    /// Nothing to do before this time, unless something is handed in; `None` is no timer.
    Sleep(Option<Timestamp>),
}

/// A message for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The inbox of a pull request, or the deliver subject. The message itself carries the record's subject.
    pub to: Bytes,
    /// What to send; with `headers_only` already without its body.
    pub record: Record,
    /// 1 for the first time this message is sent.
    pub attempt: u64,
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// Matching messages not delivered yet, after this one.
    pub pending: u64,
}

/// An event about one message, or about a priority group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Advisory {
    /// The consumer was paused, or goes on.
    Paused {
        /// Whether it is paused now.
        paused: bool,
        /// Until when it is or was.
        until: Timestamp,
    },
    /// A message reached `max_deliver`.
    MaxDeliveries {
        /// The message.
        stream_seq: Seq,
        /// How often it was sent.
        deliveries: u64,
    },
    /// A client refused a message.
    Naked {
        /// Number of the delivery.
        consumer_seq: u64,
        /// The message.
        stream_seq: Seq,
        /// How often it was sent.
        deliveries: u64,
    },
    /// A message will not be delivered again although nobody acked it.
    Terminated {
        /// Number of the delivery.
        consumer_seq: u64,
        /// The message.
        stream_seq: Seq,
        /// How often it was sent.
        deliveries: u64,
        /// In the words of the client, or of the stream that lost it.
        reason: String,
    },
    /// An ack that was chosen to be reported.
    Sampled {
        /// Number of the delivery.
        consumer_seq: u64,
        /// The message.
        stream_seq: Seq,
        /// How often it was sent.
        deliveries: u64,
        /// From delivery to ack.
        ack_time: Nanos,
    },
    /// A client got hold of a priority group.
    Pinned {
        /// The group.
        group: String,
        /// What the client calls itself from now on.
        id: String,
    },
    /// A client lost its hold of a priority group.
    Unpinned {
        /// The group.
        group: String,
        /// Why.
        reason: UnpinReason,
    },
}

/// Why a pin ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UnpinReason {
    /// Somebody asked for it, or changed the configuration so that there is no place for it.
    Admin,
    /// No request came for the consumer's `priority_timeout`.
    Timeout,
}

/// Whether the sender of an ack gets an answer, if it asked for one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Confirm {
    /// Never.
    #[default]
    No,
    /// The consumer takes no acks: the sender is told that nobody responds.
    Nobody,
    /// At once: nothing of it needs to be remembered.
    Now,
    /// When everything that `take_progress` has handed out, and hands out next, is applied.
    AfterProgress,
}

/// What follows from an ack.
#[derive(Debug, Default, PartialEq)]
pub struct AckOutcome {
    /// Whether and when to answer with an empty message.
    pub confirm: Confirm,
    /// Events to publish.
    pub advisories: Vec<Advisory>,
    /// The ack asks for more: the body of a pull request whose inbox is the ack's reply. There is no other answer.
    pub next: Option<Bytes>,
}
