//! The next-message request, in its three forms: nothing, a number, or JSON.

use serde::{Deserialize, Serialize};

use crate::api::envelope::{Strictness, parse_request};
use crate::time::Nanos;

/// What a client asks of a pull consumer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullRequest {
    /// Up to this many messages, at least 1.
    pub batch: i64,
    /// Give up after this long; 0 is never.
    pub expires: Nanos,
    /// Do not wait for messages; with `expires`, wait for the first one only.
    pub no_wait: bool,
    /// Up to this many bytes; 0 is no limit.
    pub max_bytes: i64,
    /// A sign of life after this long without messages; 0 is none.
    pub idle_heartbeat: Nanos,
    /// Priority group.
    pub group: String,
    /// Overflow: only while at least this many messages are pending.
    pub min_pending: i64,
    /// Overflow: only while at least this many messages are unacknowledged.
    pub min_ack_pending: i64,
    /// Pinned client: the id that came with messages.
    pub id: String,
    /// Prioritized: 0 to 9, lower goes first.
    pub priority: i64,
    /// It was nothing or a number, which can not name a priority group and is not asked for one.
    #[serde(skip)]
    pub is_plain: bool,
}

impl Default for PullRequest {
    fn default() -> Self {
        Self {
            batch: 1,
            expires: Nanos::ZERO,
            no_wait: false,
            max_bytes: 0,
            idle_heartbeat: Nanos::ZERO,
            group: String::new(),
            min_pending: 0,
            min_ack_pending: 0,
            id: String::new(),
            priority: 0,
            is_plain: false,
        }
    }
}

/// A request that is refused before any consumer sees it. The text is that of the `400` status.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("Bad Request - {0}")]
pub struct MalformedPull(String);

impl PullRequest {
    /// Reads the body. Fields it does not know are ignored, and text that is neither a number nor JSON asks for
    /// one message, as in NATS.
    pub fn parse(body: &[u8]) -> Result<Self, MalformedPull> {
        let body = body.trim_ascii();
        let mut request = if body.first() == Some(&b'{') {
            // The slow way also understands nulls, and says what is wrong in the usual words.
            serde_json::from_slice(body).or_else(|_| parse_request(body, Strictness::Lenient)).map_err(
                |error| {
                    let text = error.description.trim_start_matches("invalid JSON: ");
                    // Pull requests are decoded whole, and then Go words it like this.
                    MalformedPull(text.replace("unexpected EOF", "unexpected end of JSON input"))
                },
            )?
        } else {
            Self {
                batch: std::str::from_utf8(body).ok().and_then(|text| text.parse().ok()).unwrap_or(1),
                is_plain: true,
                ..Self::default()
            }
        };
        request.batch = request.batch.max(1);
        request.idle_heartbeat.0 = request.idle_heartbeat.0.max(0);
        request.max_bytes = request.max_bytes.max(0);
        if request.idle_heartbeat > Nanos::ZERO && request.idle_heartbeat.0 > request.expires.0 / 2 {
            return Err(MalformedPull("heartbeat value too large".to_owned()));
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_a_number_and_json_are_requests() {
        let one = PullRequest::default();
        let check = |body: &str, expected: PullRequest| {
            assert_eq!(PullRequest::parse(body.as_bytes()), Ok(expected), "{body:?}");
        };

        let plain = PullRequest { is_plain: true, ..one.clone() };
        check("", plain.clone());
        check(" 4 ", PullRequest { batch: 4, ..plain.clone() });
        check("hello", plain.clone());
        check("-3", plain);
        check("{}", one.clone());
        check(r#"{"batch": 0, "unknown": [1]}"#, one.clone());
        check(r#"{"batch": 1, "group": null}"#, one.clone());
        check(
            r#"{"batch": 5, "expires": 600, "idle_heartbeat": 300, "no_wait": true, "max_bytes": 7, "group": "g"}"#,
            PullRequest {
                batch: 5,
                expires: Nanos(600),
                idle_heartbeat: Nanos(300),
                no_wait: true,
                max_bytes: 7,
                group: "g".to_owned(),
                ..one
            },
        );
    }

    #[test]
    fn bad_values_are_refused_in_the_words_of_the_status() {
        let refused = |body: &str| PullRequest::parse(body.as_bytes()).unwrap_err().to_string();

        assert_eq!(
            refused(r#"{"expires": 600, "idle_heartbeat": 301}"#),
            "Bad Request - heartbeat value too large"
        );
        assert_eq!(refused(r#"{"idle_heartbeat": 1}"#), "Bad Request - heartbeat value too large");
        // What is over already is told so later.
        assert!(PullRequest::parse(br#"{"expires": -9223372036854775808}"#).is_ok());
        assert_eq!(
            refused("{x"),
            "Bad Request - invalid character 'x' looking for beginning of object key string at offset 2"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(request) = PullRequest::parse(&body) {
                prop_assert!(request.batch >= 1);
            }
        }
    }
}
