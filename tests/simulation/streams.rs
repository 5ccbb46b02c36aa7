//! The streams of a run. Each is a group of its own on all nodes; the first is the one that clients use.

use std::sync::Arc;

use levee_protocol::ids::GroupId;
use levee_raft::Group;

use crate::replica::Replica;
use crate::world::World;

/// One of the streams.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Which {
    /// The one that clients publish to and that consumers read.
    Origin,
    /// Where consumers' dead letters go.
    Dead,
    /// A mirror of the first.
    Mirror,
    /// One that has the others as its sources.
    Sourced,
    /// One that is filled from an archive of the first.
    Restored,
    /// One whose messages are increments of counters.
    Counters,
    /// One that takes batches, atomic and fast.
    Batches,
    /// One whose messages may be scheduled.
    Schedules,
}

impl Which {
    /// Its group.
    pub(crate) fn group(self) -> GroupId {
        GroupId(match self {
            Self::Origin => 20,
            Self::Dead => 21,
            Self::Mirror => 22,
            Self::Sourced => 23,
            Self::Restored => 24,
            Self::Counters => 25,
            Self::Batches => 26,
            Self::Schedules => 27,
        })
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Origin => "SIM",
            Self::Dead => "DEAD",
            Self::Mirror => "MIRROR",
            Self::Sourced => "SOURCED",
            Self::Restored => "RESTORED",
            Self::Counters => "COUNTERS",
            Self::Batches => "BATCHES",
            Self::Schedules => "SCHEDULES",
        }
    }

    /// Whether all that it has comes from other streams.
    pub(crate) fn is_copy(self) -> bool {
        match self {
            Self::Origin | Self::Dead | Self::Counters | Self::Batches | Self::Schedules => false,
            Self::Mirror | Self::Sourced | Self::Restored => true,
        }
    }

    /// Which streams of a run its leader reads.
    pub(crate) fn origins(self, world: &World) -> Vec<Self> {
        let exists = |which: &&Self| world.oracles.contains_key(which);
        self.may_copy().iter().filter(exists).copied().collect()
    }

    /// Which streams it copies where they exist.
    pub(crate) fn may_copy(self) -> &'static [Self] {
        match self {
            Self::Origin | Self::Dead | Self::Restored | Self::Counters | Self::Batches | Self::Schedules => {
                &[]
            }
            Self::Mirror => &[Self::Origin],
            Self::Sourced => &[Self::Origin, Self::Dead],
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
