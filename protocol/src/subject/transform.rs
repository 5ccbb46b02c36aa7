//! Subjects rewritten by a pattern: `orders.*.*` to `archive.{{wildcard(2)}}.$1`.
//!
//! A destination is made of tokens; one that is wholly a placeholder stands for something of the subject, everything
//! else for itself. The functions are those of nats-server, and so is what they make of a subject.

use std::fmt;

use super::{Filter, is_wildcard};

/// A source filter and what its matches become.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transform {
    source: Filter,
    destination: Vec<Part>,
}

/// One token of a destination.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Literal(String),
    /// The rest of the subject, for the last token of a source that is `>`.
    Rest,
    /// Positions are those of tokens in the subject, from zero.
    Wildcard(usize),
    Partition {
        buckets: u32,
        tokens: Vec<usize>,
    },
    Random {
        buckets: u32,
    },
    Split {
        token: usize,
        delimiter: String,
    },
    SplitFromLeft {
        token: usize,
        at: usize,
    },
    SplitFromRight {
        token: usize,
        at: usize,
    },
    SliceFromLeft {
        token: usize,
        size: usize,
    },
    SliceFromRight {
        token: usize,
        size: usize,
    },
    Left {
        token: usize,
        length: usize,
    },
    Right {
        token: usize,
        length: usize,
    },
}

/// Why a transform is none, in the words of nats-server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InvalidTransform {
    /// The source is not a filter.
    Source(String),
    /// Source and destination do not fit each other, or the destination has wildcards.
    Subject,
    /// The destination is not a subject.
    Destination,
    /// There is no such function.
    UnknownFunction(String),
    /// A function has an argument that it can not use.
    Argument(String),
    /// A function has too few arguments.
    TooFewArguments(String),
    /// A function has too many arguments.
    TooManyArguments(String),
    /// The source has fewer wildcards than that.
    OutOfRange(String, usize),
}

impl Transform {
    /// Reads a pair of patterns. An empty source is `>`.
    pub fn parse(source: &str, destination: &str) -> Result<Self, InvalidTransform> {
        let source = if source.is_empty() { ">" } else { source };
        let filter = Filter::parse(source).map_err(|_| InvalidTransform::Source(source.to_owned()))?;
        let wildcards: Vec<usize> = positions(&filter, "*");
        let has_rest = source.ends_with('>');
        let tokens: Vec<&str> = destination.split('.').collect();
        let mut parts = Vec::with_capacity(tokens.len());
        for (position, token) in tokens.iter().enumerate() {
            parts.push(match *token {
                ">" if has_rest && position + 1 == tokens.len() => Part::Rest,
                token if is_wildcard(token.as_bytes()) => return Err(InvalidTransform::Subject),
                token => Part::parse(token, &wildcards)?,
            });
        }
        if has_rest != matches!(parts.last(), Some(Part::Rest)) {
            return Err(InvalidTransform::Subject);
        }
        Ok(Self { source: filter, destination: parts })
    }

    /// What a subject becomes; `None` if the source does not match it. `draw` is for random buckets.
    pub fn apply(&self, subject: &[u8], draw: &mut dyn FnMut() -> u64) -> Option<Vec<u8>> {
        if !self.source.matches(subject) {
            return None;
        }
        let tokens: Vec<&[u8]> = subject.split(|byte| *byte == b'.').collect();
        let rest = self.source.tokens().count() - 1;
        let mut out = Vec::with_capacity(subject.len() + 16);
        for part in &self.destination {
            if !out.is_empty() {
                out.push(b'.');
            }
            part.write(subject, &tokens, rest, draw, &mut out);
        }
        Some(out)
    }
}

fn positions(filter: &Filter, wildcard: &str) -> Vec<usize> {
    filter
        .tokens()
        .enumerate()
        .filter(|(_, token)| *token == wildcard)
        .map(|(position, _)| position)
        .collect()
}

