//! For tests: stored messages in memory, and a runner for scripts that talk to a stream machine.
//!
//! A script is a list of cases: commands, a line `----`, and what came of them. The runner returns the script with
//! the second half of every case rewritten, so that a change of behavior is reviewed as a diff.
//!
//! ```text
//! publish orders.eu id=order-7 "pay"
//! ----
//! ack seq=1
//! stored 1..1
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;

use levee_protocol::api::{ConsumerConfig, PurgeRequest, StreamConfig};
use levee_protocol::command::progress::{DeliveredRun, SettledRun, Settlement};
use levee_protocol::command::{ConsumerProgress, Progress, StreamCommand};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::{Block, BlockBuilder, Record, RecordFlags, RecordRef};
use levee_protocol::subject::Filter;
use levee_protocol::time::Timestamp;

use crate::rows::{RowKind, StateRow};
use crate::stream::{Change, MessageView, Outcome, PublishReply, ReadFailed, Reply, StreamMachine, counter};

/// Stored messages in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryView {
    records: BTreeMap<Seq, Record>,
    /// Removed messages stay readable, as they do in a block that other messages keep alive.
    pub keeps_removed: bool,
}

impl MemoryView {
    /// Carries out what a command led to; `block` is the command's block, if it has one.
    pub fn change(&mut self, block: Option<&Block>, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Stored { first_seq, holes } => {
                    let block = block.expect("only a block's records are stored");
                    let accepted = (0..block.count()).filter(|position| !holes.contains(position));
                    for (seq, position) in (first_seq.0..).map(Seq).zip(accepted) {
                        self.records.insert(seq, block.record_owned(position, seq));
                    }
                }
                Change::Removed { first, last } if !self.keeps_removed => {
                    for seq in (first.0..=last.0).map(Seq) {
                        self.records.remove(&seq);
                    }
                }
                Change::Removed { .. } => {}
            }
        }
    }

    /// Every message it would return, in order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }
}

impl MessageView for MemoryView {
    fn record(&self, seq: Seq) -> Result<Option<Record>, ReadFailed> {
        Ok(self.records.get(&seq).cloned())
    }

    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        for (seq, record) in self.records.range(from..) {
            if visit(*seq, record.borrowed()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        Ok(self.records.values().find(|record| record.timestamp >= at).map(|record| record.seq))
    }
}

/// A machine with its messages and its checkpoint rows.
#[derive(Debug, Default)]
pub struct Bench {
    /// The machine.
    pub machine: StreamMachine,
    /// Its messages.
    pub view: MemoryView,
    /// What was checkpointed.
    pub rows: BTreeMap<(RowKind, Vec<u8>), Vec<u8>>,
    log_index: u64,
}

impl Bench {
    /// Applies a command and carries out its changes.
    pub fn apply(&mut self, command: &StreamCommand) -> Outcome {
        self.log_index += 1;
        let outcome = self.machine.apply(self.log_index, command, &self.view).expect("memory does not fail");
        let block = match command {
            StreamCommand::Publish(block) | StreamCommand::Restore(block) => Some(block),
            _ => None,
        };
        self.view.change(block, &outcome.changes);
        outcome
    }

    /// Writes the dirty rows.
    pub fn checkpoint(&mut self) {
        for StateRow { kind, key, value } in self.machine.dirty_rows() {
            match value {
                Some(value) => self.rows.insert((kind, key), value),
                None => self.rows.remove(&(kind, key)),
            };
        }
    }

    /// The machine that loading the checkpointed rows gives.
    #[must_use]
    pub fn loaded(&self) -> StreamMachine {
        let rows = self.rows.iter().map(|((kind, key), value)| StateRow::put(*kind, key, value.clone()));
        StreamMachine::load(rows).expect("checkpointed rows load")
    }
}

/// Runs a script and returns it with the outcomes as they are now. Panics with the line on a command it can not read.
#[must_use]
pub fn run_script(script: &str) -> String {
    let mut runner = Runner::default();
    let mut written = String::new();
    let mut commands = Vec::new();
    let mut in_expected = false;
    for line in script.lines() {
        if in_expected {
            in_expected = !line.trim().is_empty();
            if !in_expected {
                written.push('\n');
            }
        } else if line == "----" {
            let outcome = runner.case(&std::mem::take(&mut commands));
            let _ = write!(written, "----\n{outcome}");
            in_expected = true;
        } else {
            let command = line.split('#').next().unwrap_or_default().trim();
            if !command.is_empty() {
                commands.push(command);
            }
            let _ = writeln!(written, "{line}");
        }
    }
    written
}

#[derive(Default)]
struct Runner {
    bench: Bench,
    config: StreamConfig,
    now: Timestamp,
}

impl Runner {
    /// Consecutive publishes of one case are one block.
    fn case(&mut self, commands: &[&str]) -> String {
        let mut out = String::new();
        let mut batch: Option<BlockBuilder> = None;
        for line in commands {
            let words = Words::of(line);
            if words.verb() == "publish" {
                let (header, payload) = (words.header(), words.payload());
                let batch = batch.get_or_insert_default();
                batch.push_flagged(words.flags(), words.at(1).as_bytes(), &header, &payload);
                continue;
            }
            self.publish(batch.take(), &mut out);
            self.command(line, &words, &mut out);
        }
        self.publish(batch.take(), &mut out);
        out
    }

