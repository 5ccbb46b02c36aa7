//! Blocks of S2: what snappy writes, and besides it copies that repeat the last distance, which snappy does not know.
//!
//! We write the common part only, with the `snap` crate; readers of either format take it.

use super::BadArchive;

/// Appends a decoded block to `out`, whose size is bounded by `max`.
pub(super) fn decode(block: &[u8], max: usize, out: &mut Vec<u8>) -> Result<(), BadArchive> {
    let mut input = Input(block);
    let size = input.uvarint().and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= max);
    let size = size.ok_or(BadArchive::Compression("a block has an impossible size"))?;
    let start = out.len();
    let end = start + size;
    out.reserve(size);
    let mut distance = 0;
    while !input.0.is_empty() {
        let step = input.step(distance).ok_or(CORRUPT)?;
        match step {
            Step::Literal(bytes) => {
                if bytes.len() > end - out.len() {
                    return Err(CORRUPT);
                }
                out.extend_from_slice(bytes);
            }
            Step::Copy { from, len } => {
                let written = out.len() - start;
                if from == 0 || from > written || len > end - out.len() {
                    return Err(CORRUPT);
                }
                distance = from;
                copy_within(out, from, len);
            }
        }
    }
    if out.len() == end { Ok(()) } else { Err(CORRUPT) }
}

const CORRUPT: BadArchive = BadArchive::Compression("a block does not decode");

/// A copy may reach into what it writes itself: then it repeats.
fn copy_within(out: &mut Vec<u8>, from: usize, len: usize) {
    let mut left = len;
    while left > 0 {
        let start = out.len() - from;
        let run = left.min(from);
        out.extend_from_within(start..start + run);
        left -= run;
    }
}

enum Step<'a> {
    Literal(&'a [u8]),
    Copy { from: usize, len: usize },
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The next step; `distance` is that of the last copy.
    fn step(&mut self, distance: usize) -> Option<Step<'a>> {
        let tag = usize::from(self.take(1)?[0]);
        let len = tag >> 2;
        Some(match tag & 3 {
            0 => {
                let len = if len < 60 { len } else { self.number(len - 59)? };
                Step::Literal(self.take(len.checked_add(1)?)?)
            }
            1 => {
                let from = (tag & 0xe0) << 3 | usize::from(self.take(1)?[0]);
                let short = len & 7;
                if from > 0 {
                    Step::Copy { from, len: short + 4 }
                } else {
                    let len = match short {
                        5 => self.number(1)? + 4,
                        6 => self.number(2)? + (1 << 8),
                        7 => self.number(3)? + (1 << 16),
                        short => short,
                    };
                    Step::Copy { from: distance, len: len + 4 }
                }
            }
            2 => Step::Copy { from: self.number(2)?, len: len + 1 },
            _ => Step::Copy { from: self.number(4)?, len: len + 1 },
        })
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// A little endian number of up to four bytes.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        Some(taken.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn uvarint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_copies_and_repeats_decode() {
        // "abcd", a copy of 4 from 4 back, a repeat of it of 4, and one of 5 + 4 + 4 bytes.
        let block = [25, 3 << 2, b'a', b'b', b'c', b'd', 1, 4, 1, 0, 5 << 2 | 1, 0, 5];
        let mut out = b"before".to_vec();

        decode(&block, 100, &mut out).unwrap();

        assert_eq!(out, b"beforeabcdabcdabcdabcdabcdabcda");
        assert!(decode(&block, 24, &mut Vec::new()).is_err());
        assert!(decode(&[4, 1, 0], 100, &mut Vec::new()).is_err(), "a repeat of nothing");
        assert!(decode(&[8, 0, b'a', 1, 4], 100, &mut Vec::new()).is_err(), "from before the block");
        assert!(decode(&[9, 0, b'a'], 100, &mut Vec::new()).is_err(), "too short");
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic_nor_grow(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            let _ = decode(&bytes, 1000, &mut out);
            prop_assert!(out.len() <= 1000);
        }
    }
}
