//! What a client's user may do, with what changes while it is connected.
//!
//! Verdicts about publishing are made here and kept in the publisher's routes; verdicts about deliveries, in the
//! routes to the subscriber. So nothing here is asked per message, but for clients that are watched: those with a
//! subscription that is wider than what they may hear, and those that may answer requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use levee_broker_core::permission::{Permissions, Replies};
use parking_lot::Mutex;

use crate::runtime::clock;

/// Whether a client may publish on a subject.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Yes.
    #[default]
    Allowed,
    /// If it was asked to answer there.
    AnswersOnly,
    /// No.
    Denied,
}

/// Of one connection, from one CONNECT to the next.
#[derive(Debug)]
pub(crate) struct Guard {
    permissions: Arc<Permissions>,
    /// Whether deliveries are looked at, to all its subscriptions and until the end. On nats-server it is the first
    /// subscription that is wider than a denied subject that makes it so, for those to come and those before it:
    /// messages of a stream on a subject that is denied come to an inbox until then.
    narrows: AtomicBool,
    replies: Option<Mutex<Replies>>,
}

impl Guard {
    pub(crate) fn new(permissions: Arc<Permissions>) -> Self {
        let replies = permissions.grant().responses.map(|responses| Mutex::new(Replies::new(responses)));
        Self { permissions, narrows: AtomicBool::new(false), replies }
    }

    pub(crate) fn permissions(&self) -> &Permissions {
        &self.permissions
    }

    /// Before a subscription that may be made is made, and the router's generation moves.
    pub(crate) fn prepare(&self, filter: &[u8], queue: &[u8]) {
        if self.permissions.narrows(filter, queue) {
            self.narrows.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a message on `subject` is kept from a subscription with this queue group, or with none.
    pub(crate) fn keeps_away(&self, subject: &[u8], queue: &[u8]) -> bool {
        self.narrows.load(Ordering::Relaxed) && self.permissions.denies_delivery(subject, queue)
    }

    /// Whether each delivery is to be told.
    pub(crate) fn is_watchful(&self) -> bool {
        self.replies.is_some() || self.narrows.load(Ordering::Relaxed)
    }

    /// The verdict on a subject, which stays.
    pub(crate) fn judge(&self, subject: &[u8]) -> Verdict {
        match &self.replies {
            _ if self.permissions.may_publish(subject) => Verdict::Allowed,
            Some(_) => Verdict::AnswersOnly,
            None => Verdict::Denied,
        }
    }

    /// A message is delivered that wants an answer.
    pub(crate) fn asked(&self, reply: &[u8]) {
        if let Some(replies) = &self.replies
            && !self.permissions.may_publish(reply)
        {
            replies.lock().note(reply, now());
        }
    }

    /// Whether a message on a subject that may not be published on is an answer. If so, it counts as one.
    pub(crate) fn answers(&self, subject: &[u8]) -> bool {
        self.replies.as_ref().is_some_and(|replies| replies.lock().take(subject, now()))
    }
}

fn now() -> Duration {
    Duration::from_nanos(clock::ticks())
}

#[cfg(test)]
mod tests;
