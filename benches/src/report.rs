//! Medians and ratios, as a Markdown table.

use crate::servers::Side;
use crate::workloads::{Outcome, Workload};

/// All runs of one workload.
pub struct Row {
    /// What ran.
    pub workload: Workload,
    /// Our runs.
    pub ours: Vec<Outcome>,
    /// Their runs.
    pub theirs: Vec<Outcome>,
}

/// The head of the table.
pub const HEAD: &str = "\
| workload | guarantee of the ack: Levee / other | Levee msg/s | other msg/s | ratio | Levee cpu-s/M | other cpu-s/M | ratio | Levee p50/p99 us | other p50/p99 us | MiB |
|---|---|---|---|---|---|---|---|---|---|---|";

impl Row {
    /// One line of the table.
    #[must_use]
    pub fn line(&self) -> String {
        let rate = |runs: &[Outcome]| median(runs.iter().map(|run| run.rate));
        let cpu = |runs: &[Outcome]| median(runs.iter().map(|run| run.cpu_per_million));
        let memory = |runs: &[Outcome]| runs.iter().map(|run| run.memory_mib).max().unwrap_or(0);
        let spread = |runs: &[Outcome]| {
            let (low, high) = runs
                .iter()
                .fold((f64::MAX, 0.0_f64), |(low, high), run| (low.min(run.rate), high.max(run.rate)));
            format!("{} ({}-{})", thousands(rate(runs)), thousands(low), thousands(high))
        };
        let latency = |runs: &[Outcome]| {
            let p50 = runs.iter().filter_map(|run| run.latency).map(|(p50, _)| p50 as f64);
            let p99 = runs.iter().filter_map(|run| run.latency).map(|(_, p99)| p99 as f64);
            if runs.iter().all(|run| run.latency.is_none()) {
                return "-".to_owned();
            }
            format!("{:.0} / {:.0}", median(p50), median(p99))
        };
        format!(
            "| {} | {} | {} | {} | **{:.2}x** | {:.2} | {:.2} | **{:.2}x** | {} | {} | {} / {} |",
            self.workload.name,
            self.guarantee(),
            spread(&self.ours),
            spread(&self.theirs),
            rate(&self.ours) / rate(&self.theirs),
            cpu(&self.ours),
            cpu(&self.theirs),
            cpu(&self.ours) / cpu(&self.theirs),
            latency(&self.ours),
            latency(&self.theirs),
            memory(&self.ours),
            memory(&self.theirs),
        )
    }

    fn guarantee(&self) -> &'static str {
        match (self.workload.shape, self.workload.nodes, self.workload.against) {
            (crate::workloads::Shape::Core { .. }, _, _) => "no ack",
            (crate::workloads::Shape::Fetch { .. }, _, _) => "reading",
            (_, _, Side::NatsSynced) => "synced / synced",
            (_, 1, _) => "synced / not synced",
            (_, _, _) => "synced on 2 of 3 / not synced",
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn thousands(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.2}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else {
        format!("{:.1}k", value / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_three_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert!(median(std::iter::empty()).is_nan());
    }
}
