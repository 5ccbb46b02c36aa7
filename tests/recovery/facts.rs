//! What must hold between what clients were told and what a stream has after the power came back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use levee_tests::checker::Stored;

use crate::load::{Known, body};

/// Why a message of a stream may be gone although it was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeps {
    /// So many of the newest, but for those that were removed.
    Newest(usize),
    /// The newest of each subject.
    NewestOfSubject,
    /// Whatever was not removed.
    All,
    /// Whatever no worker settled.
    Unsettled,
    /// What is not too old, which only the stream can tell.
    Young,
}

/// Holds what a replica gives against the story of its stream.
pub(crate) fn check(known: &Known, keeps: Keeps, read: &[Stored]) -> Result<()> {
    ensure!(known.given_again.is_empty(), "sequences {:?}", known.given_again);
    let mut ids = BTreeSet::new();
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for stored in read {
        let sent = known.sent.get(&stored.id);
        ensure!(
            sent.is_some_and(
                |sent| sent.subject == stored.subject && body(&stored.id, sent.bytes) == stored.body
            ),
            "message {} is not what was sent as {}",
            stored.seq,
            stored.id
        );
        ensure!(ids.insert(&stored.id), "{} is stored twice, here as {}", stored.id, stored.seq);
        let owner = known.given.get(&stored.seq);
        ensure!(
            owner.is_none_or(|owner| *owner == stored.id),
            "sequence {} was given to {owner:?} and is now {}",
            stored.seq,
            stored.id
        );
        let is_settled = matches!(keeps, Keeps::Unsettled) && known.settled.contains(&stored.seq);
        ensure!(
            !is_settled && !known.confirmed.has(stored.seq),
            "message {} was removed and is back",
            stored.seq
        );
        newest.insert(&stored.subject, stored.seq);
    }
    let seqs: BTreeSet<u64> = read.iter().map(|stored| stored.seq).collect();
    let is_full = |count: usize| read.len() == count;
    for (seq, id) in &known.given {
        let may_be_gone = match keeps {
            Keeps::All => false,
            Keeps::Unsettled => known.delivered.contains(seq),
            Keeps::Young => true,
            Keeps::Newest(count) => is_full(count) && seqs.first().is_some_and(|first| seq < first),
            Keeps::NewestOfSubject => {
                let subject = known.sent.get(id).map_or("", |sent| sent.subject.as_str());
                newest.get(subject).is_some_and(|newest| newest > seq)
            }
        };
        ensure!(
            seqs.contains(seq) || may_be_gone || known.asked.has(*seq),
            "{id} was acknowledged as {seq} and is gone; {} of {} messages of this stream are there, the last is {:?}",
            read.len(),
            known.given.len(),
            seqs.last()
        );
    }
    match keeps {
        Keeps::Newest(count) => ensure!(read.len() <= count, "{} messages where {count} may be", read.len()),
        Keeps::NewestOfSubject => {
            ensure!(newest.len() == read.len(), "a subject has more than one message");
        }
        Keeps::All | Keeps::Unsettled | Keeps::Young => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::load::{Acknowledged, Sent};

    fn known(count: u64) -> Known {
        let mut known = Known::default();
        for seq in 1..=count {
            let id = format!("a-{seq}");
            let acknowledged = Some(Acknowledged { seq, at: Instant::now() });
            known
                .sent
                .insert(id.clone(), Sent { subject: format!("a.{}", seq % 2), bytes: 40, acknowledged });
            known.given.insert(seq, id);
        }
        known
    }

    fn stored(seq: u64) -> Stored {
        let id = format!("a-{seq}");
        Stored { seq, subject: format!("a.{}", seq % 2), body: body(&id, 40), id }
    }

    fn all(count: u64) -> Vec<Stored> {
        (1..=count).map(stored).collect()
    }

    #[test]
    fn everything_that_was_acknowledged_and_is_there_passes() {
        assert!(check(&known(4), Keeps::All, &all(4)).is_ok());
        assert!(check(&known(4), Keeps::Newest(3), &all(4)[1..]).is_ok());
        assert!(check(&known(4), Keeps::NewestOfSubject, &all(4)[2..]).is_ok());
    }

    #[test]
    fn a_lost_a_changed_a_repeated_and_an_unknown_message_are_found() {
        let changed = Stored { body: body("a-2", 39), ..stored(2) };
        let repeated = Stored { seq: 3, ..stored(2) };
        let unknown = Stored { id: "b-3".into(), ..stored(3) };

        assert!(check(&known(4), Keeps::All, &all(3)).is_err());
        assert!(check(&known(4), Keeps::Newest(9), &all(4)[1..]).is_err());
        assert!(check(&known(4), Keeps::NewestOfSubject, &all(4)[3..]).is_err());
        assert!(check(&known(2), Keeps::All, &[stored(1), changed]).is_err());
        assert!(check(&known(2), Keeps::All, &[stored(1), stored(2), repeated]).is_err());
        assert!(check(&known(2), Keeps::All, &[stored(1), stored(2), unknown]).is_err());
    }

    #[test]
    fn a_sequence_that_is_given_again_and_a_removed_message_that_is_back_are_found() {
        let mut again = known(2);
        again.sent.insert("a-3".into(), Sent { acknowledged: None, ..again.sent["a-1"].clone() });
        let other = Stored { seq: 1, ..stored(3) };
        let mut removed = known(2);
        removed.asked.before = 2;
        removed.confirmed.before = 2;
        let mut settled = known(2);
        settled.delivered.insert(1);
        settled.settled.insert(1);

        assert!(check(&again, Keeps::All, &[other, stored(2)]).is_err());
        assert!(check(&removed, Keeps::All, &all(2)[1..]).is_ok());
        assert!(check(&removed, Keeps::All, &all(2)).is_err());
        assert!(check(&settled, Keeps::Unsettled, &all(2)[1..]).is_ok());
        assert!(check(&settled, Keeps::Unsettled, &all(2)).is_err());
    }
}
