//! Hot path: one consumer on the leader of its stream. What arrives (pull requests, acks, events of the stream)
//! goes into an inbox under one short lock; a task drains it, asks the rules for steps until they sleep, and hands
//! deliveries to the router in batches. One lock, one flush and one wakeup per batch of deliveries, not per message.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::consumer::{Advisory, Attention, Closed, Confirm, Delivery, Dispatch, Notice, Step};
use levee_broker_core::stream::{Event, ReadFailed};
use levee_protocol::api::{AckKind, AckReply, ConsumerInfo, PullRequest, RetentionPolicy};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{AccountName, ConsumerName};
use levee_protocol::time::{Nanos, Timestamp};
use levee_storage::kind::INLINE;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::advisory;
use crate::consumer::letters::{Letters, Outcome};
use crate::consumer::progress::Collector;
use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{Inbound, InboundItem, MessageRef, RouteBatch};
use crate::runtime::clock::Clock;
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
    /// An [`Attention`].
    attention: AtomicU8,
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
    ledger_changed: bool,
    interest_changed: bool,
    unpinned: bool,
    ended: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        let told = self.ledger_changed || self.interest_changed || self.unpinned || self.ended;
        self.requests.is_empty() && !self.stream_moved && !told
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
        leader: Weak<Leader>,
        name: &ConsumerName,
        beginning: Beginning,
    ) -> Result<Option<Arc<Self>>, ReadFailed> {
        let clock = jetstream.clock().clone();
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
                attention: AtomicU8::new(Attention::None as u8),
                first_info: Mutex::new(first_info),
            })
        }))
    }

    /// Everything there was to know of the consumer before it delivered anything, the cluster apart. For whoever asks
    /// first.
    pub fn take_first_info(&self) -> Option<ConsumerInfo> {
        self.first_info.lock().take().map(|info| *info)
    }

    /// Begins, if there is anything to do already.
    pub fn begin(self: &Arc<Self>) {
        if !self.is_idle && self.dispatch.lock().is_busy() {
            self.rouse();
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
    fn rests(self: &Arc<Self>, alarm: Option<Timestamp>) -> bool {
        // Whoever is known to the leader as awake has a task, so it leaves first.
        self.leave();
        self.is_running.store(false, Ordering::SeqCst);
        // An alarm that rings while there is still a task would be lost with it.
        if let (Some(due), Some(leader)) = (alarm, self.leader.upgrade()) {
            leader.set_alarm(self, due);
        }
        if self.inbox.lock().is_empty() || self.is_running.swap(true, Ordering::SeqCst) {
            return true;
        }
        if let Some(leader) = self.leader.upgrade() {
            leader.enter(self);
        }
        false
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

    /// Something happened to the stream. Who has nobody waiting finds out when it looks again.
    pub fn on_stream_events(self: &Arc<Self>, events: &[Event]) {
        let has_removals = || events.iter().any(|event| matches!(event, Event::Removed { .. }));
        let attention = self.attention.load(Ordering::SeqCst);
        if attention == Attention::None as u8 || (attention == Attention::Removals as u8 && !has_removals()) {
            return;
        }
        // The next poll looks at the stream itself.
        self.inbox.lock().stream_moved = true;
        self.rouse();
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
    pub fn end(&self, jetstream: &JetStream, why: Ended) {
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
    pub fn info(&self, jetstream: &JetStream, replica: &Replica) -> Option<ConsumerInfo> {
        let now = jetstream.clock().now();
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
            dispatch.info(machine, view, now)
        });
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
        let mut interest = jetstream.router().interest_changed();
        let mut scratch = Vec::with_capacity(256);
        let mut letters = Letters::new(&jetstream, self.account.clone());
        loop {
            while let Some(outcome) = letters.next_now() {
                self.letter_posted(&replica, &mut letters, &outcome);
            }
            // From here on what happens to the stream is told.
            self.attention.store(Attention::All as u8, Ordering::SeqCst);
            let inbox = {
                let mut inbox = self.inbox.lock();
                if inbox.ended {
                    drop(inbox);
                    self.leave();
                    return;
                }
                std::mem::take(&mut *inbox)
            };
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
                    let is_long = wait.is_none_or(|wait| wait > LINGER);
                    may_rest = is_long && self.attention.load(Ordering::SeqCst) == Attention::None as u8;
                    alarm = until;
                    if may_rest { Some(LINGER) } else { wait }
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
            let attends = self.attention.load(Ordering::SeqCst) == Attention::All as u8;
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep(wait) => {
                    if may_rest && self.rests(alarm) {
                        return;
                    }
                }
                outcome = letters.next() => self.letter_posted(&replica, &mut letters, &outcome),
                changed = interest.changed(), if attends => {
                    if changed.is_err() {
                        return;
                    }
                    self.inbox.lock().interest_changed = true;
                }
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
        &self,
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
        self.take_events(&mut dispatch, replica, &inbox, now);
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
                    Step::Sleep(until) => return Ok(Turn::Sleep(until)),
                }
            }
            Ok(Turn::More)
        });
        if matches!(turn, Ok(Turn::Sleep(_))) {
            self.attention.store(dispatch.attention() as u8, Ordering::SeqCst);
        }
        let urgent = dispatch.waits_for_commit()
            || replica.read(|machine, _| {
                machine.config().is_some_and(|config| config.retention != RetentionPolicy::Limits)
            });
        progress.report(dispatch.take_progress(), confirmations, urgent);
        turn
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

    fn take_events(&self, dispatch: &mut Dispatch, replica: &Replica, inbox: &Inbox, now: Timestamp) {
        if inbox.interest_changed {
            dispatch.on_interest_changed();
        }
        if inbox.ledger_changed {
            replica.read(|machine, _| {
                if let Some(ledger) = machine.consumer(&self.name) {
                    dispatch.on_configured(ledger, now);
                }
            });
        }
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
            dispatch.on_flow_reply(subject, now);
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
