//! The integration tests that async-nats brings with it, against the server under test: claims about NATS that we did
//! not write.
//!
//! The source is the published package that this workspace depends on anyway, so its version is that of `Cargo.lock`.
//! It is copied below the build directory and built there with its own lock file, with [`suites/nats_server.rs`] in
//! place of the unpublished package that starts its servers. `README.md` beside this file has the counts, for
//! nats-server too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use levee_tests::place::Dir;
use levee_tests::program::Program;
use levee_tests::turns::Turn;

/// The test programs that are run, and how many of their tests pass at least with nats-server 2.15.1 here.
const PROGRAMS: &[(&str, usize)] = &[
    ("client_tests", 62),
    ("jetstream_api_timeout_tests", 14),
    ("jetstream_tests", 105),
    ("kv_tests", 34),
    ("object_store", 18),
    ("pinned_client_test", 20),
    ("pull_exceeded_max_request_test", 9),
    ("server_pool_parity_tests", 3),
    ("server_pool_tests", 18),
    ("subject_validation_test", 13),
];

/// Names or beginnings of names of tests that do not pass, and why.
const NOT_CLAIMED: &[(&str, &str)] = &[
    (
        "client_tests client::connect_domain",
        "connects to a server on the Internet; fails with nats-server here too",
    ),
    ("client_tests client::custom_auth_callback_jwt", "JWT is not supported"),
    ("client_tests client::multiple_auth_methods", "JWT is not supported"),
];

#[test]
fn the_tests_of_async_nats_pass() -> Result<()> {
    let turn = Turn::alone()?;
    let dir = Dir::new("async-nats")?;
    let programs = build()?;
    let names = name_server(&dir)?;

    let outputs = std::thread::scope(|scope| {
        #[expect(clippy::needless_collect, reason = "all are started before the first is waited for")]
        let runs: Vec<_> = PROGRAMS
            .iter()
            .map(|(name, _)| {
                let (program, names, dir) = (programs.get(*name), &names, &dir);
                scope.spawn(move || {
                    run(
                        program.with_context(|| format!("no {name}"))?,
                        &["--test-threads", THREADS],
                        names,
                        dir,
                    )
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect::<Result<Vec<_>>>()
    })?;
    drop(turn);

    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for ((name, expected), output) in PROGRAMS.iter().zip(&outputs) {
        let printed = String::from_utf8_lossy(&output.stdout);
        let results = results(&printed);
        let passed = results.values().filter(|passed| **passed).count();
        println!("{name}: {passed} of {} passed; {expected} with nats-server", results.len());
        if results.len() < *expected {
            wrong.push(format!("{name} ran {} tests:\n{printed}", results.len()));
        }
        for (test, _) in results.iter().filter(|(_, passed)| !**passed) {
            let full = format!("{name} {test}");
            match NOT_CLAIMED.iter().find(|(start, _)| full.starts_with(start)) {
                Some((start, _)) => _ = needed.insert(*start),
                // Many of these tests give an answer 200 ms, which is little while all of them run.
                None if again(&programs[*name], test, &names, &dir)? => println!("{full} passes alone"),
                None => wrong.push(format!("{full} failed:\n{}", section(&printed, test))),
            }
        }
    }
    for (start, why) in NOT_CLAIMED.iter().filter(|(start, _)| !needed.contains(start)) {
        println!("{start} passes by now ({why}): take it off the list");
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Builds the test programs; gives where they are, by name.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("async-nats");
    let source = place.join("async-nats");
    let published = published()?;
    copy(&published, &source)?;
    let manifest = fs::read_to_string(published.join("Cargo.toml"))?;
    write(&source.join("Cargo.toml"), &adapted(&manifest))?;
    helper(&place, "nats-server", "0.0.0", include_str!("suites/nats_server.rs"))?;
    helper(&place, "reqwest", "0.11.18", include_str!("suites/absent.rs"))?;
    helper(&place, "jsonschema", "0.17.1", include_str!("suites/absent.rs"))?;

    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--message-format", "json", "--target-dir"]).arg(place.join("target"));
    for (name, _) in PROGRAMS {
        cargo.args(["--test", name]);
    }
    let output = cargo.current_dir(&source).stdin(Stdio::null()).output().context("cargo")?;
    ensure!(output.status.success(), "the tests do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    let mut programs = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages")?;
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(programs)
}

/// Where cargo keeps the source of async-nats.
fn published() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked"]).current_dir(root);
    let output = cargo.output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata:\n{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let package = packages.iter().find(|package| package["name"] == "async-nats").context("async-nats")?;
    let manifest = package["manifest_path"].as_str().context("its manifest")?;
    Path::new(manifest).parent().map(Path::to_owned).context("its directory")
}

/// Their manifest without what only examples and benches use, and with the helpers.
fn adapted(manifest: &str) -> String {
    const DROPPED: &[&str] = &[
        "[[example]]",
        "[[bench]]",
        "[dev-dependencies.criterion]",
        "[dev-dependencies.jsonschema]",
        "[dev-dependencies.num]",
        "[dev-dependencies.reqwest]",
    ];
    let mut kept = String::new();
    let mut keeps = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            keeps = !DROPPED.contains(&line);
        }
        if keeps {
            kept.extend([line, "\n"]);
        }
    }
    for name in ["nats-server", "reqwest", "jsonschema"] {
        kept += &format!("[dev-dependencies.{name}]\npath = \"../{name}\"\n");
    }
    kept + "[profile.dev]\ndebug = 0\n[workspace]\n"
}

fn helper(place: &Path, name: &str, version: &str, source: &str) -> Result<()> {
    let dir = place.join(name);
    let manifest = format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2024\"\n");
    fs::create_dir_all(dir.join("src"))?;
    write(&dir.join("Cargo.toml"), &manifest)?;
    write(&dir.join("src/lib.rs"), source)
}

/// Writes only what changes, so that nothing is built twice.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.join("Cargo.toml.orig").exists() {
        return Ok(());
    }
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let mut entries = fs::read_dir(from)?.collect::<std::io::Result<Vec<_>>>()?;
    // What is looked at above comes last.
    entries.sort_by_key(|entry| entry.file_name() == "Cargo.toml.orig");
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copy to {}", target.display()))?;
        }
    }
    Ok(())
}

