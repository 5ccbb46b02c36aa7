//! Hot path: one consumer on the leader of its stream. What arrives (pull requests, acks, events of the stream)
//! goes into an inbox under one short lock; a task drains it, asks the rules for steps until they sleep, and hands
//! deliveries to the router in batches. One lock, one flush and one wakeup per batch of deliveries, not per message.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::consumer::{Advisory, Attention, Closed, Confirm, Delivery, Dispatch, Notice, Step};
use levee_broker_core::stream::{Event, ReadFailed, StreamMachine};
use levee_protocol::api::{AckKind, AckReply, ConsumerInfo, PullRequest, RetentionPolicy};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{AccountName, ConsumerName, Seq};
use levee_protocol::time::{Nanos, Timestamp};
use levee_raft::Haste;
use levee_storage::kind::INLINE;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::advisory;
use crate::consumer::letters::{Letters, Outcome};
use crate::consumer::progress::Collector;
use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{Inbound, InboundItem, InterestWatcher, MessageRef, RouteBatch};
use crate::runtime::clock::{self, Clock};
use crate::sinks::no_responders;
use crate::stream::{Leader, Replica};

/// Steps between two flushes: bounds how long a delivery waits and how much is staged.
const STEPS_PER_FLUSH: usize = 512;
/// A destination is full: let it drain before reading more from the log.
const PRESSURE_PAUSE: Duration = Duration::from_millis(2);
/// A consumer whose messages can't be read looks again after this long.
const READ_RETRY: Duration = Duration::from_secs(1);

/// A consumer that has nothing to do for this long has no task until it is used again, or until it is due.
const LINGER: Duration = Duration::from_secs(2);
/// A sleep that is not longer is slept by the task.
const NAP: Duration = Duration::from_millis(100);
/// A consumer with more open messages than this keeps its task: to hear of their removal, each would be noted for it.
const OPEN_MAX: usize = 1024;
/// As long as those of nats-server.
const PIN_ID_CHARS: usize = 22;

/// Why a driver ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The consumer or its stream is deleted.
    Deleted,
    /// Another node leads now.
    LeadershipLost,
    /// This node stops.
    Stopped,
}

/// One consumer, on the leader.
pub struct Driver {
    name: ConsumerName,
    account: AccountName,
    inbox: Mutex<Inbox>,
    wake: Notify,
    dispatch: Mutex<Dispatch>,
    /// The number of the first removal that `dispatch` was not told of.
    removals_known: AtomicU64,
    clock: Clock,
    /// It stands for the reader of a mirrored or sourced stream: nothing is delivered to it.
    is_idle: bool,
    /// Whose task it is.
    leader: Weak<Leader>,
    /// Whether it has a task. One that has nothing to do for a while has none.
    is_running: AtomicBool,
    /// Whether it has ended.
    is_over: AtomicBool,
    /// The deliver subject whose subscribers the router tells of.
    watched: Mutex<Option<Bytes>>,
    /// Between which sequences its open messages are, for removals while it has a task. None are, if the first is behind
    /// the last.
    open: (AtomicU64, AtomicU64),
    /// Its info as of before the first delivery: what the answer to a create says. Watchers count on `num_pending`
    /// there being all that will come.
    first_info: Mutex<Option<Box<ConsumerInfo>>>,
}

/// What a driver is built after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Beginning {
    /// The consumer was just created.
    Created,
    /// This node began to lead.
    TakenOver,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    stream_moved: bool,
    /// Something that may concern it was removed.
    removals: bool,
    /// The first message that concerns it since it last looked.
    first_match: Option<Seq>,
    ledger_changed: bool,
    interest_changed: bool,
    unpinned: bool,
    ended: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        !self.is_use() && !self.removals && !self.ended
    }

    /// Whether it is reason to expect more.
    fn is_use(&self) -> bool {
        let told = self.stream_moved || self.ledger_changed || self.interest_changed || self.unpinned;
        told || !self.requests.is_empty()
    }
}

