//! One message of a key at a time, and those of a key in the order of the stream.
//!
//! A message is open from when its turn comes until it is settled. Of the open messages of a key only the first is
//! delivered; the turn of the others is passed over ([`Marks::pass`](super::settle::Marks)), so that messages of other
//! keys do not wait for them. Which messages are open is in the ledger. Their keys are not: a new leader reads them again.
//!
//! Keys are held as hashes. Two keys with one hash share their turn, which is slower and never wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use levee_protocol::api::KeySource;
use levee_protocol::ids::Seq;
use levee_protocol::record::Record;
use levee_protocol::wire::headers::HeaderBlock;

/// Messages that are passed over at one time. With so many, those behind them wait too.
pub(crate) const PASSED_MAX: usize = 4096;

/// What messages have in common that may not be in flight together.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key(u64);

/// The open messages of a consumer, by key.
#[derive(Debug)]
pub(crate) struct Keyed {
    source: KeySource,
    open: HashMap<Key, BTreeSet<Seq>>,
    keys: BTreeMap<Seq, Key>,
    /// Messages that were passed over and are the first of their key now.
    free: BTreeSet<Seq>,
}

impl Keyed {
    pub(crate) fn new(source: KeySource) -> Self {
        Self { source, open: HashMap::new(), keys: BTreeMap::new(), free: BTreeSet::new() }
    }

    /// The key of a message; `None` if it has none and is free of the rule.
    pub(crate) fn key(&self, record: &Record) -> Option<Key> {
        let key = match &self.source {
            KeySource::Token(number) => record.subject.split(|byte| *byte == b'.').nth(number - 1),
            KeySource::Header(name) => HeaderBlock(&record.header).get(name),
        };
        let mut hasher = DefaultHasher::new();
        key.filter(|key| !key.is_empty())?.hash(&mut hasher);
        Some(Key(hasher.finish()))
    }

    /// Whether a message of this key has to wait.
    pub(crate) fn is_taken(&self, key: Key) -> bool {
        self.open.contains_key(&key)
    }

    /// A message is delivered or passed over.
    pub(crate) fn open(&mut self, seq: Seq, key: Key) {
        self.open.entry(key).or_default().insert(seq);
        self.keys.insert(seq, key);
    }

    /// A message that was passed over is delivered.
    pub(crate) fn delivered(&mut self, seq: Seq) {
        self.free.remove(&seq);
    }

    /// Whether an open message may be delivered: it is the first of its key.
    pub(crate) fn is_first(&self, seq: Seq) -> bool {
        let open = self.keys.get(&seq).and_then(|key| self.open.get(key));
        open.is_none_or(|open| open.first() == Some(&seq))
    }

    /// The first message that was passed over and may be delivered now.
    pub(crate) fn next_free(&self) -> Option<Seq> {
        self.free.first().copied()
    }

    /// A message is settled, given up or gone: `passed` says which of the others were passed over.
    pub(crate) fn close(&mut self, seq: Seq, passed: &BTreeSet<Seq>) {
        self.free.remove(&seq);
        let Some(key) = self.keys.remove(&seq) else { return };
        let Some(open) = self.open.get_mut(&key) else { return };
        open.remove(&seq);
        match open.first() {
            None => {
                self.open.remove(&key);
            }
            Some(next) if passed.contains(next) => {
                self.free.insert(*next);
            }
            Some(_) => {}
        }
    }

    /// After the open messages of the ledger were opened: those that may be delivered.
    pub(crate) fn release(&mut self, passed: &BTreeSet<Seq>) {
        self.free = passed.iter().copied().filter(|seq| self.is_first(*seq)).collect();
    }

    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.keys.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use levee_protocol::time::Timestamp;

    use super::*;

    fn record(subject: &'static str, header: &'static str) -> Record {
        Record {
            seq: Seq(1),
            timestamp: Timestamp::ZERO,
            subject: Bytes::from_static(subject.as_bytes()),
            header: Bytes::from_static(header.as_bytes()),
            payload: Bytes::new(),
        }
    }

    #[test]
    fn a_key_is_a_token_or_a_header() {
        let token = Keyed::new(KeySource::Token(2));
        assert_eq!(token.key(&record("a.x.1", "")), token.key(&record("b.x", "")));
        assert_ne!(token.key(&record("a.x", "")), token.key(&record("a.y", "")));
        assert_eq!(token.key(&record("a", "")), None);

        let header = Keyed::new(KeySource::Header("Id".into()));
        let with = |header: &'static str| record("a", header);
        assert!(header.key(&with("NATS/1.0\r\nId: 7\r\n\r\n")).is_some());
        assert_eq!(
            header.key(&with("NATS/1.0\r\nId: 7\r\n\r\n")),
            header.key(&with("NATS/1.0\r\nX: y\r\nId:7\r\n\r\n"))
        );
        assert_eq!(header.key(&with("NATS/1.0\r\nId: \r\n\r\n")), None);
        assert_eq!(header.key(&with("")), None);
    }

    #[test]
    fn messages_of_a_key_become_free_one_by_one_in_their_order() {
        let mut keyed = Keyed::new(KeySource::Token(1));
        let key = keyed.key(&record("a", "")).unwrap();
        let mut passed = BTreeSet::from([Seq(5), Seq(9)]);
        for seq in [3, 5, 9] {
            keyed.open(Seq(seq), key);
        }
        assert!(keyed.is_taken(key) && keyed.is_first(Seq(3)) && !keyed.is_first(Seq(5)));
        assert_eq!(keyed.next_free(), None);

        keyed.close(Seq(3), &passed);
        assert_eq!(keyed.next_free(), Some(Seq(5)));

        passed.remove(&Seq(5));
        keyed.delivered(Seq(5));
        assert_eq!(keyed.next_free(), None);
        keyed.close(Seq(5), &passed);
        assert_eq!(keyed.next_free(), Some(Seq(9)));
        keyed.close(Seq(9), &passed);
        assert!(!keyed.is_taken(key) && keyed.keys.is_empty() && keyed.next_free().is_none());
    }

    #[test]
    fn a_new_leader_finds_what_may_go_on() {
        let mut keyed = Keyed::new(KeySource::Token(1));
        let (a, b) = (keyed.key(&record("a", "")).unwrap(), keyed.key(&record("b", "")).unwrap());
        for (seq, key) in [(1, a), (2, a), (4, b), (6, b)] {
            keyed.open(Seq(seq), key);
        }

        keyed.release(&BTreeSet::from([Seq(2), Seq(4), Seq(6)]));

        assert_eq!(keyed.free, BTreeSet::from([Seq(4)]));
    }
}
