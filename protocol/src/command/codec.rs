//! How commands become bytes.
//!
//! The first byte says what follows. A publish batch is its own encoding: the first byte of a block is the
//! block's version, 1, so the numbers of all other stream commands start at 16. Their bodies are protobuf
//! messages, in which configurations are JSON documents. Commands of the meta group are few and small: their
//! number, then JSON.
//!
//! These bytes are in logs on disks: numbers and fields are appended to, never changed, never reused.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ConsumerCreateAction, PurgeRequest};
use crate::command::meta::MetaCommand;
use crate::command::progress::{
    ConsumerProgress, DeadMessage, DeathCause, DeliveredRun, Progress, SettledRun, Settlement,
};
use crate::command::stream::StreamCommand;
use crate::ids::{ConsumerName, Seq};
use crate::record::Block;
use crate::time::Timestamp;

/// Persisted: never renumber, add at the end. Below 16 are versions of blocks.
mod number {
    pub(super) const BLOCK_LAST: u8 = 15;
    pub(super) const CONFIGURE: u8 = 16;
    pub(super) const PURGE: u8 = 17;
    pub(super) const DELETE_MESSAGE: u8 = 18;
    pub(super) const TICK: u8 = 19;
    pub(super) const CREATE_CONSUMER: u8 = 20;
    pub(super) const DELETE_CONSUMER: u8 = 21;
    pub(super) const PROGRESS: u8 = 22;
    pub(super) const PAUSE_CONSUMER: u8 = 23;
    pub(super) const RESTORE_BEGIN: u8 = 32;
    pub(super) const RESTORE_CONSUMER: u8 = 33;
    pub(super) const RESTORE_END: u8 = 34;
    pub(super) const RESET_CONSUMER: u8 = 48;
    /// Progress with what earlier releases do not know, and must not pass over.
    pub(super) const EXTENDED_PROGRESS: u8 = 49;
}

/// An encoded command, and how the log should keep it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Encoded {
    /// A publish batch: its bytes are stored once, and the log refers to them.
    Block(Bytes),
    /// Anything else: its bytes are part of the log entry.
    Inline(Bytes),
}

impl Encoded {
    /// The bytes.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Block(bytes) | Self::Inline(bytes) => bytes,
        }
    }
}

/// Bytes that are not a command this version knows.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("command does not decode: {0}")]
pub struct Undecodable(pub String);

impl StreamCommand {
    /// The bytes of the command.
    #[must_use]
    pub fn encode(&self) -> Encoded {
        let bytes = match self {
            Self::Publish(block) | Self::Restore(block) => {
                return Encoded::Block(block.as_bytes().clone());
            }
            Self::Configure { now, created, config } => framed(
                number::CONFIGURE,
                &ConfigureBody { now: now.0, created: created.0, config: json(config) },
            ),
            Self::Purge { now, request: PurgeRequest { filter, seq, keep } } => framed(
                number::PURGE,
                &PurgeBody { now: now.0, filter: filter.clone(), seq: *seq, keep: *keep },
            ),
            Self::DeleteMessage { now, seq } => {
                framed(number::DELETE_MESSAGE, &DeleteMessageBody { now: now.0, seq: seq.0 })
            }
            Self::Tick { now } => framed(number::TICK, &TickBody { now: now.0 }),
            Self::CreateConsumer { now, name, config, action, default_max } => framed(
                number::CREATE_CONSUMER,
                &CreateConsumerBody {
                    now: now.0,
                    name: name.as_str().to_owned(),
                    config: json(config),
                    action: action_number(*action),
                    default_max: *default_max,
                },
            ),
            Self::DeleteConsumer { now, name, incarnation } => framed(
                number::DELETE_CONSUMER,
                &DeleteConsumerBody {
                    now: now.0,
                    name: name.as_str().to_owned(),
                    incarnation: incarnation.unwrap_or(0),
                },
            ),
            Self::Progress(progress) if progress.is_extended() => {
                framed(number::EXTENDED_PROGRESS, &ProgressBody::from(progress))
            }
            Self::Progress(progress) => framed(number::PROGRESS, &ProgressBody::from(progress)),
            Self::PauseConsumer { now, name, until } => framed(
                number::PAUSE_CONSUMER,
                &PauseBody { now: now.0, name: name.as_str().to_owned(), until: until.0 },
            ),
            Self::RestoreBegin { now, first } => {
                framed(number::RESTORE_BEGIN, &SeqBody { now: now.0, seq: first.0 })
            }
            Self::RestoreConsumer { now, name, consumer } => framed(
                number::RESTORE_CONSUMER,
                &RestoreConsumerBody { now: now.0, name: name.as_str().to_owned(), consumer: json(consumer) },
            ),
            Self::RestoreEnd { now, last, last_time } => framed(
                number::RESTORE_END,
                &RestoreEndBody { now: now.0, last: last.0, last_time: last_time.0 },
            ),
            Self::ResetConsumer { now, name, seq } => framed(
                number::RESET_CONSUMER,
                &ResetBody { now: now.0, name: name.as_str().to_owned(), seq: seq.0 },
            ),
        };
        Encoded::Inline(bytes)
    }

