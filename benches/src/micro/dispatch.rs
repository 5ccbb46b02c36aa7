//! A consumer's leader: from a pull request to deliveries, acks, and the progress that is proposed.

use std::hint::black_box;
use std::ops::ControlFlow;

use bytes::Bytes;
use levee_broker_core::consumer::{Dispatch, Step};
use levee_broker_core::stream::{MessageView, ReadFailed, StreamMachine};
use levee_protocol::api::{
    AckKind, AckPolicy, AckReply, ConsumerConfig, ConsumerCreateAction, PullRequest, StreamConfig,
};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::record::{Record, RecordRef};
use levee_protocol::time::{Nanos, Timestamp};

use crate::micro::{Call, Case, apply};

/// Messages of a pull request.
const BATCH: u64 = 500;
const NOW: Timestamp = Timestamp(1_001_000_000_000);

/// The cases.
pub const CASES: [Case; 2] = [
    Case { name: "dispatch a fetch, no acks", per_call: BATCH, prepare: || fetch(AckPolicy::None) },
    Case { name: "dispatch a fetch and its acks", per_call: BATCH, prepare: || fetch(AckPolicy::Explicit) },
];

/// Each call is a leader that takes over, serves one fetch, and is done.
fn fetch(ack_policy: AckPolicy) -> Call {
    let mut machine = apply::stream(StreamConfig::default());
    let block = apply::block(0, BATCH, 10, |_| String::new());
    let view = Stored((0..block.count()).map(|at| block.record_owned(at, Seq(u64::from(at) + 1))).collect());
    let name = ConsumerName::parse("C").expect("a valid name");
    let config = ConsumerConfig { ack_policy, max_ack_pending: -1, ..ConsumerConfig::default() };
    let create = StreamCommand::CreateConsumer {
        now: NOW,
        name: name.clone(),
        config: Box::new(config),
        action: ConsumerCreateAction::CreateOrUpdate,
        default_max: 0,
    };
    machine.apply(2, &StreamCommand::Publish(block), &view).expect("memory does not fail");
    machine.apply(3, &create, &view).expect("memory does not fail");
    Box::new(move || serve(&machine, &name, &view, ack_policy))
}

fn serve(machine: &StreamMachine, name: &ConsumerName, view: &Stored, ack_policy: AckPolicy) {
    let ledger = machine.consumer(name).expect("it was created");
    let mut dispatch = Dispatch::new(ledger, machine, view, NOW).expect("memory does not fail");
    let request =
        PullRequest { batch: BATCH as i64, expires: Nanos::from_millis(1000), ..PullRequest::default() };
    assert!(dispatch.on_pull(black_box(&request), Bytes::from_static(b"inbox"), NOW).is_empty());
    let mut delivered = 0;
    loop {
        match dispatch.poll(machine, view, &|_| true, NOW).expect("memory does not fail") {
            Step::Deliver(delivery) => {
                delivered += 1;
                black_box(delivery);
            }
            Step::Sleep(_) => break,
            step => panic!("{step:?} is not expected"),
        }
    }
    assert_eq!(delivered, BATCH);
    if ack_policy == AckPolicy::Explicit {
        for seq in 1..=BATCH {
            let ack = AckReply {
                stream: "S",
                consumer: "C",
                attempt: 1,
                stream_seq: Seq(seq),
                consumer_seq: seq,
                timestamp: NOW,
                pending: 0,
            };
            black_box(dispatch.on_ack(black_box(&ack), AckKind::Ack, NOW));
        }
        assert_eq!(dispatch.num_ack_pending(), 0);
    }
    assert!(black_box(dispatch.take_progress()).is_some());
}

/// Messages in memory, from sequence 1.
struct Stored(Vec<Record>);

impl MessageView for Stored {
    fn record(&self, seq: Seq) -> Result<Option<Record>, ReadFailed> {
        Ok(self.0.get((seq.0 as usize).wrapping_sub(1)).cloned())
    }

    fn scan(
        &self,
        from: Seq,
        visit: &mut dyn FnMut(Seq, RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadFailed> {
        for record in self.0.iter().skip((from.0 as usize).saturating_sub(1)) {
            if visit(record.seq, record.borrowed()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn seek_time(&self, at: Timestamp) -> Result<Option<Seq>, ReadFailed> {
        Ok(self.0.iter().find(|record| record.timestamp >= at).map(|record| record.seq))
    }
}
