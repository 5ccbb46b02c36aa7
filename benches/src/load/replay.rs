//! Reading on from an arbitrary sequence of a large stream, as ordered consumers of client libraries do: a consumer
//! without acknowledgements that begins at a sequence, with pull requests that overlap.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{fetch, publish};
use crate::messages::{self, Messages};
use crate::servers::{Servers, Stop};
use crate::setup::{self, STREAM, Storage};

/// Messages of a pull request. The next is sent when half of them are there.
const BATCH: u64 = 500;

/// Sequences from which the first message is timed.
const STARTS: u64 = 20;

/// Times to the first message, from sequences all over the stream, then the rate of the second half.
pub fn run(servers: &mut Servers, messages: u64, payload_bytes: usize) -> anyhow::Result<Outcome> {
    let total = messages.max(2 * BATCH);
    setup::create_stream(servers, Storage::File, json!({}))?;
    let text = Messages::plain(payload_bytes, "_INBOX.acks.a");
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..total, fetch::FILL_WINDOW)?;
    // Caches of the server are empty then; those of the operating system are what they are, on both sides.
    servers.restart(Stop::Gracefully)?;
    servers.wait_until(|servers| setup::leader(servers, STREAM).map(|_| ()))?;
    let address = setup::leader(servers, STREAM)?;

    let mut first_ms = Vec::new();
    for n in 0..STARTS {
        let sequence = 1 + messages::mix(n) % total;
        let start = Instant::now();
        let mut client = Client::connect(address)?;
        begin(&mut client, &format!("F{n}"), sequence)?;
        pull(&mut client, &format!("F{n}"), 1)?;
        let got = deliver(&mut client)?;
        ensure!(got == sequence, "asked for sequence {sequence}, got {got}");
        first_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    first_ms.sort_by(f64::total_cmp);

    let from = total / 2;
    let mut client = Client::connect(address)?;
    begin(&mut client, "R", from)?;
    let messages = total + 1 - from;
    let meter = Meter::start(servers)?;
    pull(&mut client, "R", BATCH)?;
    let mut asked = BATCH;
    for n in 0..messages {
        if asked - n <= BATCH / 2 && asked < messages {
            let more = BATCH.min(messages - asked);
            pull(&mut client, "R", more)?;
            asked += more;
        }
        let sequence = deliver(&mut client)?;
        ensure!(sequence == from + n, "sequence {sequence} instead of {}", from + n);
    }
    let mut outcome = meter.finish(servers, messages)?;
    outcome.set(Figure::FirstMessageMs, first_ms[first_ms.len() / 2]);
    outcome.set(Figure::FirstMessageMaxMs, first_ms[first_ms.len() - 1]);
    Ok(outcome)
}

fn begin(client: &mut Client, name: &str, sequence: u64) -> anyhow::Result<()> {
    let body = json!({ "stream_name": STREAM, "config": {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": sequence,
        "ack_policy": "none",
        "max_deliver": 1,
        "mem_storage": true,
        "num_replicas": 1,
        "inactive_threshold": 300_000_000_000_u64,
    }});
    setup::api(client, &format!("CONSUMER.CREATE.{STREAM}.{name}"), &body)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")
}

fn pull(client: &mut Client, consumer: &str, batch: u64) -> anyhow::Result<()> {
    let body = format!("{{\"batch\":{batch},\"expires\":20000000000}}");
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}");
    client.write(format!("PUB {subject} _INBOX.fetch {}\r\n{body}\r\n", body.len()).as_bytes())
}

/// The stream sequence of the next message, from its reply subject; statuses of ended requests are passed over.
fn deliver(client: &mut Client) -> anyhow::Result<u64> {
    loop {
        let message = client.receive()?;
        if message.reply.is_empty() {
            continue;
        }
        let reply = std::str::from_utf8(message.reply)?;
        // $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>...
        return reply.split('.').nth(5).and_then(|text| text.parse().ok()).context("no sequence in a reply");
    }
}
