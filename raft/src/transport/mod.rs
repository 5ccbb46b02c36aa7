//! How replicas reach each other: requests and answers of all groups, over whatever connects two nodes.
//!
//! A transport knows nodes, lanes and frames. It keeps the order of calls per peer and lane, answers every call
//! (with an error as soon as the connection is gone), and tells when a peer's process was seen to end. It knows
//! neither Raft nor what is in a frame.

use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};

pub(crate) mod batches;
mod grpc;
mod local;

pub use grpc::{AddressBook, GrpcTransport, RaftService};
pub use local::{LocalNetwork, LocalTransport};

/// Connections apart, so that bulk does not delay what elections depend on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Lane {
    /// Log, heartbeats and votes.
    Log,
    /// Snapshots.
    Bulk,
}

/// One request or one answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// The group it is for.
    pub group: GroupId,
    /// What `head` holds.
    pub kind: u8,
    /// The message in its compact form.
    pub head: Bytes,
    /// Payloads beside it, which are not copied together.
    pub payloads: Vec<Bytes>,
}

impl Frame {
    /// About how many bytes it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.head.len() + self.payloads.iter().map(Bytes::len).sum::<usize>() + 24 + 8 * self.payloads.len()
    }
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TransportError {
    /// There is no connection, or it broke before the answer came.
    #[error("not connected")]
    Disconnected,
    /// More is queued for the peer than it takes.
    #[error("the queue to the peer is full")]
    Full,
}

/// The answer to a call, when it comes.
pub type Answer = Pin<Box<dyn Future<Output = Result<Frame, TransportError>> + Send>>;

/// The answer to a received request, when it is ready.
pub type Answering = Pin<Box<dyn Future<Output = Frame> + Send>>;

/// What a transport notices about a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerSign {
    /// Connected.
    Up,
    /// A connection that stood broke, and the address refuses new ones: the process is gone.
    Died,
}

/// The side that requests come in on.
pub trait Receiver: Send + Sync + 'static {
    /// Takes a request. Calls for one peer and lane come in the order in which the peer made them, and what this
    /// does before it returns is done in that order; the answers may be ready in any order.
    fn receive(&self, from: NodeId, frame: Frame) -> Answering;

    /// Something was noticed about a peer.
    fn sign(&self, peer: NodeId, sign: PeerSign);
}

/// A way to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Where received requests go from now on.
    fn start(&self, receiver: Weak<dyn Receiver>);

    /// Sends a request. The order of calls per peer and lane is the order of delivery; it never blocks.
    fn call(&self, to: NodeId, lane: Lane, frame: Frame) -> Answer;

    /// Drops all connections. Calls fail from now on.
    fn stop(&self);
}