impl Part {
    fn parse(token: &str, wildcards: &[usize]) -> Result<Self, InvalidTransform> {
        let wildcard = |number: usize| {
            let position = number.checked_sub(1).and_then(|index| wildcards.get(index)).copied();
            position.ok_or_else(|| InvalidTransform::OutOfRange(token.to_owned(), number))
        };
        if let Some(number) = token.strip_prefix('$').and_then(|number| number.parse().ok()) {
            return wildcard(number).map(Self::Wildcard);
        }
        let Some(call) = token.strip_prefix("{{").and_then(|token| token.strip_suffix("}}")) else {
            if token.is_empty() || token.contains(|byte: char| byte.is_ascii_whitespace()) {
                return Err(InvalidTransform::Destination);
            }
            return Ok(Self::Literal(token.to_owned()));
        };
        let unknown = || InvalidTransform::UnknownFunction(token.to_owned());
        let (name, arguments) =
            call.trim().strip_suffix(')').and_then(|call| call.split_once('(')).ok_or_else(unknown)?;
        let arguments: Vec<&str> = match arguments.trim() {
            "" => Vec::new(),
            arguments => arguments.split(',').map(str::trim).collect(),
        };
        let name = name.trim().to_ascii_lowercase();
        let (least, most) = match name.as_str() {
            "wildcard" | "random" => (1, 1),
            "partition" => (1, usize::MAX),
            "split" | "splitfromleft" | "splitfromright" | "slicefromleft" | "slicefromright" | "left"
            | "right" => (2, 2),
            _ => return Err(unknown()),
        };
        if arguments.len() < least {
            return Err(InvalidTransform::TooFewArguments(token.to_owned()));
        }
        if arguments.len() > most {
            return Err(InvalidTransform::TooManyArguments(token.to_owned()));
        }
        let number = |index: usize| {
            arguments[index].parse::<u32>().map_err(|_| InvalidTransform::Argument(token.to_owned()))
        };
        let of = |index: usize| wildcard(number(index)? as usize);
        let (one, other) = (|| of(0), || Ok(number(1)? as usize));
        Ok(match name.as_str() {
            "wildcard" => Self::Wildcard(one()?),
            "random" => Self::Random { buckets: number(0)? },
            "partition" => Self::Partition {
                buckets: number(0)?,
                tokens: (1..arguments.len()).map(of).collect::<Result<_, _>>()?,
            },
            "split" if arguments[1].is_empty() || arguments[1].contains(['.', ' ']) => {
                return Err(InvalidTransform::Argument(token.to_owned()));
            }
            "split" => Self::Split { token: one()?, delimiter: arguments[1].to_owned() },
            "splitfromleft" => Self::SplitFromLeft { token: one()?, at: other()? },
            "splitfromright" => Self::SplitFromRight { token: one()?, at: other()? },
            "slicefromleft" => Self::SliceFromLeft { token: one()?, size: other()? },
            "slicefromright" => Self::SliceFromRight { token: one()?, size: other()? },
            "left" => Self::Left { token: one()?, length: other()? },
            _ => Self::Right { token: one()?, length: other()? },
        })
    }

    fn write(
        &self,
        subject: &[u8],
        tokens: &[&[u8]],
        rest: usize,
        draw: &mut dyn FnMut() -> u64,
        out: &mut Vec<u8>,
    ) {
        match self {
            Self::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Self::Rest => out.extend_from_slice(&tokens[rest..].join(&b'.')),
            Self::Wildcard(token) => out.extend_from_slice(tokens[*token]),
            Self::Partition { buckets, tokens: chosen } => {
                let key = chosen.iter().flat_map(|token| tokens[*token]);
                let hash = if chosen.is_empty() { fnv1a(subject.iter()) } else { fnv1a(key) };
                out.extend_from_slice(hash.checked_rem(*buckets).unwrap_or(0).to_string().as_bytes());
            }
            Self::Random { buckets } => {
                let bucket = draw().checked_rem(u64::from(*buckets)).unwrap_or(0);
                out.extend_from_slice(bucket.to_string().as_bytes());
            }
            Self::Split { token, delimiter } => {
                let pieces = split(tokens[*token], delimiter.as_bytes());
                out.extend_from_slice(&pieces.join(&b'.'));
            }
            Self::SplitFromLeft { token, at } => cut(tokens[*token], Some(*at), out),
            Self::SplitFromRight { token, at } => {
                cut(tokens[*token], tokens[*token].len().checked_sub(*at), out);
            }
            Self::SliceFromLeft { token, size } => match *size {
                0 => out.extend_from_slice(tokens[*token]),
                size => out.extend_from_slice(&tokens[*token].chunks(size).collect::<Vec<_>>().join(&b'.')),
            },
            Self::SliceFromRight { token, size } => match *size {
                0 => out.extend_from_slice(tokens[*token]),
                size => {
                    let mut pieces: Vec<&[u8]> = tokens[*token].rchunks(size).collect();
                    pieces.reverse();
                    out.extend_from_slice(&pieces.join(&b'.'));
                }
            },
            Self::Left { token, length } => {
                let token = tokens[*token];
                let end = if *length > 0 { token.len().min(*length) } else { token.len() };
                out.extend_from_slice(&token[..end]);
            }
            Self::Right { token, length } => {
                let token = tokens[*token];
                let start = if *length > 0 { token.len().saturating_sub(*length) } else { 0 };
                out.extend_from_slice(&token[start..]);
            }
        }
    }
}

/// The two halves of a token, if both have something.
fn cut(token: &[u8], at: Option<usize>, out: &mut Vec<u8>) {
    match at.filter(|at| *at > 0 && *at < token.len()) {
        Some(at) => out.extend_from_slice(&[&token[..at], &token[at..]].join(&b'.')),
        None => out.extend_from_slice(token),
    }
}

