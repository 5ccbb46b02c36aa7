//! Reading and deleting single messages.

use serde::{Deserialize, Serialize};

use crate::api::envelope::{Strictness, parse_request};
use crate::api::error::ApiError;
use crate::api::stream_config::{is_false, is_zero};
use crate::ids::Seq;
use crate::record::RecordRef;
use crate::time::Timestamp;

/// Read one message through the leader.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageGetRequest {
    /// This sequence, or with `next_by_subj` the first to look at.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// The newest whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_by_subj: String,
    /// The first from `seq` whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_by_subj: String,
    /// The first from this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Without headers.
    #[serde(skip_serializing_if = "is_false")]
    pub no_hdr: bool,
    /// Refused here; direct get has it.
    #[serde(skip_serializing_if = "is_zero")]
    pub batch: i64,
    /// Refused here; direct get has it.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bytes: i64,
    /// Ignored here; direct get has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multi_last: Vec<String>,
    /// Ignored here; direct get has it.
    #[serde(skip_serializing_if = "is_zero")]
    pub up_to_seq: u64,
    /// Ignored here; direct get has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to_time: Option<Timestamp>,
}

impl MessageGetRequest {
    /// Which message is meant; 10003 when the fields contradict each other.
    pub fn selector(&self) -> Result<MessageSelector<'_>, ApiError> {
        if self.batch != 0 || self.max_bytes != 0 {
            return Err(ApiError::bad_request());
        }
        select(self.seq, &self.last_by_subj, &self.next_by_subj, self.start_time)
            .flatten()
            .ok_or_else(ApiError::bad_request)
    }
}

/// Which message is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MessageSelector<'a> {
    /// The one with this sequence.
    Seq(Seq),
    /// The newest whose subject matches this filter.
    Last(&'a str),
    /// The first from this sequence on whose subject matches this filter.
    NextFrom(Seq, &'a str),
    /// The first from this time on whose subject matches this filter; an empty filter is everything.
    NextAt(Timestamp, &'a str),
}

/// `None` when fields contradict each other, `Some(None)` when none is set.
fn select<'a>(
    seq: u64,
    last: &'a str,
    next: &'a str,
    start: Option<Timestamp>,
) -> Option<Option<MessageSelector<'a>>> {
    Some(match (seq, last, next, start) {
        (0, "", "", None) => None,
        (_, "", "", None) => Some(MessageSelector::Seq(Seq(seq))),
        (0, _, "", None) => Some(MessageSelector::Last(last)),
        (_, "", _, None) => Some(MessageSelector::NextFrom(Seq(seq.max(1)), next)),
        (0, "", _, Some(at)) => Some(MessageSelector::NextAt(at, next)),
        _ => return None,
    })
}

/// Delete one message.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageDeleteRequest {
    /// Which one.
    pub seq: u64,
    /// Do not overwrite its bytes.
    #[serde(skip_serializing_if = "is_false")]
    pub no_erase: bool,
}

/// A message in a JSON answer; header and payload are base64.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub seq: Seq,
    /// The raw header block.
    #[serde(rename = "hdrs", skip_serializing_if = "Vec::is_empty", serialize_with = "base64")]
    pub header: Vec<u8>,
    /// The payload.
    #[serde(rename = "data", skip_serializing_if = "Vec::is_empty", serialize_with = "base64")]
    pub payload: Vec<u8>,
    /// When the leader took it.
    pub time: Timestamp,
}

impl StoredMessage {
    /// The message as an answer shows it.
    #[must_use]
    pub fn new(seq: Seq, record: RecordRef<'_>) -> Self {
        Self {
            subject: String::from_utf8_lossy(record.subject).into_owned(),
            seq,
            header: record.header.to_vec(),
            payload: record.payload.to_vec(),
            time: record.timestamp,
        }
    }
}