    fn publish(&mut self, batch: Option<BlockBuilder>, out: &mut String) {
        if let Some(batch) = batch {
            self.apply(&StreamCommand::Publish(batch.finish(self.now)), out);
        }
    }

    fn command(&mut self, line: &str, words: &Words<'_>, out: &mut String) {
        let now = self.now;
        match words.verb() {
            "at" => self.now = Timestamp(words.millis(1) * 1_000_000),
            "configure" => {
                self.config = overlaid(&self.config, json_of(line));
                let config = Box::new(self.config.clone());
                self.apply(&StreamCommand::Configure { now, created: now, config }, out);
            }
            "purge" => {
                let request = PurgeRequest {
                    filter: words.value("filter").unwrap_or_default().to_owned(),
                    seq: words.number("seq").unwrap_or(0),
                    keep: words.number("keep").unwrap_or(0),
                };
                self.apply(&StreamCommand::Purge { now, request }, out);
            }
            "delete" => {
                let seq = Seq(words.at(1).parse().expect("delete <seq>"));
                self.apply(&StreamCommand::DeleteMessage { now, seq }, out);
            }
            "tick" => self.apply(&StreamCommand::Tick { now }, out),
            "markers" => {
                if let Some(block) = self.bench.machine.owed_markers(now) {
                    self.apply(&StreamCommand::Publish(block), out);
                }
            }
            "fire" => {
                let due = self.bench.machine.due_schedules(now, &self.bench.view);
                if let Some(block) = due.expect("memory does not fail") {
                    for position in 0..block.count() {
                        write_fired(&block, position, out);
                    }
                    self.apply(&StreamCommand::Publish(block), out);
                }
            }
            "consumer" => {
                let base = ConsumerConfig { durable_name: words.at(1).into(), ..ConsumerConfig::default() };
                let config = Box::new(overlaid(&base, json_of(line)));
                let action = Default::default();
                self.apply(
                    &StreamCommand::CreateConsumer {
                        now,
                        name: words.name(),
                        config,
                        action,
                        default_max: 0,
                    },
                    out,
                );
            }
            "delete-consumer" => {
                self.apply(&StreamCommand::DeleteConsumer { now, name: words.name(), incarnation: None }, out)
            }
            "progress" => {
                let progress = Progress { now, consumers: vec![self.progress(words)] };
                self.apply(&StreamCommand::Progress(progress), out);
            }
            "restart" => {
                self.bench.checkpoint();
                self.bench.machine = self.bench.loaded();
            }
            question => self.ask(question, words, out),
        }
    }

    fn ask(&self, question: &str, words: &Words<'_>, out: &mut String) {
        let machine = &self.bench.machine;
        let filters: Vec<Filter> =
            words.plain().skip(1).map(|filter| Filter::parse(filter).expect("a filter")).collect();
        let from = Seq(words.number("from").unwrap_or(0));
        let view = &self.bench.view;
        match question {
            "state" => {
                let state = serde_json::to_string(&machine.state()).expect("state is JSON");
                let _ = writeln!(out, "{state}");
            }
            "subjects" => {
                for (subject, count) in machine.subjects(&filters[0]) {
                    let _ = writeln!(out, "{} {count}", String::from_utf8_lossy(subject));
                }
            }
            "deleted" => {
                let runs: Vec<String> =
                    machine.deleted().map(|(first, last)| format!("{first}..{last}")).collect();
                let _ = writeln!(out, "{}", runs.join(" "));
            }
            "last" => {
                let _ = writeln!(out, "{:?}", machine.last_for(&filters[0]).map(|seq| seq.0));
            }
            "count" => {
                let count = machine.count_matching(&filters, from, view).expect("memory does not fail");
                let _ = writeln!(out, "{count}");
            }
            "next" => {
                let next = machine.next_match(&filters, from, view).expect("memory does not fail");
                let _ = writeln!(out, "{:?}", next.map(|record| record.seq.0));
            }
            "next-tick" => {
                let millis = machine.next_tick().map(|at| at.0 / 1_000_000);
                let _ = writeln!(
                    out,
                    "{}",
                    millis.map_or_else(|| "never".into(), |millis| format!("{millis}ms"))
                );
            }
            other => panic!("unknown command {other:?}"),
        }
    }

