//! Messages of fast batches on their way into the log, on their stream's leader, as the broker brings them there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::fast::{FastBatches, Said, Ticket};
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::api::ApiError;
use levee_protocol::api::fast_batch::FastReply;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::record::BlockBuilder;
use levee_raft::{Outcome, ProposeError};
use levee_storage::kind::BLOCK;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::fast::SUBJECT;
use crate::leading::Leader;
use crate::plan::Breakage;
use crate::post::Parcel;
use crate::streams::Which;

/// Blocks on their way at one time.
const IN_FLIGHT_MAX: usize = 4;
/// Messages of a block.
const BLOCK_MAX: usize = 16;
/// As many as there are publishers: one that gives a batch up may have to wait until that is idle for too long.
const OPEN_MAX: usize = 3;
const IDLE_MAX: Duration = Duration::from_secs(2);

/// A message of a fast batch.
pub(crate) struct Arrived {
    /// Its reply subject. The inbox is the part that comes first.
    pub(crate) reply: Bytes,
    /// Its header block.
    pub(crate) header: Vec<u8>,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

/// What waits to be proposed.
#[derive(Default)]
pub(crate) struct Ingest {
    waiting: Mutex<VecDeque<Arrived>>,
    ready: Notify,
}

impl Ingest {
    /// Takes a message.
    pub(crate) fn accept(&self, message: Arrived) {
        self.waiting.lock().push_back(message);
        self.ready.notify_one();
    }
}

/// Begins to propose, if the stream has fast batches.
pub(crate) fn start(leader: &Arc<Leader>) {
    if leader.stream.which == Which::Batches {
        leader.spawn(run(Arc::clone(leader)));
    }
}

async fn run(leader: Arc<Leader>) {
    let (landed, mut landing) = mpsc::unbounded_channel();
    let batches = FastBatches::new(OPEN_MAX, IDLE_MAX);
    let mut composer = Composer { leader, batches, since: Instant::now(), in_flight: 0, landed };
    let leader = Arc::clone(&composer.leader);
    loop {
        let expiry = composer.batches.next_expiry().map(|at| composer.since + at);
        tokio::select! {
            biased;
            Some((proposed, outcome)) = landing.recv() => composer.settle(&proposed, outcome),
            () = leader.ingest.ready.notified() => {}
            () = tokio::time::sleep_until(expiry.unwrap_or(composer.since)), if expiry.is_some() => {
                composer.batches.expire(composer.since.elapsed());
            }
        }
        while composer.propose_next() {}
    }
}

/// A block under way, and who asked for which record of it.
struct Proposed {
    sent: Bytes,
    askers: Vec<(Bytes, Ticket)>,
}

struct Composer {
    leader: Arc<Leader>,
    batches: FastBatches<()>,
    since: Instant,
    in_flight: usize,
    landed: mpsc::UnboundedSender<(Proposed, Outcome)>,
}

impl Composer {
    /// Makes a block of what waits. False if nothing waits, or has to go on waiting.
    fn propose_next(&mut self) -> bool {
        // What comes next of a batch without holes depends on what is under way of it.
        if self.in_flight == IN_FLIGHT_MAX || self.batches.is_chained() {
            return false;
        }
        let leader = Arc::clone(&self.leader);
        let mut waiting = leader.ingest.waiting.lock();
        let count = waiting.len().min(BLOCK_MAX);
        let taken: Vec<Arrived> = waiting.drain(..count).collect();
        drop(waiting);
        let mut block = BlockBuilder::default();
        let mut chains = BTreeMap::new();
        let mut askers = Vec::new();
        for message in taken {
            let Some(ticket) = self.offer(&message.reply) else { continue };
            block.push(SUBJECT, &message.header, &message.body);
            if ticket.is_chained && leader.world.plan.breakage != Breakage::ChainsAreLoose {
                let next = u8::try_from(chains.len() + 1).expect("a block has few messages");
                block.chain_last(*chains.entry(ticket.id().to_owned()).or_insert(next));
            }
            askers.push((message.reply, ticket));
        }
        if !block.is_empty() {
            self.propose(block, askers);
        }
        count > 0
    }

    fn offer(&mut self, reply: &Bytes) -> Option<Ticket> {
        let fast = FastReply::parse(reply).expect("clients write it well");
        let mut said = Vec::new();
        let ticket = self.batches.offer(&fast, || Some(()), self.since.elapsed(), &mut said);
        self.say(reply, said);
        ticket
    }

    fn propose(&mut self, block: BlockBuilder, mut askers: Vec<(Bytes, Ticket)>) {
        let leader = Arc::clone(&self.leader);
        if leader.world.plan.breakage == Breakage::OutcomesAreAssumed {
            let stored = PublishReply::Stored { seq: Seq::NONE, before: Seq::NONE };
            for (reply, ticket) in std::mem::take(&mut askers) {
                self.tell(&reply, &ticket, &stored);
            }
        }
        let now = leader.world.stamp(&leader.host, &leader.stream);
        let sent = StreamCommand::Publish(block.finish(now)).encode().into_bytes();
        let (landed, proposed) = (self.landed.clone(), Proposed { sent: sent.clone(), askers });
        self.in_flight += 1;
        let then = move |outcome| {
            let _ = landed.send((proposed, outcome));
        };
        leader.stream.group.propose_then(BLOCK, sent, Box::new(then));
    }

    /// What became of a block is known, or nobody will know it.
    fn settle(&mut self, proposed: &Proposed, outcome: Outcome) {
        self.in_flight -= 1;
        let replies = match outcome {
            Ok((index, reply)) => match reply.downcast::<Reply>().map(|reply| *reply) {
                Ok(reply) => {
                    let oracle = &self.leader.world.oracles[&Which::Batches];
                    oracle.acknowledged_at(index, &proposed.sent, &reply);
                    let Reply::Publish(replies) = reply else {
                        return oracle.violated(format!("fast batches were answered with {reply:?}"));
                    };
                    replies
                }
                Err(_) => return self.batches.abandon(),
            },
            Err(ProposeError::NoRoom) => refused(proposed, &ApiError::insufficient_resources()),
            Err(ProposeError::Full) => refused(proposed, &ApiError::too_many_requests()),
            Err(_) => return self.batches.abandon(),
        };
        for ((reply, ticket), became) in proposed.askers.iter().zip(replies) {
            self.tell(reply, ticket, &became);
        }
    }

    fn tell(&mut self, reply: &Bytes, ticket: &Ticket, became: &PublishReply) {
        let mut said = Vec::new();
        self.batches.settle(ticket, became, &mut said);
        self.say(reply, said);
    }

    fn say(&self, reply: &Bytes, said: Vec<Said>) {
        let world = &self.leader.world;
        let inbox = reply.slice(..reply.iter().position(|byte| *byte == b'.').unwrap_or(reply.len()));
        for said in said {
            world.trace.note(format_args!("{} to {reply:?}: {said:?}", self.leader.host.id));
            world.told.said(&inbox, &said);
            world.post.send(&inbox, Parcel::Fast(said));
        }
    }
}

fn refused(proposed: &Proposed, error: &ApiError) -> Vec<PublishReply> {
    vec![PublishReply::Rejected(error.clone()); proposed.askers.len()]
}
