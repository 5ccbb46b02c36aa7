//! `$JS.API.STREAM.PURGE.*`

use levee_broker_core::stream::Reply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::Purged;
use levee_protocol::api::{ApiError, PurgeRequest};
use levee_protocol::command::StreamCommand;

use crate::api::context::{Answer, Context, removal_failed};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let request: PurgeRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    if request.seq > 0 && request.keep > 0 {
        return Err(ApiError::bad_request());
    }
    let led = cx.led()?;
    let command = StreamCommand::Purge { now: cx.jetstream.clock().now(), request };
    match led.replica.propose(&command).await {
        Ok(Reply::Purged(purged)) => Ok(cx.request.endpoint.success(&Purged::count(purged))),
        Ok(Reply::Rejected(error)) => Err(error),
        Err(error) => Err(removal_failed(&error)),
        Ok(_) => Err(ApiError::not_available()),
    }
}
