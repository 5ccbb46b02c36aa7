//! One message that a part of this node publishes into a stream, wherever that is led, and waits for its outcome.
//!
//! Clients' publishes come in bulk through the ingest and are answered on their reply subjects. This is for the few
//! messages whose sender is not a client and must know what became of them, such as dead letters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::stream::{Composition, PublishReply, Reply};
use levee_protocol::api::{ApiError, PublishIntent};
use levee_protocol::ids::{AccountName, GroupId};
use levee_protocol::record::{BlockBuilder, RecordFlags};
use levee_raft::ProposeError;
use levee_storage::kind::BLOCK;

use crate::jetstream::JetStream;
use crate::router::{Inbound, InboundItem, MessageRef};
use crate::runtime::chance::Chance;
use crate::stream::compose::republish;
use crate::stream::forward;
use crate::stream::quota;

/// Peer call: a message for a stream that the peer leads.
pub const CALL_PUBLISH: u8 = 7;
/// How long an outcome is waited for. After it nobody knows whether the message is stored.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

const STORED: &[u8] = b"stored";
const DUPLICATE: &[u8] = b"duplicate";

/// A message that a stream has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Published {
    /// It was stored now.
    Stored,
    /// One with its message id was there already.
    Duplicate,
}

/// A message that no stream has, as far as is known.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NotStored(String);

impl NotStored {
    /// This node stops.
    pub(crate) fn stopping() -> Self {
        Self::because("this server stops")
    }

    fn because(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// Stores a message in the stream that captures its subject.
pub async fn publish(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    message: MessageRef<'_>,
) -> Result<Published, NotStored> {
    let Some(group) = jetstream.directory().capturing(account, message.subject) else {
        return Err(NotStored::because("no stream captures the subject"));
    };
    let Some(leader) = jetstream.directory().leader(group) else {
        return Err(NotStored::because("the stream has no leader now"));
    };
    let frame = forward::encode(account, group, &Inbound::one(message));
    match jetstream.peers().call(leader, CALL_PUBLISH, frame, CALL_TIMEOUT).await {
        Ok(answer) if answer == STORED => Ok(Published::Stored),
        Ok(answer) if answer == DUPLICATE => Ok(Published::Duplicate),
        Ok(answer) if !answer.is_empty() => Err(NotStored::because(String::from_utf8_lossy(&answer))),
        Ok(_) | Err(_) => Err(NotStored::because("the stream's leader does not answer")),
    }
}

/// Answers a peer's [`CALL_PUBLISH`]. Empty when this node can not say what becomes of the message.
pub async fn answer(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    let Ok((account, group, batch)) = forward::decode(frame) else { return Bytes::new() };
    match store(&jetstream, &account, group, &batch).await {
        Ok(Published::Stored) => Bytes::from_static(STORED),
        Ok(Published::Duplicate) => Bytes::from_static(DUPLICATE),
        Err(NotStored(why)) => why.into(),
    }
}

async fn store(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    group: GroupId,
    batch: &Inbound,
) -> Result<Published, NotStored> {
    let led = jetstream.replica(group).filter(|replica| replica.leader().is_some());
    let replica = led.ok_or_else(|| NotStored::because("the stream is led by another server now"))?;
    let [item] = batch.items[..] else { return Err(NotStored::because("not one message")) };
    let admitted = quota::admit_messages(jetstream, &replica.assignment(), [batch]);
    let charge = admitted.map_err(|error| NotStored(error.to_string()))?;
    let mut chance = Chance::new();
    let composition = replica.read(|machine, _| machine.composition().cloned());
    let now = replica.now(jetstream.clock());
    let block = block(composition.as_deref(), batch, &item, &mut chance).finish(now);
    let outcome = replica.group().propose(BLOCK, block.as_bytes().clone()).await;
    drop(charge);
    let replies = match outcome.map(|(_, reply)| reply.downcast::<Reply>().map(|reply| *reply)) {
        Ok(Ok(Reply::Publish(replies))) => replies,
        Ok(Ok(Reply::Rejected(error))) => return Err(NotStored(error.to_string())),
        Err(ProposeError::NoRoom) => return Err(NotStored(ApiError::insufficient_resources().to_string())),
        Ok(_) | Err(_) => return Err(NotStored::because("nobody knows what became of it")),
    };
    if let Some(composition) = composition {
        let mut route = jetstream.router().batch();
        republish(&mut route, account, (&composition, &block), &replies, &mut chance, &mut |_| {});
    }
    match replies.into_iter().next() {
        Some(PublishReply::Stored { .. }) => Ok(Published::Stored),
        Some(PublishReply::Duplicate { .. }) => Ok(Published::Duplicate),
        Some(PublishReply::Rejected(error)) => Err(NotStored(error.to_string())),
        Some(PublishReply::Outdated | PublishReply::Skipped) | None => {
            Err(NotStored::because("the stream was reconfigured meanwhile"))
        }
    }
}

/// The message as this stream stores it.
fn block(
    composition: Option<&Composition>,
    batch: &Inbound,
    item: &InboundItem,
    chance: &mut Chance,
) -> BlockBuilder {
    let (subject, header, payload) = (batch.subject(item), batch.header(item), batch.payload(item));
    let mut block = BlockBuilder::with_capacity(batch.chunk.len());
    match composition {
        None => block.push(subject, header, payload),
        Some(composition) => {
            let intent = PublishIntent::parse(header).unwrap_or_default();
            let subject = composition.subject(subject, &mut || chance.draw());
            let header = composition.header(header.into(), &intent);
            block.push_flagged(RecordFlags::PUBLISHED, &subject, &header, payload);
        }
    }
    block
}
