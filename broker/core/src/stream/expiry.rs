//! When messages with a time to live leave.
//!
//! Messages lie in slots of a quarter of a second, by the time at which they are due. A slot is a list of sequences, so
//! a message costs eight bytes, and the next slot is the next tick. A message that leaves earlier stays listed:
//! sequences are never given out twice, so its entry means nothing. When most entries are like that, all are looked at
//! once and those go.
//!
//! A slot is written in pages, so that a slot to which messages are added for hours is not written anew each time.

use std::collections::{BTreeMap, BTreeSet};

use levee_protocol::command::Undecodable;
use levee_protocol::time::{Nanos, Timestamp};

use super::messages::Messages;
use crate::rows::{RowKind, RowReader, StateRow};

/// Messages leave up to this much later than they might.
const SLOT: Nanos = Nanos::from_millis(250);
/// Sequences in a row.
const PAGE: usize = 512;
/// Fewer entries than this are not worth a look for those that mean nothing.
const SWEEP_MIN: u64 = 1024;

/// Messages that leave at a time of their own.
#[derive(Debug, Default)]
pub(crate) struct Expiries {
    slots: BTreeMap<i64, Slot>,
    /// Entries in all slots.
    count: u64,
    dirty: BTreeSet<i64>,
    /// Rows of slots that are gone or may have become shorter: slot and page.
    gone: BTreeSet<(i64, u32)>,
}

/// What is due at one time.
#[derive(Debug, Default)]
struct Slot {
    /// Ascending.
    seqs: Vec<u64>,
    /// How many of them are in rows as they are.
    written: usize,
}

impl Expiries {
    /// The newest message leaves at `due`.
    pub(crate) fn add(&mut self, seq: u64, due: Timestamp) {
        let number = due.0.div_euclid(SLOT.0) + i64::from(due.0.rem_euclid(SLOT.0) > 0);
        self.slots.entry(number).or_default().seqs.push(seq);
        self.count += 1;
        self.dirty.insert(number);
    }

    /// When the first of them are due.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.slots.first_key_value().map(|(number, _)| due_of(*number))
    }

    /// Takes out what is due, in whole slots, until `enough` entries are taken. Ascending.
    pub(crate) fn take_due(&mut self, now: Timestamp, enough: usize) -> Vec<u64> {
        let mut due = Vec::new();
        while due.len() < enough
            && let Some(first) = self.slots.first_entry()
            && due_of(*first.key()) <= now
        {
            let (number, mut slot) = first.remove_entry();
            self.dirty.remove(&number);
            self.gone.extend((0..pages(slot.written)).map(|page| (number, page)));
            due.append(&mut slot.seqs);
        }
        self.count -= due.len() as u64;
        due.sort_unstable();
        // Rows that were left behind when a slot became shorter may list a message twice.
        due.dedup();
        due
    }

    /// Forgets messages that left earlier, if there are more of them than others.
    pub(crate) fn sweep(&mut self, messages: &Messages) {
        if self.count < SWEEP_MIN || self.count / 2 < messages.count {
            return;
        }
        let mut count = 0;
        for (number, slot) in &mut self.slots {
            let before = slot.seqs.len();
            slot.seqs.retain(|seq| messages.is_live(*seq));
            count += slot.seqs.len() as u64;
            if slot.seqs.len() < before {
                // All of them: how short the slot is by the next checkpoint is not known yet.
                self.gone.extend((0..pages(slot.written)).map(|page| (*number, page)));
                slot.written = 0;
                self.dirty.insert(*number);
            }
        }
        self.slots.retain(|_, slot| !slot.seqs.is_empty());
        self.count = count;
    }

    pub(crate) fn dirty_rows(&mut self, rows: &mut Vec<StateRow>) {
        for (number, page) in std::mem::take(&mut self.gone) {
            if self.slots.get(&number).is_none_or(|slot| pages(slot.seqs.len()) <= page) {
                rows.push(StateRow::delete(RowKind::Expiry, &key(number, page)));
            }
        }
        for number in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&number) else { continue };
            rows.extend(slot.rows(number, slot.written / PAGE));
            slot.written = slot.seqs.len();
        }
    }

    pub(crate) fn all_rows(&self, rows: &mut Vec<StateRow>) {
        rows.extend(self.slots.iter().flat_map(|(number, slot)| slot.rows(*number, 0)));
    }

    /// Takes one row, in any order.
    pub(crate) fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Undecodable> {
        let mut reader = RowReader::new(RowKind::Expiry, key);
        let number = u64::from_be_bytes(reader.bytes()?).cast_signed();
        let mut reader = RowReader::new(RowKind::Expiry, value);
        let slot = self.slots.entry(number).or_default();
        let mut seq = 0_u64;
        while !reader.is_empty() {
            seq = seq.checked_add(reader.number()?).ok_or_else(|| reader.damaged())?;
            slot.seqs.push(seq);
            self.count += 1;
        }
        Ok(())
    }

    /// All rows were taken.
    pub(crate) fn loaded(&mut self) {
        for slot in self.slots.values_mut() {
            slot.seqs.sort_unstable();
            slot.written = slot.seqs.len();
        }
    }
}

