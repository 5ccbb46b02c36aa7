//! `$JS.API`: find the endpoint, bring the call to the node its scope names, answer it once.
//!
//! The node where the client is connected owns the call: it answers itself, or asks the leader over a peer call and
//! passes the answer on. So every request is answered once, whatever the nodes believe about leaders meanwhile.
//! Pull requests and direct gets are not calls but messages: they go to the stream's leader one way, and the
//! leader sends what they ask for straight to the reply subject.

mod account_info;
mod account_purge;
mod consumer_create;
mod consumer_delete;
pub(crate) mod consumer_info;
mod consumer_list;
mod consumer_next;
mod consumer_pause;
mod consumer_reset;
mod consumer_unpin;
pub mod context;
mod direct_get;
mod message;
mod moves;
mod peers;
mod step_down;
mod stream_create;
mod stream_delete;
pub mod stream_info;
mod stream_list;
mod stream_purge;
mod stream_restore;
mod stream_snapshot;
mod stream_update;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use levee_protocol::api::advisory::ClientInfo;
use levee_protocol::api::endpoint::{Endpoint, Request, Scope};
use levee_protocol::api::{ApiError, endpoint, envelope, level};
use levee_protocol::ids::{AccountName, NodeId};
use levee_protocol::wire::headers::HeaderBlock;

use crate::advisory;
use crate::api::context::{Answer, Context};
use crate::jetstream::{CALL_API, FORWARD_REQUEST, JetStream};
use crate::router::{self, Inbound, InboundItem, MessageRef};
use crate::runtime::{clock, tasks};
use crate::sinks::{self, Arrival};
use crate::stream::forward;

/// How long a call waits for a leader before it says that there is none. Clients wait five seconds.
const LEADER_PATIENCE: Duration = Duration::from_secs(4);
const LEADER_LOOK_INTERVAL: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A call travels client's node, meta leader, stream leader at most.
const HOPS_MAX: u8 = 2;

/// Whether anybody answers this subject. Nobody does for an endpoint that does not exist, and for a direct get
/// on a stream that does not allow it: clients see "no responders", as on nats-server.
pub fn is_answered(jetstream: &Arc<JetStream>, account: &AccountName, subject: &[u8]) -> bool {
    let Some(request) = parse(jetstream, subject) else { return false };
    match request.endpoint {
        Endpoint::DirectGet => direct_get::is_readable(jetstream, account, request.stream),
        _ => true,
    }
}

fn parse<'a>(jetstream: &JetStream, subject: &'a [u8]) -> Option<Request<'a>> {
    let domain = jetstream.domain();
    Endpoint::parse(std::str::from_utf8(subject).ok()?, (!domain.is_empty()).then_some(domain))
}

/// Takes the API messages of one read chunk of a client.
pub fn accept(jetstream: &Arc<JetStream>, from: &Arc<router::ClientInfo>, batch: Inbound) {
    let mut messages = Inbound { chunk: batch.chunk.clone(), items: Vec::new() };
    for item in &batch.items {
        let Some(request) = parse(jetstream, batch.subject(item)) else { continue };
        match request.endpoint {
            Endpoint::ConsumerNext | Endpoint::DirectGet => messages.items.push(*item),
            _ if batch.reply(item).is_empty() => {}
            _ if !jetstream.accounts().may_call(&from.account, &request) => {}
            endpoint => {
                let (jetstream, from) = (Arc::clone(jetstream), Arc::clone(from));
                let call = Inbound { chunk: batch.chunk.clone(), items: vec![*item] };
                tasks::spawn("api call", async move {
                    let item = &call.items[0];
                    let subject = call.subject(item);
                    let client = advisory::client(&jetstream, &from);
                    let answer = match refusal(&jetstream, &from.account, endpoint, call.header(item)) {
                        None => {
                            let caller = Caller { account: &from.account, client: &client };
                            answer(&jetstream, caller, subject, call.payload(item)).await
                        }
                        refusal => refusal,
                    };
                    if let Some(answer) = answer {
                        send(&jetstream, &from.account, call.reply(item), &answer);
                        audit(&jetstream, &from.account, &client, (&call, item), &answer);
                    }
                });
            }
        }
    }
    stream_requests(jetstream, &from.account, &messages, Arrival::Client);
}

