//! Answers those who mirror or source a stream, on the node that leads it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::mirror::{readers, server};
use levee_broker_core::stream::Reply;
use levee_protocol::api::ApiError;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{AccountName, Seq};
use levee_protocol::mirror::{FetchAnswer, FetchRequest};
use prost::Message;

use crate::jetstream::JetStream;
use crate::runtime::clock;
use crate::stream::Replica;

/// Peer call: messages of a stream that the peer leads.
pub const CALL_ORIGIN: u8 = 6;
/// Nobody is made to wait longer than this.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Answers a peer's [`CALL_ORIGIN`]. Empty when it does not decode.
pub async fn answer_peer(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    let Ok(request) = FetchRequest::decode(frame) else { return Bytes::new() };
    answer(&jetstream, request).await.encode_to_vec().into()
}

/// What the stream has, as soon as it has something that is wanted, or when the time to wait is over.
pub(super) async fn answer(jetstream: &Arc<JetStream>, mut request: FetchRequest) -> FetchAnswer {
    let elsewhere = || FetchAnswer { elsewhere: true, ..FetchAnswer::default() };
    let Ok(account) = AccountName::parse(&request.account) else { return elsewhere() };
    if !request.consumer.is_empty() {
        return attach(jetstream, &account, &request).await.unwrap_or_else(elsewhere);
    }
    let until = clock::monotonic() + Duration::from_millis(request.wait_ms).min(WAIT_MAX);
    let mut began = None;
    loop {
        let Some(group) = jetstream.directory().group(&account, &request.stream) else {
            return FetchAnswer::refused(&ApiError::stream_not_found());
        };
        let Some(replica) = jetstream.replica(group) else { return elsewhere() };
        let Some(leader) = replica.leader() else { return elsewhere() };
        if let Err(error) = note_reader(jetstream, &replica, &request).await {
            return FetchAnswer::refused(&error);
        }
        if request.reader.as_ref().is_some_and(|reader| reader.leaves) {
            return FetchAnswer::default();
        }
        let moved = leader.moved();
        tokio::pin!(moved);
        // Before the look, so that nothing is missed in between.
        moved.as_mut().enable();
        let mut answer = match replica.read(|machine, view| server::answer(machine, view, &request)) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!("stream '{}' can't be read: {error}", request.stream);
                return FetchAnswer::refused(&ApiError::stream_general(error));
            }
        };
        let (identity, from) = began.get_or_insert_with(|| (answer.identity.clone(), answer.from));
        if *identity != answer.identity {
            // Created again meanwhile: what was said of the one before does not go with this.
            return answer;
        }
        answer.from = *from;
        if !answer.seqs.is_empty() || clock::monotonic() >= until {
            return answer;
        }
        let is_all = answer.through >= answer.last_seq;
        // What was looked at once is not looked at again.
        request.from = (answer.through + 1).max(answer.from);
        request.identity.clone_from(&answer.identity);
        // It is noted.
        request.reader = None;
        if is_all {
            let _ = tokio::time::timeout_at(until, moved).await;
        } else {
            // There is more to look through. Who wants to publish comes first.
            tokio::task::yield_now().await;
        }
    }
}

/// Has a consumer that the owner made go back to its ack floor, for a reader that it delivers to. `None` if the stream is
/// not led here.
async fn attach(jetstream: &JetStream, account: &AccountName, request: &FetchRequest) -> Option<FetchAnswer> {
    let Some(group) = jetstream.directory().group(account, &request.stream) else {
        return Some(FetchAnswer::refused(&ApiError::stream_not_found()));
    };
    let replica = jetstream.replica(group).filter(|replica| replica.leader().is_some())?;
    let name = match replica.read(|machine, _| server::attachable(machine, request)) {
        Ok(name) => name,
        Err(error) => return Some(FetchAnswer::refused(&error)),
    };
    let now = replica.now(jetstream.clock());
    let command = StreamCommand::ResetConsumer { now, name: name.clone(), seq: Seq::NONE };
    let from = match replica.propose(&command).await.ok()? {
        Reply::Reset { seq } => seq,
        Reply::Rejected(error) => return Some(FetchAnswer::refused(&error)),
        _ => return None,
    };
    let attached = replica.read(|machine, view| server::attached(machine, view, &name, from));
    Some(attached.unwrap_or_else(|error| FetchAnswer::refused(&ApiError::stream_general(error))))
}

/// Has the stream's group note what is new about a reader, if anything is.
async fn note_reader(
    jetstream: &JetStream,
    replica: &Replica,
    request: &FetchRequest,
) -> Result<(), ApiError> {
    // That of another stream goes, one is made, then settled.
    for _ in 0..3 {
        let now = replica.now(jetstream.clock());
        let noted = replica.read(|machine, view| readers::note(machine, view, request, now));
        let Some(command) = noted.map_err(ApiError::stream_general)? else { return Ok(()) };
        match replica.propose(&command).await {
            Ok(Reply::Rejected(error)) => return Err(error),
            Ok(_) => {}
            Err(_) => return Err(ApiError::not_available()),
        }
    }
    Ok(())
}
