//! `$JS.API.CONSUMER.NAMES.*` and `$JS.API.CONSUMER.LIST.*`

use std::collections::BTreeMap;

use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::{ConsumerList, ConsumerNames, LIST_PAGE, NAMES_PAGE};
use levee_protocol::api::{ApiError, NamesRequest};
use levee_protocol::ids::ConsumerName;

use crate::api::consumer_info;
use crate::api::context::{Answer, Context, Led};

pub(super) fn names(cx: &Context<'_>) -> Answer {
    let (offset, _, names) = requested(cx)?;
    let consumers = names.iter().skip(offset).take(NAMES_PAGE).map(ToString::to_string).collect();
    Ok(cx.request.endpoint.success(&ConsumerNames {
        total: names.len(),
        offset,
        limit: NAMES_PAGE,
        consumers,
    }))
}

pub(super) fn infos(cx: &Context<'_>) -> Answer {
    let (offset, led, names) = requested(cx)?;
    let consumers = names
        .iter()
        .skip(offset)
        .take(LIST_PAGE)
        .filter_map(|name| consumer_info::of(cx.jetstream, &led, name))
        .collect();
    Ok(cx.request.endpoint.success(&ConsumerList {
        total: names.len(),
        offset,
        limit: LIST_PAGE,
        consumers,
        missing: Vec::new(),
        offline: BTreeMap::new(),
    }))
}

fn requested(cx: &Context<'_>) -> Result<(usize, Led, Vec<ConsumerName>), ApiError> {
    let request: NamesRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let led = cx.led()?;
    let names: Vec<ConsumerName> =
        led.replica.read(|machine, _| machine.consumers().map(|(name, _)| name.clone()).collect());
    let offset = usize::try_from(request.offset).unwrap_or(0).min(names.len());
    Ok((offset, led, names))
}