/// Tells of a call, unless it has read a single message: those are as many as messages.
fn audit(
    jetstream: &JetStream,
    account: &AccountName,
    client: &ClientInfo,
    (call, item): (&Inbound, &InboundItem),
    answer: &[u8],
) {
    let subject = call.subject(item);
    let Some(request) = parse(jetstream, subject) else { return };
    if request.endpoint != Endpoint::MessageGet || envelope::is_failure(answer) {
        advisory::api_audit(jetstream, account, client, subject, (call.payload(item), answer));
    }
}

fn send(jetstream: &JetStream, account: &AccountName, to: &[u8], payload: &[u8]) {
    let mut route = jetstream.router().batch();
    route.send(account, to, MessageRef { subject: to, reply: &[], header: &[], payload });
}

/// What a call is answered with that the account can't make, or this server can't understand.
fn refusal(
    jetstream: &JetStream,
    account: &AccountName,
    endpoint: Endpoint,
    header: &[u8],
) -> Option<Vec<u8>> {
    if let Err(error) = required_level(header) {
        return Some(endpoint.failure(&error));
    }
    let accounts = jetstream.accounts();
    if endpoint.caller() != endpoint::Caller::Anyone || accounts.limits(account).is_some() {
        return None;
    }
    let error = ApiError::not_enabled_for_account();
    // nats-server tells the system account before it looks what it is asked.
    let is_system = account == accounts.system() && endpoint != Endpoint::AccountInfo;
    Some(if is_system { envelope::failure("system_response", &error, "") } else { endpoint.failure(&error) })
}

/// Who calls.
#[derive(Clone, Copy)]
struct Caller<'a> {
    account: &'a AccountName,
    client: &'a ClientInfo,
}

/// Answers a client's call, wherever it has to be answered.
async fn answer(
    jetstream: &Arc<JetStream>,
    caller: Caller<'_>,
    subject: &[u8],
    body: &[u8],
) -> Option<Vec<u8>> {
    let begun = clock::monotonic();
    loop {
        let answer = try_once(jetstream, caller, subject, body, HOPS_MAX).await?;
        // Never begun again after the client may have given up: by then it may have decided otherwise.
        if nobody_can(&answer) && begun.elapsed() < LEADER_PATIENCE {
            tokio::time::sleep(LEADER_LOOK_INTERVAL).await;
            continue;
        }
        return Some(match answer {
            Ok(answer) => answer,
            Err(error) => {
                jetstream.count_api(caller.account, true);
                parse(jetstream, subject)?.endpoint.failure(&error)
            }
        });
    }
}

/// Answers a call here or has it answered where it belongs. `hops` is how often it may still travel. The error is only
/// ever that nobody can answer it now; `None` if it is no call.
async fn try_once(
    jetstream: &Arc<JetStream>,
    caller: Caller<'_>,
    subject: &[u8],
    body: &[u8],
    hops: u8,
) -> Option<Result<Vec<u8>, ApiError>> {
    let request = parse(jetstream, subject)?;
    let Caller { account, client } = caller;
    let endpoint = request.endpoint;
    let answer = match home(jetstream, account, &request) {
        Home::Here => handle(&Context { jetstream, account, client, request, body }).await,
        Home::At(node) if hops > 0 => {
            // A peer answers with nothing when it can't answer now.
            let answer = call(jetstream, node, caller, subject, body, hops - 1).await;
            return Some(match answer {
                Ok(answer) if !answer.is_empty() => Ok(answer.into()),
                Ok(_) | Err(_) => Err(ApiError::not_available()),
            });
        }
        Home::At(_) | Home::Unknown => Err(ApiError::not_available()),
    };
    if nobody_can(&answer) {
        return Some(answer);
    }
    jetstream.count_api(account, answer.is_err());
    Some(Ok(answer.unwrap_or_else(|error| endpoint.failure(&error))))
}

/// Whether it was not answered, because there is no leader now.
fn nobody_can(answer: &Answer) -> bool {
    matches!(answer, Err(error) if *error == ApiError::not_available())
}

enum Home {
    Here,
    At(NodeId),
    Unknown,
}

