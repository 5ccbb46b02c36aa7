//! The openraft type configuration, and how its log ids map to storage's.
//!
//! Leader ids are `(term, node)` pairs and ordered, which is openraft's default mode: two candidates of one term
//! do not block each other, because the vote for the higher node wins. A node therefore leads at most once per
//! term, but a term can have had two leaders. Nothing here or above may take a bare term for a leader.

use std::fmt;

use bytes::Bytes;
use levee_protocol::ids::NodeId;
use levee_storage::LogId as StoredLogId;
use openraft::EmptyNode;
use openraft::impls::leader_id_adv;

use crate::machine::Reply;
use crate::proposals::Answer;

/// What openraft is instantiated with.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposed;
    type R = Answered;
    type NodeId = NodeId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<LeaderId>;
    type Payload = openraft::EntryPayload<Proposed, NodeId, EmptyNode>;
    type Entry = openraft::Entry<LeaderId, Self::Payload>;
    type AsyncRuntime = crate::runtime::Runtime;
    type Responder<T>
        = Answer<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<NodeId, EmptyNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Fatal = openraft::errors::Fatal<TypeConfig>;
pub(crate) type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;
pub(crate) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(crate) type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub(crate) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(crate) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;

/// What a proposal carries: opaque bytes and the kind the storage table is chosen by.
#[derive(Clone)]
pub(crate) struct Proposed {
    pub(crate) kind: u8,
    pub(crate) payload: Bytes,
}

impl fmt::Debug for Proposed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "kind {} of {} bytes", self.kind, self.payload.len())
    }
}

impl fmt::Display for Proposed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// What applying an entry returned, on its way to the proposer.
pub(crate) struct Answered(pub(crate) Reply);

impl fmt::Debug for Answered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("reply")
    }
}

pub(crate) fn log_id(id: StoredLogId) -> LogId {
    LogId::new(LeaderId { term: id.raft_term, node_id: id.node }, id.index)
}

pub(crate) fn stored_log_id(id: &LogId) -> StoredLogId {
    StoredLogId { raft_term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}
