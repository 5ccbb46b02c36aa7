//! What the node itself publishes: deliveries of consumers, answers of the API, advisories.

use std::sync::Arc;

use levee_protocol::ids::AccountName;

use crate::router::route::{RouteCache, Viewpoint, settle_uncounted};
use crate::router::sink::{ClientInfo, Inbound};
use crate::router::stage::{Stage, Staged, Wanted};
use crate::router::table::AccountTable;
use crate::router::{MessageRef, Router};

/// Many messages, staged and then flushed once. Keep one for as long as its owner lives: it remembers who wanted
/// what.
pub struct RouteBatch {
    router: Arc<Router>,
    stage: Stage,
    accounts: Vec<AccountRoutes>,
}

struct AccountRoutes {
    table: Arc<AccountTable>,
    routes: RouteCache,
}

impl RouteBatch {
    pub(crate) fn new(router: Arc<Router>) -> Self {
        Self { router, stage: Stage::new(None), accounts: Vec::new() }
    }

    /// Routes to whoever subscribed to `to`, here or on a peer; what they get says it is about
    /// `message.subject`. Streams do not see it. Returns how many copies were staged; 0 is nobody.
    pub fn send(&mut self, account: &AccountName, to: &[u8], message: MessageRef<'_>) -> usize {
        if self.stage.staged() > STAGED_MAX {
            self.flush();
        }
        if self.stage.staged() == 0 {
            self.refresh();
        }
        let account_at = self.account(account);
        let AccountRoutes { table, routes } = &mut self.accounts[account_at];
        let at = routes.find(&self.router, table, to, Viewpoint::default(), &mut self.stage);
        let staged = Staged { message, to, tail: &[] };
        let route = routes.route(at);
        let copies = self.stage.deliver(account, at, route, &staged, Wanted::Everybody);
        settle_uncounted(&mut self.stage, route);
        copies
    }

    /// Publishes like a client would: subscribers get it, and so do streams that capture its subject.
    pub fn publish(&mut self, account: &AccountName, message: MessageRef<'_>) -> usize {
        let copies = self.send(account, message.subject, message);
        let Some(services) = self.router.services() else { return copies };
        let resolved = services.resolve(account, message.subject);
        if resolved.sinks.is_empty() {
            return copies;
        }
        let from = Arc::new(ClientInfo::node(account.clone()));
        let batch = Inbound::one(message);
        for sink in &resolved.sinks {
            // A full sink has taken the batch nevertheless; only clients can be made to wait.
            drop(sink.accept(&from, batch.clone()));
        }
        copies + resolved.sinks.len()
    }

    /// Hands everything over. Dropping the batch does the same.
    pub fn flush(&mut self) {
        self.stage.flush_others(&self.router);
    }

    /// Whether some destination had more waiting than it should at the last flush. A producer of many messages
    /// should then wait in [`Self::relieve`] before it goes on.
    #[must_use]
    pub fn pressure(&self) -> bool {
        self.stage.is_pressed()
    }

    /// Waits until that destination has taken what it has, for a bounded time.
    pub async fn relieve(&mut self) {
        self.stage.relieve().await;
    }

    fn refresh(&mut self) {
        // One stage serves all accounts: if one forgets its destinations, all have to.
        if self.accounts.iter().any(|account| account.routes.is_outdated(&self.router, &self.stage)) {
            for account in &mut self.accounts {
                account.routes.forget(&mut self.stage);
            }
            for account in &mut self.accounts {
                account.routes.start(&self.router);
            }
        }
    }

    fn account(&mut self, name: &AccountName) -> usize {
        if let Some(at) = self.accounts.iter().position(|known| known.table.name == *name) {
            return at;
        }
        let mut routes = RouteCache::new();
        routes.start(&self.router);
        self.accounts.push(AccountRoutes { table: self.router.account(name), routes });
        self.accounts.len() - 1
    }
}

impl Drop for RouteBatch {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The batch flushes by itself when that much is staged.
const STAGED_MAX: usize = 256 << 10;