fn home(jetstream: &JetStream, account: &AccountName, request: &Request<'_>) -> Home {
    let at = |leader: Option<NodeId>| match leader {
        Some(node) if node == jetstream.node() => Home::Here,
        Some(node) => Home::At(node),
        None => Home::Unknown,
    };
    match request.endpoint.scope() {
        Scope::Local => Home::Here,
        Scope::Meta => meta_home(jetstream),
        Scope::Stream | Scope::Consumer | Scope::Replica => {
            match jetstream.directory().group(account, request.stream) {
                Some(group) => at(jetstream.directory().leader(group)),
                // Our copy of the meta state may lag behind the answer to a create: its leader knows for certain.
                None => meta_home(jetstream),
            }
        }
    }
}

fn meta_home(jetstream: &JetStream) -> Home {
    let Some(group) = jetstream.meta().group() else { return Home::Unknown };
    let leadership = *group.leadership().borrow();
    match leadership.leader {
        Some(_) if leadership.leading => Home::Here,
        Some(node) if node != jetstream.node() => Home::At(node),
        Some(_) | None => Home::Unknown,
    }
}

/// Calls that travel between nodes: `hops u8 | account_len u8 | account | client_len u16 | client (JSON)
/// | subject_len u16 | subject | body`.
async fn call(
    jetstream: &JetStream,
    node: NodeId,
    caller: Caller<'_>,
    subject: &[u8],
    body: &[u8],
    hops: u8,
) -> Result<Bytes, router::peers::CallError> {
    let account = caller.account.as_str().as_bytes();
    let client = serde_json::to_vec(caller.client).expect("plain data encodes");
    let mut frame = BytesMut::with_capacity(6 + account.len() + client.len() + subject.len() + body.len());
    frame.put_u8(hops);
    frame.put_u8(u8::try_from(account.len()).expect("account names are at most 255 bytes"));
    frame.put_slice(account);
    // A client describes itself in one control line.
    let client_len = u16::try_from(client.len()).unwrap_or(0);
    frame.put_u16_le(client_len);
    frame.put_slice(&client[..client_len.into()]);
    frame.put_u16_le(u16::try_from(subject.len()).expect("bounded by max_control_line"));
    frame.put_slice(subject);
    frame.put_slice(body);
    jetstream.peers().call(node, CALL_API, frame.freeze(), CALL_TIMEOUT).await
}

/// Answers a peer's call. Empty when it does not decode, or when nobody can answer it now: the peer tries again.
pub async fn answer_peer(jetstream: Arc<JetStream>, frame: Bytes) -> Bytes {
    let Some((hops, account, client, subject, body)) = decode_call(frame) else { return Bytes::new() };
    let caller = Caller { account: &account, client: &client };
    match try_once(&jetstream, caller, &subject, &body, hops).await {
        Some(Ok(answer)) => answer.into(),
        Some(Err(_)) | None => Bytes::new(),
    }
}

fn decode_call(mut frame: Bytes) -> Option<(u8, AccountName, ClientInfo, Bytes, Bytes)> {
    let take = |frame: &mut Bytes, len: usize| (frame.len() >= len).then(|| frame.split_to(len));
    let mut head = take(&mut frame, 2)?;
    let (hops, account_len) = (head.get_u8().min(HOPS_MAX - 1), head.get_u8() as usize);
    let account = take(&mut frame, account_len)?;
    let account = AccountName::parse(std::str::from_utf8(&account).ok()?).ok()?;
    let client_len = take(&mut frame, 2)?.get_u16_le() as usize;
    let client = serde_json::from_slice(&take(&mut frame, client_len)?).unwrap_or_default();
    let subject_len = take(&mut frame, 2)?.get_u16_le() as usize;
    let subject = take(&mut frame, subject_len)?;
    Some((hops, account, client, subject, frame))
}

