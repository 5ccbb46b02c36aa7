//! `$JS.API.STREAM.INFO.*`, and the stream infos that other answers contain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use levee_protocol::api::envelope::{self, Strictness};
use levee_protocol::api::response::{SUBJECTS_PAGE, StreamDescribed};
use levee_protocol::api::{
    ApiError, ClusterInfo, DesiredCluster, DesiredOrigin, DesiredPeer, PeerInfo, StreamAlternate, StreamInfo,
    StreamInfoRequest,
};
use levee_protocol::command::meta::{Move, StreamAssignment};
use levee_protocol::ids::{GroupId, NodeId, StreamName};
use levee_protocol::subject::Filter;
use levee_raft::Group;
use serde::{Deserialize, Serialize};

use crate::api::context::{Answer, Context};
use crate::jetstream::JetStream;
use crate::stream::Replica;

/// Peer call: infos of streams that the peer leads, once they have adopted what meta decided.
pub const CALL_SETTLED: u8 = 4;
/// How long a create or update waits for the stream's leader. Clients wait five seconds.
pub const SETTLE_PATIENCE: Duration = Duration::from_millis(4500);
/// How long a list waits for all leaders before it names the rest as missing.
pub const LIST_PATIENCE: Duration = Duration::from_secs(2);

/// Peer call: answers when the peer can bring publishes to a stream, or has none of it any more.
pub const CALL_REACHABLE: u8 = 5;
/// In place of a revision: the stream is deleted.
const DELETED: u64 = u64::MAX;
/// How long a create or update waits for nodes that do not know of it yet.
const REACHABLE_PATIENCE: Duration = Duration::from_secs(1);

/// Removed sequences that are listed at most; nats-server lists all. Their number is told in any case.
const DELETED_DETAILS_MAX: usize = 100_000;

const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const REACHABLE_LOOK_INTERVAL: Duration = Duration::from_millis(2);

pub(super) async fn handle(cx: &Context<'_>) -> Answer {
    let request: StreamInfoRequest = envelope::parse_request(cx.body, Strictness::Strict)?;
    let led = cx.led()?;
    let mut info = of(cx.jetstream, &led.replica);
    info.cluster.get_or_insert_with(|| this_node_leads(cx.jetstream));
    info.alternates = alternates(cx);
    info.config = info.config.shown();

    if request.deleted_details {
        info.state.deleted = led.replica.read(|machine, _| {
            let deleted = machine.deleted().flat_map(|(first, last)| first.0..=last.0);
            deleted.take(DELETED_DETAILS_MAX).collect()
        });
    }
    let (mut total, mut limit, mut offset) = (0, 0, 0);
    // A filter that no subject can match finds none, as if there was no filter.
    if let Ok(filter) = Filter::parse(&request.subjects_filter) {
        let mut subjects: Vec<(String, u64)> = led.replica.read(|machine, _| {
            machine
                .subjects(&filter)
                .map(|(subject, count)| (String::from_utf8_lossy(subject).into_owned(), count))
                .collect()
        });
        subjects.sort_unstable();
        total = subjects.len();
        if total > 0 {
            limit = SUBJECTS_PAGE;
            offset = usize::try_from(request.offset).unwrap_or(0);
        }
        info.state.subjects = subjects.into_iter().skip(offset).take(SUBJECTS_PAGE).collect();
    }
    Ok(cx.request.endpoint.success(&StreamDescribed { total, offset, limit, info }))
}

/// The stream and its mirrors, if it has any: a client may read the nearest. Only answers of a cluster tell of them.
fn alternates(cx: &Context<'_>) -> Vec<StreamAlternate> {
    if !cx.jetstream.identity().has_cluster_name() {
        return Vec::new();
    }
    let Ok(origin) = StreamName::parse(cx.request.stream) else { return Vec::new() };
    let mut names = vec![cx.request.stream.to_owned()];
    cx.jetstream.meta().read(|machine| {
        names.extend(machine.mirrors_of(cx.account, &origin).map(|mirror| mirror.config.name.clone()));
    });
    if names.len() == 1 {
        return Vec::new();
    }
    let (domain, cluster) = (cx.jetstream.domain(), &cx.jetstream.identity().cluster);
    let alternate = |name| StreamAlternate { name, domain: domain.to_owned(), cluster: cluster.clone() };
    names.into_iter().map(alternate).collect()
}

/// What is known of a stream on the node that leads it. Metadata is as stored.
#[must_use]
pub fn of(jetstream: &JetStream, replica: &Replica) -> StreamInfo {
    let assignment = replica.assignment();
    let (config, created, state) = replica.read(|machine, _| {
        let config = machine.config().unwrap_or(&assignment.config).clone();
        (config, assignment.created, machine.state())
    });
    let mut info = StreamInfo {
        config,
        created,
        state,
        domain: jetstream.domain().to_owned(),
        cluster: cluster_info(jetstream, replica),
        ts: jetstream.clock().now(),
        ..StreamInfo::default()
    };
    if let Some(leader) = replica.leader() {
        leader.receivers().describe(&mut info);
    }
    info
}

