//! Turns: tests that measure time, or fill the machine, do not run beside others.
//!
//! File locks rather than a mutex, because suites are processes and two runs may share a machine. A gate before the
//! lock keeps a steady stream of ordinary tests from starving one that wants the machine for itself.

use std::fs::File;

use anyhow::{Context as _, Result};

use crate::place;

/// The right to run. Given back on drop.
#[derive(Debug)]
pub struct Turn {
    _machine: File,
}

impl Turn {
    /// Runs beside other tests.
    ///
    /// # Errors
    /// When the lock files can not be made.
    pub fn shared() -> Result<Self> {
        let gate = open("gate")?;
        gate.lock_shared().context("turn gate")?;
        let machine = open("machine")?;
        machine.lock_shared().context("turn")?;
        Ok(Self { _machine: machine })
    }

    /// Runs alone, as far as other tests are concerned.
    ///
    /// # Errors
    /// When the lock files can not be made.
    pub fn alone() -> Result<Self> {
        let gate = open("gate")?;
        gate.lock().context("turn gate")?;
        let machine = open("machine")?;
        machine.lock().context("turn")?;
        Ok(Self { _machine: machine })
    }
}

fn open(name: &str) -> Result<File> {
    let path = place::common()?.join(format!("turn-{name}.lock"));
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}
