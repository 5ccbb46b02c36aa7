//! A consumer with a real stream machine behind it.
//!
//! [`World`] is a leader in one place: commands are applied at once, and whatever `poll` wants sent is written down
//! as one line of text.

mod acks;
mod dead;
mod exact;
mod flow;
mod keys;
mod places;
mod priority;
mod pull;
mod pushing;
mod resting;
mod rules;

use std::collections::BTreeSet;

use bytes::Bytes;
use levee_protocol::api::{
    AckKind, AckPolicy, AckReply, ConsumerConfig, ConsumerCreateAction, ConsumerInfo, PullRequest,
    StreamConfig,
};
use levee_protocol::command::{Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::BlockBuilder;
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};

use super::*;
use crate::stream::{Event, MessageView, Outcome, Reply, StreamMachine};
use crate::testing::MemoryView;

pub(super) const START: Timestamp = Timestamp(1_000_000_000_000);

pub(super) struct World {
    pub(super) machine: StreamMachine,
    pub(super) view: MemoryView,
    pub(super) now: Timestamp,
    pub(super) name: ConsumerName,
    pub(super) dispatch: Option<Dispatch>,
    /// Subjects that nobody listens on.
    pub(super) deaf: BTreeSet<Vec<u8>>,
    /// Whether removals are reported to the dispatch, as they should be.
    pub(super) reports: bool,
    /// Whether the dispatch was told of a message that matches since it slept.
    has_heard: bool,
    log_index: u64,
}

impl World {
    /// A stream `S` that captures everything under `c1`, with six messages on `c1.0`, `c1.1`, `c1.2`, `c1.0`, ...
    pub(super) fn with_six_messages() -> Self {
        let mut world = Self::empty(StreamConfig::default());
        for number in 0..6 {
            world.publish(&format!("c1.{}", number % 3), &number.to_string());
        }
        world
    }

    pub(super) fn empty(config: StreamConfig) -> Self {
        let mut world = Self {
            machine: StreamMachine::new(),
            view: MemoryView::default(),
            now: START,
            name: ConsumerName::parse("C").unwrap(),
            dispatch: None,
            deaf: BTreeSet::new(),
            reports: true,
            has_heard: true,
            log_index: 0,
        };
        let config = StreamConfig {
            name: "S".into(),
            subjects: vec!["c1.>".into()],
            max_consumers: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            max_msg_size: -1,
            num_replicas: 1,
            ..config
        };
        let (now, created) = (START, START);
        world.apply(StreamCommand::Configure { now, created, config: Box::new(config) });
        world
    }

    pub(super) fn apply(&mut self, command: StreamCommand) -> Outcome {
        self.log_index += 1;
        let outcome = self.machine.apply(self.log_index, &command, &self.view).unwrap();
        let block = if let StreamCommand::Publish(block) = &command { Some(block) } else { None };
        self.view.change(block, &outcome.changes);
        if let Some(dispatch) = &mut self.dispatch {
            for event in &outcome.events {
                match event {
                    Event::Appended { first, last } => {
                        let matching = |seq: &Seq| {
                            let record = self.view.record(*seq).unwrap();
                            let matches = |filter: &Filter| filter.matches(&record.as_ref().unwrap().subject);
                            dispatch.filters().is_empty() || dispatch.filters().iter().any(matches)
                        };
                        if let Some(first) = (first.0..=last.0).map(Seq).find(matching)
                            && !std::mem::replace(&mut self.has_heard, true)
                        {
                            dispatch.on_match(first);
                        }
                    }
                    Event::Removed { first, last } if self.reports => dispatch.on_removed(*first, *last),
                    Event::ConsumerUpdated { name } => {
                        dispatch.on_configured(self.machine.consumer(name).unwrap(), self.now);
                    }
                    _ => {}
                }
            }
        }
        outcome
    }

    pub(super) fn publish(&mut self, subject: &str, payload: &str) {
        self.publish_all(&[(subject, payload)]);
    }

    pub(super) fn publish_all(&mut self, messages: &[(&str, &str)]) {
        let mut block = BlockBuilder::default();
        for (subject, payload) in messages {
            block.push(subject.as_bytes(), b"", payload.as_bytes());
        }
        self.apply(StreamCommand::Publish(block.finish(self.now)));
    }

    pub(super) fn delete(&mut self, seq: u64) {
        self.apply(StreamCommand::DeleteMessage { now: self.now, seq: Seq(seq) });
    }

    pub(super) fn request(&mut self, config: ConsumerConfig, action: ConsumerCreateAction) -> Reply {
        let (now, name) = (self.now, self.name.clone());
        self.apply(StreamCommand::CreateConsumer {
            now,
            name,
            config: Box::new(config),
            action,
            default_max: 0,
        })
        .reply
    }

    /// Creates the consumer and leads it.
    pub(super) fn consumer(&mut self, config: ConsumerConfig) {
        let reply = self.request(config, ConsumerCreateAction::CreateOrUpdate);
        assert!(matches!(reply, Reply::Consumer(_)), "{reply:?}");
        if self.dispatch.is_none() {
            self.lead();
        }
    }

    /// Another leader takes over: whatever was not committed is lost.
    pub(super) fn lead(&mut self) {
        let ledger = self.machine.consumer(&self.name).unwrap();
        self.dispatch = Some(Dispatch::new(ledger, &self.machine, &self.view, self.now).unwrap());
    }

