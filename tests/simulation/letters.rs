//! Dead letters on their way into their stream, as the broker brings them: to whoever leads it, and back comes whether it
//! is stored, or nothing.

use std::time::Duration;

use levee_broker_core::consumer::{DeadLetter, Posted};
use levee_broker_core::stream::{PublishReply, Reply};
use levee_protocol::command::StreamCommand;
use levee_protocol::record::BlockBuilder;

use crate::clients::{Told, propose};
use crate::plan::Breakage;
use crate::streams::Which;
use crate::world::World;

/// Where dead letters go.
pub(crate) const SUBJECT: &str = "dead.letters";
/// How long an outcome is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Publishes one.
pub(crate) async fn publish(world: &World, letter: &DeadLetter) -> Posted {
    if world.plan.breakage == Breakage::LettersAreLost {
        return Posted::Stored;
    }
    let Some(there) = world.post.fate() else {
        tokio::time::sleep(PATIENCE).await;
        return Posted::Failed;
    };
    tokio::time::sleep(there).await;
    let Some((host, process)) = world.leading(Which::Dead) else { return Posted::Failed };
    let command = |now| {
        let mut block = BlockBuilder::default();
        block.push(&letter.subject, &letter.header, &letter.payload);
        StreamCommand::Publish(block.finish(now))
    };
    let told = propose(world, &host, process.stream(Which::Dead), command, PATIENCE).await;
    // The answer may be lost although the letter is stored.
    let Some(back) = world.post.fate() else { return Posted::Failed };
    tokio::time::sleep(back).await;
    let Told::Answer(reply) = told else { return Posted::Failed };
    match *reply {
        Reply::Publish(replies) => match replies.as_slice() {
            [PublishReply::Stored { .. } | PublishReply::Duplicate { .. }] => Posted::Stored,
            _ => Posted::Failed,
        },
        _ => Posted::Failed,
    }
}
