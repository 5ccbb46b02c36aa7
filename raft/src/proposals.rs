//! Hot path: proposals on their way through the log. One lock of a few lines per proposal, which is a batch of
//! messages; nothing per message.
//!
//! openraft answers a proposal when it is applied or discarded. A leader that is cut off does neither, so the
//! waiting side is kept here, where it can be released at once with "outcome unknown".

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use levee_protocol::ids::NodeId;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::error::ProposeError;
use crate::machine::Reply;
use crate::types::TypeConfig;

/// What a proposal resolves to: its log index and what the machine replied.
pub type Outcome = Result<(u64, Reply), ProposeError>;

/// Called once with what became of a proposal.
pub type Then = Box<dyn FnOnce(Outcome) + Send>;

/// A proposal under way. Dropping it does not take it back.
#[derive(Debug)]
pub struct Proposal(oneshot::Receiver<Outcome>);

impl Proposal {
    /// Both ends of one.
    pub(crate) fn new() -> (Then, Self) {
        let (sender, receiver) = oneshot::channel();
        let then = move |outcome| {
            let _ = sender.send(outcome);
        };
        (Box::new(then), Self(receiver))
    }
}

impl Future for Proposal {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        // The sending side goes without a word only when the whole group goes.
        Pin::new(&mut self.0).poll(context).map(|outcome| outcome.unwrap_or(Err(ProposeError::Stopped)))
    }
}

/// Who waits for which proposal of one group.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<Tickets>);

#[derive(Default)]
struct Tickets {
    last: u64,
    open: HashMap<u64, Open>,
}

struct Open {
    then: Then,
    way: Way,
}

/// How far a proposal got.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Way {
    /// The caller still tries to queue it.
    Offered,
    /// It was dropped meanwhile; the caller knows why.
    Dropped,
    /// openraft has it.
    Queued,
}

impl Waiting {
    /// Registers one proposal: the half that openraft keeps, and its ticket.
    pub(crate) fn register<T>(self: &Arc<Self>, then: Then) -> (Answer<T>, u64) {
        let mut tickets = self.0.lock();
        tickets.last += 1;
        let ticket = tickets.last;
        tickets.open.insert(ticket, Open { then, way: Way::Offered });
        drop(tickets);
        (Answer { waiting: Some(Arc::clone(self)), ticket, result: PhantomData }, ticket)
    }

    /// Releases everybody with "outcome unknown".
    pub(crate) fn release_all(&self, leader: Option<NodeId>) {
        let open = std::mem::take(&mut self.0.lock().open);
        for Open { then, .. } in open.into_values() {
            then(Err(ProposeError::Unknown { leader }));
        }
    }

    /// openraft took the proposal: from now on it is dropped only with the group.
    pub(crate) fn queued(&self, ticket: u64) {
        let mut tickets = self.0.lock();
        let Some(open) = tickets.open.get_mut(&ticket) else { return };
        let was_dropped = open.way == Way::Dropped;
        open.way = Way::Queued;
        drop(tickets);
        if was_dropped {
            self.answer(ticket, Err(ProposeError::Stopped));
        }
    }

    fn dropped(&self, ticket: u64) {
        let mut tickets = self.0.lock();
        let Some(open) = tickets.open.get_mut(&ticket) else { return };
        if open.way == Way::Offered {
            open.way = Way::Dropped;
            return;
        }
        drop(tickets);
        self.answer(ticket, Err(ProposeError::Stopped));
    }

    /// Answers a proposal that was not answered yet.
    pub(crate) fn answer(&self, ticket: u64, outcome: Outcome) {
        let open = self.0.lock().open.remove(&ticket);
        if let Some(Open { then, .. }) = open {
            then(outcome);
        }
    }
}

/// openraft's half of a proposal.
pub(crate) struct Answer<T> {
    waiting: Option<Arc<Waiting>>,
    ticket: u64,
    result: PhantomData<fn(T)>,
}

impl<T: Send + 'static> Responder<TypeConfig, T> for Answer<T> {
    fn on_complete(mut self, result: T) {
        let Some(waiting) = self.waiting.take() else { return };
        // The trait is generic over the result, and client writes are the only results we ask for.
        let mut result = Some(result);
        let Some(written) =
            (&mut result as &mut dyn Any).downcast_mut::<Option<ClientWriteResult<TypeConfig>>>()
        else {
            debug_assert!(false, "a responder for something else than a client write");
            return waiting.answer(self.ticket, Err(ProposeError::Stopped));
        };
        let Some(written) = written.take() else { return };
        waiting.answer(self.ticket, outcome(written));
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.dropped(self.ticket);
        }
    }
}

fn outcome(written: ClientWriteResult<TypeConfig>) -> Outcome {
    match written {
        Ok(response) => Ok((response.log_id.index, response.data.0)),
        Err(ClientWriteError::ForwardToLeader(to)) => Err(ProposeError::NotLeader { leader: to.leader_id }),
        Err(ClientWriteError::LogEntryDiscarded(to)) => Err(ProposeError::Unknown { leader: to.leader_id }),
        // Neither membership nor preconditions are part of a plain write.
        Err(ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)) => {
            Err(ProposeError::Unknown { leader: None })
        }
    }
}
