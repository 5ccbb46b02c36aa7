//! Hot path: publishes become log entries. One copy per message (into the block), no allocation, lock, task or
//! log line per message; one lock per read chunk of a publisher.
//!
//! Whatever waits when a proposal can leave is one block: batches grow with load and a lone publish never
//! waits for company, nor for a task: its publisher's session proposes it, and whoever applies it answers. Under
//! load the ingest's task does both, and always for streams that do not store messages as they come. A few proposals
//! are in flight at a time, so that the leader's sync overlaps replication. A full queue stops the publisher's socket
//! (decision 9); nothing is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::future::BoxFuture;
use levee_broker_core::stream::fast::Said;
use levee_broker_core::stream::{Composition, PublishReply, Reply};
use levee_protocol::api::{ApiError, PubAck, fast_batch, stored_header};
use levee_protocol::ids::AccountName;
use levee_protocol::record::RECORD_ROOM_BYTES;
use levee_raft::ProposeError;
use levee_storage::kind::BLOCK;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::jetstream::JetStream;
use crate::router::{Inbound, InboundItem, MessageRef, RouteBatch};
use crate::runtime::clock::monotonic;
use crate::stream::Replica;
use crate::stream::compose::{Acks, Composed, Composer};
use crate::stream::held::{self, Answer};
use crate::stream::queue::{Arrived, Queue};
use crate::stream::quota::{self, Charge};

/// Read chunks in a block that are answered where it is applied. With more, writing to their clients would hold up
/// what is applied next.
const ANSWERED_AT_ONCE_MAX: usize = 4;

/// The queue of publishes in front of a stream's log, on its leader.
pub struct Ingest {
    stream: PubAckStream,
    replica: Weak<Replica>,
    jetstream: Weak<JetStream>,
    queue: Mutex<Queue>,
    /// Something waits: to be proposed, or to be answered.
    ready: Notify,
    /// There is room again.
    room: Notify,
    answering: Mutex<Answering>,
}

/// What became of a block: the entry's number in the log and the answer of apply.
type Outcome = Result<(u64, levee_raft::Reply), Refused>;

/// What a block was made of.
enum Asked {
    /// Messages as they came: a record for each.
    Plain(Vec<Arrived>),
    /// What a composer made of them.
    Composed(Box<Composed>),
}

/// What is on its way back to publishers.
#[derive(Default)]
struct Answering {
    /// Blocks whose outcome is known, in order.
    known: VecDeque<(Asked, Outcome)>,
    /// Made when it is first needed: most streams of a large node are quiet.
    route: Option<RouteBatch>,
    text: Vec<u8>,
}

/// Why a publish can't be answered with a PubAck of its own.
enum Refused {
    /// Leadership went away or the group stopped: silence, and the publisher retries.
    Silently,
    /// The node can't take it now: every message of the block gets this error.
    With(ApiError),
}

impl From<ProposeError> for Refused {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoRoom => Self::With(ApiError::insufficient_resources()),
            ProposeError::Full => Self::With(ApiError::too_many_requests()),
            _ => Self::Silently,
        }
    }
}

impl Ingest {
    /// An empty queue.
    #[must_use]
    pub fn new(stream: PubAckStream, replica: &Arc<Replica>, jetstream: &Arc<JetStream>) -> Arc<Self> {
        Arc::new(Self {
            stream,
            replica: Arc::downgrade(replica),
            jetstream: Arc::downgrade(jetstream),
            queue: Mutex::new(Queue::default()),
            ready: Notify::new(),
            room: Notify::new(),
            answering: Mutex::default(),
        })
    }

    /// Queues a read chunk's publishes, in order. A future comes back when the queue is full: whoever reads the
    /// publisher's socket waits for it before reading on.
    pub fn accept(self: &Arc<Self>, account: &AccountName, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        let batch = self.without_refused_batches(account, batch);
        let mut queue = self.queue.lock();
        queue.push(account, batch);
        let full = queue.is_full();
        self.propose_or_wake(queue);
        full.then(|| Arc::clone(self).wait_for_room())
    }