fn base64<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (u32::from(group[0]) << 16)
            | (u32::from(group.get(1).copied().unwrap_or(0)) << 8)
            | u32::from(group.get(2).copied().unwrap_or(0));
        for position in 0..4 {
            let index = (bits >> (18 - 6 * position)) & 63;
            text.push(if position <= group.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    serializer.serialize_str(&text)
}

/// Read messages from any replica.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectGetRequest {
    /// This sequence, or the first to look at.
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// The newest whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_by_subj: String,
    /// The first from `seq` whose subject matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_by_subj: String,
    /// The first from this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// Up to this many messages.
    #[serde(skip_serializing_if = "is_zero")]
    pub batch: i64,
    /// Stop after this many bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bytes: i64,
    /// The newest message of every subject that matches one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multi_last: Vec<String>,
    /// As of this sequence.
    #[serde(skip_serializing_if = "is_zero")]
    pub up_to_seq: u64,
    /// As of this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to_time: Option<Timestamp>,
    /// Without headers.
    #[serde(skip_serializing_if = "is_false")]
    pub no_hdr: bool,
}

/// What a direct get asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DirectGet<'a> {
    /// One message.
    One(MessageSelector<'a>),
    /// From that message on, up to `batch` messages whose subject matches.
    Batch {
        /// The first message.
        from: MessageSelector<'a>,
        /// Most messages.
        batch: u64,
        /// Most bytes; 0 is the server's own limit.
        max_bytes: u64,
    },
    /// The newest message of every subject that matches one of the filters.
    MultiLast {
        /// The filters.
        filters: &'a [String],
        /// As of when.
        up_to: UpTo,
        /// Most messages; 0 is the server's own limit.
        batch: u64,
        /// Most bytes; 0 is the server's own limit.
        max_bytes: u64,
    },
}

/// The moment that a multi-get looks at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UpTo {
    /// Now.
    Now,
    /// When this was the last sequence.
    Seq(Seq),
    /// This time.
    Time(Timestamp),
}

/// Why a direct get is answered with a status and no message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DirectStatus {
    /// Nothing is asked for.
    EmptyRequest,
    /// The body is not JSON.
    MalformedRequest,
    /// Fields contradict each other.
    BadRequest,
    /// There is no such message.
    NotFound,
    /// No subject matches.
    NoResults,
    /// More subjects match than may be asked for at once.
    TooManyResults,
    /// The client needs a newer server.
    ApiLevel,
}

impl DirectStatus {
    /// The status line after `NATS/1.0 `.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EmptyRequest => "408 Empty Request",
            Self::MalformedRequest => "408 Malformed Request",
            Self::BadRequest => "408 Bad Request",
            Self::NotFound => "404 Message Not Found",
            Self::NoResults => "404 No Results",
            Self::TooManyResults => "413 Too Many Results",
            Self::ApiLevel => "412 Required Api Level",
        }
    }
}

impl DirectGetRequest {
    /// Reads the body of a direct get. `subject` is what follows the stream in the subject: if there is one, the
    /// newest message on it is meant and the body must not ask for anything else.
    pub fn parse(body: &[u8], subject: &str) -> Result<Self, DirectStatus> {
        let body = body.trim_ascii();
        let mut request: Self = if body.is_empty() {
            Self::default()
        } else {
            // The slow way also understands nulls.
            serde_json::from_slice(body)
                .or_else(|_| parse_request(body, Strictness::Lenient))
                .map_err(|_| DirectStatus::MalformedRequest)?
        };
        if !subject.is_empty() {
            let bare = Self { no_hdr: request.no_hdr, ..Self::default() };
            if request != bare {
                return Err(DirectStatus::BadRequest);
            }
            subject.clone_into(&mut request.last_by_subj);
        }
        Ok(request)
    }

