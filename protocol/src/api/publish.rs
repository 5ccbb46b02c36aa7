//! Hot path: publish headers, and the answer to a publish.
//!
//! A publish without headers costs nothing here; one with headers is walked once, without allocation unless it
//! uses a feature that few do. Values that can not be right are kept as such, because where a rule stands in
//! the order of checks decides which error a client sees.

use std::borrow::Cow;

use crate::api::decimal::{parse_u64, push_u64};
use crate::api::duration_text::parse_duration;
use crate::api::envelope::push_json;
use crate::api::error::ApiError;
use crate::ids::Seq;
use crate::time::Nanos;
use crate::wire::headers;

/// What the headers of a publish ask for. Default: nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PublishIntent<'a> {
    /// `Nats-Msg-Id`: do not store the same id twice.
    pub msg_id: Option<&'a str>,
    /// `Nats-Expected-Stream`: the name of the stream that takes it.
    pub expected_stream: Option<&'a str>,
    /// `Nats-Expected-Last-Sequence`: the stream's last sequence. What is no number is a sequence that no stream
    /// reaches, as in NATS.
    pub expected_last_seq: Option<u64>,
    /// `Nats-Expected-Last-Subject-Sequence`: the last sequence of the subject, 0 if it has none.
    pub expected_last_subject_seq: Option<u64>,
    /// `Nats-Expected-Last-Subject-Sequence-Subject`: the subject or filter meant by that, if not the message's.
    pub expected_last_subject: Option<&'a str>,
    /// `Nats-Expected-Last-Msg-Id`: the id of the last message.
    pub expected_last_msg_id: Option<&'a str>,
    /// `Nats-Rollup`: remove what this message replaces.
    pub rollup: Option<Rollup<'a>>,
    /// `Nats-TTL`: how long the message stays.
    pub ttl: Option<Ttl>,
    /// What few publishes use.
    pub rare: Option<Box<RareIntent<'a>>>,
}

/// Headers of features that few publishes use. Values are as they came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RareIntent<'a> {
    /// `Nats-Incr`: add this to a counter.
    pub increment: Option<&'a str>,
    /// `Nats-Batch-Id`: part of an atomic batch.
    pub batch_id: Option<&'a str>,
    /// `Nats-Batch-Sequence`: its place in the batch.
    pub batch_seq: Option<&'a str>,
    /// `Nats-Batch-Commit`: the last of the batch.
    pub batch_commit: Option<&'a str>,
    /// `Nats-Schedule`: when to publish it.
    pub schedule: Option<&'a str>,
    /// `Nats-Schedule-Target`: on which subject.
    pub schedule_target: Option<&'a str>,
    /// `Nats-Schedule-Source`: with the last message of which subject.
    pub schedule_source: Option<&'a str>,
    /// `Nats-Schedule-TTL`: for how long it stays then.
    pub schedule_ttl: Option<&'a str>,
    /// `Nats-Schedule-Rollup`: what it replaces then.
    pub schedule_rollup: Option<&'a str>,
    /// `Nats-Schedule-Time-Zone`: the zone of the schedule.
    pub schedule_time_zone: Option<&'a str>,
    /// `Nats-Schedule-Next`: `purge` ends a schedule.
    pub schedule_next: Option<&'a str>,
    /// `Nats-Scheduler`: which schedule.
    pub scheduler: Option<&'a str>,
    /// `Nats-Stream-Source`: only servers set it.
    pub stream_source: Option<&'a str>,
}

/// What a message replaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rollup<'a> {
    /// All older messages of its subject.
    Subject,
    /// All older messages of the stream.
    All,
    /// Not a known value.
    Invalid(&'a str),
}

impl<'a> Rollup<'a> {
    fn parse(text: &'a str) -> Self {
        if text.eq_ignore_ascii_case("sub") {
            Self::Subject
        } else if text.eq_ignore_ascii_case("all") {
            Self::All
        } else {
            Self::Invalid(text)
        }
    }

    /// What is said about a value that is not known.
    #[must_use]
    pub fn refused(value: &str) -> ApiError {
        ApiError::rollup_failed(format_args!("rollup value invalid: {:?}", value.to_ascii_lowercase()))
    }
}

