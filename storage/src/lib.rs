#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod background;
mod batch;
mod block_cache;
mod block_index;
mod block_row;
mod cleaning;
mod engine;
mod entry_log;
mod entry_row;
mod error;
mod format;
mod group;
mod kept;
mod keys;
mod mark;
mod memory;
mod messages;
mod metrics;
mod moments;
mod options;
mod read_ahead;
mod reclaim;
mod rocks;
mod sealed;
mod snapshot;
mod space;
mod storage;
mod vacancies;
mod values;
mod writer;

pub use batch::Batch;
pub use cleaning::CleanReport;
pub use engine::{DiskUsage, Durability};
pub use entry_log::EntryLog;
pub use entry_row::kind;
pub use error::Error;
pub use group::{LogEntry, LogId, Sync};
pub use keys::Table;
pub use memory::MemoryDisk;
pub use messages::MessageStore;
pub use options::{Options, Payloads};
pub use snapshot::{SnapshotReader, SnapshotWriter};
pub use space::Room;
pub use storage::{RowVisitor, Storage};
pub use writer::Done;
