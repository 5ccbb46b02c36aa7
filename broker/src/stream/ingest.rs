//! Hot path: publishes become log entries. One copy per message (into the block), no allocation, lock, task or
//! log line per message; one lock per read chunk of a publisher.
//!
//! Whatever waits when a proposal can leave is one block: batches grow with load and a lone publish never
//! waits for company. A few proposals are in flight at a time, so that the leader's sync overlaps replication.
//! A full queue stops the publisher's socket (decision 9); nothing is dropped.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::api::{ApiError, PubAck, stored_header};
use levee_protocol::ids::AccountName;
use levee_protocol::record::BlockBuilder;
use levee_raft::ProposeError;
use levee_storage::kind::BLOCK;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::jetstream::JetStream;
use crate::router::{Inbound, MessageRef, RouteBatch};
use crate::runtime::clock::monotonic;
use crate::stream::Replica;
use crate::stream::compose::{Acks, Composed, Composer};

/// Proposals of one stream that may wait for their sync and majority at the same time. One measured 657k
/// messages a second on three in-process nodes, two and more 760k to 1.1M.
const IN_FLIGHT_MAX: usize = 4;
/// A block is closed when it holds this many messages or bytes.
const BLOCK_MESSAGES_MAX: usize = 2048;
const BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// A publisher's socket is no longer read while this much waits.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
const QUEUE_MESSAGES_MAX: usize = 100_000;

/// The queue of publishes in front of a stream's log, on its leader.
pub struct Ingest {
    queue: Mutex<Queue>,
    /// Something waits.
    ready: Notify,
    /// There is room again.
    room: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arrived>,
    messages: usize,
    bytes: usize,
    /// The leader is gone: what comes now is not answered, and its publishers try again.
    closed: bool,
}

struct Arrived {
    account: AccountName,
    batch: Inbound,
}

/// Publishes, and what became of their block.
type Answered = (Asked, Result<(u64, levee_raft::Reply), ProposeError>);

/// What a block was made of.
enum Asked {
    /// Messages as they came: a record for each.
    Plain(Vec<Arrived>),
    /// What a composer made of them.
    Composed(Box<Composed>),
}

/// Why a publish can't be answered with a PubAck of its own.
enum Refused {
    /// Leadership went away or the group stopped: silence, and the publisher retries.
    Silently,
    /// The node can't take it now: every message of the block gets this error.
    With(ApiError),
}

