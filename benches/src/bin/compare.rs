//! The same workloads in turns against Levee and nats-server, on this machine, as a Markdown table.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use levee_benches::report::{HEAD, Row};
use levee_benches::servers::{Binaries, Servers, Side};
use levee_benches::workloads;

/// Compares Levee with nats-server. Servers are started fresh for every run and alternate.
#[derive(Debug, Parser)]
struct Options {
    /// The levee binary. Default: beside this program.
    #[arg(long)]
    levee: Option<PathBuf>,
    /// The nats-server binary. Default: the environment's LEVEE_NATS_SERVER, then the PATH.
    #[arg(long)]
    nats_server: Option<PathBuf>,
    /// Runs of each side; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A fifth of the messages.
    #[arg(long)]
    quick: bool,
    /// Only workloads whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Where the servers keep their data while they run. Should be on the disk that is to be measured.
    #[arg(long, default_value = ".")]
    scratch: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("levee"));
    let binaries = Binaries {
        levee: options.levee.or_else(beside).context("--levee is needed")?,
        nats: options
            .nats_server
            .or_else(|| std::env::var_os("LEVEE_NATS_SERVER").map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from("nats-server")),
    };
    let wanted = |name: &str| options.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    println!("{HEAD}");
    for workload in workloads::all(options.quick).into_iter().filter(|workload| wanted(&workload.name)) {
        let mut row = Row { workload, ours: Vec::new(), theirs: Vec::new() };
        for run in 1..=options.runs {
            for side in [Side::Levee, row.workload.against] {
                eprint!("\r\x1b[K{}: run {run} of {}, {}", row.workload.name, options.runs, side.name());
                let servers = Servers::start(&binaries, side, row.workload.nodes, &options.scratch)?;
                let outcome = workloads::run(&row.workload, &servers)
                    .with_context(|| format!("{} on {}", row.workload.name, side.name()))?;
                if side == Side::Levee { row.ours.push(outcome) } else { row.theirs.push(outcome) }
            }
        }
        eprint!("\r\x1b[K");
        println!("{}", row.line());
    }
    Ok(())
}
