//! Replicas go from node to node: because somebody asks for it, because a node is removed, or because one came that can
//! hold what is missing.
//!
//! A stream moves only while a majority of the nodes that hold it are alive: they bring what it has to the new one. With
//! fewer it stays where its messages are.

use levee_protocol::api::ApiError;
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::{AccountName, GroupId, NodeId, StreamName};

use super::{MetaMachine, MetaReply, placement};

impl MetaMachine {
    pub(super) fn move_replica(
        &mut self,
        account: &AccountName,
        name: &StreamName,
        from: NodeId,
        alive: &[NodeId],
    ) -> Result<MetaReply, ApiError> {
        let existing = self.stream(account, name).filter(|existing| !existing.restoring);
        let existing = existing.ok_or_else(ApiError::stream_not_found)?.clone();
        if !existing.replicas.contains(&from) {
            return Err(ApiError::peer_not_member());
        }
        let replicas = self.replacement(&existing, from, alive).ok_or_else(ApiError::peer_remap_failed)?;
        Ok(self.place(existing, replicas))
    }

    pub(super) fn evacuate(&mut self, node: NodeId, alive: &[NodeId]) -> MetaReply {
        for assignment in self.held_by(node) {
            if let Some(replicas) = self.replacement(&assignment, node, alive) {
                self.place(assignment, replicas);
            }
        }
        MetaReply::Evacuated
    }

    /// A stream that finds no other node has one replica less, but never none: the last one stays assigned to the node
    /// that is gone, since nobody else has what it holds.
    pub(super) fn remove_node(&mut self, node: NodeId, alive: &[NodeId]) -> MetaReply {
        if !self.take_node(node) {
            return MetaReply::Removed;
        }
        for assignment in self.held_by(node) {
            if let Some(replicas) = self.replacement(&assignment, node, alive) {
                self.place(assignment, replicas);
            } else if assignment.replicas.len() > 1 && has_majority(&assignment, alive) {
                let others = assignment.replicas.iter().copied().filter(|other| *other != node).collect();
                self.place(assignment, others);
            } else {
                self.lacking.insert(assignment.group);
            }
        }
        MetaReply::Removed
    }

    /// Whether a [`FillUp`](levee_protocol::command::MetaCommand::FillUp) would change something.
    #[must_use]
    pub fn can_fill_up(&self, alive: &[NodeId]) -> bool {
        self.lacking.iter().any(|group| self.filled(*group, alive).is_some())
    }

    pub(super) fn fill_up(&mut self, alive: &[NodeId]) -> MetaReply {
        for group in self.lacking.clone() {
            if let Some((assignment, replicas)) = self.filled(group, alive) {
                self.place(assignment, replicas);
            }
        }
        MetaReply::FilledUp
    }

    /// Whether the stream has fewer replicas than it should, or one on a node that was removed.
    pub(super) fn lacks_replicas(&self, assignment: &StreamAssignment) -> bool {
        assignment.replicas.len() < assignment.config.replica_count()
            || assignment.replicas.iter().any(|node| self.removed.contains(node))
    }

    fn filled(&self, group: GroupId, alive: &[NodeId]) -> Option<(StreamAssignment, Vec<NodeId>)> {
        let assignment = self.stream_of_group(group).filter(|assignment| has_majority(assignment, alive))?;
        let candidates = self.candidates(assignment.config.placement.as_ref(), alive);
        let is_here = |node: &NodeId| !self.removed.contains(node);
        let stay: Vec<NodeId> = assignment.replicas.iter().copied().filter(is_here).collect();
        let replicas = placement::extend(stay, assignment.config.replica_count(), &candidates, &self.load);
        let is_better = replicas != assignment.replicas && !replicas.is_empty();
        is_better.then(|| (assignment.clone(), replicas))
    }

    fn replacement(
        &self,
        assignment: &StreamAssignment,
        goes: NodeId,
        alive: &[NodeId],
    ) -> Option<Vec<NodeId>> {
        let candidates = self.candidates(assignment.config.placement.as_ref(), alive);
        let replicas = placement::replace(&assignment.replicas, goes, candidates, &self.load)?;
        has_majority(assignment, alive).then_some(replicas)
    }

    fn held_by(&self, node: NodeId) -> Vec<StreamAssignment> {
        self.all_streams().filter(|assignment| assignment.replicas.contains(&node)).cloned().collect()
    }

    fn place(&mut self, mut assignment: StreamAssignment, replicas: Vec<NodeId>) -> MetaReply {
        let replicas_before = std::mem::replace(&mut assignment.replicas, replicas);
        assignment.replicas_changed = true;
        assignment.revision += 1;
        self.replace_stream(assignment.clone());
        MetaReply::Updated { assignment: Box::new(assignment), replicas_before }
    }
}

fn has_majority(assignment: &StreamAssignment, alive: &[NodeId]) -> bool {
    2 * assignment.replicas.iter().filter(|node| alive.contains(node)).count() > assignment.replicas.len()
}
