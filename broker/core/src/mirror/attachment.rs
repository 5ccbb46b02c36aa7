//! Reading an origin through a consumer that its owner made: what the consumer delivers becomes the answers that a
//! reader gets elsewhere when it asks.
//!
//! It begins with a reset of the consumer to its ack floor. From there deliveries are numbered without a gap, so a gap,
//! or a heartbeat that speaks of more than came, means that something was lost, and all begins again. What is delivered
//! twice does no harm: the copying stream knows what it has. The consumer is acked by answers to flow control, and those
//! wait until what came before the request is stored.

use bytes::Bytes;
use levee_protocol::api::AckReply;
use levee_protocol::ids::Seq;
use levee_protocol::mirror::{FetchAnswer, Reader};
use levee_protocol::record::{BlockBuilder, RecordFlags, RecordRef};
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};

use super::server::{BYTES_MAX, MESSAGES_MAX};

/// For so long deliveries of before the reset may come late.
const STRAYS: Nanos = Nanos::from_secs(1);
/// The consumer gives a sign of life each second.
const SILENCE_MAX: Nanos = Nanos::from_secs(10);

/// A reader that a consumer of the origin delivers to.
#[derive(Debug)]
pub struct Attachment {
    stream: String,
    consumer: String,
    /// The incarnation of the origin, and what was restored of it: as its leader said.
    origin: FetchAnswer,
    attached: Timestamp,
    heard: Timestamp,
    /// The number of the last delivery that was taken; 0 is none.
    consumer_seq: u64,
    /// The sequence of its message, at first the ack floor.
    stream_seq: Seq,
    pending: u64,
    asked: Option<Asked>,
    gathered: Gathered,
    /// Where the next answer begins.
    next: u64,
}

/// A message as it comes from the consumer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delivered<'a> {
    /// Its subject.
    pub subject: &'a [u8],
    /// Where it is acked.
    pub reply: &'a [u8],
    /// Its header block.
    pub header: &'a [u8],
    /// Its body.
    pub payload: &'a [u8],
}

/// An answer to flow control.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlowAnswer {
    /// Where it goes.
    pub to: Bytes,
    /// Up to where everything is stored.
    pub header: Vec<u8>,
}

/// Something was lost, or the consumer is another one: begin again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Broken;

#[derive(Debug)]
struct Asked {
    to: Bytes,
    consumer_seq: u64,
    stream_seq: Seq,
}

#[derive(Debug)]
struct Gathered {
    seqs: Vec<u64>,
    block: BlockBuilder,
}

impl Gathered {
    fn nothing() -> Self {
        Self { seqs: Vec::new(), block: BlockBuilder::timed(0) }
    }
}

impl Attachment {
    /// To this consumer of this stream, as the origin's leader answered.
    #[must_use]
    pub fn new(stream: &str, consumer: &str, origin: FetchAnswer, now: Timestamp) -> Self {
        Self {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            attached: now,
            heard: now,
            consumer_seq: 0,
            stream_seq: Seq(origin.through),
            pending: origin.pending.unwrap_or(0),
            asked: None,
            gathered: Gathered::nothing(),
            next: origin.from,
            origin,
        }
    }

    /// Whether what comes next is what is wanted from this sequence on. It is not if the reader could not store what it got.
    #[must_use]
    pub fn continues(&self, from: u64) -> bool {
        from == self.next
    }

    /// Nothing was heard for so long that the consumer is gone, or delivers to somewhere else.
    #[must_use]
    pub fn is_silent(&self, now: Timestamp) -> bool {
        now.since(self.heard) > SILENCE_MAX
    }

    /// Takes what came.
    pub fn on_delivered(&mut self, message: Delivered<'_>, now: Timestamp) -> Result<(), Broken> {
        if message.payload.is_empty() && message.header.starts_with(b"NATS/1.0 100 ") {
            return self.on_status(message, now);
        }
        let Some(ack) = AckReply::parse(message.reply) else { return Ok(()) };
        if ack.stream != self.stream || ack.consumer != self.consumer {
            return Ok(());
        }
        let is_next = ack.consumer_seq == self.consumer_seq + 1 && ack.stream_seq > self.stream_seq;
        if !is_next || ack.attempt != 1 {
            return self.unexpected(now);
        }
        self.heard = now;
        self.consumer_seq = ack.consumer_seq;
        self.stream_seq = ack.stream_seq;
        self.pending = ack.pending;
        let Delivered { subject, header, payload, .. } = message;
        let record = RecordRef { timestamp: ack.timestamp, subject, header, payload };
        self.gathered.block.push_timed(RecordFlags::COPIED, &record);
        self.gathered.seqs.push(ack.stream_seq.0);
        Ok(())
    }