/// A message for the consumer, kept in the buffer it arrived in.
struct Request {
    kind: RequestKind,
    batch: Inbound,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum RequestKind {
    Pull,
    Ack,
}

impl Driver {
    /// Takes over from the ledger. `None` when there is no such consumer any more.
    pub fn new(
        jetstream: &JetStream,
        replica: &Replica,
        leader: &Arc<Leader>,
        name: &ConsumerName,
        beginning: Beginning,
    ) -> Result<Option<Arc<Self>>, ReadFailed> {
        let (leader, clock) = (Arc::downgrade(leader), leader.clock().clone());
        let account = replica.assignment().account.clone();
        let begun = replica.read(|machine, view| {
            let Some(ledger) = machine.consumer(name) else { return Ok(None) };
            let now = clock.now();
            let mut dispatch = Dispatch::new(ledger, machine, view, now)?;
            let interest = interest(jetstream, &account, &dispatch);
            dispatch.bind(&interest, now);
            let info = match beginning {
                Beginning::Created => Some(Box::new(dispatch.info(machine, view, now)?)),
                // What is pending is counted when somebody wants to know.
                Beginning::TakenOver => None,
            };
            let removals_known = replica.with_removals(|removals| removals.next());
            Ok(Some((dispatch, info, ledger.config().sourcing, removals_known)))
        })?;
        Ok(begun.map(|(dispatch, first_info, is_idle, removals_known)| {
            Arc::new(Self {
                name: name.clone(),
                account,
                inbox: Mutex::new(Inbox::default()),
                wake: Notify::new(),
                dispatch: Mutex::new(dispatch),
                removals_known: AtomicU64::new(removals_known),
                clock,
                is_idle,
                leader,
                is_running: AtomicBool::new(false),
                is_over: AtomicBool::new(false),
                watched: Mutex::default(),
                open: (AtomicU64::new(u64::MAX), AtomicU64::new(0)),
                first_info: Mutex::new(first_info),
            })
        }))
    }

    /// Everything there was to know of the consumer before it delivered anything, the cluster apart. For whoever asks
    /// first.
    pub fn take_first_info(&self) -> Option<ConsumerInfo> {
        self.first_info.lock().take().map(|info| *info)
    }

    /// Begins: at once, if there is anything to do already, or when it is due.
    pub fn begin(self: &Arc<Self>, replica: &Replica) {
        if self.is_idle {
            return;
        }
        let mut dispatch = self.dispatch.lock();
        // One that pushes begins to watch who listens.
        let is_busy = dispatch.deliver_subject().is_some() || dispatch.has_news();
        let alarm = dispatch.next_timer(self.clock.now());
        if is_busy || !self.watch(replica, &dispatch) {
            drop(dispatch);
            return self.rouse();
        }
        drop(dispatch);
        if let Some(leader) = self.leader.upgrade() {
            leader.set_alarm(self, alarm);
        }
    }

    /// Has its task look at what is there, and gives it one if it has none.
    pub(crate) fn rouse(self: &Arc<Self>) {
        self.wake.notify_one();
        if !self.is_running.swap(true, Ordering::SeqCst)
            && let Some(leader) = self.leader.upgrade()
        {
            leader.run_driver(self);
        }
    }

    /// Gives up its task, until `alarm` at the latest. False if something came in between and there is no other task
    /// for it.
    fn rests(self: &Arc<Self>, replica: &Replica, alarm: Option<Timestamp>) -> bool {
        let dispatch = self.dispatch.lock();
        if dispatch.has_news() || !self.watch(replica, &dispatch) {
            return false;
        }
        drop(dispatch);
        // Whoever is known to the leader as awake has a task, so it leaves first.
        self.leave();
        self.is_running.store(false, Ordering::SeqCst);
        // An alarm that rings while there is still a task would be lost with it.
        if let Some(leader) = self.leader.upgrade() {
            leader.set_alarm(self, alarm);
        }
        if self.inbox.lock().is_empty() || self.is_running.swap(true, Ordering::SeqCst) {
            return true;
        }
        if let Some(leader) = self.leader.upgrade() {
            leader.enter(self);
        }
        false
    }

