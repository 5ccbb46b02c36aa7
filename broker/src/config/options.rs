//! The options of a configuration file: what each key means.
//!
//! Every key nats-server knows is in one of four places, by block: a `match` arm that takes it, an arm that
//! takes its only harmless value, `NO_EFFECT` (accepted, and the node says at start that it changes nothing),
//! or `UNSUPPORTED` (refused with a sentence). A key that is in none is unknown, which is an error unless a
//! variable refers to it.

use std::time::Duration;

use levee_protocol::api::ServerLimits;
use levee_protocol::time::Nanos;

use super::grammar::{Block, Entry, Problem, Value};
use super::{
    Authorization, Config, Draft, JetStream, Listen, Login, SyncInterval, accounts, format_duration,
    parse_duration, permissions,
};
use crate::limits::BatchLimits;

/// Accepted at the top level without effect, each with the reason.
const NO_EFFECT: &[(&str, &str)] = &[
    ("disable_sublist_cache", "matching here has no cache to turn off"),
    ("connect_error_reports", "failed dials are logged with a growing pause between them"),
    ("reconnect_error_reports", "failed dials are logged with a growing pause between them"),
    ("no_fast_producer_stall", "fast producers are slowed down by their own socket"),
    ("max_closed_clients", "closed connections are not kept for monitoring"),
    ("max_traced_msg_len", "trace lines show the operation, not its payload"),
    ("trace_verbose", "there is no system account traffic to trace"),
    ("trace_headers", "trace lines show the operation, not its payload"),
    ("prof_block_rate", "there is no profiling port"),
    ("feature_flags", "they switch parts of the reference server"),
];

/// Known to nats-server at the top level, refused here.
const UNSUPPORTED: &[&str] = &[
    "allow_non_tls",
    "default_js_domain",
    "default_sentinel",
    "gateway",
    "https",
    "https_port",
    "leaf",
    "leafnodes",
    "log_max_num",
    "log_size_limit",
    "logfile_max_num",
    "logfile_size_limit",
    "mappings",
    "maps",
    "mqtt",
    "no_system_account",
    "ocsp",
    "ocsp_cache",
    "operator",
    "operators",
    "prof_port",
    "proxies",
    "proxy_protocol",
    "remote_syslog",
    "resolver",
    "resolver_pinned_accounts",
    "resolver_preload",
    "resolver_tls",
    "root",
    "roots",
    "root_operator",
    "root_operators",
    "syslog",
    "tls",
    "trusted",
    "trusted_keys",
    "websocket",
    "ws",
];

/// Accepted inside `cluster` without effect.
const CLUSTER_NO_EFFECT: &[(&str, &str)] = &[
    ("pool_size", "nodes keep one link for messages and one for replication"),
    ("compression", "links between nodes are not compressed"),
    ("connect_retries", "nodes are dialed until they answer"),
    ("connect_backoff", "nodes are dialed with a growing pause"),
    ("ping_interval", "links between nodes check themselves"),
    ("ping_max", "links between nodes check themselves"),
    ("write_deadline", "links between nodes check themselves"),
    ("write_timeout", "links between nodes check themselves"),
];

const CLUSTER_UNSUPPORTED: &[&str] = &["accounts", "authorization", "permissions", "tls"];

/// Accepted inside `jetstream` without effect.
const JETSTREAM_NO_EFFECT: &[(&str, &str)] = &[
    ("extension_hint", "there are no leaf nodes to extend to"),
    ("max_outstanding_catchup", "replicas catch up with flow control of their own"),
    ("max_buffered_size", "writes are buffered by bytes per node"),
    ("max_buffered_msgs", "writes are buffered by bytes per node"),
    ("request_queue_limit", "requests wait in their connection"),
    ("info_queue_limit", "requests wait in their connection"),
    ("meta_compact", "checkpoints are scheduled by what changed"),
    ("meta_compact_size", "checkpoints are scheduled by what changed"),
    ("meta_compact_sync", "checkpoints are scheduled by what changed"),
    ("max_concurrent_io", "there is one writer per node"),
];

