//! Bytes, names and shapes of Levee: the NATS wire protocol, subjects, the JetStream JSON API, and the formats
//! of replicated commands and stored messages.
//!
//! Pure by construction: nothing here does I/O, reads a clock or draws random numbers.
//!
//! | module | is |
//! |---|---|
//! | [`ids`], [`time`] | names and numbers that must not be mixed up |
//! | [`wire`] | the NATS text protocol: parser, encoder, INFO and CONNECT, header blocks |
//! | [`subject`] | subjects, filters, matching |
//! | [`api`] | the JetStream API: endpoints, errors, documents, publish headers, acks |
//! | [`record`] | stored messages: the block that is log entry, wire and disk format at once |
//! | [`command`] | what goes through a Raft log |
//! | [`mirror`] | what a stream asks another one for that it mirrors or sources, and what it gets |
//! | [`archive`] | backups of streams, as nats-server writes and reads them |
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod archive;
pub mod command;
pub mod ids;
pub mod mirror;
pub mod record;
pub mod subject;
pub mod time;
pub mod wire;
