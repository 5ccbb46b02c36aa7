//! What must hold between what was acknowledged and what is read back.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, ensure};

/// A message as a stream gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    /// Sequence.
    pub seq: u64,
    /// Subject. One publisher has one subject.
    pub subject: String,
    /// Message id.
    pub id: String,
    /// Payload. Publishers count in it.
    pub body: String,
}

/// Holds what one replica gives against what was acknowledged. Publishers send one message at a time, each until it
/// is acknowledged, so nothing may be lost, changed, stored twice, or out of order.
///
/// # Errors
/// When something does not hold.
pub fn check(acknowledged: &[Stored], read: &[Stored]) -> Result<()> {
    let mut ids = HashSet::new();
    let mut by_seq = BTreeMap::new();
    let mut last = 0;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for message in read {
        ensure!(message.seq > last, "sequence {} comes after {last}", message.seq);
        last = message.seq;
        ensure!(ids.insert(&message.id), "{message:?} is stored twice");
        by_seq.insert(message.seq, message);
        let count: u64 = message.body.parse().unwrap_or(0);
        let before = counts.insert(&message.subject, count).unwrap_or(0);
        ensure!(count > before, "{message:?} is stored after number {before} of the same publisher");
    }
    for message in acknowledged {
        let found = by_seq.get(&message.seq);
        ensure!(
            found.is_some_and(|found| *found == message),
            "{message:?} was acknowledged, and there is {found:?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(seq: u64, subject: &str, count: u64) -> Stored {
        Stored { seq, subject: subject.into(), id: format!("{subject}-{count}"), body: count.to_string() }
    }

    #[test]
    fn everything_once_and_in_order_passes() {
        let read = [stored(1, "a", 1), stored(2, "b", 1), stored(3, "a", 2)];

        let done = check(&read[..2], &read);

        assert!(done.is_ok(), "{done:?}");
    }

    #[test]
    fn a_lost_a_repeated_a_changed_and_a_swapped_message_are_found() {
        let one = stored(1, "a", 1);
        let two = stored(2, "a", 2);

        assert!(check(&[one.clone(), two.clone()], std::slice::from_ref(&one)).is_err());
        assert!(check(&[], &[one.clone(), Stored { seq: 2, ..one.clone() }]).is_err());
        assert!(check(std::slice::from_ref(&one), &[Stored { body: "9".into(), ..one.clone() }]).is_err());
        assert!(check(&[], &[Stored { seq: 1, ..two }, Stored { seq: 2, ..one }]).is_err());
    }
}
