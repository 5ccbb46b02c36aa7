//! Pull requests that wait for messages.
//!
//! First come, first served, one message each in turn, unless priority groups say otherwise. Bounded by the consumer's
//! `max_waiting`. A request ends when it is filled, when its time or its bytes are over, when nobody listens on its
//! inbox any more, or, with `no_wait`, when there is nothing left.

use std::collections::VecDeque;

use bytes::Bytes;
use levee_protocol::api::PullRequest;
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::dispatch::Advisory;
use crate::consumer::notice::{Closed, Left, Notice};
use crate::consumer::priority::{Load, Priority, Standing, Verdict};
use crate::consumer::settle::Position;

/// How long an inbox that had a subscriber is believed to have one while messages are sent to it.
const INTEREST_HOLDS: Nanos = Nanos::from_millis(1);

/// Says whether anybody subscribes to a subject.
pub(crate) type Interest<'a> = &'a dyn Fn(&[u8]) -> bool;

/// One waiting request.
#[derive(Debug)]
pub(crate) struct Waiter {
    inbox: Bytes,
    left: u64,
    served: u64,
    no_wait: bool,
    expires_at: Option<Timestamp>,
    bytes_left: Option<u64>,
    heartbeat: Nanos,
    heartbeat_at: Timestamp,
    interest_at: Timestamp,
    standing: Standing,
}

/// The requests of one consumer, by rank, and within a rank in the order in which they are served.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    queue: VecDeque<Waiter>,
    /// Not after the first expiry or heartbeat that is due.
    wake: Option<Timestamp>,
    /// Messages asked for by all requests together.
    wanted: u64,
}

/// A request that takes the message at hand.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Grant {
    pub(crate) inbox: Bytes,
    /// Sent after the message: the batch is full, but not the bytes.
    pub(crate) completed: Option<Notice>,
    /// Its client got pinned with this message.
    pub(crate) pinned: Option<Advisory>,
}

impl Waiter {
    pub(crate) fn new(request: &PullRequest, standing: Standing, inbox: Bytes, now: Timestamp) -> Self {
        Self {
            inbox,
            left: u64::try_from(request.batch).unwrap_or(1).max(1),
            served: 0,
            no_wait: request.no_wait,
            expires_at: (request.expires > Nanos::ZERO).then(|| now.plus(request.expires)),
            bytes_left: u64::try_from(request.max_bytes).ok().filter(|bytes| *bytes > 0),
            heartbeat: request.idle_heartbeat,
            heartbeat_at: now.plus(request.idle_heartbeat),
            interest_at: Timestamp::ZERO,
            standing,
        }
    }

    /// Ends at once when there is nothing to have.
    pub(crate) fn is_one_shot(&self) -> bool {
        self.no_wait && self.expires_at.is_none()
    }

    pub(crate) fn no_wait(&self) -> bool {
        self.no_wait
    }

    pub(crate) fn into_inbox(self) -> Bytes {
        self.inbox
    }

    fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Its time is over.
    pub(crate) fn timeout(&self) -> Notice {
        Notice::request_timeout(self.inbox.clone(), self.unserved())
    }

    fn unserved(&self) -> Left {
        Left { messages: self.left, bytes: self.bytes_left.unwrap_or(0) }
    }

    fn next_timer(&self) -> Option<Timestamp> {
        let heartbeat = (self.heartbeat > Nanos::ZERO).then_some(self.heartbeat_at);
        [self.expires_at, heartbeat].into_iter().flatten().min()
    }

    fn listens(&mut self, interest: Interest<'_>, now: Timestamp) -> bool {
        if now.since(self.interest_at) < INTEREST_HOLDS {
            return true;
        }
        self.interest_at = now;
        interest(&self.inbox)
    }
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A message that a request to this inbox took is not sent after all. False if none waits any more.
    pub(crate) fn give_back(&mut self, inbox: &[u8], size: u64) -> bool {
        let Some(waiter) = self.queue.iter_mut().find(|waiter| waiter.inbox == inbox) else { return false };
        waiter.left += 1;
        waiter.served = waiter.served.saturating_sub(1);
        waiter.bytes_left = waiter.bytes_left.map(|left| left.saturating_add(size));
        self.wanted = self.wanted.saturating_add(1);
        true
    }

    /// Messages asked for by all requests together.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// When `due` has something to do, at the earliest.
    pub(crate) fn wake(&self) -> Option<Timestamp> {
        self.wake
    }

    pub(crate) fn add(&mut self, waiter: Waiter) {
        self.wake = [self.wake, waiter.next_timer()].into_iter().flatten().min();
        self.enqueue(waiter);
    }