    /// Queues publishes that came from another node, whose link can not be made to wait; gives them back when the
    /// queue is full.
    pub fn accept_bounded(self: &Arc<Self>, account: &AccountName, batch: Inbound) -> Result<(), Inbound> {
        let batch = self.without_refused_batches(account, batch);
        let mut queue = self.queue.lock();
        if queue.is_full() {
            return Err(batch);
        }
        queue.push(account, batch);
        self.propose_or_wake(queue);
        Ok(())
    }

    /// Takes messages of fast batches out of what comes to a stream that does not allow them, and says so.
    fn without_refused_batches(&self, account: &AccountName, mut batch: Inbound) -> Inbound {
        if !batch.items.iter().any(is_fast_in(&batch.chunk)) {
            return batch;
        }
        let (Some(replica), Some(jetstream)) = (self.replica.upgrade(), self.jetstream.upgrade()) else {
            return batch;
        };
        let refused = replica.read(|machine, _| {
            let config = machine.config().filter(|config| !config.allow_batched)?;
            let error = if config.sealed { ApiError::stream_sealed() } else { ApiError::batch_disabled() };
            Some((error, config.no_ack))
        });
        let Some((error, no_ack)) = refused else { return batch };
        let mut text = Vec::new();
        PubAck::encode_rejection(&self.stream.name, &error, &mut text);
        let (fast, rest): (Vec<InboundItem>, Vec<InboundItem>) =
            std::mem::take(&mut batch.items).into_iter().partition(is_fast_in(&batch.chunk));
        let mut route = jetstream.router().batch();
        for to in fast.iter().filter(|_| !no_ack).map(|item| item.reply.of(&batch.chunk)) {
            route.send(account, to, MessageRef { subject: to, payload: &text, ..MessageRef::default() });
        }
        batch.items = rest;
        batch
    }

    /// Comes when all publishes that are here now are answered, or can not be.
    pub fn told(&self) -> oneshot::Receiver<()> {
        self.queue.lock().ask()
    }

    /// Drops what waits and lets everybody go who waits for room.
    pub fn close(&self) {
        *self.queue.lock() = Queue::closed();
        self.room.notify_waiters();
    }