/// Who leads and follows; on a node without a cluster's name, who leads.
#[must_use]
pub fn cluster_or_leader(jetstream: &JetStream, replica: &Replica) -> ClusterInfo {
    cluster_info(jetstream, replica).unwrap_or_else(|| this_node_leads(jetstream))
}

fn this_node_leads(jetstream: &JetStream) -> ClusterInfo {
    ClusterInfo { leader: jetstream.identity().name.clone(), ..ClusterInfo::default() }
}

/// Who leads and follows. `None` on a node that runs alone.
#[must_use]
pub fn cluster_info(jetstream: &JetStream, replica: &Replica) -> Option<ClusterInfo> {
    let name = &jetstream.identity().cluster;
    if !jetstream.identity().has_cluster_name() {
        return None;
    }
    let mut cluster = ClusterInfo {
        name: name.clone(),
        leader: jetstream.identity().name.clone(),
        ..ClusterInfo::default()
    };
    let assignment = replica.assignment();
    cluster.desired = assignment.moving.as_ref().map(|moving| desired(jetstream, &assignment, moving));
    let status = replica.group().status();
    if status.voters.len() > 1 || cluster.desired.is_some() {
        cluster.raft_group = format!("S-R{}-{}", status.voters.len(), replica.group_id());
        cluster.leader_since = replica.leader().map(|leader| leader.since());
        // Where nats-server's nodes exchange log entries; clients expect to be told.
        cluster.system_account = true;
        jetstream.accounts().system().as_str().clone_into(&mut cluster.traffic_account);
        cluster.replicas = followers(jetstream, replica.group());
    }
    Some(cluster)
}

/// Where the stream is on its way to, and from.
fn desired(jetstream: &JetStream, assignment: &StreamAssignment, moving: &Move) -> DesiredCluster {
    let peer = |node: &NodeId| DesiredPeer { name: jetstream.node_name(*node), peer: peer_id(*node) };
    DesiredCluster {
        created: moving.since,
        name: jetstream.identity().cluster.clone(),
        replicas: assignment.replicas.iter().map(peer).collect(),
        origin: moving.origin.as_ref().map(|origin| DesiredOrigin {
            replicas: origin.num_replicas,
            placement: origin.placement.clone(),
            ..DesiredOrigin::default()
        }),
        ..DesiredCluster::default()
    }
}

/// The nodes of a group, without this one. Only its leader knows.
#[must_use]
pub fn followers(jetstream: &JetStream, group: &Group) -> Vec<PeerInfo> {
    let status = group.status();
    let mut followers: Vec<PeerInfo> = status
        .replicas
        .iter()
        .filter(|follower| follower.node != jetstream.node())
        .map(|follower| {
            let online = jetstream.peers().is_connected(follower.node);
            PeerInfo {
                name: jetstream.node_name(follower.node),
                current: online && follower.matched >= status.committed,
                offline: !online,
                active: follower
                    .silent_for
                    .map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
                lag: follower.lag,
                peer: peer_id(follower.node),
                pending: false,
            }
        })
        .collect();
    followers.sort_by(|a, b| a.name.cmp(&b.name));
    followers
}

/// The short id of a node that peer lists show.
#[must_use]
pub fn peer_id(node: NodeId) -> String {
    node.to_string()[..8].to_owned()
}

/// The stream as it is shown, once its leader and the other nodes know what meta decided.
pub async fn decided(
    jetstream: &Arc<JetStream>,
    assignment: &StreamAssignment,
) -> Result<StreamInfo, ApiError> {
    let StreamAssignment { group, revision, .. } = *assignment;
    let mut infos = settled(jetstream, BTreeMap::from([(group, revision)]), SETTLE_PATIENCE).await;
    let mut info = infos.remove(&group).ok_or_else(ApiError::not_available)?;
    reachable(jetstream, group, revision).await;
    info.config = info.config.shown();
    Ok(info)
}

#[derive(Serialize, Deserialize)]
struct SettledRequest {
    wanted: Vec<(GroupId, u64)>,
    patience_ms: u64,
}

