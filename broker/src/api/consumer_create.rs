//! `$JS.API.CONSUMER.CREATE.*` in its forms, and the old `$JS.API.CONSUMER.DURABLE.CREATE.*`.

use std::time::Duration;

use levee_broker_core::stream::Reply;
use levee_protocol::api::advisory::Action;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::{Adjust, ApiError, ConsumerCreateRequest, ConsumerInfo};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::ConsumerName;

use crate::advisory;
use crate::api::context::{Answer, Context, Led};
use crate::api::{consumer_info, stream_create, stream_info};
use crate::nuid;

/// Ephemeral consumers get a name of this many characters.
const EPHEMERAL_NAME_CHARS: usize = 8;

const DRIVER_LOOKS: u32 = 200;
const DRIVER_LOOK_INTERVAL: Duration = Duration::from_millis(1);

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let mut request: ConsumerCreateRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let led = cx.led()?;
    let name = match request.bind(&cx.request)? {
        Some(name) => name,
        None => ConsumerName::parse(&nuid::draw(EPHEMERAL_NAME_CHARS)).expect("letters and digits"),
    };
    let mut config = request.config;
    stream_create::check_replicas(cx, config.num_replicas)?;
    // Apply does this too; here it can be pedantic, and a refusal costs no log entry.
    let stream =
        led.replica.read(|machine, _| machine.config().cloned()).ok_or_else(ApiError::not_available)?;
    let adjust = Adjust::from_pedantic(request.pedantic);
    config.apply_defaults_and_validate(&stream, &cx.limits(), adjust)?;
    if let Some(feature) = config.unsupported_yet() {
        return Err(ApiError::consumer_create_failed(format!("{feature} is not supported by Levee yet")));
    }
    if let Some(subject) = config.extensions()?.dead_letter
        && cx.jetstream.directory().capturing(cx.account, subject.as_bytes()).is_none()
    {
        return Err(ApiError::consumer_extension_invalid(format!(
            "metadata levee.dead_letter is \"{subject}\", which no stream captures: create one for it first"
        )));
    }
    let moved = led.replica.read(|machine, _| {
        let before = machine.consumer(&name)?.config();
        let moves = before.is_push() && config.is_push() && before.deliver_subject != config.deliver_subject;
        moves.then(|| (before.deliver_subject.clone(), before.deliver_group.clone()))
    });
    let router = cx.jetstream.router();
    if moved.is_some_and(|(subject, group)| {
        router.has_group_interest(cx.account, subject.as_bytes(), group.as_bytes())
    }) {
        return Err(ApiError::consumer_name_in_use());
    }
    config.store_metadata();
    let command = StreamCommand::CreateConsumer {
        now: cx.jetstream.clock().now(),
        name: name.clone(),
        config: Box::new(config),
        action: request.action,
        default_max: cx.limits().default_max_consumers,
    };
    let info = match led.replica.propose(&command).await {
        Ok(Reply::Consumer(consumer)) if consumer.created => {
            advisory::consumer_action(
                cx.jetstream,
                cx.account,
                cx.request.stream,
                name.as_str(),
                Action::Create,
            );
            first_info(cx, &led, &name).await
        }
        Ok(Reply::Consumer(_)) => consumer_info::of(cx.jetstream, &led, &name),
        Ok(Reply::Rejected(error)) => return Err(error),
        Ok(_) | Err(_) => return Err(ApiError::not_available()),
    };
    let mut info = info.ok_or_else(ApiError::not_available)?;
    info.config = info.config.map(|config| config.shown());
    Ok(cx.request.endpoint.success(&info))
}

/// A new consumer before its first delivery. Its driver starts when the events of the applied entry are handed on,
/// which may be a moment after the reply.
async fn first_info(cx: &Context<'_>, led: &Led, name: &ConsumerName) -> Option<ConsumerInfo> {
    for _ in 0..DRIVER_LOOKS {
        if let Some(driver) = led.leader.driver(name) {
            let Some(mut info) = driver.take_first_info() else {
                return consumer_info::of(cx.jetstream, led, name);
            };
            info.cluster = stream_info::cluster_info(cx.jetstream, &led.replica);
            return Some(info);
        }
        tokio::time::sleep(DRIVER_LOOK_INTERVAL).await;
    }
    None
}
