//! Skipping, so that nobody takes a test that did not run for one that passed.

use std::io::Write as _;

use anyhow::{Result, bail};

/// Says loudly that the calling test is skipped and why. Where everything should be there (`CI=true`), it fails.
///
/// # Errors
/// When `CI=true`.
pub fn missing(test: &str, reason: &str) -> Result<()> {
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        bail!("{test} can not run, and CI must run everything: {reason}");
    }
    say(test, reason);
    Ok(())
}

/// Says loudly that the calling test makes no claim about the server under test, and why.
pub fn not_claimed(test: &str, reason: &str) {
    say(test, reason);
}

fn say(test: &str, reason: &str) {
    // Past the capture of the test runner, which would hide it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}
