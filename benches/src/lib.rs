//! Load for NATS servers: a raw-protocol client that costs little itself, servers as processes with their costs
//! counted, and the rows that the `compare` binary runs in turns against Levee and nats-server.
//!
//! | module | is |
//! |---|---|
//! | [`client`] | a connection that speaks just enough of the protocol |
//! | [`servers`] | one or three server processes of one side, fresh for each run |
//! | [`process`] | what processes and the machine spend, from the operating system |
//! | [`disk`] | what synced writes cost without any server, and whether the machine pauses |
//! | [`pace`] | the schedule of an open loop, and latency against it |
//! | [`messages`] | what is published |
//! | [`setup`] | streams and consumers |
//! | [`figures`] | what is measured, and one run's measurements |
//! | [`load`] | how each kind of load is made |
//! | [`rows`] | the rows of the comparison, with their targets |
//! | [`sweeps`] | the rows of the charts |
//! | [`results`] | runs as lines of JSON |
//! | [`micro`] | single parts of the product, for timing and for counting instructions |
//! | [`report`] | medians, ratios, tables, charts, the page |

pub mod client;
pub mod disk;
pub mod figures;
pub mod load;
pub mod messages;
pub mod micro;
pub mod pace;
pub mod process;
pub mod report;
pub mod results;
pub mod rows;
pub mod servers;
pub mod setup;
pub mod sweeps;
