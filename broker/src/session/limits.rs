//! What a session may cost.

use std::collections::BTreeMap;
use std::time::Duration;

use levee_protocol::ids::AccountName;

/// Limits of each client connection. The defaults are nats-server's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionLimits {
    /// Bytes of header and body of one message. Default 1 MiB.
    pub max_payload: usize,
    /// Bytes that may wait for one client before it is a slow consumer. Default 64 MiB.
    pub max_pending: usize,
    /// Bytes of a control line. Default 4096.
    pub max_control_line: usize,
    /// Connections at one time; 0 is no limit. Default 65536.
    pub max_connections: usize,
    /// Subscriptions of one connection; 0 is no limit, which is the default.
    pub max_subscriptions: usize,
    /// Tokens in the subject of a subscription; 0 is no limit, which is the default.
    pub max_subscription_tokens: usize,
    /// How long a write to a client may take before the client is a slow consumer. Default 10 s.
    pub write_deadline: Duration,
    /// How often a silent client is asked whether it is alive. Default 2 min.
    pub ping_interval: Duration,
    /// How many PINGs may be unanswered. Default 2.
    pub ping_max: u32,
    /// How long a client may take to authenticate, if it has to. Default 2 s.
    pub auth_timeout: Duration,
    /// How many ended connections are remembered for monitoring. Default 10000.
    pub max_closed_clients: usize,
    /// What accounts limit further. Default: nothing.
    pub accounts: BTreeMap<AccountName, ConnectionLimits>,
}

/// Limits of an account's clients. `None` is no limit, and zero is a limit like others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ConnectionLimits {
    /// Connections at one time, on all nodes together.
    pub max_connections: Option<u64>,
    /// Subscriptions of one connection.
    pub max_subscriptions: Option<u64>,
    /// Bytes of header and body of one message.
    pub max_payload: Option<u64>,
}

impl SessionLimits {
    /// What holds for clients of an account.
    #[must_use]
    pub fn of(&self, account: &AccountName) -> ConnectionLimits {
        let own = self.accounts.get(account).copied().unwrap_or_default();
        let of_node = |limit: usize| (limit > 0).then_some(limit as u64);
        ConnectionLimits {
            max_connections: own.max_connections,
            max_subscriptions: lower(of_node(self.max_subscriptions), own.max_subscriptions),
            max_payload: lower(Some(self.max_payload as u64), own.max_payload),
        }
    }
}

fn lower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            max_pending: 64 << 20,
            max_control_line: 4096,
            max_connections: 65536,
            max_subscriptions: 0,
            max_subscription_tokens: 0,
            write_deadline: Duration::from_secs(10),
            ping_interval: Duration::from_secs(120),
            ping_max: 2,
            auth_timeout: Duration::from_secs(2),
            max_closed_clients: 10_000,
            accounts: BTreeMap::new(),
        }
    }
}
