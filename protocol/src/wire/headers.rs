//! Header blocks: `NATS/1.0[ <status>[ <description>]]` and `Name: value` lines, each ended by CRLF, then an
//! empty line.
//!
//! The block of a client is passed through byte by byte and may be anything; reading one never fails, it just
//! finds nothing. Names are case-sensitive. The first line is never a header, and lines end with CRLF only.

use std::borrow::Cow;

use memchr::memchr;

use super::encode::{CRLF, decimal};

/// How a header block starts.
pub const VERSION: &[u8] = b"NATS/1.0";
/// A block without status and headers. Blocks that shrink to this are as good as none.
const EMPTY_BLOCK: &[u8] = b"NATS/1.0\r\n\r\n";

/// A header block, borrowed and unchecked. Empty bytes are a block without headers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HeaderBlock<'a>(pub &'a [u8]);

impl<'a> HeaderBlock<'a> {
    /// The value of the first line with exactly this name.
    #[must_use]
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.lines().find_map(|line| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
            Some(trim_blanks(value))
        })
    }

    /// The same, if the value is UTF-8.
    #[must_use]
    pub fn get_str(self, name: &str) -> Option<&'a str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// All headers in order: names as received, values without leading blanks. One pass is cheaper than many
    /// calls of `get`.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.lines().filter_map(|line| {
            let colon = memchr(b':', line).filter(|colon| *colon > 0)?;
            Some((&line[..colon], trim_blanks(&line[colon + 1..])))
        })
    }

    /// The status of the first line and its description, which may be empty.
    #[must_use]
    pub fn status(self) -> Option<(u16, &'a [u8])> {
        let end = find_crlf(self.0)?;
        let text = self.0[..end].strip_prefix(VERSION)?.strip_prefix(b" ")?.trim_ascii();
        let (code, description) = text.split_at(memchr(b' ', text).unwrap_or(text.len()));
        let code = std::str::from_utf8(code).ok()?.parse().ok()?;
        Some((code, description.trim_ascii_start()))
    }

    /// The lines after the first; the last one may lack its line end.
    fn lines(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = match find_crlf(self.0) {
            Some(end) => &self.0[end + CRLF.len()..],
            None => &[],
        };
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = line_end(rest);
            let line = &rest[..end];
            rest = &rest[rest.len().min(end + CRLF.len())..];
            Some(line)
        })
    }
}

/// The block as it is stored in a stream: without a status, and empty if nothing else is left. A block without
/// status is not copied.
#[must_use]
pub fn without_status(block: &[u8]) -> Cow<'_, [u8]> {
    let Some(line_end) = memchr(b'\r', block) else { return Cow::Borrowed(block) };
    if line_end <= VERSION.len() || !block.starts_with(VERSION) {
        return Cow::Borrowed(block);
    }
    let rest = &block[line_end..];
    if VERSION.len() + rest.len() <= EMPTY_BLOCK.len() {
        return Cow::Borrowed(&[]);
    }
    Cow::Owned([VERSION, rest].concat())
}

/// Builds a header block, from nothing or from another block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeaderBuilder {
    /// Everything but the empty line at the end.
    bytes: Vec<u8>,
}

impl Default for HeaderBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderBuilder {
    /// A block without headers.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(VERSION);
        bytes.extend_from_slice(CRLF);
        Self { bytes }
    }

    /// A block with a status line, such as `NATS/1.0 404 No Messages`. The description may be empty.
    #[must_use]
    pub fn status(code: u16, description: &str) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(VERSION);
        bytes.push(b' ');
        decimal(&mut bytes, u64::from(code));
        if !description.is_empty() {
            bytes.push(b' ');
            extend_as_one_line(&mut bytes, description.as_bytes());
        }
        bytes.extend_from_slice(CRLF);
        Self { bytes }
    }

    /// A block that starts as a copy of `block`, whatever that is; headers are added behind what it has.
    #[must_use]
    pub fn from_block(block: &[u8]) -> Self {
        if block.is_empty() {
            return Self::new();
        }
        let mut bytes = Vec::with_capacity(block.len() + 128);
        bytes.extend_from_slice(match block {
            [lines @ .., b'\r', b'\n'] if lines.ends_with(CRLF) => lines,
            _ => block,
        });
        if !bytes.ends_with(CRLF) {
            bytes.extend_from_slice(CRLF);
        }
        Self { bytes }
    }

    /// Adds a line. Line ends within the value become blanks: a value must not smuggle in a header.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b": ");
        extend_as_one_line(&mut self.bytes, value.as_ref());
        self.bytes.extend_from_slice(CRLF);
        self
    }

    /// Adds a line with a number.
    pub fn push_number(&mut self, name: &str, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b": ");
        decimal(&mut self.bytes, value);
        self.bytes.extend_from_slice(CRLF);
        self
    }

    /// Replaces all lines of that name by one at the end.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.remove(name).push(name, value)
    }

    /// Replaces the first line of that name where it stands, or adds one at the end.
    pub fn replace(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        let mut at = line_end(&self.bytes) + CRLF.len();
        while at < self.bytes.len() {
            let end = at + line_end(&self.bytes[at..]);
            let is_named =
                self.bytes[at..end].strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
            if is_named {
                let mut line = Vec::new();
                extend_as_one_line(&mut line, value.as_ref());
                let from = at + name.len() + 1;
                self.bytes.splice(from..end, b" ".iter().copied().chain(line));
                return self;
            }
            at = end + CRLF.len();
        }
        self.push(name, value)
    }

    /// Removes all lines of exactly that name.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.remove_lines(|line| {
            line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":"))
        })
    }

    /// Removes all lines whose name starts like that.
    pub fn remove_prefix(&mut self, prefix: &str) -> &mut Self {
        self.remove_lines(|line| line.starts_with(prefix.as_bytes()))
    }

    /// The finished block. Empty if there is neither a status nor a header.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(CRLF);
        if self.bytes == EMPTY_BLOCK {
            return Vec::new();
        }
        self.bytes
    }

    fn remove_lines(&mut self, matches: impl Fn(&[u8]) -> bool) -> &mut Self {
        let bytes = &mut self.bytes;
        let mut read = line_end(bytes) + CRLF.len();
        let mut write = read;
        while read < bytes.len() {
            let end = read + line_end(&bytes[read..]) + CRLF.len();
            if !matches(&bytes[read..end]) {
                bytes.copy_within(read..end, write);
                write += end - read;
            }
            read = end;
        }
        bytes.truncate(write);
        self
    }
}

