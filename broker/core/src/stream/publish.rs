//! Hot path: publishes. Per message without headers: one look at the subject index, no allocation, no reads.
//!
//! This is where a publish is accepted or refused, on every replica and from replicated state alone. Limits of the
//! whole stream are enforced once per block, because evicting needs a read and one read can serve many messages; a
//! message whose acceptance could depend on an eviction makes them happen before it is looked at.

use levee_protocol::api::publish::{Rollup, Ttl};
use levee_protocol::api::{ApiError, PublishIntent, RetentionPolicy};
use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, RecordFlags, RecordRef};
use levee_protocol::subject::Filter;

use super::StreamMachine;
use super::dedup::MsgId;
use super::messages::Removals;
use super::outcome::{Outcome, PublishReply, Reply};
use super::reads::Reads;
use super::retention;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};

impl StreamMachine {
    pub(super) fn publish(
        &mut self,
        settings: &Settings,
        block: &Block,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        self.window.expire(self.clock, settings.config.duplicate_window);
        let first_seq = self.messages.last + 1;
        let mut reads = Reads::with_block(view, block, first_seq);
        let mut removals = Removals::default();
        // What is too old makes room before new messages ask for it.
        settings.limits.enforce(&mut self.messages, self.clock, &reads, &mut removals)?;
        let mut replies = Vec::with_capacity(block.count() as usize);
        for position in 0..block.count() {
            let record = block.record(position);
            let admitted = if block.flags(position) == RecordFlags::MARKER {
                self.admit_marker(settings, &record, &reads)?
            } else if record.header.is_empty() {
                self.admit(settings, &record, &PublishIntent::default(), &reads, &mut removals)?
            } else {
                match PublishIntent::parse(record.header) {
                    Ok(intent) => self.admit(settings, &record, &intent, &reads, &mut removals)?,
                    Err(_) if settings.config.sealed => {
                        Err(PublishReply::Rejected(ApiError::stream_sealed()))
                    }
                    Err(error) => Err(PublishReply::Rejected(error)),
                }
            };
            let admitted = match admitted {
                Ok(admitted) => admitted,
                Err(reply) => {
                    replies.push(reply);
                    continue;
                }
            };
            reads.accept(position);
            let seq = self.store(settings, &record, admitted, &reads, &mut removals)?;
            replies.push(PublishReply::Stored { seq });
        }
        settings.limits.enforce(&mut self.messages, self.clock, &reads, &mut removals)?;
        self.messages.settle(&reads)?;
        self.owe_markers(&mut removals);
        self.expiries.sweep(&self.messages);
        let accepted = reads.into_accepted();
        Ok(Outcome::stored(Seq(first_seq), block.count(), &accepted, removals, Reply::Publish(replies)))
    }

    /// Decides whether a message is stored. The order of the checks is nats-server's, because it decides which error
    /// a client sees.
    fn admit<'a>(
        &mut self,
        settings: &Settings,
        record: &RecordRef<'_>,
        intent: &PublishIntent<'a>,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<Result<Admitted<'a>, PublishReply>, ReadFailed> {
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
        let mut admitted = Admitted { bytes, msg_id: intent.msg_id, id, rollup: None, ttl: intent.ttl };
        if !record.header.is_empty() {
            if let Err(error) = check_features(settings, intent) {
                return refuse(error);
            }
            // With replicas nats-server looks for duplicates before it looks at expectations, so that a retry is
            // told of its first attempt; without, after them.
            let replicated = config.num_replicas > 1;
            if replicated && let Some(duplicate) = self.duplicate(id) {
                return Ok(Err(duplicate));
            }
            if intent.expected_last_subject_seq.is_some() {
                settings.limits.enforce(&mut self.messages, self.clock, reads, removals)?;
            }
            if let Err(error) = self.check_sequences(record, intent) {
                return refuse(error);
            }
            if let Err(error) = check_late_features(intent) {
                return refuse(error);
            }
            if !replicated && let Some(duplicate) = self.duplicate(id) {
                return Ok(Err(duplicate));
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
        }
        if intent.ttl == Some(Ttl::Invalid) {
            return refuse(ApiError::ttl_invalid());
        }
        let rolls_up = admitted.rollup.is_some();
        match settings.limits.check_room(&mut self.messages, record, bytes, rolls_up, reads)? {
            Some(error) => refuse(error),
            None => Ok(Ok(admitted)),
        }
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
        if settings.limits.check_room(&mut self.messages, record, bytes, true, reads)?.is_some() {
            return Ok(Err(PublishReply::Outdated));
        }
        let ttl = PublishIntent::parse(record.header).ok().and_then(|intent| intent.ttl);
        Ok(Ok(Admitted { bytes, msg_id: None, id: None, rollup: None, ttl }))
    }

    fn duplicate(&self, id: Option<MsgId>) -> Option<PublishReply> {
        let seq = self.window.find(id?)?;
        Some(PublishReply::Duplicate { seq })
    }

    fn check_sequences(&self, record: &RecordRef<'_>, intent: &PublishIntent<'_>) -> Result<(), ApiError> {
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

    fn store(
        &mut self,
        settings: &Settings,
        record: &RecordRef<'_>,
        admitted: Admitted<'_>,
        reads: &Reads<'_>,
        removals: &mut Removals,
    ) -> Result<Seq, ReadFailed> {
        let Admitted { bytes, msg_id, id, rollup, ttl } = admitted;
        let retention = settings.config.retention;
        let seq = if retention != RetentionPolicy::Interest
            || retention::is_wanted(&self.consumers, record.subject)
        {
            let appended = self.messages.append(record, bytes, self.clock);
            match ttl {
                None | Some(Ttl::Invalid) => {}
                Some(Ttl::Never) => self.messages.exempt_last(),
                Some(Ttl::After(span)) => {
                    self.expiries.add(appended.seq, record.timestamp.plus(settings.time_to_live(span)));
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
            Seq(appended.seq)
        } else {
            Seq(self.messages.skip(self.clock, removals))
        };
        if let Some(id) = id {
            self.window.remember(id, seq, self.clock);
        }
        self.last_msg_id.clear();
        self.last_msg_id.push_str(msg_id.unwrap_or_default());
        Ok(seq)
    }
}

/// A message that will be stored.
struct Admitted<'a> {
    bytes: u64,
    msg_id: Option<&'a str>,
    /// The same for the duplicate window, if the stream has one.
    id: Option<MsgId>,
    rollup: Option<Scope>,
    ttl: Option<Ttl>,
}

/// What a message replaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Subject,
    Stream,
}

/// Headers of features that the stream has to allow, and that no stream has yet.
fn check_features(settings: &Settings, intent: &PublishIntent<'_>) -> Result<(), ApiError> {
    if let Some(rare) = &intent.rare {
        if rare.batch_id.is_some() {
            return Err(ApiError::atomic_disabled());
        }
        if rare.increment.is_some() {
            return Err(ApiError::counter_disabled());
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

/// Headers that are looked at after expected sequences.
fn check_late_features(intent: &PublishIntent<'_>) -> Result<(), ApiError> {
    let Some(rare) = &intent.rare else { return Ok(()) };
    if rare.schedule.is_some() {
        return Err(ApiError::schedules_disabled());
    }
    if rare.stream_source.is_some() {
        return Err(ApiError::stream_source_header_not_allowed());
    }
    Ok(())
}
