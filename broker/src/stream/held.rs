//! Acks of a stream that publishes again what it stores, into other streams: they wait until those have it, as clients
//! expect that read there what they have just published here. Only acks wait, in their order, and not for long.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::{FuturesOrdered, StreamExt};
use levee_protocol::ids::AccountName;
use tokio::time::Instant;

use crate::router::{MessageRef, RouteBatch};
use crate::runtime::clock;

/// So long an ack waits at most. Clients wait five seconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// After that was in vain nobody is waited for during this time: a stream that is down must not slow down another.
const IMPATIENCE: Duration = Duration::from_secs(10);

/// What goes to one publisher.
pub(super) struct Answer {
    pub(super) account: AccountName,
    pub(super) to: Bytes,
    pub(super) text: Vec<u8>,
}

/// Answers that wait, a set of them for each block.
#[derive(Default)]
pub(super) struct Held {
    blocks: FuturesOrdered<BoxFuture<'static, Released>>,
    impatient_until: Option<Instant>,
}

struct Released {
    answers: Vec<Answer>,
    in_vain: bool,
}

impl Held {
    /// Whether anything waits.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Sends answers when what they wait for has come, and what was held before is sent.
    pub(super) fn send_after(
        &mut self,
        waits: impl FnOnce() -> Vec<BoxFuture<'static, ()>>,
        answers: Vec<Answer>,
        route: &mut RouteBatch,
    ) {
        let now = clock::monotonic();
        let is_impatient = self.impatient_until.is_some_and(|until| now < until);
        let waits = if is_impatient || answers.is_empty() { Vec::new() } else { waits() };
        if waits.is_empty() && self.is_empty() {
            return send(answers, route);
        }
        self.blocks.push_back(Box::pin(async move {
            let in_vain = tokio::time::timeout_at(now + PATIENCE, join_all(waits)).await.is_err();
            Released { answers, in_vain }
        }));
    }

    /// Those whose turn it is next; never returns while nothing waits. Cancel safe.
    pub(super) async fn next(&mut self) -> Vec<Answer> {
        let Some(Released { answers, in_vain }) = self.blocks.next().await else {
            return std::future::pending().await;
        };
        if in_vain {
            self.impatient_until = Some(clock::monotonic() + IMPATIENCE);
        }
        answers
    }

    /// The same, without waiting.
    pub(super) fn next_now(&mut self) -> Option<Vec<Answer>> {
        self.next().now_or_never()
    }
}

/// Sends answers.
pub(super) fn send(answers: Vec<Answer>, route: &mut RouteBatch) {
    for Answer { account, to, text } in answers {
        route.send(&account, &to, MessageRef { subject: &to, payload: &text, ..MessageRef::default() });
    }
    route.flush();
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::router::Router;

    fn answer(text: &str) -> Vec<Answer> {
        let to = Bytes::from_static(b"r");
        vec![Answer { account: AccountName::global(), to, text: text.into() }]
    }

    fn after(told: oneshot::Receiver<()>) -> Vec<BoxFuture<'static, ()>> {
        vec![Box::pin(async move { told.await.unwrap_or(()) })]
    }

    fn text(answers: Option<Vec<Answer>>) -> Option<String> {
        Some(String::from_utf8(answers?.pop()?.text).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_in_their_order() {
        let mut route = Router::new().batch();
        let mut held = Held::default();
        let ((tell_first, first), (tell_second, second)) = (oneshot::channel(), oneshot::channel());

        held.send_after(Vec::new, answer("at once"), &mut route);
        assert!(held.is_empty());
        held.send_after(|| after(first), answer("1"), &mut route);
        held.send_after(|| after(second), answer("2"), &mut route);
        held.send_after(Vec::new, answer("3"), &mut route);
        tell_second.send(()).unwrap();
        assert_eq!(text(held.next_now()), None);
        tell_first.send(()).unwrap();

        for expected in ["1", "2", "3"] {
            assert_eq!(text(Some(held.next().await)).as_deref(), Some(expected));
        }
        assert!(held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for_again_for_a_while() {
        let mut route = Router::new().batch();
        let mut held = Held::default();
        let (never, told) = oneshot::channel();
        let begun = clock::monotonic();

        held.send_after(|| after(told), answer("late"), &mut route);
        assert_eq!(text(Some(held.next().await)).as_deref(), Some("late"));
        assert_eq!(begun.elapsed(), PATIENCE);
        held.send_after(|| unreachable!("it is not asked"), answer("at once"), &mut route);
        assert!(held.is_empty());

        tokio::time::advance(IMPATIENCE).await;
        let (tell, told) = oneshot::channel();
        held.send_after(|| after(told), answer("again"), &mut route);
        assert!(!held.is_empty());
        drop((never, tell));
        assert_eq!(text(Some(held.next().await)).as_deref(), Some("again"));
    }
}
