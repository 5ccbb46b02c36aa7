//! Records moved out of a mostly dead block, one row each.
//!
//! ```text
//! kept := version u8 | timestamp i64 | order time i64 | subject_len u16 | header_len u32 | subject | header | payload
//!         | crc32c u32
//! ```
//!
//! The order time is the one of the block's row, or the record's own if it has one: times as a search sees them.

use bytes::Bytes;
use levee_protocol::ids::Seq;
use levee_protocol::record::{Record, RecordRef};
use levee_protocol::time::Timestamp;

use crate::sealed::{Fields, seal, unseal};

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

pub(crate) fn encode(record: RecordRef<'_>, order_time: Timestamp) -> Bytes {
    let text = record.subject.len() + record.header.len() + record.payload.len();
    let mut row = Vec::with_capacity(32 + text);
    row.push(VERSION);
    row.extend_from_slice(&record.timestamp.0.to_le_bytes());
    row.extend_from_slice(&order_time.0.to_le_bytes());
    row.extend_from_slice(
        &u16::try_from(record.subject.len()).expect("a block stores it as u16").to_le_bytes(),
    );
    row.extend_from_slice(
        &u32::try_from(record.header.len()).expect("a block stores it as u32").to_le_bytes(),
    );
    row.extend_from_slice(record.subject);
    row.extend_from_slice(record.header);
    row.extend_from_slice(record.payload);
    seal(row)
}

/// The record and its order time. The record shares the row's bytes.
pub(crate) fn decode(seq: Seq, row: &Bytes) -> Option<(Record, Timestamp)> {
    let mut fields = Fields(unseal(row)?);
    if fields.u8()? != VERSION {
        return None;
    }
    let (timestamp, order_time) = (Timestamp(fields.i64()?), Timestamp(fields.i64()?));
    let (subject_len, header_len) = (usize::from(fields.u16()?), fields.u32()? as usize);
    let text = row.slice(row.len() - CHECKSUM_BYTES - fields.0.len()..row.len() - CHECKSUM_BYTES);
    let header_end = subject_len.checked_add(header_len).filter(|end| *end <= text.len())?;
    let record = Record {
        seq,
        timestamp,
        subject: text.slice(..subject_len),
        header: text.slice(subject_len..header_end),
        payload: text.slice(header_end..),
    };
    Some((record, order_time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_kept_record_comes_back(
            subject in prop::collection::vec(any::<u8>(), 0..40),
            header in prop::collection::vec(any::<u8>(), 0..40),
            payload in prop::collection::vec(any::<u8>(), 0..40),
            time in any::<i64>(),
        ) {
            let record = RecordRef {
                timestamp: Timestamp(time), subject: &subject, header: &header, payload: &payload,
            };
            let row = encode(record, Timestamp(9));
            let (decoded, order_time) = decode(Seq(4), &row).unwrap();

            prop_assert_eq!(decoded.borrowed(), record);
            prop_assert_eq!((decoded.seq, order_time), (Seq(4), Timestamp(9)));
        }

        #[test]
        fn arbitrary_rows_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = bytes;
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            let _ = decode(Seq(1), &seal(bytes));
        }
    }
}
