//! `permissions {}` of a user and `default_permissions {}` of those that have none of their own.

use levee_broker_core::permission::{Grant, GroupFilter, Responses};
use levee_protocol::subject::Filter;
use levee_protocol::time::Nanos;

use super::grammar::{Element, Entry, Problem, Value};
use super::options::{self, Read, all_or_problems, each, integer, text};
use super::{Config, Login, parse_duration};

/// The whole block.
pub(super) fn read(config: &mut Config, entry: &Entry) -> Result<Grant, Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        return Err(vec![entry.problem(format!(
            "{} must be a block with publish and subscribe, but it is {}",
            entry.key,
            entry.value.kind()
        ))]);
    };
    let mut grant = Grant::default();
    all_or_problems(each(block, |entry, key| {
        match key {
            "publish" | "pub" | "import" => {
                (grant.publish.allow, grant.publish.deny) = lists(config, entry, &subject)?;
            }
            "subscribe" | "sub" | "export" => {
                (grant.subscribe.allow, grant.subscribe.deny) = lists(config, entry, &subject_and_queue)?;
            }
            "allow_responses" | "publish_allow_responses" => grant.responses = responses(config, entry)?,
            _ => options::other(config, entry, key, &[], &[], "permissions.")
                .map_err(|problem| vec![problem])?,
        }
        Ok(())
    }))?;
    Ok(grant)
}

/// Gives users without permissions of their own these.
pub(super) fn apply_default(users: &mut [Login], default: Option<&Grant>) {
    for user in users.iter_mut().filter(|user| user.permissions.is_none()) {
        user.permissions = default.cloned();
    }
}

type ReadText<T> = dyn Fn(&str) -> Result<T, String>;

/// A subject, a list of them, or `{ allow, deny }` with one or a list each.
fn lists<T>(
    config: &mut Config,
    entry: &Entry,
    read: &ReadText<T>,
) -> Result<(Vec<T>, Vec<T>), Vec<Problem>> {
    let Value::Block(block) = &entry.value else {
        return Ok((list(entry, read)?, Vec::new()));
    };
    let (mut allow, mut deny) = (Vec::new(), Vec::new());
    all_or_problems(each(block, |entry, key| {
        match key {
            "allow" => allow = list(entry, read)?,
            "deny" => deny = list(entry, read)?,
            _ => options::other(config, entry, key, &[], &[], "permissions.")
                .map_err(|problem| vec![problem])?,
        }
        Ok(())
    }))?;
    Ok((allow, deny))
}

fn list<T>(entry: &Entry, read: &ReadText<T>) -> Result<Vec<T>, Vec<Problem>> {
    match &entry.value {
        Value::Text(text) => read(text).map(|one| vec![one]).map_err(|message| vec![entry.problem(message)]),
        Value::List(elements) => {
            let (mut all, mut problems) = (Vec::new(), Vec::new());
            for element in elements {
                match one(element, read) {
                    Ok(one) => all.push(one),
                    Err(message) => problems.push(Problem { at: element.at.clone(), message }),
                }
            }
            all_or_problems(problems).map(|()| all)
        }
        other => {
            let found = other.kind();
            Err(vec![entry.problem(format!(
                "{} must be a subject or a list of subjects, but it is {found}",
                entry.key
            ))])
        }
    }
}

fn one<T>(element: &Element, read: &ReadText<T>) -> Result<T, String> {
    match &element.value {
        Value::Text(text) => read(text),
        other => Err(format!("a subject in permissions must be a string, but it is {}", other.kind())),
    }
}

fn subject(text: &str) -> Result<Filter, String> {
    Filter::parse(text).map_err(|_| format!("subject {text:?} is not a valid subject"))
}

/// `subject`, or `subject queue`.
fn subject_and_queue(text: &str) -> Result<GroupFilter, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [filter] if filter.len() == text.len() => Ok(GroupFilter { filter: subject(filter)?, queue: None }),
        [filter, queue] => {
            let queue = Filter::parse(queue).map_err(|_| format!("queue {queue:?} is not a valid queue"))?;
            Ok(GroupFilter { filter: subject(filter)?, queue: Some(queue) })
        }
        _ => Err(format!("subject {text:?} is not a valid subject")),
    }
}

/// `true`, `false`, or `{ max, expires }`. Zero of both is the default.
fn responses(config: &mut Config, entry: &Entry) -> Result<Option<Responses>, Vec<Problem>> {
    let block = match &entry.value {
        Value::Bool(on) => return Ok(on.then(Responses::default)),
        Value::Block(block) => block,
        other => {
            return Err(vec![entry.problem(format!(
                "{} must be true, false or a block with max and expires, but it is {}",
                entry.key,
                other.kind()
            ))]);
        }
    };
    let mut responses = Responses::default();
    all_or_problems(each(block, |entry, key| {
        let done = match key {
            "max" | "max_msgs" | "max_messages" | "max_responses" => {
                integer(entry).map(|max| responses.max = if max == 0 { responses.max } else { max })
            }
            "expires" | "expiration" | "ttl" => expires(entry).map(|expires| {
                responses.expires = if expires == Nanos::ZERO { responses.expires } else { expires };
            }),
            _ => options::other(config, entry, key, &[], &[], "permissions.allow_responses."),
        };
        done.map_err(|problem| vec![problem])
    }))?;
    Ok(Some(responses))
}

/// A duration, of which a negative one means forever.
fn expires(entry: &Entry) -> Read<Nanos> {
    let text = text(entry)?;
    let (sign, amount) = text.strip_prefix('-').map_or((1, &*text), |amount| (-1, amount));
    let duration = parse_duration(amount)
        .map_err(|error| entry.problem(format!("error parsing {}: {error}", entry.key)))?;
    Ok(Nanos(sign * i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
}