/// What lies between delimiters, without what is empty.
fn split<'a>(token: &'a [u8], delimiter: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = token;
    while let Some(at) = memchr::memmem::find(rest, delimiter) {
        pieces.push(&rest[..at]);
        rest = &rest[at + delimiter.len()..];
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn fnv1a<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

impl fmt::Display for InvalidTransform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (why, token) = match self {
            Self::Source(source) => return write!(out, "invalid subject {source}"),
            Self::Subject => return out.write_str("invalid subject"),
            Self::Destination => return out.write_str("invalid mapping destination: invalid transform"),
            Self::UnknownFunction(token) => ("unknown function", token),
            Self::Argument(token) => ("function argument is invalid or in the wrong format", token),
            Self::TooFewArguments(token) => ("not enough arguments passed to the function", token),
            Self::TooManyArguments(token) => ("too many arguments passed to the function", token),
            Self::OutOfRange(token, _) => ("wildcard index out of range", token),
        };
        write!(out, "invalid mapping destination: {why} in {token}")?;
        match self {
            Self::OutOfRange(_, number) => write!(out, ": [{number}]"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for InvalidTransform {}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(source: &str, destination: &str, subject: &str) -> Option<String> {
        let transform = Transform::parse(source, destination).unwrap();
        transform.apply(subject.as_bytes(), &mut || 7).map(|subject| String::from_utf8(subject).unwrap())
    }

    #[test]
    fn a_subject_that_matches_is_rewritten() {
        let check = |source, destination, subject, expected: &str| {
            assert_eq!(
                apply(source, destination, subject).as_deref(),
                Some(expected),
                "{source} {destination}"
            );
        };

        check("t.*", "n.{{wildcard(1)}}", "t.a", "n.a");
        check("t.*.*", "n.$2.$1", "t.a.b", "n.b.a");
        check("t.*", "n", "t.a", "n");
        check("t.a", "n.b", "t.a", "n.b");
        check("", "n.>", "t.a.b", "n.t.a.b");
        check("t.>", "n.>", "t.a.b", "n.a.b");
        check("t.*.>", "x.{{ Wildcard ( 1 ) }}.>", "t.a.b.c", "x.a.b.c");
        check("t.*", "n.x{{wildcard(1)}}", "t.a", "n.x{{wildcard(1)}}");
        check("t.*", "n.{{random(3)}}", "t.a", "n.1");
        check("t.*", "n.{{random(0)}}", "t.a", "n.0");
    }

    #[test]
    fn functions_make_what_they_make_in_nats() {
        let check = |destination: &str, expected: &str| {
            let made = apply("t.*.*.*", destination, "t.a-b-c.hello.world");
            assert_eq!(made.as_deref(), Some(expected), "{destination}");
        };

        check("{{split(1,-)}}", "a.b.c");
        check("{{slicefromleft(2,2)}}", "he.ll.o");
        check("{{sliceFromRight(3,2)}}", "w.or.ld");
        check("{{left(3,2)}}.{{right(3,1)}}", "wo.d");
        check("{{left(3,0)}}.{{right(3,9)}}", "world.world");
        check("{{SplitFromLeft(3,2)}}.{{splitfromright(3,1)}}", "wo.rld.worl.d");
        check("{{splitfromleft(3,9)}}.{{splitfromright(3,9)}}", "world.world");
        assert_eq!(apply("t.*", "{{split(1,-)}}", "t.-a--b-").as_deref(), Some("a.b"));
        assert_eq!(apply("t.*.*", "n.{{partition(5,1,2)}}.x", "t.a.b").as_deref(), Some("n.1.x"));
        assert_eq!(apply("t.*", "n.{{partition(10)}}", "t.a").as_deref(), Some("n.2"));
        assert_eq!(apply("t.*", "n.{{partition(0,1)}}", "t.a").as_deref(), Some("n.0"));
    }

    #[test]
    fn a_subject_that_does_not_match_is_left_alone() {
        assert_eq!(apply("t.*", "n.$1", "t.a.b"), None);
        assert_eq!(apply("u.>", "n.>", "t.a"), None);
    }

    #[test]
    fn what_is_no_transform_is_refused_in_the_words_of_nats() {
        let check = |source, destination, words: &str| {
            assert_eq!(Transform::parse(source, destination).unwrap_err().to_string(), words);
        };

        check("t..", "n", "invalid subject t..");
        check("t.>", "n", "invalid subject");
        check("t.*", "n.*", "invalid subject");
        check("t.*", "n.>", "invalid subject");
        check("t.*", "n..x", "invalid mapping destination: invalid transform");
        let within = "invalid mapping destination:";
        check("t.*", "n.{{foo(1)}}", &format!("{within} unknown function in {{{{foo(1)}}}}"));
        check("t.*", "n.{{foo}}", &format!("{within} unknown function in {{{{foo}}}}"));
        check(
            "t.*",
            "n.{{wildcard(2)}}",
            &format!("{within} wildcard index out of range in {{{{wildcard(2)}}}}: [2]"),
        );
        check(
            "t.*",
            "n.{{wildcard(x)}}",
            &format!("{within} function argument is invalid or in the wrong format in {{{{wildcard(x)}}}}"),
        );
        check(
            "t.*",
            "n.{{wildcard()}}",
            &format!("{within} not enough arguments passed to the function in {{{{wildcard()}}}}"),
        );
        check(
            "t.*",
            "n.{{wildcard(1,2)}}",
            &format!("{within} too many arguments passed to the function in {{{{wildcard(1,2)}}}}"),
        );
    }
}
