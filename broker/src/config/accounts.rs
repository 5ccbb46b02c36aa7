//! `accounts {}` and the users in it and in `authorization {}`: whose subjects and streams are whose.

use std::collections::BTreeSet;

use levee_broker_core::permission::Grant;
use levee_protocol::api::AccountLimits;
use levee_protocol::ids::AccountName;

use super::grammar::{Block, Element, Entry, Problem, Value};
use super::options::{self, all_or_problems, boolean, each, integer, storage_size, text};
use super::{Authorization, Config, ConfigError, permissions};
use crate::session::ConnectionLimits;

/// A user of the configuration.
#[derive(Clone, Eq, PartialEq)]
pub struct Login {
    /// The name in CONNECT.
    pub user: String,
    /// The password, or its bcrypt hash. Default: empty.
    pub password: String,
    /// What it may publish and subscribe to. Default: everything.
    pub permissions: Option<Grant>,
}

impl Login {
    /// Somebody who may do everything.
    #[must_use]
    pub fn unrestricted(user: String, password: String) -> Self {
        Self { user, password, permissions: None }
    }
}

/// Without the password, because configurations end up in logs.
impl std::fmt::Debug for Login {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Login")
            .field("user", &self.user)
            .field("permissions", &self.permissions)
            .finish_non_exhaustive()
    }
}

/// One of `accounts {}`. Its subjects, streams and consumers are its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its name.
    pub name: AccountName,
    /// Who may connect to it.
    pub users: Vec<Login>,
    /// What its streams may use in the whole cluster. Default: none, it can have no streams.
    pub jetstream: Option<AccountLimits>,
    /// How much its clients may use. Default: as much as any.
    pub limits: ConnectionLimits,
}

impl Account {
    /// One without users, streams and limits.
    #[must_use]
    pub fn named(name: AccountName) -> Self {
        Self { name, users: Vec::new(), jetstream: None, limits: ConnectionLimits::default() }
    }
}

const ACCOUNT_UNSUPPORTED: &[&str] = &["exports", "imports", "mappings", "maps", "msg_trace", "nkey"];

const ACCOUNT_JETSTREAM_NO_EFFECT: &[(&str, &str)] =
    &[("cluster_traffic", "replication has links of its own, which belong to no account")];

const LIMITS_NO_EFFECT: &[(&str, &str)] = &[
    ("max_leafnodes", "leaf nodes can not connect at all"),
    ("max_leafs", "leaf nodes can not connect at all"),
];

const USER_UNSUPPORTED: &[&str] =
    &["allowed_connection_types", "clients", "connection_types", "nkey", "proxy_required", "account"];

/// `accounts {}`, or the short form: a list of names.
pub(super) fn read(config: &mut Config, entry: &Entry) -> Result<(), Vec<Problem>> {
    let problem = |message: String| vec![entry.problem(message)];
    match &entry.value {
        Value::List(names) => {
            for element in names {
                let Value::Text(name) = &element.value else {
                    let found = element.value.kind();
                    return Err(vec![at(
                        element,
                        format!("an account is named by a string, but it is {found}"),
                    )]);
                };
                let name = account_name(name).map_err(|message| vec![at(element, message)])?;
                add(config, Account::named(name)).map_err(problem)?;
            }
            Ok(())
        }
        Value::Block(block) => all_or_problems(each(block, |entry, _| {
            let account = account(config, entry)?;
            add(config, account).map_err(|message| vec![entry.problem(message)])
        })),
        other => {
            Err(problem(format!("Expected accounts to be a list or a block, but it is {}", other.kind())))
        }
    }
}

fn add(config: &mut Config, account: Account) -> Result<(), String> {
    if config.accounts.iter().any(|known| known.name == account.name) {
        return Err(format!("Duplicate Account Entry: {}", account.name));
    }
    config.accounts.push(account);
    Ok(())
}

/// The name of an account that a configuration may define.
pub(super) fn account_name(name: &str) -> Result<AccountName, String> {
    let name = AccountName::parse(name).map_err(|error| format!("account name {name:?}: {error}"))?;
    if name == AccountName::global() {
        return Err(format!("\"{name}\" is a Reserved Account"));
    }
    Ok(name)
}

fn account(config: &mut Config, entry: &Entry) -> Result<Account, Vec<Problem>> {
    let name = account_name(&entry.key).map_err(|message| vec![entry.problem(message)])?;
    let Value::Block(block) = &entry.value else {
        return Err(vec![entry.problem("Expected map entries for accounts")]);
    };
    let mut account = Account::named(name);
    let mut default_permissions = None;
    all_or_problems(each(block, |entry, key| match key {
        "users" => {
            account.users = users(config, entry)?;
            Ok(())
        }
        "default_permissions" => {
            default_permissions = Some(permissions::read(config, entry)?);
            Ok(())
        }
        "limits" => {
            account.limits = connection_limits(config, entry)?;
            Ok(())
        }
        "jetstream" => {
            account.jetstream = account_limits(config, entry)?;
            Ok(())
        }
        _ => options::other(config, entry, key, &[], ACCOUNT_UNSUPPORTED, "accounts.")
            .map_err(|problem| vec![problem]),
    }))?;
    permissions::apply_default(&mut account.users, default_permissions.as_ref());
    Ok(account)
}

