//! The compact binary form of what replicas say to each other and of what a group stores about itself.
//!
//! Numbers are LEB128, node ids eight bytes. Payloads of entries are not in here: they travel beside the message, in
//! order, so that they are not copied into it. Nothing that is read is trusted: every length is checked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use levee_protocol::ids::NodeId;
use levee_storage::kind::{BLANK, BLOCK, INLINE, MEMBERSHIP};
use openraft::EmptyNode;
use openraft::EntryPayload;
use openraft::vote::RaftVote as _;

use crate::types::{
    AppendRequest, AppendResponse, Entry, LeaderId, LogId, Membership, Proposed, SnapshotMeta,
    StoredMembership, Vote, VoteRequest, VoteResponse,
};

/// Bytes that are not a message of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// More configurations, members or entries than any message of ours holds.
const COUNT_MAX: u64 = 1 << 20;

/// Reads from the front of a message.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("message: it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed("number"))
    }

    fn count(&mut self) -> Result<u64, Malformed> {
        let count = self.number()?;
        if count > COUNT_MAX { Err(Malformed("count")) } else { Ok(count) }
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("flag")),
        }
    }

    pub(crate) fn node(&mut self) -> Result<NodeId, Malformed> {
        let (id, rest) = self.0.split_first_chunk::<8>().ok_or(Malformed("node id"))?;
        self.0 = rest;
        Ok(NodeId(u64::from_be_bytes(*id)))
    }

    fn leader(&mut self) -> Result<LeaderId, Malformed> {
        Ok(LeaderId { term: self.number()?, node_id: self.node()? })
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, Malformed> {
        Ok(LogId::new(self.leader()?, self.number()?))
    }

    pub(crate) fn log_id_option(&mut self) -> Result<Option<LogId>, Malformed> {
        if self.flag()? { self.log_id().map(Some) } else { Ok(None) }
    }

    pub(crate) fn vote(&mut self) -> Result<Vote, Malformed> {
        let leader = self.leader()?;
        Ok(Vote::from_leader_id(leader, self.flag()?))
    }

    fn nodes(&mut self) -> Result<BTreeSet<NodeId>, Malformed> {
        let count = self.count()?;
        (0..count).map(|_| self.node()).collect()
    }

    pub(crate) fn membership(&mut self) -> Result<Membership, Malformed> {
        let configs = self.count()?;
        let configs = (0..configs).map(|_| self.nodes()).collect::<Result<Vec<_>, _>>()?;
        let nodes: BTreeMap<_, _> = self.nodes()?.into_iter().map(|node| (node, EmptyNode::new())).collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|_| Malformed("membership"))
    }

    pub(crate) fn stored_membership(&mut self) -> Result<StoredMembership, Malformed> {
        Ok(StoredMembership::new(self.log_id_option()?, self.membership()?))
    }

    /// The rest of the message is the head of a snapshot.
    pub(crate) fn rest_as_meta(self) -> Result<SnapshotMeta, Malformed> {
        decode_meta(self.0)
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The message must be used up: what is left over was not written by us.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("message: bytes are left over")) }
    }
}

