//! What the leader makes of a publish before it is proposed, for streams that do not store messages as they come.
//!
//! The bytes of a block are final: they are the log and the store. So whatever a stream changes about a message is
//! changed here, on the leader, by the configuration that it knows; applying the block decides whether the message is
//! stored. For most streams there is nothing to do, and no [`Composition`].

use std::borrow::Cow;

use levee_protocol::api::{ApiError, PublishIntent, Republish, StreamConfig, SubjectTransform, Ttl};
use levee_protocol::ids::Seq;
use levee_protocol::record::RecordRef;
use levee_protocol::subject::{Subject, Transform};
use levee_protocol::time::Nanos;
use levee_protocol::wire::headers::HeaderBuilder;

use super::StreamMachine;
use super::limits::Limits;
use super::schedules;

/// Longest subject that a transform may make, in bytes: about what a client can send in one line.
const SUBJECT_BYTES_MAX: usize = 4096;

/// What a stream changes about messages, and what else its leader does with them.
#[derive(Clone, Debug)]
pub struct Composition {
    name: String,
    transform: Option<Transform>,
    /// The shortest time to live.
    ttl_min: Option<Nanos>,
    republish: Option<(Transform, Body)>,
    limits: Limits,
    schedules: bool,
    /// Whether messages are increments of counters.
    pub counts: bool,
    /// Whether messages may be parts of atomic batches.
    pub batches: bool,
    /// Whether messages may be parts of fast batches.
    pub fast_batches: bool,
}

/// What of a body is published again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Body {
    Whole,
    Size,
}

/// A message to publish again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Republished {
    /// Where.
    pub subject: Vec<u8>,
    /// The message's headers, and where it was stored.
    pub header: Vec<u8>,
    /// Whether the body goes with it.
    pub with_body: bool,
}

impl Composition {
    pub(crate) fn of(config: &StreamConfig, ttl_min: Option<Nanos>, limits: Limits) -> Option<Self> {
        // Transforms were checked before they were proposed. One that does not parse changes nothing.
        let transform = config.subject_transform.as_ref().and_then(|SubjectTransform { src, dest }| {
            if dest.is_empty() { None } else { Transform::parse(src, dest).ok() }
        });
        let republish = config.republish.as_ref().and_then(|Republish { src, dest, headers_only }| {
            let transform = if dest.is_empty() { None } else { Transform::parse(src, dest).ok() };
            transform.map(|transform| (transform, if *headers_only { Body::Size } else { Body::Whole }))
        });
        let (counts, batches) = (config.allow_msg_counter, config.allow_atomic);
        let fast_batches = config.allow_batched;
        let schedules = config.allow_msg_schedules;
        let is_needed = transform.is_some()
            || ttl_min.is_some()
            || republish.is_some()
            || counts
            || batches
            || fast_batches
            || schedules;
        is_needed.then(|| Self {
            name: config.name.clone(),
            transform,
            ttl_min,
            republish,
            limits,
            schedules,
            counts,
            batches,
            fast_batches,
        })
    }

    /// The subject under which a message is stored: its own where a transform makes none that is valid.
    pub fn subject<'a>(&self, subject: &'a [u8], draw: &mut dyn FnMut() -> u64) -> Cow<'a, [u8]> {
        let changed = self
            .transform
            .as_ref()
            .and_then(|transform| transform.apply(subject, draw))
            .filter(|changed| is_sound(changed));
        changed.map_or(Cow::Borrowed(subject), Cow::Owned)
    }

    /// The header block with which a message is stored.
    #[must_use]
    pub fn header<'a>(&self, header: Cow<'a, [u8]>, intent: &PublishIntent<'_>) -> Cow<'a, [u8]> {
        let is_schedule = self.schedules && intent.rare.as_ref().is_some_and(|rare| rare.schedule.is_some());
        let rolling = if is_schedule { schedules::with_rollup(&header) } else { None };
        let header = rolling.map_or(header, Cow::Owned);
        match (intent.ttl, self.ttl_min) {
            (Some(Ttl::After(span)), Some(least)) if span < least => {
                let seconds = (least.0 / 1_000_000_000).to_string();
                let mut raised = HeaderBuilder::from_block(&header);
                raised.set("Nats-TTL", seconds);
                Cow::Owned(raised.finish())
            }
            _ => header,
        }
    }

    /// What is wrong with the size of a message.
    pub fn check_size(&self, record: &RecordRef<'_>) -> Result<(), ApiError> {
        self.limits.check_size(record)
    }

    /// Whether what is stored is published again.
    #[must_use]
    pub fn republishes(&self) -> bool {
        self.republish.is_some()
    }

    /// A stored message as it is published again, if it is. Not under its own subject: it could come back.
    pub fn republished(
        &self,
        record: &RecordRef<'_>,
        (seq, before): (Seq, Seq),
        draw: &mut dyn FnMut() -> u64,
    ) -> Option<Republished> {
        let (transform, body) = self.republish.as_ref()?;
        let subject = transform.apply(record.subject, draw).filter(|subject| is_sound(subject))?;
        let mut header = HeaderBuilder::from_block(record.header);
        header
            .push("Nats-Stream", &self.name)
            .push("Nats-Subject", record.subject)
            .push_number("Nats-Sequence", seq.0)
            .push("Nats-Time-Stamp", record.timestamp.to_string())
            .push_number("Nats-Last-Sequence", before.0);
        if *body == Body::Size {
            header.push_number("Nats-Msg-Size", record.payload.len() as u64);
        }
        Some(Republished { subject, header: header.finish(), with_body: *body == Body::Whole })
    }
}

