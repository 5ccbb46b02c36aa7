//! What a stream makes of the messages of an origin before it stores them: subjects and headers are rewritten, sums are
//! added up, and a claim says what they are.

use std::borrow::Cow;

use levee_protocol::api::stream_source::SourceHeader;
use levee_protocol::api::{ApiError, PublishIntent, StreamSource};
use levee_protocol::command::OriginClaim;
use levee_protocol::mirror::FetchAnswer;
use levee_protocol::record::{Block, BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::subject::{InvalidTransform, Transform};
use levee_protocol::time::Timestamp;
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};

use crate::stream::counter::GatheredSums;
use crate::stream::mirror::{GAP_MAX, ORIGIN_CLAIM, SOURCE_HEADER};
use crate::stream::{Composition, MessageView, ReadFailed, StreamMachine};

/// Up to so many missing sequences between two messages of a mirror are records in its block. A longer gap ends it.
const GAP_RECORDS_MAX: u64 = 64;

/// Copies one origin into one stream.
#[derive(Debug)]
pub struct Copier {
    source: StreamSource,
    /// Empty for a mirror.
    key: String,
    header: SourceHeader,
    transforms: Vec<Transform>,
}

/// Messages of an origin, to be copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied<'a> {
    /// Which incarnation of the origin they are of.
    pub identity: &'a str,
    /// When that was created, in nanoseconds since the epoch.
    pub born: i64,
    /// Up to this sequence that was restored from an archive; 0 if it was not.
    pub restored_to: u64,
    /// The messages.
    pub block: &'a Block,
    /// Their sequences.
    pub seqs: &'a [u64],
    /// Everything up to this one was looked at.
    pub through: u64,
}

impl Copier {
    /// Of the stream that is mirrored.
    pub fn of_mirror(source: &StreamSource) -> Result<Self, InvalidTransform> {
        Self::new(source, String::new())
    }

    /// Of one that is sourced.
    pub fn of_source(source: &StreamSource) -> Result<Self, InvalidTransform> {
        Self::new(source, source.key())
    }

    fn new(source: &StreamSource, key: String) -> Result<Self, InvalidTransform> {
        let (header, transforms) = (SourceHeader::of(source), source.transforms()?);
        Ok(Self { source: source.clone(), key, header, transforms })
    }

    /// The origin.
    #[must_use]
    pub fn source(&self) -> &StreamSource {
        &self.source
    }

    /// What names it among the stream's sources; empty for a mirror.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this is the stream that is mirrored.
    #[must_use]
    pub fn mirrors(&self) -> bool {
        self.key.is_empty()
    }

    /// A block that only makes a mirror skip sequences that its origin does not have any more: those before where the
    /// answer begins.
    #[must_use]
    pub fn skip(&self, machine: &StreamMachine, answer: &FetchAnswer, now: Timestamp) -> Option<Block> {
        let skipped_to = answer.from.max(answer.first_seq).saturating_sub(1);
        let after = machine.last_seq().0;
        if skipped_to <= after {
            return None;
        }
        let (identity, born) = (answer.identity.clone(), answer.born);
        let claim = OriginClaim { identity, born, after, skipped_to, ..OriginClaim::default() };
        Some(mirroring(&claim, 0).finish(now))
    }

    /// Why the stream can't go on from what it has to the message that comes next.
    #[must_use]
    pub fn check_gap(&self, machine: &StreamMachine, next: u64) -> Option<ApiError> {
        let state = machine.state();
        let is_too_long =
            self.mirrors() && state.messages > 0 && next.saturating_sub(state.last_seq.0) > GAP_MAX;
        is_too_long.then(|| ApiError::stream_general("mirror lacks too many sequences of its origin"))
    }

    /// What the stream is to store next of these, or `None` if it has all of them. A mirror may have to be asked again
    /// for the rest.
    pub fn block(
        &self,
        (machine, view): (&StreamMachine, &dyn MessageView),
        copied: &Copied<'_>,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Result<Option<Block>, ApiError>, ReadFailed> {
        if self.mirrors() {
            return Ok(Ok(self.mirrored(machine, copied, now, draw)));
        }
        self.sourced((machine, view), copied, now, draw)
    }

    fn mirrored(
        &self,
        machine: &StreamMachine,
        copied: &Copied<'_>,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u64,
    ) -> Option<Block> {
        let after = machine.last_seq().0;
        let first = copied.seqs.partition_point(|seq| *seq <= after);
        let skipped_to = copied.seqs.get(first)? - 1;
        let (identity, born) = (copied.identity.to_owned(), copied.born);
        let claim = OriginClaim { identity, born, after, skipped_to, ..OriginClaim::default() };
        let follows = |one: &u64, next: &u64| next - one - 1 <= GAP_RECORDS_MAX;
        let messages = copied.seqs[first..].chunk_by(follows).next()?.len();
        let positions = (0..copied.block.count()).zip(copied.seqs).skip(first).take(messages);
        let bytes = positions.clone().map(|(position, _)| copied.block.record(position).framed_bytes()).sum();
        let mut block = mirroring(&claim, bytes);
        let mut last = skipped_to;
        for (position, seq) in positions {
            for _ in last + 1..*seq {
                block.push_timed(RecordFlags::COPIED, &ABSENT);
            }
            let record = copied.block.record(position);
            let subject = self.subject(machine.composition(), record.subject, draw);
            let header = self.header(&record, *seq, "");
            block
                .push_timed(RecordFlags::COPIED, &RecordRef { subject: &subject, header: &header, ..record });
            last = *seq;
        }
        Some(block.finish(now))
    }

