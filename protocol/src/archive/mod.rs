//! Archives of streams, as `nats stream backup` keeps them and nats-server 2.15 writes and reads them.
//!
//! ```text
//! archive := S2 stream of ( "NATSARC1" | entry* )
//! entry   := name_len uvarint | time varint (ns) | seq uvarint | header_len uvarint | payload_len uvarint
//!            | name | header | payload
//! ```
//!
//! The first entry is `state.json`, then comes `consumers/<name>` for each consumer that the state counts, then every
//! message with its subject as name, and last an entry of nothing, so that a cut archive is told from a whole one.
//! [`Writer`] and [`Reader`] take and give bytes in pieces of any size; neither keeps more than one entry.

pub mod consumer;
mod entry;
mod lz;
mod s2;

pub use entry::{Bounds, Entry, Name, Reader};

/// Where the state of the stream is.
pub const STATE: &str = "state.json";
/// Where consumers are.
pub const CONSUMERS: &str = "consumers/";

const MAGIC: &[u8; 8] = b"NATSARC1";

/// Makes an archive. What it gives is collected by [`take`](Self::take).
#[derive(Debug, Default)]
pub struct Writer {
    plain: Vec<u8>,
    compressor: s2::Compressor,
    out: Vec<u8>,
}

impl Writer {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self { plain: MAGIC.to_vec(), ..Self::default() }
    }

    /// Adds a document under a name.
    pub fn document(&mut self, name: &str, time: i64, content: &[u8]) {
        self.entry(name.as_bytes(), time, 0, b"", content);
    }

    /// Adds a message.
    pub fn message(&mut self, subject: &[u8], time: i64, seq: u64, header: &[u8], payload: &[u8]) {
        self.entry(subject, time, seq, header, payload);
    }

    /// Says that this was all.
    pub fn finish(&mut self) {
        self.entry(b"", 0, 0, b"", b"");
        self.compressor.compress(&self.plain, &mut self.out);
        self.plain.clear();
    }

    /// Bytes of the archive that were not taken yet.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.out.len()
    }

    /// Takes the bytes that are ready.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn entry(&mut self, name: &[u8], time: i64, seq: u64, header: &[u8], payload: &[u8]) {
        let plain = &mut self.plain;
        put_uvarint(plain, name.len() as u64);
        put_uvarint(plain, ((time << 1) ^ (time >> 63)).cast_unsigned());
        put_uvarint(plain, seq);
        put_uvarint(plain, header.len() as u64);
        put_uvarint(plain, payload.len() as u64);
        for part in [name, header, payload] {
            plain.extend_from_slice(part);
        }
        let whole = plain.len() - plain.len() % s2::BLOCK_BYTES;
        if whole > 0 {
            self.compressor.compress(&plain[..whole], &mut self.out);
            plain.drain(..whole);
        }
    }
}

fn put_uvarint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Bytes that are not an archive we can restore.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadArchive {
    /// The compression around it is damaged.
    #[error("archive is damaged: {0}")]
    Compression(&'static str),
    /// It does not begin as one of these archives.
    #[error(
        "archive is not in the format of nats-server 2.15 or newer; restore it to such a server and back it up again"
    )]
    Format,
    /// Lengths or order of its entries make no sense.
    #[error("archive is damaged: {0}")]
    Entry(String),
    /// An entry is larger than allowed.
    #[error("{what} exceeds the maximum size of {max} bytes")]
    TooLarge {
        /// Which.
        what: String,
        /// The bound.
        max: usize,
    },
    /// It ends before its end.
    #[error("archive is truncated")]
    Truncated,
}