    /// Reads what `encode` wrote, in this or an older version. The checksum of a block is not compared: the log does that when
    /// an entry is appended, and whenever one is read from a disk.
    pub fn decode(bytes: Bytes) -> Result<Self, Undecodable> {
        let Some(&first) = bytes.first() else {
            return Err(Undecodable("it is empty".to_owned()));
        };
        let body = &bytes[1..];
        match first {
            ..=number::BLOCK_LAST => {
                let block = Block::parse_compared(bytes).map_err(|error| Undecodable(error.to_string()))?;
                Ok(if block.placed_at().is_some() { Self::Restore(block) } else { Self::Publish(block) })
            }
            number::CONFIGURE => {
                let ConfigureBody { now, created, config } = message(body)?;
                Ok(Self::Configure {
                    now: Timestamp(now),
                    created: Timestamp(created),
                    config: Box::new(from_json(&config)?),
                })
            }
            number::PURGE => {
                let PurgeBody { now, filter, seq, keep } = message(body)?;
                Ok(Self::Purge { now: Timestamp(now), request: PurgeRequest { filter, seq, keep } })
            }
            number::DELETE_MESSAGE => {
                let DeleteMessageBody { now, seq } = message(body)?;
                Ok(Self::DeleteMessage { now: Timestamp(now), seq: Seq(seq) })
            }
            number::TICK => {
                let TickBody { now } = message(body)?;
                Ok(Self::Tick { now: Timestamp(now) })
            }
            number::CREATE_CONSUMER => {
                let CreateConsumerBody { now, name, config, action, default_max } = message(body)?;
                Ok(Self::CreateConsumer {
                    now: Timestamp(now),
                    name: consumer_name(&name)?,
                    config: Box::new(from_json(&config)?),
                    action: action_from(action)?,
                    default_max,
                })
            }
            number::DELETE_CONSUMER => {
                let DeleteConsumerBody { now, name, incarnation } = message(body)?;
                Ok(Self::DeleteConsumer {
                    now: Timestamp(now),
                    name: consumer_name(&name)?,
                    // No consumer was created by the first entry of a log.
                    incarnation: (incarnation > 0).then_some(incarnation),
                })
            }
            number::PROGRESS | number::EXTENDED_PROGRESS => {
                message::<ProgressBody>(body)?.into_progress().map(Self::Progress)
            }
            number::PAUSE_CONSUMER => {
                let PauseBody { now, name, until } = message(body)?;
                Ok(Self::PauseConsumer {
                    now: Timestamp(now),
                    name: consumer_name(&name)?,
                    until: Timestamp(until),
                })
            }
            number::RESTORE_BEGIN => {
                let SeqBody { now, seq } = message(body)?;
                Ok(Self::RestoreBegin { now: Timestamp(now), first: Seq(seq) })
            }
            number::RESTORE_CONSUMER => {
                let RestoreConsumerBody { now, name, consumer } = message(body)?;
                Ok(Self::RestoreConsumer {
                    now: Timestamp(now),
                    name: consumer_name(&name)?,
                    consumer: Box::new(from_json(&consumer)?),
                })
            }
            number::RESTORE_END => {
                let RestoreEndBody { now, last, last_time } = message(body)?;
                Ok(Self::RestoreEnd { now: Timestamp(now), last: Seq(last), last_time: Timestamp(last_time) })
            }
            number::RESET_CONSUMER => {
                let ResetBody { now, name, seq } = message(body)?;
                Ok(Self::ResetConsumer { now: Timestamp(now), name: consumer_name(&name)?, seq: Seq(seq) })
            }
            unknown => Err(Undecodable(format!(
                "unknown stream command {unknown}; it may come from a newer release"
            ))),
        }
    }
}

impl MetaCommand {
    /// The bytes of the command.
    #[must_use]
    pub fn encode(&self) -> Encoded {
        let mut bytes = vec![self.number()];
        bytes.extend_from_slice(&json(self));
        Encoded::Inline(bytes.into())
    }

