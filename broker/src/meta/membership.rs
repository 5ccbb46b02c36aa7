//! Taking nodes into the cluster, on the meta group's leader: invite the fresh, register the known, let them
//! vote. Runs on every node and acts only where the meta group is led.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::meta::MetaReply;
use levee_protocol::command::MetaCommand;
use levee_protocol::command::meta::NodeRegistration;
use levee_protocol::ids::NodeId;
use levee_raft::Group;

use crate::advisory;
use crate::jetstream::JetStream;
use crate::meta::bootstrap::{CALL_INVITE, Standing};

const ARRIVAL_PATIENCE: Duration = Duration::from_secs(2);
const ARRIVAL_LOOK_INTERVAL: Duration = Duration::from_millis(20);
const JOIN_PATIENCE: Duration = Duration::from_secs(15);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const INVITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks after the membership for as long as the node runs.
pub async fn run(jetstream: Arc<JetStream>, uid: String) {
    let mut refused = BTreeSet::new();
    let mut led = false;
    loop {
        let Some(group) = jetstream.meta().group() else {
            tokio::time::sleep(LOOK_INTERVAL).await;
            continue;
        };
        let mut leadership = group.leadership();
        let leads = leadership.borrow_and_update().leading;
        if leads && !led && jetstream.identity().has_cluster_name() {
            advisory::meta_leadership(&jetstream, group);
        }
        led = leads;
        if leads {
            look_once(&jetstream, group, &uid, &mut refused).await;
        }
        // A node that has just founded a cluster registers itself at once: nothing can be created before.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_INTERVAL, leadership.changed()).await {
            return;
        }
    }
}

/// Waits, on the meta leader, until `wanted` nodes can hold replicas, as long as connected nodes are still on their
/// way into the meta state: a cluster that has just come up is not refused what it can do in a moment.
pub async fn nodes_arrive(jetstream: &JetStream, wanted: usize) {
    let arrive = async {
        while jetstream.alive_nodes().len() < wanted {
            let on_their_way =
                jetstream.peers().peers().into_iter().filter(|peer| peer.jetstream).any(|peer| {
                    let bound = Standing::decode(&peer.meta)
                        .is_some_and(|standing| standing.uid == jetstream.cluster_uid());
                    bound && jetstream.meta().read(|machine| machine.node(peer.node).is_none())
                });
            let is_here = jetstream.meta().read(|machine| machine.node(jetstream.node()).is_some());
            if is_here && !on_their_way {
                return;
            }
            tokio::time::sleep(ARRIVAL_LOOK_INTERVAL).await;
        }
    };
    // Whoever is not here in time is not waited for: the rules say what is missing.
    let _ = tokio::time::timeout(ARRIVAL_PATIENCE, arrive).await;
}

async fn look_once(jetstream: &Arc<JetStream>, group: &Group, uid: &str, refused: &mut BTreeSet<NodeId>) {
    let mut present = vec![jetstream.registration()];
    for peer in jetstream.peers().peers() {
        let Some(standing) = Standing::decode(&peer.meta).filter(|_| peer.jetstream) else { continue };
        match standing.uid.as_deref() {
            Some(bound) if bound == uid => present.push(NodeRegistration {
                id: peer.node,
                name: peer.name.clone(),
                cluster_address: peer.cluster_address.clone(),
            }),
            Some(_) => {}
            None => invite(jetstream, peer.node, &peer.name, uid).await,
        }
    }
    for node in present {
        if !is_registered(jetstream, &node) && !register(jetstream, &node, refused).await {
            continue;
        }
        let status = group.status();
        if status.voters.contains(&node.id) {
            continue;
        }
        tracing::info!("server {} joins the JetStream meta group", node.name);
        let mut voters = status.voters.clone();
        voters.insert(node.id);
        // A node that dies on the way in is not waited for: others want in, and it can come again.
        match tokio::time::timeout(JOIN_PATIENCE, group.change_voters(voters)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!("server {} could not join the meta group yet: {error}", node.name);
            }
            Err(_) => tracing::warn!("server {} takes long to catch up with the meta group", node.name),
        }
    }
}

async fn invite(jetstream: &Arc<JetStream>, node: NodeId, name: &str, uid: &str) {
    match jetstream.peers().call(node, CALL_INVITE, Bytes::from(uid.to_owned()), INVITE_TIMEOUT).await {
        Ok(answer) if answer.as_ref() == b"yes" => tracing::info!("server {name} accepted our invitation"),
        Ok(_) => tracing::warn!(
            "server {name} belongs to another cluster; it must be started with an empty store_dir"
        ),
        Err(error) => tracing::debug!("server {name} did not answer our invitation: {error}"),
    }
}

fn is_registered(jetstream: &JetStream, node: &NodeRegistration) -> bool {
    jetstream.meta().read(|machine| machine.node(node.id).is_some_and(|known| known == node))
}

async fn register(jetstream: &JetStream, node: &NodeRegistration, refused: &mut BTreeSet<NodeId>) -> bool {
    let command = MetaCommand::RegisterNode { now: jetstream.clock().now(), node: node.clone() };
    match jetstream.meta().propose(&command).await {
        Ok(MetaReply::NameTaken { by }) => {
            if refused.insert(node.id) {
                tracing::error!(
                    "server {} ({}) can't join: the name belongs to node {by}; give it another server_name",
                    node.name,
                    node.id
                );
            }
            false
        }
        Ok(MetaReply::Registered) => true,
        Ok(_) => false,
        Err(_) => false,
    }
}
