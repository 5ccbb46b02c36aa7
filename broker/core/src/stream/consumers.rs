//! Consumers as part of their stream: they are created, changed and deleted by commands of its log.

use levee_protocol::api::ApiError;
use levee_protocol::ids::ConsumerName;
use levee_protocol::time::Timestamp;

use super::messages::Removals;
use super::outcome::{ConsumerCreated, Event, Outcome, Reply};
use super::reads::Reads;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};
use super::{StreamMachine, retention};
use crate::consumer::{CreateRequest, Creation, create_or_update};

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
        name: &ConsumerName,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let Some(ledger) = self.consumers.remove(name) else {
            return Ok(Outcome::reply(Reply::Rejected(ApiError::consumer_not_found())));
        };
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
}
