//! The framing of S2 streams, which is that of snappy with larger blocks.
//!
//! ```text
//! stream := chunk*
//! chunk  := type u8 | len u24 | body
//! body   := "S2sTwO" | "sNaPpY"                (0xff, first and where streams are joined)
//!           crc32c u32, masked | block         (0x00, or 0x01 when it is not compressed)
//!           anything                           (0x80..=0xfe: padding, index, for others)
//! ```

use super::BadArchive;
use super::lz;

/// What we compress at once; also the largest block that readers of snappy take.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// The largest block of S2, decoded.
const DECODED_MAX: usize = 4 << 20;
/// What a block of that size may take, and its checksum.
const CHUNK_MAX: usize = DECODED_MAX + DECODED_MAX / 6 + 64;
const HEAD_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;

mod kind {
    pub(super) const COMPRESSED: u8 = 0x00;
    pub(super) const PLAIN: u8 = 0x01;
    pub(super) const FIRST_SKIPPABLE: u8 = 0x80;
    pub(super) const IDENTIFIER: u8 = 0xff;
}
const S2: &[u8] = b"S2sTwO";
const SNAPPY: &[u8] = b"sNaPpY";

/// Writes a stream.
#[derive(Debug)]
pub(super) struct Compressor {
    began: bool,
    encoder: snap::raw::Encoder,
    block: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Self { began: false, encoder: snap::raw::Encoder::new(), block: Vec::new() }
    }
}

impl Compressor {
    /// Appends blocks that hold `plain`.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        if !self.began {
            put_head(kind::IDENTIFIER, S2.len(), out);
            out.extend_from_slice(S2);
            self.began = true;
        }
        for plain in plain.chunks(BLOCK_BYTES) {
            self.block.resize(snap::raw::max_compress_len(plain.len()), 0);
            let len = self.encoder.compress(plain, &mut self.block).unwrap_or(usize::MAX);
            let (kind, body) = match self.block.get(..len) {
                Some(block) if len < plain.len() => (kind::COMPRESSED, block),
                _ => (kind::PLAIN, plain),
            };
            put_head(kind, CHECKSUM_BYTES + body.len(), out);
            out.extend_from_slice(&masked(plain).to_le_bytes());
            out.extend_from_slice(body);
        }
    }
}

/// Reads a stream.
#[derive(Debug, Default)]
pub(super) struct Decompressor {
    /// The chunk that is not complete yet.
    pending: Vec<u8>,
    began: bool,
}

impl Decompressor {
    /// Takes more of the stream, up to the end of one chunk, and appends what that holds. Says how much it took: not
    /// all, so that a small input that holds a lot is not unpacked at once.
    pub(super) fn decompress(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadArchive> {
        let mut taken = 0;
        while taken < input.len() {
            let rest = &input[taken..];
            let part = &rest[..self.wanted()?.min(rest.len())];
            self.pending.extend_from_slice(part);
            taken += part.len();
            if self.pending.len() >= HEAD_BYTES && self.wanted()? == 0 {
                let mut chunk = std::mem::take(&mut self.pending);
                self.chunk(chunk[0], &chunk[HEAD_BYTES..], out)?;
                chunk.clear();
                self.pending = chunk;
                break;
            }
        }
        Ok(taken)
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_chunks(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many bytes the chunk, or its head, still needs.
    fn wanted(&self) -> Result<usize, BadArchive> {
        let Some(head) = self.pending.get(..HEAD_BYTES) else { return Ok(HEAD_BYTES - self.pending.len()) };
        let len = u32::from_le_bytes([head[1], head[2], head[3], 0]) as usize;
        if !self.began && head[0] != kind::IDENTIFIER {
            return Err(BadArchive::Compression("it is not an S2 stream"));
        }
        if len > CHUNK_MAX {
            return Err(BadArchive::Compression("a chunk is too large"));
        }
        Ok(HEAD_BYTES + len - self.pending.len())
    }

    fn chunk(&mut self, kind: u8, body: &[u8], out: &mut Vec<u8>) -> Result<(), BadArchive> {
        match kind {
            kind::IDENTIFIER if body == S2 || body == SNAPPY => {
                self.began = true;
                Ok(())
            }
            kind::IDENTIFIER => Err(BadArchive::Compression("it is not an S2 stream")),
            kind::COMPRESSED | kind::PLAIN => {
                let Some((checksum, body)) = body.split_first_chunk::<CHECKSUM_BYTES>() else {
                    return Err(BadArchive::Compression("a chunk is too short"));
                };
                let start = out.len();
                if kind == kind::PLAIN {
                    out.extend_from_slice(body);
                } else {
                    lz::decode(body, DECODED_MAX, out)?;
                }
                if masked(&out[start..]) != u32::from_le_bytes(*checksum) {
                    return Err(BadArchive::Compression("a checksum does not match"));
                }
                Ok(())
            }
            kind::FIRST_SKIPPABLE.. => Ok(()),
            _ => Err(BadArchive::Compression("a chunk is of unknown kind")),
        }
    }
}

fn put_head(kind: u8, len: usize, out: &mut Vec<u8>) {
    let len = u32::try_from(len).expect("blocks are small").to_le_bytes();
    out.extend_from_slice(&[kind, len[0], len[1], len[2]]);
}

/// The checksum as snappy writes it, so that a checksum of data that holds checksums is still one.
fn masked(plain: &[u8]) -> u32 {
    crc32c::crc32c(plain).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decompressed(stream: &[u8], piece: usize) -> Result<Vec<u8>, BadArchive> {
        let mut decompressor = Decompressor::default();
        let mut out = Vec::new();
        for mut piece in stream.chunks(piece) {
            while !piece.is_empty() {
                let before = out.len();
                let taken = decompressor.decompress(piece, &mut out)?;
                assert!(taken > 0 && out.len() - before <= DECODED_MAX);
                piece = &piece[taken..];
            }
        }
        if decompressor.is_between_chunks() { Ok(out) } else { Err(BadArchive::Truncated) }
    }

    #[test]
    fn what_is_skippable_is_skipped_and_the_rest_is_refused() {
        let mut stream = Vec::new();
        Compressor::default().compress(b"abc", &mut stream);

        let with = |chunk: &[u8]| decompressed(&[&stream[..], chunk, &stream].concat(), 7);
        assert_eq!(with(&[0x99, 2, 0, 0, 1, 2]), Ok(b"abcabc".to_vec()));
        assert!(with(&[0x02, 0, 0, 0]).is_err());
        assert!(with(&[0x00, 0xff, 0xff, 0xff]).is_err());
        assert!(decompressed(b"not at all an archive", 5).is_err());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            parts in prop::collection::vec((any::<u8>(), 1_usize..100_000), 0..5),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
            piece in 1_usize..5000,
        ) {
            let mut plain = noise;
            for (byte, count) in parts {
                plain.extend(std::iter::repeat_n(byte, count));
            }
            let mut stream = Vec::new();
            Compressor::default().compress(&plain, &mut stream);

            prop_assert_eq!(decompressed(&stream, piece), Ok(plain));
        }

        #[test]
        fn damage_never_panics_and_never_passes(noise in prop::collection::vec(any::<u8>(), 1..300), flip in any::<usize>()) {
            let mut stream = Vec::new();
            Compressor::default().compress(&noise, &mut stream);
            let at = flip % (stream.len() * 8);
            stream[at / 8] ^= 1 << (at % 8);

            // A chunk may have become one that is skipped; what comes out is never something else.
            if let Ok(out) = decompressed(&stream, 100) {
                prop_assert!(out.is_empty() || out == noise);
            }
        }
    }
}
