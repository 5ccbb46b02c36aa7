//! Many durable consumers that have something to wait for and nothing to do: each for the ack of a message, or each with a
//! request for messages that do not come. What that costs, and whether they are there when it ends.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::durables::{self, CREATORS};
use crate::load::{Effort, fetch, join, mib, publish};
use crate::messages::{Messages, Subjects};
use crate::pace;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// How long servers are left alone before anything is read.
const REST: Duration = Duration::from_secs(5);

/// Over how long the CPU of idle servers is taken.
const IDLE: Duration = Duration::from_secs(10);

/// Messages of the stream.
const MESSAGES: u64 = 10;

/// What consumers wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum For {
    /// The ack of a message, which does not come. The stream's leader is killed meanwhile.
    Acks,
    /// Messages, each of a subject of its own. Only the first has any.
    Messages,
}

/// Creates consumers until all are there or the time limit is reached, and leaves them alone.
pub fn run(
    servers: &mut Servers,
    consumers: u64,
    what: For,
    payload_bytes: usize,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    // Said, because nats-server allows no more than 1000 unless it is.
    setup::create_stream(servers, Storage::File, json!({ "max_consumers": consumers }))?;
    std::thread::sleep(REST);
    let before = servers.memory()?;
    let until = Instant::now() + effort.limit;
    let ack_wait = Duration::from_secs(20 + consumers / 250);
    let config = |consumer: u64| {
        let filter = match what {
            For::Acks => Value::Null,
            For::Messages => json!(format!("bench.{consumer}")),
        };
        json!({
            "durable_name": format!("D{consumer}"),
            "ack_policy": "explicit",
            "ack_wait": ack_wait.as_nanos() as u64,
            "filter_subject": filter,
        })
    };
    let by_creator = durables::create(servers, consumers, until, config)?;
    // Creators take turns by number, so what each of them reached exists without gaps.
    let created = by_creator.iter().min().map_or(0, |fewest| fewest * by_creator.len() as u64);
    let mut outcome = Outcome::default();
    outcome.set(Figure::ConsumersCreated, created as f64);
    match what {
        For::Acks => acks(servers, created, ack_wait, payload_bytes, before, &mut outcome)?,
        For::Messages => messages(servers, created, payload_bytes, before, offered, effort, &mut outcome)?,
    }
    Ok(outcome)
}

fn acks(
    servers: &mut Servers,
    consumers: u64,
    ack_wait: Duration,
    payload_bytes: usize,
    before: u64,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let text = Messages::plain(payload_bytes, "_INBOX.acks.a");
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..MESSAGES, fetch::FILL_WINDOW)?;
    let delivered = take_one_each(servers, consumers)?;
    std::thread::sleep(REST);
    idle(servers, consumers, before, outcome)?;
    // While all servers are there to be asked.
    outcome.set(Figure::PeakMemoryMib, mib(servers.peak_memory()?));

    let leader = setup::leading_node(servers, STREAM)?;
    let other = (leader + 1) % servers.nodes();
    let killed = servers.kill(leader)?;
    durables::wait_for_another_leader(servers, leader, other)?;
    outcome.set(Figure::FailoverSeconds, killed.elapsed().as_secs_f64());

    let mut client = Client::connect_within(servers.address(other), ack_wait * 2)?;
    client.write(b"SUB _INBOX.again.* 1\r\n")?;
    // All get their first new message at once, and then the one that they have not acked.
    let body = format!("{{\"batch\":{},\"expires\":{}}}", MESSAGES, (ack_wait * 2).as_nanos());
    for consumer in 0..consumers {
        client.write(request(consumer, "again", &body).as_bytes())?;
    }
    let mut late = pace::histogram();
    let mut left = consumers;
    while left > 0 {
        let message = client.receive()?;
        let Some((consumer, attempt)) = delivery(message.reply) else {
            let said = String::from_utf8_lossy(message.header);
            anyhow::bail!("{left} messages were not delivered again: {said}");
        };
        if attempt == 1 {
            continue;
        }
        let at = delivered.get(consumer as usize).context("a consumer that was not asked")?;
        late.record(at.elapsed().saturating_sub(ack_wait).as_nanos() as u64)?;
        left -= 1;
    }
    outcome.set(Figure::LateP50Ms, late.value_at_quantile(0.5) as f64 / 1e6);
    outcome.set(Figure::LateMaxMs, late.max() as f64 / 1e6);
    Ok(())
}

