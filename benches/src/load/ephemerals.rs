//! Consumers that come and go: created, used for one message, and deleted or left to expire. What stays behind shows in
//! memory.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{Effort, fetch, join, mib, publish};
use crate::messages::Messages;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Connections that do this side by side.
const CLIENTS: u64 = 8;

/// Consumers that nobody uses for so long are removed.
const INACTIVE: Duration = Duration::from_secs(1);

/// How long servers are left alone before memory is read.
const REST: Duration = Duration::from_secs(3);

/// How long a consumer that was created may not be found.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a consumer ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// Its client deletes it.
    Deleted,
    /// The server removes it because nobody uses it.
    Expired,
}

/// One life after the other on every connection, until there were enough or the time limit is reached.
pub fn run(
    servers: &Servers,
    ending: Ending,
    consumers: u64,
    payload_bytes: usize,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    // Said, because nats-server allows no more than 1000 at a time unless it is.
    setup::create_stream(servers, Storage::File, json!({ "max_consumers": consumers.max(CLIENTS) }))?;
    let text = Messages::plain(payload_bytes, "_INBOX.acks.a");
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..1000, fetch::FILL_WINDOW)?;
    std::thread::sleep(REST);
    let before = servers.memory()?;
    let (meter, start) = (Meter::start(servers)?, Instant::now());
    let until = start + effort.limit;
    let half = live(servers, ending, 0..consumers / 2, until)?;
    let halfway = servers.memory()?;
    let created = half + live(servers, ending, consumers / 2..consumers, until)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut outcome = meter.finish(servers, created)?;

    let due = Instant::now() + if ending == Ending::Expired { INACTIVE } else { Duration::ZERO };
    let left = loop {
        let left = setup::stream_info(servers, STREAM)?["state"]["consumer_count"].as_u64();
        if left == Some(0) || Instant::now() > due + effort.limit {
            break left.unwrap_or(0);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    outcome.set(Figure::GoneSeconds, Instant::now().saturating_duration_since(due).as_secs_f64());
    outcome.set(Figure::LeftAtLimit, left as f64);
    outcome.set(Figure::ConsumersCreated, created as f64);
    outcome.set(Figure::ConsumerRate, created as f64 / seconds);
    std::thread::sleep(REST);
    outcome.set(Figure::MemoryBeforeMib, mib(before));
    outcome.set(Figure::MemoryHalfwayMib, mib(halfway));
    outcome.set(Figure::MemoryAfterMib, mib(servers.memory()?));
    Ok(outcome)
}

fn live(servers: &Servers, ending: Ending, consumers: Range<u64>, until: Instant) -> anyhow::Result<u64> {
    let clients = CLIENTS.min(consumers.end - consumers.start);
    let created = std::thread::scope(|scope| {
        let threads = (0..clients)
            .map(|client| {
                let mine = (consumers.start + client..consumers.end).step_by(clients as usize);
                scope.spawn(move || -> anyhow::Result<u64> {
                    let mut created = 0;
                    let mut connection = Client::connect(servers.address(client as usize % servers.nodes()))?;
                    for consumer in mine {
                        if Instant::now() > until {
                            break;
                        }
                        live_once(&mut connection, &format!("E{consumer}"), ending)?;
                        created += 1;
                    }
                    Ok(created)
                })
            })
            .collect();
        join(threads)
    })?;
    Ok(created.iter().sum())
}

/// As ordered consumers of client libraries: without acks, in memory, not replicated.
fn live_once(client: &mut Client, name: &str, ending: Ending) -> anyhow::Result<()> {
    let config = json!({
        "name": name,
        "ack_policy": "none",
        "max_deliver": 1,
        "mem_storage": true,
        "num_replicas": 1,
        "inactive_threshold": INACTIVE.as_nanos() as u64,
    });
    setup::create_consumer_of(client, name, &config)?;
    let message = fetch_one(client, &format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{name}"))?;
    ensure!(!message.is_empty(), "consumer {name} has no message to give");
    if ending == Ending::Deleted {
        setup::api(client, &format!("CONSUMER.DELETE.{STREAM}.{name}"), &Value::Null)?;
    }
    Ok(())
}

/// On nats-server it takes a moment until other nodes know of a new consumer; clients ask again.
fn fetch_one(client: &mut Client, subject: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.request(subject, "1") {
            Err(error) if Instant::now() < deadline && format!("{error:#}").contains("nobody answers") => {
                std::thread::sleep(Duration::from_millis(1));
            }
            answer => return answer,
        }
    }
}
