//! Publishes of streams that do not store messages as they come: what the leader writes into the block, and who is
//! told what afterwards. The rules are in `broker-core`'s composition; streams without one never get here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use levee_broker_core::stream::counter::{self, PendingSums};
use levee_broker_core::stream::fast::{FastBatches, Said, Ticket};
use levee_broker_core::stream::{Composition, MessageView, PublishReply, StreamMachine};
use levee_protocol::api::advisory::Abandoned;
use levee_protocol::api::fast_batch::FastReply;
use levee_protocol::api::{ApiError, PubAck, PublishIntent, fast_batch, stored_header};
use levee_protocol::ids::AccountName;
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::Timestamp;
use levee_protocol::wire::Span;
use levee_protocol::wire::headers::HeaderBuilder;
use tokio::time::Instant;

use crate::advisory;
use crate::jetstream::JetStream;
use crate::router::{Inbound, InboundItem, MessageRef, RouteBatch};
use crate::runtime::chance::Chance;
use crate::runtime::clock;
use crate::stream::batches::{Batches, Offer, Place};
use crate::stream::held::{Answer, Held};
use crate::stream::ingest::PubAckStream;
use crate::stream::told;

const BATCH_ID_BYTES_MAX: usize = 64;

/// What one message needs on its way into a block, and back to its publisher.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    account: AccountName,
    chunk: Bytes,
    item: InboundItem,
    /// The last message of a batch whose commit was a message of its own.
    pub(super) commits: bool,
}

impl Piece {
    pub(super) fn new(account: AccountName, chunk: Bytes, item: InboundItem) -> Self {
        Self { account, chunk, item, commits: false }
    }

    /// What it takes of the memory for open batches.
    pub(super) fn bytes(&self) -> usize {
        let item = &self.item;
        [item.subject, item.reply, item.header, item.payload].iter().map(|span| span.len()).sum()
    }

    fn subject(&self) -> &[u8] {
        self.item.subject.of(&self.chunk)
    }

    fn header(&self) -> &[u8] {
        self.item.header.of(&self.chunk)
    }

    fn payload(&self) -> &[u8] {
        self.item.payload.of(&self.chunk)
    }

    /// The header block as the stream gets it.
    fn composed_header(&self) -> Cow<'_, [u8]> {
        let header = stored_header(self.header());
        if !self.commits {
            return header;
        }
        let mut committed = HeaderBuilder::from_block(&header);
        committed.push("Nats-Batch-Commit", "1");
        Cow::Owned(committed.finish())
    }

    /// The message as it would arrive, with this reply subject.
    fn inbound(&self, reply: &[u8]) -> Inbound {
        self.copied(reply, &self.composed_header())
    }

    /// The message in a buffer of exactly its size.
    fn copied(&self, reply: &[u8], header: &[u8]) -> Inbound {
        let (subject, payload) = (self.subject(), self.payload());
        let mut chunk = Vec::with_capacity(subject.len() + reply.len() + header.len() + payload.len());
        let mut put = |part: &[u8]| {
            let start = chunk.len() as u32;
            chunk.extend_from_slice(part);
            Span { start, end: chunk.len() as u32 }
        };
        let item = InboundItem {
            subject: put(subject),
            reply: put(reply),
            header: put(header),
            payload: put(payload),
        };
        Inbound { chunk: chunk.into(), items: vec![item] }
    }

    /// The same in a buffer of its own, so that one that waits keeps no more than it is counted for.
    fn detached(self) -> Self {
        let Inbound { chunk, items } = self.copied(self.item.reply.of(&self.chunk), self.header());
        Self { item: items[0], chunk, ..self }
    }
}

/// Somebody who is told what became of records of a block.
struct Asker {
    /// Where the answer goes.
    account: AccountName,
    reply: Bytes,
    /// Everything that was put into the block for this; more than one only for a batch.
    pieces: Vec<Piece>,
    /// The position of the last of them.
    last: u32,
    /// The new sum, of a counter.
    sum: String,
    /// The batch that this commits, or empty.
    batch: String,
    /// Its place in a fast batch.
    fast: Option<Ticket>,
}

