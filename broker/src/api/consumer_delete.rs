//! `$JS.API.CONSUMER.DELETE.*`

use levee_broker_core::stream::Reply;
use levee_protocol::api::response::Done;
use levee_protocol::api::{ApiError, envelope};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::ConsumerName;

use crate::api::context::{Answer, Context, removal_failed};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    if !envelope::is_empty_request(cx.body) {
        return Err(ApiError::not_empty_request());
    }
    let led = cx.led()?;
    let name = ConsumerName::parse(cx.request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let command = StreamCommand::DeleteConsumer { now: cx.jetstream.clock().now(), name, incarnation: None };
    match led.replica.propose(&command).await {
        Ok(Reply::ConsumerDeleted) => Ok(cx.request.endpoint.success(&Done::OK)),
        Ok(Reply::Rejected(error)) => Err(error),
        Err(error) => Err(removal_failed(&error)),
        Ok(_) => Err(ApiError::not_available()),
    }
}
