//! The leader's half of a consumer: what to deliver next, or when to look again.
//!
//! Hot path: `poll` for a message that is read ahead costs a few comparisons, one insertion among the unacked and
//! no allocation.
//!
//! Everything here is decided from what was handed in; time comes in as an argument.

mod acks;
mod committed;
mod deliver;
mod flow;
mod step;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use levee_protocol::api::duration_text::format_duration;
use levee_protocol::api::{
    ConsumerConfig, ConsumerInfo, Extensions, PullRequest, ReplayPolicy, SequenceInfo,
};
use levee_protocol::command::ConsumerProgress;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};

use self::acks::Samples;
use self::committed::Held;
pub use self::committed::Posted;
use self::deliver::{Next, Replay};
pub use self::step::{AckOutcome, Advisory, Confirm, Delivery, Step, UnpinReason};
use crate::consumer::backlog::{Backlog, Reading};
use crate::consumer::backoff::{Deadlines, wait_after};
use crate::consumer::dead_letter::Outgoing;
use crate::consumer::fold::Fold;
use crate::consumer::keyed::Keyed;
use crate::consumer::ledger::Ledger;
use crate::consumer::notice::{Closed, Notice};
use crate::consumer::priority::{Priority, Standing};
use crate::consumer::push::Push;
use crate::consumer::settle::{Marks, Run};
use crate::consumer::slots::Slots;
use crate::consumer::source::Source;
use crate::consumer::waiting::{Waiter, Waiting};
use crate::stream::{MessageView, ReadFailed};

/// How long to wait before asking again for an inactive consumer to be deleted.
const INACTIVE_AGAIN: Nanos = Nanos::from_secs(1);
/// For how long acks are believed that belong to deliveries of the leader before.
const INHERITANCE: Nanos = Nanos::from_secs(60);
/// For how long acks may come that are of before a reset, or meant for an earlier consumer of the same name. Nothing
/// tells them from those of the leader before.
const STRAYS: Nanos = INHERITANCE;
/// A consumer this young had no leader before.
const NEWBORN: Nanos = Nanos::from_secs(1);
/// Waiting requests, when the configuration sets no limit.
const MAX_WAITING_DEFAULT: usize = 512;

/// The leader's half of one consumer.
#[derive(Debug)]
pub struct Dispatch {
    name: ConsumerName,
    stream_name: String,
    incarnation: u64,
    created: Timestamp,
    config: ConsumerConfig,
    extensions: Extensions,
    filters: Vec<Filter>,
    /// A copy of the ledger's marks that runs ahead of the log.
    marks: Marks,
    fold: Fold,
    backlog: Backlog,
    /// Messages to deliver again.
    ready: BTreeSet<Seq>,
    slots: Slots,
    keyed: Option<Keyed>,
    /// Deliveries that wait for their mark to be committed.
    held: VecDeque<Held>,
    dead_letters: Outgoing,
    deadlines: Deadlines,
    /// Pull requests that `poll` has not looked at yet.
    arrived: VecDeque<Waiter>,
    waiting: Waiting,
    priority: Priority,
    push: Option<Push>,
    replay: Option<Replay>,
    samples: Samples,
    outbox: VecDeque<Step>,
    /// Length of the constant part of an ack subject, for the sizes of messages.
    ack_subject_base: usize,
    interest_changed: bool,
    /// Until when an ack of something that this leader has not delivered is taken for one of the leader before. At
    /// other times it is a stray, perhaps meant for an earlier consumer of the same name.
    inherits_until: Timestamp,
    used_at: Timestamp,
    inactive_at: Option<Timestamp>,
    /// Until when it is paused, as was told; the end of that is told too.
    told_paused: Option<Timestamp>,
    /// The stream's last sequence when this leader took over.
    began_at: Seq,
}

/// Which changes a consumer has to look at when they happen. What it does not look at it finds out later.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Attention {
    /// None: nobody waits for it.
    None,
    /// Messages that leave the stream, because some are unacked.
    Removals,
    /// Whatever happens to the stream: somebody waits for messages.
    All,
}

