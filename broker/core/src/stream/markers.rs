//! Delete markers: what stands for a subject whose last message expired.
//!
//! A marker is a message, and what a message holds is in a block before it is decided upon. So the rule that removes
//! the last message of a subject notes that the subject is owed a marker; the leader writes the markers that are owed;
//! and whoever applies them stores those that still are. A message that comes first needs no marker before it. What
//! is owed is replicated: if the leader dies, the next one writes them.

use std::collections::BTreeSet;

use levee_protocol::api::duration_text::format_duration;
use levee_protocol::record::{Block, BlockBuilder, RecordFlags};
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};

use super::StreamMachine;
use crate::rows::{RowKind, StateRow};

/// Markers in one block.
const MARKERS_MAX: usize = 1024;

/// Subjects that are owed a marker.
#[derive(Debug, Default)]
pub(crate) struct OwedMarkers {
    subjects: BTreeSet<Box<[u8]>>,
    dirty: BTreeSet<Box<[u8]>>,
}

impl OwedMarkers {
    pub(crate) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    pub(crate) fn owe(&mut self, subject: Box<[u8]>) {
        if self.subjects.insert(subject.clone()) {
            self.dirty.insert(subject);
        }
    }

    /// The subject is owed nothing any more. Whether it was.
    pub(crate) fn settle(&mut self, subject: &[u8]) -> bool {
        let Some(subject) = self.subjects.take(subject) else { return false };
        self.dirty.insert(subject);
        true
    }

    /// Nobody is owed anything any more.
    pub(crate) fn clear(&mut self) {
        self.dirty.append(&mut self.subjects);
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for subject in std::mem::take(&mut self.dirty) {
            let is_owed = self.subjects.contains(&subject);
            let value = is_owed.then(Vec::new);
            rows.push(StateRow { kind: RowKind::Marker, key: subject.into_vec(), value });
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(self.subjects.iter().map(|subject| StateRow::put(RowKind::Marker, subject, Vec::new())));
    }

    pub(crate) fn load_row(&mut self, key: &[u8]) {
        self.subjects.insert(key.into());
    }
}

impl StreamMachine {
    /// Whether a subject is owed a marker.
    #[must_use]
    pub fn owes_markers(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The markers that are owed, as the leader proposes them; not necessarily all. `None` when none are.
    #[must_use]
    pub fn owed_markers(&self, now: Timestamp) -> Option<Block> {
        let ttl = self.config()?.subject_delete_marker_ttl;
        if self.owed.is_empty() {
            return None;
        }
        let header = marker_header(ttl);
        let mut block = BlockBuilder::default();
        for subject in self.owed.subjects.iter().take(MARKERS_MAX) {
            block.push_flagged(RecordFlags::MARKER, subject, &header, b"");
        }
        Some(block.finish(now))
    }
}

/// Whether a message with this header is a marker itself, or the purge of a key: it expires without another marker.
pub(crate) fn is_marker(header: &[u8]) -> bool {
    if header.is_empty() {
        return false;
    }
    let header = HeaderBlock(header);
    header.get("Nats-Marker-Reason").is_some_and(|reason| !reason.is_empty())
        || header.get("KV-Operation") == Some(b"PURGE")
}

fn marker_header(ttl: Nanos) -> Vec<u8> {
    let mut header = HeaderBuilder::new();
    header
        .push("Nats-Marker-Reason", "MaxAge")
        .push("Nats-TTL", format_duration(ttl))
        .push("Nats-Rollup", "sub");
    header.finish()
}
