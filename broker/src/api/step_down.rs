//! Leaders that are asked to hand over: of a stream, of a consumer (which is its stream's), of meta.

use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::Done;
use levee_protocol::api::{ApiError, Placement, StepDownRequest};
use levee_protocol::ids::NodeId;
use levee_raft::Group;

use crate::api::context::{Answer, Context};

pub(super) async fn stream(cx: &Context<'_>) -> Answer {
    let led = cx.led()?;
    hand_over(cx, led.replica.group()).await
}

pub(super) async fn consumer(cx: &Context<'_>) -> Answer {
    let led = cx.led()?;
    led.leader.driver_named(cx.request.consumer).ok_or_else(ApiError::consumer_not_found)?;
    hand_over(cx, led.replica.group()).await
}

pub(super) async fn meta(cx: &Context<'_>) -> Answer {
    let group = cx.jetstream.meta().group().ok_or_else(ApiError::not_available)?;
    hand_over(cx, group).await
}

async fn hand_over(cx: &Context<'_>, group: &Group) -> Answer {
    let request: StepDownRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let status = group.status();
    let here = cx.jetstream.node();
    let mut candidates: Vec<NodeId> = status
        .voters
        .iter()
        .copied()
        .filter(|node| *node != here && cx.jetstream.peers().is_connected(*node))
        .collect();
    let Placement { cluster, tags, preferred } = request.placement.unwrap_or_default();
    let is_elsewhere = !cluster.is_empty() && cluster != cx.jetstream.identity().cluster;
    candidates
        .retain(|node| !is_elsewhere && cx.jetstream.meta().read(|machine| machine.has_tags(*node, &tags)));
    let preferred = Some(preferred).filter(|name| !name.is_empty());
    let target = match preferred {
        Some(name) if name == cx.jetstream.identity().name => {
            return Err(ApiError::no_suitable_peers(format!("preferred server {name:?} is already leader")));
        }
        Some(name) => candidates
            .into_iter()
            .find(|node| cx.jetstream.node_name(*node) == name)
            .ok_or_else(|| ApiError::no_suitable_peers(format!("preferred server {name:?} not known")))?,
        // Whoever has most of the log takes over fastest.
        None => candidates
            .into_iter()
            .max_by_key(|node| {
                status
                    .replicas
                    .iter()
                    .find(|replica| replica.node == *node)
                    .and_then(|replica| replica.matched)
            })
            .ok_or_else(|| ApiError::no_suitable_peers("no replacement peer connected"))?,
    };
    group.transfer(target).await.map_err(ApiError::raft_general)?;
    Ok(cx.request.endpoint.success(&Done::OK))
}
