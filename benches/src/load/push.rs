//! A push consumer. Throughput: a filled stream is delivered. Latency: from when a message was due to be published until
//! it is there.

use std::time::Duration;

use serde_json::json;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::fetch::{self, Acks};
use crate::load::{Effort, delivery, publish};
use crate::messages::Messages;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

const HEARTBEAT: Duration = Duration::from_secs(5);

/// Throughput, then latency at `offered` messages a second.
pub fn run(
    servers: &Servers,
    acks: Acks,
    payload_bytes: usize,
    messages: u64,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({}))?;
    let address = setup::leader(servers, STREAM)?;
    let text = Messages::plain(payload_bytes, "_INBOX.acks.a");
    publish::windowed(address, &text, 0..messages, fetch::FILL_WINDOW)?;

    let mut client = Client::connect(address)?;
    // Delivery begins with the consumer, so its creation is in the time.
    let meter = Meter::start(servers)?;
    subscribe(servers, &mut client, acks)?;
    receive(&mut client, acks, messages, |_| Ok(()))?;
    client.flush_barrier()?;
    let mut outcome = meter.finish(servers, messages)?;
    outcome.add(delivery::latency(address, payload_bytes, offered, effort, |total, each| {
        receive(&mut client, acks, total, each)
    })?);
    Ok(outcome)
}

/// Makes a durable push consumer that delivers to this client, with flow control as client libraries use it.
pub fn subscribe(servers: &Servers, client: &mut Client, acks: Acks) -> anyhow::Result<()> {
    client.write(b"SUB _INBOX.push 1\r\n")?;
    client.flush_barrier()?;
    let mut config = json!({
        "ack_policy": acks.policy(),
        "deliver_subject": "_INBOX.push",
        "flow_control": true,
        "idle_heartbeat": HEARTBEAT.as_nanos() as u64,
    });
    if acks == Acks::None {
        config["max_ack_pending"] = 0.into();
    }
    setup::create_consumer(servers, "C", config)
}

/// Takes so many messages, telling each one's payload; acknowledges, and answers flow control.
pub fn receive(
    client: &mut Client,
    acks: Acks,
    messages: u64,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut received, mut answers) = (0, Vec::with_capacity(1 << 16));
    while received < messages {
        let message = client.receive()?;
        let answer: Option<&[u8]> = if message.header.starts_with(b"NATS/1.0 100") {
            (!message.reply.is_empty()).then_some(b" 0\r\n\r\n")
        } else {
            each(message.payload)?;
            received += 1;
            acks.acks(received - 1, messages).then_some(b" 4\r\n+ACK\r\n")
        };
        if let Some(answer) = answer {
            answers.extend_from_slice(b"PUB ");
            answers.extend_from_slice(message.reply);
            answers.extend_from_slice(answer);
        }
        if !answers.is_empty() && (received == messages || !client.has_message()) {
            client.write(&answers)?;
            answers.clear();
        }
    }
    Ok(())
}
