//! Reading archives: bytes in, entries out.

use bytes::{Buf, Bytes, BytesMut};

use super::s2::Decompressor;
use super::{BadArchive, CONSUMERS, MAGIC, STATE};

/// A subject is stored with a length of two bytes.
const NAME_BYTES_MAX: usize = u16::MAX as usize;

/// What entries may hold at the most.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Header and body of a message.
    pub message_bytes_max: usize,
    /// Everything else.
    pub document_bytes_max: usize,
}

/// One entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// What it is.
    pub name: Name,
    /// When it was stored, in nanoseconds.
    pub time: i64,
    /// The header block of a message.
    pub header: Bytes,
    /// The body of a message, or the document.
    pub payload: Bytes,
}

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Name {
    /// The state of the stream, as JSON.
    State,
    /// A consumer, as JSON.
    Consumer(String),
    /// A message.
    Message {
        /// Its sequence.
        seq: u64,
        /// Its subject, which nobody has looked at yet.
        subject: Bytes,
    },
    /// There is nothing behind this.
    End,
}

/// Takes an archive in pieces and gives its entries.
#[derive(Debug)]
pub struct Reader {
    decompressor: Decompressor,
    bounds: Bounds,
    /// Not unpacked yet.
    input: Bytes,
    plain: Vec<u8>,
    /// What entries are cut from: an entry and a chunk at the most.
    buffer: BytesMut,
    has_magic: bool,
    ended: bool,
}

impl Reader {
    /// At the beginning of an archive.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            decompressor: Decompressor::default(),
            bounds,
            input: Bytes::new(),
            plain: Vec::new(),
            buffer: BytesMut::new(),
            has_magic: false,
            ended: false,
        }
    }

    /// Takes more of the archive.
    pub fn feed(&mut self, piece: Bytes) {
        if self.input.is_empty() {
            self.input = piece;
        } else {
            self.input = [&self.input[..], &piece].concat().into();
        }
    }

    /// The next entry, if enough of the archive was fed. Unpacks no more than that takes.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, BadArchive> {
        loop {
            if let Some(entry) = self.cut()? {
                self.ended |= entry.name == Name::End;
                return Ok(Some(entry));
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            let taken = self.decompressor.decompress(&self.input, &mut self.plain)?;
            self.input.advance(taken);
            self.buffer.extend_from_slice(&self.plain);
            self.plain.clear();
        }
    }

    /// Cuts the next entry out of what is unpacked.
    fn cut(&mut self) -> Result<Option<Entry>, BadArchive> {
        if self.ended && !self.buffer.is_empty() {
            return Err(BadArchive::Entry("there is something behind its end".into()));
        }
        if !self.has_magic {
            let Some(magic) = self.buffer.get(..MAGIC.len()) else { return Ok(None) };
            if magic != MAGIC {
                return Err(BadArchive::Format);
            }
            self.buffer.advance(MAGIC.len());
            self.has_magic = true;
        }
        let mut head = Head(&self.buffer);
        let Some(lengths) = head.read()? else { return Ok(None) };
        let head_bytes = self.buffer.len() - head.0.len();
        lengths.check(self.bounds)?;
        let (name_len, header_len) = (bounded(lengths.name), bounded(lengths.header));
        let whole = head_bytes + name_len + header_len + bounded(lengths.payload);
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let mut entry = self.buffer.split_to(whole).freeze();
        entry.advance(head_bytes);
        let name = entry.split_to(name_len);
        let header = entry.split_to(header_len);
        let name = lengths.named(name)?;
        Ok(Some(Entry { name, time: lengths.time, header, payload: entry }))
    }

    /// Nothing more comes: whether this was all of it.
    pub fn finish(&self) -> Result<(), BadArchive> {
        if self.ended && self.input.is_empty() && self.decompressor.is_between_chunks() {
            Ok(())
        } else {
            Err(BadArchive::Truncated)
        }
    }
}

/// The numbers in front of an entry.
#[derive(Clone, Copy)]
struct Lengths {
    name: u64,
    time: i64,
    seq: u64,
    header: u64,
    payload: u64,
}

