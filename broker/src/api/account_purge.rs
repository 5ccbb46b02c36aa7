//! `$JS.API.ACCOUNT.PURGE.*`: all streams of an account go, and their consumers with them.

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::ApiError;
use levee_protocol::api::response::PurgeInitiated;
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::{AccountName, StreamName};

use crate::api::context::{Answer, Context, removal_failed};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    // An account that is not configured any more may have left streams behind.
    if let Ok(account) = AccountName::parse(cx.request.account) {
        let names: Vec<StreamName> = cx.jetstream.meta().read(|machine| {
            machine
                .streams(&account)
                .filter_map(|stream| StreamName::parse(&stream.config.name).ok())
                .collect()
        });
        tracing::warn!("the {} streams of account {account} are removed on request", names.len());
        for name in names {
            let now = cx.jetstream.clock().now();
            let command = MetaCommand::DeleteStream { now, account: account.clone(), name };
            match cx.jetstream.meta().propose(&command).await {
                // Somebody else may have removed it meanwhile.
                Ok(MetaReply::Deleted(_) | MetaReply::Rejected(_)) => {}
                Ok(_) => return Err(ApiError::not_available()),
                Err(error) => return Err(removal_failed(&error)),
            }
        }
    }
    Ok(cx.request.endpoint.success(&PurgeInitiated { initiated: true }))
}
