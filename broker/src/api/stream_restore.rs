//! `$JS.API.STREAM.RESTORE.*`: meta makes a hidden stream, and its leader listens for the archive that fills it.

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::RestoreBegun;
use levee_protocol::api::{Adjust, ApiError, RestoreRequest};
use levee_protocol::ids::StreamName;

use crate::api::context::{Answer, Context};
use crate::api::stream_create::{self, checked_config};
use crate::transfer::restore;

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    if envelope::is_empty_request(cx.body) {
        return Err(ApiError::bad_request());
    }
    let request: RestoreRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let mut config = request.config;
    if config.name.is_empty() {
        cx.request.stream.clone_into(&mut config.name);
    }
    let config = checked_config(cx, config, Adjust::Silently)?;
    let exists = StreamName::parse(cx.request.stream).is_ok_and(|name| {
        cx.jetstream
            .meta()
            .read(|machine| machine.stream(cx.account, &name).is_some_and(|stream| !stream.restoring))
    });
    if exists {
        return Err(ApiError::restore_name_exists());
    }
    let (assignment, is_ours) = match stream_create::propose(cx, config, true).await? {
        MetaReply::Created(assignment) => (assignment, true),
        // Asked before, by somebody who did not hear that it was decided. If that restore has begun, it is theirs.
        MetaReply::Exists(assignment) => (assignment, false),
        _ => return Err(ApiError::not_available()),
    };
    let Some(answer) = restore::begin(cx.jetstream, assignment.group, cx.client).await else {
        if is_ours {
            restore::give_up(cx.jetstream, assignment.group).await;
        }
        return Err(ApiError::not_available());
    };
    let deliver_subject = answer?;
    Ok(cx.request.endpoint.success(&RestoreBegun { deliver_subject }))
}
