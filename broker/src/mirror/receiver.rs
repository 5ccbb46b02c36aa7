//! Reads one origin on behalf of a stream, on the node that leads the stream, and proposes what it got.
//!
//! While there is more at the origin, the next messages are fetched while the last ones are being stored.

use std::sync::{Arc, Weak};
use std::time::Duration;

use levee_broker_core::mirror::{Ask, Copied, Copier, Puller, readers};
use levee_broker_core::stream::mirror::Origin;
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::api::{ApiError, StreamSource, StreamSourceInfo};
use levee_protocol::mirror::{FetchAnswer, FetchRequest, Reader};
use levee_protocol::record::Block;
use levee_raft::ProposeError;
use levee_storage::kind::BLOCK;
use parking_lot::Mutex;

use crate::jetstream::JetStream;
use crate::mirror::link::{self, Link};
use crate::router::RouteBatch;
use crate::runtime::chance::Chance;
use crate::runtime::tasks;
use crate::stream::Replica;
use crate::stream::compose::republish;
use crate::stream::quota;

/// For how long an origin may wait for a message. Its answer also says that it is there.
const WAIT_MS: u64 = 1000;
/// How often, and how far apart, an origin is told that it is read no more. If nobody can be told, an origin that keeps
/// messages for its readers has a consumer that its owner can delete.
const LEAVE_ATTEMPTS: u32 = 20;
const LEAVE_PAUSE: Duration = Duration::from_millis(500);
/// So often a sum is composed anew at once when others published to its subject meanwhile.
const COMPOSE_ATTEMPTS: u32 = 64;
/// The code of an error that says that the origin does not exist.
const NOT_FOUND: u16 = 10059;

/// The reader of one origin.
pub(super) struct Receiver {
    jetstream: Weak<JetStream>,
    replica: Weak<Replica>,
    copier: Copier,
    puller: Mutex<Puller>,
    link: Box<dyn Link>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Why messages are not stored. Without an error it is nobody's fault, as when leadership goes.
struct NotStored(Option<ApiError>);

impl Receiver {
    pub(super) fn new(
        jetstream: &Arc<JetStream>,
        replica: &Arc<Replica>,
        copier: Copier,
        turn: Arc<tokio::sync::Mutex<()>>,
    ) -> Arc<Self> {
        let source = copier.source();
        let cluster = link::Cluster {
            jetstream: Arc::downgrade(jetstream),
            account: replica.assignment().account.clone(),
            stream: source.name.clone(),
        };
        let link = link::to(jetstream, source, cluster);
        let has = has(replica, &copier);
        let puller = if copier.mirrors() {
            Puller::of_mirror(source, has.seq)
        } else {
            Puller::of_source(source, &has)
        };
        Arc::new(Self {
            jetstream: Arc::downgrade(jetstream),
            replica: Arc::downgrade(replica),
            copier,
            puller: Mutex::new(puller),
            link,
            turn,
        })
    }

    /// Whether this is the origin it reads, in the same way.
    pub(super) fn reads(&self, source: &StreamSource) -> bool {
        self.copier.source() == source
    }

    /// What names the origin among the stream's; empty for a mirror.
    pub(super) fn key(&self) -> &str {
        self.copier.key()
    }

    fn mirrors(&self) -> bool {
        self.copier.mirrors()
    }

    pub(super) fn describe(&self) -> StreamSourceInfo {
        let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) else {
            return super::described(self.copier.source());
        };
        let standing = self.puller.lock().standing(jetstream.clock().now());
        StreamSourceInfo {
            lag: standing.lag,
            seq: if self.mirrors() { 0 } else { has(&replica, &self.copier).seq },
            active: standing.silent_for.map_or(-1, |span| span.0),
            error: standing.error,
            ..super::described(self.copier.source())
        }
    }

