//! Consumers that stand for a reader which is gone. A reader that is told to stop says so, unless nobody leads it or its
//! origin then: the origin's leader looks now and then whether those that it keeps messages for are still there.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use levee_broker_core::mirror::readers;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, GroupId, StreamName};
use levee_protocol::time::Nanos;

use crate::jetstream::JetStream;
use crate::stream::Replica;

/// How far two looks are apart. Who is missing in both is gone: this node's view of the cluster may lag, but not so long.
const INTERVAL: Duration = Duration::from_secs(30);

/// A stream that was restored may be restored before those that read it.
const RESTORED_PATIENCE: Nanos = Nanos::from_secs(60 * 60);

/// Looks for as long as the node runs.
pub async fn run(jetstream: Weak<JetStream>) {
    let mut missing = BTreeSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(jetstream) = jetstream.upgrade() else { return };
        let before = std::mem::take(&mut missing);
        for replica in jetstream.replicas() {
            if replica.leader().is_none() {
                continue;
            }
            for name in orphans(&jetstream, &replica) {
                let orphan: (GroupId, ConsumerName) = (replica.group_id(), name);
                if before.contains(&orphan) {
                    let (now, name) = (replica.now(jetstream.clock()), orphan.1.clone());
                    // A failure means that leadership is going: who leads next looks as well.
                    let _ = replica
                        .propose(&StreamCommand::DeleteConsumer { now, name, incarnation: None })
                        .await;
                }
                missing.insert(orphan);
            }
        }
    }
}

fn orphans(jetstream: &JetStream, replica: &Replica) -> Vec<ConsumerName> {
    let assignment = replica.assignment();
    let is_fresh = jetstream.clock().now().since(assignment.created) < RESTORED_PATIENCE;
    if is_fresh && replica.read(|machine, _| machine.restored_to() > 0) {
        return Vec::new();
    }
    // Not under the stream's lock: the meta machine has its own.
    let sourcing: Vec<_> = replica.read(|machine, _| {
        let sourcing = machine.consumers().filter(|(_, ledger)| ledger.config().sourcing);
        sourcing.map(|(name, ledger)| (name.clone(), ledger.config().clone())).collect()
    });
    if sourcing.is_empty() {
        return Vec::new();
    }
    jetstream.meta().read(|meta| {
        let find = |name: &str| {
            let name = StreamName::parse(name).ok()?;
            meta.stream(&assignment.account, &name).map(|stream| &stream.config)
        };
        let is_orphan =
            |(_, config): &(ConsumerName, _)| readers::is_orphan(config, &assignment.config.name, find);
        sourcing.iter().filter(|consumer| is_orphan(consumer)).map(|(name, _)| name.clone()).collect()
    })
}
