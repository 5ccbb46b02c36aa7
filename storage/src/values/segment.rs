//! One file of the value log.
//!
//! ```text
//! file := head, padded to 4 KiB | append *      append := value *, padded to 4 KiB
//! head := "levee values" | version u8 | number u64 | crc32c u32
//! ```
//!
//! Large values are read past the page cache, like they are written: filling it costs five times as much as the read.
//! Whoever wants them again finds them in the block cache. Small parts are read through it.
//!
//! Values carry checksums of their own, which whoever reads one compares. A file is appended to until it is full and
//! is removed as a whole.
//!
//! A volatile segment has values that nobody waits for (decision 35). It is written and read through the page cache, which
//! brings it to the disk when there is time or when it is synced; a crash of the machine may take any of what was not. Its
//! head is on stable storage from the beginning, and a process continues none of an earlier one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rustix::fs::OFlags;

use super::Place;
use super::buffer::{ALIGNMENT, AlignedBuffer, read_aligned};
use crate::sealed::{Fields, seal, unseal};

const MAGIC: &[u8; 12] = b"levee values";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 12 + 1 + 8 + 4;
/// Values of this size are read past the page cache.
const DIRECT_BYTES_MIN: u32 = 64 << 10;

/// How a file is written, and what a crash of the machine leaves of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Writes {
    /// A write is on stable storage when it returns.
    Synced,
    /// Only what was synced afterwards is.
    Volatile,
}

impl Writes {
    const ALL: [Self; 2] = [Self::Synced, Self::Volatile];

    const fn ending(self) -> &'static str {
        match self {
            Self::Synced => "values",
            Self::Volatile => "volatile",
        }
    }
}

/// A file to read from.
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) writes: Writes,
    path: PathBuf,
    file: File,
    /// The same for direct I/O, once it was needed; `None` where the file system has no such thing.
    direct: OnceLock<Option<File>>,
    bytes: AtomicU64,
    /// How much of a volatile file is on stable storage at least. Nothing is known of what an earlier process wrote.
    synced: AtomicU64,
}

impl Segment {
    /// Opens a file that was written before.
    pub(crate) fn open(path: &Path, number: u64, writes: Writes) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut head = [0; HEAD_BYTES];
        if bytes > 0 {
            file.read_exact_at(&mut head, 0)
                .and_then(|()| check_head(&head, number))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
        Ok(Self::new(path, number, writes, file, bytes))
    }

    fn new(path: &Path, number: u64, writes: Writes, file: File, bytes: u64) -> Self {
        let (path, direct) = (path.to_path_buf(), OnceLock::new());
        let (bytes, synced) = (AtomicU64::new(bytes), AtomicU64::new(0));
        Self { number, writes, path, file, direct, bytes, synced }
    }

    /// Bytes that were written to it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Whether all of a value can be in it.
    pub(crate) fn holds(&self, place: Place) -> bool {
        place.offset >= ALIGNMENT as u64
            && place.offset.checked_add(u64::from(place.len)).is_some_and(|end| end <= self.bytes())
    }

    pub(crate) fn read(&self, place: Place) -> io::Result<Bytes> {
        // What the page cache has and the disk does not would be written first.
        if place.len >= DIRECT_BYTES_MIN
            && self.writes == Writes::Synced
            && let Some(direct) = self.direct.get_or_init(|| open_direct(&self.path).ok())
        {
            match read_aligned(direct, place.offset, place.len as usize) {
                Err(error) if is_refused(&error) => {}
                read => return read,
            }
        }
        let mut value = vec![0; place.len as usize];
        self.file.read_exact_at(&mut value, place.offset)?;
        Ok(value.into())
    }

