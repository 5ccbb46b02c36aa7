//! Who wants to know when somebody begins or ceases to listen on one subject: push consumers on their deliver subjects.
//!
//! A subscription without wildcards, which most are, costs one look-up, whatever is watched. One with wildcards is held
//! against every watched subject of its account.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use levee_protocol::ids::AccountName;
use levee_protocol::subject::{has_wildcard, matches};
use parking_lot::Mutex;

/// Wants to know of subscribers of a subject.
pub trait InterestWatcher: Send + Sync {
    /// There may be the first one, or none any more. Called by whoever subscribes, so it only takes a note.
    fn interest_moved(self: Arc<Self>);
}

type Watching = Vec<Weak<dyn InterestWatcher>>;
type Subjects = HashMap<Box<[u8]>, Watching, RandomState>;

/// The watched subjects of all accounts.
#[derive(Default)]
pub(crate) struct Watchers {
    accounts: Mutex<HashMap<AccountName, Subjects, RandomState>>,
    /// How many subjects are watched, so that nothing is locked while there is none.
    count: AtomicUsize,
}

impl Watchers {
    /// Tells `who` of changes from here on; not, if `is_over` says so.
    pub(crate) fn add(
        &self,
        account: &AccountName,
        subject: &[u8],
        who: Weak<dyn InterestWatcher>,
        is_over: impl FnOnce() -> bool,
    ) {
        let mut accounts = self.accounts.lock();
        if is_over() {
            return;
        }
        let subjects = accounts.entry(account.clone()).or_default();
        let before = subjects.len();
        let watching = subjects.entry(subject.into()).or_default();
        watching.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&who));
        watching.push(who);
        self.count.fetch_add(subjects.len() - before, Ordering::SeqCst);
    }

    /// It is told no more.
    pub(crate) fn remove(&self, account: &AccountName, subject: &[u8], who: &Weak<dyn InterestWatcher>) {
        let mut accounts = self.accounts.lock();
        let Some(subjects) = accounts.get_mut(account) else { return };
        let Some(watching) = subjects.get_mut(subject) else { return };
        watching.retain(|other| other.strong_count() > 0 && !other.ptr_eq(who));
        if watching.is_empty() {
            subjects.remove(subject);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Somebody subscribed to `filter` or unsubscribed. To be called after the table shows it.
    pub(crate) fn moved(&self, account: &AccountName, filter: &[u8]) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut told = Vec::new();
        {
            let accounts = self.accounts.lock();
            let Some(subjects) = accounts.get(account) else { return };
            if has_wildcard(filter) {
                let watched = subjects.iter().filter(|(subject, _)| matches(filter, subject));
                watched.for_each(|(_, watching)| told.extend(watching.iter().filter_map(Weak::upgrade)));
            } else if let Some(watching) = subjects.get(filter) {
                told.extend(watching.iter().filter_map(Weak::upgrade));
            }
        }
        told.into_iter().for_each(InterestWatcher::interest_moved);
    }

    /// A peer came or went, with all that its clients want.
    pub(crate) fn all_moved(&self) {
        let told: Vec<_> = {
            let accounts = self.accounts.lock();
            let watching = accounts.values().flat_map(HashMap::values).flatten();
            watching.filter_map(Weak::upgrade).collect()
        };
        told.into_iter().for_each(InterestWatcher::interest_moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl InterestWatcher for Counter {
        fn interest_moved(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn weak(counter: &Arc<Counter>) -> Weak<dyn InterestWatcher> {
        let weak: Weak<Counter> = Arc::downgrade(counter);
        weak
    }

    #[test]
    fn who_watches_a_subject_hears_of_every_filter_that_matches_it_and_of_no_other() {
        let (watchers, counter) = (Watchers::default(), Arc::new(Counter::default()));
        let (account, other) = (AccountName::global(), AccountName::parse("other").expect("a valid name"));
        let told = |account: &AccountName, filter: &str| {
            watchers.moved(account, filter.as_bytes());
            counter.0.swap(0, Ordering::SeqCst)
        };
        assert_eq!(told(&account, "push.1"), 0);
        watchers.add(&account, b"push.1", weak(&counter), || false);
        watchers.add(&account, b"push.1", weak(&counter), || false);

        assert_eq!(told(&account, "push.1"), 1);
        assert_eq!(told(&account, "push.*"), 1);
        assert_eq!(told(&account, ">"), 1);
        assert_eq!(told(&account, "push.2"), 0);
        assert_eq!(told(&account, "push.*.x"), 0);
        assert_eq!(told(&other, "push.1"), 0);
        watchers.all_moved();
        assert_eq!(counter.0.swap(0, Ordering::SeqCst), 1);
        watchers.remove(&account, b"push.1", &weak(&counter));
        assert_eq!(told(&account, "push.1"), 0);
        assert_eq!(watchers.count.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_is_over_or_gone_is_not_kept() {
        let (watchers, account) = (Watchers::default(), AccountName::global());
        let gone = Arc::new(Counter::default());
        watchers.add(&account, b"a", weak(&gone), || true);
        assert_eq!(watchers.count.load(Ordering::SeqCst), 0);

        watchers.add(&account, b"a", weak(&gone), || false);
        drop(gone);
        let counter = Arc::new(Counter::default());
        watchers.add(&account, b"a", weak(&counter), || false);
        assert_eq!(watchers.accounts.lock()[&account][&b"a"[..]].len(), 1);
    }
}
