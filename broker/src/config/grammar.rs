//! The NATS configuration grammar: a superset of JSON with blocks, lists, comments, two kinds of quotes, block
//! strings, includes, variables and units.
//!
//! Pure: files and environment variables are read through [`Source`]. What comes out is a tree in which every
//! key knows its file, line and column, so that whoever gives the keys a meaning can point at the one that has
//! none. What a key means is decided in `options.rs`.
//!
//! Deliberately stricter than nats-server where that server accepts what is surely a mistake: a closing brace
//! that closes nothing, a key without a value at the end of a file, an include that includes itself. And more
//! lenient where it is surely not one: `cluster{` needs no space, a variable of the including file is known in
//! the included one.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// How deep blocks, lists and variables of variables may nest. Guards the stack.
const DEPTH_MAX: usize = 64;
/// How deep includes may nest.
const INCLUDE_DEPTH_MAX: usize = 16;
/// How many values a configuration may hold after its variables are replaced. Guards memory against a few lines
/// of variables that each double the one before.
const VALUES_MAX: usize = 1_000_000;

/// Where a configuration comes from.
pub trait Source {
    /// The text of a file, or why it can not be read.
    fn read(&self, path: &str) -> Result<String, String>;
    /// The value of an environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

/// A place in a file. Shown as `file:line:column`, counted as nats-server counts: lines from one, columns from
/// zero on the first line and from one on the others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Position {
    /// The file as it was named.
    pub file: Arc<str>,
    /// Line, from one.
    pub line: usize,
    /// Column in bytes.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What is wrong and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct Problem {
    /// The place.
    pub at: Position,
    /// The sentence.
    pub message: String,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true yes on`, `false no off`, in any case, without quotes.
    Bool(bool),
    /// An integer, its unit multiplied in.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A string; also everything bare that is nothing else, so `10s` and `10.0.0.1:4222`.
    Text(String),
    /// `2006-01-02T15:04:05Z`, as written.
    Date(String),
    /// `[ .. ]`
    List(Vec<Element>),
    /// `{ .. }`
    Block(Block),
}

impl Value {
    /// What it is, for messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number with a fraction",
            Self::Text(_) => "a string",
            Self::Date(_) => "a date",
            Self::List(_) => "a list",
            Self::Block(_) => "a block",
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::List(list) => 1 + list.iter().map(|element| element.value.weight()).sum::<usize>(),
            Self::Block(block) => 1 + block.entries().map(|entry| entry.value.weight()).sum::<usize>(),
            _ => 1,
        }
    }
}

/// One value of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Where the value starts.
    pub at: Position,
    /// The value.
    pub value: Value,
}

/// One key of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as written.
    pub key: String,
    /// Where the key starts.
    pub at: Position,
    /// Its value.
    pub value: Value,
    used: Cell<bool>,
}

impl Entry {
    /// Whether a variable referred to this key. Such a key need not be a known option.
    #[must_use]
    pub const fn is_variable(&self) -> bool {
        self.used.get()
    }

    /// A problem at this key.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { at: self.at.clone(), message: message.into() }
    }
}

/// Keys with their values, in the order of the text. Of a repeated key the last one counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    entries: Vec<Option<Entry>>,
    index: HashMap<String, usize>,
}

impl Block {
    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// The entry of exactly this key.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.index.get(key).and_then(|&at| self.entries.get(at)).and_then(Option::as_ref)
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    fn insert(&mut self, entry: Entry) {
        let at = self.entries.len();
        if let Some(before) = self.index.insert(entry.key.clone(), at) {
            self.entries[before] = None;
        }
        self.entries.push(Some(entry));
    }
}

/// Parses a file and what it includes.
pub fn parse_file(path: &str, source: &dyn Source) -> Result<Block, Problem> {
    let file: Arc<str> = path.into();
    let text = source.read(path).map_err(|message| Problem {
        at: Position { file: file.clone(), line: 1, column: 0 },
        message: format!("can not read the configuration file: {message}"),
    })?;
    let mut session = Session { source, files: vec![path.to_owned()], scopes: Vec::new(), values: 0 };
    let mut parser = Parser::new(&mut session, file, &text);
    parser.document()?;
    Ok(parser.session.scopes.pop().unwrap_or_default())
}

/// What all files of one configuration share.
struct Session<'s> {
    source: &'s dyn Source,
    /// The files being read, the including ones first.
    files: Vec<String>,
    /// The blocks being read, the outermost first: variables are looked up from the back.
    scopes: Vec<Block>,
    values: usize,
}

struct Parser<'p, 's> {
    session: &'p mut Session<'s>,
    file: Arc<str>,
    text: &'p [u8],
    at: usize,
    line: usize,
    /// Where columns are counted from: the start of the text or the newline before this line.
    line_start: usize,
    depth: usize,
}

/// What may follow a value besides a newline, a comment, `,` and `;`.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Inside {
    File,
    /// Nothing but one value: the text of an environment variable.
    Variable,
    Block,
    List,
}

impl<'p, 's> Parser<'p, 's> {
    fn new(session: &'p mut Session<'s>, file: Arc<str>, text: &'p str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).as_bytes();
        Self { session, file, text, at: 0, line: 1, line_start: 0, depth: 0 }
    }

    /// A whole file into a new scope, with or without braces around it.
    fn document(&mut self) -> Result<(), Problem> {
        self.session.scopes.push(Block::default());
        self.document_here()
    }

    fn document_here(&mut self) -> Result<(), Problem> {
        self.skip_blank()?;
        if self.peek() == Some(b'{') {
            self.advance();
            self.entries(Inside::Block)?;
            self.skip_separators()?;
        }
        self.entries(Inside::File)
    }

    /// Entries until the end of what they are inside of, which is consumed.
    fn entries(&mut self, inside: Inside) -> Result<(), Problem> {
        loop {
            self.skip_separators()?;
            match self.peek() {
                None if inside == Inside::File => return Ok(()),
                None => return Err(self.problem("the file ends inside a block: a \"}\" is missing")),
                Some(b'}') if inside == Inside::Block => {
                    self.advance();
                    return Ok(());
                }
                Some(b @ (b'}' | b']' | b')')) => {
                    return Err(self.problem(format!("\"{}\" closes nothing", b as char)));
                }
                Some(_) => self.entry(inside)?,
            }
        }
    }

    fn entry(&mut self, inside: Inside) -> Result<(), Problem> {
        let at = self.position();
        let (key, quoted) = self.key()?;
        if key == "include" && !quoted && matches!(self.peek(), Some(b' ' | b'\t')) {
            return self.include(&at, inside);
        }
        self.skip_whitespace();
        if matches!(self.peek(), Some(b':' | b'=')) {
            self.advance();
            self.skip_spaces();
            if self.at_newline() {
                return Err(self.problem(format!("expected a value for \"{key}\" but found a new line")));
            }
        }
        let value = self.value(inside)?;
        self.end_of_value(inside)?;
        let entry = Entry { key, at, value, used: Cell::new(false) };
        match self.session.scopes.last_mut() {
            Some(scope) => scope.insert(entry),
            None => return Err(self.problem("a key outside of any block")),
        }
        Ok(())
    }

    fn key(&mut self) -> Result<(String, bool), Problem> {
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => Ok((self.quoted(quote)?, true)),
            Some(b @ (b':' | b'=')) => Err(self.problem(format!("unexpected key separator '{}'", b as char))),
            _ => {
                let start = self.at;
                while let Some(b) = self.peek() {
                    if b.is_ascii_whitespace() || matches!(b, b':' | b'=' | b'{' | b'}' | b'[' | b']' | b'"')
                    {
                        break;
                    }
                    self.advance();
                }
                if self.at == start {
                    return Err(self.problem(format!("expected a key but found {}", self.found())));
                }
                Ok((self.slice(start, self.at), false))
            }
        }
    }

    fn include(&mut self, at: &Position, inside: Inside) -> Result<(), Problem> {
        let problem = |message: String| Problem { at: at.clone(), message };
        self.skip_spaces();
        let name = match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote)?,
            _ => self.bare(),
        };
        if name.is_empty() {
            return Err(problem("include needs the name of a file".to_owned()));
        }
        self.end_of_value(inside)?;
        let path = beside(&self.file, &name);
        if self.session.files.contains(&path) {
            return Err(problem(format!("include file '{name}' includes itself")));
        }
        if self.session.files.len() >= INCLUDE_DEPTH_MAX {
            return Err(problem(format!("include file '{name}': includes nest too deep")));
        }
        let text = self
            .session
            .source
            .read(&path)
            .map_err(|message| problem(format!("error parsing include file '{name}', {message}")))?;
        self.session.files.push(path.clone());
        let mut parser = Parser::new(self.session, path.as_str().into(), &text);
        parser.depth = self.depth;
        parser.document_here()?;
        self.session.files.pop();
        Ok(())
    }

    fn value(&mut self, inside: Inside) -> Result<Value, Problem> {
        self.session.values += 1;
        if self.session.values > VALUES_MAX {
            return Err(self.problem("the configuration holds too many values"));
        }
        match self.peek() {
            None => Err(self.problem("expected a value but the file ends")),
            Some(b'{') => self.nested(|parser| {
                parser.session.scopes.push(Block::default());
                parser.entries(Inside::Block)?;
                Ok(Value::Block(parser.session.scopes.pop().unwrap_or_default()))
            }),
            Some(b'[') => self.nested(Self::list),
            Some(b'(') => self.block_string(),
            Some(quote @ (b'"' | b'\'')) => Ok(Value::Text(self.quoted(quote)?)),
            Some(b',' | b';' | b'}' | b']') => {
                Err(self.problem(format!("expected a value but found {}", self.found())))
            }
            Some(_) => {
                let at = self.position();
                let text = self.bare_value(inside);
                match text.strip_prefix('$') {
                    // A bcrypt hash, not a variable.
                    Some(rest) if !rest.starts_with("2a$") => self.lookup(rest, &at),
                    _ => classify(text).map_err(|message| Problem { at, message }),
                }
            }
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Value, Problem>) -> Result<Value, Problem> {
        if self.depth >= DEPTH_MAX {
            return Err(self.problem("blocks and lists nest too deep"));
        }
        self.depth += 1;
        self.advance();
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn list(&mut self) -> Result<Value, Problem> {
        let mut list = Vec::new();
        loop {
            self.skip_blank()?;
            match self.peek() {
                None => return Err(self.problem("the file ends inside a list: a \"]\" is missing")),
                Some(b']') => {
                    self.advance();
                    return Ok(Value::List(list));
                }
                Some(b',') => return Err(self.problem("unexpected ',' in a list")),
                Some(_) => {
                    let at = self.position();
                    let value = self.value(Inside::List)?;
                    list.push(Element { at, value });
                    self.end_of_value(Inside::List)?;
                }
            }
        }
    }

    /// After a value: a newline, a comment, the end, one `,` or `;`, or the closing bracket, which is left.
    fn end_of_value(&mut self, inside: Inside) -> Result<(), Problem> {
        self.skip_spaces();
        if inside == Inside::Variable {
            self.skip_blank()?;
            return match self.peek() {
                None => Ok(()),
                Some(_) => Err(self.problem("the value of an environment variable must be one value")),
            };
        }
        let (what, fits) = match (inside, self.peek()) {
            (_, None) => return Ok(()),
            (Inside::List, Some(b)) => ("a list value to end with \",\", a new line or \"]\"", b == b']'),
            (Inside::Block, Some(b)) => ("a value to end with a new line, \",\", \";\" or \"}\"", b == b'}'),
            (_, Some(_)) => ("a value to end with a new line, \",\" or \";\"", false),
        };
        if fits || self.at_newline() || self.at_comment() {
            return Ok(());
        }
        match self.peek() {
            Some(b',') => self.advance(),
            Some(b';') if inside != Inside::List => self.advance(),
            _ => return Err(self.problem(format!("expected {what}, but got {}", self.found()))),
        }
        Ok(())
    }

    fn lookup(&mut self, name: &str, at: &Position) -> Result<Value, Problem> {
        let known = self.session.scopes.iter().rev().find_map(|scope| scope.entry(name));
        if let Some(entry) = known {
            entry.used.set(true);
            self.session.values += entry.value.weight();
            if self.session.values > VALUES_MAX {
                return Err(Problem {
                    at: at.clone(),
                    message: format!("too many values after replacing '{name}'"),
                });
            }
            return Ok(entry.value.clone());
        }
        let missing = || Problem {
            at: at.clone(),
            message: format!("variable reference for '{name}' on line {} can not be found", at.line),
        };
        let text = self.session.source.variable(name).ok_or_else(missing)?;
        // An environment variable may refer to further ones; the names on the way tell a cycle.
        let file: Arc<str> = format!("${name}").into();
        if self.session.files.iter().any(|open| *open == *file) {
            return Err(Problem {
                at: at.clone(),
                message: format!("variable reference cycle for '{name}'"),
            });
        }
        if self.depth >= DEPTH_MAX {
            return Err(Problem { at: at.clone(), message: "variables nest too deep".to_owned() });
        }
        self.session.files.push(file.as_ref().to_owned());
        let depth = self.depth + 1;
        let mut parser = Parser::new(self.session, file, &text);
        parser.depth = depth;
        parser.skip_whitespace();
        let value = if parser.peek().is_none() {
            Value::Text(String::new())
        } else {
            parser.value(Inside::Variable)?
        };
        parser.end_of_value(Inside::Variable)?;
        self.session.files.pop();
        Ok(value)
    }

    fn quoted(&mut self, quote: u8) -> Result<String, Problem> {
        let opened = self.position();
        self.advance();
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None => {
                    let message = "the file ends inside a quoted string".to_owned();
                    return Err(Problem { at: opened, message });
                }
                Some(b) if b == quote => {
                    self.advance();
                    break;
                }
                Some(b'\\') if quote == b'"' => {
                    self.advance();
                    bytes.push(self.escape()?);
                }
                Some(b) => {
                    bytes.push(b);
                    self.advance();
                }
            }
        }
        String::from_utf8(bytes).map_err(|_| Problem {
            at: opened,
            message: "the escapes of this string are not UTF-8".to_owned(),
        })
    }

    fn escape(&mut self) -> Result<u8, Problem> {
        let escaped = match self.peek() {
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b'"') => b'"',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits =
                    self.text.get(self.at + 1..self.at + 3).and_then(|two| std::str::from_utf8(two).ok());
                let byte = digits.filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = byte.and_then(|two| u8::from_str_radix(two, 16).ok());
                let byte = byte.ok_or_else(|| self.problem("expected two hexadecimal digits after '\\x'"))?;
                self.at += 2;
                byte
            }
            _ => {
                return Err(self.problem(format!(
                    "Invalid escape character {}. Only the following escape characters are allowed: \\xXX, \\t, \
                     \\n, \\r, \\\", \\\\.",
                    self.found()
                )));
            }
        };
        self.advance();
        Ok(escaped)
    }

    /// `(` text `)`, the closing one alone on its line.
    fn block_string(&mut self) -> Result<Value, Problem> {
        let opened = self.position();
        self.advance();
        let start = self.at;
        loop {
            let line = self.at;
            while !matches!(self.peek(), None | Some(b'\n')) {
                self.advance();
            }
            if line != start && self.text[line..self.at].trim_ascii() == b")" {
                return Ok(Value::Text(self.slice(start, line)));
            }
            if self.peek().is_none() {
                let message =
                    "the file ends inside a block string: a \")\" on its own line is missing".to_owned();
                return Err(Problem { at: opened, message });
            }
            self.advance();
        }
    }

    fn bare_value(&mut self, inside: Inside) -> String {
        if inside == Inside::Variable {
            // The whole text, as nobody quotes what they export.
            let start = self.at;
            while self.peek().is_some() {
                self.advance();
            }
            return self.slice(start, self.at).trim().to_owned();
        }
        self.bare()
    }

    fn bare(&mut self) -> String {
        let start = self.at;
        while let Some(b) = self.peek() {
            if b.is_ascii_whitespace() || matches!(b, b',' | b';' | b']' | b'}') {
                break;
            }
            self.advance();
        }
        self.slice(start, self.at)
    }

    /// Spaces, newlines, comments, and the `,` and `;` that may end an entry.
    fn skip_separators(&mut self) -> Result<(), Problem> {
        loop {
            self.skip_blank()?;
            match self.peek() {
                Some(b',' | b';') => self.advance(),
                _ => return Ok(()),
            }
        }
    }

    fn skip_blank(&mut self) -> Result<(), Problem> {
        while let Some(b) = self.peek() {
            if b.is_ascii_whitespace() {
                self.advance();
            } else if self.at_comment() {
                while !matches!(self.peek(), None | Some(b'\n')) {
                    self.advance();
                }
            } else if b == b'/' {
                return Err(self.problem("a comment starts with '#' or '//'"));
            } else if b < b' ' || b == 0x7f {
                return Err(self.problem("unexpected control character"));
            } else {
                break;
            }
        }
        Ok(())
    }

    fn skip_whitespace(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.advance();
        }
    }

    fn skip_spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.advance();
        }
    }

    fn at_comment(&self) -> bool {
        self.peek() == Some(b'#') || self.text[self.at..].starts_with(b"//")
    }

    fn at_newline(&self) -> bool {
        matches!(self.peek(), Some(b'\n' | b'\r'))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn advance(&mut self) {
        if self.peek() == Some(b'\n') {
            self.line += 1;
            self.line_start = self.at;
        }
        self.at += 1;
    }

    fn slice(&self, from: usize, to: usize) -> String {
        String::from_utf8_lossy(&self.text[from..to]).into_owned()
    }

    fn found(&self) -> String {
        let rest =
            String::from_utf8_lossy(&self.text[self.at..self.text.len().min(self.at + 4)]).into_owned();
        rest.chars().next().map_or_else(|| "the end of the file".to_owned(), |first| format!("{first:?}"))
    }

    fn position(&self) -> Position {
        Position { file: self.file.clone(), line: self.line, column: self.at - self.line_start }
    }

    fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { at: self.position(), message: message.into() }
    }
}

/// The path of a file named in another one.
fn beside(including: &str, name: &str) -> String {
    if Path::new(name).is_absolute() {
        return name.to_owned();
    }
    let directory = Path::new(including).parent().unwrap_or_else(|| Path::new(""));
    let name = name.trim_start_matches("./");
    directory.join(name).to_string_lossy().into_owned()
}

/// What a bare word is. Only a clean number is a number.
fn classify(text: String) -> Result<Value, String> {
    if let Some(value) = boolean(&text) {
        return Ok(Value::Bool(value));
    }
    if is_date(&text) {
        return Ok(Value::Date(text));
    }
    let digits_at = usize::from(text.starts_with('-'));
    let digits = text[digits_at..].bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Ok(Value::Text(text));
    }
    let (number, rest) = text.split_at(digits_at + digits);
    if let Some(unit) = unit(rest) {
        let scaled = number.parse::<i64>().ok().and_then(|number| number.checked_mul(unit));
        return scaled.map(Value::Integer).ok_or_else(|| format!("integer '{text}' is out of the range"));
    }
    if let Some(fraction) = rest.strip_prefix('.')
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return text.parse().map(Value::Float).map_err(|_| format!("float '{text}' is out of the range"));
    }
    Ok(Value::Text(text))
}

fn boolean(text: &str) -> Option<bool> {
    let is = |words: [&str; 3]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(["true", "yes", "on"]) {
        return Some(true);
    }
    is(["false", "no", "off"]).then_some(false)
}

fn is_date(text: &str) -> bool {
    text.len() == 20
        && text.bytes().zip(*b"0000-00-00T00:00:00Z").all(|(b, shape)| match shape {
            b'0' => b.is_ascii_digit(),
            _ => b == shape,
        })
}

/// What a number with this suffix is multiplied with. The empty one counts.
fn unit(suffix: &str) -> Option<i64> {
    let mut letters = suffix.bytes().map(|b| b.to_ascii_lowercase());
    let Some(first) = letters.next() else { return Some(1) };
    let power = b"kmgtpe".iter().position(|&b| b == first)? as u32 + 1;
    let rest: Vec<u8> = letters.collect();
    match rest.as_slice() {
        b"" => 1000_i64.checked_pow(power),
        b"b" | b"i" | b"ib" => 1024_i64.checked_pow(power),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
