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
    /// The stream has arrived where it was to go, or is to go elsewhere by now.
    MoveEnded,
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
                let now = self.advance_clock(*now);
                Ok(self.remove_node(now, *node, alive))
            }
            MetaCommand::MoveReplica { now, account, name, from, alive } => {
                let now = self.advance_clock(*now);
                self.move_replica(now, account, name, *from, alive)
            }
            MetaCommand::MoveStream { now, account, name, from, tags, alive } => {
                let now = self.advance_clock(*now);
                self.move_stream(now, (account, name), *from, tags, alive)
            }
            MetaCommand::CancelMove { now, account, name } => {
                self.advance_clock(*now);
                self.cancel_move(account, name)
            }
            MetaCommand::EndMove { now, group, replicas } => {
                self.advance_clock(*now);
                Ok(self.end_move(*group, replicas))
            }
            MetaCommand::EvacuateNode { now, node, alive } => {
                let now = self.advance_clock(*now);
                Ok(self.evacuate(now, *node, alive))
            }
            MetaCommand::FillUp { now, alive } => {
                let now = self.advance_clock(*now);
                Ok(self.fill_up(now, alive))
            }
            MetaCommand::CreateStream { now, account, config, alive, limits, restoring } => {
                let now = self.advance_clock(*now);
                self.create_stream(now, account, config, (alive, limits), *restoring)
            }
            MetaCommand::UpdateStream { now, account, config, alive, limits } => {
                let now = self.advance_clock(*now);
                self.update_stream(now, account, config, (alive, limits))
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
