//! A pull consumer. Throughput: a filled stream is read in batches. Latency: from when a message was due to be
//! published until the consumer has it.

use anyhow::ensure;
use serde_json::json;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{Effort, delivery, publish};
use crate::messages::Messages;
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
    /// Every hundredth is, and the last; that acknowledges those before.
    All,
    /// It is acknowledged, and thereby removed from the stream.
    WorkQueue,
}

impl Acks {
    /// The consumer's policy.
    #[must_use]
    pub fn policy(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Explicit | Self::WorkQueue => "explicit",
            Self::All => "all",
        }
    }

    /// Whether the `n`-th of `messages` is acknowledged, counted from 0.
    #[must_use]
    pub fn acks(self, n: u64, messages: u64) -> bool {
        match self {
            Self::None => false,
            Self::Explicit | Self::WorkQueue => true,
            Self::All => (n + 1).is_multiple_of(100) || n + 1 == messages,
        }
    }
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
    setup::create_consumer(servers, "C", json!({ "ack_policy": shape.acks.policy() }))?;

    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    client.flush_barrier()?;
    let acked = |n| shape.acks.acks(n, messages);
    let meter = Meter::start(servers)?;
    let received = fetch(&mut client, "C", shape.batch, acked, messages, |_| Ok(()))?;
    client.flush_barrier()?;
    let mut outcome = meter.finish(servers, received)?;
    outcome.add(delivery::latency(address, shape.payload_bytes, offered, effort, |total, each| {
        fetch(&mut client, "C", shape.batch, |n| shape.acks.acks(n, total), total, each).map(|_| ())
    })?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_of_all_comes_every_hundred_messages_and_at_the_end() {
        let acked: Vec<u64> = (0..250).filter(|n| Acks::All.acks(*n, 250)).collect();

        assert_eq!(acked, [99, 199, 249]);
    }
}
