//! The stream machine: what a stream does with a command.
//!
//! Every replica applies the same commands in the same order and reaches the same state. Time comes in with the
//! command and never runs backwards. What a rule refuses is a [`Reply`]; an `Err` from [`StreamMachine::apply`] means
//! that this node can not read what it stored.
//!
//! | file | is |
//! |---|---|
//! | [`view`], `reads` | what rules may read beyond their own state |
//! | [`outcome`] | changes, replies, events |
//! | `state` | what is replicated; checkpoint rows |
//! | `messages` | counters, live sequences, and every way a message can leave |
//! | `subjects`, `branches`, `deleted` | the subject index; subjects by their first tokens; removed sequences |
//! | `publish`, `dedup` | expectations, sequencing, rollup; the duplicate window |
//! | `batch`, [`counter`] | messages that are stored together; messages that add up |
//! | `schedules` | messages that say when others are to be published |
//! | [`mirror`] | messages of other streams |
//! | `compose` | what the leader changes about a message before it is proposed |
//! | [`fast`] | what the leader knows about fast batches, and tells their publishers |
//! | `limits`, `retention` | which messages give way, by bounds and by consumers being done |
//! | `expiry`, `markers` | messages that leave at their own time, and what then stands for their subject |
//! | `purge` | removal on request |
//! | [`restore`] | being filled from an archive |
//! | [`update`] | which configuration fields may change |
//! | `query` | what can be asked |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use levee_protocol::api::{ApiError, PurgeRequest, RetentionPolicy, StreamConfig};
use levee_protocol::command::{Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::{Nanos, Timestamp};

use self::dedup::DuplicateWindow;
use self::expiry::Expiries;
use self::markers::OwedMarkers;
use self::messages::{Messages, Removals};
use self::mirror::Sources;
use self::purge::Purge;
use self::reads::Reads;
use self::schedules::Schedules;
use self::state::Settings;
use crate::consumer::{CreateRequest, Ledger};

mod batch;
mod branches;
mod compose;
mod consumers;
pub mod counter;
mod dedup;
mod deleted;
mod expiry;
pub mod fast;
mod limits;
mod markers;
mod messages;
pub mod mirror;
pub mod outcome;
mod publish;
mod purge;
mod query;
mod reads;
pub mod restore;
mod retention;
mod schedules;
mod state;
mod subjects;
pub mod update;
pub mod view;

#[cfg(test)]
mod tests;

pub(crate) use compose::is_sound;
pub use compose::{Composition, Republished};
pub use outcome::{Change, ConsumerCreated, Event, Outcome, PublishReply, Reply};
pub(crate) use purge::SEQ_MAX;
pub use update::{check_consumer_limits, check_update};
pub use view::{MessageView, ReadFailed};

/// Expiry by age is asked for at most this often; publishes expire on their own in between.
const TICK_INTERVAL: Nanos = Nanos::from_millis(250);
/// About so many messages leave at one tick at the most, so that a tick does not hold everything else up.
const EXPIRED_PER_TICK: usize = 50_000;

/// One stream, as replicated.
#[derive(Debug)]
pub struct StreamMachine {
    /// `None` until the first `Configure`.
    settings: Option<Arc<Settings>>,
    created: Timestamp,
    /// The newest time any command carried.
    clock: Timestamp,
    /// The time of the last tick.
    ticked: Timestamp,
    messages: Messages,
    /// Messages that leave at a time of their own.
    expiries: Expiries,
    /// Subjects that are owed a delete marker.
    owed: OwedMarkers,
    /// Schedules in force.
    schedules: Schedules,
    window: DuplicateWindow,
    /// How far the stream has got with its sources.
    sources: Sources,
    /// Message id of the last message, or empty.
    last_msg_id: String,
    /// There may be messages on subjects that the stream does not capture any more.
    has_foreign_subjects: bool,
    consumers: BTreeMap<ConsumerName, Ledger>,
    /// The stream is being filled from an archive.
    restoring: bool,
    /// The last sequence of the archive that the stream was filled from; 0 if there was none.
    restored_to: u64,
    /// The state row differs from what was written.
    dirty: bool,
    dirty_consumers: BTreeSet<ConsumerName>,
}

impl StreamMachine {
    /// A stream before its first command, which must configure it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies one committed command. `log_index` is its place in the log, and names what it creates.
    pub fn apply(
        &mut self,
        log_index: u64,
        command: &StreamCommand,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        self.clock = self.clock.max(command.now());
        self.dirty = true;
        let settings = match (command, &self.settings) {
            (StreamCommand::Configure { created, config, .. }, _) => {
                return self.configure(*created, config, view);
            }
            (_, Some(settings)) => Arc::clone(settings),
            (StreamCommand::Publish(block), None) => {
                let refused = PublishReply::Rejected(ApiError::stream_not_found());
                return Ok(Outcome::reply(Reply::Publish(vec![refused; block.count() as usize])));
            }
            (_, None) => return Ok(Outcome::reply(Reply::Rejected(ApiError::stream_not_found()))),
        };
        if self.restoring {
            return self.apply_restoring(&settings, log_index, command, view);
        }
        match command {
            StreamCommand::Publish(block) => self.publish(&settings, block, view),
            StreamCommand::Configure { .. } => unreachable!("handled above"),
            StreamCommand::Purge { request, .. } => self.purge(&settings, request, view),
            StreamCommand::DeleteMessage { seq, .. } => self.delete_message(&settings, *seq, view),
            StreamCommand::Tick { .. } => self.tick(&settings, view),
            StreamCommand::CreateConsumer { name, config, action, default_max, .. } => {
                let (action, default_max) = (*action, *default_max);
                let request = CreateRequest { name, config, action, default_max, log_index, now: self.clock };
                self.create_consumer(&settings, request, view)
            }
            StreamCommand::DeleteConsumer { name, incarnation, .. } => {
                self.delete_consumer(&settings, (name, *incarnation), view)
            }
            StreamCommand::Progress(progress) => self.progress(&settings, progress, view),
            StreamCommand::PauseConsumer { name, until, .. } => Ok(self.pause_consumer(name, *until)),
            StreamCommand::RestoreBegin { first, .. } => Ok(self.restore_begin(*first)),
            StreamCommand::Restore(_)
            | StreamCommand::RestoreConsumer { .. }
            | StreamCommand::RestoreEnd { .. } => Ok(restore::not_begun()),
            StreamCommand::ResetConsumer { name, seq, .. } => {
                self.reset_consumer(&settings, name, (*seq, log_index), view)
            }
        }
    }

    /// The earliest time at which a `Tick` has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<Timestamp> {
        let settings = self.settings.as_ref().filter(|_| !self.restoring)?;
        let aged = settings
            .limits
            .max_age
            .filter(|_| self.messages.count > 0)
            .map(|age| self.messages.oldest_aging().plus(age).max(self.ticked.plus(TICK_INTERVAL)));
        let expired = self.expiries.next_due().filter(|_| !settings.config.sealed);
        let scheduled = self.schedules.next_due().filter(|_| !settings.config.sealed);
        let forgotten = self.window.empty_at(settings.config.duplicate_window);
        aged.into_iter().chain(expired).chain(scheduled).chain(forgotten).min()
    }

    /// Takes on a configuration that meta has decided. It is not checked again: meta and this log must not disagree.
    fn configure(
        &mut self,
        created: Timestamp,
        config: &StreamConfig,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let settings = Arc::new(Settings::of(config));
        let before = self.settings.replace(Arc::clone(&settings));
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        self.messages.storage = config.storage;
        self.messages.leaves_markers = settings.leaves_markers();
        if !settings.leaves_markers() {
            self.owed.clear();
        }
        let Some(before) = before else {
            self.created = created;
            self.messages.keep_history = settings.limits.keep_history();
            self.messages.begin_at(config.first_seq.min(SEQ_MAX));
            return Ok(Outcome::configured(removals));
        };
        self.has_foreign_subjects |= self.messages.count > 0 && before.may_leave_foreign_subjects(&settings);
        if before.limits.keep_history() != settings.limits.keep_history() {
            self.messages.keep_history = settings.limits.keep_history();
            if self.messages.keep_history {
                self.messages.index_again(self.messages.count, &reads)?;
            } else {
                self.messages.subjects.drop_history();
            }
        }
        let interest = |settings: &Settings| settings.config.retention == RetentionPolicy::Interest;
        if interest(&settings) && !interest(&before) {
            let store = (&mut self.messages, &reads, &mut removals);
            retention::interest_begins(&self.consumers, store)?;
        }
        settings.limits.enforce_all_subjects(&mut self.messages, &reads, &mut removals)?;
        self.enforce(&settings, &reads, &mut removals)?;
        self.window.expire(self.clock, config.duplicate_window);
        self.sources.prune(&settings);
        Ok(Outcome::configured(removals))
    }

    fn purge(
        &mut self,
        settings: &Settings,
        request: &PurgeRequest,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let purge = match Purge::check(&settings.config, request) {
            Ok(purge) => purge,
            Err(error) => return Ok(Outcome::reply(Reply::Rejected(error))),
        };
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        purge.run(&mut self.messages, &reads, &mut removals)?;
        self.messages.settle(&reads)?;
        let count = removals.count;
        Ok(Outcome::removed(removals, Reply::Purged(count)))
    }

    fn delete_message(
        &mut self,
        settings: &Settings,
        seq: Seq,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        if let Err(error) = purge::check_delete(&settings.config, &self.messages, seq.0) {
            return Ok(Outcome::reply(Reply::Rejected(error)));
        }
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        self.messages.remove(seq.0, &reads, &mut removals)?;
        self.messages.settle(&reads)?;
        Ok(Outcome::removed(removals, Reply::Deleted))
    }

    fn tick(&mut self, settings: &Settings, view: &dyn MessageView) -> Result<Outcome, ReadFailed> {
        self.ticked = self.clock;
        self.window.expire(self.clock, settings.config.duplicate_window);
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        if !settings.config.sealed {
            let due = self.expiries.take_due(self.clock, EXPIRED_PER_TICK);
            self.messages.expire(&due, &reads, &mut removals)?;
        }
        self.schedules.forget_gone(self.clock, |seq| self.messages.is_live(seq));
        self.enforce(settings, &reads, &mut removals)?;
        self.expiries.sweep(&self.messages);
        self.schedules.sweep(&self.messages);
        Ok(Outcome::removed(removals, Reply::None))
    }

    /// Removes what is over the limits, and notes what follows from all that a command removed.
    fn enforce(
        &mut self,
        settings: &Settings,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<(), ReadFailed> {
        settings.limits.enforce(&mut self.messages, self.clock, reads, removals)?;
        self.messages.settle(reads)?;
        self.owe_markers(removals);
        Ok(())
    }

    /// Subjects that expired within a command are owed a marker, unless they have messages again.
    fn owe_markers(&mut self, removals: &mut Removals) {
        for subject in removals.expired.drain(..) {
            if self.messages.subjects.position(&subject).is_none() {
                self.owed.owe(subject);
            }
        }
    }

    fn progress(
        &mut self,
        settings: &Settings,
        progress: &Progress,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        for row in &progress.consumers {
            let Some(ledger) = self.consumers.get_mut(&row.name) else { continue };
            let retention = settings.config.retention;
            let settled = ledger.apply_progress(row, self.clock, Seq(self.messages.first), retention);
            if let Some(name) = self.consumers.get_key_value(&row.name).map(|(name, _)| name) {
                self.dirty_consumers.insert(name.clone());
            }
            let store = (&mut self.messages, &reads, &mut removals);
            retention::settled(retention, &self.consumers, &row.name, &settled, store)?;
        }
        self.messages.settle(&reads)?;
        Ok(Outcome::removed(removals, Reply::None))
    }
}
