//! How a ledger lies on disk. Numbers are LEB128, sequences are written as distances from the one before.
//!
//! ```text
//! ledger := version | name | created | incarnation | config (JSON)
//!           | delivered | delivered_at | floor | settled_at
//!           | unacked* | exhausted* | early* | chosen
//!           | dead* | passed*                             since version 2
//!           | began                                       since version 3
//! ```
//!
//! The version byte is persisted: a new layout gets a new number, and old ones stay readable. A consumer that was never
//! reset began when it was created and is written as version 2.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use levee_protocol::api::ConsumerConfig;
use levee_protocol::command::Undecodable;
use levee_protocol::command::progress::DeathCause;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::Timestamp;
use prost::encoding::{decode_varint, encode_varint};

use crate::consumer::ledger::{Ledger, parse_filters};
use crate::consumer::settle::{Chosen, Death, Marks, Position, Unacked};

const VERSION: u8 = 3;
/// Without the time of a reset.
const VERSION_NOT_RESET: u8 = 2;
/// Without dead letters and keys.
const VERSION_PLAIN: u8 = 1;

pub(super) fn encode(ledger: &Ledger) -> Vec<u8> {
    let marks = &ledger.marks;
    let is_reset = ledger.began != ledger.created;
    let mut out = vec![if is_reset { VERSION } else { VERSION_NOT_RESET }];
    put_bytes(&mut out, ledger.name.as_str().as_bytes());
    put_time(&mut out, ledger.created);
    encode_varint(ledger.incarnation, &mut out);
    let config = serde_json::to_vec(&ledger.config).expect("a configuration has only string keys");
    put_bytes(&mut out, &config);
    put_position(&mut out, marks.delivered);
    put_optional_time(&mut out, marks.delivered_at);
    put_position(&mut out, marks.floor);
    put_optional_time(&mut out, marks.settled_at);

    encode_varint(marks.unacked.len() as u64, &mut out);
    let mut before = (Seq::NONE, 0, 0);
    for (seq, unacked) in &marks.unacked {
        encode_varint(seq.0 - before.0.0, &mut out);
        put_signed(&mut out, unacked.consumer_seq.wrapping_sub(before.1).cast_signed());
        put_signed(&mut out, unacked.at.0.wrapping_sub(before.2));
        encode_varint(unacked.attempt.into(), &mut out);
        before = (*seq, unacked.consumer_seq, unacked.at.0);
    }
    encode_varint(marks.exhausted.len() as u64, &mut out);
    let mut before = Seq::NONE;
    for (seq, attempts) in &marks.exhausted {
        encode_varint(seq.0 - before.0, &mut out);
        encode_varint((*attempts).into(), &mut out);
        before = *seq;
    }
    put_ascending(&mut out, marks.early.len(), marks.early.iter());
    match &marks.chosen {
        None => put_ascending(&mut out, 0, std::iter::empty()),
        Some(chosen) => {
            put_ascending(&mut out, chosen.seqs.len(), chosen.seqs.iter());
            encode_varint(chosen.resume.0, &mut out);
        }
    }
    encode_varint(marks.dead.len() as u64, &mut out);
    let mut before = Seq::NONE;
    for (seq, death) in &marks.dead {
        encode_varint(seq.0 - before.0, &mut out);
        encode_varint(death.cause.number().into(), &mut out);
        put_bytes(&mut out, death.detail.as_bytes());
        before = *seq;
    }
    put_ascending(&mut out, marks.passed.len(), marks.passed.iter());
    if is_reset {
        put_time(&mut out, ledger.began);
    }
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Ledger, Undecodable> {
    let mut reader = Reader { rest: bytes };
    let version = reader.byte()?;
    match version {
        VERSION_PLAIN | VERSION_NOT_RESET | VERSION => {}
        version => {
            return Err(Undecodable(format!(
                "consumer has unknown version {version}; it may come from a newer release"
            )));
        }
    }
    let name = std::str::from_utf8(reader.bytes()?).ok().and_then(|name| ConsumerName::parse(name).ok());
    let name = name.ok_or_else(damaged)?;
    let created = reader.time()?;
    let incarnation = reader.number()?;
    let config: ConsumerConfig = serde_json::from_slice(reader.bytes()?)
        .map_err(|error| Undecodable(format!("configuration of consumer {name} does not decode: {error}")))?;
    let mut marks = Marks::default();
    marks.delivered = reader.position()?;
    marks.delivered_at = reader.optional_time()?;
    marks.floor = reader.position()?;
    marks.settled_at = reader.optional_time()?;

    let mut unacked = BTreeMap::new();
    let mut before = (0_u64, 0_u64, 0_i64);
    for _ in 0..reader.number()? {
        let seq = before.0.checked_add(reader.number()?).ok_or_else(damaged)?;
        let consumer_seq = before.1.wrapping_add(reader.signed()?.cast_unsigned());
        let at = before.2.wrapping_add(reader.signed()?);
        let attempt = u32::try_from(reader.number()?).map_err(|_| damaged())?;
        unacked.insert(Seq(seq), Unacked { consumer_seq, attempt, at: Timestamp(at) });
        before = (seq, consumer_seq, at);
    }
    marks.unacked = unacked;
    let mut before = 0_u64;
    for _ in 0..reader.number()? {
        before = before.checked_add(reader.number()?).ok_or_else(damaged)?;
        let attempts = u32::try_from(reader.number()?).map_err(|_| damaged())?;
        marks.exhausted.insert(Seq(before), attempts);
    }
    marks.early = reader.ascending::<BTreeSet<Seq>>()?;
    let seqs = reader.ascending::<VecDeque<Seq>>()?;
    if !seqs.is_empty() {
        marks.chosen = Some(Chosen { seqs, resume: Seq(reader.number()?) });
    }
    if version >= VERSION_NOT_RESET {
        let mut before = 0_u64;
        for _ in 0..reader.number()? {
            before = before.checked_add(reader.number()?).ok_or_else(damaged)?;
            let cause = u32::try_from(reader.number()?).map_err(|_| damaged())?;
            let cause = DeathCause::from_number(cause)?;
            let detail = std::str::from_utf8(reader.bytes()?).map_err(|_| damaged())?.to_owned();
            marks.dead.insert(Seq(before), Death { cause, detail });
        }
        marks.passed = reader.ascending::<BTreeSet<Seq>>()?;
    }
    let began = if version >= VERSION { reader.time()? } else { created };
    if !reader.rest.is_empty() {
        return Err(damaged());
    }
    marks.recount();
    let filters = parse_filters(&config);
    Ok(Ledger { name, config, filters, created, began, incarnation, marks })
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_signed(out: &mut Vec<u8>, number: i64) {
    encode_varint(((number << 1) ^ (number >> 63)).cast_unsigned(), out);
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.0.to_le_bytes());
}

fn put_optional_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    put_time(out, time.unwrap_or(Timestamp::ZERO));
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    encode_varint(position.consumer, out);
    encode_varint(position.stream.0, out);
}

