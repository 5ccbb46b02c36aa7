//! What stands in front of messages that a stream copies from another one: which stream they are of, and what the
//! copying stream must have of it so that they are next.
//!
//! Its bytes are the body of a record in the block of the messages, which is a log entry on disks: fields are appended
//! to, never changed, never reused.

use prost::Message;

use super::Undecodable;

/// The claim in front of copied messages, all of the same origin.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OriginClaim {
    /// Which of the stream's sources this is of, as [`StreamSource::key`](crate::api::StreamSource::key) names it;
    /// empty for what it mirrors.
    pub source: String,
    /// Says which incarnation of the origin this is: one that is created again under its name has another.
    pub identity: String,
    /// The origin's sequence up to which the stream must have everything, and no more.
    pub after: u64,
    /// The origin's sequence of each message. None for a mirror: there the first message is the next one and they follow
    /// each other, records without a subject standing for sequences that the origin does not have.
    pub seqs: Vec<u64>,
    /// The origin's sequence up to which the stream has everything afterwards.
    pub through: u64,
    /// When that incarnation was created, in nanoseconds since the epoch: a later one replaces it, an earlier one is over.
    pub born: i64,
    /// Of a mirror: sequences up to this one, which the origin does not have, come before the first message.
    pub skipped_to: u64,
    /// Up to this sequence that incarnation was restored from an archive, and has what the one before it had; 0 if it
    /// was not.
    pub restored_to: u64,
}

/// Tags are persisted: never renumber, never reuse.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(string, tag = "2")]
    identity: String,
    #[prost(uint64, tag = "3")]
    after: u64,
    #[prost(uint64, repeated, tag = "4")]
    seqs: Vec<u64>,
    #[prost(uint64, tag = "5")]
    through: u64,
    #[prost(uint64, tag = "6")]
    skipped_to: u64,
    #[prost(sint64, tag = "7")]
    born: i64,
    #[prost(uint64, tag = "8")]
    restored_to: u64,
}

impl OriginClaim {
    /// The bytes of the claim.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { source, identity, after, seqs, through, skipped_to, born, restored_to } = self.clone();
        Body { source, identity, after, seqs, through, skipped_to, born, restored_to }.encode_to_vec()
    }

    /// Reads what `encode` wrote, in this or an older version.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        let Body { source, identity, after, seqs, through, skipped_to, born, restored_to } =
            Body::decode(bytes).map_err(|error| Undecodable(format!("claim of an origin: {error}")))?;
        Ok(Self { source, identity, after, seqs, through, born, skipped_to, restored_to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn its_bytes_are_pinned() {
        let claim = OriginClaim {
            source: "S > >".into(),
            identity: "x".into(),
            after: 1,
            seqs: vec![2, 300],
            through: 301,
            born: -2,
            skipped_to: 4,
            restored_to: 6,
        };
        let bytes = [
            &[0x0a, 5][..],
            b"S > >",
            &[0x12, 1],
            b"x",
            &[0x18, 1],
            &[0x22, 3, 2, 0xac, 2],
            &[0x28, 0xad, 2],
            &[0x30, 4],
            &[0x38, 3],
            &[0x40, 6],
        ]
        .concat();

        assert_eq!(claim.encode(), bytes);
        assert_eq!(OriginClaim::decode(&bytes), Ok(claim));
        assert!(OriginClaim::decode(&[0x0a, 200]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = OriginClaim::decode(&bytes);
        }
    }
}