impl Dispatch {
    /// Takes over from the ledger. Deliveries that were unacked are repeated when their wait is over.
    pub fn new(
        ledger: &Ledger,
        stream: &dyn Source,
        view: &dyn MessageView,
        now: Timestamp,
    ) -> Result<Self, ReadFailed> {
        let stream_name = stream.config().map(|config| config.name.clone()).unwrap_or_default();
        let mut dispatch = Self {
            name: ledger.name.clone(),
            ack_subject_base: "$JS.ACK.......".len() + stream_name.len() + ledger.name.as_str().len(),
            stream_name,
            incarnation: ledger.incarnation,
            created: ledger.created,
            config: ConsumerConfig::default(),
            extensions: Extensions::default(),
            filters: Vec::new(),
            marks: ledger.marks.clone(),
            fold: Fold::default(),
            backlog: Backlog::default(),
            ready: BTreeSet::new(),
            slots: Slots::default(),
            keyed: None,
            held: VecDeque::new(),
            dead_letters: Outgoing::default(),
            deadlines: Deadlines::default(),
            arrived: VecDeque::new(),
            waiting: Waiting::default(),
            priority: Priority::default(),
            push: None,
            replay: None,
            samples: Samples::default(),
            outbox: VecDeque::new(),
            interest_changed: true,
            inherits_until: if now.since(ledger.began) > STRAYS {
                now.plus(INHERITANCE)
            } else {
                Timestamp::ZERO
            },
            used_at: now,
            inactive_at: None,
            // The leader before has told.
            began_at: stream.last_seq(),
            told_paused: if now.since(ledger.created) > NEWBORN { ledger.paused_until(now) } else { None },
        };
        if ledger.config.replay_policy == ReplayPolicy::Original {
            dispatch.replay = Some(Replay { until: stream.last_seq(), before: None });
        }
        dispatch.configure(ledger, now);
        dispatch.drop_dead(stream);
        dispatch.reopen_keys(view)?;
        for seq in dispatch.marks.dead.keys() {
            dispatch.dead_letters.add(*seq, now);
        }
        Ok(dispatch)
    }

    /// A pull request. Returns what is refused at once; everything else is decided by `poll`.
    pub fn on_pull(&mut self, request: &PullRequest, reply: Bytes, now: Timestamp) -> Vec<Notice> {
        if self.push.is_some() {
            return vec![Notice::push_based(reply)];
        }
        let config = &self.config;
        if request.idle_heartbeat > Nanos::ZERO
            && request.idle_heartbeat.0.saturating_mul(2) > request.expires.0
        {
            return vec![Notice::bad_request(reply, "heartbeat value too large")];
        }
        if config.max_batch > 0 && request.batch > config.max_batch {
            return vec![Notice::exceeded(reply, &format!("MaxRequestBatch of {}", config.max_batch))];
        }
        if config.max_expires > Nanos::ZERO && request.expires > config.max_expires {
            return vec![Notice::exceeded(
                reply,
                &format!("MaxRequestExpires of {}", format_duration(config.max_expires)),
            )];
        }
        if config.max_bytes > 0 && request.max_bytes > config.max_bytes {
            return vec![Notice::exceeded(reply, &format!("MaxRequestMaxBytes of {}", config.max_bytes))];
        }
        let standing = match self.priority.admit(request, now) {
            Ok(standing) => standing,
            Err((code, text)) => return vec![Notice::status(reply, code, text)],
        };
        if request.expires < Nanos::ZERO {
            return vec![Waiter::new(request, Standing::default(), reply, now).timeout()];
        }
        self.used_at = now;
        let mut notices = Vec::new();
        if self.is_full() {
            self.waiting.due(self.marks.delivered, None, now, |notice| notices.push(notice));
        }
        if !self.is_full() {
            self.arrived.push_back(Waiter::new(request, standing, reply, now));
        } else if request.idle_heartbeat.is_zero() {
            notices.push(Notice::exceeded(reply, "MaxWaiting"));
        }
        notices
    }

    /// From here on the caller says with [`on_match`](Self::on_match) when a message is stored that one of the
    /// [`filters`](Self::filters) matches. To be called in the moment of the last `poll`.
    pub fn listens(&mut self) {
        self.backlog.listens();
    }

    /// This message was stored, and no matching one before it since it began to listen.
    pub fn on_match(&mut self, first: Seq) {
        self.backlog.heard(first);
    }

    /// What it delivers; no filter is everything.
    #[must_use]
    pub fn filters(&self) -> &[Filter] {
        &self.filters
    }

