//! What is wrong with a text that is not JSON, in the words clients of NATS know.
//!
//! Only looked at after a request was refused, so it is written for its messages and not for speed.

/// The first syntax error of `text`, such as `invalid character 'x' looking for beginning of value at offset 1`;
/// `None` when it is valid. Several values one after the other are valid, as they are for NATS.
pub(crate) fn describe_syntax_error(text: &[u8]) -> Option<String> {
    let mut scan = Scan { text, at: 0 };
    loop {
        scan.skip_space();
        if scan.at == text.len() {
            return None;
        }
        if let Err(wrong) = scan.value(DEPTH_MAX) {
            return Some(wrong.describe());
        }
    }
}

/// Deeper nesting than this is refused before anything is built from it.
const DEPTH_MAX: u32 = 120;

enum Wrong {
    Ended,
    TooDeep,
    Character { byte: u8, offset: usize, context: String },
}

impl Wrong {
    fn describe(&self) -> String {
        match self {
            Self::Ended => "unexpected EOF".to_owned(),
            Self::TooDeep => "exceeded max depth".to_owned(),
            Self::Character { byte, offset, context } => {
                let quoted = match byte {
                    b'\'' => r"'\''".to_owned(),
                    b'"' => "'\"'".to_owned(),
                    b'\n' => r"'\n'".to_owned(),
                    b'\r' => r"'\r'".to_owned(),
                    b'\t' => r"'\t'".to_owned(),
                    b'\\' => r"'\\'".to_owned(),
                    0x20..=0x7e | 0x80.. => format!("'{}'", char::from(*byte)),
                    _ => format!(r"'\x{byte:02x}'"),
                };
                format!("invalid character {quoted} {context} at offset {offset}")
            }
        }
    }
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn skip_space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, Wrong> {
        self.text.get(self.at).copied().ok_or(Wrong::Ended)
    }

    /// The byte at the position is not what was wanted.
    fn wrong<T>(&self, context: impl Into<String>) -> Result<T, Wrong> {
        let byte = self.peek()?;
        Err(Wrong::Character { byte, offset: self.at + 1, context: context.into() })
    }

    fn value(&mut self, depth: u32) -> Result<(), Wrong> {
        self.skip_space();
        if depth == 0 {
            return Err(Wrong::TooDeep);
        }
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            b'n' => self.literal("null"),
            _ => self.wrong("looking for beginning of value"),
        }
    }

    fn object(&mut self, depth: u32) -> Result<(), Wrong> {
        self.at += 1;
        self.skip_space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            if self.peek()? != b'"' {
                return self.wrong("looking for beginning of object key string");
            }
            self.string()?;
            self.skip_space();
            if self.peek()? != b':' {
                return self.wrong("after object key");
            }
            self.at += 1;
            self.value(depth - 1)?;
            self.skip_space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.wrong("after object key:value pair"),
            }
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), Wrong> {
        self.at += 1;
        self.skip_space();
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth - 1)?;
            self.skip_space();
            match self.peek()? {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.wrong("after array element"),
            }
        }
    }

    fn string(&mut self) -> Result<(), Wrong> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => {
                    self.at += 1;
                    self.escape()?;
                }
                0..0x20 => return self.wrong("in string literal"),
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), Wrong> {
        match self.peek()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.at += 1,
            b'u' => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek()?.is_ascii_hexdigit() {
                        return self.wrong(r"in \u hexadecimal character escape");
                    }
                    self.at += 1;
                }
            }
            _ => return self.wrong("in string escape code"),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Wrong> {
        if self.peek()? == b'-' {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return self.wrong("in numeric literal"),
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.peek()?.is_ascii_digit() {
                return self.wrong("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.text.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek()?, b'+' | b'-') {
                self.at += 1;
            }
            if !self.peek()?.is_ascii_digit() {
                return self.wrong("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), Wrong> {
        for expected in word.bytes() {
            if self.peek()? != expected {
                return self.wrong(format!("in literal {word} (expecting '{}')", char::from(expected)));
            }
            self.at += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_name_the_character_the_place_and_the_offset() {
        let check = |text: &str, said: Option<&str>| {
            assert_eq!(describe_syntax_error(text.as_bytes()).as_deref(), said, "{text:?}");
        };

        check("{}", None);
        check(r#"{"a": [1, -2.5e3, true, null, "x\u00e9"]} "#, None);
        check("x", Some("invalid character 'x' looking for beginning of value at offset 1"));
        check("{x", Some("invalid character 'x' looking for beginning of object key string at offset 2"));
        check(r#"{"a" 1}"#, Some("invalid character '1' after object key at offset 6"));
        check(r#"{"a": 1 "b"}"#, Some("invalid character '\"' after object key:value pair at offset 9"));
        check("[1 2]", Some("invalid character '2' after array element at offset 4"));
        check("{\"a\": tru}", Some("invalid character '}' in literal true (expecting 'e') at offset 10"));
        check("{\"a\": \"\n\"}", Some("invalid character '\\n' in string literal at offset 8"));
        check("{", Some("unexpected EOF"));
        check(&"[".repeat(500), Some("exceeded max depth"));
    }

    proptest! {
        #[test]
        fn a_value_is_valid_here_when_it_is_valid_for_the_parser(text in r#"[\[\]{}:,"0-9a-e.tru\\ -]{0,20}"#) {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
                prop_assert_eq!(describe_syntax_error(text.as_bytes()), None);
            }
        }
    }
}
