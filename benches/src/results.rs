//! Runs as lines of JSON, so that what was measured can be kept, joined and written up again.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::figures::Outcome;
use crate::servers::Side;

/// How runs came about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Setting {
    /// The command line.
    pub command: String,
    /// CPUs, memory, kernel.
    pub machine: String,
    /// What the servers' files lay on.
    pub file_system: String,
    /// What synced writes cost there. Empty in files of before that was measured.
    #[serde(default)]
    pub disk: String,
    /// How long the machine stands still under load. Empty in files of before that was measured.
    #[serde(default)]
    pub pauses: String,
    /// Our version.
    pub levee: String,
    /// Their version.
    pub nats: String,
}

/// One run of one side.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    /// The row's name.
    pub row: String,
    /// Whose server.
    pub side: Side,
    /// What was measured, unless it failed.
    #[serde(default)]
    pub outcome: Outcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Line {
    Setting(Setting),
    Run(Run),
}

/// Everything that was measured, and the file that gets it.
#[derive(Default)]
pub struct Results {
    settings: Vec<Setting>,
    runs: Vec<Run>,
    file: Option<(PathBuf, File)>,
}

impl Results {
    /// Takes in what a file has.
    pub fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("can not read {}", path.display()))?;
        for (at, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line)
                .with_context(|| format!("{}:{}: not a line of results", path.display(), at + 1))?;
            match line {
                Line::Setting(setting) => self.settings.push(setting),
                Line::Run(run) => self.runs.push(run),
            }
        }
        Ok(())
    }

    /// Appends everything that is added from now on to a file.
    pub fn save_to(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("can not write {}", path.display()))?;
        self.file = Some((path.to_owned(), file));
        Ok(())
    }

    /// Notes how the runs that follow come about.
    pub fn add_setting(&mut self, setting: Setting) -> anyhow::Result<()> {
        self.append(&Line::Setting(setting.clone()))?;
        self.settings.push(setting);
        Ok(())
    }

    /// Notes a run.
    pub fn add_run(&mut self, run: Run) -> anyhow::Result<()> {
        self.append(&Line::Run(run.clone()))?;
        self.runs.push(run);
        Ok(())
    }

    /// Each different setting once, in order.
    #[must_use]
    pub fn settings(&self) -> Vec<&Setting> {
        let mut different: Vec<&Setting> = Vec::new();
        for setting in &self.settings {
            if !different.contains(&setting) {
                different.push(setting);
            }
        }
        different
    }

    /// The runs of a row that did not fail.
    #[must_use]
    pub fn outcomes(&self, row: &str, side: Side) -> Vec<&Outcome> {
        let runs = self.runs.iter().filter(|run| run.row == row && run.side == side && run.failure.is_none());
        runs.map(|run| &run.outcome).collect()
    }

    /// The runs that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.failure.is_some())
    }

    fn append(&mut self, line: &Line) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        writeln!(file, "{}", serde_json::to_string(line)?)
            .with_context(|| format!("can not write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figure;

    #[test]
    fn what_was_saved_is_loaded_and_failures_are_kept_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("runs.jsonl");
        let mut outcome = Outcome::default();
        outcome.set(Figure::Rate, 12.5);
        let run = Run { row: "a".to_owned(), side: Side::NatsSynced, outcome, failure: None };
        let mut saved = Results::default();
        saved.save_to(&path).expect("writable");
        saved.add_run(run.clone()).expect("writable");
        saved.add_run(Run { failure: Some("why".to_owned()), ..run }).expect("writable");

        let mut loaded = Results::default();
        loaded.load(&path).expect("readable");

        let rates: Vec<_> =
            loaded.outcomes("a", Side::NatsSynced).iter().map(|outcome| outcome.get(Figure::Rate)).collect();
        assert_eq!(rates, [Some(12.5)]);
        assert_eq!(loaded.failures().count(), 1);
    }
}