    /// Finds a request for a message of this size. Requests that can not take it end on the way, as do those whose
    /// inbox nobody listens on. Requests that have to wait for another message go behind the others.
    pub(crate) fn offer(
        &mut self,
        size: u64,
        priority: &mut Priority,
        load: Load,
        interest: Interest<'_>,
        now: Timestamp,
        mut notify: impl FnMut(Notice),
    ) -> Option<Grant> {
        let mut passed = 0;
        while passed < self.queue.len() {
            let mut waiter = self.take_first()?;
            if waiter.expired(now) {
                notify(waiter.timeout());
                continue;
            }
            match priority.judge(waiter.standing.terms.as_deref(), load) {
                Verdict::Serve => {}
                Verdict::Pass => {
                    passed += 1;
                    self.enqueue(waiter);
                    continue;
                }
                Verdict::WrongPin => {
                    let left = waiter.unserved();
                    notify(Notice::wrong_pin(waiter.inbox, left));
                    continue;
                }
            }
            if waiter.bytes_left.is_some_and(|left| size > left) {
                let left = waiter.unserved();
                notify(Notice::message_too_large(waiter.inbox, left));
                continue;
            }
            if !waiter.listens(interest, now) {
                continue;
            }
            let pinned = priority.served(waiter.standing.terms.as_deref_mut(), now);
            return Some(Grant { pinned, ..self.serve(waiter, size, now) });
        }
        None
    }

    /// Sends heartbeats and ends requests whose time is over or, if `interest` is asked, whose inbox is abandoned.
    pub(crate) fn due(
        &mut self,
        last: Position,
        interest: Option<Interest<'_>>,
        now: Timestamp,
        mut notify: impl FnMut(Notice),
    ) {
        self.wake = None;
        self.retain(|waiter, wake| {
            if waiter.expired(now) {
                notify(waiter.timeout());
                return false;
            }
            if interest.is_some_and(|interest| !interest(&waiter.inbox)) {
                return false;
            }
            if waiter.heartbeat > Nanos::ZERO && waiter.heartbeat_at <= now {
                notify(Notice::heartbeat(waiter.inbox.clone(), last, None));
                waiter.heartbeat_at = now.plus(waiter.heartbeat);
            }
            *wake = [*wake, waiter.next_timer()].into_iter().flatten().min();
            true
        });
    }

    /// There is nothing left to deliver: requests that do not wait end.
    pub(crate) fn nothing_left(&mut self, mut notify: impl FnMut(Notice)) {
        if !self.queue.iter().any(Waiter::no_wait) {
            return;
        }
        self.retain(|waiter, _| {
            let ends = waiter.is_one_shot() || (waiter.no_wait && waiter.served > 0);
            if ends {
                notify(Notice::no_messages(waiter.inbox.clone()));
            }
            !ends
        });
    }

    /// Ends all requests.
    pub(crate) fn close(&mut self, why: Closed) -> Vec<Notice> {
        self.wanted = 0;
        self.wake = None;
        self.queue.drain(..).map(|waiter| Notice::closed(waiter.inbox, why)).collect()
    }

    /// Behind all of its rank and below.
    fn enqueue(&mut self, waiter: Waiter) {
        self.wanted = self.wanted.saturating_add(waiter.left);
        let rank = waiter.standing.rank;
        if self.queue.back().is_none_or(|last| last.standing.rank <= rank) {
            self.queue.push_back(waiter);
        } else {
            let place = self.queue.partition_point(|other| other.standing.rank <= rank);
            self.queue.insert(place, waiter);
        }
    }

    /// Keeps those of which `keep` says so, where they are. It is given the time to wake at, too.
    fn retain(&mut self, mut keep: impl FnMut(&mut Waiter, &mut Option<Timestamp>) -> bool) {
        let Self { queue, wake, wanted } = self;
        queue.retain_mut(|waiter| {
            let is_kept = keep(waiter, wake);
            if !is_kept {
                *wanted = wanted.saturating_sub(waiter.left);
            }
            is_kept
        });
    }

    fn take_first(&mut self) -> Option<Waiter> {
        let waiter = self.queue.pop_front()?;
        self.wanted = self.wanted.saturating_sub(waiter.left);
        Some(waiter)
    }

