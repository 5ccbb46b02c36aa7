//! What happened in a run, line by line in virtual time. The same seed must write the same bytes.

use std::fmt::{Arguments, Write as _};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The lines of one run.
pub(crate) struct Trace {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

impl Trace {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), lines: Mutex::default() }
    }

    /// Virtual time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds a line.
    pub(crate) fn note(&self, what: Arguments<'_>) {
        let micros = self.elapsed().as_micros();
        let mut line = String::with_capacity(96);
        let _ = write!(line, "{:>4}.{:06} {what}", micros / 1_000_000, micros % 1_000_000);
        self.lines.lock().push(line);
    }

    /// All lines.
    pub(crate) fn text(&self) -> String {
        let mut text = self.lines.lock().join("\n");
        text.push('\n');
        text
    }
}
