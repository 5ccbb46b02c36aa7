//! Links that other nodes open to us.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::Stream;
use levee_protocol::ids::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::router::peers::proto::{Frame, Welcome, frame, peer_server};
use crate::router::peers::{Peers, receive};

/// The server side of links.
pub struct PeerService {
    peers: Arc<Peers>,
}

impl PeerService {
    pub(super) fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Welcome, Status>> + Send>>;

    async fn link(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::LinkStream>, Status> {
        let peers = Arc::clone(&self.peers);
        let remote = request.remote_addr();
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let Some(Frame { body: Some(frame::Body::Hello(hello)) }) = first else {
            tracing::warn!("cluster port: a link from {remote:?} did not begin with a hello");
            return Err(Status::invalid_argument("a link begins with a hello"));
        };
        let (say, says) = mpsc::channel(1);
        let answer = |refusal: String| Ok(Welcome { identity: Some(peers.identity()), refusal });
        let node = match peers.vet(&hello) {
            Ok(Some(node)) => node,
            Ok(None) => {
                // Ourselves: our own dialer finds that out from the identity.
                let _ = say.try_send(answer(String::new()));
                return Ok(Response::new(Box::pin(ReceiverStream::new(says))));
            }
            Err(reason) => {
                if peers.refusals.is_news(&reason) {
                    let at =
                        remote.map_or_else(|| "an unknown address".to_owned(), |remote| remote.to_string());
                    tracing::error!("cluster port: refused a server at {at}: {reason}");
                }
                let _ = say.try_send(answer(reason));
                return Ok(Response::new(Box::pin(ReceiverStream::new(says))));
            }
        };
        let connection = peers.next_connection.fetch_add(1, Ordering::Relaxed);
        let mut known: Vec<_> =
            hello.known.iter().map(|known| (NodeId(known.node), known.cluster_address.clone())).collect();
        let link = peers.meet(hello, remote);
        {
            let mut state = peers.state.lock();
            if let Some(peer) = state.peers.get_mut(&node) {
                // A newer stream replaces an older one, whose end may not have been noticed yet.
                peer.incoming = connection;
                known.push((node, peer.address.clone()));
            }
        }
        let _ = say.try_send(answer(String::new()));
        peers.look(node);
        peers.learn(known);
        let stop = peers.stop.clone();
        // Holding `say` keeps the answering half open: the other side sees the link end when this task does.
        crate::runtime::tasks::spawn("peer records", async move {
            tokio::select! {
                () = receive::receive(&peers, node, &link, connection, frames) => {}
                () = stop.stopped() => {}
                () = say.closed() => {}
            }
            receive::ended(&peers, node, connection);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(says))))
    }
}

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
