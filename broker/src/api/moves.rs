//! `ACCOUNT.STREAM.MOVE` brings one replica of a stream to another node; `STREAM.CANCEL_MOVE` and its like of the account
//! take it back until it has arrived, and a stream that is scaled or placed anew, too.

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::advisory::Action;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::{ApiError, MoveRequest};
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::{AccountName, NodeId, StreamName};

use crate::advisory;
use crate::api::context::{Answer, Context, failed_once, not_again};
use crate::api::stream_info;

pub(super) async fn begin(cx: &Context<'_>) -> Answer {
    let request: MoveRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let (account, name) = stream(cx)?;
    let command = MetaCommand::MoveStream {
        now: cx.jetstream.clock().now(),
        account: account.clone(),
        name,
        from: giver(cx, &request)?,
        tags: request.tags,
        alive: cx.jetstream.reachable_nodes(),
    };
    decide(cx, &account, &command).await
}

pub(super) async fn cancel(cx: &Context<'_>) -> Answer {
    let (account, name) = stream(cx)?;
    let now = cx.jetstream.clock().now();
    let command = MetaCommand::CancelMove { now, account: account.clone(), name };
    decide(cx, &account, &command).await
}

/// The stream that the call names, of the account that it names or of the caller's.
fn stream(cx: &Context<'_>) -> Result<(AccountName, StreamName), ApiError> {
    let account = match cx.request.account {
        "" => cx.account.clone(),
        named => AccountName::parse(named).map_err(|_| ApiError::account_not_found())?,
    };
    if !cx.jetstream.accounts().exists(&account) {
        return Err(ApiError::account_not_found());
    }
    let name = StreamName::parse(cx.request.stream).map_err(|_| ApiError::stream_not_found())?;
    if cx.jetstream.directory().group(&account, name.as_str()).is_none() {
        return Err(ApiError::stream_not_found());
    }
    Ok((account, name))
}

/// The node that gives its replica, if the request names one.
fn giver(cx: &Context<'_>, request: &MoveRequest) -> Result<Option<NodeId>, ApiError> {
    if request.server.is_empty() {
        return Ok(None);
    }
    if !["", &cx.jetstream.identity().cluster].contains(&request.cluster.as_str()) {
        return Err(ApiError::server_not_member());
    }
    let named = cx
        .jetstream
        .meta()
        .read(|machine| machine.nodes().find(|node| node.name == request.server).map(|node| node.id));
    named.map(Some).ok_or_else(ApiError::server_not_member)
}

async fn decide(cx: &Context<'_>, account: &AccountName, command: &MetaCommand) -> Answer {
    match cx.jetstream.meta().propose(command).await {
        Ok(MetaReply::Updated { assignment, .. }) => {
            advisory::stream_action(cx.jetstream, account, cx.request.stream, Action::Modify);
            // Asked for again, it would find itself under way.
            let info = stream_info::decided(cx.jetstream, &assignment).await.map_err(|_| {
                not_again("it is decided, but the stream has no leader that carries it out now")
            })?;
            Ok(cx.request.endpoint.success(&info))
        }
        Ok(MetaReply::Rejected(error)) => Err(error),
        Ok(_) => Err(ApiError::not_available()),
        Err(error) => Err(failed_once(&error, "it may have been decided")),
    }
}
