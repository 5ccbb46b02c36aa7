//! Core publish and subscribe.

use anyhow::Context;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{Effort, join};
use crate::messages::{self, Messages};
use crate::pace::{self, Pace, Stamps, WRITE_BYTES};
use crate::servers::Servers;

/// Who publishes what to whom.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Connections that publish.
    pub publishers: u64,
    /// Connections that subscribe.
    pub subscribers: u64,
    /// Body bytes.
    pub payload_bytes: usize,
}

/// As fast as it goes; the rate is that of deliveries.
pub fn throughput(servers: &Servers, shape: Shape, messages: u64) -> anyhow::Result<Outcome> {
    let address = servers.address(0);
    let each = (messages / shape.publishers).max(1);
    let total = each * shape.publishers;
    let head = format!("MSG bench 1 {}\r\n", shape.payload_bytes);
    let frame_bytes = head.len() + shape.payload_bytes + 2;
    let receivers = subscribe(address, shape.subscribers)?;
    let meter = Meter::start(servers)?;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for mut client in receivers {
            let head = head.as_bytes();
            threads.push(scope.spawn(move || -> anyhow::Result<()> {
                let mut left = total;
                while left > 0 {
                    left -= client.skip_frames(head, frame_bytes, left)?;
                }
                Ok(())
            }));
        }
        for _ in 0..shape.publishers {
            threads.push(scope.spawn(move || -> anyhow::Result<()> {
                let mut client = Client::connect(address)?;
                let mut one = Vec::new();
                Messages::plain(shape.payload_bytes, "").append(&mut one, 0, None);
                let per_write = (WRITE_BYTES / one.len()).max(1);
                let chunk = one.repeat(per_write);
                let mut left = each as usize;
                while left > 0 {
                    let now = left.min(per_write);
                    client.write(&chunk[..now * one.len()])?;
                    left -= now;
                }
                client.flush_barrier()
            }));
        }
        join(threads)
    })?;
    meter.finish(servers, total * shape.subscribers)
}

/// At `offered` messages a second, all publishers together: from due to delivered.
pub fn latency(servers: &Servers, shape: Shape, offered: u64, effort: &Effort) -> anyhow::Result<Outcome> {
    let address = servers.address(0);
    let per_publisher = offered as f64 / shape.publishers as f64;
    let each = effort.latency.messages(per_publisher);
    let total = each * shape.publishers;
    let receivers = subscribe(address, shape.subscribers)?;
    let publishers: Vec<Client> =
        (0..shape.publishers).map(|_| Client::connect(address)).collect::<Result<_, _>>()?;
    let pace = Pace::start_warm(per_publisher, effort.latency);
    std::thread::scope(|scope| {
        let mut reading = Vec::new();
        for mut client in receivers {
            reading.push(scope.spawn(move || -> anyhow::Result<_> {
                let mut latency = pace::histogram();
                for _ in 0..total {
                    let message = client.receive()?;
                    let due = messages::stamp(message.payload).context("a message without its stamp")?;
                    pace.record(&mut latency, due);
                }
                Ok(latency)
            }));
        }
        let mut writing = Vec::new();
        for mut client in publishers {
            writing.push(scope.spawn(move || -> anyhow::Result<()> {
                let text = Messages::plain(shape.payload_bytes, "");
                pace.send(&text, each, Stamps::Due, |bytes| client.write(bytes))
            }));
        }
        join(writing)?;
        let latencies = join(reading)?;
        let mut latency = pace::histogram();
        for one in &latencies {
            latency.add(one)?;
        }
        Ok(Outcome::of_open_loop(&latency, offered, pace.kept(total)))
    })
}

fn subscribe(address: &str, subscribers: u64) -> anyhow::Result<Vec<Client>> {
    (0..subscribers)
        .map(|_| {
            let mut client = Client::connect(address)?;
            client.write(b"SUB bench 1\r\n")?;
            client.flush_barrier()?;
            Ok(client)
        })
        .collect()
}
