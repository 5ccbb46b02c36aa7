//! Tables in Markdown. Figures of both sides stand side by side, ours first.

use crate::figures::Figure;
use crate::report::{Measured, number};

/// One kind of table.
pub struct Table {
    /// Names of the columns.
    pub head: &'static str,
    /// A row's line, or lines, if it has such figures.
    pub line: fn(&Measured<'_>) -> Option<String>,
}

/// Throughput and CPU, with what was aimed at.
pub const THROUGHPUT: Table = Table {
    head: "\
| workload | ack means: Levee / nats-server | Levee msg/s | nats-server msg/s | ratio (aim) | Levee CPU s/M | nats-server CPU s/M | ratio (aim) | aims met |
|---|---|---|---|---|---|---|---|---|",
    line: throughput,
};

/// Latency at a rate that both are offered.
pub const LATENCY: Table = Table {
    head: "\
| workload | offered msg/s | Levee p50 / p99 / p99.9 us | nats-server p50 / p99 / p99.9 us |
|---|---|---|---|",
    line: latency,
};

/// Memory, bytes written, and what else happened.
pub const SPENDING: Table = Table {
    head: "\
| workload | peak memory MiB, Levee / nats-server | bytes written per payload byte | CPU s/M with afterwork | load client's CPU s/M | CPU used by others, at most |
|---|---|---|---|---|---|",
    line: spending,
};

/// Figures that few rows have.
pub const OTHER: Table = Table {
    head: "\
| workload | figure | Levee | nats-server | aim | met |
|---|---|---|---|---|---|",
    line: other,
};

impl Table {
    /// The whole table; empty if no row has a line.
    #[must_use]
    pub fn text(&self, rows: &[Measured<'_>]) -> String {
        let lines: Vec<String> = rows.iter().filter_map(self.line).collect();
        if lines.is_empty() { String::new() } else { format!("{}\n{}\n", self.head, lines.join("\n")) }
    }
}

fn throughput(measured: &Measured<'_>) -> Option<String> {
    let verdicts = measured.verdicts();
    let ratio = |figure: Figure| {
        let ratio = measured.ratio(figure).map_or_else(|| "-".to_owned(), |ratio| format!("**{ratio:.2}x**"));
        match verdicts.iter().find(|verdict| verdict.figure == figure) {
            Some(verdict) if verdict.aim.ends_with('x') => format!("{ratio} ({})", verdict.aim),
            Some(verdict) => format!("{ratio} ({}: {})", verdict.aim, verdict.measured),
            None => ratio,
        }
    };
    let met = match (verdicts.is_empty(), verdicts.iter().all(|verdict| verdict.met)) {
        (true, _) => "-",
        (_, true) => "yes",
        (_, false) => "**no**",
    };
    Some(format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {met} |",
        measured.row.name,
        measured.row.guarantee(),
        measured.ours(Figure::Rate)?.text(),
        measured.theirs(Figure::Rate)?.text(),
        ratio(Figure::Rate),
        measured.ours(Figure::CpuPerMillion)?.text(),
        measured.theirs(Figure::CpuPerMillion)?.text(),
        ratio(Figure::CpuPerMillion),
    ))
}

fn latency(measured: &Measured<'_>) -> Option<String> {
    let side = |of: &dyn Fn(Figure) -> Option<f64>| {
        let percentiles = [Figure::LatencyP50Us, Figure::LatencyP99Us, Figure::LatencyP999Us];
        let values: Option<Vec<String>> = percentiles.iter().map(|figure| of(*figure).map(number)).collect();
        let (offered, kept) = (of(Figure::Offered)?, of(Figure::Kept)?);
        let behind = if kept < 0.9 * offered {
            format!(" (fell behind: {} msg/s)", number(kept))
        } else {
            String::new()
        };
        Some(format!("{}{behind}", values?.join(" / ")))
    };
    Some(format!(
        "| {} | {} | {} | {} |",
        measured.row.name,
        number(measured.ours(Figure::Offered)?.median),
        side(&|figure| Some(measured.ours(figure)?.median))?,
        side(&|figure| Some(measured.theirs(figure)?.median))?,
    ))
}

fn spending(measured: &Measured<'_>) -> Option<String> {
    let both = |figure: Figure| match (measured.ours(figure), measured.theirs(figure)) {
        (Some(ours), Some(theirs)) => format!("{} / {}", number(ours.median), number(theirs.median)),
        _ => "-".to_owned(),
    };
    measured.ours(Figure::PeakMemoryMib)?;
    let others = [measured.ours(Figure::OthersShare), measured.theirs(Figure::OthersShare)];
    let others = others.iter().flatten().map(|spread| spread.high).reduce(f64::max);
    Some(format!(
        "| {} | {} | {} | {} | {} | {} |",
        measured.row.name,
        both(Figure::PeakMemoryMib),
        both(Figure::WrittenPerPayloadByte),
        both(Figure::CpuPerMillionSettled),
        both(Figure::ClientCpuPerMillion),
        others.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
    ))
}

fn other(measured: &Measured<'_>) -> Option<String> {
    let verdicts = measured.verdicts();
    let line = |figure: &Figure| {
        let verdict = verdicts.iter().find(|verdict| verdict.figure == *figure);
        let met = verdict.map_or("-", |verdict| if verdict.met { "yes" } else { "**no**" });
        Some(format!(
            "| {} | {} | {} | {} | {} | {met} |",
            measured.row.name,
            figure.label(),
            measured.ours(*figure)?.text(),
            measured.theirs(*figure)?.text(),
            verdict.map_or("-", |verdict| &verdict.aim),
        ))
    };
    let lines: Vec<String> = Figure::OF_FEW_ROWS.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}
