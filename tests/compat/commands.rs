//! The `nats` command line on both servers: the same commands, the same exit codes, the same print.
//!
//! `steps/commands.txt` has one command a line. What differs between two servers and two moments is hidden: times,
//! durations, ids, ports.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use levee_tests::cluster::Cluster;
use levee_tests::place::Dir;
use levee_tests::{skip, tools};
use regex::Regex;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::pair::{Differences, Pair};

/// What is hidden, in this order.
const HIDDEN: &[(&str, &str)] = &[
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d{4}( \w+)?)?", "(time)"),
    (r"\d\d:\d\d:\d\d", "(clock)"),
    (r"\b(\d+(\.\d+)?(ns|µs|ms|s|m|h))+\b", "(duration)"),
    (r"127\.0\.0\.1:\d+", "(address)"),
    (r"Client ID: \d+", "(client)"),
    (r"\bN[A-Z2-7]{55}\b", "(server)"),
    // Who leads and who has caught up yet is chance.
    (r"\bn[123]\b\*?", "(node)"),
    (r"\b[CS]-R\d[FM]?-\w+", "(group)"),
    (r"Replica: \(node\), .*", "Replica: (node)"),
    (r"Leader: \(node\) .*", "Leader: (node)"),
    // Rulers are as wide as what is hidden; the comparison of configurations pads with two kinds of spaces.
    (r"[─━╭╮╰╯├┤┼┬┴]+", "-"),
    (r"[ \u{a0}]+", " "),
];

/// Runs all commands, each on another node than the one before.
async fn run(cluster: &Cluster, cli: &Path, dir: &Dir) -> Result<Vec<Value>> {
    let hidden: Vec<(Regex, &str)> = HIDDEN
        .iter()
        .map(|(pattern, instead)| Ok((Regex::new(pattern)?, *instead)))
        .collect::<Result<_>>()?;
    let mut printed = Vec::new();
    let nodes = cluster.nodes();
    let replicas = format!("--replicas {}", nodes.len());
    for (command, node) in commands().zip(nodes.iter().cycle()) {
        let command = command.replace("--replicas 1", &replicas);
        let output = Command::new(cli)
            .args(["--server", &node.url(), "--timeout", "10s"])
            .args(command.split_whitespace())
            .current_dir(dir.path())
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("nats {command}"))?;
        let said = [output.stdout, output.stderr].concat();
        let mut said = String::from_utf8_lossy(&said).replace(&*dir.path().to_string_lossy(), "(here)");
        for (pattern, instead) in &hidden {
            said = pattern.replace_all(&said, *instead).into_owned();
        }
        let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
        printed.push(json!({ "exit": output.status.code(), "lines": lines }));
    }
    Ok(printed)
}

fn commands() -> impl Iterator<Item = &'static str> {
    include_str!("steps/commands.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[tokio::test]
async fn the_command_line_prints_what_it_prints_with_nats_server() -> Result<()> {
    compare("the_command_line_prints_what_it_prints_with_nats_server", 1).await
}

#[tokio::test]
async fn the_command_line_prints_what_it_prints_with_three_of_nats_server() -> Result<()> {
    compare("the_command_line_prints_what_it_prints_with_three_of_nats_server", 3).await
}

async fn compare(test: &str, nodes: usize) -> Result<()> {
    let Some(cli) = tools::nats_cli() else { return skip::missing(test, "there is no `nats`") };
    let Some(pair) = Pair::of(test, nodes).await? else { return Ok(()) };
    let dirs = [Dir::new("commands")?, Dir::new("commands")?];
    for dir in &dirs {
        std::fs::write(dir.path().join("file"), b"0123456789".repeat(30_000)).context("a file to put")?;
    }

    let (expected, printed) =
        tokio::join!(run(&pair.reference, &cli, &dirs[0]), run(&pair.subject, &cli, &dirs[1]));
    let (expected, printed) = (expected?, printed?);

    let mut differences = Differences::default();
    for ((command, expected), printed) in commands().zip(&expected).zip(&printed) {
        differences.compare(command, expected, printed);
    }
    let succeeded = expected.iter().filter(|printed| printed["exit"] == 0).count();
    println!("{} commands, {succeeded} of them succeed", expected.len());
    ensure!(succeeded > expected.len() / 2, "only {succeeded} commands succeed with nats-server");
    differences.demand_none()
}
