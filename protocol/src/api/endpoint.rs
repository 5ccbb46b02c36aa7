//! THE TABLE of `$JS.API` endpoints: subject, scope, type of the answer.
//!
//! Finding the right node, decoding, limits and metrics follow from the row.

use serde::Serialize;

use crate::api::envelope;
use crate::api::error::ApiError;

/// Who answers a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// The node that received it.
    Local,
    /// The leader of the meta group.
    Meta,
    /// The leader of the stream.
    Stream,
    /// The leader of the consumer, which is the leader of its stream.
    Consumer,
    /// Any node that holds the stream.
    Replica,
}

/// What follows the words of an endpoint in its subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    Nothing,
    Stream,
    StreamThenRest,
    StreamAndConsumer,
    StreamThenConsumerAndRest,
    Account,
    AccountAndStream,
}

/// What a call must carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Body {
    /// JSON, or nothing.
    Json,
    /// Nothing; anything else is refused with 10038.
    Empty,
    /// Read by rules of its own and never refused for unknown fields.
    Special,
}

/// Who may call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Caller {
    /// Every account that has JetStream.
    Anyone,
    /// The system account; calls from others are ignored.
    System,
    /// The account that the call names, and the system account; calls from others are ignored.
    Owner,
}

macro_rules! endpoints {
    ($($(#[$doc:meta])* $name:ident $words:literal $shape:ident $scope:ident $body:ident $caller:ident $kind:literal $tail:literal;)*) => {
        /// One call of the API.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Endpoint {
            $($(#[$doc])* $name,)*
        }

        impl Endpoint {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        words: $words,
                        shape: Shape::$shape,
                        scope: Scope::$scope,
                        body: Body::$body,
                        caller: Caller::$caller,
                        kind: $kind,
                        tail: $tail,
                    },)*
                }
            }
        }
    };
}

struct Row {
    words: &'static str,
    shape: Shape,
    scope: Scope,
    body: Body,
    caller: Caller,
    kind: &'static str,
    tail: &'static str,
}

