//! `/connz`: client connections.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{ConnectionFacts, MonitoringSource, Parameters, boolean, integer, subsz, uptime};
use crate::config::format_duration;

/// Connections in one page unless the request says otherwise.
const LIMIT_DEFAULT: usize = 1024;

pub(super) fn document(source: &dyn MonitoringSource, parameters: &Parameters) -> Result<Value, String> {
    let server = source.server();
    let auth = boolean(parameters, "auth")?;
    let subscriptions = boolean(parameters, "subs")?;
    let subscription_details = parameters.get("subs").is_some_and(|text| text == "detail");
    let offset = integer(parameters, "offset", 0)?;
    let limit = match integer(parameters, "limit", LIMIT_DEFAULT)? {
        0 => LIMIT_DEFAULT,
        limit => limit,
    };
    let one = match parameters.get("cid") {
        None => None,
        Some(text) => Some(
            text.parse::<u64>()
                .map_err(|_| format!("Error decoding uint64 for 'cid': \"{text}\" is no number"))?,
        ),
    };
    let state = parameters.get("state").map(|state| state.to_ascii_lowercase());
    let state = match (state.as_deref(), one) {
        (None | Some(""), None) | (Some("open"), _) => State::Open,
        (Some("closed"), _) => State::Closed,
        // A connection that is asked for by its number is shown wherever it is.
        (Some("all" | "any"), _) | (None | Some(""), Some(_)) => State::All,
        (Some(state), _) => return Err(format!("Error decoding state for {state}")),
    };
    let mut connections = if state == State::Closed { Vec::new() } else { source.connections() };
    if state != State::Open {
        connections.extend(source.closed_connections());
    }
    connections.retain(|connection| {
        one.is_none_or(|cid| connection.cid == cid)
            && parameters.get("user").is_none_or(|user| connection.user == *user)
            && parameters.get("acc").is_none_or(|account| connection.account == *account)
    });
    sort(&mut connections, parameters.get("sort").map_or("", String::as_str), state)?;

    let mut by_connection: HashMap<u64, Vec<_>> = HashMap::new();
    if subscriptions {
        for subscription in source.subscriptions() {
            by_connection.entry(subscription.cid).or_default().push(subscription);
        }
    }
    let total = connections.len();
    let page = connections.iter().skip(offset).take(limit).map(|connection| {
        let mut out = shown(connection, server.now, auth);
        let mut of_this = by_connection.remove(&connection.cid).unwrap_or_default();
        of_this.sort_by(|a, b| a.subject.cmp(&b.subject));
        if subscription_details && !of_this.is_empty() {
            let details: Vec<Value> = of_this.iter().map(subsz::shown).collect();
            out.insert("subscriptions_list_detail".to_owned(), json!(details));
        } else if !of_this.is_empty() {
            let subjects: Vec<&str> =
                of_this.iter().map(|subscription| subscription.subject.as_str()).collect();
            out.insert("subscriptions_list".to_owned(), json!(subjects));
        }
        Value::Object(out)
    });
    let page: Vec<Value> = page.collect();
    Ok(json!({
        "server_id": server.id,
        "now": server.now,
        "num_connections": page.len(),
        "total": total,
        "offset": offset,
        "limit": limit,
        "connections": page,
    }))
}

/// Which connections are asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    Closed,
    All,
}

fn sort(connections: &mut [ConnectionFacts], by: &str, state: State) -> Result<(), String> {
    match by {
        "" | "cid" => connections.sort_by_key(|c| c.cid),
        "start" => connections.sort_by_key(|c| (c.start, c.cid)),
        "subs" => connections.sort_by_key(|c| Reverse(c.subscriptions)),
        "pending" => connections.sort_by_key(|c| Reverse(c.pending_bytes)),
        "msgs_to" => connections.sort_by_key(|c| Reverse(c.out_msgs)),
        "msgs_from" => connections.sort_by_key(|c| Reverse(c.in_msgs)),
        "bytes_to" => connections.sort_by_key(|c| Reverse(c.out_bytes)),
        "bytes_from" => connections.sort_by_key(|c| Reverse(c.in_bytes)),
        "last" => connections.sort_by_key(|c| Reverse(c.last_activity)),
        "idle" => connections.sort_by_key(|c| c.last_activity),
        "uptime" => connections.sort_by_key(|c| c.start),
        "rtt" => connections.sort_by_key(|c| Reverse(c.rtt)),
        "stop" | "reason" if state == State::Open => {
            return Err(format!("sort by {by} only valid on closed connections"));
        }
        "stop" => connections.sort_by_key(|c| c.stop.map(|(at, _)| at)),
        "reason" => connections.sort_by_key(|c| c.stop.map(|(_, reason)| reason)),
        _ => return Err(format!("invalid sorting option: {by}")),
    }
    Ok(())
}

fn shown(
    connection: &ConnectionFacts,
    now: levee_protocol::time::Timestamp,
    auth: bool,
) -> Map<String, Value> {
    let mut out = Map::new();
    let mut put = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    put("cid", json!(connection.cid));
    put("kind", json!("Client"));
    put("type", json!("nats"));
    put("ip", json!(connection.ip));
    put("port", json!(connection.port));
    put("start", json!(connection.start));
    put("last_activity", json!(connection.last_activity));
    if let Some((at, reason)) = connection.stop {
        put("stop", json!(at));
        put("reason", json!(reason));
    }
    if let Some(rtt) = connection.rtt {
        put("rtt", json!(format_duration(rtt)));
    }
    put("uptime", json!(uptime(connection.start, connection.stop.map_or(now, |(at, _)| at))));
    put("idle", json!(uptime(connection.last_activity, now)));
    put("pending_bytes", json!(connection.pending_bytes));
    put("in_msgs", json!(connection.in_msgs));
    put("out_msgs", json!(connection.out_msgs));
    put("in_bytes", json!(connection.in_bytes));
    put("out_bytes", json!(connection.out_bytes));
    if connection.stalls > 0 {
        put("stalls", json!(connection.stalls));
    }
    put("subscriptions", json!(connection.subscriptions));
    for (name, text) in
        [("name", &connection.name), ("lang", &connection.lang), ("version", &connection.version)]
    {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    if auth {
        if !connection.user.is_empty() {
            put("authorized_user", json!(connection.user));
        }
        put("account", json!(connection.account));
    }
    out
}
