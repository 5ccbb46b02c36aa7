//! Hot path: what a peer's records do here. One route lookup per message, remembered as for a client's publishes;
//! one handover per frame and destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::{AccountName, NodeId};
use levee_protocol::subject;
use prost::Message;
use tonic::Streaming;

use crate::router::interest::RemoteBook;
use crate::router::peers::frames::{self, Malformed};
use crate::router::peers::proto::{Frame, Identity, frame};
use crate::router::peers::{CallError, Link, PeerEvent, Peers};
use crate::router::route::{RouteCache, Viewpoint, settle_uncounted};
use crate::router::stage::{Stage, Staged, Wanted};
use crate::router::table::AccountTable;
use crate::runtime::tasks;
use crate::session::outbound::Tally;

/// Reads from a peer until it ends, stays silent for too long, or sends garbage.
pub(super) async fn receive(
    peers: &Arc<Peers>,
    node: NodeId,
    link: &Arc<Link>,
    connection: u64,
    mut frames: Streaming<Frame>,
) {
    let mut receiver = Receiver {
        peers: Arc::clone(peers),
        node,
        link: Arc::clone(link),
        wants: RemoteBook::default(),
        stage: Stage::new(None),
        accounts: Vec::new(),
        calls: Arc::new(AtomicUsize::new(0)),
        received: Tally::default(),
    };
    loop {
        let frame = match tokio::time::timeout(SILENCE_MAX, frames.message()).await {
            Ok(Ok(Some(Frame { body: Some(frame::Body::Records(records)) }))) => records,
            Ok(Ok(Some(_))) => {
                tracing::error!("node {node}: a second hello on a link, closing it");
                break;
            }
            Ok(Ok(None) | Err(_)) => break,
            Err(_) => {
                tracing::warn!("node {node}: silent for {} s, closing the link", SILENCE_MAX.as_secs());
                break;
            }
        };
        if peers.state.lock().peers.get(&node).is_none_or(|peer| peer.incoming != connection) {
            break;
        }
        if let Err(malformed) = receiver.take(&frame) {
            tracing::error!("node {node} sent {malformed}, closing the link");
            break;
        }
        receiver.stage.relieve().await;
    }
    drop(receiver);
}

/// The stream is over: nothing the peer wanted is wanted any more.
pub(super) fn ended(peers: &Peers, node: NodeId, connection: u64) {
    {
        let mut state = peers.state.lock();
        if let Some(peer) = state.peers.get_mut(&node).filter(|peer| peer.incoming == connection) {
            peer.incoming = 0;
            peer.subscriptions = 0;
        }
    }
    peers.look(node);
}

struct Receiver {
    peers: Arc<Peers>,
    node: NodeId,
    link: Arc<Link>,
    wants: RemoteBook,
    stage: Stage,
    accounts: Vec<AccountRoutes>,
    calls: Arc<AtomicUsize>,
    received: Tally,
}

struct AccountRoutes {
    table: Arc<AccountTable>,
    routes: RouteCache,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.wants.clear(&self.peers.router);
    }
}

impl Receiver {
    fn take(&mut self, frame: &Bytes) -> Result<(), Malformed> {
        self.refresh();
        let mut interest_changed = false;
        for record in frames::records(frame) {
            let (kind, range) = record?;
            if kind != frames::MESSAGE && self.stage.staged() > 0 {
                // What follows happened after the messages before it.
                self.flush();
            }
            match kind {
                frames::MESSAGE => self.message(&frame[range])?,
                frames::SYNC => {
                    self.wants.clear(&self.peers.router);
                    interest_changed = true;
                }
                frames::INTEREST => {
                    self.interest(&frame[range])?;
                    interest_changed = true;
                }
                frames::FORWARD => {
                    let mut payload = frame.slice(range);
                    let kind = *payload.first().ok_or(Malformed)?;
                    bytes::Buf::advance(&mut payload, 1);
                    self.peers.forwarded(self.node, kind, payload);
                }
                frames::CALL => self.call(frame.slice(range))?,
                frames::ANSWER => self.answer(frame.slice(range))?,
                frames::IDENTITY => self.identity(&frame[range])?,
                frames::PING => {}
                _ => return Err(Malformed),
            }
        }
        self.flush();
        self.link.count_received(std::mem::take(&mut self.received));
        if interest_changed && let Some(peer) = self.peers.state.lock().peers.get_mut(&self.node) {
            peer.subscriptions = self.wants.len();
        }
        Ok(())
    }

    fn message(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let routed = frames::message(body)?;
        self.received.msgs += 1;
        self.received.bytes += (routed.message.header.len() + routed.message.payload.len()) as u64;
        if self.stage.staged() > STAGED_MAX {
            self.flush();
        }
        let at = self.account(routed.account)?;
        let AccountRoutes { table, routes } = &mut self.accounts[at];
        let view = Viewpoint { without: None, local_only: true };
        let route_at = routes.find(&self.peers.router, table, routed.to, view, &mut self.stage);
        let staged = Staged { message: routed.message, to: routed.to, tail: &[] };
        let wanted = Wanted::Named { plain: routed.plain, queues: &routed.queues };
        let route = routes.route(route_at);
        self.stage.deliver(&table.name, route_at, route, &staged, wanted);
        settle_uncounted(&mut self.stage, route);
        Ok(())
    }