    fn progress(&self, words: &Words<'_>) -> ConsumerProgress {
        let name = words.name();
        let ledger = self.bench.machine.consumer(&name);
        let mut progress = ConsumerProgress {
            incarnation: ledger.map_or(0, crate::consumer::Ledger::incarnation),
            name,
            delivered: Vec::new(),
            passed: Vec::new(),
            through: Seq::NONE,
            waits: Vec::new(),
            dead: Vec::new(),
            settled: Vec::new(),
        };
        let mut consumer_seq = ledger.map_or(0, |ledger| ledger.marks().delivered().consumer) + 1;
        for (key, value) in words.pairs() {
            let (first, last) = value.split_once("..").unwrap_or((value, value));
            let seq = |text: &str| Seq(text.parse().expect("a sequence"));
            let (first, last) = (seq(first), seq(last));
            let how = match key {
                "deliver" => {
                    let count = u32::try_from(last.0 - first.0 + 1).expect("a short run");
                    let run = DeliveredRun {
                        first_consumer_seq: consumer_seq,
                        first_seq: first,
                        count,
                        attempt: 1,
                        at: self.now,
                    };
                    progress.delivered.push(run);
                    consumer_seq += u64::from(count);
                    continue;
                }
                "ack" => Settlement::Acked,
                "ack-all" => Settlement::AckedAll,
                "term" => Settlement::Terminated,
                "exhaust" => Settlement::Exhausted,
                other => panic!("unknown settlement {other:?}"),
            };
            progress.settled.push(SettledRun { first, last, how });
        }
        progress
    }

