#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod channel;
mod checkpoints;
mod codec;
mod commits;
mod config;
mod elections;
mod error;
mod group;
mod groups;
mod leadership;
mod log_store;
mod machine;
mod messages;
mod network;
mod outbox;
mod peers;
mod proposals;
mod receive;
mod runtime;
mod starting_over;
mod state_machine;
mod suspects;
mod tasks;
pub mod transport;
mod types;

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
mod pb {
    tonic::include_proto!("levee.raft.v1");
}

pub use config::Config;
pub use error::{Error, ProposeError};
pub use group::{Group, GroupStatus, ReplicaStatus};
pub use groups::{Birth, Groups};
pub use leadership::Leadership;
pub use machine::{CommittedEntry, ReplicatedMachine, Reply};
pub use outbox::{Haste, Outbox};
pub use proposals::{Outcome, Proposal, Then};
pub use state_machine::APPLIED_ROW_KIND;
pub use transport::{AddressBook, GrpcTransport, LocalNetwork, LocalTransport, RaftService, Transport};
