//! The meta machine: which nodes there are, which streams there are, and which nodes hold them.
//!
//! One group of all nodes decides it. A stream's own group adopts what is decided here and never asks: the
//! assignment carries everything. Whether a node is alive is not replicated; the leader puts what it sees into the
//! command.
//!
//! | file | is |
//! |---|---|
//! | [`state`](self) | what is replicated, and its checkpoint rows |
//! | `streams` | create, update, delete; subject overlap |
//! | `nodes` | register |
//! | `moves` | replicas go to other nodes; nodes are emptied and removed |
//! | [`placement`] | choose replicas and a preferred leader |

mod moves;
mod nodes;
pub mod placement;
mod state;
mod streams;

#[cfg(test)]
mod tests;

use levee_protocol::api::ApiError;
use levee_protocol::command::MetaCommand;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::NodeId;
use levee_protocol::time::{Nanos, Timestamp};

pub use state::{MetaMachine, Touched};

/// The answer to a meta command.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaReply {
    /// The node takes part, under this name and address.
    Registered,
    /// The name belongs to another node; nothing changed.
    NameTaken {
        /// Whose name it is.
        by: NodeId,
    },
    /// The node was removed from the cluster before; nothing changed.
    WasRemoved,
    /// The node is forgotten, or was not known.
    Removed,
    /// What could go from the node to others goes.
    Evacuated,
    /// Streams that lacked replicas have what can be had.
    FilledUp,
    /// A new stream.
    Created(Box<StreamAssignment>),
    /// A stream with just this configuration exists; nothing changed.
    Exists(Box<StreamAssignment>),
    /// The stream has another configuration.
    Updated {
        /// How it is now.
        assignment: Box<StreamAssignment>,
        /// The nodes that held it before.
        replicas_before: Vec<NodeId>,
    },
    /// The stream is gone.
    Deleted(Box<StreamAssignment>),
    /// Refused by a rule; nothing changed.
    Rejected(ApiError),
}

impl MetaMachine {
    /// Applies one committed command.
    pub fn apply(&mut self, _log_index: u64, command: &MetaCommand) -> MetaReply {
        let answer = match command {
            MetaCommand::RegisterNode { now, node } => {
                self.advance_clock(*now);
                Ok(self.register(node))
            }
            MetaCommand::RemoveNode { now, node, alive } => {
                self.advance_clock(*now);
                Ok(self.remove_node(*node, alive))
            }
            MetaCommand::MoveReplica { now, account, name, from, alive } => {
                self.advance_clock(*now);
                self.move_replica(account, name, *from, alive)
            }
            MetaCommand::EvacuateNode { now, node, alive } => {
                self.advance_clock(*now);
                Ok(self.evacuate(*node, alive))
            }
            MetaCommand::FillUp { now, alive } => {
                self.advance_clock(*now);
                Ok(self.fill_up(alive))
            }
            MetaCommand::CreateStream { now, account, config, alive, limits, restoring } => {
                let now = self.advance_clock(*now);
                self.create_stream(now, account, config, (alive, limits), *restoring)
            }
            MetaCommand::UpdateStream { now, account, config, alive, limits } => {
                self.advance_clock(*now);
                self.update_stream(account, config, (alive, limits))
            }
            MetaCommand::DeleteStream { now, account, name } => {
                self.advance_clock(*now);
                self.delete_stream(account, name)
            }
            MetaCommand::EndRestore { now, group, complete } => {
                self.advance_clock(*now);
                self.end_restore(*group, *complete)
            }
        };
        answer.unwrap_or_else(MetaReply::Rejected)
    }

    /// When a stream is created, by the clock: no two at the same time, so that two of one name can be told apart.
    fn stamp(&mut self, now: Timestamp) -> Timestamp {
        self.clock = now.plus(Nanos(1));
        now
    }

    /// Time never runs backwards, whatever a new leader's clock says.
    fn advance_clock(&mut self, now: Timestamp) -> Timestamp {
        self.clock = self.clock.max(now);
        self.clock
    }
}
