//! Consumers of a led stream: a driver for each, and the folding of what they did into the stream's log.
//!
//! The rules live in `broker-core`: the replicated `Ledger` and the leader's `Dispatch`. Here are the inbox, the
//! timer, the way to the router, and that of dead letters to their stream.

pub(crate) mod alarms;
pub mod driver;
mod letters;
pub(crate) mod listeners;
pub mod progress;
