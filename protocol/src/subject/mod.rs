//! Subjects, filters, and which of them match, collide, or contain each other.
//!
//! A subject is a sequence of non-empty tokens separated by `.`. In a filter, the token `*` stands for any one
//! token and a last token `>` for one or more; inside of longer tokens both are ordinary characters.
//!
//! [`Subject`] and [`Filter`] are for configuration and API, where text is checked once. The message path works
//! on bytes that the protocol does not check: a client may publish on `foo.*` or `foo..x`. Matching takes the
//! published text literally, and a text with an empty token matches nothing.

mod transform;
mod trie;

use std::fmt;
use std::sync::Arc;

use memchr::memchr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use transform::{InvalidTransform, Transform};
pub use trie::Trie;

/// A valid subject without wildcards. Cloning is cheap.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Subject(Arc<str>);

impl Subject {
    /// The only way in. Code that holds one never checks it again.
    pub fn parse<T: AsRef<[u8]> + ?Sized>(text: &T) -> Result<Self, InvalidSubject> {
        let text = text.as_ref();
        match str::from_utf8(text) {
            Ok(valid) if is_valid_literal(text) => Ok(Self(valid.into())),
            _ => Err(InvalidSubject::new(text)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The tokens in order.
    pub fn tokens(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }
}

/// A valid subject that may have wildcards. Cloning is cheap.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Filter {
    text: Arc<str>,
    is_literal: bool,
}

impl Filter {
    /// The only way in. Code that holds one never checks it again.
    pub fn parse<T: AsRef<[u8]> + ?Sized>(text: &T) -> Result<Self, InvalidSubject> {
        let text = text.as_ref();
        match str::from_utf8(text) {
            Ok(valid) if is_valid_filter(text) => {
                Ok(Self { text: valid.into(), is_literal: !has_wildcard(text) })
            }
            _ => Err(InvalidSubject::new(text)),
        }
    }

    /// The filter that matches every subject.
    #[must_use]
    pub fn everything() -> Self {
        Self { text: ">".into(), is_literal: false }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Whether it has no wildcard and so matches just itself.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.is_literal
    }

    /// The tokens in order.
    pub fn tokens(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.text.split('.')
    }

    /// What every matching subject starts with: the text before the first wildcard. Narrows the search in an
    /// ordered index.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        if self.is_literal {
            return &self.text;
        }
        let tokens = self.tokens().take_while(|token| !is_wildcard(token.as_bytes()));
        &self.text[..tokens.map(|token| token.len() + 1).sum()]
    }

    /// Whether a message published on `subject` is meant.
    #[inline]
    #[must_use]
    pub fn matches(&self, subject: &[u8]) -> bool {
        if self.is_literal { self.as_bytes() == subject } else { matches(self.as_bytes(), subject) }
    }

    /// Whether some subject matches both.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        collides(self.as_bytes(), other.as_bytes())
    }

    /// Whether every subject that matches this filter matches `other` too.
    #[must_use]
    pub fn is_subset_of(&self, other: &Self) -> bool {
        is_subset(self.as_bytes(), other.as_bytes())
    }
}

impl From<Subject> for Filter {
    fn from(subject: Subject) -> Self {
        Self { text: subject.0, is_literal: true }
    }
}

/// A text that is not a subject, or has wildcards where none may be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("invalid subject {text:?}")]
pub struct InvalidSubject {
    text: String,
}

impl InvalidSubject {
    fn new(text: &[u8]) -> Self {
        Self { text: String::from_utf8_lossy(text).into_owned() }
    }
}

/// Whether it is a valid subject without wildcards.
#[must_use]
pub fn is_valid_literal(subject: &[u8]) -> bool {
    tokens(subject).all(|token| is_valid_token(token) && !is_wildcard(token))
}

/// Whether it is a valid subject, wildcards allowed where they mean something: `>` must be last.
#[must_use]
pub fn is_valid_filter(filter: &[u8]) -> bool {
    let mut ended = false;
    tokens(filter).all(|token| {
        let valid = !ended && is_valid_token(token);
        ended = token == TAIL;
        valid
    })
}

/// Whether a token of it is a wildcard.
#[must_use]
pub fn has_wildcard(filter: &[u8]) -> bool {
    tokens(filter).any(is_wildcard)
}

/// Whether `filter` matches a message published on `subject`, which is taken literally.
#[must_use]
pub fn matches(filter: &[u8], subject: &[u8]) -> bool {
    let mut subject = tokens(subject);
    for pattern in tokens(filter) {
        let Some(token) = subject.next() else { return false };
        if token.is_empty() {
            return false;
        }
        match pattern {
            TAIL => return subject.all(|token| !token.is_empty()),
            ANY => {}
            literal if literal == token => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

/// Whether some subject matches both filters.
#[must_use]
pub fn collides(one: &[u8], other: &[u8]) -> bool {
    let (mut one, mut other) = (tokens(one), tokens(other));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(TAIL), Some(_)) | (Some(_), Some(TAIL)) => return true,
            (Some(ANY), Some(_)) | (Some(_), Some(ANY)) => {}
            (Some(one), Some(other)) if one == other => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

/// Whether every subject that matches `inner` matches `outer` too.
#[must_use]
pub fn is_subset(inner: &[u8], outer: &[u8]) -> bool {
    let (mut inner, mut outer) = (tokens(inner), tokens(outer));
    loop {
        match (inner.next(), outer.next()) {
            (None, None) => return true,
            (Some(_), Some(TAIL)) => return true,
            (None, Some(_)) | (Some(_), None) | (Some(TAIL), Some(_)) => return false,
            (Some(_), Some(ANY)) => {}
            (Some(inner), Some(outer)) if inner == outer => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

/// The tokens of a subject or filter in order, empty ones included; at least one.
pub fn tokens(subject: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(subject);
    std::iter::from_fn(move || {
        let text = rest?;
        match memchr(b'.', text) {
            Some(dot) => {
                rest = Some(&text[dot + 1..]);
                Some(&text[..dot])
            }
            None => rest.take(),
        }
    })
}

fn is_wildcard(token: &[u8]) -> bool {
    matches!(token, ANY | TAIL)
}

/// Blanks and line ends would break the text protocol; NUL breaks what is written in C.
fn is_valid_token(token: &[u8]) -> bool {
    !token.is_empty() && !token.iter().any(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'\x0c' | 0))
}

const ANY: &[u8] = b"*";
const TAIL: &[u8] = b">";

macro_rules! written_as_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), out)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
written_as_text!(Subject, Filter);

#[cfg(test)]
mod tests;