/// The writing side; one method per method of [`Reader`].
pub(crate) trait Writer: BufMut + Sized {
    fn put_number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.put_u8(number as u8 | 0x80);
            number >>= 7;
        }
        self.put_u8(number as u8);
    }

    fn put_flag(&mut self, flag: bool) {
        self.put_u8(u8::from(flag));
    }

    fn put_node(&mut self, node: NodeId) {
        self.put_u64(node.0);
    }

    fn put_leader(&mut self, leader: &LeaderId) {
        self.put_number(leader.term);
        self.put_node(leader.node_id);
    }

    fn put_log_id(&mut self, id: &LogId) {
        self.put_leader(&id.leader_id);
        self.put_number(id.index);
    }

    fn put_log_id_option(&mut self, id: Option<&LogId>) {
        self.put_flag(id.is_some());
        if let Some(id) = id {
            self.put_log_id(id);
        }
    }

    fn put_vote(&mut self, vote: &Vote) {
        self.put_leader(vote.leader_id());
        self.put_flag(vote.is_committed());
    }

    fn put_nodes(&mut self, nodes: impl ExactSizeIterator<Item = NodeId>) {
        self.put_number(nodes.len() as u64);
        nodes.for_each(|node| self.put_node(node));
    }

    fn put_membership(&mut self, membership: &Membership) {
        let configs = membership.get_joint_config();
        self.put_number(configs.len() as u64);
        for config in configs {
            self.put_nodes(config.iter().copied());
        }
        let nodes: BTreeSet<_> = membership.nodes().map(|(node, _)| *node).collect();
        self.put_nodes(nodes.into_iter());
    }

    fn put_stored_membership(&mut self, membership: &StoredMembership) {
        self.put_log_id_option(membership.log_id().as_ref());
        self.put_membership(membership.membership());
    }
}

impl<B: BufMut> Writer for B {}

/// An entry's kind and payload as storage keeps them.
pub(crate) fn stored_payload(payload: EntryPayload<Proposed, NodeId, EmptyNode>) -> (u8, Bytes) {
    match payload {
        EntryPayload::Blank => (BLANK, Bytes::new()),
        EntryPayload::Normal(proposed) => (proposed.kind, proposed.payload),
        EntryPayload::Membership(membership) => {
            let mut bytes = BytesMut::new();
            bytes.put_membership(&membership);
            (MEMBERSHIP, bytes.freeze())
        }
    }
}

/// The other way around.
pub(crate) fn entry(id: LogId, kind: u8, payload: Bytes) -> Result<Entry, Malformed> {
    let payload = match kind {
        BLANK => EntryPayload::Blank,
        INLINE | BLOCK => EntryPayload::Normal(Proposed { kind, payload }),
        MEMBERSHIP => {
            let mut reader = Reader::new(&payload);
            let membership = reader.membership()?;
            reader.end()?;
            EntryPayload::Membership(membership)
        }
        _ => return Err(Malformed("kind of entry")),
    };
    Ok(Entry { log_id: id, payload })
}

pub(crate) fn encode_vote(vote: &Vote) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.put_vote(vote);
    bytes
}

pub(crate) fn decode_vote(bytes: &[u8]) -> Result<Vote, Malformed> {
    let mut reader = Reader::new(bytes);
    let vote = reader.vote()?;
    reader.end()?;
    Ok(vote)
}

/// An append request: the head, and the entries' payloads in order.
pub(crate) fn encode_append(request: AppendRequest, as_voter: bool) -> (Bytes, Vec<Bytes>) {
    let mut head = BytesMut::with_capacity(64 + 20 * request.entries.len());
    head.put_flag(as_voter);
    head.put_vote(&request.vote);
    head.put_log_id_option(request.prev_log_id.as_ref());
    head.put_log_id_option(request.leader_commit.as_ref());
    head.put_number(request.entries.len() as u64);
    let mut payloads = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let (kind, payload) = stored_payload(entry.payload);
        head.put_u8(kind);
        head.put_log_id(&entry.log_id);
        payloads.push(payload);
    }
    (head.freeze(), payloads)
}

/// The request, and whether its leader takes the receiver for a voter.
pub(crate) fn decode_append(head: &[u8], payloads: Vec<Bytes>) -> Result<(AppendRequest, bool), Malformed> {
    let mut reader = Reader::new(head);
    let as_voter = reader.flag()?;
    let vote = reader.vote()?;
    let prev_log_id = reader.log_id_option()?;
    let leader_commit = reader.log_id_option()?;
    let count = reader.count()?;
    if count != payloads.len() as u64 {
        return Err(Malformed("append: payloads are missing or left over"));
    }
    let mut entries = Vec::with_capacity(payloads.len());
    let first = prev_log_id.as_ref().map_or(0, |id| id.index + 1);
    for (next, payload) in (first..).zip(payloads) {
        let kind = reader.byte()?;
        let id = reader.log_id()?;
        if id.index != next {
            return Err(Malformed("append: entries are not consecutive"));
        }
        entries.push(entry(id, kind, payload)?);
    }
    reader.end()?;
    Ok((AppendRequest { vote, prev_log_id, entries, leader_commit }, as_voter))
}

