//! The replicated half of a consumer: its configuration and its marks.
//!
//! It changes only by commands of its stream's log, so every replica holds the same one. It knows nothing of pull
//! requests, timers or who is connected.

mod encoding;

use levee_protocol::api::{AckPolicy, ConsumerConfig, RetentionPolicy};
use levee_protocol::command::{ConsumerProgress, Undecodable, progress::Settlement};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::settle::{Marks, Run, Sent, push_run};

/// What every replica knows of one consumer.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    pub(crate) name: ConsumerName,
    pub(crate) config: ConsumerConfig,
    pub(crate) filters: Vec<Filter>,
    pub(crate) created: Timestamp,
    /// When it was created or last reset.
    pub(crate) began: Timestamp,
    pub(crate) incarnation: u64,
    pub(crate) marks: Marks,
}

impl Ledger {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ConsumerName {
        &self.name
    }

    /// Its configuration with all defaults filled in. `pause_until` is set while it is or was paused.
    #[must_use]
    pub fn config(&self) -> &ConsumerConfig {
        &self.config
    }

    /// Its filters; none is every message.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// When it was created.
    #[must_use]
    pub fn created(&self) -> Timestamp {
        self.created
    }

    /// The log index of its creation or last reset, which tells it from an earlier consumer of the same name.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What was delivered and settled, as far as this replica has applied.
    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Takes in what the leader reported. Returns the messages that it settled, for retention. They need not be live
    /// any more, and a run of an "ack all" may span messages that the filters do not match. Progress of an earlier
    /// consumer of the same name is dropped. `first_live` is the stream's first sequence.
    pub fn apply_progress(
        &mut self,
        progress: &ConsumerProgress,
        now: Timestamp,
        first_live: Seq,
        retention: RetentionPolicy,
    ) -> Vec<Run> {
        let mut done = Vec::new();
        if progress.incarnation != self.incarnation {
            return done;
        }
        let policy = self.config.ack_policy;
        let before = self.marks.delivered.stream;
        for seq in &progress.passed {
            self.marks.pass(*seq);
        }
        for run in &progress.delivered {
            for offset in 0..u64::from(run.count) {
                let sent = Sent {
                    seq: Seq(run.first_seq.0.saturating_add(offset)),
                    consumer_seq: run.first_consumer_seq.saturating_add(offset),
                    attempt: run.attempt,
                    at: run.at,
                };
                if policy == AckPolicy::None && sent.seq > self.marks.delivered.stream {
                    push_run(&mut done, sent.seq);
                }
                self.marks.deliver(policy, sent);
            }
        }
        if let Some(last) = progress.passed.last() {
            self.marks.advance(*last);
        }
        if progress.through > before {
            // New filters may match what old ones did not. A work queue keeps it for whoever comes for it.
            if retention == RetentionPolicy::Interest {
                done.push(Run { first: before.next(), last: progress.through });
            }
            self.marks.advance(progress.through);
        }
        for (seq, at) in &progress.waits {
            self.marks.wait_from(*seq, *at);
        }
        for message in &progress.dead {
            self.marks.give_up(message);
        }
        for run in &progress.settled {
            if run.how != Settlement::Exhausted {
                self.marks.settled_at = Some(now);
            }
            match run.how {
                Settlement::AckedAll => done.extend(self.marks.settle_all(run.last)),
                Settlement::Acked | Settlement::Terminated => {
                    for seq in (run.first.0..=run.last.0).map(Seq) {
                        self.marks.settle(seq);
                    }
                    done.push(Run { first: run.first, last: run.last });
                }
                Settlement::Exhausted => {
                    for seq in (run.first.0..=run.last.0).map(Seq) {
                        self.marks.exhaust(seq);
                    }
                }
            }
        }
        self.marks.forget_exhausted_below(first_live);
        done
    }

    /// Takes on another configuration, which [`create_or_update`](super::create_or_update) has decided.
    pub fn update(&mut self, config: ConsumerConfig) {
        self.filters = parse_filters(&config);
        self.config = config;
    }

    /// Delivers nothing until this time; a time that is not after `now` resumes.
    pub fn pause(&mut self, until: Timestamp, now: Timestamp) {
        self.config.pause_until = (until > now).then_some(until);
        self.config.store_metadata();
    }

    /// Begins again at `seq`, or after the ack floor, as a consumer that has delivered nothing. Progress that was
    /// reported before `incarnation` counts no more.
    pub fn reset(&mut self, seq: Seq, incarnation: u64, now: Timestamp) {
        self.marks.reset(seq);
        self.incarnation = incarnation;
        self.began = now;
    }

    /// Until when it is paused at this time, if it is.
    #[must_use]
    pub fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.config.pause_until.filter(|until| *until > now)
    }

    /// How long it is still paused.
    #[must_use]
    pub fn pause_remaining(&self, now: Timestamp) -> Nanos {
        self.paused_until(now).map_or(Nanos::ZERO, |until| until.since(now))
    }

    /// Whether messages of this subject concern it: interest, as in interest retention.
    #[must_use]
    pub fn wants(&self, subject: &[u8]) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(subject))
    }

    /// Whether it still has something to do with this message: not delivered yet, not settled, or given up on
    /// (which keeps the message for whoever looks into it).
    #[must_use]
    pub fn needs(&self, seq: Seq, subject: &[u8]) -> bool {
        if !self.wants(subject) {
            return false;
        }
        let marks = &self.marks;
        if seq <= marks.delivered.stream {
            return marks.unacked.contains_key(&seq)
                || marks.exhausted.contains_key(&seq)
                || marks.passed.contains(&seq);
        }
        match &marks.chosen {
            Some(chosen) if seq <= chosen.resume => {
                chosen.seqs.binary_search(&seq).is_ok() && !marks.early.contains(&seq)
            }
            _ => !marks.early.contains(&seq),
        }
    }

    /// The first message that [`Ledger::needs`] can say yes to.
    #[must_use]
    pub fn first_needed(&self) -> Seq {
        let marks = &self.marks;
        let unacked = marks.unacked.keys().next().copied();
        let exhausted = marks.exhausted.keys().next().copied();
        let passed = marks.passed.first().copied();
        let next = marks.delivered.stream.next();
        [unacked, exhausted, passed].into_iter().flatten().fold(next, Seq::min)
    }

    /// The bytes of a checkpoint row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    /// Reads what [`Ledger::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        encoding::decode(bytes)
    }
}

/// The filters of a configuration that was validated; one that does not parse matches nothing and is left out.
pub(crate) fn parse_filters(config: &ConsumerConfig) -> Vec<Filter> {
    config.filters().filter(|filter| *filter != ">").filter_map(|filter| Filter::parse(filter).ok()).collect()
}
