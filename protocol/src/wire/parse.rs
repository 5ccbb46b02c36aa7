//! Hot path: client bytes become ops. Zero copies, zero allocations; a control line is scanned once, a payload
//! never.
//!
//! The caller owns a contiguous buffer, asks for op after op, drops what was consumed and reads more when
//! [`Parser::next`] says `None`. What was already learned about an unfinished op is remembered, so a payload that
//! arrives in a thousand reads costs a thousand comparisons and no second look at its control line.
//!
//! Every decision depends on the bytes only and never on how they were split across reads.

use memchr::memchr;

use super::{ClientOp, PublishOp, Span};

/// What a client may send at most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of a control line after the verb and the blank that follows it, line end excluded.
    pub max_control_line: usize,
    /// Bytes of header and body of one message together. `usize::MAX` for no limit but the protocol's own.
    pub max_payload: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_control_line: 4096, max_payload: 1 << 20 }
    }
}

/// Why a connection has to be closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a verb that clients may send, or a payload that does not end where it should.
    #[error("unknown protocol operation")]
    UnknownOperation,
    /// A message over the limit, found before its payload arrives.
    #[error("a message of {size} bytes is over the limit of {limit}")]
    MaxPayload {
        /// Announced bytes of header and body.
        size: usize,
        /// The limit in force.
        limit: usize,
    },
    /// No line end where one was due.
    #[error("the control line is over the limit of {limit} bytes")]
    MaxControlLine {
        /// The limit in force.
        limit: usize,
    },
    /// Too few or too many arguments, or sizes that are not sizes.
    #[error("{verb} with bad arguments")]
    Arguments {
        /// Whose arguments.
        verb: &'static str,
    },
}

impl ProtocolError {
    /// The text of the `-ERR` that is sent before closing. `None`: NATS closes without a word.
    #[must_use]
    pub fn wire_text(&self) -> Option<&'static str> {
        match self {
            Self::UnknownOperation => Some("Unknown Protocol Operation"),
            Self::MaxPayload { .. } => Some("Maximum Payload Violation"),
            Self::MaxControlLine { .. } => Some("maximum control line exceeded"),
            Self::Arguments { .. } => None,
        }
    }

    /// The reason as the monitoring endpoints and disconnect events name it.
    #[must_use]
    pub fn close_reason(&self) -> &'static str {
        match self {
            Self::UnknownOperation | Self::Arguments { .. } => "Protocol Violation",
            Self::MaxPayload { .. } => "Maximum Message Payload Exceeded",
            Self::MaxControlLine { .. } => "Maximum Control Line Exceeded",
        }
    }
}

/// The incremental parser of one connection.
#[derive(Clone, Debug)]
pub struct Parser {
    limits: Limits,
    unfinished: Unfinished,
}

/// What is known about the op whose bytes have not all arrived. `at` is where it starts in the caller's slice.
#[derive(Clone, Copy, Debug)]
enum Unfinished {
    Nothing,
    /// No line end in `at..scanned`.
    Line {
        at: usize,
        scanned: usize,
    },
    /// The control line is parsed; only the payload is missing.
    Payload {
        at: usize,
        publish: Announced,
    },
}

/// A publish whose control line is parsed.
#[derive(Clone, Copy, Debug)]
struct Announced {
    subject: Span,
    reply: Span,
    payload_at: usize,
    header_len: usize,
    size: usize,
    is_hpub: bool,
}

