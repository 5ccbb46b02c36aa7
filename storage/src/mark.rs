//! How far the disk was synced, noted beside the database.
//!
//! RocksDB replays its write-ahead log up to the first record that does not check out. After a power cut that is
//! right: what follows was never synced. But a log that was cut or damaged later looks the same, and acknowledged
//! messages would be gone without a word. This file holds the engine's sequence number after the last synced write;
//! a database that comes up behind it has lost something it had promised.
//!
//! The file itself is not synced: after losing power it may be old, which only makes the check weaker, and a killed
//! process or a damaged file is exactly what it is for.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sealed::{Fields, seal, unseal};

pub(crate) struct SyncMark {
    file: File,
}

impl SyncMark {
    /// Opens the mark of a directory and says what it holds; 0 for a new one.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, u64)> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        file.by_ref().take(64).read_to_end(&mut bytes)?;
        // A file system that lost power may know the length of a file and none of its bytes.
        let sequence = if bytes.iter().all(|byte| *byte == 0) {
            0
        } else {
            unseal(&bytes).and_then(|value| Fields(value).u64()).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "the mark of the last sync is damaged")
            })?
        };
        Ok((Self { file }, sequence))
    }

    /// Everything up to `sequence` is on stable storage.
    pub(crate) fn advance(&self, sequence: u64) -> io::Result<()> {
        self.file.write_all_at(&seal(sequence.to_le_bytes().to_vec()), 0)
    }
}
