//! Giving the space of removed values back.
//!
//! Nobody counts while values are removed: now and then the places in the database are counted, and segments without
//! one go. Only when more than half of the log would otherwise be garbage are the survivors of its emptiest segments
//! copied to a new one. The database learns of a copy through the writer, which drops the move of a value that was
//! removed meanwhile. A stream that forgets its oldest messages first empties whole segments and copies nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;

use super::{Place, ValueLog, Writes};

/// Garbage that is not worth copying for, in full segments.
const GARBAGE_SEGMENTS_MIN: u64 = 2;
/// Share of the log that may be garbage, in percent: beyond it, disk use would come near twice the live bytes.
const GARBAGE_PERCENT_MAX: u64 = 40;

/// Live bytes per segment that is not appended to anymore.
pub(crate) struct Census {
    live: BTreeMap<u64, u64>,
}

impl Census {
    pub(crate) fn count(&mut self, place: Place) {
        if let Some(live) = self.live.get_mut(&place.segment) {
            *live += u64::from(place.len);
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self, segment: u64) -> bool {
        self.live.contains_key(&segment)
    }
}

impl ValueLog {
    /// Begins a count. Values in segments that are sealed now can only become fewer.
    pub(crate) fn census(&self) -> Census {
        // Before the appenders are looked at: a segment that is begun in between must not be taken for a sealed one.
        let segments = self.segments();
        let appended = [self.active.lock(), self.volatile.lock(), self.copies.lock()]
            .map(|appender| appender.as_ref().map(|appender| appender.segment().number));
        let sealed = segments.keys().filter(|number| !appended.contains(&Some(**number)));
        Census { live: sealed.map(|number| (*number, 0)).collect() }
    }

    /// Whether any segment has no live value.
    pub(crate) fn has_dead(&self, census: &Census) -> bool {
        census.live.values().any(|live| *live == 0)
    }

    /// Removes the segments without a live value. That the database does not point into them must be on stable
    /// storage.
    pub(crate) fn remove_dead(&self, census: &Census) -> io::Result<()> {
        census.live.iter().filter(|(_, live)| **live == 0).try_for_each(|(number, _)| self.remove(*number))
    }

    /// The emptiest segments whose survivors should move, if there is too much garbage. At most about a segment of
    /// survivors at a time, so that copying needs little room and ends soon.
    pub(crate) fn victims(&self, census: &Census) -> BTreeSet<u64> {
        let segments = self.segments();
        let mut sealed: Vec<(u64, u64, u64)> = census
            .live
            .iter()
            .filter_map(|(number, live)| Some((*number, *live, segments.get(number)?.bytes())))
            .collect();
        let mut all: u64 = sealed.iter().map(|(_, _, bytes)| bytes).sum();
        let mut garbage = sealed.iter().map(|(_, live, bytes)| bytes.saturating_sub(*live)).sum::<u64>();
        let mut victims = BTreeSet::new();
        let mut survivors = 0;
        if garbage < GARBAGE_SEGMENTS_MIN * self.segment_bytes {
            return victims;
        }
        sealed.sort_by_key(|(_, live, bytes)| live * 1000 / (*bytes).max(1));
        for (number, live, bytes) in sealed {
            survivors += live;
            let enough = garbage * 100 <= all * GARBAGE_PERCENT_MAX;
            if enough || (survivors > self.segment_bytes && !victims.is_empty()) {
                break;
            }
            victims.insert(number);
            garbage -= bytes.saturating_sub(live);
            all -= bytes.saturating_sub(live);
        }
        victims
    }

    /// Copies values to a segment for survivors and returns where the copies lie, on stable storage. `None` stands for
    /// a value that is gone, or that cannot be read: it stays where it is, and its segment with it.
    pub(crate) fn copy(&self, places: &[Place]) -> io::Result<Vec<Option<Place>>> {
        let read = |place: &Place| {
            self.read(*place).unwrap_or_else(|error| {
                tracing::error!(segment = place.segment, offset = place.offset, %error, "a value cannot be read");
                None
            })
        };
        let values: Vec<Option<Bytes>> = places.iter().map(read).collect();
        let present: Vec<&[u8]> = values.iter().flatten().map(|value| &value[..]).collect();
        let mut moved = self.append_to(&self.copies, Writes::Synced, &present)?.into_iter();
        Ok(values.iter().map(|value| value.as_ref().and_then(|_| moved.next())).collect())
    }
}
