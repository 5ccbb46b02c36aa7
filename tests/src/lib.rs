//! The harness of the suites: real servers as processes, real clients, and facts that must hold.
//!
//! A suite starts a [`cluster::Cluster`], does something to it through [`client`], [`raw`] or the tools that
//! [`tools`] finds, and waits for conditions with [`wait::wait_until`], never for a time. Which server is tested is
//! decided by [`program::Program`]: the one that was built beside the tests, or the one that `LEVEE_SUBJECT` names,
//! so that every claim about NATS can be held against nats-server itself.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
pub mod base64;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod disk;
pub mod network;
pub mod place;
pub mod ports;
pub mod power;
pub mod program;
pub mod raw;
pub mod skip;
pub mod spawn;
pub mod tools;
pub mod turns;
pub mod wait;
pub mod workload;
