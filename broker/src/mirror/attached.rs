//! The way to an origin through a consumer that its owner made: this node subscribes to where that delivers, as a client
//! would, and hands on what comes as answers to the reader's questions.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use levee_broker_core::mirror::{Attachment, Delivered};
use levee_protocol::api::SourceConsumer;
use levee_protocol::mirror::{FetchAnswer, FetchRequest, Reader};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::jetstream::JetStream;
use crate::mirror::link::{Cluster, Link, unreachable};
use crate::router::MessageRef;
use crate::router::inbox::{Inbox, Received};
use crate::runtime::clock;

/// What may wait here. Flow control lets 32 MiB be under way, and messages of any size fit.
const PENDING_BYTES_MAX: usize = 256 << 20;
/// Resets of the consumer are at least so far apart: somebody else may use it too, and would do the same.
const ATTACH_INTERVAL: Duration = Duration::from_millis(500);

/// A link by which the origin delivers.
pub(super) struct Attached {
    cluster: Cluster,
    consumer: SourceConsumer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Kept when all begins anew: other nodes take a moment to learn of a subscription.
    inbox: Option<Inbox>,
    attachment: Option<Attachment>,
    attached_at: Option<Instant>,
}

impl Attached {
    pub(super) fn new(cluster: Cluster, consumer: SourceConsumer) -> Self {
        Self { cluster, consumer, state: Mutex::default() }
    }
}

impl Link for Attached {
    fn fetch(&self, request: FetchRequest) -> BoxFuture<'_, FetchAnswer> {
        Box::pin(async move {
            let Some(reader) = &request.reader else { return unreachable() };
            let Some(jetstream) = self.cluster.jetstream.upgrade() else { return unreachable() };
            let mut state = self.state.lock().await;
            let attachment = state.attachment.take().filter(|known| known.continues(request.from));
            let (Some(mut attachment), Some(inbox)) = (attachment, &mut state.inbox) else {
                return self.attach(&jetstream, reader, &mut state).await;
            };
            let until = clock::monotonic() + Duration::from_millis(request.wait_ms);
            loop {
                if self.gather(&jetstream, reader, inbox, &mut attachment).is_none() {
                    return unreachable();
                }
                if !attachment.is_empty() || clock::monotonic() >= until {
                    let answer = attachment.take(jetstream.clock().now());
                    state.attachment = Some(attachment);
                    return answer;
                }
                let _ = tokio::time::timeout_at(until, inbox.arrival()).await;
            }
        })
    }
}

impl Attached {
    /// Begins anew: subscribes, then has the consumer go back to what it knows to be stored.
    async fn attach(&self, jetstream: &Arc<JetStream>, reader: &Reader, state: &mut State) -> FetchAnswer {
        if let Some(before) = state.attached_at {
            tokio::time::sleep_until(before + ATTACH_INTERVAL).await;
        }
        state.attached_at = Some(clock::monotonic());
        let SourceConsumer { name, deliver_subject } = &self.consumer;
        let Cluster { account, stream, .. } = &self.cluster;
        let inbox = state.inbox.take().filter(|inbox| !inbox.has_overflowed());
        let inbox = state.inbox.insert(inbox.unwrap_or_else(|| {
            Inbox::subscribe(jetstream.router(), account, deliver_subject.as_bytes(), PENDING_BYTES_MAX)
        }));
        // What came before the reset is of no use.
        while inbox.next().is_some() {}
        let request =
            FetchRequest { consumer: name.clone(), reader: Some(reader.clone()), ..FetchRequest::default() };
        let answer = self.cluster.fetch(request).await;
        if answer.elsewhere || answer.refusal().is_some() {
            return answer;
        }
        if !answer.attached {
            // An older release does not know what was asked.
            return unreachable();
        }
        let now = jetstream.clock().now();
        state.attachment.insert(Attachment::new(stream, name, answer, now)).take(now)
    }

    /// Takes what came, as much as an answer holds. `None` if it has to begin again.
    fn gather(
        &self,
        jetstream: &Arc<JetStream>,
        reader: &Reader,
        inbox: &mut Inbox,
        attachment: &mut Attachment,
    ) -> Option<()> {
        let now = jetstream.clock().now();
        loop {
            if let Some(answer) = attachment.answer(reader) {
                let message =
                    MessageRef { subject: &answer.to, header: &answer.header, ..MessageRef::default() };
                jetstream.router().publish_one(&self.cluster.account, message);
            }
            if attachment.is_full() {
                return Some(());
            }
            let Some(Received { subject, reply, header, payload }) = inbox.next() else { break };
            let delivered =
                Delivered { subject: &subject, reply: &reply, header: &header, payload: &payload };
            attachment.on_delivered(delivered, now).ok()?;
        }
        let is_over = inbox.has_overflowed() || attachment.is_silent(now);
        (!is_over).then_some(())
    }
}
