//! What was promised, and whether it is kept: every replica applies the same commands with the same outcome, the
//! outcome is the model's, and an answer that a client got is the outcome of a committed command.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use levee_broker_core::consumer::Delivery;
use levee_broker_core::stream::{Outcome, PublishReply, Reply, StreamMachine};
use levee_protocol::api::{AckKind, ConsumerConfig};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, NodeId, Seq};
use levee_protocol::record::{Block, Record};
use levee_protocol::wire::headers::HeaderBlock;
use levee_raft::CommittedEntry;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use crate::deliveries::{Copied, Deliveries, Letters};
use crate::model::{Expected, Model, Totals, Verdict};
use crate::streams::Which;
use crate::trace::Trace;

/// How often the whole state is compared, in log entries. Counters are compared after every entry.
const ROWS_EVERY: u64 = 16;

/// One application of one entry on one node.
pub(crate) struct Seen<'a> {
    /// Where.
    pub(crate) node: NodeId,
    /// In which life of the node.
    pub(crate) incarnation: u64,
    /// The entry.
    pub(crate) entry: &'a CommittedEntry,
    /// What it says.
    pub(crate) command: &'a StreamCommand,
}

/// The promises that were broken in a run.
pub(crate) struct Verdicts {
    trace: Arc<Trace>,
    violations: Mutex<Vec<String>>,
}

impl Verdicts {
    /// None yet.
    pub(crate) fn new(trace: Arc<Trace>) -> Self {
        Self { trace, violations: Mutex::default() }
    }
}

/// Collects what replicas of one stream do and what its clients are told.
pub(crate) struct Oracle {
    which: Which,
    trace: Arc<Trace>,
    verdicts: Arc<Verdicts>,
    state: Mutex<State>,
    deliveries: Mutex<Deliveries>,
    letters: Letters,
    attached: Option<Attached>,
}

/// How a copy is known to the consumer that delivers to it.
pub(crate) struct Attached {
    /// The consumer.
    pub(crate) consumer: String,
    /// The origin among those of the copy.
    pub(crate) key: String,
    /// Where it is noted what the copy has.
    pub(crate) copied: Copied,
}

#[derive(Default)]
struct State {
    /// There is no model of it: what it must have is what its origins had.
    is_copy: bool,
    entries: BTreeMap<u64, Entry>,
    model: Model,
    /// Digests of the whole state after some entries.
    rows: BTreeMap<u64, u64>,
    /// Where each node stands: incarnation and last applied index.
    nodes: BTreeMap<NodeId, (u64, u64)>,
    acknowledged: u64,
    highest_acknowledged: u64,
    snapshots: u64,
    /// Which life of a node led under which leader id.
    leaders: BTreeMap<(u64, NodeId), u64>,
}

/// Whether an entry was applied somewhere before.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Place {
    First,
    Again,
}

/// What a committed command led to, on whichever node was first.
struct Entry {
    raft_term: u64,
    payload: u64,
    reply: Reply,
    changes: String,
    totals: Totals,
}

impl Oracle {
    /// An oracle that has seen nothing.
    pub(crate) fn new(
        which: Which,
        verdicts: &Arc<Verdicts>,
        deliveries: Deliveries,
        letters: Letters,
        attached: Option<Attached>,
    ) -> Self {
        Self {
            which,
            trace: Arc::clone(&verdicts.trace),
            verdicts: Arc::clone(verdicts),
            state: Mutex::new(State { is_copy: which.is_copy(), ..State::default() }),
            deliveries: Mutex::new(deliveries),
            letters,
            attached,
        }
    }

    /// Something was promised and is not so.
    pub(crate) fn violated(&self, what: String) {
        let what = match self.which {
            Which::Origin => what,
            other => format!("stream {}: {what}", other.name()),
        };
        self.trace.note(format_args!("VIOLATION {what}"));
        self.verdicts.violations.lock().push(what);
    }

    /// The first broken promise of the run.
    pub(crate) fn violation(&self) -> Option<String> {
        self.verdicts.violations.lock().first().cloned()
    }

    fn judge(&self, looked: Result<(), String>) {
        if let Err(what) = looked {
            self.violated(what);
        }
    }

