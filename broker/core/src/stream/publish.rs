//! Hot path: publishes. Per message without headers: one look at the subject index, no allocation, no reads.
//!
//! This is where a publish is accepted or refused, on every replica and from replicated state alone. Limits of the
//! whole stream are enforced once per block, because evicting needs a read and one read can serve many messages; a
//! message whose acceptance could depend on an eviction makes them happen before it is looked at.

use std::collections::BTreeSet;

use levee_protocol::api::publish::{Rollup, Ttl};
use levee_protocol::api::{ApiError, PublishIntent, RetentionPolicy};
use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, RecordFlags, RecordRef};
use levee_protocol::subject::Filter;

use super::StreamMachine;
use super::batch::{self, Ahead};
use super::counter::{self, PendingSums};
use super::dedup::MsgId;
use super::limits::Wanted;
use super::messages::Removals;
use super::mirror::ORIGIN_CLAIM;
use super::outcome::{Outcome, PublishReply, Reply};
use super::reads::Reads;
use super::retention;
use super::schedules::Scheduling;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};

impl StreamMachine {
    pub(super) fn publish(
        &mut self,
        settings: &Settings,
        block: &Block,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        if block.count() > 0 && block.flags(0) == ORIGIN_CLAIM {
            return self.copy(settings, block, view);
        }
        let first_seq = self.messages.last + 1;
        let (mut reads, mut removals) = self.begin_block(settings, block, view)?;
        let mut replies = Vec::with_capacity(block.count() as usize);
        let mut position = 0;
        let mut broken = BTreeSet::new();
        while position < block.count() {
            let flags = block.flags(position);
            let chain = block.chain(position);
            if chain > 0 && broken.contains(&chain) {
                replies.push(PublishReply::Skipped);
                position += 1;
                continue;
            }
            if flags.contains(RecordFlags::IN_BATCH) {
                let last = batch::end_of(block, position);
                let batch = (block, position, last);
                self.publish_batch(settings, batch, &mut reads, &mut removals, &mut replies)?;
                position = last + 1;
                continue;
            }
            if flags == RecordFlags::CLAIM && position + 1 < block.count() {
                let (claim, fired) = (block.record(position), block.record(position + 1));
                let fired = (&fired, position + 1);
                replies.push(PublishReply::Outdated);
                replies.push(self.fire(settings, &claim, fired, &mut reads, &mut removals)?);
                position += 2;
                continue;
            }
            let record = block.record(position);
            let offered = |intent| Offered { record, intent, flags, ahead: None };
            let admitted = if flags == RecordFlags::MARKER {
                self.admit_marker(settings, &record, &reads)?
            } else if flags == RecordFlags::CLAIM || flags == RecordFlags::FIRED {
                Err(PublishReply::Outdated)
            } else if record.header.is_empty() {
                self.admit(settings, &offered(&PublishIntent::default()), &reads, &mut removals)?
            } else {
                match PublishIntent::parse(record.header) {
                    Ok(intent) => self.admit(settings, &offered(&intent), &reads, &mut removals)?,
                    Err(_) if settings.config.sealed => {
                        Err(PublishReply::Rejected(ApiError::stream_sealed()))
                    }
                    Err(error) => Err(PublishReply::Rejected(error)),
                }
            };
            let reply = match admitted {
                Ok(admitted) => {
                    reads.accept(position);
                    self.store(settings, &record, admitted, &reads, &mut removals)?
                }
                Err(reply) => reply,
            };
            let is_held = matches!(reply, PublishReply::Stored { .. } | PublishReply::Duplicate { .. });
            if chain > 0 && !is_held {
                broken.insert(chain);
            }
            replies.push(reply);
            position += 1;
        }
        self.enforce(settings, &reads, &mut removals)?;
        self.expiries.sweep(&self.messages);
        self.schedules.sweep(&self.messages);
        let accepted = reads.into_accepted();
        Ok(Outcome::stored(Seq(first_seq), block.count(), &accepted, removals, Reply::Publish(replies)))
    }