    pub(super) fn dispatch(&mut self) -> &mut Dispatch {
        self.dispatch.as_mut().unwrap()
    }

    pub(super) fn pull(&mut self, request: PullRequest) -> Vec<String> {
        self.pull_from("mine", request)
    }

    pub(super) fn pull_from(&mut self, inbox: &'static str, request: PullRequest) -> Vec<String> {
        let now = self.now;
        let refused = self.dispatch().on_pull(&request, Bytes::from_static(inbox.as_bytes()), now);
        let mut lines: Vec<String> = refused.iter().map(notice).collect();
        lines.extend(self.run());
        lines
    }

    pub(super) fn next(&mut self, batch: i64) -> Vec<String> {
        self.pull(PullRequest { batch, ..PullRequest::default() })
    }

    pub(super) fn fetch(&mut self, batch: i64) -> Vec<String> {
        self.pull(PullRequest { batch, no_wait: true, ..PullRequest::default() })
    }

    pub(super) fn ack(&mut self, seq: u64, kind: AckKind<'_>) -> AckOutcome {
        let now = self.now;
        let reply = AckReply {
            stream: "S",
            consumer: "C",
            attempt: 1,
            stream_seq: Seq(seq),
            consumer_seq: seq,
            timestamp: Timestamp(0),
            pending: 0,
        };
        self.dispatch().on_ack(&reply, kind, now)
    }

    /// Polls until there is nothing to do.
    pub(super) fn run(&mut self) -> Vec<String> {
        self.run_until_sleep().0
    }

    pub(super) fn run_until_sleep(&mut self) -> (Vec<String>, Option<Timestamp>) {
        let mut lines = Vec::new();
        let interest = |subject: &[u8]| !self.deaf.contains(subject);
        let dispatch = self.dispatch.as_mut().unwrap();
        loop {
            match dispatch.poll(&self.machine, &self.view, &interest, self.now).unwrap() {
                Step::Deliver(delivery) => lines.push(message(&delivery)),
                Step::Notify(status) => lines.push(notice(&status)),
                Step::Advisory(advisory) => lines.push(format!("{advisory:?}")),
                Step::Inactive => lines.push("inactive".into()),
                Step::Sleep(until) => {
                    dispatch.listens();
                    self.has_heard = false;
                    return (lines, until);
                }
            }
        }
    }

    /// Lets time pass, waking whenever the dispatch wants to.
    pub(super) fn pass(&mut self, span: Nanos) -> Vec<String> {
        let end = self.now.plus(span);
        let mut lines = Vec::new();
        loop {
            let (more, wake) = self.run_until_sleep();
            lines.extend(more);
            match wake.filter(|at| *at <= end) {
                Some(at) => {
                    assert!(at > self.now, "wakes at {at:?} without anything to do at {:?}", self.now);
                    self.now = at;
                }
                None => break,
            }
        }
        self.now = end;
        lines.extend(self.run());
        lines
    }

    /// Proposes and applies what happened.
    pub(super) fn commit(&mut self) {
        let Some(progress) = self.dispatch().take_progress() else { return };
        let now = self.now;
        self.apply(StreamCommand::Progress(Progress { now, consumers: vec![progress] }));
    }

    pub(super) fn info(&mut self) -> ConsumerInfo {
        let Self { machine, view, now, dispatch, .. } = self;
        dispatch.as_mut().unwrap().info(machine, view, *now).unwrap()
    }

    /// `delivered consumer/stream, floor consumer/stream, unacked, redelivered, pending`
    pub(super) fn numbers(&mut self) -> [u64; 7] {
        let info = self.info();
        [
            info.delivered.consumer_seq,
            info.delivered.stream_seq.0,
            info.ack_floor.consumer_seq,
            info.ack_floor.stream_seq.0,
            info.num_ack_pending,
            info.num_redelivered,
            info.num_pending,
        ]
    }
}

pub(super) fn explicit() -> ConsumerConfig {
    ConsumerConfig { durable_name: "C".into(), ack_policy: AckPolicy::Explicit, ..ConsumerConfig::default() }
}

pub(super) fn no_acks() -> ConsumerConfig {
    ConsumerConfig { durable_name: "C".into(), ..ConsumerConfig::default() }
}

/// `to subject attempt.stream.consumer pending payload`, like the ack subject.
fn message(delivery: &Delivery) -> String {
    let Delivery { to, record, attempt, consumer_seq, pending } = delivery;
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let header = text(&record.header).replace("\r\n", "|");
    let (to, subject, payload) = (text(to), text(&record.subject), text(&record.payload));
    format!("{to} {subject} {attempt}.{}.{consumer_seq}.{pending} {header}{payload}", record.seq)
}

fn notice(notice: &Notice) -> String {
    let header = String::from_utf8(notice.header.clone()).unwrap();
    let lines: Vec<&str> = header.trim_start_matches("NATS/1.0 ").trim_end().split("\r\n").collect();
    let reply = notice
        .reply
        .as_ref()
        .map_or(String::new(), |reply| format!(" reply {}", String::from_utf8_lossy(reply)));
    format!("{} {}{reply}", String::from_utf8_lossy(&notice.to), lines.join(", "))
}