    /// Brings what was written to a volatile file to stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let bytes = self.bytes();
        if self.writes == Writes::Volatile && self.synced.load(Ordering::Acquire) < bytes {
            self.file.sync_data()?;
            self.synced.fetch_max(bytes, Ordering::Release);
        }
        Ok(())
    }

    pub(crate) fn delete(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// A file to append to.
pub(crate) struct Appender {
    segment: Arc<Segment>,
    /// Unless the segment is volatile, opened so that a write returns once it is on stable storage, and past the page cache
    /// where that works.
    file: File,
    buffer: AlignedBuffer,
}

impl Appender {
    /// Begins a file. It and its name are on stable storage when this returns.
    pub(crate) fn create(dir: &Path, number: u64, writes: Writes) -> io::Result<Self> {
        let path = dir.join(format!("{number:020}.{}", writes.ending()));
        let mut buffer = AlignedBuffer::default();
        let mut file = open_synced(&path, &mut buffer, number)?;
        if writes == Writes::Volatile {
            file = OpenOptions::new().write(true).open(&path)?;
        }
        File::open(dir)?.sync_all()?;
        let segment = Arc::new(Segment::new(&path, number, writes, File::open(&path)?, ALIGNMENT as u64));
        Ok(Self { segment, file, buffer })
    }

    /// Continues a file that is not volatile, behind whatever a crash may have left at its end.
    pub(crate) fn resume(segment: Arc<Segment>) -> io::Result<Self> {
        let mut buffer = AlignedBuffer::default();
        let file = open_synced(&segment.path, &mut buffer, segment.number)?;
        let end = segment.bytes().max(ALIGNMENT as u64).next_multiple_of(ALIGNMENT as u64);
        segment.bytes.store(end, Ordering::Release);
        Ok(Self { segment, file, buffer })
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn append(&mut self, values: &[&[u8]]) -> io::Result<Vec<Place>> {
        let start = self.segment.bytes();
        let mut offset = start;
        let mut places = Vec::with_capacity(values.len());
        for value in values {
            let len = u32::try_from(value.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
            places.push(Place { segment: self.segment.number, offset, len });
            offset += u64::from(len);
        }
        let end = match self.segment.writes {
            Writes::Synced => {
                let filled = self.buffer.fill(values);
                self.file.write_all_at(filled, start)?;
                start + filled.len() as u64
            }
            Writes::Volatile => {
                for (value, place) in values.iter().zip(&places) {
                    self.file.write_all_at(value, place.offset)?;
                }
                offset
            }
        };
        self.segment.bytes.store(end, Ordering::Release);
        Ok(places)
    }
}

/// What a file's name says, if it is one of ours.
pub(crate) fn named(path: &Path) -> Option<(u64, Writes)> {
    let writes =
        Writes::ALL.into_iter().find(|writes| path.extension().is_some_and(|end| end == writes.ending()))?;
    Some((path.file_stem()?.to_str()?.parse().ok()?, writes))
}

/// Opens or creates a file and writes its head. Some file systems refuse direct I/O, when a file is opened or when it
/// is written; there the page cache has to do.
fn open_synced(path: &Path, buffer: &mut AlignedBuffer, number: u64) -> io::Result<File> {
    let head = head(number);
    let mut open = |flags: OFlags| -> io::Result<File> {
        let flags = i32::try_from((flags | OFlags::DSYNC).bits()).unwrap_or(0);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
        file.write_all_at(buffer.fill(&[&head]), 0)?;
        Ok(file)
    };
    match open(OFlags::DIRECT) {
        Err(error) if is_refused(&error) => open(OFlags::empty()),
        opened => opened,
    }
}

fn open_direct(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

fn head(number: u64) -> Bytes {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(MAGIC);
    head.push(VERSION);
    head.extend_from_slice(&number.to_le_bytes());
    seal(head)
}

fn check_head(head: &[u8], number: u64) -> io::Result<()> {
    let damaged = |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()));
    let Some(fields) = unseal(head) else { return damaged("its head does not match its checksum") };
    let Some(rest) = fields.strip_prefix(MAGIC) else { return damaged("it is not a value segment") };
    let mut fields = Fields(rest);
    match (fields.u8(), fields.u64()) {
        (Some(VERSION), Some(found)) if found == number => Ok(()),
        (Some(VERSION), _) => damaged("its head names another number"),
        _ => damaged("its version is unknown; it may come from a newer release"),
    }
}