/// How long a message stays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ttl {
    /// For this long, in whole seconds.
    After(Nanos),
    /// For ever, whatever the stream's maximum age.
    Never,
    /// Not a known value.
    Invalid,
}

impl Ttl {
    /// Reads `5s`, `1h30m`, whole seconds as a bare number, or `never`. At least one second.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.eq_ignore_ascii_case("never") {
            return Self::Never;
        }
        match parse_duration(text) {
            Some(span) if span.0 >= 1_000_000_000 => Self::After(Nanos(span.0 - span.0 % 1_000_000_000)),
            Some(_) => Self::Invalid,
            None => parse_u64(text.as_bytes())
                .and_then(|seconds| i64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map_or(Self::Invalid, |seconds| Self::After(Nanos(seconds.saturating_mul(1_000_000_000)))),
        }
    }
}

impl<'a> PublishIntent<'a> {
    /// Reads a header block, empty or whole. Of several headers with one name the first counts; an empty value
    /// is no value.
    ///
    /// Refused at once are a required API level that this server does not have, and values that are not text.
    pub fn parse(header: &'a [u8]) -> Result<Self, ApiError> {
        let mut intent = Self::default();
        let mut rest = header;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            rest = &rest[end + 1..];
            // Every header that means something here begins like this; names are compared as they are written.
            let Some(named) = line.strip_prefix(b"Nats-") else { continue };
            let Some(colon) = memchr::memchr(b':', named) else { continue };
            let value = named[colon + 1..].trim_ascii_start();
            if !value.is_empty() {
                intent.note(&named[..colon], value)?;
            }
        }
        Ok(intent)
    }

    /// Takes note of the header `Nats-<name>`.
    fn note(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), ApiError> {
        match name {
            b"Msg-Id" => keep_first(&mut self.msg_id, text(value)?),
            b"Expected-Stream" => keep_first(&mut self.expected_stream, text(value)?),
            b"Expected-Last-Sequence" => keep_first(&mut self.expected_last_seq, sequence(value)),
            b"Expected-Last-Subject-Sequence" => {
                keep_first(&mut self.expected_last_subject_seq, sequence(value));
            }
            b"Expected-Last-Subject-Sequence-Subject" => {
                keep_first(&mut self.expected_last_subject, text(value)?);
            }
            b"Expected-Last-Msg-Id" => keep_first(&mut self.expected_last_msg_id, text(value)?),
            b"Rollup" => keep_first(&mut self.rollup, Rollup::parse(text(value)?)),
            b"TTL" => keep_first(&mut self.ttl, Ttl::parse(text(value)?)),
            _ if is_rare(name) => {
                if let Some(slot) = self.rare.get_or_insert_default().slot(name) {
                    keep_first(slot, text(value)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The header block of a publish as a stream stores it: without a status. Copies only what it changes. A level that
/// the publisher requires of the API stays and decides nothing, as in NATS: it is for API calls.
#[must_use]
pub fn stored_header(block: &[u8]) -> Cow<'_, [u8]> {
    headers::without_status(block)
}

fn is_rare(name: &[u8]) -> bool {
    name.starts_with(b"Batch-")
        || name.starts_with(b"Schedule")
        || name == b"Incr"
        || name == b"Stream-Source"
}

fn keep_first<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

/// No client can have meant bytes that are not text, and no later check could compare them.
fn text(value: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(value).map_err(|_| ApiError::bad_request())
}

/// What is no number is a sequence that no stream reaches, so the expectation fails with the actual sequence.
fn sequence(value: &[u8]) -> u64 {
    parse_u64(value).unwrap_or(u64::MAX)
}

impl<'a> RareIntent<'a> {
    fn slot(&mut self, name: &[u8]) -> Option<&mut Option<&'a str>> {
        Some(match name {
            b"Incr" => &mut self.increment,
            b"Batch-Id" => &mut self.batch_id,
            b"Batch-Sequence" => &mut self.batch_seq,
            b"Batch-Commit" => &mut self.batch_commit,
            b"Schedule" => &mut self.schedule,
            b"Schedule-Target" => &mut self.schedule_target,
            b"Schedule-Source" => &mut self.schedule_source,
            b"Schedule-TTL" => &mut self.schedule_ttl,
            b"Schedule-Rollup" => &mut self.schedule_rollup,
            b"Schedule-Time-Zone" => &mut self.schedule_time_zone,
            b"Schedule-Next" => &mut self.schedule_next,
            b"Scheduler" => &mut self.scheduler,
            b"Stream-Source" => &mut self.stream_source,
            _ => return None,
        })
    }
}

/// The answer to an accepted publish. Default fields are left out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PubAck<'a> {
    /// Name of the stream.
    pub stream: &'a str,
    /// The message's sequence; that of the first one for a duplicate.
    pub seq: Seq,
    /// JetStream domain.
    pub domain: &'a str,
    /// Whether it was already stored.
    pub duplicate: bool,
    /// The new value of a counter.
    pub value: &'a str,
    /// Id of the atomic batch that this commits.
    pub batch: &'a str,
    /// How many messages of the batch were stored.
    pub count: u64,
}

impl PubAck<'_> {
    /// Appends the document.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"stream\":");
        push_string(out, self.stream);
        out.extend_from_slice(b",\"seq\":");
        push_u64(out, self.seq.0);
        push_field(out, b",\"domain\":", self.domain);
        if self.duplicate {
            // The space is NATS's own and some clients look for these very bytes.
            out.extend_from_slice(b",\"duplicate\": true");
        }
        push_field(out, b",\"val\":", self.value);
        push_field(out, b",\"batch\":", self.batch);
        if !self.batch.is_empty() {
            out.extend_from_slice(b",\"count\":");
            push_u64(out, self.count);
        }
        out.push(b'}');
    }

    /// Appends the answer to a publish that was refused.
    pub fn encode_rejection(stream: &str, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"error\":");
        push_json(out, error);
        out.extend_from_slice(b",\"stream\":");
        push_string(out, stream);
        out.extend_from_slice(b",\"seq\":0}");
    }
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: &str) {
    if !value.is_empty() {
        out.extend_from_slice(name);
        push_string(out, value);
    }
}