/// A block, and who waits for what becomes of it.
pub(super) struct Composed {
    pub(super) block: Block,
    /// How many read chunks it was made of.
    pub(super) batches: usize,
    composition: Arc<Composition>,
    askers: Vec<Asker>,
}

/// The composing half of an ingest.
pub(super) struct Composer {
    jetstream: Arc<JetStream>,
    batches: Batches,
    fast: FastBatches<Place>,
    /// What fast batches count their times from.
    since: Instant,
    chance: Chance,
    pub(super) held: Held,
}

/// Answers that do not wait for the log: confirmations and refusals, and what is said about fast batches.
#[derive(Default)]
pub(super) struct AtOnce(Vec<(AccountName, Bytes, Option<ApiError>)>, Vec<(AccountName, Bytes, Vec<u8>)>);

impl AtOnce {
    pub(super) fn send(self, stream: &PubAckStream, route: &mut RouteBatch) {
        let mut text = Vec::new();
        for (account, to, error) in self.0 {
            text.clear();
            if let Some(error) = &error {
                PubAck::encode_rejection(&stream.name, error, &mut text);
            }
            route.send(&account, &to, MessageRef { subject: &to, payload: &text, ..MessageRef::default() });
        }
        for (account, to, text) in self.1 {
            route.send(&account, &to, MessageRef { subject: &to, payload: &text, ..MessageRef::default() });
        }
        route.flush();
    }
}

/// A block that is being written.
struct Draft<'a> {
    composition: &'a Composition,
    block: BlockBuilder,
    sums: PendingSums,
    machine: &'a StreamMachine,
    view: &'a dyn MessageView,
    /// Numbers of the fast batches that must have no hole.
    chains: BTreeMap<String, u8>,
}

impl Composer {
    pub(super) fn new(jetstream: &Arc<JetStream>) -> Self {
        let limits = jetstream.limits().batches;
        let batches = Batches::new(limits, jetstream.open_batches());
        let fast = FastBatches::new(limits.fast_per_stream_max, limits.idle_max);
        let since = clock::monotonic();
        Self {
            jetstream: Arc::clone(jetstream),
            batches,
            fast,
            since,
            chance: Chance::new(),
            held: Held::default(),
        }
    }

    /// Writes what arrived into a block; `None` if nothing of it goes to the log now.
    pub(super) fn compose(
        &mut self,
        stream: &PubAckStream,
        composition: &Arc<Composition>,
        (machine, view): (&StreamMachine, &dyn MessageView),
        arrived: impl Iterator<Item = (AccountName, Inbound)>,
        now: Timestamp,
    ) -> (Option<Composed>, AtOnce) {
        let block = BlockBuilder::default();
        let mut draft =
            Draft { composition, block, sums: PendingSums::new(), machine, view, chains: BTreeMap::new() };
        let mut askers = Vec::new();
        let mut at_once = AtOnce::default();
        let mut batches = 0;
        for (account, inbound) in arrived {
            batches += 1;
            for item in &inbound.items {
                let piece = Piece::new(account.clone(), inbound.chunk.clone(), *item);
                self.one(stream, piece, &mut draft, &mut askers, &mut at_once);
            }
        }
        let composed = (!draft.block.is_empty()).then(|| Composed {
            block: draft.block.finish(now),
            batches,
            composition: Arc::clone(composition),
            askers,
        });
        (composed, at_once)
    }