async fn handle(cx: &Context<'_>) -> Answer {
    if cx.request.endpoint.needs_cluster() && !cx.jetstream.identity().has_cluster_name() {
        return Err(ApiError::cluster_required());
    }
    match cx.request.endpoint {
        Endpoint::AccountInfo => account_info::handle(cx).await,
        Endpoint::AccountPurge => account_purge::handle(cx).await,
        Endpoint::StreamCreate => stream_create::handle(cx).await,
        Endpoint::StreamUpdate => stream_update::handle(cx).await,
        Endpoint::StreamDelete => stream_delete::handle(cx).await,
        Endpoint::StreamInfo => stream_info::handle(cx).await,
        Endpoint::StreamNames => stream_list::names(cx),
        Endpoint::StreamList => stream_list::infos(cx).await,
        Endpoint::StreamPurge => stream_purge::handle(cx).await,
        Endpoint::StreamSnapshot => stream_snapshot::handle(cx),
        Endpoint::StreamRestore => stream_restore::handle(cx).await,
        Endpoint::MessageGet => message::get(cx),
        Endpoint::MessageDelete => message::delete(cx).await,
        Endpoint::StreamStepDown => step_down::stream(cx).await,
        Endpoint::ConsumerStepDown => step_down::consumer(cx).await,
        Endpoint::MetaStepDown => step_down::meta(cx).await,
        Endpoint::ConsumerCreate | Endpoint::ConsumerDurableCreate => consumer_create::handle(cx).await,
        Endpoint::ConsumerInfo => consumer_info::handle(cx).await,
        Endpoint::ConsumerNames => consumer_list::names(cx),
        Endpoint::ConsumerList => consumer_list::infos(cx),
        Endpoint::ConsumerDelete => consumer_delete::handle(cx).await,
        Endpoint::ConsumerPause => consumer_pause::handle(cx).await,
        Endpoint::ConsumerReset => consumer_reset::handle(cx).await,
        Endpoint::ConsumerUnpin => consumer_unpin::handle(cx),
        Endpoint::ConsumerNext | Endpoint::DirectGet => {
            unreachable!("taken by stream_requests")
        }
        Endpoint::StreamPeerRemove | Endpoint::StreamPeerEvacuate => peers::stream(cx).await,
        Endpoint::ConsumerPeerRemove | Endpoint::ConsumerPeerEvacuate => peers::consumer(cx),
        Endpoint::ServerRemove => peers::remove_server(cx).await,
        Endpoint::ServerEvacuate => peers::evacuate_server(cx).await,
        Endpoint::AccountStreamMove => moves::begin(cx).await,
        Endpoint::StreamCancelMove | Endpoint::AccountStreamCancelMove => moves::cancel(cx).await,
        Endpoint::MetaRescue => Err(not_supported_yet(cx.request.endpoint)),
    }
}

fn not_supported_yet(endpoint: Endpoint) -> ApiError {
    let mut error = ApiError::bad_request();
    error.description = format!("{} is not supported by Levee yet", endpoint.words());
    error
}

/// Takes pull requests and direct gets to the leader of their stream.
pub fn stream_requests(jetstream: &Arc<JetStream>, account: &AccountName, batch: &Inbound, arrival: Arrival) {
    for item in &batch.items {
        let Some(request) = parse(jetstream, batch.subject(item)) else { continue };
        if required_level(batch.header(item)).is_err() {
            let to = batch.reply(item);
            let header = b"NATS/1.0 412 Required Api Level\r\n\r\n";
            jetstream.router().batch().send(
                account,
                to,
                MessageRef { subject: to, header, ..MessageRef::default() },
            );
            continue;
        }
        let found = match request.endpoint {
            Endpoint::DirectGet => direct_get::read_from(jetstream, account, request.stream, arrival),
            _ => jetstream.directory().group(account, request.stream),
        };
        let Some(group) = found else {
            no_responders(jetstream, account, batch.reply(item), batch.subject(item));
            continue;
        };
        if let Some(replica) = jetstream.replica(group)
            && let Some(leader) = replica.leader()
        {
            match request.endpoint {
                Endpoint::ConsumerNext => {
                    consumer_next::take(jetstream, account, &leader, &request, batch, item);
                }
                Endpoint::DirectGet => {
                    direct_get::take(jetstream, account, &replica, &request, batch, item);
                }
                _ => {}
            }
        } else if arrival == Arrival::Client
            && let Some(leader) = jetstream.directory().leader(group)
        {
            let part = Inbound { chunk: batch.chunk.clone(), items: vec![*item] };
            let _ =
                jetstream.peers().forward(leader, FORWARD_REQUEST, forward::encode(account, group, &part));
        } else {
            no_responders(jetstream, account, batch.reply(item), batch.subject(item));
        }
    }
}

/// Refuses a message that requires more of the API than this server has.
fn required_level(header: &[u8]) -> Result<(), ApiError> {
    HeaderBlock(header).get_str("Nats-Required-Api-Level").map_or(Ok(()), level::check_required)
}

fn no_responders(jetstream: &JetStream, account: &AccountName, to: &[u8], subject: &[u8]) {
    if !to.is_empty() {
        sinks::no_responders(&mut jetstream.router().batch(), account, to, subject);
    }
}
