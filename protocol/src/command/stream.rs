//! Commands of a stream's group. Every one carries the leader's time; apply clamps it to be non-decreasing.

use crate::api::{ConsumerConfig, ConsumerCreateAction, PurgeRequest, StreamConfig};
use crate::archive::consumer::ArchivedConsumer;
use crate::command::progress::Progress;
use crate::ids::{ConsumerName, Seq};
use crate::record::Block;
use crate::time::Timestamp;

/// One entry of a stream's log.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamCommand {
    /// A batch of publishes. Time: the block's.
    Publish(Block),
    /// Take on this configuration, which meta has decided. The first entry of every stream.
    Configure {
        /// The leader's time.
        now: Timestamp,
        /// When meta created the stream.
        created: Timestamp,
        /// The whole new configuration, defaults filled in.
        config: Box<StreamConfig>,
    },
    /// Remove many messages.
    Purge {
        /// The leader's time.
        now: Timestamp,
        /// Which ones.
        request: PurgeRequest,
    },
    /// Remove one message.
    DeleteMessage {
        /// The leader's time.
        now: Timestamp,
        /// Which one.
        seq: Seq,
    },
    /// Time has passed: age limits, the duplicate window, whatever `next_tick` asked for.
    Tick {
        /// The leader's time.
        now: Timestamp,
    },
    /// Create or update a consumer.
    CreateConsumer {
        /// The leader's time.
        now: Timestamp,
        /// Its name; ephemeral names are drawn by the leader before proposing.
        name: ConsumerName,
        /// Its configuration as requested; apply fills in defaults.
        config: Box<ConsumerConfig>,
        /// Create only, update only, or either.
        action: ConsumerCreateAction,
        /// The leader's `default_max_consumers`.
        default_max: i64,
    },
    /// Remove a consumer.
    DeleteConsumer {
        /// The leader's time.
        now: Timestamp,
        /// Which one.
        name: ConsumerName,
        /// Only if it is still the one with this incarnation, and not a later one of the same name.
        incarnation: Option<u64>,
    },
    /// What consumers delivered and what was acknowledged since the last of these.
    Progress(Progress),
    /// Deliver nothing until this time; `Timestamp::ZERO` resumes.
    PauseConsumer {
        /// The leader's time.
        now: Timestamp,
        /// Which one.
        name: ConsumerName,
        /// Until when.
        until: Timestamp,
    },
    /// The stream takes in what an archive holds, and nothing else until `RestoreEnd`.
    RestoreBegin {
        /// The leader's time.
        now: Timestamp,
        /// The first sequence of the archived stream.
        first: Seq,
    },
    /// A consumer of an archive.
    RestoreConsumer {
        /// The leader's time.
        now: Timestamp,
        /// Its name.
        name: ConsumerName,
        /// Its configuration and marks.
        consumer: Box<ArchivedConsumer>,
    },
    /// Messages of an archive: a block that says at which sequence it is placed. Time: the block's.
    Restore(Block),
    /// The archive was whole, and the stream is one like others from now on.
    RestoreEnd {
        /// The leader's time.
        now: Timestamp,
        /// The last sequence of the archived stream, whether there is a message or not.
        last: Seq,
        /// When it was given out.
        last_time: Timestamp,
    },
    /// Forget what a consumer delivered, and go on from a sequence.
    ResetConsumer {
        /// The leader's time.
        now: Timestamp,
        /// Which one.
        name: ConsumerName,
        /// The next message to look at; `Seq::NONE` is the one after the ack floor.
        seq: Seq,
    },
}

impl StreamCommand {
    /// The leader's time when it proposed this.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Publish(block) | Self::Restore(block) => block.timestamp(),
            Self::Progress(progress) => progress.now,
            Self::Configure { now, .. }
            | Self::Purge { now, .. }
            | Self::DeleteMessage { now, .. }
            | Self::Tick { now }
            | Self::CreateConsumer { now, .. }
            | Self::DeleteConsumer { now, .. }
            | Self::PauseConsumer { now, .. }
            | Self::RestoreBegin { now, .. }
            | Self::RestoreConsumer { now, .. }
            | Self::RestoreEnd { now, .. }
            | Self::ResetConsumer { now, .. } => *now,
        }
    }
}