impl Lengths {
    fn check(self, bounds: Bounds) -> Result<(), BadArchive> {
        if self.name > NAME_BYTES_MAX as u64 {
            return Err(BadArchive::TooLarge { what: "the name of an entry".into(), max: NAME_BYTES_MAX });
        }
        let (what, max) = match self.seq {
            0 => ("a document".into(), bounds.document_bytes_max),
            seq => (format!("message sequence {seq}"), bounds.message_bytes_max),
        };
        match self.header.checked_add(self.payload) {
            Some(bytes) if bytes <= max as u64 => Ok(()),
            _ => Err(BadArchive::TooLarge { what, max }),
        }
    }

    fn named(self, name: Bytes) -> Result<Name, BadArchive> {
        if self.seq > 0 {
            return Ok(Name::Message { seq: self.seq, subject: name });
        }
        if name.is_empty() && self.time == 0 && self.header == 0 && self.payload == 0 {
            return Ok(Name::End);
        }
        let text = std::str::from_utf8(&name).ok().filter(|_| self.header == 0);
        match text.map(|text| (text, text.strip_prefix(CONSUMERS))) {
            Some((STATE, _)) => Ok(Name::State),
            Some((_, Some(consumer))) => Ok(Name::Consumer(consumer.to_owned())),
            _ => Err(BadArchive::Entry(format!(
                "it holds {:?}, which is neither a state nor a consumer nor a message",
                String::from_utf8_lossy(&name[..name.len().min(100)])
            ))),
        }
    }
}

/// A length that was checked against bounds that are sizes in memory.
fn bounded(len: u64) -> usize {
    usize::try_from(len).expect("bounded by a usize")
}

struct Head<'a>(&'a [u8]);

