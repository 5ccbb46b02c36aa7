//! openraft's network over a [`Transport`]: one [`Link`] per group and peer, all of them sharing the node's
//! connections. Appends are pipelined: the next requests leave while earlier ones are on the way.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use levee_protocol::ids::{GroupId, NodeId};
use openraft::async_runtime::WatchReceiver as _;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse};
use openraft::{EmptyNode, OptionalSend, RPCTypes};

use crate::codec::{self, Malformed, Writer as _};
use crate::commits::CommitsAlong;
use crate::config::Config;
use crate::messages::{Failure, Kind};
use crate::peers::Peers;
use crate::state_machine::SnapshotData;
use crate::suspects::Suspects;
use crate::transport::{Answer, Frame, Lane, Transport, TransportError};
use crate::types::{AppendRequest, AppendResponse, LogId, TypeConfig, Vote, VoteRequest, VoteResponse};

type RpcError = RPCError<TypeConfig>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;
type ServerMetrics = openraft::metrics::RaftServerMetrics<TypeConfig>;

/// What the links of one group share.
pub(crate) struct Network {
    pub(crate) node: NodeId,
    pub(crate) group: GroupId,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) config: Arc<Config>,
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) peers: Arc<Peers>,
    /// The members as openraft sees them; set once it runs.
    pub(crate) members: OnceLock<openraft::alias::WatchReceiverOf<TypeConfig, ServerMetrics>>,
}

impl Network {
    /// Whether the target is a voter. `None` until this group runs.
    fn is_voter(&self, target: NodeId) -> Option<bool> {
        let members = self.members.get()?.borrow_watched();
        Some(members.membership_config.voter_ids().any(|voter| voter == target))
    }
}

/// Makes the links of a group.
pub(crate) struct Links(pub(crate) Arc<Network>);

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Link {
        Link { network: Arc::clone(&self.0), target }
    }
}

/// One group's way to one peer.
#[derive(Clone)]
pub(crate) struct Link {
    network: Arc<Network>,
    target: NodeId,
}

impl Link {
    fn call(&self, lane: Lane, kind: Kind, head: Bytes, payloads: Vec<Bytes>) -> Answer {
        let frame = Frame { group: self.network.group, kind: kind as u8, head, payloads };
        self.network.transport.call(self.target, lane, frame)
    }

