//! Fast batches that are open, on their stream's leader: how far each is, and what its publisher is told.
//!
//! Messages of a fast batch are stored as they come, like others; here is only what is known about the batch. It is not
//! replicated: after a change of the leader the publisher hears that the batch is unknown, and knows from the acks what
//! was stored. Flow control and the cases in which a batch ends are nats-server's, but for one thing: a message that is
//! refused where holes do not matter is acked like others. Without, whoever waits for that ack waits in vain.

use std::collections::BTreeMap;
use std::time::Duration;

use levee_protocol::api::ApiError;
use levee_protocol::api::fast_batch::{FastReply, Gap, Op};
use levee_protocol::ids::Seq;

use super::PublishReply;

/// Most messages between two acks of a lone publisher; several share it.
const FLOW_MAX: u16 = 500;

/// The open fast batches of one stream. Each has a place, whatever that counts for elsewhere, until it ends.
///
/// Times are spans since one moment, any that comes before them all.
#[derive(Debug)]
pub struct FastBatches<P> {
    open: BTreeMap<String, Fast<P>>,
    open_max: usize,
    idle_max: Duration,
}

#[derive(Debug)]
struct Fast<P> {
    gap: Gap,
    /// Most messages between two acks that the client allows.
    flow_max: u16,
    /// Messages between two acks now.
    flow: u16,
    /// The last message that counts.
    last: u64,
    /// Up to here, what became of messages is known.
    settled: u64,
    /// The message of the last ack.
    acked: u64,
    /// The last sequence of the stream that one of its messages got.
    stored: Seq,
    /// Messages of which it is not known what became of them.
    pending: usize,
    /// No more messages are taken.
    committing: bool,
    touched: Duration,
    _place: P,
}

/// A message of a batch that is on its way through the log.
#[derive(Clone, Debug)]
pub struct Ticket {
    id: String,
    seq: u64,
    commits: bool,
    /// Whether it may be stored only if those before it were.
    pub is_chained: bool,
}

impl Ticket {
    /// The batch.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// What a publisher is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// What became of messages up to this one is known: they are stored, unless something else was told about them.
    Ack {
        /// The message.
        seq: u64,
        /// Another ack comes every so many messages.
        msgs: u16,
    },
    /// Messages are missing, or came again.
    Gap {
        /// The message that was next.
        expected: u64,
        /// The one that came.
        seq: u64,
    },
    /// A message is not stored.
    Error {
        /// The message.
        seq: u64,
        /// Why.
        error: ApiError,
    },
    /// The batch has ended.
    Ended {
        /// The last sequence of the stream that one of its messages got.
        seq: Seq,
        /// The last message that counts.
        count: u64,
        /// Whether its only message was stored before.
        duplicate: bool,
    },
    /// There is no such batch, or none any more.
    Refused(ApiError),
}

impl<P> FastBatches<P> {
    /// None open yet. Of a stream no more than `open_max` are at one time, and none that is idle for `idle_max`.
    #[must_use]
    pub fn new(open_max: usize, idle_max: Duration) -> Self {
        Self { open: BTreeMap::new(), open_max, idle_max }
    }

    /// Takes a message; the first one of a batch only if there is a place for that. A ticket comes back if it is to be
    /// stored; whoever sent it is told what is said, in any case.
    pub fn offer(
        &mut self,
        fast: &FastReply<'_>,
        place: impl FnOnce() -> Option<P>,
        now: Duration,
        said: &mut Vec<Said>,
    ) -> Option<Ticket> {
        if !self.open.contains_key(fast.id)
            && let Err(error) = self.begin(fast, place, now)
        {
            said.push(Said::Refused(error));
            return None;
        }
        let batch = self.open.get_mut(fast.id)?;
        batch.touched = now;
        if fast.op == Op::Ping {
            self.ping(fast, said);
            return None;
        }
        // It ends because of an error, and the publisher will hear so.
        if batch.committing {
            return None;
        }
        let expected = batch.last + 1;
        if fast.seq != expected {
            said.push(Said::Gap { expected, seq: fast.seq });
            if batch.gap == Gap::Fail || fast.seq < expected {
                batch.committing = true;
                self.finish(fast.id, said);
                return None;
            }
        }
        batch.last = fast.seq;
        match fast.op {
            Op::CommitExclusive => {
                batch.last = fast.seq - 1;
                batch.committing = true;
                self.finish(fast.id, said);
                return None;
            }
            Op::Commit => batch.committing = true,
            Op::Start | Op::Append | Op::Ping if fast.seq == 1 => {
                said.push(Said::Ack { seq: 0, msgs: batch.flow });
            }
            Op::Start | Op::Append | Op::Ping => {}
        }
        batch.pending += 1;
        Some(Ticket {
            id: fast.id.to_owned(),
            seq: fast.seq,
            commits: fast.op == Op::Commit,
            is_chained: batch.gap == Gap::Fail,
        })
    }

