//! Atomic batches that are still open, on their stream's leader.
//!
//! Messages of a batch wait here, in memory, until the one that commits them all comes; then they are proposed
//! together. What waits is not replicated: if the leader goes, the batch goes, and its publisher is told so when it
//! commits. Codes and the order of the checks are nats-server's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use levee_protocol::api::advisory::Abandoned;
use levee_protocol::api::{ApiError, RareIntent};
use tokio::time::Instant;

use crate::limits::BatchLimits;
use crate::stream::compose::Piece;

/// Most bytes of all open batches of a stream: what is committed at once has to fit into one log entry.
const BYTES_MAX: usize = 64 << 20;
const ID_CHARS_MAX: usize = 64;

/// The open batches of one stream.
#[derive(Debug)]
pub(super) struct Batches {
    open: BTreeMap<String, Batch>,
    bytes: usize,
    limits: BatchLimits,
    /// Of the whole node.
    on_node: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Batch {
    pieces: Vec<Piece>,
    bytes: usize,
    touched: Instant,
    /// Counts as open as long as it lives.
    _place: Place,
}

/// One of the batches that may be open on a node.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

/// What becomes of a message of a batch.
#[derive(Debug)]
pub(super) enum Offer {
    /// It waits for the others.
    Waits,
    /// All are there.
    Commits(Vec<Piece>),
    /// It is refused. If that ends a batch, why.
    Refused(ApiError, Option<Abandoned>),
}

/// How a message ends its batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Commit {
    No,
    /// With itself.
    Inclusive,
    /// With what came before it.
    Exclusive,
}

impl Batches {
    pub(super) fn new(limits: BatchLimits, on_node: Arc<AtomicUsize>) -> Self {
        Self { open: BTreeMap::new(), bytes: 0, limits, on_node }
    }

    /// Takes a message with a batch id.
    pub(super) fn offer(&mut self, rare: &RareIntent<'_>, piece: Piece, now: Instant) -> Offer {
        let id = rare.batch_id.unwrap_or_default();
        if id.chars().count() > ID_CHARS_MAX {
            return Offer::Refused(ApiError::atomic_id_invalid(), None);
        }
        let Some(seq) = rare.batch_seq.and_then(|seq| seq.parse::<u64>().ok()) else {
            return self.refuse(id, ApiError::atomic_sequence_missing(), Abandoned::Unsupported);
        };
        let commit = match rare.batch_commit {
            None => Commit::No,
            Some("1") => Commit::Inclusive,
            Some("eob") => Commit::Exclusive,
            Some(_) => return self.refuse(id, ApiError::atomic_commit_invalid(), Abandoned::Unsupported),
        };
        let place = seq - u64::from(commit == Commit::Exclusive && seq > 0);
        let messages_max = self.limits.messages_max;
        if place > messages_max {
            return self.refuse(id, ApiError::atomic_too_large(messages_max), Abandoned::Large);
        }
        let expected = self.open.get(id).map_or(1, |batch| batch.pieces.len() as u64 + 1);
        if seq != expected || (seq == 1 && commit == Commit::Exclusive) {
            return self.refuse(id, ApiError::atomic_incomplete(), Abandoned::Incomplete);
        }
        if commit == Commit::Exclusive {
            let mut pieces = self.take(id).map(|batch| batch.pieces).unwrap_or_default();
            if let Some(last) = pieces.last_mut() {
                last.commits = true;
            }
            return Offer::Commits(pieces);
        }
        if seq == 1 {
            let place = Place::take(&self.on_node, self.limits.atomic_on_node_max);
            let Some(_place) = place.filter(|_| self.open.len() < self.limits.atomic_per_stream_max) else {
                return Offer::Refused(ApiError::atomic_too_many_inflight(), None);
            };
            let batch = Batch { pieces: Vec::new(), bytes: 0, touched: now, _place };
            self.open.insert(id.to_owned(), batch);
        }
        let bytes = piece.bytes();
        if self.bytes + bytes > BYTES_MAX {
            return self.refuse(id, ApiError::atomic_too_many_inflight(), Abandoned::Large);
        }
        self.bytes += bytes;
        if let Some(batch) = self.open.get_mut(id) {
            batch.bytes += bytes;
            batch.touched = now;
            batch.pieces.push(piece);
        }
        match commit {
            Commit::Inclusive => Offer::Commits(self.take(id).map(|batch| batch.pieces).unwrap_or_default()),
            Commit::No | Commit::Exclusive => Offer::Waits,
        }
    }

