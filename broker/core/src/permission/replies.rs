//! Reply subjects that a client was given with requests, and may answer to although it may not publish there.
//!
//! Bounded by bytes: a client that is asked much and answers little loses the oldest ones first. They would have
//! expired next anyway, as all of a client's have the same time to live.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::Responses;

/// Open reply subjects of one client. Times are since any one moment.
#[derive(Debug)]
pub struct Replies {
    max: u64,
    expires: Option<Duration>,
    open: HashMap<Arc<[u8]>, Open, RandomState>,
    /// By age, with the number that tells whether the entry is still the one that was meant.
    order: VecDeque<(u64, Arc<[u8]>)>,
    bytes: usize,
    noted: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    left: u64,
    noted_at: Duration,
}

impl Replies {
    /// None yet.
    #[must_use]
    pub fn new(responses: Responses) -> Self {
        Self {
            max: u64::try_from(responses.max).unwrap_or(u64::MAX),
            expires: u64::try_from(responses.expires.0).ok().map(Duration::from_nanos),
            open: HashMap::default(),
            order: VecDeque::new(),
            bytes: 0,
            noted: 0,
        }
    }

    /// A request came that wants its answer there. One that is already open begins anew.
    pub fn note(&mut self, reply: &[u8], now: Duration) {
        self.noted += 1;
        let open = Open { number: self.noted, left: self.max, noted_at: now };
        let key = match self.open.get_key_value(reply) {
            Some((known, _)) => Arc::clone(known),
            None => {
                self.bytes += cost(reply);
                Arc::from(reply)
            }
        };
        self.order.push_back((open.number, Arc::clone(&key)));
        self.open.insert(key, open);
        self.forget(now);
    }

    /// Whether one more message may be published to it. If so, it counts.
    pub fn take(&mut self, reply: &[u8], now: Duration) -> bool {
        let expires = self.expires;
        let Some(open) = self.open.get_mut(reply) else { return false };
        let allowed = open.left > 0 && !is_over(open, expires, now);
        open.left = open.left.saturating_sub(1);
        if !allowed || open.left == 0 {
            self.close(reply);
        }
        allowed
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Drops what expired, what was answered, and what is too much.
    fn forget(&mut self, now: Duration) {
        while let Some((number, reply)) = self.order.front() {
            match self.open.get(reply).filter(|open| open.number == *number) {
                Some(open) if self.bytes <= BYTES_MAX && !is_over(open, self.expires, now) => break,
                Some(_) => {
                    let reply = Arc::clone(reply);
                    self.close(&reply);
                }
                None => {}
            }
            self.order.pop_front();
        }
        // Answered ones behind one that is never answered.
        if self.order.len() > 2 * self.open.len() + ORDER_SLACK {
            self.order
                .retain(|(number, reply)| self.open.get(reply).is_some_and(|open| open.number == *number));
        }
    }

    fn close(&mut self, reply: &[u8]) {
        if self.open.remove(reply).is_some() {
            self.bytes -= cost(reply);
        }
    }
}

fn is_over(open: &Open, expires: Option<Duration>, now: Duration) -> bool {
    expires.is_some_and(|expires| now.saturating_sub(open.noted_at) > expires)
}

/// What an open reply costs: its text, and its places in table and queue.
fn cost(reply: &[u8]) -> usize {
    reply.len() + 128
}

/// Open replies of one client, some fifty thousand of usual length.
const BYTES_MAX: usize = 8 << 20;
const ORDER_SLACK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use levee_protocol::time::Nanos;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn replies(max: i64, expires_ms: i64) -> Replies {
        Replies::new(Responses { max, expires: Nanos::from_millis(expires_ms) })
    }

    #[test]
    fn a_request_is_answered_as_often_as_allowed_and_in_time() {
        let mut replies = replies(2, 100);

        replies.note(b"a", MS);
        replies.note(b"b", MS);

        assert!(replies.take(b"a", 50 * MS));
        assert!(replies.take(b"a", 101 * MS));
        assert!(!replies.take(b"a", 101 * MS), "twice is all");
        assert!(!replies.take(b"b", 102 * MS), "too late");
        assert!(!replies.take(b"c", MS), "never asked");
        assert!(replies.is_empty() && replies.bytes == 0);
    }

    #[test]
    fn the_same_reply_of_another_request_begins_anew() {
        let mut replies = replies(1, 100);

        replies.note(b"a", MS);
        replies.note(b"a", 90 * MS);
        assert!(replies.take(b"a", 150 * MS));
        assert!(!replies.take(b"a", 150 * MS));

        replies.note(b"a", 160 * MS);
        assert!(replies.take(b"a", 200 * MS));
    }

    #[test]
    fn without_limits_it_stays_open() {
        let mut replies = replies(-1, -1);

        replies.note(b"a", MS);

        assert!((0..1000).all(|day| replies.take(b"a", day * Duration::from_secs(86_400))));
    }

    #[test]
    fn requests_that_nobody_answers_are_forgotten_from_the_oldest_on() {
        let mut replies = replies(-1, -1);
        let reply = |number: u32| number.to_string().into_bytes();

        for number in 0..200_000 {
            replies.note(&reply(number), MS);
        }

        assert!(replies.bytes <= BYTES_MAX && replies.len() > 50_000);
        assert!(!replies.take(&reply(0), MS) && replies.take(&reply(199_999), MS));
    }

    #[test]
    fn one_that_is_never_answered_does_not_keep_the_places_of_others() {
        let mut replies = replies(1, -1);
        replies.note(b"never", MS);

        for number in 0..10_000_u32 {
            replies.note(&number.to_le_bytes(), MS);
            assert!(replies.take(&number.to_le_bytes(), MS));
        }

        assert!(replies.order.len() < 100 && replies.len() == 1);
    }

    proptest! {
        /// Against a list that is searched from its end.
        #[test]
        fn it_is_what_a_list_would_say(
            max in 1_i64..4,
            steps in prop::collection::vec((0_u8..4, prop::bool::ANY, 0_u32..40), 0..60),
        ) {
            let mut replies = replies(max, 100);
            let mut model: Vec<(u8, i64, Duration)> = Vec::new();
            let mut now = Duration::ZERO;
            for (name, is_request, later) in steps {
                now += later * MS;
                if is_request {
                    replies.note(&[name], now);
                    model.push((name, max, now));
                    continue;
                }
                let known = model.iter_mut().rev().find(|(known, ..)| *known == name);
                let expected = known.is_some_and(|(_, left, at)| {
                    let allowed = *left > 0 && now - *at <= 100 * MS;
                    *left = if allowed { *left - 1 } else { 0 };
                    allowed
                });
                prop_assert_eq!(replies.take(&[name], now), expected);
                prop_assert_eq!(replies.bytes, replies.open.keys().map(|reply| cost(reply)).sum::<usize>());
            }
        }
    }
}
