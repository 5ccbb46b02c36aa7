//! Who keeps the consumers: resets them, and deletes them and makes them again under the same name.

use std::sync::Arc;
use std::time::Duration;

use levee_protocol::api::{ConsumerConfig, RetentionPolicy};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;

use crate::chance::Chance;
use crate::clients::{insist, propose};
use crate::consumers;
use crate::streams::Which;
use crate::world::World;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Has consumers begin again, one way or the other.
pub(crate) async fn keeper(world: Arc<World>) {
    let mut chance = Chance::new(world.seed, "keeper");
    let count = world.plan.consumers.len() as u64;
    while !world.is_closing() && count > 0 {
        tokio::time::sleep(chance.millis(100, 4000)).await;
        let at = usize::try_from(chance.below(count)).unwrap_or(0);
        let config = &world.plan.consumers[at];
        if chance.percent(60) {
            reset(&world, &mut chance, config).await;
        } else {
            replace(&world, &mut chance, config).await;
        }
    }
}

/// To some message of the stream, or back to the ack floor.
async fn reset(world: &World, chance: &mut Chance, config: &ConsumerConfig) {
    let Some((host, process)) = world.target(chance) else { return };
    let stream = process.stream(Which::Origin);
    let (first, last) = stream.replica.read(|machine, _| (machine.first_seq().0, machine.last_seq().0));
    // The model of interest knows no ack floors.
    let has_floor = world.plan.stream.retention != RetentionPolicy::Interest;
    let seq = if has_floor && chance.percent(30) {
        Seq::NONE
    } else {
        Seq(chance.between(first.clamp(1, last.max(1)), last + 1))
    };
    world.trace.note(format_args!("{} is to begin again at {seq}", config.name));
    let name = consumers::name(config);
    let command = |now| StreamCommand::ResetConsumer { now, name: name.clone(), seq };
    propose(world, &host, stream, command, PATIENCE).await;
}

/// Deletes it, and makes it again after a while.
async fn replace(world: &World, chance: &mut Chance, config: &ConsumerConfig) {
    let Some((host, process)) = world.target(chance) else { return };
    world.trace.note(format_args!("{} is to be another", config.name));
    let name = consumers::name(config);
    let command = |now| StreamCommand::DeleteConsumer { now, name: name.clone(), incarnation: None };
    propose(world, &host, process.stream(Which::Origin), command, PATIENCE).await;
    let gone_for = chance.pick(&[0, 0, 300, 2000]);
    tokio::time::sleep(chance.millis(0, gone_for)).await;
    insist(world, Which::Origin, |now| consumers::creation(config, now)).await;
}