    /// Applies a command, writes down what came of it, and checks that nothing of it lives outside of the rows.
    fn apply(&mut self, command: &StreamCommand, out: &mut String) {
        let outcome = self.bench.apply(command);
        write_reply(&outcome.reply, out);
        for change in &outcome.changes {
            let _ = match change {
                Change::Stored { first_seq, holes } if holes.is_empty() => {
                    writeln!(out, "stored from {first_seq}")
                }
                Change::Stored { first_seq, holes } => {
                    writeln!(out, "stored from {first_seq} without {holes:?}")
                }
                Change::Removed { first, last } => writeln!(out, "removed {first}..{last}"),
            };
        }
        self.bench.checkpoint();
        assert_eq!(self.bench.loaded().all_rows(), self.bench.machine.all_rows(), "after {command:?}");
    }
}

fn write_fired(block: &Block, position: u32, out: &mut String) {
    if block.flags(position) == RecordFlags::FIRED {
        let record = block.record(position);
        let header = String::from_utf8_lossy(record.header).trim().replace("\r\n", " | ");
        let (subject, payload) =
            (String::from_utf8_lossy(record.subject), String::from_utf8_lossy(record.payload));
        let _ = writeln!(out, "fires {subject} {header} {payload:?}");
    }
}

fn write_reply(reply: &Reply, out: &mut String) {
    let _ = match reply {
        Reply::None => Ok(()),
        Reply::Publish(replies) => {
            for reply in replies {
                let _ = match reply {
                    PublishReply::Stored { seq, .. } => writeln!(out, "ack seq={seq}"),
                    PublishReply::Duplicate { seq } => writeln!(out, "ack seq={seq} duplicate"),
                    PublishReply::Outdated => writeln!(out, "outdated"),
                    PublishReply::Skipped => writeln!(out, "skipped"),
                    PublishReply::Rejected(error) => {
                        writeln!(out, "refused {}/{} {}", error.code, error.err_code, error.description)
                    }
                };
            }
            Ok(())
        }
        Reply::Purged(count) => writeln!(out, "purged {count}"),
        Reply::Deleted => writeln!(out, "deleted"),
        Reply::Consumer(consumer) if consumer.created => writeln!(out, "consumer {} created", consumer.name),
        Reply::Consumer(consumer) => writeln!(out, "consumer {} updated", consumer.name),
        Reply::ConsumerDeleted => writeln!(out, "consumer deleted"),
        Reply::Paused { until } => writeln!(out, "paused until {until}"),
        Reply::Reset { seq } => writeln!(out, "reset to {}", seq.0),
        Reply::Configured => writeln!(out, "configured"),
        Reply::Rejected(error) => {
            writeln!(out, "refused {}/{} {}", error.code, error.err_code, error.description)
        }
    };
}

/// The JSON object in a line, or an empty one.
fn json_of(line: &str) -> serde_json::Map<String, serde_json::Value> {
    line.find('{')
        .map(|start| serde_json::from_str(&line[start..]).unwrap_or_else(|error| panic!("{line}: {error}")))
        .unwrap_or_default()
}

fn overlaid<T: serde::Serialize + serde::de::DeserializeOwned>(
    base: &T,
    over: serde_json::Map<String, serde_json::Value>,
) -> T {
    let mut merged = serde_json::to_value(base).expect("a configuration is JSON");
    merged.as_object_mut().expect("a configuration is an object").extend(over);
    serde_json::from_value(merged).unwrap_or_else(|error| panic!("configuration: {error}"))
}

/// One line of a script, split at spaces outside of quotes.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.find('{').map_or(line, |json| &line[..json]);
        let mut words = Vec::new();
        let mut rest = line.trim();
        while !rest.is_empty() {
            let mut quoted = false;
            let end = rest
                .find(|c: char| {
                    quoted ^= c == '"';
                    c == ' ' && !quoted
                })
                .unwrap_or(rest.len());
            words.push(&rest[..end]);
            rest = rest[end..].trim_start();
        }
        Self(words)
    }

    fn verb(&self) -> &'a str {
        self.0[0]
    }

    fn at(&self, index: usize) -> &'a str {
        self.0.get(index).unwrap_or_else(|| panic!("{:?} needs another word", self.0))
    }

    fn name(&self) -> ConsumerName {
        ConsumerName::parse(self.at(1)).expect("a consumer name")
    }

    fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter(|word| !word.starts_with('"')).filter_map(|word| word.split_once('='))
    }

    fn plain(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().copied().filter(|word| !word.contains('='))
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        self.pairs().find(|(name, _)| *name == key).map(|(_, value)| value.trim_matches('"'))
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.value(key).map(|value| value.parse().unwrap_or_else(|_| panic!("{key}={value} is not a number")))
    }

    fn millis(&self, index: usize) -> i64 {
        let text = self.at(index);
        let number = |digits: &str| digits.parse::<i64>().unwrap_or_else(|_| panic!("{text} is not a time"));
        match text.strip_suffix("ms") {
            Some(digits) => number(digits),
            None => number(text.trim_end_matches('s')) * 1000,
        }
    }

    /// The header block that the short names ask for.
    fn header(&self) -> Vec<u8> {
        let mut header = String::new();
        for (key, value) in self.pairs() {
            let name = match key {
                "id" => "Nats-Msg-Id",
                "stream" => "Nats-Expected-Stream",
                "last" => "Nats-Expected-Last-Sequence",
                "last-subject" => "Nats-Expected-Last-Subject-Sequence",
                "last-subject-of" => "Nats-Expected-Last-Subject-Sequence-Subject",
                "last-id" => "Nats-Expected-Last-Msg-Id",
                "rollup" => "Nats-Rollup",
                "ttl" => "Nats-TTL",
                "incr" => "Nats-Incr",
                "size" | "sum" | "batch" => continue,
                other => other,
            };
            let _ = write!(header, "{name}: {}\r\n", value.trim_matches('"'));
        }
        if header.is_empty() { Vec::new() } else { format!("NATS/1.0\r\n{header}\r\n").into_bytes() }
    }

    /// `batch=part` and `batch=end` are records of an atomic batch, `sum=3` one that was counted.
    fn flags(&self) -> RecordFlags {
        let batch = match self.value("batch") {
            Some("end") => RecordFlags::IN_BATCH.and(RecordFlags::ENDS_BATCH),
            Some(_) => RecordFlags::IN_BATCH,
            None => RecordFlags::PUBLISHED,
        };
        if self.value("sum").is_some() { batch.and(RecordFlags::COUNTED) } else { batch }
    }

    /// The quoted word, or as many bytes as `size` says.
    fn payload(&self) -> Vec<u8> {
        if let Some(sum) = self.value("sum") {
            return counter::body(sum);
        }
        if let Some(size) = self.number("size") {
            return vec![b'x'; usize::try_from(size).expect("a small size")];
        }
        let quoted = self.0.iter().find(|word| word.starts_with('"'));
        quoted.map(|word| word.trim_matches('"').as_bytes().to_vec()).unwrap_or_default()
    }
}
