//! What consumers promise, held against what leaders send, what clients say, and what the log says of both.
//!
//! | promise | is checked |
//! |---|---|
//! | every message is delivered at least once | when the delivered mark moves past one, and at the end |
//! | none after its confirmed ack | at every sending by a leader of that term or a later one |
//! | never more often than `max_deliver` | at every sending: attempts go on from what the log has |
//! | the marks only rise | at every entry |
//! | nothing is settled that nobody acked | at every entry |
//! | no more than `max_ack_pending` in clients' hands | at every sending |
//! | none while the consumer is paused, none of before a reset | at every sending by a leader that has heard of it |
//! | nobody waits while there is something to have | whenever a leader goes to sleep |
//! | messages of one key one by one, in order | at every sending |
//! | one that is deleted or reset forgets all, begins where it is told, and no other forgets anything | at every entry |
//! | a dead letter is stored before its message is settled, once | at every entry, and at the end |
//! | what a copy has is acked, and nothing else, when flow control is its ack | at every entry, and at the end |
//!
//! A leader that is cut off and does not know it may send once more what others have settled: that is why terms matter,
//! and why attempts are those that the log has heard of (decision 3).
//!
//! A consumer begins a new life when it is reset, and when it is made again after it was deleted. Each life has a book of
//! its own. Acks carry nothing that says of which life they are, so one counts for whichever takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use levee_broker_core::consumer::{Delivery, Ledger};
use levee_broker_core::stream::StreamMachine;
use levee_protocol::api::{AckKind, AckPolicy, ConsumerConfig};
use levee_protocol::command::progress::{DeathCause, Settlement};
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::subject::Filter;
use parking_lot::Mutex;

use crate::model::Model;

/// How often each dead letter was stored, by consumer, incarnation and sequence.
pub(crate) type Letters = Arc<Mutex<BTreeMap<(String, u64, u64), u64>>>;

/// Up to which sequence of their origin copies have committed what there is, by the consumers that deliver to them.
pub(crate) type Copied = Arc<Mutex<BTreeMap<String, u64>>>;

/// What is known of all consumers.
#[derive(Default)]
pub(crate) struct Deliveries {
    books: BTreeMap<Life, Book>,
    /// The consumers there are, and the incarnations that their lives began with.
    living: BTreeMap<ConsumerName, u64>,
    said: BTreeMap<ConsumerName, Said>,
    /// Leaders' halves, by number.
    working: BTreeMap<u64, Working>,
    letters: Letters,
    copied: Copied,
    sent: u64,
    repeated: u64,
}

/// A consumer, and the incarnation that this life of it began with.
type Life = (ConsumerName, u64);

/// What clients of a consumer said.
#[derive(Default)]
struct Said {
    acked: BTreeSet<Seq>,
    terminated: BTreeSet<Seq>,
}

/// One life of one consumer.
#[derive(Default)]
struct Book {
    config: ConsumerConfig,
    filters: Vec<Filter>,
    /// The first message that concerns it.
    start: Seq,
    /// What leaders sent.
    sent: BTreeSet<Seq>,
    /// Settled, a client was told, by a leader of this term.
    confirmed: BTreeMap<Seq, u64>,
    log: Logged,
}

/// What the log says of a consumer.
#[derive(Default)]
struct Logged {
    /// The last attempt.
    attempts: BTreeMap<Seq, u32>,
    unacked: BTreeSet<Seq>,
    passed: BTreeSet<Seq>,
    dead: BTreeSet<Seq>,
    given_up: BTreeSet<Seq>,
    settled: BTreeSet<Seq>,
    settled_upto: Seq,
    /// Messages that the stream had when an answer to flow control settled them.
    acked_by_flow: BTreeSet<Seq>,
    delivered: (u64, Seq),
    floor: (u64, Seq),
}

/// One leader's half of one consumer.
struct Working {
    life: Life,
    raft_term: u64,
    /// What the log had when it began, and what it has sent since.
    attempts: BTreeMap<Seq, u32>,
    /// How many messages may be in clients' hands, as far as it has heard.
    places: Option<usize>,
    /// Messages that take a place.
    hands: BTreeSet<Seq>,
    delayed: BTreeSet<Seq>,
}

