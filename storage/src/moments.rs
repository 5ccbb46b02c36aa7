//! Moments between two steps of a write at which a test may end the process.
//!
//! `LEVEE_CRASH_AT=<moment>` kills the process when the moment comes, `LEVEE_CRASH_AT=<moment>:<n>` when it comes for
//! the nth time. Without the variable a moment costs one load per batch. Nobody sets it but tests that show what
//! survives; a process that runs with it says so.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

const VARIABLE: &str = "LEVEE_CRASH_AT";

/// In the order in which they come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    /// Large values are on the disk, their places are not.
    ValuesAppended,
    /// A batch with entries is on the disk, nobody was told.
    AppendSynced,
    /// Who asked for the entries was told.
    AppendAnswered,
    /// A block was applied in memory.
    Applied,
    /// A checkpoint or what cleaning removes is written, unsynced.
    RowsWritten,
    /// Live values of a mostly dead segment are copied, their places are the old ones.
    ValuesCopied,
    /// Places are the new ones, the old segment is still there.
    ValuesMoved,
    /// The last places in a segment are gone, durably; the segment is not.
    SegmentsEmpty,
    /// Segments are gone.
    SegmentsRemoved,
}

impl Moment {
    const ALL: [Self; 9] = [
        Self::ValuesAppended,
        Self::AppendSynced,
        Self::AppendAnswered,
        Self::Applied,
        Self::RowsWritten,
        Self::ValuesCopied,
        Self::ValuesMoved,
        Self::SegmentsEmpty,
        Self::SegmentsRemoved,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::ValuesAppended => "values-appended",
            Self::AppendSynced => "append-synced",
            Self::AppendAnswered => "append-answered",
            Self::Applied => "applied",
            Self::RowsWritten => "rows-written",
            Self::ValuesCopied => "values-copied",
            Self::ValuesMoved => "values-moved",
            Self::SegmentsEmpty => "segments-empty",
            Self::SegmentsRemoved => "segments-removed",
        }
    }
}

struct Crash {
    at: Moment,
    /// How often the moment may still come.
    left: AtomicU64,
}

static CRASH: OnceLock<Option<Crash>> = OnceLock::new();

/// Ends the process here if it was asked to. Nothing is flushed, closed or dropped, as with SIGKILL from outside.
pub(crate) fn reached(moment: Moment) {
    let Some(crash) = CRASH.get_or_init(asked) else { return };
    if crash.at == moment && crash.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

fn asked() -> Option<Crash> {
    let text = std::env::var(VARIABLE).ok()?;
    let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
    let at = Moment::ALL.into_iter().find(|moment| moment.name() == name);
    match (at, times.parse()) {
        (Some(at), Ok(times)) => {
            tracing::warn!("{VARIABLE}={text}: this process will kill itself");
            Some(Crash { at, left: AtomicU64::new(times) })
        }
        _ => {
            let known = Moment::ALL.map(Moment::name).join(", ");
            tracing::error!("{VARIABLE}={text} is ignored: it must be a moment of {known}, and maybe :n");
            None
        }
    }
}
