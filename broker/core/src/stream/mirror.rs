//! Messages of other streams: a mirror keeps those of one, with their sequences and times; a stream with sources
//! gathers those of several under sequences of its own.
//!
//! The leader reads an origin and proposes what it got, behind a claim: up to which of the origin's sequences this
//! stream must have everything. Whoever applies the block takes it only if that is so. A block that is proposed twice,
//! or by a leader that is none any more, so changes nothing; and a new leader goes on where the log ends.
//!
//! The first message that can not be stored ends the block: what follows must not overtake it. The leader tries again.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::api::stream_source::sourced;
use levee_protocol::api::{ApiError, PublishIntent, Ttl};
use levee_protocol::command::{OriginClaim, Undecodable};
use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, RecordFlags, RecordRef};
use levee_protocol::wire::headers::HeaderBlock;

use super::StreamMachine;
use super::counter;
use super::dedup::MsgId;
use super::limits::Wanted;
use super::messages::Removals;
use super::outcome::{Outcome, PublishReply, Reply};
use super::publish::Admitted;
use super::purge::SEQ_MAX;
use super::reads::Reads;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};
use crate::rows::{RowKind, RowReader, StateRow};

/// In front of copied messages.
pub(crate) const ORIGIN_CLAIM: RecordFlags = RecordFlags::CLAIM.and(RecordFlags::COPIED);

/// So many sequences that an origin does not have can lie between two messages of a mirror. Each takes a bit.
pub const GAP_MAX: u64 = 1 << 30;

/// Says where a message is from that was sourced.
pub(crate) const SOURCE_HEADER: &str = "Nats-Stream-Source";

/// So many sources that are no longer configured are remembered, in case they come back.
const FORMER_MAX: usize = 256;

/// How far a stream has got with its sources. What it mirrors is the one without a name, and its sequence is the
/// stream's own.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    origins: BTreeMap<String, Origin>,
    dirty: BTreeSet<String>,
}

/// How far a stream has got with one source.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Origin {
    /// Which incarnation of the origin that is. Empty is any: an archive did not say.
    pub identity: String,
    /// When that was created, in nanoseconds since the epoch.
    pub born: i64,
    /// Everything up to this sequence is there, or was refused for good.
    pub seq: u64,
}

impl Sources {
    fn has_reached(&mut self, claim: &OriginClaim, seq: u64) {
        let origin = Origin { identity: claim.identity.clone(), born: claim.born, seq };
        self.origins.insert(claim.source.clone(), origin);
        self.dirty.insert(claim.source.clone());
    }

    /// What comes of the stream that is mirrored is of this incarnation from now on.
    fn mirrors(&mut self, claim: &OriginClaim) {
        let is_known =
            self.origins.get(&claim.source).is_some_and(|origin| origin.identity == claim.identity);
        if !is_known {
            self.has_reached(claim, 0);
        }
    }

    /// A message comes back from an archive: its header says how far the stream had got with one of its sources. Messages
    /// come in order, so the last one is right, also where an origin was created again.
    pub(super) fn put_back(&mut self, settings: &Settings, header: &[u8]) {
        if settings.sources.is_empty() || header.is_empty() {
            return;
        }
        let Some(value) = HeaderBlock(header).get_str(SOURCE_HEADER) else { return };
        for key in &settings.sources {
            if let Some((seq, identity)) = sourced(key, value).filter(|(seq, _)| *seq <= SEQ_MAX) {
                let origin = Origin { identity: identity.to_owned(), born: 0, seq };
                self.origins.insert(key.clone(), origin);
                self.dirty.insert(key.clone());
            }
        }
    }