    /// Gives up a batch because of a message that is refused.
    pub(super) fn refuse(&mut self, id: &str, error: ApiError, why: Abandoned) -> Offer {
        let was_open = self.take(id).is_some();
        Offer::Refused(error, was_open.then_some(why))
    }

    /// Gives up the batches to which nothing was added for too long, and says which.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<String> {
        let idle =
            self.open.iter().filter(|(_, batch)| now.duration_since(batch.touched) >= self.limits.idle_max);
        let idle: Vec<String> = idle.map(|(id, _)| id.clone()).collect();
        for id in &idle {
            self.take(id);
        }
        idle
    }

    /// When the next batch has been idle for too long, unless something is added to it.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.open.values().map(|batch| batch.touched + self.limits.idle_max).min()
    }

    fn take(&mut self, id: &str) -> Option<Batch> {
        let batch = self.open.remove(id)?;
        self.bytes -= batch.bytes;
        Some(batch)
    }
}

impl Place {
    /// A place, if fewer than `max` are taken.
    pub(super) fn take(on_node: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let place = Self(Arc::clone(on_node));
        let open = on_node.fetch_add(1, Ordering::AcqRel);
        (open < max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use levee_protocol::ids::AccountName;
    use levee_protocol::wire::Span;

    use super::*;
    use crate::router::InboundItem;

    fn piece(size: u32) -> Piece {
        let payload = Span { start: 0, end: size };
        let item = InboundItem { payload, ..InboundItem::default() };
        Piece::new(AccountName::global(), Bytes::from(vec![0; size as usize]), item)
    }

    const LIMITS: BatchLimits = BatchLimits::DEFAULT;
    const OPEN_MAX: usize = LIMITS.atomic_per_stream_max;
    const OPEN_ON_NODE_MAX: usize = LIMITS.atomic_on_node_max;
    const IDLE_MAX: std::time::Duration = LIMITS.idle_max;

    fn batches() -> Batches {
        Batches::new(LIMITS, Arc::default())
    }

    /// Offers a message and says what came of it: how many commit, `None` while it waits, or the error.
    fn offer(batches: &mut Batches, id: &str, seq: &str, commit: Option<&str>) -> Result<Option<usize>, u16> {
        let rare = RareIntent {
            batch_id: Some(id),
            batch_seq: Some(seq),
            batch_commit: commit,
            ..Default::default()
        };
        match batches.offer(&rare, piece(10), crate::runtime::clock::monotonic()) {
            Offer::Waits => Ok(None),
            Offer::Commits(pieces) => Ok(Some(pieces.len())),
            Offer::Refused(error, _) => Err(error.err_code),
        }
    }

    #[test]
    fn messages_wait_for_the_one_that_commits_them() {
        let mut batches = batches();

        assert_eq!(offer(&mut batches, "a", "1", None), Ok(None));
        assert_eq!(offer(&mut batches, "b", "1", Some("1")), Ok(Some(1)));
        assert_eq!(offer(&mut batches, "a", "2", None), Ok(None));
        assert_eq!(offer(&mut batches, "a", "3", Some("1")), Ok(Some(3)));
        assert_eq!(offer(&mut batches, "c", "1", None), Ok(None));
        assert_eq!(offer(&mut batches, "c", "2", Some("eob")), Ok(Some(1)));
        assert_eq!((batches.bytes, batches.open.len(), batches.on_node.load(Ordering::Acquire)), (0, 0, 0));
    }

    #[test]
    fn what_can_not_be_right_ends_the_batch() {
        for (seq, commit, code) in [
            ("1", None, 10176),
            ("3", None, 10176),
            ("0", None, 10176),
            ("x", None, 10175),
            ("2", Some("2"), 10200),
            ("1001", None, 10199),
        ] {
            let mut batches = batches();
            assert_eq!(offer(&mut batches, "a", "1", None), Ok(None));
            assert_eq!(offer(&mut batches, "a", seq, commit), Err(code), "{seq} {commit:?}");
            assert_eq!(offer(&mut batches, "a", "2", Some("1")), Err(10176), "after {seq} {commit:?}");
        }
        let mut batches = batches();
        assert_eq!(offer(&mut batches, "a", "1", Some("eob")), Err(10176));
        assert_eq!(offer(&mut batches, "a", "2", None), Err(10176));
        assert_eq!(offer(&mut batches, "a", "1002", Some("eob")), Err(10199));
        assert_eq!(offer(&mut batches, &"x".repeat(65), "1", None), Err(10179));
        assert_eq!(offer(&mut batches, &"x".repeat(64), "1", Some("1")), Ok(Some(1)));
    }

    #[test]
    fn a_batch_has_a_thousand_messages_at_most() {
        let mut batches = batches();
        for seq in 1..=1000 {
            assert_eq!(offer(&mut batches, "a", &seq.to_string(), None), Ok(None));
        }
        assert_eq!(offer(&mut batches, "a", "1001", Some("eob")), Ok(Some(1000)));
    }

    #[test]
    fn so_many_batches_are_open_and_no_more() {
        let mut batches = batches();
        for number in 0..OPEN_MAX {
            assert_eq!(offer(&mut batches, &number.to_string(), "1", None), Ok(None));
        }
        assert_eq!(offer(&mut batches, "more", "1", Some("1")), Err(10210));
        assert_eq!(offer(&mut batches, "0", "2", Some("1")), Ok(Some(2)));
        assert_eq!(offer(&mut batches, "more", "1", Some("1")), Ok(Some(1)));

        let on_node = Arc::new(AtomicUsize::new(OPEN_ON_NODE_MAX));
        let mut elsewhere = Batches::new(LIMITS, Arc::clone(&on_node));
        assert_eq!(offer(&mut elsewhere, "a", "1", None), Err(10210));
        assert_eq!(on_node.load(Ordering::Acquire), OPEN_ON_NODE_MAX);
    }

    #[test]
    fn a_stream_holds_so_many_bytes_of_open_batches_and_no_more() {
        let mut batches = batches();
        let rare = |seq| RareIntent { batch_id: Some("a"), batch_seq: Some(seq), ..Default::default() };
        let now = crate::runtime::clock::monotonic();
        let half = u32::try_from(BYTES_MAX / 2).unwrap();

        assert!(matches!(batches.offer(&rare("1"), piece(half), now), Offer::Waits));
        assert!(matches!(batches.offer(&rare("2"), piece(half), now), Offer::Waits));
        let more = batches.offer(&rare("3"), piece(1), now);
        assert!(matches!(more, Offer::Refused(error, Some(Abandoned::Large)) if error.err_code == 10210));
        assert_eq!(batches.bytes, 0);
    }

    #[test]
    fn a_batch_that_is_idle_for_too_long_is_given_up() {
        let mut batches = batches();
        let start = crate::runtime::clock::monotonic();
        let rare = |id, seq| RareIntent { batch_id: Some(id), batch_seq: Some(seq), ..Default::default() };
        batches.offer(&rare("a", "1"), piece(1), start);
        batches.offer(&rare("b", "1"), piece(1), start + IDLE_MAX / 2);

        assert_eq!(batches.next_expiry(), Some(start + IDLE_MAX));
        assert!(batches.expire(start + IDLE_MAX / 2).is_empty());
        assert_eq!(batches.expire(start + IDLE_MAX), ["a"]);
        batches.offer(&rare("b", "2"), piece(1), start + IDLE_MAX);
        assert_eq!(batches.next_expiry(), Some(start + IDLE_MAX * 2));
    }
}
