//! Ways in. Each turns connections into sessions, or answers by itself; none knows streams or Raft.

pub mod http;
pub mod nats;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::NodeId;
use tokio::sync::broadcast::error::RecvError;

use crate::router::peers::{PeerEvent, Peers};
use crate::session::Sessions;
use crate::session::places::Connected;

/// Tells clients of the listeners of all nodes as nodes come and go, until dropped.
pub async fn gossip_connect_urls(peers: Arc<Peers>, sessions: Arc<Sessions>) {
    let mut events = peers.events();
    loop {
        if !sessions.is_lame_duck() {
            let (own, others) = peers.client_urls();
            sessions.set_connect_urls(own, others);
        }
        match events.recv().await {
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// [`Peers::forward`]: how many clients of accounts with a limit are connected to the sender.
pub const FORWARD_CONNECTED: u8 = 17;
/// How often it is looked whether that changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// It is told again after so many looks, in case it was lost on the way.
const REPEAT_AFTER: u32 = 20;

/// Tells other nodes how many clients are connected of accounts that may have only so many, and hears it of them, until
/// dropped.
pub async fn gossip_connected(peers: Arc<Peers>, sessions: Arc<Sessions>) {
    if sessions.places().is_unlimited() {
        return;
    }
    let heard = Arc::clone(&sessions);
    let hear = move |from: NodeId, frame: Bytes| match serde_json::from_slice(&frame) {
        Ok(connected) => heard.places().take_report(from, connected),
        Err(error) => tracing::error!("node {from} counts its clients in a way not known here: {error}"),
    };
    peers.on_forward(FORWARD_CONNECTED, Arc::new(hear));
    let mut events = peers.events();
    let mut told = Connected::new();
    for round in 0_u32.. {
        let mut is_told = round % REPEAT_AFTER != 0;
        // Cancel safe: an event that is not received stays.
        match tokio::time::timeout(LOOK_INTERVAL, events.recv()).await {
            Err(_) | Ok(Ok(PeerEvent::Changed(_) | PeerEvent::Refused { .. })) => {}
            Ok(Ok(PeerEvent::Down(node))) => sessions.places().forget(node),
            Ok(Ok(PeerEvent::Up(_)) | Err(RecvError::Lagged(_))) => is_told = false,
            Ok(Err(RecvError::Closed)) => return,
        }
        let connected = sessions.places().here();
        if !is_told || connected != told {
            let frame = Bytes::from(serde_json::to_vec(&connected).expect("names are strings"));
            for peer in peers.peers() {
                // Who is gone is told when it is back.
                let _ = peers.forward(peer.node, FORWARD_CONNECTED, frame.clone());
            }
            told = connected;
        }
    }
}
