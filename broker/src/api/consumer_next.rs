//! Hot path: `$JS.API.CONSUMER.MSG.NEXT.*` on the stream's leader: the request goes into the consumer's inbox.

use std::sync::Arc;

use levee_protocol::api::Request;
use levee_protocol::ids::AccountName;

use crate::jetstream::JetStream;
use crate::router::{Inbound, InboundItem};
use crate::stream::Leader;

pub(super) fn take(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    leader: &Leader,
    request: &Request<'_>,
    batch: &Inbound,
    item: &InboundItem,
) {
    if batch.reply(item).is_empty() {
        return;
    }
    if !leader.driver_named(request.consumer).is_some_and(|driver| driver.on_pull(batch, item)) {
        super::no_responders(jetstream, account, batch.reply(item), batch.subject(item));
    }
}
