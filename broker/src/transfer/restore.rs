//! An archive that a client sends becomes a stream.
//!
//! ```text
//! meta leader                stream leader                          client
//!   CreateStream, hidden  ─▶  group elects
//!   BEGIN ─────────────────▶  Open, task              ◀── chunk, answered when what is in it was proposed
//!                             RestoreBegin, RestoreConsumer*, Restore*
//!                                                     ◀── empty chunk: that was all
//!                             RestoreEnd
//!   EndRestore  ◀──────────── END                      ──▶ the stream, or why not
//! ```
//!
//! Until the end nobody else knows of the stream, and when anything goes wrong (a bad archive, a client that is gone,
//! a leader that is lost) the stream is deleted: a restore is whole or leaves nothing behind. What is in memory is a
//! few chunks, one message and two blocks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::meta::MetaReply;
use levee_broker_core::stream::Reply;
use levee_broker_core::stream::restore::GAP_MAX;
use levee_protocol::api::advisory::{self, Action, Advisory};
use levee_protocol::api::envelope::{failure, success};
use levee_protocol::api::response::StreamCreated;
use levee_protocol::api::{ApiError, Endpoint, StorageType, StreamState};
use levee_protocol::archive::{BadArchive, Bounds, Entry, Name, Reader};
use levee_protocol::command::{MetaCommand, StreamCommand};
use levee_protocol::ids::{AccountName, ConsumerName, GroupId, NodeId, Seq};
use levee_protocol::record::RecordRef;
use levee_protocol::subject::Subject;
use levee_protocol::time::Timestamp;
use levee_raft::{Proposal, ProposeError};
use levee_storage::kind::{BLOCK, INLINE};
use serde::{Deserialize, Serialize};

use crate::advisory::{publish_one, stream_action};
use crate::api::stream_info;
use crate::jetstream::JetStream;
use crate::router::MessageRef;
use crate::runtime::{clock, tasks};
use crate::stream::Replica;
use crate::stream::quota::{self, Charge};
use crate::transfer::placing::Placing;
use crate::transfer::{Message, Open};

/// Peer call: the leader of a new stream begins to listen for its archive, or the meta leader ends a restore.
pub const CALL_RESTORE: u8 = 16;

/// How long a client may send nothing.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// How long a new stream's leader is waited for. Clients wait five seconds for the answer to their call.
const LEADER_PATIENCE: Duration = Duration::from_secs(4);
/// Instead of a subject: somebody is sending the archive already.
const UNDER_WAY: &[u8] = b"under way";
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a leader waits for a restore to begin before it takes the stream for abandoned.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long it is tried to tell the meta group how a restore ended.
const END_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Bytes of the state or of one consumer in an archive: half a million pending messages.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

#[derive(Serialize, Deserialize)]
enum Call {
    Begin { group: GroupId, client: Box<advisory::ClientInfo> },
    End { group: GroupId, complete: bool },
}