    /// Reads what `encode` wrote, in this or an older version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let Some((&first, body)) = bytes.split_first() else {
            return Err(Undecodable("it is empty".to_owned()));
        };
        let command: Self =
            from_json(body).map_err(|error| Undecodable(format!("meta command {first}: {}", error.0)))?;
        if command.number() != first {
            return Err(Undecodable(format!("meta command {first} holds a command {}", command.number())));
        }
        Ok(command)
    }

    /// Persisted: never renumber, add at the end.
    const fn number(&self) -> u8 {
        match self {
            Self::RegisterNode { .. } => 1,
            Self::RemoveNode { .. } => 2,
            Self::CreateStream { .. } => 3,
            Self::UpdateStream { .. } => 4,
            Self::DeleteStream { .. } => 5,
            Self::EndRestore { .. } => 16,
            Self::MoveReplica { .. } => 17,
            Self::EvacuateNode { .. } => 18,
            Self::FillUp { .. } => 19,
            Self::MoveStream { .. } => 20,
            Self::CancelMove { .. } => 21,
            Self::EndMove { .. } => 22,
        }
    }
}

fn framed(number: u8, body: &impl Message) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + body.encoded_len());
    bytes.push(number);
    body.encode_raw(&mut bytes);
    bytes.into()
}

fn message<T: Message + Default>(body: &[u8]) -> Result<T, Undecodable> {
    T::decode(body).map_err(|error| Undecodable(error.to_string()))
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("commands have string keys and memory does not fail")
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    serde_json::from_slice(bytes).map_err(|error| Undecodable(error.to_string()))
}

fn consumer_name(text: &str) -> Result<ConsumerName, Undecodable> {
    ConsumerName::parse(text).map_err(|error| Undecodable(format!("consumer {text:?}: {error}")))
}

/// Persisted: never renumber, add at the end.
const fn action_number(action: ConsumerCreateAction) -> u32 {
    match action {
        ConsumerCreateAction::CreateOrUpdate => 0,
        ConsumerCreateAction::Create => 1,
        ConsumerCreateAction::Update => 2,
    }
}

fn action_from(number: u32) -> Result<ConsumerCreateAction, Undecodable> {
    match number {
        0 => Ok(ConsumerCreateAction::CreateOrUpdate),
        1 => Ok(ConsumerCreateAction::Create),
        2 => Ok(ConsumerCreateAction::Update),
        unknown => Err(Undecodable(format!("unknown create action {unknown}"))),
    }
}

/// Persisted: never renumber, add at the end.
const fn settlement_number(how: Settlement) -> u32 {
    match how {
        Settlement::Acked => 0,
        Settlement::AckedAll => 1,
        Settlement::Terminated => 2,
        Settlement::Exhausted => 3,
    }
}

impl DeathCause {
    /// The number it is persisted as.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::MaxDeliver => 0,
            Self::Terminated => 1,
        }
    }

    /// The cause that is persisted as this number.
    pub fn from_number(number: u32) -> Result<Self, Undecodable> {
        match number {
            0 => Ok(Self::MaxDeliver),
            1 => Ok(Self::Terminated),
            unknown => Err(Undecodable(format!("unknown cause of death {unknown}"))),
        }
    }
}

fn settlement_from(number: u32) -> Result<Settlement, Undecodable> {
    match number {
        0 => Ok(Settlement::Acked),
        1 => Ok(Settlement::AckedAll),
        2 => Ok(Settlement::Terminated),
        3 => Ok(Settlement::Exhausted),
        unknown => Err(Undecodable(format!("unknown settlement {unknown}"))),
    }
}

// The bodies. Tags are persisted: never renumber, never reuse.

#[derive(Clone, PartialEq, Message)]
struct ConfigureBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(sfixed64, tag = "2")]
    created: i64,
    #[prost(bytes = "vec", tag = "3")]
    config: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PurgeBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    filter: String,
    #[prost(uint64, tag = "3")]
    seq: u64,
    #[prost(uint64, tag = "4")]
    keep: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SeqBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(uint64, tag = "2")]
    seq: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RestoreEndBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(uint64, tag = "2")]
    last: u64,
    #[prost(sfixed64, tag = "3")]
    last_time: i64,
}

#[derive(Clone, PartialEq, Message)]
struct RestoreConsumerBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bytes = "vec", tag = "3")]
    consumer: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteMessageBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(uint64, tag = "2")]
    seq: u64,
}

#[derive(Clone, PartialEq, Message)]
struct TickBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
}

#[derive(Clone, PartialEq, Message)]
struct CreateConsumerBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bytes = "vec", tag = "3")]
    config: Vec<u8>,
    #[prost(uint32, tag = "4")]
    action: u32,
    #[prost(sint64, tag = "5")]
    default_max: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteConsumerBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PauseBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(sfixed64, tag = "3")]
    until: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ResetBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    seq: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ProgressBody {
    #[prost(sfixed64, tag = "1")]
    now: i64,
    #[prost(message, repeated, tag = "2")]
    consumers: Vec<ConsumerProgressBody>,
}

