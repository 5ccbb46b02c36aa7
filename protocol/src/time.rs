//! Points in time and spans, as NATS writes them. There is no clock here: times come in as arguments.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since the Unix epoch. JSON: RFC 3339 in UTC with up to nine fractional digits.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Go's zero time, `0001-01-01T00:00:00Z`, which NATS writes for "never". It lies before every real time.
    pub const ZERO: Self = Self(i64::MIN);

    /// This time plus a span; saturates.
    #[must_use]
    pub const fn plus(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span from `earlier` to this; negative when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// Reads RFC 3339; a time before the year 1678 reads as `ZERO`.
    pub fn parse(text: &str) -> Result<Self, InvalidTime> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| InvalidTime(error.to_string()))?;
        Ok(i64::try_from(time.unix_timestamp_nanos()).map_or(Self::ZERO, Self))
    }
}

/// A text that is not an RFC 3339 time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an RFC 3339 time: {0}")]
pub struct InvalidTime(String);

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ZERO {
            return out.write_str("0001-01-01T00:00:00Z");
        }
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0)).map_err(|_| fmt::Error)?;
        out.write_str(&time.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A span in nanoseconds, which is how NATS writes durations in JSON.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    /// No time at all; in configurations often "not set".
    pub const ZERO: Self = Self(0);

    /// A span of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000_000)
    }

    /// A span of milliseconds.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis * 1_000_000)
    }

    /// Whether this is zero.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// The same span for timers; a negative one is zero.
    #[must_use]
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_through_text() {
        for text in ["2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z"] {
            assert_eq!(Timestamp::parse(text).expect("valid").to_string(), text);
        }
        assert!(Timestamp::parse("yesterday").is_err());
    }
}
