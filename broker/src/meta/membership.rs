//! Taking nodes into the cluster, on the meta group's leader: invite the fresh, register the known, let them
//! vote. And seeing those off that were removed, once they hold nothing any more. Runs on every node and acts only where
//! the meta group is led.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::meta::{MetaMachine, MetaReply};
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
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Peer call to a node that was removed: its cluster, and whether it may go or is to go.
pub const CALL_LEAVE: u8 = 10;
const MAY_GO: u8 = 1;
const GO: u8 = 2;

/// Looks after the membership for as long as the node runs.
pub async fn run(jetstream: Arc<JetStream>, uid: String) {
    let mut refused = BTreeSet::new();
    let mut filled = (Vec::new(), 0);
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
            see_off(&jetstream, group, &uid).await;
            fill_up(&jetstream, &mut filled).await;
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
                    let is_missing = |machine: &MetaMachine| {
                        machine.node(peer.node).is_none() && !machine.was_removed(peer.node)
                    };
                    bound && jetstream.meta().read(is_missing)
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
    present.retain(|node| !was_removed(jetstream, node.id));
    for peer in jetstream.peers().peers() {
        let Some(standing) = Standing::decode(&peer.meta).filter(|_| peer.jetstream) else { continue };
        match standing.uid.as_deref() {
            Some(bound) if bound == uid && was_removed(jetstream, peer.node) => {}
            Some(bound) if bound == uid => present.push(NodeRegistration {
                id: peer.node,
                name: peer.name.clone(),
                cluster_address: peer.cluster_address.clone(),
                tags: standing.tags,
                unique_tag: standing.unique_tag,
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

/// Nodes that were removed vote in the meta group as long as they have something to hand over, because the meta state tells
/// them whom to. Then they are told to go. Who is not there just loses its vote.
async fn see_off(jetstream: &Arc<JetStream>, group: &Group, uid: &str) {
    let voters = group.status().voters;
    let bound =
        |meta: &[u8]| Standing::decode(meta).is_some_and(|standing| standing.uid.as_deref() == Some(uid));
    let present = jetstream.peers().peers().into_iter().filter(|peer| peer.jetstream && bound(&peer.meta));
    let mut removed: BTreeSet<NodeId> = present.map(|peer| peer.node).chain(voters.iter().copied()).collect();
    removed.retain(|node| was_removed(jetstream, *node));
    for node in removed {
        if node == jetstream.node() {
            let is_other =
                |other: &&NodeId| !was_removed(jetstream, **other) && jetstream.peers().is_connected(**other);
            if let Some(to) = voters.iter().find(is_other)
                && let Err(error) = group.transfer(*to).await
            {
                tracing::warn!("this server was removed and can't hand the meta group over yet: {error}");
            }
            return;
        }
        let is_here = jetstream.peers().is_connected(node);
        let has_something =
            is_here && (holds_streams(jetstream, node) || !may_go(jetstream, node, uid).await);
        let votes = voters.contains(&node);
        if votes == has_something {
            if is_here && !votes {
                tell(jetstream, node, GO, uid).await;
            }
            continue;
        }
        let mut wanted = voters.clone();
        if votes {
            wanted.remove(&node);
        } else {
            wanted.insert(node);
        }
        match tokio::time::timeout(JOIN_PATIENCE, group.change_voters(wanted)).await {
            Ok(Ok(())) if votes => tracing::info!("node {node} was removed and has left the meta group"),
            Ok(Ok(())) => tracing::info!("node {node} was removed and hands over what it still holds"),
            Ok(Err(error)) => {
                tracing::warn!("node {node} was removed; the meta group can't change yet: {error}")
            }
            Err(_) => tracing::warn!("node {node} was removed; the meta group takes long to change"),
        }
        // Who votes is another set now.
        return;
    }
}

/// Streams that lack a replica because a node was removed get one where a node has come. With the same nodes and streams as
/// in `last` there is nothing new to do.
async fn fill_up(jetstream: &JetStream, last: &mut (Vec<NodeId>, u64)) {
    let now = (jetstream.reachable_nodes(), *jetstream.meta().changes().borrow());
    if *last == now {
        return;
    }
    let alive = now.0.clone();
    if !jetstream.meta().read(|machine| machine.can_fill_up(&alive)) {
        *last = now;
        return;
    }
    let command = MetaCommand::FillUp { now: jetstream.clock().now(), alive };
    if let Err(error) = jetstream.meta().propose(&command).await {
        tracing::debug!("streams that lack replicas get none yet: {error}");
    }
}

fn was_removed(jetstream: &JetStream, node: NodeId) -> bool {
    jetstream.meta().read(|machine| machine.was_removed(node))
}

fn holds_streams(jetstream: &JetStream, node: NodeId) -> bool {
    jetstream.meta().read(|machine| machine.all_streams().any(|stream| stream.replicas.contains(&node)))
}

async fn may_go(jetstream: &JetStream, node: NodeId, uid: &str) -> bool {
    tell(jetstream, node, MAY_GO, uid).await.is_some_and(|answer| answer.as_ref() == b"yes")
}

async fn tell(jetstream: &JetStream, node: NodeId, what: u8, uid: &str) -> Option<Bytes> {
    let frame = [&[what], uid.as_bytes()].concat().into();
    jetstream.peers().call(node, CALL_LEAVE, frame, LEAVE_TIMEOUT).await.ok()
}

/// What this node does when it is told that it was removed.
#[derive(Debug, Default)]
pub struct Leaving {
    goes: AtomicBool,
}

impl Leaving {
    /// Answers the meta leader: whether everything is handed over, or that this node goes. True the first time that it has
    /// to go.
    pub fn answer(&self, jetstream: &JetStream, frame: &[u8]) -> (&'static [u8], bool) {
        let Some((what, uid)) = frame.split_first() else { return (b"no", false) };
        if jetstream.cluster_uid().is_none_or(|own| own.as_bytes() != uid) || !jetstream.holds_nothing() {
            return (b"no", false);
        }
        let goes = *what == GO && !self.goes.swap(true, Ordering::AcqRel);
        (b"yes", goes)
    }

    /// Whether it was told to go.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.goes.load(Ordering::Acquire)
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
