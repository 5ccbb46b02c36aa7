//! Consumers of a led stream: a driver for each, and the folding of what they did into the stream's log.
//!
//! The rules live in `broker-core`: the replicated `Ledger` and the leader's `Dispatch`. Here are the inbox, the
//! timer and the way to the router.

pub mod driver;
pub mod progress;
