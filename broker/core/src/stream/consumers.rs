//! Consumers as part of their stream: they are created, changed and deleted by commands of its log.

use levee_protocol::api::{ApiError, ConsumerConfig, DeliverPolicy};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::Timestamp;

use super::messages::Removals;
use super::outcome::{ConsumerCreated, Event, Outcome, Reply};
use super::reads::Reads;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};
use super::{StreamMachine, retention};
use crate::consumer::{CreateRequest, Creation, Ledger, create_or_update};

impl StreamMachine {
    pub(super) fn create_consumer(
        &mut self,
        settings: &Settings,
        request: CreateRequest<'_>,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let name = request.name.clone();
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        let mut created = false;
        let mut changed = true;
        match create_or_update(request, &self.consumers, self, view)? {
            Creation::Rejected(error) => return Ok(Outcome::reply(Reply::Rejected(error))),
            Creation::Unchanged => changed = false,
            Creation::Created(ledger) => {
                created = true;
                self.consumers.insert(name.clone(), *ledger);
            }
            Creation::Updated(config) => {
                let ledger = self.consumers.get_mut(&name).expect("an update is of a consumer that exists");
                let before = ledger.clone();
                ledger.update(*config);
                if before.filters() != ledger.filters() {
                    let store = (&mut self.messages, &reads, &mut removals);
                    retention::released(settings.config.retention, &self.consumers, &before, store)?;
                    self.messages.settle(&reads)?;
                }
            }
        }
        let mut outcome = Outcome::removed(
            removals,
            Reply::Consumer(Box::new(ConsumerCreated { name: name.clone(), created })),
        );
        if created {
            outcome.events.push(Event::ConsumerCreated { name: name.clone() });
        } else if changed {
            outcome.events.push(Event::ConsumerUpdated { name: name.clone() });
        }
        if changed {
            self.dirty_consumers.insert(name);
        }
        Ok(outcome)
    }

    pub(super) fn delete_consumer(
        &mut self,
        settings: &Settings,
        (name, incarnation): (&ConsumerName, Option<u64>),
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let is_meant = |ledger: &Ledger| incarnation.is_none_or(|meant| meant == ledger.incarnation());
        if !self.consumers.get(name).is_some_and(is_meant) {
            return Ok(Outcome::reply(Reply::Rejected(ApiError::consumer_not_found())));
        }
        let ledger = self.consumers.remove(name).expect("it was there a moment ago");
        self.dirty_consumers.insert(name.clone());
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        let store = (&mut self.messages, &reads, &mut removals);
        retention::released(settings.config.retention, &self.consumers, &ledger, store)?;
        self.messages.settle(&reads)?;
        let mut outcome = Outcome::removed(removals, Reply::ConsumerDeleted);
        let config = Box::new(ledger.config().clone());
        outcome.events.insert(0, Event::ConsumerDeleted { name: name.clone(), config });
        Ok(outcome)
    }

    pub(super) fn pause_consumer(&mut self, name: &ConsumerName, until: Timestamp) -> Outcome {
        let Some(ledger) = self.consumers.get_mut(name) else {
            return Outcome::reply(Reply::Rejected(ApiError::consumer_not_found()));
        };
        ledger.pause(until, self.clock);
        let until = ledger.paused_until(self.clock).unwrap_or(Timestamp::ZERO);
        self.dirty_consumers.insert(name.clone());
        let mut outcome = Outcome::reply(Reply::Paused { until });
        outcome.events.push(Event::ConsumerUpdated { name: name.clone() });
        outcome
    }

    /// The new start and the log index that tells reports of before from those of after.
    pub(super) fn reset_consumer(
        &mut self,
        settings: &Settings,
        name: &ConsumerName,
        (seq, log_index): (Seq, u64),
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let reads = Reads::stored_only(view);
        let Some(ledger) = self.consumers.get(name) else {
            return Ok(Outcome::reply(Reply::Rejected(ApiError::consumer_not_found())));
        };
        if let Err(why) = may_start_at(ledger.config(), seq, Seq(self.messages.last), view)? {
            return Ok(Outcome::reply(Reply::Rejected(ApiError::invalid_reset(why))));
        }
        let before = ledger.clone();
        let ledger = self.consumers.get_mut(name).expect("it was there a moment ago");
        ledger.reset(seq, log_index, self.clock);
        let seq = ledger.marks().floor().stream.next();
        let mut removals = Removals::default();
        let store = (&mut self.messages, &reads, &mut removals);
        retention::released(settings.config.retention, &self.consumers, &before, store)?;
        self.messages.settle(&reads)?;
        self.dirty_consumers.insert(name.clone());
        let mut outcome = Outcome::removed(removals, Reply::Reset { seq });
        outcome.events.push(Event::ConsumerUpdated { name: name.clone() });
        Ok(outcome)
    }
}

/// Whether a consumer's deliver policy allows a reset to this sequence; in the words of NATS.
fn may_start_at(
    config: &ConsumerConfig,
    seq: Seq,
    last: Seq,
    view: &dyn MessageView,
) -> Result<Result<(), &'static str>, ReadFailed> {
    if seq == Seq::NONE {
        return Ok(Ok(()));
    }
    Ok(match config.deliver_policy {
        DeliverPolicy::All => Ok(()),
        DeliverPolicy::ByStartSequence if seq.0 < config.opt_start_seq => Err("below start seq"),
        DeliverPolicy::ByStartSequence => Ok(()),
        DeliverPolicy::ByStartTime => {
            let first = match config.opt_start_time {
                Some(at) => view.seek_time(at)?.unwrap_or_else(|| last.next()),
                None => Seq::NONE,
            };
            if seq < first { Err("below start time") } else { Ok(()) }
        }
        DeliverPolicy::Last | DeliverPolicy::LastPerSubject | DeliverPolicy::New => Err("not allowed"),
    })
}
