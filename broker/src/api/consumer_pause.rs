//! `$JS.API.CONSUMER.PAUSE.*`: an empty request resumes.

use levee_broker_core::stream::Reply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::ConsumerPaused;
use levee_protocol::api::{ApiError, ConsumerPauseRequest};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::ConsumerName;
use levee_protocol::time::{Nanos, Timestamp};

use crate::api::context::{Answer, Context};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let request: ConsumerPauseRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let led = cx.led()?;
    let name = ConsumerName::parse(cx.request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let now = cx.jetstream.clock().now();
    let until = request.pause_until.unwrap_or(Timestamp::ZERO);
    let command = StreamCommand::PauseConsumer { now, name, until };
    match led.replica.propose(&command).await {
        Ok(Reply::Paused { until }) if until > now => Ok(cx.request.endpoint.success(&ConsumerPaused {
            paused: true,
            pause_until: until,
            pause_remaining: until.since(now),
        })),
        // As requested, though it is over.
        Ok(Reply::Paused { .. }) => {
            let pause_remaining = Nanos::ZERO;
            Ok(cx.request.endpoint.success(&ConsumerPaused {
                paused: false,
                pause_until: until,
                pause_remaining,
            }))
        }
        Ok(Reply::Rejected(error)) => Err(error),
        Ok(_) | Err(_) => Err(ApiError::not_available()),
    }
}
