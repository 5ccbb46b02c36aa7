//! Time, for a stream: sleeps until the rules have something to do and proposes one `Tick`.

use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::Reply;
use levee_protocol::command::StreamCommand;
use levee_protocol::time::Nanos;
use levee_storage::kind::BLOCK;
use tokio::sync::Notify;

use crate::router::{RouteBatch, Router};
use crate::runtime::chance::Chance;
use crate::runtime::clock::Clock;
use crate::stream::Replica;
use crate::stream::compose::republish;

/// Two ticks are at least this far apart: expiry works in batches.
const TICK_SPACING: Duration = Duration::from_millis(100);
/// Without anything due, the ticker still looks this often, in case the clock was set.
const TICK_IDLE_MAX: Duration = Duration::from_secs(60);

/// Proposes a `Tick` whenever one is due, and the delete markers that are owed then, until dropped. `changed` says that
/// the next one may be sooner now.
pub async fn run(replica: Arc<Replica>, router: Arc<Router>, clock: Clock, changed: Arc<Notify>) {
    let mut route = router.batch();
    let mut chance = Chance::new();
    loop {
        let due = replica.read(|machine, _| machine.next_tick());
        let wait = due.map_or(TICK_IDLE_MAX, |due| {
            due.since(clock.now()).max(Nanos::ZERO).to_std().clamp(TICK_SPACING, TICK_IDLE_MAX)
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed.notified() => {
                // A changed due time is looked at again, but not for every message.
                tokio::time::sleep(TICK_SPACING).await;
            }
        }
        let now = clock.now();
        if replica.read(|machine, _| machine.next_tick()).is_some_and(|due| due <= now) {
            // A refusal means that leadership is going; the next leader ticks.
            let _ = replica.propose(&StreamCommand::Tick { now: replica.now(&clock) }).await;
        }
        // Publishes make messages expire, too.
        while write_markers(&replica, &clock, &mut route, &mut chance).await {}
    }
}

/// Proposes delete markers that are owed. Whether there may be more of them.
async fn write_markers(
    replica: &Replica,
    clock: &Clock,
    route: &mut RouteBatch,
    chance: &mut Chance,
) -> bool {
    let now = replica.now(clock);
    let Some(block) = replica.read(|machine, _| machine.owed_markers(now)) else { return false };
    let Ok((_, reply)) = replica.group().propose(BLOCK, block.as_bytes().clone()).await else { return false };
    let composition = replica.read(|machine, _| machine.composition().cloned());
    if let (Some(composition), Ok(reply)) = (composition, reply.downcast::<Reply>())
        && let Reply::Publish(replies) = *reply
    {
        republish(route, &replica.assignment().account, (&composition, &block), &replies, chance);
        route.flush();
    }
    true
}
