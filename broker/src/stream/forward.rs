//! Hot path: messages on their way from the node where they arrived to the node that leads their stream.
//! One copy per message, one frame per read chunk.
//!
//! ```text
//! forward := account_len u8 | account | group u64 | item*
//! item    := subject_len u16 | reply_len u16 | header_len u32 | payload_len u32 | subject | reply | header | payload
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use levee_protocol::ids::{AccountName, GroupId};
use levee_protocol::wire::Span;

use crate::router::{Inbound, InboundItem};

const ITEM_HEAD_BYTES: usize = 12;

/// Packs a batch for the node that leads `group`.
#[must_use]
pub fn encode(account: &AccountName, group: GroupId, batch: &Inbound) -> Bytes {
    let account = account.as_str().as_bytes();
    let messages: usize = batch
        .items
        .iter()
        .map(|item| {
            ITEM_HEAD_BYTES + item.subject.len() + item.reply.len() + item.header.len() + item.payload.len()
        })
        .sum();
    let mut out = BytesMut::with_capacity(9 + account.len() + messages);
    out.put_u8(u8::try_from(account.len()).expect("account names are at most 255 bytes"));
    out.put_slice(account);
    out.put_u64_le(group.0);
    for item in &batch.items {
        let (subject, reply) = (batch.subject(item), batch.reply(item));
        let (header, payload) = (batch.header(item), batch.payload(item));
        out.put_u16_le(u16::try_from(subject.len()).expect("bounded by max_control_line"));
        out.put_u16_le(u16::try_from(reply.len()).expect("bounded by max_control_line"));
        out.put_u32_le(u32::try_from(header.len()).expect("bounded by max_payload"));
        out.put_u32_le(u32::try_from(payload.len()).expect("bounded by max_payload"));
        out.put_slice(subject);
        out.put_slice(reply);
        out.put_slice(header);
        out.put_slice(payload);
    }
    out.freeze()
}

/// A frame that is not what [`encode`] writes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("forwarded messages do not decode; the peer may run another release")]
pub struct Malformed;

/// Unpacks a forwarded batch. The items share the frame's bytes.
pub fn decode(frame: Bytes) -> Result<(AccountName, GroupId, Inbound), Malformed> {
    let mut at = 0_usize;
    let mut take = |len: usize| {
        let start = at;
        at = at.checked_add(len).filter(|end| *end <= frame.len()).ok_or(Malformed)?;
        Ok(start)
    };
    let account_len = frame[take(1)?] as usize;
    let start = take(account_len)?;
    let account = std::str::from_utf8(&frame[start..start + account_len])
        .ok()
        .and_then(|text| AccountName::parse(text).ok())
        .ok_or(Malformed)?;
    let start = take(8)?;
    let group = GroupId(u64::from_le_bytes(frame[start..start + 8].try_into().map_err(|_| Malformed)?));

    let mut items = Vec::new();
    loop {
        let head = match take(ITEM_HEAD_BYTES) {
            Ok(head) => head,
            Err(_) if take(1).is_err() => break,
            Err(malformed) => return Err(malformed),
        };
        let u16_at = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
        let u32_at =
            |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]) as usize;
        let mut span = |len: usize| {
            let start = take(len)?;
            let start = u32::try_from(start).map_err(|_| Malformed)?;
            let len = u32::try_from(len).map_err(|_| Malformed)?;
            Ok(Span { start, end: start + len })
        };
        items.push(InboundItem {
            subject: span(u16_at(head))?,
            reply: span(u16_at(head + 2))?,
            header: span(u32_at(head + 4))?,
            payload: span(u32_at(head + 8))?,
        });
    }
    Ok((account, group, Inbound { chunk: frame, items }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inbound(text: &'static [u8], cuts: [(u32, u32); 4]) -> Inbound {
        let [subject, reply, header, payload] = cuts.map(|(start, end)| Span { start, end });
        Inbound {
            chunk: Bytes::from_static(text),
            items: vec![InboundItem { subject, reply, header, payload }],
        }
    }

    #[test]
    fn a_forwarded_batch_arrives_as_it_left() {
        let batch = inbound(b"orders.eu_INBOX.1hdrpay", [(0, 9), (9, 17), (17, 20), (20, 23)]);

        let frame = encode(&AccountName::global(), GroupId(17), &batch);
        let (account, group, arrived) = decode(frame).unwrap();

        assert_eq!((account, group), (AccountName::global(), GroupId(17)));
        let item = &arrived.items[0];
        assert_eq!(arrived.subject(item), b"orders.eu");
        assert_eq!(arrived.reply(item), b"_INBOX.1");
        assert_eq!(arrived.header(item), b"hdr");
        assert_eq!(arrived.payload(item), b"pay");
    }

    proptest! {
        #[test]
        fn garbage_from_a_peer_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(bytes.into());
        }
    }
}
