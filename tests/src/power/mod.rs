//! A power cut: what a disk has when the power goes, and nothing of what lay in memory above it.
//!
//! SIGKILL does not show what survives a power cut, because the page cache does survive it. Here a server writes to an
//! ext4 on a loop device whose backing is a file of ours ([`fuse`]), so every read, write and flush that ext4 sends to its
//! disk arrives in this process, at [`device::Device`]. A cut decides in one moment what of the unflushed writes is on the
//! medium; then the processes are killed, what they saw is thrown away, and the medium is checked and mounted again as at
//! a boot: ext4 replays its journal.
//!
//! Needs root, `/dev/fuse`, loop devices, and `mkfs.ext4`.

mod device;
mod fuse;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::Rng;

use self::device::Device;
pub use self::device::{Cut, Loss};
use crate::place::Dir;

/// How long a file system may be in use after its processes were waited for.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// A file system that can lose power.
#[derive(Debug)]
pub struct Disk {
    dir: Dir,
    bytes: u64,
    /// How often it was cut. Each life has files of its own.
    life: u32,
    plug: Plug,
}

impl Disk {
    /// Makes and mounts one.
    ///
    /// # Errors
    /// When that can not be had here, with the reason.
    pub fn mount(mebibytes: u64) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root may mount a file system");
        let dir = Dir::new("power")?;
        let bytes = mebibytes << 20;
        let medium = medium(dir.path(), 0);
        File::create(&medium)?.set_len(bytes)?;
        done("mkfs.ext4", Command::new("mkfs.ext4").args(["-q", "-F", "-E", "nodiscard"]).arg(&medium))?;
        let plug = plug_in(dir.path(), 0, bytes)?;
        Ok(Self { dir, bytes, life: 0, plug })
    }

    /// Where it is, in every life.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// The power goes: what is on the medium now is what there will be. Whoever reads or writes waits until
    /// [`release`](Self::release), so that nobody goes on as if nothing had happened.
    ///
    /// # Errors
    /// When the medium can not be written.
    pub fn cut(&self, loss: Loss, chance: &mut impl Rng) -> Result<Cut> {
        let mut state = self.plug.state();
        state.is_held = true;
        state.device.cut(loss, chance).context("the medium")
    }

    /// Waits until there is something to lose, which there is for some microseconds in each sync, and no longer than
    /// `limit`.
    pub fn wait_for_unflushed(&self, limit: Duration) {
        let start = Instant::now();
        while self.plug.state().device.unflushed() == 0 && start.elapsed() < limit {
            std::thread::yield_now();
        }
    }

    /// Lets those end who wait for the disk. They were killed meanwhile.
    pub fn release(&self) {
        self.plug.release();
    }

    /// How often it was flushed since it was mounted.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.plug.state().device.flushes()
    }

    /// The power is back: checks the medium, as a boot does, and mounts it. All processes have ended.
    ///
    /// # Errors
    /// When the file system is damaged, or still in use.
    pub fn restore(&mut self) -> Result<()> {
        self.release();
        unmount(&self.path())?;
        unmount(&self.dir.path().join(self.life.to_string()))?;
        std::fs::remove_file(seen(self.dir.path(), self.life))?;
        std::fs::rename(medium(self.dir.path(), self.life), medium(self.dir.path(), self.life + 1))?;
        self.life += 1;
        self.plug = plug_in(self.dir.path(), self.life, self.bytes)?;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.release();
        for path in [self.path(), self.dir.path().join(self.life.to_string())] {
            // Lazily: a test that failed may not have ended everything.
            let _ = Command::new("umount").arg("-l").arg(path).output();
        }
    }
}

/// What the kernel's end and the test share.
#[derive(Clone, Debug)]
struct Plug(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    device: Device,
    is_held: bool,
}

impl Plug {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) {
        self.state().is_held = false;
        self.0.1.notify_all();
    }

    /// The device, as soon as it is not held.
    fn device<T>(&self, work: impl FnOnce(&mut Device) -> T) -> T {
        let mut state = self.state();
        while state.is_held {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        work(&mut state.device)
    }
}

impl fuse::Backing for Plug {
    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.device(|device| device.read(offset, bytes))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.device(|device| device.write(offset, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device(Device::flush)
    }
}

fn medium(dir: &Path, life: u32) -> PathBuf {
    dir.join(format!("medium-{life}"))
}

fn seen(dir: &Path, life: u32) -> PathBuf {
    dir.join(format!("seen-{life}"))
}

/// Begins a life: the medium as a disk, checked and mounted.
fn plug_in(dir: &Path, life: u32, bytes: u64) -> Result<Plug> {
    let (medium, seen) = (medium(dir, life), seen(dir, life));
    done("cp", Command::new("cp").arg("--sparse=always").arg(&medium).arg(&seen))?;
    let device = Device::new(&seen, &medium).context("the medium")?;
    let plug = Plug(Arc::new((Mutex::new(State { device, is_held: false }), Condvar::new())));
    let (served, mounted) = (dir.join(life.to_string()), dir.join("mounted"));
    std::fs::create_dir_all(&served)?;
    std::fs::create_dir_all(&mounted)?;
    fuse::mount(&served, bytes, plug.clone()).context("mount of /dev/fuse")?;
    let begun = begin(&served, &mounted);
    if begun.is_err() {
        let _ = Command::new("umount").arg("-l").arg(&served).output();
    }
    begun?;
    Ok(plug)
}

fn begin(served: &Path, mounted: &Path) -> Result<()> {
    let mut attach = Command::new("losetup");
    attach.args(["--find", "--show", "--sector-size", "512"]).arg(served.join(fuse::FILE));
    let attached = done("losetup", &mut attach)?;
    let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
    let begun = check(&device).and_then(|()| {
        done("mount", Command::new("mount").args(["-t", "ext4", &device]).arg(mounted)).map(drop)
    });
    // Goes when the file system is unmounted, however this process ends; at once if it was not mounted.
    done("losetup", Command::new("losetup").args(["--detach", &device]))?;
    begun
}

/// What a boot does before it mounts.
fn check(device: &str) -> Result<()> {
    let check = Command::new("e2fsck").args(["-p", device]).output().context("e2fsck")?;
    // Nothing to do, or done.
    ensure!(
        matches!(check.status.code(), Some(0 | 1)),
        "e2fsck: {} {}",
        String::from_utf8_lossy(&check.stdout),
        String::from_utf8_lossy(&check.stderr)
    );
    Ok(())
}

fn unmount(path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        let unmounted = Command::new("umount").arg(path).output().context("umount")?;
        if unmounted.status.success() {
            return Ok(());
        }
        if start.elapsed() > UNMOUNT_PATIENCE {
            bail!("umount: {}", String::from_utf8_lossy(&unmounted.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn done(what: &str, command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| what.to_owned())?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output)
}
