//! Deliveries and settlements since the last report, folded into runs.
//!
//! Hot path: one comparison and one addition for most deliveries and acks; a steady consumer reports a few dozen
//! bytes however many messages it had.

use std::collections::BTreeMap;

use levee_protocol::command::ConsumerProgress;
use levee_protocol::command::progress::{DeadMessage, DeliveredRun, SettledRun, Settlement};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::settle::Sent;

/// Deliveries this close together are written down with one time.
const SAME_TIME: Nanos = Nanos::from_millis(10);

/// What happened since the last report.
#[derive(Debug, Default)]
pub(crate) struct Fold {
    passed: Vec<Seq>,
    delivered: Vec<DeliveredRun>,
    through: Seq,
    waits: BTreeMap<Seq, Timestamp>,
    dead: Vec<DeadMessage>,
    settled: Vec<SettledRun>,
    events: u64,
}

impl Fold {
    pub(crate) fn delivered(&mut self, sent: Sent) {
        self.events += 1;
        if !self.waits.is_empty() {
            self.waits.remove(&sent.seq);
        }
        if let Some(run) = self.delivered.last_mut()
            && run.attempt == sent.attempt
            && run.count < u32::MAX
            && run.first_seq.0 + u64::from(run.count) == sent.seq.0
            && run.first_consumer_seq + u64::from(run.count) == sent.consumer_seq
            && sent.at.since(run.at) < SAME_TIME
        {
            run.count += 1;
            return;
        }
        self.delivered.push(DeliveredRun {
            first_consumer_seq: sent.consumer_seq,
            first_seq: sent.seq,
            count: 1,
            attempt: sent.attempt,
            at: sent.at,
        });
    }

    /// Everything up to there was delivered or does not concern the consumer.
    pub(crate) fn through(&mut self, seq: Seq) {
        self.events += 1;
        self.through = seq;
    }

    /// The wait for an ack counts from this time.
    pub(crate) fn waits(&mut self, seq: Seq, at: Timestamp) {
        self.events += 1;
        self.waits.insert(seq, at);
    }

    pub(crate) fn passed(&mut self, seq: Seq) {
        self.events += 1;
        self.passed.push(seq);
    }

    pub(crate) fn given_up(&mut self, message: DeadMessage) {
        self.events += 1;
        self.dead.push(message);
    }

    pub(crate) fn settled(&mut self, seq: Seq, how: Settlement) {
        self.events += 1;
        match self.settled.last_mut() {
            Some(run) if run.how == how && how == Settlement::AckedAll => {
                run.first = run.first.max(seq);
                run.last = run.first;
            }
            Some(run) if run.how == how && run.last.next() == seq => run.last = seq,
            _ => self.settled.push(SettledRun { first: seq, last: seq, how }),
        }
    }

    /// Deliveries and settlements since the last report.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn take(&mut self, name: &ConsumerName, incarnation: u64) -> Option<ConsumerProgress> {
        if self.events == 0 {
            return None;
        }
        self.events = 0;
        Some(ConsumerProgress {
            name: name.clone(),
            incarnation,
            passed: std::mem::take(&mut self.passed),
            delivered: std::mem::take(&mut self.delivered),
            through: std::mem::take(&mut self.through),
            waits: std::mem::take(&mut self.waits).into_iter().collect(),
            dead: std::mem::take(&mut self.dead),
            settled: std::mem::take(&mut self.settled),
        })
    }
}