impl Logged {
    fn is_settled(&self, seq: Seq) -> bool {
        seq <= self.settled_upto || self.settled.contains(&seq)
    }

    fn is_done(&self, seq: Seq) -> bool {
        self.is_settled(seq) || self.given_up.contains(&seq) || self.dead.contains(&seq)
    }
}

impl Book {
    fn of(config: ConsumerConfig) -> Self {
        let filters = config.filters().filter_map(|filter| Filter::parse(filter).ok()).collect();
        Self { config, filters, ..Self::default() }
    }

    fn wants(&self, subject: &[u8]) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.matches(subject))
    }

    fn has_option(&self, option: &str) -> bool {
        self.config.metadata.contains_key(option)
    }

    fn is_keyed(&self) -> bool {
        self.has_option("levee.key")
    }

    fn max_deliver(&self) -> Option<u32> {
        u32::try_from(self.config.max_deliver).ok().filter(|max| *max > 0)
    }
}

fn places(config: &ConsumerConfig) -> Option<usize> {
    let bounded = config.ack_policy != AckPolicy::None;
    usize::try_from(config.max_ack_pending).ok().filter(|max| bounded && *max > 0)
}

impl Deliveries {
    /// Knows of the letters that are stored, and of what copies have.
    pub(crate) fn new(letters: Letters, copied: Copied) -> Self {
        Self { letters, copied, ..Self::default() }
    }

    /// Every message of the stream that answers to this consumer's flow control settled.
    pub(crate) fn acked_by_flow(&self, name: &str) -> BTreeSet<u64> {
        let lives = self.books.iter().filter(|((consumer, _), _)| consumer.as_str() == name);
        lives.flat_map(|(_, book)| &book.log.acked_by_flow).map(|seq| seq.0).collect()
    }

    /// What happened, in a few words.
    pub(crate) fn summary(&self) -> String {
        let dead: usize = self.books.values().map(|book| book.log.dead.len()).sum();
        format!("{} deliveries, {} repeated, {dead} dead", self.sent, self.repeated)
    }

    /// A leader builds its half. Returns its number.
    pub(crate) fn takes_over(
        &mut self,
        name: &ConsumerName,
        incarnation: u64,
        config: ConsumerConfig,
        raft_term: u64,
    ) -> u64 {
        let life = (name.clone(), incarnation);
        let places = places(&config);
        let book = self.books.entry(life.clone()).or_insert_with(|| Book::of(config));
        let working = Working {
            life,
            raft_term,
            places,
            attempts: book.log.attempts.clone(),
            hands: book.log.unacked.difference(&book.log.dead).copied().collect(),
            delayed: BTreeSet::new(),
        };
        let number = self.working.len() as u64 + 1;
        self.working.insert(number, working);
        number
    }

    /// A leader has heard of another configuration.
    pub(crate) fn configured(&mut self, number: u64, config: &ConsumerConfig) {
        let Some(working) = self.working.get_mut(&number) else { return };
        let is_keyed = self.books.get(&working.life).is_some_and(Book::is_keyed);
        // What waits for the log has its place already.
        let before = working.places.filter(|_| is_keyed);
        working.places = places(config).map(|now| before.map_or(now, |before| before.max(now)));
    }

