//! Hot path: the records of a link between nodes. Written and read without allocation; every length that comes
//! from a peer is checked.
//!
//! ```text
//! record   := kind u8 | body_len u32 | body
//! sync     := (nothing): what this node wanted so far is forgotten
//! interest := text(account) | text(subject) | text(queue) | varint(count)
//! message  := flags u8 | text(account) | text(subject) | [to] text | [reply] text | [queues] varint(n) text*n
//!             | [header] text | payload
//! forward  := kind u8 | payload
//! call     := id u64 | kind u8 | payload
//! answer   := id u64 | status u8 | payload
//! identity := levee.peer.Identity
//! text     := varint(len) | bytes
//! ```
//!
//! Numbers are little endian. Kinds are pinned: never renumber, add at the end, and raise [`FORMAT`] when an older
//! node could not ignore the change.

use levee_protocol::ids::AccountName;

use crate::router::MessageRef;
use crate::router::stage::Staged;

/// Version of this page.
pub(crate) const FORMAT: u32 = 2;

pub(crate) const SYNC: u8 = 1;
pub(crate) const INTEREST: u8 = 2;
pub(crate) const MESSAGE: u8 = 3;
pub(crate) const FORWARD: u8 = 4;
pub(crate) const CALL: u8 = 5;
pub(crate) const ANSWER: u8 = 6;
pub(crate) const IDENTITY: u8 = 7;
pub(crate) const PING: u8 = 8;

/// Answers to calls.
pub(crate) const ANSWERED: u8 = 0;
pub(crate) const NOBODY_ANSWERS: u8 = 1;
pub(crate) const TOO_MANY_CALLS: u8 = 2;

const HEAD_BYTES: usize = 5;
const TO_PLAIN: u8 = 1;
const HAS_TO: u8 = 2;
const HAS_REPLY: u8 = 4;
const HAS_QUEUES: u8 = 8;
const HAS_HEADER: u8 = 16;

/// Bytes that are not records.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("bytes that are not records of this release")]
pub(crate) struct Malformed;

/// Splits a frame into records.
pub(crate) fn records(
    frame: &[u8],
) -> impl Iterator<Item = Result<(u8, std::ops::Range<usize>), Malformed>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == frame.len() {
            return None;
        }
        let Some(&[kind, a, b, c, d]) = frame.get(at..at + HEAD_BYTES) else {
            at = frame.len();
            return Some(Err(Malformed));
        };
        let start = at + HEAD_BYTES;
        match start.checked_add(u32::from_le_bytes([a, b, c, d]) as usize).filter(|end| *end <= frame.len()) {
            Some(end) => {
                at = end;
                Some(Ok((kind, start..end)))
            }
            None => {
                at = frame.len();
                Some(Err(Malformed))
            }
        }
    })
}

/// Appends a record whose body is `parts`, one after another.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(HEAD_BYTES + len);
    out.push(kind);
    out.extend_from_slice(&u32::try_from(len).expect("records are bounded by max_payload").to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

pub(crate) fn put_sync(out: &mut Vec<u8>) {
    put(out, SYNC, &[]);
}

pub(crate) fn put_interest(
    out: &mut Vec<u8>,
    account: &AccountName,
    filter: &[u8],
    queue: &[u8],
    count: u32,
) {
    let start = begin(out, INTEREST);
    put_text(out, account.as_str().as_bytes());
    put_text(out, filter);
    put_text(out, queue);
    put_varint(out, u64::from(count));
    finish(out, start);
}

/// What a peer's clients want.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InterestRecord<'a> {
    pub(crate) account: &'a [u8],
    pub(crate) filter: &'a [u8],
    pub(crate) queue: &'a [u8],
    pub(crate) count: u32,
}

pub(crate) fn interest(mut body: &[u8]) -> Result<InterestRecord<'_>, Malformed> {
    let record = InterestRecord {
        account: text(&mut body)?,
        filter: text(&mut body)?,
        queue: text(&mut body)?,
        count: u32::try_from(varint(&mut body)?).map_err(|_| Malformed)?,
    };
    if body.is_empty() { Ok(record) } else { Err(Malformed) }
}

pub(crate) fn put_message(
    out: &mut Vec<u8>,
    account: &AccountName,
    staged: &Staged<'_>,
    plain: bool,
    queues: &[&[u8]],
) {
    let MessageRef { subject, reply, header, payload } = staged.message;
    let has_to = staged.to != subject;
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let start = begin(out, MESSAGE);
    out.push(
        flag(plain, TO_PLAIN)
            | flag(has_to, HAS_TO)
            | flag(!reply.is_empty(), HAS_REPLY)
            | flag(!queues.is_empty(), HAS_QUEUES)
            | flag(!header.is_empty(), HAS_HEADER),
    );
    put_text(out, account.as_str().as_bytes());
    put_text(out, subject);
    if has_to {
        put_text(out, staged.to);
    }
    if !reply.is_empty() {
        put_text(out, reply);
    }
    if !queues.is_empty() {
        put_varint(out, queues.len() as u64);
        for queue in queues {
            put_text(out, queue);
        }
    }
    if !header.is_empty() {
        put_text(out, header);
    }
    out.extend_from_slice(payload);
    finish(out, start);
}

/// A message that a peer routed here.
#[derive(Clone, Debug)]
pub(crate) struct RoutedMessage<'a> {
    pub(crate) account: &'a [u8],
    pub(crate) to: &'a [u8],
    pub(crate) message: MessageRef<'a>,
    /// Whether plain subscriptions get it.
    pub(crate) plain: bool,
    /// The groups of which a member here gets it.
    pub(crate) queues: Vec<&'a [u8]>,
}

