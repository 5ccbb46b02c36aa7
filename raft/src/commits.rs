//! Requests to a follower, without those that only say that messages are committed.
//!
//! openraft tells followers of every commit at once, in a request of its own if nothing else is to be sent: with one
//! publisher that waits for its acks, every second request. The next entries bring the same news. So a request without
//! entries is held back for a moment and left out when entries come; its result is theirs, because openraft takes the
//! greatest acknowledged position and a request answered later stands for those before it.
//!
//! Only after blocks of messages. Followers act on other entries, so those are committed everywhere at once; and what
//! did not come behind entries on the same stream is a heartbeat or a probe, which somebody waits for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::Fuse;
use futures::{Stream, StreamExt as _};
use levee_storage::kind::BLOCK;
use openraft::EntryPayload;
use tokio::time::{Instant, Sleep};

use crate::types::{AppendRequest, Entry};

pub(crate) struct CommitsAlong<S> {
    input: Fuse<S>,
    delay: Duration,
    /// The last request was of messages only.
    after_blocks: bool,
    held: Option<AppendRequest>,
    until: Option<Pin<Box<Sleep>>>,
}

impl<S: Stream<Item = AppendRequest> + Unpin> CommitsAlong<S> {
    pub(crate) fn new(input: S, delay: Duration) -> Self {
        Self { input: input.fuse(), delay, after_blocks: false, held: None, until: None }
    }

    fn hold(&mut self, request: AppendRequest) {
        let first = self.held.is_none();
        self.held = Some(request);
        if !first {
            return;
        }
        let until = Instant::now() + self.delay;
        match &mut self.until {
            Some(timer) => timer.as_mut().reset(until),
            None => self.until = Some(Box::pin(tokio::time::sleep_until(until))),
        }
    }
}

impl<S: Stream<Item = AppendRequest> + Unpin> Stream for CommitsAlong<S> {
    type Item = AppendRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<AppendRequest>> {
        let this = &mut *self;
        loop {
            match this.input.poll_next_unpin(context) {
                Poll::Ready(Some(request))
                    if request.entries.is_empty() && this.after_blocks && !this.delay.is_zero() =>
                {
                    this.hold(request);
                }
                Poll::Ready(Some(request)) => {
                    if !request.entries.is_empty() {
                        this.after_blocks = request.entries.iter().all(is_block);
                    }
                    this.held = None;
                    return Poll::Ready(Some(request));
                }
                Poll::Ready(None) => return Poll::Ready(this.held.take()),
                Poll::Pending => break,
            }
        }
        if this.held.is_some()
            && let Some(until) = &mut this.until
            && until.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(this.held.take());
        }
        Poll::Pending
    }
}

fn is_block(entry: &Entry) -> bool {
    matches!(&entry.payload, EntryPayload::Normal(proposed) if proposed.kind == BLOCK)
}

#[cfg(test)]
mod tests {
    use futures::channel::mpsc;
    use futures::{FutureExt as _, SinkExt as _};
    use levee_protocol::ids::NodeId;
    use levee_storage::kind::INLINE;

    use super::*;
    use crate::types::{LeaderId, LogId, Proposed, Vote};

    const DELAY: Duration = Duration::from_millis(10);

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId { term: 1, node_id: NodeId(1) }, index)
    }

    /// A request that says `committed`, with one entry of a kind or none.
    fn request(committed: u64, kind: Option<u8>) -> AppendRequest {
        let entry = |kind| Entry {
            log_id: id(committed + 1),
            payload: EntryPayload::Normal(Proposed { kind, payload: bytes::Bytes::new() }),
        };
        AppendRequest {
            vote: Vote::new_committed(1, NodeId(1)),
            prev_log_id: Some(id(committed)),
            leader_commit: Some(id(committed)),
            entries: kind.map(entry).into_iter().collect(),
        }
    }

    type Sent = CommitsAlong<mpsc::Receiver<AppendRequest>>;

    fn stream() -> (mpsc::Sender<AppendRequest>, Sent) {
        let (sender, receiver) = mpsc::channel(8);
        (sender, CommitsAlong::new(receiver, DELAY))
    }

    fn next(sent: &mut Sent) -> Option<u64> {
        sent.next().now_or_never().flatten().and_then(|request| request.leader_commit).map(|id| id.index)
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_commit_goes_along_with_the_next_entries() {
        let (mut sender, mut sent) = stream();
        sender.send(request(1, Some(BLOCK))).await.unwrap();
        assert_eq!(next(&mut sent), Some(1));

        sender.send(request(2, None)).await.unwrap();
        assert_eq!(next(&mut sent), None);
        sender.send(request(3, Some(BLOCK))).await.unwrap();

        assert_eq!(next(&mut sent), Some(3));
        tokio::time::advance(DELAY * 2).await;
        assert_eq!(next(&mut sent), None, "what was left out does not come later");
    }

    #[tokio::test(start_paused = true)]
    async fn without_entries_the_newest_news_leaves_after_the_delay() {
        let (mut sender, mut sent) = stream();
        sender.send(request(1, Some(BLOCK))).await.unwrap();
        assert_eq!(next(&mut sent), Some(1));

        sender.send(request(2, None)).await.unwrap();
        sender.send(request(3, None)).await.unwrap();
        assert_eq!(next(&mut sent), None);
        tokio::time::advance(DELAY * 2).await;

        assert_eq!(next(&mut sent), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_and_commits_of_other_entries_leave_at_once() {
        let (mut sender, mut sent) = stream();
        sender.send(request(1, None)).await.unwrap();
        assert_eq!(next(&mut sent), Some(1));

        sender.send(request(2, Some(INLINE))).await.unwrap();
        sender.send(request(3, None)).await.unwrap();

        assert_eq!(next(&mut sent), Some(2));
        assert_eq!(next(&mut sent), Some(3));
    }
}
