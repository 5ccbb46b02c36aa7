//! Directories of the tests, below one that all runs on this machine share.
//!
//! A process may end without cleaning up (a panic in a test, a kill, shared clusters that live until the end), so
//! each holds a lock on its own directory and removes those of processes that are gone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

/// Set to keep the directories of this run, for reading stores and logs afterwards.
const KEEP: &str = "LEVEE_TESTS_KEEP";

/// A directory of one test. Removed on drop, unless the test is panicking or the run is told to keep them.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Makes a new, empty directory.
    ///
    /// # Errors
    /// When it can not be made.
    pub fn new(hint: &str) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = own()?.join(format!("{number}-{hint}"));
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::env::var_os(KEEP).is_none() {
            // What is left is removed by the next run.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The directory that all runs share: locks of turns and ports.
///
/// # Errors
/// When it can not be made.
pub fn common() -> Result<PathBuf> {
    let path = std::env::temp_dir().join("levee-tests");
    std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

/// The directory of this process, made when first asked for.
fn own() -> Result<PathBuf> {
    static OWN: OnceLock<(PathBuf, File)> = OnceLock::new();
    if let Some((path, _)) = OWN.get() {
        return Ok(path.clone());
    }
    let runs = common()?.join("runs");
    std::fs::create_dir_all(&runs).with_context(|| format!("make {}", runs.display()))?;
    // Making, locking and sweeping under one lock, so that no run is swept between its making and its locking.
    let sweep = File::create(runs.join("sweep.lock")).context("sweep lock")?;
    sweep.lock().context("sweep lock")?;
    if let Some((path, _)) = OWN.get() {
        return Ok(path.clone());
    }
    remove_abandoned(&runs);
    let path = runs.join(std::process::id().to_string());
    std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    let lock = File::create(path.join("lock")).context("run lock")?;
    lock.lock().context("run lock")?;
    let (path, _) = OWN.get_or_init(|| (path, lock));
    Ok(path.clone())
}

fn remove_abandoned(runs: &Path) {
    let Ok(entries) = std::fs::read_dir(runs) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        let abandoned = File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if abandoned && std::env::var_os(KEEP).is_none() {
            unmount_below(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// File systems that an abandoned run left mounted.
fn unmount_below(path: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The last one mounted first: one may be the disk of another.
    for point in
        points.filter(|point| Path::new(point).starts_with(path)).collect::<Vec<_>>().into_iter().rev()
    {
        let _ = std::process::Command::new("umount").arg("-l").arg(point).output();
    }
}
