//! Hot path: ack payloads, and the subjects acks are sent to. No allocation beyond the given buffer.
//!
//! A delivered message carries as its reply subject everything the server wants back with the ack:
//!
//! ```text
//! $JS.ACK.<stream>.<consumer>.<attempt>.<stream seq>.<consumer seq>.<timestamp>.<pending>
//! $JS.ACK.<domain or _>.<account hash>.<stream>.<consumer>.<attempt>.<stream seq>.<consumer seq>.<timestamp>.<pending>[.more]
//! ```
//!
//! The first form has 9 tokens and is the one that is sent; the second has 11 or more and is understood too.

use serde::Deserialize;

use crate::api::decimal::{parse_i64, parse_u64, push_i64, push_u64};
use crate::api::duration_text::parse_duration;
use crate::ids::Seq;
use crate::time::{Nanos, Timestamp};

/// What the body of an ack asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AckKind<'a> {
    /// Done.
    Ack,
    /// Deliver again, not before this much time has passed; zero is at once.
    Nak(Nanos),
    /// Still working on it.
    InProgress,
    /// Done, and send more to the reply subject; the rest is the body of a pull request.
    Next(&'a [u8]),
    /// Never deliver again; the rest is a reason, perhaps empty.
    Terminate(&'a [u8]),
    /// Not a known body: nothing happens, but it is confirmed.
    Unknown,
}

impl<'a> AckKind<'a> {
    /// Reads the body of an ack.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Self {
        match payload {
            b"" | b"+ACK" | b"+OK" => Self::Ack,
            b"+WPI" => Self::InProgress,
            [b'-', b'N', b'A', b'K', rest @ ..] => Self::Nak(nak_delay(rest.trim_ascii())),
            [b'+', b'N', b'X', b'T', rest @ ..] => Self::Next(rest.trim_ascii()),
            [b'+', b'T', b'E', b'R', b'M', rest @ ..] => Self::Terminate(rest.trim_ascii()),
            _ => Self::Unknown,
        }
    }
}

/// The delay of a nak: `{"delay": <ns>}` or a duration; anything else is no delay.
fn nak_delay(argument: &[u8]) -> Nanos {
    #[derive(Deserialize)]
    struct Options {
        delay: Nanos,
    }
    if argument.is_empty() {
        return Nanos::ZERO;
    }
    let delay = if argument.starts_with(b"{") {
        serde_json::from_slice::<Options>(argument).ok().map(|options| options.delay)
    } else {
        std::str::from_utf8(argument).ok().and_then(parse_duration)
    };
    delay.filter(|delay| delay.0 > 0).unwrap_or(Nanos::ZERO)
}

/// What an ack subject says of the delivery it belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AckReply<'a> {
    /// Name of the stream.
    pub stream: &'a str,
    /// Name of the consumer.
    pub consumer: &'a str,
    /// Which delivery of the message this was; 1 is the first.
    pub attempt: u64,
    /// Sequence of the message.
    pub stream_seq: Seq,
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// Time of the message.
    pub timestamp: Timestamp,
    /// Matching messages after this one.
    pub pending: u64,
}

impl<'a> AckReply<'a> {
    /// What ack subjects begin with.
    pub const PREFIX: &'static str = "$JS.ACK.";

    /// Reads either form. `None` when it is not an ack subject.
    #[must_use]
    pub fn parse(subject: &'a [u8]) -> Option<Self> {
        let rest = subject.strip_prefix(Self::PREFIX.as_bytes())?;
        let mut tokens = [&b""[..]; 9];
        let mut count = 0;
        for token in rest.split(|byte| *byte == b'.') {
            if let Some(slot) = tokens.get_mut(count) {
                *slot = token;
            }
            count += 1;
        }
        let fields: &[&[u8]; 7] = match count {
            7 => tokens.first_chunk()?,
            9.. => tokens.last_chunk()?,
            _ => return None,
        };
        let [stream, consumer, attempt, stream_seq, consumer_seq, timestamp, pending] = *fields;
        if stream.is_empty() || consumer.is_empty() {
            return None;
        }
        Some(Self {
            stream: std::str::from_utf8(stream).ok()?,
            consumer: std::str::from_utf8(consumer).ok()?,
            attempt: parse_u64(attempt)?,
            stream_seq: Seq(parse_u64(stream_seq)?),
            consumer_seq: parse_u64(consumer_seq)?,
            timestamp: Timestamp(parse_i64(timestamp)?),
            pending: parse_u64(pending)?,
        })
    }

