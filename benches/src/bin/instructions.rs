//! Counts the instructions of single parts of the product, which a noisy machine does not change: a regression shows
//! where timings only scatter.
//!
//! Counts come from `perf stat` where the machine has hardware counters, else from `valgrind --tool=callgrind`. Each
//! case runs twice, with few calls and with more; the difference is what the calls cost, without setting up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use levee_benches::micro::{self, Case};

/// Calls of the shorter run: caches and tables have grown by then.
const WARM: u64 = 150;
/// Calls that are counted.
const COUNTED: u64 = 50;

/// Measurements of a case.
const MEASUREMENTS: usize = 3;

/// Counts instructions for each message or operation, and compares them with benches/instructions.tsv.
#[derive(Debug, Parser)]
struct Options {
    /// Only cases whose name contains this.
    #[arg(long)]
    only: Vec<String>,
    /// Writes what was counted to benches/instructions.tsv instead of comparing.
    #[arg(long)]
    write: bool,
    /// How many percent more than before is a regression.
    #[arg(long, default_value_t = 5.0)]
    tolerance: f64,
    /// Runs a case and ends; what is counted is this.
    #[arg(long, hide = true, requires = "calls")]
    case: Option<String>,
    /// How often.
    #[arg(long, hide = true)]
    calls: Option<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Counter {
    Perf,
    Callgrind,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let (Some(name), Some(calls)) = (&options.case, options.calls) {
        let case = micro::all().into_iter().find(|case| case.name == name).context("no such case")?;
        let mut call = (case.prepare)();
        (0..calls).for_each(|_| call());
        return Ok(());
    }
    let counter = Counter::of_this_machine()?;
    println!("counted with {}", counter.name());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.tsv");
    let before = read(&path, counter)?;
    let mut counts = before.clone();
    let mut regressions = Vec::new();
    for case in micro::all().iter().filter(|case| options.wants(case)) {
        let now = counter.per_item(case)?;
        let change = before.get(case.name).map(|before| (now / before - 1.0) * 100.0);
        let text = change.map_or_else(String::new, |change| format!("  {change:+.1} %"));
        println!("{:<45} {now:>10.1}{text}", case.name);
        if change.is_some_and(|change| change > options.tolerance) {
            regressions.push(case.name);
        }
        counts.insert(case.name.to_owned(), now);
    }
    if options.write {
        return write(&path, counter, &counts);
    }
    ensure!(regressions.is_empty(), "more instructions than before: {}", regressions.join("; "));
    Ok(())
}

impl Options {
    /// What waits for the disk differs from run to run.
    fn wants(&self, case: &Case) -> bool {
        let wanted = self.only.is_empty() || self.only.iter().any(|part| case.name.contains(part.as_str()));
        wanted && !case.name.ends_with("disk")
    }
}

impl Counter {
    fn of_this_machine() -> anyhow::Result<Self> {
        for counter in [Self::Perf, Self::Callgrind] {
            if counter.count(&["--help"]).is_ok() {
                return Ok(counter);
            }
        }
        bail!(
            "instructions can not be counted here: perf has no hardware counters or is missing, and so is valgrind"
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf",
            Self::Callgrind => "callgrind",
        }
    }

    /// Instructions for each item of a call: the middle one of some measurements, because hash maps are seeded anew
    /// in every process.
    fn per_item(self, case: &Case) -> anyhow::Result<f64> {
        let run = |calls: u64| self.count(&["--case", case.name, "--calls", &calls.to_string()]);
        let mut counts = Vec::new();
        for _ in 0..MEASUREMENTS {
            let (few, more) = (run(WARM)?, run(WARM + COUNTED)?);
            counts.push(more.saturating_sub(few) as f64 / (COUNTED * case.per_call) as f64);
        }
        counts.sort_by(f64::total_cmp);
        Ok(counts[MEASUREMENTS / 2])
    }

    /// Instructions of this program with these arguments.
    fn count(self, arguments: &[&str]) -> anyhow::Result<u64> {
        let (program, options): (&str, &[&str]) = match self {
            Self::Perf => ("perf", &["stat", "-x,", "-e", "instructions:u", "--"]),
            Self::Callgrind => ("valgrind", &["--tool=callgrind", "--callgrind-out-file=/dev/null"]),
        };
        let output = Command::new(program)
            .args(options)
            .arg(std::env::current_exe()?)
            .args(arguments)
            .output()
            .with_context(|| format!("can not run {program}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} failed: {text}");
        let count = match self {
            Self::Perf => text
                .lines()
                .find(|line| line.contains("instructions"))
                .and_then(|line| line.split(',').next()),
            Self::Callgrind => text.lines().find_map(|line| line.split("Collected : ").nth(1)),
        };
        count
            .and_then(|count| count.trim().parse().ok())
            .with_context(|| format!("{program} counted nothing: {text}"))
    }
}

fn read(path: &PathBuf, counter: Counter) -> anyhow::Result<BTreeMap<String, f64>> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(BTreeMap::new()) };
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, with, count] = fields[..] else { bail!("{}: not a count: {line}", path.display()) };
        if with == counter.name() {
            counts.insert(name.to_owned(), count.parse()?);
        }
    }
    if counts.is_empty() {
        println!("{} has no counts of {}: nothing to compare with", path.display(), counter.name());
    }
    Ok(counts)
}

fn write(path: &PathBuf, counter: Counter, counts: &BTreeMap<String, f64>) -> anyhow::Result<()> {
    let compiler = Command::new("rustc").arg("--version").output().context("can not run rustc")?;
    let mut text = format!(
        "# Instructions for each message or operation, by `cargo run --release -p levee-benches --bin instructions`.\n\
         # They depend on the compiler: {}\n",
        String::from_utf8_lossy(&compiler.stdout).trim()
    );
    for (name, count) in counts {
        text.push_str(&format!("{name}\t{}\t{count:.1}\n", counter.name()));
    }
    std::fs::write(path, text).with_context(|| format!("can not write {}", path.display()))
}