const JETSTREAM_UNSUPPORTED: &[&str] =
    &["cipher", "ek", "encryption_key", "key", "prev_encryption_key", "prev_ek", "prev_key", "tpm"];

const LIMITS_UNSUPPORTED: &[&str] = &["max_ha_assets"];

const AUTHORIZATION_UNSUPPORTED: &[&str] = &["auth_callout", "auth_hook", "proxy_required"];

/// nats-server's floor; shorter ones would move all clients at once.
const LAME_DUCK_MIN: Duration = Duration::from_secs(30);

/// Applies a file to a draft. Returns everything that is wrong with it, in order.
pub(super) fn apply(draft: &mut Draft, block: &Block) -> Vec<Problem> {
    each(block, |entry, key| top(draft, entry, key))
}

pub(super) type Read<T> = Result<T, Problem>;

pub(super) fn each(
    block: &Block,
    mut apply: impl FnMut(&Entry, &str) -> Result<(), Vec<Problem>>,
) -> Vec<Problem> {
    block
        .entries()
        .filter_map(|entry| apply(entry, &entry.key.to_ascii_lowercase()).err())
        .flatten()
        .collect()
}

fn top(draft: &mut Draft, entry: &Entry, key: &str) -> Result<(), Vec<Problem>> {
    match key {
        "cluster" => return cluster(draft, entry),
        "jetstream" => return jetstream(draft, entry),
        "authorization" => return authorization(draft, entry),
        "accounts" => return accounts::read(&mut draft.config, entry),
        _ => {}
    }
    top_value(draft, entry, key).map_err(|problem| vec![problem])
}

fn top_value(draft: &mut Draft, entry: &Entry, key: &str) -> Read<()> {
    let config = &mut draft.config;
    match key {
        "listen" => config.listen = listen(entry, "0.0.0.0", 4222)?,
        "host" | "net" => config.listen.host = host(entry)?,
        "port" => config.listen.port = port(entry, 4222)?,
        "client_advertise" => config.client_advertise = Some(text(entry)?),
        "server_name" => config.server_name = Some(name(entry, "server name")?),
        "server_tags" => config.server_tags = tags(entry)?,
        "server_metadata" => config.server_metadata = metadata(entry)?,
        "debug" => config.log.debug = boolean(entry)?,
        "trace" => config.log.trace = boolean(entry)?,
        "logtime" => config.log.time = boolean(entry)?,
        "logtime_utc" => config.log.utc = boolean(entry)?,
        "logfile" | "log_file" => config.log.file = Some(text(entry)?.into()),
        "pidfile" | "pid_file" => config.pid_file = Some(text(entry)?.into()),
        "ports_file_dir" => config.ports_file_dir = Some(text(entry)?.into()),
        "http" => {
            config.http = Some(listen(entry, &config.listen.host, 8222)?);
            draft.http_host_follows = false;
        }
        "http_port" | "monitor_port" => {
            let asked = integer(entry)?;
            config.http = match asked {
                0 => None,
                _ => Some(Listen { host: config.listen.host.clone(), port: port(entry, 0)? }),
            };
            draft.http_host_follows = true;
        }
        "http_base_path" => config.http_base_path = text(entry)?.trim_end_matches('/').to_owned(),
        "max_connections" | "max_conn" => config.max_connections = limit(entry)?,
        "max_subscriptions" | "max_subs" => config.max_subscriptions = limit(entry)?,
        "max_sub_tokens" | "max_subscription_tokens" => config.max_subscription_tokens = limit(entry)?,
        "max_control_line" => config.max_control_line = small(entry)?,
        "max_payload" => config.max_payload = small(entry)?,
        "max_pending" => config.max_pending = at_least_one(entry)?,
        "ping_interval" => config.ping_interval = positive_duration(&mut config.warnings, entry, key)?,
        "ping_max" => config.ping_max = small(entry)?,
        "write_deadline" => config.write_deadline = positive_duration(&mut config.warnings, entry, key)?,
        "write_timeout" => only(entry, &["default", "close"])?,
        "lame_duck_duration" => {
            let duration = duration(&mut config.warnings, entry, key)?;
            if duration < LAME_DUCK_MIN {
                let duration = format_duration(duration);
                return Err(
                    entry.problem(format!("invalid lame_duck_duration of {duration}, minimum is 30 seconds"))
                );
            }
            config.lame_duck_duration = duration;
        }
        "lame_duck_grace_period" => {
            config.lame_duck_grace_period = duration(&mut config.warnings, entry, key)?
        }
        "system_account" | "system" => {
            let name = accounts::account_name(&text(entry)?).map_err(|message| entry.problem(message))?;
            config.system_account = Some(name);
        }
        "no_auth_user" => config.no_auth_user = Some(text(entry)?),
        "store_dir" => draft.store_dir = Some(text(entry)?.into()),
        "no_header_support" => {
            if boolean(entry)? {
                return Err(not_supported(key, entry));
            }
        }
        _ => return other(&mut draft.config, entry, key, NO_EFFECT, UNSUPPORTED, ""),
    }
    Ok(())
}

