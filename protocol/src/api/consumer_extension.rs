//! What Levee's consumers can do and NATS's can not. It is asked for in the consumer's metadata, so that every client
//! can, and is off unless asked for.
//!
//! | key | value | means |
//! |---|---|---|
//! | `levee.dead_letter` | a subject | what fails for the last time is published there before it is settled |
//! | `levee.key` | `token:N` or `header:Name` | of the messages of one key, one is in flight at a time |
//! | `levee.nak_delay_frees_slot` | `true` or `false` | a nak with a delay frees its place in `max_ack_pending` |
//!
//! A key that begins with `levee.` and is not in this table is refused: a slip of the pen must not lose messages.

use crate::api::consumer_config::{AckPolicy, ConsumerConfig};
use crate::api::error::ApiError;
use crate::api::stream_config::StreamConfig;
use crate::subject;

const PREFIX: &str = "levee.";
const DEAD_LETTER: &str = "levee.dead_letter";
const KEY: &str = "levee.key";
const NAK_DELAY_FREES_SLOT: &str = "levee.nak_delay_frees_slot";

/// A subject has no more tokens than this that anybody would count.
const TOKEN_MAX: usize = 255;

/// The extensions that a consumer uses.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Extensions {
    /// Where messages go that failed for the last time.
    pub dead_letter: Option<String>,
    /// What says which messages belong together.
    pub key: Option<KeySource>,
    /// Whether a message does not count against `max_ack_pending` while the delay of its nak lasts.
    pub nak_delay_frees_slot: bool,
}

/// Where the key of a message is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// In its subject: the token with this number, counted from 1.
    Token(usize),
    /// In the first header of this name.
    Header(String),
}

impl ConsumerConfig {
    /// The extensions that its metadata asks for, or what is wrong with them.
    pub fn extensions(&self) -> Result<Extensions, ApiError> {
        let mut extensions = Extensions::default();
        for (key, value) in self.metadata.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
            match key.as_str() {
                DEAD_LETTER if subject::is_valid_literal(value.as_bytes()) => {
                    extensions.dead_letter = Some(value.clone());
                }
                DEAD_LETTER => return refuse(key, value, "it has to be a subject without wildcards"),
                KEY => match KeySource::parse(value) {
                    Some(source) => extensions.key = Some(source),
                    None => return refuse(key, value, "it has to be token:N, N from 1, or header:Name"),
                },
                NAK_DELAY_FREES_SLOT => match value.as_str() {
                    "true" => extensions.nak_delay_frees_slot = true,
                    "false" => {}
                    _ => return refuse(key, value, "it has to be true or false"),
                },
                _ => {
                    return refuse(
                        key,
                        value,
                        "there is no such option; other keys must not begin with levee.",
                    );
                }
            }
        }
        Ok(extensions)
    }

    /// Whether its extensions fit the rest of it, and its stream.
    pub(super) fn check_extensions(&self, stream: &StreamConfig) -> Result<(), ApiError> {
        let extensions = self.extensions()?;
        let used = [
            (DEAD_LETTER, extensions.dead_letter.is_some()),
            (KEY, extensions.key.is_some()),
            (NAK_DELAY_FREES_SLOT, extensions.nak_delay_frees_slot),
        ];
        if let Some((key, _)) = used.iter().find(|(_, used)| *used)
            && self.ack_policy != AckPolicy::Explicit
        {
            return refuse(key, &self.metadata[*key], "the consumer's ack policy has to be explicit");
        }
        if let Some(subject) = &extensions.dead_letter
            && self.takes(stream, subject)
        {
            let why =
                "the consumer would get its own dead letters: use a subject of another stream, or filters";
            return refuse(DEAD_LETTER, subject, why);
        }
        Ok(())
    }

    /// Whether a message that is published to this subject comes to this consumer.
    fn takes(&self, stream: &StreamConfig, literal: &str) -> bool {
        let matches = |filter: &str| subject::matches(filter.as_bytes(), literal.as_bytes());
        let is_captured = stream.subjects.iter().any(|captured| matches(captured));
        is_captured && (self.filters().next().is_none() || self.filters().any(matches))
    }
}

