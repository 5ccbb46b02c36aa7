//! What the storage counts: per batch and per pass, never per message.

use std::time::Instant;

use metrics::{counter, gauge, histogram};

use crate::engine::Durability;
use crate::space::now;

pub(crate) fn write_started() -> Instant {
    now()
}

pub(crate) fn write_finished(started: Instant, bytes: usize, durability: Durability) {
    histogram!("levee_storage_write_seconds").record(started.elapsed().as_secs_f64());
    counter!("levee_storage_written_bytes_total").increment(bytes as u64);
    match durability {
        Durability::Synced => counter!("levee_storage_syncs_total").increment(1),
        Durability::Ordered => counter!("levee_storage_unsynced_writes_total").increment(1),
    }
}

pub(crate) fn failed() {
    gauge!("levee_storage_failed").set(1.0);
}

pub(crate) fn disk_full() {
    counter!("levee_storage_disk_full_refusals_total").increment(1);
}

pub(crate) fn cleaned(blocks: u64, records: u64) {
    counter!("levee_storage_cleaned_blocks_total").increment(blocks);
    counter!("levee_storage_kept_records_total").increment(records);
}
