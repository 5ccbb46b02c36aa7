//! Requests from other replicas, handed to openraft in the order in which they came.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::kind::BLOCK;
use levee_storage::{Room, SnapshotWriter};
use openraft::EntryPayload;
use openraft::errors::RaftError;
use openraft::raft::TransferLeaderRequest;

use crate::codec::{self, Malformed, Reader, Writer as _};
use crate::group::GroupCore;
use crate::groups::{Groups, SUSPICION_WAIT, mark_born};
use crate::messages::{Failure, Kind, answer};
use crate::state_machine::SnapshotData;
use crate::suspects::Suspects;
use crate::transport::{Answering, Frame, PeerSign, Receiver};
use crate::types::{AppendRequest, Entry, SnapshotMeta, TypeConfig, Vote};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A snapshot on its way in.
pub(crate) struct Transfer {
    number: u64,
    vote: Vote,
    meta: SnapshotMeta,
    next_chunk: u64,
    writer: SnapshotWriter,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the group is not open here")]
    NotOpen,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("unknown kind of message {0}")]
    UnknownKind(u8),
    #[error("this member has not been filled yet and does not vote")]
    Unborn,
    #[error("this member is for {0} and gives it time to lead")]
    Promised(NodeId),
    #[error("the leader's log lacks what is committed here; this member is about to be filled anew")]
    Overruled,
    #[error("this member was started over and does not vote for a log that ends before that")]
    BelowFloor,
    #[error("this member lost its log; remove it from the group and add it again")]
    Lost,
    #[error("no such snapshot transfer")]
    NoTransfer,
    #[error("storage: {0}")]
    Storage(#[from] levee_storage::Error),
}

impl Receiver for Groups {
    fn receive(&self, from: NodeId, frame: Frame) -> Answering {
        self.suspects.heard(from);
        self.peers.heard(from);
        let (group, kind) = (frame.group, frame.kind);
        if kind == Kind::Beat as u8 {
            return ready(self.beat_received(from, &frame));
        }
        match self.group(group) {
            Some(open) => self.take(&open.0, from, frame),
            None if kind == Kind::Vote as u8 => self.take_soon(from, frame),
            None => refuse(group, from, kind, &Refused::NotOpen),
        }
    }

    fn sign(&self, peer: NodeId, sign: PeerSign) {
        match sign {
            PeerSign::Up => self.suspects.clear(peer),
            PeerSign::Died => self.peer_down(peer),
        }
    }
}

impl Groups {
    fn take(&self, group: &Arc<GroupCore>, from: NodeId, frame: Frame) -> Answering {
        let kind = frame.kind;
        self.try_take(group, from, frame).unwrap_or_else(|refused| refuse(group.id, from, kind, &refused))
    }

    /// Takes a frame when its group is open, if that is soon.
    fn take_soon(&self, from: NodeId, frame: Frame) -> Answering {
        let (group, kind) = (frame.group, frame.kind);
        let this = self.this.clone();
        Box::pin(async move {
            let Some(node) = this.upgrade() else { return Failure::frame(group, &Refused::NotOpen) };
            match node.group_soon(group).await {
                Some(open) => node.take(&open.0, from, frame).await,
                None => refuse(group, from, kind, &Refused::NotOpen).await,
            }
        })
    }

    fn try_take(&self, group: &Arc<GroupCore>, from: NodeId, frame: Frame) -> Result<Answering, Refused> {
        let kind = Kind::parse(frame.kind).ok_or(Refused::UnknownKind(frame.kind))?;
        match kind {
            Kind::Append => append(group, from, frame),
            Kind::Vote => vote(group, &frame.head, &self.suspects),
            Kind::PreVote => pre_vote(group, &frame.head, &self.suspects),
            Kind::Transfer => transfer(group, &frame.head),
            Kind::SnapshotBegin => {
                let number = {
                    let mut last = self.transfers.lock();
                    *last += 1;
                    *last
                };
                snapshot_begin(group, &frame.head, number)
            }
            Kind::SnapshotChunk => snapshot_chunk(group, frame),
            Kind::SnapshotEnd => snapshot_end(group, &frame.head),
            Kind::Beat | Kind::Failed => Err(Refused::UnknownKind(frame.kind)),
        }
    }
}

fn refuse(group: GroupId, from: NodeId, kind: u8, refused: &Refused) -> Answering {
    tracing::debug!(%group, %from, kind, "refused: {refused}");
    ready(Failure::frame(group, refused))
}