fn put_ascending<'a>(out: &mut Vec<u8>, count: usize, seqs: impl Iterator<Item = &'a Seq>) {
    encode_varint(count as u64, out);
    let mut before = 0;
    for seq in seqs {
        encode_varint(seq.0 - before, out);
        before = seq.0;
    }
}

fn damaged() -> Undecodable {
    Undecodable("consumer is damaged".into())
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Undecodable> {
        let (first, rest) = self.rest.split_first().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, Undecodable> {
        decode_varint(&mut self.rest).map_err(|_| damaged())
    }

    fn signed(&mut self) -> Result<i64, Undecodable> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn bytes(&mut self) -> Result<&'a [u8], Undecodable> {
        let len = usize::try_from(self.number()?).map_err(|_| damaged())?;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn time(&mut self) -> Result<Timestamp, Undecodable> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(Timestamp(i64::from_le_bytes(*bytes)))
    }

    fn optional_time(&mut self) -> Result<Option<Timestamp>, Undecodable> {
        Ok(Some(self.time()?).filter(|time| *time != Timestamp::ZERO))
    }

    fn position(&mut self) -> Result<Position, Undecodable> {
        Ok(Position { consumer: self.number()?, stream: Seq(self.number()?) })
    }

    fn ascending<C: Default + Extend<Seq>>(&mut self) -> Result<C, Undecodable> {
        let mut seqs = C::default();
        let mut before = 0_u64;
        for _ in 0..self.number()? {
            before = before.checked_add(self.number()?).ok_or_else(damaged)?;
            seqs.extend([Seq(before)]);
        }
        Ok(seqs)
    }
}