    fn one(
        &mut self,
        stream: &PubAckStream,
        piece: Piece,
        draft: &mut Draft<'_>,
        askers: &mut Vec<Asker>,
        at_once: &mut AtOnce,
    ) {
        let reply = piece.item.reply;
        let reply = piece.chunk.slice(reply.start as usize..reply.end as usize);
        if fast_batch::is_fast(&reply) {
            return self.one_fast(stream, piece, reply, draft, askers, at_once);
        }
        let account = piece.account.clone();
        let header = piece.header().to_vec();
        // Headers that can not be read are refused when the block is applied.
        let intent = PublishIntent::parse(&header).unwrap_or_default();
        let batch = intent.rare.as_ref().filter(|rare| draft.composition.batches && rare.batch_id.is_some());
        let Some(rare) = batch else {
            let (last, sum) = draft.push(&piece, &intent, RecordFlags::PUBLISHED, &mut self.chance);
            let batch = String::new();
            askers.push(Asker { account, reply, pieces: vec![piece], last, sum, batch, fast: None });
            return;
        };
        let id = rare.batch_id.unwrap_or_default();
        let record = RecordRef {
            timestamp: Timestamp::ZERO,
            subject: piece.subject(),
            header: &header,
            payload: piece.payload(),
        };
        let offer = match draft.composition.check_size(&record) {
            Ok(()) => self.batches.offer(rare, piece.detached(), clock::monotonic()),
            Err(error) => self.batches.refuse(id, error, Abandoned::Unsupported),
        };
        match offer {
            Offer::Waits if reply.is_empty() => {}
            Offer::Waits => at_once.0.push((account, reply, None)),
            Offer::Refused(error, abandoned) => {
                if let Some(why) = abandoned {
                    advisory::batch_abandoned(&self.jetstream, &account, &stream.name, id, why);
                }
                if !reply.is_empty() {
                    at_once.0.push((account, reply, Some(error)));
                }
            }
            Offer::Commits(pieces) => {
                let mut last = 0;
                for (index, piece) in pieces.iter().enumerate() {
                    let ends = index + 1 == pieces.len();
                    let flags = if ends { RecordFlags::ENDS_BATCH } else { RecordFlags::PUBLISHED };
                    let intent = PublishIntent::parse(piece.header()).unwrap_or_default();
                    let flags = RecordFlags::IN_BATCH.and(flags);
                    (last, _) = draft.push(piece, &intent, flags, &mut self.chance);
                }
                let batch = id.to_owned();
                askers.push(Asker { account, reply, pieces, last, sum: String::new(), batch, fast: None });
            }
        }
    }

    /// A message of a fast batch: stored like others, and answered as its batch has it.
    fn one_fast(
        &mut self,
        stream: &PubAckStream,
        piece: Piece,
        reply: Bytes,
        draft: &mut Draft<'_>,
        askers: &mut Vec<Asker>,
        at_once: &mut AtOnce,
    ) {
        let account = piece.account.clone();
        let header = piece.header().to_vec();
        let intent = PublishIntent::parse(&header).unwrap_or_default();
        let mut said = Vec::new();
        let (id, ticket) = match self.checked_fast(&piece, &reply, &header, draft) {
            Ok(fast) => {
                let (open, max) =
                    (self.jetstream.open_fast_batches(), self.jetstream.limits().batches.fast_on_node_max);
                let place = || Place::take(&open, max);
                (fast.id, self.fast.offer(&fast, place, self.since.elapsed(), &mut said))
            }
            Err(error) => {
                said.push(Said::Refused(error));
                ("", None)
            }
        };
        for said in said {
            at_once.1.push((account.clone(), reply.clone(), stream.encode_fast(id, &said)));
        }
        let Some(ticket) = ticket else { return };
        let (last, sum) = draft.push(&piece, &intent, RecordFlags::PUBLISHED, &mut self.chance);
        if ticket.is_chained {
            draft.chain(ticket.id());
        }
        let batch = String::new();
        askers.push(Asker { account, reply, pieces: vec![piece], last, sum, batch, fast: Some(ticket) });
    }

