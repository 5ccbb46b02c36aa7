//! Fast batches that are open, on their stream's leader: how far each is, and what its publisher is told.
//!
//! Messages of a fast batch are stored as they come, like others; here is only what is known about the batch. It is not
//! replicated: after a change of the leader the publisher hears that the batch is unknown, and knows from the acks what
//! was stored. Flow control and the cases in which a batch ends are nats-server's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use levee_broker_core::stream::PublishReply;
use levee_protocol::api::fast_batch::{FastReply, Gap, Op, flow_ack, flow_error, flow_gap};
use levee_protocol::api::{ApiError, PubAck};
use levee_protocol::ids::Seq;
use tokio::time::Instant;

use crate::limits::BatchLimits;
use crate::stream::batches::Place;
use crate::stream::ingest::PubAckStream;

/// Most messages between two acks of a lone publisher; several share it.
const FLOW_MAX: u16 = 500;

/// The open fast batches of one stream.
#[derive(Debug)]
pub(super) struct FastBatches {
    open: BTreeMap<String, Fast>,
    limits: BatchLimits,
    /// Of the whole node.
    on_node: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Fast {
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
    touched: Instant,
    /// Counts as open as long as it lives.
    _place: Place,
}

/// A message of a batch that is on its way through the log.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    id: String,
    seq: u64,
    commits: bool,
    /// Whether it may be stored only if those before it were.
    pub(super) is_chained: bool,
}

impl Ticket {
    /// The batch.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

/// What the publisher is told.
#[derive(Debug, Default)]
pub(super) struct Said(pub(super) Vec<Vec<u8>>);

impl FastBatches {
    pub(super) fn new(limits: BatchLimits, on_node: Arc<AtomicUsize>) -> Self {
        Self { open: BTreeMap::new(), limits, on_node }
    }

    /// Takes a message. A ticket comes back if it is to be stored; whoever sent it is told what is said, in any case.
    pub(super) fn offer(
        &mut self,
        fast: &FastReply<'_>,
        stream: &PubAckStream,
        now: Instant,
        said: &mut Said,
    ) -> Result<Option<Ticket>, ApiError> {
        if !self.open.contains_key(fast.id) {
            self.begin(fast, now)?;
        }
        let Some(batch) = self.open.get_mut(fast.id) else { return Ok(None) };
        batch.touched = now;
        if fast.op == Op::Ping {
            self.ping(fast, stream, said);
            return Ok(None);
        }
        // It ends because of an error, and the publisher will hear so.
        if batch.committing {
            return Ok(None);
        }
        let expected = batch.last + 1;
        if fast.seq != expected {
            said.0.push(flow_gap(expected, fast.seq));
            if batch.gap == Gap::Fail || fast.seq < expected {
                batch.committing = true;
                self.finish(fast.id, stream, said);
                return Ok(None);
            }
        }
        batch.last = fast.seq;
        match fast.op {
            Op::CommitExclusive => {
                batch.last = fast.seq - 1;
                batch.committing = true;
                self.finish(fast.id, stream, said);
                return Ok(None);
            }
            Op::Commit => batch.committing = true,
            Op::Start | Op::Append | Op::Ping if fast.seq == 1 => said.0.push(flow_ack(0, batch.flow)),
            Op::Start | Op::Append | Op::Ping => {}
        }
        batch.pending += 1;
        Ok(Some(Ticket {
            id: fast.id.to_owned(),
            seq: fast.seq,
            commits: fast.op == Op::Commit,
            is_chained: batch.gap == Gap::Fail,
        }))
    }

