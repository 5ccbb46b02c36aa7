//! A stream becomes an archive, sent to a client in chunks.
//!
//! The stream goes on meanwhile: the archive holds what of its messages, as of the beginning, still lives when they are
//! read. They are read a slice at a time, so that applying goes on, and no more is in memory than a slice and what
//! waits for acks. Flow control, statuses and their texts are nats-server's.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use levee_protocol::api::advisory::{self, Advisory};
use levee_protocol::api::{SnapshotRequest, StreamConfig, StreamState};
use levee_protocol::archive::{self, Writer, consumer::ArchivedConsumer};
use levee_protocol::ids::{AccountName, Seq};
use levee_protocol::wire::headers::HeaderBuilder;

use crate::advisory::publish_one;
use crate::jetstream::JetStream;
use crate::router::{MessageRef, RouteBatch, Router};
use crate::stream::Replica;
use crate::transfer::Open;

/// A chunk that may be sent waits so long for an ack of an earlier one.
const ACK_PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody may take to subscribe to where the archive goes.
const INTEREST_PATIENCE: Duration = Duration::from_secs(2);
const INTEREST_LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// The answer to the call has so much of a start before the first chunk.
const HEAD_START: Duration = Duration::from_millis(10);
/// Bytes of messages that are read at once.
const SLICE_BYTES: usize = 256 << 10;

/// A stream at the moment at which its archive begins.
pub struct Snapshot {
    /// Its configuration.
    pub config: StreamConfig,
    /// What it holds.
    pub state: StreamState,
    consumers: Vec<(String, ArchivedConsumer)>,
    created: i64,
}

/// Who gets an archive.
pub struct Receiver {
    /// Whose stream.
    pub account: AccountName,
    /// What was asked for.
    pub request: SnapshotRequest,
    /// Who asked, for advisories.
    pub client: advisory::ClientInfo,
}

/// Why an archive was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("no interest")]
    NoInterest,
    #[error("no flow response")]
    NoFlowResponse,
    #[error("{0}")]
    Failed(String),
}

impl Snapshot {
    /// Takes down what the archive begins with.
    #[must_use]
    pub fn of(jetstream: &JetStream, replica: &Replica, request: &SnapshotRequest) -> Self {
        replica.read(|machine, _| {
            let mut state = machine.state();
            let consumers: Vec<(String, ArchivedConsumer)> = machine
                .consumers()
                .filter(|(_, ledger)| !request.no_consumers && !ledger.config().direct)
                .map(|(name, ledger)| {
                    let config = ledger.config().clone();
                    let state = ledger.archived(state.last_seq);
                    (name.to_string(), ArchivedConsumer { config, state })
                })
                .collect();
            state.consumer_count = consumers.len() as u64;
            Self {
                config: machine.config().cloned().unwrap_or_default(),
                state,
                consumers,
                created: jetstream.clock().now().0,
            }
        })
    }

    fn head(&self) -> Writer {
        let mut writer = Writer::new();
        writer.document(archive::STATE, self.created, &json(&self.state));
        for (name, consumer) in &self.consumers {
            writer.document(&format!("{}{name}", archive::CONSUMERS), self.created, &json(consumer));
        }
        writer
    }
}

fn json(document: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("these documents have string keys and memory does not fail")
}

/// Sends the archive, to its end or to a status that says why not.
pub async fn send(jetstream: Arc<JetStream>, replica: Arc<Replica>, to: Receiver, snapshot: Snapshot) {
    let start = jetstream.clock().now();
    let stream = snapshot.config.name.clone();
    let client = Box::new(to.client.clone());
    let state = Box::new(snapshot.state.clone());
    let begun = Advisory::SnapshotCreate { stream: stream.clone(), state, client: client.clone() };
    publish_one(&jetstream, &to.account, &begun);
    tokio::time::sleep(HEAD_START).await;

    let open = Open::new(&jetstream, &to.account, replica.group_id());
    let mut sending = Sending {
        router: Arc::clone(jetstream.router()),
        route: jetstream.router().batch(),
        ack_prefix: format!("$JS.SNAPSHOT.ACK.{stream}.{}", open.id),
        open,
        waiting: BytesMut::new(),
        in_flight: 0,
        index: 0,
        to,
    };
    let sent = sending.archive(&jetstream, &replica, snapshot).await;
    let header = match &sent {
        // As nats-server has it: an archive of less than a chunk ends without a status.
        Ok(()) if sending.index == 0 => Vec::new(),
        Ok(()) => HeaderBuilder::status(204, "").finish(),
        Err(GivenUp::NoInterest) => HeaderBuilder::status(408, "No Interest").finish(),
        Err(GivenUp::NoFlowResponse) => HeaderBuilder::status(408, "No Flow Response").finish(),
        Err(GivenUp::Failed(why)) => HeaderBuilder::status(500, why).finish(),
    };
    sending.send(b"", &header, b"");
    sending.route.flush();
    let error = sent.err().map(|why| why.to_string()).unwrap_or_default();
    if !error.is_empty() {
        tracing::warn!("snapshot of stream '{stream}' was given up: {error}");
    }
    let end = jetstream.clock().now();
    let complete = Advisory::SnapshotComplete { stream, start, end, client, error };
    publish_one(&jetstream, &sending.to.account, &complete);
}