    fn begin(
        &mut self,
        fast: &FastReply<'_>,
        place: impl FnOnce() -> Option<P>,
        now: Duration,
    ) -> Result<(), ApiError> {
        if fast.seq != 1 || fast.op == Op::Ping {
            return Err(ApiError::batch_id_unknown());
        }
        if self.open.len() >= self.open_max {
            return Err(ApiError::batch_too_many_inflight());
        }
        let _place = place().ok_or_else(ApiError::batch_too_many_inflight)?;
        // One that is alone gets what it asks for; several begin slowly.
        let flow = if self.open.is_empty() { fast.flow.min(FLOW_MAX) } else { 1 };
        let batch = Fast {
            gap: fast.gap,
            flow_max: fast.flow,
            flow,
            last: 0,
            settled: 0,
            acked: 0,
            stored: Seq::NONE,
            pending: 0,
            committing: false,
            touched: now,
            _place,
        };
        self.open.insert(fast.id.to_owned(), batch);
        Ok(())
    }

    fn ping(&mut self, fast: &FastReply<'_>, said: &mut Vec<Said>) {
        let open = self.open.len();
        let Some(batch) = self.open.get_mut(fast.id) else { return };
        if fast.seq > batch.last {
            said.push(Said::Gap { expected: batch.last + 1, seq: fast.seq + 1 });
            if batch.gap == Gap::Ok {
                batch.last = fast.seq;
                if batch.pending == 0 {
                    batch.settled = batch.last;
                }
                if batch.flow_ack(open, said) {
                    return;
                }
            } else {
                batch.committing = true;
                if self.finish(fast.id, said) {
                    return;
                }
            }
        }
        if let Some(batch) = self.open.get(fast.id) {
            said.push(Said::Ack { seq: batch.acked, msgs: batch.flow });
        }
    }

    /// What became of a message is known.
    pub fn settle(&mut self, ticket: &Ticket, reply: &PublishReply, said: &mut Vec<Said>) {
        let open = self.open.len();
        let Some(batch) = self.open.get_mut(&ticket.id) else { return };
        batch.pending = batch.pending.saturating_sub(1);
        let ends_with_it = batch.gap == Gap::Fail && ticket.seq == 1;
        match reply {
            PublishReply::Stored { seq, .. } => {
                batch.stored = *seq;
                batch.settled = ticket.seq;
            }
            PublishReply::Duplicate { seq } => {
                // It is acked even if the batch ends with it.
                if batch.pending == 0 {
                    batch.settled = batch.last;
                    batch.flow_ack(open, said);
                }
                if ends_with_it && ticket.commits {
                    said.push(Said::Ended { seq: *seq, count: 1, duplicate: true });
                    self.open.remove(&ticket.id);
                    return;
                }
            }
            // One before it was refused.
            PublishReply::Skipped => batch.leave_out(ticket),
            PublishReply::Rejected(_) | PublishReply::Outdated => {
                let error = match reply {
                    PublishReply::Rejected(error) => error.clone(),
                    // Nobody writes a message of a batch anew.
                    _ => ApiError::not_available(),
                };
                if ends_with_it {
                    said.push(Said::Refused(error));
                    self.open.remove(&ticket.id);
                    return;
                }
                said.push(Said::Error { seq: ticket.seq, error });
                batch.leave_out(ticket);
            }
        }
        if !self.finish(&ticket.id, said)
            && let Some(batch) = self.open.get_mut(&ticket.id)
        {
            batch.flow_ack(open, said);
        }
    }

    /// Ends a batch that is to end and of which everything is known. Whether it did.
    fn finish(&mut self, id: &str, said: &mut Vec<Said>) -> bool {
        let Some(batch) = self.open.get_mut(id) else { return false };
        if batch.pending == 0 {
            batch.settled = batch.last;
        }
        if !batch.committing || batch.pending > 0 {
            return false;
        }
        said.push(Said::Ended { seq: batch.stored, count: batch.last, duplicate: false });
        self.open.remove(id);
        true
    }

    /// What becomes of the messages under way will not be told: all batches end without a word, and their publishers
    /// begin again.
    pub fn abandon(&mut self) {
        self.open.clear();
    }