impl Ingest {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { queue: Mutex::new(Queue::default()), ready: Notify::new(), room: Notify::new() })
    }

    /// Queues a read chunk's publishes, in order. A future comes back when the queue is full: whoever reads the
    /// publisher's socket waits for it before reading on.
    pub fn accept(self: &Arc<Self>, account: &AccountName, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        let mut queue = self.queue.lock();
        queue.push(account, batch);
        let full = queue.is_full();
        drop(queue);
        self.ready.notify_one();
        full.then(|| Arc::clone(self).wait_for_room())
    }

    /// Queues publishes that came from another node, whose link can not be made to wait; gives them back when the
    /// queue is full.
    pub fn accept_bounded(&self, account: &AccountName, batch: Inbound) -> Result<(), Inbound> {
        let mut queue = self.queue.lock();
        if queue.is_full() {
            return Err(batch);
        }
        queue.push(account, batch);
        drop(queue);
        self.ready.notify_one();
        Ok(())
    }

    /// Drops what waits and lets everybody go who waits for room.
    pub fn close(&self) {
        *self.queue.lock() = Queue { closed: true, ..Queue::default() };
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

    /// Proposes and answers until the group stops or this is dropped.
    pub async fn run(
        self: Arc<Self>,
        stream: PubAckStream,
        replica: Arc<Replica>,
        jetstream: Arc<JetStream>,
    ) {
        let clock = jetstream.clock();
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, Answered>>::new();
        let mut route = jetstream.router().batch();
        let mut composer = Composer::new(&jetstream);
        loop {
            let composition = replica.read(|machine, _| machine.composition().cloned());
            // A sum follows from the one before, so that one has to be applied.
            let counts = composition.as_ref().is_some_and(|composition| composition.counts);
            let in_flight_max = if counts { 1 } else { IN_FLIGHT_MAX };
            while in_flight.len() < in_flight_max
                && let Some(batches) = self.take()
            {
                if jetstream.quota().is_reached(replica.assignment().config.storage) {
                    let asked = Asked::Plain(batches);
                    in_flight.push_back(Box::pin(async move { (asked, Err(ProposeError::NoRoom)) }));
                    continue;
                }
                if let Some(composition) = &composition {
                    let now = replica.now(clock);
                    let arrived = batches.into_iter().map(|arrived| (arrived.account, arrived.batch));
                    let (composed, at_once) = replica.read(|machine, view| {
                        composer.compose(&stream, composition, (machine, view), arrived, now)
                    });
                    if !no_acks(&replica) {
                        at_once.send(&stream, &mut route);
                    }
                    if let Some(composed) = composed {
                        let proposal = replica.group().propose(BLOCK, composed.block.as_bytes().clone());
                        let asked = Asked::Composed(Box::new(composed));
                        in_flight.push_back(Box::pin(async move { (asked, proposal.await) }));
                    }
                    continue;
                }
                let mut block =
                    BlockBuilder::with_capacity(batches.iter().map(|b| b.batch.chunk.len()).sum());
                for Arrived { batch, .. } in &batches {
                    for item in &batch.items {
                        block.push(
                            batch.subject(item),
                            &stored_header(batch.header(item)),
                            batch.payload(item),
                        );
                    }
                }
                let block = block.finish(replica.now(clock));
                let proposal = replica.group().propose(BLOCK, block.as_bytes().clone());
                let asked = Asked::Plain(batches);
                in_flight.push_back(Box::pin(async move { (asked, proposal.await) }));
            }
            let expiry = composer.next_expiry();
            tokio::select! {
                biased;
                Some((asked, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    // A publish that carries a bad expectation is not told either.
                    let no_ack = no_acks(&replica);
                    match asked {
                        Asked::Plain(batches) if !no_ack => stream.answer(&mut route, &batches, outcome),
                        Asked::Plain(_) => {}
                        Asked::Composed(composed) => {
                            let acks = if no_ack { Acks::None } else { Acks::Sent };
                            let Some(replies) = replies_or_error(outcome, composed.block.count()) else { continue };
                            self.put_back(composer.answer(&stream, &mut route, &composed, &replies, acks));
                        }
                    }
                }
                () = self.ready.notified(), if in_flight.len() < in_flight_max => {}
                () = tokio::time::sleep_until(expiry.unwrap_or_else(monotonic)), if expiry.is_some() => {
                    composer.expire(&replica.assignment().account, &stream.name);
                }
            }
        }
    }

    /// Puts back what has to be proposed again, in front of what came later.
    fn put_back(&self, again: VecDeque<(AccountName, Inbound)>) {
        let mut queue = self.queue.lock();
        for (account, batch) in again.into_iter().rev() {
            if queue.closed {
                return;
            }
            queue.messages += batch.items.len();
            queue.bytes += batch.chunk.len();
            queue.waiting.push_front(Arrived { account, batch });
        }
    }

    /// What the next block is made of: everything that waits, up to the size of a block.
    fn take(&self) -> Option<Vec<Arrived>> {
        let mut queue = self.queue.lock();
        let (mut messages, mut bytes) = (0, 0);
        let mut taken = Vec::new();
        while messages < BLOCK_MESSAGES_MAX
            && bytes < BLOCK_BYTES_MAX
            && let Some(arrived) = queue.waiting.pop_front()
        {
            messages += arrived.batch.items.len();
            bytes += arrived.batch.chunk.len();
            taken.push(arrived);
        }
        let was_full = queue.is_full();
        queue.messages -= messages;
        queue.bytes -= bytes;
        if was_full && !queue.is_full() {
            self.room.notify_waiters();
        }
        (!taken.is_empty()).then_some(taken)
    }
}

impl Queue {
    /// What comes after the leader is gone is dropped.
    fn push(&mut self, account: &AccountName, batch: Inbound) {
        if self.closed {
            return;
        }
        self.messages += batch.items.len();
        self.bytes += batch.chunk.len();
        self.waiting.push_back(Arrived { account: account.clone(), batch });
    }

    fn is_full(&self) -> bool {
        self.bytes >= QUEUE_BYTES_MAX || self.messages >= QUEUE_MESSAGES_MAX
    }
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
            PublishReply::Outdated => PubAck::encode_rejection(stream, &ApiError::not_available(), out),
        }
    }

    fn answer(
        &self,
        route: &mut RouteBatch,
        batches: &[Arrived],
        outcome: Result<(u64, levee_raft::Reply), ProposeError>,
    ) {
        let messages = batches.iter().map(|arrived| arrived.batch.items.len()).sum::<usize>();
        let messages = u32::try_from(messages).expect("a block is bounded");
        let Some(replies) = replies_or_error(outcome, messages) else { return };
        let mut text = Vec::with_capacity(128);
        let mut replies = replies.into_iter();
        for Arrived { account, batch } in batches {
            for item in &batch.items {
                let Some(reply) = replies.next() else { return };
                let to = batch.reply(item);
                if to.is_empty() {
                    continue;
                }
                text.clear();
                self.encode(&reply, ("", "", 0), &mut text);
                route.send(account, to, MessageRef { subject: to, payload: &text, ..MessageRef::default() });
            }
        }
        route.flush();
    }
}

fn no_acks(replica: &Replica) -> bool {
    replica.read(|machine, _| machine.config().is_some_and(|config| config.no_ack))
}

/// A reply for each of `count` records, or `None` if nobody can say.
fn replies_or_error(
    outcome: Result<(u64, levee_raft::Reply), ProposeError>,
    count: u32,
) -> Option<Vec<PublishReply>> {
    match replies_of(outcome) {
        Ok(replies) => Some(replies),
        Err(Refused::Silently) => None,
        Err(Refused::With(error)) => Some(vec![PublishReply::Rejected(error); count as usize]),
    }
}

fn replies_of(outcome: Result<(u64, levee_raft::Reply), ProposeError>) -> Result<Vec<PublishReply>, Refused> {
    let (_, reply) = outcome.map_err(|error| match error {
        ProposeError::NoRoom => Refused::With(ApiError::insufficient_resources()),
        ProposeError::Full => Refused::With(ApiError::too_many_requests()),
        _ => Refused::Silently,
    })?;
    match reply.downcast::<Reply>().map(|reply| *reply) {
        Ok(Reply::Publish(replies)) => Ok(replies),
        Ok(Reply::Rejected(error)) => Err(Refused::With(error)),
        Ok(_) | Err(_) => Err(Refused::Silently),
    }
}
