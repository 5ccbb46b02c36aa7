//! Who wants to hear of what happens to a stream, so that what concerns one consumer wakes one consumer.
//!
//! A consumer that somebody waits for is found by its filters, and hears of the first message that matches; then it is
//! silent until it asks again. One without a task is found by the sequences of its open messages, and hears when one of
//! them is removed. Written down while an entry is applied, told after the batch.
//!
//! A consumer says what it wants in the moment in which it looks at the stream, while nothing can be applied: so it
//! misses nothing, and nothing that matches came between that look and what it hears of first.
//!
//! Consumers are known by their names, and one that is over may still say something while there is another one of its name:
//! so whoever speaks says whether it is over, in the moment in which that counts.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::subject::{Filter, Trie};
use parking_lot::Mutex;

/// The listeners of one stream. `T` is what to wake.
pub(crate) struct Listeners<T> {
    table: Mutex<Table<T>>,
}

/// What somebody is told: of the first message that matches, or of nothing but that it is to look.
pub(crate) type Told<T> = (T, Option<Seq>);

type Place = u32;

struct Table<T> {
    places: HashMap<ConsumerName, Place, RandomState>,
    listeners: Vec<Option<Listener<T>>>,
    free: Vec<Place>,
    by_filter: Trie<Place>,
    unfiltered: BTreeSet<Place>,
    by_open: BTreeSet<(Seq, Place)>,
    /// How many are to be told of messages and have filters. While there is none, no subject is looked at.
    attentive: usize,
    told: Vec<Told<T>>,
}

struct Listener<T> {
    who: T,
    /// Empty is everything.
    filters: Vec<Filter>,
    is_filed: bool,
    is_attentive: bool,
    open: Vec<Seq>,
}

impl<T> Default for Listeners<T> {
    fn default() -> Self {
        Self { table: Mutex::default() }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            places: HashMap::default(),
            listeners: Vec::new(),
            free: Vec::new(),
            by_filter: Trie::new(),
            unfiltered: BTreeSet::new(),
            by_open: BTreeSet::new(),
            attentive: 0,
            told: Vec::new(),
        }
    }
}

impl<T: Clone> Listeners<T> {
    /// A consumer is to be told of the next message that one of its filters matches; no filters match everything.
    pub(crate) fn listen(
        &self,
        name: &ConsumerName,
        who: &T,
        filters: &[Filter],
        is_over: impl FnOnce() -> bool,
    ) {
        let mut table = self.table.lock();
        if is_over() {
            return;
        }
        let place = table.place(name, who);
        let Some(listener) = table.listener(place) else { return };
        if !listener.is_filed || listener.filters != filters {
            table.unfile(place);
            table.file(place, filters);
        }
        table.set_attentive(place, true);
    }

    /// It wants to hear of no messages for now.
    pub(crate) fn ignore(&self, name: &ConsumerName, is_over: impl FnOnce() -> bool) {
        let mut table = self.table.lock();
        if is_over() {
            return;
        }
        if let Some(place) = table.places.get(name).copied() {
            table.set_attentive(place, false);
        }
    }

    /// It gives up its task: it is to be told when one of these is removed, in place of those of before.
    pub(crate) fn watch(
        &self,
        name: &ConsumerName,
        who: &T,
        open: impl Iterator<Item = Seq>,
        is_over: impl FnOnce() -> bool,
    ) {
        let mut table = self.table.lock();
        if is_over() {
            return;
        }
        let place = table.place(name, who);
        table.watch(place, open.collect());
        table.forget_if_silent(name, place);
    }

    /// It is awake: whoever is hears of every removal.
    pub(crate) fn woke(&self, name: &ConsumerName, is_over: impl FnOnce() -> bool) {
        let mut table = self.table.lock();
        if is_over() {
            return;
        }
        if let Some(place) = table.places.get(name).copied() {
            table.watch(place, Vec::new());
        }
    }

    /// The consumer is gone.
    pub(crate) fn remove(&self, name: &ConsumerName) {
        let mut table = self.table.lock();
        if let Some(place) = table.places.get(name).copied() {
            table.remove(name, place);
        }
    }

    /// These messages are stored, from a sequence on.
    pub(crate) fn stored<'a>(&self, first: Seq, subjects: impl Iterator<Item = &'a [u8]>) {
        self.table.lock().stored(first, subjects);
    }

    /// These messages are gone.
    pub(crate) fn removed(&self, first: Seq, last: Seq) {
        self.table.lock().removed(first, last);
    }

    /// Whom to tell of what was written down.
    pub(crate) fn take_told(&self) -> Vec<Told<T>> {
        std::mem::take(&mut self.table.lock().told)
    }

    /// Nobody is to hear of anything any more.
    pub(crate) fn clear(&self) {
        *self.table.lock() = Table::default();
    }
}

