//! Dead letters: messages that failed for the last time, on their way to the subject that the consumer names.
//!
//! That a message was given up is decided in the ledger ([`Marks::give_up`](super::settle::Marks)): from then on no leader
//! delivers it again. Only when that is committed does the leader publish it, under a message id that every leader would
//! give it, so that the stream of dead letters stores it once. When that has stored it, the message is settled.
//!
//! Until then it stays unacked, and is tried again with growing pauses; other messages do not wait for it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use levee_protocol::command::progress::DeathCause;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::time::{Nanos, Timestamp};
use levee_protocol::wire::headers::{HeaderBlock, HeaderBuilder};

use crate::consumer::ledger::Ledger;
use crate::consumer::settle::Death;

/// Dead letters of a consumer that are being published at one time.
const UNDER_WAY_MAX: usize = 16;
/// When to look again whether a decision is committed.
pub(crate) const COMMIT_LOOK: Nanos = Nanos::from_millis(5);
/// The pause after the first try that failed; each is twice the one before.
const PAUSE_FIRST: Nanos = Nanos::from_millis(250);
/// The longest pause. Well below a duplicate window, so that a try whose outcome nobody knows is not repeated outside it.
const PAUSE_MAX: Nanos = Nanos::from_secs(15);
/// A client's words about why it terminated a message are cut after so many bytes.
const DETAIL_BYTES_MAX: usize = 256;

/// All headers of dead letters begin like this.
const PREFIX: &str = "Levee-Dead-";

/// A message as it is to be published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeadLetter {
    /// What it is of.
    pub seq: Seq,
    /// Of the consumer that gave it up.
    pub incarnation: u64,
    /// Where to.
    pub subject: Bytes,
    /// Its headers, with what is to be known about it.
    pub header: Bytes,
    /// The body.
    pub payload: Bytes,
}

/// When to publish which dead letter.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    queue: BTreeSet<(Timestamp, Seq)>,
    /// Those that were handed out, or failed, with the number of tries that failed.
    tries: BTreeMap<Seq, u32>,
    under_way: usize,
}

impl Outgoing {
    pub(crate) fn add(&mut self, seq: Seq, at: Timestamp) {
        self.queue.insert((at, seq));
    }

    /// When to ask again; `None` while enough is under way.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.queue.first().filter(|_| self.under_way < UNDER_WAY_MAX).map(|(at, _)| *at)
    }

    /// The next one whose time has come and whose end is committed.
    pub(crate) fn take_due(
        &mut self,
        ledger: &Ledger,
        unacked: impl Fn(Seq) -> bool,
        now: Timestamp,
    ) -> Option<Seq> {
        while self.next().is_some_and(|at| at <= now) {
            let (_, seq) = self.queue.pop_first()?;
            if !unacked(seq) {
                self.tries.remove(&seq);
            } else if ledger.marks.dead.contains_key(&seq) {
                self.under_way += 1;
                return Some(seq);
            } else {
                self.queue.insert((now.plus(COMMIT_LOOK), seq));
            }
        }
        None
    }

    pub(crate) fn stored(&mut self, seq: Seq) {
        self.under_way = self.under_way.saturating_sub(1);
        self.tries.remove(&seq);
    }

    pub(crate) fn failed(&mut self, seq: Seq, now: Timestamp) {
        self.under_way = self.under_way.saturating_sub(1);
        let tries = self.tries.entry(seq).or_default();
        *tries = tries.saturating_add(1);
        self.queue.insert((now.plus(pause_after(*tries)), seq));
    }
}

fn pause_after(tries: u32) -> Nanos {
    let doubled = 1_i64.checked_shl(tries.saturating_sub(1)).filter(|factor| *factor > 0).unwrap_or(i64::MAX);
    Nanos(PAUSE_FIRST.0.saturating_mul(doubled)).min(PAUSE_MAX)
}

