//! Time, for a stream: sleeps until the rules have something to do and proposes one `Tick`.

use std::sync::Arc;
use std::time::Duration;

use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::command::StreamCommand;
use levee_protocol::record::Block;
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

/// Proposes a `Tick` whenever one is due, and then what follows from the time that has passed: messages of schedules
/// and delete markers. Until dropped. `changed` says that the next one may be sooner now.
pub async fn run(replica: Arc<Replica>, router: Arc<Router>, clock: Clock, changed: Arc<Notify>) {
    let mut route = router.batch();
    let mut chance = Chance::new();
    loop {
        // Before the first sleep, too: the leader before may have left some. And publishes make messages expire, so
        // markers may be owed without a tick.
        for write in [due_schedules, owed_markers] {
            while let Some(block) = write(&replica, &clock)
                && propose(&replica, &block, &mut route, &mut chance).await
            {}
        }
        let (due, owes) = replica.read(|machine, _| (machine.next_tick(), machine.owes_markers()));
        let wait = match due {
            // What could not be proposed is tried again.
            _ if owes => TICK_SPACING,
            Some(due) => due.since(clock.now()).max(Nanos::ZERO).to_std().clamp(TICK_SPACING, TICK_IDLE_MAX),
            None => TICK_IDLE_MAX,
        };
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
    }
}

fn owed_markers(replica: &Replica, clock: &Clock) -> Option<Block> {
    let now = replica.now(clock);
    replica.read(|machine, _| machine.owed_markers(now))
}

fn due_schedules(replica: &Replica, clock: &Clock) -> Option<Block> {
    let now = replica.now(clock);
    replica.read(|machine, view| machine.due_schedules(now, view)).unwrap_or_else(|error| {
        let stream = &replica.assignment().config.name;
        tracing::error!("schedules of stream '{stream}' can't be read: {error}");
        None
    })
}

/// Proposes messages of the stream's own. Whether something came of it, so that there may be more.
async fn propose(replica: &Replica, block: &Block, route: &mut RouteBatch, chance: &mut Chance) -> bool {
    // A refusal means that leadership is going, or that the disk is full.
    let Ok((_, reply)) = replica.group().propose(BLOCK, block.as_bytes().clone()).await else { return false };
    let Ok(reply) = reply.downcast::<Reply>() else { return false };
    let Reply::Publish(replies) = *reply else { return false };
    if let Some(composition) = replica.read(|machine, _| machine.composition().cloned()) {
        republish(route, &replica.assignment().account, (&composition, block), &replies, chance, &mut |_| {});
        route.flush();
    }
    replies.iter().any(|reply| *reply != PublishReply::Outdated)
}
