//! The JSON around every answer, and how the bodies of requests are read.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use crate::api::consumer_request::{
    ConsumerCreateRequest, ConsumerPauseRequest, ConsumerResetRequest, UnpinRequest,
};
use crate::api::error::ApiError;
use crate::api::json_syntax::describe_syntax_error;
use crate::api::message::{DirectGetRequest, MessageDeleteRequest, MessageGetRequest};
use crate::api::pull::PullRequest;
use crate::api::stream_config::StreamConfig;
use crate::api::stream_request::{
    MoveRequest, NamesRequest, PeerRequest, PurgeRequest, RestoreRequest, ServerPeerRequest, SnapshotRequest,
    StepDownRequest, StreamConfigRequest, StreamInfoRequest,
};

/// What happens to fields that a request should not have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Strictness {
    /// The request is refused. The default of servers.
    #[default]
    Strict,
    /// They are ignored.
    Lenient,
}

/// Reads the body of a request. An empty body is a request with nothing set. `null` is the same as absent.
pub fn parse_request<T: RequestBody>(body: &[u8], strictness: Strictness) -> Result<T, ApiError> {
    let value = read_value(body).map_err(ApiError::invalid_json)?;
    let mut unknown = None;
    let request = T::read(value, &mut unknown).map_err(|error| ApiError::invalid_json(type_error(&error)))?;
    match (strictness, unknown) {
        (Strictness::Strict, Some(field)) => {
            Err(ApiError::invalid_json(format_args!("json: unknown field \"{field}\"")))
        }
        (Strictness::Strict | Strictness::Lenient, _) => Ok(request),
    }
}

/// Whether a body counts as empty for calls that take none.
#[must_use]
pub fn is_empty_request(body: &[u8]) -> bool {
    body.is_empty() || body.trim_ascii().strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii() == b"}")
}

/// A successful answer: the type, then the fields of `body`.
#[must_use]
pub fn success(response_type: &str, body: &impl Serialize) -> Vec<u8> {
    let mut out = open(response_type);
    push_fields(&mut out, body);
    out.push(b'}');
    out
}

/// An answer that says why not. `tail` is what this kind of answer carries besides, such as `"total":0`.
#[must_use]
pub fn failure(response_type: &str, error: &ApiError, tail: &str) -> Vec<u8> {
    let mut out = open(response_type);
    out.extend_from_slice(b",\"error\":");
    push_json(&mut out, error);
    if !tail.is_empty() {
        out.push(b',');
        out.extend_from_slice(tail.as_bytes());
    }
    out.push(b'}');
    out
}

/// Whether an answer is one that says why not.
#[must_use]
pub fn is_failure(answer: &[u8]) -> bool {
    let fields = answer.iter().position(|byte| *byte == b',').map(|comma| &answer[comma..]);
    fields.is_some_and(|fields| fields.starts_with(b",\"error\":"))
}

fn open(response_type: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"{\"type\":\"io.nats.jetstream.api.v1.");
    out.extend_from_slice(response_type.as_bytes());
    out.push(b'"');
    out
}

/// Appends the fields of an object after others, without its braces.
fn push_fields(out: &mut Vec<u8>, body: &impl Serialize) {
    let start = out.len();
    push_json(out, body);
    debug_assert!(out[start..].starts_with(b"{") && out.ends_with(b"}"), "answers are objects");
    out.pop();
    if out.len() == start + 1 {
        out.pop();
    } else {
        out[start] = b',';
    }
}

/// Appends a document as NATS writes it.
pub(crate) fn push_json(out: &mut Vec<u8>, document: &impl Serialize) {
    document
        .serialize(&mut Serializer::with_formatter(&mut *out, NatsFormatter))
        .expect("API documents have string keys and memory does not fail");
}

/// Compact JSON with `<`, `>` and `&` escaped, as NATS has always sent it: some clients compare bytes.
struct NatsFormatter;