fn cluster(draft: &mut Draft, entry: &Entry) -> Result<(), Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        return Err(vec![
            entry.problem(format!("expected a block to define cluster, but it is {}", entry.value.kind())),
        ]);
    };
    draft.cluster = super::DraftCluster::default();
    all_or_problems(each(block, |entry, key| {
        let cluster = &mut draft.cluster;
        let done = match key {
            "name" => name(entry, "cluster name").map(|name| cluster.name = Some(name)),
            "listen" => listen(entry, "0.0.0.0", 6222).map(|listen| cluster.listen(listen)),
            "host" | "net" => host(entry).map(|host| cluster.host = Some(host)),
            "port" => integer(entry).and_then(|asked| {
                cluster.port = if asked == 0 { None } else { Some(port(entry, 0)?) };
                Ok(())
            }),
            "routes" => routes(entry).map(|routes| cluster.routes = routes),
            "cluster_advertise" | "advertise" => text(entry).map(|to| cluster.advertise = Some(to)),
            "no_advertise" => boolean(entry).map(|no| cluster.no_advertise = no),
            _ => other(&mut draft.config, entry, key, CLUSTER_NO_EFFECT, CLUSTER_UNSUPPORTED, "cluster."),
        };
        done.map_err(|problem| vec![problem])
    }))
}

fn jetstream(draft: &mut Draft, entry: &Entry) -> Result<(), Vec<Problem>> {
    let one = |problem: Problem| vec![problem];
    let Value::Block(block) = &entry.value else {
        draft.config.jetstream = jetstream_switch(entry).map_err(one)?.then(JetStream::default);
        return Ok(());
    };
    let mut jetstream = JetStream::default();
    let mut enabled = true;
    let problems = each(block, |entry, key| {
        let done = match key {
            "enabled" => boolean(entry).map(|on| enabled = on),
            "store_dir" | "storedir" => text(entry).map(|dir| draft.store_dir = Some(dir.into())),
            "max_memory_store" | "max_mem_store" | "max_mem" => {
                storage_size(entry).map(|size| jetstream.max_memory = size)
            }
            "max_file_store" | "max_file" => storage_size(entry).map(|size| jetstream.max_storage = size),
            "domain" => text(entry).map(|domain| jetstream.domain = Some(domain)),
            "unique_tag" => text(entry).map(|tag| {
                jetstream.unique_tag = Some(tag.trim().to_lowercase()).filter(|tag| !tag.is_empty());
            }),
            "sync_interval" | "sync" => match &entry.value {
                Value::Text(text) if text.eq_ignore_ascii_case("always") => {
                    jetstream.sync_interval = SyncInterval::Always;
                    Ok(())
                }
                _ => duration(&mut draft.config.warnings, entry, key)
                    .map(|every| jetstream.sync_interval = SyncInterval::Every(every)),
            },
            "limits" => match limits(draft, &mut jetstream.limits, entry) {
                Ok(batches) => {
                    jetstream.batches = batches;
                    Ok(())
                }
                Err(problems) => return Err(problems),
            },
            "strict" => boolean(entry).and_then(|strict| {
                if strict { Ok(()) } else { Err(not_supported("jetstream.strict: false", entry)) }
            }),
            _ => {
                other(&mut draft.config, entry, key, JETSTREAM_NO_EFFECT, JETSTREAM_UNSUPPORTED, "jetstream.")
            }
        };
        done.map_err(one)
    });
    draft.config.jetstream = enabled.then_some(jetstream);
    all_or_problems(problems)
}