    /// What every message of a fast batch has to be, in the order of nats-server's checks.
    fn checked_fast<'a>(
        &self,
        piece: &Piece,
        reply: &'a Bytes,
        header: &[u8],
        draft: &Draft<'_>,
    ) -> Result<FastReply<'a>, ApiError> {
        if draft.machine.config().is_some_and(|config| config.sealed) {
            return Err(ApiError::stream_sealed());
        }
        let record = RecordRef {
            timestamp: Timestamp::ZERO,
            subject: piece.subject(),
            header,
            payload: piece.payload(),
        };
        draft.composition.check_size(&record)?;
        if !draft.composition.fast_batches {
            return Err(ApiError::batch_disabled());
        }
        let fast = FastReply::parse(reply).ok_or_else(ApiError::batch_pattern_invalid)?;
        if fast.id.len() > BATCH_ID_BYTES_MAX {
            return Err(ApiError::batch_id_invalid());
        }
        Ok(fast)
    }

    /// Whether the next block has to wait for what becomes of the one under way.
    pub(super) fn waits_for_outcome(&self) -> bool {
        self.fast.is_chained()
    }

    /// Nobody knows what became of a block: what batches without holes wait for will not come.
    pub(super) fn lost_count(&mut self) {
        self.fast.abandon();
    }

    /// When a batch has been idle for too long.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let fast = self.fast.next_expiry().map(|at| self.since + at);
        self.batches.next_expiry().into_iter().chain(fast).min()
    }

    /// Gives up batches that have been idle for too long.
    pub(super) fn expire(&mut self, account: &AccountName, stream: &str) {
        self.fast.expire(self.since.elapsed());
        for id in self.batches.expire(clock::monotonic()) {
            advisory::batch_abandoned(&self.jetstream, account, stream, &id, Abandoned::Timeout);
        }
    }

    /// Tells whoever asked, and publishes again what is stored. What has to be written anew comes back.
    pub(super) fn answer(
        &mut self,
        stream: &PubAckStream,
        route: &mut RouteBatch,
        composed: &Composed,
        replies: &[PublishReply],
        acks: Acks,
    ) -> VecDeque<(AccountName, Inbound)> {
        let mut again = VecDeque::new();
        let mut text = Vec::with_capacity(128);
        let mut answers = Vec::new();
        let may_wait = composed.composition.republishes() || !self.held.is_empty();
        let mut tell = |route: &mut RouteBatch, asker: &Asker, text: &[u8]| {
            let (account, to) = (&asker.account, &asker.reply);
            if may_wait {
                answers.push(Answer { account: account.clone(), to: to.clone(), text: text.to_vec() });
            } else {
                route.send(account, to, MessageRef { subject: to, payload: text, ..MessageRef::default() });
            }
        };
        for asker in &composed.askers {
            let Some(reply) = replies.get(asker.last as usize) else { break };
            if let Some(ticket) = &asker.fast {
                let mut said = Vec::new();
                self.fast.settle(ticket, reply, &mut said);
                for said in said.iter().filter(|_| acks == Acks::Sent) {
                    tell(route, asker, &stream.encode_fast(ticket.id(), said));
                }
                continue;
            }
            if *reply == PublishReply::Outdated {
                again.extend(asker.again());
                continue;
            }
            if asker.reply.is_empty() || acks == Acks::None {
                continue;
            }
            let count = if asker.batch.is_empty() { 0 } else { asker.pieces.len() as u64 };
            text.clear();
            stream.encode(reply, (&asker.sum, &asker.batch, count), &mut text);
            tell(route, asker, &text);
        }
        let mut into = BTreeSet::new();
        if let Some(asker) = composed.askers.first() {
            let stored = (&*composed.composition, &composed.block);
            republish(route, &asker.account, stored, replies, &mut self.chance, &mut |subject| {
                into.extend(self.jetstream.directory().capturing(&asker.account, subject));
            });
        }
        route.flush();
        if may_wait {
            let waits = || into.iter().filter_map(|group| told::ask(&self.jetstream, *group)).collect();
            self.held.send_after(waits, answers, route);
        }
        again
    }
}

