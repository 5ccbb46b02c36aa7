//! Refuses new messages while there is still room to refuse them in.
//!
//! A write that hits the end of the disk leaves an unknown file behind and stops the storage for good. So free
//! space is looked at before anything is queued, and two reserves are kept. Below the first, blocks of messages are
//! refused; small entries (acks, purges, deletes, configuration) still go through, because they are what frees space.
//! Below a quarter of it, every append is refused. Checkpoints and deletions are never refused.
//!
//! A refusal changes nothing, and the next call looks again: publishing resumes by itself when space returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::Engine;
use crate::error::Error;

/// How old a look at the file system may be. A `statvfs` costs about a microsecond; it is asked per append.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What somebody wants to append.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// A batch of messages.
    Messages,
    /// Anything else a log carries.
    SmallEntries,
}

pub(crate) struct SpaceGate {
    reserve: u64,
    looked: Mutex<Option<Look>>,
    refusing: AtomicBool,
}

#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    free: u64,
    /// Bytes appended since, which have used up some of `free` already.
    appended: u64,
}

impl SpaceGate {
    pub(crate) fn new(reserve: u64) -> Self {
        Self { reserve, looked: Mutex::new(None), refusing: AtomicBool::new(false) }
    }

    /// Logs when refusing begins and ends, not every refusal.
    fn say(&self, admitted: bool, free: u64) {
        if self.refusing.swap(!admitted, Ordering::Relaxed) != admitted {
            return;
        }
        let reserve = self.reserve;
        if admitted {
            tracing::info!("disk has room again: {free} bytes free; publishes are taken");
        } else {
            tracing::error!(
                "disk is nearly full: {free} bytes free, {reserve} bytes are kept in reserve; publishes are refused \
                 until there is more"
            );
        }
    }

    /// `Ok` if `bytes` more may be appended.
    pub(crate) fn admit(&self, engine: &dyn Engine, room: Room, bytes: u64) -> Result<(), Error> {
        let reserve = match room {
            Room::Messages => self.reserve,
            Room::SmallEntries => self.reserve / 4,
        };
        let mut looked = self.looked.lock();
        let look = match *looked {
            Some(look) if look.at.elapsed() < LOOK_INTERVAL && look.appended < self.reserve / 4 => look,
            _ => Look { at: now(), free: engine.disk_free()?, appended: 0 },
        };
        let free = look.free.saturating_sub(look.appended);
        let admitted = free >= reserve.saturating_add(bytes);
        *looked = Some(Look { appended: look.appended + if admitted { bytes } else { 0 }, ..look });
        if room == Room::Messages {
            self.say(admitted, free);
        }
        if admitted { Ok(()) } else { Err(Error::DiskFull { free, reserve }) }
    }
}

/// Only ages of looks depend on this, never anything that is stored or replicated.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemEngine, MemoryDisk};

    #[test]
    fn messages_are_refused_before_small_entries_and_both_again_accepted_when_space_returns() {
        let disk = MemoryDisk::new();
        let engine = MemEngine::open(&disk);
        let admitted = |free, room| {
            disk.set_free(Some(free));
            SpaceGate::new(1000).admit(&engine, room, 10).is_ok()
        };

        assert!(admitted(1010, Room::Messages));
        assert!(!admitted(1009, Room::Messages));
        assert!(admitted(260, Room::SmallEntries));
        assert!(!admitted(259, Room::SmallEntries));
        assert!(admitted(1_000_000, Room::Messages));
    }

    #[test]
    fn appends_between_two_looks_count_as_used() {
        let disk = MemoryDisk::new();
        disk.set_free(Some(1250));
        let engine = MemEngine::open(&disk);
        let gate = SpaceGate::new(1000);

        assert!(gate.admit(&engine, Room::Messages, 200).is_ok());
        assert!(gate.admit(&engine, Room::Messages, 200).is_err());
    }
}