    /// Whether messages wait that may be stored only if others are: then one block is on its way at a time.
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.open.values().any(|batch| batch.gap == Gap::Fail && batch.pending > 0)
    }

    /// Gives up batches that have been idle for too long. Nobody is told.
    pub fn expire(&mut self, now: Duration) {
        let idle_max = self.idle_max;
        self.open.retain(|_, batch| batch.pending > 0 || now.saturating_sub(batch.touched) < idle_max);
    }

    /// When the next batch has been idle for too long, unless something is added to it.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        let idle = self.open.values().filter(|batch| batch.pending == 0);
        idle.map(|batch| batch.touched + self.idle_max).min()
    }
}

impl<P> Fast<P> {
    /// A message was not stored, which ends a batch that may have no hole, or that it was to commit.
    fn leave_out(&mut self, ticket: &Ticket) {
        if self.gap == Gap::Fail || ticket.commits {
            self.last = self.last.min(ticket.seq - 1);
            self.committing = true;
        }
    }

    /// Acks what is settled, if it is time for that. Whether it was.
    fn flow_ack(&mut self, open: usize, said: &mut Vec<Said>) -> bool {
        let flow = u64::from(self.flow);
        if self.settled < self.acked + flow {
            return false;
        }
        self.acked += (self.settled - self.acked) / flow * flow;
        let share = u16::try_from(usize::from(FLOW_MAX) / open.max(1)).unwrap_or(FLOW_MAX);
        let share = share.max(1).min(self.flow_max);
        self.flow = if self.flow < share {
            self.flow.saturating_mul(2).min(share)
        } else {
            (self.flow / 2).max(share).min(self.flow)
        };
        said.push(Said::Ack { seq: self.acked, msgs: self.flow });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(10);

    struct Bench(FastBatches<()>);

    impl Bench {
        fn new(open_max: usize) -> Self {
            Self(FastBatches::new(open_max, IDLE_MAX))
        }

        /// Sends a message: whether it is stored, and what is said.
        fn send(&mut self, id: &str, flow: u16, mode: &str, seq: u64, op: u8) -> (Option<Ticket>, String) {
            let reply = format!("i.{id}.{flow}.{mode}.{seq}.{op}.$FI");
            let fast = FastReply::parse(reply.as_bytes()).unwrap();
            let mut said = Vec::new();
            let ticket = self.0.offer(&fast, || Some(()), Duration::ZERO, &mut said);
            (ticket, text(&said))
        }

        fn settle(&mut self, ticket: Option<Ticket>, reply: PublishReply) -> String {
            let mut said = Vec::new();
            self.0.settle(&ticket.expect("it was taken"), &reply, &mut said);
            text(&said)
        }
    }

    fn text(said: &[Said]) -> String {
        let line = |said: &Said| match said {
            Said::Ack { seq, msgs } => format!("ack {seq} every {msgs}"),
            Said::Gap { expected, seq } => format!("gap {expected} to {seq}"),
            Said::Error { seq, error } => format!("error {seq} {}", error.err_code),
            Said::Ended { seq, count, .. } => format!("end {count} at {seq}"),
            Said::Refused(error) => format!("refused {}", error.err_code),
        };
        said.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    fn stored(seq: u64) -> PublishReply {
        PublishReply::Stored { seq: Seq(seq), before: Seq::NONE }
    }

    fn refused() -> PublishReply {
        PublishReply::Rejected(ApiError::bad_request())
    }

    #[test]
    fn acks_come_every_so_many_messages_and_the_last_ends_the_batch() {
        let mut bench = Bench::new(10);
        let (first, said) = bench.send("b", 2, "fail", 1, 0);
        assert_eq!(said, "ack 0 every 2");
        assert_eq!(bench.settle(first, stored(5)), "");
        let (second, _) = bench.send("b", 2, "fail", 2, 1);
        assert_eq!(bench.settle(second, stored(6)), "ack 2 every 2");
        let (third, said) = bench.send("b", 2, "fail", 3, 2);
        assert_eq!(said, "");
        assert_eq!(bench.settle(third, stored(7)), "end 3 at 7");
        assert_eq!(bench.send("b", 2, "fail", 4, 1).1, "refused 10208");
    }

    #[test]
    fn a_commit_without_a_message_ends_at_the_one_before() {
        let mut bench = Bench::new(10);
        let (first, _) = bench.send("b", 9, "ok", 1, 0);
        let (none, said) = bench.send("b", 9, "ok", 2, 3);
        assert!(none.is_none() && said.is_empty(), "the first is on its way");
        assert_eq!(bench.settle(first, stored(5)), "end 1 at 5");
    }

    #[test]
    fn a_hole_is_told_and_ends_a_batch_that_must_have_none() {
        let mut bench = Bench::new(10);
        for mode in ["ok", "fail"] {
            let (first, _) = bench.send(mode, 9, mode, 1, 0);
            bench.settle(first, stored(1));
        }
        let (fourth, said) = bench.send("ok", 9, "ok", 4, 1);
        assert_eq!(said, "gap 2 to 4");
        bench.settle(fourth, stored(2));
        let (commit, _) = bench.send("ok", 9, "ok", 5, 2);
        assert_eq!(bench.settle(commit, stored(3)), "end 5 at 3");
        assert_eq!(bench.send("fail", 9, "fail", 4, 1).1, "gap 2 to 4, end 1 at 1");
    }

    #[test]
    fn a_refused_message_ends_a_batch_that_must_have_no_hole() {
        let mut bench = Bench::new(10);
        let tickets: Vec<_> =
            (1..=3).map(|seq| bench.send("b", 9, "fail", seq, u8::from(seq > 1)).0).collect();
        assert!(bench.0.is_chained());
        let mut tickets = tickets.into_iter();
        assert_eq!(bench.settle(tickets.next().unwrap(), stored(1)), "");
        assert_eq!(bench.settle(tickets.next().unwrap(), refused()), "error 2 10003");
        assert_eq!(bench.send("b", 9, "fail", 4, 1).1, "", "no more is taken");
        assert_eq!(bench.settle(tickets.next().unwrap(), PublishReply::Skipped), "end 1 at 1");

        let (only, _) = bench.send("c", 9, "fail", 1, 2);
        assert_eq!(bench.settle(only, refused()), "refused 10003");
        let (first, _) = bench.send("d", 9, "ok", 1, 0);
        assert_eq!(bench.settle(first, refused()), "error 1 10003");
        let (second, _) = bench.send("d", 9, "ok", 2, 2);
        assert_eq!(bench.settle(second, stored(2)), "end 2 at 2");
    }

    #[test]
    fn refused_messages_are_acked_like_others_where_a_hole_does_not_matter() {
        let mut bench = Bench::new(10);
        let tickets: Vec<_> = (1..=3).map(|seq| bench.send("b", 1, "ok", seq, u8::from(seq > 1)).0).collect();
        let mut tickets = tickets.into_iter();

        assert_eq!(bench.settle(tickets.next().unwrap(), stored(1)), "ack 1 every 1");
        assert_eq!(bench.settle(tickets.next().unwrap(), refused()), "error 2 10003");
        assert_eq!(bench.settle(tickets.next().unwrap(), refused()), "error 3 10003, ack 3 every 1");
        assert_eq!(bench.send("b", 1, "ok", 3, 4).1, "ack 3 every 1");
    }

    #[test]
    fn a_duplicate_is_acked_before_it_ends_its_batch() {
        let mut bench = Bench::new(10);

        for (mode, end) in [("fail", "end 1 at 5"), ("ok", "end 1 at 0")] {
            let (only, _) = bench.send("b", 1, mode, 1, 2);
            let said = bench.settle(only, PublishReply::Duplicate { seq: Seq(5) });
            assert_eq!(said, format!("ack 1 every 1, {end}"));
        }
    }

    #[test]
    fn a_ping_tells_the_last_ack_again_and_what_is_missing() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.send("b", 1, "ok", 1, 4).1, "refused 10208");
        let (first, _) = bench.send("b", 1, "ok", 1, 0);
        bench.settle(first, stored(1));
        assert_eq!(bench.send("b", 1, "ok", 1, 4).1, "ack 1 every 1");
        assert_eq!(bench.send("b", 1, "ok", 3, 4).1, "gap 2 to 4, ack 3 every 1");
    }

    #[test]
    fn so_many_are_open_and_idle_ones_go() {
        let mut bench = Bench::new(2);
        bench.send("a", 9, "ok", 1, 0);
        let (second, said) = bench.send("b", 9, "ok", 1, 0);
        assert_eq!(said, "ack 0 every 1", "several begin slowly");
        assert_eq!(bench.send("c", 9, "ok", 1, 0).1, "refused 10211");
        assert_eq!(bench.settle(second, stored(1)), "ack 1 every 2");
        assert_eq!(bench.0.next_expiry(), Some(IDLE_MAX));
        bench.0.expire(IDLE_MAX);
        assert_eq!(bench.send("b", 9, "ok", 2, 1).1, "refused 10208");
        assert!(bench.send("a", 9, "ok", 2, 1).0.is_some(), "one that waits for the log is not idle");
    }

    #[test]
    fn a_batch_begins_only_where_there_is_a_place() {
        let mut bench = Bench::new(2);
        let fast = FastReply::parse(b"i.b.9.ok.1.0.$FI").unwrap();
        let mut said = Vec::new();

        assert!(bench.0.offer(&fast, || None, Duration::ZERO, &mut said).is_none());

        assert_eq!(text(&said), "refused 10211");
    }
}
