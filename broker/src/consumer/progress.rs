//! What consumers of a stream did, on its way to the log.
//!
//! A confirmed ack (the client asked for an answer) is answered after its entry is applied, and does not wait for
//! company.

use std::sync::Arc;

use bytes::Bytes;
use levee_broker_core::stream::Reply as Decided;
use levee_protocol::command::StreamCommand;
use levee_protocol::command::progress::{ConsumerProgress, Progress};
use levee_protocol::ids::AccountName;
use levee_raft::{Outbox, Reply};

use crate::router::{MessageRef, Router};
use crate::runtime::clock::Clock;
use crate::stream::Replica;

/// Marks of consumers that the log has not got yet, and the reply subjects of acks to confirm with them.
pub type Collector = Outbox<ConsumerProgress, Bytes>;

/// Proposes and confirms until dropped, or until an entry is in doubt: then the drivers, which believe it is in the
/// log, have to be built again. What is then not confirmed the client acks again, to whoever leads.
pub async fn run(
    collector: Arc<Collector>,
    raft_term: u64,
    replica: Arc<Replica>,
    router: Arc<Router>,
    clock: Clock,
) {
    let account = replica.assignment().account.clone();
    let encode = |consumers| {
        let progress = Progress { now: replica.now(&clock), consumers };
        StreamCommand::Progress(progress).encode().into_bytes()
    };
    let confirm = |confirmations: Vec<Bytes>, reply| {
        if is_there(reply) {
            confirm(&router, &account, &confirmations);
        }
    };
    collector.run(replica.group(), raft_term, encode, confirm).await;
}

/// Whether the stream was there when an entry was applied. If not, there is nothing to confirm.
fn is_there(reply: Reply) -> bool {
    matches!(reply.downcast::<Decided>(), Ok(reply) if !matches!(*reply, Decided::Rejected(_)))
}

fn confirm(router: &Arc<Router>, account: &AccountName, confirmations: &[Bytes]) {
    let mut route = router.batch();
    for to in confirmations {
        route.send(account, to, MessageRef { subject: to, reply: &[], header: &[], payload: &[] });
    }
}