/// Offset of the CRLF that ends the first line, or of the end of the text.
fn line_end(text: &[u8]) -> usize {
    find_crlf(text).unwrap_or(text.len())
}

/// A search for CR and a look at the next byte: lines are too short for a substring search to pay.
fn find_crlf(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + memchr(b'\r', &text[from..])?;
        if text.get(at + 1) == Some(&b'\n') {
            return Some(at);
        }
        from = at + 1;
    }
}

fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = value {
        value = rest;
    }
    value
}

fn extend_as_one_line(bytes: &mut Vec<u8>, text: &[u8]) {
    let start = bytes.len();
    bytes.extend_from_slice(text);
    for byte in &mut bytes[start..] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(text: &str) -> HeaderBlock<'_> {
        HeaderBlock(text.as_bytes())
    }

    fn edited(text: &str, edit: impl FnOnce(&mut HeaderBuilder) -> &mut HeaderBuilder) -> String {
        let mut builder = HeaderBuilder::from_block(text.as_bytes());
        edit(&mut builder);
        String::from_utf8(builder.finish()).unwrap()
    }

    #[test]
    fn lookup_is_exact_case_sensitive_and_the_first_match_wins() {
        let headers = block(
            "NATS/1.0\r\nNats-Msg-Id-X: 0\r\nX-Nats-Msg-Id: 9\r\nNats-Msg-Id:  1\r\nNats-Msg-Id: 2\r\n\r\n",
        );

        assert_eq!(headers.get("Nats-Msg-Id"), Some(b"1".as_slice()));
        assert_eq!(headers.get("nats-msg-id"), None);
        assert_eq!(headers.get("Nats-Msg"), None);
    }

    #[test]
    fn a_value_keeps_everything_but_leading_blanks() {
        let headers = block("NATS/1.0\r\nA:\tb: c \r\nB:\r\nC: \r\nD: x\ny\r\n\r\n");

        assert_eq!(headers.get("A"), Some(b"\tb: c ".as_slice()));
        assert_eq!(headers.get("B"), Some(b"".as_slice()));
        assert_eq!(headers.get("C"), Some(b"".as_slice()));
        assert_eq!(headers.get_str("D"), Some("x\ny"));
    }

    #[test]
    fn the_first_line_is_never_a_header() {
        assert_eq!(block("A: b\r\nC: d\r\n\r\n").get("A"), None);
        assert_eq!(block("A: b\r\nC: d\r\n\r\n").get("C"), Some(b"d".as_slice()));
        assert_eq!(block("A: b").get("A"), None);
    }

    #[test]
    fn a_last_line_without_end_still_counts() {
        assert_eq!(block("NATS/1.0\r\nA: b").get("A"), Some(b"b".as_slice()));
        assert_eq!(block("NATS/1.0\r\nA: b\r").get("A"), Some(b"b\r".as_slice()));
    }

    #[test]
    fn iteration_yields_names_and_values_in_order() {
        let headers = block("NATS/1.0 503\r\nB: 1\r\nnonsense\r\n: x\r\nA:2\r\nB: 3\r\n\r\n");

        let seen: Vec<_> = headers.iter().collect();

        assert_eq!(seen, [(&b"B"[..], &b"1"[..]), (b"A", b"2"), (b"B", b"3")]);
    }

    #[test]
    fn the_status_is_a_code_and_an_optional_description() {
        assert_eq!(block("NATS/1.0 404 No Messages\r\n\r\n").status(), Some((404, &b"No Messages"[..])));
        assert_eq!(block("NATS/1.0 503\r\n\r\n").status(), Some((503, &b""[..])));
        assert_eq!(block("NATS/1.0\r\n\r\n").status(), None);
        assert_eq!(block("NATS/1.0 hello\r\n\r\n").status(), None);
        assert_eq!(block("").status(), None);
    }

    #[test]
    fn storing_strips_the_status_and_a_block_without_headers() {
        let stored = |text| String::from_utf8(without_status(str::as_bytes(text)).into_owned()).unwrap();

        assert_eq!(stored("NATS/1.0 503\r\nA: b\r\n\r\n"), "NATS/1.0\r\nA: b\r\n\r\n");
        assert_eq!(stored("NATS/1.0 503 Why Not\r\n\r\n"), "");
        assert_eq!(stored("NATS/1.0\r\nA: b\r\n\r\n"), "NATS/1.0\r\nA: b\r\n\r\n");
        assert_eq!(stored("ABCD"), "ABCD");
        assert_eq!(stored("ABCDEFGHIJK\r\n\r\n"), "ABCDEFGHIJK\r\n\r\n");
        assert_eq!(stored(""), "");
    }

    #[test]
    fn a_block_without_status_is_stored_without_a_copy() {
        assert!(matches!(without_status(b"NATS/1.0\r\nA: b\r\n\r\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn status_blocks_are_written_as_nats_server_writes_them() {
        let mut pending = HeaderBuilder::status(408, "Request Timeout");
        pending.push_number("Nats-Pending-Messages", 5).push_number("Nats-Pending-Bytes", 0);

        assert_eq!(HeaderBuilder::status(404, "No Messages").finish(), b"NATS/1.0 404 No Messages\r\n\r\n");
        assert_eq!(HeaderBuilder::status(503, "").finish(), b"NATS/1.0 503\r\n\r\n");
        assert_eq!(
            pending.finish(),
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 5\r\nNats-Pending-Bytes: 0\r\n\r\n"
        );
    }

    #[test]
    fn headers_are_added_behind_those_of_the_client() {
        let add = |text| edited(text, |builder| builder.push("S", "1"));

        assert_eq!(add("NATS/1.0\r\nA: b\r\n\r\n"), "NATS/1.0\r\nA: b\r\nS: 1\r\n\r\n");
        assert_eq!(add("NATS/1.0\r\n\r\n"), "NATS/1.0\r\nS: 1\r\n\r\n");
        assert_eq!(add(""), "NATS/1.0\r\nS: 1\r\n\r\n");
        assert_eq!(add("ABCD"), "ABCD\r\nS: 1\r\n\r\n");
        assert_eq!(add("ABCD\r\n"), "ABCD\r\nS: 1\r\n\r\n");
    }

    #[test]
    fn set_replaces_every_line_of_that_name() {
        let text = "NATS/1.0\r\nA: 1\r\nB: 2\r\nA: 3\r\nAB: 4\r\n\r\n";

        assert_eq!(
            edited(text, |builder| builder.set("A", "9")),
            "NATS/1.0\r\nB: 2\r\nAB: 4\r\nA: 9\r\n\r\n"
        );
    }

    #[test]
    fn a_block_whose_last_header_is_removed_is_empty() {
        let text = "NATS/1.0\r\nNats-Expected-Stream: S\r\nNats-Expected-Last-Sequence: 2\r\n\r\n";

        assert_eq!(edited(text, |builder| builder.remove_prefix("Nats-Expected-")), "");
        assert_eq!(
            edited(text, |builder| builder.remove("Nats-Expected-Stream")),
            "NATS/1.0\r\nNats-Expected-Last-Sequence: 2\r\n\r\n"
        );
    }

    #[test]
    fn a_value_with_line_ends_does_not_become_another_header() {
        assert_eq!(edited("", |builder| builder.push("A", "x\r\nB: y")), "NATS/1.0\r\nA: x  B: y\r\n\r\n");
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(
            bytes in prop::collection::vec(prop::sample::select(b"NATS/1.0 \r\n:Aab5".to_vec()), 0..60),
        ) {
            let block = HeaderBlock(&bytes);
            let _ = (block.get("A"), block.get(""), block.status(), without_status(&bytes), block.iter().count());
            let mut builder = HeaderBuilder::from_block(&bytes);
            builder.remove("A").remove_prefix("a").set("b", "x");
            let edited = builder.finish();
            prop_assert_eq!(HeaderBlock(&edited).get("b"), Some(b"x".as_slice()));
        }

        #[test]
        fn what_is_pushed_is_found(
            pairs in prop::collection::vec(("[A-Z][A-Za-z-]{0,8}", "[!-~][ -~]{0,12}"), 0..8),
        ) {
            let mut builder = HeaderBuilder::new();
            for (name, value) in &pairs {
                builder.push(name, value);
            }
            let bytes = builder.finish();

            let seen: Vec<_> = HeaderBlock(&bytes).iter().collect();

            prop_assert_eq!(seen.len(), pairs.len());
            for ((name, value), (seen_name, seen_value)) in pairs.iter().zip(seen) {
                prop_assert_eq!((name.as_bytes(), value.as_bytes()), (seen_name, seen_value));
            }
        }
    }
}
