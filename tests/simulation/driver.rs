//! One consumer on the leader of the stream: the real rules of the leader's half, driven as the broker drives them, with
//! the oracle looking at everything that is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use levee_broker_core::consumer::{
    AckOutcome, Advisory, Attention, Closed, Confirm, Delivery, Dispatch, Ledger, Notice, Posted, Step,
};
use levee_broker_core::stream::{Event, ReadFailed, StreamMachine};
use levee_protocol::api::{AckKind, AckReply, PullRequest, RetentionPolicy};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::HeaderBlock;
use levee_raft::Haste;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::leading::Leader;
use crate::letters;
use crate::plan::Breakage;
use crate::post::Parcel;
use crate::progress::Confirmation;
use crate::streams::Which;

/// Steps between two looks at what arrived.
const STEPS_PER_FLUSH: usize = 512;
const READ_RETRY: Duration = Duration::from_secs(1);

/// One consumer, on the leader.
pub(crate) struct Driver {
    name: ConsumerName,
    leader: Arc<Leader>,
    /// Tells it from all other drivers of the run; another one from each reset on.
    number: AtomicU64,
    inbox: Mutex<Inbox>,
    wake: Notify,
    dispatch: Mutex<Dispatch>,
    attention: Mutex<Attention>,
    /// The incarnation that it has heard of.
    heard: AtomicU64,
    /// Until when it is paused, as far as it has heard.
    paused: Mutex<Option<Timestamp>>,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    events: Vec<Event>,
    first_match: Option<Seq>,
    ledger_changed: bool,
    interest_changed: bool,
    ended: bool,
}

/// What a client sends to a consumer.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Wants messages.
    Pull {
        /// How many, for how long.
        request: PullRequest,
        /// Where to.
        inbox: Bytes,
    },
    /// Says how a message fared.
    Ack {
        /// Where it was sent: it names the message.
        subject: Vec<u8>,
        /// What it says.
        body: Vec<u8>,
        /// Where it is to be confirmed.
        confirm: Option<Bytes>,
    },
    /// Answers flow control.
    Flow {
        /// Where it was asked to.
        subject: Vec<u8>,
        /// The header block: what is stored.
        header: Vec<u8>,
    },
}

enum Turn {
    More,
    Sleep(Option<Timestamp>),
}

/// What became of a dead letter.
struct Outcome {
    seq: Seq,
    incarnation: u64,
    posted: Posted,
}

