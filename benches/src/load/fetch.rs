//! A pull consumer. Throughput: a filled stream is read in batches. Latency: from when a message was due to be
//! published until the consumer has it.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{Effort, publish};
use crate::messages::{self, Messages};
use crate::pace::{self, Pace, Stamps};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Messages that are published unacknowledged while the stream is filled.
pub const FILL_WINDOW: u64 = 4000;

/// What happens to a message that was delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Acks {
    /// Nothing: the consumer has no acknowledgements.
    None,
    /// It is acknowledged.
    Explicit,
    /// It is acknowledged, and thereby removed from the stream.
    WorkQueue,
}

/// How a stream is read.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Messages asked for at a time.
    pub batch: u64,
    /// What happens to them.
    pub acks: Acks,
    /// Body bytes.
    pub payload_bytes: usize,
}

/// Throughput, then latency at `offered` messages a second.
pub fn run(
    servers: &Servers,
    storage: Storage,
    shape: Shape,
    messages: u64,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let retention = if shape.acks == Acks::WorkQueue { "workqueue" } else { "limits" };
    setup::create_stream(servers, storage, json!({ "retention": retention }))?;
    let address = setup::leader(servers, STREAM)?;
    let text = Messages::plain(shape.payload_bytes, "_INBOX.acks.a");
    publish::windowed(address, &text, 0..messages, FILL_WINDOW)?;
    let policy = if shape.acks == Acks::None { "none" } else { "explicit" };
    setup::create_consumer(servers, "C", json!({ "ack_policy": policy }))?;

    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    client.flush_barrier()?;
    let acked = |_| shape.acks != Acks::None;
    let meter = Meter::start(servers)?;
    let received = fetch(&mut client, "C", shape.batch, acked, messages, |_| Ok(()))?;
    client.flush_barrier()?;
    let mut outcome = meter.finish(servers, received)?;
    outcome.add(latency(address, &mut client, shape, offered, effort)?);
    Ok(outcome)
}

/// Fetches until `messages` were received, telling each one's payload; `acked` says whether the n-th is acknowledged.
pub fn fetch(
    client: &mut Client,
    consumer: &str,
    batch: u64,
    acked: impl Fn(u64) -> bool,
    messages: u64,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut received = 0;
    let mut acks = Vec::with_capacity(1 << 16);
    while received < messages {
        let asked = batch.min(messages - received);
        let body = format!("{{\"batch\":{asked},\"expires\":20000000000}}");
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}");
        client.write(format!("PUB {subject} _INBOX.fetch {}\r\n{body}\r\n", body.len()).as_bytes())?;
        for _ in 0..asked {
            let message = client.receive()?;
            ensure!(
                !message.reply.is_empty(),
                "a fetch ended after {received} of {messages} messages: {}",
                String::from_utf8_lossy(message.header)
            );
            each(message.payload)?;
            if acked(received) {
                acks.extend_from_slice(b"PUB ");
                acks.extend_from_slice(message.reply);
                acks.extend_from_slice(b" 4\r\n+ACK\r\n");
            }
            received += 1;
            if !acks.is_empty() && !client.has_message() {
                client.write(&acks)?;
                acks.clear();
            }
        }
        client.write(&acks)?;
        acks.clear();
    }
    Ok(received)
}

fn latency(
    address: &str,
    client: &mut Client,
    shape: Shape,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let total = effort.latency.messages(offered as f64);
    let mut publisher = Client::connect(address)?;
    let pace = Pace::start_warm(offered as f64, effort.latency);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> anyhow::Result<()> {
            let text = Messages::plain(shape.payload_bytes, "");
            pace.send(&text, total, Stamps::Due, |bytes| publisher.write(bytes))?;
            publisher.flush_barrier()
        });
        let mut latency = pace::histogram();
        fetch(
            client,
            "C",
            shape.batch,
            |_| shape.acks != Acks::None,
            total,
            |payload| {
                let due = messages::stamp(payload).context("a message without its stamp")?;
                pace.record(&mut latency, due);
                Ok(())
            },
        )?;
        let outcome = Outcome::of_open_loop(&latency, offered, pace.kept(total));
        writing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        Ok(outcome)
    })
}