impl Parser {
    /// A parser at the start of a connection.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, unfinished: Unfinished::Nothing }
    }

    /// Changes the payload limit from the next control line on: limits of accounts and users come with CONNECT.
    pub fn set_max_payload(&mut self, max_payload: usize) {
        self.limits.max_payload = max_payload;
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Parses the op that starts at `at`. Returns it with the offset of the op after it, or `None` if more bytes
    /// are needed; then call again with the same op start (rebased if bytes were dropped) and more bytes behind.
    ///
    /// After an error the connection is to be closed; calling again reports the same error.
    #[inline]
    pub fn next(&mut self, buf: &[u8], at: usize) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        assert!(
            buf.len() <= u32::MAX as usize,
            "read buffers are bounded by max_payload and max_control_line"
        );
        let mut scanned = at;
        match self.unfinished {
            Unfinished::Nothing => {}
            Unfinished::Line { at: start, scanned: until } if start == at => {
                scanned = until.min(buf.len());
                self.unfinished = Unfinished::Nothing;
            }
            Unfinished::Payload { at: start, publish } if start == at => {
                self.unfinished = Unfinished::Nothing;
                return self.payload(buf, at, publish);
            }
            // The caller skipped an op or forgot to rebase. What was remembered is then about other bytes.
            Unfinished::Line { .. } | Unfinished::Payload { .. } => self.unfinished = Unfinished::Nothing,
        }
        if let Some(&[p, u, b, b' ']) = buf.get(at..at + 4)
            && [p | 0x20, u | 0x20, b | 0x20] == *b"pub"
        {
            return self.publish::<false>(buf, at, at + 3, scanned);
        }
        self.dispatch(buf, at, scanned)
    }

    /// Tells that the caller dropped `consumed` bytes from the front of its buffer, all before the current op.
    pub fn rebase(&mut self, consumed: usize) {
        match &mut self.unfinished {
            Unfinished::Nothing => {}
            Unfinished::Line { at, scanned } => {
                debug_assert!(*at >= consumed, "bytes of the current op were dropped");
                *at -= consumed;
                *scanned -= consumed;
            }
            Unfinished::Payload { at, publish } => {
                debug_assert!(*at >= consumed, "bytes of the current op were dropped");
                *at -= consumed;
                publish.subject = publish.subject.rebased(consumed);
                publish.reply = publish.reply.rebased(consumed);
                publish.payload_at -= consumed;
            }
        }
    }

    /// How long the slice has to be before the current op can be complete: what to reserve before reading a
    /// payload. 0 if only a control line is awaited, whose length is not known.
    #[must_use]
    pub fn needed(&self) -> usize {
        match &self.unfinished {
            Unfinished::Payload { publish, .. } => publish.payload_at + publish.size + CRLF.len(),
            Unfinished::Nothing | Unfinished::Line { .. } => 0,
        }
    }

    /// Every op but the usual PUB: by the first byte, then by the whole verb. Garbage is refused at its first
    /// byte, not at the end of its line.
    fn dispatch(
        &mut self,
        buf: &[u8],
        at: usize,
        scanned: usize,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        let Some(&first) = buf.get(at) else { return Ok(None) };
        let second = buf.get(at + 1).map(|byte| byte.to_ascii_lowercase());
        let verb = match (first.to_ascii_lowercase(), second) {
            (b'p', Some(b'u')) => Verb::Pub,
            (b'p', Some(b'i')) => Verb::Ping,
            (b'p', Some(b'o')) => Verb::Pong,
            (b'p', None) => return Ok(None),
            (b'h', _) => Verb::Hpub,
            (b's', _) => Verb::Sub,
            (b'u', _) => Verb::Unsub,
            (b'c', _) => Verb::Connect,
            (b'i', _) => Verb::Info,
            (b'+', _) => Verb::Ok,
            (b'-', _) => Verb::Err,
            _ => return Err(ProtocolError::UnknownOperation),
        };
        let text = verb.text();
        let after_verb = at + text.len();
        let seen = &buf[at..buf.len().min(after_verb)];
        if !seen.eq_ignore_ascii_case(&text.as_bytes()[..seen.len()]) {
            return Err(ProtocolError::UnknownOperation);
        }
        let Some(&separator) = buf.get(after_verb) else { return Ok(None) };
        if verb.needs_blank() && !matches!(separator, b' ' | b'\t') {
            return Err(ProtocolError::UnknownOperation);
        }

        match verb {
            Verb::Pub => self.publish::<false>(buf, at, after_verb, scanned),
            Verb::Hpub => self.publish::<true>(buf, at, after_verb, scanned),
            Verb::Sub => self.subscribe(buf, at, after_verb, scanned),
            Verb::Unsub => self.unsubscribe(buf, at, after_verb, scanned),
            Verb::Connect => {
                let Some((rest, next)) = self.line(buf, at, after_verb, scanned)? else { return Ok(None) };
                Ok(Some((ClientOp::Connect { json: trim_start(buf, rest) }, next)))
            }
            Verb::Ping => self.bare(buf, at, after_verb, scanned, ClientOp::Ping),
            Verb::Pong => self.bare(buf, at, after_verb, scanned, ClientOp::Pong),
            Verb::Info => self.bare(buf, at, after_verb, scanned, ClientOp::Info),
            Verb::Ok => self.bare(buf, at, after_verb, scanned, ClientOp::Ok),
            Verb::Err => self.bare(buf, at, after_verb, scanned, ClientOp::Err),
        }
    }

    /// `PUB <subject> [reply] <size>` or `HPUB <subject> [reply] <header_len> <size>`.
    #[inline]
    fn publish<const HEADERS: bool>(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        let Some((arguments, payload_at)) = self.arguments(buf, at, after_verb, scanned)? else {
            return Ok(None);
        };
        let bad = ProtocolError::Arguments { verb: if HEADERS { "HPUB" } else { "PUB" } };
        let [first, second, third, fourth] = arguments.spans;
        let (reply, header_len, size) = match (HEADERS, arguments.count) {
            (false, 2) => (Span::default(), None, second),
            (false, 3) => (second, None, third),
            (true, 3) => (Span::default(), Some(second), third),
            (true, 4) => (second, Some(third), fourth),
            _ => return Err(bad),
        };
        let size = parse_size(size.of(buf)).ok_or(bad)?;
        let header_len = match header_len {
            Some(header_len) => parse_size(header_len.of(buf)).ok_or(bad)?,
            None => 0,
        };
        if header_len > size {
            return Err(bad);
        }
        if size > self.limits.max_payload {
            return Err(ProtocolError::MaxPayload { size, limit: self.limits.max_payload });
        }
        let publish = Announced { subject: first, reply, payload_at, header_len, size, is_hpub: HEADERS };
        self.payload(buf, at, publish)
    }

    /// Completes a publish if its payload and the CRLF after it are there. A byte that should be CR and is not
    /// is an error as soon as it is seen.
    #[inline]
    fn payload(
        &mut self,
        buf: &[u8],
        at: usize,
        publish: Announced,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        let payload_end = publish.payload_at + publish.size;
        match buf.get(payload_end..) {
            Some([b'\r', b'\n', ..]) => {
                let body_at = publish.payload_at + publish.header_len;
                let op = PublishOp {
                    subject: publish.subject,
                    reply: publish.reply,
                    header: Span::new(publish.payload_at, body_at),
                    payload: Span::new(body_at, payload_end),
                    is_hpub: publish.is_hpub,
                };
                Ok(Some((ClientOp::Publish(op), payload_end + CRLF.len())))
            }
            None | Some([] | [b'\r']) => {
                self.unfinished = Unfinished::Payload { at, publish };
                Ok(None)
            }
            Some(_) => Err(ProtocolError::UnknownOperation),
        }
    }

    /// `SUB <subject> [queue] <sid>`.
    fn subscribe(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        let Some((arguments, next)) = self.arguments(buf, at, after_verb, scanned)? else { return Ok(None) };
        let [subject, second, third, _] = arguments.spans;
        let (queue, sid) = match arguments.count {
            2 => (Span::default(), second),
            3 => (second, third),
            _ => return Err(ProtocolError::Arguments { verb: "SUB" }),
        };
        Ok(Some((ClientOp::Subscribe { subject, queue, sid }, next)))
    }

    /// `UNSUB <sid> [max]`.
    fn unsubscribe(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        let Some((arguments, next)) = self.arguments(buf, at, after_verb, scanned)? else { return Ok(None) };
        let bad = ProtocolError::Arguments { verb: "UNSUB" };
        let [sid, second, ..] = arguments.spans;
        let max = match arguments.count {
            1 => None,
            // What is not a number means no maximum: the subscription ends now, as in nats-server.
            2 => Some(parse_size(second.of(buf)).unwrap_or(0) as u64),
            _ => return Err(bad),
        };
        Ok(Some((ClientOp::Unsubscribe { sid, max }, next)))
    }

    /// An op without arguments. NATS ignores what else is on the line.
    fn bare(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
        op: ClientOp,
    ) -> Result<Option<(ClientOp, usize)>, ProtocolError> {
        if let Some(&[b'\r', b'\n']) = buf.get(after_verb..after_verb + CRLF.len()) {
            return Ok(Some((op, after_verb + CRLF.len())));
        }
        Ok(self.line(buf, at, after_verb, scanned)?.map(|(_, next)| (op, next)))
    }

    /// The rest of a control line, line end excluded, and the offset after the line end.
    fn line(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
    ) -> Result<Option<(Span, usize)>, ProtocolError> {
        let window_end = self.window_end(buf, after_verb);
        let from = scanned.clamp(after_verb, window_end);
        match memchr(b'\n', &buf[from..window_end]) {
            Some(offset) => {
                let line_end = from + offset;
                self.check_length(buf, after_verb, line_end)?;
                let end = if buf[line_end - 1] == b'\r' { line_end - 1 } else { line_end };
                Ok(Some((Span::new(after_verb, end.max(after_verb)), line_end + 1)))
            }
            None => self.no_line_end(at, after_verb, window_end).map(|()| None),
        }
    }

    /// The arguments of a control line and the offset after the line end, in one pass over the line.
    #[inline]
    fn arguments(
        &mut self,
        buf: &[u8],
        at: usize,
        after_verb: usize,
        scanned: usize,
    ) -> Result<Option<(Arguments, usize)>, ProtocolError> {
        let window_end = self.window_end(buf, after_verb);
        let window = &buf[..window_end];
        // A line that dribbles in is split once, when it is whole.
        let dribbles = scanned > after_verb && memchr(b'\n', &window[scanned.min(window_end)..]).is_none();
        let split = if dribbles { None } else { Arguments::split(window, after_verb) };
        let Some((arguments, line_end)) = split else {
            return self.no_line_end(at, after_verb, window_end).map(|()| None);
        };
        self.check_length(buf, after_verb, line_end)?;
        Ok(Some((arguments, line_end + 1)))
    }

    /// How far a line end may be from the verb: one blank, the limit, CR and LF. The scan never goes further.
    #[inline]
    fn window_end(&self, buf: &[u8], after_verb: usize) -> usize {
        self.line_reach(after_verb).min(buf.len())
    }

    #[inline]
    fn line_reach(&self, after_verb: usize) -> usize {
        after_verb.saturating_add(self.limits.max_control_line).saturating_add(1 + CRLF.len())
    }

    /// Waits for more of the line, or gives up on it.
    #[cold]
    fn no_line_end(&mut self, at: usize, after_verb: usize, window_end: usize) -> Result<(), ProtocolError> {
        if window_end >= self.line_reach(after_verb) {
            return Err(ProtocolError::MaxControlLine { limit: self.limits.max_control_line });
        }
        self.unfinished = Unfinished::Line { at, scanned: window_end };
        Ok(())
    }

    /// The window leaves room for a CR; a line that ends with LF alone may not use it.
    #[inline]
    fn check_length(&self, buf: &[u8], after_verb: usize, line_end: usize) -> Result<(), ProtocolError> {
        let end = if buf[line_end - 1] == b'\r' { line_end - 1 } else { line_end };
        if end > after_verb + 1 && end - after_verb - 1 > self.limits.max_control_line {
            return Err(ProtocolError::MaxControlLine { limit: self.limits.max_control_line });
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Connect,
    Pub,
    Hpub,
    Sub,
    Unsub,
    Ping,
    Pong,
    Info,
    Ok,
    Err,
}

impl Verb {
    const fn text(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Pub => "PUB",
            Self::Hpub => "HPUB",
            Self::Sub => "SUB",
            Self::Unsub => "UNSUB",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Info => "INFO",
            Self::Ok => "+OK",
            Self::Err => "-ERR",
        }
    }

    /// nats-server takes `CONNECT{}` and `PINGx`, but `PUBx` is another verb.
    const fn needs_blank(self) -> bool {
        match self {
            Self::Pub | Self::Hpub | Self::Sub | Self::Unsub | Self::Info | Self::Err => true,
            Self::Connect | Self::Ping | Self::Pong | Self::Ok => false,
        }
    }
}

