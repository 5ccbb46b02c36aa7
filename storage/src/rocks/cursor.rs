//! Cursors over a table, and over blocks, which lie in two places.

use bytes::Bytes;
use rocksdb::{DBRawIterator, ReadOptions};

use super::place_of;
use crate::engine::{Cursor, Row, Scan};
use crate::error::Error;
use crate::keys::KeyRange;
use crate::values::{Segments, ValueLog};

const BULK_READAHEAD_BYTES: usize = 2 << 20;

pub(super) struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    how: Scan,
    started: bool,
}

impl<'a> RocksCursor<'a> {
    pub(super) fn new(iterator: DBRawIterator<'a>, how: Scan) -> Self {
        Self { iterator, how, started: false }
    }

    fn advance(&mut self) -> Result<(), Error> {
        match (self.started, self.how) {
            (false, Scan::Forward | Scan::Bulk) => self.iterator.seek_to_first(),
            (false, Scan::Backward) => self.iterator.seek_to_last(),
            (true, _) if !self.iterator.valid() => return Ok(()),
            (true, Scan::Forward | Scan::Bulk) => self.iterator.next(),
            (true, Scan::Backward) => self.iterator.prev(),
        }
        self.started = true;
        if !self.iterator.valid() {
            // An iterator stops at damage as it does at the end; only the status tells them apart.
            self.iterator.status()?;
        }
        Ok(())
    }
}

impl Cursor for RocksCursor<'_> {
    fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        self.advance()?;
        Ok(self.iterator.item())
    }
}

/// Always bounded: an unbounded iterator walks over the tombstones of other groups.
pub(super) fn read_options(range: &KeyRange, how: Scan) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(range.from.as_slice());
    options.set_iterate_upper_bound(range.to.as_slice());
    if how == Scan::Bulk {
        options.set_readahead_size(BULK_READAHEAD_BYTES);
        // A replay of a large stream must not push everything else out of the cache.
        options.fill_cache(false);
    }
    options
}

/// Blocks in the order of their keys: those in the table, and those whose places the database holds.
pub(super) struct BlocksCursor<'a> {
    inline: RocksCursor<'a>,
    places: RocksCursor<'a>,
    reader: ValueReader<'a>,
    at: At,
    value: Bytes,
}

/// Which of the two the last row came from.
#[derive(Clone, Copy, Eq, PartialEq)]
enum At {
    Start,
    Inline,
    Places,
}

impl<'a> BlocksCursor<'a> {
    /// The segments must be from before the iterators were made.
    pub(super) fn new(inline: RocksCursor<'a>, places: RocksCursor<'a>, reader: ValueReader<'a>) -> Self {
        Self { inline, places, reader, at: At::Start, value: Bytes::new() }
    }

    fn advance(&mut self) -> Result<(), Error> {
        if self.at != At::Places {
            self.inline.advance()?;
        }
        if self.at != At::Inline {
            self.places.advance()?;
        }
        let backward = self.inline.how == Scan::Backward;
        self.at = match (self.inline.iterator.key(), self.places.iterator.key()) {
            (Some(inline), Some(place)) if (inline < place) != backward => At::Inline,
            (Some(_), None) => At::Inline,
            _ => At::Places,
        };
        Ok(())
    }
}

impl Cursor for BlocksCursor<'_> {
    fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        self.advance()?;
        if self.at == At::Inline {
            return Ok(self.inline.iterator.item());
        }
        let Some((key, row)) = self.places.iterator.item() else { return Ok(None) };
        self.value = self.reader.read(key, row)?;
        Ok(Some((key, &self.value)))
    }
}

/// Reads the values of one view.
#[derive(Clone)]
pub(super) struct ValueReader<'a> {
    values: &'a ValueLog,
    /// From before the view, so that what cleaning removes stays readable.
    segments: Segments,
}

impl<'a> ValueReader<'a> {
    pub(super) fn new(values: &'a ValueLog) -> Self {
        Self { segments: values.segments(), values }
    }

    pub(super) fn read(&self, key: &[u8], row: &[u8]) -> Result<Bytes, Error> {
        let place = place_of(key, row)?;
        let value = match self.segments.get(&place.segment) {
            Some(segment) => segment.read(place).map(Some),
            // Begun after the view's segments were looked up.
            None => self.values.read(place),
        };
        super::found(key, place, value)?.ok_or_else(|| super::lost(key, place, "the file is missing"))
    }
}
