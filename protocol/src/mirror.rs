//! What the leader of a stream that mirrors or sources another one asks that other one's leader for, and what it gets.
//!
//! One question, one answer: the reader says which sequence it wants next, the origin answers with messages, or with
//! nothing after it has waited a while. So the reader decides how much is on its way, and nothing is kept at the origin
//! between two questions. Neither names a node or a transport.
//!
//! Tags go over the wire between nodes of different releases: never renumber, never reuse.

use bytes::Bytes;
use prost::Message;

use crate::api::ApiError;
use crate::command::Undecodable;
use crate::record::Block;

/// What a reader wants of an origin.
#[derive(Clone, PartialEq, Message)]
pub struct FetchRequest {
    /// The account of both streams.
    #[prost(string, tag = "1")]
    pub account: String,
    /// The origin's name.
    #[prost(string, tag = "2")]
    pub stream: String,
    /// The first sequence that is wanted; 0 is where the start says, or else where the origin begins.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// Nanoseconds since the epoch: begin with the first message of this time or later when nothing else says.
    #[prost(sint64, optional, tag = "4")]
    pub start_time: Option<i64>,
    /// Filters of what is wanted; none is everything.
    #[prost(string, repeated, tag = "5")]
    pub filters: Vec<String>,
    /// The answer is closed when it holds this many bytes.
    #[prost(uint64, tag = "6")]
    pub bytes_max: u64,
    /// Milliseconds to wait for a message if there is none.
    #[prost(uint64, tag = "7")]
    pub wait_ms: u64,
    /// Whether to count the messages behind those in the answer.
    #[prost(bool, tag = "8")]
    pub count: bool,
    /// Who asks, for origins that keep messages until their consumers are done with them.
    #[prost(message, optional, tag = "9")]
    pub reader: Option<Reader>,
    /// The incarnation of the origin that `from` is about; empty is any. Of another one everything is wanted.
    #[prost(string, tag = "10")]
    pub identity: String,
    /// The first sequence that is wanted when `from` does not say; 0 is not set.
    #[prost(uint64, tag = "11")]
    pub start_seq: u64,
    /// No messages are wanted, but this consumer of the origin reset to its ack floor, to deliver them; empty is none.
    #[prost(string, tag = "12")]
    pub consumer: String,
}

/// The stream that asks, as a consumer of an origin that has work-queue or interest retention.
#[derive(Clone, PartialEq, Message)]
pub struct Reader {
    /// Name of the stream.
    #[prost(string, tag = "1")]
    pub stream: String,
    /// Name of the consumer.
    #[prost(string, tag = "2")]
    pub consumer: String,
    /// Whether it mirrors; otherwise it sources.
    #[prost(bool, tag = "3")]
    pub mirrors: bool,
    /// Everything up to this sequence is stored durably.
    #[prost(uint64, tag = "4")]
    pub stored: u64,
    /// It is read no more: the consumer is not needed.
    #[prost(bool, tag = "5")]
    pub leaves: bool,
    /// The incarnation of the origin that `stored` is about.
    #[prost(string, tag = "6")]
    pub identity: String,
    /// The number of the stream's group, which tells it from one that had its name before.
    #[prost(uint64, tag = "7")]
    pub group: u64,
}

