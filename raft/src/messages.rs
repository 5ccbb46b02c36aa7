//! THE TABLE of message kinds between replicas, and how a request is refused.

use bytes::{BufMut, Bytes, BytesMut};
use levee_protocol::ids::GroupId;

use crate::transport::Frame;

/// What a frame holds. On the wire: never renumber, add at the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Entries, a heartbeat or a commit position.
    Append = 1,
    /// A vote, counted.
    Vote = 2,
    /// Would you vote for me?
    PreVote = 3,
    /// Leadership goes to another member.
    Transfer = 4,
    /// A snapshot starts: the leader's vote and what it covers. Answer: a number for the transfer.
    SnapshotBegin = 5,
    /// A piece of it, in the payload.
    SnapshotChunk = 6,
    /// It is complete: install. Answer: the receiver's vote.
    SnapshotEnd = 7,
    /// A sign of life of the whole node. Answer: nothing.
    Beat = 8,
    /// An answer: the request failed.
    Failed = 255,
}

impl Kind {
    pub(crate) fn parse(kind: u8) -> Option<Self> {
        [
            Self::Append,
            Self::Vote,
            Self::PreVote,
            Self::Transfer,
            Self::SnapshotBegin,
            Self::SnapshotChunk,
            Self::SnapshotEnd,
            Self::Beat,
            Self::Failed,
        ]
        .into_iter()
        .find(|known| *known as u8 == kind)
    }
}

/// Why a peer did not do what it was asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the peer refused: {0}")]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn frame(group: GroupId, reason: &dyn std::fmt::Display) -> Frame {
        let mut head = BytesMut::new();
        head.put_slice(reason.to_string().as_bytes());
        Frame { group, kind: Kind::Failed as u8, head: head.freeze(), payloads: Vec::new() }
    }

    pub(crate) fn of(frame: &Frame) -> Option<Self> {
        (frame.kind == Kind::Failed as u8).then(|| Self(String::from_utf8_lossy(&frame.head).into_owned()))
    }
}

pub(crate) fn answer(group: GroupId, kind: Kind, head: Bytes) -> Frame {
    Frame { group, kind: kind as u8, head, payloads: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_as_itself_and_unknown_ones_do_not() {
        for number in 0..=255u8 {
            assert!(Kind::parse(number).is_none_or(|kind| kind as u8 == number));
        }
        assert_eq!(Kind::parse(0), None);
        assert_eq!(Kind::parse(1), Some(Kind::Append));
        assert_eq!(Kind::parse(255), Some(Kind::Failed));
    }

    #[test]
    fn a_failure_tells_its_reason_on_the_other_side() {
        let frame = Failure::frame(GroupId(7), &"not open here");

        assert_eq!(Failure::of(&frame), Some(Failure("not open here".to_owned())));
        assert_eq!(Failure::of(&answer(GroupId(7), Kind::Vote, Bytes::new())), None);
    }
}
