//! Streams on their way out and in: archives that are sent to a client, and archives that a client sends.
//!
//! Each transfer is a task on the node that leads its stream. What the client sends to it (acks of the one, chunks of
//! the other) goes to `$JS.SNAPSHOT.ACK.<stream>.<id>.…` or `$JS.SNAPSHOT.RESTORE.<stream>.<id>`; the id ends with the
//! number of that node, so that every node knows where to bring it.
//!
//! | file | is |
//! |---|---|
//! | [`snapshot`] | reads a stream in slices and sends its archive in chunks, at the pace of their acks |
//! | [`restore`] | takes chunks, and has the new stream's group decide what is in them |
//! | `placing` | messages of an archive become blocks |

mod placing;
pub mod restore;
pub mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use levee_protocol::ids::{AccountName, GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::jetstream::JetStream;
use crate::nuid;
use crate::router::{ClientInfo, Inbound, Resolved, Sink};
use crate::sinks;
use crate::stream::forward;

/// Acks and chunks, on their way to the node of their transfer.
pub const FORWARD_TRANSFER: u8 = 16;

const PREFIX: &[u8] = b"$JS.SNAPSHOT.";
const ID_CHARS: usize = 22;
const NODE_CHARS: usize = 16;
/// A client that sends chunks is not read while so much of them waits.
const WAITING_BYTES_SOFT: usize = 8 << 20;
/// What waits beyond this came from a client that does not wait for answers, through another node: the restore fails.
const WAITING_BYTES_MAX: usize = 64 << 20;
const WAITING_MESSAGES_MAX: usize = 65_536;

/// The transfers of this node.
#[derive(Default)]
pub struct Transfers {
    open: Mutex<HashMap<String, Arc<Inbox>>>,
}

/// What a client has sent to one transfer.
pub(crate) struct Inbox {
    account: AccountName,
    group: GroupId,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    room: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
    overrun: bool,
    /// Something came.
    begun: bool,
    /// The transfer has ended.
    closed: bool,
}

/// One message to a transfer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) reply: Bytes,
    pub(crate) payload: Bytes,
}

/// A transfer that is known to the message path for as long as this lives.
pub(crate) struct Open {
    jetstream: Arc<JetStream>,
    pub(crate) id: String,
    pub(crate) inbox: Arc<Inbox>,
}

impl Open {
    /// Begins to listen.
    pub(crate) fn new(jetstream: &Arc<JetStream>, account: &AccountName, group: GroupId) -> Self {
        let id = format!("{}{}", nuid::draw(ID_CHARS), jetstream.node());
        let inbox = Arc::new(Inbox {
            account: account.clone(),
            group,
            waiting: Mutex::default(),
            arrived: Notify::new(),
            room: Notify::new(),
        });
        jetstream.transfers().open.lock().insert(id.clone(), Arc::clone(&inbox));
        Self { jetstream: Arc::clone(jetstream), id, inbox }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.jetstream.transfers().open.lock().remove(&self.id);
        {
            let mut waiting = self.inbox.waiting.lock();
            *waiting = Waiting { closed: true, overrun: waiting.overrun, ..Waiting::default() };
        }
        self.inbox.room.notify_waiters();
    }
}

impl Transfers {
    /// Whether a transfer of this stream runs here.
    pub(crate) fn has(&self, group: GroupId) -> bool {
        self.open.lock().values().any(|inbox| inbox.group == group)
    }

    /// Whether something came for a transfer of this stream.
    pub(crate) fn is_begun(&self, group: GroupId) -> bool {
        self.open.lock().values().any(|inbox| inbox.group == group && inbox.waiting.lock().begun)
    }

    /// Ends what was begun before this transfer of the same stream, and for which nothing came yet.
    pub(crate) fn supersede(&self, by: &Open) {
        let is_former = |inbox: &Arc<Inbox>| inbox.group == by.inbox.group && !Arc::ptr_eq(inbox, &by.inbox);
        self.open.lock().retain(|_, inbox| !is_former(inbox) || !inbox.close_unbegun());
    }

    fn inbox(&self, account: &AccountName, id: &str) -> Option<Arc<Inbox>> {
        self.open.lock().get(id).filter(|inbox| inbox.account == *account).cloned()
    }
}

impl Inbox {
    /// The next message. `None` if more came than can be kept, or when another transfer came instead.
    pub(crate) async fn next(&self) -> Option<Message> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut waiting = self.waiting.lock();
                if waiting.overrun || waiting.closed {
                    return None;
                }
                if let Some(message) = waiting.messages.pop_front() {
                    waiting.bytes -= message.payload.len();
                    if waiting.bytes < WAITING_BYTES_SOFT {
                        self.room.notify_waiters();
                    }
                    return Some(message);
                }
            }
            arrived.await;
        }
    }

    /// Whether more came than can be kept.
    pub(crate) fn is_overrun(&self) -> bool {
        self.waiting.lock().overrun
    }

    /// How many messages wait; they are taken.
    pub(crate) fn take_all(&self) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.messages).len()
    }

    /// Whether it ended, because nothing came yet.
    fn close_unbegun(&self) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.begun {
            return false;
        }
        waiting.closed = true;
        drop(waiting);
        self.arrived.notify_one();
        true
    }

    fn put(&self, message: Message) {
        let mut waiting = self.waiting.lock();
        if waiting.closed || waiting.overrun {
            return;
        }
        waiting.begun = true;
        waiting.bytes += message.payload.len();
        waiting.messages.push_back(message);
        if waiting.bytes > WAITING_BYTES_MAX || waiting.messages.len() > WAITING_MESSAGES_MAX {
            *waiting = Waiting { overrun: true, begun: true, ..Waiting::default() };
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Waits for room, if there is none.
    fn relieved(self: &Arc<Self>) -> Option<BoxFuture<'static, ()>> {
        let is_full = |inbox: &Self| inbox.waiting.lock().bytes >= WAITING_BYTES_SOFT;
        if !is_full(self) {
            return None;
        }
        let inbox = Arc::clone(self);
        Some(Box::pin(async move {
            loop {
                let room = inbox.room.notified();
                // What has ended holds nothing any more.
                if !is_full(&inbox) {
                    return;
                }
                room.await;
            }
        }))
    }
}

