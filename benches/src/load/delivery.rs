//! How late messages are delivered: from when each was due to be published until its consumer has it.

use anyhow::Context;
use serde_json::json;

use crate::client::Client;
use crate::figures::Outcome;
use crate::load::fetch::{self, Acks};
use crate::load::{Effort, push};
use crate::messages::{self, Messages};
use crate::pace::{self, Pace, Stamps};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Messages of a pull request that waits.
const BATCH: u64 = 500;

/// Who asks whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// A pull request waits at the server before messages come.
    WaitingPull,
    /// The server sends.
    Push,
}

/// A consumer with explicit acks on an empty stream, and a publisher.
pub fn run(
    servers: &Servers,
    mode: Mode,
    payload_bytes: usize,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    setup::create_stream(servers, Storage::File, json!({}))?;
    let address = setup::leader(servers, STREAM)?;
    let mut client = Client::connect(address)?;
    if mode == Mode::WaitingPull {
        client.write(b"SUB _INBOX.fetch 1\r\n")?;
        client.flush_barrier()?;
        setup::create_consumer(servers, "C", json!({}))?;
        return latency(address, payload_bytes, offered, effort, |total, each| {
            fetch::fetch(&mut client, "C", BATCH, |_| true, total, each).map(|_| ())
        });
    }
    push::subscribe(servers, &mut client, Acks::Explicit)?;
    latency(address, payload_bytes, offered, effort, |total, each| {
        push::receive(&mut client, Acks::Explicit, total, each)
    })
}

/// Publishes at an even rate, without waiting for acknowledgements, while `consume` takes so many messages and tells
/// each one's payload.
pub fn latency(
    address: &str,
    payload_bytes: usize,
    offered: u64,
    effort: &Effort,
    consume: impl FnOnce(u64, &mut dyn FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let total = effort.latency.messages(offered as f64);
    let mut publisher = Client::connect(address)?;
    let pace = Pace::start_warm(offered as f64, effort.latency);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> anyhow::Result<()> {
            let text = Messages::plain(payload_bytes, "");
            pace.send(&text, total, Stamps::Due, |bytes| publisher.write(bytes))?;
            publisher.flush_barrier()
        });
        let mut latency = pace::histogram();
        consume(total, &mut |payload| {
            let due = messages::stamp(payload).context("a message without its stamp")?;
            pace.record(&mut latency, due);
            Ok(())
        })?;
        let outcome = Outcome::of_open_loop(&latency, offered, pace.kept(total));
        writing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        Ok(outcome)
    })
}
