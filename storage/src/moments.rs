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
    /// A file of the value log is there, with nothing but its head.
    SegmentBegun,
    /// Large values are on the disk, or in its cache where nobody waits for them; their places are not.
    ValuesAppended,
    /// A batch with entries is on the disk, nobody was told.
    AppendSynced,
    /// A vote is on the disk, nobody was told.
    VoteSynced,
    /// Entries left the end of the log, unsynced.
    Truncated,
    /// Entries left the front of the log, unsynced.
    LogPurged,
    /// An import of a snapshot began, or some of its rows are written, unsynced.
    ImportWritten,
    /// A snapshot is the group's data on the disk, and not in memory.
    Installed,
    /// A group is gone from the disk, nobody was told.
    GroupRemoved,
    /// Values that nobody waited for are on the disk; the checkpoint that covers them is not.
    ValuesSynced,
    /// A checkpoint or what cleaning removes is written, unsynced.
    RowsWritten,
    /// Live records of a mostly dead block are in `kept` and the block is gone, unsynced.
    BlockEmptied,
    /// Who asked for the entries was told.
    AppendAnswered,
    /// A block was applied in memory.
    Applied,
    /// The removal of all blocks in some table files is on the disk, the files are still there.
    FilesDead,
    /// Such files are gone.
    FilesDropped,
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
    const ALL: [Self; 20] = [
        Self::SegmentBegun,
        Self::ValuesAppended,
        Self::AppendSynced,
        Self::VoteSynced,
        Self::Truncated,
        Self::LogPurged,
        Self::ImportWritten,
        Self::Installed,
        Self::GroupRemoved,
        Self::ValuesSynced,
        Self::RowsWritten,
        Self::BlockEmptied,
        Self::AppendAnswered,
        Self::Applied,
        Self::FilesDead,
        Self::FilesDropped,
        Self::ValuesCopied,
        Self::ValuesMoved,
        Self::SegmentsEmpty,
        Self::SegmentsRemoved,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::SegmentBegun => "segment-begun",
            Self::ValuesAppended => "values-appended",
            Self::AppendSynced => "append-synced",
            Self::VoteSynced => "vote-synced",
            Self::Truncated => "truncated",
            Self::LogPurged => "log-purged",
            Self::ImportWritten => "import-written",
            Self::Installed => "installed",
            Self::GroupRemoved => "group-removed",
            Self::ValuesSynced => "values-synced",
            Self::RowsWritten => "rows-written",
            Self::BlockEmptied => "block-emptied",
            Self::AppendAnswered => "append-answered",
            Self::Applied => "applied",
            Self::FilesDead => "files-dead",
            Self::FilesDropped => "files-dropped",
            Self::ValuesCopied => "values-copied",
            Self::ValuesMoved => "values-moved",
            Self::SegmentsEmpty => "segments-empty",
            Self::SegmentsRemoved => "segments-removed",
        }
    }
}

/// The moments that come when a batch is written, whatever it has of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moments(u32);

impl Moments {
    pub(crate) const fn add(&mut self, moment: Moment) {
        self.0 |= 1 << moment as u32;
    }

    const fn has(self, moment: Moment) -> bool {
        self.0 & (1 << moment as u32) != 0
    }

    /// They all come now.
    pub(crate) fn reached(self) {
        if let Some(crash) = crash()
            && self.has(crash.at)
        {
            reached(crash.at);
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
    let Some(crash) = crash() else { return };
    if crash.at == moment && crash.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

fn crash() -> Option<&'static Crash> {
    CRASH.get_or_init(asked).as_ref()
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