/// `jetstream { limits {} }`
fn limits(draft: &mut Draft, limits: &mut ServerLimits, entry: &Entry) -> Result<BatchLimits, Vec<Problem>> {
    let mut batches = BatchLimits::DEFAULT;
    let problems = each(block_of(entry, "jetstream.limits")?, |entry, key| match key {
        "batch" => all_or_problems(each(block_of(entry, "jetstream.limits.batch")?, |entry, key| {
            let done = match key {
                "max_inflight_per_stream" => bound(entry).map(|max| {
                    if let Some(max) = max {
                        (batches.atomic_per_stream_max, batches.fast_per_stream_max) = (max, max);
                    }
                }),
                "max_inflight_total" => bound(entry).map(|max| {
                    if let Some(max) = max {
                        (batches.atomic_on_node_max, batches.fast_on_node_max) = (max, max);
                    }
                }),
                "max_msgs" => bound(entry)
                    .map(|max| batches.messages_max = max.map_or(batches.messages_max, |max| max as u64)),
                "timeout" => {
                    duration(&mut draft.config.warnings, entry, key).map(|idle| batches.idle_max = idle)
                }
                _ => other(&mut draft.config, entry, key, &[], &[], "jetstream.limits.batch."),
            };
            done.map_err(|problem| vec![problem])
        })),
        _ => {
            let done = match key {
                "max_request_batch" => integer(entry).map(|max| limits.max_request_batch = max),
                "max_ack_pending" => integer(entry).map(|max| limits.max_ack_pending = max),
                "default_max_consumers" => integer(entry).map(|max| limits.default_max_consumers = max),
                "duplicate_window" => duration(&mut draft.config.warnings, entry, key).map(|window| {
                    limits.duplicate_window_max = Nanos(i64::try_from(window.as_nanos()).unwrap_or(i64::MAX));
                }),
                _ => other(&mut draft.config, entry, key, &[], LIMITS_UNSUPPORTED, "jetstream.limits."),
            };
            done.map_err(|problem| vec![problem])
        }
    });
    all_or_problems(problems).map(|()| batches)
}

fn block_of<'a>(entry: &'a Entry, what: &str) -> Result<&'a Block, Vec<Problem>> {
    match &entry.value {
        Value::Block(block) => Ok(block),
        other => {
            let found = other.kind();
            Err(vec![entry.problem(format!("expected a block to define {what}, but it is {found}"))])
        }
    }
}

/// A bound; zero and less are the default.
fn bound(entry: &Entry) -> Read<Option<usize>> {
    Ok(usize::try_from(integer(entry)?).ok().filter(|max| *max > 0))
}

pub(super) fn jetstream_switch(entry: &Entry) -> Read<bool> {
    match &entry.value {
        Value::Bool(on) => Ok(*on),
        Value::Text(text) if matches!(text.to_ascii_lowercase().as_str(), "enabled" | "enable") => Ok(true),
        Value::Text(text) if matches!(text.to_ascii_lowercase().as_str(), "disabled" | "disable") => {
            Ok(false)
        }
        Value::Text(text) => {
            Err(entry.problem(format!("Expected 'enabled' or 'disabled' for string value, got '{text}'")))
        }
        other => {
            Err(entry
                .problem(format!("expected a block, 'enabled' or 'disabled', but it is {}", other.kind())))
        }
    }
}

