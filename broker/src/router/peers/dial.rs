//! Opening links. One task per address dials for as long as the node runs: addresses of the configuration for ever,
//! addresses heard of until they have been of no use for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use levee_protocol::ids::NodeId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::router::peers::link::{Link, Outgoing};
use crate::router::peers::proto::peer_client::PeerClient;
use crate::router::peers::{FRAME_BYTES_MAX, PeerEvent, Peers, frames};
use crate::runtime::chance::Chance;
use crate::runtime::clock;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    Configured,
    Learned,
}

enum Ended {
    /// It was a link, and it broke.
    Broke,
    /// There is a link to that node, opened from another address.
    Linked(NodeId),
    /// We dialed ourselves.
    Ourselves,
    Refused(String),
    Failed(String),
}

/// Keeps a link to whoever is at `address`.
pub(super) async fn dial(peers: Arc<Peers>, address: String, origin: Origin) {
    let mut chance = Chance::new();
    let mut backoff = BACKOFF_MIN;
    let mut useless_since: Option<Instant> = None;
    let mut told: Option<String> = None;
    loop {
        match connect(&peers, &address).await {
            Ended::Broke => {
                (backoff, useless_since, told) = (BACKOFF_MIN, None, None);
            }
            Ended::Linked(node) => {
                useless_since.get_or_insert_with(clock::monotonic);
                while peers.link(node).is_some_and(|link| link.is_connected()) {
                    if given_up(origin, useless_since) {
                        forget(&peers, &address);
                        return;
                    }
                    tokio::time::sleep(BACKOFF_MAX).await;
                }
                backoff = BACKOFF_MIN;
            }
            // Stays on the list of dialed addresses, so that nobody tries again.
            Ended::Ourselves => return,
            Ended::Refused(reason) => {
                useless_since.get_or_insert_with(clock::monotonic);
                if told.as_ref() != Some(&reason) {
                    tracing::error!("cluster route {address}: {reason}");
                    let _ = peers
                        .events
                        .send(PeerEvent::Refused { address: address.clone(), reason: reason.clone() });
                    told = Some(reason);
                }
                backoff = BACKOFF_MAX;
            }
            Ended::Failed(reason) => {
                useless_since.get_or_insert_with(clock::monotonic);
                if told.is_none() {
                    tracing::info!("cluster route {address} can't be dialed yet: {reason}");
                    told = Some(reason);
                }
            }
        }
        if given_up(origin, useless_since) {
            forget(&peers, &address);
            return;
        }
        // Nodes that started together should not keep dialing together.
        let jitter = backoff.mul_f64(chance.below(1000) as f64 / 2000.0);
        tokio::time::sleep(backoff + jitter).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn given_up(origin: Origin, useless_since: Option<Instant>) -> bool {
    origin == Origin::Learned && useless_since.is_some_and(|since| since.elapsed() > USELESS_MAX)
}

fn forget(peers: &Peers, address: &str) {
    peers.state.lock().dialed.remove(address);
}

async fn connect(peers: &Arc<Peers>, address: &str) -> Ended {
    let failed = |error: &dyn std::error::Error| {
        // tonic says "transport error"; what happened is at the bottom.
        let mut root = error;
        while let Some(source) = root.source() {
            root = source;
        }
        Ended::Failed(root.to_string())
    };
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true),
        Err(error) => return Ended::Refused(format!("not an address to dial: {error}")),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => return failed(&error),
    };
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let connection = peers.next_connection.fetch_add(1, Ordering::Relaxed);
    let (admit, admitted) = oneshot::channel();
    let outgoing = Outgoing::new(peers.identity(), admitted, connection);
    let welcome = async {
        let mut incoming = client.link(Request::new(outgoing)).await?.into_inner();
        let welcome = incoming.message().await?;
        Ok::<_, tonic::Status>((welcome, incoming))
    };
    let (welcome, incoming) = match tokio::time::timeout(CONNECT_TIMEOUT, welcome).await {
        Ok(Ok((Some(welcome), incoming))) => (welcome, incoming),
        Ok(Ok((None, _))) => return Ended::Failed("the server hung up".into()),
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            return Ended::Refused("a gRPC server, but not one of a cluster like ours".into());
        }
        Ok(Err(status)) => return failed(&status),
        Err(_) => return Ended::Failed("no welcome in time".into()),
    };
    let Some(identity) = welcome.identity else { return Ended::Failed("a welcome without a name".into()) };
    let node = match peers.vet(&identity) {
        Ok(None) => return Ended::Ourselves,
        Ok(Some(node)) => node,
        Err(reason) => return Ended::Refused(reason),
    };
    if !welcome.refusal.is_empty() {
        return Ended::Refused(welcome.refusal);
    }
    let known: Vec<_> =
        identity.known.iter().map(|known| (NodeId(known.node), known.cluster_address.clone())).collect();
    let link = peers.meet(identity, dialed_address(address));
    if link.is_connected() {
        return Ended::Linked(node);
    }
    peers.router.book().attach(&link, connection);
    // If the stream is gone already, `hold` finds out at once.
    let _ = admit.send(Arc::clone(&link));
    peers.router.link_moved();
    peers.look(node);
    peers.learn(known);

    hold(&link, incoming).await;

    if link.disconnect(connection) {
        peers.router.book().detach(&link);
    }
    peers.router.link_moved();
    peers.look(node);
    Ended::Broke
}

/// Waits until the other side ends the stream or is lost, with a sign of life now and then.
async fn hold(link: &Link, mut incoming: tonic::Streaming<crate::router::peers::proto::Welcome>) {
    let mut beat = tokio::time::interval(BEAT);
    while link.is_connected() {
        // Cancel safe: both only wait.
        tokio::select! {
            next = incoming.next() => match next {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            _ = beat.tick() => {
                let _ = link.push(frames::PING, &[]);
            }
        }
    }
}

/// The socket address of a route that is one; a name is not looked up for it.
fn dialed_address(address: &str) -> Option<std::net::SocketAddr> {
    address.parse().ok()
}

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const USELESS_MAX: Duration = Duration::from_secs(120);
const BEAT: Duration = Duration::from_secs(1);
/// How soon a peer that vanished without a word is noticed, together with the timeout of the same length.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const WINDOW_BYTES: u32 = 8 << 20;