    /// Appends the subject in the form that is sent.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(Self::PREFIX.as_bytes());
        self.push_fields(out);
    }

    /// Appends the subject in the form with domain and account. An empty domain is written as `_`.
    pub fn encode_with_domain(&self, domain: &str, account_hash: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(Self::PREFIX.as_bytes());
        out.extend_from_slice(if domain.is_empty() { b"_" } else { domain.as_bytes() });
        out.push(b'.');
        out.extend_from_slice(account_hash.as_bytes());
        out.push(b'.');
        self.push_fields(out);
    }

    fn push_fields(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.stream.as_bytes());
        out.push(b'.');
        out.extend_from_slice(self.consumer.as_bytes());
        for number in [self.attempt, self.stream_seq.0, self.consumer_seq] {
            out.push(b'.');
            push_u64(out, number);
        }
        out.push(b'.');
        push_i64(out, self.timestamp.0);
        out.push(b'.');
        push_u64(out, self.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bodies_are_read_as_nats_reads_them() {
        let check = |body: &'static str, kind| assert_eq!(AckKind::parse(body.as_bytes()), kind, "{body:?}");

        check("", AckKind::Ack);
        check("+ACK", AckKind::Ack);
        check("+OK", AckKind::Ack);
        check("+WPI", AckKind::InProgress);
        check("-NAK", AckKind::Nak(Nanos::ZERO));
        check(r#"-NAK {"delay":200000000}"#, AckKind::Nak(Nanos::from_millis(200)));
        check("-NAK 1.5s", AckKind::Nak(Nanos::from_millis(1500)));
        check("-NAK soon", AckKind::Nak(Nanos::ZERO));
        check("-NAK -3s", AckKind::Nak(Nanos::ZERO));
        check(r#"-NAK {"delay":"x"}"#, AckKind::Nak(Nanos::ZERO));
        check("+NXT", AckKind::Next(b""));
        check("+NXT 5", AckKind::Next(b"5"));
        check("+TERM", AckKind::Terminate(b""));
        check("+TERM bad news", AckKind::Terminate(b"bad news"));
        check("+ACKED", AckKind::Unknown);
        check("+WPI?", AckKind::Unknown);
        check("hello", AckKind::Unknown);
    }

    fn example() -> AckReply<'static> {
        AckReply {
            stream: "C1",
            consumer: "p1",
            attempt: 1,
            stream_seq: Seq(2),
            consumer_seq: 3,
            timestamp: Timestamp(1_795_253_088_957_848_754),
            pending: 4,
        }
    }

    #[test]
    fn both_forms_of_the_subject_are_understood() {
        let mut short = Vec::new();
        example().encode(&mut short);
        assert_eq!(short, b"$JS.ACK.C1.p1.1.2.3.1795253088957848754.4");
        assert_eq!(AckReply::parse(&short), Some(example()));

        let mut long = Vec::new();
        example().encode_with_domain("", "Ab3", &mut long);
        assert_eq!(long, b"$JS.ACK._.Ab3.C1.p1.1.2.3.1795253088957848754.4");
        assert_eq!(AckReply::parse(&long), Some(example()));
        long.extend_from_slice(b".random.more");
        assert_eq!(AckReply::parse(&long), Some(example()));
    }

    #[test]
    fn other_subjects_are_not_acks() {
        for subject in [
            "$JS.ACK.",
            "$JS.ACK.S.C.1.2.3.4",
            "$JS.ACK.a.S.C.1.2.3.4.5",
            "$JS.ACK.S.C.x.2.3.4.5",
            "$JS.ACK..C.1.2.3.4.5",
            "$JS.FC.S.C.1.2.3.4.5",
            "orders",
        ] {
            assert_eq!(AckReply::parse(subject.as_bytes()), None, "{subject}");
        }
    }

    proptest! {
        #[test]
        fn a_subject_says_what_was_written_into_it(
            names in ("[a-zA-Z0-9_-]{1,9}", "[a-zA-Z0-9_-]{1,9}"),
            numbers in any::<(u64, u64, u64, i64, u64)>(),
        ) {
            let reply = AckReply {
                stream: &names.0,
                consumer: &names.1,
                attempt: numbers.0,
                stream_seq: Seq(numbers.1),
                consumer_seq: numbers.2,
                timestamp: Timestamp(numbers.3),
                pending: numbers.4,
            };
            let mut subject = Vec::new();
            reply.encode(&mut subject);
            prop_assert_eq!(AckReply::parse(&subject), Some(reply));

            subject.clear();
            reply.encode_with_domain("hub", "hash", &mut subject);
            prop_assert_eq!(AckReply::parse(&subject), Some(reply));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = AckKind::parse(&bytes);
            let mut subject = AckReply::PREFIX.as_bytes().to_vec();
            subject.extend_from_slice(&bytes);
            let _ = AckReply::parse(&subject);
        }
    }
}
