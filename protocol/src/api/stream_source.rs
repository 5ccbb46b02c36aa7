//! The names that a mirrored or sourced stream goes by, and which of its messages are meant.

use sha2::{Digest, Sha256};

use super::stream_config::StreamSource;
use crate::subject::{Filter, InvalidTransform, Transform};

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Between several filters or destinations in a key: no subject has it.
const SEPARATOR: &str = "\u{c}";
const EVERYTHING: &str = ">";

impl StreamSource {
    /// Names it among the sources of one stream: its name, its filters, and what subjects become. As nats-server writes
    /// it, for it is part of the header of every message that is sourced.
    #[must_use]
    pub fn key(&self) -> String {
        let or_everything =
            |text: &str| if text.is_empty() { EVERYTHING.to_owned() } else { text.to_owned() };
        let mut name = self.full_name();
        if let Some(consumer) = &self.consumer {
            name = format!("{name}:C={}", short_hash(&consumer.name));
        }
        if self.subject_transforms.is_empty() {
            return format!("{name} {} {EVERYTHING}", or_everything(&self.filter_subject));
        }
        let sources: Vec<String> =
            self.subject_transforms.iter().map(|transform| or_everything(&transform.src)).collect();
        let destinations: Vec<String> =
            self.subject_transforms.iter().map(|transform| or_everything(&transform.dest)).collect();
        format!("{name} {} {}", sources.join(SEPARATOR), destinations.join(SEPARATOR))
    }

    /// Its name, which for a stream of another account or domain tells which one that is.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.external {
            Some(external) => format!("{}:{}", self.name, short_hash(&external.api)),
            None => self.name.clone(),
        }
    }

    /// Filters of the messages that are meant; none is all of them.
    #[must_use]
    pub fn filters(&self) -> Vec<Filter> {
        let transformed = self.subject_transforms.iter().map(|transform| transform.src.as_str());
        let own =
            std::iter::once(self.filter_subject.as_str()).filter(|_| self.subject_transforms.is_empty());
        let mut filters = Vec::new();
        for text in transformed.chain(own) {
            match Filter::parse(text) {
                Ok(filter) if text != EVERYTHING => filters.push(filter),
                Ok(_) => return Vec::new(),
                // An empty one means everything; others were checked when the stream was configured.
                Err(_) if text.is_empty() => return Vec::new(),
                Err(_) => {}
            }
        }
        filters
    }

    /// What subjects become, in the order in which they are tried.
    pub fn transforms(&self) -> Result<Vec<Transform>, InvalidTransform> {
        let changing = self.subject_transforms.iter().filter(|transform| !transform.dest.is_empty());
        changing.map(|transform| Transform::parse(&transform.src, &transform.dest)).collect()
    }
}

/// Writes the header `Nats-Stream-Source` of messages that are sourced from one origin.
#[derive(Clone, Debug)]
pub struct SourceHeader {
    origin: String,
    patterns: String,
}

impl SourceHeader {
    /// Of messages that come this way.
    #[must_use]
    pub fn of(source: &StreamSource) -> Self {
        let key = source.key();
        let (origin, patterns) = key.split_once(' ').unwrap_or((&key, ""));
        Self { origin: origin.to_owned(), patterns: patterns.to_owned() }
    }

    /// What the origin is called in headers.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The value for one message, by its sequence and subject at the origin.
    #[must_use]
    pub fn value(&self, seq: u64, subject: &[u8], identity: &str) -> Vec<u8> {
        let mut value = format!("{} {seq} {} ", self.origin, self.patterns).into_bytes();
        value.extend_from_slice(subject);
        if !identity.is_empty() {
            value.push(b' ');
            value.extend_from_slice(identity.as_bytes());
        }
        value
    }
}

/// The sequence and the incarnation of the origin that a header `Nats-Stream-Source` names, if it was written for the
/// source of this [key](StreamSource::key). Servers before 2.10 wrote the origin's name and the sequence alone, and
/// the incarnation is empty where it was left out.
#[must_use]
pub fn sourced<'a>(key: &str, value: &'a str) -> Option<(u64, &'a str)> {
    let (origin, patterns) = key.split_once(' ')?;
    let rest = value.strip_prefix(origin)?.strip_prefix(' ')?;
    let Some((seq, rest)) = rest.split_once(' ') else { return Some((rest.parse().ok()?, "")) };
    let rest = rest.strip_prefix(patterns)?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let identity = rest.trim_start().split_once(' ').map_or("", |(_, identity)| identity);
    Some((seq.parse().ok()?, identity))
}

