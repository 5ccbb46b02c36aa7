//! What can go wrong below a group. A variant per thing a caller would do differently.

use std::path::PathBuf;

use levee_protocol::ids::GroupId;

use crate::keys::Table;

/// A failure of the disk, of what lies on it, or of how it was used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the directory. Nothing was touched.
    #[error("store directory {dir} is in use by {holder}; stop that process or choose another directory")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says about the holder.
        holder: String,
    },
    /// The directory cannot be opened at all.
    #[error("store directory {dir} cannot be opened: {reason}")]
    Open {
        /// The directory.
        dir: PathBuf,
        /// What the system or RocksDB said.
        reason: String,
    },
    /// The directory was written by a release that this one does not know.
    #[error("store has format version {found}, this release knows up to {known}; use a newer release")]
    Format {
        /// The version in the directory.
        found: u32,
        /// The newest version this release reads.
        known: u32,
    },
    /// A write or a sync failed earlier. What is on the disk is unknown, so nothing is written anymore.
    #[error("storage stopped after a failed write: {0}")]
    Failed(String),
    /// Too little space is left for messages. Nothing was changed; the same call works once space returned.
    #[error("disk is nearly full: {free} bytes free, {reserve} bytes are kept in reserve")]
    DiskFull {
        /// Free bytes when last looked.
        free: u64,
        /// Free bytes below which this kind of entry is refused.
        reserve: u64,
    },
    /// The log lacks an entry between its first and its last. The group must not serve.
    #[error("group {group}: log entry {index} is missing; restore this replica from the others")]
    LogGap {
        /// The group.
        group: GroupId,
        /// The first missing index.
        index: u64,
    },
    /// Something stored does not match its checksum or its description. It is never served.
    #[error(
        "group {group}: {what} in table {table:?} is damaged: {reason}; restore this replica from the others"
    )]
    Damaged {
        /// The group, 0 for rows of the node.
        group: GroupId,
        /// Where it lies.
        table: Table,
        /// Which row.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A row that a caller stored does not decode, although its checksum matches.
    #[error("{0}; the store may be from a newer release")]
    Corrupt(String),
    /// The wanted entry was purged; a follower that asks for it needs a snapshot.
    #[error("group {group}: log entry {index} was purged, the log starts after {purged}")]
    Purged {
        /// The group.
        group: GroupId,
        /// The wanted index.
        index: u64,
        /// The purge floor.
        purged: u64,
    },
    /// A call that would leave a hole in the log or reorder it. Nothing was changed.
    #[error("group {group}: {what}")]
    OutOfOrder {
        /// The group.
        group: GroupId,
        /// The refused call.
        what: String,
    },
    /// What is committed here would be taken back. Nothing was changed. A majority that asks for it has lost its logs.
    #[error("group {group}: entry {index}, which is committed, would be taken back: the others lost it")]
    Committed {
        /// The group.
        group: GroupId,
        /// The last committed index.
        index: u64,
    },
    /// The group was removed from this node.
    #[error("group {0} was removed")]
    GroupRemoved(GroupId),
    /// A snapshot that is cut short, damaged, or not for this release. The group is as it was before.
    #[error("snapshot refused: {0}")]
    Snapshot(String),
    /// The engine could not read.
    #[error("storage engine: {0}")]
    Engine(String),
}

impl Error {
    pub(crate) fn damaged(
        group: GroupId,
        table: Table,
        what: impl Into<String>,
        reason: impl ToString,
    ) -> Self {
        Self::Damaged { group, table, what: what.into(), reason: reason.to_string() }
    }
}

impl From<rocksdb::Error> for Error {
    fn from(error: rocksdb::Error) -> Self {
        Self::Engine(error.into_string())
    }
}
