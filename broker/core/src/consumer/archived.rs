//! The marks of a consumer in an archive, and back.

use std::collections::BTreeMap;

use levee_protocol::api::ConsumerConfig;
use levee_protocol::archive::consumer::{self, ConsumerState, Pending, SequencePair};
use levee_protocol::ids::Seq;
use levee_protocol::time::Timestamp;

use crate::consumer::ledger::Ledger;
use crate::consumer::settle::{Chosen, Marks, Position, Unacked};
use crate::stream::SEQ_MAX;

impl Ledger {
    /// Its marks as an archive keeps them that ends with the message `last`.
    #[must_use]
    pub fn archived(&self, last: Seq) -> ConsumerState {
        let marks = &self.marks;
        // These may be behind the last message: where a consumer begins that was made to begin later.
        let pair = |position: Position| SequencePair {
            consumer_seq: position.consumer,
            stream_seq: position.stream,
        };
        let unacked = || marks.unacked.range(..=last);
        // Those that were passed over are as good as delivered and unacked: they come again. An archive has no better
        // place for them.
        let passed = marks
            .passed
            .range(..=last)
            .map(|seq| (seq.0, Pending { sequence: marks.delivered.consumer, ts: 0 }));
        let pending: BTreeMap<u64, Pending> = unacked()
            .map(|(seq, unacked)| (seq.0, Pending { sequence: unacked.consumer_seq, ts: unacked.at.0 }))
            .chain(passed)
            .collect();
        // Given up ones are told from settled ones by this alone, so even one that was sent once is listed.
        let given_up =
            marks.exhausted.range(..=last).map(|(seq, attempts)| (seq.0, u64::from(*attempts).max(2)));
        let redelivered: BTreeMap<u64, u64> = unacked()
            .map(|(seq, unacked)| (seq.0, u64::from(unacked.attempt)))
            .chain(given_up)
            .filter(|(_, attempts)| *attempts > 1)
            .map(|(seq, attempts)| (seq, attempts - 1))
            .collect();
        ConsumerState {
            delivered: pair(marks.delivered),
            ack_floor: pair(marks.floor),
            pending: (!pending.is_empty()).then_some(pending),
            redelivered: (!redelivered.is_empty()).then_some(redelivered),
            chosen: marks.chosen.as_ref().map(|chosen| consumer::Chosen {
                seqs: chosen.seqs.iter().copied().collect(),
                resume: chosen.resume,
            }),
        }
    }
}

/// The marks that an archive keeps, or what is wrong with them.
pub(crate) fn restored_marks(config: &ConsumerConfig, state: &ConsumerState) -> Result<Marks, &'static str> {
    let position = |pair: SequencePair| Position { consumer: pair.consumer_seq, stream: pair.stream_seq };
    let (delivered, floor) = (position(state.delivered), position(state.ack_floor));
    if delivered.stream.0 > SEQ_MAX {
        return Err("it is behind the last sequence that a stream can have");
    }
    if floor.stream > delivered.stream || floor.consumer > delivered.consumer {
        return Err("its ack floor is above what was delivered");
    }
    let attempts = |seq: u64| {
        let again = state.redelivered.as_ref().and_then(|redelivered| redelivered.get(&seq));
        u32::try_from(again.copied().unwrap_or(0).saturating_add(1)).unwrap_or(u32::MAX)
    };
    let mut marks = Marks::default();
    (marks.delivered, marks.floor) = (delivered, floor);
    for (seq, pending) in state.pending.iter().flatten() {
        if Seq(*seq) > delivered.stream || *seq == 0 {
            return Err("a message is pending that was not delivered");
        }
        let unacked =
            Unacked { consumer_seq: pending.sequence, attempt: attempts(*seq), at: Timestamp(pending.ts) };
        marks.unacked.insert(Seq(*seq), unacked);
    }
    // Those that were delivered as often as allowed. nats-server may list settled ones for a while, too.
    let given_up = state.redelivered.iter().flatten().map(|(seq, _)| Seq(*seq)).filter(|seq| {
        let may_give_up = config.max_deliver > 0 && *seq > floor.stream && *seq <= delivered.stream;
        may_give_up && !marks.unacked.contains_key(seq)
    });
    let given_up: Vec<(Seq, u32)> = given_up.map(|seq| (seq, attempts(seq.0))).collect();
    marks.exhausted.extend(given_up);
    if let Some(chosen) = state.chosen.as_ref().filter(|chosen| !chosen.seqs.is_empty()) {
        let ascending = chosen.seqs.is_sorted() && chosen.seqs[0] > delivered.stream;
        if !ascending || chosen.seqs.last().is_some_and(|last| *last > chosen.resume) {
            return Err("the messages that were chosen for it are out of order");
        }
        marks.chosen = Some(Chosen { seqs: chosen.seqs.iter().copied().collect(), resume: chosen.resume });
    }
    marks.recount();
    Ok(marks)
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::AckPolicy;
    use levee_protocol::ids::ConsumerName;

    use super::*;
    use crate::consumer::settle::Sent;

    fn ledger(marks: Marks) -> Ledger {
        Ledger {
            name: ConsumerName::parse("c").unwrap(),
            config: ConsumerConfig { max_deliver: 3, ..ConsumerConfig::default() },
            filters: Vec::new(),
            created: Timestamp(1),
            began: Timestamp(1),
            incarnation: 1,
            marks,
        }
    }

    #[test]
    fn marks_come_back_from_an_archive() {
        let mut marks = Marks::default();
        for (seq, consumer_seq, attempt) in
            [(1, 1_u64, 1), (2, 2, 1), (4, 3, 1), (2, 4, 2), (4, 5, 2), (4, 6, 3), (6, 7, 1)]
        {
            let at = Timestamp(consumer_seq.cast_signed());
            marks.deliver(AckPolicy::Explicit, Sent { seq: Seq(seq), consumer_seq, attempt, at });
        }
        marks.settle(Seq(1));
        marks.exhaust(Seq(4));
        marks.delivered_at = None;
        marks.settled_at = None;
        marks.chosen = Some(Chosen { seqs: [Seq(8), Seq(9)].into(), resume: Seq(20) });
        let ledger = ledger(marks);

        let text = serde_json::to_string(&ledger.archived(Seq(30))).unwrap();
        let state = serde_json::from_str(&text).unwrap();

        assert_eq!(restored_marks(&ledger.config, &state).as_ref(), Ok(&ledger.marks), "{text}");
        let cut = ledger.archived(Seq(3));
        assert_eq!(cut.delivered.stream_seq, Seq(6));
        assert_eq!(cut.pending.unwrap().keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn marks_that_can_not_be_are_refused() {
        let config = ConsumerConfig::default();
        let pair = |consumer_seq, seq| SequencePair { consumer_seq, stream_seq: Seq(seq) };
        let state = |delivered, ack_floor| ConsumerState { delivered, ack_floor, ..Default::default() };

        assert!(restored_marks(&config, &state(pair(1, 5), pair(1, 6))).is_err());
        assert!(restored_marks(&config, &state(pair(1, 5), pair(2, 5))).is_err());
        let pending = Some([(6, Pending::default())].into());
        assert!(
            restored_marks(&config, &ConsumerState { pending, ..state(pair(1, 5), pair(0, 0)) }).is_err()
        );
        let chosen = Some(consumer::Chosen { seqs: vec![Seq(9), Seq(8)], resume: Seq(9) });
        assert!(restored_marks(&config, &ConsumerState { chosen, ..state(pair(1, 5), pair(0, 0)) }).is_err());
    }
}
