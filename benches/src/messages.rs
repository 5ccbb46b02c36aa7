//! What is published: protocol text of message after message, with payloads that do not compress.

use std::io::Write as _;
use std::sync::OnceLock;

/// Random bytes that payloads are cut from. Larger than any compressor in use looks back.
const POOL_BYTES: usize = 4 << 20;

/// Where messages go.
#[derive(Clone, Copy, Debug)]
pub enum Subjects {
    /// `bench`.
    One,
    /// `bench.probe`.
    Probe,
    /// `stream.<n>`, the same for every message.
    Stream(u64),
    /// `bench.0`, `bench.1` and so on, in turns.
    InTurns(u64),
    /// The same subjects in a random order that is the same each time.
    AtRandom(u64),
    /// `bench.<n % groups>.<n>`, each once: for filters that match a part.
    Grouped(u64),
    /// Keys of a bucket, in turns.
    Keys(u64),
    /// Keys of a bucket in a random order that each writer has of its own.
    KeysAtRandom {
        /// Keys there are.
        keys: u64,
        /// Who writes.
        writer: u64,
    },
}

/// What messages carry in their header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Header {
    /// Nothing; they have no header.
    None,
    /// A `Nats-Msg-Id` of its own.
    MsgId,
    /// `Nats-Incr: 1`, for a counter.
    Increment,
    /// `Nats-TTL`, so many seconds.
    Ttl(u64),
}

/// What a publisher sends.
#[derive(Clone, Debug)]
pub struct Messages {
    /// Where to.
    pub subjects: Subjects,
    /// Where acknowledgements go; empty for none.
    pub reply: String,
    /// Body bytes, at least 8 if there are stamps.
    pub payload_bytes: usize,
    /// What each carries.
    pub header: Header,
}

impl Messages {
    /// Plain messages on one subject.
    #[must_use]
    pub fn plain(payload_bytes: usize, reply: &str) -> Self {
        Self { subjects: Subjects::One, reply: reply.to_owned(), payload_bytes, header: Header::None }
    }

    /// Appends message `n`. The body begins with `stamp` if there is one.
    pub fn append(&self, buffer: &mut Vec<u8>, n: u64, stamp: Option<u64>) {
        let header = self.header.text(n);
        buffer.extend_from_slice(if header.is_empty() { b"PUB " } else { b"HPUB " });
        self.append_subject(buffer, n);
        buffer.push(b' ');
        buffer.extend_from_slice(self.reply.as_bytes());
        let sizes = if header.is_empty() {
            write!(buffer, " {}\r\n", self.payload_bytes)
        } else {
            write!(buffer, " {} {}\r\n{header}", header.len(), header.len() + self.payload_bytes)
        };
        sizes.expect("a vector takes everything");
        let body = buffer.len();
        buffer.extend_from_slice(payload(n, self.payload_bytes));
        if let Some(stamp) = stamp {
            buffer[body..body + 8].copy_from_slice(&stamp.to_le_bytes());
        }
        buffer.extend_from_slice(b"\r\n");
    }

    fn append_subject(&self, buffer: &mut Vec<u8>, n: u64) {
        match self.subjects {
            Subjects::One => write!(buffer, "bench"),
            Subjects::Probe => write!(buffer, "bench.probe"),
            Subjects::Stream(stream) => write!(buffer, "stream.{stream}"),
            Subjects::InTurns(count) => write!(buffer, "bench.{}", n % count),
            Subjects::AtRandom(count) => write!(buffer, "bench.{}", mix(n) % count),
            Subjects::Grouped(groups) => write!(buffer, "bench.{}.{n}", n % groups),
            Subjects::Keys(keys) => write!(buffer, "$KV.bench.{}", n % keys),
            Subjects::KeysAtRandom { keys, writer } => {
                write!(buffer, "$KV.bench.{}", mix(writer << 32 | n) % keys)
            }
        }
        .expect("a vector takes everything");
    }
}

impl Header {
    /// The header block of message `n`, or nothing.
    fn text(self, n: u64) -> String {
        match self {
            Self::None => String::new(),
            Self::MsgId => format!("NATS/1.0\r\nNats-Msg-Id: {n}\r\n\r\n"),
            Self::Increment => "NATS/1.0\r\nNats-Incr: 1\r\n\r\n".to_owned(),
            Self::Ttl(seconds) => format!("NATS/1.0\r\nNats-TTL: {seconds}\r\n\r\n"),
        }
    }
}

/// The stamp at the front of a body.
#[must_use]
pub fn stamp(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(payload.get(..8)?.try_into().ok()?))
}

/// A number that looks random and depends on nothing but its argument.
#[must_use]
pub fn mix(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The body of message `n`.
#[must_use]
pub fn payload(n: u64, bytes: usize) -> &'static [u8] {
    static POOL: OnceLock<Vec<u8>> = OnceLock::new();
    let pool =
        POOL.get_or_init(|| (0..POOL_BYTES as u64 / 8).flat_map(|word| mix(word).to_le_bytes()).collect());
    let at = (n as usize).wrapping_mul(bytes) % (POOL_BYTES - bytes);
    &pool[at..at + bytes]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(messages: &Messages, n: u64, stamp: Option<u64>) -> Vec<u8> {
        let mut buffer = Vec::new();
        messages.append(&mut buffer, n, stamp);
        buffer
    }

    #[test]
    fn a_message_is_a_pub_with_its_stamp_in_front() {
        let messages = Messages::plain(16, "");

        let text = text(&messages, 3, Some(42));

        let head = b"PUB bench  16\r\n";
        assert!(text.starts_with(head));
        assert_eq!(stamp(&text[head.len()..]), Some(42));
        assert_eq!(text.len(), head.len() + 16 + 2);
    }

    #[test]
    fn ids_are_in_a_header_whose_length_is_right() {
        let messages = Messages { header: Header::MsgId, ..Messages::plain(8, "r") };

        let text = text(&messages, 7, None);

        let header = "NATS/1.0\r\nNats-Msg-Id: 7\r\n\r\n";
        let expected = format!("HPUB bench r {} {}\r\n{header}", header.len(), header.len() + 8);
        assert!(text.starts_with(expected.as_bytes()));
    }

    #[test]
    fn an_increment_has_no_body() {
        let messages = Messages { header: Header::Increment, ..Messages::plain(0, "r") };

        let header = "NATS/1.0\r\nNats-Incr: 1\r\n\r\n";
        let length = header.len();
        assert_eq!(
            text(&messages, 7, None),
            format!("HPUB bench r {length} {length}\r\n{header}\r\n").as_bytes()
        );
    }

    #[test]
    fn consecutive_payloads_differ() {
        assert_ne!(payload(1, 128), payload(2, 128));
        assert_eq!(payload(5, 16384).len(), 16384);
    }
}
