//! Atomic batches: so many messages that are stored together or not at all, with one acknowledgement.

use std::io::Write as _;

use serde_json::json;

use crate::client::Client;
use crate::figures::Outcome;
use crate::load::publish::check_ack;
use crate::load::{Effort, stored};
use crate::messages::payload;
use crate::pace;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Messages of a batch.
    pub batch: u64,
    /// Batches that are not acknowledged, at most. Servers allow 50 for a stream.
    pub at_once: u64,
    /// Body bytes of a message.
    pub payload_bytes: usize,
}

/// Publishes about so many messages by one connection. A message counts, not a batch; answers are those of batches.
pub fn run(servers: &Servers, shape: Shape, messages: u64, effort: &Effort) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({ "allow_atomic": true }))?;
    let mut client = Client::connect(setup::leader(servers, STREAM)?)?;
    client.write(b"SUB _INBOX.batch 1\r\n")?;
    client.flush_barrier()?;
    let batches = messages.div_ceil(shape.batch);
    let mut answers = pace::histogram();
    let mut outcome = stored(servers, batches * shape.batch, shape.payload_bytes, effort, || {
        let (mut buffer, mut acked) = (Vec::new(), 0);
        let pace = pace::Pace::start(1.0);
        let mut sent_ns = Vec::new();
        while acked < batches {
            if sent_ns.len() as u64 - acked < shape.at_once && (sent_ns.len() as u64) < batches {
                buffer.clear();
                append(&mut buffer, shape, sent_ns.len() as u64);
                sent_ns.push(pace.since_ns(0));
                client.write(&buffer)?;
            } else {
                check_ack(&client.receive()?)?;
                answers.saturating_record(pace.since_ns(sent_ns[acked as usize]));
                acked += 1;
            }
        }
        Ok(())
    })?;
    setup::expect_stored(servers, batches * shape.batch)?;
    outcome.set_answers(&answers);
    Ok(outcome)
}

/// One whole batch. Only its last message asks for an acknowledgement.
fn append(buffer: &mut Vec<u8>, shape: Shape, batch: u64) {
    for sequence in 1..=shape.batch {
        let (reply, commit) =
            if sequence == shape.batch { ("_INBOX.batch", "Nats-Batch-Commit: 1\r\n") } else { ("", "") };
        let header =
            format!("NATS/1.0\r\nNats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {sequence}\r\n{commit}\r\n");
        let total = header.len() + shape.payload_bytes;
        write!(buffer, "HPUB bench {reply} {} {total}\r\n{header}", header.len())
            .expect("a vector takes everything");
        buffer.extend_from_slice(payload(batch * shape.batch + sequence, shape.payload_bytes));
        buffer.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_message_of_a_batch_commits_and_asks_for_an_ack() {
        let mut buffer = Vec::new();

        append(&mut buffer, Shape { batch: 3, at_once: 1, payload_bytes: 0 }, 7);

        let text = String::from_utf8(buffer).expect("bodies are empty");
        let messages: Vec<&str> = text.split("HPUB ").skip(1).collect();
        assert_eq!(messages.len(), 3);
        for (at, message) in messages.iter().enumerate() {
            assert!(message.contains(&format!("Nats-Batch-Id: 7\r\nNats-Batch-Sequence: {}\r\n", at + 1)));
            assert_eq!(message.contains("Nats-Batch-Commit: 1"), at == 2);
            assert_eq!(message.contains("_INBOX.batch"), at == 2);
        }
    }
}