impl Driver {
    /// Takes over from the ledger. `None` when there is no such consumer any more.
    pub(crate) fn new(leader: &Arc<Leader>, name: &ConsumerName) -> Option<Arc<Self>> {
        let world = &leader.world;
        let now = world.now(&leader.host);
        let begun = leader.stream.replica.read(|machine, view| {
            let ledger = machine.consumer(name)?;
            let working = disobeying(ledger, world.plan.breakage);
            Some(Dispatch::new(working.as_ref().unwrap_or(ledger), machine, view, now).map(|mut dispatch| {
                dispatch.bind(&|subject| world.post.listens(subject), now);
                (dispatch, ledger.config().clone())
            }))
        })?;
        let (dispatch, config) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                leader.stream.replica.unreadable(name, &error);
                return None;
            }
        };
        let (paused, incarnation) = (config.pause_until, dispatch.incarnation());
        let number = world.oracle.takes_over(name, incarnation, config, leader.raft_term);
        world.trace.note(format_args!("{} drives {name} ({number})", leader.host.id));
        Some(Arc::new(Self {
            name: name.clone(),
            leader: Arc::clone(leader),
            number: AtomicU64::new(number),
            heard: AtomicU64::new(incarnation),
            inbox: Mutex::default(),
            wake: Notify::new(),
            dispatch: Mutex::new(dispatch),
            attention: Mutex::new(Attention::All),
            paused: Mutex::new(paused),
        }))
    }

    fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Something arrived from a client.
    pub(crate) fn take(&self, request: Request) {
        self.inbox.lock().requests.push(request);
        self.wake.notify_one();
    }

    /// Something happened to the stream. It wakes for the first message that one of its filters matches and for the end of
    /// an open one, and for nothing else.
    pub(crate) fn on_stream_events(&self, events: &[Event]) {
        let attention = *self.attention.lock();
        if attention == Attention::None {
            return;
        }
        let mut wakes = false;
        for event in events {
            match event {
                Event::Removed { first, last } => {
                    wakes |= self.dispatch.lock().open().any(|seq| (*first..=*last).contains(&seq));
                    self.inbox.lock().events.push(event.clone());
                }
                Event::Appended { first, last } if attention == Attention::All => {
                    let mut inbox = self.inbox.lock();
                    if inbox.first_match.is_none() {
                        inbox.first_match = self.first_match(*first, *last);
                    }
                    wakes |= inbox.first_match.is_some();
                }
                Event::Appended { .. }
                | Event::ConsumerCreated { .. }
                | Event::ConsumerUpdated { .. }
                | Event::ConsumerDeleted { .. }
                | Event::Configured => {}
            }
        }
        if wakes {
            self.wake.notify_one();
        }
    }

    fn first_match(&self, first: Seq, last: Seq) -> Option<Seq> {
        let dispatch = self.dispatch.lock();
        let filters = dispatch.filters();
        self.leader.stream.replica.read(|_, view| {
            (first.0..=last.0).map(Seq).find(|seq| match view.record(*seq) {
                Ok(Some(record)) => {
                    filters.is_empty() || filters.iter().any(|filter| filter.matches(&record.subject))
                }
                // Removed since, or not to be read: it is to look for itself.
                Ok(None) | Err(_) => true,
            })
        })
    }

    /// The consumer was updated, paused, resumed or reset.
    pub(crate) fn ledger_changed(&self) {
        self.inbox.lock().ledger_changed = true;
        self.wake.notify_one();
    }

    /// It is over: whoever waits is told.
    pub(crate) fn end(&self) {
        self.inbox.lock().ended = true;
        if self.leader.is_alive() {
            for notice in self.dispatch.lock().close(Closed::LeadershipChange) {
                self.notify(notice);
            }
        }
    }

    /// Nothing is left to be delivered or settled, and the log has it.
    pub(crate) fn is_done(&self) -> bool {
        let mut dispatch = self.dispatch.lock();
        self.leader.stream.replica.read(|machine, view| {
            let is_logged = |ledger: &Ledger| {
                ledger.incarnation() == dispatch.incarnation() && ledger.marks().num_unacked() == 0
            };
            machine.consumer(&self.name).is_some_and(is_logged)
                && dispatch.num_ack_pending() == 0
                && dispatch.num_pending(machine, view).is_ok_and(|pending| pending == 0)
        })
    }

    /// Delivers until it is ended.
    pub(crate) fn run(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let driver = Arc::clone(self);
        async move {
            let mut interest = driver.leader.world.post.interest();
            let mut letters = FuturesUnordered::<BoxFuture<'static, Outcome>>::new();
            loop {
                *driver.attention.lock() = Attention::All;
                let inbox = std::mem::take(&mut *driver.inbox.lock());
                let is_broken = driver.leader.world.oracle.violation().is_some();
                if inbox.ended || is_broken || !driver.leader.is_alive() {
                    return;
                }
                let caught_up = driver.after_commits(&letters);
                let turn = driver.turn(inbox);
                let turn = caught_up.and(turn);
                let wait = match turn {
                    Ok(Turn::More) => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Ok(Turn::Sleep(until)) => until.map(|until| {
                        until.since(driver.leader.world.now(&driver.leader.host)).max(Nanos::ZERO).to_std()
                    }),
                    Err(error) => {
                        driver.leader.stream.replica.unreadable(&driver.name, &error);
                        Some(READ_RETRY)
                    }
                };
                let watches = driver.dispatch.lock().deliver_subject().is_some();
                tokio::select! {
                    () = driver.wake.notified() => {}
                    () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                    Some(outcome) = letters.next(), if !letters.is_empty() => {
                        let now = driver.leader.world.now(&driver.leader.host);
                        let Outcome { seq, incarnation, posted } = outcome;
                        driver.dispatch.lock().on_dead_letter(seq, incarnation, posted, now);
                    }
                    changed = interest.changed(), if watches => {
                        if changed.is_err() {
                            return;
                        }
                        driver.inbox.lock().interest_changed = true;
                    }
                }
            }
        }
    }

    /// Sends what waited for the log: deliveries of a keyed consumer, and dead letters.
    fn after_commits(
        &self,
        letters: &FuturesUnordered<BoxFuture<'static, Outcome>>,
    ) -> Result<(), ReadFailed> {
        let world = &self.leader.world;
        let now = world.now(&self.leader.host);
        let mut dispatch = self.dispatch.lock();
        if !dispatch.waits_for_ledger(now) {
            return Ok(());
        }
        self.leader.stream.replica.read(|machine, view| {
            let Some(ledger) = machine.consumer(&self.name) else { return Ok(()) };
            if dispatch.incarnation() != self.heard.load(Ordering::Relaxed) {
                let name = &self.name;
                world.oracle.violated(format!("{name} waits for marks of before, and has heard of a reset"));
            }
            while let Some(delivery) = dispatch.committed(ledger) {
                self.deliver(&delivery, machine);
            }
            for letter in dispatch.dead_letters(ledger, machine, view, now)? {
                let world = Arc::clone(world);
                world.trace.note(format_args!("{} posts dead letter {}", self.name, letter.seq));
                letters.push(Box::pin(async move {
                    let (seq, incarnation) = (letter.seq, letter.incarnation);
                    Outcome { seq, incarnation, posted: letters::publish(&world, &letter).await }
                }));
            }
            Ok(())
        })
    }

    /// Hands in what arrived, then takes steps.
    fn turn(&self, inbox: Inbox) -> Result<Turn, ReadFailed> {
        let Leader { world, host, stream, progress, .. } = &*self.leader;
        let now = world.now(host);
        let mut dispatch = self.dispatch.lock();
        let mut confirmations = Vec::new();
        for event in &inbox.events {
            if let Event::Removed { first, last } = event {
                dispatch.on_removed(*first, *last);
            }
        }
        if inbox.interest_changed {
            dispatch.on_interest_changed();
        }
        if inbox.ledger_changed {
            self.look_at_ledger(&mut dispatch, now);
        }
        if let Some(first) = inbox.first_match {
            dispatch.on_match(first);
        }
        for request in inbox.requests {
            self.handle(&mut dispatch, request, now, &mut confirmations);
        }
        let interest = |subject: &[u8]| world.post.listens(subject);
        let paused = self.paused.lock().filter(|until| *until > now);
        let turn = stream.replica.read(|machine, view| {
            for _ in 0..STEPS_PER_FLUSH {
                match dispatch.poll(machine, view, &interest, now)? {
                    Step::Deliver(delivery) => {
                        if let Some(until) = paused {
                            let (name, seq) = (&self.name, delivery.record.seq);
                            world.oracle.violated(format!("{name} sends {seq} and is paused until {until}"));
                        }
                        if dispatch.incarnation() != self.heard.load(Ordering::Relaxed) {
                            let (name, seq) = (&self.name, delivery.record.seq);
                            world.oracle.violated(format!("{name} sends {seq} and has heard of a reset"));
                        }
                        self.deliver(&delivery, machine);
                    }
                    Step::Notify(notice) => self.notify(notice),
                    Step::Advisory(advice) => self.advise(&advice),
                    // No consumer of a run has a threshold.
                    Step::Inactive => {}
                    Step::Sleep(until) => {
                        let waiting = dispatch.num_waiting();
                        if waiting > 0 && paused.is_none() {
                            let pending = dispatch.num_pending(machine, view)?;
                            world.oracle.sleeps(self.number(), pending);
                        }
                        dispatch.listens();
                        *self.attention.lock() = dispatch.attention();
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
            false if stream.replica.read(|machine, _| removes(machine)) => Haste::Soon,
            false => Haste::None,
        };
        progress.report(dispatch.take_progress(), confirmations, haste);
        turn
    }

    /// Takes in what was updated, paused or reset.
    fn look_at_ledger(&self, dispatch: &mut Dispatch, now: Timestamp) {
        let Leader { world, stream, raft_term, .. } = &*self.leader;
        let before = dispatch.incarnation();
        stream.replica.read(|machine, _| {
            let Some(ledger) = machine.consumer(&self.name) else { return };
            let is_heard = match world.plan.breakage {
                Breakage::ChangesAreForgotten => ledger.incarnation() != before,
                Breakage::ResetsAreForgotten => ledger.incarnation() == before,
                _ => true,
            };
            if is_heard {
                dispatch.on_configured(ledger, now);
            }
            self.heard.store(ledger.incarnation(), Ordering::Relaxed);
            let config = ledger.config();
            *self.paused.lock() = config.pause_until;
            if dispatch.incarnation() == before {
                world.oracle.configured(self.number(), config);
            } else {
                let (incarnation, config) = (dispatch.incarnation(), config.clone());
                let number = world.oracle.takes_over(&self.name, incarnation, config, *raft_term);
                self.number.store(number, Ordering::Relaxed);
            }
        });
    }

    fn handle(
        &self,
        dispatch: &mut Dispatch,
        request: Request,
        now: Timestamp,
        confirmations: &mut Vec<Confirmation>,
    ) {
        let (subject, body, confirm) = match request {
            Request::Pull { request, inbox } => {
                for notice in dispatch.on_pull(&request, inbox, now) {
                    self.notify(notice);
                }
                return;
            }
            Request::Flow { subject, header } => {
                let stored = HeaderBlock(&header).get_str("Nats-Last-Stream");
                if let Some(seq) = stored.and_then(|text| text.parse().ok()).map(Seq) {
                    self.leader.world.oracle.hears(self.number(), seq, AckKind::Ack);
                }
                dispatch.on_flow_reply(&subject, &header, now);
                return;
            }
            Request::Ack { subject, body, confirm } => (subject, body, confirm),
        };
        let Some(ack) = AckReply::parse(&subject) else { return };
        let kind = AckKind::parse(&body);
        let world = &self.leader.world;
        let outcome = match (world.plan.breakage, kind) {
            (Breakage::AcksAreForgotten, AckKind::Ack) => {
                AckOutcome { confirm: Confirm::AfterProgress, ..AckOutcome::default() }
            }
            _ => dispatch.on_ack(&ack, kind, now),
        };
        world.trace.note(format_args!(
            "{} of {} hears {kind:?} of {} as {}: {:?}",
            self.name, self.leader.host.id, ack.stream_seq, ack.consumer_seq, outcome.confirm
        ));
        if outcome.confirm != Confirm::No || outcome.next.is_some() {
            world.oracle.hears(self.number(), ack.stream_seq, kind);
        }
        for advice in &outcome.advisories {
            self.advise(advice);
        }
        let Some(to) = confirm else { return };
        match outcome.confirm {
            Confirm::AfterProgress => {
                let incarnation = dispatch.incarnation();
                let (consumer, seq) = (self.name.clone(), ack.stream_seq);
                confirmations.push(Confirmation { consumer, incarnation, seq, to });
            }
            Confirm::Now => world.post.send(&to, Parcel::Confirmed),
            Confirm::No | Confirm::Nobody => {}
        }
    }

    fn deliver(&self, delivery: &Delivery, machine: &StreamMachine) {
        let Leader { world, host, .. } = &*self.leader;
        let seq = delivery.record.seq;
        if world.plan.breakage == Breakage::DeliveriesAreSkipped && seq.0.is_multiple_of(17) {
            return;
        }
        let mut ack = Vec::new();
        AckReply {
            stream: Which::Origin.name(),
            consumer: self.name.as_str(),
            attempt: delivery.attempt,
            stream_seq: seq,
            consumer_seq: delivery.consumer_seq,
            timestamp: delivery.record.timestamp,
            pending: delivery.pending,
        }
        .encode(&mut ack);
        world.trace.note(format_args!(
            "{} of {} sends {seq} as {} (attempt {})",
            self.name, host.id, delivery.consumer_seq, delivery.attempt
        ));
        world.oracle.sends(self.number(), delivery, machine);
        world.post.send(&delivery.to, Parcel::Message { ack, record: delivery.record.clone() });
    }

    fn notify(&self, notice: Notice) {
        let parcel = Parcel::Status { header: notice.header, reply: notice.reply };
        self.leader.world.post.send(&notice.to, parcel);
    }

    fn advise(&self, advice: &Advisory) {
        if let Advisory::MaxDeliveries { stream_seq, .. } | Advisory::Terminated { stream_seq, .. } = advice {
            self.leader.world.oracle.lets_go(self.number(), *stream_seq);
        }
    }
}

/// A ledger with another configuration than the log has, if this leader is to be one that does not keep to it.
fn disobeying(ledger: &Ledger, breakage: Breakage) -> Option<Ledger> {
    let mut config = ledger.config().clone();
    match breakage {
        Breakage::LeadersForgetOptions => {
            config.metadata.remove("levee.key");
            (config.max_deliver, config.max_ack_pending) = (-1, -1);
        }
        Breakage::ChangesAreForgotten => config.pause_until = None,
        Breakage::LeadersAreMean => config.max_ack_pending = 1,
        _ => return None,
    }
    let mut ledger = ledger.clone();
    ledger.update(config);
    Some(ledger)
}