    /// A leader builds its half of a consumer. Returns its number.
    pub(crate) fn takes_over(
        &self,
        name: &ConsumerName,
        incarnation: u64,
        config: ConsumerConfig,
        raft_term: u64,
    ) -> u64 {
        self.deliveries.lock().takes_over(name, incarnation, config, raft_term)
    }

    /// A leader has heard of another configuration.
    pub(crate) fn configured(&self, number: u64, config: &ConsumerConfig) {
        self.deliveries.lock().configured(number, config);
    }

    /// A leader sends a message to a client.
    pub(crate) fn sends(&self, number: u64, delivery: &Delivery, machine: &StreamMachine) {
        let has = |seq| machine.is_live(seq);
        let looked = self.deliveries.lock().sends(number, delivery, has, &self.state.lock().model);
        self.judge(looked);
    }

    /// An ack has come to a leader.
    pub(crate) fn hears(&self, number: u64, seq: Seq, kind: AckKind<'_>) {
        self.deliveries.lock().hears(number, seq, kind);
    }

    /// A leader has nothing more to do with a message.
    pub(crate) fn lets_go(&self, number: u64, seq: Seq) {
        self.deliveries.lock().lets_go(number, seq);
    }

    /// A leader goes to sleep while somebody waits for messages.
    pub(crate) fn sleeps(&self, number: u64, pending: u64) {
        let looked = self.deliveries.lock().sleeps(number, pending);
        self.judge(looked);
    }

    /// A client says how a message fared.
    pub(crate) fn acks(&self, name: &ConsumerName, seq: Seq, body: &[u8]) {
        self.deliveries.lock().acks(name, seq, body);
    }

    /// A leader confirms an ack that it took in this life of the consumer.
    pub(crate) fn confirmed(&self, name: &ConsumerName, incarnation: u64, seq: Seq, raft_term: u64) {
        self.deliveries.lock().confirmed(name, incarnation, seq, raft_term);
    }

    /// Every message that answers to a consumer's flow control settled.
    pub(crate) fn acked_by_flow(&self, consumer: &str) -> BTreeSet<u64> {
        self.deliveries.lock().acked_by_flow(consumer)
    }

    /// Everything came to rest: what consumers must have done by now.
    pub(crate) fn consumers_are_done(&self) -> Result<(), String> {
        self.deliveries.lock().at_the_end(&self.state.lock().model)
    }

