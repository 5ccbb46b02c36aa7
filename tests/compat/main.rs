//! The same script on nats-server and on the server under test, and the same answers; and what clients send by
//! mistake or malice.

mod answers;
mod bad_input;
mod benchmarks;
mod commands;
mod fast_batches;
mod mirrors;
mod monitoring;
mod pair;
mod permissions;
mod priority;
mod snapshots;
mod steps;
mod suites;
mod transcripts;