    /// A leader sends a message. `has` says whether its replica of the stream has one: it may be behind others'.
    pub(crate) fn sends(
        &mut self,
        number: u64,
        delivery: &Delivery,
        has: impl Fn(Seq) -> bool,
        model: &Model,
    ) -> Result<(), String> {
        let Some(working) = self.working.get_mut(&number) else { return Err(format!("nobody is {number}")) };
        let Some(book) = self.books.get_mut(&working.life) else { return Err("no such consumer".into()) };
        let (seq, attempt) = (delivery.record.seq, u32::try_from(delivery.attempt).unwrap_or(u32::MAX));
        let wrong = |what: String| Err(format!("{} sends {seq} (attempt {attempt}): {what}", working.life.0));
        self.sent += 1;
        self.repeated += u64::from(!book.sent.insert(seq));
        if book.max_deliver().is_some_and(|max| attempt > max) {
            return wrong(format!("more often than {:?}", book.max_deliver()));
        }
        if book.config.ack_policy != AckPolicy::None {
            let before = working.attempts.insert(seq, attempt).unwrap_or(0);
            if attempt != before + 1 {
                return wrong(format!("attempt {before} was the last that the log or this leader had"));
            }
        }
        if let Some(term) = book.confirmed.get(&seq)
            && working.raft_term >= *term
        {
            return wrong(format!("its ack was confirmed in term {term}, this is {}", working.raft_term));
        }
        if let Some(max) = working.places {
            working.delayed.remove(&seq);
            let takes_a_place = working.hands.insert(seq);
            if takes_a_place && working.hands.len() > max {
                working.hands.retain(|seq| has(*seq));
            }
            if takes_a_place && working.hands.len() > max {
                return wrong(format!("{} are in clients' hands, {max} may be", working.hands.len()));
            }
        }
        if book.is_keyed() {
            let subject = &delivery.record.subject;
            let earlier = model.live().range(book.start.0.min(seq.0)..seq.0);
            let earlier = earlier.filter(|(_, message)| message.subject == *subject);
            if let Some((open, _)) =
                earlier.map(|(seq, it)| (Seq(*seq), it)).find(|(seq, _)| !book.log.is_done(*seq))
            {
                return wrong(format!("{open} of the same key is not done"));
            }
            if book.log.attempts.get(&seq).is_none_or(|logged| *logged < attempt) {
                return wrong("the log has not heard of it".to_owned());
            }
        }
        Ok(())
    }

    /// An ack has come to a leader.
    pub(crate) fn hears(&mut self, number: u64, seq: Seq, kind: AckKind<'_>) {
        let Some(working) = self.working.get_mut(&number) else { return };
        let Some(book) = self.books.get(&working.life) else { return };
        match kind {
            AckKind::Ack | AckKind::Next(_)
                if matches!(book.config.ack_policy, AckPolicy::All | AckPolicy::FlowControl) =>
            {
                working.hands = working.hands.split_off(&seq.next());
            }
            AckKind::Ack | AckKind::Next(_) => {
                working.hands.remove(&seq);
                working.delayed.remove(&seq);
            }
            AckKind::Terminate(_) if book.config.ack_policy == AckPolicy::All => {
                working.hands = working.hands.split_off(&seq.next());
            }
            AckKind::Terminate(_) => {
                working.hands.remove(&seq);
                working.delayed.remove(&seq);
            }
            AckKind::Nak(delay) if delay.0 > 0 && book.has_option("levee.nak_delay_frees_slot") => {
                if working.hands.remove(&seq) {
                    working.delayed.insert(seq);
                }
            }
            AckKind::InProgress => {
                if working.delayed.remove(&seq) {
                    working.hands.insert(seq);
                }
            }
            AckKind::Nak(_) | AckKind::Unknown => {}
        }
    }

    /// A leader has nothing more to do with a message.
    pub(crate) fn lets_go(&mut self, number: u64, seq: Seq) {
        if let Some(working) = self.working.get_mut(&number) {
            working.hands.remove(&seq);
            working.delayed.remove(&seq);
        }
    }

    /// A leader goes to sleep while somebody waits for messages.
    pub(crate) fn sleeps(&self, number: u64, pending: u64) -> Result<(), String> {
        let Some(working) = self.working.get(&number) else { return Ok(()) };
        let Some(book) = self.books.get(&working.life) else { return Ok(()) };
        let has_room = working.places.is_none_or(|max| working.hands.len() < max);
        if pending > 0 && has_room && !book.is_keyed() && !book.config.is_push() {
            return Err(format!(
                "{} sleeps: {pending} messages could be had, {} are in clients' hands",
                working.life.0,
                working.hands.len()
            ));
        }
        Ok(())
    }