/// Whether publishers are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Acks {
    /// Whoever gave a reply subject.
    Sent,
    /// Nobody: the stream is configured like that.
    None,
}

/// Publishes again what of a block was stored, if the stream does that; tells on which subjects.
pub(crate) fn republish(
    route: &mut RouteBatch,
    account: &AccountName,
    (composition, block): (&Composition, &Block),
    replies: &[PublishReply],
    chance: &mut Chance,
    published: &mut dyn FnMut(&[u8]),
) {
    if !composition.republishes() {
        return;
    }
    for (position, reply) in (0..block.count()).zip(replies) {
        let PublishReply::Stored { seq, before } = *reply else { continue };
        let record = block.record(position);
        if let Some(again) = composition.republished(&record, (seq, before), &mut || chance.draw()) {
            let payload = if again.with_body { record.payload } else { b"" };
            route.publish(
                account,
                MessageRef {
                    subject: &again.subject,
                    header: &again.header,
                    payload,
                    ..MessageRef::default()
                },
            );
            published(&again.subject);
        }
    }
}

impl Asker {
    /// What was asked, as if it came now. Confirmations that messages of a batch wait were sent already.
    fn again(&self) -> impl Iterator<Item = (AccountName, Inbound)> {
        let last = self.pieces.len() - 1;
        self.pieces.iter().enumerate().map(move |(index, piece)| {
            let reply = if index == last { &self.reply[..] } else { b"" };
            (piece.account.clone(), piece.inbound(reply))
        })
    }
}

impl Draft<'_> {
    /// Has the last record stored only if those of its batch before it are.
    fn chain(&mut self, batch: &str) {
        let next = u8::try_from(self.chains.len() + 1).unwrap_or(u8::MAX);
        let chain = *self.chains.entry(batch.to_owned()).or_insert(next);
        self.block.chain_last(chain);
    }

    /// Writes one record; gives its position, and the sum if it counts.
    fn push(
        &mut self,
        piece: &Piece,
        intent: &PublishIntent<'_>,
        flags: RecordFlags,
        chance: &mut Chance,
    ) -> (u32, String) {
        let subject = self.composition.subject(piece.subject(), &mut || chance.draw());
        let header = self.composition.header(piece.composed_header(), intent);
        let position = u32::try_from(self.block.len()).expect("a block has a few thousand records");
        match self.sum(&subject, piece, intent) {
            Some(sum) => {
                let header = self.with_totals(&subject, header);
                let flags = flags.and(RecordFlags::COUNTED);
                self.block.push_flagged(flags, &subject, &header, &counter::body(&sum));
                self.sums.insert(subject.into(), sum.clone());
                (position, sum)
            }
            None => {
                self.block.push_flagged(flags, &subject, &header, piece.payload());
                (position, String::new())
            }
        }
    }

    /// A counter that gathers others says with every message what of its sum came from where.
    fn with_totals<'a>(&self, subject: &[u8], header: Cow<'a, [u8]>) -> Cow<'a, [u8]> {
        match self.machine.carried_totals(subject, self.view) {
            Ok(Some((name, totals))) => {
                let mut carrying = HeaderBuilder::from_block(&header);
                carrying.set(name, totals);
                Cow::Owned(carrying.finish())
            }
            Ok(None) | Err(_) => header,
        }
    }

    /// The sum that goes into an increment. What is wrong with it is said when the block is applied.
    fn sum(&self, subject: &[u8], piece: &Piece, intent: &PublishIntent<'_>) -> Option<String> {
        let increment = intent.rare.as_ref()?.increment?;
        if !self.composition.counts || !piece.payload().is_empty() {
            return None;
        }
        self.machine.next_sum(subject, increment, &self.sums, self.view).ok()?.ok()
    }
}