impl Slot {
    fn rows(&self, number: i64, from_page: usize) -> impl Iterator<Item = StateRow> {
        self.seqs.chunks(PAGE).enumerate().skip(from_page).map(move |(page, seqs)| {
            let mut value = Vec::with_capacity(seqs.len() * 2 + 8);
            let mut before = 0;
            for seq in seqs {
                prost::encoding::encode_varint(seq - before, &mut value);
                before = *seq;
            }
            StateRow::put(
                RowKind::Expiry,
                &key(number, u32::try_from(page).expect("sequences fit memory")),
                value,
            )
        })
    }
}

fn due_of(number: i64) -> Timestamp {
    Timestamp(number.saturating_mul(SLOT.0))
}

fn pages(seqs: usize) -> u32 {
    u32::try_from(seqs.div_ceil(PAGE)).expect("sequences fit memory")
}

fn key(number: i64, page: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&number.cast_unsigned().to_be_bytes());
    key[8..].copy_from_slice(&page.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use levee_protocol::api::StreamConfig;
    use levee_protocol::command::StreamCommand;
    use levee_protocol::ids::Seq;
    use levee_protocol::record::BlockBuilder;

    use super::*;
    use crate::testing::Bench;

    #[test]
    fn what_is_due_comes_out_in_order_and_no_earlier() {
        let mut expiries = Expiries::default();
        for seq in 1..=10_u64 {
            let due = Timestamp((1000 + (seq % 3).cast_signed() * 1000) * 1_000_000 + 1);
            expiries.add(seq, due);
        }

        assert_eq!(expiries.next_due(), Some(Timestamp(1250 * 1_000_000)));
        assert!(expiries.take_due(Timestamp(1249 * 1_000_000), 100).is_empty());
        assert_eq!(expiries.take_due(Timestamp(1250 * 1_000_000), 100), [3, 6, 9]);
        assert_eq!(expiries.take_due(Timestamp(i64::MAX), 1), [1, 4, 7, 10], "whole slots");
        assert_eq!(expiries.take_due(Timestamp(i64::MAX), 100), [2, 5, 8]);
        assert_eq!((expiries.count, expiries.next_due()), (0, None));
    }

    #[test]
    fn rows_written_along_the_way_load_as_the_same_slots() {
        let mut expiries = Expiries::default();
        let mut rows = BTreeMap::new();
        for seq in 1..=4000_u64 {
            let second = if seq % 5 == 0 { (seq / 100).cast_signed() } else { 100 };
            expiries.add(seq, Timestamp(second * 1_000_000_000));
            if seq % 300 == 0 {
                expiries.take_due(Timestamp((seq / 200).cast_signed() * 1_000_000_000), 1000);
                let mut dirty = Vec::new();
                expiries.dirty_rows(&mut dirty);
                for row in dirty {
                    match row.value {
                        Some(value) => rows.insert(row.key, value),
                        None => rows.remove(&row.key),
                    };
                }
                let mut loaded = Expiries::default();
                rows.iter().for_each(|(key, value)| loaded.load_row(key, value).unwrap());
                loaded.loaded();
                let all = |expiries: &Expiries| {
                    let mut rows = Vec::new();
                    expiries.all_rows(&mut rows);
                    rows
                };
                assert_eq!(all(&loaded), all(&expiries));
                assert_eq!(loaded.count, expiries.count);
            }
        }
    }

    #[test]
    fn a_slot_that_is_swept_twice_between_checkpoints_leaves_no_rows_behind() {
        let now = Timestamp(0);
        let mut bench = Bench::default();
        let config = StreamConfig {
            name: "S".into(),
            subjects: vec!["s".into()],
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            allow_msg_ttl: true,
            ..StreamConfig::default()
        };
        bench.apply(&StreamCommand::Configure { now, created: now, config: Box::new(config) });
        let mut block = BlockBuilder::default();
        for _ in 0..6000 {
            block.push(b"s", b"NATS/1.0\r\nNats-TTL: 1h\r\n\r\n", b"");
        }
        bench.apply(&StreamCommand::Publish(block.finish(now)));
        bench.checkpoint();

        for (seqs, left) in [(1..=4000, 2000), (4001..=5000, 1000)] {
            for seq in seqs {
                bench.apply(&StreamCommand::DeleteMessage { now, seq: Seq(seq) });
            }
            bench.apply(&StreamCommand::Tick { now });
            assert_eq!(bench.machine.expiries.count, left);
        }
        bench.checkpoint();
        assert_eq!(bench.loaded().all_rows(), bench.machine.all_rows());
    }

    #[test]
    fn a_message_that_rows_list_twice_comes_out_once() {
        let mut expiries = Expiries::default();
        expiries.load_row(&key(1, 0), &[1, 1]).unwrap();
        expiries.load_row(&key(1, 1), &[2]).unwrap();
        expiries.loaded();

        assert_eq!(expiries.take_due(Timestamp(i64::MAX), 100), [1, 2]);
        assert_eq!(expiries.count, 0);
    }

    #[test]
    fn damaged_rows_are_refused() {
        assert!(Expiries::default().load_row(&[0; 3], &[1]).is_err());
        assert!(Expiries::default().load_row(&key(1, 0), &[0xff]).is_err());
    }
}
