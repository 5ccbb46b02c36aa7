//! `$JS.API.CONSUMER.UNPIN.*`: the next client that asks is pinned instead.

use levee_protocol::api::consumer_check::check_group_name;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::Unpinned;
use levee_protocol::api::{ApiError, UnpinRequest};
use levee_protocol::ids::ConsumerName;

use crate::api::context::{Answer, Context};

pub(super) fn handle(cx: &Context<'_>) -> Answer {
    if cx.body.is_empty() {
        return Err(ApiError::invalid_json("unexpected end of JSON input"));
    }
    let UnpinRequest { group } = envelope::parse_request(cx.body, Strictness::Lenient)?;
    if group.is_empty() {
        return Err(ApiError::invalid_json("consumer group not specified"));
    }
    check_group_name(&group)?;
    let led = cx.led()?;
    let name = ConsumerName::parse(cx.request.consumer).map_err(|_| ApiError::consumer_not_found())?;
    let knows_group = led.replica.read(|machine, _| {
        machine.consumer(&name).map(|ledger| ledger.config().priority_groups.contains(&group))
    });
    if !knows_group.ok_or_else(ApiError::consumer_not_found)? {
        return Err(ApiError::priority_group_unknown());
    }
    // A leader that has just begun has not built all its consumers yet.
    let driver = led.leader.driver(&name).ok_or_else(ApiError::not_available)?;
    driver.unpin(&group);
    Ok(cx.request.endpoint.success(&Unpinned {}))
}
