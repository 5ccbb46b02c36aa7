//! Direct gets: requests that a stream answers with messages, without a consumer.

use std::io::Write as _;

use anyhow::ensure;
use hdrhistogram::Histogram;
use serde_json::json;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{fetch, join, publish};
use crate::messages::{self, Messages, Subjects};
use crate::pace::{self, Pace};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Subjects of the stream, `bench.<n>`. One answer may have 1024 of them.
pub const SUBJECTS: u64 = 1000;

/// What one request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Get {
    /// The message of a sequence.
    Sequence,
    /// The last message of a subject.
    LastOfSubject,
    /// So many messages, from a sequence on.
    Batch(u64),
    /// The last messages of all subjects.
    LastOfAll,
}

/// Fills a stream with so many messages, and reads as many, by readers that wait for each answer.
pub fn run(
    servers: &Servers,
    get: Get,
    readers: u64,
    payload_bytes: usize,
    messages: u64,
) -> anyhow::Result<Outcome> {
    let stored = messages.max(SUBJECTS);
    setup::create_stream(servers, Storage::File, json!({ "allow_direct": true }))?;
    let address = setup::leader(servers, STREAM)?;
    let text =
        Messages { subjects: Subjects::InTurns(SUBJECTS), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    publish::windowed(address, &text, 0..stored, fetch::FILL_WINDOW)?;
    read(servers, address, readers, messages, get.answer_messages(stored), |buffer, n, reply| {
        get.append(buffer, n, reply, stored)
    })
}

/// Reads about so many messages. `request` appends the `n`-th request; each is answered with `answer_messages`.
pub fn read(
    servers: &Servers,
    address: &str,
    readers: u64,
    messages: u64,
    answer_messages: u64,
    request: impl Fn(&mut Vec<u8>, u64, &str) + Sync,
) -> anyhow::Result<Outcome> {
    let each = (messages / readers / answer_messages).max(1);
    let connections =
        (0..readers).map(|reader| connect(address, reader)).collect::<anyhow::Result<Vec<_>>>()?;
    let meter = Meter::start(servers)?;
    let (pace, request) = (Pace::start(1.0), &request);
    let answers = std::thread::scope(|scope| {
        let threads = connections
            .into_iter()
            .zip(0..)
            .map(|((mut client, reply), reader)| {
                scope.spawn(move || -> anyhow::Result<_> {
                    let (mut buffer, mut answers) = (Vec::new(), pace::histogram());
                    for n in reader * each..(reader + 1) * each {
                        buffer.clear();
                        request(&mut buffer, n, &reply);
                        let asked_ns = pace.since_ns(0);
                        client.write(&buffer)?;
                        receive(&mut client, answer_messages)?;
                        answers.saturating_record(pace.since_ns(asked_ns));
                    }
                    Ok(answers)
                })
            })
            .collect();
        let mut answers: Histogram<u64> = pace::histogram();
        for one in join(threads)? {
            answers.add(one)?;
        }
        anyhow::Ok(answers)
    })?;
    let mut outcome = meter.finish(servers, each * readers * answer_messages)?;
    outcome.set_answers(&answers);
    Ok(outcome)
}

fn connect(address: &str, reader: u64) -> anyhow::Result<(Client, String)> {
    let reply = format!("_INBOX.get.{reader}");
    let mut client = Client::connect(address)?;
    client.write(format!("SUB {reply} 1\r\n").as_bytes())?;
    client.flush_barrier()?;
    Ok((client, reply))
}

/// Takes one answer. Several messages have a status behind them, a single one has none.
fn receive(client: &mut Client, messages: u64) -> anyhow::Result<()> {
    for got in 0..messages {
        let message = client.receive()?;
        ensure!(
            memchr::memmem::find(message.header, b"Nats-Sequence: ").is_some(),
            "{got} of {messages} messages, then {}",
            String::from_utf8_lossy(message.header)
        );
    }
    if messages > 1 {
        let message = client.receive()?;
        ensure!(
            message.header.starts_with(b"NATS/1.0 204"),
            "no end after {messages} messages: {}",
            String::from_utf8_lossy(message.header)
        );
    }
    Ok(())
}

impl Get {
    fn answer_messages(self, stored: u64) -> u64 {
        match self {
            Self::Sequence | Self::LastOfSubject => 1,
            Self::Batch(batch) => batch.min(stored),
            Self::LastOfAll => SUBJECTS,
        }
    }

    fn append(self, buffer: &mut Vec<u8>, n: u64, reply: &str, stored: u64) {
        let random = messages::mix(n);
        let body = match self {
            Self::Sequence => format!("{{\"seq\":{}}}", 1 + random % stored),
            Self::LastOfSubject => {
                append_last_of(buffer, STREAM, &format!("bench.{}", random % SUBJECTS), reply);
                return;
            }
            Self::Batch(batch) => {
                let batch = batch.min(stored);
                format!("{{\"seq\":{},\"batch\":{batch}}}", 1 + random % (stored + 1 - batch))
            }
            Self::LastOfAll => "{\"multi_last\":[\"bench.*\"]}".to_owned(),
        };
        write!(buffer, "PUB $JS.API.DIRECT.GET.{STREAM} {reply} {}\r\n{body}\r\n", body.len())
            .expect("a vector takes everything");
    }
}

/// The request that names a subject in its own.
pub fn append_last_of(buffer: &mut Vec<u8>, stream: &str, subject: &str, reply: &str) {
    write!(buffer, "PUB $JS.API.DIRECT.GET.{stream}.{subject} {reply} 0\r\n\r\n")
        .expect("a vector takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_begins_where_it_finds_all_its_messages() {
        for n in 0..1000 {
            let mut buffer = Vec::new();
            Get::Batch(500).append(&mut buffer, n, "r", 600);
            let text = String::from_utf8(buffer).expect("requests are text");
            let body: serde_json::Value =
                serde_json::from_str(text.lines().nth(1).expect("a body")).expect("the body is JSON");
            let sequence = body["seq"].as_u64().expect("a sequence");
            assert!((1..=101).contains(&sequence), "{sequence} + 500 of 600");
        }
    }
}
