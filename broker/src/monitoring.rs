//! The node's answers to monitoring: facts gathered from its parts when somebody asks.

use std::sync::Arc;

use levee_protocol::api::{StorageType, level};
use levee_protocol::time::{Nanos, Timestamp};
use serde_json::{Value, json};

use crate::api::context::Led;
use crate::api::{consumer_info, stream_info};
use crate::config::{Addresses, Config};
use crate::frontend::http::{
    ConnectionFacts, HealthProblem, HealthQuestion, JetStreamFacts, MetaFacts, MonitoringSource, RouteFacts,
    ServerFacts, StreamFacts, SubscriptionFacts, TrafficFacts,
};
use crate::jetstream::JetStream;
use crate::router::peers::Peers;
use crate::runtime::clock::Clock;
use crate::session::{ConnectionView, Sessions};
use crate::stream::Replica;

/// The parts that know something.
pub struct Monitor {
    /// The server's public nkey.
    pub id: String,
    /// The server's name.
    pub name: String,
    /// How it was configured.
    pub config: Arc<Config>,
    /// Where it listens.
    pub addresses: Addresses,
    /// When it started.
    pub started: Timestamp,
    /// Its clock.
    pub clock: Clock,
    /// Client connections.
    pub sessions: Arc<Sessions>,
    /// Other nodes.
    pub peers: Arc<Peers>,
    /// Streams, if it stores any.
    pub jetstream: Option<Arc<JetStream>>,
}

impl MonitoringSource for Monitor {
    fn server(&self) -> ServerFacts {
        ServerFacts {
            id: self.id.clone(),
            name: self.name.clone(),
            config: Arc::clone(&self.config),
            listen: self.addresses.client.clone(),
            http: self.addresses.http.clone(),
            cluster: self.addresses.cluster.clone(),
            connect_urls: self.peers.connect_urls(),
            start: self.started,
            now: self.clock.now(),
        }
    }

    fn traffic(&self) -> TrafficFacts {
        let totals = self.sessions.totals();
        let (mut received, mut sent) = (totals.received, totals.sent);
        for peer in self.peers.peers() {
            received += peer.received;
            sent += peer.sent;
        }
        TrafficFacts {
            total_connections: totals.total_connections,
            in_msgs: received.msgs,
            in_bytes: received.bytes,
            out_msgs: sent.msgs,
            out_bytes: sent.bytes,
            in_client_msgs: totals.received.msgs,
            in_client_bytes: totals.received.bytes,
            out_client_msgs: totals.sent.msgs,
            out_client_bytes: totals.sent.bytes,
            slow_consumers: totals.slow_consumers,
            stalled_clients: totals.stalls,
            stale_connections: totals.stale_connections,
        }
    }

    fn connections(&self) -> Vec<ConnectionFacts> {
        let now = self.clock.now();
        self.sessions.connections().into_iter().map(|view| connection_facts(view, now)).collect()
    }

    fn closed_connections(&self) -> Vec<ConnectionFacts> {
        self.sessions
            .closed_connections()
            .into_iter()
            .map(|view| {
                let stopped = view.stopped.unwrap_or(view.started);
                connection_facts(view, stopped)
            })
            .collect()
    }

    fn routes(&self) -> Vec<RouteFacts> {
        let now = self.clock.now();
        let peers = self.peers.peers().into_iter().enumerate();
        peers
            .map(|(at, peer)| {
                let (ip, port) =
                    peer.cluster_address.rsplit_once(':').unwrap_or((&peer.cluster_address, "0"));
                let connected_for = i64::try_from(peer.connected_for.as_nanos()).unwrap_or(0);
                RouteFacts {
                    rid: at as u64 + 1,
                    remote_id: peer.node.to_string(),
                    remote_name: peer.name.clone(),
                    // Each node dials each other node.
                    did_solicit: true,
                    is_configured: peer.is_configured,
                    ip: ip.to_owned(),
                    port: port.parse().unwrap_or(0),
                    start: now.plus(Nanos(-connected_for)),
                    last_activity: now,
                    pending_bytes: peer.pending_bytes as u64,
                    in_msgs: peer.received.msgs,
                    out_msgs: peer.sent.msgs,
                    in_bytes: peer.received.bytes,
                    out_bytes: peer.sent.bytes,
                    subscriptions: u32::try_from(peer.subscriptions).unwrap_or(u32::MAX),
                }
            })
            .collect()
    }

    fn subscriptions(&self) -> Vec<SubscriptionFacts> {
        let views = self.sessions.subscriptions(None).into_iter();
        views
            .map(|view| SubscriptionFacts {
                account: view.account.to_string(),
                subject: view.subject,
                queue: view.queue,
                sid: view.sid,
                msgs: view.msgs,
                max: view.max,
                cid: view.cid,
            })
            .collect()
    }

    fn jetstream(&self) -> Option<JetStreamFacts> {
        let jetstream = self.jetstream.as_ref()?;
        let limits = self.config.jetstream.as_ref()?;
        let calls = jetstream.api_counts(None);
        let mut facts = JetStreamFacts {
            max_memory: limits.max_memory_bytes(),
            max_storage: limits.max_storage_bytes(),
            api_total: calls.total,
            api_errors: calls.errors,
            api_level: level::API_LEVEL,
            meta: meta_facts(jetstream),
            ..JetStreamFacts::default()
        };
        for replica in jetstream.replicas() {
            let stream = stream_facts(jetstream, &replica);
            let assignment = replica.assignment();
            let reserved = u64::try_from(assignment.config.max_bytes).unwrap_or(0);
            match assignment.config.storage {
                StorageType::File => {
                    facts.storage += stream.bytes;
                    facts.reserved_storage += reserved;
                }
                StorageType::Memory => {
                    facts.memory += stream.bytes;
                    facts.reserved_memory += reserved;
                }
            }
            facts.ha_assets += usize::from(assignment.replicas.len() > 1);
            facts.streams.push(stream);
        }
        Some(facts)
    }

