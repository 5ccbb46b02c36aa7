//! The value log: files of large values beside the database, written once and with direct I/O.
//!
//! Through RocksDB a large value is written three times: to the write-ahead log, when its memtable is flushed, and by
//! compactions. Here it is written once, past the page cache, and the database holds its [`Place`]. The order keeps the
//! database the only truth: a place is written to it after the bytes are on stable storage, so a place never points to
//! nothing, and bytes that no place points to are garbage that nobody needs to find at a restart. Volatile values are the
//! exception: nobody waits for them, and after a crash of the machine their places may point to nothing until they are
//! synced (decision 35).
//!
//! One thread appends, any number read. Decision 16 says why values live here, with the measurements.

mod buffer;
mod cleaning;
mod segment;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::segment::Appender;
use crate::moments::{self, Moment};
use crate::sealed::{Fields, seal, unseal};

pub(crate) use self::buffer::AlignedBuffer;
pub(crate) use self::cleaning::Census;
pub(crate) use self::segment::{Segment, Writes};

/// Where a value lies.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Place {
    pub(crate) fn encode(self) -> Bytes {
        let mut row = Vec::with_capacity(24);
        row.extend_from_slice(&self.segment.to_le_bytes());
        row.extend_from_slice(&self.offset.to_le_bytes());
        row.extend_from_slice(&self.len.to_le_bytes());
        seal(row)
    }

    /// Where some bytes of the value lie, if it has them.
    pub(crate) fn part(self, from: usize, len: usize) -> Option<Self> {
        from.checked_add(len).filter(|end| *end <= self.len as usize)?;
        let len = u32::try_from(len).ok()?;
        Some(Self { segment: self.segment, offset: self.offset + from as u64, len })
    }

    pub(crate) fn decode(row: &[u8]) -> Option<Self> {
        let mut fields = Fields(unseal(row)?);
        let place = Self { segment: fields.u64()?, offset: fields.u64()?, len: fields.u32()? };
        fields.end()?;
        Some(place)
    }
}

/// Segments by number, as a reader found them. Files in it stay readable however long it is held.
pub(crate) type Segments = Arc<BTreeMap<u64, Arc<Segment>>>;

pub(crate) struct ValueLog {
    dir: PathBuf,
    segment_bytes: u64,
    segments: RwLock<Segments>,
    /// The segment that is appended to; the writer's alone.
    active: Mutex<Option<Appender>>,
    /// The same for volatile values.
    volatile: Mutex<Option<Appender>>,
    /// The segment that takes what cleaning copies. Left, like the other, at the start of a call, when the places of
    /// all earlier copies are in the database.
    copies: Mutex<Option<Appender>>,
    next_segment: AtomicU64,
    /// One sync at a time: who comes second finds little left to do.
    syncing: Mutex<()>,
}

impl ValueLog {
    /// Opens or creates the log in `dir`. A segment that is not full and not volatile is continued.
    pub(crate) fn open(dir: &Path, segment_bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        let mut segments = BTreeMap::new();
        for file in std::fs::read_dir(dir)? {
            let path = file?.path();
            let Some((number, writes)) = segment::named(&path) else { continue };
            segments.insert(number, Arc::new(Segment::open(&path, number, writes)?));
        }
        let next_segment = segments.last_key_value().map_or(1, |(newest, _)| newest + 1);
        let newest = segments.values().rfind(|segment| segment.writes == Writes::Synced);
        let active = match newest.filter(|newest| newest.bytes() < segment_bytes) {
            Some(newest) => Some(Appender::resume(Arc::clone(newest))?),
            None => None,
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            segment_bytes,
            segments: RwLock::new(Arc::new(segments)),
            active: Mutex::new(active),
            volatile: Mutex::new(None),
            copies: Mutex::new(None),
            next_segment: AtomicU64::new(next_segment),
            syncing: Mutex::new(()),
        })
    }

    /// Appends values and returns where they lie, once they are on stable storage.
    ///
    /// All values of a call lie in one segment, and a full segment is left at the start of a call only: by then the
    /// places of every earlier call are in the database, so what cleaning finds unused in a segment that is not
    /// appended to stays unused.
    pub(crate) fn append(&self, values: &[&[u8]]) -> io::Result<Vec<Place>> {
        self.append_to(&self.active, Writes::Synced, values)
    }

    /// The same for volatile values, which are on stable storage after the next [`sync`](Self::sync).
    pub(crate) fn append_volatile(&self, values: &[&[u8]]) -> io::Result<Vec<Place>> {
        self.append_to(&self.volatile, Writes::Volatile, values)
    }

    /// Returns once all volatile values of earlier calls are on stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock();
        self.segments().values().try_for_each(|segment| segment.sync())
    }

    fn append_to(
        &self,
        appender: &Mutex<Option<Appender>>,
        writes: Writes,
        values: &[&[u8]],
    ) -> io::Result<Vec<Place>> {
        let mut appender = appender.lock();
        if appender.as_ref().is_some_and(|appender| appender.segment().bytes() >= self.segment_bytes) {
            *appender = None;
        }
        if appender.is_none() {
            *appender = Some(self.begin_segment(writes)?);
        }
        let appender = appender.as_mut().expect("a segment was just begun");
        appender.append(values)
    }

    /// The segments there are now.
    pub(crate) fn segments(&self) -> Segments {
        Arc::clone(&self.segments.read())
    }

    /// The segment of a place, or `None` if it is gone.
    pub(crate) fn segment(&self, place: Place) -> Option<Arc<Segment>> {
        self.segments.read().get(&place.segment).cloned()
    }

    /// The value at a place, or `None` if its segment is gone: the value was moved or removed meanwhile.
    pub(crate) fn read(&self, place: Place) -> io::Result<Option<Bytes>> {
        self.segment(place).map(|segment| segment.read(place)).transpose()
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.bytes()).sum()
    }

    fn begin_segment(&self, writes: Writes) -> io::Result<Appender> {
        let number = self.next_segment.fetch_add(1, Ordering::Relaxed);
        let appender = Appender::create(&self.dir, number, writes)?;
        moments::reached(Moment::SegmentBegun);
        let mut segments = self.segments.write();
        Arc::make_mut(&mut segments).insert(number, Arc::clone(appender.segment()));
        Ok(appender)
    }

    /// Forgets a segment and removes its file. Readers that hold the segment keep reading it.
    fn remove(&self, number: u64) -> io::Result<()> {
        let Some(segment) = self.segments().get(&number).cloned() else { return Ok(()) };
        segment.delete()?;
        Arc::make_mut(&mut self.segments.write()).remove(&number);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
