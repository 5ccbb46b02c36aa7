//! What the reader of an origin asks for next, when it tries again, and what it says of itself.

use levee_protocol::api::{ApiError, StreamSource};
use levee_protocol::mirror::{FetchAnswer, FetchRequest};
use levee_protocol::time::{Nanos, Timestamp};

use super::server::BYTES_MAX;
use crate::stream::mirror::Origin;

/// The first pause after a failure; each further one is twice as long, up to the longest.
const RETRY_FIRST: Nanos = Nanos::from_millis(100);
const RETRY_LONGEST: Nanos = Nanos::from_secs(2);
/// How often what is still to come is counted anew: with filters that takes a while.
const COUNT_INTERVAL: Nanos = Nanos::from_secs(2);

/// The reader of one origin.
#[derive(Debug)]
pub struct Puller {
    start_seq: u64,
    start_time: Option<Timestamp>,
    filters: Vec<String>,
    /// Sources notice when their origin is created again. A mirror goes on where it is, as in nats-server.
    notices_identity: bool,
    identity: String,
    /// What is wanted next; 0 is where the start says.
    next: u64,
    failures: u32,
    heard: Option<Timestamp>,
    counted: Option<Timestamp>,
    /// Behind the last answer.
    lag: u64,
    /// In the last answer, and not stored yet.
    unstored: u64,
    error: Option<ApiError>,
}

/// How a reader waits for messages when there are none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ask {
    /// The origin answers at once.
    AtOnce,
    /// It waits for a message for so many milliseconds.
    Wait(u64),
}

/// How a reader is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Messages behind.
    pub lag: u64,
    /// How long nothing was heard of the origin; `None` is never.
    pub silent_for: Option<Nanos>,
    /// Why it stands still.
    pub error: Option<ApiError>,
}

impl Puller {
    /// A reader of what the stream mirrors, which has everything up to `last_seq`.
    #[must_use]
    pub fn of_mirror(origin: &StreamSource, last_seq: u64) -> Self {
        Self::new(origin, &Origin { seq: last_seq, ..Origin::default() }, false)
    }

    /// A reader of a source, of which the stream has this much.
    #[must_use]
    pub fn of_source(origin: &StreamSource, has: &Origin) -> Self {
        Self::new(origin, has, true)
    }

    fn new(origin: &StreamSource, has: &Origin, notices_identity: bool) -> Self {
        let mut puller = Self {
            start_seq: origin.opt_start_seq,
            start_time: origin.opt_start_time,
            filters: origin.filters().iter().map(|filter| filter.as_str().to_owned()).collect(),
            notices_identity,
            identity: String::new(),
            next: 0,
            failures: 0,
            heard: None,
            counted: None,
            lag: 0,
            unstored: 0,
            error: None,
        };
        puller.go_on(has);
        puller
    }

    /// The next question; the caller fills in whom it is about.
    pub fn ask(&mut self, how: Ask, now: Timestamp) -> FetchRequest {
        let count = self.counted.is_none_or(|counted| now.since(counted) >= COUNT_INTERVAL);
        FetchRequest {
            from: self.next,
            start_seq: self.start_seq,
            start_time: self.start_time.map(|time| time.0),
            filters: self.filters.clone(),
            bytes_max: BYTES_MAX,
            wait_ms: match how {
                Ask::AtOnce => 0,
                Ask::Wait(millis) => millis,
            },
            count,
            identity: self.identity.clone(),
            ..FetchRequest::default()
        }
    }

    /// An answer came; what is in it comes next.
    pub fn on_answer(&mut self, answer: &FetchAnswer, now: Timestamp) {
        self.heard = Some(now);
        if self.notices_identity {
            self.identity.clone_from(&answer.identity);
        }
        self.next = (answer.through + 1).max(answer.from);
        self.unstored = answer.seqs.len() as u64;
        if let Some(pending) = answer.pending {
            self.counted = Some(now);
            self.lag = pending;
        } else if answer.through >= answer.last_seq {
            self.lag = 0;
        } else {
            self.lag = self.lag.saturating_sub(answer.seqs.len() as u64).max(1);
        }
    }

    /// What the last answer brought is stored, or there was nothing in it.
    pub fn on_stored(&mut self) {
        self.failures = 0;
        self.unstored = 0;
        self.error = None;
    }

    /// Something went wrong: the stream goes on from what it has, after a pause. Without an error nobody is to blame.
    pub fn on_failure(&mut self, has: &Origin, error: Option<ApiError>) -> Nanos {
        self.go_on(has);
        self.error = error;
        // More may be missing than was counted.
        self.counted = None;
        let pause = RETRY_FIRST.0.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        Nanos(pause.min(RETRY_LONGEST.0))
    }

    /// Whether this error is another one than the last.
    #[must_use]
    pub fn is_news(&self, error: &ApiError) -> bool {
        self.error.as_ref() != Some(error)
    }

    /// How it is doing.
    #[must_use]
    pub fn standing(&self, now: Timestamp) -> Standing {
        Standing {
            lag: self.lag + self.unstored,
            silent_for: self.heard.map(|heard| now.since(heard).max(Nanos::ZERO)),
            error: self.error.clone(),
        }
    }

    fn go_on(&mut self, has: &Origin) {
        self.next = if has.seq == 0 { 0 } else { has.seq + 1 };
        if self.notices_identity {
            self.identity.clone_from(&has.identity);
        }
    }
}
