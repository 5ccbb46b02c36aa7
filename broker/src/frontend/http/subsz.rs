//! `/subsz`: subscriptions.

use levee_protocol::subject::{Filter, is_valid_literal};
use serde_json::{Map, Value, json};

use super::{MonitoringSource, Parameters, SubscriptionFacts, boolean, integer};

/// Subscriptions in one page unless the request says otherwise.
const LIMIT_DEFAULT: usize = 1024;

pub(super) fn document(source: &dyn MonitoringSource, parameters: &Parameters) -> Result<Value, String> {
    let server = source.server();
    let list = boolean(parameters, "subs")?;
    let offset = integer(parameters, "offset", 0)?;
    let limit = match integer(parameters, "limit", LIMIT_DEFAULT)? {
        0 => LIMIT_DEFAULT,
        limit => limit,
    };
    let mut subscriptions = source.subscriptions();
    let all = subscriptions.len();
    if let Some(subject) = parameters.get("test") {
        if !is_valid_literal(subject.as_bytes()) {
            return Err(format!("invalid test subject, must be valid publish subject: {subject}"));
        }
        subscriptions.retain(|subscription| {
            Filter::parse(&subscription.subject).is_ok_and(|filter| filter.matches(subject.as_bytes()))
        });
    }
    subscriptions.retain(|subscription| parameters.get("acc").is_none_or(|acc| subscription.account == *acc));
    subscriptions.sort_by(|a, b| (a.cid, &a.subject, &a.sid).cmp(&(b.cid, &b.subject, &b.sid)));

    let mut out = Map::new();
    out.insert("server_id".to_owned(), json!(server.id));
    out.insert("now".to_owned(), json!(server.now));
    out.insert("num_subscriptions".to_owned(), json!(all));
    out.insert("total".to_owned(), json!(if list { subscriptions.len() } else { 0 }));
    out.insert("offset".to_owned(), json!(offset));
    out.insert("limit".to_owned(), json!(limit));
    if list {
        let page: Vec<Value> = subscriptions.iter().skip(offset).take(limit).map(shown).collect();
        out.insert("subscriptions_list".to_owned(), json!(page));
    }
    Ok(Value::Object(out))
}

/// One subscription, as `/connz` shows it too.
pub(super) fn shown(subscription: &SubscriptionFacts) -> Value {
    let mut out = Map::new();
    out.insert("account".to_owned(), json!(subscription.account));
    out.insert("subject".to_owned(), json!(subscription.subject));
    if !subscription.queue.is_empty() {
        out.insert("qgroup".to_owned(), json!(subscription.queue));
    }
    out.insert("sid".to_owned(), json!(subscription.sid));
    out.insert("msgs".to_owned(), json!(subscription.msgs));
    if subscription.max > 0 {
        out.insert("max".to_owned(), json!(subscription.max));
    }
    out.insert("cid".to_owned(), json!(subscription.cid));
    Value::Object(out)
}
