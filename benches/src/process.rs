//! What processes and the machine spend, from `/proc`.

use std::path::Path;

use anyhow::Context;

/// A clock tick is 1/100 s on every Linux that runs this.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds of a process so far, all threads, user and system.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server process is gone")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime.
    Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
}

/// CPU seconds that the whole machine was busy, stolen time included.
pub fn machine_busy_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|text| text.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guest time is a part of user time.
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum::<f64>();
    Ok(busy / TICKS_PER_SECOND)
}

/// Resident bytes of a process now.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    status_kib(pid, "VmRSS:").map(|kib| kib * 1024)
}

/// Resident bytes of a process at its peak.
pub fn peak_resident_bytes(pid: u32) -> anyhow::Result<u64> {
    status_kib(pid, "VmHWM:").map(|kib| kib * 1024)
}

/// Bytes a process had written to files, as the kernel counts them for block devices.
pub fn written_bytes(pid: u32) -> anyhow::Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).context("the server process is gone")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|text| text.trim().parse().ok()).context("/proc/<pid>/io has no write_bytes")
}

/// Bytes of disk that files below a directory take up.
pub fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // Servers remove files while this looks.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += disk_bytes(&entry.path())?,
            Ok(metadata) => bytes += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
    Ok(bytes)
}

/// What this machine is, in a line.
#[must_use]
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown CPU");
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let virtual_machine = if cpus.contains(" hypervisor") { ", a virtual machine" } else { "" };
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} CPUs ({model}){virtual_machine}, {} GiB of memory, Linux {}", kib >> 20, kernel.trim())
}

/// The file system of a directory and what it lies on.
#[must_use]
pub fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut best: (usize, String) = (0, "unknown".to_owned());
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [device, point, kind, ..] = fields[..]
            && dir.starts_with(point)
            && point.len() >= best.0
        {
            best = (point.len(), format!("{kind} on {device}"));
        }
    }
    best.1
}

fn status_kib(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|text| text.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("/proc/{pid}/status has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_resident_and_the_machine_has_been_busy() {
        let pid = std::process::id();

        assert!(resident_bytes(pid).expect("own status") > 0);
        assert!(
            peak_resident_bytes(pid).expect("own status") >= resident_bytes(pid).expect("own status") / 2
        );
        assert!(machine_busy_seconds().expect("/proc/stat") > 0.0);
        assert!(written_bytes(pid).is_ok());
    }

    #[test]
    fn disk_use_counts_files_in_directories_below() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("below")).expect("a directory");
        std::fs::write(dir.path().join("below/file"), vec![1; 100_000]).expect("a file");

        assert!(disk_bytes(dir.path()).expect("readable") >= 100_000);
        assert_eq!(disk_bytes(&dir.path().join("missing")).expect("not an error"), 0);
    }
}
