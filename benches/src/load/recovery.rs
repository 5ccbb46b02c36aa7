//! A node that is killed with SIGKILL and started again: how long until its streams answer, and until a publish is
//! acknowledged.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::{fetch, many_streams, mib, publish};
use crate::messages::{Messages, Subjects};
use crate::servers::{Servers, Stop};
use crate::setup;

/// How long a server that is starting may take for one answer before it is asked again.
const QUESTION: Duration = Duration::from_secs(1);

/// What the node has when it is killed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Streams there are.
    pub streams: u64,
    /// Messages in each.
    pub messages_each: u64,
    /// Body bytes.
    pub payload_bytes: usize,
}

/// Fills the streams, kills, starts, and waits.
pub fn run(servers: &mut Servers, shape: Shape) -> anyhow::Result<Outcome> {
    many_streams::create(servers, shape.streams)?;
    let meter = Meter::start(servers)?;
    for stream in 0..shape.streams {
        let text = Messages {
            subjects: Subjects::Stream(stream),
            ..Messages::plain(shape.payload_bytes, "_INBOX.acks.a")
        };
        publish::windowed(servers.address(0), &text, 0..shape.messages_each, fetch::FILL_WINDOW)?;
    }
    let mut outcome = meter.finish(servers, shape.streams * shape.messages_each)?;
    outcome.set(Figure::PeakMemoryMib, mib(servers.peak_memory()?));
    let start = servers.restart(Stop::Killed)?;
    let servers = &*servers;
    let (ready, acked) = std::thread::scope(|scope| {
        let acked =
            scope.spawn(|| servers.wait_until(|servers| publish_one(servers, shape.streams - 1, start)));
        let ready = (0..shape.streams).try_fold(Duration::ZERO, |_, stream| {
            servers.wait_until(|servers| expect_all(servers, stream, shape.messages_each, start))
        });
        (ready, acked.join())
    });
    let acked = acked.map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    outcome.set(Figure::ReadySeconds, ready?.as_secs_f64());
    outcome.set(Figure::FirstAckSeconds, acked.as_secs_f64());
    outcome.set(Figure::ReadyMemoryMib, mib(servers.memory()?));
    Ok(outcome)
}

fn publish_one(servers: &Servers, stream: u64, start: Instant) -> anyhow::Result<Duration> {
    let mut client = Client::connect_within(servers.address(0), QUESTION)?;
    let ack = client.request(&format!("stream.{stream}"), "after the kill")?;
    ensure!(ack.starts_with("{\"stream\""), "publish refused: {ack}");
    Ok(start.elapsed())
}

fn expect_all(servers: &Servers, stream: u64, messages: u64, start: Instant) -> anyhow::Result<Duration> {
    let mut client = Client::connect_within(servers.address(0), QUESTION)?;
    let endpoint = format!("STREAM.INFO.{}", many_streams::name(stream));
    let info = setup::api(&mut client, &endpoint, &Value::Null)?;
    let has = info["state"]["messages"].as_u64().unwrap_or(0);
    ensure!(has >= messages, "stream {stream} has {has} of {messages} messages");
    Ok(start.elapsed())
}
