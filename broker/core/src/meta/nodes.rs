//! Nodes come and tell a new address.

use levee_protocol::command::meta::NodeRegistration;

use super::{MetaMachine, MetaReply};

impl MetaMachine {
    /// A name belongs to the first node that took it, until that node is removed. Who was removed does not come back.
    pub(super) fn register(&mut self, node: &NodeRegistration) -> MetaReply {
        if self.removed.contains(&node.id) {
            return MetaReply::WasRemoved;
        }
        if let Some(other) = self.nodes.values().find(|other| other.name == node.name && other.id != node.id)
        {
            return MetaReply::NameTaken { by: other.id };
        }
        if self.nodes.get(&node.id) != Some(node) {
            self.put_node(node.clone());
        }
        MetaReply::Registered
    }
}
