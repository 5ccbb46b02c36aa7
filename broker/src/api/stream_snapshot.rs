//! `$JS.API.STREAM.SNAPSHOT.*`: the stream's leader sends it as an archive.

use std::sync::Arc;

use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::SnapshotBegun;
use levee_protocol::api::{ApiError, SnapshotRequest};
use levee_protocol::subject::Subject;

use crate::api::context::{Answer, Context};
use crate::runtime::tasks;
use crate::transfer::snapshot::{self, Receiver, Snapshot};

pub(super) fn handle(cx: &Context<'_>) -> Answer {
    if envelope::is_empty_request(cx.body) {
        return Err(ApiError::bad_request());
    }
    let led = cx.led()?;
    let request: SnapshotRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    if Subject::parse(&request.deliver_subject).is_err() {
        return Err(ApiError::deliver_subject_not_valid());
    }
    let snapshot = Snapshot::of(cx.jetstream, &led.replica, &request);
    let answer = SnapshotBegun { config: snapshot.config.clone(), state: snapshot.state.clone() };
    let to = Receiver { account: cx.account.clone(), request, client: cx.client.clone() };
    tasks::spawn("send a snapshot", snapshot::send(Arc::clone(cx.jetstream), led.replica, to, snapshot));
    Ok(cx.request.endpoint.success(&answer))
}
