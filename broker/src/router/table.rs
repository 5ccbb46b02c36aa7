//! Who wants what, for one account: a trie of local subscriptions and of what peers want.
//!
//! Publishers do not look here for each message: they keep what they found until the router's generation moves.
//! So a lock around the trie is cheaper than a snapshot, which would cost a copy per SUB.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use levee_protocol::ids::AccountName;
use levee_protocol::subject::Trie;
use parking_lot::RwLock;

use crate::router::peers::Link;
use crate::session::SessionHandle;
use crate::session::guard::Guard;

/// The subjects of one account.
pub struct AccountTable {
    /// The account.
    pub name: AccountName,
    trie: RwLock<Trie<Interest>>,
}

/// Somebody who wants messages.
#[derive(Clone)]
pub(crate) enum Interest {
    /// A client of this node.
    Local(Arc<Subscription>),
    /// Clients of another node, as that node told us.
    Remote(Arc<RemoteInterest>),
}

/// A client's subscription.
pub struct Subscription {
    /// What it wants.
    pub filter: Box<[u8]>,
    /// The queue group; empty for a plain subscription.
    pub queue: Box<[u8]>,
    /// The client's name for it.
    pub sid: Box<[u8]>,
    /// Whose it is.
    pub owner: Arc<SessionHandle>,
    /// Where it is registered.
    pub(crate) table: Arc<AccountTable>,
    /// What its owner may hear; `None` if everything.
    pub(crate) guard: Option<Arc<Guard>>,
    delivered: AtomicU64,
    /// [`OPEN`], or after how many deliveries it ends, or [`CLOSED`].
    gate: AtomicU64,
}

/// What a peer wants: one for each subject and queue group, whatever the number of its clients.
pub(crate) struct RemoteInterest {
    /// The way to the peer.
    pub link: Arc<Link>,
    /// What it wants.
    pub filter: Box<[u8]>,
    /// The queue group; empty for plain subscriptions.
    pub queue: Box<[u8]>,
    /// How many of its clients are members of the queue group.
    pub weight: AtomicU32,
}

/// What a subscription does with one more message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    /// Takes it; the delivery is still to be counted.
    Uncounted,
    /// Takes it; counted.
    Counted,
    /// Takes it as the last one.
    Last,
    /// It ended.
    Refused,
}

const OPEN: u64 = 0;
const CLOSED: u64 = u64::MAX;

impl AccountTable {
    pub(crate) fn new(name: AccountName) -> Self {
        Self { name, trie: RwLock::new(Trie::new()) }
    }

    pub(crate) fn insert(&self, interest: Interest) {
        let mut trie = self.trie.write();
        match &interest {
            Interest::Local(subscription) => {
                let filter = subscription.filter.clone();
                trie.insert(&filter, interest);
            }
            Interest::Remote(remote) => {
                let filter = remote.filter.clone();
                trie.insert(&filter, interest);
            }
        }
    }

    pub(crate) fn remove_local(&self, gone: &Arc<Subscription>) -> bool {
        let is_gone = |known: &Interest| matches!(known, Interest::Local(known) if Arc::ptr_eq(known, gone));
        self.trie.write().remove(&gone.filter, is_gone) > 0
    }

    pub(crate) fn remove_remote(&self, gone: &Arc<RemoteInterest>) -> bool {
        let is_gone = |known: &Interest| matches!(known, Interest::Remote(known) if Arc::ptr_eq(known, gone));
        self.trie.write().remove(&gone.filter, is_gone) > 0
    }

    pub(crate) fn for_each_match(&self, subject: &[u8], visit: impl FnMut(&Interest)) {
        self.trie.read().for_each_match(subject, visit);
    }

    /// Whether anybody, here or on a connected peer, would get a message on `subject`.
    #[must_use]
    pub fn has_interest(&self, subject: &[u8]) -> bool {
        let mut found = false;
        self.for_each_match(subject, |interest| {
            found |= match interest {
                Interest::Local(subscription) => subscription.is_open(),
                Interest::Remote(remote) => remote.link.is_connected(),
            };
        });
        found
    }

    /// Whether this queue group has a member, here or on a connected peer, that would get a message on `subject`.
    #[must_use]
    pub fn has_queue_interest(&self, subject: &[u8], group: &[u8]) -> bool {
        let mut found = false;
        self.for_each_match(subject, |interest| {
            found |= match interest {
                Interest::Local(subscription) => *subscription.queue == *group && subscription.is_open(),
                Interest::Remote(remote) => *remote.queue == *group && remote.link.is_connected(),
            };
        });
        found
    }

    /// Whether somebody, here or on a connected peer, has subscribed to just this subject, not by a wildcard.
    #[must_use]
    pub fn has_literal_interest(&self, subject: &[u8]) -> bool {
        let mut found = false;
        self.for_each_match(subject, |interest| {
            found |= match interest {
                Interest::Local(subscription) => *subscription.filter == *subject && subscription.is_open(),
                Interest::Remote(remote) => *remote.filter == *subject && remote.link.is_connected(),
            };
        });
        found
    }

    /// How many subscriptions and interests of peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.trie.read().len()
    }

    /// Whether nobody wants anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Subscription {
    /// A subscription that nothing was delivered to yet.
    #[must_use]
    pub(crate) fn new(
        table: &Arc<AccountTable>,
        filter: &[u8],
        queue: &[u8],
        sid: &[u8],
        owner: Arc<SessionHandle>,
        guard: Option<Arc<Guard>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            filter: filter.into(),
            queue: queue.into(),
            sid: sid.into(),
            owner,
            table: Arc::clone(table),
            guard,
            delivered: AtomicU64::new(0),
            gate: AtomicU64::new(OPEN),
        })
    }

    /// Messages delivered so far.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// After how many deliveries it ends; 0 is never.
    #[must_use]
    pub fn max(&self) -> u64 {
        match self.gate.load(Ordering::Relaxed) {
            CLOSED => 0,
            max => max,
        }
    }

    /// Whether it still takes messages.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.gate.load(Ordering::Relaxed) != CLOSED
    }

    /// Sets the number of deliveries after which it ends. False if it had that many already.
    pub(crate) fn limit(&self, max: u64) -> bool {
        self.gate.store(max, Ordering::SeqCst);
        self.delivered() < max
    }

    /// Lets nothing more through. True the first time.
    pub(crate) fn close(&self) -> bool {
        self.gate.swap(CLOSED, Ordering::SeqCst) != CLOSED
    }

    /// One more message. Without a limit the count is left to the caller, who adds up many; with one, each counts
    /// at once, so that exactly as many get through whoever publishes.
    #[inline]
    pub(crate) fn admit(&self) -> Admission {
        match self.gate.load(Ordering::Relaxed) {
            OPEN => Admission::Uncounted,
            CLOSED => Admission::Refused,
            max => match self.delivered.fetch_add(1, Ordering::SeqCst) + 1 {
                count if count < max => Admission::Counted,
                count if count == max => Admission::Last,
                _ => Admission::Refused,
            },
        }
    }

    pub(crate) fn count(&self, deliveries: u32) {
        self.delivered.fetch_add(u64::from(deliveries), Ordering::Relaxed);
    }
}