// The calls that clients make per message come first: rows are tried in order. The last column is what the
// answer carries besides when it is an error.
endpoints! {
    /// Ask a pull consumer for messages.
    ConsumerNext "CONSUMER.MSG.NEXT" StreamAndConsumer Consumer Special Anyone "" "";
    /// Read messages from any replica.
    DirectGet "DIRECT.GET" StreamThenRest Replica Special Anyone "" "";
    /// Read one message.
    MessageGet "STREAM.MSG.GET" Stream Stream Json Anyone "stream_msg_get_response" "";
    /// Delete one message.
    MessageDelete "STREAM.MSG.DELETE" Stream Stream Json Anyone "stream_msg_delete_response" "";
    /// Describe a consumer.
    ConsumerInfo "CONSUMER.INFO" StreamAndConsumer Consumer Empty Anyone "consumer_info_response" "";
    /// Create or update a consumer.
    ConsumerCreate "CONSUMER.CREATE" StreamThenConsumerAndRest Stream Json Anyone "consumer_create_response" "";
    /// Create or update a durable consumer, the old way.
    ConsumerDurableCreate "CONSUMER.DURABLE.CREATE" StreamAndConsumer Stream Json Anyone "consumer_create_response" "";
    /// Delete a consumer.
    ConsumerDelete "CONSUMER.DELETE" StreamAndConsumer Consumer Empty Anyone "consumer_delete_response" "";
    /// Names of consumers.
    ConsumerNames "CONSUMER.NAMES" Stream Stream Json Anyone "consumer_names_response" "\"total\":0,\"offset\":0,\"limit\":0,\"consumers\":[]";
    /// Descriptions of consumers.
    ConsumerList "CONSUMER.LIST" Stream Stream Json Anyone "consumer_list_response" "\"total\":0,\"offset\":0,\"limit\":0,\"consumers\":[]";
    /// Deliver nothing until a time.
    ConsumerPause "CONSUMER.PAUSE" StreamAndConsumer Consumer Json Anyone "consumer_pause_response" "\"paused\":false,\"pause_until\":\"0001-01-01T00:00:00Z\"";
    /// Start over.
    ConsumerReset "CONSUMER.RESET" StreamAndConsumer Consumer Special Anyone "consumer_reset_response" "\"reset_seq\":0";
    /// Release the pinned client of a group.
    ConsumerUnpin "CONSUMER.UNPIN" StreamAndConsumer Consumer Special Anyone "consumer_unpin_response" "";
    /// Let another node lead a consumer.
    ConsumerStepDown "CONSUMER.LEADER.STEPDOWN" StreamAndConsumer Consumer Json Anyone "consumer_leader_stepdown_response" "";
    /// Take a peer away from a consumer.
    ConsumerPeerRemove "CONSUMER.PEER.REMOVE" StreamAndConsumer Consumer Json Anyone "consumer_remove_peer_response" "";
    /// Move a consumer off a peer.
    ConsumerPeerEvacuate "CONSUMER.PEER.EVACUATE" StreamAndConsumer Consumer Json Anyone "consumer_evacuate_peer_response" "";
    /// Describe a stream.
    StreamInfo "STREAM.INFO" Stream Stream Json Anyone "stream_info_response" "\"total\":0,\"offset\":0,\"limit\":0";
    /// Create a stream.
    StreamCreate "STREAM.CREATE" Stream Meta Json Anyone "stream_create_response" "";
    /// Change a stream.
    StreamUpdate "STREAM.UPDATE" Stream Meta Json Anyone "stream_update_response" "";
    /// Delete a stream.
    StreamDelete "STREAM.DELETE" Stream Meta Empty Anyone "stream_delete_response" "";
    /// Remove messages.
    StreamPurge "STREAM.PURGE" Stream Stream Json Anyone "stream_purge_response" "\"purged\":0";
    /// Names of streams.
    StreamNames "STREAM.NAMES" Nothing Meta Json Anyone "stream_names_response" "\"total\":0,\"offset\":0,\"limit\":0,\"streams\":null";
    /// Descriptions of streams.
    StreamList "STREAM.LIST" Nothing Meta Json Anyone "stream_list_response" "\"total\":0,\"offset\":0,\"limit\":0,\"streams\":[]";
    /// Back a stream up.
    StreamSnapshot "STREAM.SNAPSHOT" Stream Stream Json Anyone "stream_snapshot_response" "";
    /// Bring a stream back.
    StreamRestore "STREAM.RESTORE" Stream Meta Json Anyone "stream_restore_response" "\"deliver_subject\":\"\"";
    /// Let another node lead a stream.
    StreamStepDown "STREAM.LEADER.STEPDOWN" Stream Stream Json Anyone "stream_leader_stepdown_response" "";
    /// Take a peer away from a stream.
    StreamPeerRemove "STREAM.PEER.REMOVE" Stream Meta Json Anyone "stream_remove_peer_response" "";
    /// Move a stream off a peer.
    StreamPeerEvacuate "STREAM.PEER.EVACUATE" Stream Meta Json Anyone "stream_evacuate_peer_response" "";
    /// Stop moving a stream.
    StreamCancelMove "STREAM.CANCEL_MOVE" Stream Meta Json Anyone "stream_cancel_move_response" "";
    /// Usage and limits of the account.
    AccountInfo "INFO" Nothing Meta Special Anyone "account_info_response" "";
    /// Let another node lead the meta group.
    MetaStepDown "META.LEADER.STEPDOWN" Nothing Meta Json System "meta_leader_stepdown_response" "";
    /// Lower the number of votes the meta group needs, after nodes are lost for good.
    MetaRescue "META.RESCUE" Nothing Local Json System "meta_rescue_response" "\"server\":\"\",\"server_id\":\"\"";
    /// Forget a node that left for good.
    ServerRemove "SERVER.REMOVE" Nothing Meta Json System "meta_server_remove_response" "";
    /// Move everything off a node.
    ServerEvacuate "SERVER.EVACUATE" Nothing Meta Json System "meta_server_evacuate_response" "";
    /// Delete everything an account has.
    AccountPurge "ACCOUNT.PURGE" Account Meta Json System "account_purge_response" "";
    /// Move a stream of an account.
    AccountStreamMove "ACCOUNT.STREAM.MOVE" AccountAndStream Meta Json Owner "stream_update_response" "";
    /// Stop moving a stream of an account.
    AccountStreamCancelMove "ACCOUNT.STREAM.CANCEL_MOVE" AccountAndStream Meta Json Owner "stream_cancel_move_response" "";
}

