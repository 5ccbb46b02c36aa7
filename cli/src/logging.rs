//! Log lines in nats-server's shape, which scripts read:
//! `[pid] 2006/01/02 15:04:05.000000 [INF] text`.
//!
//! Levels are `FTL ERR WRN INF DBG TRC`. There is no fatal level in `tracing`: an error with the target
//! [`FATAL`] is shown as one. Libraries below us are heard only when something is wrong, or at `-D` and `-V`
//! one level earlier: their everyday lines are about things that this node reports itself.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use levee_broker::config::Log;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

/// Target of errors after which the process ends.
pub(crate) const FATAL: &str = "levee::fatal";

/// Handle on the log of this process.
#[derive(Clone)]
pub(crate) struct Logging {
    sink: Arc<Mutex<Sink>>,
}

enum Sink {
    Stderr { colors: bool },
    File { path: PathBuf, file: File },
}

impl Logging {
    /// Starts logging. To be called once, before there are other threads: only then the system tells where in the
    /// world it is. Times stay at that offset until the process ends.
    pub(crate) fn start(config: &Log) -> anyhow::Result<Self> {
        let sink = match &config.file {
            Some(path) => Sink::File { path: path.clone(), file: open(path)? },
            None => Sink::Stderr { colors: io::stderr().is_terminal() },
        };
        let offset = if config.utc { UtcOffset::UTC } else { local_offset() };
        let logging = Self { sink: Arc::new(Mutex::new(sink)) };
        let lines = Lines {
            sink: logging.sink.clone(),
            pid: std::process::id(),
            offset: config.time.then_some(offset),
            ours: match (config.debug, config.trace) {
                (_, true) => Level::TRACE,
                (true, false) => Level::DEBUG,
                (false, false) => Level::INFO,
            },
            debug: config.debug,
            theirs: if config.debug { Level::WARN } else { Level::ERROR },
        };
        tracing::subscriber::set_global_default(Registry::default().with(lines))
            .context("logging was started twice")?;
        Ok(logging)
    }

    /// Opens the log file again, after somebody renamed it. A file that can not be opened keeps the old one.
    pub(crate) fn reopen(&self) -> anyhow::Result<()> {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        if let Sink::File { path, file } = &mut *sink {
            *file = open(path)?;
        }
        Ok(())
    }
}

fn open(path: &PathBuf) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("error opening log file {}", path.display()))
}

fn local_offset() -> UtcOffset {
    UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC)
}

struct Lines {
    sink: Arc<Mutex<Sink>>,
    pid: u32,
    offset: Option<UtcOffset>,
    ours: Level,
    /// `-V` without `-D` shows TRC lines and no DBG lines.
    debug: bool,
    theirs: Level,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        if !metadata.target().starts_with("levee") {
            return *metadata.level() <= self.theirs;
        }
        *metadata.level() <= self.ours && (self.debug || *metadata.level() != Level::DEBUG)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = level_of(event.metadata());
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let colors = matches!(*sink, Sink::Stderr { colors: true });
        let now = self.offset.map(|offset| OffsetDateTime::now_utc().to_offset(offset));
        let line = line(self.pid, now, level, &text, colors);
        // There is nowhere left to report that the log can not be written.
        let _ = match &mut *sink {
            Sink::Stderr { .. } => io::stderr().write_all(line.as_bytes()),
            Sink::File { file, .. } => file.write_all(line.as_bytes()),
        };
    }
}

fn level_of(metadata: &Metadata<'_>) -> (&'static str, &'static str) {
    match *metadata.level() {
        Level::ERROR if metadata.target() == FATAL => ("FTL", "31"),
        Level::ERROR => ("ERR", "31"),
        Level::WARN => ("WRN", "0;93"),
        Level::INFO => ("INF", "32"),
        Level::DEBUG => ("DBG", "36"),
        Level::TRACE => ("TRC", "33"),
    }
}

fn line(
    pid: u32,
    now: Option<OffsetDateTime>,
    (level, color): (&str, &str),
    text: &Text,
    colors: bool,
) -> String {
    let mut line = format!("[{pid}] ");
    let shape = format_description!("[year]/[month]/[day] [hour]:[minute]:[second].[subsecond digits:6] ");
    if let Some(now) = now.and_then(|now| now.format(&shape).ok()) {
        line.push_str(&now);
    }
    // Writing to a string does not fail.
    let _ = if colors { write!(line, "[\x1b[{color}m{level}\x1b[0m] ") } else { write!(line, "[{level}] ") };
    // What clients send ends up in messages; a line stays a line.
    for c in text.message.chars().chain(text.fields.chars()) {
        match c {
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            c if c.is_control() && c != '\t' => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line.push('\n');
    line
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_shape_that_scripts_read() {
        let text = Text { message: "Server is ready".to_owned(), fields: " peer=n2".to_owned() };
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_012_345_678).ok();

        assert_eq!(
            line(42, at, ("INF", "32"), &text, false),
            "[42] 2023/11/14 22:13:20.012345 [INF] Server is ready peer=n2\n"
        );
        assert_eq!(line(42, None, ("INF", "32"), &text, false), "[42] [INF] Server is ready peer=n2\n");
        assert_eq!(
            line(42, None, ("INF", "32"), &text, true),
            "[42] [\x1b[32mINF\x1b[0m] Server is ready peer=n2\n"
        );
    }

    #[test]
    fn what_a_client_sends_can_not_start_a_line() {
        let text = Text { message: "name \"x\n[1] [FTL] \x1b[2J\"".to_owned(), fields: String::new() };

        assert_eq!(line(1, None, ("ERR", ""), &text, false), "[1] [ERR] name \"x\\n[1] [FTL] \\u{1b}[2J\"\n");
    }
}
