//! Nodes come, tell a new address, and leave.

use levee_protocol::command::meta::NodeRegistration;
use levee_protocol::ids::NodeId;

use super::{MetaMachine, MetaReply};

impl MetaMachine {
    /// A name belongs to the first node that took it, until that node is removed.
    pub(super) fn register(&mut self, node: &NodeRegistration) -> MetaReply {
        if let Some(other) = self.nodes.values().find(|other| other.name == node.name && other.id != node.id)
        {
            return MetaReply::NameTaken { by: other.id };
        }
        if self.nodes.get(&node.id) != Some(node) {
            self.put_node(node.clone());
        }
        MetaReply::Registered
    }

    /// Streams that the node held keep it among their replicas until they are updated.
    pub(super) fn remove_node(&mut self, node: NodeId) -> MetaReply {
        self.take_node(node);
        MetaReply::Removed
    }
}
