//! What a stream's consumers did since the last report, folded into one entry for all of them.

use crate::ids::{ConsumerName, Seq};
use crate::time::Timestamp;

/// One progress entry.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// The leader's time.
    pub now: Timestamp,
    /// One row for each consumer that did something.
    pub consumers: Vec<ConsumerProgress>,
}

impl Progress {
    /// Whether it has anything to say that releases without dead letters, keys and kept waits do not know.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.consumers.iter().any(|consumer| {
            !consumer.dead.is_empty()
                || !consumer.passed.is_empty()
                || !consumer.waits.is_empty()
                || consumer.through != Seq::NONE
        })
    }
}

/// What one consumer did, in the order: messages that were passed over, deliveries, waits that were begun anew, messages
/// that were given up, settlements.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConsumerProgress {
    /// Which consumer.
    pub name: ConsumerName,
    /// The incarnation of the consumer this speaks of (its creation sequence in the log), so that progress of a
    /// deleted and re-created consumer of the same name is dropped.
    pub incarnation: u64,
    /// Messages that were passed over because their key was in flight, ascending. They are delivered later.
    pub passed: Vec<Seq>,
    /// Deliveries, in order.
    pub delivered: Vec<DeliveredRun>,
    /// Everything up to there was delivered or does not concern the consumer. Said when its filters change, because only
    /// the leader knows how far it has looked; `NONE` otherwise.
    pub through: Seq,
    /// Unacked messages whose wait for an ack counts from another time than their delivery, which may be to come: clients
    /// are still working on them, or want them later.
    pub waits: Vec<(Seq, Timestamp)>,
    /// Messages that were given up and become dead letters: unacked until they are settled, and not delivered again.
    pub dead: Vec<DeadMessage>,
    /// Settled stream sequences, as inclusive runs, in order.
    pub settled: Vec<SettledRun>,
}

/// A message that was given up and becomes a dead letter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeadMessage {
    /// Its stream sequence.
    pub seq: Seq,
    /// Why it was given up.
    pub cause: DeathCause,
    /// In the words of the client that terminated it, or empty.
    pub detail: String,
}

/// Why a message becomes a dead letter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeathCause {
    /// It was delivered `max_deliver` times.
    MaxDeliver,
    /// A client terminated it.
    Terminated,
}

/// Consecutive deliveries: delivery `i` of the run sent stream sequence `first_seq + i` under consumer sequence
/// `first_consumer_seq + i`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DeliveredRun {
    /// Consumer sequence of the first delivery.
    pub first_consumer_seq: u64,
    /// Stream sequence of the first delivery.
    pub first_seq: Seq,
    /// How many deliveries.
    pub count: u32,
    /// Which attempt this was, 1 for a first delivery; the same for the whole run.
    pub attempt: u32,
    /// When the leader sent them.
    pub at: Timestamp,
}

/// Consecutive stream sequences that were settled in one way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SettledRun {
    /// First stream sequence.
    pub first: Seq,
    /// Last stream sequence, inclusive.
    pub last: Seq,
    /// How.
    pub how: Settlement,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Settlement {
    /// Acknowledged one by one.
    Acked,
    /// Acknowledged by "all": everything up to and including `last` is settled; `first` equals `last`.
    AckedAll,
    /// Terminated: never again.
    Terminated,
    /// Reached `max_deliver`: no longer pending, but the message stays in the stream.
    Exhausted,
}
