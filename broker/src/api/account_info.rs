//! `$JS.API.INFO`: what the account uses, from all streams' leaders.

use levee_protocol::api::{AccountInfo, ApiStats, StorageType, level};

use crate::api::context::{Answer, Context};
use crate::api::stream_info;
use crate::jetstream::ApiCalls;

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let wanted = cx
        .jetstream
        .meta()
        .read(|machine| machine.streams(cx.account).map(|stream| (stream.group, 0)).collect());
    let infos = stream_info::settled(cx.jetstream, wanted, stream_info::LIST_PATIENCE).await;
    let ApiCalls { total, errors } = cx.jetstream.api_counts(Some(cx.account));
    let mut account = AccountInfo {
        limits: cx.account_limits(),
        domain: cx.jetstream.domain().to_owned(),
        api: ApiStats { level: level::API_LEVEL, total, errors, ..ApiStats::default() },
        ..AccountInfo::default()
    };
    for info in infos.values() {
        account.streams += 1;
        account.consumers += info.state.consumer_count;
        let replicas = info.config.replica_count() as u64;
        let reserved = u64::try_from(info.config.max_bytes).unwrap_or(0) * replicas;
        match info.config.storage {
            StorageType::File => {
                account.storage += info.state.bytes * replicas;
                account.reserved_storage += reserved;
            }
            StorageType::Memory => {
                account.memory += info.state.bytes * replicas;
                account.reserved_memory += reserved;
            }
        }
    }
    Ok(cx.request.endpoint.success(&account))
}