fn messages(
    servers: &Servers,
    consumers: u64,
    payload_bytes: usize,
    before: u64,
    offered: u64,
    effort: &Effort,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let address = setup::leader(servers, STREAM)?;
    let mut waiting = Client::connect(address)?;
    waiting.write(b"SUB _INBOX.wait.* 1\r\n")?;
    for consumer in 0..consumers {
        let body = "{\"batch\":1000000000,\"expires\":3600000000000}";
        waiting.write(request(consumer, "wait", body).as_bytes())?;
    }
    waiting.flush_barrier()?;
    std::thread::sleep(REST);
    idle(servers, consumers, before, outcome)?;

    let text = Messages { subjects: Subjects::InTurns(1), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    // Whoever has a message of the first subject acks it, or there is an end of them.
    let acking = std::thread::spawn(move || {
        let mut buffer = Vec::new();
        while let Ok(message) = waiting.receive() {
            buffer.extend_from_slice(b"PUB ");
            buffer.extend_from_slice(message.reply);
            buffer.extend_from_slice(b" 4\r\n+ACK\r\n");
            if !waiting.has_message() {
                if waiting.write(&buffer).is_err() {
                    return;
                }
                buffer.clear();
            }
        }
    });
    let meter = Meter::start(servers)?;
    let (latency, total) = publish::latency(address, &text, offered, effort)?;
    let cost = meter.finish(servers, total)?;
    outcome.add(latency);
    if let Some(cpu) = cost.get(Figure::CpuPerMillion) {
        outcome.set(Figure::PublishBesideCpuPerMillion, cpu);
    }
    outcome.set(Figure::PeakMemoryMib, mib(servers.peak_memory()?));
    // It ends with the servers.
    drop(acking);
    Ok(())
}

/// Lets each consumer deliver a message, and says when each came.
fn take_one_each(servers: &Servers, consumers: u64) -> anyhow::Result<Vec<Instant>> {
    let takers = CREATORS.min(consumers);
    let taken = std::thread::scope(|scope| {
        let threads = (0..takers)
            .map(|taker| {
                scope.spawn(move || -> anyhow::Result<Vec<(u64, Instant)>> {
                    let mut client = Client::connect(servers.address(taker as usize % servers.nodes()))?;
                    let mut taken = Vec::new();
                    for consumer in (taker..consumers).step_by(takers as usize) {
                        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.D{consumer}");
                        let message = client.request(&subject, "1")?;
                        ensure!(!message.is_empty(), "consumer {consumer} has no message to give");
                        taken.push((consumer, Instant::now()));
                    }
                    Ok(taken)
                })
            })
            .collect();
        join(threads)
    })?;
    let mut taken: Vec<_> = taken.into_iter().flatten().collect();
    taken.sort_unstable_by_key(|(consumer, _)| *consumer);
    Ok(taken.into_iter().map(|(_, at)| at).collect())
}

fn idle(servers: &Servers, consumers: u64, before: u64, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (cpu, start) = (servers.cpu_seconds()?, Instant::now());
    std::thread::sleep(IDLE);
    let cpu = servers.cpu_seconds()? - cpu;
    outcome.set(Figure::IdleCores, cpu / start.elapsed().as_secs_f64());
    outcome.set(Figure::MemoryBeforeMib, mib(before));
    let above = servers.memory()?.saturating_sub(before);
    outcome.set(Figure::MemoryPerConsumer, above as f64 / consumers.max(1) as f64);
    Ok(())
}

fn request(consumer: u64, inbox: &str, body: &str) -> String {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.D{consumer}");
    format!("PUB {subject} _INBOX.{inbox}.{consumer} {}\r\n{body}\r\n", body.len())
}

/// Of which consumer a message is, and its which delivery: `$JS.ACK.<stream>.D<consumer>.<attempt>.` and so on.
fn delivery(reply: &[u8]) -> Option<(u64, u64)> {
    let mut tokens = std::str::from_utf8(reply).ok()?.split('.').skip(3);
    let consumer = tokens.next()?.strip_prefix('D')?.parse().ok()?;
    Some((consumer, tokens.next()?.parse().ok()?))
}