fn authorization(draft: &mut Draft, entry: &Entry) -> Result<(), Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        return Err(vec![entry.problem(format!(
            "expected a block to define authorization, but it is {}",
            entry.value.kind()
        ))]);
    };
    let (mut user, mut password, mut token, mut users) = (None, None, None, None);
    let mut default_permissions = None;
    let problems = each(block, |entry, key| {
        let done = match key {
            "users" => {
                users = Some(accounts::users(&mut draft.config, entry)?);
                return Ok(());
            }
            "default_permissions" | "default_permission" | "permissions" => {
                default_permissions = Some((entry.at.clone(), permissions::read(&mut draft.config, entry)?));
                return Ok(());
            }
            "user" | "username" => text(entry).map(|text| user = Some(text)),
            "pass" | "password" => text(entry).map(|text| password = Some(text)),
            "token" => text(entry).map(|text| token = Some(text)),
            "timeout" => {
                seconds(&mut draft.config.warnings, entry).map(|timeout| draft.config.auth_timeout = timeout)
            }
            _ => other(&mut draft.config, entry, key, &[], AUTHORIZATION_UNSUPPORTED, "authorization."),
        };
        done.map_err(|problem| vec![problem])
    });
    all_or_problems(problems)?;
    let refuse = |message: &str| Err(vec![entry.problem(message)]);
    draft.config.authorization = match (user, password, token, users) {
        (None, None, None, None) => Authorization::Open,
        (None, None, None, Some(users)) => Authorization::Users(users),
        (None, None, Some(token), None) => Authorization::Token(token),
        (Some(user), password, None, None) => {
            Authorization::User(Login::unrestricted(user, password.unwrap_or_default()))
        }
        (None, Some(_), None, None) => return refuse("a password needs a user"),
        (None, None, Some(_), Some(_)) => return refuse("Can not have a token and a users array"),
        (_, _, None, Some(_)) => return refuse("Can not have a single user/pass and a users array"),
        (_, _, Some(_), _) => return refuse("Cannot have a user/pass and token"),
    };
    match (&mut draft.config.authorization, default_permissions) {
        (Authorization::Users(users), default) => {
            permissions::apply_default(users, default.as_ref().map(|(_, grant)| grant));
        }
        (Authorization::Open | Authorization::User(_) | Authorization::Token(_), Some((at, _))) => {
            draft.config.notes.push(format!(
                "{at}: authorization.default_permissions changes nothing here: it is for those in `users`, and a \
                 single user or token may do everything"
            ));
        }
        (Authorization::Open | Authorization::User(_) | Authorization::Token(_), None) => {}
    }
    Ok(())
}

pub(super) fn all_or_problems(problems: Vec<Problem>) -> Result<(), Vec<Problem>> {
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

pub(super) fn other(
    config: &mut Config,
    entry: &Entry,
    key: &str,
    no_effect: &[(&str, &str)],
    unsupported: &[&str],
    block: &str,
) -> Read<()> {
    if let Some((_, reason)) = no_effect.iter().find(|(known, _)| *known == key) {
        config.notes.push(format!("{}: {block}{key} changes nothing here: {reason}", entry.at));
        return Ok(());
    }
    if unsupported.contains(&key) {
        return Err(not_supported(&format!("{block}{key}"), entry));
    }
    if entry.is_variable() {
        return Ok(());
    }
    Err(entry.problem(format!("unknown field \"{}\"", entry.key)))
}

fn not_supported(what: &str, entry: &Entry) -> Problem {
    entry.problem(format!("\"{what}\" is not supported yet"))
}

fn mismatch(entry: &Entry, wanted: &str) -> Problem {
    let quotes = match entry.value {
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) | Value::Date(_) if wanted == "a string" => {
            "; write it in quotes"
        }
        _ => "",
    };
    entry.problem(format!("{} must be {wanted}, but it is {}{quotes}", entry.key, entry.value.kind()))
}

pub(super) fn text(entry: &Entry) -> Read<String> {
    match &entry.value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err(mismatch(entry, "a string")),
    }
}

fn name(entry: &Entry, what: &str) -> Read<String> {
    let name = text(entry)?;
    if name.contains(char::is_whitespace) {
        return Err(entry.problem(format!("{what} cannot contain spaces")));
    }
    if name.is_empty() {
        return Err(entry.problem(format!("{what} cannot be empty")));
    }
    Ok(name)
}