    fn wait_for_room(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let room = self.room.notified();
                if !self.queue.lock().is_full() {
                    return;
                }
                room.await;
            }
        })
    }

    /// Proposes and answers what was left to it, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let Some(jetstream) = self.jetstream.upgrade() else { return };
        let mut composer = Composer::new(&jetstream);
        drop(jetstream);
        loop {
            let expiry = composer.next_expiry();
            // All are cancel safe.
            tokio::select! {
                () = self.ready.notified() => {}
                () = tokio::time::sleep_until(expiry.unwrap_or_else(monotonic)), if expiry.is_some() => {
                    let Some(replica) = self.replica.upgrade() else { return };
                    composer.expire(&replica.assignment().account, &self.stream.name);
                }
                answers = composer.held.next() => self.send(answers),
            }
            // The next block first: its sync takes longer than answers do.
            loop {
                while self.propose_next(&mut composer) {}
                while let Some(answers) = composer.held.next_now() {
                    self.send(answers);
                }
                if !self.answer_next(&mut composer) {
                    break;
                }
            }
        }
    }

    /// With nothing in flight the caller proposes. Others' messages that wait go along, so nobody else proposes until
    /// it has.
    fn propose_or_wake(self: &Arc<Self>, queue: MutexGuard<'_, Queue>) {
        let is_idle = queue.is_idle();
        drop(queue);
        if !(is_idle && self.propose_here()) {
            self.ready.notify_one();
        }
    }

    /// Proposes from the caller's task. False if something is left to the ingest's.
    fn propose_here(self: &Arc<Self>) -> bool {
        let Some(replica) = self.replica.upgrade() else { return true };
        if replica.read(|machine, _| machine.composition().is_some()) {
            return false;
        }
        let mut queue = self.queue.lock();
        if !queue.is_idle() || queue.proposing {
            return false;
        }
        let Some(batches) = self.take(&mut queue) else { return true };
        queue.proposing = true;
        drop(queue);
        let proposing = Proposing(self);
        self.propose(&replica, batches);
        drop(proposing);
        self.queue.lock().is_empty()
    }

    fn propose_next(self: &Arc<Self>, composer: &mut Composer) -> bool {
        let Some(replica) = self.replica.upgrade() else { return false };
        let composition = replica.read(|machine, _| machine.composition().cloned());
        let mut queue = self.queue.lock();
        // A sum follows from the one before, so that one has to be applied.
        let counts = composition.as_ref().is_some_and(|composition| composition.counts);
        // What comes next of a batch without holes depends on what is under way of it.
        let waits = (counts && !queue.is_idle()) || composer.waits_for_outcome();
        if waits || !queue.may_propose() {
            return false;
        }
        let Some(batches) = self.take(&mut queue) else { return false };
        drop(queue);
        match composition {
            Some(composition) => self.propose_composed(&replica, &composition, composer, batches),
            None => self.propose(&replica, batches),
        }
        true
    }

    /// What the next block is made of.
    fn take(&self, queue: &mut Queue) -> Option<Vec<Arrived>> {
        let was_full = queue.is_full();
        let taken = queue.take();
        if was_full && !queue.is_full() {
            self.room.notify_waiters();
        }
        taken
    }

    fn propose(self: &Arc<Self>, replica: &Replica, batches: Vec<Arrived>) {
        let Some(jetstream) = self.jetstream.upgrade() else { return };
        let inbound = batches.iter().map(|arrived| &arrived.batch);
        let charge = match quota::admit_messages(&jetstream, &replica.assignment(), inbound) {
            Ok(charge) => charge,
            Err(error) => return self.done(Asked::Plain(batches), Err(Refused::With(error))),
        };
        let memory = jetstream.storage().block_memory();
        // Not the length of the chunks: those have messages of other streams, too, and the block stays for a while.
        let mut block = memory.builder(batches.iter().map(|arrived| stored_bytes(&arrived.batch)).sum());
        for Arrived { batch, .. } in &batches {
            for item in &batch.items {
                block.push(batch.subject(item), &stored_header(batch.header(item)), batch.payload(item));
            }
        }
        let block = memory.finish(block, replica.now(jetstream.clock()));
        self.propose_block(replica, block.as_bytes().clone(), Asked::Plain(batches), charge);
    }

    fn propose_composed(
        self: &Arc<Self>,
        replica: &Replica,
        composition: &Arc<Composition>,
        composer: &mut Composer,
        batches: Vec<Arrived>,
    ) {
        let Some(jetstream) = self.jetstream.upgrade() else { return };
        let inbound = batches.iter().map(|arrived| &arrived.batch);
        let charge = match quota::admit_messages(&jetstream, &replica.assignment(), inbound) {
            Ok(charge) => charge,
            Err(error) => return self.done(Asked::Plain(batches), Err(Refused::With(error))),
        };
        let now = replica.now(jetstream.clock());
        let count = batches.len();
        let arrived = batches.into_iter().map(|arrived| (arrived.account, arrived.batch));
        let (composed, at_once) = replica
            .read(|machine, view| composer.compose(&self.stream, composition, (machine, view), arrived, now));
        if !no_acks(replica) {
            let mut answering = self.answering.lock();
            let route = answering.route.get_or_insert_with(|| jetstream.router().batch());
            at_once.send(&self.stream, route);
        }
        match composed {
            Some(composed) => {
                let block = composed.block.as_bytes().clone();
                self.propose_block(replica, block, Asked::Composed(Box::new(composed)), charge);
            }
            // Nothing of it goes to the log now.
            None => {
                let mut queue = self.queue.lock();
                queue.landed();
                queue.are_answered(count);
            }
        }
    }

    fn propose_block(self: &Arc<Self>, replica: &Replica, block: Bytes, asked: Asked, charge: Charge) {
        let ingest = Arc::clone(self);
        let then = Box::new(move |outcome: Result<_, ProposeError>| {
            drop(charge);
            ingest.done(asked, outcome.map_err(Refused::from));
        });
        replica.group().propose_then(BLOCK, block, then);
    }

    /// What became of a block is known, in the order of blocks.
    fn done(&self, asked: Asked, outcome: Outcome) {
        let mut answering = self.answering.lock();
        let (left_to_task, answered) = match asked {
            Asked::Plain(batches) if batches.len() <= ANSWERED_AT_ONCE_MAX && answering.known.is_empty() => {
                self.answer(&mut answering, &batches, outcome);
                (false, batches.len())
            }
            asked => {
                answering.known.push_back((asked, outcome));
                (true, 0)
            }
        };
        drop(answering);
        let mut queue = self.queue.lock();
        queue.landed();
        queue.are_answered(answered);
        if left_to_task || queue.may_propose() {
            drop(queue);
            self.ready.notify_one();
        }
    }

    fn answer_next(&self, composer: &mut Composer) -> bool {
        let mut answering = self.answering.lock();
        let Some((asked, outcome)) = answering.known.pop_front() else { return false };
        match asked {
            Asked::Plain(batches) => {
                self.answer(&mut answering, &batches, outcome);
                drop(answering);
                self.queue.lock().are_answered(batches.len());
            }
            Asked::Composed(composed) => {
                let (Some(replica), Some(jetstream)) = (self.replica.upgrade(), self.jetstream.upgrade())
                else {
                    return false;
                };
                let acks = if no_acks(&replica) { Acks::None } else { Acks::Sent };
                let Some(replies) = replies_or_error(outcome, composed.block.count()) else {
                    composer.lost_count();
                    self.queue.lock().are_answered(composed.batches);
                    return true;
                };
                let route = answering.route.get_or_insert_with(|| jetstream.router().batch());
                let again = composer.answer(&self.stream, route, &composed, &replies, acks);
                drop(answering);
                self.put_back(again);
                self.queue.lock().are_answered(composed.batches);
            }
        }
        true
    }

    fn send(&self, answers: Vec<Answer>) {
        let Some(jetstream) = self.jetstream.upgrade() else { return };
        let mut answering = self.answering.lock();
        let route = answering.route.get_or_insert_with(|| jetstream.router().batch());
        held::send(answers, route);
    }

    /// Puts back what has to be proposed again, in front of what came later.
    fn put_back(&self, again: VecDeque<(AccountName, Inbound)>) {
        let mut queue = self.queue.lock();
        for (account, batch) in again.into_iter().rev() {
            queue.put_back(account, batch);
        }
    }

    fn answer(&self, answering: &mut Answering, batches: &[Arrived], outcome: Outcome) {
        let (Some(replica), Some(jetstream)) = (self.replica.upgrade(), self.jetstream.upgrade()) else {
            return;
        };
        // A publish that carries a bad expectation is not told either.
        if no_acks(&replica) {
            return;
        }
        let route = answering.route.get_or_insert_with(|| jetstream.router().batch());
        self.stream.answer(route, &mut answering.text, batches, outcome);
    }
}

