//! A consumer in an archive: its configuration, and what it delivered and had acknowledged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::ConsumerConfig;
use crate::ids::Seq;

/// The document of one consumer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArchivedConsumer {
    /// Its configuration.
    pub config: ConsumerConfig,
    /// Its marks.
    pub state: ConsumerState,
}

/// What a consumer delivered and had acknowledged, as nats-server writes it down.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ConsumerState {
    /// The last delivery.
    pub delivered: SequencePair,
    /// Everything up to here is settled.
    pub ack_floor: SequencePair,
    /// Delivered and not settled, by stream sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<BTreeMap<u64, Pending>>,
    /// How often messages were delivered again, by stream sequence. Those that are not pending any more were delivered
    /// as often as allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivered: Option<BTreeMap<u64, u64>>,
    /// Messages that were chosen when the consumer was created. nats-server has no such field and ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
}

/// A place in the deliveries and in the stream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SequencePair {
    /// Number of the delivery.
    pub consumer_seq: u64,
    /// Sequence of the message.
    pub stream_seq: Seq,
}

/// A delivery that is not settled.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// Number of the delivery.
    #[serde(rename = "Sequence")]
    pub sequence: u64,
    /// When, in nanoseconds.
    #[serde(rename = "Timestamp")]
    pub ts: i64,
}

/// Messages that were chosen when a consumer was created and are not delivered yet.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Which.
    pub seqs: Vec<Seq>,
    /// After this, everything counts again.
    pub resume: Seq,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_as_nats_server_writes_it() {
        let text = r#"{"config":{"durable_name":"c","ack_policy":"explicit"},"state":{"delivered":{"consumer_seq":7,"stream_seq":5},"ack_floor":{"consumer_seq":2,"stream_seq":2},"pending":{"3":{"Sequence":3,"Timestamp":1700000000000000000}},"redelivered":{"3":1}}}"#;

        let read: ArchivedConsumer = serde_json::from_str(text).unwrap();

        assert_eq!(read.state.delivered, SequencePair { consumer_seq: 7, stream_seq: Seq(5) });
        let pending = Pending { sequence: 3, ts: 1_700_000_000_000_000_000 };
        assert_eq!(read.state.pending, Some(BTreeMap::from([(3, pending)])));
        let again = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<ArchivedConsumer>(&again).unwrap(), read);
        assert!(again.contains(r#""pending":{"3":{"Sequence":3"#), "{again}");
    }
}
