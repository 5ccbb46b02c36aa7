//! When messages leave because consumers are done with them: work-queue and interest retention.

use std::collections::BTreeMap;

use levee_protocol::api::RetentionPolicy;
use levee_protocol::ids::{ConsumerName, Seq};

use super::messages::{Messages, Removals};
use super::reads::Reads;
use super::view::ReadFailed;
use crate::consumer::{Ledger, Run};

/// Whether some consumer wants messages of this subject. Under interest retention nothing else is stored.
pub(crate) fn is_wanted(consumers: &BTreeMap<ConsumerName, Ledger>, subject: &[u8]) -> bool {
    consumers.values().any(|ledger| ledger.wants(subject))
}

/// One consumer settled these messages: those go that nobody needs any more.
pub(crate) fn settled(
    policy: RetentionPolicy,
    consumers: &BTreeMap<ConsumerName, Ledger>,
    by: &ConsumerName,
    runs: &[Run],
    (messages, reads, removals): (&mut Messages, &Reads<'_>, &mut Removals),
) -> Result<(), ReadFailed> {
    if policy == RetentionPolicy::Limits {
        return Ok(());
    }
    let Some(by) = consumers.get(by) else { return Ok(()) };
    let mut unwanted = |seq, subject: &[u8]| {
        by.wants(subject) && !consumers.values().any(|ledger| ledger.needs(Seq(seq), subject))
    };
    for run in runs {
        messages.remove_run((run.first.0, run.last.0), &mut unwanted, reads, removals)?;
    }
    Ok(())
}

/// A consumer is gone, or has other filters: what only it was holding goes. A work queue keeps its messages for the
/// next consumer.
pub(crate) fn released(
    policy: RetentionPolicy,
    consumers: &BTreeMap<ConsumerName, Ledger>,
    before: &Ledger,
    (messages, reads, removals): (&mut Messages, &Reads<'_>, &mut Removals),
) -> Result<(), ReadFailed> {
    if policy != RetentionPolicy::Interest {
        return Ok(());
    }
    let mut unwanted = |seq, subject: &[u8]| {
        before.needs(Seq(seq), subject) && !consumers.values().any(|ledger| ledger.needs(Seq(seq), subject))
    };
    // One that had nothing left to do costs nothing when it goes, however long the stream is.
    let first = before.first_needed().0.max(messages.first);
    messages.remove_run((first, messages.last), &mut unwanted, reads, removals)
}

/// The stream keeps messages by interest from now on: what nobody needs goes.
pub(crate) fn interest_begins(
    consumers: &BTreeMap<ConsumerName, Ledger>,
    (messages, reads, removals): (&mut Messages, &Reads<'_>, &mut Removals),
) -> Result<(), ReadFailed> {
    let mut unwanted =
        |seq, subject: &[u8]| !consumers.values().any(|ledger| ledger.needs(Seq(seq), subject));
    messages.remove_run((messages.first, messages.last), &mut unwanted, reads, removals)
}