    /// A client says how a message fared.
    pub(crate) fn acks(&mut self, name: &ConsumerName, seq: Seq, body: &[u8]) {
        let said = self.said.entry(name.clone()).or_default();
        match AckKind::parse(body) {
            AckKind::Ack | AckKind::Next(_) => said.acked.insert(seq),
            AckKind::Terminate(_) => said.terminated.insert(seq),
            AckKind::Nak(_) | AckKind::InProgress | AckKind::Unknown => false,
        };
    }

    /// A leader confirms an ack that it took in this life of the consumer.
    pub(crate) fn confirmed(&mut self, name: &ConsumerName, incarnation: u64, seq: Seq, raft_term: u64) {
        let Some(book) = self.books.get_mut(&(name.clone(), incarnation)) else { return };
        let settled: Vec<Seq> = if book.config.ack_policy == AckPolicy::All {
            book.sent.range(..=seq).copied().collect()
        } else {
            vec![seq]
        };
        for seq in settled {
            book.confirmed.entry(seq).or_insert(raft_term);
        }
    }

    /// The log says what consumers did. `live` is the stream before that, `machine` after.
    pub(crate) fn progresses(
        &mut self,
        progress: &Progress,
        model: &Model,
        machine: &StreamMachine,
    ) -> Result<(), String> {
        let letters = self.letters.lock();
        for row in &progress.consumers {
            // What is said of an earlier life counts no more.
            if self.living.get(&row.name) != Some(&row.incarnation) {
                continue;
            }
            let Some(book) = self.books.get_mut(&(row.name.clone(), row.incarnation)) else { continue };
            let said = self.said.entry(row.name.clone()).or_default();
            let copied = self.copied.lock().get(row.name.as_str()).copied().map_or(Seq::NONE, Seq);
            book.follows(row, model, said, (&letters, copied))
                .map_err(|what| format!("{}: {what}", row.name))?;
        }
        // One entry may have several rows of a consumer.
        let names: BTreeSet<&ConsumerName> = progress.consumers.iter().map(|row| &row.name).collect();
        drop(letters);
        names.into_iter().try_for_each(|name| self.compare(name, model, machine))
    }

    /// The log creates, changes, resets or deletes a consumer.
    pub(crate) fn changes(
        &mut self,
        command: &StreamCommand,
        model: &Model,
        machine: &StreamMachine,
    ) -> Result<(), String> {
        let (name, start, ends) = match command {
            StreamCommand::CreateConsumer { name, .. } => (name, machine.first_seq().max(Seq(1)), false),
            StreamCommand::ResetConsumer { name, seq: Seq::NONE, .. } => {
                (name, self.book(name).map_or(Seq::NONE, |book| book.log.floor.1.next()), true)
            }
            StreamCommand::ResetConsumer { name, seq, .. } => (name, *seq, true),
            StreamCommand::DeleteConsumer { name, .. } => (name, Seq::NONE, true),
            _ => return Ok(()),
        };
        let before = self.living.get(name).copied();
        let ledger = machine.consumer(name);
        let now = ledger.map(Ledger::incarnation);
        if ends && before.is_some() && now == before {
            return Err(format!("{name} goes on as if it were neither reset nor deleted"));
        }
        if !ends && before.is_some() && now != before {
            return Err(format!("{name} was there and begins again"));
        }
        match ledger {
            None => drop(self.living.remove(name)),
            Some(ledger) if now != before => {
                self.living.insert(name.clone(), ledger.incarnation());
                let book = Book { start, ..Book::of(ledger.config().clone()) };
                let book = self.books.entry((name.clone(), ledger.incarnation())).or_insert(book);
                book.begins(ledger).map_err(|what| format!("{name}: {what}"))?;
            }
            Some(_) => {}
        }
        let names: Vec<ConsumerName> = self.living.keys().cloned().collect();
        names.iter().try_for_each(|name| self.compare(name, model, machine))
    }

