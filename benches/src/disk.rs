//! What synced writes cost on a disk without any server: an ack that waits for one can not come faster. And how long the
//! machine stands still while its CPUs and its disk are busy, which virtual machines do: no latency is shorter than that.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::OFlags;

const SMALL_BYTES: usize = 4 << 10;
const SMALL_WRITES: usize = 300;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_WRITES: usize = 128;

/// Shorter ones may be the scheduler's.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The median time of a small synced write over what was there, and the rate of large ones to a file that grows, both one
/// after the other and with nothing else to do, in a line.
pub fn synced_writes(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("disk.probe");
    let measured = measure(&path).with_context(|| format!("can not write {}", path.display()));
    // Also when writing failed half way.
    let removed = std::fs::remove_file(&path);
    let (small, large) = measured?;
    removed.with_context(|| format!("can not remove {}", path.display()))?;
    Ok(format!("{} us, {large:.0} MiB/s", small.as_micros()))
}

/// How often, and for how long at most, no CPU did anything while all had work and large synced writes were made, in a
/// line.
pub fn pauses(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("pauses.probe");
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    let (written, pauses) = std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spinning: Vec<_> = (0..cpus).map(|_| scope.spawn(|| spin(&done))).collect();
        let written = write_large(&path);
        done.store(true, Ordering::Release);
        // A pause of the machine is one that every CPU had.
        let pauses: Vec<Vec<Duration>> =
            spinning.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        (written, pauses.into_iter().min_by_key(Vec::len).unwrap_or_default())
    });
    let seconds = begun.elapsed().as_secs_f64();
    let removed = std::fs::remove_file(&path);
    written.with_context(|| format!("can not write {}", path.display()))?;
    removed.with_context(|| format!("can not remove {}", path.display()))?;
    Ok(match pauses.iter().max() {
        None => "none".to_owned(),
        Some(longest) => {
            format!("{:.1} a second, {} ms at most", pauses.len() as f64 / seconds, longest.as_millis())
        }
    })
}

/// Pauses that a thread notices that never waits.
fn spin(done: &AtomicBool) -> Vec<Duration> {
    let mut pauses = Vec::new();
    let mut last = Instant::now();
    while !done.load(Ordering::Acquire) {
        let now = Instant::now();
        if now - last >= PAUSE_MIN {
            pauses.push(now - last);
        }
        last = now;
    }
    pauses
}

fn measure(path: &Path) -> std::io::Result<(Duration, f64)> {
    let file = File::create(path)?;
    file.write_all_at(&vec![1; SMALL_BYTES * SMALL_WRITES], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(SMALL_WRITES);
    for at in 0..SMALL_WRITES {
        let begun = Instant::now();
        file.write_all_at(&[2; SMALL_BYTES], (at * SMALL_BYTES) as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();

    let begun = Instant::now();
    write_large(path)?;
    let mib = (LARGE_WRITES * LARGE_BYTES) as f64 / f64::from(1 << 20);
    Ok((times[SMALL_WRITES / 2], mib / begun.elapsed().as_secs_f64()))
}

fn write_large(path: &Path) -> std::io::Result<()> {
    let flags = i32::try_from(OFlags::DSYNC.bits()).unwrap_or(0);
    let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)?;
    let value = vec![3; LARGE_BYTES];
    (0..LARGE_WRITES).try_for_each(|at| file.write_all_at(&value, (at * LARGE_BYTES) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_nothing_is_left_on_it() {
        let dir = tempfile::tempdir().expect("a directory");

        let text = synced_writes(dir.path()).expect("writable");

        assert!(text.contains(" us, ") && !text.contains(" 0 MiB/s"), "{text}");
        assert!(!pauses(dir.path()).expect("writable").is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
        assert!(synced_writes(&dir.path().join("missing")).is_err());
    }
}
