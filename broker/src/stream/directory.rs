//! Which streams exist, which subjects they capture, and which node leads them, as this node believes.
//!
//! Streams come from the meta state. Leaders come from this node's own groups and from what leaders announce to
//! everybody; the highest Raft term wins. A belief may be stale: whoever gets a message it does not lead drops it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::{AccountName, GroupId, NodeId};
use levee_protocol::subject::Trie;
use parking_lot::RwLock;

/// The beliefs of one node.
pub struct Directory {
    streams: RwLock<Streams>,
    leaders: RwLock<HashMap<GroupId, Belief>>,
    /// Moves when a cached answer may be wrong.
    generation: AtomicU64,
}

#[derive(Default)]
struct Streams {
    by_account: HashMap<AccountName, AccountStreams>,
    by_group: HashMap<GroupId, Known>,
}

/// One stream, as it was taken on.
struct Known {
    revision: u64,
    account: AccountName,
    name: String,
    subjects: Vec<String>,
}

#[derive(Default)]
struct AccountStreams {
    by_name: HashMap<String, GroupId>,
    captures: Trie<GroupId>,
}

#[derive(Clone, Copy)]
struct Belief {
    raft_term: u64,
    leader: Option<NodeId>,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            streams: RwLock::new(Streams::default()),
            leaders: RwLock::new(HashMap::new()),
            generation: AtomicU64::new(1),
        }
    }

    /// Takes on what the meta state says of one stream; `None` for a deleted one.
    pub fn adopt(&self, group: GroupId, assignment: Option<&StreamAssignment>) {
        let mut streams = self.streams.write();
        let was_known = streams.forget(group);
        if let Some(assignment) = assignment {
            streams.learn(assignment);
        }
        drop(streams);
        // Only what is known to be deleted is forgotten: a leader may announce itself before we hear of its stream.
        if was_known && assignment.is_none() {
            self.leaders.write().remove(&group);
        }
        self.moved();
    }

    /// All groups that streams were taken on of.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.streams.read().by_group.keys().copied().collect()
    }

    /// The stream that captures a subject.
    #[must_use]
    pub fn capturing(&self, account: &AccountName, subject: &[u8]) -> Option<GroupId> {
        let streams = self.streams.read();
        let mut found = None;
        streams.by_account.get(account)?.captures.for_each_match(subject, |group| found = Some(*group));
        found
    }

    /// Whether this node has taken on at least that revision of a stream, and knows who leads it: publishes find it.
    #[must_use]
    pub fn is_reachable(&self, group: GroupId, revision: u64) -> bool {
        let known = self.streams.read().by_group.get(&group).is_some_and(|known| known.revision >= revision);
        known && self.leader(group).is_some()
    }

    /// Whether this node has taken on that a stream is deleted.
    #[must_use]
    pub fn is_gone(&self, group: GroupId) -> bool {
        !self.streams.read().by_group.contains_key(&group)
    }

    /// The group of a stream.
    #[must_use]
    pub fn group(&self, account: &AccountName, stream: &str) -> Option<GroupId> {
        self.streams.read().by_account.get(account)?.by_name.get(stream).copied()
    }

    /// Who leads a group, as far as this node knows.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leaders.read().get(&group).and_then(|belief| belief.leader)
    }

    /// Somebody leads a group.
    pub fn leads(&self, group: GroupId, raft_term: u64, leader: NodeId) {
        self.believe(group, Belief { raft_term, leader: Some(leader) });
    }

    /// A group has no leader that is ready.
    pub fn leaderless(&self, group: GroupId, raft_term: u64) {
        self.believe(group, Belief { raft_term, leader: None });
    }

    fn believe(&self, group: GroupId, belief: Belief) {
        let mut leaders = self.leaders.write();
        let newer = leaders.get(&group).is_none_or(|known| {
            belief.raft_term > known.raft_term
                || (belief.raft_term == known.raft_term && belief.leader != known.leader)
        });
        if newer {
            leaders.insert(group, belief);
            drop(leaders);
            self.moved();
        }
    }

    /// A node is gone: what it led has no leader until somebody says otherwise.
    pub fn node_down(&self, node: NodeId) {
        for belief in self.leaders.write().values_mut().filter(|belief| belief.leader == Some(node)) {
            belief.leader = None;
        }
        self.moved();
    }

    /// Moves when an answer that was given may be wrong now.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn moved(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Streams {
    fn forget(&mut self, group: GroupId) -> bool {
        let Some(known) = self.by_group.remove(&group) else { return false };
        if let Some(account) = self.by_account.get_mut(&known.account) {
            // Its name may have gone to a newer stream already.
            if account.by_name.get(&known.name) == Some(&group) {
                account.by_name.remove(&known.name);
            }
            for subject in &known.subjects {
                account.captures.remove(subject.as_bytes(), |captured| *captured == group);
            }
        }
        true
    }

    fn learn(&mut self, assignment: &StreamAssignment) {
        // Nobody finds a stream that is being restored, but its leader is known.
        if !assignment.restoring {
            let account = self.by_account.entry(assignment.account.clone()).or_default();
            account.by_name.insert(assignment.config.name.clone(), assignment.group);
            for subject in &assignment.config.subjects {
                account.captures.insert(subject.as_bytes(), assignment.group);
            }
        }
        let known = Known {
            revision: assignment.revision,
            account: assignment.account.clone(),
            name: assignment.config.name.clone(),
            subjects: assignment.config.subjects.clone(),
        };
        self.by_group.insert(assignment.group, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(group: u64, name: &str, subject: &str) -> StreamAssignment {
        StreamAssignment {
            account: AccountName::global(),
            group: GroupId(group),
            config: levee_protocol::api::StreamConfig {
                name: name.to_owned(),
                subjects: vec![subject.to_owned()],
                ..Default::default()
            },
            created: levee_protocol::time::Timestamp::ZERO,
            replicas: vec![NodeId(1)],
            revision: 1,
            replicas_changed: false,
            moving: None,
            restoring: false,
        }
    }

    #[test]
    fn a_stream_that_is_being_restored_is_not_found_until_that_has_ended() {
        let directory = Directory::new();
        let account = AccountName::global();
        let restoring = StreamAssignment { restoring: true, ..assignment(20, "ORDERS", "orders.>") };
        directory.adopt(GroupId(20), Some(&restoring));
        directory.leads(GroupId(20), 1, NodeId(1));

        assert_eq!(directory.group(&account, "ORDERS"), None);
        assert_eq!(directory.capturing(&account, b"orders.new"), None);
        assert_eq!(directory.leader(GroupId(20)), Some(NodeId(1)));
        directory.adopt(GroupId(20), Some(&assignment(20, "ORDERS", "orders.>")));
        assert_eq!(directory.capturing(&account, b"orders.new"), Some(GroupId(20)));
        directory.adopt(GroupId(20), None);
        assert!(directory.is_gone(GroupId(20)) && directory.leader(GroupId(20)).is_none());
    }

    #[test]
    fn a_stream_is_found_while_it_exists_and_its_name_may_go_to_another() {
        let directory = Directory::new();
        let account = AccountName::global();
        directory.adopt(GroupId(20), Some(&assignment(20, "ORDERS", "orders.>")));
        assert_eq!(directory.group(&account, "ORDERS"), Some(GroupId(20)));
        assert_eq!(directory.capturing(&account, b"orders.1"), Some(GroupId(20)));

        // News of the new stream may be taken on before those of the deleted one.
        directory.adopt(GroupId(21), Some(&assignment(21, "ORDERS", "new.orders.>")));
        directory.adopt(GroupId(20), None);

        assert_eq!(directory.group(&account, "ORDERS"), Some(GroupId(21)));
        assert_eq!(directory.capturing(&account, b"orders.1"), None);
        assert_eq!(directory.capturing(&account, b"new.orders.1"), Some(GroupId(21)));
        assert!(directory.is_gone(GroupId(20)));
    }

    #[test]
    fn other_subjects_replace_those_before() {
        let directory = Directory::new();
        let account = AccountName::global();
        directory.adopt(GroupId(20), Some(&assignment(20, "ORDERS", "orders.>")));

        directory.adopt(GroupId(20), Some(&assignment(20, "ORDERS", "sales.>")));

        assert_eq!(directory.capturing(&account, b"orders.1"), None);
        assert_eq!(directory.capturing(&account, b"sales.1"), Some(GroupId(20)));
    }

    #[test]
    fn a_higher_raft_term_wins_and_a_lower_one_is_ignored() {
        let directory = Directory::new();

        directory.leads(GroupId(20), 4, NodeId(2));
        directory.leads(GroupId(20), 3, NodeId(3));

        assert_eq!(directory.leader(GroupId(20)), Some(NodeId(2)));
        directory.leads(GroupId(20), 5, NodeId(3));
        assert_eq!(directory.leader(GroupId(20)), Some(NodeId(3)));
    }

    #[test]
    fn what_a_lost_node_led_has_no_leader_until_somebody_takes_over() {
        let directory = Directory::new();
        directory.leads(GroupId(20), 4, NodeId(2));
        let before = directory.generation();

        directory.node_down(NodeId(2));

        assert_eq!(directory.leader(GroupId(20)), None);
        assert_ne!(directory.generation(), before, "cached routes are looked up again");
        directory.leads(GroupId(20), 5, NodeId(1));
        assert_eq!(directory.leader(GroupId(20)), Some(NodeId(1)));
    }
}