impl Endpoint {
    /// Takes a subject apart. `None` when it is not a call: nobody answers then.
    ///
    /// `$JS.<domain>.API.` is understood besides `$JS.API.` when the server has that domain.
    #[must_use]
    pub fn parse<'a>(subject: &'a str, domain: Option<&str>) -> Option<Request<'a>> {
        let call = strip_prefix(subject, domain)?;
        for endpoint in Self::ALL {
            let row = endpoint.row();
            if let Some(rest) = call.strip_prefix(row.words) {
                let arguments = match rest.strip_prefix('.') {
                    Some(arguments) if !arguments.is_empty() => arguments,
                    None if rest.is_empty() => "",
                    Some(_) | None => continue,
                };
                if let Some(request) = row.shape.split(*endpoint, arguments) {
                    return Some(request);
                }
            }
        }
        None
    }

    /// Who answers.
    #[must_use]
    pub const fn scope(self) -> Scope {
        self.row().scope
    }

    /// What it must carry.
    #[must_use]
    pub const fn body(self) -> Body {
        self.row().body
    }

    /// Who may call it.
    #[must_use]
    pub const fn caller(self) -> Caller {
        self.row().caller
    }

    /// Whether it makes sense only where there can be other nodes; elsewhere it is refused with 10010.
    #[must_use]
    pub const fn needs_cluster(self) -> bool {
        matches!(
            self,
            Self::StreamStepDown
                | Self::ConsumerStepDown
                | Self::MetaStepDown
                | Self::StreamPeerRemove
                | Self::StreamPeerEvacuate
                | Self::ConsumerPeerRemove
                | Self::ConsumerPeerEvacuate
                | Self::StreamCancelMove
                | Self::ServerRemove
                | Self::ServerEvacuate
                | Self::AccountStreamMove
                | Self::AccountStreamCancelMove
        )
    }

    /// Type of the answer without `io.nats.jetstream.api.v1.`; empty for calls that are answered with messages.
    #[must_use]
    pub const fn response_type(self) -> &'static str {
        self.row().kind
    }

    /// The words of its subject, for logs and metrics.
    #[must_use]
    pub const fn words(self) -> &'static str {
        self.row().words
    }

    /// A successful answer: the type, then the fields of `body`.
    #[must_use]
    pub fn success(self, body: &impl Serialize) -> Vec<u8> {
        envelope::success(self.row().kind, body)
    }

    /// An answer that says why not.
    #[must_use]
    pub fn failure(self, error: &ApiError) -> Vec<u8> {
        envelope::failure(self.row().kind, error, self.row().tail)
    }
}

/// A call, taken apart. What the subject does not name is empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request<'a> {
    /// Which call.
    pub endpoint: Endpoint,
    /// The stream it names.
    pub stream: &'a str,
    /// The consumer it names.
    pub consumer: &'a str,
    /// What follows: the filter of a consumer to create, or the subject of a direct get.
    pub rest: &'a str,
    /// The account it names.
    pub account: &'a str,
}

impl Shape {
    fn split<'a>(self, endpoint: Endpoint, arguments: &'a str) -> Option<Request<'a>> {
        let none = Request { endpoint, stream: "", consumer: "", rest: "", account: "" };
        let (first, after_first) = first_token(arguments);
        let (second, after_second) = first_token(after_first);
        match self {
            Self::Nothing => arguments.is_empty().then_some(none),
            Self::Stream => {
                (!first.is_empty() && after_first.is_empty()).then_some(Request { stream: first, ..none })
            }
            Self::StreamThenRest => {
                (!first.is_empty()).then_some(Request { stream: first, rest: after_first, ..none })
            }
            Self::StreamAndConsumer => (!second.is_empty() && after_second.is_empty()).then_some(Request {
                stream: first,
                consumer: second,
                ..none
            }),
            Self::StreamThenConsumerAndRest => (!first.is_empty()).then_some(Request {
                stream: first,
                consumer: second,
                rest: after_second,
                ..none
            }),
            Self::Account => {
                (!first.is_empty() && after_first.is_empty()).then_some(Request { account: first, ..none })
            }
            Self::AccountAndStream => (!second.is_empty() && after_second.is_empty()).then_some(Request {
                account: first,
                stream: second,
                ..none
            }),
        }
    }
}