    fn health(&self, question: &HealthQuestion) -> Vec<HealthProblem> {
        let problem = |kind, stream: Option<String>, error: &str| HealthProblem {
            kind,
            account: None,
            stream,
            error: error.to_owned(),
        };
        let Some(jetstream) = &self.jetstream else {
            // Nobody asked for streams, so nothing is wrong without them.
            return Vec::new();
        };
        if let Some(reason) = jetstream.storage().failed() {
            return vec![problem("JETSTREAM", None, &reason)];
        }
        if question.only_enabled {
            return Vec::new();
        }
        let known =
            jetstream.meta().group().is_some_and(|group| group.leadership().borrow().leader.is_some());
        if !known {
            return vec![problem(
                "JETSTREAM",
                None,
                "JetStream has not established contact with a meta leader",
            )];
        }
        if question.only_server || question.only_meta {
            return Vec::new();
        }
        let assigned: Vec<_> = jetstream.meta().read(|machine| {
            machine
                .all_streams()
                .filter(|stream| stream.replicas.contains(&jetstream.node()))
                .map(|stream| (stream.group, stream.config.name.clone()))
                .collect()
        });
        let mut problems = Vec::new();
        for (group, name) in assigned {
            match jetstream.replica(group) {
                None => {
                    problems.push(problem("STREAM", Some(name), "the stream is not open on this server yet"))
                }
                Some(replica) => {
                    let status = replica.group().status();
                    if let Some(reason) = status.stopped {
                        problems.push(problem("STREAM", Some(name), &reason));
                    } else if status.leader.is_none() {
                        problems.push(problem("STREAM", Some(name), "the stream has no leader"));
                    }
                }
            }
        }
        problems
    }

    fn metrics(&self) -> String {
        crate::metrics::observe(&self.sessions.totals(), &self.peers.peers());
        crate::metrics::render()
    }
}

/// `until` is now, or when it ended.
fn connection_facts(view: ConnectionView, until: Timestamp) -> ConnectionFacts {
    ConnectionFacts {
        cid: view.cid,
        ip: view.remote.ip().to_canonical().to_string(),
        port: view.remote.port(),
        start: view.started,
        last_activity: until.plus(Nanos(-i64::try_from(view.idle.as_nanos()).unwrap_or(0))),
        stop: view.stopped.zip(view.reason),
        rtt: view.round_trip,
        pending_bytes: view.pending_bytes as u64,
        in_msgs: view.received.msgs,
        out_msgs: view.sent.msgs,
        in_bytes: view.received.bytes,
        out_bytes: view.sent.bytes,
        stalls: view.stalls,
        subscriptions: u32::try_from(view.subscriptions).unwrap_or(u32::MAX),
        name: view.client.name.clone(),
        lang: view.client.lang.clone(),
        version: view.client.version.clone(),
        user: view.client.user.clone(),
        account: view.client.account.to_string(),
    }
}

fn meta_facts(jetstream: &JetStream) -> Option<MetaFacts> {
    let cluster = jetstream.identity().cluster.clone();
    let group = jetstream.meta().group().filter(|_| !cluster.is_empty())?;
    let status = group.status();
    Some(MetaFacts {
        cluster,
        leader: status.leader.map(|leader| jetstream.node_name(leader)),
        replicas: status
            .replicas
            .iter()
            .map(|replica| {
                json!({
                    "name": jetstream.node_name(replica.node),
                    "current": replica.lag == 0,
                    "offline": !jetstream.peers().is_connected(replica.node),
                    "active": replica.silent_for.map_or(0, |age| age.as_nanos() as u64),
                    "lag": replica.lag,
                    "peer": stream_info::peer_id(replica.node),
                })
            })
            .collect(),
        size: status.voters.len(),
        pending: 0,
    })
}

fn stream_facts(jetstream: &Arc<JetStream>, replica: &Arc<Replica>) -> StreamFacts {
    let assignment = replica.assignment();
    let state = replica.read(|machine, _| machine.state());
    let leader = replica.leader();
    let consumers: Vec<Value> = match &leader {
        Some(leader) => {
            let led = Led { replica: Arc::clone(replica), leader: Arc::clone(leader) };
            let names: Vec<_> =
                replica.read(|machine, _| machine.consumers().map(|(name, _)| name.clone()).collect());
            names
                .iter()
                .filter_map(|name| consumer_info::of(jetstream, &led, name))
                .map(|info| json!(info))
                .collect()
        }
        None => Vec::new(),
    };
    StreamFacts {
        account: assignment.account.to_string(),
        name: assignment.config.name.clone(),
        messages: state.messages,
        bytes: state.bytes,
        leading: leader.is_some(),
        created: assignment.created.to_string(),
        config: json!(assignment.config),
        cluster: leader
            .as_ref()
            .map_or(Value::Null, |_| json!(stream_info::cluster_or_leader(jetstream, replica))),
        consumers_leading: consumers.len(),
        consumers,
        state: json!(state),
    }
}