    /// The stream as it must be.
    pub(crate) fn model(&self) -> MappedMutexGuard<'_, Model> {
        MutexGuard::map(self.state.lock(), |state| &mut state.model)
    }

    /// The last index that was applied anywhere.
    pub(crate) fn last_index(&self) -> u64 {
        self.state.lock().entries.keys().next_back().copied().unwrap_or(0)
    }

    /// How many answers clients got, and the highest log index among them.
    pub(crate) fn acknowledged(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.acknowledged, state.highest_acknowledged)
    }

    /// A process says it leads. Leaders are told apart by term and node; a process that was started again must have
    /// been elected again.
    pub(crate) fn leads(&self, raft_term: u64, node: NodeId, incarnation: u64) {
        let known = *self.state.lock().leaders.entry((raft_term, node)).or_insert(incarnation);
        if known != incarnation {
            self.violated(format!(
                "{node} leads term {raft_term} in life {incarnation}, as it did in life {known}"
            ));
        }
    }

    /// What happened, in a few words.
    pub(crate) fn summary(&self, elapsed: std::time::Duration) -> String {
        let state = self.state.lock();
        format!(
            "{} entries, {} answers, {} messages stored, {} leaders, {} snapshots, {}, {} s",
            state.entries.len(),
            state.acknowledged,
            state.model.stored_count(),
            state.leaders.len(),
            state.snapshots,
            self.deliveries.lock().summary(),
            elapsed.as_secs()
        )
    }

    /// A replica applied an entry.
    pub(crate) fn applied(&self, seen: &Seen<'_>, outcome: &Outcome, machine: &StreamMachine) {
        let (node, index) = (seen.node, seen.entry.index);
        let payload = hash(&seen.entry.payload);
        let totals = totals(machine);
        self.trace.note(format_args!(
            "{node}.{} applied {index} of term {} of {} ({payload:016x}), {} to {}",
            seen.incarnation,
            seen.entry.raft_term,
            self.which.name(),
            totals.first,
            totals.last
        ));
        let applied = self.state.lock().applied(seen, payload, outcome, machine, totals);
        if let (Ok(Place::First), Some(Attached { consumer, key, copied })) = (&applied, &self.attached) {
            copied.lock().insert(consumer.clone(), machine.source(key).seq);
        }
        let looked = applied.and_then(|place| match (place, seen.command) {
            (Place::First, StreamCommand::Progress(progress)) => {
                self.deliveries.lock().progresses(progress, &self.state.lock().model, machine)
            }
            (
                Place::First,
                StreamCommand::CreateConsumer { .. }
                | StreamCommand::ResetConsumer { .. }
                | StreamCommand::DeleteConsumer { .. },
            ) => self.deliveries.lock().changes(seen.command, &self.state.lock().model, machine),
            (Place::First, StreamCommand::Publish(block)) if self.which == Which::Dead => {
                self.note_letters(block, &outcome.reply);
                Ok(())
            }
            _ => Ok(()),
        });
        if let Err(problem) = looked {
            self.violated(format!("{node}, entry {index}: {problem}"));
        }
    }

    fn note_letters(&self, block: &Block, reply: &Reply) {
        let Reply::Publish(replies) = reply else { return };
        for (position, reply) in (0..block.count()).zip(replies) {
            let record = block.record(position);
            let id = HeaderBlock(record.header).get_str("Nats-Msg-Id").unwrap_or_default();
            let mut parts = id.rsplit('.');
            let seq = parts.next().and_then(|part| part.parse().ok());
            let incarnation = parts.next().and_then(|part| part.parse().ok());
            if let (PublishReply::Stored { .. }, Some(seq), Some(incarnation), Some(consumer)) =
                (reply, seq, incarnation, parts.nth(1))
            {
                *self.letters.lock().entry((consumer.to_owned(), incarnation, seq)).or_default() += 1;
            }
        }
    }

    /// A snapshot replaced a replica's state.
    pub(crate) fn reloaded(&self, node: NodeId, incarnation: u64, machine: &StreamMachine) {
        let totals = totals(machine);
        self.trace.note(format_args!(
            "{node}.{incarnation} loaded a snapshot, {} to {}",
            totals.first, totals.last
        ));
        let mut state = self.state.lock();
        state.nodes.remove(&node);
        state.snapshots += 1;
    }

    /// A live message was read from a replica's store. Only ones that were committed by then can be live anywhere.
    pub(crate) fn read_back(
        &self,
        node: NodeId,
        seq: Seq,
        read: Result<Option<Record>, levee_storage::Error>,
    ) {
        let problem = match read {
            Err(error) => Some(format!("live message {seq} does not read: {error}")),
            Ok(None) => Some(format!("live message {seq} is not there")),
            Ok(Some(_)) if self.which.is_copy() => None,
            Ok(Some(record)) => {
                let word = crate::model::identity(&record.header, &record.payload);
                let state = self.state.lock();
                let stored = state.model.stored(&word);
                let is_so = state
                    .model
                    .ever(seq.0)
                    .is_some_and(|message| crate::model::identity(&message.header, &message.payload) == word);
                (!is_so).then(|| {
                    let word = String::from_utf8_lossy(&word).into_owned();
                    format!("reading {seq} returned {word}, which was stored as {stored:?}")
                })
            }
        };
        if let Some(problem) = problem {
            self.violated(format!("{node}: {problem}"));
        }
    }

    /// A client got an answer: it must be the outcome of exactly what the client sent, at the index it was told.
    pub(crate) fn acknowledged_at(&self, index: u64, sent: &Bytes, reply: &Reply) {
        let problem = {
            let mut state = self.state.lock();
            state.acknowledged += 1;
            state.highest_acknowledged = state.highest_acknowledged.max(index);
            match state.entries.get(&index) {
                None => Some("nobody has applied it".to_owned()),
                Some(entry) if entry.payload != hash(sent) => Some("it holds something else".to_owned()),
                Some(entry) if entry.reply != *reply => {
                    Some(format!("the client was told {reply:?}, applying it gave {:?}", entry.reply))
                }
                Some(_) => None,
            }
        };
        if let Some(problem) = problem {
            self.violated(format!("acknowledged entry {index}: {problem}"));
        }
    }
}