/// A client's words, as far as they are kept.
pub(crate) fn detail(words: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(words).into_owned();
    let mut end = text.len().min(DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Writes the letter for a message that was sent `deliveries` times.
pub(crate) fn compose(
    (stream, ledger): (&str, &Ledger),
    subject: &str,
    record: Record,
    (death, deliveries): (&Death, u32),
) -> DeadLetter {
    let mut header = kept(&record.header);
    header.push("Levee-Dead-Stream", stream);
    header.push("Levee-Dead-Subject", &record.subject);
    header.push_number("Levee-Dead-Sequence", record.seq.0);
    header.push("Levee-Dead-Time", record.timestamp.to_string());
    header.push("Levee-Dead-Consumer", ledger.name.as_str());
    header.push_number("Levee-Dead-Deliveries", deliveries.into());
    header.push(
        "Levee-Dead-Reason",
        match death.cause {
            DeathCause::MaxDeliver => "max_deliver",
            DeathCause::Terminated => "terminated",
        },
    );
    if !death.detail.is_empty() {
        header.push("Levee-Dead-Detail", &death.detail);
    }
    // A stream and a consumer that are created again under the same names have other times of creation.
    let id = format!(
        "levee.dead.{stream}.{}.{}.{}.{}",
        ledger.name, ledger.created.0, ledger.incarnation, record.seq
    );
    header.push("Nats-Msg-Id", id);
    DeadLetter {
        seq: record.seq,
        incarnation: ledger.incarnation,
        subject: Bytes::copy_from_slice(subject.as_bytes()),
        header: header.finish().into(),
        payload: record.payload,
    }
}

/// The headers of the message, without what it says of an earlier death. Headers of NATS would change how the letter is
/// taken (its message id, what it expects of the stream, how long it lives): they are kept under another name.
fn kept(header: &[u8]) -> HeaderBuilder {
    let mut kept = HeaderBuilder::new();
    for (name, value) in HeaderBlock(header).iter() {
        let name = String::from_utf8_lossy(name);
        let begins =
            |prefix: &str| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
        if begins(PREFIX) {
            continue;
        }
        if begins("Nats-") {
            kept.push(&format!("{PREFIX}{name}"), value);
        } else {
            kept.push(&name, value);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::ConsumerConfig;
    use levee_protocol::ids::ConsumerName;

    use super::*;
    use crate::consumer::settle::Marks;

    fn ledger() -> Ledger {
        Ledger {
            name: ConsumerName::parse("c").unwrap(),
            config: ConsumerConfig::default(),
            filters: Vec::new(),
            created: Timestamp(7),
            began: Timestamp(7),
            incarnation: 3,
            marks: Marks::default(),
        }
    }

    fn letter(header: &'static [u8], detail: &str) -> String {
        let record = Record {
            seq: Seq(9),
            timestamp: Timestamp::ZERO,
            subject: Bytes::from_static(b"orders.1"),
            header: Bytes::from_static(header),
            payload: Bytes::from_static(b"body"),
        };
        let death = Death { cause: DeathCause::Terminated, detail: detail.to_owned() };
        let letter = compose(("S", &ledger()), "dead", record, (&death, 4));
        assert_eq!((&letter.subject[..], &letter.payload[..]), (&b"dead"[..], &b"body"[..]));
        String::from_utf8(letter.header.to_vec()).unwrap()
    }

    #[test]
    fn a_letter_says_where_it_is_from_and_keeps_the_headers() {
        let header = letter(b"NATS/1.0\r\nTrace: a\r\nTrace: b\r\n\r\n", "no such order");

        assert_eq!(
            header,
            "NATS/1.0\r\nTrace: a\r\nTrace: b\r\nLevee-Dead-Stream: S\r\nLevee-Dead-Subject: orders.1\r\n\
             Levee-Dead-Sequence: 9\r\nLevee-Dead-Time: 0001-01-01T00:00:00Z\r\nLevee-Dead-Consumer: c\r\n\
             Levee-Dead-Deliveries: 4\r\nLevee-Dead-Reason: terminated\r\nLevee-Dead-Detail: no such order\r\n\
             Nats-Msg-Id: levee.dead.S.c.7.3.9\r\n\r\n"
        );
    }

    #[test]
    fn headers_that_would_change_how_a_letter_is_taken_get_another_name() {
        let header = letter(
            b"NATS/1.0\r\nNats-Msg-Id: one\r\nnats-rollup: all\r\nNats-TTL: 1s\r\nNats-Expected-Stream: x\r\n\
              Levee-Dead-Stream: before\r\n\r\n",
            "",
        );

        let names: Vec<String> = HeaderBlock(header.as_bytes())
            .iter()
            .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
            .filter(|name| name.to_ascii_lowercase().starts_with("nats-"))
            .collect();
        assert_eq!(names, ["Nats-Msg-Id"]);
        assert!(header.contains("Levee-Dead-Nats-Msg-Id: one\r\n"), "{header}");
        assert!(header.contains("Levee-Dead-nats-rollup: all\r\n"), "{header}");
        assert!(!header.contains("before"), "{header}");
        assert!(!header.contains("Detail"), "{header}");
    }

    #[test]
    fn words_are_cut_between_characters() {
        assert_eq!(detail(b"short"), "short");
        assert_eq!(detail("\u{e9}".repeat(200).as_bytes()).len(), 256);
        assert_eq!(detail(format!("x{}", "\u{e9}".repeat(200)).as_bytes()).len(), 255);
    }

    #[test]
    fn nothing_leaves_before_its_end_is_committed_and_pauses_grow() {
        let mut outgoing = Outgoing::default();
        let mut ledger = ledger();
        outgoing.add(Seq(9), Timestamp(0));

        assert_eq!(outgoing.take_due(&ledger, |_| true, Timestamp(0)), None);
        assert_eq!(outgoing.next(), Some(Timestamp(0).plus(COMMIT_LOOK)));

        let death = Death { cause: DeathCause::MaxDeliver, detail: String::new() };
        ledger.marks.dead.insert(Seq(9), death);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let now = outgoing.next().unwrap();
            assert_eq!(outgoing.take_due(&ledger, |_| true, now), Some(Seq(9)));
            assert_eq!(outgoing.next(), None, "it is under way");
            outgoing.failed(Seq(9), now);
            pauses.push(outgoing.next().unwrap().since(now).0 / 1_000_000);
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);

        let now = outgoing.next().unwrap();
        assert_eq!(outgoing.take_due(&ledger, |_| false, now), None, "it is gone from the stream");
        assert_eq!(outgoing.next(), None);
    }

    #[test]
    fn few_letters_are_under_way_at_one_time() {
        let mut outgoing = Outgoing::default();
        let mut ledger = ledger();
        for seq in (1..=20).map(Seq) {
            ledger.marks.dead.insert(seq, Death { cause: DeathCause::MaxDeliver, detail: String::new() });
            outgoing.add(seq, Timestamp(0));
        }

        let taken = std::iter::from_fn(|| outgoing.take_due(&ledger, |_| true, Timestamp(0))).count();

        assert_eq!(taken, UNDER_WAY_MAX);
        assert_eq!(outgoing.next(), None);
        outgoing.stored(Seq(1));
        assert_eq!(outgoing.take_due(&ledger, |_| true, Timestamp(0)), Some(Seq(17)));
    }
}