impl Head<'_> {
    /// `None` until all of it is there.
    fn read(&mut self) -> Result<Option<Lengths>, BadArchive> {
        let mut numbers = [0; 5];
        for number in &mut numbers {
            let Some(read) = self.uvarint()? else { return Ok(None) };
            *number = read;
        }
        let [name, time, seq, header, payload] = numbers;
        let time = (time >> 1).cast_signed() ^ -(time & 1).cast_signed();
        Ok(Some(Lengths { name, time, seq, header, payload }))
    }

    fn uvarint(&mut self) -> Result<Option<u64>, BadArchive> {
        let mut number = 0_u64;
        for (index, byte) in self.0.iter().enumerate().take(10) {
            let low = u64::from(byte & 0x7f);
            if index == 9 && low > 1 {
                break;
            }
            number |= low << (7 * index);
            if *byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(Some(number));
            }
        }
        if self.0.len() < 10 {
            return Ok(None);
        }
        Err(BadArchive::Entry("a number is too large".into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::Writer;

    const BOUNDS: Bounds = Bounds { message_bytes_max: 100_000, document_bytes_max: 1000 };

    fn entries(archive: &[u8], piece: usize) -> Result<Vec<Entry>, BadArchive> {
        let mut reader = Reader::new(BOUNDS);
        let mut entries = Vec::new();
        for piece in archive.chunks(piece) {
            reader.feed(Bytes::copy_from_slice(piece));
            while let Some(entry) = reader.next_entry()? {
                entries.push(entry);
            }
        }
        reader.finish()?;
        Ok(entries)
    }

    /// Subject, time, header and body.
    type Message = (Vec<u8>, i64, Vec<u8>, Vec<u8>);

    fn archive(messages: &[Message]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.document(STATE, 5, b"{}");
        writer.document("consumers/c", 6, b"{\"a\":1}");
        for (seq, (subject, time, header, payload)) in (3..).step_by(2).zip(messages) {
            writer.message(subject, *time, seq, header, payload);
        }
        writer.finish();
        writer.take()
    }

    fn plain(bytes: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        crate::archive::s2::Compressor::default().compress(bytes, &mut stream);
        stream
    }

    #[test]
    fn what_is_no_archive_is_refused_with_what_is_wrong() {
        let refused = |bytes: &[u8]| entries(&plain(bytes), 10).unwrap_err().to_string();
        let with = |rest: &[u8]| refused(&[&MAGIC[..], rest].concat());

        assert!(refused(b"./meta.inf\0\0\0\0").contains("not in the format"));
        assert_eq!(with(&[0, 0, 0, 0]), "archive is truncated");
        assert!(with(&[0, 0, 0, 0, 0, 1]).contains("behind its end"));
        assert!(with(&[4, 0, 0, 0, 0, b'.', b'.', b'/', b'x']).contains("\"../x\""));
        assert!(with(&[0xff; 12]).contains("a number is too large"));
        assert!(
            with(&[1, 0, 7, 0, 0xa1, 0x8d, 6])
                .contains("message sequence 7 exceeds the maximum size of 100000")
        );
        assert!(with(&[1, 0, 0, 0, 0xa1, 0x8d, 6]).contains("a document exceeds"));
        assert!(with(&[0xff, 0xff, 4, 0, 1, 0, 0]).contains("the name of an entry"));
        let huge = [1, 0, 7, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1];
        assert!(with(&huge).contains("message sequence 7 exceeds"));
    }

    #[test]
    fn what_holds_much_in_little_is_not_unpacked_at_once() {
        // 4 MiB of zeros in a block of a few bytes, and a thousand of these.
        let zeros = vec![0_u8; 4 << 20];
        let mut block = vec![0x80, 0x80, 0x80, 2, 0, 0, 1, 1];
        let mut left = zeros.len() - 1 - 4;
        while left > 0 {
            let run = left.min((1 << 24) - 1 + (1 << 16) + 4);
            let code = (run - (1 << 16) - 4).to_le_bytes();
            block.extend_from_slice(&[7 << 2 | 1, 0, code[0], code[1], code[2]]);
            left -= run;
        }
        let checksum = crc32c::crc32c(&zeros).rotate_right(15).wrapping_add(0xa282_ead8);
        let len = u8::try_from(block.len() + 4).unwrap();
        let chunk = [&[0, len, 0, 0][..], &checksum.to_le_bytes(), &block].concat();
        let bomb = [plain(&[&MAGIC[..], &[1, 0, 7, 0, 1]].concat()), chunk.repeat(1000)].concat();

        let mut reader = Reader::new(BOUNDS);
        reader.feed(bomb.into());

        assert!(matches!(reader.next_entry().unwrap().unwrap().name, Name::Message { seq: 7, .. }));
        assert!(reader.buffer.len() <= 4 << 20);
        assert_eq!(reader.next_entry().unwrap().unwrap().name, Name::End);
        assert!(reader.next_entry().is_err(), "more zeros are behind the end");
        assert!(reader.buffer.capacity() <= 16 << 20);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            messages in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..40), any::<i64>(),
                 prop::collection::vec(any::<u8>(), 0..60), prop::collection::vec(any::<u8>(), 0..30_000)),
                0..12,
            ),
            piece in 1_usize..3000,
        ) {
            let read = entries(&archive(&messages), piece).unwrap();

            prop_assert_eq!(read.len(), messages.len() + 3);
            prop_assert_eq!((&read[0].name, &read[0].payload[..], read[0].time), (&Name::State, &b"{}"[..], 5));
            prop_assert_eq!(&read[1].name, &Name::Consumer("c".into()));
            prop_assert_eq!(&read.last().unwrap().name, &Name::End);
            for ((seq, message), entry) in (3..).step_by(2).zip(&messages).zip(&read[2..]) {
                let subject = Bytes::from(message.0.clone());
                prop_assert_eq!(&entry.name, &Name::Message { seq, subject });
                prop_assert_eq!((entry.time, &entry.header[..], &entry.payload[..]), (message.1, &message.2[..], &message.3[..]));
            }
        }

        #[test]
        fn a_cut_archive_is_truncated_and_never_panics(cut in any::<usize>(), piece in 1_usize..50) {
            let whole = archive(&[(b"a".to_vec(), 1, Vec::new(), vec![7; 300])]);
            let cut = cut % whole.len();

            prop_assert_eq!(entries(&whole[..cut], piece), Err(BadArchive::Truncated));
        }

        #[test]
        fn arbitrary_entries_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = entries(&plain(&[&MAGIC[..], &bytes].concat()), 30);
            let _ = entries(&bytes, 30);
        }
    }
}
