//! A stream is filled from an archive: its messages keep their sequences, times and gaps, its consumers their marks.
//!
//! ```text
//! Configure, RestoreBegin, RestoreConsumer*, Restore*, RestoreEnd
//! ```
//!
//! What was stored once is not judged again: no expectation, duplicate or interest is looked at, and limits are
//! enforced at the end, all at once. In between nothing else happens to the stream: no publish, no tick.

use levee_protocol::api::publish::Ttl;
use levee_protocol::api::{ApiError, ConsumerCreateAction, PublishIntent, RetentionPolicy};
use levee_protocol::archive::consumer::ArchivedConsumer;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::{Block, RecordRef};
use levee_protocol::time::Timestamp;

use super::StreamMachine;
use super::dedup::MsgId;
use super::messages::Removals;
use super::outcome::{Event, Outcome, Reply};
use super::purge::SEQ_MAX;
use super::reads::Reads;
use super::retention;
use super::schedules::Scheduling;
use super::state::Settings;
use super::view::{MessageView, ReadFailed};
use crate::consumer::{CreateRequest, Creation, create_or_update, restored_marks};

/// Most sequences without a message that an archive may leave behind its first message, all together. A page of removed
/// sequences takes some memory for each 4096 of them.
pub const GAP_MAX: u64 = 1 << 32;