    fn interest(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let wanted = frames::interest(body)?;
        let is_token = |text: &[u8]| !text.iter().any(u8::is_ascii_whitespace);
        if !subject::is_valid_filter(wanted.filter) || !is_token(wanted.queue) {
            return Err(Malformed);
        }
        let table = self.peers.router.account(&account_name(wanted.account)?);
        self.wants.set(&self.peers.router, &table, &self.link, wanted.filter, wanted.queue, wanted.count);
        Ok(())
    }

    fn call(&mut self, record: Bytes) -> Result<(), Malformed> {
        let mut body = &record[..];
        let id = frames::take::<8>(&mut body)?;
        let [kind] = frames::take::<1>(&mut body)?;
        let payload = record.slice_ref(body);
        let refuse = |status| {
            let _ = self.link.push(frames::ANSWER, &[&id, &[status]]);
        };
        let Some(handler) = self.peers.call_handlers.load().get(&kind).cloned() else {
            refuse(frames::NOBODY_ANSWERS);
            return Ok(());
        };
        if self.calls.fetch_add(1, Ordering::Relaxed) >= CALLS_MAX {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            refuse(frames::TOO_MANY_CALLS);
            return Ok(());
        }
        let (link, calls, from) = (Arc::clone(&self.link), Arc::clone(&self.calls), self.node);
        tasks::spawn("answer a peer", async move {
            let running = Running(calls);
            let answer = handler(from, payload).await;
            drop(running);
            // Without a link nobody waits for it.
            let _ = link.push(frames::ANSWER, &[&id, &[frames::ANSWERED], &answer]);
        });
        Ok(())
    }

    fn answer(&mut self, record: Bytes) -> Result<(), Malformed> {
        let mut body = &record[..];
        let id = u64::from_le_bytes(frames::take::<8>(&mut body)?);
        let [status] = frames::take::<1>(&mut body)?;
        let answer = match status {
            frames::ANSWERED => Ok(record.slice_ref(body)),
            frames::NOBODY_ANSWERS => Err(CallError::NobodyAnswers),
            frames::TOO_MANY_CALLS => Err(CallError::Busy),
            _ => return Err(Malformed),
        };
        let call = {
            let mut calls = self.peers.calls.lock();
            // Only the node that was asked may answer.
            if calls.get(&id).is_some_and(|call| call.node == self.node) { calls.remove(&id) } else { None }
        };
        if let Some(call) = call {
            let _ = call.answer.send(answer);
        }
        Ok(())
    }

    fn identity(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let identity = Identity::decode(body).map_err(|_| Malformed)?;
        if identity.node != self.node.0 {
            return Err(Malformed);
        }
        let known: Vec<_> =
            identity.known.iter().map(|known| (NodeId(known.node), known.cluster_address.clone())).collect();
        {
            let mut state = self.peers.state.lock();
            if let Some(peer) = state.peers.get_mut(&self.node) {
                peer.identity = identity;
                let _ = self.peers.events.send(PeerEvent::Changed(self.node));
            }
        }
        self.peers.learn(known);
        Ok(())
    }

    fn account(&mut self, name: &[u8]) -> Result<usize, Malformed> {
        if let Some(at) = self.accounts.iter().position(|known| known.table.name.as_str().as_bytes() == name)
        {
            return Ok(at);
        }
        let mut routes = RouteCache::new();
        routes.start(&self.peers.router);
        self.accounts.push(AccountRoutes { table: self.peers.router.account(&account_name(name)?), routes });
        Ok(self.accounts.len() - 1)
    }

    /// One stage serves the routes of all accounts: if one forgets its destinations, all have to.
    fn refresh(&mut self) {
        let router = &self.peers.router;
        if self.accounts.iter().any(|account| account.routes.is_outdated(router, &self.stage)) {
            for account in &mut self.accounts {
                account.routes.forget(&mut self.stage);
            }
            for account in &mut self.accounts {
                account.routes.start(router);
            }
        }
    }

    fn flush(&mut self) {
        self.stage.flush_others(&self.peers.router);
        self.refresh();
    }
}

/// Counts a running call down, also when its handler panics.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn account_name(name: &[u8]) -> Result<AccountName, Malformed> {
    std::str::from_utf8(name).ok().and_then(|name| AccountName::parse(name).ok()).ok_or(Malformed)
}

/// A peer sends a sign of life every second.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const STAGED_MAX: usize = 1 << 20;
/// Calls of one peer that run at the same time.
const CALLS_MAX: usize = 1024;
