//! The JetStream API: endpoints, errors, documents, publish headers and acks.
//!
//! Everything a client may send or receive on `$JS.>` subjects has its shape here, with the field names, order
//! and omission rules of NATS 2.15. The documents carry no rules beyond syntax, defaults and what one document
//! says about itself; what depends on other streams, consumers or nodes is decided elsewhere.
//!
//! | file | is |
//! |---|---|
//! | [`endpoint`] | the table of `$JS.API` subjects |
//! | [`error`] | the table of API errors |
//! | [`envelope`] | the JSON around every answer, and how requests are read |
//! | [`level`] | which API level a configuration needs, and the reserved metadata keys |
//! | [`stream_config`], [`stream_check`] | a stream's configuration; its defaults and rules |
//! | [`stream_source`] | what a mirrored or sourced stream is called, and which messages are meant |
//! | [`consumer_config`], [`consumer_check`] | a consumer's configuration; its defaults and rules |
//! | [`consumer_extension`] | what Levee's consumers can do beyond NATS's, asked for in metadata |
//! | [`stream_info`], [`consumer_info`], [`account_info`] | what info calls answer |
//! | [`stream_request`], [`consumer_request`], [`message`] | bodies of requests |
//! | [`response`] | bodies of answers that are made of the above |
//! | [`duration_text`] | durations such as `1h30m` |
//! | [`publish`] | publish headers, and the answer to a publish |
//! | [`pull`] | the next-message request |
//! | [`ack`] | ack payloads and ack subjects |
//! | [`fast_batch`] | reply subjects of fast batches, and what is said on them |
//! | [`advisory`] | events |

pub mod account_info;
pub mod ack;
pub mod advisory;
pub mod consumer_check;
pub mod consumer_config;
pub mod consumer_extension;
pub mod consumer_info;
pub mod consumer_request;
mod decimal;
pub mod duration_text;
pub mod endpoint;
pub mod envelope;
pub mod error;
pub mod fast_batch;
mod json_syntax;
pub mod level;
pub mod message;
pub mod publish;
pub mod pull;
pub mod response;
pub mod schedule;
pub mod stream_check;
pub mod stream_config;
pub mod stream_info;
pub mod stream_request;
pub mod stream_source;

pub use account_info::{AccountInfo, AccountLimits, ApiStats};
pub use ack::{AckKind, AckReply};
pub use consumer_config::{AckPolicy, ConsumerConfig, DeliverPolicy, PriorityPolicy, ReplayPolicy};
pub use consumer_extension::{Extensions, KeySource};
pub use consumer_info::{ConsumerInfo, PriorityGroupState, SequenceInfo};
pub use consumer_request::{
    ConsumerCreateAction, ConsumerCreateRequest, ConsumerPauseRequest, ConsumerResetRequest, UnpinRequest,
};
pub use endpoint::{Endpoint, Request, Scope};
pub use envelope::{Strictness, parse_request};
pub use error::ApiError;
pub use message::{
    DirectGet, DirectGetRequest, DirectStatus, MessageDeleteRequest, MessageGetRequest, MessageSelector,
    StoredMessage, UpTo,
};
pub use publish::{PubAck, PublishIntent, RareIntent, Rollup, Ttl, stored_header};
pub use pull::{MalformedPull, PullRequest};
pub use stream_check::{Adjust, ServerLimits, validate_create, validate_update};
pub use stream_config::{
    Compression, ConsumerLimits, DiscardPolicy, ExternalStream, PersistMode, Placement, Republish,
    RetentionPolicy, SourceConsumer, StorageType, StreamConfig, StreamSource, SubjectTransform,
};
pub use stream_info::{
    ClusterInfo, DesiredCluster, DesiredOrigin, DesiredPeer, DesiredStatus, LostMessages, PeerInfo,
    StreamAlternate, StreamInfo, StreamSourceInfo, StreamState,
};
pub use stream_request::{
    MoveRequest, NamesRequest, PeerRequest, PurgeRequest, RestoreRequest, ServerPeerRequest, SnapshotRequest,
    StepDownRequest, StreamConfigRequest, StreamInfoRequest,
};