    /// What is asked for, if the fields agree.
    pub fn resolve(&self) -> Result<DirectGet<'_>, DirectStatus> {
        let batch = u64::try_from(self.batch).unwrap_or(0);
        let max_bytes = u64::try_from(self.max_bytes).unwrap_or(0);
        let up_to = match (self.up_to_seq, self.up_to_time) {
            (0, None) => UpTo::Now,
            (seq, None) => UpTo::Seq(Seq(seq)),
            (0, Some(at)) => UpTo::Time(at),
            _ => return Err(DirectStatus::BadRequest),
        };
        if !self.multi_last.is_empty() {
            if !self.last_by_subj.is_empty() || !self.next_by_subj.is_empty() {
                return Err(DirectStatus::BadRequest);
            }
            return Ok(DirectGet::MultiLast { filters: &self.multi_last, up_to, batch, max_bytes });
        }
        let selected = select(self.seq, &self.last_by_subj, &self.next_by_subj, self.start_time)
            .ok_or(DirectStatus::BadRequest)?
            .ok_or(DirectStatus::EmptyRequest)?;
        match (batch, selected) {
            (0, _) => Ok(DirectGet::One(selected)),
            (_, MessageSelector::Last(_)) => Err(DirectStatus::BadRequest),
            (_, MessageSelector::Seq(seq)) => {
                Ok(DirectGet::Batch { from: MessageSelector::NextFrom(seq, ""), batch, max_bytes })
            }
            (_, from) => Ok(DirectGet::Batch { from, batch, max_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(body: &str) -> Result<String, u16> {
        let request: MessageGetRequest =
            parse_request(body.as_bytes(), Strictness::Strict).map_err(|e| e.err_code)?;
        request.selector().map(|selector| format!("{selector:?}")).map_err(|error| error.err_code)
    }

    #[test]
    fn a_message_is_selected_in_exactly_one_way() {
        assert_eq!(get(r#"{"seq": 1}"#).unwrap(), "Seq(Seq(1))");
        assert_eq!(get(r#"{"last_by_subj": "a"}"#).unwrap(), "Last(\"a\")");
        assert_eq!(get(r#"{"next_by_subj": "a"}"#).unwrap(), "NextFrom(Seq(1), \"a\")");
        assert_eq!(get(r#"{"seq": 4, "next_by_subj": "a"}"#).unwrap(), "NextFrom(Seq(4), \"a\")");
        for refused in [
            "",
            "{}",
            r#"{"seq": 1, "last_by_subj": "a"}"#,
            r#"{"last_by_subj": "a", "next_by_subj": "a"}"#,
            r#"{"seq": 1, "start_time": "2026-01-02T03:04:05Z"}"#,
            r#"{"seq": 1, "batch": 2}"#,
        ] {
            assert_eq!(get(refused), Err(10003), "{refused}");
        }
    }

    #[test]
    fn direct_gets_are_refused_with_the_status_of_nats() {
        let check = |body: &str, subject: &str, expected: Option<DirectStatus>| {
            let request = DirectGetRequest::parse(body.as_bytes(), subject);
            let status = request.and_then(|request| request.resolve().map(|_| ())).err();
            assert_eq!(status, expected, "{body} {subject}");
        };

        check("", "", Some(DirectStatus::EmptyRequest));
        check("{}", "", Some(DirectStatus::EmptyRequest));
        check("{x", "", Some(DirectStatus::MalformedRequest));
        check(r#"{"last_by_subj": "a", "batch": 2}"#, "", Some(DirectStatus::BadRequest));
        check(r#"{"seq": 1, "last_by_subj": "a"}"#, "", Some(DirectStatus::BadRequest));
        check(r#"{"multi_last": ["a"], "next_by_subj": "a"}"#, "", Some(DirectStatus::BadRequest));
        check(
            r#"{"multi_last": ["a"], "up_to_seq": 1, "up_to_time": "2026-01-02T03:04:05Z"}"#,
            "",
            Some(DirectStatus::BadRequest),
        );
        check(r#"{"seq": 1}"#, "a.b", Some(DirectStatus::BadRequest));
        check("", "a.b", None);
        check(r#"{"seq": 1, "batch": 2}"#, "", None);
        check(r#"{"multi_last": ["a"], "batch": 1}"#, "", None);
    }

    #[test]
    fn stored_messages_are_base64() {
        let message = StoredMessage {
            subject: "g1.a".to_owned(),
            seq: Seq(2),
            header: b"NATS/1.0\r\nNats-Msg-Id: m1\r\n\r\n".to_vec(),
            payload: b"2".to_vec(),
            time: Timestamp::parse("2026-11-21T09:24:29.093599393Z").unwrap(),
        };

        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"subject":"g1.a","seq":2,"hdrs":"TkFUUy8xLjANCk5hdHMtTXNnLUlkOiBtMQ0KDQo=","data":"Mg==","time":"2026-11-21T09:24:29.093599393Z"}"#
        );
    }
}
