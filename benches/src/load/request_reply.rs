//! Core requests: one responder, and requesters that wait for each answer.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use hdrhistogram::Histogram;

use crate::client::Client;
use crate::figures::{Meter, Outcome};
use crate::load::{Effort, join};
use crate::messages::Messages;
use crate::pace::{self, Pace};
use crate::servers::Servers;

/// Latency at `offered` requests a second, then throughput.
pub fn run(
    servers: &Servers,
    requesters: u64,
    payload_bytes: usize,
    messages: u64,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let address = servers.address(0);
    let done = AtomicBool::new(false);
    let mut responder = Client::connect(address)?;
    responder.write(b"SUB bench 1\r\n")?;
    responder.flush_barrier()?;
    std::thread::scope(|scope| {
        let responding = scope.spawn(|| respond(&mut responder, &done));
        let measured = (|| {
            let per_requester = offered as f64 / requesters as f64;
            let each = effort.latency.messages(per_requester);
            let clients = connect(address, requesters)?;
            let pace = Pace::start_warm(per_requester, effort.latency);
            let latency = ask(clients, payload_bytes, each, Some(pace))?;
            let mut outcome = Outcome::of_open_loop(&latency, offered, pace.kept(each * requesters));
            let each = (messages / requesters).max(1);
            let clients = connect(address, requesters)?;
            let meter = Meter::start(servers)?;
            ask(clients, payload_bytes, each, None)?;
            outcome.add(meter.finish(servers, each * requesters)?);
            Ok(outcome)
        })();
        done.store(true, Ordering::Release);
        // Whatever comes last ends the responder's wait.
        Client::connect(address)?.write(b"PUB bench 4\r\ndone\r\n")?;
        responding.join().map_err(|_| anyhow::anyhow!("the responder panicked"))??;
        measured
    })
}

fn respond(client: &mut Client, done: &AtomicBool) -> anyhow::Result<()> {
    let mut answers = Vec::with_capacity(1 << 16);
    while !done.load(Ordering::Acquire) {
        let message = client.receive()?;
        if !message.reply.is_empty() {
            answers.extend_from_slice(b"PUB ");
            answers.extend_from_slice(message.reply);
            write!(answers, " {}\r\n", message.payload.len())?;
            answers.extend_from_slice(message.payload);
            answers.extend_from_slice(b"\r\n");
        }
        if !client.has_message() {
            client.write(&answers)?;
            answers.clear();
        }
    }
    Ok(())
}

/// A requester and its inbox.
type Requester = (Client, String);

fn connect(address: &str, requesters: u64) -> anyhow::Result<Vec<Requester>> {
    (0..requesters)
        .map(|requester| {
            let mut client = Client::connect(address)?;
            let reply = format!("_INBOX.ask.{requester}");
            client.write(format!("SUB {reply} 1\r\n").as_bytes())?;
            client.flush_barrier()?;
            Ok((client, reply))
        })
        .collect()
}

/// With a pace, each requester asks when it is due, or as soon after as its last answer came.
fn ask(
    requesters: Vec<Requester>,
    payload_bytes: usize,
    each: u64,
    pace: Option<Pace>,
) -> anyhow::Result<Histogram<u64>> {
    let count = requesters.len() as f64;
    std::thread::scope(|scope| {
        let threads = requesters
            .into_iter()
            .enumerate()
            .map(|(at, (mut client, reply))| {
                let pace = pace.map(|pace| pace.offset(at as f64 / count));
                scope.spawn(move || -> anyhow::Result<_> {
                    pace::sleep_exactly();
                    let mut request = Vec::new();
                    Messages::plain(payload_bytes, &reply).append(&mut request, at as u64, None);
                    let mut latency = pace::histogram();
                    for n in 0..each {
                        let _due = pace.map(|pace| pace.wait_for(n));
                        client.write(&request)?;
                        let answer = client.receive()?;
                        ensure!(answer.payload.len() == payload_bytes, "nobody answers requests");
                        if let Some(pace) = pace {
                            pace.record(&mut latency, pace.due_ns(n));
                        }
                    }
                    Ok(latency)
                })
            })
            .collect();
        let mut latency = pace::histogram();
        for one in join(threads)? {
            latency.add(one)?;
        }
        Ok(latency)
    })
}