    fn begin(&mut self, fast: &FastReply<'_>, now: Instant) -> Result<(), ApiError> {
        if fast.seq != 1 || fast.op == Op::Ping {
            return Err(ApiError::batch_id_unknown());
        }
        let place = Place::take(&self.on_node, self.limits.fast_on_node_max);
        let Some(_place) = place.filter(|_| self.open.len() < self.limits.fast_per_stream_max) else {
            return Err(ApiError::batch_too_many_inflight());
        };
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

    fn ping(&mut self, fast: &FastReply<'_>, stream: &PubAckStream, said: &mut Said) {
        let others = self.open.len();
        let Some(batch) = self.open.get_mut(fast.id) else { return };
        if fast.seq > batch.last {
            said.0.push(flow_gap(batch.last + 1, fast.seq + 1));
            if batch.gap == Gap::Ok {
                batch.last = fast.seq;
                if batch.pending == 0 {
                    batch.settled = batch.last;
                }
                if batch.flow_ack(others, said) {
                    return;
                }
            } else {
                batch.committing = true;
                if self.finish(fast.id, stream, said) {
                    return;
                }
            }
        }
        if let Some(batch) = self.open.get(fast.id) {
            said.0.push(flow_ack(batch.acked, batch.flow));
        }
    }

    /// What became of a message is known.
    pub(super) fn settle(
        &mut self,
        ticket: &Ticket,
        reply: &PublishReply,
        stream: &PubAckStream,
        said: &mut Said,
    ) {
        let others = self.open.len();
        let Some(batch) = self.open.get_mut(&ticket.id) else { return };
        batch.pending = batch.pending.saturating_sub(1);
        // Nobody writes a message of a batch anew, so its publisher hears that it was not stored.
        let outdated = PublishReply::Rejected(ApiError::not_available());
        match if *reply == PublishReply::Outdated { &outdated } else { reply } {
            PublishReply::Stored { seq, .. } => {
                batch.stored = *seq;
                batch.settled = if batch.pending == 0 { batch.last } else { ticket.seq };
                if !self.finish(&ticket.id, stream, said)
                    && let Some(batch) = self.open.get_mut(&ticket.id)
                {
                    batch.flow_ack(others, said);
                }
            }
            PublishReply::Duplicate { seq } => {
                if batch.pending == 0 {
                    batch.settled = batch.last;
                    batch.flow_ack(others, said);
                }
                if ticket.commits && batch.gap == Gap::Fail && ticket.seq == 1 {
                    let ack = batch.pub_ack(stream, &ticket.id, *seq, ticket.seq);
                    said.0.push(encoded(PubAck { duplicate: true, ..ack }));
                    self.open.remove(&ticket.id);
                    return;
                }
                self.finish(&ticket.id, stream, said);
            }
            PublishReply::Rejected(error) => {
                if batch.gap == Gap::Fail && ticket.seq == 1 {
                    let mut text = Vec::new();
                    PubAck::encode_rejection(&stream.name, error, &mut text);
                    said.0.push(text);
                    self.open.remove(&ticket.id);
                    return;
                }
                said.0.push(flow_error(ticket.seq, error));
                if batch.gap == Gap::Fail || ticket.commits {
                    batch.last = batch.last.min(ticket.seq - 1);
                    batch.committing = true;
                }
                self.none_pending(ticket, stream, said);
            }
            // One before it was refused.
            PublishReply::Skipped | PublishReply::Outdated => {
                if batch.gap == Gap::Fail || ticket.commits {
                    batch.last = batch.last.min(ticket.seq - 1);
                    batch.committing = true;
                }
                self.none_pending(ticket, stream, said);
            }
        }
    }

    fn none_pending(&mut self, ticket: &Ticket, stream: &PubAckStream, said: &mut Said) {
        if let Some(batch) = self.open.get_mut(&ticket.id)
            && batch.pending == 0
            && batch.committing
        {
            batch.settled = batch.last;
        }
        self.finish(&ticket.id, stream, said);
    }

    /// Ends a batch that is to end and of which everything is known. Whether it did.
    fn finish(&mut self, id: &str, stream: &PubAckStream, said: &mut Said) -> bool {
        let Some(batch) = self.open.get_mut(id) else { return false };
        if batch.pending == 0 {
            batch.settled = batch.last;
        }
        if !batch.committing || batch.settled != batch.last || batch.pending > 0 {
            return false;
        }
        said.0.push(encoded(batch.pub_ack(stream, id, batch.stored, batch.last)));
        self.open.remove(id);
        true
    }

    /// What becomes of the messages under way will not be told: all batches end without a word, and their publishers
    /// begin again.
    pub(super) fn abandon(&mut self) {
        self.open.clear();
    }

    /// Whether messages wait that may be stored only if others are: then one block is on its way at a time.
    pub(super) fn is_chained(&self) -> bool {
        self.open.values().any(|batch| batch.gap == Gap::Fail && batch.pending > 0)
    }

    /// Gives up batches that have been idle for too long. Nobody is told.
    pub(super) fn expire(&mut self, now: Instant) {
        let idle_max = self.limits.idle_max;
        self.open.retain(|_, batch| batch.pending > 0 || now.duration_since(batch.touched) < idle_max);
    }

    /// When the next batch has been idle for too long, unless something is added to it.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let idle = self.open.values().filter(|batch| batch.pending == 0);
        idle.map(|batch| batch.touched + self.limits.idle_max).min()
    }
}

impl Fast {
    /// Acks what is settled, if it is time for that. Whether it was.
    fn flow_ack(&mut self, open: usize, said: &mut Said) -> bool {
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
        said.0.push(flow_ack(self.acked, self.flow));
        true
    }