    /// What is too old makes room before the messages of a block ask for it.
    pub(super) fn begin_block<'a>(
        &mut self,
        settings: &Settings,
        block: &'a Block,
        view: &'a dyn MessageView,
    ) -> Result<(Reads<'a>, Removals), ReadFailed> {
        self.window.expire(self.clock, settings.config.duplicate_window);
        let reads = Reads::with_block(view, block, self.messages.last + 1);
        let mut removals = Removals::default();
        settings.limits.enforce(&mut self.messages, self.clock, &reads, &mut removals)?;
        Ok((reads, removals))
    }

    /// Decides whether a message is stored. The order of the checks is nats-server's, because it decides which error
    /// a client sees.
    pub(super) fn admit<'a>(
        &mut self,
        settings: &Settings,
        offered: &Offered<'a, '_>,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<Result<Admitted<'a>, PublishReply>, ReadFailed> {
        let Offered { record, intent, flags, ahead } = offered;
        let config = &settings.config;
        let refuse = |error| Ok(Err(PublishReply::Rejected(error)));
        if config.sealed {
            return refuse(ApiError::stream_sealed());
        }
        if let Err(error) = settings.limits.check_size(record) {
            return refuse(error);
        }
        let bytes = record.stored_bytes(config.storage);
        let window_open = !config.duplicate_window.is_zero();
        let id = intent.msg_id.filter(|_| window_open).map(MsgId::of);
        let mut admitted = Admitted { msg_id: intent.msg_id, id, ttl: intent.ttl, ..Admitted::sized(bytes) };
        if !record.header.is_empty() {
            if let Err(error) = check_features(settings, offered) {
                return refuse(error);
            }
            // With replicas nats-server looks for duplicates before it looks at expectations, so that a retry is
            // told of its first attempt; without, after them.
            let replicated = config.num_replicas > 1;
            if replicated && let Some(duplicate) = self.duplicate(id, intent.msg_id, *ahead) {
                return Ok(Err(duplicate));
            }
            if intent.expected_last_subject_seq.is_some() {
                settings.limits.enforce(&mut self.messages, self.clock, reads, removals)?;
            }
            if let Err(error) = self.check_sequences(record, intent, *ahead) {
                return refuse(error);
            }
            if let Some(rare) = &intent.rare {
                match self.check_schedule(settings, record, intent, rare) {
                    Ok(scheduling) => admitted.scheduling = scheduling,
                    Err(error) => return refuse(error),
                }
                if rare.stream_source.is_some() {
                    return refuse(ApiError::stream_source_header_not_allowed());
                }
            }
            if !replicated && let Some(duplicate) = self.duplicate(id, intent.msg_id, *ahead) {
                return Ok(Err(duplicate));
            }
            if intent.expected_last_msg_id.is_some() && ahead.is_some() {
                return refuse(ApiError::atomic_unsupported_header("Nats-Expected-Last-Msg-Id"));
            }
            if intent.expected_last_msg_id.is_some_and(|id| id != self.last_msg_id) {
                return refuse(ApiError::wrong_last_msg_id(&self.last_msg_id));
            }
            match intent.rollup {
                None => {}
                Some(_) if !config.allow_rollup_hdrs || config.deny_purge => {
                    return refuse(ApiError::rollup_failed("rollup not permitted"));
                }
                Some(Rollup::Invalid(value)) => return refuse(Rollup::refused(value)),
                Some(Rollup::Subject) => admitted.rollup = Some(Scope::Subject),
                Some(Rollup::All) => admitted.rollup = Some(Scope::Stream),
            }
            if let Scheduling::Next(_) = admitted.scheduling {
                admitted.rollup = Some(Scope::Subject);
            }
            if let Some(Err(error)) = ahead.map(|ahead| ahead.check(record, intent)) {
                return refuse(error);
            }
        }
        if intent.ttl == Some(Ttl::Invalid) {
            return refuse(ApiError::ttl_invalid());
        }
        if config.allow_msg_counter {
            match self.count(offered, reads)? {
                Ok(sum) => admitted.sum = Some(sum),
                Err(reply) => return Ok(Err(reply)),
            }
        }
        if let Some(rare) = &intent.rare
            && rare.batch_id.is_some()
            && !flags.contains(RecordFlags::IN_BATCH)
        {
            return Ok(Err(PublishReply::Outdated));
        }
        let rolls_up = admitted.rollup.is_some();
        let wanted = Wanted { record, bytes, rolls_up, ahead: *ahead };
        match settings.limits.check_room(&mut self.messages, &wanted, reads)? {
            Some(error) => refuse(error),
            None => Ok(Ok(admitted)),
        }
    }

    /// The sum in an increment, if it is right.
    fn count(
        &self,
        offered: &Offered<'_, '_>,
        reads: &Reads<'_>,
    ) -> Result<Result<String, PublishReply>, ReadFailed> {
        let Some(increment) = offered.intent.rare.as_ref().and_then(|rare| rare.increment) else {
            return Ok(Err(PublishReply::Rejected(ApiError::counter_increment_missing())));
        };
        let none = PendingSums::new();
        let pending = offered.ahead.map_or(&none, |ahead| &ahead.sums);
        Ok(match self.sum_on(offered.record.subject, increment, pending, reads)? {
            Err(error) => Err(PublishReply::Rejected(error)),
            Ok(sum)
                if offered.flags.contains(RecordFlags::COUNTED)
                    && counter::body(&sum) == offered.record.payload =>
            {
                Ok(sum)
            }
            Ok(_) => Err(PublishReply::Outdated),
        })
    }

    /// Decides whether a delete marker is stored: as long as its subject is owed one.
    fn admit_marker<'a>(
        &mut self,
        settings: &Settings,
        record: &RecordRef<'a>,
        reads: &Reads<'_>,
    ) -> Result<Result<Admitted<'a>, PublishReply>, ReadFailed> {
        if !self.owed.settle(record.subject) || settings.config.sealed {
            return Ok(Err(PublishReply::Outdated));
        }
        let bytes = record.stored_bytes(settings.config.storage);
        let wanted = Wanted { record, bytes, rolls_up: true, ahead: None };
        if settings.limits.check_room(&mut self.messages, &wanted, reads)?.is_some() {
            return Ok(Err(PublishReply::Outdated));
        }
        let ttl = PublishIntent::parse(record.header).ok().and_then(|intent| intent.ttl);
        Ok(Ok(Admitted { ttl, ..Admitted::sized(bytes) }))
    }

    fn duplicate(
        &self,
        id: Option<MsgId>,
        text: Option<&str>,
        ahead: Option<&Ahead<'_>>,
    ) -> Option<PublishReply> {
        let seq = self.window.find(id?);
        match ahead {
            Some(ahead) => (seq.is_some() || text.is_some_and(|text| ahead.ids.contains(text)))
                .then(|| PublishReply::Rejected(ApiError::atomic_duplicate_msg_id())),
            None => Some(PublishReply::Duplicate { seq: seq? }),
        }
    }

    fn check_sequences(
        &self,
        record: &RecordRef<'_>,
        intent: &PublishIntent<'_>,
        ahead: Option<&Ahead<'_>>,
    ) -> Result<(), ApiError> {
        if let Some(ahead) = ahead.filter(|ahead| ahead.count > 0) {
            let about = intent.expected_last_subject.map_or(record.subject, str::as_bytes);
            let own = intent.expected_last_subject_seq.is_some() && ahead.touches(about);
            if own || intent.expected_last_seq.is_some() {
                return Err(ApiError::wrong_last_sequence_constant());
            }
        }
        match (intent.expected_last_subject_seq, intent.expected_last_subject) {
            (Some(expected), subject) => {
                let last = match subject {
                    None => self.messages.subjects.get(record.subject).map(|entry| entry.last),
                    Some(other) => {
                        Filter::parse(other).ok().and_then(|filter| self.last_for(&filter)).map(|seq| seq.0)
                    }
                };
                let last = last.unwrap_or(0);
                if last != expected {
                    return Err(ApiError::wrong_last_sequence(last));
                }
            }
            (None, Some(_)) => return Err(ApiError::expected_subject_without_sequence()),
            (None, None) => {}
        }
        match intent.expected_last_seq {
            Some(expected) if expected != self.messages.last => {
                Err(ApiError::wrong_last_sequence(self.messages.last))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn store(
        &mut self,
        settings: &Settings,
        record: &RecordRef<'_>,
        admitted: Admitted<'_>,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<PublishReply, ReadFailed> {
        let Admitted { bytes, msg_id, id, rollup, ttl, sum: _, scheduling } = admitted;
        let mut before = Seq(0);
        let retention = settings.config.retention;
        let seq = if retention != RetentionPolicy::Interest
            || retention::is_wanted(&self.consumers, record.subject)
        {
            // A mirror is as old as its origin.
            let now = if settings.config.mirror.is_some() { record.timestamp } else { self.clock };
            let appended = self.messages.append(record, bytes, now);
            match ttl {
                None | Some(Ttl::Invalid) => {}
                Some(Ttl::Never) => self.messages.exempt_last(),
                Some(Ttl::After(span)) => {
                    self.expiries.add(
                        appended.seq,
                        record.timestamp.plus(settings.ttl_min().map_or(span, |least| span.max(least))),
                    );
                }
            }
            if !self.owed.is_empty() {
                self.owed.settle(record.subject);
            }
            match rollup {
                None => settings.limits.enforce_subject(&mut self.messages, &appended, reads, removals)?,
                Some(Scope::Stream) => self.messages.remove_below(appended.seq, reads, removals)?,
                Some(Scope::Subject) => {
                    self.messages.remove_older(appended.subject, appended.seq, reads, removals)?;
                }
            }
            self.note_schedule(record.subject, appended.seq, scheduling, reads, removals)?;
            before = Seq(appended.before);
            Seq(appended.seq)
        } else {
            Seq(self.messages.skip(self.clock, removals))
        };
        if let Some(id) = id {
            self.window.remember(id, seq, self.clock);
        }
        self.last_msg_id.clear();
        self.last_msg_id.push_str(msg_id.unwrap_or_default());
        Ok(PublishReply::Stored { seq, before })
    }
}

/// A record that is looked at.
pub(crate) struct Offered<'a, 'b> {
    pub(crate) record: RecordRef<'a>,
    pub(crate) intent: &'b PublishIntent<'a>,
    pub(crate) flags: RecordFlags,
    /// What messages before it in its batch will change, if it is in one.
    pub(crate) ahead: Option<&'b Ahead<'a>>,
}

/// A message that will be stored.
pub(crate) struct Admitted<'a> {
    bytes: u64,
    msg_id: Option<&'a str>,
    /// The same for the duplicate window, if the stream has one.
    id: Option<MsgId>,
    rollup: Option<Scope>,
    ttl: Option<Ttl>,
    /// Of a counter.
    sum: Option<String>,
    scheduling: Scheduling,
}

impl<'a> Admitted<'a> {
    fn sized(bytes: u64) -> Self {
        Self {
            bytes,
            msg_id: None,
            id: None,
            rollup: None,
            ttl: None,
            sum: None,
            scheduling: Scheduling::None,
        }
    }

    /// A message of a schedule.
    pub(crate) fn of_schedule(bytes: u64, ttl: Option<Ttl>, rolls_up: bool) -> Self {
        Self { ttl, rollup: rolls_up.then_some(Scope::Subject), ..Self::sized(bytes) }
    }

    /// A message of another stream, with its id, and once more if the window is to remember it.
    pub(crate) fn copied(
        bytes: u64,
        (msg_id, id): (Option<&'a str>, Option<MsgId>),
        ttl: Option<Ttl>,
        rollup: Option<Rollup<'_>>,
    ) -> Self {
        let rollup = rollup.and_then(|rollup| match rollup {
            Rollup::Subject => Some(Scope::Subject),
            Rollup::All => Some(Scope::Stream),
            Rollup::Invalid(_) => None,
        });
        Self { msg_id, id, ttl, rollup, ..Self::sized(bytes) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn sum(&self) -> Option<&str> {
        self.sum.as_deref()
    }
}

/// What a message replaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Subject,
    Stream,
}

/// Headers of features that the stream has to allow.
fn check_features(settings: &Settings, offered: &Offered<'_, '_>) -> Result<(), ApiError> {
    let Offered { record, intent, flags, .. } = offered;
    if let Some(rare) = &intent.rare {
        if rare.batch_id.is_some() && !settings.config.allow_atomic {
            return Err(ApiError::atomic_disabled());
        }
        if rare.increment.is_some() {
            if !settings.config.allow_msg_counter {
                return Err(ApiError::counter_disabled());
            }
            counter::check(record, intent, rare, flags.contains(RecordFlags::COUNTED))?;
        }
    }
    if intent.expected_stream.is_some_and(|stream| stream != settings.config.name) {
        return Err(ApiError::stream_not_match());
    }
    match intent.ttl {
        Some(Ttl::After(_) | Ttl::Never) if !settings.config.allow_msg_ttl => Err(ApiError::ttl_disabled()),
        _ => Ok(()),
    }
}
