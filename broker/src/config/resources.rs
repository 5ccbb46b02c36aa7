//! What the machine has, for limits that default to a share of it.

use std::path::Path;

/// Memory of this machine, bytes; less if a control group grants less. 0 if the system does not say.
#[must_use]
pub fn memory_total() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = machine.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let granted = std::fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default();
    let granted = granted.trim().parse::<u64>().unwrap_or(u64::MAX);
    machine.map_or(0, |machine| machine.min(granted))
}

/// Bytes free for this process on the disk that holds this path or, before it exists, its nearest parent. 0 if the
/// system does not say.
#[must_use]
pub fn disk_free(path: &Path) -> u64 {
    let existing = path.ancestors().find(|path| path.exists());
    let existing = existing.filter(|path| !path.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    rustix::fs::statvfs(existing).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory_and_a_disk_even_for_a_path_to_come() {
        assert!(memory_total() > 0);
        assert!(disk_free(Path::new("a/directory/that/is/not/there")) > 0);
    }
}
