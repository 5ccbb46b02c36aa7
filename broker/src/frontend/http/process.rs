//! What the system says about this process.

use std::sync::Mutex;
use std::sync::PoisonError;

/// Ticks per second of the times in `/proc`, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Remembers the last reading, because a share of a processor is one between two readings.
#[derive(Default)]
pub(super) struct Process {
    last: Mutex<Option<(f64, f64, f64)>>,
}

impl Process {
    /// Resident memory, bytes.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Per cent of one processor since the last call that was more than a second ago, or since the start.
    pub(super) fn cpu_percent(&self) -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may hold spaces; what follows it may not.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let used = (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND;
        let started = ticks(19)? / TICKS_PER_SECOND;
        let up = std::fs::read_to_string("/proc/uptime").ok()?;
        let up: f64 = up.split_whitespace().next()?.parse().ok()?;

        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (then_used, then_up, then_percent) = last.unwrap_or((0.0, started, 0.0));
        if up - then_up < 1.0 && last.is_some() {
            return Some(then_percent);
        }
        let percent = ((used - then_used) / (up - then_up).max(0.01) * 100.0).max(0.0);
        let percent = (percent * 100.0).round() / 100.0;
        *last = Some((used, up, percent));
        Some(percent)
    }
}
