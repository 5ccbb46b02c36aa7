//! When a node that was here before can serve its streams again.
//!
//! Clients that reconnect publish at once, some without asking for an answer, and pull at once. Whoever is let in
//! before the streams have leaders loses the first and gets no answer to the second.

use std::time::Duration;

use levee_protocol::ids::GroupId;
use tokio::time::Instant;

use crate::jetstream::JetStream;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Clients are let in although streams are missing when for this long none was added: a majority of their nodes may
/// be gone, and core NATS works without.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns when every stream that this node knows of has a leader, or when that does not go on.
pub(crate) async fn wait(jetstream: &JetStream) {
    let mut fewest = usize::MAX;
    let mut moved_at = Instant::now();
    loop {
        let missing = missing(jetstream);
        if missing == Some(0) {
            return;
        }
        // Before the meta group has a leader, nothing is known to be there.
        let missing = missing.unwrap_or(usize::MAX);
        if missing < fewest {
            fewest = missing;
            moved_at = Instant::now();
        } else if moved_at.elapsed() >= PATIENCE {
            match fewest {
                usize::MAX => tracing::warn!("JetStream is not available yet; clients are let in without it"),
                missing => tracing::warn!("{missing} streams have no leader yet; clients are let in"),
            }
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How many streams have no leader, as far as this node knows; `None` while nobody leads the meta group.
fn missing(jetstream: &JetStream) -> Option<usize> {
    let leads = {
        let leadership = jetstream.meta().group()?.leadership();
        let now = *leadership.borrow();
        now.leader.is_some_and(|leader| leader != jetstream.node() || now.leading)
    };
    let assigned: Vec<GroupId> = jetstream.meta().read(|meta| {
        let served = meta.all_streams().filter(|assignment| !assignment.restoring);
        served.map(|assignment| assignment.group).collect()
    });
    let directory = jetstream.directory();
    leads.then(|| {
        assigned
            .into_iter()
            .filter(|group| directory.is_gone(*group) || directory.leader(*group).is_none())
            .count()
    })
}
