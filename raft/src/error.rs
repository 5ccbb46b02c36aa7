//! What can go wrong in a group, by what a caller would do about it.

use levee_protocol::ids::{GroupId, NodeId};

/// Failures of the crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The group is not open on this node.
    #[error("group {0} is not open on this node")]
    NoGroup(GroupId),
    /// The group is open already; two machines must not share one log.
    #[error("group {0} is open already")]
    AlreadyOpen(GroupId),
    /// This node is not the leader. Ask the leader, if known.
    #[error("group {group}: this node does not lead it")]
    NotLeader {
        /// The group.
        group: GroupId,
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The group stopped on this node: closed, or broken (the log says why).
    #[error("group {group} stopped on this node: {reason}")]
    Stopped {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// The operation found no majority in time.
    #[error("group {group}: {attempted} found no majority in time")]
    NoMajority {
        /// The group.
        group: GroupId,
        /// What was attempted.
        attempted: &'static str,
    },
    /// The node remembers a group whose log is gone. It must not vote with an empty log; remove the group here and
    /// add this node again as a learner.
    #[error(
        "group {0} existed in this store and its log is gone; it must not vote with an empty log: remove this \
         node from the group and add it again"
    )]
    Lost(GroupId),
    /// The members do not allow the change.
    #[error("group {group}: members not changed: {reason}")]
    Membership {
        /// The group.
        group: GroupId,
        /// openraft's reason.
        reason: String,
    },
    /// The stored applied row does not decode.
    #[error("group {0}: the applied row does not decode; the data directory may be from a newer version")]
    AppliedRow(GroupId),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] levee_storage::Error),
}

/// Why a proposal has no reply.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead the group. The proposal was not taken.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Leadership or the majority was lost after the proposal was taken. It may still be committed, by us or by
    /// the next leader; only the applied log knows.
    #[error("leadership was lost; the outcome is unknown")]
    Unknown {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// More proposals wait than the group's queue holds. The proposal was not taken.
    #[error("the group's proposal queue is full")]
    Full,
    /// The disk is nearly full. The proposal was not taken; later ones are once space returned.
    #[error("the disk is nearly full")]
    NoRoom,
    /// The group stopped on this node. If the proposal was taken before, its outcome is unknown.
    #[error("the group stopped on this node")]
    Stopped,
}

impl ProposeError {
    /// Whether the proposal may be in the log all the same, or come there. If not, it can be proposed again without
    /// harm.
    #[must_use]
    pub fn may_be_committed(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::Stopped => true,
            Self::NotLeader { .. } | Self::Full | Self::NoRoom => false,
        }
    }
}
