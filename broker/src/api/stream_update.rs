//! `$JS.API.STREAM.UPDATE.*`: meta decides, the stream's own log adopts.

use levee_broker_core::meta::MetaReply;
use levee_broker_core::stream::check_consumer_limits;
use levee_protocol::api::advisory::Action;
use levee_protocol::api::stream_config::ConsumerLimits;
use levee_protocol::api::{ApiError, ConsumerConfig, StreamConfig};
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::StreamName;
use serde::Deserialize;
use serde_json::json;

use crate::advisory;
use crate::api::context::{Answer, Context};
use crate::api::{self, stream_create, stream_info};

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let config = stream_create::requested_config(cx)?;
    if asks_for_more(cx, &config) {
        stream_create::check_reservation(cx, &config)?;
    }
    check_consumers(cx, &config).await?;
    let command = MetaCommand::UpdateStream {
        now: cx.jetstream.clock().now(),
        account: cx.account.clone(),
        config: Box::new(config),
        alive: cx.jetstream.alive_nodes(),
        limits: cx.account_limits(),
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
    let info = stream_info::decided(cx.jetstream, &assignment).await?;
    Ok(cx.request.endpoint.success(&info))
}

/// Whether the stream is promised more bytes than now. Others may be updated even if the bounds are exceeded.
fn asks_for_more(cx: &Context<'_>, config: &StreamConfig) -> bool {
    cx.jetstream.meta().read(|machine| {
        let name = StreamName::parse(&config.name).ok();
        let current = name.and_then(|name| machine.stream(cx.account, &name));
        current.is_none_or(|current| config.max_bytes > current.config.max_bytes)
    })
}

/// Whether the stream's consumers are within the bounds that the new configuration sets for them.
async fn check_consumers(cx: &Context<'_>, config: &StreamConfig) -> Result<(), ApiError> {
    if config.consumer_limits == ConsumerLimits::default() {
        return Ok(());
    }
    let subject = format!("$JS.API.CONSUMER.LIST.{}", config.name);
    let mut consumers: Vec<ConsumerConfig> = Vec::new();
    loop {
        let body = json!({ "offset": consumers.len() }).to_string();
        // Asked like a client would: the consumers are known where the stream is led.
        let caller = api::Caller { account: cx.account, client: cx.client };
        let ask = api::try_once(cx.jetstream, caller, subject.as_bytes(), body.as_bytes(), 1);
        let page = Box::pin(ask).await.ok_or_else(ApiError::not_available)??;
        let page: Page = serde_json::from_slice(&page).map_err(|_| ApiError::not_available())?;
        if let Some(error) = page.error {
            return Err(error);
        }
        let before = consumers.len();
        consumers.extend(page.consumers.into_iter().map(|consumer| consumer.config));
        if consumers.len() >= page.total || consumers.len() == before {
            return check_consumer_limits(config, consumers.iter());
        }
    }
}

/// A page of the list of consumers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    error: Option<ApiError>,
    total: usize,
    consumers: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    config: ConsumerConfig,
}
