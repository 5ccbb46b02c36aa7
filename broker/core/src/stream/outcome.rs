//! What a command leads to: changes of the message store, an answer, and events for the leader.

use levee_protocol::api::{ApiError, ConsumerConfig};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::Timestamp;

use super::messages::Removals;

/// Everything that follows from one command.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For the message store, in this order.
    pub changes: Vec<Change>,
    /// For whoever proposed the command.
    pub reply: Reply,
    /// For what lives on the leader: consumers, advisories.
    pub events: Vec<Event>,
}

impl Outcome {
    /// Nothing but an answer.
    pub(super) fn reply(reply: Reply) -> Self {
        Self { changes: Vec::new(), reply, events: Vec::new() }
    }

    /// A configuration is in force; removals that follow from it.
    pub(super) fn configured(removals: Removals) -> Self {
        let mut outcome = Self::removed(removals, Reply::Configured);
        outcome.events.insert(0, Event::Configured);
        outcome
    }

    /// Removals, and an answer.
    pub(super) fn removed(removals: Removals, reply: Reply) -> Self {
        let mut outcome = Self::reply(reply);
        outcome.remove(removals);
        outcome
    }

    /// The accepted ones of a block of `count` records, removals, and an answer.
    pub(super) fn stored(
        first_seq: Seq,
        count: u32,
        accepted: &[u32],
        removals: Removals,
        reply: Reply,
    ) -> Self {
        let mut outcome = Self::reply(reply);
        if !accepted.is_empty() {
            let holes = if accepted.len() == count as usize { Vec::new() } else { holes(count, accepted) };
            outcome.changes.push(Change::Stored { first_seq, holes });
            let last = Seq(first_seq.0 + accepted.len() as u64 - 1);
            outcome.events.push(Event::Appended { first: first_seq, last });
        }
        outcome.remove(removals);
        outcome
    }

    fn remove(&mut self, removals: Removals) {
        for (first, last) in removals.runs {
            let (first, last) = (Seq(first), Seq(last));
            self.changes.push(Change::Removed { first, last });
            self.events.push(Event::Removed { first, last });
        }
    }
}

fn holes(count: u32, accepted: &[u32]) -> Vec<u32> {
    let mut accepted = accepted.iter().copied().peekable();
    (0..count).filter(|position| accepted.next_if_eq(position).is_none()).collect()
}

/// A change of the message store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The records of the command's block at positions `0..count` except `holes`, in order, got consecutive sequences
    /// from `first_seq`. Sequences before it that were never stored stay empty.
    Stored {
        /// Sequence of the first accepted record.
        first_seq: Seq,
        /// Positions of records that were not accepted, ascending.
        holes: Vec<u32>,
    },
    /// These sequences, inclusive and all live until now, are gone.
    Removed {
        /// First sequence.
        first: Seq,
        /// Last sequence.
        last: Seq,
    },
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nobody asked.
    None,
    /// One answer per record of the block, in order.
    Publish(Vec<PublishReply>),
    /// So many messages were removed.
    Purged(u64),
    /// The message was removed.
    Deleted,
    /// The consumer exists as asked for.
    Consumer(Box<ConsumerCreated>),
    /// The consumer was removed.
    ConsumerDeleted,
    /// The consumer delivers nothing until this time; `Timestamp::ZERO` is not paused.
    Paused {
        /// Until when.
        until: Timestamp,
    },
    /// A consumer begins again.
    Reset {
        /// The next message that it looks at.
        seq: Seq,
    },
    /// The configuration is in force.
    Configured,
    /// Refused by a rule; nothing changed.
    Rejected(ApiError),
}

/// The answer to one publish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublishReply {
    /// Stored under this sequence.
    Stored {
        /// Its sequence.
        seq: Seq,
        /// Sequence of the message that was the last one of its subject; 0 if there was none.
        before: Seq,
    },
    /// A message with this id was stored within the duplicate window.
    Duplicate {
        /// Sequence of that message.
        seq: Seq,
    },
    /// A message before it in its chain was refused, and so it was not looked at.
    Skipped,
    /// What the leader wrote does not fit the state any more, and was not stored.
    Outdated,
    /// Refused by a rule.
    Rejected(ApiError),
}

/// A consumer as it is after a create or update.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerCreated {
    /// Its name.
    pub name: ConsumerName,
    /// Whether it did not exist before.
    pub created: bool,
}

/// Something that happened to the stream, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Messages were stored.
    Appended {
        /// First sequence.
        first: Seq,
        /// Last sequence.
        last: Seq,
    },
    /// Messages are gone.
    Removed {
        /// First sequence.
        first: Seq,
        /// Last sequence.
        last: Seq,
    },
    /// A consumer is new.
    ConsumerCreated {
        /// Which.
        name: ConsumerName,
    },
    /// A consumer has another configuration, or was paused, resumed or reset.
    ConsumerUpdated {
        /// Which.
        name: ConsumerName,
    },
    /// A consumer is gone.
    ConsumerDeleted {
        /// Which.
        name: ConsumerName,
        /// Its last configuration.
        config: Box<ConsumerConfig>,
    },
    /// The stream has another configuration.
    Configured,
}