fn append(group: &Arc<GroupCore>, from: NodeId, frame: Frame) -> Result<Answering, Refused> {
    let (request, as_voter) = codec::decode_append(&frame.head, frame.payloads)?;
    if group.unborn.load(Ordering::Acquire) {
        if as_voter {
            tracing::error!(group = %group.id, leader = %from, "the leader counts this node as a voter, and its log is empty");
            return Err(Refused::Lost);
        }
        bear(group);
    }
    let ids = request.entries.iter().map(|entry| &entry.log_id);
    if group.is_overruled_by(&request.vote, request.prev_log_id.iter().chain(ids)) {
        return Err(Refused::Overruled);
    }
    // The log may not refuse what openraft accepted, so a full disk refuses here.
    if frame_holds_blocks(&request) {
        group.storage.room(Room::Messages)?;
    }
    group.leader_heard();
    let (id, raft) = (group.id, group.raft.clone());
    let filling = group.vote_floor.lock().is_some().then(|| Arc::clone(group));
    Ok(in_order(async move {
        let appended = raft.append_entries(request).await;
        if let Some(group) = filling {
            group.look_whether_filled();
        }
        match appended {
            Ok(response) => answer(id, Kind::Append, codec::encode_append_response(&response)),
            Err(error) => Failure::frame(id, &error),
        }
    }))
}

fn frame_holds_blocks(request: &AppendRequest) -> bool {
    let is_block =
        |entry: &Entry| matches!(&entry.payload, EntryPayload::Normal(proposed) if proposed.kind == BLOCK);
    request.entries.iter().any(is_block)
}

/// The log is begun here. What is about to be written to it says so in the store.
fn bear(group: &GroupCore) {
    mark_born(&group.log, group.id);
    group.unborn.store(false, Ordering::Release);
}

fn vote(group: &Arc<GroupCore>, head: &[u8], suspects: &Arc<Suspects>) -> Result<Answering, Refused> {
    let (mut request, suspected) = codec::decode_vote_request(head)?;
    if group.unborn.load(Ordering::Acquire) {
        return Err(Refused::Unborn);
    }
    if !group.may_vote_for(request.last_log_id.as_ref()) {
        return Err(Refused::BelowFloor);
    }
    let (id, raft, suspects) = (group.id, group.raft.clone(), Arc::clone(suspects));
    let leader = group.leadership.borrow().leader;
    let candidate = request.vote.leader_id().node_id;
    group.doubt(candidate);
    request.leadership_transfer |= group.gave_up();
    if !request.leadership_transfer {
        refuse_rivals(group, candidate, &suspects)?;
    }
    let group = Arc::clone(group);
    Ok(Box::pin(async move {
        // openraft refuses votes while the last leader may be alive. It is not, if we saw its process end, and it does
        // not lead if it asks itself: then the request is treated like one that the leader asked for. Another
        // candidate's word alone is not enough.
        if let Some(leader) = leader {
            let limit = if suspected { SUSPICION_WAIT } else { std::time::Duration::ZERO };
            request.leadership_transfer |= leader == candidate || suspects.wait_for(leader, limit).await;
        }
        match raft.vote(request).await {
            Ok(response) => {
                if response.vote_granted {
                    group.promise_to(candidate);
                }
                answer(id, Kind::Vote, codec::encode_vote_response(&response))
            }
            Err(error) => Failure::frame(id, &error),
        }
    }))
}

/// A voter that is for another candidate gives that one time. That it stands itself keeps it from voting for nobody.
fn refuse_rivals(group: &GroupCore, candidate: NodeId, suspects: &Suspects) -> Result<(), Refused> {
    let rival = group.promised(suspects).filter(|to| ![candidate, group.node].contains(to));
    rival.map_or(Ok(()), |rival| Err(Refused::Promised(rival)))
}

fn pre_vote(group: &Arc<GroupCore>, head: &[u8], suspects: &Suspects) -> Result<Answering, Refused> {
    let (request, _) = codec::decode_vote_request(head)?;
    if group.unborn.load(Ordering::Acquire) {
        return Err(Refused::Unborn);
    }
    if !group.may_vote_for(request.last_log_id.as_ref()) {
        return Err(Refused::BelowFloor);
    }
    let candidate = request.vote.leader_id().node_id;
    if group.leadership.borrow().leader == Some(candidate) {
        group.doubt(candidate);
        group.let_go();
    }
    refuse_rivals(group, candidate, suspects)?;
    let (id, raft) = (group.id, group.raft.clone());
    Ok(Box::pin(async move {
        match raft.pre_vote(request).await {
            Ok(response) => answer(id, Kind::PreVote, codec::encode_vote_response(&response)),
            Err(error) => Failure::frame(id, &error),
        }
    }))
}