impl State {
    fn applied(
        &mut self,
        seen: &Seen<'_>,
        payload: u64,
        outcome: &Outcome,
        machine: &StreamMachine,
        totals: Totals,
    ) -> Result<Place, String> {
        let index = seen.entry.index;
        let mut place = Place::Again;
        if let Some((incarnation, before)) = self.nodes.insert(seen.node, (seen.incarnation, index))
            && incarnation == seen.incarnation
        {
            let next = self.entries.range(before + 1..).next().map(|(index, _)| *index);
            if index <= before || next.is_some_and(|next| next < index) {
                return Err(format!("it was applied after {before}, and {next:?} comes next"));
            }
        }
        let changes = format!("{:?}", outcome.changes);
        match self.entries.get(&index) {
            None => {
                self.first(seen, payload, outcome, changes, machine, totals)?;
                place = Place::First;
            }
            Some(known) if known.payload != payload || known.raft_term != seen.entry.raft_term => {
                return Err(format!("another entry, of term {}, was applied there before", known.raft_term));
            }
            Some(known) if known.reply != outcome.reply || known.changes != changes => {
                return Err(format!(
                    "the outcome was {:?} with {}, and is {:?} with {changes}",
                    known.reply, known.changes, outcome.reply
                ));
            }
            Some(known) if known.totals != totals => {
                return Err(format!("the stream had {:?} before, and has {totals:?}", known.totals));
            }
            Some(_) => {}
        }
        if index.is_multiple_of(ROWS_EVERY) {
            let digest = rows(machine);
            let known = *self.rows.entry(index).or_insert(digest);
            if known != digest {
                return Err("the state is not what it was on another replica, or in another life".to_owned());
            }
        }
        Ok(place)
    }

    /// Nobody has applied this entry before: the model goes first.
    fn first(
        &mut self,
        seen: &Seen<'_>,
        payload: u64,
        outcome: &Outcome,
        changes: String,
        machine: &StreamMachine,
        totals: Totals,
    ) -> Result<(), String> {
        let index = seen.entry.index;
        if let Some((last, entry)) = self.entries.last_key_value() {
            if *last > index {
                return Err(format!("it was not applied when {last} was"));
            }
            if entry.raft_term > seen.entry.raft_term {
                return Err(format!("its term {} is below that of {last}", seen.entry.raft_term));
            }
        }
        let expected = if self.is_copy {
            Ok(Expected::Anything)
        } else {
            self.model.apply(index, seen.command, machine.clock())
        };
        let reply = outcome.reply.clone();
        let entry = Entry { raft_term: seen.entry.raft_term, payload, reply, changes, totals };
        self.entries.insert(index, entry);
        let expected = expected?;
        if !is_as_expected(&expected, &outcome.reply) {
            return Err(format!("the model expects {expected:?}, and the answer is {:?}", outcome.reply));
        }
        if !self.is_copy && self.model.totals() != totals {
            return Err(format!("the model has {:?}, and the stream {totals:?}", self.model.totals()));
        }
        Ok(())
    }
}

fn is_as_expected(expected: &Expected, reply: &Reply) -> bool {
    match (expected, reply) {
        (Expected::Anything, _)
        | (Expected::Configured, Reply::Configured)
        | (Expected::Deleted, Reply::Deleted)
        | (Expected::Refused, Reply::Rejected(_)) => true,
        (Expected::Purged(expected), Reply::Purged(count)) => expected == count,
        (Expected::Publish(expected), Reply::Publish(replies)) => {
            let verdicts = replies.iter().map(|reply| match reply {
                PublishReply::Stored { seq, .. } => Verdict::Stored(seq.0),
                PublishReply::Duplicate { seq } => Verdict::Duplicate(seq.0),
                PublishReply::Outdated | PublishReply::Skipped | PublishReply::Rejected(_) => {
                    Verdict::Refused
                }
            });
            expected.iter().copied().eq(verdicts)
        }
        _ => false,
    }
}

/// The counters of a replica.
pub(crate) fn totals(machine: &StreamMachine) -> Totals {
    let state = machine.state();
    Totals { messages: state.messages, bytes: state.bytes, first: state.first_seq.0, last: state.last_seq.0 }
}

/// A digest of the whole replicated state.
pub(crate) fn rows(machine: &StreamMachine) -> u64 {
    let mut hasher = DefaultHasher::new();
    for row in machine.all_rows() {
        (row.kind as u8, row.key, row.value).hash(&mut hasher);
    }
    hasher.finish()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