/// A list of users with passwords.
pub(super) fn users(config: &mut Config, entry: &Entry) -> Result<Vec<Login>, Vec<Problem>> {
    let Value::List(list) = &entry.value else {
        return Err(vec![
            entry.problem(format!("Expected users field to be an array, got {}", entry.value.kind())),
        ]);
    };
    let mut users = Vec::new();
    let mut problems = Vec::new();
    for element in list {
        match &element.value {
            Value::Block(block) => match user(config, element, block) {
                Ok(user) => users.push(user),
                Err(found) => problems.extend(found),
            },
            other => problems
                .push(at(element, format!("Expected user entry to be a map/struct, got {}", other.kind()))),
        }
    }
    all_or_problems(problems).map(|()| users)
}

fn user(config: &mut Config, element: &Element, block: &Block) -> Result<Login, Vec<Problem>> {
    let mut login = Login::unrestricted(String::new(), String::new());
    all_or_problems(each(block, |entry, key| {
        let done = match key {
            "user" | "username" => text(entry).map(|user| login.user = user),
            "permission" | "permissions" | "authorization" => {
                login.permissions = Some(permissions::read(config, entry)?);
                Ok(())
            }
            "pass" | "password" => text(entry).map(|password| login.password = password),
            _ => options::other(config, entry, key, &[], USER_UNSUPPORTED, "users."),
        };
        done.map_err(|problem| vec![problem])
    }))?;
    if login.user.is_empty() {
        return Err(vec![at(element, "User entry requires a user".to_owned())]);
    }
    Ok(login)
}

/// `jetstream: enabled` inside an account, or its limits. What is not named is not limited.
fn account_limits(config: &mut Config, entry: &Entry) -> Result<Option<AccountLimits>, Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        let enabled = options::jetstream_switch(entry).map_err(|problem| vec![problem])?;
        return Ok(enabled.then(AccountLimits::default));
    };
    let mut limits = AccountLimits::default();
    let size = |entry: &Entry| {
        let size = storage_size(entry)?;
        Ok(size.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)))
    };
    all_or_problems(each(block, |entry, key| {
        let done = match key {
            "max_memory" | "max_mem" | "mem" => size(entry).map(|max| limits.max_memory = max),
            "max_store" | "max_file" | "max_disk" | "store" | "disk" => {
                size(entry).map(|max| limits.max_storage = max)
            }
            "max_streams" | "streams" => integer(entry).map(|max| limits.max_streams = max),
            "max_consumers" | "consumers" => integer(entry).map(|max| limits.max_consumers = max),
            "max_ack_pending" => integer(entry).map(|max| limits.max_ack_pending = max),
            "max_bytes_required" | "max_stream_bytes" | "max_bytes" => {
                boolean(entry).map(|required| limits.max_bytes_required = required)
            }
            "mem_max_stream_bytes" | "memory_max_stream_bytes" => {
                size(entry).map(|max| limits.memory_max_stream_bytes = max)
            }
            "disk_max_stream_bytes" | "store_max_stream_bytes" => {
                size(entry).map(|max| limits.storage_max_stream_bytes = max)
            }
            _ => options::other(config, entry, key, ACCOUNT_JETSTREAM_NO_EFFECT, &[], "accounts.jetstream."),
        };
        done.map_err(|problem| vec![problem])
    }))?;
    Ok(Some(limits))
}

/// `limits {}` of an account. Negative ones are none.
fn connection_limits(config: &mut Config, entry: &Entry) -> Result<ConnectionLimits, Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        let found = entry.value.kind();
        return Err(vec![
            entry.problem(format!("expected a block to define accounts.limits, but it is {found}")),
        ]);
    };
    let mut limits = ConnectionLimits::default();
    let limit = |entry: &Entry| integer(entry).map(|max| u64::try_from(max).ok());
    all_or_problems(each(block, |entry, key| {
        let done = match key {
            "max_connections" | "max_conn" => limit(entry).map(|max| limits.max_connections = max),
            "max_subscriptions" | "max_subs" => limit(entry).map(|max| limits.max_subscriptions = max),
            "max_payload" | "max_pay" => limit(entry).map(|max| limits.max_payload = max),
            _ => options::other(config, entry, key, LIMITS_NO_EFFECT, &[], "accounts.limits."),
        };
        done.map_err(|problem| vec![problem])
    }))?;
    Ok(limits)
}

fn at(element: &Element, message: String) -> Problem {
    Problem { at: element.at.clone(), message }
}

/// Whether accounts and users fit together.
pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let refuse = |message: String| Err(ConfigError::Invalid(message));
    if !config.accounts.is_empty() {
        match config.authorization {
            Authorization::User(_) => {
                return refuse("Can not have a single user/pass and accounts".to_owned());
            }
            Authorization::Token(_) => return refuse("Can not have a token and accounts".to_owned()),
            Authorization::Open | Authorization::Users(_) => {}
        }
    }
    let mut names = BTreeSet::new();
    for (login, _) in config.logins() {
        if !names.insert(&login.user) {
            return refuse(format!("Duplicate user \"{}\" detected", login.user));
        }
    }
    if let Some(guest) = &config.no_auth_user
        && !names.contains(guest)
    {
        return refuse(format!(
            "no_auth_user: \"{guest}\" not present as user or nkey in authorization block or account configuration"
        ));
    }
    let system = config.system_account();
    let configured = config.accounts.iter().find(|account| account.name == system);
    if configured.is_none() && config.system_account.is_some() {
        return refuse(format!("system_account \"{system}\" is not one of the accounts"));
    }
    if configured.is_some_and(|account| account.jetstream.is_some()) {
        return refuse(format!(
            "system account \"{system}\" can not have JetStream: give it to another account"
        ));
    }
    Ok(())
}
