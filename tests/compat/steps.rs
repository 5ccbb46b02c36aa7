//! The step files beside this file: every endpoint about streams, messages and consumers, and every error that a request
//! to one server can provoke. The same steps go to both servers, and the answers are compared field by field.
//!
//! A line is a subject (below `$JS.API.` unless it begins with `=`), headers in brackets if any, and the payload.
//! `{{x*5}}` stands for `xxxxx`. A line that begins with `~` is sent to both and answered differently on purpose; why is
//! in `README.md`.

use std::collections::BTreeSet;

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
        let (subject, rest) = request.split_once(' ').unwrap_or((&request, ""));
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
            subject: subject.to_owned(),
            header,
            payload: payload.to_owned(),
        }
    });
    Ok(steps.collect())
}

async fn run(cluster: &Cluster, steps: &[Step]) -> Result<Vec<Value>> {
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    let mut answers = Vec::new();
    for step in steps {
        answers.push(ask(&mut raw, &step.subject, &step.header, &step.payload).await);
    }
    Ok(answers)
}

/// Compares all answers; `codes` is how many different errors the steps provoke.
async fn compare(test: &str, file: &str, codes: usize) -> Result<()> {
    let Some(pair) = Pair::start(test, "").await? else { return Ok(()) };
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
