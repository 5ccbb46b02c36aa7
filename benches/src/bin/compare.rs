//! The same load in turns against Levee and nats-server, on this machine, as tables in Markdown.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;
use levee_benches::disk;
use levee_benches::figures::{Figure, Outcome};
use levee_benches::load::{self, Effort};
use levee_benches::process;
use levee_benches::report::table::{LATENCY, OTHER, SPENDING, THROUGHPUT};
use levee_benches::report::{number, page};
use levee_benches::results::{Results, Run, Setting};
use levee_benches::rows::{self, Group, Row, Sizes};
use levee_benches::servers::{Binaries, Servers, Side};
use levee_benches::sweeps;

/// Compares Levee with nats-server. Servers are started fresh for every run and take turns.
///
/// Without --quick or --tiny everything runs, in full size: hours. `--list` names the rows.
#[derive(Debug, Parser)]
struct Options {
    /// The levee binary. Default: what cargo builds, beside this program.
    #[arg(long)]
    levee: Option<PathBuf>,
    /// The nats-server binary. Default: the environment's LEVEE_NATS_SERVER, then the PATH.
    #[arg(long)]
    nats_server: Option<PathBuf>,
    /// Runs of each side; tables have medians and ranges. 0 measures nothing.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Rows of publishing, core and fetching, a fifth of the messages: one run in less than five minutes. With --only,
    /// other rows in a like size.
    #[arg(long)]
    quick: bool,
    /// A hundredth of the messages, to see that everything works.
    #[arg(long, conflicts_with = "quick")]
    tiny: bool,
    /// Only rows whose name contains this, or begins with it after a `^`; in any mode, and as often as wanted.
    #[arg(long)]
    only: Vec<String>,
    /// Names the rows and ends.
    #[arg(long)]
    list: bool,
    /// Where the servers keep their data while they run. Should be on the disk that is to be measured.
    #[arg(long, default_value = ".")]
    scratch: PathBuf,
    /// Appends every run to this file, as a line of JSON.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Takes the runs of this file as measured, too.
    #[arg(long)]
    load: Vec<PathBuf>,
    /// Writes RESULTS.md and its charts, into this directory. Default: benches.
    #[arg(long, num_args = 0..=1, default_missing_value = env!("CARGO_MANIFEST_DIR"), value_name = "DIR")]
    write: Option<PathBuf>,
    #[command(flatten)]
    sizes: Sizes,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let sizes = options.sizes.clone();
    let sizes = match (options.quick, options.tiny) {
        (true, _) => sizes.quick(),
        (_, true) => sizes.tiny(),
        _ => sizes,
    };
    let mut rows = rows::all(&sizes);
    rows.extend(sweeps::rows());
    if options.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    let mut results = Results::default();
    for path in &options.load {
        results.load(path)?;
    }
    if let Some(path) = &options.save {
        results.save_to(path)?;
    }
    if options.runs > 0 {
        measure(&options, &rows, &mut results)?;
    }
    let measured = page::in_tables(&rows, &results);
    for table in [THROUGHPUT, LATENCY, SPENDING, OTHER] {
        println!("{}", table.text(&measured));
    }
    if let Some(dir) = &options.write {
        let path = dir.join("RESULTS.md");
        std::fs::write(&path, page::text(&rows, &results))
            .with_context(|| format!("can not write {}", path.display()))?;
        std::fs::create_dir_all(dir.join("charts"))?;
        for (file, chart) in sweeps::charts(&results) {
            let path = dir.join("charts").join(file);
            std::fs::write(&path, chart.svg())
                .with_context(|| format!("can not write {}", path.display()))?;
        }
    }
    let failures = results.failures().count();
    ensure!(failures == 0, "{failures} runs failed");
    Ok(())
}

