//! Bodies of requests about streams, servers and the cluster.

use serde::{Deserialize, Serialize};

use crate::api::stream_config::{Placement, StreamConfig, is_false, is_zero};
use crate::api::stream_info::StreamState;

/// Create or update a stream.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamConfigRequest {
    /// The configuration.
    #[serde(flatten)]
    pub config: StreamConfig,
    /// Refuse rather than adjust.
    #[serde(skip_serializing_if = "is_false")]
    pub pedantic: bool,
}

/// Remove many messages.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PurgeRequest {
    /// Only messages whose subject matches; empty is all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Only messages below this sequence; 0 is all.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// Keep this many of the newest; 0 is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep: u64,
}

/// Stream info.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInfoRequest {
    /// First subject to show.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// Show which sequences are gone.
    #[serde(skip_serializing_if = "is_false")]
    pub deleted_details: bool,
    /// Show counts of subjects that match.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subjects_filter: String,
}

/// One page of stream or consumer names, or of their infos.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamesRequest {
    /// How many to skip.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// Only streams with a subject that collides with this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
}

/// Send a stream to the client as an archive.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotRequest {
    /// Where the archive goes.
    pub deliver_subject: String,
    /// Leave consumers out.
    #[serde(skip_serializing_if = "is_false")]
    pub no_consumers: bool,
    /// Bytes of a message; 0 is 128 KiB.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_size: i64,
    /// Bytes that may be on their way without an ack; 0 is 8 MiB.
    #[serde(skip_serializing_if = "is_zero")]
    pub window_size: i64,
    /// Compare checksums first. They are compared in any case, when messages are read.
    #[serde(skip_serializing_if = "is_false")]
    pub jsck: bool,
}

impl SnapshotRequest {
    /// Bytes of a message, within 1 KiB and 1 MiB.
    #[must_use]
    pub fn chunk_bytes(&self) -> usize {
        clamped(self.chunk_size, 128 << 10, 1 << 20)
    }

    /// Messages that may be on their way without an ack, at least one. The window is within 1 KiB and 32 MiB.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        (clamped(self.window_size, 8 << 20, 32 << 20) / self.chunk_bytes()).max(1)
    }
}

fn clamped(asked: i64, default: i64, max: i64) -> usize {
    let bytes = if asked == 0 { default } else { asked.clamp(1 << 10, max) };
    usize::try_from(bytes).expect("positive and small")
}

/// Make a stream of an archive that the client will send.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreRequest {
    /// Its configuration, which need not be the one it had.
    pub config: StreamConfig,
    /// What it held. The archive says so, too, and is believed.
    pub state: StreamState,
}

/// Ask a leader to step down.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepDownRequest {
    /// Who should lead instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
}

/// Name a peer of a stream or consumer.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerRequest {
    /// Server name or peer id.
    pub peer: String,
}

/// Name a server of the cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerPeerRequest {
    /// Server name.
    pub peer: String,
    /// Peer id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_id: String,
}

/// Move one replica of a stream to another server.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MoveRequest {
    /// Name of the server that gives its replica. Without one, any of them does.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// The cluster of that server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// The domain of that server.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// What the server that takes it must be, besides what the stream asks for anyway.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_windows_of_snapshots_are_within_bounds() {
        let check = |chunk_size, window_size, expected| {
            let request = SnapshotRequest { chunk_size, window_size, ..SnapshotRequest::default() };
            assert_eq!((request.chunk_bytes(), request.in_flight_max()), expected);
        };

        check(0, 0, (128 << 10, 64));
        check(1, 1, (1 << 10, 1));
        check(-5, i64::MIN, (1 << 10, 1));
        check(i64::MAX, i64::MAX, (1 << 20, 32));
        check(1 << 20, 1024, (1 << 20, 1));
        check(1024, i64::MAX, (1024, 32_768));
    }
}
