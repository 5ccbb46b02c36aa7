//! What the layers above rely on, shown on the disk in memory and on RocksDB.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod disk_full;
mod dying;
mod import_moments;
mod log;
mod log_moments;
mod messages;
mod moments;
mod snapshots;
mod stream;
mod torn;
mod values;
mod volatile;
mod writer;