/// Infos of streams, each from its leader, once it has adopted at least the given revision of its assignment.
/// Streams whose leader can't be reached in time are missing.
pub async fn settled(
    jetstream: &Arc<JetStream>,
    mut wanted: BTreeMap<GroupId, u64>,
    patience: Duration,
) -> BTreeMap<GroupId, StreamInfo> {
    let mut found = BTreeMap::new();
    let gather = async {
        loop {
            let mut by_node: BTreeMap<NodeId, Vec<(GroupId, u64)>> = BTreeMap::new();
            for (group, revision) in &wanted {
                if let Some(node) = jetstream.directory().leader(*group) {
                    by_node.entry(node).or_default().push((*group, *revision));
                }
            }
            let calls = by_node.into_iter().map(|(node, wanted)| ask(jetstream, node, wanted, patience));
            for infos in futures::future::join_all(calls).await {
                for (group, info) in infos {
                    wanted.remove(&group);
                    found.insert(group, info);
                }
            }
            if wanted.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    // What was found in time is in `found`, whether the rest came or not.
    let _ = tokio::time::timeout(patience, gather).await;
    found
}

async fn ask(
    jetstream: &Arc<JetStream>,
    node: NodeId,
    wanted: Vec<(GroupId, u64)>,
    patience: Duration,
) -> Vec<(GroupId, StreamInfo)> {
    if node == jetstream.node() {
        return led_here(jetstream, &wanted, patience).await;
    }
    let request = SettledRequest { wanted, patience_ms: patience.as_millis().try_into().unwrap_or(u64::MAX) };
    let frame = serde_json::to_vec(&request).expect("plain data encodes");
    match jetstream.peers().call(node, CALL_SETTLED, frame.into(), patience).await {
        Ok(answer) => serde_json::from_slice(&answer).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// Returns when no node that is there answers for a deleted stream any more. One that does not say so in time is not
/// waited for.
pub async fn gone(jetstream: &Arc<JetStream>, group: GroupId) {
    reachable(jetstream, group, DELETED).await;
}

/// Returns when every node that is there can bring publishes to a stream of that revision: a client that was told of
/// the stream may publish to it anywhere. A node that does not answer in time is not waited for.
pub async fn reachable(jetstream: &Arc<JetStream>, group: GroupId, revision: u64) {
    let mut frame = BytesMut::with_capacity(16);
    frame.put_u64_le(group.0);
    frame.put_u64_le(revision);
    let frame = frame.freeze();
    let peers = jetstream.peers().peers().into_iter().filter(|peer| peer.jetstream);
    let others = peers
        .map(|peer| jetstream.peers().call(peer.node, CALL_REACHABLE, frame.clone(), REACHABLE_PATIENCE));
    futures::join!(reachable_here(jetstream, group, revision), futures::future::join_all(others));
}

async fn reachable_here(jetstream: &JetStream, group: GroupId, revision: u64) {
    let mut waited = Duration::ZERO;
    let has_come = || match revision {
        DELETED => jetstream.directory().is_gone(group),
        revision => jetstream.directory().is_reachable(group, revision),
    };
    while !has_come() && waited < REACHABLE_PATIENCE {
        tokio::time::sleep(REACHABLE_LOOK_INTERVAL).await;
        waited += REACHABLE_LOOK_INTERVAL;
    }
}

/// Answers a peer's [`CALL_REACHABLE`].
pub async fn answer_reachable(jetstream: Arc<JetStream>, mut frame: Bytes) -> Bytes {
    if frame.len() == 16 {
        let (group, revision) = (GroupId(frame.get_u64_le()), frame.get_u64_le());
        reachable_here(&jetstream, group, revision).await;
    }
    Bytes::new()
}

/// Answers a peer's [`CALL_SETTLED`]. Empty when it does not decode.
pub async fn answer_settled(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    let Ok(request) = serde_json::from_slice::<SettledRequest>(&frame) else { return Bytes::new() };
    let patience = Duration::from_millis(request.patience_ms).min(SETTLE_PATIENCE);
    let infos = led_here(&jetstream, &request.wanted, patience).await;
    serde_json::to_vec(&infos).map(Bytes::from).unwrap_or_default()
}

async fn led_here(
    jetstream: &Arc<JetStream>,
    wanted: &[(GroupId, u64)],
    patience: Duration,
) -> Vec<(GroupId, StreamInfo)> {
    let mut waited = Duration::ZERO;
    loop {
        let found: Vec<(GroupId, StreamInfo)> = wanted
            .iter()
            .filter_map(|(group, revision)| {
                let replica = jetstream.replica(*group)?;
                replica.leader()?;
                let assignment = replica.assignment();
                let adopted = assignment.revision >= *revision
                    && replica.read(|machine, _| machine.config() == Some(&assignment.config));
                adopted.then(|| (*group, of(jetstream, &replica)))
            })
            .collect();
        // Adoption is milliseconds away at most; somebody else's leadership is not ours to wait for.
        if found.len() == wanted.len() || waited >= patience.min(Duration::from_millis(500)) {
            return found;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        waited += LOOK_INTERVAL;
    }
}