    /// Forgets sources that are not configured any more, those that were created first, if they are many.
    pub(crate) fn prune(&mut self, settings: &Settings) {
        if settings.config.mirror.is_none() && self.origins.remove("").is_some() {
            self.dirty.insert(String::new());
        }
        let is_former = |source: &String| !source.is_empty() && !settings.sources.contains(source);
        let mut former: Vec<(i64, String)> = self
            .origins
            .iter()
            .filter(|(source, _)| is_former(source))
            .map(|(source, origin)| (origin.born, source.clone()))
            .collect();
        former.sort_unstable();
        former.truncate(former.len().saturating_sub(FORMER_MAX));
        for (_, source) in former {
            self.origins.remove(&source);
            self.dirty.insert(source);
        }
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for source in std::mem::take(&mut self.dirty) {
            let value = self.origins.get(&source).map(Origin::encode);
            rows.push(StateRow { kind: RowKind::Source, key: source.into_bytes(), value });
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(
            self.origins
                .iter()
                .map(|(source, origin)| StateRow::put(RowKind::Source, source.as_bytes(), origin.encode())),
        );
    }

    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Undecodable> {
        let mut reader = RowReader::new(RowKind::Source, value);
        let seq = u64::from_le_bytes(reader.bytes()?);
        let born = i64::from_le_bytes(reader.bytes()?);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| reader.damaged());
        let (source, identity) = (text(key)?, text(reader.rest())?);
        self.origins.insert(source, Origin { identity, born, seq });
        Ok(())
    }
}

impl Origin {
    /// Up to which sequence everything is there of this incarnation of the origin, which has what the one before it had
    /// as far as it was restored from an archive.
    pub(crate) fn seq_of(&self, identity: &str, restored_to: u64) -> u64 {
        if self.is_of(identity) { self.seq } else { self.seq.min(restored_to) }
    }

    fn is_of(&self, identity: &str) -> bool {
        self.identity.is_empty() || self.identity == identity
    }

    fn encode(&self) -> Vec<u8> {
        [&self.seq.to_le_bytes(), &self.born.to_le_bytes(), self.identity.as_bytes()].concat()
    }
}

impl StreamMachine {
    /// How far the stream has got with a source, or, without a key, with what it mirrors.
    #[must_use]
    pub fn source(&self, key: &str) -> Origin {
        let mut origin = self.sources.origins.get(key).cloned().unwrap_or_default();
        if key.is_empty() {
            origin.seq = self.messages.last;
        }
        origin
    }

    /// Takes messages of another stream.
    pub(super) fn copy(
        &mut self,
        settings: &Settings,
        block: &Block,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let claim = OriginClaim::decode(block.record(0).payload).ok();
        let Some(claim) = claim.filter(|claim| self.is_next(settings, claim, block)) else {
            let outdated = vec![PublishReply::Outdated; block.count() as usize];
            return Ok(Outcome::reply(Reply::Publish(outdated)));
        };
        if settings.config.mirror.is_some() {
            self.messages.skip_to(claim.skipped_to);
        }
        let first_seq = self.messages.last + 1;
        let (mut reads, mut removals) = self.begin_block(settings, block, view)?;
        let mut replies = Vec::with_capacity(block.count() as usize);
        replies.push(PublishReply::Outdated);
        let mut reached = claim.through;
        for position in 1..block.count() {
            let reply = self.copy_one(settings, block, position, &mut reads, &mut removals)?;
            let is_refused = matches!(reply, PublishReply::Rejected(_) | PublishReply::Outdated);
            replies.push(reply);
            if is_refused {
                // A refused message is the next one that is wanted.
                reached = claim.seqs.get(position as usize - 1).map_or(reached, |seq| seq - 1);
                replies.resize(block.count() as usize, PublishReply::Outdated);
                break;
            }
        }
        if settings.config.mirror.is_none() {
            self.sources.has_reached(&claim, reached);
        } else {
            self.sources.mirrors(&claim);
        }
        self.enforce(settings, &reads, &mut removals)?;
        self.expiries.sweep(&self.messages);
        let accepted = reads.into_accepted();
        Ok(Outcome::stored(Seq(first_seq), block.count(), &accepted, removals, Reply::Publish(replies)))
    }

    /// Whether this is what comes next of the origin.
    fn is_next(&self, settings: &Settings, claim: &OriginClaim, block: &Block) -> bool {
        if settings.config.sealed {
            return false;
        }
        if settings.config.mirror.is_some() {
            let last = self.messages.last;
            let begins = claim.skipped_to.max(last);
            let gap = if self.messages.count == 0 { 0 } else { begins - last };
            return claim.source.is_empty() && claim.after == last && gap <= GAP_MAX && begins < SEQ_MAX;
        }
        let is_ascending = claim.seqs.is_sorted_by(|one, other| one < other);
        let first = claim.seqs.first().copied().unwrap_or(claim.through);
        let last = claim.seqs.last().copied().unwrap_or(claim.through);
        if !settings.sources.contains(&claim.source)
            || claim.seqs.len() + 1 != block.count() as usize
            || !(is_ascending && claim.after < first && last <= claim.through)
        {
            return false;
        }
        match self.sources.origins.get(&claim.source) {
            // If it is not of the same incarnation it was created again, or restored.
            Some(origin) => {
                let is_current = origin.is_of(&claim.identity) || claim.born > origin.born;
                is_current && claim.after == origin.seq_of(&claim.identity, claim.restored_to)
            }
            None => claim.after == 0,
        }
    }

