//! Ways in. Each turns connections into sessions, or answers by itself; none knows streams or Raft.

pub mod http;
pub mod nats;

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;

use crate::router::peers::Peers;
use crate::session::Sessions;

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