/// Who takes a message on this subject, if it is one to a transfer.
pub(crate) fn resolve(
    jetstream: &Arc<JetStream>,
    account: &AccountName,
    sink: &Arc<dyn Sink>,
    subject: &[u8],
) -> Option<Resolved> {
    let (id, node) = addressee(subject)?;
    let responders = if node == jetstream.node() {
        jetstream.transfers().inbox(account, id).is_some()
    } else {
        jetstream.peers().is_connected(node)
    };
    Some(Resolved { sinks: vec![Arc::clone(sink)], responders })
}

/// The id of the transfer that a message is for, and the node where it runs.
fn addressee(subject: &[u8]) -> Option<(&str, NodeId)> {
    let rest = std::str::from_utf8(subject.strip_prefix(PREFIX)?).ok()?;
    let mut tokens = rest.split('.');
    if !matches!(tokens.next()?, "ACK" | "RESTORE") {
        return None;
    }
    let id = tokens.nth(1).filter(|id| id.len() == ID_CHARS + NODE_CHARS)?;
    let node = u64::from_str_radix(id.get(ID_CHARS..)?, 16).ok()?;
    Some((id, NodeId(node)))
}

/// Messages to transfers.
pub struct TransferSink {
    jetstream: Arc<JetStream>,
}

impl TransferSink {
    /// The sink of this node.
    #[must_use]
    pub fn new(jetstream: Arc<JetStream>) -> Self {
        Self { jetstream }
    }
}

impl Sink for TransferSink {
    fn id(&self) -> u64 {
        sinks::TRANSFER_SINK
    }

    fn accept(&self, from: &Arc<ClientInfo>, batch: Inbound) -> Option<BoxFuture<'static, ()>> {
        let mut wait = None;
        for item in &batch.items {
            let Some((id, node)) = addressee(batch.subject(item)) else { continue };
            if node == self.jetstream.node() {
                let inbox = take(&self.jetstream, &from.account, id, &batch, item);
                wait = inbox.and_then(|inbox| inbox.relieved()).or(wait);
            } else {
                let one = sinks::owned(&batch, item);
                let frame = forward::encode(&from.account, GroupId::META, &one);
                // A node that is gone took the transfer with it.
                let _ = self.jetstream.peers().forward(node, FORWARD_TRANSFER, frame);
                wait = self.jetstream.peers().relieved(node).or(wait);
            }
        }
        wait
    }
}

/// Takes what a peer's clients sent to transfers of this node.
pub(crate) fn take_forwarded(jetstream: &JetStream, account: &AccountName, batch: &Inbound) {
    for item in &batch.items {
        if let Some((id, node)) = addressee(batch.subject(item))
            && node == jetstream.node()
        {
            take(jetstream, account, id, batch, item);
        }
    }
}

fn take(
    jetstream: &JetStream,
    account: &AccountName,
    id: &str,
    batch: &Inbound,
    item: &crate::router::InboundItem,
) -> Option<Arc<Inbox>> {
    let reply = batch.reply(item);
    let Some(inbox) = jetstream.transfers().inbox(account, id) else {
        if !reply.is_empty() {
            sinks::no_responders(&mut jetstream.router().batch(), account, reply, batch.subject(item));
        }
        return None;
    };
    // Copied, so that what waits keeps no more than it is counted for.
    inbox.put(Message {
        reply: Bytes::copy_from_slice(reply),
        payload: Bytes::copy_from_slice(batch.payload(item)),
    });
    Some(inbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_of_transfers_tell_the_node() {
        let id = format!("{}{}", "x".repeat(ID_CHARS), NodeId(0xabc));
        let of = |subject: &str| addressee(subject.as_bytes()).map(|(id, node)| (id.to_owned(), node));

        assert_eq!(of(&format!("$JS.SNAPSHOT.RESTORE.S.{id}")), Some((id.clone(), NodeId(0xabc))));
        assert_eq!(of(&format!("$JS.SNAPSHOT.ACK.S.{id}.1024.7")), Some((id.clone(), NodeId(0xabc))));
        assert_eq!(of(&format!("$JS.SNAPSHOT.OTHER.S.{id}")), None);
        assert_eq!(of("$JS.SNAPSHOT.RESTORE.S.short"), None);
        assert_eq!(of(&format!("$JS.SNAPSHOT.RESTORE.S.{}", "é".repeat(19))), None);
    }
}