/// A directory in which the server under test is called `nats-server`.
fn name_server(dir: &Dir) -> Result<PathBuf> {
    let names = dir.path().join("bin");
    fs::create_dir_all(&names)?;
    let server = Program::subject()?.path().canonicalize()?;
    std::os::unix::fs::symlink(server, names.join("nats-server"))?;
    Ok(names)
}

/// Runs one test by itself; says whether it passed.
fn again(program: &Path, test: &str, names: &Path, dir: &Dir) -> Result<bool> {
    Ok(run(program, &["--exact", test], names, dir)?.status.success())
}

fn run(program: &Path, arguments: &[&str], names: &Path, dir: &Dir) -> Result<Output> {
    let path = std::env::join_paths(
        std::iter::once(names.to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("TMPDIR", dir.path())
        .current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("async-nats/async-nats"))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))
}

/// Which tests passed; ignored ones are left out.
fn results(printed: &str) -> BTreeMap<&str, bool> {
    let lines = printed.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
    lines.filter(|(_, how)| !how.starts_with("ignored")).map(|(name, how)| (name, how == "ok")).collect()
}

/// What one test printed.
fn section<'a>(printed: &'a str, test: &str) -> &'a str {
    let start = printed.find(&format!("---- {test} stdout ----")).unwrap_or(printed.len());
    let rest = &printed[start..];
    let end = rest[rest.len().min(5)..].find("\n---- ").map_or(rest.len(), |at| at + 5);
    &rest[..end]
}

/// Most of the tests wait most of the time.
const THREADS: &str = "6";
