//! Processes that kill themselves at a moment of `moments.rs`: tests that are ignored and started by others.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIR: &str = "LEVEE_TEST_DIR";

/// Runs the test `worker` until it dies at the moment; returns what it said, line by line.
pub(crate) fn die_at(worker: &str, moment: &str, dir: &Path) -> Vec<String> {
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", worker, "--ignored", "--nocapture"])
        .env("LEVEE_CRASH_AT", moment)
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), None, "{moment}: it must be killed, by itself; it said {said}");
    said.lines().map(str::to_owned).collect()
}

/// Where the worker is to work.
pub(crate) fn dir() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

/// To a pipe, which outlives the process.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Copies a directory of files and directories, also one that is in use: what a killed process would leave.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
