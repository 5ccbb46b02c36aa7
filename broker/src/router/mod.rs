//! Who gets a message: clients of this node, peers whose clients want it, and the services of the stream side.
//!
//! A publisher (a session, a peer's stream of messages, a consumer) asks once per subject and remembers the answer
//! in a [`route`] cache until a generation counter moves; it collects what it sends in a [`stage`] and hands it over
//! once per read chunk. The router itself is the table behind those caches:
//!
//! | file | is |
//! |---|---|
//! | [`table`] | subscriptions and peers' interest, per account |
//! | [`route`] | what a publisher remembers about a subject |
//! | [`stage`] | what it collected, per destination |
//! | [`batch`] | the node's own messages: deliveries, answers, advisories |
//! | [`watchers`] | who wants to know when somebody listens on a subject |
//! | [`inbox`] | what a part of this node subscribes to itself |
//! | [`interest`] | what this node tells its peers it wants, and what they told |
//! | [`peers`] | the streams between nodes |
//! | [`sink`] | what the stream side implements to take part |

pub(crate) mod batch;
pub(crate) mod inbox;
pub(crate) mod interest;
pub mod peers;
pub(crate) mod route;
pub(crate) mod sink;
pub(crate) mod stage;
pub(crate) mod table;
pub(crate) mod watchers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use levee_protocol::ids::AccountName;
use parking_lot::RwLock;

pub use batch::RouteBatch;
pub use sink::{ClientInfo, Inbound, InboundItem, Resolved, Services, Sink};
pub use table::{AccountTable, Subscription};
pub use watchers::InterestWatcher;

use interest::InterestBook;
use table::{Interest, RemoteInterest};
use watchers::Watchers;

/// The node's routing table.
pub struct Router {
    accounts: RwLock<HashMap<AccountName, Arc<AccountTable>, RandomState>>,
    generation: AtomicU64,
    services: OnceLock<Arc<dyn Services>>,
    book: InterestBook,
    watchers: Watchers,
}

/// A message on its way.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageRef<'a> {
    /// What its line says it is about.
    pub subject: &'a [u8],
    /// Where answers go; empty if none are wanted.
    pub reply: &'a [u8],
    /// The header block; empty if there is none.
    pub header: &'a [u8],
    /// The body.
    pub payload: &'a [u8],
}

impl Router {
    /// An empty table.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            accounts: RwLock::new(HashMap::default()),
            generation: AtomicU64::new(1),
            services: OnceLock::new(),
            book: InterestBook::default(),
            watchers: Watchers::default(),
        })
    }

    /// Plugs the stream side in, once, before clients are let in.
    pub fn attach_services(&self, services: Arc<dyn Services>) {
        assert!(self.services.set(services).is_ok(), "services are attached once");
        self.moved();
    }

    /// Stage many messages, then flush once. Used by consumers (deliveries), acks, API replies, advisories.
    #[must_use]
    pub fn batch(self: &Arc<Self>) -> RouteBatch {
        RouteBatch::new(Arc::clone(self))
    }

    /// Routes one message; see [`RouteBatch::send`]. For whoever has only one.
    pub fn send_one(self: &Arc<Self>, account: &AccountName, to: &[u8], message: MessageRef<'_>) -> usize {
        self.batch().send(account, to, message)
    }

    /// Publishes one message as a client would; see [`RouteBatch::publish`].
    pub fn publish_one(self: &Arc<Self>, account: &AccountName, message: MessageRef<'_>) -> usize {
        self.batch().publish(account, message)
    }

    /// Whether anybody, here or on a connected peer, would get a message on `subject`. Streams do not count.
    #[must_use]
    pub fn has_interest(&self, account: &AccountName, subject: &[u8]) -> bool {
        let table = self.accounts.read().get(account).cloned();
        table.is_some_and(|table| table.has_interest(subject))
    }

    /// The same for members of one queue group; with an empty name, for everybody.
    #[must_use]
    pub fn has_group_interest(&self, account: &AccountName, subject: &[u8], group: &[u8]) -> bool {
        if group.is_empty() {
            return self.has_interest(account, subject);
        }
        let table = self.accounts.read().get(account).cloned();
        table.is_some_and(|table| table.has_queue_interest(subject, group))
    }

    /// The same for subscriptions to just this subject.
    #[must_use]
    pub fn has_literal_interest(&self, account: &AccountName, subject: &[u8]) -> bool {
        let table = self.accounts.read().get(account).cloned();
        table.is_some_and(|table| table.has_literal_interest(subject))
    }

    /// Who is told when [`Self::has_interest`] may have changed for a subject.
    pub(crate) fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// The subjects of an account. Accounts come into being when they are first named.
    #[must_use]
    pub fn account(&self, name: &AccountName) -> Arc<AccountTable> {
        if let Some(table) = self.accounts.read().get(name) {
            return Arc::clone(table);
        }
        let mut accounts = self.accounts.write();
        let table = accounts.entry(name.clone()).or_insert_with(|| Arc::new(AccountTable::new(name.clone())));
        Arc::clone(table)
    }

    /// Every account that was ever named, with the number of its subscriptions and peers' interests.
    #[must_use]
    pub fn accounts(&self) -> Vec<(AccountName, usize)> {
        self.accounts.read().values().map(|table| (table.name.clone(), table.len())).collect()
    }

    pub(crate) fn services(&self) -> Option<&Arc<dyn Services>> {
        self.services.get()
    }

    /// What caches compare: they are right as long as both stay.
    pub(crate) fn generations(&self) -> (u64, u64) {
        let services = self.services.get().map_or(0, |services| services.generation());
        (self.generation.load(Ordering::Acquire), services)
    }

    pub(crate) fn book(&self) -> &InterestBook {
        &self.book
    }

    pub(crate) fn subscribe(&self, subscription: &Arc<Subscription>) {
        subscription.table.insert(Interest::Local(Arc::clone(subscription)));
        self.moved();
        self.watchers.moved(&subscription.table.name, &subscription.filter);
        self.book.added(&subscription.table.name, &subscription.filter, &subscription.queue);
    }

    pub(crate) fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        subscription.close();
        if subscription.table.remove_local(subscription) {
            self.moved();
            self.watchers.moved(&subscription.table.name, &subscription.filter);
            self.book.removed(&subscription.table.name, &subscription.filter, &subscription.queue);
        }
    }

    /// A subscription had its last delivery.
    pub(crate) fn subscription_ended(&self, subscription: &Arc<Subscription>) {
        let mut owned = subscription.owner.subscriptions.lock();
        if owned.get(&subscription.sid).is_some_and(|known| Arc::ptr_eq(known, subscription)) {
            owned.remove(&subscription.sid);
        }
        drop(owned);
        self.unsubscribe(subscription);
    }

    pub(crate) fn add_remote(&self, table: &AccountTable, remote: &Arc<RemoteInterest>) {
        table.insert(Interest::Remote(Arc::clone(remote)));
        self.moved();
        self.watchers.moved(&table.name, &remote.filter);
    }

    pub(crate) fn remove_remote(&self, table: &AccountTable, remote: &Arc<RemoteInterest>) {
        table.remove_remote(remote);
        self.moved();
        self.watchers.moved(&table.name, &remote.filter);
    }

    /// A link to a peer came up or broke.
    pub(crate) fn link_moved(&self) {
        self.moved();
        self.watchers.all_moved();
    }

    /// What caches hold may be wrong now: called after the table changed, so that who sees the new generation sees
    /// the new table.
    pub(crate) fn moved(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}
