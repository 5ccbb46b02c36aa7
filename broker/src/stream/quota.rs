//! `max_file` and `max_mem`: what all streams of this node together may hold. Looked at a few times a second and not per
//! message, so a node can go over by what arrives in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use levee_protocol::api::{ApiError, StorageType};

use crate::jetstream::JetStream;

const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The bounds, and whether they are reached.
#[derive(Debug)]
pub struct Quota {
    /// Bytes of streams on disk. `None`: as much as the disk holds, which the store watches itself.
    file_max: Option<u64>,
    /// Bytes of streams in memory.
    memory_max: Option<u64>,
    file_reached: AtomicBool,
    memory_reached: AtomicBool,
}

impl Quota {
    /// Bounds in bytes.
    #[must_use]
    pub fn new(file_max: Option<u64>, memory_max: Option<u64>) -> Self {
        Self {
            file_max,
            memory_max,
            file_reached: AtomicBool::new(false),
            memory_reached: AtomicBool::new(false),
        }
    }

    /// Whether streams of this kind hold as much as they may: their leaders on this node refuse publishes.
    #[must_use]
    pub fn is_reached(&self, storage: StorageType) -> bool {
        let reached = match storage {
            StorageType::File => &self.file_reached,
            StorageType::Memory => &self.memory_reached,
        };
        reached.load(Ordering::Relaxed)
    }

    /// Whether streams of this kind may be given so many bytes in all.
    pub fn check_reserved(&self, storage: StorageType, reserved: u64) -> Result<(), ApiError> {
        let max = match storage {
            StorageType::File => self.file_max,
            StorageType::Memory => self.memory_max,
        };
        if max.is_some_and(|max| reserved > max) { Err(Self::exceeded(storage)) } else { Ok(()) }
    }

    /// What is said when a bound is reached.
    #[must_use]
    pub fn exceeded(storage: StorageType) -> ApiError {
        match storage {
            StorageType::File => ApiError::storage_exceeded(),
            StorageType::Memory => ApiError::memory_exceeded(),
        }
    }

    fn look(&self, file: u64, memory: u64) {
        for (what, used, max, reached) in [
            ("max_file", file, self.file_max, &self.file_reached),
            ("max_mem", memory, self.memory_max, &self.memory_reached),
        ] {
            let is_reached = max.is_some_and(|max| used >= max);
            if reached.swap(is_reached, Ordering::Relaxed) == is_reached {
                continue;
            }
            if is_reached {
                tracing::warn!(
                    "streams hold {used} bytes and reach {what}: publishes are refused until some are removed or the \
                     limit is raised"
                );
            } else {
                tracing::info!("streams hold {used} bytes and are below {what} again");
            }
        }
    }
}

/// Looks for as long as the node runs.
pub async fn watch(jetstream: Arc<JetStream>) {
    loop {
        let (mut file, mut memory) = (0, 0);
        for replica in jetstream.replicas() {
            let bytes = replica.read(|machine, _| machine.state().bytes);
            match replica.assignment().config.storage {
                StorageType::File => file += bytes,
                StorageType::Memory => memory += bytes,
            }
        }
        jetstream.quota().look(file, memory);
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_is_reached_refuses_its_kind_of_stream_until_there_is_room_again() {
        let quota = Quota::new(Some(100), None);

        assert!(quota.check_reserved(StorageType::File, 100).is_ok());
        assert_eq!(quota.check_reserved(StorageType::File, 101).map_err(|error| error.err_code), Err(10047));
        assert!(quota.check_reserved(StorageType::Memory, u64::MAX).is_ok());
        quota.look(99, u64::MAX);
        assert!(!quota.is_reached(StorageType::File) && !quota.is_reached(StorageType::Memory));
        quota.look(100, 0);
        assert!(quota.is_reached(StorageType::File) && !quota.is_reached(StorageType::Memory));
        quota.look(50, 0);
        assert!(!quota.is_reached(StorageType::File));
    }
}
