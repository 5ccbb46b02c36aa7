//! Rows for the charts: the same load at several message sizes, and with several numbers of clients.

use crate::figures::Figure;
use crate::load::Load;
use crate::messages::{Header, Subjects};
use crate::report::Measured;
use crate::report::chart::{Chart, Line};
use crate::results::Results;
use crate::rows::{Group, Row};
use crate::servers::Side;

const SIZES: [(usize, &str); 6] =
    [(16, "16 B"), (128, "128 B"), (1024, "1 KiB"), (4096, "4 KiB"), (16384, "16 KiB"), (65536, "64 KiB")];

const CLIENTS: [u64; 7] = [1, 2, 5, 10, 20, 50, 100];

/// Messages a second while latency is taken, by size.
const OFFERED_BY_SIZE: u64 = 200;

/// The same for each client.
const OFFERED_PER_CLIENT: u64 = 20;

/// Payload of a run by size, so that runs take alike long.
const BYTES: u64 = 256 << 20;

const OURS: &str = "#0969da";
const THEIRS: &str = "#bc4c00";

/// What is varied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sweep {
    /// Message size: one publisher with a window.
    Size,
    /// Publishers, each waiting for every acknowledgement.
    Clients,
}

/// The rows of the charts.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for nodes in [1, 3] {
        rows.extend(SIZES.into_iter().map(|size| by_size(nodes, size)));
        rows.extend(CLIENTS.into_iter().map(|clients| by_clients(nodes, clients)));
    }
    rows
}

/// The charts of what was measured, with their file names.
#[must_use]
pub fn charts(results: &Results) -> Vec<(&'static str, Chart)> {
    let charts = [
        ("throughput-by-size.svg", Sweep::Size, Figure::Rate),
        ("latency-by-size.svg", Sweep::Size, Figure::LatencyP99Us),
        ("throughput-by-clients.svg", Sweep::Clients, Figure::Rate),
        ("latency-by-clients.svg", Sweep::Clients, Figure::LatencyP99Us),
    ];
    let charts = charts.into_iter().map(|(file, sweep, figure)| (file, chart(results, sweep, figure)));
    charts.filter(|(_, chart)| chart.lines.iter().any(|line| line.points.len() > 1)).collect()
}

fn by_size(nodes: usize, (payload_bytes, size): (usize, &str)) -> Row {
    let load = Load::Publish { window: 4000, header: Header::None, subjects: Subjects::One };
    Row {
        group: Group::Sweep,
        payload_bytes,
        messages: (BYTES / payload_bytes as u64 / nodes as u64).min(500_000),
        offered: OFFERED_BY_SIZE,
        ..Row::new(format!("chart by size: R{nodes} file, window 4000, {size}"), nodes, load)
    }
}

fn by_clients(nodes: usize, clients: u64) -> Row {
    let load = Load::OneAtATime { publishers: clients };
    Row {
        group: Group::Sweep,
        messages: (5000 * clients / nodes as u64).min(50_000),
        offered: OFFERED_PER_CLIENT * clients,
        ..Row::new(format!("chart by clients: R{nodes} file, {clients} one at a time, 128 B"), nodes, load)
    }
}

fn chart(results: &Results, sweep: Sweep, figure: Figure) -> Chart {
    let (what, x_label, ticks) = match sweep {
        Sweep::Size => (
            "one publisher with a window of 4000",
            "message size",
            SIZES.iter().map(|(bytes, name)| (*bytes as f64, (*name).to_owned())).collect(),
        ),
        Sweep::Clients => (
            "publishers that wait for each ack, 128 B",
            "publishers",
            CLIENTS.iter().map(|clients| (*clients as f64, clients.to_string())).collect(),
        ),
    };
    let (name, y_label) = match (figure, sweep) {
        (Figure::Rate, _) => ("Throughput", "messages a second".to_owned()),
        (_, Sweep::Size) => ("Latency", format!("p99, us, at {OFFERED_BY_SIZE} messages a second")),
        (_, Sweep::Clients) => {
            ("Latency", format!("p99, us, at {OFFERED_PER_CLIENT} messages a second each"))
        }
    };
    let mut lines = Vec::new();
    for nodes in [1, 3] {
        let points: Vec<_> = match sweep {
            Sweep::Size => SIZES.iter().map(|size| (size.0 as f64, by_size(nodes, *size))).collect(),
            Sweep::Clients => {
                CLIENTS.iter().map(|count| (*count as f64, by_clients(nodes, *count))).collect()
            }
        };
        for (side, color) in [(Side::Levee, OURS), (Side::Nats, THEIRS)] {
            let spread = |row: &Row| {
                let measured = Measured::of(row, results)?;
                if side == Side::Levee { measured.ours(figure) } else { measured.theirs(figure) }
            };
            let points = points.iter().filter_map(|(x, row)| Some((*x, spread(row)?))).collect();
            let name = format!("{}, R{nodes}", side.name());
            lines.push(Line { name, color, dashed: nodes > 1, points });
        }
    }
    Chart { title: format!("{name}: {what}"), x_label: x_label.to_owned(), y_label, ticks, lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Outcome;
    use crate::results::Run;

    #[test]
    fn charts_are_drawn_of_what_was_measured_only() {
        let mut results = Results::default();
        for (row, rate) in rows().iter().filter(|row| row.name.contains("by size")).zip(1..) {
            for side in [Side::Levee, Side::Nats] {
                let mut outcome = Outcome::default();
                outcome.set(Figure::Rate, f64::from(rate));
                let run = Run { row: row.name.clone(), side, outcome, failure: None };
                results.add_run(run).expect("there is no file");
            }
        }

        let charts = charts(&results);

        let files: Vec<&str> = charts.iter().map(|(file, _)| *file).collect();
        assert_eq!(files, ["throughput-by-size.svg"]);
        assert_eq!(charts[0].1.lines.len(), 4);
        assert!(charts[0].1.lines.iter().all(|line| line.points.len() == SIZES.len()));
    }
}