fn transfer(group: &Arc<GroupCore>, head: &[u8]) -> Result<Answering, Refused> {
    let mut reader = Reader::new(head);
    let request = TransferLeaderRequest::new(reader.vote()?, reader.node()?, reader.log_id_option()?);
    reader.end()?;
    if !group.may_stand() {
        return Err(Refused::BelowFloor);
    }
    let (id, raft) = (group.id, group.raft.clone());
    Ok(Box::pin(async move {
        match raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => answer(id, Kind::Transfer, Bytes::new()),
            Ok(Err(error)) => Failure::frame(id, &error),
            Err(fatal) => Failure::frame(id, &fatal),
        }
    }))
}

fn snapshot_begin(group: &Arc<GroupCore>, head: &[u8], number: u64) -> Result<Answering, Refused> {
    let mut reader = Reader::new(head);
    let vote = reader.vote()?;
    let meta = reader.rest_as_meta()?;
    if group.unborn.load(Ordering::Acquire) {
        // Who gets a snapshot because its log was lost is a voter in it; who joins is not.
        if meta.last_membership.voter_ids().any(|voter| voter == group.node) {
            return Err(Refused::Lost);
        }
        bear(group);
    }
    if group.is_overruled_by(&vote, meta.last_log_id.iter()) {
        return Err(Refused::Overruled);
    }
    tracing::info!(group = %group.id, %meta, "receiving a snapshot");
    let mut transfer = group.transfer.lock();
    // The old writer goes before the new one begins: both would fill the same place.
    *transfer = None;
    let writer = group.storage.import(group.id)?;
    *transfer = Some(Transfer { number, vote, meta, next_chunk: 0, writer });
    drop(transfer);
    let mut head = BytesMut::new();
    head.put_number(number);
    Ok(ready(answer(group.id, Kind::SnapshotBegin, head.freeze())))
}

fn snapshot_chunk(group: &Arc<GroupCore>, frame: Frame) -> Result<Answering, Refused> {
    let (number, chunk) = transfer_position(&frame.head)?;
    let mut current = group.transfer.lock();
    let transfer =
        current.as_mut().filter(|transfer| transfer.number == number).ok_or(Refused::NoTransfer)?;
    let [payload] = <[Bytes; 1]>::try_from(frame.payloads).map_err(|_| Malformed("snapshot chunk"))?;
    if transfer.next_chunk != chunk {
        *current = None;
        return Err(Refused::NoTransfer);
    }
    transfer.next_chunk += 1;
    if let Err(error) = transfer.writer.push(&payload) {
        *current = None;
        return Err(error.into());
    }
    Ok(ready(answer(group.id, Kind::SnapshotChunk, Bytes::new())))
}

fn snapshot_end(group: &Arc<GroupCore>, head: &[u8]) -> Result<Answering, Refused> {
    let (number, count) = transfer_position(head)?;
    let transfer =
        group.transfer.lock().take_if(|transfer| transfer.number == number && transfer.next_chunk == count);
    let transfer = transfer.ok_or(Refused::NoTransfer)?;
    let (id, raft) = (group.id, group.raft.clone());
    let snapshot =
        Snapshot { meta: transfer.meta, snapshot: SnapshotData::Incoming(Box::new(transfer.writer)) };
    Ok(Box::pin(async move {
        match raft.install_full_snapshot(transfer.vote, snapshot).await {
            Ok(response) => answer(id, Kind::SnapshotEnd, Bytes::from(codec::encode_vote(&response.vote))),
            Err(fatal) => Failure::frame(id, &RaftError::<TypeConfig>::Fatal(fatal)),
        }
    }))
}

fn transfer_position(head: &[u8]) -> Result<(u64, u64), Malformed> {
    let mut reader = Reader::new(head);
    let position = (reader.number()?, reader.number()?);
    reader.end()?;
    Ok(position)
}

fn ready(frame: Frame) -> Answering {
    std::future::ready(frame).boxed()
}

/// Polls the future once before it is handed on. openraft's calls put their message into the group's queue on the
/// first poll, or wait in line for room there, so this is what keeps requests in order.
fn in_order(future: impl Future<Output = Frame> + Send + 'static) -> Answering {
    let mut future: Pin<Box<_>> = Box::pin(tokio::task::unconstrained(future));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(frame) => ready(frame),
        Poll::Pending => future,
    }
}
