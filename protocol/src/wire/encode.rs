//! Hot path: what the server sends, appended to an output buffer. One copy per byte, no formatting machinery, no
//! allocation but the growth of the buffer.
//!
//! A session that writes payloads from shared memory encodes only the [`message_head`] and puts header, payload
//! and [`CRLF`] behind it itself; [`message`] does all of it for small messages.

use bytes::BufMut;

use super::info::ServerInfo;

/// Ends lines and payloads.
pub const CRLF: &[u8] = b"\r\n";
/// Asks a client whether it is alive.
pub const PING: &[u8] = b"PING\r\n";
/// Answers a client's PING.
pub const PONG: &[u8] = b"PONG\r\n";
/// Confirms an op to a verbose client.
pub const OK: &[u8] = b"+OK\r\n";

/// A message on its way to one subscription.
#[derive(Clone, Copy, Debug, Default)]
pub struct Message<'a> {
    /// The subject it was published on.
    pub subject: &'a [u8],
    /// The client's name for the subscription.
    pub sid: &'a [u8],
    /// Where answers go; empty if none are wanted.
    pub reply: &'a [u8],
    /// The header block; leave it empty for a client that did not announce header support.
    pub header: &'a [u8],
    /// The body.
    pub payload: &'a [u8],
}

/// Appends a whole message: HMSG if it has a header block, MSG otherwise.
#[inline]
pub fn message(out: &mut impl BufMut, message: &Message<'_>) {
    message_head(out, message);
    out.put_slice(message.header);
    out.put_slice(message.payload);
    out.put_slice(CRLF);
}

/// Appends only the control line of a message. Header block, payload and CRLF have to follow.
#[inline]
pub fn message_head(out: &mut impl BufMut, message: &Message<'_>) {
    out.put_slice(if message.header.is_empty() { b"MSG ".as_slice() } else { b"HMSG ".as_slice() });
    out.put_slice(message.subject);
    out.put_u8(b' ');
    out.put_slice(message.sid);
    out.put_u8(b' ');
    if !message.reply.is_empty() {
        out.put_slice(message.reply);
        out.put_u8(b' ');
    }
    if !message.header.is_empty() {
        decimal(out, message.header.len() as u64);
        out.put_u8(b' ');
    }
    decimal(out, (message.header.len() + message.payload.len()) as u64);
    out.put_slice(CRLF);
}

/// The most bytes that [`message`] appends for a message: what to reserve for it.
#[must_use]
pub fn message_len_max(message: &Message<'_>) -> usize {
    // Verb, blanks, two numbers and three line ends fit 64 bytes.
    let texts = message.subject.len() + message.sid.len() + message.reply.len();
    texts + message.header.len() + message.payload.len() + 64
}

/// Appends the answer to a request that nobody received: a bare 503 on the requestor's own subscription.
pub fn no_responders(out: &mut impl BufMut, reply: &[u8], sid: &[u8], subject: &[u8]) {
    let parts: [&[u8]; 3] = [b"NATS/1.0 503\r\nNats-Subject: ", subject, b"\r\n\r\n"];
    let header_len = parts.iter().map(|part| part.len() as u64).sum();
    out.put_slice(b"HMSG ");
    out.put_slice(reply);
    out.put_u8(b' ');
    out.put_slice(sid);
    out.put_u8(b' ');
    decimal(out, header_len);
    out.put_u8(b' ');
    decimal(out, header_len);
    out.put_slice(CRLF);
    for part in parts {
        out.put_slice(part);
    }
    out.put_slice(CRLF);
}

/// Appends `-ERR '<text>'`. The texts are fixed by the protocol; clients match on them.
pub fn err(out: &mut impl BufMut, text: &str) {
    out.put_slice(b"-ERR '");
    out.put_slice(text.as_bytes());
    out.put_slice(b"'\r\n");
}

/// Appends an INFO line, with the blank before the line end that nats-server writes too.
pub fn info(out: &mut impl BufMut, info: &ServerInfo) {
    out.put_slice(b"INFO ");
    serde_json::to_writer(out.writer(), info).expect("INFO has string keys and buffers take every byte");
    out.put_slice(b" \r\n");
}

/// Appends a number in decimal.
#[inline]
pub fn decimal(out: &mut impl BufMut, mut number: u64) {
    const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
        2021222324252627282930313233343536373839\
        4041424344454647484950515253545556575859\
        6061626364656667686970717273747576777879\
        8081828384858687888990919293949596979899";
    let mut digits = [0; 20];
    let mut at = digits.len();
    while number >= 100 {
        let pair = (number % 100) as usize * 2;
        number /= 100;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    if number >= 10 {
        let pair = number as usize * 2;
        at -= 2;
        digits[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    } else {
        at -= 1;
        digits[at] = b'0' + number as u8;
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(encode: impl FnOnce(&mut Vec<u8>), expected: &str) {
        let mut out = Vec::new();
        encode(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_message_without_header_block_is_a_msg() {
        let bare = Message { subject: b"foo.bar", sid: b"9", payload: b"hi", ..Message::default() };

        check(|out| message(out, &bare), "MSG foo.bar 9 2\r\nhi\r\n");
        check(|out| message(out, &Message { reply: b"r", ..bare }), "MSG foo.bar 9 r 2\r\nhi\r\n");
        check(|out| message_head(out, &bare), "MSG foo.bar 9 2\r\n");
    }

    #[test]
    fn a_message_with_header_block_is_an_hmsg_with_both_lengths() {
        let header = b"NATS/1.0\r\nBar: Baz\r\n\r\n";
        let with = Message { subject: b"h", sid: b"1", header, payload: b"hi", ..Message::default() };

        check(|out| message(out, &with), "HMSG h 1 22 24\r\nNATS/1.0\r\nBar: Baz\r\n\r\nhi\r\n");
        check(|out| message_head(out, &Message { reply: b"r", ..with }), "HMSG h 1 r 22 24\r\n");
    }

    #[test]
    fn a_request_without_responders_is_answered_as_recorded() {
        check(
            |out| no_responders(out, b"r", b"5", b"none"),
            "HMSG r 5 36 36\r\nNATS/1.0 503\r\nNats-Subject: none\r\n\r\n\r\n",
        );
    }

    #[test]
    fn errors_are_quoted() {
        check(|out| err(out, "Stale Connection"), "-ERR 'Stale Connection'\r\n");
    }

    #[test]
    fn info_is_one_line_of_json() {
        let mut out = Vec::new();

        info(&mut out, &ServerInfo::default());

        let text = String::from_utf8(out).unwrap();
        let json = text.strip_prefix("INFO ").and_then(|rest| rest.strip_suffix(" \r\n")).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(json).unwrap().is_object());
        assert!(!json.contains('\n'));
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_the_standard_library_writes_them(number in any::<u64>(), shift in 0..64) {
            let number = number >> shift;
            let mut out = Vec::new();
            decimal(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
        }

        #[test]
        fn a_message_is_never_longer_than_what_was_reserved_for_it(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 5),
        ) {
            let whole = Message {
                subject: &texts[0], sid: &texts[1], reply: &texts[2], header: &texts[3], payload: &texts[4],
            };
            let mut out = Vec::new();
            message(&mut out, &whole);
            prop_assert!(out.len() <= message_len_max(&whole));
        }
    }
}