    fn book(&self, name: &ConsumerName) -> Option<&Book> {
        self.books.get(&(name.clone(), *self.living.get(name)?))
    }

    /// Holds what the log says of a consumer against what this replica has of it.
    fn compare(&mut self, name: &ConsumerName, model: &Model, machine: &StreamMachine) -> Result<(), String> {
        let Some(incarnation) = self.living.get(name) else { return Ok(()) };
        let Some(book) = self.books.get_mut(&(name.clone(), *incarnation)) else { return Ok(()) };
        let Some(ledger) = machine.consumer(name) else {
            return Err(format!("{name} is gone, and nobody deleted it"));
        };
        book.compare(ledger, model).map_err(|what| format!("{name}: {what}"))
    }

    /// Everything is delivered and settled, and every dead letter is there once.
    pub(crate) fn at_the_end(&self, model: &Model) -> Result<(), String> {
        let letters = self.letters.lock();
        for ((consumer, _, seq), count) in letters.iter() {
            if *count > 1 {
                return Err(format!("the dead letter of {consumer} for {seq} is stored {count} times"));
            }
        }
        for (name, incarnation) in &self.living {
            let Some(book) = self.book(name) else { continue };
            let concerns = model.live().range(book.start.0..);
            for (seq, message) in concerns.filter(|(_, it)| book.wants(&it.subject)) {
                let seq = Seq(*seq);
                // A leader that died between mark and sending has used an attempt up (decision 23).
                let used_up = book.is_keyed() && book.log.is_done(seq) && !book.log.is_settled(seq);
                if !book.sent.contains(&seq) && !used_up {
                    return Err(format!("{name}: {seq} was never delivered: {message:?}"));
                }
                if book.config.ack_policy != AckPolicy::None && !book.log.is_done(seq) {
                    return Err(format!("{name}: {seq} is not done"));
                }
                let key = (name.to_string(), *incarnation, seq.0);
                if book.log.dead.contains(&seq) && !letters.contains_key(&key) {
                    return Err(format!("{name}: there is no dead letter for {seq}"));
                }
            }
            if let Some(seq) = book.log.unacked.first() {
                return Err(format!("{name}: {seq} is still unacked"));
            }
        }
        Ok(())
    }
}

impl Book {
    /// Its life begins: nothing is known of what was before.
    fn begins(&mut self, ledger: &Ledger) -> Result<(), String> {
        let marks = ledger.marks();
        let position = (0, self.start.previous());
        (self.log.delivered, self.log.floor) = (position, position);
        let delivered = (marks.delivered().consumer, marks.delivered().stream);
        let floor = (marks.floor().consumer, marks.floor().stream);
        if (delivered, floor, marks.num_unacked()) != (position, position, 0) {
            return Err(format!("it begins at {}, and has {marks:?}", self.start));
        }
        Ok(())
    }