    fn on_status(&mut self, status: Delivered<'_>, now: Timestamp) -> Result<(), Broken> {
        if !status.reply.is_empty() {
            self.heard = now;
            self.ask(status.reply);
            return Ok(());
        }
        let header = HeaderBlock(status.header);
        let sent = header.get_str("Nats-Last-Consumer").and_then(|text| text.parse::<u64>().ok());
        if sent.is_some_and(|sent| sent > 0 && sent != self.consumer_seq) {
            return self.unexpected(now);
        }
        self.heard = now;
        // It waits for an answer that was lost, or for one to whoever was here before.
        if let Some(stalled) = header.get("Nats-Consumer-Stalled")
            && self.asked.as_ref().is_none_or(|asked| asked.to != stalled)
        {
            self.ask(stalled);
        }
        Ok(())
    }

    fn ask(&mut self, to: &[u8]) {
        let to = Bytes::copy_from_slice(to);
        self.asked = Some(Asked { to, consumer_seq: self.consumer_seq, stream_seq: self.stream_seq });
    }

    /// Before the first delivery, late ones of before are to be expected for a moment.
    fn unexpected(&self, now: Timestamp) -> Result<(), Broken> {
        let may_be_stray = self.consumer_seq == 0 && now.since(self.attached) <= STRAYS;
        if may_be_stray { Ok(()) } else { Err(Broken) }
    }

    /// The answer to flow control that is due when the reader has stored this much.
    pub fn answer(&mut self, reader: &Reader) -> Option<FlowAnswer> {
        let stored = stored_of(reader, &self.origin.identity, self.origin.restored_to);
        let is_due = |asked: &mut Asked| asked.consumer_seq == 0 || asked.stream_seq.0 <= stored;
        let asked = self.asked.take_if(is_due)?;
        let mut header = HeaderBuilder::new();
        header.push_number("Nats-Last-Consumer", asked.consumer_seq);
        header.push_number("Nats-Last-Stream", asked.stream_seq.0);
        Some(FlowAnswer { to: asked.to, header: header.finish() })
    }

    /// Whether an answer has as much as fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.gathered.seqs.len() >= MESSAGES_MAX || self.gathered.block.bytes() as u64 >= BYTES_MAX
    }

    /// Whether there is anything to answer with.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gathered.seqs.is_empty()
    }

    /// What was gathered, as an answer. If it is full there may be more.
    pub fn take(&mut self, now: Timestamp) -> FetchAnswer {
        let has_more = self.is_full();
        let Gathered { seqs, block } = std::mem::replace(&mut self.gathered, Gathered::nothing());
        let from = self.next;
        let through = seqs.last().copied().unwrap_or(from - 1);
        self.next = through + 1;
        FetchAnswer {
            from,
            through,
            last_seq: through + u64::from(has_more),
            pending: Some(self.pending),
            block: if seqs.is_empty() { Bytes::new() } else { block.finish(now).as_bytes().clone() },
            seqs,
            identity: self.origin.identity.clone(),
            born: self.origin.born,
            restored_to: self.origin.restored_to,
            ..FetchAnswer::default()
        }
    }
}

