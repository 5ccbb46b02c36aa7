//! `$JS.API.CONSUMER.INFO.*`, and the consumer infos that other answers contain.

use levee_protocol::api::{ApiError, ConsumerInfo, envelope};
use levee_protocol::ids::ConsumerName;

use crate::api::context::{Answer, Context, Led};
use crate::api::stream_info;
use crate::jetstream::JetStream;

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    if !envelope::is_empty_request(cx.body) {
        return Err(ApiError::not_empty_request());
    }
    let led = cx.led()?;
    let name = ConsumerName::parse(cx.request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let mut info = of(cx.jetstream, &led, &name).ok_or_else(|| {
        // A leader that has just begun has not built all its consumers yet.
        let exists = led.replica.read(|machine, _| machine.consumer(&name).is_some());
        if exists { ApiError::not_available() } else { ApiError::consumer_not_found() }
    })?;
    info.config = info.config.map(|config| config.shown());
    Ok(cx.request.endpoint.success(&info))
}

/// What is known of a consumer on the node that leads it. Metadata is as stored.
#[must_use]
pub(crate) fn of(jetstream: &JetStream, led: &Led, name: &ConsumerName) -> Option<ConsumerInfo> {
    let driver = led.leader.driver(name)?;
    let mut info = driver.info(jetstream, &led.replica)?;
    info.cluster = stream_info::cluster_info(jetstream, &led.replica);
    Some(info)
}
