//! Disk use of streams that lose messages: what is left on disk when everything has settled, against what the stream
//! still has. Meanwhile a slow publisher on the same stream tells what that does to others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{Effort, fetch, mib, probe, publish};
use crate::messages::{Messages, Subjects};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Messages a second of the slow publisher.
const PROBES_PER_SECOND: u64 = 100;

/// Every so many-th message of a work queue is never acknowledged.
const UNACKED_EVERY: u64 = 100;

/// Messages expire at this age.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Subjects with a limit each.
const LIMITED_SUBJECTS: u64 = 10_000;

/// How a stream loses messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// Each key keeps its last value; keys come at random.
    Overwritten {
        /// Keys there are.
        keys: u64,
    },
    /// A work queue, in which one message in a hundred is never acknowledged.
    Acknowledged,
    /// Ten messages for each of ten thousand subjects.
    LimitedPerSubject,
    /// A purge after the last publish.
    Purged,
    /// They grow too old.
    Expired,
}

/// Publishes, lets go, settles.
pub fn run(
    servers: &Servers,
    loss: Loss,
    messages: u64,
    payload_bytes: usize,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, loss.config())?;
    let address = setup::leader(servers, STREAM)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| probe::run(address, &done, PROBES_PER_SECOND));
        let measured = lose(servers, loss, messages, payload_bytes, effort);
        done.store(true, Ordering::Release);
        let mut outcome = probing.join().map_err(|_| anyhow::anyhow!("the probe panicked"))??;
        outcome.add(measured?);
        Ok(outcome)
    })
}

fn lose(
    servers: &Servers,
    loss: Loss,
    messages: u64,
    payload_bytes: usize,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let address = setup::leader(servers, STREAM)?;
    let text = Messages { subjects: loss.subjects(), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    let meter = Meter::start(servers)?;
    if loss == Loss::Acknowledged {
        publish_and_consume(servers, address, &text, messages)?;
    } else {
        publish::windowed(address, &text, 0..messages, fetch::FILL_WINDOW)?;
    }
    let mut outcome = meter.finish(servers, messages)?;
    let published = Instant::now();
    match loss {
        Loss::Purged => {
            let mut client = Client::connect(address)?;
            setup::api(&mut client, &format!("STREAM.PURGE.{STREAM}"), &Value::Null)?;
        }
        Loss::Expired => std::thread::sleep(MAX_AGE),
        Loss::Overwritten { .. } | Loss::Acknowledged | Loss::LimitedPerSubject => {}
    }
    let (disk, since) = settled_disk(servers, effort)?;
    outcome.set(Figure::SettleSeconds, since.duration_since(published).as_secs_f64());
    let live = setup::stream_info(servers, STREAM)?["state"]["bytes"].as_u64().unwrap_or(0);
    outcome.set(Figure::DiskMib, mib(disk));
    outcome.set(Figure::LiveMib, mib(live));
    if live >= 1 << 20 {
        outcome.set(Figure::DiskPerLiveByte, disk as f64 / (live * servers.nodes() as u64) as f64);
    }
    let written = servers.written_bytes()? as f64;
    outcome.set(Figure::WrittenPerPayloadByte, written / (messages * payload_bytes as u64) as f64);
    Ok(outcome)
}

impl Loss {
    fn config(self) -> Value {
        match self {
            Self::Overwritten { .. } => json!({ "max_msgs_per_subject": 1 }),
            Self::Acknowledged => json!({ "retention": "workqueue" }),
            Self::LimitedPerSubject => json!({ "max_msgs_per_subject": 10 }),
            Self::Purged => json!({}),
            Self::Expired => {
                let age = MAX_AGE.as_nanos() as u64;
                json!({ "max_age": age, "duplicate_window": age })
            }
        }
    }

    fn subjects(self) -> Subjects {
        match self {
            Self::Overwritten { keys } => Subjects::AtRandom(keys),
            Self::LimitedPerSubject => Subjects::InTurns(LIMITED_SUBJECTS),
            Self::Acknowledged | Self::Purged | Self::Expired => Subjects::One,
        }
    }
}

fn publish_and_consume(
    servers: &Servers,
    address: &str,
    text: &Messages,
    messages: u64,
) -> anyhow::Result<()> {
    let hour = Duration::from_secs(3600).as_nanos() as u64;
    let config = json!({ "filter_subject": "bench", "ack_wait": hour, "max_ack_pending": messages });
    setup::create_consumer(servers, "C", config)?;
    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| publish::windowed(address, text, 0..messages, fetch::FILL_WINDOW));
        let acked = |n: u64| !n.is_multiple_of(UNACKED_EVERY);
        fetch::fetch(&mut client, "C", 500, acked, messages, |_| Ok(()))?;
        client.flush_barrier()?;
        publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))?
    })
}

/// Bytes of disk when they have not changed, by more than a hundredth, for a while; and since when.
fn settled_disk(servers: &Servers, effort: &Effort) -> anyhow::Result<(u64, Instant)> {
    let within = effort.settle_within * 4;
    let quiet_for = (within / 4).min(Duration::from_secs(10));
    let start = Instant::now();
    let (mut since, mut disk) = (Instant::now(), servers.disk_bytes()?);
    while since.elapsed() < quiet_for && start.elapsed() < within {
        std::thread::sleep(Duration::from_millis(200));
        let now = servers.disk_bytes()?;
        if now.abs_diff(disk) > (disk / 100).max(1 << 20) {
            (since, disk) = (Instant::now(), now);
        }
    }
    Ok((servers.disk_bytes()?, since))
}
