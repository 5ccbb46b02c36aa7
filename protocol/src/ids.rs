//! Names and numbers that must not be mixed up, each its own type, each parsed in one place.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One server process, for as long as its store directory lives. Drawn once, at the directory's first start.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

/// One Raft group. Meta hands out the numbers of stream groups and never uses one twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u64);

impl GroupId {
    /// The group that knows which streams exist and which nodes hold them.
    pub const META: Self = Self(1);
    /// The first number that meta gives to a stream.
    pub const FIRST_STREAM: Self = Self(16);
}

/// Position of a message in its stream. The first message is 1; 0 means "none".
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// "No message", as in the state of an empty stream.
    pub const NONE: Self = Self(0);

    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The sequence before this one; `NONE` stays `NONE`.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

macro_rules! displayed_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }
    )*};
}
displayed_as_number!(GroupId, Seq);

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

/// A name that is refused, with the reason in the words of the API.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidName {
    /// The name is empty.
    #[error("name is required")]
    Empty,
    /// The name is longer than 255 bytes.
    #[error("name is too long, maximum allowed is 255")]
    TooLong,
    /// The name holds a character that subjects or paths give a meaning to.
    #[error("name can not contain '.', '*', '>', path separators or whitespace")]
    Character,
    /// The name holds `/` or `\`, which the API reports apart from other characters.
    #[error("name can not contain path separators")]
    PathSeparator,
}

fn check_name(text: &str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > 255 {
        return Err(InvalidName::TooLong);
    }
    if text.contains(['/', '\\']) {
        return Err(InvalidName::PathSeparator);
    }
    if text.contains(['.', '*', '>']) || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(InvalidName::Character);
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The only way in. Code that holds one never checks it again.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                check_name(text)?;
                Ok(Self(text.into()))
            }

            /// The text of the name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
name_type!(
    /// A stream's name: 1 to 255 bytes, no whitespace, dots, wildcards or path separators.
    StreamName
);
name_type!(
    /// A consumer's name: the same rule as a stream's.
    ConsumerName
);
name_type!(
    /// An account's name. Subjects and streams of different accounts do not meet.
    AccountName
);

impl AccountName {
    /// The account of clients when no accounts are configured.
    #[must_use]
    pub fn global() -> Self {
        Self("$G".into())
    }

    /// The account of the system itself.
    #[must_use]
    pub fn system() -> Self {
        Self("$SYS".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_subjects_or_paths_would_read_differently_are_refused() {
        let refused = |text: &str, why| assert_eq!(StreamName::parse(text), Err(why), "{text:?}");

        refused("", InvalidName::Empty);
        refused(&"x".repeat(256), InvalidName::TooLong);
        refused("a.b", InvalidName::Character);
        refused("a b", InvalidName::Character);
        refused("a>", InvalidName::Character);
        refused("*", InvalidName::Character);
        refused("a/b", InvalidName::PathSeparator);
        refused("a\\b", InvalidName::PathSeparator);
        assert_eq!(StreamName::parse("KV_orders").expect("valid").as_str(), "KV_orders");
    }
}
