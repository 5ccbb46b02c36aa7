//! What synced writes cost on a disk without any server: an ack that waits for one can not come faster.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::OFlags;

const SMALL_BYTES: usize = 4 << 10;
const SMALL_WRITES: usize = 300;
const LARGE_BYTES: usize = 1 << 20;
const LARGE_WRITES: usize = 128;

/// The median time of a small synced write over what was there, and the rate of large ones to a file that grows, both one
/// after the other, in a line.
pub fn synced_writes(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("disk.probe");
    let measured = measure(&path).with_context(|| format!("can not write {}", path.display()));
    // Also when writing failed half way.
    let removed = std::fs::remove_file(&path);
    let (small, large) = measured?;
    removed.with_context(|| format!("can not remove {}", path.display()))?;
    Ok(format!(
        "a synced write of 4 KiB takes {} us (median), synced writes of 1 MiB come to {large:.0} MiB/s",
        small.as_micros()
    ))
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

    let flags = i32::try_from(OFlags::DSYNC.bits()).unwrap_or(0);
    let file = OpenOptions::new().write(true).truncate(true).custom_flags(flags).open(path)?;
    let (value, begun) = (vec![3; LARGE_BYTES], Instant::now());
    for at in 0..LARGE_WRITES {
        file.write_all_at(&value, (at * LARGE_BYTES) as u64)?;
    }
    let mib = (LARGE_WRITES * LARGE_BYTES) as f64 / f64::from(1 << 20);
    Ok((times[SMALL_WRITES / 2], mib / begun.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_nothing_is_left_on_it() {
        let dir = tempfile::tempdir().expect("a directory");

        let text = synced_writes(dir.path()).expect("writable");

        assert!(text.contains(" us ") && !text.contains(" 0 MiB/s"), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
        assert!(synced_writes(&dir.path().join("missing")).is_err());
    }
}