impl KeySource {
    fn parse(text: &str) -> Option<Self> {
        if let Some(number) = text.strip_prefix("token:") {
            let number = number.parse().ok().filter(|number| (1..=TOKEN_MAX).contains(number))?;
            return Some(Self::Token(number));
        }
        let name = text.strip_prefix("header:")?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        is_name.then(|| Self::Header(name.to_owned()))
    }
}

fn refuse<T>(key: &str, value: &str, why: &str) -> Result<T, ApiError> {
    Err(ApiError::consumer_extension_invalid(format_args!("metadata {key} is {value:?}: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(metadata: &[(&str, &str)]) -> ConsumerConfig {
        ConsumerConfig {
            ack_policy: AckPolicy::Explicit,
            metadata: metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..ConsumerConfig::default()
        }
    }

    #[test]
    fn extensions_are_read_from_the_metadata() {
        let all = config(&[
            ("levee.dead_letter", "dead.orders"),
            ("levee.key", "token:2"),
            ("levee.nak_delay_frees_slot", "true"),
            ("mine", "kept"),
        ]);

        let extensions = all.extensions().unwrap();

        assert_eq!(extensions.dead_letter.as_deref(), Some("dead.orders"));
        assert_eq!(extensions.key, Some(KeySource::Token(2)));
        assert!(extensions.nak_delay_frees_slot);
        let header = config(&[("levee.key", "header:Order-Id"), ("levee.nak_delay_frees_slot", "false")]);
        let extensions = header.extensions().unwrap();
        assert_eq!(extensions.key, Some(KeySource::Header("Order-Id".into())));
        assert!(!extensions.nak_delay_frees_slot);
        assert_eq!(config(&[("mine", "kept")]).extensions(), Ok(Extensions::default()));
    }

    #[test]
    fn what_is_not_an_option_is_refused_with_what_to_do() {
        for (key, value, hint) in [
            ("levee.dead_leter", "dead", "no such option"),
            ("levee.dead_letter", "", "without wildcards"),
            ("levee.dead_letter", "dead.*", "without wildcards"),
            ("levee.key", "token:0", "token:N"),
            ("levee.key", "token:x", "token:N"),
            ("levee.key", "header:", "header:Name"),
            ("levee.key", "header:a b", "header:Name"),
            ("levee.key", "subject", "token:N"),
            ("levee.nak_delay_frees_slot", "yes", "true or false"),
        ] {
            let error = config(&[(key, value)]).extensions().unwrap_err();

            assert_eq!((error.code, error.err_code), (400, 60001));
            assert!(error.description.contains(hint), "{error}");
            assert!(error.description.contains(key), "{error}");
        }
    }

    #[test]
    fn extensions_need_explicit_acks() {
        let stream = StreamConfig::default();
        for (key, value) in
            [("levee.dead_letter", "d"), ("levee.key", "token:1"), ("levee.nak_delay_frees_slot", "true")]
        {
            let mut config = config(&[(key, value)]);
            assert_eq!(config.check_extensions(&stream), Ok(()));
            for policy in [AckPolicy::None, AckPolicy::All, AckPolicy::FlowControl] {
                config.ack_policy = policy;
                assert!(config.check_extensions(&stream).is_err(), "{key} {policy:?}");
            }
        }
    }

    #[test]
    fn a_consumer_does_not_get_its_own_dead_letters() {
        let stream = StreamConfig { subjects: vec!["orders.>".into()], ..StreamConfig::default() };
        let mut config = config(&[("levee.dead_letter", "orders.dead")]);
        assert!(config.check_extensions(&stream).is_err());

        config.filter_subject = "orders.*".into();
        assert!(config.check_extensions(&stream).is_err());

        config.filter_subject = "orders.new.*".into();
        assert_eq!(config.check_extensions(&stream), Ok(()));
    }
}
