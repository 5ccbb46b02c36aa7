//! `$JS.API.STREAM.CREATE.*`: meta decides, the stream's leader answers with what came of it.

use levee_broker_core::meta::MetaReply;
use levee_protocol::api::advisory::Action;
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::StreamCreated;
use levee_protocol::api::{
    Adjust, ApiError, Endpoint, StreamConfig, StreamConfigRequest, StreamSource, stream_check,
};
use levee_protocol::command::MetaCommand;
use levee_protocol::ids::StreamName;

use crate::advisory;
use crate::api::context::{Answer, Context};
use crate::api::stream_info;
use crate::meta::membership;

/// Reads and checks the configuration in a create or update request.
pub(super) fn requested_config(cx: &Context<'_>) -> Result<StreamConfig, ApiError> {
    let request: StreamConfigRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    checked_config(cx, request.config, Adjust::from_pedantic(request.pedantic))
}

/// Checks a configuration that the call has asked for.
pub(super) fn checked_config(
    cx: &Context<'_>,
    mut config: StreamConfig,
    adjust: Adjust,
) -> Result<StreamConfig, ApiError> {
    if matches!(cx.request.endpoint, Endpoint::StreamUpdate) && config.name.is_empty() {
        return Err(stream_check::name_required());
    }
    config.check_subject_name(cx.request.stream)?;
    let limits = cx.limits();
    match cx.request.endpoint {
        Endpoint::StreamUpdate => stream_check::validate_update(&mut config, &limits, adjust)?,
        // A sealed stream is never created as such, but it may have been when it was archived.
        Endpoint::StreamRestore => stream_check::validate_restored(&mut config, &limits)?,
        _ => stream_check::validate_create(&mut config, &limits, adjust)?,
    }
    cx.account_limits().check_stream(&config)?;
    check_origins(cx, &mut config)?;
    check_replicas(cx, config.num_replicas)?;
    check_cluster(cx, &config)?;
    config.store_metadata();
    Ok(config)
}

/// Compares with the streams that this one mirrors or sources, as far as they exist: a mirror answers direct gets for
/// its origin if that is allowed there.
fn check_origins(cx: &Context<'_>, config: &mut StreamConfig) -> Result<(), ApiError> {
    let find = |origin: &StreamSource| {
        let name = StreamName::parse(&origin.name).ok().filter(|_| origin.external.is_none())?;
        cx.jetstream
            .meta()
            .read(|machine| machine.stream(cx.account, &name).map(|known| known.config.clone()))
    };
    let is_smaller = |origin: &StreamConfig, size: i32| size > 0 && origin.max_msg_size > size;
    if let Some(origin) = config.mirror.as_ref().and_then(find) {
        if is_smaller(&origin, config.max_msg_size) {
            return Err(ApiError::mirror_max_msg_size_too_small());
        }
        config.mirror_direct = origin.allow_direct;
    }
    if config.sources.iter().filter_map(find).any(|origin| is_smaller(&origin, config.max_msg_size)) {
        return Err(ApiError::source_max_msg_size_too_small());
    }
    Ok(())
}

/// More than one replica needs other nodes, which a node without a cluster's name never has.
pub(super) fn check_replicas(cx: &Context<'_>, replicas: i32) -> Result<(), ApiError> {
    if replicas > 1 && !cx.jetstream.identity().has_cluster_name() {
        return Err(ApiError::replicas_not_supported());
    }
    Ok(())
}

/// There is one cluster to place streams in.
fn check_cluster(cx: &Context<'_>, config: &StreamConfig) -> Result<(), ApiError> {
    let own = &cx.jetstream.identity().cluster;
    match &config.placement {
        Some(placement) if !own.is_empty() && !placement.cluster.is_empty() && placement.cluster != *own => {
            Err(ApiError::no_suitable_peers("no suitable peers for placement"))
        }
        _ => Ok(()),
    }
}

/// Whether what streams are promised with `max_bytes` fits into what this node may hold. Asked by the meta leader, and
/// only for streams that every node has a replica of: for others it can not speak.
pub(super) fn check_reservation(cx: &Context<'_>, config: &StreamConfig) -> Result<(), ApiError> {
    let wanted = u64::try_from(config.max_bytes).unwrap_or(0);
    let replicas = config.replica_count();
    let node = cx.jetstream.node();
    let reserved = cx.jetstream.meta().read(|machine| {
        if wanted == 0 || replicas < machine.nodes().count() {
            return 0;
        }
        let others = machine.all_streams().filter(|stream| {
            let is_same = stream.account == *cx.account && stream.config.name == config.name;
            !is_same && stream.config.storage == config.storage && stream.replicas.contains(&node)
        });
        others
            .map(|stream| u64::try_from(stream.config.max_bytes).unwrap_or(0))
            .fold(wanted, u64::saturating_add)
    });
    cx.jetstream.quota().check_reserved(config.storage, reserved)
}

/// Has meta decide on a new stream, if there is room for it and once there are nodes for it.
pub(super) async fn propose(
    cx: &Context<'_>,
    config: StreamConfig,
    restoring: bool,
) -> Result<MetaReply, ApiError> {
    check_reservation(cx, &config)?;
    membership::nodes_arrive(cx.jetstream, config.replica_count()).await;
    let command = MetaCommand::CreateStream {
        now: cx.jetstream.clock().now(),
        account: cx.account.clone(),
        config: Box::new(config),
        alive: cx.jetstream.alive_nodes(),
        limits: cx.account_limits(),
        restoring,
    };
    match cx.jetstream.meta().propose(&command).await {
        Ok(MetaReply::Rejected(error)) => Err(error),
        Ok(decided) => Ok(decided),
        Err(_) => Err(ApiError::not_available()),
    }
}

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let assignment = match propose(cx, requested_config(cx)?, false).await? {
        MetaReply::Created(assignment) => {
            advisory::stream_action(cx.jetstream, cx.account, cx.request.stream, Action::Create);
            assignment
        }
        MetaReply::Exists(assignment) => assignment,
        _ => return Err(ApiError::not_available()),
    };
    let info = stream_info::decided(cx.jetstream, &assignment).await?;
    Ok(cx.request.endpoint.success(&StreamCreated { info, did_create: true }))
}
