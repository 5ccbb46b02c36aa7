//! Many pull consumers on one filled stream, read side by side with explicit acks.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{fetch, join, publish};
use crate::messages::{Messages, Subjects};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Messages asked for at a time, for each consumer.
const BATCH: u64 = 100;

/// Connections; each reads its part of the consumers in turns.
const READERS: u64 = 8;

/// Who gets what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Share {
    /// Every consumer gets every message.
    Everything,
    /// A work queue: each consumer gets one subject, and what it acknowledges is removed.
    OneSubject,
}

/// Delivers so many messages altogether.
pub fn run(
    servers: &Servers,
    consumers: u64,
    share: Share,
    payload_bytes: usize,
    deliveries: u64,
) -> anyhow::Result<Outcome> {
    let each = (deliveries / consumers).max(1);
    let (retention, subjects, published) = match share {
        Share::Everything => ("limits", Subjects::One, each),
        Share::OneSubject => ("workqueue", Subjects::InTurns(consumers), each * consumers),
    };
    // Said, because nats-server allows no more than 1000 unless it is.
    let config = json!({ "retention": retention, "max_consumers": consumers + 1 });
    setup::create_stream(servers, Storage::File, config)?;
    let address = setup::leader(servers, STREAM)?;
    let text = Messages { subjects, ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    publish::windowed(address, &text, 0..published, fetch::FILL_WINDOW)?;
    for consumer in 0..consumers {
        let filter = match share {
            Share::Everything => Value::Null,
            Share::OneSubject => json!({ "filter_subject": format!("bench.{consumer}") }),
        };
        setup::create_consumer(servers, &format!("C{consumer}"), filter)?;
    }

    let readers = READERS.min(consumers);
    let clients = (0..readers)
        .map(|reader| {
            let mut client = Client::connect(address)?;
            client.write(format!("SUB _INBOX.fetch.{reader} 1\r\n").as_bytes())?;
            client.flush_barrier()?;
            Ok(client)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let meter = Meter::start(servers)?;
    std::thread::scope(|scope| {
        let threads = clients
            .into_iter()
            .zip(0..)
            .map(|(mut client, reader)| {
                let mine: Vec<u64> = (reader..consumers).step_by(readers as usize).collect();
                scope.spawn(move || read(&mut client, reader, &mine, each))
            })
            .collect();
        join(threads)
    })?;
    meter.finish(servers, each * consumers)
}

/// Asks for messages of all these consumers at once, takes them, and asks again.
fn read(client: &mut Client, reader: u64, consumers: &[u64], each: u64) -> anyhow::Result<()> {
    let (mut left, mut buffer) = (each, Vec::with_capacity(1 << 16));
    while left > 0 {
        let asked = BATCH.min(left);
        let body = format!("{{\"batch\":{asked},\"expires\":20000000000}}");
        for consumer in consumers {
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.C{consumer}");
            let request = format!("PUB {subject} _INBOX.fetch.{reader} {}\r\n{body}\r\n", body.len());
            buffer.extend_from_slice(request.as_bytes());
        }
        client.write(&buffer)?;
        buffer.clear();
        for _ in 0..asked * consumers.len() as u64 {
            let message = client.receive()?;
            ensure!(
                !message.reply.is_empty(),
                "a fetch ended early: {}",
                String::from_utf8_lossy(message.header)
            );
            buffer.extend_from_slice(b"PUB ");
            buffer.extend_from_slice(message.reply);
            buffer.extend_from_slice(b" 4\r\n+ACK\r\n");
            if !client.has_message() {
                client.write(&buffer)?;
                buffer.clear();
            }
        }
        left -= asked;
    }
    client.write(&buffer)?;
    client.flush_barrier()
}
