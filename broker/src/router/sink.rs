//! How the stream side plugs into the message path: who takes a client's publish besides subscribers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use levee_protocol::ids::AccountName;
use levee_protocol::wire::Span;

use crate::router::MessageRef;

/// What the node offers to publishers: streams that capture subjects, the JetStream API, acks.
pub trait Services: Send + Sync + 'static {
    /// Who takes a publish on this subject. Asked once per subject and connection as long as [`Self::generation`]
    /// stays; for subjects that are rarely the same twice, for each message.
    fn resolve(&self, account: &AccountName, subject: &[u8]) -> Resolved;

    /// Moves when an answer of [`Self::resolve`] may have changed.
    fn generation(&self) -> u64;
}

/// Who takes a publish.
#[derive(Clone, Default)]
pub struct Resolved {
    /// They all get it.
    pub sinks: Vec<Arc<dyn Sink>>,
    /// Whether somebody will answer, as far as "no responders" goes. A stream without a leader will not.
    pub responders: bool,
}

/// Somebody who takes publishes in batches.
pub trait Sink: Send + Sync {
    /// Sinks with the same id are the same: what one read chunk holds for them is one batch.
    fn id(&self) -> u64;

    /// Takes everything one read chunk held for this sink, in order. If it is full now, it returns a future, and
    /// the session does not read its socket before that completes. Called from the session's task; it must not
    /// block.
    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>>;
}

/// Messages that share the buffer they were read into.
#[derive(Clone, Debug, Default)]
pub struct Inbound {
    /// The buffer.
    pub chunk: Bytes,
    /// Where in it the messages are.
    pub items: Vec<InboundItem>,
}

/// Where the parts of one message are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct InboundItem {
    /// The subject it was published on.
    pub subject: Span,
    /// Where answers go; empty if none are wanted.
    pub reply: Span,
    /// The header block; empty if there is none.
    pub header: Span,
    /// The body.
    pub payload: Span,
}

impl Inbound {
    /// A batch of one message, copied.
    #[must_use]
    pub fn one(message: MessageRef<'_>) -> Self {
        let MessageRef { subject, reply, header, payload } = message;
        let mut chunk = Vec::with_capacity(subject.len() + reply.len() + header.len() + payload.len());
        let mut put = |part: &[u8]| {
            let start = chunk.len() as u32;
            chunk.extend_from_slice(part);
            Span { start, end: chunk.len() as u32 }
        };
        let item = InboundItem {
            subject: put(subject),
            reply: put(reply),
            header: put(header),
            payload: put(payload),
        };
        Self { chunk: chunk.into(), items: vec![item] }
    }

    /// The subject of an item of this batch.
    #[must_use]
    pub fn subject(&self, item: &InboundItem) -> &[u8] {
        item.subject.of(&self.chunk)
    }

    /// The reply subject of an item of this batch.
    #[must_use]
    pub fn reply(&self, item: &InboundItem) -> &[u8] {
        item.reply.of(&self.chunk)
    }

    /// The header block of an item of this batch.
    #[must_use]
    pub fn header(&self, item: &InboundItem) -> &[u8] {
        item.header.of(&self.chunk)
    }

    /// The body of an item of this batch.
    #[must_use]
    pub fn payload(&self, item: &InboundItem) -> &[u8] {
        item.payload.of(&self.chunk)
    }

    /// The same messages in a buffer of their own, if the shared one is mostly about other things: whoever keeps
    /// the batch for a while should not keep the whole read buffer for a few bytes of it.
    #[must_use]
    pub(crate) fn compacted(self) -> Self {
        let parts = |item: &InboundItem| [item.subject, item.reply, item.header, item.payload];
        let used: usize = self.items.iter().flat_map(parts).map(Span::len).sum();
        if used > self.chunk.len() / 4 || self.chunk.len() <= COMPACT_MIN {
            return self;
        }
        let mut chunk = Vec::with_capacity(used);
        let mut take = |span: Span| {
            let start = chunk.len() as u32;
            chunk.extend_from_slice(span.of(&self.chunk));
            Span { start, end: chunk.len() as u32 }
        };
        let items = self
            .items
            .iter()
            .map(|item| InboundItem {
                subject: take(item.subject),
                reply: take(item.reply),
                header: take(item.header),
                payload: take(item.payload),
            })
            .collect();
        Self { chunk: chunk.into(), items }
    }
}

/// Below this, a shared read buffer is not worth a copy.
const COMPACT_MIN: usize = 16 << 10;

/// Who publishes: enough for audit advisories and monitoring.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// Whose subjects.
    pub account: AccountName,
    /// The connection's number; 0 for the node itself.
    pub cid: u64,
    /// Where it connects from; `None` for the node itself and for peers.
    pub remote: Option<SocketAddr>,
    /// The user it authenticated as.
    pub user: String,
    /// The application's name for the connection.
    pub name: String,
    /// The client library's language.
    pub lang: String,
    /// The client library's version.
    pub version: String,
}

impl ClientInfo {
    /// A client that did not introduce itself yet.
    #[must_use]
    pub fn unnamed(cid: u64, remote: SocketAddr) -> Self {
        Self { cid, remote: Some(remote), ..Self::node(AccountName::global()) }
    }

    /// The node itself, speaking in an account.
    #[must_use]
    pub fn node(account: AccountName) -> Self {
        Self {
            account,
            cid: 0,
            remote: None,
            user: String::new(),
            name: String::new(),
            lang: String::new(),
            version: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_batch_does_not_keep_a_large_buffer() {
        let mut text = vec![b'-'; 100_000];
        text[50_000..50_007].copy_from_slice(b"foo pay");
        let span = |start, end| Span { start, end };
        let item = InboundItem {
            subject: span(50_000, 50_003),
            payload: span(50_004, 50_007),
            ..InboundItem::default()
        };
        let batch = Inbound { chunk: text.into(), items: vec![item] };

        let compact = batch.compacted();

        assert_eq!(compact.chunk.len(), 6);
        assert_eq!(compact.subject(&compact.items[0]), b"foo");
        assert_eq!(compact.payload(&compact.items[0]), b"pay");
        assert_eq!(compact.reply(&compact.items[0]), b"");
    }
}
