//! The page of results: a text without figures, filled with what was measured.

use std::fmt::Write as _;

use crate::report::Measured;
use crate::report::chart::Chart;
use crate::report::table::{LATENCY, OTHER, SPENDING, THROUGHPUT};
use crate::results::Results;
use crate::rows::{Group, Row};
use crate::sweeps;

const TEMPLATE: &str = include_str!("page.template");

/// The page.
#[must_use]
pub fn text(rows: &[Row], results: &Results) -> String {
    let measured = in_tables(rows, results);
    let mut page = TEMPLATE.to_owned();
    for (place, text) in [
        ("{{setting}}", setting(results)),
        ("{{summary}}", summary(&measured)),
        ("{{throughput}}", THROUGHPUT.text(&measured)),
        ("{{latency}}", LATENCY.text(&measured)),
        ("{{spending}}", SPENDING.text(&measured)),
        ("{{other}}", OTHER.text(&measured)),
        ("{{charts}}", charts(results)),
        ("{{missed}}", missed(&measured)),
        ("{{failures}}", failures(results)),
    ] {
        page = page.replace(place, text.trim_end());
    }
    page
}

/// The rows that tables show, those that were measured.
#[must_use]
pub fn in_tables<'a>(rows: &'a [Row], results: &'a Results) -> Vec<Measured<'a>> {
    let rows = rows.iter().filter(|row| row.group != Group::Sweep);
    rows.filter_map(|row| Measured::of(row, results)).collect()
}

fn charts(results: &Results) -> String {
    let charts = sweeps::charts(results);
    if charts.is_empty() {
        return "No charts were measured.".to_owned();
    }
    let image = |(file, chart): &(&str, Chart)| format!("![{}](charts/{file})", chart.title);
    charts.iter().map(image).collect::<Vec<_>>().join("\n\n")
}

fn setting(results: &Results) -> String {
    let mut text = String::new();
    let different = |of: fn(&crate::results::Setting) -> &str| {
        let mut values: Vec<&str> = Vec::new();
        for setting in results.settings() {
            if !of(setting).is_empty() && !values.contains(&of(setting)) {
                values.push(of(setting));
            }
        }
        values
    };
    let _ = writeln!(text, "```\n{}\n```\n", different(|setting| &setting.command).join("\n"));
    for (name, values) in [
        ("Machine", different(|setting| &setting.machine)),
        ("Files", different(|setting| &setting.file_system)),
        ("A synced write of 4 KiB (median), and synced writes of 1 MiB", different(|setting| &setting.disk)),
        (
            "Pauses of all CPUs while they are busy and 1 MiB writes are synced",
            different(|setting| &setting.pauses),
        ),
        ("Versions", different(|setting| &setting.levee)),
        ("Against", different(|setting| &setting.nats)),
    ] {
        if !values.is_empty() {
            let _ = writeln!(text, "- {name}: {}", values.join("; "));
        }
    }
    text
}

fn summary(measured: &[Measured<'_>]) -> String {
    let verdicts: Vec<bool> =
        measured.iter().flat_map(|row| row.verdicts()).map(|verdict| verdict.met).collect();
    let met = verdicts.iter().filter(|met| **met).count();
    format!("{} rows were measured; {met} of their {} aims are met.", measured.len(), verdicts.len())
}

fn missed(measured: &[Measured<'_>]) -> String {
    let mut text = String::new();
    for row in measured {
        for verdict in row.verdicts().iter().filter(|verdict| !verdict.met) {
            let (figure, aim) = (verdict.figure.label(), &verdict.aim);
            let _ = writeln!(text, "- {}: {figure} {}, aim {aim}", row.row.name, verdict.measured);
        }
    }
    if text.is_empty() { "Every aim is met.".to_owned() } else { text }
}

fn failures(results: &Results) -> String {
    let mut text = String::new();
    for run in results.failures() {
        let why = run.failure.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
        let _ = writeln!(text, "- {}, {}: {why}", run.row, run.side.name());
    }
    if text.is_empty() { text } else { format!("## Runs that failed\n\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_no_figures_of_its_own_and_every_place_is_filled() {
        let empty = text(&[], &Results::default());

        assert!(!empty.contains("{{"), "{empty}");
        assert!(!TEMPLATE.contains("msg/s") && !TEMPLATE.contains('%'), "figures belong to the tables");
    }
}