/// What the reader has stored of this incarnation of the origin, which has what the one before it had as far as it was
/// restored. A reader that does not know of which one its messages are goes on where it is.
pub(super) fn stored_of(reader: &Reader, identity: &str, restored_to: u64) -> u64 {
    let is_of_it = reader.identity.is_empty() || reader.identity == identity;
    if is_of_it { reader.stored } else { reader.stored.min(restored_to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(5_000_000_000);

    fn attached(floor: u64) -> Attachment {
        let origin = FetchAnswer {
            identity: "first".into(),
            from: floor + 1,
            through: floor,
            pending: Some(9),
            ..FetchAnswer::default()
        };
        Attachment::new("S", "C", origin, NOW)
    }

    fn reader(stored: u64) -> Reader {
        Reader { stored, identity: "first".into(), ..Reader::default() }
    }

    fn later(seconds: i64) -> Timestamp {
        NOW.plus(Nanos::from_secs(seconds))
    }

    impl Attachment {
        /// `attempt.stream seq.consumer seq`, as in ack subjects.
        fn message(&mut self, numbers: &str, now: Timestamp) -> Result<(), Broken> {
            let reply = format!("$JS.ACK.S.C.{numbers}.77.4");
            let payload = b"body";
            self.on_delivered(Delivered { subject: b"a", reply: reply.as_bytes(), header: b"", payload }, now)
        }

        fn status(&mut self, header: &str, reply: &str, now: Timestamp) -> Result<(), Broken> {
            let header = format!("NATS/1.0 100 {header}\r\n\r\n");
            let (header, reply) = (header.as_bytes(), reply.as_bytes());
            self.on_delivered(Delivered { header, reply, ..Delivered::default() }, now)
        }
    }

    #[test]
    fn deliveries_become_answers_that_follow_each_other() {
        let mut attached = attached(3);
        attached.message("1.5.1", NOW).unwrap();
        attached.message("1.8.2", NOW).unwrap();

        let answer = attached.take(NOW);
        assert_eq!((answer.from, answer.through, answer.last_seq, answer.pending), (4, 8, 8, Some(4)));
        let block = answer.messages().unwrap().unwrap();
        assert_eq!(
            (answer.seqs, block.record(1).timestamp, block.record(1).payload),
            (vec![5, 8], Timestamp(77), &b"body"[..])
        );
        assert!(attached.continues(9) && !attached.continues(8));

        let nothing = attached.take(NOW);
        assert_eq!((nothing.from, nothing.through, nothing.last_seq), (9, 8, 8));
        assert_eq!(nothing.messages(), Ok(None));
    }

    #[test]
    fn an_answer_that_is_full_says_that_there_may_be_more() {
        let mut attached = attached(0);
        for seq in 1..=MESSAGES_MAX {
            assert!(!attached.is_full());
            attached.message(&format!("1.{seq}.{seq}"), NOW).unwrap();
        }

        assert!(attached.is_full());
        let answer = attached.take(NOW);
        assert_eq!(answer.last_seq, answer.through + 1);
        assert!(!attached.is_full());
    }

    #[test]
    fn a_gap_and_a_repetition_are_noticed() {
        for next in ["1.9.3", "1.8.1", "2.9.2", "1.5.2"] {
            let mut attached = attached(3);
            attached.message("1.5.1", NOW).unwrap();

            assert_eq!(attached.message(next, NOW), Err(Broken), "{next}");
        }
        let mut attached = attached(3);
        attached.message("1.5.1", NOW).unwrap();
        let heartbeat = |count| format!("Idle Heartbeat\r\nNats-Last-Consumer: {count}");
        assert_eq!(attached.status(&heartbeat(1), "", NOW), Ok(()));
        assert_eq!(attached.status(&heartbeat(2), "", NOW), Err(Broken));
    }

    #[test]
    fn deliveries_of_before_the_reset_are_passed_over_for_a_moment() {
        let mut attached = attached(3);

        assert_eq!(attached.message("1.90.57", NOW), Ok(()));
        assert_eq!(attached.message("1.3.1", NOW), Ok(()), "acked");
        assert!(attached.is_empty());
        assert_eq!(attached.message("1.90.57", later(2)), Err(Broken));
        assert_eq!(attached.message("1.5.1", later(2)), Ok(()));
        assert!(!attached.is_empty());
    }

    #[test]
    fn messages_of_others_on_the_same_subject_are_not_taken() {
        let mut attached = attached(0);
        for reply in ["", "$JS.ACK.S.D.1.1.1.77.4", "$JS.ACK.T.C.1.1.1.77.4"] {
            let message = Delivered { subject: b"a", reply: reply.as_bytes(), header: b"", payload: b"x" };
            assert_eq!(attached.on_delivered(message, NOW), Ok(()));
        }
        assert!(attached.is_empty());
    }

    #[test]
    fn flow_control_is_answered_when_what_came_before_is_stored() {
        let mut attached = attached(3);
        attached.message("1.5.1", NOW).unwrap();
        attached.status("FlowControl Request", "fc", NOW).unwrap();
        attached.message("1.6.2", NOW).unwrap();

        assert_eq!(attached.answer(&reader(4)), None);
        let of_another = Reader { identity: "other".into(), ..reader(100) };
        assert_eq!(attached.answer(&of_another), None);
        let answer = attached.answer(&reader(5)).unwrap();
        assert_eq!(answer.to, "fc");
        assert_eq!(answer.header, b"NATS/1.0\r\nNats-Last-Consumer: 1\r\nNats-Last-Stream: 5\r\n\r\n");
        assert_eq!(attached.answer(&reader(6)), None, "once");
    }

    #[test]
    fn a_consumer_that_waits_for_an_answer_gets_it_again() {
        let stalled = "Idle Heartbeat\r\nNats-Consumer-Stalled: fc";
        let mut attached = attached(3);
        attached.status(stalled, "", NOW).unwrap();
        assert_eq!(attached.answer(&reader(0)).unwrap().to, "fc", "nothing came yet");

        attached.message("1.5.1", NOW).unwrap();
        attached.status("FlowControl Request", "again", NOW).unwrap();
        attached.message("1.6.2", NOW).unwrap();
        attached.status("Idle Heartbeat\r\nNats-Consumer-Stalled: again", "", NOW).unwrap();
        assert!(attached.answer(&reader(5)).is_some(), "it is the one that is known");
    }

    #[test]
    fn silence_ends_it() {
        let mut attached = attached(3);
        assert!(!attached.is_silent(later(10)));
        assert!(attached.is_silent(later(11)));

        attached.status("Idle Heartbeat", "", later(11)).unwrap();
        assert!(!attached.is_silent(later(21)));
    }
}