/// Whether a subject that was made may be used.
pub(crate) fn is_sound(subject: &[u8]) -> bool {
    subject.len() <= SUBJECT_BYTES_MAX && Subject::parse(subject).is_ok()
}

impl StreamMachine {
    /// What the leader makes of publishes; `None` if they are stored as they come.
    #[must_use]
    pub fn composition(&self) -> Option<&std::sync::Arc<Composition>> {
        self.settings.as_ref()?.composition.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use levee_protocol::time::Timestamp;

    use super::*;

    fn composition(config: StreamConfig) -> Option<Composition> {
        let settings = super::super::state::Settings::of(&StreamConfig { name: "S".into(), ..config });
        settings.composition.map(|composition| Composition::clone(&composition))
    }

    fn header(text: &str) -> Vec<u8> {
        format!("NATS/1.0\r\n{text}\r\n\r\n").into_bytes()
    }

    #[test]
    fn a_stream_that_stores_messages_as_they_come_composes_nothing() {
        assert!(composition(StreamConfig { allow_msg_ttl: true, ..StreamConfig::default() }).is_none());
    }

    #[test]
    fn a_time_to_live_is_raised_to_that_of_markers() {
        let config = StreamConfig {
            subject_delete_marker_ttl: Nanos(3_500_000_000),
            max_msgs_per_subject: -1,
            ..StreamConfig::default()
        };
        let check = |config: &StreamConfig, before: &str, after: &str| {
            let before = header(before);
            let intent = PublishIntent::parse(&before).unwrap();
            let stored = match composition(config.clone()) {
                Some(composition) => composition.header(Cow::Borrowed(&before), &intent),
                None => Cow::Borrowed(&before[..]),
            };
            assert_eq!(String::from_utf8_lossy(&stored), String::from_utf8_lossy(&header(after)));
        };

        check(&config, "Nats-TTL: 1s\r\nA: b", "A: b\r\nNats-TTL: 3");
        check(&config, "Nats-TTL: 4s", "Nats-TTL: 4s");
        check(&config, "Nats-TTL: never", "Nats-TTL: never");
        check(&config, "A: b", "A: b");
        check(&StreamConfig { max_msgs_per_subject: 1, ..config }, "Nats-TTL: 1s", "Nats-TTL: 1s");
    }

    #[test]
    fn a_subject_that_would_not_be_valid_is_not_made() {
        let long = "x".repeat(SUBJECT_BYTES_MAX / 2);
        let dest = String::from("d.$1.$1");
        let config = StreamConfig {
            subject_transform: Some(SubjectTransform { src: "s.*".into(), dest: dest.clone() }),
            republish: Some(Republish { src: "s.*".into(), dest, headers_only: false }),
            ..StreamConfig::default()
        };
        let composition = composition(config).unwrap();
        let check = |subject: &str, made: Option<&str>| {
            let stored = composition.subject(subject.as_bytes(), &mut || 0);
            assert_eq!(stored, made.unwrap_or(subject).as_bytes());
            let record =
                RecordRef { timestamp: Timestamp(0), subject: subject.as_bytes(), header: b"", payload: b"" };
            let again = composition.republished(&record, (Seq(1), Seq(0)), &mut || 0);
            assert_eq!(again.map(|again| again.subject), made.map(|made| made.as_bytes().to_vec()));
        };

        check("s.a", Some("d.a.a"));
        check(&format!("s.{long}"), None);
    }

    #[test]
    fn a_stored_message_is_published_again_with_where_it_lies() {
        let republish = |headers_only| {
            let republish = Republish { src: "t.*".into(), dest: "r.$1".into(), headers_only };
            composition(StreamConfig { republish: Some(republish), ..StreamConfig::default() }).unwrap()
        };
        let own = header("A: b");
        let record =
            RecordRef { timestamp: Timestamp(1_000), subject: b"t.a", header: &own, payload: b"hello" };

        let whole = republish(false).republished(&record, (Seq(7), Seq(3)), &mut || 0).unwrap();
        assert_eq!(whole.subject, b"r.a");
        assert!(whole.with_body);
        assert_eq!(
            String::from_utf8(whole.header).unwrap(),
            "NATS/1.0\r\nA: b\r\nNats-Stream: S\r\nNats-Subject: t.a\r\nNats-Sequence: 7\r\n\
             Nats-Time-Stamp: 1970-01-01T00:00:00.000001Z\r\nNats-Last-Sequence: 3\r\n\r\n"
        );
        let size = republish(true).republished(&record, (Seq(7), Seq(3)), &mut || 0).unwrap();
        assert!(!size.with_body);
        assert!(String::from_utf8(size.header).unwrap().ends_with("Nats-Msg-Size: 5\r\n\r\n"));
        let other = RecordRef { subject: b"u.a", ..record };
        assert_eq!(republish(false).republished(&other, (Seq(7), Seq(3)), &mut || 0), None);
    }
}