/// Has the leader of a new stream listen for its archive. Gives the subject where it listens. A restore that was begun
/// and of which nothing came yet ends: whoever began it did not hear of it, or else hears that nobody listens any more.
/// `None` if the stream has no leader in time.
pub async fn begin(
    jetstream: &Arc<JetStream>,
    group: GroupId,
    client: &advisory::ClientInfo,
) -> Option<Result<String, ApiError>> {
    let call = Call::Begin { group, client: Box::new(client.clone()) };
    let started = clock::monotonic();
    while started.elapsed() < LEADER_PATIENCE {
        if let Some(leader) = jetstream.directory().leader(group)
            && let Ok(answer) = ask(jetstream, leader, &call).await
            && let Ok(subject) = String::from_utf8(answer.into())
        {
            match subject.as_bytes() {
                b"" => {}
                UNDER_WAY => return Some(Err(ApiError::restore_name_exists())),
                _ => return Some(Ok(subject)),
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    None
}

/// Takes back a stream of which nobody will send an archive.
pub async fn give_up(jetstream: &Arc<JetStream>, group: GroupId) {
    end(jetstream, group, false).await;
}

async fn ask(
    jetstream: &Arc<JetStream>,
    node: NodeId,
    call: &Call,
) -> Result<Bytes, crate::router::peers::CallError> {
    let frame = serde_json::to_vec(call).expect("plain data encodes");
    jetstream.peers().call(node, CALL_RESTORE, frame.into(), CALL_TIMEOUT).await
}

/// Answers a peer's [`CALL_RESTORE`]. Empty when this node does not lead what it should.
pub async fn answer(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    match serde_json::from_slice(&frame) {
        Ok(Call::Begin { group, .. }) if jetstream.transfers().is_begun(group) => {
            Bytes::from_static(UNDER_WAY)
        }
        Ok(Call::Begin { group, client }) => start(&jetstream, group, *client).unwrap_or_default().into(),
        Ok(Call::End { group, complete }) => match end_here(&jetstream, group, complete).await {
            Some(true) => Bytes::from_static(b"yes"),
            Some(false) => Bytes::from_static(b"no"),
            None => Bytes::new(),
        },
        Err(_) => Bytes::new(),
    }
}

/// Tells the meta group how a restore ended. Whether the stream is there afterwards.
async fn end(jetstream: &Arc<JetStream>, group: GroupId, complete: bool) -> bool {
    let started = clock::monotonic();
    while started.elapsed() < END_PATIENCE {
        let leader = jetstream.meta().group().and_then(|meta| meta.leadership().borrow().leader);
        if let Some(leader) = leader
            && let Ok(answer) = ask(jetstream, leader, &Call::End { group, complete }).await
        {
            match &answer[..] {
                b"yes" => return true,
                b"no" => return false,
                _ => {}
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    false
}

/// `None` if this node can not say.
async fn end_here(jetstream: &JetStream, group: GroupId, complete: bool) -> Option<bool> {
    let command = MetaCommand::EndRestore { now: jetstream.clock().now(), group, complete };
    match jetstream.meta().propose(&command).await {
        Ok(MetaReply::Updated { .. }) => Some(true),
        Ok(MetaReply::Deleted(_)) => Some(false),
        // It has ended: by this call, asked before, or because somebody deleted the stream.
        Ok(MetaReply::Rejected(_)) => {
            Some(jetstream.meta().read(|machine| machine.stream_of_group(group).is_some()))
        }
        Ok(_) | Err(_) => None,
    }
}

/// Deletes a stream whose restore does not run where it is led: its node is gone, or was gone for a while. Looks for as
/// long as the stream is one that is being restored.
pub async fn look_for_abandoned(jetstream: Arc<JetStream>, group: GroupId) {
    loop {
        tokio::time::sleep(BEGIN_PATIENCE).await;
        let is_restoring = jetstream
            .meta()
            .read(|machine| machine.stream_of_group(group).is_some_and(|stream| stream.restoring));
        if !is_restoring {
            return;
        }
        if !jetstream.transfers().has(group) {
            tracing::warn!("a restore was cut off; what it left of its stream is deleted");
            end(&jetstream, group, false).await;
        }
    }
}

/// Starts the task of a restore, if this node leads the stream. Gives the subject where it listens.
fn start(jetstream: &Arc<JetStream>, group: GroupId, client: advisory::ClientInfo) -> Option<String> {
    let replica = jetstream.replica(group).filter(|replica| replica.leader().is_some())?;
    let assignment = replica.assignment();
    let is_ready = assignment.restoring
        && replica.read(|machine, _| machine.config() == Some(&assignment.config) && !machine.is_restoring());
    if !is_ready {
        return None;
    }
    tracing::info!("restore of stream '{}' begins", assignment.config.name);
    let open = Open::new(jetstream, &assignment.account, group);
    jetstream.transfers().supersede(&open);
    let subject = format!("$JS.SNAPSHOT.RESTORE.{}.{}", assignment.config.name, open.id);
    let restore = Restore {
        account: assignment.account.clone(),
        name: assignment.config.name.clone(),
        bounds: Bounds {
            message_bytes_max: usize::try_from(assignment.config.max_msg_size)
                .unwrap_or(usize::MAX)
                .min(jetstream.limits().message_bytes_max),
            document_bytes_max: DOCUMENT_BYTES_MAX,
        },
        storage: assignment.config.storage,
        jetstream: Arc::clone(jetstream),
        replica,
        open,
        placing: Placing::default(),
        proposed: None,
        bytes: 0,
    };
    tasks::spawn("restore a stream", restore.run(client));
    Some(subject)
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Archive(#[from] BadArchive),
    #[error("{0}")]
    Content(String),
    /// A rule refused it, in words of its own.
    #[error("{0}")]
    Refused(ApiError),
    #[error("the server that took it lost the lead of the stream")]
    Leadership,
    #[error("restore for stream '{0}' is stalled")]
    Stalled(String),
    #[error("restore for stream '{0}' requires reply subject for each chunk")]
    NoReply(String),
    #[error("more was sent than was answered")]
    Overrun,
    #[error("it was begun again")]
    Superseded,
}

impl Failed {
    fn content(text: impl Into<String>) -> Self {
        Self::Content(text.into())
    }
}

struct Restore {
    jetstream: Arc<JetStream>,
    replica: Arc<Replica>,
    open: Open,
    account: AccountName,
    name: String,
    storage: StorageType,
    bounds: Bounds,
    placing: Placing,
    /// A block on its way, its bytes in case it has to be proposed again, and the room that it takes.
    proposed: Option<(Bytes, Proposal, Charge)>,
    /// Of the archive, so far.
    bytes: u64,
}

/// How far into an archive a restore is.
enum Expected {
    State,
    Consumers { left: u64, state: StreamState },
    Messages { next: u64, left: u64, state: StreamState },
    Nothing { state: StreamState },
}

impl Restore {
    async fn run(mut self, client: advisory::ClientInfo) {
        let start = self.jetstream.clock().now();
        let client = Box::new(client);
        let begun = Advisory::RestoreCreate { stream: self.name.clone(), client: client.clone() };
        publish_one(&self.jetstream, &self.account, &begun);

        let mut reply = Bytes::new();
        let mut result = self.fill(&mut reply).await;
        if matches!(result, Err(Failed::Superseded)) {
            return;
        }
        let group = self.replica.group_id();
        let is_there = end(&self.jetstream, group, result.is_ok()).await;
        if result.is_ok() && !is_there {
            result = Err(Failed::content("the stream was deleted meanwhile"));
        }
        let answer = match &result {
            Ok(()) => self.restored(group).await,
            Err(why) => {
                tracing::warn!("restore of stream '{}' failed: {why}", self.name);
                stream_info::gone(&self.jetstream, group).await;
                Err(match why {
                    Failed::Refused(error) => error.clone(),
                    other => ApiError::stream_restore_failed(other),
                })
            }
        };
        let end = self.jetstream.clock().now();
        let complete =
            Advisory::RestoreComplete { stream: self.name.clone(), start, end, bytes: self.bytes, client };
        publish_one(&self.jetstream, &self.account, &complete);
        let text = answer.unwrap_or_else(|error| failure("stream_create_response", &error, ""));
        self.answer(&reply, &text);
    }

    /// Takes chunks until the client says that this was all. `reply` is where the answer to the last of them goes.
    async fn fill(&mut self, reply: &mut Bytes) -> Result<(), Failed> {
        let mut reader = Reader::new(self.bounds);
        let mut expected = Expected::State;
        loop {
            let next = tokio::time::timeout(IDLE_MAX, self.open.inbox.next()).await;
            let Message { reply: to, payload } = match next {
                Ok(Some(message)) => message,
                Ok(None) if self.open.inbox.is_overrun() => return Err(Failed::Overrun),
                Ok(None) => return Err(Failed::Superseded),
                Err(_) => return Err(Failed::Stalled(self.name.clone())),
            };
            *reply = to;
            if reply.is_empty() {
                return Err(Failed::NoReply(self.name.clone()));
            }
            if payload.is_empty() {
                break;
            }
            self.bytes += payload.len() as u64;
            reader.feed(payload);
            while let Some(entry) = reader.next_entry()? {
                if self.open.inbox.is_overrun() {
                    return Err(Failed::Overrun);
                }
                expected = self.take(expected, entry).await?;
            }
            self.answer(reply, b"");
            *reply = Bytes::new();
        }
        reader.finish()?;
        let Expected::Nothing { state } = expected else { return Err(BadArchive::Truncated.into()) };
        if let Some(block) = self.placing.take(self.now()) {
            self.place(block).await?;
        }
        self.placed().await?;
        let (last, last_time) = (state.last_seq, state.last_ts);
        let end = StreamCommand::RestoreEnd { now: self.now(), last, last_time };
        self.decide(end.encode().into_bytes(), INLINE).await
    }

    async fn take(&mut self, expected: Expected, entry: Entry) -> Result<Expected, Failed> {
        match (expected, entry.name) {
            (Expected::State, Name::State) => {
                let state = checked_state(&entry.payload)?;
                let begin = StreamCommand::RestoreBegin { now: self.now(), first: state.first_seq };
                self.decide(begin.encode().into_bytes(), INLINE).await?;
                Ok(Expected::Consumers { left: state.consumer_count, state }.settled())
            }
            (Expected::State, _) => Err(Failed::content("expected state.json first")),
            (Expected::Consumers { left, state }, Name::Consumer(name)) => {
                self.consumer(&name, &entry.payload).await?;
                Ok(Expected::Consumers { left: left - 1, state }.settled())
            }
            (Expected::Consumers { .. }, _) => Err(Failed::content("expected a consumer")),
            (Expected::Messages { next, left, state }, Name::Message { seq, subject }) => {
                if seq < next {
                    return Err(Failed::Content(format!("message sequence {seq} out of order")));
                }
                if left == 0 {
                    return Err(Failed::content("more messages than the state counts"));
                }
                if seq > state.last_seq.0 {
                    let last = state.last_seq;
                    let why = format!("message sequence {seq} is behind the last one, {last}");
                    return Err(Failed::Content(why));
                }
                check_message(seq, &subject, &entry.header)?;
                let record = RecordRef {
                    timestamp: Timestamp(entry.time),
                    subject: &subject,
                    header: &entry.header,
                    payload: &entry.payload,
                };
                if let Some(full) = self.placing.put(Seq(seq), &record, self.now()) {
                    self.place(full).await?;
                }
                Ok(Expected::Messages { next: seq + 1, left: left - 1, state })
            }
            (Expected::Messages { state, .. }, Name::End) => Ok(Expected::Nothing { state }),
            (Expected::Messages { .. } | Expected::Nothing { .. }, _) => {
                Err(Failed::content("expected message sequence"))
            }
        }
    }

    async fn consumer(&mut self, name: &str, document: &[u8]) -> Result<(), Failed> {
        let consumer = serde_json::from_slice(document)
            .map_err(|error| Failed::Content(format!("failed to decode consumer {name:?} state: {error}")))?;
        let parsed = ConsumerName::parse(name)
            .map_err(|error| Failed::Content(format!("failed to add consumer {name:?}: {error}")))?;
        let consumer = Box::new(consumer);
        let command = StreamCommand::RestoreConsumer { now: self.now(), name: parsed, consumer };
        match self.decide(command.encode().into_bytes(), INLINE).await {
            Err(Failed::Refused(error)) => {
                Err(Failed::Content(format!("failed to add consumer {name:?}: {}", error.description)))
            }
            done => done,
        }
    }

    /// Proposes a block, after the one before it was applied.
    async fn place(&mut self, block: Bytes) -> Result<(), Failed> {
        self.placed().await?;
        let admitted = quota::admit(&self.jetstream, &self.replica.assignment(), block.len());
        let charge = admitted.map_err(|_| Failed::Refused(self.storage.exceeded()))?;
        let proposal = self.replica.group().propose(BLOCK, block.clone());
        self.proposed = Some((block, proposal, charge));
        Ok(())
    }

    /// Waits until the last block is applied.
    async fn placed(&mut self) -> Result<(), Failed> {
        let Some((block, proposal, _charge)) = self.proposed.take() else { return Ok(()) };
        match proposal.await {
            // The queue was full, and nothing of it got in.
            Err(ProposeError::Full) => self.decide(block, BLOCK).await,
            outcome => applied(outcome),
        }
    }

    /// Has the group decide something, however full its queue is now.
    async fn decide(&self, command: Bytes, kind: u8) -> Result<(), Failed> {
        loop {
            match self.replica.group().propose(kind, command.clone()).await {
                Err(ProposeError::Full) => tokio::time::sleep(LOOK_INTERVAL).await,
                outcome => return applied(outcome),
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.replica.now(self.jetstream.clock())
    }

    fn answer(&self, to: &[u8], payload: &[u8]) {
        if !to.is_empty() {
            let message = MessageRef { subject: to, payload, ..MessageRef::default() };
            self.jetstream.router().batch().send(&self.account, to, message);
        }
    }

    /// The answer when all went well.
    async fn restored(&self, group: GroupId) -> Result<Vec<u8>, ApiError> {
        let revision = self.jetstream.meta().read(|machine| {
            machine.stream_of_group(group).map_or(self.replica.assignment().revision, |known| known.revision)
        });
        stream_info::reachable(&self.jetstream, group, revision).await;
        stream_action(&self.jetstream, &self.account, &self.name, Action::Create);
        let mut info = stream_info::of(&self.jetstream, &self.replica);
        info.config = info.config.shown();
        info.cluster = None;
        tracing::info!(
            "stream '{}' is restored: {} messages from an archive of {} bytes",
            self.name,
            info.state.messages,
            self.bytes
        );
        Ok(success(Endpoint::StreamCreate.response_type(), &StreamCreated { info, did_create: false }))
    }
}

impl Expected {
    /// Behind the last consumer messages are next.
    fn settled(self) -> Self {
        match self {
            Self::Consumers { left: 0, state } => {
                Self::Messages { next: state.first_seq.0.max(1), left: state.messages, state }
            }
            other => other,
        }
    }
}

fn applied(outcome: levee_raft::Outcome) -> Result<(), Failed> {
    let (_, reply) = outcome.map_err(|error| match error {
        ProposeError::NoRoom => Failed::Refused(ApiError::storage_exceeded()),
        _ => Failed::Leadership,
    })?;
    match reply.downcast::<Reply>().map(|reply| *reply) {
        Ok(Reply::None) => Ok(()),
        Ok(Reply::Rejected(error)) => Err(Failed::Refused(error)),
        Ok(_) | Err(_) => Err(Failed::Leadership),
    }
}

/// The state in an archive, if it can be that of a stream. The words are nats-server's.
fn checked_state(document: &[u8]) -> Result<StreamState, Failed> {
    let state: StreamState = serde_json::from_slice(document)
        .map_err(|error| Failed::Content(format!("error in state.json: {error}")))?;
    let (first, last, messages) = (state.first_seq.0, state.last_seq.0, state.messages);
    let inconsistent = "invalid stream state: inconsistent message count or sequence range";
    if first == 0 {
        return if last == 0 && messages == 0 { Ok(state) } else { Err(Failed::content(inconsistent)) };
    }
    if first > last {
        return if first - 1 == last && messages == 0 {
            Ok(state)
        } else {
            Err(Failed::content(inconsistent))
        };
    }
    let Some(missing) = (last - first + 1).checked_sub(messages) else {
        return Err(Failed::content("invalid stream state: message count exceeds sequence range"));
    };
    // Without messages nothing is kept of the others.
    if messages > 0 && missing > GAP_MAX {
        let why =
            format!("invalid stream state: {missing} sequences without a message are more than {GAP_MAX}");
        return Err(Failed::Content(why));
    }
    Ok(state)
}

fn check_message(seq: u64, subject: &[u8], header: &[u8]) -> Result<(), Failed> {
    let is_subject = std::str::from_utf8(subject).is_ok_and(|text| Subject::parse(text).is_ok());
    if !is_subject {
        return Err(Failed::Content(format!("message sequence {seq} has an invalid subject")));
    }
    let is_block = header.is_empty() || (header.starts_with(b"NATS/1.0") && header.ends_with(b"\r\n\r\n"));
    if !is_block {
        return Err(Failed::Content(format!("message sequence {seq} has an invalid header")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_can_not_be_are_refused() {
        let check = |first_seq: u64, last_seq: u64, messages: u64| {
            let document = format!(
                r#"{{"messages":{messages},"bytes":0,"first_seq":{first_seq},"first_ts":"0001-01-01T00:00:00Z","last_seq":{last_seq},"last_ts":"0001-01-01T00:00:00Z","consumer_count":0}}"#
            );
            checked_state(document.as_bytes()).map(drop).map_err(|error| error.to_string())
        };

        for (first, last, messages) in [(0, 0, 0), (1, 0, 0), (7, 6, 0), (1, 5, 5), (5, 5, 0), (3, 9, 1)] {
            assert_eq!(check(first, last, messages), Ok(()), "{first} {last} {messages}");
        }
        for (first, last, messages) in
            [(0, 1, 0), (0, 0, 1), (9, 5, 0), (6, 5, 1), (1, 5, 6), (1, GAP_MAX + 3, 1), (1, u64::MAX, 1)]
        {
            assert!(check(first, last, messages).is_err(), "{first} {last} {messages}");
        }
        assert!(checked_state(b"{").is_err());
        assert!(checked_state(br#"{"consumer_count":-1}"#).is_err());
    }

    #[test]
    fn messages_that_no_client_could_have_published_are_refused() {
        assert!(check_message(1, b"a.b", b"").is_ok());
        assert!(check_message(1, b"a.b", b"NATS/1.0\r\nA: b\r\n\r\n").is_ok());
        for (subject, header) in [
            (&b""[..], &b""[..]),
            (b"a..b", b""),
            (b"a.*", b""),
            (b"a b", b""),
            (b"\xff", b""),
            (b"a", b"A: b\r\n\r\n"),
            (b"a", b"NATS/1.0\r\nA: b"),
        ] {
            assert!(check_message(1, subject, header).is_err(), "{subject:?} {header:?}");
        }
    }
}