fn measure(options: &Options, rows: &[Row], results: &mut Results) -> anyhow::Result<()> {
    let binaries = options.binaries()?;
    results.add_setting(options.setting(&binaries)?)?;
    let wanted: Vec<&Row> = rows.iter().filter(|row| options.wants(row)).collect();
    ensure!(!wanted.is_empty(), "no row is called that; --list names them");
    let start = Instant::now();
    for (at, row) in wanted.iter().enumerate() {
        for run in 0..options.runs {
            let mut sides = [Side::Levee, row.against];
            if run % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                eprint!("[{}/{}] {}: run {}, {}", at + 1, wanted.len(), row.name, run + 1, side.name());
                let began = Instant::now();
                let outcome = once(&binaries, side, row, options);
                eprintln!("  {}  {:.1} s", brief(&outcome), began.elapsed().as_secs_f64());
                let failure = outcome.as_ref().err().map(|error| format!("{error:#}"));
                results.add_run(Run {
                    row: row.name.clone(),
                    side,
                    outcome: outcome.unwrap_or_default(),
                    failure,
                })?;
            }
        }
    }
    eprintln!("{} rows in {:.0} s", wanted.len(), start.elapsed().as_secs_f64());
    Ok(())
}

fn once(binaries: &Binaries, side: Side, row: &Row, options: &Options) -> anyhow::Result<Outcome> {
    let mut servers = Servers::start(binaries, side, row.nodes, &options.scratch)?;
    load::run(row, &mut servers, &options.effort()).inspect_err(|_| eprintln!("\n{}", servers.logs()))
}

fn brief(outcome: &anyhow::Result<Outcome>) -> String {
    match outcome {
        Ok(outcome) => {
            let figures = [Figure::Rate, Figure::CpuPerMillion, Figure::LatencyP99Us];
            let text =
                |figure: &Figure| Some(format!("{} {}", number(outcome.get(*figure)?), figure.label()));
            figures.iter().filter_map(text).collect::<Vec<_>>().join(", ")
        }
        Err(error) => format!("failed: {error:#}"),
    }
}

/// What is measured is what the sources say: builds the binary that lies beside this program.
fn build_levee() -> anyhow::Result<PathBuf> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        let built = Command::new(cargo)
            .args(["build", "--release", "--locked", "--package", "levee-cli"])
            .status()
            .context("can not run cargo")?;
        ensure!(built.success(), "levee was not built");
    }
    let beside = std::env::current_exe()?.with_file_name("levee");
    ensure!(beside.exists(), "{} does not exist: name a binary with --levee", beside.display());
    Ok(beside)
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        if self.only.is_empty() {
            return row.group == Group::Ordinary || !self.quick;
        }
        self.only.iter().any(|part| match part.strip_prefix('^') {
            Some(beginning) => row.name.starts_with(beginning),
            None => row.name.contains(part.as_str()),
        })
    }

    fn effort(&self) -> Effort {
        match (self.quick, self.tiny) {
            (true, _) => Effort::QUICK,
            (_, true) => Effort::TINY,
            _ => Effort::FULL,
        }
    }

    fn binaries(&self) -> anyhow::Result<Binaries> {
        let levee = match &self.levee {
            Some(levee) => levee.clone(),
            None => build_levee()?,
        };
        Ok(Binaries {
            levee,
            nats: self
                .nats_server
                .clone()
                .or_else(|| std::env::var_os("LEVEE_NATS_SERVER").map(PathBuf::from))
                .unwrap_or_else(|| PathBuf::from("nats-server")),
        })
    }

    fn setting(&self, binaries: &Binaries) -> anyhow::Result<Setting> {
        // Places differ from machine to machine and say nothing.
        let mut command = vec!["cargo compare".to_owned()];
        let mut arguments = std::env::args().skip(1).peekable();
        while let Some(argument) = arguments.next() {
            let is_place = ["--levee", "--nats-server", "--scratch", "--save", "--load", "--write"]
                .iter()
                .find(|place| {
                    argument == **place
                        || argument.strip_prefix(**place).is_some_and(|rest| rest.starts_with('='))
                });
            match is_place {
                Some(place) if argument == *place => drop(arguments.next_if(|next| !next.starts_with("--"))),
                Some(_) => {}
                None if argument.contains(' ') => command.push(format!("'{argument}'")),
                None => command.push(argument),
            }
        }
        Ok(Setting {
            command: command.join(" "),
            machine: process::machine(),
            file_system: process::file_system(&self.scratch),
            disk: disk::synced_writes(&self.scratch)?,
            pauses: disk::pauses(&self.scratch)?,
            levee: binaries.version(Side::Levee)?,
            nats: binaries.version(Side::Nats)?,
        })
    }
}