    fn sourced(
        &self,
        (machine, view): (&StreamMachine, &dyn MessageView),
        copied: &Copied<'_>,
        now: Timestamp,
        draw: &mut dyn FnMut() -> u64,
    ) -> Result<Result<Option<Block>, ApiError>, ReadFailed> {
        let has = machine.source(&self.key);
        let after = has.seq_of(copied.identity, copied.restored_to);
        let first = copied.seqs.partition_point(|seq| *seq <= after);
        let mut seqs = copied.seqs[first..].to_vec();
        if seqs.is_empty() {
            return Ok(Ok(None));
        }
        let counts = machine.composition().is_some_and(|composition| composition.counts);
        let mut sums = GatheredSums::default();
        let mut records = Vec::with_capacity(seqs.len());
        let mut refused = None;
        for (position, seq) in (0..copied.block.count()).zip(copied.seqs).skip(first) {
            let record = copied.block.record(position);
            let subject = self.subject(machine.composition(), record.subject, draw);
            let header = self.header(&record, *seq, copied.identity);
            let header = match machine.composition() {
                Some(composition) => composition.header(header, &intent_of(&record)),
                None => header,
            };
            if !counts {
                records.push((RecordFlags::COPIED, subject, header, Cow::Borrowed(record.payload)));
                continue;
            }
            let arrived = RecordRef { subject: &subject, header: &header, ..record };
            match machine.gather(&mut sums, (self.header.origin(), record.subject), &arrived, view)? {
                Ok((header, body)) => {
                    let flags = RecordFlags::COPIED.and(RecordFlags::COUNTED);
                    records.push((flags, subject, Cow::Owned(header), Cow::Owned(body)));
                }
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            };
        }
        seqs.truncate(records.len());
        let through = match (&refused, seqs.last()) {
            (Some(error), None) => return Ok(Err(error.clone())),
            (Some(_), Some(last)) => *last,
            (None, _) => copied.through,
        };
        let claim = OriginClaim {
            source: self.key.clone(),
            identity: copied.identity.to_owned(),
            after,
            seqs,
            through,
            born: copied.born,
            skipped_to: 0,
            restored_to: copied.restored_to,
        };
        let mut block = BlockBuilder::with_capacity(copied.block.as_bytes().len());
        block.push_flagged(ORIGIN_CLAIM, b"", b"", &claim.encode());
        for (flags, subject, header, body) in &records {
            block.push_flagged(*flags, subject, header, body);
        }
        Ok(Ok(Some(block.finish(now))))
    }

    /// The subject under which a message is stored: that of the source's first transform that matches, and then that of
    /// the stream's own.
    fn subject<'a>(
        &self,
        composition: Option<&std::sync::Arc<Composition>>,
        subject: &'a [u8],
        draw: &mut dyn FnMut() -> u64,
    ) -> Cow<'a, [u8]> {
        let changed = self.transforms.iter().find_map(|transform| transform.apply(subject, draw));
        let changed = changed.filter(|changed| crate::stream::is_sound(changed));
        let subject = changed.map_or(Cow::Borrowed(subject), Cow::Owned);
        let Some(composition) = composition else { return subject };
        match composition.subject(&subject, draw) {
            Cow::Owned(changed) => Cow::Owned(changed),
            Cow::Borrowed(_) => subject,
        }
    }

    /// The header block as the stream gets it: without what was meant for the origin only.
    fn header<'a>(&self, record: &RecordRef<'a>, seq: u64, identity: &str) -> Cow<'a, [u8]> {
        let lines = HeaderBlock(record.header);
        let has = |prefix: &str| lines.iter().any(|(name, _)| name.starts_with(prefix.as_bytes()));
        let is_clean = !has("Nats-Expected-") && !has("Nats-Batch-");
        if self.mirrors() && is_clean {
            return Cow::Borrowed(record.header);
        }
        let mut header = HeaderBuilder::from_block(record.header);
        if !is_clean {
            header.remove_prefix("Nats-Expected-").remove_prefix("Nats-Batch-");
        }
        if !self.mirrors() {
            header.remove(SOURCE_HEADER);
            header.push(SOURCE_HEADER, self.header.value(seq, record.subject, identity));
        }
        Cow::Owned(header.finish())
    }
}

/// Stands for a sequence that the origin does not have.
const ABSENT: RecordRef<'_> =
    RecordRef { timestamp: Timestamp::ZERO, subject: b"", header: b"", payload: b"" };

/// A block of a mirror that begins with its claim.
fn mirroring(claim: &OriginClaim, bytes: usize) -> BlockBuilder {
    let mut block = BlockBuilder::timed(bytes);
    block.push_timed(ORIGIN_CLAIM, &RecordRef { payload: &claim.encode(), ..ABSENT });
    block
}

/// What a message asks for, as far as that can be read.
fn intent_of<'a>(record: &RecordRef<'a>) -> PublishIntent<'a> {
    PublishIntent::parse(record.header).unwrap_or_default()
}