impl StreamMachine {
    /// Whether the stream is being filled from an archive.
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.restoring
    }

    /// The last sequence of the archive that the stream was filled from; 0 if there was none.
    #[must_use]
    pub fn restored_to(&self) -> u64 {
        self.restored_to
    }

    /// Applies a command while the stream is being filled.
    pub(super) fn apply_restoring(
        &mut self,
        settings: &Settings,
        log_index: u64,
        command: &StreamCommand,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        match command {
            StreamCommand::Restore(block) => self.restore(settings, block, view),
            StreamCommand::RestoreConsumer { name, consumer, .. } => {
                self.restore_consumer(log_index, name, consumer, view)
            }
            StreamCommand::RestoreEnd { last, last_time, .. } => {
                self.restore_end(settings, (*last, *last_time), view)
            }
            // A configuration is taken on before this is asked; everything else waits for the end.
            StreamCommand::Configure { .. }
            | StreamCommand::Publish(_)
            | StreamCommand::Purge { .. }
            | StreamCommand::DeleteMessage { .. }
            | StreamCommand::Tick { .. }
            | StreamCommand::CreateConsumer { .. }
            | StreamCommand::DeleteConsumer { .. }
            | StreamCommand::Progress(_)
            | StreamCommand::PauseConsumer { .. }
            | StreamCommand::ResetConsumer { .. }
            | StreamCommand::RestoreBegin { .. } => Ok(refused("the stream is being restored")),
        }
    }

    pub(super) fn restore_begin(&mut self, first: Seq) -> Outcome {
        let untouched = self.messages.count == 0 && self.consumers.is_empty();
        if !untouched || first.0 > SEQ_MAX {
            return refused("the stream is not empty");
        }
        (self.messages.first, self.messages.last) = (0, 0);
        self.messages.begin_at(first.0);
        self.restoring = true;
        Outcome::reply(Reply::None)
    }

    pub(super) fn restore_consumer(
        &mut self,
        log_index: u64,
        name: &ConsumerName,
        consumer: &ArchivedConsumer,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        if self.consumers.contains_key(name) {
            return Ok(refused("a consumer is there twice"));
        }
        let marks = match restored_marks(&consumer.config, &consumer.state) {
            Ok(marks) => marks,
            Err(why) => return Ok(refused(&format!("consumer {:?}: {why}", name.as_str()))),
        };
        // What was there before comes back, whatever number this cluster would allow.
        let (action, default_max) = (ConsumerCreateAction::Create, -1);
        let config = &consumer.config;
        let request = CreateRequest { name, config, action, default_max, log_index, now: self.clock };
        let mut ledger = match create_or_update(request, &self.consumers, self, view)? {
            Creation::Created(ledger) => ledger,
            Creation::Rejected(error) => return Ok(Outcome::reply(Reply::Rejected(error))),
            Creation::Updated(_) | Creation::Unchanged => unreachable!("there is no such consumer yet"),
        };
        ledger.marks = marks;
        if let Some(until) = consumer.config.pause_until {
            ledger.pause(until, self.clock);
        }
        self.consumers.insert(name.clone(), *ledger);
        self.dirty_consumers.insert(name.clone());
        Ok(Outcome::reply(Reply::None))
    }

    pub(super) fn restore(
        &mut self,
        settings: &Settings,
        block: &Block,
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        let first = block.placed_at().map_or(0, |seq| seq.0);
        let end = first.checked_add(u64::from(block.count()));
        if first <= self.messages.last || end.is_none_or(|end| end > SEQ_MAX) {
            return Ok(refused("messages are out of order"));
        }
        if let Err(refused) = self.skip_to(first) {
            return Ok(refused);
        }
        let mut reads = Reads::with_block(view, block, first);
        let mut removals = Removals::default();
        for position in 0..block.count() {
            reads.accept(position);
            let record = block.record(position);
            if record.subject.is_empty() {
                self.messages.skip(self.messages.last_time, &mut removals);
            } else {
                self.put_back(settings, &record);
            }
        }
        let accepted = reads.into_accepted();
        Ok(Outcome::stored(Seq(first), block.count(), &accepted, removals, Reply::None))
    }

    pub(super) fn restore_end(
        &mut self,
        settings: &Settings,
        (last, last_time): (Seq, Timestamp),
        view: &dyn MessageView,
    ) -> Result<Outcome, ReadFailed> {
        if last.0 < self.messages.last || last.0 > SEQ_MAX {
            return Ok(refused("messages are out of order"));
        }
        if let Err(refused) = self.skip_to(last.0 + 1) {
            return Ok(refused);
        }
        self.restoring = false;
        self.restored_to = last.0;
        self.messages.last_time = self.messages.last_time.max(last_time);
        let reads = Reads::stored_only(view);
        let mut removals = Removals::default();
        if settings.config.retention == RetentionPolicy::Interest {
            let store = (&mut self.messages, &reads, &mut removals);
            retention::interest_begins(&self.consumers, store)?;
        }
        settings.limits.enforce_all_subjects(&mut self.messages, &reads, &mut removals)?;
        self.enforce(settings, &reads, &mut removals)?;
        self.has_foreign_subjects = true;
        let mut outcome = Outcome::removed(removals, Reply::None);
        // Not before: until now nothing was to be delivered, or copied from other streams.
        outcome.events.push(Event::Configured);
        outcome
            .events
            .extend(self.consumers.keys().map(|name| Event::ConsumerCreated { name: name.clone() }));
        Ok(outcome)
    }

    /// The next message gets this sequence; those before it that were not given out are gone.
    fn skip_to(&mut self, next: u64) -> Result<(), Outcome> {
        let messages = &mut self.messages;
        if messages.count > 0 {
            let gap = next.saturating_sub(messages.last + 1);
            let missing = (messages.last + 1 - messages.first).saturating_sub(messages.count);
            if missing.saturating_add(gap) > GAP_MAX {
                return Err(refused("too many sequences without a message"));
            }
        }
        messages.skip_to(next.saturating_sub(1));
        Ok(())
    }

    /// Stores a message as it was, and what follows from its headers.
    fn put_back(&mut self, settings: &Settings, record: &RecordRef<'_>) {
        let bytes = record.stored_bytes(settings.config.storage);
        let appended = self.messages.append(record, bytes, record.timestamp);
        self.last_msg_id.clear();
        self.sources.put_back(settings, record.header);
        let intent = PublishIntent::parse(record.header).unwrap_or_default();
        match intent.ttl.filter(|_| settings.config.allow_msg_ttl) {
            None | Some(Ttl::Invalid) => {}
            Some(Ttl::Never) => self.messages.exempt_last(),
            Some(Ttl::After(span)) => {
                let span = settings.ttl_min().map_or(span, |least| span.max(least));
                self.expiries.add(appended.seq, record.timestamp.plus(span));
            }
        }
        if let Some(id) = intent.msg_id {
            self.last_msg_id.push_str(id);
            self.remember(settings, MsgId::of(id), appended.seq, record);
        }
        if let Some(rare) = intent.rare.as_ref().filter(|rare| rare.schedule.is_some())
            && let Ok(Scheduling::Next(next)) = self.check_schedule(settings, record, &intent, rare)
        {
            self.schedules.set(record.subject, appended.seq, next);
        } else if !self.schedules.is_empty() {
            self.schedules.remove(record.subject);
        }
    }

    /// An id of a message that is still within the duplicate window.
    fn remember(&mut self, settings: &Settings, id: MsgId, seq: u64, record: &RecordRef<'_>) {
        let window = settings.config.duplicate_window;
        if !window.is_zero() && self.clock.since(record.timestamp) < window && self.window.find(id).is_none()
        {
            let at = record.timestamp.min(self.clock);
            self.window.remember(id, Seq(seq), self.window.newest().max(at));
        }
    }
}

