//! What this node's clients want, as its peers need to know it: one line for each subject and queue group, however
//! many subscribe. A peer gets everything when its link connects and changes from then on, in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use foldhash::fast::RandomState;
use levee_protocol::ids::AccountName;
use parking_lot::Mutex;

use crate::router::Router;
use crate::router::peers::{Link, frames};
use crate::router::table::{AccountTable, RemoteInterest};

/// Counts local subscriptions and tells links about them.
#[derive(Default)]
pub(crate) struct InterestBook {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    counts: HashMap<AccountName, HashMap<Box<[u8]>, u32, RandomState>, RandomState>,
    links: Vec<Arc<Link>>,
}

impl InterestBook {
    pub(crate) fn added(&self, account: &AccountName, filter: &[u8], queue: &[u8]) {
        let mut book = self.book.lock();
        let counts = book.counts.entry(account.clone()).or_default();
        let count = counts.entry(key(filter, queue)).or_insert(0);
        *count += 1;
        // Peers care for the number only to share a queue group's messages fairly.
        let count = *count;
        if count == 1 || !queue.is_empty() {
            book.tell(account, filter, queue, count);
        }
    }

    pub(crate) fn removed(&self, account: &AccountName, filter: &[u8], queue: &[u8]) {
        let mut book = self.book.lock();
        let Some(counts) = book.counts.get_mut(account) else { return };
        let key = key(filter, queue);
        let Some(count) = counts.get_mut(&key) else { return };
        *count -= 1;
        let count = *count;
        if count == 0 {
            counts.remove(&key);
        }
        if count == 0 || !queue.is_empty() {
            book.tell(account, filter, queue, count);
        }
    }

    /// A link connected: it gets everything now and changes from now on. The link's own lock is taken under the
    /// book's, here and in `tell`, so that no change falls between; it is a leaf.
    pub(crate) fn attach(&self, link: &Arc<Link>, connection: u64) {
        let mut book = self.book.lock();
        let mut everything = Vec::new();
        frames::put_sync(&mut everything);
        for (account, counts) in &book.counts {
            for (key, count) in counts {
                let (filter, queue) = parts(key);
                frames::put_interest(&mut everything, account, filter, queue, *count);
            }
        }
        link.connect(connection, everything);
        book.links.retain(|known| !Arc::ptr_eq(known, link));
        book.links.push(Arc::clone(link));
    }

    pub(crate) fn detach(&self, link: &Arc<Link>) {
        self.book.lock().links.retain(|known| !Arc::ptr_eq(known, link));
    }
}

impl Book {
    fn tell(&self, account: &AccountName, filter: &[u8], queue: &[u8], count: u32) {
        if self.links.is_empty() {
            return;
        }
        let mut change = Vec::with_capacity(64);
        frames::put_interest(&mut change, account, filter, queue, count);
        for link in &self.links {
            link.push_interest(&change);
        }
    }
}

type Known = HashMap<Box<[u8]>, Arc<RemoteInterest>, RandomState>;

/// What one peer told us it wants.
#[derive(Default)]
pub(crate) struct RemoteBook {
    known: HashMap<AccountName, Known, RandomState>,
}

impl RemoteBook {
    /// The peer says how many of its clients want this; 0 is none any more.
    pub(crate) fn set(
        &mut self,
        router: &Router,
        table: &AccountTable,
        link: &Arc<Link>,
        filter: &[u8],
        queue: &[u8],
        count: u32,
    ) {
        let known = self.known.entry(table.name.clone()).or_default();
        let key = key(filter, queue);
        match known.get(&key) {
            Some(interest) if count > 0 => {
                interest.weight.store(count, Ordering::Relaxed);
                router.moved();
            }
            Some(_) => {
                if let Some(gone) = known.remove(&key) {
                    router.remove_remote(table, &gone);
                }
            }
            None if count > 0 => {
                let interest = Arc::new(RemoteInterest {
                    link: Arc::clone(link),
                    filter: filter.into(),
                    queue: queue.into(),
                    weight: AtomicU32::new(count),
                });
                router.add_remote(table, &interest);
                known.insert(key, interest);
            }
            None => {}
        }
    }

    /// The peer is gone, or starts over.
    pub(crate) fn clear(&mut self, router: &Router) {
        for (account, known) in self.known.drain() {
            let table = router.account(&account);
            for interest in known.into_values() {
                router.remove_remote(&table, &interest);
            }
        }
    }

    /// How many subjects and groups it wants.
    pub(crate) fn len(&self) -> usize {
        self.known.values().map(HashMap::len).sum()
    }
}

/// Neither part can have a blank: the protocol uses it to part them too.
fn key(filter: &[u8], queue: &[u8]) -> Box<[u8]> {
    [filter, b" ", queue].concat().into()
}

fn parts(key: &[u8]) -> (&[u8], &[u8]) {
    let blank = key.iter().position(|byte| *byte == b' ').unwrap_or(key.len());
    (&key[..blank], key.get(blank + 1..).unwrap_or_default())
}