/// Eight letters and digits that stand for a text, as nats-server makes them.
#[must_use]
pub fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::stream_config::{ExternalStream, SourceConsumer, SubjectTransform};

    fn transformed(pairs: &[(&str, &str)]) -> StreamSource {
        let transforms =
            pairs.iter().map(|(src, dest)| SubjectTransform { src: (*src).into(), dest: (*dest).into() });
        StreamSource { name: "S".into(), subject_transforms: transforms.collect(), ..StreamSource::default() }
    }

    #[test]
    fn keys_and_headers_are_as_nats_server_writes_them() {
        let plain = StreamSource { name: "S".into(), ..StreamSource::default() };
        let filtered = StreamSource { filter_subject: "s.1".into(), ..plain.clone() };
        let external = ExternalStream { api: "$JS.hub.API".into(), deliver: String::new() };
        let external = StreamSource { external: Some(external), ..plain.clone() };
        let consumer = SourceConsumer { name: "C".into(), deliver_subject: "d".into() };
        let through = StreamSource { consumer: Some(consumer), ..external.clone() };

        assert_eq!(plain.key(), "S > >");
        assert_eq!(filtered.key(), "S s.1 >");
        assert_eq!(transformed(&[("s.0", "x.0"), ("s.1", "")]).key(), "S s.0\u{c}s.1 x.0\u{c}>");
        assert_eq!(external.key(), format!("S:{} > >", short_hash("$JS.hub.API")));
        assert_eq!(through.key(), format!("S:{}:C={} > >", short_hash("$JS.hub.API"), short_hash("C")));
        let through = transformed(&[("s.*", "agg.{{wildcard(1)}}")]);
        let header = SourceHeader::of(&through).value(1, b"s.a", "v1SG4L62");
        assert_eq!(String::from_utf8(header).unwrap(), "S 1 s.* agg.{{wildcard(1)}} s.a v1SG4L62");
        assert_eq!(SourceHeader::of(&plain).value(7, b"s.a", ""), b"S 7 > > s.a");
    }

    #[test]
    fn a_transform_without_a_destination_is_a_filter() {
        let source = transformed(&[("s.0", "x.0"), ("s.1", "")]);

        assert_eq!(source.filters().iter().map(Filter::as_str).collect::<Vec<_>>(), ["s.0", "s.1"]);
        assert_eq!(source.transforms().unwrap().len(), 1);
        assert!(transformed(&[("s.0", "x.0"), ("", "a.>")]).filters().is_empty());
        assert!(StreamSource::default().filters().is_empty());
    }

    #[test]
    fn a_header_says_how_far_the_source_was_that_it_was_written_for() {
        let plain = "S > >";
        let changed = "S a.* x.{{wildcard( 1 )}}";
        for (key, value, expected) in [
            (plain, "S 7 > > a.b idididid", Some((7, "idididid"))),
            (plain, "S 7 > > a.b", Some((7, ""))),
            (plain, "S 7 > >", Some((7, ""))),
            (plain, "S 7", Some((7, ""))),
            (changed, "S 8 a.* x.{{wildcard( 1 )}} a.b idididid", Some((8, "idididid"))),
            (plain, "S 8 a.* x.{{wildcard( 1 )}} a.b idididid", None),
            (changed, "S 7 > > a.b idididid", None),
            (plain, "SS 7 > > a.b idididid", None),
            (plain, "S:abcdefgh 7 > > a.b idididid", None),
            (plain, "S x > > a.b idididid", None),
            (plain, "S 7 > >.a a.b idididid", None),
            (plain, "S", None),
            (plain, "", None),
        ] {
            assert_eq!(sourced(key, value), expected, "{key:?} {value:?}");
        }
        let source = transformed(&[("a.*", "b.{{wildcard(1)}}"), ("c", "")]);
        let value = SourceHeader::of(&source).value(9, b"a.x", "me");
        assert_eq!(sourced(&source.key(), std::str::from_utf8(&value).unwrap()), Some((9, "me")));
    }
}