/// Nobody else proposes while this lives.
struct Proposing<'a>(&'a Ingest);

impl Drop for Proposing<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().proposing = false;
        if std::thread::panicking() {
            self.0.ready.notify_one();
        }
    }
}

/// What the messages take in a block, about.
fn stored_bytes(batch: &Inbound) -> usize {
    let bytes = |item| batch.subject(item).len() + batch.header(item).len() + batch.payload(item).len();
    batch.items.iter().map(|item| RECORD_ROOM_BYTES + bytes(item)).sum()
}

fn is_fast_in(chunk: &Bytes) -> impl Fn(&InboundItem) -> bool + '_ {
    move |item| fast_batch::is_fast(item.reply.of(chunk))
}

/// What a PubAck of this stream says besides the sequence.
#[derive(Clone)]
pub struct PubAckStream {
    /// The stream's name.
    pub name: String,
    /// The JetStream domain, or empty.
    pub domain: String,
}

impl PubAckStream {
    /// Appends the answer to one publish: its sum if it counts, and the batch that it commits and how many messages
    /// that has.
    pub(super) fn encode(
        &self,
        reply: &PublishReply,
        (value, batch, count): (&str, &str, u64),
        out: &mut Vec<u8>,
    ) {
        let (stream, domain) = (self.name.as_str(), self.domain.as_str());
        match reply {
            PublishReply::Stored { seq, .. } => {
                PubAck { stream, seq: *seq, domain, duplicate: false, value, batch, count }.encode(out);
            }
            PublishReply::Duplicate { seq } => {
                PubAck { stream, seq: *seq, domain, duplicate: true, ..PubAck::default() }.encode(out);
            }
            PublishReply::Rejected(error) => PubAck::encode_rejection(stream, error, out),
            // The stream was reconfigured while this was on its way.
            PublishReply::Outdated | PublishReply::Skipped => {
                PubAck::encode_rejection(stream, &ApiError::not_available(), out)
            }
        }
    }