    /// Messages whose end it has to hear of: those that are unacked, and those that were passed over for their keys.
    pub fn open(&self) -> impl Iterator<Item = Seq> {
        self.marks.unacked.keys().chain(&self.marks.passed).copied()
    }

    /// The first and the last of those; without any, a first behind the last.
    #[must_use]
    pub fn open_between(&self) -> (Seq, Seq) {
        let Marks { unacked, passed, .. } = &self.marks;
        let firsts = [unacked.keys().next(), passed.first()].into_iter().flatten();
        let lasts = [unacked.keys().next_back(), passed.last()].into_iter().flatten();
        (firsts.min().copied().unwrap_or(Seq(u64::MAX)), lasts.max().copied().unwrap_or(Seq::NONE))
    }

    /// How many those are.
    #[must_use]
    pub fn num_open(&self) -> usize {
        self.marks.unacked.len() + self.marks.passed.len()
    }

    /// The stream lost messages. To be handed in before the next `poll` that may see it; a late report costs a count
    /// of what is pending, and nothing else.
    pub fn on_removed(&mut self, first: Seq, last: Seq) {
        self.backlog.removed(Run { first, last });
    }

    /// The consumer was updated, paused, resumed or reset.
    pub fn on_configured(&mut self, ledger: &Ledger, now: Timestamp) {
        self.configure(ledger, now);
    }

    /// Subscribers came or went somewhere; inboxes and the deliver subject are looked at again.
    pub fn on_interest_changed(&mut self) {
        self.interest_changed = true;
    }

    /// The deliver subject of a push consumer and the queue group that it is for, if it is for one.
    #[must_use]
    pub fn deliver_group(&self) -> Option<(&str, &str)> {
        let Self { config, push, .. } = self;
        (push.is_some() && !config.deliver_group.is_empty())
            .then_some((&config.deliver_subject, &config.deliver_group))
    }

    /// Looks whether anybody listens on the deliver subject.
    pub fn bind(&mut self, interest: &dyn Fn(&[u8]) -> bool, now: Timestamp) {
        if let Some(push) = &mut self.push {
            let was_bound = push.bound;
            push.bind(interest(&push.subject), now);
            if was_bound && !push.bound {
                self.used_at = now;
            }
        }
    }

    /// Releases the client that is pinned, if any, and tells of this group.
    pub fn unpin(&mut self, group: &str) {
        let advisory = self.priority.unpin(group);
        self.outbox.push_back(Step::Advisory(advisory));
    }

    /// Whether `supply_pin_id` is to be called before `poll`, so that a client can be pinned.
    #[must_use]
    pub fn wants_pin_id(&self) -> bool {
        self.priority.wants_id()
    }

    /// The id of the next client to be pinned: random, so that no other leader gives out the same.
    pub fn supply_pin_id(&mut self, id: String) {
        self.priority.supply_id(id);
    }

    /// The incarnation that it works for.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Looks which requests nobody waits for any more, and whether anybody listens on the deliver subject.
    pub fn look_for_interest(&mut self, interest: &dyn Fn(&[u8]) -> bool, now: Timestamp) {
        self.interest_changed = true;
        self.look_at_interest(interest, now);
    }