pub(crate) fn message(mut body: &[u8]) -> Result<RoutedMessage<'_>, Malformed> {
    let (&flags, rest) = body.split_first().ok_or(Malformed)?;
    body = rest;
    let account = text(&mut body)?;
    let subject = text(&mut body)?;
    let to = if flags & HAS_TO != 0 { text(&mut body)? } else { subject };
    let reply = if flags & HAS_REPLY != 0 { text(&mut body)? } else { &[] };
    let mut queues = Vec::new();
    if flags & HAS_QUEUES != 0 {
        let count = varint(&mut body)?;
        // Each takes at least a byte: a count beyond that is a lie, and not worth an allocation.
        if count > body.len() as u64 {
            return Err(Malformed);
        }
        for _ in 0..count {
            queues.push(text(&mut body)?);
        }
    }
    let header = if flags & HAS_HEADER != 0 { text(&mut body)? } else { &[] };
    // They would become part of a control line.
    if [subject, to, reply].iter().any(|text| text.iter().any(|byte| matches!(byte, b' ' | b'\r' | b'\n'))) {
        return Err(Malformed);
    }
    let message = MessageRef { subject, reply, header, payload: body };
    Ok(RoutedMessage { account, to, message, plain: flags & TO_PLAIN != 0, queues })
}

/// Takes a fixed number of bytes from the front.
pub(crate) fn take<const LEN: usize>(body: &mut &[u8]) -> Result<[u8; LEN], Malformed> {
    let (head, rest) = body.split_first_chunk::<LEN>().ok_or(Malformed)?;
    *body = rest;
    Ok(*head)
}

fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    out.extend_from_slice(&[kind, 0, 0, 0, 0]);
    out.len()
}

fn finish(out: &mut [u8], start: usize) {
    let len = u32::try_from(out.len() - start).expect("records are bounded by max_payload");
    out[start - 4..start].copy_from_slice(&len.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn text<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let len = usize::try_from(varint(body)?).map_err(|_| Malformed)?;
    let (text, rest) = body.split_at_checked(len).ok_or(Malformed)?;
    *body = rest;
    Ok(text)
}

fn varint(body: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for shift in (0..35).step_by(7) {
        let [byte] = take::<1>(body)?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn only(frame: &[u8]) -> (u8, &[u8]) {
        let all: Vec<_> = records(frame).map(Result::unwrap).collect();
        assert_eq!(all.len(), 1);
        (all[0].0, &frame[all[0].1.clone()])
    }

    fn subject_text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(b'!'..=b'~', 1..300)
    }

    proptest! {
        #[test]
        fn a_message_arrives_as_it_left(
            subject in subject_text(),
            to in prop::option::of(subject_text()),
            reply in prop::option::of(subject_text()),
            queues in prop::collection::vec(subject_text(), 0..3),
            header in prop::collection::vec(any::<u8>(), 0..200),
            payload in prop::collection::vec(any::<u8>(), 0..200),
            plain in any::<bool>(),
        ) {
            let to = to.unwrap_or_else(|| subject.clone());
            let reply = reply.unwrap_or_default();
            let parts = MessageRef { subject: &subject, reply: &reply, header: &header, payload: &payload };
            let staged = Staged { message: parts, to: &to, tail: &[] };
            let queues: Vec<&[u8]> = queues.iter().map(Vec::as_slice).collect();
            let mut frame = Vec::new();

            put_message(&mut frame, &AccountName::global(), &staged, plain, &queues);

            let (kind, body) = only(&frame);
            let read = message(body).unwrap();
            prop_assert_eq!(kind, MESSAGE);
            prop_assert_eq!(read.account, b"$G");
            prop_assert_eq!((read.to, read.plain, read.queues), (&*to, plain, queues));
            prop_assert_eq!((read.message.subject, read.message.reply), (&*subject, &*reply));
            prop_assert_eq!((read.message.header, read.message.payload), (&*header, &*payload));
        }

        #[test]
        fn garbage_is_refused_and_never_panics(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            for (_, range) in records(&frame).map_while(Result::ok) {
                let _ = message(&frame[range.clone()]);
                let _ = interest(&frame[range]);
            }
            let _ = message(&frame);
            let _ = interest(&frame);
        }
    }

    #[test]
    fn records_of_a_frame_come_apart_again() {
        let mut frame = Vec::new();
        put_sync(&mut frame);
        put_interest(&mut frame, &AccountName::global(), b"foo.>", b"workers", 300);
        put(&mut frame, FORWARD, &[&[7], b"pay"]);

        let all: Vec<_> = records(&frame).map(Result::unwrap).collect();

        assert_eq!(all.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [SYNC, INTEREST, FORWARD]);
        let wanted = interest(&frame[all[1].1.clone()]).unwrap();
        assert_eq!(
            wanted,
            InterestRecord { account: b"$G", filter: b"foo.>", queue: b"workers", count: 300 }
        );
        assert_eq!(&frame[all[2].1.clone()], b"\x07pay");
        assert!(records(&frame[..frame.len() - 1]).last().unwrap().is_err());
    }

    #[test]
    fn a_peer_cannot_smuggle_protocol_lines_into_a_subject() {
        let parts = MessageRef { subject: b"a\r\nMSG b 1 0", ..MessageRef::default() };
        let mut frame = Vec::new();
        put_message(
            &mut frame,
            &AccountName::global(),
            &Staged { message: parts, to: b"a", tail: &[] },
            true,
            &[],
        );

        assert!(message(only(&frame).1).is_err());
    }
}