    fn serve(&mut self, mut waiter: Waiter, size: u64, now: Timestamp) -> Grant {
        waiter.left -= 1;
        waiter.served += 1;
        waiter.heartbeat_at = now.plus(waiter.heartbeat);
        if let Some(bytes_left) = &mut waiter.bytes_left {
            *bytes_left -= size;
            if *bytes_left == 0 {
                return Grant { inbox: waiter.inbox, completed: None, pinned: None };
            }
        }
        let inbox = waiter.inbox.clone();
        if waiter.left > 0 {
            self.enqueue(waiter);
            return Grant { inbox, completed: None, pinned: None };
        }
        let left = waiter.unserved();
        let completed = waiter.bytes_left.map(|_| Notice::batch_completed(waiter.inbox, left));
        Grant { inbox, completed, pinned: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn waiter(inbox: &'static str, request: PullRequest) -> Waiter {
        Waiter::new(&request, Standing::default(), Bytes::from_static(inbox.as_bytes()), NOW)
    }

    fn batch(batch: i64) -> PullRequest {
        PullRequest { batch, ..PullRequest::default() }
    }

    fn offer(waiting: &mut Waiting, size: u64) -> (Option<String>, Vec<String>) {
        let mut notices = Vec::new();
        let (mut priority, load) = (Priority::default(), Load::default());
        let interest = |inbox: &[u8]| inbox != b"gone";
        let grant = waiting.offer(size, &mut priority, load, &interest, NOW, |notice| {
            notices.push(first_line(&notice));
        });
        let inbox = grant.map(|grant| {
            notices.extend(grant.completed.as_ref().map(first_line));
            String::from_utf8(grant.inbox.to_vec()).unwrap()
        });
        (inbox, notices)
    }

    fn first_line(notice: &Notice) -> String {
        String::from_utf8_lossy(&notice.header).lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn requests_are_served_in_turn() {
        let mut waiting = Waiting::default();
        waiting.add(waiter("a", batch(2)));
        waiting.add(waiter("b", batch(1)));
        waiting.add(waiter("gone", batch(9)));

        let served: Vec<_> = (0..4).map(|_| offer(&mut waiting, 1).0).collect();

        assert_eq!(served, [Some("a".into()), Some("b".into()), Some("a".into()), None]);
        assert_eq!((waiting.len(), waiting.wanted()), (0, 0));
    }

    #[test]
    fn lower_ranks_are_served_first_and_in_turn_also_after_timers_ran() {
        let mut waiting = Waiting::default();
        let ranked = |inbox, messages, rank| {
            let standing = Standing { rank, terms: None };
            let request = PullRequest { expires: Nanos::from_secs(9), ..batch(messages) };
            Waiter::new(&request, standing, Bytes::from_static(inbox), NOW)
        };
        waiting.add(ranked(b"last", 1, 5));
        waiting.add(ranked(b"a", 2, 1));
        waiting.add(ranked(b"b", 2, 1));
        waiting.due(Position::default(), None, NOW, |_| {});

        let served: Vec<_> = (0..6).filter_map(|_| offer(&mut waiting, 1).0).collect();

        assert_eq!(served, ["a", "b", "a", "b", "last"]);
        assert_eq!((waiting.len(), waiting.wanted()), (0, 0));
    }

    #[test]
    fn a_request_ends_with_the_first_message_that_exceeds_its_bytes() {
        let mut waiting = Waiting::default();
        waiting.add(waiter("a", PullRequest { max_bytes: 10, ..batch(5) }));

        assert_eq!(offer(&mut waiting, 6), (Some("a".into()), vec![]));
        assert_eq!(offer(&mut waiting, 5), (None, vec!["NATS/1.0 409 Message Size Exceeds MaxBytes".into()]));
        assert!(waiting.is_empty());
    }

    #[test]
    fn an_exact_fill_of_the_bytes_ends_the_request_silently() {
        let mut waiting = Waiting::default();
        waiting.add(waiter("a", PullRequest { max_bytes: 10, ..batch(5) }));

        assert_eq!(offer(&mut waiting, 10), (Some("a".into()), vec![]));
        assert_eq!((waiting.len(), waiting.wanted()), (0, 0));
    }

    #[test]
    fn a_full_batch_with_bytes_left_says_so() {
        let mut waiting = Waiting::default();
        waiting.add(waiter("a", PullRequest { max_bytes: 10, ..batch(1) }));

        assert_eq!(offer(&mut waiting, 4), (Some("a".into()), vec!["NATS/1.0 409 Batch Completed".into()]));
    }

    #[test]
    fn heartbeats_come_between_messages_and_expiry_ends_them() {
        let mut waiting = Waiting::default();
        let request = PullRequest {
            expires: Nanos::from_millis(600),
            idle_heartbeat: Nanos::from_millis(200),
            ..batch(5)
        };
        waiting.add(waiter("a", request));
        let mut seen = Vec::new();

        while let Some(at) = waiting.wake() {
            waiting.due(Position::default(), None, at, |notice| {
                seen.push((at.since(NOW).0 / 1_000_000, first_line(&notice)))
            });
        }

        let heartbeat = "NATS/1.0 100 Idle Heartbeat";
        let timeout = "NATS/1.0 408 Request Timeout";
        assert_eq!(seen, [(200, heartbeat.into()), (400, heartbeat.into()), (600, timeout.into())]);
    }

    #[test]
    fn one_shot_requests_end_when_nothing_is_left_and_others_wait() {
        let mut waiting = Waiting::default();
        waiting.add(waiter("once", PullRequest { no_wait: true, ..batch(1) }));
        waiting.add(waiter("first", PullRequest { no_wait: true, expires: Nanos::from_secs(1), ..batch(2) }));
        waiting.add(waiter("waits", batch(1)));
        let mut ended = Vec::new();

        waiting.nothing_left(|notice| ended.push((notice.to.clone(), first_line(&notice))));

        assert_eq!(ended, [(Bytes::from_static(b"once"), "NATS/1.0 404 No Messages".to_owned())]);
        assert_eq!(offer(&mut waiting, 1).0.as_deref(), Some("first"));
        waiting.nothing_left(|notice| ended.push((notice.to.clone(), first_line(&notice))));
        assert_eq!(ended.len(), 2, "after its first message it does not wait any more");
        assert_eq!(waiting.len(), 1);
    }
}
