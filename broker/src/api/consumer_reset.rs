//! `$JS.API.CONSUMER.RESET.*`: an empty request goes back to the ack floor.

use levee_broker_core::stream::Reply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::ConsumerReset;
use levee_protocol::api::{ApiError, ConsumerResetRequest};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, Seq};

use crate::api::consumer_info;
use crate::api::context::{Answer, Context};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let request: ConsumerResetRequest = envelope::parse_request(cx.body, Strictness::Lenient)?;
    let led = cx.led()?;
    let name = ConsumerName::parse(cx.request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let now = cx.jetstream.clock().now();
    let command = StreamCommand::ResetConsumer { now, name: name.clone(), seq: Seq(request.seq) };
    let reset_seq = match led.replica.propose(&command).await {
        Ok(Reply::Reset { seq }) => seq,
        Ok(Reply::Rejected(error)) => return Err(error),
        Ok(_) | Err(_) => return Err(ApiError::not_available()),
    };
    let mut info = consumer_info::of(cx.jetstream, &led, &name).ok_or_else(ApiError::not_available)?;
    info.config = info.config.map(|config| config.shown());
    Ok(cx.request.endpoint.success(&ConsumerReset { info, reset_seq }))
}
