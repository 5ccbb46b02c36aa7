//! What a disk must do: ordered tables, atomic batches, views that do not change underneath a reader.
//!
//! Two implementations: `rocks/` in production, `memory.rs` in tests and simulation. Everything above this
//! trait is the same code for both.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::keys::{KeyRange, Table};
use crate::values::{Place, Segment};

/// Reading. The engine itself shows the newest state, a snapshot the state at its creation.
pub(crate) trait View: Send + Sync {
    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Error>;

    /// The same, to be read in parts.
    fn open_value(&self, table: Table, key: &[u8]) -> Result<Option<Value>, Error> {
        Ok(self.read(table, key)?.map(Value::Whole))
    }

    /// Rows of the range in order. A cursor shows the state at its creation, whatever is written later.
    fn scan<'a>(&'a self, table: Table, range: &KeyRange, how: Scan) -> Box<dyn Cursor + 'a>;
}

/// A disk.
pub(crate) trait Engine: View + 'static {
    /// All or nothing, after everything written before. `Synced` returns once it and all earlier writes are on
    /// stable storage. After an error, what is on the disk is unknown.
    fn write(&self, set: WriteSet, durability: Durability) -> Result<(), Error>;

    /// Calls back with a view that stays as it is for the duration of the call.
    fn with_snapshot(&self, read: &mut dyn FnMut(&dyn View));

    /// Gives back the space of all deleted rows of a table; may take long, and space while it lasts.
    fn compact(&self, table: Table);

    /// About how many bytes of files the ranges take, and the whole table.
    fn file_bytes(&self, table: Table, ranges: &[KeyRange]) -> (u64, u64);

    /// Drops files that hold nothing but the range. Cheap, and it needs no free space.
    fn drop_files(&self, table: Table, range: &KeyRange) -> Result<(), Error>;

    /// Gives back the space of removed values that lie beside the tables, if there are any. Calls `write` with what
    /// must be written for that, in a write of its own.
    fn clean_values(&self, _write: &mut dyn FnMut(WriteSet) -> Result<(), Error>) -> Result<(), Error> {
        Ok(())
    }

    /// Returns once every volatile value that was written before is on stable storage. May take long; nobody else waits
    /// meanwhile.
    fn sync_values(&self) -> Result<(), Error>;

    /// Bytes left on the file system. Asked often, so it must be cheap.
    fn disk_free(&self) -> Result<u64, Error>;

    fn disk_usage(&self) -> Result<DiskUsage, Error>;
}

/// A value of which only parts may be wanted.
pub(crate) enum Value {
    /// All of it is here.
    Whole(Bytes),
    /// It lies in a segment, which stays readable.
    Placed(Arc<Segment>, Place),
}

impl Value {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Whole(value) => value.len(),
            Self::Placed(_, place) => place.len as usize,
        }
    }

    /// Some bytes of it; `None` if it does not reach so far.
    pub(crate) fn part(&self, from: usize, len: usize) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Whole(value) => {
                let end = from.checked_add(len).filter(|end| *end <= value.len());
                Ok(end.map(|end| value.slice(from..end)))
            }
            Self::Placed(segment, place) => match place.part(from, len) {
                Some(part) => match segment.read(part) {
                    Ok(bytes) => Ok(Some(bytes)),
                    // The file is cut: as if the value ended there.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                    Err(error) => Err(Error::Engine(format!("value segment {}: {error}", place.segment))),
                },
                None => Ok(None),
            },
        }
    }
}

/// Which way a cursor goes and how much it reads ahead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scan {
    /// From the first key up; for a few rows.
    Forward,
    /// From the first key up, reading far ahead; for bulk.
    Bulk,
    /// From the last key down.
    Backward,
}

/// A key and its value.
pub(crate) type Row<'a> = (&'a [u8], &'a [u8]);

/// A position in a table.
pub(crate) trait Cursor {
    /// The next row, or `None` at the end of the range.
    fn next(&mut self) -> Result<Option<Row<'_>>, Error>;
}

/// When a write may be reported as done.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Durability {
    /// Once it is ordered behind every earlier write. A crash of the machine may lose it, together with everything
    /// after it and with nothing before it.
    Ordered,
    /// Once it is on stable storage, together with everything before it.
    Synced,
}

/// Space taken and left.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskUsage {
    /// Bytes of the store's files.
    pub used: u64,
    /// Bytes that are free on its file system for us.
    pub free: u64,
    /// Size of its file system.
    pub total: u64,
}

/// An atomic batch at the level of tables and keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteSet {
    pub(crate) operations: Vec<Operation>,
    pub(crate) bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Put {
        table: Table,
        key: Vec<u8>,
        value: Bytes,
        keep: Keep,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
    },
    DeleteRange {
        table: Table,
        range: KeyRange,
    },
    /// A value of `blocks` lies elsewhere now, unless it was removed since it was copied. Looks at what is written
    /// already, so it must not be in one set with what removes values.
    Move {
        key: Vec<u8>,
        from: Place,
        to: Place,
    },
}

/// What a crash of the machine may take of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keep {
    /// Nothing, when its write is not lost as a whole.
    WithItsWrite,
    /// The value, while its row is there, until `Engine::sync_values`. Reading it is an error then. For log entries of
    /// groups whose appends nobody waits for.
    Volatile,
}

impl WriteSet {
    /// Adds what another set has, behind what is here.
    pub(crate) fn extend(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.operations.extend(other.operations);
    }

    pub(crate) fn put(&mut self, table: Table, key: Vec<u8>, value: Bytes) {
        self.put_kept(table, key, value, Keep::WithItsWrite);
    }

    pub(crate) fn put_kept(&mut self, table: Table, key: Vec<u8>, value: Bytes, keep: Keep) {
        self.bytes += key.len() + value.len() + 16;
        self.operations.push(Operation::Put { table, key, value, keep });
    }

    pub(crate) fn delete(&mut self, table: Table, key: Vec<u8>) {
        self.bytes += key.len() + 16;
        self.operations.push(Operation::Delete { table, key });
    }

    pub(crate) fn delete_range(&mut self, table: Table, range: KeyRange) {
        self.bytes += range.from.len() + range.to.len() + 16;
        self.operations.push(Operation::DeleteRange { table, range });
    }

    /// Deletes numbered keys from `from` up to and without `to`. A range tombstone costs every later read of the
    /// table a little, so a handful of keys are deleted one by one.
    pub(crate) fn delete_numbered(&mut self, table: Table, from: u64, to: u64, key: impl Fn(u64) -> Vec<u8>) {
        if to.saturating_sub(from) <= 32 {
            for number in from..to {
                self.delete(table, key(number));
            }
        } else {
            self.delete_range(table, KeyRange { from: key(from), to: key(to) });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}