    /// Reads until it is dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let Some(jetstream) = self.jetstream.upgrade() else { return };
        let mut route = jetstream.router().batch();
        drop(jetstream);
        let mut chance = Chance::new();
        let mut ahead = None;
        let mut is_attached = false;
        loop {
            let answer = match ahead.take() {
                Some(answer) => answer,
                None => match self.next(is_attached).await {
                    Some(answer) => answer,
                    None => return,
                },
            };
            let stored = if answer.elsewhere {
                Err(NotStored(None))
            } else if let Some(error) = answer.refusal() {
                Err(NotStored(Some(error)))
            } else {
                self.heard(&answer);
                let store = self.store(&answer, is_attached, &mut route, &mut chance);
                let next = if answer.through < answer.last_seq { self.ask(Ask::AtOnce) } else { None };
                match next {
                    Some(request) => {
                        let (stored, next) = tokio::join!(store, self.link.fetch(request));
                        ahead = Some(next);
                        stored
                    }
                    None => store.await,
                }
            };
            match stored {
                Ok(()) => {
                    is_attached = true;
                    self.puller.lock().on_stored();
                }
                Err(NotStored(error)) => {
                    (ahead, is_attached) = (None, false);
                    let Some(pause) = self.failed(error) else { return };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// The next answer that has something, or the news that there is nothing. `None` when the node stops.
    async fn next(&self, is_attached: bool) -> Option<FetchAnswer> {
        let waiting = self.jetstream.upgrade()?.waiting_readers();
        let place = waiting.try_acquire();
        let how = if place.is_ok() { Ask::Wait(WAIT_MS) } else { Ask::AtOnce };
        if place.is_err() && is_attached {
            tokio::time::sleep(Duration::from_millis(WAIT_MS)).await;
        }
        Some(self.link.fetch(self.ask(how)?).await)
    }

    fn ask(&self, how: Ask) -> Option<FetchRequest> {
        let now = self.jetstream.upgrade()?.clock().now();
        let replica = self.replica.upgrade()?;
        let reader = self.reader(&replica);
        Some(FetchRequest { reader: Some(reader), ..self.puller.lock().ask(how, now) })
    }

    fn reader(&self, replica: &Replica) -> Reader {
        let stream = replica.assignment().config.name.clone();
        let has = has(replica, &self.copier);
        Reader {
            consumer: readers::consumer_name(&stream, self.copier.key()),
            stream,
            mirrors: self.mirrors(),
            stored: has.seq,
            leaves: false,
            identity: has.identity,
            group: replica.group_id().0,
        }
    }

    fn heard(&self, answer: &FetchAnswer) {
        if let Some(jetstream) = self.jetstream.upgrade() {
            self.puller.lock().on_answer(answer, jetstream.clock().now());
        }
    }

    /// How long to wait before it is tried again. `None` when the node stops.
    fn failed(&self, error: Option<ApiError>) -> Option<Duration> {
        let replica = self.replica.upgrade()?;
        let has = has(&replica, &self.copier);
        let mut puller = self.puller.lock();
        if let Some(error) = &error
            && puller.is_news(error)
        {
            tracing::warn!(
                "stream '{}' can't go on reading '{}': {}",
                replica.assignment().config.name,
                self.copier.source().name,
                error.description
            );
        }
        Some(puller.on_failure(&has, error).to_std())
    }

    /// Stores what an answer brought that the stream does not have.
    async fn store(
        &self,
        answer: &FetchAnswer,
        is_attached: bool,
        route: &mut RouteBatch,
        chance: &mut Chance,
    ) -> Result<(), NotStored> {
        let messages = answer.messages().map_err(|error| NotStored(Some(ApiError::stream_general(error))))?;
        let (Some(jetstream), Some(replica)) = (self.jetstream.upgrade(), self.replica.upgrade()) else {
            return Err(NotStored(None));
        };
        let Some(block) = messages else {
            // Nothing comes yet, but what is gone from the origin does not come either.
            let begins = answer.from.max(answer.first_seq);
            let skipped = if self.mirrors() && !is_attached {
                let now = replica.now(jetstream.clock());
                replica.read(|machine, _| match self.copier.check_gap(machine, begins) {
                    Some(error) => Err(NotStored(Some(error))),
                    None => Ok(self.copier.skip(machine, answer, now)),
                })?
            } else {
                None
            };
            return match skipped {
                Some(block) => propose(&replica, &block, route, chance).await,
                None => Ok(()),
            };
        };
        let copied = Copied {
            identity: &answer.identity,
            born: answer.born,
            restored_to: answer.restored_to,
            block: &block,
            seqs: &answer.seqs,
            through: answer.through,
        };
        let counts = replica.read(|machine, _| machine.composition().is_some_and(|all| all.counts));
        let _turn = if counts { Some(self.turn.lock().await) } else { None };
        let mut attempts = 0;
        loop {
            let admitted = quota::admit(&jetstream, &replica.assignment(), block.as_bytes().len());
            let _charge = admitted.map_err(|error| NotStored(Some(error)))?;
            let now = replica.now(jetstream.clock());
            let next = replica.read(|machine, view| {
                if let Some(error) = copied.seqs.first().and_then(|seq| self.copier.check_gap(machine, *seq))
                {
                    return Ok(Err(error));
                }
                self.copier.block((machine, view), &copied, now, &mut || chance.draw())
            });
            match next {
                Ok(Ok(Some(block))) => match propose(&replica, &block, route, chance).await {
                    // Somebody published to the counter in between.
                    Err(NotStored(None)) if counts && attempts < COMPOSE_ATTEMPTS && leads(&replica) => {
                        attempts += 1
                    }
                    stored => stored?,
                },
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(NotStored(Some(error))),
                Err(error) => return Err(NotStored(Some(ApiError::stream_general(error)))),
            }
        }
    }

    /// The origin is read no more: it need not keep anything for this stream.
    pub(super) fn leave(self: Arc<Self>) {
        if self.copier.source().consumer.is_some() {
            // It belongs to whoever made it.
            return;
        }
        let Some(replica) = self.replica.upgrade() else { return };
        let reader = Reader { leaves: true, ..self.reader(&replica) };
        tasks::spawn("leave an origin", async move {
            for _ in 0..LEAVE_ATTEMPTS {
                let request = FetchRequest { reader: Some(reader.clone()), ..FetchRequest::default() };
                let answer = self.link.fetch(request).await;
                if !answer.elsewhere && answer.refusal().is_none_or(|error| error.err_code == NOT_FOUND) {
                    return;
                }
                tokio::time::sleep(LEAVE_PAUSE).await;
            }
        });
    }
}

/// How far the stream has got with the origin.
fn has(replica: &Replica, copier: &Copier) -> Origin {
    replica.read(|machine, _| machine.source(copier.key()))
}

fn leads(replica: &Replica) -> bool {
    replica.leader().is_some()
}

async fn propose(
    replica: &Replica,
    block: &Block,
    route: &mut RouteBatch,
    chance: &mut Chance,
) -> Result<(), NotStored> {
    let proposed = replica.group().propose(BLOCK, block.as_bytes().clone()).await;
    let (_, reply) = proposed.map_err(|error| {
        NotStored(matches!(error, ProposeError::NoRoom).then(ApiError::insufficient_resources))
    })?;
    let Ok(reply) = reply.downcast::<Reply>() else { return Err(NotStored(None)) };
    let Reply::Publish(replies) = *reply else { return Err(NotStored(None)) };
    if let Some(composition) = replica.read(|machine, _| machine.composition().cloned()) {
        republish(route, &replica.assignment().account, (&composition, block), &replies, chance, &mut |_| {});
        route.flush();
    }
    for reply in replies.iter().skip(1) {
        match reply {
            PublishReply::Rejected(error) => return Err(NotStored(Some(error.clone()))),
            PublishReply::Outdated | PublishReply::Skipped => return Err(NotStored(None)),
            PublishReply::Stored { .. } | PublishReply::Duplicate { .. } => {}
        }
    }
    Ok(())
}