    /// Takes in one row, and says what is wrong with it.
    fn follows(
        &mut self,
        row: &ConsumerProgress,
        model: &Model,
        said: &Said,
        (letters, copied): (&BTreeMap<(String, u64, u64), u64>, Seq),
    ) -> Result<(), String> {
        let keyed = self.is_keyed();
        let max = self.max_deliver();
        let policy = self.config.ack_policy;
        let log = &mut self.log;
        log.passed.extend(row.passed.iter().filter(|seq| **seq > log.delivered.1));
        for run in &row.delivered {
            for seq in (run.first_seq.0..run.first_seq.0 + u64::from(run.count)).map(Seq) {
                if !keyed && !self.sent.contains(&seq) {
                    return Err(format!("{seq} is marked as delivered and was never sent"));
                }
                if max.is_some_and(|max| run.attempt > max) {
                    return Err(format!("{seq} is marked with attempt {}, {max:?} is the most", run.attempt));
                }
                let before = log.attempts.entry(seq).or_default();
                *before = run.attempt.max(*before);
                log.passed.remove(&seq);
                if policy != AckPolicy::None && !log.is_settled(seq) && !log.given_up.contains(&seq) {
                    log.unacked.insert(seq);
                }
            }
        }
        for message in &row.dead {
            let seq = message.seq;
            let is_so = match message.cause {
                DeathCause::Terminated => said.terminated.contains(&seq),
                DeathCause::MaxDeliver => max == log.attempts.get(&seq).copied(),
            };
            if !is_so {
                return Err(format!("{seq} is given up because it was {:?}, and was not", message.cause));
            }
            if log.unacked.contains(&seq) {
                log.dead.insert(seq);
            }
        }
        for run in &row.settled {
            for seq in (run.first.0..=run.last.0).map(Seq) {
                let is_so = match run.how {
                    Settlement::Acked => said.acked.contains(&seq),
                    Settlement::AckedAll => said.acked.contains(&seq) || said.terminated.contains(&seq),
                    Settlement::Terminated if log.dead.contains(&seq) => {
                        let key = (row.name.to_string(), row.incarnation, seq.0);
                        letters.contains_key(&key) || !model.live().contains_key(&seq.0)
                    }
                    Settlement::Terminated => {
                        said.terminated.contains(&seq) || !model.live().contains_key(&seq.0)
                    }
                    Settlement::Exhausted => max == log.attempts.get(&seq).copied(),
                };
                if !is_so {
                    return Err(format!("{seq} is settled as {:?} without a reason", run.how));
                }
                log.passed.remove(&seq);
                if policy == AckPolicy::FlowControl && run.how == Settlement::AckedAll {
                    if seq > copied {
                        return Err(format!("{seq} is acked, and its copy has what there is up to {copied}"));
                    }
                    let had = self.sent.range(..=seq).filter(|seq| model.live().contains_key(&seq.0));
                    log.acked_by_flow.extend(had);
                }
                match run.how {
                    Settlement::AckedAll => {
                        log.settled_upto = log.settled_upto.max(seq);
                        log.unacked = log.unacked.split_off(&seq.next());
                    }
                    Settlement::Acked | Settlement::Terminated => {
                        log.settled.insert(seq);
                        log.unacked.remove(&seq);
                    }
                    Settlement::Exhausted => {
                        log.given_up.insert(seq);
                        log.unacked.remove(&seq);
                    }
                }
            }
        }
        Ok(())
    }

    /// Holds the ledger against what the log said so far.
    fn compare(&mut self, ledger: &Ledger, model: &Model) -> Result<(), String> {
        let marks = ledger.marks();
        let delivered = (marks.delivered().consumer, marks.delivered().stream);
        let floor = (marks.floor().consumer, marks.floor().stream);
        let before = std::mem::replace(&mut self.log.delivered, delivered);
        if delivered.0 < before.0 || delivered.1 < before.1 {
            return Err(format!("the delivered mark fell from {before:?} to {delivered:?}"));
        }
        let floor_before = std::mem::replace(&mut self.log.floor, floor);
        if floor.0 < floor_before.0 || floor.1 < floor_before.1 {
            return Err(format!("the ack floor fell from {floor_before:?} to {floor:?}"));
        }
        let skipped = (before.1.next().0..=delivered.1.0).map(Seq).find(|seq| {
            let wanted = model.live().get(&seq.0).is_some_and(|message| self.wants(&message.subject));
            let known = if self.is_keyed() {
                self.log.attempts.contains_key(seq) || self.log.passed.contains(seq)
            } else {
                self.sent.contains(seq)
            };
            wanted && !known
        });
        if let Some(seq) = skipped {
            return Err(format!("the delivered mark moved past {seq}, which nobody was sent"));
        }
        if marks.num_unacked() != self.log.unacked.len() as u64 {
            return Err(format!(
                "the ledger has {} unacked messages, the log says {:?}",
                marks.num_unacked(),
                self.log.unacked
            ));
        }
        if let Some(open) = self.log.unacked.first().filter(|open| **open <= floor.1) {
            return Err(format!("the ack floor is {floor:?}, and {open} is unacked"));
        }
        Ok(())
    }
}
