//! Buffers that direct I/O accepts: they begin at, and are filled up to, a multiple of the block size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

/// What offsets, lengths and addresses of direct I/O must be multiples of. 4 KiB fits every disk in use.
pub(crate) const ALIGNMENT: usize = 4096;

/// Grows to the largest write, then stays, up to this many bytes.
const KEPT_BYTES_MAX: usize = 16 << 20;

#[derive(Default)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
}

impl AlignedBuffer {
    /// The values one after the other, padded with zeros.
    pub(crate) fn fill(&mut self, values: &[&[u8]]) -> &[u8] {
        let bytes: usize = values.iter().map(|value| value.len()).sum();
        let padded = bytes.next_multiple_of(ALIGNMENT);
        if self.memory.capacity() < padded + ALIGNMENT
            || self.memory.capacity() > KEPT_BYTES_MAX.max(padded * 2)
        {
            self.memory = Vec::with_capacity((padded + ALIGNMENT).next_power_of_two());
        }
        self.memory.clear();
        let start = self.memory.as_ptr().align_offset(ALIGNMENT);
        self.memory.resize(start, 0);
        for value in values {
            self.memory.extend_from_slice(value);
        }
        self.memory.resize(start + padded, 0);
        &self.memory[start..]
    }
}

/// Reads from a file that was opened for direct I/O, whose size is a multiple of the block size.
pub(crate) fn read_aligned(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let before = (offset % ALIGNMENT as u64) as usize;
    let padded = (before + len).next_multiple_of(ALIGNMENT);
    let mut memory = vec![0; padded + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    file.read_exact_at(&mut memory[start..start + padded], offset - before as u64)?;
    Ok(Bytes::from(memory).slice(start + before..start + before + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_aligned_and_padded_whatever_was_there_before() {
        let mut buffer = AlignedBuffer::default();
        for sizes in [&[1][..], &[4096], &[100_000, 7], &[0, 3], &[5000, 5000, 5000]] {
            let values: Vec<Vec<u8>> = sizes.iter().map(|size| vec![7; *size]).collect();
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();

            let filled = buffer.fill(&values);

            let bytes: usize = sizes.iter().sum();
            assert_eq!(filled.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(filled.len(), bytes.next_multiple_of(ALIGNMENT));
            assert!(filled[..bytes].iter().all(|byte| *byte == 7));
            assert!(filled[bytes..].iter().all(|byte| *byte == 0));
        }
    }
}