    fn pub_ack<'a>(&self, stream: &'a PubAckStream, id: &'a str, seq: Seq, count: u64) -> PubAck<'a> {
        PubAck { stream: &stream.name, domain: &stream.domain, seq, batch: id, count, ..PubAck::default() }
    }
}

fn encoded(ack: PubAck<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(96);
    ack.encode(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::monotonic;

    struct Bench {
        batches: FastBatches,
        stream: PubAckStream,
    }

    impl Bench {
        fn new(open_max: usize) -> Self {
            let limits = BatchLimits { fast_per_stream_max: open_max, ..BatchLimits::DEFAULT };
            let stream = PubAckStream { name: "S".into(), domain: String::new() };
            Self { batches: FastBatches::new(limits, Arc::default()), stream }
        }

        /// Sends a message: whether it is stored, and what is said.
        fn send(&mut self, id: &str, flow: u16, mode: &str, seq: u64, op: u8) -> (Option<Ticket>, String) {
            let reply = format!("i.{id}.{flow}.{mode}.{seq}.{op}.$FI");
            let fast = FastReply::parse(reply.as_bytes()).unwrap();
            let mut said = Said::default();
            match self.batches.offer(&fast, &self.stream, monotonic(), &mut said) {
                Ok(ticket) => (ticket, text(said)),
                Err(error) => (None, error.err_code.to_string()),
            }
        }

        fn settle(&mut self, ticket: Option<Ticket>, reply: PublishReply) -> String {
            let mut said = Said::default();
            self.batches.settle(&ticket.expect("it was taken"), &reply, &self.stream, &mut said);
            text(said)
        }
    }

    fn text(said: Said) -> String {
        said.0.into_iter().map(|line| String::from_utf8(line).unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn stored(seq: u64) -> PublishReply {
        PublishReply::Stored { seq: Seq(seq), before: Seq::NONE }
    }

    #[test]
    fn acks_come_every_so_many_messages_and_the_last_is_a_pub_ack() {
        let mut bench = Bench::new(10);
        let (first, said) = bench.send("b", 2, "fail", 1, 0);
        assert_eq!(said, r#"{"type":"ack","seq":0,"msgs":2}"#);
        assert_eq!(bench.settle(first, stored(5)), "");
        let (second, _) = bench.send("b", 2, "fail", 2, 1);
        assert_eq!(bench.settle(second, stored(6)), r#"{"type":"ack","seq":2,"msgs":2}"#);
        let (third, said) = bench.send("b", 2, "fail", 3, 2);
        assert_eq!(said, "");
        assert_eq!(bench.settle(third, stored(7)), r#"{"stream":"S","seq":7,"batch":"b","count":3}"#);
        assert_eq!(bench.send("b", 2, "fail", 4, 1).1, "10208");
    }

    #[test]
    fn a_commit_without_a_message_ends_at_the_one_before() {
        let mut bench = Bench::new(10);
        let (first, _) = bench.send("b", 9, "ok", 1, 0);
        let (none, said) = bench.send("b", 9, "ok", 2, 3);
        assert!(none.is_none() && said.is_empty(), "the first is on its way");
        assert_eq!(bench.settle(first, stored(5)), r#"{"stream":"S","seq":5,"batch":"b","count":1}"#);
    }

    #[test]
    fn a_hole_is_told_and_ends_a_batch_that_must_have_none() {
        let mut bench = Bench::new(10);
        for mode in ["ok", "fail"] {
            let (first, _) = bench.send(mode, 9, mode, 1, 0);
            bench.settle(first, stored(1));
        }
        let gap = r#"{"type":"gap","last_seq":2,"seq":4}"#;
        let (fourth, said) = bench.send("ok", 9, "ok", 4, 1);
        assert_eq!(said, gap);
        bench.settle(fourth, stored(2));
        let (commit, _) = bench.send("ok", 9, "ok", 5, 2);
        assert_eq!(bench.settle(commit, stored(3)), r#"{"stream":"S","seq":3,"batch":"ok","count":5}"#);
        let ended = format!(r#"{gap} {{"stream":"S","seq":1,"batch":"fail","count":1}}"#);
        assert_eq!(bench.send("fail", 9, "fail", 4, 1).1, ended);
    }

    #[test]
    fn a_refused_message_ends_a_batch_that_must_have_no_hole() {
        let refused = || PublishReply::Rejected(ApiError::bad_request());
        let error =
            r#"{"type":"err","seq":2,"error":{"code":400,"err_code":10003,"description":"bad request"}}"#;
        let mut bench = Bench::new(10);
        let tickets: Vec<_> =
            (1..=3).map(|seq| bench.send("b", 9, "fail", seq, u8::from(seq > 1)).0).collect();
        assert!(bench.batches.is_chained());
        let mut tickets = tickets.into_iter();
        assert_eq!(bench.settle(tickets.next().unwrap(), stored(1)), "");
        assert_eq!(bench.settle(tickets.next().unwrap(), refused()), error);
        assert_eq!(bench.send("b", 9, "fail", 4, 1).1, "", "no more is taken");
        let ended = r#"{"stream":"S","seq":1,"batch":"b","count":1}"#;
        assert_eq!(bench.settle(tickets.next().unwrap(), PublishReply::Skipped), ended);

        let (only, _) = bench.send("c", 9, "fail", 1, 2);
        assert!(bench.settle(only, refused()).starts_with(r#"{"error":{"code":400"#));
        let (first, _) = bench.send("d", 9, "ok", 1, 0);
        assert!(bench.settle(first, refused()).starts_with(r#"{"type":"err","seq":1"#));
        let (second, _) = bench.send("d", 9, "ok", 2, 2);
        assert_eq!(bench.settle(second, stored(2)), r#"{"stream":"S","seq":2,"batch":"d","count":2}"#);
    }

    #[test]
    fn a_ping_tells_the_last_ack_again_and_what_is_missing() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.send("b", 1, "ok", 1, 4).1, "10208");
        let (first, _) = bench.send("b", 1, "ok", 1, 0);
        bench.settle(first, stored(1));
        assert_eq!(bench.send("b", 1, "ok", 1, 4).1, r#"{"type":"ack","seq":1,"msgs":1}"#);
        let said = bench.send("b", 1, "ok", 3, 4).1;
        assert_eq!(said, r#"{"type":"gap","last_seq":2,"seq":4} {"type":"ack","seq":3,"msgs":1}"#);
    }

    #[test]
    fn so_many_are_open_and_idle_ones_go() {
        let mut bench = Bench::new(2);
        bench.send("a", 9, "ok", 1, 0);
        let (second, said) = bench.send("b", 9, "ok", 1, 0);
        assert_eq!(said, r#"{"type":"ack","seq":0,"msgs":1}"#, "several begin slowly");
        assert_eq!(bench.send("c", 9, "ok", 1, 0).1, "10211");
        assert_eq!(bench.settle(second, stored(1)), r#"{"type":"ack","seq":1,"msgs":2}"#);
        let due = bench.batches.next_expiry().unwrap();
        bench.batches.expire(due);
        assert_eq!(bench.send("b", 9, "ok", 2, 1).1, "10208");
        assert!(bench.send("a", 9, "ok", 2, 1).0.is_some(), "one that waits for the log is not idle");
    }
}
