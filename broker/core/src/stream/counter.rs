//! Counters: every message of a counter carries an increment and holds the sum of all of them.
//!
//! What a message holds is in its block before it is decided upon. So the leader adds up and writes the sum, and
//! whoever applies the block adds up again: a sum that does not follow from the message before it is not stored, and
//! the leader writes it anew.

use std::collections::BTreeMap;

use levee_protocol::api::{ApiError, PublishIntent, RareIntent};
use levee_protocol::record::RecordRef;
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};
use serde::Deserialize;

use super::StreamMachine;
use super::reads::Reads;
use super::view::{MessageView, ReadFailed};

/// Sums that are not stored yet, by subject.
pub type PendingSums = BTreeMap<Box<[u8]>, String>;

const INCREMENT_HEADER: &str = "Nats-Incr";
/// What of a sum came from where, on messages of a counter that gathers those of others.
const SOURCES_HEADER: &str = "Nats-Counter-Sources";

/// A message as it is stored.
type HeaderAndBody = (Vec<u8>, Vec<u8>);

/// Totals by origin and subject.
type Totals = BTreeMap<String, BTreeMap<String, String>>;

/// Sums of counters that are gathered, by subject, as they will be once what was gathered so far is stored.
#[derive(Debug, Default)]
pub struct GatheredSums(BTreeMap<Box<[u8]>, Gathered>);

#[derive(Clone, Debug, Default)]
struct Gathered {
    sum: Integer,
    totals: Totals,
}

/// What a counter's message holds.
#[derive(Deserialize)]
struct Sum {
    val: String,
}

impl StreamMachine {
    /// The sum that a message with this increment holds: on top of `pending`, or of the last message of the subject.
    pub fn next_sum(
        &self,
        subject: &[u8],
        increment: &str,
        pending: &PendingSums,
        view: &dyn MessageView,
    ) -> Result<Result<String, ApiError>, ReadFailed> {
        self.sum_on(subject, increment, pending, &Reads::stored_only(view))
    }

    pub(super) fn sum_on(
        &self,
        subject: &[u8],
        increment: &str,
        pending: &PendingSums,
        reads: &Reads<'_>,
    ) -> Result<Result<String, ApiError>, ReadFailed> {
        let Some(increment) = Integer::parse(increment) else {
            return Ok(Err(ApiError::counter_increment_invalid()));
        };
        let before = match (pending.get(subject), self.messages.subjects.get(subject)) {
            (Some(sum), _) => Integer::parse(sum),
            (None, Some(entry)) => sum_of(&reads.record(entry.last)?.payload),
            (None, None) => Some(Integer::default()),
        };
        let Some(before) = before else { return Ok(Err(ApiError::counter_broken())) };
        Ok(Ok(before.plus(&increment).to_string()))
    }
}

impl StreamMachine {
    /// A message of another counter, as this one stores it: with its origin's new total, and the increment that follows
    /// from that. So nothing counts twice, however often an origin is read again.
    pub fn gather(
        &self,
        sums: &mut GatheredSums,
        (origin, origin_subject): (&str, &[u8]),
        record: &RecordRef<'_>,
        view: &dyn MessageView,
    ) -> Result<Result<HeaderAndBody, ApiError>, ReadFailed> {
        if HeaderBlock(record.header).get(INCREMENT_HEADER).is_none() {
            return Ok(Err(ApiError::counter_increment_missing()));
        }
        let known = match sums.0.get(record.subject) {
            Some(gathered) => Some(gathered.clone()),
            None => self.gathered(record.subject, view)?,
        };
        let (Some(mut gathered), Some(total)) = (known, sum_of(record.payload)) else {
            return Ok(Err(ApiError::counter_broken()));
        };
        let totals = gathered.totals.entry(origin.to_owned()).or_default();
        let before = totals.insert(String::from_utf8_lossy(origin_subject).into_owned(), total.to_string());
        let before = before.and_then(|text| Integer::parse(&text)).unwrap_or_default();
        let increment = total.plus(&before.negated());
        gathered.sum = gathered.sum.plus(&increment);
        let mut header = HeaderBuilder::from_block(record.header);
        header.replace(INCREMENT_HEADER, increment.to_string());
        header.set(SOURCES_HEADER, serde_json::to_string(&gathered.totals).unwrap_or_default());
        let stored = (header.finish(), body(&gathered.sum.to_string()));
        sums.0.insert(record.subject.into(), gathered);
        Ok(Ok(stored))
    }

    /// The totals that the last message of a subject carries, if it does: the next one carries them on.
    pub fn carried_totals(
        &self,
        subject: &[u8],
        view: &dyn MessageView,
    ) -> Result<Option<(&'static str, Vec<u8>)>, ReadFailed> {
        let Some(entry) = self.messages.subjects.get(subject) else { return Ok(None) };
        let last = Reads::stored_only(view).record(entry.last)?;
        let totals = HeaderBlock(&last.header).get(SOURCES_HEADER);
        Ok(totals.map(|totals| (SOURCES_HEADER, totals.to_vec())))
    }

    /// What is stored of a subject; `None` if it is no counter.
    fn gathered(&self, subject: &[u8], view: &dyn MessageView) -> Result<Option<Gathered>, ReadFailed> {
        let Some(entry) = self.messages.subjects.get(subject) else { return Ok(Some(Gathered::default())) };
        let last = Reads::stored_only(view).record(entry.last)?;
        let totals = match HeaderBlock(&last.header).get(SOURCES_HEADER) {
            Some(totals) => serde_json::from_slice(totals).ok(),
            None => Some(Totals::default()),
        };
        Ok(sum_of(&last.payload).zip(totals).map(|(sum, totals)| Gathered { sum, totals }))
    }
}