/// What an origin has.
#[derive(Clone, PartialEq, Message)]
pub struct FetchAnswer {
    /// Says which incarnation of the stream this is.
    #[prost(string, tag = "1")]
    pub identity: String,
    /// The origin's first sequence.
    #[prost(uint64, tag = "2")]
    pub first_seq: u64,
    /// The origin's last sequence.
    #[prost(uint64, tag = "3")]
    pub last_seq: u64,
    /// Where the answer begins: what was asked for, or what that came to.
    #[prost(uint64, tag = "4")]
    pub from: u64,
    /// Everything from `from` up to this sequence that is wanted is in the answer.
    #[prost(uint64, tag = "5")]
    pub through: u64,
    /// Sequences of the messages, ascending.
    #[prost(uint64, repeated, tag = "6")]
    pub seqs: Vec<u64>,
    /// The messages, as a block whose records have their own times; empty if there are none.
    #[prost(bytes = "bytes", tag = "7")]
    pub block: Bytes,
    /// Wanted messages behind those in the answer, if that was asked for.
    #[prost(uint64, optional, tag = "8")]
    pub pending: Option<u64>,
    /// Why there is no answer, as a JSON document; empty if there is one.
    #[prost(string, tag = "9")]
    pub error: String,
    /// When this incarnation was created, in nanoseconds since the epoch.
    #[prost(sint64, tag = "11")]
    pub born: i64,
    /// Up to this sequence this incarnation was restored from an archive; 0 if it was not.
    #[prost(uint64, tag = "12")]
    pub restored_to: u64,
    /// The consumer that was named is reset, and delivers what follows `through`.
    #[prost(bool, tag = "13")]
    pub attached: bool,
    /// The stream exists and is led by another node, or by none.
    #[prost(bool, tag = "10")]
    pub elsewhere: bool,
}

impl FetchAnswer {
    /// Not answered.
    #[must_use]
    pub fn refused(error: &ApiError) -> Self {
        Self { error: serde_json::to_string(error).unwrap_or_default(), ..Self::default() }
    }

    /// Why there is no answer.
    #[must_use]
    pub fn refusal(&self) -> Option<ApiError> {
        if self.error.is_empty() {
            return None;
        }
        Some(serde_json::from_str(&self.error).unwrap_or_else(|_| ApiError::not_available()))
    }

    /// The messages. An answer that comes from elsewhere is checked here, once.
    pub fn messages(&self) -> Result<Option<Block>, Undecodable> {
        let damaged =
            |what: &str| Err(Undecodable(format!("answer of a mirrored or sourced stream: {what}")));
        let is_ascending = self.seqs.is_sorted_by(|one, other| one < other);
        let within = |seq: &u64| *seq >= self.from && *seq <= self.through;
        if !is_ascending || !self.seqs.iter().all(within) {
            return damaged("its sequences are not in order");
        }
        if self.block.is_empty() {
            return if self.seqs.is_empty() { Ok(None) } else { damaged("it has no messages") };
        }
        let block = Block::parse(self.block.clone()).map_err(|error| Undecodable(error.to_string()))?;
        if block.count() as usize != self.seqs.len() || !block.is_timed() {
            return damaged("its messages are not those of its sequences");
        }
        Ok(Some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BlockBuilder, RecordFlags, RecordRef};
    use crate::time::Timestamp;

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        let mut builder = BlockBuilder::timed(0);
        let record = RecordRef { timestamp: Timestamp(3), subject: b"a", header: b"", payload: b"x" };
        builder.push_timed(RecordFlags::COPIED, &record);
        let block = builder.finish(Timestamp(4)).as_bytes().clone();
        let answer = FetchAnswer { from: 5, through: 9, seqs: vec![7], block, ..FetchAnswer::default() };
        let decoded = FetchAnswer::decode(&answer.encode_to_vec()[..]).unwrap();

        assert_eq!(decoded.messages().unwrap().map(|block| block.record(0) == record), Some(true));
        assert_eq!(FetchAnswer::default().messages(), Ok(None));
        for wrong in [vec![], vec![4], vec![10], vec![7, 8], vec![8, 7]] {
            assert!(FetchAnswer { seqs: wrong, ..answer.clone() }.messages().is_err());
        }
        assert!(FetchAnswer { block: Bytes::from_static(b"no block"), ..answer }.messages().is_err());
    }

    #[test]
    fn a_refusal_comes_back() {
        assert_eq!(
            FetchAnswer::refused(&ApiError::stream_not_found()).refusal(),
            Some(ApiError::stream_not_found())
        );
        assert_eq!(FetchAnswer::default().refusal(), None);
        let garbled = FetchAnswer { error: "{".into(), ..FetchAnswer::default() };
        assert_eq!(garbled.refusal(), Some(ApiError::not_available()));
    }
}