    /// What the publisher of a fast batch is told.
    pub(super) fn encode_fast(&self, batch: &str, said: &Said) -> Vec<u8> {
        let mut text = Vec::new();
        match said {
            Said::Ack { seq, msgs } => return fast_batch::flow_ack(*seq, *msgs),
            Said::Gap { expected, seq } => return fast_batch::flow_gap(*expected, *seq),
            Said::Error { seq, error } => return fast_batch::flow_error(*seq, error),
            Said::Ended { seq, count, duplicate } => {
                let (stream, domain) = (self.name.as_str(), self.domain.as_str());
                let (seq, count, duplicate) = (*seq, *count, *duplicate);
                PubAck { stream, seq, domain, duplicate, value: "", batch, count }.encode(&mut text);
            }
            Said::Refused(error) => PubAck::encode_rejection(&self.name, error, &mut text),
        }
        text
    }

    fn answer(&self, route: &mut RouteBatch, text: &mut Vec<u8>, batches: &[Arrived], outcome: Outcome) {
        let messages = batches.iter().map(|arrived| arrived.batch.items.len()).sum::<usize>();
        let messages = u32::try_from(messages).expect("a block is bounded");
        let Some(replies) = replies_or_error(outcome, messages) else { return };
        let mut replies = replies.into_iter();
        for Arrived { account, batch } in batches {
            for item in &batch.items {
                let Some(reply) = replies.next() else { return };
                let to = batch.reply(item);
                if to.is_empty() {
                    continue;
                }
                text.clear();
                self.encode(&reply, ("", "", 0), text);
                route.send(account, to, MessageRef { subject: to, payload: text, ..MessageRef::default() });
            }
        }
        route.flush();
    }
}

fn no_acks(replica: &Replica) -> bool {
    replica.read(|machine, _| machine.config().is_some_and(|config| config.no_ack))
}

/// A reply for each of `count` records, or `None` if nobody can say.
fn replies_or_error(outcome: Outcome, count: u32) -> Option<Vec<PublishReply>> {
    match replies_of(outcome) {
        Ok(replies) => Some(replies),
        Err(Refused::Silently) => None,
        Err(Refused::With(error)) => Some(vec![PublishReply::Rejected(error); count as usize]),
    }
}

fn replies_of(outcome: Outcome) -> Result<Vec<PublishReply>, Refused> {
    let (_, reply) = outcome?;
    match reply.downcast::<Reply>().map(|reply| *reply) {
        Ok(Reply::Publish(replies)) => Ok(replies),
        Ok(Reply::Rejected(error)) => Err(Refused::With(error)),
        Ok(_) | Err(_) => Err(Refused::Silently),
    }
}
