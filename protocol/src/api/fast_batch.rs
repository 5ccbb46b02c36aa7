//! Fast batches: a publisher streams messages and hears about them now and then. What to do is in the reply subject,
//! and flow control comes back on it.
//!
//! ```text
//! reply := <inbox> "." id "." flow "." ("ok" | "fail") "." seq "." op ".$FI"
//! op    := 0 start | 1 append | 2 commit with this message | 3 commit without it | 4 ping
//! ```

use serde::Serialize;

use crate::api::envelope::push_json;
use crate::api::error::ApiError;

const SUFFIX: &[u8] = b".$FI";
/// Messages between two acks for whoever does not say.
const FLOW_DEFAULT: u16 = 10;

/// What a reply subject asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FastReply<'a> {
    /// The batch.
    pub id: &'a str,
    /// Most messages between two acks.
    pub flow: u16,
    /// What a hole does.
    pub gap: Gap,
    /// The place of the message in the batch, from 1.
    pub seq: u64,
    /// What to do.
    pub op: Op,
}

/// What a missing or refused message does to its batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gap {
    /// The batch goes on.
    Ok,
    /// The batch ends before it.
    Fail,
}

/// What a message does in its batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// It is the first.
    Start,
    /// It is the next.
    Append,
    /// It is the last.
    Commit,
    /// The one before it was the last; this one is not stored.
    CommitExclusive,
    /// Asks how far the batch is; it is not stored.
    Ping,
}

/// Whether a reply subject is one of a fast batch, well made or not.
#[must_use]
pub fn is_fast(reply: &[u8]) -> bool {
    reply.ends_with(SUFFIX)
}

impl<'a> FastReply<'a> {
    /// Reads the reply subject of a message. `None` if its pattern is wrong.
    #[must_use]
    pub fn parse(reply: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(reply.strip_suffix(SUFFIX)?).ok()?;
        let mut tokens = text.rsplit('.');
        let op = match tokens.next()? {
            "0" => Op::Start,
            "1" => Op::Append,
            "2" => Op::Commit,
            "3" => Op::CommitExclusive,
            "4" => Op::Ping,
            _ => return None,
        };
        let seq = number(tokens.next()?).filter(|seq| *seq != 0 && *seq != u64::MAX)?;
        match op {
            Op::Start if seq != 1 => return None,
            Op::Append | Op::CommitExclusive if seq == 1 => return None,
            _ => {}
        }
        let gap = match tokens.next()? {
            "ok" => Gap::Ok,
            "fail" => Gap::Fail,
            _ => return None,
        };
        let flow = number(tokens.next()?).unwrap_or(0);
        let flow = if flow == 0 { FLOW_DEFAULT } else { u16::try_from(flow).unwrap_or(u16::MAX) };
        let id = tokens.next()?;
        // The inbox in front of it.
        tokens.next()?;
        Some(Self { id, flow, gap, seq, op })
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Messages up to `seq` are stored; another ack comes every `msgs` messages.
#[must_use]
pub fn flow_ack(seq: u64, msgs: u16) -> Vec<u8> {
    #[derive(Serialize)]
    struct Ack {
        #[serde(rename = "type")]
        kind: &'static str,
        seq: u64,
        msgs: u16,
    }
    json(&Ack { kind: "ack", seq, msgs })
}

/// Message `seq` came where `expected` was next.
#[must_use]
pub fn flow_gap(expected: u64, seq: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct GapFound {
        #[serde(rename = "type")]
        kind: &'static str,
        last_seq: u64,
        seq: u64,
    }
    json(&GapFound { kind: "gap", last_seq: expected, seq })
}

/// Message `seq` was refused.
#[must_use]
pub fn flow_error(seq: u64, error: &ApiError) -> Vec<u8> {
    #[derive(Serialize)]
    struct Failed<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        seq: u64,
        error: &'a ApiError,
    }
    json(&Failed { kind: "err", seq, error })
}

fn json(document: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    push_json(&mut out, document);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reply_subjects_say_what_to_do() {
        let of = |reply: &'static str| FastReply::parse(reply.as_bytes());
        let start = FastReply { id: "b1", flow: 100, gap: Gap::Ok, seq: 1, op: Op::Start };

        assert_eq!(of("_INBOX.x.y.b1.100.ok.1.0.$FI"), Some(start));
        assert_eq!(of("i.b1.0.ok.1.0.$FI"), Some(FastReply { flow: 10, ..start }));
        assert_eq!(of("i.b1.-4.ok.1.0.$FI"), Some(FastReply { flow: 10, ..start }));
        assert_eq!(of("i.b1.99999.ok.1.0.$FI"), Some(FastReply { flow: u16::MAX, ..start }));
        assert_eq!(
            of("i.b1.5.fail.7.2.$FI"),
            Some(FastReply { id: "b1", flow: 5, gap: Gap::Fail, seq: 7, op: Op::Commit })
        );
        assert!(of("i.b1.5.ok.1.4.$FI").is_some_and(|ping| ping.op == Op::Ping));
        assert!(of("i.b1.5.ok.1.2.$FI").is_some_and(|only| only.op == Op::Commit));
        for wrong in [
            "$FI",
            "i.$FI",
            "i.b.5.ok.2.0.$FI",
            "i.b.5.ok.1.1.$FI",
            "i.b.5.ok.1.3.$FI",
            "i.b.5.ok.0.1.$FI",
            "i.b.5.ok.2.5.$FI",
            "i.b.5.ok.x.1.$FI",
            "i.b.5.OK.2.1.$FI",
            "b.5.ok.2.1.$FI",
            "i.b.5.ok.18446744073709551615.1.$FI",
            "i.b.5.ok.2.$FI",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(is_fast(b"a.$FI") && !is_fast(b"a.FI"));
    }

    #[test]
    fn what_is_said_about_a_batch_is_as_in_nats() {
        assert_eq!(flow_ack(0, 100), br#"{"type":"ack","seq":0,"msgs":100}"#);
        assert_eq!(flow_gap(2, 5), br#"{"type":"gap","last_seq":2,"seq":5}"#);
        assert_eq!(
            flow_error(3, &ApiError::bad_request()),
            br#"{"type":"err","seq":3,"error":{"code":400,"err_code":10003,"description":"bad request"}}"#
        );
    }

    proptest! {
        #[test]
        fn arbitrary_reply_subjects_never_panic(text in ".{0,40}") {
            let _ = FastReply::parse(text.as_bytes());
            let _ = FastReply::parse(format!("{text}.$FI").as_bytes());
        }
    }
}
