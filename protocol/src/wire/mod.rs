//! The NATS text protocol, as bytes: what clients send ([`parse`]), what they are sent ([`encode`]), the JSON of
//! INFO and CONNECT ([`info`]), and header blocks ([`headers`]).
//!
//! A session owns the read buffer. The parser tells it, op by op, where things lie in that buffer; nothing is
//! copied and nothing is allocated. Who may do what, and what an op means, is the session's business.

pub mod encode;
pub mod headers;
pub mod info;
pub mod parse;
mod quoted;

use std::ops::Range;

pub use headers::{HeaderBlock, HeaderBuilder};
pub use info::{ConnectOptions, ServerInfo};
pub use parse::{Limits, Parser, ProtocolError};
pub use quoted::quoted;

/// A stretch of the slice that was parsed. Half the size of a `Range<usize>`, and `Copy`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
}

impl Span {
    /// The span from `start` up to `end`. Buffers are far smaller than 4 GiB, which the parser asserts.
    #[must_use]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// How many bytes it covers.
    #[must_use]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it covers nothing, which is how an absent reply, queue or header is told.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The same as a range, for `Bytes::slice`.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The bytes it covers in the slice that was parsed.
    #[must_use]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        &buf[self.range()]
    }

    /// The same bytes after `consumed` bytes were dropped from the front of the buffer. An empty span has no place
    /// and stays empty.
    #[must_use]
    pub fn rebased(self, consumed: usize) -> Self {
        if self.is_empty() {
            return Self::default();
        }
        let consumed = consumed as u32;
        debug_assert!(self.start >= consumed, "the bytes of this span were dropped");
        Self { start: self.start - consumed, end: self.end - consumed }
    }
}

/// One operation of a client. Spans count from the start of the slice given to [`Parser::next`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientOp {
    /// `CONNECT {json}`: who the client is and what it can do.
    Connect {
        /// The document, for [`ConnectOptions::parse`].
        json: Span,
    },
    /// `PING`: to be answered after everything before it took effect.
    Ping,
    /// `PONG`: the client is alive.
    Pong,
    /// `INFO` from a client means nothing and is ignored.
    Info,
    /// `+OK` from a client means nothing and is ignored.
    Ok,
    /// `-ERR` from a client: it gives up, and the connection is closed without an answer.
    Err,
    /// `PUB` or `HPUB`, payload included.
    Publish(PublishOp),
    /// `SUB`.
    Subscribe {
        /// What is subscribed to; not validated here, because an invalid subject keeps the connection open.
        subject: Span,
        /// The queue group; empty for a plain subscription.
        queue: Span,
        /// The client's name for the subscription.
        sid: Span,
    },
    /// `UNSUB`.
    Unsubscribe {
        /// Which subscription.
        sid: Span,
        /// Remove it after that many deliveries since its creation, instead of now.
        max: Option<u64>,
    },
}

/// A message that a client publishes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublishOp {
    /// Where to. Not validated: the protocol tolerates wildcards and empty tokens here.
    pub subject: Span,
    /// Where answers go; empty if no answer is wanted.
    pub reply: Span,
    /// The header block; empty if there is none.
    pub header: Span,
    /// The body, without the header block and without the CRLF that follows.
    pub payload: Span,
    /// Whether it came as `HPUB`, which a client without header support must not use.
    pub is_hpub: bool,
}
