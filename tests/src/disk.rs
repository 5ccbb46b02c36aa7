//! Disks that misbehave: a small one that fills up, and files whose bytes change.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::place::Dir;

/// A small file system of its own.
#[derive(Debug)]
pub struct SmallDisk {
    dir: Dir,
}

impl SmallDisk {
    /// Mounts one of that many MiB. Nothing where that can not be had, with the reason.
    ///
    /// # Errors
    /// The reason.
    pub fn mount(mebibytes: usize) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root may mount a file system");
        let dir = Dir::new("disk")?;
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "levee-tests"])
            .arg(dir.path())
            .output()
            .context("mount")?;
        ensure!(done.status.success(), "mount: {}", String::from_utf8_lossy(&done.stderr));
        Ok(Self { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes what is left of it, but for `left` bytes. The file given gives it back when removed.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn fill(&self, left: u64) -> Result<PathBuf> {
        let path = self.dir.path().join("filler");
        let file = File::create(&path).context("filler")?;
        let stat = rustix::fs::statvfs(self.dir.path()).context("statvfs")?;
        let free = stat.f_bavail * stat.f_frsize;
        let length = free.saturating_sub(left);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).context("fill")?;
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that was just killed may still hold files.
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// All files below a directory, largest first, with their lengths.
///
/// # Errors
/// When a directory can not be read.
pub fn files(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                found.push((entry.path(), meta.len()));
            }
        }
    }
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(found)
}

/// Changes one bit of the byte at `offset`.
///
/// # Errors
/// When the file can not be written.
pub fn flip(path: &Path, offset: u64, bit: u32) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], offset)?;
    Ok(())
}

/// Cuts the last `bytes` off a file.
///
/// # Errors
/// When the file can not be written.
pub fn truncate(path: &Path, bytes: u64) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(bytes))?;
    Ok(())
}
