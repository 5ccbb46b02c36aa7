//! Many durable consumers on one stream: how fast they are made, what they take, what they cost others, and how
//! long they are without a leader.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::one_at_a_time::{self, Publisher};
use crate::load::{Effort, fetch, join, mib, publish};
use crate::messages::Messages;
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Connections that create consumers side by side.
pub(super) const CREATORS: u64 = 8;

/// Messages of the stream. No consumer reads them all.
const MESSAGES: u64 = 1000;

/// Consumers that are asked for a message after the leader was killed, at most. On nats-server each has a leader of its
/// own.
const ASKED: u64 = 100;

/// Subscriptions that come and go on another subject.
const SUBSCRIPTIONS: u64 = 5000;

/// Connections that publish beside the consumers.
const PUBLISHERS: u64 = 10;

/// Messages of each.
const PUBLISHED_EACH: u64 = 300;

/// How long servers are left alone before memory is read.
const REST: Duration = Duration::from_secs(3);

/// How long consumers may be without a leader before nobody waits any longer.
const FAILOVER_MAX: Duration = Duration::from_secs(180);

/// How long a server may take for an answer before it is asked again.
const QUESTION: Duration = Duration::from_millis(500);

/// Creates until all are there or the time limit is reached.
pub fn run(
    servers: &mut Servers,
    consumers: u64,
    payload_bytes: usize,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    // Said, because nats-server allows no more than 1000 unless it is.
    setup::create_stream(servers, Storage::File, json!({ "max_consumers": consumers }))?;
    let text = Messages::plain(payload_bytes, "_INBOX.acks.a");
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..MESSAGES, fetch::FILL_WINDOW)?;
    std::thread::sleep(REST);
    let (before, start) = (servers.memory()?, Instant::now());
    let config = |consumer: u64| json!({ "durable_name": format!("D{consumer}"), "ack_policy": "explicit" });
    let by_creator = create(servers, consumers, start + effort.limit, config)?;
    let (created, seconds) = (by_creator.iter().sum::<u64>(), start.elapsed().as_secs_f64());
    std::thread::sleep(REST);
    let after = servers.memory()?;

    let mut outcome = Outcome::default();
    outcome.set(Figure::ConsumersCreated, created as f64);
    outcome.set(Figure::ConsumerRate, created as f64 / seconds);
    outcome.set(Figure::MemoryBeforeMib, mib(before));
    outcome.set(Figure::MemoryPerConsumer, after.saturating_sub(before) as f64 / created as f64);
    outcome.set(Figure::PeakMemoryMib, mib(servers.peak_memory()?));
    subscribe(servers, &mut outcome)?;
    publish_beside(servers, payload_bytes, &mut outcome)?;
    // Creators take turns by number, so what each of them reached exists without gaps.
    let without_gaps = by_creator.iter().min().map_or(0, |fewest| fewest * by_creator.len() as u64);
    outcome.set(Figure::FailoverSeconds, fail_over(servers, ASKED.min(without_gaps))?.as_secs_f64());
    Ok(outcome)
}

/// Creates `D0`, `D1` and so on until a moment, and answers how many each creator made.
pub(super) fn create(
    servers: &Servers,
    consumers: u64,
    until: Instant,
    config: impl Fn(u64) -> Value + Sync,
) -> anyhow::Result<Vec<u64>> {
    let (creators, config) = (CREATORS.min(consumers), &config);
    std::thread::scope(|scope| {
        let threads = (0..creators)
            .map(|creator| {
                scope.spawn(move || -> anyhow::Result<u64> {
                    let mut client = Client::connect(servers.address(creator as usize % servers.nodes()))?;
                    let mut created = 0;
                    for consumer in (creator..consumers).step_by(creators as usize) {
                        if Instant::now() > until {
                            break;
                        }
                        setup::create_consumer_of(&mut client, &format!("D{consumer}"), &config(consumer))?;
                        created += 1;
                    }
                    Ok(created)
                })
            })
            .collect();
        join(threads)
    })
}

/// Subscribes and unsubscribes where no consumer cares.
fn subscribe(servers: &Servers, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut client = Client::connect(setup::leader(servers, STREAM)?)?;
    let (cpu, start) = (servers.cpu_seconds()?, Instant::now());
    for n in 0..SUBSCRIPTIONS {
        client.write(format!("SUB _INBOX.beside.{n} 1\r\nUNSUB 1\r\n").as_bytes())?;
        client.flush_barrier()?;
    }
    outcome.set(Figure::SubscribeRate, SUBSCRIPTIONS as f64 / start.elapsed().as_secs_f64());
    // What it set off may still be going on.
    std::thread::sleep(Duration::from_millis(200));
    let cpu = servers.cpu_seconds()? - cpu;
    outcome.set(Figure::SubscribeCpuPerMillion, cpu / (SUBSCRIPTIONS as f64 / 1e6));
    Ok(())
}

/// Publishes what every consumer will want, while nobody asks any of them.
fn publish_beside(servers: &Servers, payload_bytes: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
    let publishers = Publisher::connect_all(setup::leader(servers, STREAM)?, PUBLISHERS, payload_bytes)?;
    let meter = Meter::start(servers)?;
    one_at_a_time::throughput(publishers, PUBLISHED_EACH)?;
    let cost = meter.finish(servers, PUBLISHERS * PUBLISHED_EACH)?;
    for (figure, from) in [
        (Figure::PublishBesideRate, Figure::Rate),
        (Figure::PublishBesideCpuPerMillion, Figure::CpuPerMillion),
    ] {
        cost.get(from).into_iter().for_each(|value| outcome.set(figure, value));
    }
    Ok(())
}

/// Kills the stream's leader, asks consumers one after the other until each has given a message, and waits until the
/// stream has another leader. After [`FAILOVER_MAX`] that is the answer, whatever is missing.
fn fail_over(servers: &mut Servers, consumers: u64) -> anyhow::Result<Duration> {
    let leader = setup::leading_node(servers, STREAM)?;
    let other = (leader + 1) % servers.nodes();
    let start = servers.kill(leader)?;
    for consumer in 0..consumers {
        servers.wait_until(|servers| {
            if start.elapsed() > FAILOVER_MAX {
                return Ok(());
            }
            let mut client = Client::connect_within(servers.address(other), QUESTION)?;
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.D{consumer}");
            let message = client.request(&subject, "{\"batch\":1,\"no_wait\":true}")?;
            ensure!(!message.is_empty(), "consumer {consumer} has no message to give");
            Ok(())
        })?;
    }
    wait_for_another_leader(servers, leader, other)?;
    Ok(start.elapsed())
}

/// Waits until `other` knows of a leader that is not the killed one.
pub(super) fn wait_for_another_leader(servers: &Servers, killed: usize, other: usize) -> anyhow::Result<()> {
    servers.wait_until(|servers| {
        let mut client = Client::connect_within(servers.address(other), QUESTION)?;
        let info = setup::api(&mut client, &format!("STREAM.INFO.{STREAM}"), &Value::Null)?;
        let leads = info["cluster"]["leader"].as_str().unwrap_or_default();
        ensure!(!leads.is_empty() && leads != format!("n{killed}"), "the stream has no other leader");
        Ok(())
    })
}
