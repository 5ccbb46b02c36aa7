//! What a part of this node subscribes to itself: a session without a socket, whose messages are taken here instead of
//! being written. To the router, its peers and consumers it is a client like any other.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use levee_protocol::ids::AccountName;
use levee_protocol::time::Timestamp;

use crate::router::{Router, Subscription};
use crate::session::SessionHandle;
use crate::session::outbound::Outbound;

/// Numbers of sessions without a socket, far from those of connections.
static NEXT: AtomicU64 = AtomicU64::new(1 << 62);

/// The name of the one subscription.
const SID: &[u8] = b"1";

/// One subscription and what came for it. It ends when it is dropped.
pub(crate) struct Inbox {
    router: Arc<Router>,
    subscription: Arc<Subscription>,
    outbound: Arc<Outbound>,
    ready: VecDeque<Received>,
}

/// A message that came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Received {
    pub(crate) subject: Bytes,
    pub(crate) reply: Bytes,
    pub(crate) header: Bytes,
    pub(crate) payload: Bytes,
}

impl Inbox {
    /// Subscribes. More than `max_pending` bytes that nobody takes end it.
    pub(crate) fn subscribe(
        router: &Arc<Router>,
        account: &AccountName,
        subject: &[u8],
        max_pending: usize,
    ) -> Self {
        let outbound = Arc::new(Outbound::without_socket(max_pending));
        let cid = NEXT.fetch_add(1, Ordering::Relaxed);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let owner = SessionHandle::new(cid, Arc::clone(&outbound), nowhere, Timestamp::ZERO);
        owner.headers.store(true, Ordering::Relaxed);
        let subscription = Subscription::new(&router.account(account), subject, b"", SID, owner, None);
        router.subscribe(&subscription);
        Self { router: Arc::clone(router), subscription, outbound, ready: VecDeque::new() }
    }

    /// The next message, if one has come.
    pub(crate) fn next(&mut self) -> Option<Received> {
        if self.ready.is_empty() {
            for buffer in self.outbound.taken() {
                split(&Bytes::from(buffer), &mut self.ready);
            }
        }
        self.ready.pop_front()
    }

    /// Returns when something may have come. Cancel safe.
    pub(crate) async fn arrival(&self) {
        self.outbound.handed_over().await;
    }

    /// More came than was taken: what follows is lost.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.outbound.ended().is_some()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.router.unsubscribe(&self.subscription);
    }
}

/// Reads messages as this node's router writes them. Whatever else there may be ends it.
fn split(buffer: &Bytes, out: &mut VecDeque<Received>) {
    let mut at = 0;
    while let Some((received, end)) = read(buffer, at) {
        out.push_back(received);
        at = end;
    }
}

/// `MSG <subject> <sid> [reply ]<bytes>` or `HMSG <subject> <sid> [reply ]<header bytes> <bytes>`, and what it announces.
/// Also where it ends.
fn read(buffer: &Bytes, at: usize) -> Option<(Received, usize)> {
    let rest = buffer.get(at..)?;
    let line = rest.get(..rest.iter().position(|byte| *byte == b'\r')?)?;
    let mut tokens: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let number = |token: Option<&[u8]>| std::str::from_utf8(token?).ok()?.parse::<usize>().ok();
    let has_header = tokens.first() == Some(&&b"HMSG"[..]);
    let bytes = number(tokens.pop())?;
    let header_bytes = if has_header { number(tokens.pop())? } else { 0 };
    let subject = *tokens.get(1)?;
    let reply = tokens.get(3).copied().unwrap_or_default();
    let body = at + line.len() + 2;
    let end = body.checked_add(bytes)?;
    if header_bytes > bytes || end + 2 > buffer.len() {
        return None;
    }
    let span = |start: usize, end: usize| buffer.slice(start..end);
    let received = Received {
        subject: buffer.slice_ref(subject),
        reply: buffer.slice_ref(reply),
        header: span(body, body + header_bytes),
        payload: span(body + header_bytes, end),
    };
    Some((received, end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::MessageRef;

    fn text(received: Option<Received>) -> String {
        let Some(Received { subject, reply, header, payload }) = received else {
            return "nothing".to_owned();
        };
        let parts = [subject, reply, header, payload];
        parts.iter().map(|part| String::from_utf8_lossy(part)).collect::<Vec<_>>().join("|")
    }

    #[tokio::test]
    async fn it_gets_what_is_published_on_its_subject() {
        let router = Router::new();
        let account = AccountName::global();
        let mut inbox = Inbox::subscribe(&router, &account, b"a.b", 1 << 20);
        assert!(router.has_interest(&account, b"a.b"));
        assert_eq!(text(inbox.next()), "nothing");

        let mut batch = router.batch();
        let header = b"NATS/1.0\r\nA: b\r\n\r\n";
        let messages = [
            MessageRef { subject: b"s", reply: b"r", header, payload: b"x\r\ny" },
            MessageRef { subject: b"s", header, ..MessageRef::default() },
            MessageRef { subject: b"s", payload: b"MSG s 1 3\r\n", ..MessageRef::default() },
        ];
        for message in messages {
            batch.send(&account, b"a.b", message);
        }
        batch.flush();
        inbox.arrival().await;

        assert_eq!(text(inbox.next()), "s|r|NATS/1.0\r\nA: b\r\n\r\n|x\r\ny");
        assert_eq!(text(inbox.next()), "s||NATS/1.0\r\nA: b\r\n\r\n|");
        assert_eq!(text(inbox.next()), "s|||MSG s 1 3\r\n");
        assert_eq!(text(inbox.next()), "nothing");
        drop(inbox);
        assert!(!router.has_interest(&account, b"a.b"));
    }

    #[test]
    fn too_much_that_nobody_takes_ends_it() {
        let router = Router::new();
        let account = AccountName::global();
        let inbox = Inbox::subscribe(&router, &account, b"a", 100);
        let message = MessageRef { subject: b"a", payload: &[b'x'; 60], ..MessageRef::default() };

        router.send_one(&account, b"a", message);
        assert!(!inbox.has_overflowed());
        router.send_one(&account, b"a", message);
        assert!(inbox.has_overflowed());
    }
}
