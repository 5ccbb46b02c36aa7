//! The step files beside this file: every endpoint about streams, messages and consumers, and every error that a request
//! to one server can provoke. The same steps go to both servers, and the answers are compared field by field.
//!
//! A line is a subject (below `$JS.API.` unless it begins with `=`), headers in brackets if any, and the payload. Where
//! there are accounts it begins with the user who asks, `@a`; the password is the same.
//! `{{x*5}}` stands for `xxxxx`. A line that begins with `~` is sent to both and answered differently on purpose; why is
//! in `README.md`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use levee_tests::cluster::Cluster;
use levee_tests::raw::Raw;
use regex::Regex;
use serde_json::{Value, json};

use crate::answers::ask;
use crate::pair::{Differences, Pair};

struct Step {
    line: String,
    compared: bool,
    user: String,
    subject: String,
    header: String,
    payload: String,
}

fn parse(file: &str) -> Result<Vec<Step>> {
    let repeated = Regex::new(r"\{\{(\w)\*(\d+)\}\}")?;
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let steps = lines.map(|line| {
        let request = line.strip_prefix('~').unwrap_or(line);
        let request = repeated.replace_all(request, |found: &regex::Captures<'_>| {
            found[1].repeat(found[2].parse().expect("digits"))
        });
        let (user, request) = match request.strip_prefix('@').and_then(|request| request.split_once(' ')) {
            Some((user, request)) => (user, request),
            None => ("", request.as_ref()),
        };
        let (subject, rest) = request.split_once(' ').unwrap_or((request, ""));
        let (headers, payload) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((headers, payload)) => (headers, payload.trim_start()),
            None => ("", rest),
        };
        let mut header = String::new();
        if !headers.is_empty() {
            header = format!("NATS/1.0\r\n{}\r\n\r\n", headers.replace("; ", "\r\n"));
        }
        Step {
            line: line.to_owned(),
            compared: !line.starts_with('~'),
            user: user.to_owned(),
            subject: subject.to_owned(),
            header,
            payload: payload.to_owned(),
        }
    });
    Ok(steps.collect())
}

async fn run(cluster: &Cluster, steps: &[Step]) -> Result<Vec<Value>> {
    let mut clients = BTreeMap::new();
    let mut answers = Vec::new();
    for step in steps {
        let raw = match clients.entry(&step.user) {
            Entry::Occupied(connected) => connected.into_mut(),
            Entry::Vacant(free) => {
                let raw = free.insert(Raw::connect(cluster.node(0).address()).await?);
                let named = !step.user.is_empty();
                raw.hello(&if named { json!({ "user": step.user, "pass": step.user }) } else { json!({}) })
                    .await?;
                raw
            }
        };
        answers.push(ask(raw, &step.subject, &step.header, &step.payload).await);
    }
    Ok(answers)
}

/// Compares all answers; `codes` is how many different errors the steps provoke.
async fn compare(test: &str, file: &str, codes: usize) -> Result<()> {
    compare_with(test, "", file, codes).await
}

/// Like [`compare`], with these lines in the configuration of both.
async fn compare_with(test: &str, extra: &str, file: &str, codes: usize) -> Result<()> {
    let Some(pair) = Pair::start(test, extra).await? else { return Ok(()) };
    let steps = parse(file)?;

    let (expected, answers) = tokio::join!(run(&pair.reference, &steps), run(&pair.subject, &steps));
    let (expected, answers) = (expected?, answers?);

    let mut differences = Differences::default();
    let mut provoked = BTreeSet::new();
    for ((step, expected), answer) in steps.iter().zip(&expected).zip(&answers) {
        provoked.extend(expected["body"]["error"]["err_code"].as_u64());
        if step.compared {
            differences.compare(&step.line, expected, answer);
        } else {
            ensure!(expected != answer, "{} is answered the same by now", step.line);
        }
    }
    println!("{} steps, {} error codes: {provoked:?}", steps.len(), provoked.len());
    differences.demand_none()?;
    ensure!(provoked.len() >= codes, "only {} error codes were provoked", provoked.len());
    Ok(())
}

#[tokio::test]
async fn streams_are_created_and_updated_as_nats_server_does_it() -> Result<()> {
    let test = "streams_are_created_and_updated_as_nats_server_does_it";
    compare(test, include_str!("steps/streams.txt"), 15).await
}

#[tokio::test]
async fn messages_are_read_and_removed_as_nats_server_does_it() -> Result<()> {
    let test = "messages_are_read_and_removed_as_nats_server_does_it";
    compare(test, include_str!("steps/messages.txt"), 5).await
}

#[tokio::test]
async fn publishes_are_answered_header_by_header_as_nats_server_does_it() -> Result<()> {
    let test = "publishes_are_answered_header_by_header_as_nats_server_does_it";
    compare(test, include_str!("steps/publishes.txt"), 30).await
}

#[tokio::test]
async fn consumers_are_created_changed_and_reset_as_nats_server_does_it() -> Result<()> {
    let test = "consumers_are_created_changed_and_reset_as_nats_server_does_it";
    compare(test, include_str!("steps/consumers.txt"), 40).await
}

/// One with limits, one without, one without streams, one whose streams must have a bound, and the system's.
const ACCOUNTS: &str = "accounts {
  A {
    users [{ user: a, password: a }]
    jetstream {
      max_mem: 10000, max_store: 100000, mem_max_stream_bytes: 5000, disk_max_stream_bytes: 60000
      max_streams: 3, max_consumers: 2, max_ack_pending: 50
    }
  }
  B { users [{ user: b, password: b }], jetstream: enabled }
  C { users [{ user: c, password: c }] }
  R { users [{ user: r, password: r }], jetstream { max_store: 50000, max_bytes_required: true } }
  S { users [{ user: s, password: s }] }
}
system_account: S
no_auth_user: b";

#[tokio::test]
async fn accounts_have_limits_as_on_nats_server() -> Result<()> {
    let test = "accounts_have_limits_as_on_nats_server";
    compare_with(test, ACCOUNTS, include_str!("steps/accounts.txt"), 8).await
}