/// The arguments of a control line. More than four are counted and not kept: no op takes them.
#[derive(Clone, Copy)]
struct Arguments {
    spans: [Span; 4],
    count: usize,
}

impl Arguments {
    /// Splits at blanks up to the line end, whose offset is returned too. `None` without a line end.
    #[inline]
    fn split(window: &[u8], from: usize) -> Option<(Self, usize)> {
        let mut arguments = Self { spans: [Span::default(); 4], count: 0 };
        let mut at = from;
        loop {
            match *window.get(at)? {
                b'\n' => return Some((arguments, at)),
                b' ' | b'\t' | b'\r' => at += 1,
                _ => {
                    let end = argument_end(window, at)?;
                    if let Some(span) = arguments.spans.get_mut(arguments.count) {
                        *span = Span::new(at, end);
                    }
                    arguments.count += 1;
                    at = end;
                }
            }
        }
    }
}

/// The first separator or line end at or after `at`, eight bytes at a time while eight are left.
#[inline]
fn argument_end(window: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    while let Some(&eight) = window.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(eight);
        // The lowest flagged byte is the first byte below 0x21; flags above it may be wrong through the borrow.
        let low = word.wrapping_sub(ONES * 0x21) & !word & HIGHS;
        if low == 0 {
            at += 8;
            continue;
        }
        at += low.trailing_zeros() as usize / 8;
        if is_separator(window[at]) {
            return Some(at);
        }
        at += 1;
    }
    let rest = window.get(at..)?;
    rest.iter().position(|&byte| is_separator(byte)).map(|offset| at + offset)
}

#[inline]
fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// One to nine decimal digits, which is what nats-server takes for a size.
#[inline]
fn parse_size(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    let mut size = 0;
    for &byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        size = size * 10 + usize::from(digit);
    }
    Some(size)
}

fn trim_start(buf: &[u8], span: Span) -> Span {
    let blanks = span.of(buf).iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    Span { start: span.start + blanks as u32, end: span.end }
}

const CRLF: &[u8] = b"\r\n";

#[cfg(test)]
mod tests;
