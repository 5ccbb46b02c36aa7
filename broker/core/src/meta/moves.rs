//! Replicas go from node to node: because somebody asks for it, because a node is removed, or because one came that can
//! hold what is missing.
//!
//! A stream moves only while a majority of the nodes that hold it are alive: they bring what it has to the new one. With
//! fewer it stays where its messages are.

use levee_protocol::api::ApiError;
use levee_protocol::command::meta::{Move, MoveOrigin, StreamAssignment};
use levee_protocol::ids::{AccountName, GroupId, NodeId, StreamName};
use levee_protocol::time::Timestamp;

use super::streams::no_suitable_peers;
use super::{MetaMachine, MetaReply, placement};

impl MetaMachine {
    pub(super) fn move_replica(
        &mut self,
        now: Timestamp,
        account: &AccountName,
        name: &StreamName,
        from: NodeId,
        alive: &[NodeId],
    ) -> Result<MetaReply, ApiError> {
        let existing = self.whole_stream(account, name)?.clone();
        if !existing.replicas.contains(&from) {
            return Err(ApiError::peer_not_member());
        }
        let replicas = self.replacement(&existing, from, alive).ok_or_else(ApiError::peer_remap_failed)?;
        Ok(self.place(now, existing, replicas))
    }

    /// One replica goes to another node, and comes back if that is cancelled before it is there.
    pub(super) fn move_stream(
        &mut self,
        now: Timestamp,
        (account, name): (&AccountName, &StreamName),
        from: Option<NodeId>,
        tags: &[String],
        alive: &[NodeId],
    ) -> Result<MetaReply, ApiError> {
        let existing = self.whole_stream(account, name)?;
        let from = from.or_else(|| existing.replicas.last().copied());
        let from =
            from.filter(|from| existing.replicas.contains(from)).ok_or_else(ApiError::peer_not_member)?;
        let mut placement = existing.config.placement.clone().unwrap_or_default();
        placement.tags.extend_from_slice(tags);
        let others: Vec<NodeId> = alive.iter().copied().filter(|node| *node != from).collect();
        let candidates = self.candidates(Some(&placement), &others);
        let refused = no_suitable_peers(&candidates);
        let replicas = placement::replace(&existing.replicas, from, candidates, &self.load);
        let replicas = replicas.filter(|_| has_majority(existing, alive)).ok_or(refused)?;
        check_settled(existing)?;
        let mut assignment = existing.clone();
        assignment.moving = Some(Move { since: now, origin: Some(origin(existing)) });
        assignment.replicas = replicas;
        Ok(self.changed(existing.replicas.clone(), assignment))
    }

    pub(super) fn cancel_move(
        &mut self,
        account: &AccountName,
        name: &StreamName,
    ) -> Result<MetaReply, ApiError> {
        let existing = self.whole_stream(account, name)?;
        let origin = existing.moving.as_ref().and_then(|moving| moving.origin.clone());
        let origin = origin.ok_or_else(ApiError::reconfiguration_not_in_progress)?;
        let mut assignment = existing.clone();
        assignment.config.num_replicas = origin.num_replicas;
        assignment.config.placement = origin.placement;
        // Who was removed meanwhile does not come back.
        assignment.replicas = origin.replicas;
        assignment.replicas.retain(|node| !self.removed.contains(node));
        if assignment.replicas.is_empty() {
            return Err(ApiError::no_suitable_peers("the servers that held the stream were removed"));
        }
        Ok(self.changed(existing.replicas.clone(), assignment))
    }

    pub(super) fn end_move(&mut self, group: GroupId, replicas: &[NodeId]) -> MetaReply {
        let arrived = self.stream_of_group(group).filter(|stream| stream.replicas == replicas);
        if let Some(mut assignment) = arrived.cloned() {
            assignment.moving = None;
            self.replace_stream(assignment);
        }
        MetaReply::MoveEnded
    }

    pub(super) fn evacuate(&mut self, now: Timestamp, node: NodeId, alive: &[NodeId]) -> MetaReply {
        for assignment in self.held_by(node) {
            if let Some(replicas) = self.replacement(&assignment, node, alive) {
                self.place(now, assignment, replicas);
            }
        }
        MetaReply::Evacuated
    }

    /// A stream that finds no other node has one replica less, but never none: the last one stays assigned to the node
    /// that is gone, since nobody else has what it holds.
    pub(super) fn remove_node(&mut self, now: Timestamp, node: NodeId, alive: &[NodeId]) -> MetaReply {
        if !self.take_node(node) {
            return MetaReply::Removed;
        }
        for assignment in self.held_by(node) {
            if let Some(replicas) = self.replacement(&assignment, node, alive) {
                self.place(now, assignment, replicas);
            } else if assignment.replicas.len() > 1 && has_majority(&assignment, alive) {
                let others = assignment.replicas.iter().copied().filter(|other| *other != node).collect();
                self.place(now, assignment, others);
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

    pub(super) fn fill_up(&mut self, now: Timestamp, alive: &[NodeId]) -> MetaReply {
        for group in self.lacking.clone() {
            if let Some((assignment, replicas)) = self.filled(group, alive) {
                self.place(now, assignment, replicas);
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

    /// A stream that clients know of.
    pub(super) fn whole_stream(
        &self,
        account: &AccountName,
        name: &StreamName,
    ) -> Result<&StreamAssignment, ApiError> {
        let existing = self.stream(account, name).filter(|existing| !existing.restoring);
        existing.ok_or_else(ApiError::stream_not_found)
    }

    /// The stream has to go there. What it was on its way to before does not count any more.
    fn place(
        &mut self,
        now: Timestamp,
        mut assignment: StreamAssignment,
        replicas: Vec<NodeId>,
    ) -> MetaReply {
        let replicas_before = std::mem::replace(&mut assignment.replicas, replicas);
        assignment.moving = Some(Move { since: now, origin: None });
        self.changed(replicas_before, assignment)
    }

    fn changed(&mut self, replicas_before: Vec<NodeId>, mut assignment: StreamAssignment) -> MetaReply {
        assignment.replicas_changed = true;
        assignment.revision += 1;
        self.replace_stream(assignment.clone());
        MetaReply::Updated { assignment: Box::new(assignment), replicas_before }
    }
}

/// What a stream goes back to if it is moved now and that is cancelled.
pub(super) fn origin(assignment: &StreamAssignment) -> MoveOrigin {
    MoveOrigin {
        replicas: assignment.replicas.clone(),
        num_replicas: assignment.config.num_replicas,
        placement: assignment.config.placement.clone(),
    }
}

/// Refuses to move a stream on that has not arrived where it was moved to, or has not grown or shrunk yet. One that lost a
/// replica is not kept from what is asked of it.
pub(super) fn check_settled(assignment: &StreamAssignment) -> Result<(), ApiError> {
    match assignment.moving.as_ref().and_then(|moving| moving.origin.as_ref()) {
        None => Ok(()),
        Some(origin) if origin.num_replicas != assignment.config.num_replicas => {
            Err(ApiError::reconfiguration_in_progress())
        }
        Some(_) => Err(ApiError::move_in_progress()),
    }
}

fn has_majority(assignment: &StreamAssignment, alive: &[NodeId]) -> bool {
    2 * assignment.replicas.iter().filter(|node| alive.contains(node)).count() > assignment.replicas.len()
}
