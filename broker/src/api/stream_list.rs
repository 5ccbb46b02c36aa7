//! `$JS.API.STREAM.NAMES` and `$JS.API.STREAM.LIST`, from the meta leader.

use std::collections::BTreeMap;

use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::{LIST_PAGE, NAMES_PAGE, StreamList, StreamNames};
use levee_protocol::api::{ApiError, NamesRequest};
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::subject::Filter;

use crate::api::context::{Answer, Context};
use crate::api::stream_info;

pub(super) fn names(cx: &Context<'_>) -> Answer {
    let (offset, streams) = requested(cx)?;
    let page =
        streams.iter().skip(offset).take(NAMES_PAGE).map(|stream| stream.config.name.clone()).collect();
    Ok(cx.request.endpoint.success(&StreamNames {
        total: streams.len(),
        offset,
        limit: NAMES_PAGE,
        streams: page,
    }))
}

pub(super) async fn infos(cx: &Context<'_>) -> Answer {
    let (offset, streams) = requested(cx)?;
    let page: Vec<&StreamAssignment> = streams.iter().skip(offset).take(LIST_PAGE).collect();
    let wanted = page.iter().map(|stream| (stream.group, 0)).collect();
    let mut found = stream_info::settled(cx.jetstream, wanted, stream_info::LIST_PATIENCE).await;
    let mut infos = Vec::new();
    let mut missing = Vec::new();
    for stream in page {
        match found.remove(&stream.group) {
            Some(info) => infos.push(info),
            None => missing.push(stream.config.name.clone()),
        }
    }
    let (total, offline) = (streams.len(), BTreeMap::new());
    Ok(cx.request.endpoint.success(&StreamList {
        total,
        offset,
        limit: LIST_PAGE,
        streams: infos,
        missing,
        offline,
    }))
}

/// Where the page starts, and the account's streams with the wanted subject, by name.
fn requested(cx: &Context<'_>) -> Result<(usize, Vec<StreamAssignment>), ApiError> {
    let request: NamesRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let wanted = Filter::parse(&request.subject);
    let has_subject = |stream: &StreamAssignment| {
        if request.subject.is_empty() {
            return true;
        }
        // No stream has a subject that is none.
        let Ok(wanted) = &wanted else { return false };
        let mut subjects = stream.config.subjects.iter();
        subjects.any(|subject| Filter::parse(subject).is_ok_and(|subject| subject.collides(wanted)))
    };
    let mut streams: Vec<StreamAssignment> = cx
        .jetstream
        .meta()
        .read(|machine| machine.streams(cx.account).filter(|stream| has_subject(stream)).cloned().collect());
    streams.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    let offset = usize::try_from(request.offset).unwrap_or(0);
    Ok((offset.min(streams.len()), streams))
}
