//! How many clients of an account may be connected, on all nodes together.
//!
//! A node knows its own clients at once and those of other nodes as these last told. So an account can be over by what
//! connects to several nodes in the same moment, never by what connects to one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use levee_protocol::ids::{AccountName, NodeId};
use parking_lot::Mutex;

/// Connections by account, of those that have a limit.
pub type Connected = BTreeMap<AccountName, u64>;

/// All places that there are.
#[derive(Debug, Default)]
pub struct Places {
    accounts: BTreeMap<AccountName, Arc<Room>>,
    elsewhere: Mutex<BTreeMap<NodeId, Connected>>,
}

#[derive(Debug)]
struct Room {
    max: u64,
    taken: AtomicU64,
}

/// A connection's place. Free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Room>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An account has as many connections as it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl Places {
    /// Of accounts with a limit.
    #[must_use]
    pub fn new(limits: impl IntoIterator<Item = (AccountName, u64)>) -> Self {
        let room = |max| Arc::new(Room { max, taken: AtomicU64::new(0) });
        Self {
            accounts: limits.into_iter().map(|(name, max)| (name, room(max))).collect(),
            elsewhere: Mutex::default(),
        }
    }

    /// A place in an account; none is needed where there is no limit.
    pub(crate) fn take(&self, account: &AccountName) -> Result<Option<Place>, Full> {
        let Some(room) = self.accounts.get(account) else { return Ok(None) };
        let elsewhere: u64 = self.elsewhere.lock().values().filter_map(|there| there.get(account)).sum();
        let taken = room.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken + elsewhere < room.max).then_some(taken + 1)
        });
        taken.map(|_| Some(Place(Arc::clone(room)))).map_err(|_| Full)
    }

    /// Whether no account has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.accounts.is_empty()
    }

    /// How many are connected to this node.
    #[must_use]
    pub fn here(&self) -> Connected {
        let count = |room: &Room| room.taken.load(Ordering::Relaxed);
        self.accounts.iter().map(|(name, room)| (name.clone(), count(room))).collect()
    }

    /// Another node said how many are connected to it.
    pub fn take_report(&self, from: NodeId, connected: Connected) {
        self.elsewhere.lock().insert(from, connected);
    }

    /// Another node is gone, and with it its clients.
    pub fn forget(&self, node: NodeId) {
        self.elsewhere.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountName {
        AccountName::parse(name).unwrap()
    }

    #[test]
    fn a_place_is_taken_and_given_back() {
        let places = Places::new([(account("A"), 2), (account("NOBODY"), 0)]);

        let one = places.take(&account("A")).unwrap();
        let _two = places.take(&account("A")).unwrap();
        assert!(one.is_some() && places.take(&account("A")).is_err());
        drop(one);

        assert!(places.take(&account("A")).is_ok());
        assert!(places.take(&account("NOBODY")).is_err());
        assert!(places.take(&account("OTHER")).unwrap().is_none());
    }

    #[test]
    fn who_is_connected_elsewhere_counts_for_as_long_as_that_node_is_there() {
        let places = Places::new([(account("A"), 3)]);
        let _one = places.take(&account("A")).unwrap();

        places.take_report(NodeId(2), [(account("A"), 1)].into());
        places.take_report(NodeId(3), [(account("A"), 1), (account("B"), 5)].into());
        assert!(places.take(&account("A")).is_err());
        places.forget(NodeId(2));

        assert!(places.take(&account("A")).is_ok());
        assert_eq!(places.here(), [(account("A"), 1)].into());
    }
}
