//! Timing and bounds of the groups of a node.

use std::time::Duration;

/// Settings shared by all groups of a node. The defaults suit nodes of one site; change the times together.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often nodes that share groups show each other that they live. Default 200 ms.
    pub heartbeat: Duration,
    /// Shortest pause between two tries of a node to become the leader of a group. Default 600 ms.
    pub election_min: Duration,
    /// Longest pause, and the silence after which a node is not believed to live: groups that it leads elect. At
    /// least three heartbeats. Default 900 ms.
    pub election_max: Duration,
    /// How often the leader of a group asks its followers whether they still follow. Every group costs this much, and
    /// little depends on it: dead and silent nodes are noticed by `heartbeat`. A leader that is not heard in its group
    /// for three times as long is replaced. Default 10 s.
    pub group_heartbeat: Duration,
    /// A leader that heard from no majority for this long stops calling itself leading, so that clients are told
    /// instead of left waiting. Default 1800 ms; at least two `election_max`. Where only the group does not answer, and its
    /// nodes do, two `group_heartbeat` more.
    pub majority_lost_after: Duration,
    /// How long an append may go unanswered before its connection is taken for stuck. Generous, because a slow
    /// disk answers late and repeating the append makes it later. Default 15 s.
    pub append_timeout: Duration,
    /// How long the next candidate waits for the one before it, when a leader is gone. Default 120 ms.
    pub candidate_stagger: Duration,
    /// How long followers may learn later than the leader that messages are committed, so that the news goes along
    /// with what is appended next. Default 100 ms; zero tells them at once.
    pub commit_delay: Duration,
    /// Append requests under way to one follower of one group. Default 16.
    pub appends_in_flight: usize,
    /// Entry bytes in one append request; a larger entry goes alone. Default 1 MiB.
    pub append_bytes: usize,
    /// Entries in one append request. Default 1024.
    pub append_entries: u64,
    /// Proposals and messages that wait for a group's core; when full, proposals are refused and peers wait.
    /// Default 4096.
    pub group_queue: usize,
    /// How long applied state stays in memory only. Default 1 s.
    pub checkpoint_after: Duration,
    /// Applied bytes after which a checkpoint does not wait. Applying waits for the one that is being written. Default
    /// 16 MiB.
    pub checkpoint_bytes: u64,
    /// The same for groups whose logs are not synced. What their checkpoints cover has to come to the disk first, so they
    /// are fewer, and applying goes on meanwhile. Default 32 MiB.
    pub volatile_checkpoint_bytes: u64,
    /// Applied bytes after which applying does wait in such a group. Default 256 MiB.
    pub volatile_lag_bytes: u64,
    /// Changed rows after which a checkpoint does not wait, unless one is being written: the rows of one checkpoint are one
    /// write, and appends wait behind it. Default 4096.
    pub checkpoint_rows: usize,
    /// Applied entries kept in the log behind the last checkpoint, for followers that are a little late. Default
    /// 1024.
    pub keep_entries: u64,
    /// Bytes of applied entries kept for the same reason, whichever is less. Default 32 MiB.
    pub keep_bytes: u64,
    /// Bytes of applied entries a leader keeps for a live follower that has not got them yet. Beyond it the
    /// follower gets a snapshot. Default 256 MiB.
    pub keep_lagging_bytes: u64,
    /// Purging waits until this many entries can go at once, or until twice `keep_bytes` are there. Default 512.
    pub purge_batch: u64,
    /// Bytes of one snapshot chunk, as a hint to the transport's limits; storage cuts the chunks. Default 1 MiB.
    pub snapshot_chunk_bytes: usize,
    /// Snapshot chunks under way. Default 4.
    pub snapshot_chunks_in_flight: usize,
    /// How long a snapshot chunk or the installation of a snapshot may take. Default 120 s.
    pub snapshot_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(900),
            group_heartbeat: Duration::from_secs(10),
            majority_lost_after: Duration::from_millis(1800),
            append_timeout: Duration::from_secs(15),
            candidate_stagger: Duration::from_millis(120),
            commit_delay: Duration::from_millis(100),
            appends_in_flight: 16,
            append_bytes: 1 << 20,
            append_entries: 1024,
            group_queue: 4096,
            checkpoint_after: Duration::from_secs(1),
            checkpoint_bytes: 16 << 20,
            volatile_checkpoint_bytes: 32 << 20,
            volatile_lag_bytes: 256 << 20,
            checkpoint_rows: 4096,
            keep_entries: 1024,
            keep_bytes: 32 << 20,
            keep_lagging_bytes: 256 << 20,
            purge_batch: 512,
            snapshot_chunk_bytes: 1 << 20,
            snapshot_chunks_in_flight: 4,
            snapshot_timeout: Duration::from_secs(120),
        }
    }
}

impl Config {
    /// openraft's view of it. `volatile` groups may lose the end of their log in a power cut, so their leader must
    /// accept a follower that went back.
    pub(crate) fn openraft(&self, volatile: bool) -> openraft::Config {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: "levee".to_owned(),
            heartbeat_interval: millis(self.group_heartbeat),
            election_timeout_min: millis(self.group_heartbeat * 3),
            election_timeout_max: millis(self.group_heartbeat * 4),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: self.append_entries.max(1),
            // Checkpoints and purges are ours; openraft's own policy would build one every few thousand entries.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // How near a learner must be before it counts as caught up.
            replication_lag_threshold: 128,
            api_channel_size: Some(self.group_queue as u64),
            notification_channel_size: Some(self.group_queue as u64),
            state_machine_channel_size: Some(256),
            // Statistics that nobody asks for, a ring of this size for each of six stages of each group.
            log_stage_capacity: Some(16),
            api_batch_capacity: 256,
            // Followers start receiving an append while the leader's own sync is under way.
            broadcast_submitted_on_append: Some(true),
            enable_pre_vote: Some(true),
            // `elections.rs` does what openraft's timers would.
            enable_tick: false,
            // A restarted leader goes through an election: its promise to lead died with its process, and so did
            // what its followers were told about it.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(volatile),
            backoff: "20ms 50ms 100ms ...500ms".to_owned(),
            ..openraft::Config::default()
        }
    }
}
