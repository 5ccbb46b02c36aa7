//! Which accounts there are, what each may use, and who operates the cluster.

use std::collections::BTreeMap;

use levee_protocol::api::AccountLimits;
use levee_protocol::api::endpoint::{self, Request};
use levee_protocol::ids::AccountName;

use crate::config::Config;

/// The accounts of a configuration. Fixed for as long as the process runs, and the same on all nodes.
#[derive(Debug)]
pub struct Accounts {
    system: AccountName,
    /// All of them, with what their streams may use if they may have any.
    known: BTreeMap<AccountName, Option<AccountLimits>>,
    /// Whether there is one account for everybody, who then operates the cluster, too.
    is_shared: bool,
}

impl Accounts {
    /// Those of a configuration, the global one and the system's among them.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let system = config.system_account();
        let global = config.has_global_account_only().then(AccountLimits::default);
        let mut known = BTreeMap::from([(AccountName::global(), global), (system.clone(), None)]);
        known.extend(config.accounts.iter().map(|account| (account.name.clone(), account.jetstream)));
        Self { system, known, is_shared: config.accounts.is_empty() }
    }

    /// The account of those who operate the cluster.
    #[must_use]
    pub fn system(&self) -> &AccountName {
        &self.system
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &AccountName> {
        self.known.keys()
    }

    /// What the streams of an account may use. `None` if it can have no streams.
    #[must_use]
    pub fn limits(&self, account: &AccountName) -> Option<AccountLimits> {
        self.known.get(account).copied().flatten()
    }

    /// Whether there is an account of this name.
    #[must_use]
    pub fn exists(&self, account: &AccountName) -> bool {
        self.known.contains_key(account)
    }

    /// Those that may have streams, with what these may use.
    pub fn with_streams(&self) -> impl Iterator<Item = (AccountName, AccountLimits)> {
        self.known.iter().filter_map(|(name, limits)| Some((name.clone(), (*limits)?)))
    }

    /// Whether a call is for this account to make. Others are not answered.
    #[must_use]
    pub fn may_call(&self, account: &AccountName, request: &Request<'_>) -> bool {
        let is_system = self.is_shared || *account == self.system;
        match request.endpoint.caller() {
            endpoint::Caller::Anyone => true,
            endpoint::Caller::System => is_system,
            endpoint::Caller::Owner => is_system || account.as_str() == request.account,
        }
    }
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::Endpoint;

    use super::*;
    use crate::config::Account;

    fn account(name: &str, jetstream: Option<AccountLimits>) -> Account {
        Account { jetstream, ..Account::named(name_of(name)) }
    }

    fn name_of(name: &str) -> AccountName {
        AccountName::parse(name).unwrap()
    }

    fn may_call(accounts: &Accounts, account: &AccountName, call: &str) -> bool {
        accounts.may_call(account, &Endpoint::parse(&format!("$JS.API.{call}"), None).unwrap())
    }

    #[test]
    fn without_accounts_everybody_has_streams_and_operates_the_cluster() {
        let accounts = Accounts::of(&Config::default());

        assert!(accounts.limits(&AccountName::global()).is_some());
        assert!(accounts.limits(&AccountName::system()).is_none());
        assert!(may_call(&accounts, &AccountName::global(), "META.LEADER.STEPDOWN"));
    }

    #[test]
    fn a_system_account_alone_leaves_the_streams_where_they_were() {
        let config = Config {
            accounts: vec![account("OPS", None)],
            system_account: Some(name_of("OPS")),
            ..Config::default()
        };
        let accounts = Accounts::of(&config);

        assert!(accounts.limits(&AccountName::global()).is_some());
        assert!(!may_call(&accounts, &AccountName::global(), "ACCOUNT.PURGE.A"));
        assert!(may_call(&accounts, &name_of("OPS"), "ACCOUNT.PURGE.A"));
    }

    #[test]
    fn with_accounts_streams_are_for_those_that_are_given_them() {
        let limits = AccountLimits { max_streams: 3, ..AccountLimits::default() };
        let config =
            Config { accounts: vec![account("A", Some(limits)), account("B", None)], ..Config::default() };
        let accounts = Accounts::of(&config);

        assert_eq!(accounts.limits(&name_of("A")), Some(limits));
        assert_eq!(accounts.limits(&name_of("B")), None);
        assert_eq!(accounts.limits(&AccountName::global()), None);
        assert_eq!(accounts.limits(&name_of("unheard-of")), None);
        assert!(may_call(&accounts, &name_of("A"), "STREAM.CREATE.S"));
        assert!(!may_call(&accounts, &name_of("A"), "META.LEADER.STEPDOWN"));
        assert!(may_call(&accounts, &name_of("A"), "ACCOUNT.STREAM.MOVE.A.S"));
        assert!(!may_call(&accounts, &name_of("B"), "ACCOUNT.STREAM.MOVE.A.S"));
        assert!(may_call(&accounts, &AccountName::system(), "ACCOUNT.STREAM.MOVE.A.S"));
    }
}