/// The answer to parts of an archive that nobody waits for.
pub(super) fn not_begun() -> Outcome {
    refused("no restore has begun")
}

fn refused(why: &str) -> Outcome {
    Outcome::reply(Reply::Rejected(ApiError::stream_restore_failed(why)))
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::{AckPolicy, ConsumerConfig, StreamConfig};
    use levee_protocol::archive::consumer::{ConsumerState, Pending, SequencePair};
    use levee_protocol::record::{BlockBuilder, RecordFlags};
    use levee_protocol::time::Nanos;

    use super::*;
    use crate::stream::PublishReply;
    use crate::testing::Bench;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    fn bench(config: StreamConfig) -> Bench {
        let mut bench = Bench::default();
        let config = Box::new(StreamConfig { subjects: vec!["a.>".into()], ..config });
        bench.apply(&StreamCommand::Configure { now: NOW, created: NOW, config });
        bench
    }

    fn begin(bench: &mut Bench, first: u64) {
        let reply = bench.apply(&StreamCommand::RestoreBegin { now: NOW, first: Seq(first) }).reply;
        assert_eq!(reply, Reply::None);
    }

    fn push(block: &mut BlockBuilder, time: i64, subject: &str, header: &str, payload: &[u8]) {
        let (subject, header) = (subject.as_bytes(), header.as_bytes());
        let record = RecordRef { timestamp: Timestamp(time), subject, header, payload };
        block.push_timed(RecordFlags::PUBLISHED, &record);
    }

    /// Messages by sequence, with subject, header and time; those between them are absent.
    fn put(bench: &mut Bench, messages: &[(u64, &str, &str, i64)]) -> Reply {
        let first = messages[0].0;
        let mut block = BlockBuilder::placed(Seq(first), 0);
        let mut next = first;
        for (seq, subject, header, time) in messages {
            for _ in next..*seq {
                push(&mut block, *time, "", "", b"");
            }
            push(&mut block, *time, subject, header, b"x");
            next = seq + 1;
        }
        bench.apply(&StreamCommand::Restore(block.finish(NOW))).reply
    }

    fn end(bench: &mut Bench, last: u64) -> Outcome {
        bench.apply(&StreamCommand::RestoreEnd { now: NOW, last: Seq(last), last_time: Timestamp(31) })
    }

    fn seqs(bench: &Bench) -> Vec<u64> {
        bench.view.records().filter(|record| bench.machine.is_live(record.seq)).map(|r| r.seq.0).collect()
    }

    #[test]
    fn sequences_times_and_gaps_are_kept_and_the_next_message_comes_after_them() {
        let mut bench = bench(StreamConfig::default());
        begin(&mut bench, 5);
        assert_eq!(put(&mut bench, &[(7, "a.x", "", 10), (9, "a.y", "", 20)]), Reply::None);
        assert_eq!(put(&mut bench, &[(10_000, "a.x", "", 30)]), Reply::None);
        assert_eq!(end(&mut bench, 10_009).reply, Reply::None);

        let state = bench.machine.state();
        assert_eq!((state.messages, state.first_seq, state.last_seq), (3, Seq(7), Seq(10_009)));
        assert_eq!((state.first_ts, state.last_ts), (Timestamp(10), Timestamp(31)));
        assert_eq!(state.num_deleted, 10_009 - 7 + 1 - 3);
        assert_eq!(seqs(&bench), [7, 9, 10_000]);
        let mut block = BlockBuilder::default();
        block.push(b"a.x", b"", b"new");
        let reply = bench.apply(&StreamCommand::Publish(block.finish(NOW))).reply;
        assert_eq!(
            reply,
            Reply::Publish(vec![PublishReply::Stored { seq: Seq(10_010), before: Seq(10_000) }])
        );
        bench.checkpoint();
        assert_eq!(bench.loaded().all_rows(), bench.machine.all_rows());
    }

    #[test]
    fn an_empty_archive_leaves_its_sequences_behind() {
        let mut bench = bench(StreamConfig { first_seq: 3, ..StreamConfig::default() });
        begin(&mut bench, 100);
        assert_eq!(end(&mut bench, 99).reply, Reply::None);
        let state = bench.machine.state();
        assert_eq!((state.messages, state.first_seq, state.last_seq), (0, Seq(100), Seq(99)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |reply: Reply| match reply {
            Reply::Rejected(error) => assert_eq!(error.err_code, 10062),
            other => panic!("not refused: {other:?}"),
        };
        let mut bench = bench(StreamConfig::default());
        refused(put(&mut bench, &[(1, "a.x", "", 1)]));
        refused(end(&mut bench, 0).reply);
        begin(&mut bench, 1);
        assert_eq!(put(&mut bench, &[(5, "a.x", "", 1)]), Reply::None);
        refused(put(&mut bench, &[(5, "a.x", "", 1)]));
        refused(put(&mut bench, &[(6 + GAP_MAX + 1, "a.x", "", 1)]));
        refused(put(&mut bench, &[(u64::MAX, "a.x", "", 1)]));
        refused(end(&mut bench, 4).reply);
        refused(end(&mut bench, u64::MAX).reply);
        refused(bench.apply(&StreamCommand::RestoreBegin { now: NOW, first: Seq(1) }).reply);
        assert_eq!(end(&mut bench, 5).reply, Reply::None);
        refused(put(&mut bench, &[(9, "a.x", "", 1)]));
    }

    #[test]
    fn nothing_else_happens_before_the_end_and_limits_are_enforced_at_it() {
        let config = StreamConfig {
            max_msgs_per_subject: 1,
            max_age: Nanos::from_secs(100),
            ..StreamConfig::default()
        };
        let mut bench = bench(config);
        let recent = NOW.0 - 1_000_000;
        begin(&mut bench, 1);
        put(
            &mut bench,
            &[(1, "a.x", "", 5), (2, "a.x", "", recent), (3, "a.x", "", recent), (4, "a.y", "", recent)],
        );

        assert_eq!(bench.machine.next_tick(), None);
        let mut block = BlockBuilder::default();
        block.push(b"a.x", b"", b"new");
        let reply = bench.apply(&StreamCommand::Publish(block.finish(NOW))).reply;
        assert!(matches!(reply, Reply::Rejected(_)), "{reply:?}");
        bench.apply(&StreamCommand::Tick { now: NOW });
        assert_eq!(seqs(&bench), [1, 2, 3, 4]);
        end(&mut bench, 4);
        assert_eq!(seqs(&bench), [3, 4]);
    }

    #[test]
    fn what_headers_say_holds_again() {
        let config = StreamConfig {
            allow_msg_ttl: true,
            allow_msg_schedules: true,
            duplicate_window: Nanos::from_secs(60),
            ..StreamConfig::default()
        };
        let mut bench = bench(config);
        let header = |text: &str| format!("NATS/1.0\r\n{text}\r\n\r\n");
        let (old, recent) = (NOW.0 - 61_000_000_000, NOW.0 - 1_000_000);
        begin(&mut bench, 1);
        put(
            &mut bench,
            &[
                (1, "a.x", &header("Nats-Msg-Id: old"), old),
                (2, "a.x", &header("Nats-Msg-Id: recent"), recent),
                (3, "a.x", &header("Nats-TTL: 5"), recent),
                (4, "a.s", &header("Nats-Schedule: @every 10s\r\nNats-Schedule-Target: a.t"), recent),
            ],
        );
        end(&mut bench, 4);

        let publish = |bench: &mut Bench, id: &str| {
            let mut block = BlockBuilder::default();
            block.push(b"a.x", header(&format!("Nats-Msg-Id: {id}")).as_bytes(), b"");
            match bench.apply(&StreamCommand::Publish(block.finish(NOW))).reply {
                Reply::Publish(mut replies) => replies.remove(0),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(publish(&mut bench, "recent"), PublishReply::Duplicate { seq: Seq(2) });
        assert!(matches!(publish(&mut bench, "old"), PublishReply::Stored { seq: Seq(5), .. }));
        let due = bench.machine.next_tick().unwrap().0 - recent;
        assert!((5_000_000_000..5_300_000_000).contains(&due), "{due}");
        let later = Timestamp(NOW.0 + 20_000_000_000);
        assert!(bench.machine.due_schedules(later, &bench.view).unwrap().is_some());
    }

    #[test]
    fn consumers_keep_their_marks_and_hold_what_they_have_not_settled() {
        let mut bench =
            bench(StreamConfig { retention: RetentionPolicy::Interest, ..StreamConfig::default() });
        begin(&mut bench, 1);
        let name = ConsumerName::parse("c").unwrap();
        let config = ConsumerConfig {
            durable_name: "c".into(),
            ack_policy: AckPolicy::Explicit,
            ..ConsumerConfig::default()
        };
        let pair = |consumer_seq, seq| SequencePair { consumer_seq, stream_seq: Seq(seq) };
        let state = ConsumerState {
            delivered: pair(6, 4),
            ack_floor: pair(1, 1),
            pending: Some([(2, Pending { sequence: 2, ts: 77 })].into()),
            redelivered: Some([(2, 2)].into()),
            chosen: None,
        };
        let consumer = Box::new(ArchivedConsumer { config, state });
        let command = StreamCommand::RestoreConsumer { now: NOW, name, consumer };
        assert_eq!(bench.apply(&command).reply, Reply::None);
        assert!(matches!(bench.apply(&command).reply, Reply::Rejected(_)));
        put(&mut bench, &[(1, "a.x", "", 1), (2, "a.x", "", 1), (3, "a.x", "", 1), (5, "a.x", "", 1)]);
        end(&mut bench, 5);

        assert_eq!(seqs(&bench), [2, 5], "one is pending, one was not delivered");
        let (_, ledger) = bench.machine.consumers().next().unwrap();
        let marks = ledger.marks();
        assert_eq!((marks.num_unacked(), marks.num_redelivered()), (1, 1));
        assert_eq!((marks.delivered().consumer, marks.floor().stream), (6, Seq(1)));
        bench.checkpoint();
        assert_eq!(bench.loaded().all_rows(), bench.machine.all_rows());
    }
}