impl Formatter for NatsFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let escaped = rest[at..].chars().next().expect("found there");
            write!(writer, "\\u{:04x}", u32::from(escaped))?;
            rest = &rest[at + escaped.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// A type that is the body of a request.
pub trait RequestBody: Sized {
    /// Reads it from a document; tells the first field it does not know.
    fn read(document: Value, unknown: &mut Option<String>) -> Result<Self, serde_json::Error>;
}

macro_rules! plain_bodies {
    ($($name:ident),* $(,)?) => {$(
        impl RequestBody for $name {
            fn read(document: Value, unknown: &mut Option<String>) -> Result<Self, serde_json::Error> {
                read_noting_unknown(document, unknown)
            }
        }
    )*};
}
plain_bodies!(
    ConsumerCreateRequest,
    ConsumerPauseRequest,
    ConsumerResetRequest,
    DirectGetRequest,
    MessageDeleteRequest,
    MessageGetRequest,
    MoveRequest,
    NamesRequest,
    PeerRequest,
    PullRequest,
    PurgeRequest,
    RestoreRequest,
    ServerPeerRequest,
    SnapshotRequest,
    StepDownRequest,
    StreamConfig,
    StreamInfoRequest,
    UnpinRequest,
);

impl RequestBody for StreamConfigRequest {
    /// `pedantic` stands between the fields of the configuration; a flattened struct could not tell unknown ones.
    fn read(mut document: Value, unknown: &mut Option<String>) -> Result<Self, serde_json::Error> {
        let pedantic = document.as_object_mut().and_then(|fields| fields.shift_remove("pedantic"));
        Ok(Self {
            pedantic: pedantic.map(serde_json::from_value).transpose()?.unwrap_or_default(),
            config: read_noting_unknown(document, unknown)?,
        })
    }
}

fn read_noting_unknown<T: DeserializeOwned>(
    document: Value,
    unknown: &mut Option<String>,
) -> Result<T, serde_json::Error> {
    serde_ignored::deserialize(document, |path| {
        if unknown.is_none() {
            let path = path.to_string();
            *unknown = Some(path.rsplit('.').next().unwrap_or_default().to_owned());
        }
    })
}

/// The document of a body, without its nulls. Several documents one after the other are merged.
fn read_value(body: &[u8]) -> Result<Value, String> {
    let mut merged = Value::Object(serde_json::Map::new());
    for document in serde_json::Deserializer::from_slice(body).into_iter::<Value>() {
        let mut document =
            document.map_err(|error| describe_syntax_error(body).unwrap_or_else(|| error.to_string()))?;
        strip_nulls(&mut document);
        match (&mut merged, document) {
            (Value::Object(fields), Value::Object(more)) => fields.extend(more),
            (_, Value::Null) => {}
            (merged, other) => *merged = other,
        }
    }
    Ok(merged)
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A value of the wrong type, in words close to those of NATS.
fn type_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((found, expected)) = text
        .strip_prefix("invalid type: ")
        .or_else(|| text.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
    else {
        return text;
    };
    // `found` is the kind and, between backticks, the value.
    let found = match found.split(' ').next().unwrap_or_default() {
        "string" => "string".to_owned(),
        "boolean" => "bool".to_owned(),
        "sequence" => "array".to_owned(),
        "map" => "object".to_owned(),
        // A number that an integer can not hold is told.
        _ if matches!(expected, "i64" | "u64" | "i32" | "u32") => {
            format!("number {}", found.split('`').nth(1).unwrap_or_default())
        }
        _ => "number".to_owned(),
    };
    let expected = match expected {
        "i64" => "int64",
        "u64" => "uint64",
        "i32" => "int32",
        "u32" => "uint32",
        "a string" => "string",
        "a boolean" => "bool",
        "a sequence" => "[]string",
        "a map" => "map[string]string",
        other => other,
    };
    format!("json: cannot unmarshal {found} into Go value of type {expected}")
}

/// Declares an enum whose values are words in JSON. After the name may stand a function that says what is wrong with a
/// value that is none of them.
macro_rules! json_words {
    ($(#[$meta:meta])* pub enum $name:ident $(: $refused:path)? { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// The word of JSON documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = serde_json::Value::deserialize(deserializer)?;
                match value.as_str() {
                    $(Some($word) => Ok(Self::$variant),)*
                    _ => Err(serde::de::Error::custom(json_words!(@refused value $($refused)?))),
                }
            }
        }
    };
    (@refused $value:ident) => { $crate::api::envelope::refused_word(&$value) };
    (@refused $value:ident $refused:path) => { $refused(&$value) };
}
pub(crate) use json_words;

/// What is said about a value that is not one of an enum's words. Quoted twice, as NATS does.
pub(crate) fn refused_word(value: &Value) -> String {
    format!("can not unmarshal {:?}", value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: RequestBody + std::fmt::Debug>(body: &str) -> String {
        parse_request::<T>(body.as_bytes(), Strictness::Strict).unwrap_err().description
    }

    #[test]
    fn unknown_fields_are_refused_by_name_unless_lenient() {
        let body = r#"{"name": "GE", "subjects": ["ge"], "bogus": 1}"#;

        assert_eq!(refusal::<StreamConfigRequest>(body), r#"invalid JSON: json: unknown field "bogus""#);
        assert_eq!(
            refusal::<ConsumerCreateRequest>(
                r#"{"stream_name": "C1", "config": {"name": "bad", "nope": 1}}"#
            ),
            r#"invalid JSON: json: unknown field "nope""#
        );
        let lenient: StreamConfigRequest = parse_request(body.as_bytes(), Strictness::Lenient).unwrap();
        assert_eq!(lenient.config.name, "GE");
    }

    #[test]
    fn words_that_are_not_of_the_enum_are_quoted_twice() {
        assert_eq!(
            refusal::<StreamConfigRequest>(r#"{"name": "GE", "retention": "x"}"#),
            r#"invalid JSON: can not unmarshal "\"x\"""#
        );
    }

    #[test]
    fn syntax_errors_tell_the_offset_and_type_errors_the_types() {
        assert_eq!(
            refusal::<PurgeRequest>("{x"),
            "invalid JSON: invalid character 'x' looking for beginning of object key string at offset 2"
        );
        assert_eq!(
            refusal::<PurgeRequest>(r#"{"seq": "1"}"#),
            "invalid JSON: json: cannot unmarshal string into Go value of type uint64"
        );
        for number in ["-1", "1.5"] {
            assert_eq!(
                refusal::<PurgeRequest>(&format!("{{\"seq\": {number}}}")),
                format!("invalid JSON: json: cannot unmarshal number {number} into Go value of type uint64")
            );
        }
    }

    #[test]
    fn an_empty_body_and_nulls_are_nothing_set() {
        let check = |body: &str| {
            let request: PurgeRequest = parse_request(body.as_bytes(), Strictness::Strict).unwrap();
            assert_eq!(request, PurgeRequest::default(), "{body:?}");
        };

        check("");
        check("  ");
        check("{}");
        check("null");
        check(r#"{"filter": null}"#);
    }

    #[test]
    fn pedantic_stands_between_the_fields_of_a_configuration() {
        let request: StreamConfigRequest =
            parse_request(br#"{"name": "A", "pedantic": true, "max_msgs": 4}"#, Strictness::Strict).unwrap();

        assert!(request.pedantic);
        assert_eq!((request.config.name.as_str(), request.config.max_msgs), ("A", 4));
    }

    #[test]
    fn answers_begin_with_their_type_and_escape_angle_brackets() {
        #[derive(Serialize)]
        struct Body {
            subject: &'static str,
        }
        #[derive(Serialize)]
        struct Empty {}

        assert_eq!(
            success("x_response", &Body { subject: "g1.>" }),
            br#"{"type":"io.nats.jetstream.api.v1.x_response","subject":"g1.\u003e"}"#
        );
        assert_eq!(success("x_response", &Empty {}), br#"{"type":"io.nats.jetstream.api.v1.x_response"}"#);
        assert!(is_failure(&failure("x_response", &ApiError::bad_request(), "")));
        assert!(!is_failure(&success("x_response", &Body { subject: "error" })));
        assert_eq!(
            failure("stream_purge_response", &ApiError::bad_request(), "\"purged\":0"),
            br#"{"type":"io.nats.jetstream.api.v1.stream_purge_response","error":{"code":400,"err_code":10003,"description":"bad request"},"purged":0}"#
        );
    }

    #[test]
    fn only_nothing_and_an_empty_object_are_empty_requests() {
        for body in ["", "{}", "{ }", " {\n} "] {
            assert!(is_empty_request(body.as_bytes()), "{body:?}");
        }
        for body in [" ", "{\"x\": 1}", "{", "[]", "0"] {
            assert!(!is_empty_request(body.as_bytes()), "{body:?}");
        }
    }
}
