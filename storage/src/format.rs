//! The identity of a store directory: who holds it, and which release wrote it.
//!
//! ```text
//! <dir>/LEVEE    locked while in use; says by whom
//! <dir>/synced   how far the disk was synced (mark.rs)
//! <dir>/db/      RocksDB
//! <dir>/values/  segments of the value log (values/segment.rs)
//! ```

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use bytes::Bytes;

use crate::engine::{Durability, Engine, WriteSet};
use crate::error::Error;
use crate::keys::Table;
use crate::rocks::LOCK_PATIENCE;
use crate::sealed::{Fields, seal, unseal};
use crate::space::now;

/// Version 1: the first.
pub(crate) const FORMAT_VERSION: u32 = 1;

const FORMAT_KEY: &[u8] = b"\0format";

/// Holds a directory. The lock belongs to the process and goes with it, however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(crate) fn acquire(dir: &Path) -> Result<Self, Error> {
        let broken =
            |error: std::io::Error| Error::Open { dir: dir.to_path_buf(), reason: error.to_string() };
        std::fs::create_dir_all(dir).map_err(broken)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("LEVEE"))
            .map_err(broken)?;
        let started = now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A process that was just killed may not be gone yet.
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PATIENCE / 10);
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = Read::by_ref(&mut file).take(200).read_to_string(&mut holder);
                    let holder = if holder.trim().is_empty() { "another process".into() } else { holder };
                    return Err(Error::InUse { dir: dir.to_path_buf(), holder: holder.trim().to_owned() });
                }
                Err(TryLockError::Error(error)) => return Err(broken(error)),
            }
        }
        // For whoever meets the lock; nothing depends on it.
        let _ = file.set_len(0);
        let _ = file.rewind();
        let _ = writeln!(file, "process {}", std::process::id());
        Ok(Self { _file: file })
    }
}

/// Writes the version into a new store, refuses one from a newer release.
pub(crate) fn check_version(engine: &dyn Engine) -> Result<(), Error> {
    match engine.read(Table::Node, FORMAT_KEY)? {
        None => {
            let mut set = WriteSet::default();
            set.put(Table::Node, FORMAT_KEY.to_vec(), encode(FORMAT_VERSION));
            engine.write(set, Durability::Synced)
        }
        Some(value) => match decode(&value) {
            Some(found) if found <= FORMAT_VERSION => Ok(()),
            Some(found) => Err(Error::Format { found, known: FORMAT_VERSION }),
            None => Err(Error::damaged(
                levee_protocol::ids::GroupId(0),
                Table::Node,
                "the format version",
                "its checksum does not match",
            )),
        },
    }
}

fn encode(version: u32) -> Bytes {
    seal(version.to_le_bytes().to_vec())
}

fn decode(value: &[u8]) -> Option<u32> {
    unseal(value).and_then(|value| Fields(value).u32())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemEngine, MemoryDisk};

    #[test]
    fn a_store_of_a_newer_release_is_refused() {
        let disk = MemoryDisk::new();
        let engine = MemEngine::open(&disk);
        check_version(&engine).unwrap();
        check_version(&engine).unwrap();

        let mut set = WriteSet::default();
        set.put(Table::Node, FORMAT_KEY.to_vec(), encode(FORMAT_VERSION + 1));
        engine.write(set, Durability::Synced).unwrap();

        assert!(matches!(check_version(&engine), Err(Error::Format { found: 2, known: 1 })));
    }

    #[test]
    fn a_locked_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirectoryLock::acquire(dir.path()).unwrap();

        let refused = DirectoryLock::acquire(dir.path()).unwrap_err().to_string();

        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        DirectoryLock::acquire(dir.path()).unwrap();
    }
}
