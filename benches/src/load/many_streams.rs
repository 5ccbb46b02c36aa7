//! Many streams of which some have a slow publisher each: what it costs to have them, and how late they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::figures::{Figure, Meter, Outcome};
use crate::load::join;
use crate::load::one_at_a_time::{self, Publisher};
use crate::messages::{Messages, Subjects};
use crate::pace::Lasting;
use crate::servers::Servers;
use crate::setup;

/// Connections that create streams side by side.
const CREATORS: u64 = 8;

/// How long servers are left alone between creation and load.
const REST: Duration = Duration::from_secs(1);

/// How many streams, and what goes into them.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Streams there are.
    pub streams: u64,
    /// Streams that are published to.
    pub active: u64,
    /// Messages a second into each of those.
    pub per_second: u64,
    /// Body bytes.
    pub payload_bytes: usize,
}

/// Throughput is what was acknowledged of an offered rate; latency is of the same messages.
pub fn run(servers: &Servers, shape: Shape, lasting: Lasting) -> anyhow::Result<Outcome> {
    let created = create(servers, shape.streams)?;
    // Every so many-th stream, so that active ones are led everywhere.
    let step = shape.streams / shape.active;
    let publishers = (0..shape.active)
        .map(|at| {
            let stream = at * step;
            let address = setup::leader(servers, &name(stream))?;
            let text =
                Messages { subjects: Subjects::Stream(stream), ..Messages::plain(shape.payload_bytes, "") };
            Publisher::connect(address, stream, text)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    std::thread::sleep(REST);
    let offered = shape.active * shape.per_second;
    let meter = Meter::start(servers)?;
    let mut outcome = one_at_a_time::latency(publishers, offered, lasting)?;
    let messages = lasting.messages(shape.per_second as f64) * shape.active;
    outcome.add(meter.finish(servers, messages)?);
    outcome.set(Figure::CreateSeconds, created.as_secs_f64());
    Ok(outcome)
}

/// Creates streams `S0`, `S1` and so on, replicated on every node, and answers how long it took.
pub fn create(servers: &Servers, streams: u64) -> anyhow::Result<Duration> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads = (0..CREATORS.min(streams))
            .map(|creator| {
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut client = Client::connect(servers.address(creator as usize % servers.nodes()))?;
                    for stream in (creator..streams).step_by(CREATORS as usize) {
                        let config: Value = json!({
                            "name": name(stream),
                            "subjects": [format!("stream.{stream}")],
                            "num_replicas": servers.nodes(),
                        });
                        let endpoint = format!("STREAM.CREATE.{}", name(stream));
                        setup::api_patiently(&mut client, &endpoint, &config)?;
                    }
                    Ok(())
                })
            })
            .collect();
        join(threads)
    })?;
    Ok(start.elapsed())
}

/// The name of a stream that [`create`] makes.
#[must_use]
pub fn name(stream: u64) -> String {
    format!("S{stream}")
}
