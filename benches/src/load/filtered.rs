//! A consumer with a filter that matches a hundredth of a stream in which every message has a subject of its own.

use std::time::Instant;

use serde_json::json;

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{fetch, publish};
use crate::messages::{Messages, Subjects};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Subjects are `bench.<group>.<n>`; the filter names a group.
const GROUPS: u64 = 100;

/// Fills the stream, makes the consumer, and reads all that matches. The rate is that of deliveries.
pub fn run(servers: &Servers, subjects: u64, payload_bytes: usize) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({}))?;
    let address = setup::leader(servers, STREAM)?;
    let text =
        Messages { subjects: Subjects::Grouped(GROUPS), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    publish::windowed(address, &text, 0..subjects, fetch::FILL_WINDOW)?;

    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    client.flush_barrier()?;
    let matching = (subjects / GROUPS).max(1);
    let (meter, start) = (Meter::start(servers)?, Instant::now());
    setup::create_consumer(servers, "F", json!({ "filter_subject": "bench.7.>" }))?;
    let mut first_ms = None;
    fetch::fetch(
        &mut client,
        "F",
        500,
        |_| true,
        matching,
        |_| {
            first_ms.get_or_insert_with(|| start.elapsed().as_secs_f64() * 1e3);
            Ok(())
        },
    )?;
    client.flush_barrier()?;
    let mut outcome = meter.finish(servers, matching)?;
    first_ms.into_iter().for_each(|first_ms| outcome.set(Figure::FirstMessageMs, first_ms));
    Ok(outcome)
}
