//! What the layers above rely on, shown on the disk in memory and on RocksDB.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod disk_full;
mod log;
mod messages;
mod moments;
mod snapshots;
mod stream;
mod values;
mod writer;
