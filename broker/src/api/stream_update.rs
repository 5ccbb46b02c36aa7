//! `$JS.API.STREAM.UPDATE.*`: meta decides, the stream's own log adopts.

use std::collections::BTreeMap;

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::ApiError;
use levee_protocol::api::advisory::Action;
use levee_protocol::command::MetaCommand;

use crate::advisory;
use crate::api::context::{Answer, Context};
use crate::api::{stream_create, stream_info};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let config = stream_create::requested_config(cx)?;
    let command = MetaCommand::UpdateStream {
        now: cx.jetstream.clock().now(),
        account: cx.account.clone(),
        config: Box::new(config),
        alive: cx.jetstream.alive_nodes(),
    };
    let assignment = match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Updated { assignment, .. }) => {
            advisory::stream_action(cx.jetstream, cx.account, cx.request.stream, Action::Modify);
            assignment
        }
        Ok(MetaReply::Exists(assignment)) => assignment,
        Ok(MetaReply::Rejected(error)) => return Err(error),
        Ok(_) | Err(_) => return Err(ApiError::not_available()),
    };
    let mut wanted = BTreeMap::new();
    wanted.insert(assignment.group, assignment.revision);
    let mut infos = stream_info::settled(cx.jetstream, wanted, stream_info::SETTLE_PATIENCE).await;
    let mut info = infos.remove(&assignment.group).ok_or_else(ApiError::not_available)?;
    stream_info::reachable(cx.jetstream, assignment.group, assignment.revision).await;
    info.config = info.config.shown();
    Ok(cx.request.endpoint.success(&info))
}