fn first_token(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, ""))
}

fn strip_prefix<'a>(subject: &'a str, domain: Option<&str>) -> Option<&'a str> {
    let rest = subject.strip_prefix("$JS.")?;
    if let Some(call) = rest.strip_prefix("API.") {
        return Some(call);
    }
    rest.strip_prefix(domain?)?.strip_prefix(".API.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(subject: &str, expected: Option<(Endpoint, &str, &str, &str)>) {
        let found = Endpoint::parse(subject, Some("hub"))
            .map(|request| (request.endpoint, request.stream, request.consumer, request.rest));
        assert_eq!(found, expected, "{subject}");
    }

    #[test]
    fn subjects_are_taken_apart_by_their_rows() {
        check("$JS.API.INFO", Some((Endpoint::AccountInfo, "", "", "")));
        check("$JS.hub.API.INFO", Some((Endpoint::AccountInfo, "", "", "")));
        check("$JS.API.STREAM.CREATE.S", Some((Endpoint::StreamCreate, "S", "", "")));
        check("$JS.API.STREAM.MSG.GET.S", Some((Endpoint::MessageGet, "S", "", "")));
        check("$JS.API.CONSUMER.MSG.NEXT.S.C", Some((Endpoint::ConsumerNext, "S", "C", "")));
        check("$JS.API.CONSUMER.CREATE.S", Some((Endpoint::ConsumerCreate, "S", "", "")));
        check("$JS.API.CONSUMER.CREATE.S.C", Some((Endpoint::ConsumerCreate, "S", "C", "")));
        check("$JS.API.CONSUMER.CREATE.S.C.a.*.>", Some((Endpoint::ConsumerCreate, "S", "C", "a.*.>")));
        check("$JS.API.CONSUMER.DURABLE.CREATE.S.C", Some((Endpoint::ConsumerDurableCreate, "S", "C", "")));
        check("$JS.API.DIRECT.GET.KV_b", Some((Endpoint::DirectGet, "KV_b", "", "")));
        check("$JS.API.DIRECT.GET.KV_b.$KV.b.k", Some((Endpoint::DirectGet, "KV_b", "", "$KV.b.k")));
        check("$JS.API.STREAM.NAMES", Some((Endpoint::StreamNames, "", "", "")));
    }

    #[test]
    fn what_is_not_in_the_table_is_nobodys() {
        for subject in [
            "$JS.API",
            "$JS.API.",
            "$JS.API.NOPE",
            "$JS.API.INFO.x",
            "$JS.API.INFOX",
            "$JS.API.STREAM.INFO",
            "$JS.API.STREAM.INFO.",
            "$JS.API.STREAM.INFO.a.b",
            "$JS.API.CONSUMER.INFO.S",
            "$JS.API.CONSUMER.MSG.NEXT.S.C.x",
            "$JS.leaf.API.INFO",
            "orders",
        ] {
            check(subject, None);
        }
    }

    #[test]
    fn every_row_is_reached_by_its_own_subject() {
        for endpoint in Endpoint::ALL {
            let arguments = match endpoint.row().shape {
                Shape::Nothing => "",
                Shape::Stream | Shape::StreamThenRest | Shape::StreamThenConsumerAndRest | Shape::Account => {
                    ".S"
                }
                Shape::StreamAndConsumer | Shape::AccountAndStream => ".S.C",
            };
            let subject = format!("$JS.API.{}{arguments}", endpoint.words());
            assert_eq!(Endpoint::parse(&subject, None).map(|request| request.endpoint), Some(*endpoint));
        }
    }

    #[test]
    fn errors_carry_what_the_answer_always_carries() {
        let text = String::from_utf8(Endpoint::StreamInfo.failure(&ApiError::stream_not_found())).unwrap();

        assert_eq!(
            text,
            r#"{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":404,"err_code":10059,"description":"stream not found"},"total":0,"offset":0,"limit":0}"#
        );
    }
}