/// The body of a counter's message.
#[must_use]
pub fn body(sum: &str) -> Vec<u8> {
    format!("{{\"val\":\"{sum}\"}}").into_bytes()
}

fn sum_of(body: &[u8]) -> Option<Integer> {
    let sum: Sum = serde_json::from_slice(body).ok()?;
    Integer::parse(&sum.val)
}

/// What is wrong with an increment, in nats-server's order. The body is the leader's if the record was counted.
pub(crate) fn check(
    record: &RecordRef<'_>,
    intent: &PublishIntent<'_>,
    rare: &RareIntent<'_>,
    is_counted: bool,
) -> Result<(), ApiError> {
    if rare.increment.is_none_or(|increment| Integer::parse(increment).is_none()) {
        return Err(ApiError::counter_increment_invalid());
    }
    if !is_counted && !record.payload.is_empty() {
        return Err(ApiError::counter_has_payload());
    }
    let expects = intent.expected_stream.is_some()
        || intent.expected_last_seq.is_some()
        || intent.expected_last_subject_seq.is_some()
        || intent.expected_last_subject.is_some()
        || intent.expected_last_msg_id.is_some();
    if expects || intent.rollup.is_some() {
        return Err(ApiError::counter_increment_invalid());
    }
    Ok(())
}

/// A whole number of any length.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Integer {
    is_negative: bool,
    /// Decimal digits, the lowest first, none of the highest being zero; empty is zero.
    digits: Vec<u8>,
}

impl Integer {
    fn parse(text: &str) -> Option<Self> {
        let (is_negative, digits) = match text.as_bytes() {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(Self::of(is_negative, digits.iter().rev().map(|digit| digit - b'0').collect()))
    }

    fn of(is_negative: bool, mut digits: Vec<u8>) -> Self {
        let used = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        digits.truncate(used);
        Self { is_negative: is_negative && used > 0, digits }
    }

    fn negated(mut self) -> Self {
        self.is_negative = !self.is_negative && !self.digits.is_empty();
        self
    }

    fn plus(&self, other: &Self) -> Self {
        if self.is_negative == other.is_negative {
            return Self::of(self.is_negative, sum(&self.digits, &other.digits));
        }
        if is_less(&self.digits, &other.digits) {
            Self::of(other.is_negative, difference(&other.digits, &self.digits))
        } else {
            Self::of(self.is_negative, difference(&self.digits, &other.digits))
        }
    }
}

impl std::fmt::Display for Integer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.digits.is_empty() {
            return out.write_str("0");
        }
        let digits: String = self.digits.iter().rev().map(|digit| char::from(b'0' + digit)).collect();
        write!(out, "{}{digits}", if self.is_negative { "-" } else { "" })
    }
}

fn sum(one: &[u8], other: &[u8]) -> Vec<u8> {
    let (longer, shorter) = if one.len() < other.len() { (other, one) } else { (one, other) };
    let mut digits = Vec::with_capacity(longer.len() + 1);
    let mut carry = 0;
    for (place, digit) in longer.iter().enumerate() {
        let total = digit + shorter.get(place).copied().unwrap_or(0) + carry;
        digits.push(total % 10);
        carry = total / 10;
    }
    digits.push(carry);
    digits
}

/// `larger` is not less than `smaller`.
fn difference(larger: &[u8], smaller: &[u8]) -> Vec<u8> {
    let mut borrow = 0;
    let digits = larger.iter().enumerate().map(|(place, digit)| {
        let taken = smaller.get(place).copied().unwrap_or(0) + borrow;
        borrow = u8::from(*digit < taken);
        digit + borrow * 10 - taken
    });
    digits.collect()
}

fn is_less(one: &[u8], other: &[u8]) -> bool {
    (one.len(), one.iter().rev().collect::<Vec<_>>()) < (other.len(), other.iter().rev().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sums_are_right(one in any::<i64>(), other in any::<i64>()) {
            let parse = |number: i64| Integer::parse(&number.to_string()).unwrap();
            let sum = i128::from(one) + i128::from(other);

            prop_assert_eq!(parse(one).plus(&parse(other)).to_string(), sum.to_string());
            prop_assert_eq!(parse(one).plus(&parse(one.wrapping_neg())).to_string(), (i128::from(one) + i128::from(one.wrapping_neg())).to_string());
        }
    }

    #[test]
    fn numbers_are_read_as_nats_reads_them() {
        let check = |text: &str, read: Option<&str>| {
            assert_eq!(Integer::parse(text).map(|number| number.to_string()).as_deref(), read, "{text:?}");
        };

        check("+5", Some("5"));
        check("-0", Some("0"));
        check("007", Some("7"));
        check(
            "-12345678901234567890123456789012345678901234567890",
            Some("-12345678901234567890123456789012345678901234567890"),
        );
        for text in ["", "+", "-", "--1", "+-1", "1.5", "1e3", "0x10", "1_000", " 1", "x"] {
            check(text, None);
        }
    }

    #[test]
    fn what_is_no_sum_is_not_read_as_one() {
        assert_eq!(sum_of(br#"{"val":"12"}"#), Integer::parse("12"));
        for body in [&b""[..], b"x", b"{}", br#"{"val":12}"#, br#"{"val":"1x"}"#] {
            assert_eq!(sum_of(body), None);
        }
    }
}