/// Appends a JSON string. Names are nearly always plain, so that is checked first.
fn push_string(out: &mut Vec<u8>, text: &str) {
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    if is_plain {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        push_json(out, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_become_an_intent() {
        let block = b"NATS/1.0\r\nFoo: bar\r\nNats-Msg-Id: m1\r\nNats-Expected-Stream: S\r\nNats-Expected-Last-Sequence: 2\r\n\
            Nats-Expected-Last-Subject-Sequence:0\r\nNats-Expected-Last-Subject-Sequence-Subject: a.*\r\n\
            Nats-Expected-Last-Msg-Id:  m0\r\nNats-Rollup: SUB\r\nNats-TTL: 1h\r\nNats-Required-Api-Level: 99\r\n\r\n";

        let intent = PublishIntent::parse(block).unwrap();

        assert_eq!(
            intent,
            PublishIntent {
                msg_id: Some("m1"),
                expected_stream: Some("S"),
                expected_last_seq: Some(2),
                expected_last_subject_seq: Some(0),
                expected_last_subject: Some("a.*"),
                expected_last_msg_id: Some("m0"),
                rollup: Some(Rollup::Subject),
                ttl: Some(Ttl::After(Nanos::from_secs(3600))),
                rare: None,
            }
        );
    }

    #[test]
    fn a_status_is_not_stored_and_a_required_level_is() {
        let stored =
            |block: &'static str| String::from_utf8(stored_header(block.as_bytes()).into_owned()).unwrap();
        assert_eq!(stored("NATS/1.0 503\r\nA: b\r\n\r\n"), "NATS/1.0\r\nA: b\r\n\r\n");
        let level = "NATS/1.0\r\nNats-Required-Api-Level: 99\r\n\r\n";
        assert_eq!(stored(level), level);
    }

    #[test]
    fn nothing_and_foreign_headers_are_no_intent() {
        for block in
            ["", "NATS/1.0\r\n\r\n", "NATS/1.0\r\nnats-msg-id: x\r\nNats-Msg-Id:\r\nX-Nats-Msg-Id: y\r\n\r\n"]
        {
            assert_eq!(
                PublishIntent::parse(block.as_bytes()).unwrap(),
                PublishIntent::default(),
                "{block:?}"
            );
        }
    }

    #[test]
    fn the_first_of_equal_headers_counts() {
        let block = b"NATS/1.0\r\nNats-Msg-Id: a\r\nNats-Msg-Id: b\r\n\r\n";
        assert_eq!(PublishIntent::parse(block).unwrap().msg_id, Some("a"));
    }

    #[test]
    fn values_that_can_not_be_right_are_kept_for_their_rule() {
        let block = b"NATS/1.0\r\nNats-Expected-Last-Sequence: x\r\nNats-Rollup: bogus\r\nNats-TTL: 1ms\r\nNats-Incr: 1.5\r\n\r\n";

        let intent = PublishIntent::parse(block).unwrap();

        assert_eq!(intent.expected_last_seq, Some(u64::MAX));
        assert_eq!(intent.rollup, Some(Rollup::Invalid("bogus")));
        assert_eq!(intent.ttl, Some(Ttl::Invalid));
        assert_eq!(intent.rare.unwrap().increment, Some("1.5"));
        assert_eq!(Rollup::refused("Bogus").description, "rollup value invalid: \"bogus\"");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_at_once() {
        let error = PublishIntent::parse(b"NATS/1.0\r\nNats-Msg-Id: \xff\r\n\r\n").unwrap_err();
        assert_eq!(error.err_code, 10003);
    }

    #[test]
    fn times_to_live_are_durations_seconds_or_never() {
        let check = |text: &str, ttl| assert_eq!(Ttl::parse(text), ttl, "{text:?}");

        check("5s", Ttl::After(Nanos::from_secs(5)));
        check("1h30m", Ttl::After(Nanos::from_secs(5400)));
        check("1500ms", Ttl::After(Nanos::from_secs(1)));
        check("7", Ttl::After(Nanos::from_secs(7)));
        check("never", Ttl::Never);
        check("99999999999", Ttl::After(Nanos(i64::MAX)));
        check("999ms", Ttl::Invalid);
        check("0", Ttl::Invalid);
        check("0s", Ttl::Invalid);
        check("-5", Ttl::Invalid);
        check("soon", Ttl::Invalid);
        check("99999999999999999999", Ttl::Invalid);
    }

    #[test]
    fn answers_are_the_bytes_of_nats() {
        let check = |ack: PubAck<'_>, expected: &str| {
            let mut out = Vec::new();
            ack.encode(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let plain = PubAck { stream: "G1", seq: Seq(2), ..PubAck::default() };

        check(plain, r#"{"stream":"G1","seq":2}"#);
        check(PubAck { duplicate: true, ..plain }, r#"{"stream":"G1","seq":2,"duplicate": true}"#);
        check(PubAck { domain: "hub", ..plain }, r#"{"stream":"G1","seq":2,"domain":"hub"}"#);
        check(PubAck { value: "-5", ..plain }, r#"{"stream":"G1","seq":2,"val":"-5"}"#);
        check(PubAck { batch: "B1", count: 3, ..plain }, r#"{"stream":"G1","seq":2,"batch":"B1","count":3}"#);
        check(PubAck { stream: "a\"b", ..plain }, r#"{"stream":"a\"b","seq":2}"#);

        let mut out = Vec::new();
        PubAck::encode_rejection("G1", &ApiError::wrong_last_sequence(3), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"G1","seq":0}"#
        );
    }

    proptest! {
        #[test]
        fn answers_are_json_whatever_the_names(stream in ".*", domain in ".*", seq in any::<u64>()) {
            let mut out = Vec::new();
            PubAck { stream: &stream, seq: Seq(seq), domain: &domain, ..PubAck::default() }.encode(&mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            prop_assert_eq!(value["stream"].as_str(), Some(stream.as_str()));
            prop_assert_eq!(value["seq"].as_u64(), Some(seq));
        }

        #[test]
        fn arbitrary_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = PublishIntent::parse(&bytes);
        }
    }
}
