//! The rules of Levee: what a stream, its consumers and the cluster's metadata do with a command.
//!
//! Everything here is a deterministic machine without I/O: no clock, no random numbers, no tasks. A machine takes a
//! command (time included), may read stored messages through a [`stream::MessageView`], changes its own state and
//! returns what should happen: [`stream::Change`]s for the message store, a [`stream::Reply`] for whoever asked, and
//! [`stream::Event`]s for the leader. The same commands give the same state on every replica.
//!
//! | module | is |
//! |---|---|
//! | [`stream`] | the stream machine: publish, limits, retention, purge, duplicate window |
//! | [`consumer`] | a consumer's replicated ledger, and the leader's dispatch |
//! | [`meta`] | which streams and nodes there are, and where replicas go |
//! | [`mirror`] | reading another stream, to mirror or to source it |
//! | [`permission`] | what a user may publish and subscribe to |
//! | [`rows`] | checkpoint rows: how machines lie on disk |
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod consumer;
pub mod meta;
pub mod mirror;
pub mod permission;
pub mod rows;
pub mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
