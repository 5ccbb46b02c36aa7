//! `$JS.API.STREAM.MSG.GET.*` and `$JS.API.STREAM.MSG.DELETE.*`: single messages, through the leader.

use levee_broker_core::stream::Reply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::{Done, MessageFound};
use levee_protocol::api::{ApiError, MessageDeleteRequest, MessageGetRequest, StoredMessage};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;

use crate::api::context::{Answer, Context, removal_failed};
use crate::stream::reads::{LookupFailed, find};

pub(super) fn get(cx: &Context<'_>) -> Answer {
    let request: MessageGetRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let selector = request.selector()?;
    let led = cx.led()?;
    let record = led
        .replica
        .read(|machine, view| find(machine, view, &selector))
        .map_err(|error| match error {
            // No subject is like that.
            LookupFailed::Filter(_) => ApiError::no_message_found(),
            LookupFailed::Read(error) => {
                tracing::error!("stream '{}': {error}", cx.request.stream);
                ApiError::stream_general(error)
            }
        })?
        .ok_or_else(ApiError::no_message_found)?;
    let mut message = StoredMessage::new(record.seq, record.borrowed());
    if request.no_hdr {
        message.header.clear();
    }
    Ok(cx.request.endpoint.success(&MessageFound { message }))
}

pub(super) async fn delete(cx: &Context<'_>) -> Answer {
    if envelope::is_empty_request(cx.body) {
        return Err(ApiError::bad_request());
    }
    let request: MessageDeleteRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let led = cx.led()?;
    let command = StreamCommand::DeleteMessage { now: cx.jetstream.clock().now(), seq: Seq(request.seq) };
    match led.replica.propose(&command).await {
        Ok(Reply::Deleted) => Ok(cx.request.endpoint.success(&Done::OK)),
        Ok(Reply::Rejected(error)) => Err(error),
        Err(error) => Err(removal_failed(&error)),
        Ok(_) => Err(ApiError::not_available()),
    }
}