    fn copy_one(
        &mut self,
        settings: &Settings,
        block: &Block,
        position: u32,
        reads: &mut Reads<'_>,
        removals: &mut Removals,
    ) -> Result<PublishReply, ReadFailed> {
        let record = block.record(position);
        if record.subject.is_empty() {
            // The store has it as a record, which is gone at once.
            reads.accept(position);
            let seq = Seq(self.messages.skip(self.messages.last_time, removals));
            return Ok(PublishReply::Duplicate { seq });
        }
        let intent = PublishIntent::parse(record.header).unwrap_or_default();
        match self.admit_copy(settings, &record, block.flags(position), &intent, reads)? {
            Ok(admitted) => {
                reads.accept(position);
                self.store(settings, &record, admitted, reads, removals)
            }
            Err(reply) => Ok(reply),
        }
    }

    /// Decides whether a copied message is stored. What it asks for was asked of its origin: here it counts as far as
    /// this stream allows it, and is no reason to refuse the message.
    fn admit_copy<'a>(
        &mut self,
        settings: &Settings,
        record: &RecordRef<'a>,
        flags: RecordFlags,
        intent: &PublishIntent<'a>,
        reads: &Reads<'_>,
    ) -> Result<Result<Admitted<'a>, PublishReply>, ReadFailed> {
        let config = &settings.config;
        if let Err(error) = settings.limits.check_size(record) {
            return Ok(Err(PublishReply::Rejected(error)));
        }
        let is_source = config.mirror.is_none();
        let id = intent.msg_id.filter(|_| !config.duplicate_window.is_zero()).map(MsgId::of);
        if is_source && let Some(seq) = id.and_then(|id| self.window.find(id)) {
            return Ok(Err(PublishReply::Duplicate { seq }));
        }
        if config.allow_msg_counter
            && let Err(reply) = self.check_copied_sum(record, flags, intent, reads)?
        {
            return Ok(Err(reply));
        }
        let ttl = intent.ttl.filter(|ttl| config.allow_msg_ttl && *ttl != Ttl::Invalid);
        let rollup = intent.rollup.filter(|_| config.allow_rollup_hdrs && !config.deny_purge);
        let bytes = record.stored_bytes(config.storage);
        let wanted = Wanted { record, bytes, rolls_up: rollup.is_some(), ahead: None };
        if let Some(error) = settings.limits.check_room(&mut self.messages, &wanted, reads)? {
            return Ok(Err(PublishReply::Rejected(error)));
        }
        // A mirror has what its origin has, also what has the same id.
        let id = id.filter(|id| self.window.find(*id).is_none());
        Ok(Ok(Admitted::copied(bytes, (intent.msg_id, id), ttl, rollup)))
    }

    /// Whether a sum follows from the message before it. If not the leader has to write it anew.
    fn check_copied_sum(
        &self,
        record: &RecordRef<'_>,
        flags: RecordFlags,
        intent: &PublishIntent<'_>,
        reads: &Reads<'_>,
    ) -> Result<Result<(), PublishReply>, ReadFailed> {
        let Some(increment) = intent.rare.as_ref().and_then(|rare| rare.increment) else {
            return Ok(Err(PublishReply::Rejected(ApiError::counter_increment_missing())));
        };
        let none = counter::PendingSums::new();
        Ok(match self.sum_on(record.subject, increment, &none, reads)? {
            Err(error) => Err(PublishReply::Rejected(error)),
            Ok(sum) if flags.contains(RecordFlags::COUNTED) && counter::body(&sum) == record.payload => {
                Ok(())
            }
            Ok(_) => Err(PublishReply::Outdated),
        })
    }
}