    /// From here on it is told when one of its open messages is removed. False if one was since it looked at the stream, or
    /// if there are too many.
    fn watch(self: &Arc<Self>, replica: &Replica, dispatch: &Dispatch) -> bool {
        let Some(leader) = self.leader.upgrade() else { return true };
        // While nothing can be applied.
        replica.read(|machine, _| {
            if dispatch.num_open() > OPEN_MAX || !dispatch.open().all(|seq| machine.is_live(seq)) {
                return false;
            }
            leader.listeners().watch(&self.name, self, dispatch.open(), || self.is_over());
            true
        })
    }

    /// Whether nobody is to remember it: there may be another one of its name.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn leave(self: &Arc<Self>) {
        if let Some(leader) = self.leader.upgrade() {
            leader.leave(self);
        }
    }

    /// The consumer's name.
    pub fn name(&self) -> &ConsumerName {
        &self.name
    }

    /// A pull request arrived. False if this is over: nobody would look at it.
    #[must_use]
    pub fn on_pull(self: &Arc<Self>, batch: &Inbound, item: &InboundItem) -> bool {
        self.take(RequestKind::Pull, batch, &[*item])
    }

    /// Acks and flow control answers arrived, all for this consumer. False if this is over.
    #[must_use]
    pub fn on_acks(self: &Arc<Self>, batch: &Inbound, items: &[InboundItem]) -> bool {
        self.take(RequestKind::Ack, batch, items)
    }

    fn take(self: &Arc<Self>, kind: RequestKind, batch: &Inbound, items: &[InboundItem]) -> bool {
        if self.is_idle {
            return true;
        }
        let mut inbox = self.inbox.lock();
        if inbox.ended {
            return false;
        }
        let batch = Inbound { chunk: batch.chunk.clone(), items: items.to_vec() };
        inbox.requests.push(Request { kind, batch });
        drop(inbox);
        self.rouse();
        true
    }

    /// Something happened that concerns it: the first message that matches, or the end of an open one.
    pub fn on_told(self: &Arc<Self>, first_match: Option<Seq>) {
        let mut inbox = self.inbox.lock();
        inbox.stream_moved = true;
        inbox.first_match = [inbox.first_match, first_match].into_iter().flatten().min();
        drop(inbox);
        self.rouse();
    }

    /// Messages left the stream while it has a task.
    pub fn on_removals(self: &Arc<Self>, events: &[Event]) {
        let (first_open, last_open) = &self.open;
        let (first_open, last_open) = (first_open.load(Ordering::SeqCst), last_open.load(Ordering::SeqCst));
        let concerns = |event: &Event| matches!(event, Event::Removed { first, last } if first.0 <= last_open && last.0 >= first_open);
        if events.iter().any(concerns) {
            self.inbox.lock().removals = true;
            self.rouse();
        }
    }

    /// The consumer was updated, paused or resumed.
    pub fn ledger_changed(self: &Arc<Self>) {
        self.inbox.lock().ledger_changed = true;
        self.rouse();
    }

    /// Releases the client that is pinned; the next one is pinned in the next turn.
    pub fn unpin(self: &Arc<Self>, group: &str) {
        self.dispatch.lock().unpin(group);
        let mut inbox = self.inbox.lock();
        inbox.unpinned = true;
        drop(inbox);
        self.rouse();
    }

