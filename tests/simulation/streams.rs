//! The streams of a run. Each is a group of its own on all nodes; the first is the one that clients use.

use std::sync::Arc;

use levee_protocol::ids::GroupId;
use levee_raft::Group;

use crate::replica::Replica;

/// One of the streams.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Which {
    /// The one that clients publish to and that consumers read.
    Origin,
    /// Where consumers' dead letters go.
    Dead,
}

impl Which {
    /// Its group.
    pub(crate) fn group(self) -> GroupId {
        GroupId(match self {
            Self::Origin => 20,
            Self::Dead => 21,
        })
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Origin => "SIM",
            Self::Dead => "DEAD",
        }
    }
}

/// A stream on one node, from the start of its process to its end.
#[derive(Clone)]
pub(crate) struct Stream {
    /// Which.
    pub(crate) which: Which,
    /// Its group.
    pub(crate) group: Group,
    /// Its copy.
    pub(crate) replica: Arc<Replica>,
}
