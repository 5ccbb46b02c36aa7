//! The news that a stream has dealt with everything that was published into it up to now, for a node that has itself just
//! published there: stored it, or refused it. What was published by others meanwhile does not matter.
//!
//! Messages go their usual way. The question follows them on the same link, so it can not overtake them, and the answer
//! comes when the leader has answered all publishes that it had then. A node that does not know the question is silent.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use levee_protocol::ids::{GroupId, NodeId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::jetstream::JetStream;
use crate::runtime::tasks;

/// A node asks to be told: `token u64 | group u64`.
pub const FORWARD_ASKED: u8 = 8;
/// It is told: `token u64`.
pub const FORWARD_TOLD: u8 = 9;

/// Questions that are not answered yet.
#[derive(Default)]
pub struct Questions {
    last: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

/// Comes when the stream has dealt with what was published into it; never if its leader goes. `None` if nobody leads it.
pub(crate) fn ask(jetstream: &Arc<JetStream>, group: GroupId) -> Option<BoxFuture<'static, ()>> {
    if let Some(leader) = jetstream.replica(group).and_then(|replica| replica.leader()) {
        let told = leader.ingest.told();
        // A leader that goes has dealt with it as far as it can.
        return Some(Box::pin(async move { told.await.unwrap_or(()) }));
    }
    let leader = jetstream.directory().leader(group).filter(|leader| *leader != jetstream.node())?;
    let questions = jetstream.questions();
    let token = questions.last.fetch_add(1, Ordering::Relaxed) + 1;
    let (tell, told) = oneshot::channel();
    questions.open.lock().insert(token, tell);
    let open = Open { jetstream: Arc::clone(jetstream), token };
    let mut frame = BytesMut::with_capacity(16);
    frame.put_u64_le(token);
    frame.put_u64_le(group.0);
    jetstream.peers().forward(leader, FORWARD_ASKED, frame.freeze()).ok()?;
    Some(Box::pin(async move {
        let _ = told.await;
        drop(open);
    }))
}

/// Whoever stops waiting is forgotten.
struct Open {
    jetstream: Arc<JetStream>,
    token: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.jetstream.questions().open.lock().remove(&self.token);
    }
}

/// A peer's [`FORWARD_ASKED`].
pub fn on_asked(jetstream: &Arc<JetStream>, node: NodeId, mut frame: Bytes) {
    if frame.remaining() < 16 {
        return;
    }
    let (token, group) = (frame.get_u64_le(), GroupId(frame.get_u64_le()));
    let Some(leader) = jetstream.replica(group).and_then(|replica| replica.leader()) else { return };
    let told = leader.ingest.told();
    let jetstream = Arc::downgrade(jetstream);
    tasks::spawn("tell a peer what is stored", async move {
        let _ = told.await;
        if let Some(jetstream) = jetstream.upgrade() {
            let token = Bytes::copy_from_slice(&token.to_le_bytes());
            let _ = jetstream.peers().forward(node, FORWARD_TOLD, token);
        }
    });
}

/// A peer's [`FORWARD_TOLD`].
pub fn on_told(jetstream: &JetStream, mut frame: Bytes) {
    if frame.remaining() >= 8
        && let Some(tell) = jetstream.questions().open.lock().remove(&frame.get_u64_le())
    {
        let _ = tell.send(());
    }
}