    /// Awaits an answer of the same kind.
    async fn answer(&self, answer: Answer, action: RPCTypes, timeout: Duration) -> Result<Bytes, RpcError> {
        let frame = match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error @ (TransportError::Disconnected | TransportError::Full))) => {
                return Err(Unreachable::new(&error).into());
            }
            Err(_) => {
                return Err(Timeout { action, id: self.network.node, target: self.target, timeout }.into());
            }
        };
        self.network.peers.heard(self.target);
        match Failure::of(&frame) {
            None => Ok(frame.head),
            Some(failure) => Err(Unreachable::new(&failure).into()),
        }
    }

    /// Starts an append now, so that the order of calls is the order on the wire; resolves to its result.
    fn append(
        &self,
        request: AppendRequest,
    ) -> impl Future<Output = Result<StreamAppendResult<TypeConfig>, RpcError>> + Send + use<> {
        let link = self.clone();
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let called = self.network.is_voter(self.target).map(|as_voter| {
            let (head, payloads) = codec::encode_append(request, as_voter);
            self.call(Lane::Log, Kind::Append, head, payloads)
        });
        async move {
            let Some(answer) = called else {
                return Err(Unreachable::from_string("the group is starting").into());
            };
            let head =
                link.answer(answer, RPCTypes::AppendEntries, link.network.config.append_timeout).await?;
            let response = codec::decode_append_response(&head).map_err(malformed)?;
            append_result(response, previous, last)
        }
    }

    async fn request_vote(&self, kind: Kind, request: VoteRequest) -> Result<VoteResponse, RpcError> {
        let head = codec::encode_vote_request(&request, self.network.suspects.any());
        let answer = self.call(Lane::Log, kind, head, Vec::new());
        let head = self.answer(answer, RPCTypes::Vote, self.network.config.election_max).await?;
        codec::decode_vote_response(&head).map_err(malformed)
    }

    async fn send_snapshot(
        &self,
        vote: &Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
        let SnapshotData::Outgoing(mut reader) = snapshot.snapshot else {
            return Err(NetworkError::from_string("a snapshot without content").into());
        };
        let timeout = self.network.config.snapshot_timeout;
        let mut head = BytesMut::new();
        head.put_vote(vote);
        head.extend_from_slice(&codec::encode_meta(&snapshot.meta));
        let begun = self.call(Lane::Bulk, Kind::SnapshotBegin, head.freeze(), Vec::new());
        let begun = self.answer(begun, RPCTypes::InstallSnapshot, timeout).await?;
        let transfer = codec::Reader::new(&begun).number().map_err(malformed)?;

        let mut under_way = futures::stream::FuturesUnordered::new();
        let mut count = 0;
        loop {
            // Reading is disk work: it must not hold up this thread's other tasks.
            let (back, chunk) = tokio::task::spawn_blocking(move || {
                let chunk = reader.next();
                (reader, chunk)
            })
            .await
            .map_err(|error| NetworkError::new(&error))?;
            reader = back;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|error| NetworkError::new(&error))?;
            let mut head = BytesMut::new();
            head.put_number(transfer);
            head.put_number(count);
            count += 1;
            let sent = self.call(Lane::Bulk, Kind::SnapshotChunk, head.freeze(), vec![chunk]);
            under_way.push(self.answer(sent, RPCTypes::InstallSnapshot, timeout));
            if under_way.len() >= self.network.config.snapshot_chunks_in_flight.max(1)
                && let Some(acknowledged) = under_way.next().await
            {
                acknowledged?;
            }
        }
        while let Some(acknowledged) = under_way.next().await {
            acknowledged?;
        }
        let mut head = BytesMut::new();
        head.put_number(transfer);
        head.put_number(count);
        let installed = self.call(Lane::Bulk, Kind::SnapshotEnd, head.freeze(), Vec::new());
        let installed = self.answer(installed, RPCTypes::InstallSnapshot, timeout).await?;
        Ok(SnapshotResponse::new(codec::decode_vote(&installed).map_err(malformed)?))
    }
}

fn malformed(error: Malformed) -> RpcError {
    NetworkError::new(&error).into()
}

fn append_result(
    response: AppendResponse,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    if previous.is_none() && response.is_conflict() {
        return Err(NetworkError::from_string("a conflict before the first entry").into());
    }
    Ok(response.into_stream_result(previous, last))
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        _option: RPCOption,
    ) -> Result<AppendResponse, RpcError> {
        self.append(request).await.map(AppendResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        let link = self.clone();
        let in_flight = self.network.config.appends_in_flight.max(1);
        let input = CommitsAlong::new(input, self.network.config.commit_delay);
        // `buffered` polls the requests in order and yields the results in order.
        let results: BoxStream<'s, _> =
            Box::pin(input.map(move |request| Self::append(&link, request)).buffered(in_flight));
        Box::pin(futures::future::ready(Ok(results)))
    }

    async fn vote(&mut self, request: VoteRequest, _option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.request_vote(Kind::Vote, request).await
    }

    async fn pre_vote(&mut self, request: VoteRequest, _option: RPCOption) -> Result<VoteResponse, RpcError> {
        self.request_vote(Kind::PreVote, request).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (group, target) = (self.network.group, self.target);
        tracing::info!(%group, %target, meta = %snapshot.meta, "sending a snapshot");
        let sending: Pin<Box<dyn Future<Output = _> + Send + '_>> =
            Box::pin(self.send_snapshot(&vote, snapshot));
        match futures::future::select(sending, Box::pin(cancel)).await {
            futures::future::Either::Left((sent, _)) => Ok(sent?),
            futures::future::Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let mut head = BytesMut::new();
        head.put_vote(request.from_leader());
        head.put_node(*request.to_node_id());
        head.put_log_id_option(request.last_log_id());
        let answer = self.call(Lane::Log, Kind::Transfer, head.freeze(), Vec::new());
        // The target waits for its log to be flushed before it answers.
        self.answer(answer, RPCTypes::TransferLeader, self.network.config.election_max * 2).await?;
        Ok(Ok(()))
    }
}
