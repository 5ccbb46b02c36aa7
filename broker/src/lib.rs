//! The Levee node: connections, routing, leaders, the JetStream API.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accounts;
pub mod advisory;
pub mod api;
pub mod config;
pub mod consumer;
pub mod frontend;
pub mod jetstream;
pub mod limits;
pub mod meta;
pub mod metrics;
pub mod mirror;
pub mod monitoring;
pub mod node;
pub mod nuid;
mod readiness;
pub mod router;
pub mod runtime;
pub mod session;
pub mod sinks;
pub mod stream;
pub mod transfer;
