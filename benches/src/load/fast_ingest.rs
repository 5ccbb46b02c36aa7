//! Fast ingest: one long batch of ordinary messages, whose acknowledgements the server sends once in so many messages.

use std::io::Write as _;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::client::Client;
use crate::figures::Outcome;
use crate::load::{Effort, stored};
use crate::messages::payload;
use crate::pace::WRITE_BYTES;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Messages for one acknowledgement, at most; the server grants fewer if it wants.
const FLOW: u64 = 1000;

/// Acknowledgements that may be missing before the client waits.
const ACKS_MISSING: u64 = 4;

/// What the server says in between and in the end.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    r#type: String,
    seq: u64,
    msgs: u64,
    count: u64,
    error: serde_json::Value,
}

/// Publishes so many messages by one connection.
pub fn run(
    servers: &Servers,
    payload_bytes: usize,
    messages: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let messages = messages.max(2);
    setup::create_stream(servers, Storage::File, json!({ "allow_batched": true }))?;
    let mut client = Client::connect(setup::leader(servers, STREAM)?)?;
    client.write(b"SUB _INBOX.fast.> 1\r\n")?;
    client.flush_barrier()?;
    let outcome =
        stored(servers, messages, payload_bytes, effort, || ingest(&mut client, payload_bytes, messages))?;
    setup::expect_stored(servers, messages)?;
    Ok(outcome)
}

fn ingest(client: &mut Client, payload_bytes: usize, messages: u64) -> anyhow::Result<()> {
    let mut buffer = Vec::with_capacity(2 * WRITE_BYTES);
    // The first message alone opens the batch and asks what flow is granted.
    let (mut sent, mut allowed) = (0, 1);
    loop {
        buffer.clear();
        while sent < allowed.min(messages) && buffer.len() < WRITE_BYTES {
            sent += 1;
            append(&mut buffer, sent, messages, payload_bytes);
        }
        client.write(&buffer)?;
        while client.has_message() || sent == allowed.min(messages) {
            let message = client.receive()?;
            let text = || String::from_utf8_lossy(message.payload).into_owned();
            let answer: Answer = serde_json::from_slice(message.payload).with_context(text)?;
            ensure!(answer.error.is_null() && matches!(answer.r#type.as_str(), "" | "ack"), "{}", text());
            if answer.r#type.is_empty() {
                ensure!(answer.count == messages, "{messages} messages were sent: {}", text());
                return Ok(());
            }
            allowed = allowed.max(answer.seq + ACKS_MISSING * answer.msgs);
        }
    }
}

/// Operations are part of the reply: 0 starts, 1 appends, 2 is the last.
fn append(buffer: &mut Vec<u8>, sequence: u64, messages: u64, payload_bytes: usize) {
    let operation = match sequence {
        1 => 0,
        _ if sequence == messages => 2,
        _ => 1,
    };
    let reply = format!("_INBOX.fast.b.{FLOW}.fail.{sequence}.{operation}.$FI");
    write!(buffer, "PUB bench {reply} {payload_bytes}\r\n").expect("a vector takes everything");
    buffer.extend_from_slice(payload(sequence, payload_bytes));
    buffer.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_says_start_then_append_then_commit() {
        let operation = |sequence| {
            let mut buffer = Vec::new();
            append(&mut buffer, sequence, 3, 0);
            String::from_utf8(buffer).expect("bodies are empty")
        };

        assert_eq!(operation(1), "PUB bench _INBOX.fast.b.1000.fail.1.0.$FI 0\r\n\r\n");
        assert_eq!(operation(2), "PUB bench _INBOX.fast.b.1000.fail.2.1.$FI 0\r\n\r\n");
        assert_eq!(operation(3), "PUB bench _INBOX.fast.b.1000.fail.3.2.$FI 0\r\n\r\n");
    }
}