    /// Whether as many requests wait as may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() + self.arrived.len() >= self.max_waiting()
    }

    /// Which changes it has to be polled after.
    #[must_use]
    pub fn attention(&self) -> Attention {
        let is_waited_for = self.push.as_ref().is_some_and(|push| push.bound)
            || !self.waiting.is_empty()
            || !self.arrived.is_empty()
            || !self.held.is_empty()
            || !self.outbox.is_empty();
        if is_waited_for {
            Attention::All
        } else if self.num_open() > 0 {
            Attention::Removals
        } else {
            Attention::None
        }
    }

    /// The subject on which subscribers that come or go are to be told of, with
    /// [`on_interest_changed`](Self::on_interest_changed). Inboxes of requests are looked at when there is something for
    /// them.
    #[must_use]
    pub fn deliver_subject(&self) -> Option<&Bytes> {
        self.push.as_ref().map(|push| &push.subject)
    }

    /// Whether there is something to be taken: by `poll`, or by `take_progress`.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.outbox.is_empty() || self.fold.events() > 0
    }

    /// When it has to be polled although nothing happened; `None` is never.
    pub fn next_timer(&mut self, now: Timestamp) -> Option<Timestamp> {
        let timers = [
            self.next_deadline(),
            self.look_for_commits(now),
            self.dead_letters.next(),
            self.waiting.wake(),
            self.priority.wake(),
            self.push.as_ref().and_then(Push::next_timer),
            self.inactive_at,
            self.told_paused,
        ];
        timers.into_iter().flatten().min()
    }

    /// Whether it works by this ledger's configuration and has not missed a reset.
    #[must_use]
    pub fn follows(&self, ledger: &Ledger) -> bool {
        self.config == ledger.config && self.incarnation == ledger.incarnation
    }

    /// Ends all requests: the consumer goes away, or this node does not lead any more.
    pub fn close(&mut self, why: Closed) -> Vec<Notice> {
        let mut notices = self.waiting.close(why);
        notices.extend(self.arrived.drain(..).map(|waiter| Notice::closed(waiter.into_inbox(), why)));
        notices
    }

    /// One step. To be called until it says `Sleep`. `interest` says whether anybody subscribes to a subject.
    pub fn poll(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<Step, ReadFailed> {
        if let Some(step) = self.outbox.pop_front() {
            return Ok(step);
        }
        self.sync(stream, view, now)?;
        self.expire_acks(now);
        self.look_at_interest(interest, now);
        self.admit(stream, view, interest, now)?;
        self.run_timers(interest, now);
        if let Some(step) = self.outbox.pop_front() {
            return Ok(step);
        }
        let resume_at = loop {
            match self.next_delivery(stream, view, interest, now)? {
                Next::Deliver(delivery) => return Ok(Step::Deliver(delivery)),
                Next::Held => {}
                Next::Nothing { look_again } => break look_again,
            }
        };
        if let Some(step) = self.outbox.pop_front() {
            return Ok(step);
        }
        Ok(Step::Sleep([resume_at, self.next_timer(now)].into_iter().flatten().min()))
    }

    /// What happened since this was last called, to be proposed; `None` when nothing did.
    pub fn take_progress(&mut self) -> Option<ConsumerProgress> {
        self.fold.take(&self.name, self.incarnation)
    }

    /// How many deliveries and settlements wait to be taken.
    #[must_use]
    pub fn progress_events(&self) -> u64 {
        self.fold.events()
    }

    /// Matching messages that were not delivered yet, as of now.
    pub fn num_pending(&mut self, stream: &dyn Source, view: &dyn MessageView) -> Result<u64, ReadFailed> {
        let reading = Reading { stream, view, filters: &self.filters };
        self.backlog.sync(reading, &self.marks)?;
        self.undelivered(stream, view)
    }

    /// Waiting pull requests.
    #[must_use]
    pub fn num_waiting(&self) -> u64 {
        (self.waiting.len() + self.arrived.len()) as u64
    }

    /// Delivered and not settled.
    #[must_use]
    pub fn num_ack_pending(&self) -> u64 {
        self.marks.num_unacked()
    }

    /// Everything there is to know of the consumer now. Who leads the stream, and what is added to the shown
    /// metadata, is up to the caller.
    pub fn info(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        now: Timestamp,
    ) -> Result<ConsumerInfo, ReadFailed> {
        self.sync(stream, view, now)?;
        let num_pending = self.undelivered(stream, view)?;
        let paused_until = self.paused_until(now);
        let marks = &self.marks;
        Ok(ConsumerInfo {
            stream_name: self.stream_name.clone(),
            name: self.name.to_string(),
            created: self.created,
            config: Some(self.config.clone()),
            delivered: SequenceInfo {
                consumer_seq: marks.delivered.consumer,
                stream_seq: marks.delivered.stream,
                last_active: marks.delivered_at,
            },
            ack_floor: SequenceInfo {
                consumer_seq: marks.floor.consumer,
                stream_seq: marks.floor.stream,
                last_active: marks.settled_at,
            },
            num_ack_pending: marks.num_unacked(),
            num_redelivered: marks.num_redelivered(),
            num_waiting: self.num_waiting(),
            num_pending,
            push_bound: self.push.as_ref().is_some_and(|push| push.bound),
            paused: paused_until.is_some(),
            pause_remaining: paused_until.map_or(Nanos::ZERO, |until| until.since(now)),
            ts: now,
            priority_groups: self.priority.state(),
            ..ConsumerInfo::default()
        })
    }

    /// Messages that were settled before this leader delivered them.
    #[cfg(test)]
    pub(crate) fn early(&self) -> Vec<Seq> {
        self.marks.early.iter().copied().collect()
    }

    /// Forgets what was delivered; requests go on waiting.
    fn begin_again(&mut self, ledger: &Ledger) {
        self.incarnation = ledger.incarnation;
        self.marks = ledger.marks.clone();
        self.fold = Fold::default();
        self.backlog.reset();
        self.ready.clear();
        self.slots.clear();
        self.leave_out_all();
        self.dead_letters = Outgoing::default();
        if let Some(keyed) = &mut self.keyed {
            keyed.clear();
        }
        self.deadlines.clear();
        if let Some(push) = &mut self.push {
            push.start_over();
        }
        // Acks of before are of deliveries that do not count any more.
        self.inherits_until = Timestamp::ZERO;
    }

    fn configure(&mut self, ledger: &Ledger, now: Timestamp) {
        if self.incarnation != ledger.incarnation {
            self.begin_again(ledger);
        }
        let released = self.priority.configure(&ledger.config);
        self.outbox.extend(released.map(Step::Advisory));
        let filters_changed = self.filters != ledger.filters;
        let old = std::mem::replace(&mut self.config, ledger.config.clone());
        self.tell_pause(now);
        let config = &self.config;
        // What was not valid was not created.
        self.extensions = config.extensions().unwrap_or_default();
        if !self.extensions.nak_delay_frees_slot {
            self.ready.append(&mut self.slots.clear());
        }
        if self.keyed.is_none() {
            self.keyed = self.extensions.key.clone().map(Keyed::new);
        }
        self.filters = ledger.filters.clone();
        if filters_changed {
            let known = ledger.marks.delivered.stream;
            self.marks.advance(known);
            if self.marks.delivered.stream > known {
                self.fold.through(self.marks.delivered.stream);
            }
            self.backlog.reset();
        }
        if config.is_push() && old.is_push() && old.deliver_subject != config.deliver_subject {
            // Nobody reads any more where it was delivered.
            self.ready.extend(self.marks.unacked.keys().filter(|seq| !self.marks.dead.contains_key(seq)));
        }
        if !config.is_push() {
            self.push = None;
        } else if self.push.is_none()
            || old.deliver_subject != config.deliver_subject
            || old.rate_limit_bps != config.rate_limit_bps
        {
            let reply_prefix = format!("$JS.FC.{}.{}.", self.stream_name, self.name);
            self.push = Some(Push::new(config, &reply_prefix, now));
            self.interest_changed = true;
        }
        if old.sample_freq != config.sample_freq {
            self.samples = Samples::parse(&config.sample_freq);
        }
        if old.inactive_threshold != config.inactive_threshold {
            let threshold = config.inactive_threshold;
            self.used_at = now;
            self.inactive_at = (threshold > Nanos::ZERO).then(|| now.plus(threshold));
        }
        if old.ack_wait != config.ack_wait || old.backoff != config.backoff {
            self.deadlines.clear();
            for (seq, unacked) in &self.marks.unacked {
                self.deadlines.add(unacked.at.plus(wait_after(&self.config, unacked.attempt)), *seq);
            }
        }
        if old.max_deliver != self.config.max_deliver {
            self.give_up_late(now);
        }
    }

    /// Tells when a pause began or changed, and when it is over.
    fn tell_pause(&mut self, now: Timestamp) {
        let paused = self.paused_until(now);
        if paused == self.told_paused {
            return;
        }
        let before = std::mem::replace(&mut self.told_paused, paused);
        let ended = before.filter(|until| *until <= now).unwrap_or(Timestamp::ZERO);
        let advisory = Advisory::Paused { paused: paused.is_some(), until: paused.unwrap_or(ended) };
        self.outbox.push_back(Step::Advisory(advisory));
    }

    fn max_waiting(&self) -> usize {
        let max = usize::try_from(self.config.max_waiting).ok();
        max.filter(|max| *max > 0).unwrap_or(MAX_WAITING_DEFAULT)
    }

    fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.config.pause_until.filter(|until| *until > now)
    }

    /// Brings everything in line with the stream.
    fn sync(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        now: Timestamp,
    ) -> Result<(), ReadFailed> {
        let gone = self.backlog.gone(stream);
        let reading = Reading { stream, view, filters: &self.filters };
        self.backlog.sync(reading, &self.marks)?;
        for run in gone {
            self.drop_unacked(run, stream, now);
        }
        Ok(())
    }

    /// Matching messages that were not delivered yet, those that were passed over included.
    fn undelivered(&self, stream: &dyn Source, view: &dyn MessageView) -> Result<u64, ReadFailed> {
        let reading = Reading { stream, view, filters: &self.filters };
        Ok(self.backlog.undelivered(reading, &self.marks)? + self.marks.passed.len() as u64)
    }

    fn look_at_interest(&mut self, interest: &dyn Fn(&[u8]) -> bool, now: Timestamp) {
        if !std::mem::take(&mut self.interest_changed) {
            return;
        }
        self.bind(interest, now);
        self.waiting.due(self.marks.delivered, Some(interest), now, |notice| {
            self.outbox.push_back(Step::Notify(notice))
        });
    }

    /// Lets new requests in. One that does not wait is answered at once when earlier ones take all there is.
    fn admit(
        &mut self,
        stream: &dyn Source,
        view: &dyn MessageView,
        interest: &dyn Fn(&[u8]) -> bool,
        now: Timestamp,
    ) -> Result<(), ReadFailed> {
        while let Some(waiter) = self.arrived.pop_front() {
            if waiter.no_wait() {
                let again = self.ready.len() + self.slots.due().len();
                let available = self.undelivered(stream, view)? + again as u64;
                if available > 0 && available < self.waiting.wanted() {
                    // Not those of clients that are gone.
                    self.look_for_interest(interest, now);
                }
                if available > 0 && available < self.waiting.wanted() {
                    self.outbox.push_back(Step::Notify(Notice::requests_pending(waiter.into_inbox())));
                    continue;
                }
                if available == 0 && waiter.is_one_shot() {
                    self.outbox.push_back(Step::Notify(Notice::no_messages(waiter.into_inbox())));
                    continue;
                }
            }
            self.waiting.add(waiter);
        }
        Ok(())
    }

    fn run_timers(&mut self, interest: &dyn Fn(&[u8]) -> bool, now: Timestamp) {
        let last = self.marks.delivered;
        if self.waiting.wake().is_some_and(|at| at <= now) {
            self.waiting.due(last, Some(interest), now, |notice| self.outbox.push_back(Step::Notify(notice)));
        }
        self.outbox.extend(self.priority.expire(now).map(Step::Advisory));
        if self.told_paused.is_some_and(|until| until <= now) {
            self.tell_pause(now);
        }
        if let Some(notice) = self.push.as_mut().and_then(|push| push.due(last, now)) {
            self.bind(interest, now);
            if self.push.as_ref().is_some_and(|push| push.bound) {
                self.outbox.push_back(Step::Notify(notice));
                self.ask_at_rest();
            }
        }
        if self.inactive_at.is_some_and(|at| at <= now) {
            self.check_activity(interest, now);
        }
    }

    fn check_activity(&mut self, interest: &dyn Fn(&[u8]) -> bool, now: Timestamp) {
        let threshold = self.config.inactive_threshold;
        self.bind(interest, now);
        let in_use = match &self.push {
            Some(push) => push.bound,
            None => {
                let outbox = &mut self.outbox;
                self.waiting.due(self.marks.delivered, Some(interest), now, |notice| {
                    outbox.push_back(Step::Notify(notice))
                });
                !self.waiting.is_empty()
            }
        };
        if in_use {
            self.used_at = now;
        }
        // A client that works on a message uses the consumer until its ack is overdue.
        let waits = self
            .marks
            .unacked
            .values()
            .map(|unacked| unacked.at.plus(wait_after(&self.config, unacked.attempt)));
        let used_at = match &self.push {
            Some(_) => self.used_at,
            None => waits.fold(self.used_at, Timestamp::max),
        };
        let at = used_at.plus(threshold);
        if at > now {
            self.inactive_at = Some(at);
        } else {
            self.outbox.push_back(Step::Inactive);
            self.inactive_at = Some(now.plus(INACTIVE_AGAIN));
        }
    }
}