fn host(entry: &Entry) -> Read<String> {
    let host = text(entry)?;
    Ok(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

pub(super) fn boolean(entry: &Entry) -> Read<bool> {
    match entry.value {
        Value::Bool(value) => Ok(value),
        _ => Err(mismatch(entry, "true or false")),
    }
}

pub(super) fn integer(entry: &Entry) -> Read<i64> {
    match entry.value {
        Value::Integer(value) => Ok(value),
        _ => Err(mismatch(entry, "an integer")),
    }
}

/// A port: -1 asks the system for a free one (0 in [`Listen`]), 0 means the default.
fn port(entry: &Entry, default: u16) -> Read<u16> {
    port_number(integer(entry)?, default).map_err(|message| entry.problem(message))
}

pub(super) fn port_number(asked: i64, default: u16) -> Result<u16, String> {
    match asked {
        -1 => Ok(0),
        0 => Ok(default),
        _ => u16::try_from(asked)
            .map_err(|_| format!("port {asked} is not between 1 and 65535 (-1: any free)")),
    }
}

fn listen(entry: &Entry, default_host: &str, default_port: u16) -> Read<Listen> {
    match &entry.value {
        Value::Integer(_) => Ok(Listen { host: default_host.to_owned(), port: port(entry, default_port)? }),
        Value::Text(text) => {
            host_port(text, default_host, default_port).map_err(|message| entry.problem(message))
        }
        _ => Err(mismatch(entry, "host:port or a port")),
    }
}

/// `host:port`, `:port`, `[v6]:port`.
pub(super) fn host_port(text: &str, default_host: &str, default_port: u16) -> Result<Listen, String> {
    let refused = || format!("could not parse address string \"{text}\"");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(host) => host,
        None if host.contains([':', '[', ']', '/', '@']) || host.contains(char::is_whitespace) => {
            return Err(refused());
        }
        None => host,
    };
    let port = port.parse::<i64>().map_err(|_| refused())?;
    let host = if host.is_empty() { default_host } else { host };
    Ok(Listen { host: host.to_owned(), port: port_number(port, default_port)? })
}

fn routes(entry: &Entry) -> Read<Vec<Listen>> {
    let Value::List(list) = &entry.value else { return Err(mismatch(entry, "a list")) };
    let mut routes = Vec::new();
    for element in list {
        let problem = |message: String| Problem { at: element.at.clone(), message };
        let Value::Text(text) = &element.value else {
            return Err(problem(format!("a route must be a URL, but it is {}", element.value.kind())));
        };
        routes.push(route(text).map_err(problem)?);
    }
    Ok(routes)
}

/// `nats://host:port`, `nats-route://host:port`, or `host:port`.
pub(super) fn route(text: &str) -> Result<Listen, String> {
    let url = text.trim();
    let rest = url.strip_prefix("nats-route://").or_else(|| url.strip_prefix("nats://")).unwrap_or(url);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains("://") {
        return Err(format!(
            "error parsing route url [\"{text}\"]: only nats:// and nats-route:// are known"
        ));
    }
    if rest.contains('@') {
        return Err("credentials in routes are not supported yet".to_owned());
    }
    let with_port = if rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        rest.to_owned()
    } else {
        format!("{rest}:6222")
    };
    let listen =
        host_port(&with_port, "", 6222).map_err(|_| format!("error parsing route url [\"{text}\"]"))?;
    if listen.host.is_empty() || listen.port == 0 {
        return Err(format!("error parsing route url [\"{text}\"]: it needs a host and a port"));
    }
    Ok(listen)
}

/// A count; 0 and negative ones mean no limit.
fn limit(entry: &Entry) -> Read<Option<u64>> {
    Ok(u64::try_from(integer(entry)?).ok().filter(|&limit| limit > 0))
}

fn at_least_one(entry: &Entry) -> Read<u64> {
    let value = u64::try_from(integer(entry)?).unwrap_or(0);
    if value == 0 { Err(entry.problem(format!("{} must be at least 1", entry.key))) } else { Ok(value) }
}

