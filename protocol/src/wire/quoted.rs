//! Text in quotes, as nats-server puts what a client sent into its error texts: Go's `%q`.

use std::fmt::Write as _;

/// In double quotes, with everything escaped that is not printable.
#[must_use]
pub fn quoted(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for chunk in text.utf8_chunks() {
        chunk.valid().chars().for_each(|letter| push(&mut out, letter));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

fn push(out: &mut String, letter: char) {
    match letter {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\'' => out.push('\''),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        // Rust's own escapes differ in their form, but both escape what is not printable.
        _ if letter.escape_debug().len() == 1 => out.push(letter),
        _ => {
            let code = u32::from(letter);
            let _ = match code {
                0..0x20 | 0x7f => write!(out, "\\x{code:02x}"),
                0x20..0x1_0000 => write!(out, "\\u{code:04x}"),
                _ => write!(out, "\\U{code:08x}"),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &[u8], expected: &str) {
        assert_eq!(quoted(text), expected);
    }

    #[test]
    fn what_can_be_printed_stays_as_it_is() {
        check(b"foo.bar", "\"foo.bar\"");
        check("f\u{fc}.\u{65e5}'s".as_bytes(), "\"f\u{fc}.\u{65e5}'s\"");
    }

    #[test]
    fn what_can_not_is_escaped_as_go_does_it() {
        check(b"a\"b\\c", r#""a\"b\\c""#);
        check(b"\x07\x08\x0c\n\r\t\x0b", r#""\a\b\f\n\r\t\v""#);
        check(b"\x00\x01\x1f\x7f", r#""\x00\x01\x1f\x7f""#);
        check(b"\xff\xc3", r#""\xff\xc3""#);
        check("\u{85}\u{200b}\u{e0001}".as_bytes(), r#""\u0085\u200b\U000e0001""#);
    }
}
