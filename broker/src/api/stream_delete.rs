//! `$JS.API.STREAM.DELETE.*`

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::advisory::Action;
use levee_protocol::api::response::Done;
use levee_protocol::api::{ApiError, envelope};
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::StreamName;

use crate::advisory;
use crate::api::context::{Answer, Context, removal_failed};
use crate::api::stream_info;

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    if !envelope::is_empty_request(cx.body) {
        return Err(ApiError::not_empty_request());
    }
    let command = MetaCommand::DeleteStream {
        now: cx.jetstream.clock().now(),
        account: cx.account.clone(),
        name: StreamName::parse(cx.request.stream).map_err(|_| ApiError::stream_not_found())?,
    };
    match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Rejected(error)) => Err(error),
        Ok(MetaReply::Deleted(assignment)) => {
            stream_info::gone(cx.jetstream, assignment.group).await;
            advisory::stream_action(cx.jetstream, cx.account, cx.request.stream, Action::Delete);
            Ok(cx.request.endpoint.success(&Done::OK))
        }
        Err(error) => Err(removal_failed(&error)),
        Ok(_) => Err(ApiError::not_available()),
    }
}
