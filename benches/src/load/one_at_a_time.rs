//! Publishers that wait for every acknowledgement before they send again.

use hdrhistogram::Histogram;

use crate::client::Client;
use crate::figures::Outcome;
use crate::load::{join, publish};
use crate::messages::Messages;
use crate::pace::{self, Lasting, Pace};

/// As fast as acknowledgements come, `each` messages a publisher.
pub fn throughput(publishers: Vec<Publisher>, each: u64) -> anyhow::Result<()> {
    publish_all(publishers, each, None)?;
    Ok(())
}

/// At `offered` messages a second, all publishers together, for a while. A publisher whose ack is late sends late, and
/// that lateness counts.
pub fn latency(publishers: Vec<Publisher>, offered: u64, lasting: Lasting) -> anyhow::Result<Outcome> {
    let count = publishers.len() as u64;
    let per_publisher = offered as f64 / count as f64;
    let each = lasting.messages(per_publisher);
    let pace = Pace::start_warm(per_publisher, lasting);
    let latency = publish_all(publishers, each, Some(pace))?;
    Ok(Outcome::of_open_loop(&latency, offered, pace.kept(each * count)))
}

/// A connection that publishes on one subject.
pub struct Publisher {
    client: Client,
    text: Messages,
}

impl Publisher {
    /// Connects. The name must be its own: acknowledgements go to an inbox of that name.
    pub fn connect(address: &str, name: u64, text: Messages) -> anyhow::Result<Self> {
        let text = Messages { reply: format!("_INBOX.one.{name}"), ..text };
        let mut client = Client::connect(address)?;
        client.write(format!("SUB {} 1\r\n", text.reply).as_bytes())?;
        client.flush_barrier()?;
        Ok(Self { client, text })
    }

    /// So many of them, all on the subject `bench`.
    pub fn connect_all(address: &str, publishers: u64, payload_bytes: usize) -> anyhow::Result<Vec<Self>> {
        let text = Messages::plain(payload_bytes, "");
        (0..publishers).map(|name| Self::connect(address, name, text.clone())).collect()
    }

    fn publish(mut self, each: u64, pace: Option<Pace>) -> anyhow::Result<Histogram<u64>> {
        pace::sleep_exactly();
        let mut latency = pace::histogram();
        let mut buffer = Vec::new();
        for n in 0..each {
            buffer.clear();
            self.text.append(&mut buffer, n, None);
            let _due = pace.map(|pace| pace.wait_for(n));
            self.client.write(&buffer)?;
            publish::check_ack(&self.client.receive()?)?;
            if let Some(pace) = pace {
                pace.record(&mut latency, pace.due_ns(n));
            }
        }
        Ok(latency)
    }
}

fn publish_all(publishers: Vec<Publisher>, each: u64, pace: Option<Pace>) -> anyhow::Result<Histogram<u64>> {
    let count = publishers.len() as f64;
    std::thread::scope(|scope| {
        let threads = publishers
            .into_iter()
            .enumerate()
            .map(|(at, publisher)| {
                let pace = pace.map(|pace| pace.offset(at as f64 / count));
                scope.spawn(move || publisher.publish(each, pace))
            })
            .collect();
        let mut latency = pace::histogram();
        for one in join(threads)? {
            latency.add(one)?;
        }
        Ok(latency)
    })
}
