//! A committed block of publishes, as every replica applies it, and the block itself.

use std::hint::black_box;
use std::ops::ControlFlow;

use levee_broker_core::stream::{MessageView, PublishReply, ReadFailed, Reply, StreamMachine};
use levee_protocol::api::StreamConfig;
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::Seq;
use levee_protocol::record::{Block, BlockBuilder, Record, RecordRef};
use levee_protocol::time::{Nanos, Timestamp};

use crate::micro::{Call, Case};

/// Messages of a block.
const BATCH: u64 = 200;
const START: Timestamp = Timestamp(1_000_000_000_000);

/// The cases.
pub const CASES: [Case; 5] = [
    Case { name: "build a block, 128 B", per_call: BATCH, prepare: build },
    Case { name: "check a block, 128 B", per_call: BATCH, prepare: check },
    Case { name: "apply publishes, one subject", per_call: BATCH, prepare: || apply(1) },
    Case { name: "apply publishes, 10k subjects", per_call: BATCH, prepare: || apply(10_000) },
    Case { name: "build and apply publishes with message ids", per_call: BATCH, prepare: apply_with_ids },
];

/// A stream that captures `orders.>`.
pub(super) fn stream(config: StreamConfig) -> StreamMachine {
    let config = StreamConfig {
        name: "S".to_owned(),
        subjects: vec!["orders.>".to_owned()],
        max_consumers: -1,
        max_msgs: -1,
        max_bytes: -1,
        max_msgs_per_subject: -1,
        max_msg_size: -1,
        num_replicas: 1,
        ..config
    };
    let mut machine = StreamMachine::new();
    let configure = StreamCommand::Configure { now: START, created: START, config: Box::new(config) };
    machine.apply(1, &configure, &Nothing).expect("nothing is read");
    machine
}

/// A block of messages `first` and on.
pub(super) fn block(first: u64, count: u64, subjects: u64, header: impl Fn(u64) -> String) -> Block {
    let mut builder = BlockBuilder::default();
    for n in first..first + count {
        let subject = format!("orders.{}", n % subjects);
        builder.push(subject.as_bytes(), header(n).as_bytes(), &[b'x'; 128]);
    }
    // A millisecond apart.
    builder.finish(START.plus(Nanos::from_millis((first / count) as i64)))
}

fn build() -> Call {
    Box::new(|| {
        let mut builder = BlockBuilder::with_capacity(BATCH as usize * 160);
        for _ in 0..BATCH {
            builder.push(black_box(b"orders.eu"), b"", black_box(&[b'x'; 128]));
        }
        assert_eq!(u64::from(black_box(builder.finish(START)).count()), BATCH);
    })
}

fn check() -> Call {
    let bytes = block(0, BATCH, 1, |_| String::new()).as_bytes().clone();
    Box::new(move || {
        let block = Block::parse(black_box(bytes.clone())).expect("it was just made");
        assert_eq!(u64::from(black_box(block).count()), BATCH);
    })
}

fn apply(subjects: u64) -> Call {
    let mut machine = stream(StreamConfig::default());
    let blocks = (0..subjects.div_ceil(BATCH)).map(|n| block(n * BATCH, BATCH, subjects, |_| String::new()));
    let commands: Vec<StreamCommand> = blocks.map(StreamCommand::Publish).collect();
    let mut log_index = 1;
    Box::new(move || {
        log_index += 1;
        publish(&mut machine, log_index, &commands[log_index as usize % commands.len()]);
    })
}

fn apply_with_ids() -> Call {
    // The window is full after a hundred blocks, and stays at that size.
    let duplicate_window = Nanos::from_millis(100);
    let mut machine = stream(StreamConfig { duplicate_window, ..StreamConfig::default() });
    let (mut log_index, mut next) = (1, 0);
    let header = |n: u64| format!("NATS/1.0\r\nNats-Msg-Id: {n}\r\n\r\n");
    Box::new(move || {
        log_index += 1;
        publish(&mut machine, log_index, &StreamCommand::Publish(block(next, BATCH, 1, header)));
        next += BATCH;
    })
}

fn publish(machine: &mut StreamMachine, log_index: u64, command: &StreamCommand) {
    let outcome = machine.apply(log_index, black_box(command), &Nothing).expect("nothing is read");
    let Reply::Publish(replies) = &outcome.reply else { panic!("a publish is answered as one") };
    assert!(replies.iter().all(|reply| matches!(reply, PublishReply::Stored { .. })));
}

/// No stored messages: what these streams do needs none.
struct Nothing;

impl MessageView for Nothing {
    fn record(&self, _seq: Seq) -> Result<Option<Record>, ReadFailed> {
        Ok(None)
    }

    fn scan(
        &self,
        _from: Seq,
        _visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        Ok(())
    }

    fn seek_time(&self, _at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        Ok(None)
    }
}
