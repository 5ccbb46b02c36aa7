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

/// A proposal under way. Dropping it does not take it back.
#[derive(Debug)]
pub struct Proposal(oneshot::Receiver<Outcome>);

impl Proposal {
    /// A proposal that was refused before it got anywhere.
    pub(crate) fn refused(error: ProposeError) -> Self {
        let (sender, receiver) = oneshot::channel();
        let _ = sender.send(Err(error));
        Self(receiver)
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
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Tickets>);

#[derive(Debug, Default)]
struct Tickets {
    last: u64,
    open: HashMap<u64, oneshot::Sender<Outcome>>,
}

impl Waiting {
    /// Registers one proposal: the half that openraft keeps and the half the proposer awaits.
    pub(crate) fn register<T>(self: &Arc<Self>) -> (Answer<T>, Proposal) {
        let (sender, receiver) = oneshot::channel();
        let mut tickets = self.0.lock();
        tickets.last += 1;
        let ticket = tickets.last;
        tickets.open.insert(ticket, sender);
        drop(tickets);
        (Answer { waiting: Some(Arc::clone(self)), ticket, result: PhantomData }, Proposal(receiver))
    }

    /// Releases everybody with "outcome unknown".
    pub(crate) fn release_all(&self, leader: Option<NodeId>) {
        let open = std::mem::take(&mut self.0.lock().open);
        for sender in open.into_values() {
            let _ = sender.send(Err(ProposeError::Unknown { leader }));
        }
    }

    fn answer(&self, ticket: u64, outcome: Outcome) {
        let sender = self.0.lock().open.remove(&ticket);
        if let Some(sender) = sender {
            let _ = sender.send(outcome);
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
            waiting.answer(self.ticket, Err(ProposeError::Stopped));
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
