//! Replicas that go to other nodes, and nodes that are emptied or removed: `STREAM.PEER.*`, `CONSUMER.PEER.*`,
//! `SERVER.EVACUATE` and `SERVER.REMOVE`. Meta decides; the streams' leaders bring their replicas there, and only then
//! the old ones go, so that removing a replica and evacuating it are the same here.

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::Done;
use levee_protocol::api::{ApiError, PeerRequest, ServerPeerRequest};
use levee_protocol::command::MetaCommand;
use levee_protocol::command::meta::{NodeRegistration, StreamAssignment};
use levee_protocol::ids::{NodeId, StreamName};

use crate::advisory;
use crate::api::context::{Answer, Context, removal_failed};
use crate::api::stream_info::peer_id;

pub(super) async fn stream(cx: &Context<'_>) -> Answer {
    let peer = requested_peer(cx)?;
    let name = StreamName::parse(cx.request.stream).map_err(|_| ApiError::stream_not_found())?;
    let assignment = cx.jetstream.meta().read(|machine| machine.stream(cx.account, &name).cloned());
    let assignment = assignment.ok_or_else(ApiError::stream_not_found)?;
    let command = MetaCommand::MoveReplica {
        now: cx.jetstream.clock().now(),
        account: cx.account.clone(),
        name,
        from: holder(cx, &assignment, &peer).ok_or_else(ApiError::peer_not_member)?,
        alive: cx.jetstream.reachable_nodes(),
    };
    match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Updated { .. }) => Ok(cx.request.endpoint.success(&Done::OK)),
        Ok(MetaReply::Rejected(error)) => Err(error),
        Ok(_) => Err(ApiError::not_available()),
        Err(error) => Err(removal_failed(&error)),
    }
}

/// A consumer is where its stream is, and can't go without it.
pub(super) fn consumer(cx: &Context<'_>) -> Answer {
    let peer = requested_peer(cx)?;
    let led = cx.led()?;
    led.leader.driver_named(cx.request.consumer).ok_or_else(ApiError::consumer_not_found)?;
    holder(cx, &led.replica.assignment(), &peer).ok_or_else(ApiError::peer_not_member)?;
    let mut error = ApiError::peer_remap_failed();
    error.description.push_str(": consumers are where their stream is, remove the peer from that");
    Err(error)
}

pub(super) async fn remove_server(cx: &Context<'_>) -> Answer {
    let server = requested_server(cx)?;
    let members = cx.jetstream.meta().read(|machine| machine.nodes().count());
    if members == 1 {
        let mut error = ApiError::peer_remap_failed();
        error.description.push_str(": it is the only server of the cluster");
        return Err(error);
    }
    let command = MetaCommand::RemoveNode {
        now: cx.jetstream.clock().now(),
        node: server.id,
        alive: cx.jetstream.reachable_nodes(),
    };
    match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Removed) => {
            tracing::warn!("server {} ({}) is removed from the cluster on request", server.name, server.id);
            advisory::server_removed(cx.jetstream, &server);
            Ok(cx.request.endpoint.success(&Done::OK))
        }
        Ok(_) => Err(ApiError::not_available()),
        Err(error) => Err(removal_failed(&error)),
    }
}

pub(super) async fn evacuate_server(cx: &Context<'_>) -> Answer {
    let server = requested_server(cx)?;
    let command = MetaCommand::EvacuateNode {
        now: cx.jetstream.clock().now(),
        node: server.id,
        alive: cx.jetstream.reachable_nodes(),
    };
    match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Evacuated) => {
            tracing::info!("replicas on server {} go to other servers on request", server.name);
            Ok(cx.request.endpoint.success(&Done::OK))
        }
        Ok(_) | Err(_) => Err(ApiError::not_available()),
    }
}

fn requested_peer(cx: &Context<'_>) -> Result<String, ApiError> {
    let request: PeerRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    if request.peer.is_empty() { Err(ApiError::bad_request()) } else { Ok(request.peer) }
}

/// The node that the request names, by the server's name or by the id that peer lists show.
fn requested_server(cx: &Context<'_>) -> Result<NodeRegistration, ApiError> {
    if envelope::is_empty_request(cx.body) {
        return Err(ApiError::bad_request());
    }
    let request: ServerPeerRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let is_meant = |node: &&NodeRegistration| match request.peer_id.as_str() {
        "" => node.name == request.peer,
        id => peer_id(node.id) == id,
    };
    let found = cx.jetstream.meta().read(|machine| machine.nodes().find(is_meant).cloned());
    found.ok_or_else(ApiError::server_not_member)
}

/// The node that holds a replica of the stream and is called so.
fn holder(cx: &Context<'_>, assignment: &StreamAssignment, peer: &str) -> Option<NodeId> {
    let is_meant = |node: &NodeId| peer_id(*node) == peer || cx.jetstream.node_name(*node) == peer;
    assignment.replicas.iter().copied().find(is_meant)
}