struct Sending {
    router: Arc<Router>,
    route: RouteBatch,
    open: Open,
    ack_prefix: String,
    /// Bytes of the archive that were not sent yet.
    waiting: BytesMut,
    in_flight: usize,
    /// Chunks that were sent.
    index: usize,
    to: Receiver,
}

impl Sending {
    async fn archive(
        &mut self,
        jetstream: &Arc<JetStream>,
        replica: &Arc<Replica>,
        snapshot: Snapshot,
    ) -> Result<(), GivenUp> {
        let mut writer = snapshot.head();
        let last = snapshot.state.last_seq;
        let mut from = snapshot.state.first_seq;
        while snapshot.state.messages > 0 && from <= last {
            self.chunks(&mut writer).await?;
            let replica = Arc::clone(replica);
            let read = tokio::task::spawn_blocking(move || {
                let next = slice(&replica, from, last, &mut writer);
                (writer, next)
            });
            let next = match read.await {
                Ok((read, next)) => {
                    writer = read;
                    next.map_err(GivenUp::Failed)?
                }
                Err(error) => return Err(GivenUp::Failed(error.to_string())),
            };
            let Some(next) = next else { break };
            from = next;
            if jetstream.replica(self.open.inbox.group).is_none() {
                return Err(GivenUp::Failed("stream was deleted".into()));
            }
        }
        writer.finish();
        self.chunks(&mut writer).await?;
        if !self.waiting.is_empty() {
            let rest = self.waiting.split();
            if self.index == 0 {
                self.interested().await?;
            }
            self.send(b"", b"", &rest);
        }
        Ok(())
    }

    /// Sends what makes whole chunks of what is ready.
    async fn chunks(&mut self, writer: &mut Writer) -> Result<(), GivenUp> {
        self.waiting.extend_from_slice(&writer.take());
        let chunk_bytes = self.to.request.chunk_bytes();
        while self.waiting.len() >= chunk_bytes {
            self.slot().await?;
            if self.index == 0 {
                self.interested().await?;
            }
            let chunk = self.waiting.split_to(chunk_bytes);
            self.index += 1;
            let reply = format!("{}.{}.{}", self.ack_prefix, chunk.len(), self.index);
            if self.send(reply.as_bytes(), b"", &chunk) == 0 {
                return Err(GivenUp::NoInterest);
            }
            self.in_flight += 1;
            self.route.flush();
            if self.route.pressure() {
                self.route.relieve().await;
            }
            if self.waiting.is_empty() {
                self.waiting = BytesMut::new();
            }
        }
        Ok(())
    }

    /// Waits until another chunk may be on its way.
    async fn slot(&mut self) -> Result<(), GivenUp> {
        self.in_flight = self.in_flight.saturating_sub(self.open.inbox.take_all());
        if self.in_flight < self.to.request.in_flight_max() {
            return Ok(());
        }
        match tokio::time::timeout(ACK_PATIENCE, self.open.inbox.next()).await {
            Ok(Some(_)) => {
                self.in_flight -= 1;
                Ok(())
            }
            Ok(None) => Err(GivenUp::Failed("more acks than chunks".into())),
            Err(_) => Err(GivenUp::NoFlowResponse),
        }
    }

    /// Waits until somebody has subscribed to where the archive goes. Clients do that after they got the answer to
    /// their call, and may have a wildcard there before, behind which nobody waits yet; it is the last resort.
    async fn interested(&mut self) -> Result<(), GivenUp> {
        let subject = self.to.request.deliver_subject.as_bytes();
        let mut waited = Duration::ZERO;
        while !self.router.has_literal_interest(&self.to.account, subject) {
            if waited >= INTEREST_PATIENCE {
                let any = self.router.has_interest(&self.to.account, subject);
                return if any { Ok(()) } else { Err(GivenUp::NoInterest) };
            }
            tokio::time::sleep(INTEREST_LOOK_INTERVAL).await;
            waited += INTEREST_LOOK_INTERVAL;
        }
        Ok(())
    }

    fn send(&mut self, reply: &[u8], header: &[u8], payload: &[u8]) -> usize {
        let subject = self.to.request.deliver_subject.as_bytes();
        self.route.send(&self.to.account, subject, MessageRef { subject, reply, header, payload })
    }
}

/// Adds messages from `from` up to `last` to the archive, until they are a slice. Where the next slice begins.
fn slice(replica: &Replica, from: Seq, last: Seq, writer: &mut Writer) -> Result<Option<Seq>, String> {
    let mut next = None;
    let mut bytes = 0;
    let read = replica.read(|machine, view| {
        view.scan(from, &mut |seq, record| {
            if seq > last {
                return ControlFlow::Break(());
            }
            if bytes >= SLICE_BYTES {
                next = Some(seq);
                return ControlFlow::Break(());
            }
            if machine.is_live(seq) {
                let time = record.timestamp.0;
                writer.message(record.subject, time, seq.0, record.header, record.payload);
            }
            bytes += record.subject.len() + record.header.len() + record.payload.len() + 16;
            ControlFlow::Continue(())
        })
    });
    read.map_err(|error| error.to_string())?;
    Ok(next)
}
