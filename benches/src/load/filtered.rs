//! Consumers with a filter that matches a hundredth of a stream in which every message has a subject of its own.

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

/// Consumers, one after the other, each with a group of its own.
const CONSUMERS: u64 = 10;

/// Fills the stream; then, for each consumer, makes it and reads all that matches. The rate is that of deliveries, and
/// has the creations in it.
pub fn run(servers: &Servers, subjects: u64, payload_bytes: usize) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({}))?;
    let address = setup::leader(servers, STREAM)?;
    let text =
        Messages { subjects: Subjects::Grouped(GROUPS), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    publish::windowed(address, &text, 0..subjects, fetch::FILL_WINDOW)?;

    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    client.flush_barrier()?;
    let (matching, mut first_ms) = ((subjects / GROUPS).max(1), Vec::new());
    let meter = Meter::start(servers)?;
    for group in 0..CONSUMERS {
        let (name, mut start) = (format!("F{group}"), Some(Instant::now()));
        setup::create_consumer(servers, &name, json!({ "filter_subject": format!("bench.{group}.>") }))?;
        fetch::fetch(
            &mut client,
            &name,
            500,
            |_| true,
            matching,
            |_| {
                first_ms.extend(start.take().map(|start| start.elapsed().as_secs_f64() * 1e3));
                Ok(())
            },
        )?;
    }
    client.flush_barrier()?;
    let mut outcome = meter.finish(servers, CONSUMERS * matching)?;
    first_ms.sort_by(f64::total_cmp);
    outcome.set(Figure::FirstMessageMs, first_ms[first_ms.len() / 2]);
    outcome.set(Figure::FirstMessageMaxMs, first_ms[first_ms.len() - 1]);
    Ok(outcome)
}