    /// It is over: whoever waits is told why, here and now, because the task may be gone before its next turn.
    pub fn end(self: &Arc<Self>, jetstream: &JetStream, why: Ended) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(subject) = self.watched.lock().take() {
            let this: Weak<Self> = Arc::downgrade(self);
            let this: Weak<dyn InterestWatcher> = this;
            jetstream.router().watchers().remove(&self.account, &subject, &this);
        }
        let mut inbox = self.inbox.lock();
        inbox.ended = true;
        let requests = std::mem::take(&mut inbox.requests);
        drop(inbox);
        let now = self.clock.now();
        let mut route = jetstream.router().batch();
        let mut dispatch = self.dispatch.lock();
        for request in requests.iter().filter(|request| request.kind == RequestKind::Pull) {
            for item in &request.batch.items {
                self.pull(&mut dispatch, &mut route, &request.batch, item, now);
            }
        }
        let closed = match why {
            Ended::Deleted => Closed::Deleted,
            Ended::LeadershipLost => Closed::LeadershipChange,
            Ended::Stopped => Closed::Shutdown,
        };
        for notice in dispatch.close(closed) {
            self.notify(&mut route, &notice);
        }
        drop(dispatch);
        route.flush();
        self.wake.notify_one();
    }

    /// Everything there is to know of the consumer now, the cluster apart.
    pub fn info(self: &Arc<Self>, jetstream: &JetStream, replica: &Replica) -> Option<ConsumerInfo> {
        let now = self.clock.now();
        // The same order of locks as in `turn`: first the dispatch, then the machine.
        let mut dispatch = self.dispatch.lock();
        let info = replica.read(|machine, view| {
            // An update that is applied is shown, also when the task has not come to it yet.
            if let Some(ledger) = machine.consumer(&self.name)
                && !dispatch.follows(ledger)
            {
                dispatch.on_configured(ledger, now);
            }
            if self.is_idle
                && let Some(ledger) = machine.consumer(&self.name)
            {
                // What it stands for is not read through it.
                return Dispatch::new(ledger, machine, view, now)?.info(machine, view, now);
            }
            self.take_removals(&mut dispatch, replica);
            // Nobody has looked since the last message came, or the last request.
            let interest = interest(jetstream, &self.account, &dispatch);
            dispatch.look_for_interest(&interest, now);
            dispatch.info(machine, view, now)
        });
        let has_news = dispatch.has_news();
        drop(dispatch);
        if has_news {
            self.inbox.lock().stream_moved = true;
            self.rouse();
        }
        info.inspect_err(|error| tracing::error!("consumer '{}': {error}", self.name)).ok()
    }

    /// Delivers until it is ended or dropped, or has had nothing to do for a while.
    pub async fn run(
        self: Arc<Self>,
        jetstream: Arc<JetStream>,
        replica: Arc<Replica>,
        progress: Arc<Collector>,
    ) {
        if self.is_idle {
            return;
        }
        let mut route = jetstream.router().batch();
        let mut scratch = Vec::with_capacity(256);
        let mut letters = Letters::new(&jetstream, self.account.clone());
        let Some(leader) = self.leader.upgrade() else { return };
        leader.listeners().woke(&self.name, || self.is_over());
        drop(leader);
        let mut used_at = None;
        loop {
            while let Some(outcome) = letters.next_now() {
                self.letter_posted(&replica, &mut letters, &outcome);
            }
            let inbox = {
                let mut inbox = self.inbox.lock();
                if inbox.ended {
                    drop(inbox);
                    self.leave();
                    return;
                }
                std::mem::take(&mut *inbox)
            };
            if inbox.is_use() {
                used_at = Some(clock::monotonic());
            }
            let caught_up = self.after_commits(&replica, &mut route, &mut scratch, &letters);
            let turn = self.turn(&jetstream, &replica, &progress, inbox, &mut route, &mut scratch);
            let turn = caught_up.and(turn);
            let pressure = route.pressure();
            route.flush();
            let mut may_rest = false;
            let mut alarm = None;
            let wait = match turn {
                Ok(Turn::More) if pressure => {
                    tokio::time::sleep(PRESSURE_PAUSE).await;
                    continue;
                }
                Ok(Turn::More) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Turn::Inactive) => {
                    self.delete_inactive(&replica);
                    continue;
                }
                Ok(Turn::Sleep(until)) => {
                    let wait = until.map(|until| until.since(self.clock.now()).max(Nanos::ZERO).to_std());
                    let linger = used_at.map_or(Duration::ZERO, |at| LINGER.saturating_sub(at.elapsed()));
                    let is_long = wait.is_none_or(|wait| wait > linger.max(NAP));
                    may_rest = is_long && letters.is_empty() && self.dispatch.lock().num_open() <= OPEN_MAX;
                    alarm = until;
                    if may_rest { Some(linger) } else { wait }
                }
                Err(error) => {
                    tracing::error!(
                        "consumer '{}' of stream '{}' can't read: {error}",
                        self.name,
                        replica.assignment().config.name
                    );
                    Some(READ_RETRY)
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep(wait) => {
                    if may_rest && self.rests(&replica, alarm) {
                        return;
                    }
                }
                outcome = letters.next() => self.letter_posted(&replica, &mut letters, &outcome),
            }
        }
    }

    /// Sends what waited for the log: deliveries of a keyed consumer, and dead letters.
    fn after_commits(
        &self,
        replica: &Replica,
        route: &mut RouteBatch,
        scratch: &mut Vec<u8>,
        letters: &Letters,
    ) -> Result<(), ReadFailed> {
        let now = self.clock.now();
        let mut dispatch = self.dispatch.lock();
        if !dispatch.waits_for_ledger(now) {
            return Ok(());
        }
        let stream = replica.assignment().config.name.clone();
        replica.read(|machine, view| {
            let Some(ledger) = machine.consumer(&self.name) else { return Ok(()) };
            while let Some(delivery) = dispatch.committed(ledger) {
                self.deliver(route, &stream, &delivery, scratch);
            }
            for letter in dispatch.dead_letters(ledger, machine, view, now)? {
                letters.send(letter);
            }
            Ok(())
        })
    }

    /// Has the consumer deleted, if it is still this one. What became of it comes as an event of the stream; it is asked
    /// again if nothing does.
    fn delete_inactive(&self, replica: &Replica) {
        let incarnation = Some(self.dispatch.lock().incarnation());
        let command =
            StreamCommand::DeleteConsumer { now: self.clock.now(), name: self.name.clone(), incarnation };
        replica.group().propose_then(INLINE, command.encode().into_bytes(), Box::new(drop));
    }

    /// Hands in what arrived, then takes steps up to one flush.
    fn turn(
        self: &Arc<Self>,
        jetstream: &JetStream,
        replica: &Replica,
        progress: &Collector,
        inbox: Inbox,
        route: &mut RouteBatch,
        scratch: &mut Vec<u8>,
    ) -> Result<Turn, ReadFailed> {
        let now = self.clock.now();
        let stream = replica.assignment().config.name.clone();
        let mut dispatch = self.dispatch.lock();
        let mut confirmations = Vec::new();
        self.take_events(&mut dispatch, jetstream, replica, &inbox, now);
        if dispatch.is_full() && inbox.requests.iter().any(|request| request.kind == RequestKind::Pull) {
            // Requests of clients that are gone make place.
            let interest = interest(jetstream, &self.account, &dispatch);
            dispatch.look_for_interest(&interest, now);
        }
        if dispatch.wants_pin_id() {
            // One is enough: nobody is pinned and released within a turn.
            dispatch.supply_pin_id(nuid::draw(PIN_ID_CHARS));
        }
        for request in &inbox.requests {
            for item in &request.batch.items {
                match request.kind {
                    RequestKind::Pull => self.pull(&mut dispatch, route, &request.batch, item, now),
                    RequestKind::Ack => {
                        let advisories =
                            self.ack(&mut dispatch, route, &request.batch, item, now, &mut confirmations);
                        for advice in advisories {
                            self.advise(jetstream, route, &stream, &advice);
                        }
                    }
                }
            }
        }
        let has_interest = interest(jetstream, &self.account, &dispatch);
        let turn = replica.read(|machine, view| {
            self.take_removals(&mut dispatch, replica);
            for _ in 0..STEPS_PER_FLUSH {
                match dispatch.poll(machine, view, &has_interest, now)? {
                    Step::Deliver(delivery) => self.deliver(route, &stream, &delivery, scratch),
                    Step::Notify(notice) => self.notify(route, &notice),
                    Step::Advisory(advice) => self.advise(jetstream, route, &stream, &advice),
                    Step::Inactive => return Ok(Turn::Inactive),
                    Step::Sleep(until) => {
                        self.attend(&mut dispatch);
                        return Ok(Turn::Sleep(until));
                    }
                }
            }
            Ok(Turn::More)
        });
        let removes = |machine: &StreamMachine| {
            machine.config().is_some_and(|config| config.retention != RetentionPolicy::Limits)
        };
        let haste = match dispatch.waits_for_commit() {
            true => Haste::Now,
            false if replica.read(|machine, _| removes(machine)) => Haste::Soon,
            false => Haste::None,
        };
        progress.report(dispatch.take_progress(), confirmations, haste);
        turn
    }

    /// Says what it wants to hear of, in the moment in which it has looked at the stream.
    fn attend(self: &Arc<Self>, dispatch: &mut Dispatch) {
        let (first_open, last_open) = dispatch.open_between();
        self.open.0.store(first_open.0, Ordering::SeqCst);
        self.open.1.store(last_open.0, Ordering::SeqCst);
        let Some(leader) = self.leader.upgrade() else { return };
        match dispatch.attention() {
            Attention::All => {
                dispatch.listens();
                leader.listeners().listen(&self.name, self, dispatch.filters(), || self.is_over());
            }
            Attention::Removals | Attention::None => leader.listeners().ignore(&self.name, || self.is_over()),
        }
    }

    fn letter_posted(&self, replica: &Replica, letters: &mut Letters, outcome: &Outcome) {
        letters.note(&replica.assignment().config.name, &self.name, outcome);
        let mut dispatch = self.dispatch.lock();
        dispatch.on_dead_letter(outcome.seq, outcome.incarnation, outcome.posted(), self.clock.now());
    }

    /// Tells what the stream lost. To be called while nothing is applied, right before the stream is looked at.
    fn take_removals(&self, dispatch: &mut Dispatch, replica: &Replica) {
        let number = replica.with_removals(|removals| {
            for (first, last) in removals.since(self.removals_known.load(Ordering::Relaxed)) {
                dispatch.on_removed(first, last);
            }
            removals.next()
        });
        self.removals_known.store(number, Ordering::Relaxed);
    }

    fn take_events(
        self: &Arc<Self>,
        dispatch: &mut Dispatch,
        jetstream: &JetStream,
        replica: &Replica,
        inbox: &Inbox,
        now: Timestamp,
    ) {
        if let Some(first) = inbox.first_match {
            dispatch.on_match(first);
        }
        if inbox.ledger_changed {
            replica.read(|machine, _| {
                if let Some(ledger) = machine.consumer(&self.name) {
                    dispatch.on_configured(ledger, now);
                }
            });
        }
        if inbox.interest_changed || self.watch_interest(jetstream, dispatch) {
            dispatch.on_interest_changed();
        }
    }

    /// Has the router tell who comes and goes on the deliver subject. Says whether it did not before.
    fn watch_interest(self: &Arc<Self>, jetstream: &JetStream, dispatch: &Dispatch) -> bool {
        let mut watched = self.watched.lock();
        if watched.as_ref() == dispatch.deliver_subject() {
            return false;
        }
        let this: Weak<Self> = Arc::downgrade(self);
        let (this, watchers): (Weak<dyn InterestWatcher>, _) = (this, jetstream.router().watchers());
        if let Some(before) = watched.take() {
            watchers.remove(&self.account, &before, &this);
        }
        let Some(subject) = dispatch.deliver_subject() else { return false };
        watchers.add(&self.account, subject, this, || self.is_over());
        *watched = Some(subject.clone());
        true
    }

    fn pull(
        &self,
        dispatch: &mut Dispatch,
        route: &mut RouteBatch,
        batch: &Inbound,
        item: &InboundItem,
        now: Timestamp,
    ) {
        self.request(dispatch, route, batch.payload(item), batch.reply(item), now);
    }

    fn request(
        &self,
        dispatch: &mut Dispatch,
        route: &mut RouteBatch,
        body: &[u8],
        reply: &[u8],
        now: Timestamp,
    ) {
        let reply = Bytes::copy_from_slice(reply);
        let notices = match PullRequest::parse(body) {
            Ok(request) => dispatch.on_pull(&request, reply, now),
            Err(malformed) => vec![Notice::malformed(reply, &malformed)],
        };
        for notice in notices {
            self.notify(route, &notice);
        }
    }

    fn ack(
        &self,
        dispatch: &mut Dispatch,
        route: &mut RouteBatch,
        batch: &Inbound,
        item: &InboundItem,
        now: Timestamp,
        confirmations: &mut Vec<Bytes>,
    ) -> Vec<Advisory> {
        let subject = batch.subject(item);
        let reply = batch.reply(item);
        let Some(ack) = AckReply::parse(subject) else {
            dispatch.on_flow_reply(subject, batch.header(item), now);
            return Vec::new();
        };
        let outcome = dispatch.on_ack(&ack, AckKind::parse(batch.payload(item)), now);
        if reply.is_empty() {
            return outcome.advisories;
        }
        match outcome.confirm {
            Confirm::No => {}
            Confirm::Nobody => no_responders(route, &self.account, reply, subject),
            Confirm::Now => {
                let empty = MessageRef { subject: reply, ..MessageRef::default() };
                route.send(&self.account, reply, empty);
            }
            Confirm::AfterProgress => confirmations.push(Bytes::copy_from_slice(reply)),
        }
        if let Some(next) = &outcome.next {
            self.request(dispatch, route, next, reply, now);
        }
        outcome.advisories
    }

    fn deliver(&self, route: &mut RouteBatch, stream: &str, delivery: &Delivery, ack_subject: &mut Vec<u8>) {
        let record = &delivery.record;
        ack_subject.clear();
        AckReply {
            stream,
            consumer: self.name.as_str(),
            attempt: delivery.attempt,
            stream_seq: record.seq,
            consumer_seq: delivery.consumer_seq,
            timestamp: record.timestamp,
            pending: delivery.pending,
        }
        .encode(ack_subject);
        let message = MessageRef {
            subject: &record.subject,
            reply: ack_subject,
            header: &record.header,
            payload: &record.payload,
        };
        // Nobody there: the rules have asked about interest before, and redeliver what got lost in between.
        let _ = route.send(&self.account, &delivery.to, message);
    }

    fn notify(&self, route: &mut RouteBatch, notice: &Notice) {
        let message = MessageRef {
            subject: &notice.to,
            reply: notice.reply.as_deref().unwrap_or_default(),
            header: &notice.header,
            payload: &[],
        };
        let _ = route.send(&self.account, &notice.to, message);
    }

    fn advise(&self, jetstream: &JetStream, route: &mut RouteBatch, stream: &str, advice: &Advisory) {
        advisory::consumer(jetstream, route, &self.account, stream, &self.name, advice);
    }
}

impl InterestWatcher for Driver {
    fn interest_moved(self: Arc<Self>) {
        self.inbox.lock().interest_changed = true;
        self.rouse();
    }
}

/// Who listens: on the deliver subject of a queue group only its members count, on other subjects everybody.
fn interest<'a>(
    jetstream: &'a JetStream,
    account: &'a AccountName,
    dispatch: &Dispatch,
) -> impl Fn(&[u8]) -> bool + use<'a> {
    let router = jetstream.router();
    let grouped = dispatch.deliver_group().map(|(subject, group)| (subject.to_owned(), group.to_owned()));
    move |subject| {
        let is_for_group = |(deliver, _): &&(String, String)| subject == deliver.as_bytes();
        let group = grouped.as_ref().filter(is_for_group).map_or("", |(_, group)| group.as_str());
        router.has_group_interest(account, subject, group.as_bytes())
    }
}

enum Turn {
    /// The budget ran out before the work did.
    More,
    /// Nobody uses the consumer.
    Inactive,
    /// Nothing to do before this time.
    Sleep(Option<Timestamp>),
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
