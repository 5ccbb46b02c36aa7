//! Programs that the tests use and that are not ours. `deploy/test` installs them and says where in the environment.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::program::Program;

/// The `nats` command line.
#[must_use]
pub fn nats_cli() -> Option<PathBuf> {
    find("LEVEE_NATS_CLI", "nats")
}

/// A Python with nats-py.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let python = find("LEVEE_PYTHON", "python3")?;
    let known = Command::new(&python).args(["-c", "import nats.aio.client"]).output().ok()?;
    known.status.success().then_some(python)
}

/// The reference server.
#[must_use]
pub fn nats_server() -> Option<Program> {
    let path = find("LEVEE_NATS_SERVER", "nats-server")?;
    Program::at(&path).ok().filter(|program| !program.is_levee())
}

/// Runs a command to its end and gives what it printed. Standard input is empty.
///
/// # Errors
/// When it can not be started or fails, with everything it printed.
pub async fn output(command: &mut tokio::process::Command) -> Result<String> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let done = command.output().await.with_context(|| format!("run {shown}"))?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    let complained = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        bail!("{shown} ended with {}:\n{printed}\n{complained}", done.status);
    }
    Ok(printed + &complained)
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path)).filter(|path| path.exists());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.exists())
}
