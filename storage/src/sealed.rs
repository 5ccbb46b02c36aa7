//! Small values with their checksum behind them, and reading numbers out of bytes that may be damaged.
//!
//! RocksDB has checksums of its own. Ours travels with the value through caches, snapshots and engines that have
//! none, so that a flipped bit anywhere between writing and reading is seen.

use bytes::Bytes;

const CHECKSUM_BYTES: usize = 4;

/// Appends the checksum of everything in `value`.
pub(crate) fn seal(mut value: Vec<u8>) -> Bytes {
    let checksum = crc32c::crc32c(&value);
    value.extend_from_slice(&checksum.to_le_bytes());
    value.into()
}

/// The value without its checksum, or `None` when they do not match.
pub(crate) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (value, checksum) = sealed.split_last_chunk::<CHECKSUM_BYTES>()?;
    (crc32c::crc32c(value) == u32::from_le_bytes(*checksum)).then_some(value)
}

/// Reads little-endian numbers from the front of a slice. Every read can fail and none can panic.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|bytes| bytes[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// `Some` if everything was read: trailing bytes mean that this is not what it was taken for.
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sealed_value_comes_back_and_any_flipped_bit_is_seen(
            value in prop::collection::vec(any::<u8>(), 0..100),
            flip in any::<usize>(),
        ) {
            let sealed = seal(value.clone());
            prop_assert_eq!(unseal(&sealed), Some(value.as_slice()));

            let mut flipped = sealed.to_vec();
            let bit = flip % (flipped.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(unseal(&flipped), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = unseal(&bytes);
            let mut fields = Fields(&bytes);
            let _ = (fields.u8(), fields.u16(), fields.u32(), fields.u64(), fields.i64());
        }
    }
}
