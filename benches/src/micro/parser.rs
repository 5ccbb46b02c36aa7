//! Client bytes become operations.

use std::hint::black_box;

use levee_protocol::wire::{ClientOp, Limits, Parser};

use crate::messages::{Header, Messages};
use crate::micro::{Call, Case};

const OPS: u64 = 256;

/// The cases.
pub const CASES: [Case; 3] = [
    Case { name: "parse PUB, 16 B", per_call: OPS, prepare: || publishes(16, Header::None) },
    Case { name: "parse PUB, 1 KiB", per_call: OPS, prepare: || publishes(1024, Header::None) },
    Case {
        name: "parse HPUB with a message id, 128 B",
        per_call: OPS,
        prepare: || publishes(128, Header::MsgId),
    },
];

fn publishes(payload_bytes: usize, header: Header) -> Call {
    let text = Messages { header, ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    let mut chunk = Vec::new();
    (0..OPS).for_each(|n| text.append(&mut chunk, n, None));
    let mut parser = Parser::new(Limits::default());
    Box::new(move || {
        let (mut at, mut publishes) = (0, 0);
        while let Some((op, next)) = parser.next(black_box(&chunk), at).expect("only well-formed operations")
        {
            publishes += u64::from(matches!(black_box(op), ClientOp::Publish(_)));
            at = next;
        }
        assert_eq!(publishes, OPS);
    })
}