pub(crate) fn encode_append_response(response: &AppendResponse) -> Bytes {
    let mut head = BytesMut::with_capacity(32);
    match response {
        AppendResponse::Success => head.put_u8(0),
        AppendResponse::PartialSuccess(matching) => {
            head.put_u8(1);
            head.put_log_id_option(matching.as_ref());
        }
        AppendResponse::Conflict => head.put_u8(2),
        AppendResponse::HigherVote(vote) => {
            head.put_u8(3);
            head.put_vote(vote);
        }
    }
    head.freeze()
}

pub(crate) fn decode_append_response(head: &[u8]) -> Result<AppendResponse, Malformed> {
    let mut reader = Reader::new(head);
    let response = match reader.byte()? {
        0 => AppendResponse::Success,
        1 => AppendResponse::PartialSuccess(reader.log_id_option()?),
        2 => AppendResponse::Conflict,
        3 => AppendResponse::HigherVote(reader.vote()?),
        _ => return Err(Malformed("append response")),
    };
    reader.end()?;
    Ok(response)
}

/// A vote request; `suspects` says that the candidate saw the process of the last leader end.
pub(crate) fn encode_vote_request(request: &VoteRequest, suspects: bool) -> Bytes {
    let mut head = BytesMut::with_capacity(48);
    head.put_flag(suspects);
    head.put_vote(&request.vote);
    head.put_log_id_option(request.last_log_id.as_ref());
    head.put_flag(request.leadership_transfer);
    head.freeze()
}

pub(crate) fn decode_vote_request(head: &[u8]) -> Result<(VoteRequest, bool), Malformed> {
    let mut reader = Reader::new(head);
    let suspects = reader.flag()?;
    let mut request = VoteRequest::new(reader.vote()?, reader.log_id_option()?);
    request.leadership_transfer = reader.flag()?;
    reader.end()?;
    Ok((request, suspects))
}

pub(crate) fn encode_vote_response(response: &VoteResponse) -> Bytes {
    let mut head = BytesMut::with_capacity(48);
    head.put_vote(&response.vote);
    head.put_flag(response.vote_granted);
    head.put_log_id_option(response.last_log_id.as_ref());
    head.freeze()
}

pub(crate) fn decode_vote_response(head: &[u8]) -> Result<VoteResponse, Malformed> {
    let mut reader = Reader::new(head);
    let vote = reader.vote()?;
    let vote_granted = reader.flag()?;
    let last_log_id = reader.log_id_option()?;
    reader.end()?;
    Ok(VoteResponse::new(vote, last_log_id, vote_granted))
}

/// The applied row of a checkpoint, and the head of a snapshot: how far the state goes, and who the members were.
pub(crate) fn encode_meta(meta: &SnapshotMeta) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96);
    bytes.put_u8(META_VERSION);
    bytes.put_log_id_option(meta.last_log_id.as_ref());
    bytes.put_stored_membership(&meta.last_membership);
    bytes
}

pub(crate) fn decode_meta(bytes: &[u8]) -> Result<SnapshotMeta, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.byte()? != META_VERSION {
        return Err(Malformed("applied row: its version"));
    }
    let meta =
        SnapshotMeta { last_log_id: reader.log_id_option()?, last_membership: reader.stored_membership()? };
    reader.end()?;
    Ok(meta)
}

/// Persisted: first byte of the applied row.
const META_VERSION: u8 = 1;