impl<T: Clone> Table<T> {
    fn place(&mut self, name: &ConsumerName, who: &T) -> Place {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let listener = Listener {
            who: who.clone(),
            filters: Vec::new(),
            is_filed: false,
            is_attentive: false,
            open: Vec::new(),
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.listeners.push(None);
            Place::try_from(self.listeners.len() - 1).expect("memory ends before four billion consumers")
        });
        self.listeners[place as usize] = Some(listener);
        self.places.insert(name.clone(), place);
        place
    }

    fn listener(&mut self, place: Place) -> Option<&mut Listener<T>> {
        self.listeners.get_mut(place as usize)?.as_mut()
    }

    fn file(&mut self, place: Place, filters: &[Filter]) {
        for filter in filters {
            self.by_filter.insert(filter.as_bytes(), place);
        }
        if filters.is_empty() {
            self.unfiltered.insert(place);
        }
        if let Some(listener) = self.listener(place) {
            listener.filters = filters.to_vec();
            listener.is_filed = true;
        }
    }

    fn unfile(&mut self, place: Place) {
        self.set_attentive(place, false);
        let Some(listener) = self.listener(place) else { return };
        listener.is_filed = false;
        for filter in std::mem::take(&mut listener.filters) {
            self.by_filter.remove(filter.as_bytes(), |other| *other == place);
        }
        self.unfiltered.remove(&place);
    }

    fn set_attentive(&mut self, place: Place, is_attentive: bool) {
        let Some(listener) = self.listener(place) else { return };
        let was = std::mem::replace(&mut listener.is_attentive, is_attentive);
        if listener.filters.is_empty() {
            return;
        }
        match (was, is_attentive) {
            (false, true) => self.attentive += 1,
            (true, false) => self.attentive -= 1,
            (true, true) | (false, false) => {}
        }
    }

    fn watch(&mut self, place: Place, open: Vec<Seq>) {
        let Some(listener) = self.listener(place) else { return };
        for seq in std::mem::replace(&mut listener.open, open.clone()) {
            self.by_open.remove(&(seq, place));
        }
        self.by_open.extend(open.into_iter().map(|seq| (seq, place)));
    }

    fn forget_if_silent(&mut self, name: &ConsumerName, place: Place) {
        let Some(listener) = self.listener(place) else { return };
        match (listener.is_attentive, listener.open.is_empty()) {
            (true, _) => {}
            (false, true) => self.remove(name, place),
            (false, false) => self.unfile(place),
        }
    }

    fn remove(&mut self, name: &ConsumerName, place: Place) {
        self.unfile(place);
        self.watch(place, Vec::new());
        self.places.remove(name);
        self.listeners[place as usize] = None;
        self.free.push(place);
    }

    fn stored<'a>(&mut self, first: Seq, subjects: impl Iterator<Item = &'a [u8]>) {
        let Self { listeners, unfiltered, by_filter, attentive, told, .. } = self;
        let mut tell = |place: Place, seq: Seq| {
            let listener = listeners.get_mut(place as usize).and_then(Option::as_mut);
            if let Some(listener) = listener.filter(|listener| listener.is_attentive) {
                listener.is_attentive = false;
                told.push((listener.who.clone(), Some(seq)));
                return true;
            }
            false
        };
        for place in unfiltered.iter() {
            tell(*place, first);
        }
        let mut seq = first;
        for subject in subjects {
            if *attentive == 0 {
                return;
            }
            by_filter.for_each_match(subject, |place| {
                if tell(*place, seq) {
                    *attentive -= 1;
                }
            });
            seq = seq.next();
        }
    }

    fn removed(&mut self, first: Seq, last: Seq) {
        while let Some((seq, place)) = self.by_open.range((first, 0)..=(last, Place::MAX)).next().copied() {
            self.by_open.remove(&(seq, place));
            if let Some(listener) = self.listener(place) {
                let who = listener.who.clone();
                self.told.push((who, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ConsumerName {
        ConsumerName::parse(text).expect("a valid name")
    }

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts.iter().map(|text| Filter::parse(text).expect("a valid filter")).collect()
    }

    fn listen(listeners: &Listeners<&'static str>, who: &'static str, texts: &[&str]) {
        listeners.listen(&name(who), &who, &filters(texts), || false);
    }

    fn stored(
        listeners: &Listeners<&'static str>,
        first: u64,
        subjects: &[&str],
    ) -> Vec<(&'static str, Option<u64>)> {
        listeners.stored(Seq(first), subjects.iter().map(|subject| subject.as_bytes()));
        told(listeners)
    }

    fn told(listeners: &Listeners<&'static str>) -> Vec<(&'static str, Option<u64>)> {
        let mut told: Vec<_> =
            listeners.take_told().into_iter().map(|(who, seq)| (who, seq.map(|seq| seq.0))).collect();
        told.sort_unstable();
        told
    }

    fn is_empty(listeners: &Listeners<&'static str>) -> bool {
        let table = listeners.table.lock();
        table.places.is_empty()
            && table.by_filter.is_empty()
            && table.unfiltered.is_empty()
            && table.by_open.is_empty()
            && table.attentive == 0
            && table.listeners.iter().all(Option::is_none)
    }

    #[test]
    fn each_hears_once_of_the_first_message_that_matches() {
        let listeners = Listeners::default();
        listen(&listeners, "one", &["a.1"]);
        listen(&listeners, "two", &["a.2", "b.*"]);
        listen(&listeners, "all", &[]);

        assert_eq!(stored(&listeners, 5, &["a.3", "a.1", "a.1"]), [("all", Some(5)), ("one", Some(6))]);
        assert_eq!(stored(&listeners, 8, &["a.1", "b.x", "a.2"]), [("two", Some(9))]);
        listen(&listeners, "one", &["a.1"]);
        assert_eq!(stored(&listeners, 11, &["a.1"]), [("one", Some(11))]);
    }

    #[test]
    fn other_filters_take_the_place_of_those_of_before() {
        let listeners = Listeners::default();
        listen(&listeners, "one", &["a.1"]);
        listen(&listeners, "one", &["a.2"]);
        assert_eq!(stored(&listeners, 1, &["a.1", "a.2"]), [("one", Some(2))]);
        listen(&listeners, "one", &[]);
        assert_eq!(stored(&listeners, 3, &["x"]), [("one", Some(3))]);
        listen(&listeners, "one", &["a.1"]);
        assert!(stored(&listeners, 4, &["x"]).is_empty());
    }

    #[test]
    fn who_ignores_messages_is_told_of_none_until_it_listens_again() {
        let listeners = Listeners::default();
        for texts in [&["a"][..], &[]] {
            listen(&listeners, "one", texts);
            listeners.ignore(&name("one"), || false);
            assert!(stored(&listeners, 1, &["a"]).is_empty());
            listen(&listeners, "one", texts);
            assert_eq!(stored(&listeners, 2, &["a"]), [("one", Some(2))]);
        }
    }

    #[test]
    fn a_removal_is_told_to_those_whose_open_message_it_is() {
        let listeners = Listeners::default();
        let watch = |who: &'static str, open: &[u64]| {
            listeners.watch(&name(who), &who, open.iter().copied().map(Seq), || false);
        };
        watch("one", &[3, 9]);
        watch("two", &[4]);

        listeners.removed(Seq(1), Seq(3));
        assert_eq!(told(&listeners), [("one", None)]);
        watch("one", &[9]);
        watch("two", &[]);
        listeners.removed(Seq(4), Seq(8));
        assert!(told(&listeners).is_empty());
        listeners.woke(&name("one"), || false);
        listeners.removed(Seq(9), Seq(9));
        assert!(told(&listeners).is_empty());
    }

    #[test]
    fn nothing_is_kept_of_those_that_are_gone_or_want_nothing() {
        let listeners = Listeners::default();
        listen(&listeners, "one", &["a", "b.>"]);
        listeners.watch(&name("one"), &"one", [Seq(1)].into_iter(), || false);
        listen(&listeners, "two", &[]);
        listeners.remove(&name("one"));
        listeners.remove(&name("two"));
        assert!(is_empty(&listeners));

        listen(&listeners, "one", &["a"]);
        listeners.ignore(&name("one"), || false);
        listeners.watch(&name("one"), &"one", [].into_iter(), || false);
        assert!(is_empty(&listeners));

        listeners.listen(&name("one"), &"one", &filters(&["a"]), || true);
        listeners.watch(&name("one"), &"one", [Seq(1)].into_iter(), || true);
        assert!(is_empty(&listeners));
    }

    #[test]
    fn a_place_that_was_freed_is_given_to_another() {
        let listeners = Listeners::default();
        for number in 0..1000 {
            let name = name(&format!("e{number}"));
            listeners.listen(&name, &"e", &filters(&["a"]), || false);
            listeners.remove(&name);
        }

        assert_eq!(listeners.table.lock().listeners.len(), 1);
    }
}
