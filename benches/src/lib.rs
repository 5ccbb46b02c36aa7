//! Load for NATS servers: a raw-protocol client that costs little itself, servers as processes with their CPU
//! counted, and the workloads that the `compare` binary runs in turns against Levee and nats-server.
//!
//! | module | is |
//! |---|---|
//! | [`client`] | a connection that speaks just enough of the protocol |
//! | [`servers`] | one or three server processes of one side, fresh for each run, and what they cost |
//! | [`workloads`] | what is measured |
//! | [`report`] | medians, ratios, the table |

pub mod client;
pub mod report;
pub mod servers;
pub mod workloads;
