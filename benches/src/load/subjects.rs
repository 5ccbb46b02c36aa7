//! One stream with very many subjects: memory for each, starting again, the last message of a subject, and a consumer
//! that wants a hundredth of them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{Effort, fetch, publish};
use crate::messages::{self, Messages, Subjects};
use crate::servers::{Servers, Stop};
use crate::setup::{self, STREAM, Storage};

/// Subjects are `bench.<group>.<n>`.
const GROUPS: u64 = 100;

/// Gets that are under way at a time.
const GETS_AT_ONCE: u64 = 100;

/// Gets of a full run.
const GETS: u64 = 200_000;

/// How long a server may take to answer while it starts.
const QUESTION: Duration = Duration::from_secs(1);

/// One message for each of `subjects` subjects.
pub fn run(
    servers: &mut Servers,
    subjects: u64,
    payload_bytes: usize,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({ "allow_direct": true }))?;
    let empty = servers.memory()?;
    let text =
        Messages { subjects: Subjects::Grouped(GROUPS), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    let meter = Meter::start(servers)?;
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..subjects, fetch::FILL_WINDOW)?;
    let mut outcome = meter.finish(servers, subjects)?;
    let payload = subjects * payload_bytes as u64;
    meter.settle(servers, &mut outcome, subjects, payload, effort.settle_within)?;
    let memory = servers.memory()?.saturating_sub(empty);
    outcome.set(Figure::MemoryPerSubject, memory as f64 / subjects as f64);

    let gets = (GETS / effort.divide_by).max(GETS_AT_ONCE);
    outcome.set(Figure::LastBySubjectRate, last_by_subject(servers, subjects, gets)?);
    outcome.set(Figure::FilteredRate, filtered(servers, subjects / GROUPS)?);

    let start = Instant::now();
    servers.restart(Stop::Gracefully)?;
    servers.wait_until(|servers| {
        let mut client = Client::connect_within(servers.address(0), QUESTION)?;
        let info = setup::api(&mut client, &format!("STREAM.INFO.{STREAM}"), &Value::Null)?;
        ensure!(info["state"]["num_subjects"].as_u64() == Some(subjects), "subjects are missing");
        Ok(())
    })?;
    outcome.set(Figure::RestartSeconds, start.elapsed().as_secs_f64());
    Ok(outcome)
}

fn last_by_subject(servers: &Servers, subjects: u64, gets: u64) -> anyhow::Result<f64> {
    let mut client = Client::connect(setup::leader(servers, STREAM)?)?;
    client.write(b"SUB _INBOX.get 1\r\n")?;
    client.flush_barrier()?;
    let start = Instant::now();
    for first in (0..gets).step_by(GETS_AT_ONCE as usize) {
        let mut requests = String::new();
        for n in first..first + GETS_AT_ONCE {
            let subject = messages::mix(n) % subjects;
            let group = subject % GROUPS;
            write!(requests, "PUB $JS.API.DIRECT.GET.{STREAM}.bench.{group}.{subject} _INBOX.get 0\r\n\r\n")?;
        }
        client.write(requests.as_bytes())?;
        for _ in 0..GETS_AT_ONCE {
            let message = client.receive()?;
            let header = String::from_utf8_lossy(message.header);
            ensure!(header.contains("Nats-Sequence"), "no message: {header}");
        }
    }
    Ok(gets as f64 / start.elapsed().as_secs_f64())
}

fn filtered(servers: &Servers, messages: u64) -> anyhow::Result<f64> {
    let start = Instant::now();
    setup::create_consumer(servers, "F", json!({ "filter_subject": "bench.7.>", "ack_policy": "none" }))?;
    let mut client = Client::connect(setup::leader(servers, STREAM)?)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    fetch::fetch(&mut client, "F", 500, |_| false, messages, |_| Ok(()))?;
    Ok(messages as f64 / start.elapsed().as_secs_f64())
}