#[derive(Clone, PartialEq, Message)]
struct ConsumerProgressBody {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    incarnation: u64,
    #[prost(message, repeated, tag = "3")]
    delivered: Vec<DeliveredBody>,
    #[prost(message, repeated, tag = "4")]
    settled: Vec<SettledBody>,
    #[prost(message, repeated, tag = "5")]
    dead: Vec<DeadBody>,
    #[prost(uint64, repeated, tag = "6")]
    passed: Vec<u64>,
    #[prost(message, repeated, tag = "7")]
    waits: Vec<WaitBody>,
    #[prost(uint64, tag = "8")]
    through: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WaitBody {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(sfixed64, tag = "2")]
    at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DeadBody {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(uint32, tag = "2")]
    cause: u32,
    #[prost(string, tag = "3")]
    detail: String,
}

#[derive(Clone, PartialEq, Message)]
struct DeliveredBody {
    #[prost(uint64, tag = "1")]
    first_consumer_seq: u64,
    #[prost(uint64, tag = "2")]
    first_seq: u64,
    #[prost(uint32, tag = "3")]
    count: u32,
    #[prost(uint32, tag = "4")]
    attempt: u32,
    #[prost(sfixed64, tag = "5")]
    at: i64,
}

#[derive(Clone, PartialEq, Message)]
struct SettledBody {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    last: u64,
    #[prost(uint32, tag = "3")]
    how: u32,
}

impl From<&Progress> for ProgressBody {
    fn from(progress: &Progress) -> Self {
        let delivered = |run: &DeliveredRun| DeliveredBody {
            first_consumer_seq: run.first_consumer_seq,
            first_seq: run.first_seq.0,
            count: run.count,
            attempt: run.attempt,
            at: run.at.0,
        };
        let settled = |run: &SettledRun| SettledBody {
            first: run.first.0,
            last: run.last.0,
            how: settlement_number(run.how),
        };
        let dead = |dead: &DeadMessage| DeadBody {
            seq: dead.seq.0,
            cause: dead.cause.number(),
            detail: dead.detail.clone(),
        };
        let consumer = |consumer: &ConsumerProgress| ConsumerProgressBody {
            name: consumer.name.as_str().to_owned(),
            incarnation: consumer.incarnation,
            delivered: consumer.delivered.iter().map(delivered).collect(),
            settled: consumer.settled.iter().map(settled).collect(),
            dead: consumer.dead.iter().map(dead).collect(),
            passed: consumer.passed.iter().map(|seq| seq.0).collect(),
            waits: consumer.waits.iter().map(|(seq, at)| WaitBody { seq: seq.0, at: at.0 }).collect(),
            through: consumer.through.0,
        };
        Self { now: progress.now.0, consumers: progress.consumers.iter().map(consumer).collect() }
    }
}

impl ProgressBody {
    fn into_progress(self) -> Result<Progress, Undecodable> {
        let delivered = |run: DeliveredBody| DeliveredRun {
            first_consumer_seq: run.first_consumer_seq,
            first_seq: Seq(run.first_seq),
            count: run.count,
            attempt: run.attempt,
            at: Timestamp(run.at),
        };
        let settled = |run: SettledBody| {
            Ok(SettledRun { first: Seq(run.first), last: Seq(run.last), how: settlement_from(run.how)? })
        };
        let dead = |dead: DeadBody| {
            let cause = DeathCause::from_number(dead.cause)?;
            Ok(DeadMessage { seq: Seq(dead.seq), cause, detail: dead.detail })
        };
        let consumer = |consumer: ConsumerProgressBody| {
            Ok(ConsumerProgress {
                name: consumer_name(&consumer.name)?,
                incarnation: consumer.incarnation,
                passed: consumer.passed.into_iter().map(Seq).collect(),
                delivered: consumer.delivered.into_iter().map(delivered).collect(),
                through: Seq(consumer.through),
                waits: consumer.waits.iter().map(|wait| (Seq(wait.seq), Timestamp(wait.at))).collect(),
                dead: consumer.dead.into_iter().map(dead).collect::<Result<_, Undecodable>>()?,
                settled: consumer.settled.into_iter().map(settled).collect::<Result<_, Undecodable>>()?,
            })
        };
        Ok(Progress {
            now: Timestamp(self.now),
            consumers: self.consumers.into_iter().map(consumer).collect::<Result<_, Undecodable>>()?,
        })
    }
}

#[cfg(test)]
mod tests;
