//! The way to an origin. Within the cluster that is a call to the node that leads it, or a consumer that its owner made
//! ([`Attached`]); a way to another cluster would be a sibling of these.

use std::sync::Weak;
use std::time::Duration;

use futures::future::BoxFuture;
use levee_protocol::api::{ApiError, StreamSource};
use levee_protocol::ids::AccountName;
use levee_protocol::mirror::{FetchAnswer, FetchRequest};
use prost::Message;

use crate::jetstream::JetStream;
use crate::mirror::attached::Attached;
use crate::mirror::origin::{self, CALL_ORIGIN};

/// What a call may take beyond the time for which the origin waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Brings questions to an origin, and its answers back.
pub(super) trait Link: Send + Sync {
    /// Asks once. Whatever goes wrong is in the answer.
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, FetchAnswer>;
}

/// The link to a source of a stream of this node.
pub(super) fn to(jetstream: &JetStream, source: &StreamSource, cluster: Cluster) -> Box<dyn Link> {
    let own = format!("$JS.{}.API", jetstream.domain());
    match &source.external {
        // Without a prefix it is this account, as with this server's own prefixes.
        Some(external) if !["", "$JS.API", &own].contains(&external.api.as_str()) => Box::new(Elsewhere),
        Some(_) | None => match &source.consumer {
            Some(consumer) => Box::new(Attached::new(cluster, consumer.clone())),
            None => Box::new(cluster),
        },
    }
}

/// Origins in this cluster and account.
pub(super) struct Cluster {
    pub(super) jetstream: Weak<JetStream>,
    pub(super) account: AccountName,
    pub(super) stream: String,
}

impl Link for Cluster {
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, FetchAnswer> {
        let request = FetchRequest {
            account: self.account.as_str().to_owned(),
            stream: self.stream.clone(),
            ..request
        };
        Box::pin(async move {
            let Some(jetstream) = self.jetstream.upgrade() else { return unreachable() };
            let Some(group) = jetstream.directory().group(&self.account, &self.stream) else {
                return FetchAnswer::refused(&ApiError::stream_not_found());
            };
            let Some(leader) = jetstream.directory().leader(group) else { return unreachable() };
            if leader == jetstream.node() {
                return origin::answer(&jetstream, request).await;
            }
            let timeout = CALL_TIMEOUT + Duration::from_millis(request.wait_ms);
            let frame = request.encode_to_vec().into();
            match jetstream.peers().call(leader, CALL_ORIGIN, frame, timeout).await {
                Ok(answer) if !answer.is_empty() => FetchAnswer::decode(answer).unwrap_or_else(|error| {
                    tracing::error!("from server {}: {error}", jetstream.node_name(leader));
                    unreachable()
                }),
                Ok(_) | Err(_) => unreachable(),
            }
        })
    }
}

/// Nobody answers now.
pub(super) fn unreachable() -> FetchAnswer {
    FetchAnswer { elsewhere: true, ..FetchAnswer::default() }
}

/// Origins of other accounts and domains.
struct Elsewhere;

impl Link for Elsewhere {
    fn fetch(&self, _: FetchRequest) -> BoxFuture<'_, FetchAnswer> {
        let error =
            ApiError::stream_general("streams of other accounts and domains can not be read by Levee yet");
        Box::pin(std::future::ready(FetchAnswer::refused(&error)))
    }
}