fn small(entry: &Entry) -> Read<u32> {
    let value = at_least_one(entry)?;
    // nats-server's ceiling for these, and what a length in the protocol fits in.
    u32::try_from(value)
        .ok()
        .filter(|&value| value <= i32::MAX as u32)
        .ok_or_else(|| entry.problem(format!("{} value is too big", entry.key.to_ascii_lowercase())))
}

fn duration(warnings: &mut Vec<String>, entry: &Entry, key: &str) -> Read<Duration> {
    match &entry.value {
        Value::Text(text) => {
            parse_duration(text).map_err(|error| entry.problem(format!("error parsing {key}: {error}")))
        }
        Value::Integer(seconds) => {
            let value = u64::try_from(*seconds).ok().filter(|seconds| i64::try_from(*seconds).is_ok());
            let value = value.ok_or_else(|| entry.problem(format!("{key} must not be negative")))?;
            warnings.push(format!(
                "{}: invalid use of field \"{key}\": {key} should be converted to a duration",
                entry.at
            ));
            Ok(Duration::from_secs(value))
        }
        _ => Err(mismatch(entry, "a duration like 10s")),
    }
}

fn positive_duration(warnings: &mut Vec<String>, entry: &Entry, key: &str) -> Read<Duration> {
    let value = duration(warnings, entry, key)?;
    if value.is_zero() { Err(entry.problem(format!("{key} must be longer than 0"))) } else { Ok(value) }
}

/// The one duration that nats-server also takes as a number of seconds, with a fraction, without a warning.
fn seconds(warnings: &mut Vec<String>, entry: &Entry) -> Read<Duration> {
    let refused = || entry.problem("timeout must be longer than 0 and shorter than a day");
    let value = match entry.value {
        Value::Integer(seconds) => Duration::from_secs(u64::try_from(seconds).map_err(|_| refused())?),
        Value::Float(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| refused())?,
        _ => duration(warnings, entry, "timeout")?,
    };
    if value.is_zero() || value > Duration::from_secs(86400) { Err(refused()) } else { Ok(value) }
}

/// Bytes as a number, or as text ending in K, M, G or T (of 1024). Negative: the default.
pub(super) fn storage_size(entry: &Entry) -> Read<Option<u64>> {
    match &entry.value {
        Value::Integer(bytes) => Ok(u64::try_from(*bytes).ok()),
        Value::Text(text) if text.is_empty() => Ok(None),
        Value::Text(text) => {
            let refused =
                || entry.problem(format!("{}: sizes defined as strings must end in K, M, G, T", entry.key));
            let power = text.chars().last().and_then(|last| "KMGT".find(last)).ok_or_else(refused)?;
            let number: u64 = text[..text.len() - 1].parse().map_err(|_| refused())?;
            let bytes = number.checked_mul(1024_u64.pow(power as u32 + 1)).ok_or_else(refused)?;
            Ok(Some(bytes))
        }
        _ => Err(mismatch(entry, "a size like 10GB")),
    }
}

/// One tag, or a list. As in nats-server, a comma or a space does not end one.
fn tags(entry: &Entry) -> Read<Vec<String>> {
    let mut tags: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        let tag = text.trim().to_lowercase();
        if !tag.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    };
    match &entry.value {
        Value::Text(text) => add(text),
        Value::List(list) => {
            for element in list {
                match &element.value {
                    Value::Text(text) => add(text),
                    other => {
                        let message = format!("a tag must be a string, but it is {}", other.kind());
                        return Err(Problem { at: element.at.clone(), message });
                    }
                }
            }
        }
        _ => return Err(mismatch(entry, "a string or a list")),
    }
    Ok(tags)
}

fn metadata(entry: &Entry) -> Read<Vec<(String, String)>> {
    let Value::Block(block) = &entry.value else { return Err(mismatch(entry, "a block")) };
    block.entries().map(|entry| Ok((entry.key.clone(), text(entry)?))).collect()
}

fn only(entry: &Entry, values: &[&str]) -> Read<()> {
    let value = text(entry)?;
    if values.contains(&value.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(entry.problem(format!("\"{}: {value}\" is not supported yet", entry.key)))
}
