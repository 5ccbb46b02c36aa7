//! What is measured. Each workload runs for a number of messages against servers that were just started.
//!
//! Latency of windowed workloads is taken from the acknowledgement of every 64th message; of one-at-a-time
//! workloads from every message. Both are closed loops: they show what a client of that shape sees, not what an
//! open arrival process would.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;

use crate::client::Client;
use crate::servers::{Servers, Side};

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Workload {
    /// For the table and for `--filter`.
    pub name: String,
    /// Server processes.
    pub nodes: usize,
    /// Whom Levee is compared with.
    pub against: Side,
    /// What runs.
    pub shape: Shape,
    /// Payload bytes.
    pub payload: usize,
    /// Messages of one run.
    pub messages: u64,
}

/// The shape of the load.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Core publish and subscribe on one subject.
    Core {
        /// Connections that publish.
        publishers: usize,
        /// Connections that subscribe.
        subscribers: usize,
    },
    /// Publishes into a stream by one connection.
    Window {
        /// How many may be not acknowledged.
        window: u64,
        /// Whether each carries a `Nats-Msg-Id`.
        msg_ids: bool,
    },
    /// Publishers that wait for every acknowledgement.
    OneAtATime {
        /// Connections that publish.
        publishers: usize,
    },
    /// A pull consumer.
    Fetch {
        /// Messages asked for at a time.
        batch: u64,
        /// Whether every message is acknowledged.
        acks: bool,
    },
}

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Messages a second; deliveries for core publish and subscribe.
    pub rate: f64,
    /// Server CPU seconds for a million of them.
    pub cpu_per_million: f64,
    /// Latency in microseconds, where the workload has one.
    pub latency: Option<(u64, u64)>,
    /// Peak resident memory of all servers, in MiB.
    pub memory_mib: u64,
}

/// The table's rows. `quick` runs fewer messages.
#[must_use]
pub fn all(quick: bool) -> Vec<Workload> {
    let scale = |messages: u64| if quick { messages / 5 } else { messages };
    let row = |name: String, nodes, shape, payload, messages| Workload {
        name,
        nodes,
        against: Side::Nats,
        shape,
        payload,
        messages: scale(messages),
    };
    let mut rows = Vec::new();
    for payload in [16, 128] {
        let shape = Shape::Core { publishers: 1, subscribers: 1 };
        rows.push(row(format!("core 1 to 1, {payload} B"), 1, shape, payload, 10_000_000));
    }
    let shape = Shape::Core { publishers: 1, subscribers: 5 };
    rows.push(row("core 1 to 5, 128 B".to_owned(), 1, shape, 128, 2_000_000));
    for nodes in [1, 3] {
        for (payload, size, messages) in
            [(128, "128 B", 1_000_000), (1024, "1 KiB", 500_000), (16384, "16 KiB", 50_000)]
        {
            let messages = if nodes == 3 { messages / 2 } else { messages };
            let shape = Shape::Window { window: 4000, msg_ids: false };
            rows.push(row(format!("R{nodes} publish, window 4000, {size}"), nodes, shape, payload, messages));
        }
        let messages = if nodes == 3 { 20_000 } else { 40_000 };
        let one = Shape::OneAtATime { publishers: 1 };
        rows.push(row(format!("R{nodes} publish, one at a time, 128 B"), nodes, one, 128, messages));
        let fifty = Shape::OneAtATime { publishers: 50 };
        rows.push(row(format!("R{nodes} publish, 50 one at a time, 128 B"), nodes, fifty, 128, messages * 4));
    }
    let shape = Shape::Window { window: 4000, msg_ids: true };
    rows.push(row("R1 publish with message ids, window 4000, 128 B".to_owned(), 1, shape, 128, 500_000));
    rows.push(Workload {
        against: Side::NatsSynced,
        ..row(
            "R1 publish, one at a time, 128 B, both synced".to_owned(),
            1,
            Shape::OneAtATime { publishers: 1 },
            128,
            20_000,
        )
    });
    for nodes in [1, 3] {
        for (acks, what) in [(false, "no acks"), (true, "explicit acks")] {
            let shape = Shape::Fetch { batch: 500, acks };
            rows.push(row(format!("R{nodes} fetch 500, {what}, 128 B"), nodes, shape, 128, 500_000));
        }
    }
    rows
}

/// Runs a workload once.
pub fn run(workload: &Workload, servers: &Servers) -> anyhow::Result<Outcome> {
    let payload = vec![b'x'; workload.payload];
    let messages = workload.messages;
    match workload.shape {
        Shape::Core { publishers, subscribers } => core(servers, publishers, subscribers, &payload, messages),
        Shape::Window { window, msg_ids } => {
            create_stream(servers, workload.nodes)?;
            let mut latency = histogram();
            let timed = timed(servers, messages, || {
                windowed(&leader(servers)?, &payload, messages, window, msg_ids, &mut latency)
            })?;
            Ok(timed.with(&latency))
        }
        Shape::OneAtATime { publishers } => {
            create_stream(servers, workload.nodes)?;
            let latency = Mutex::new(histogram());
            let address = leader(servers)?;
            let timed = timed(servers, messages, || {
                one_at_a_time(&address, publishers, &payload, messages, &latency)
            })?;
            let latency = latency.into_inner().map_err(|_| anyhow::anyhow!("a publisher panicked"))?;
            Ok(timed.with(&latency))
        }
        Shape::Fetch { batch, acks } => {
            create_stream(servers, workload.nodes)?;
            let address = leader(servers)?;
            windowed(&address, &payload, messages, 4000, false, &mut histogram())?;
            create_consumer(servers, acks)?;
            timed(servers, messages, || fetch(&address, batch, acks, messages))
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("fixed bounds")
}

impl Outcome {
    fn with(mut self, latency: &Histogram<u64>) -> Self {
        self.latency = Some((latency.value_at_quantile(0.5), latency.value_at_quantile(0.99)));
        self
    }
}

fn timed(
    servers: &Servers,
    messages: u64,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let (cpu, start) = (servers.cpu_seconds()?, Instant::now());
    work()?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = servers.cpu_seconds()? - cpu;
    let messages = messages as f64;
    Ok(Outcome {
        rate: messages / seconds,
        cpu_per_million: cpu / messages * 1e6,
        latency: None,
        memory_mib: servers.peak_memory()? >> 20,
    })
}

fn create_stream(servers: &Servers, replicas: usize) -> anyhow::Result<()> {
    let mut client = Client::connect(&servers.addresses()[0])?;
    let body = format!("{{\"name\":\"BENCH\",\"subjects\":[\"bench\"],\"num_replicas\":{replicas}}}");
    let answer = client.request("$JS.API.STREAM.CREATE.BENCH", &body)?;
    ensure!(!answer.contains("\"error\""), "stream not created: {answer}");
    Ok(())
}

fn create_consumer(servers: &Servers, acks: bool) -> anyhow::Result<()> {
    let mut client = Client::connect(&servers.addresses()[0])?;
    let policy = if acks { "explicit" } else { "none" };
    let body = format!(
        "{{\"stream_name\":\"BENCH\",\"config\":{{\"durable_name\":\"C\",\"ack_policy\":\"{policy}\",\"max_ack_pending\":10000}}}}"
    );
    let answer = client.request("$JS.API.CONSUMER.CREATE.BENCH.C", &body)?;
    ensure!(!answer.contains("\"error\""), "consumer not created: {answer}");
    Ok(())
}

/// Clients of a stream connect where it is led, on both sides.
fn leader(servers: &Servers) -> anyhow::Result<String> {
    let mut client = Client::connect(&servers.addresses()[0])?;
    let info = client.request("$JS.API.STREAM.INFO.BENCH", "")?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let name = info["cluster"]["leader"].as_str().context("the stream has no leader")?;
    let node: usize = name.trim_start_matches('n').parse().context("servers are named n0, n1, n2")?;
    Ok(servers.addresses()[node].clone())
}

fn core(
    servers: &Servers,
    publishers: usize,
    subscribers: usize,
    payload: &[u8],
    messages: u64,
) -> anyhow::Result<Outcome> {
    let address = &servers.addresses()[0];
    let each = messages / publishers as u64;
    let mut receivers = Vec::new();
    for _ in 0..subscribers {
        let mut client = Client::connect(address)?;
        client.write(b"SUB bench 1\r\n")?;
        client.flush_barrier()?;
        receivers.push(client);
    }
    timed(servers, messages * subscribers as u64, || {
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for mut client in receivers {
                threads.push(scope.spawn(move || -> anyhow::Result<()> {
                    for _ in 0..each * publishers as u64 {
                        client.receive()?;
                    }
                    Ok(())
                }));
            }
            for _ in 0..publishers {
                threads.push(scope.spawn(move || -> anyhow::Result<()> {
                    let mut client = Client::connect(address)?;
                    let one = publish_text("", payload, None);
                    let per_write = (64 * 1024 / one.len()).max(1);
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
        })
    })
}

fn publish_text(reply: &str, payload: &[u8], msg_id: Option<u64>) -> Vec<u8> {
    let mut text = Vec::with_capacity(payload.len() + 128);
    match msg_id {
        None => text.extend_from_slice(format!("PUB bench {reply} {}\r\n", payload.len()).as_bytes()),
        Some(id) => {
            let header = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n");
            let total = header.len() + payload.len();
            text.extend_from_slice(
                format!("HPUB bench {reply} {} {total}\r\n{header}", header.len()).as_bytes(),
            );
        }
    }
    text.extend_from_slice(payload);
    text.extend_from_slice(b"\r\n");
    text
}

/// Counts acknowledgements and wakes the writer when its window has room.
struct Window {
    acked: AtomicU64,
    room: Condvar,
    lock: Mutex<()>,
}

fn windowed(
    address: &str,
    payload: &[u8],
    messages: u64,
    window: u64,
    msg_ids: bool,
    latency: &mut Histogram<u64>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.acks.> 1\r\n")?;
    client.flush_barrier()?;
    let mut writer = client.writer()?;
    let window_state =
        Arc::new(Window { acked: AtomicU64::new(0), room: Condvar::new(), lock: Mutex::new(()) });
    let sampled = Mutex::new(std::collections::VecDeque::new());
    std::thread::scope(|scope| {
        let state = Arc::clone(&window_state);
        let samples = &sampled;
        let writing = scope.spawn(move || -> anyhow::Result<()> {
            let plain = publish_text("_INBOX.acks.a", payload, None);
            let mut buffer = Vec::with_capacity(1 << 16);
            let mut sent = 0_u64;
            while sent < messages {
                let mut room = window - (sent - state.acked.load(Ordering::Acquire));
                while room == 0 {
                    let guard = state.lock.lock().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
                    room = window - (sent - state.acked.load(Ordering::Acquire));
                    if room == 0 {
                        let waited = state.room.wait_timeout(guard, Duration::from_millis(100));
                        drop(waited.map_err(|_| anyhow::anyhow!("the reader panicked"))?);
                        room = window - (sent - state.acked.load(Ordering::Acquire));
                    }
                }
                buffer.clear();
                let now = room.min(messages - sent);
                let mut filled = 0;
                while filled < now && buffer.len() < 1 << 16 {
                    if msg_ids {
                        buffer.extend_from_slice(&publish_text(
                            "_INBOX.acks.a",
                            payload,
                            Some(sent + filled),
                        ));
                    } else {
                        buffer.extend_from_slice(&plain);
                    }
                    if (sent + filled).is_multiple_of(64) {
                        samples
                            .lock()
                            .map_err(|_| anyhow::anyhow!("the reader panicked"))?
                            .push_back(Instant::now());
                    }
                    filled += 1;
                }
                writer.write_all(&buffer)?;
                sent += filled;
            }
            Ok(())
        });
        for ack in 0..messages {
            let message = client.receive()?;
            ensure!(
                message.payload.starts_with(b"{\"stream\""),
                "publish refused: {}",
                String::from_utf8_lossy(message.payload)
            );
            if ack % 64 == 0
                && let Some(sent) = sampled.lock().ok().and_then(|mut samples| samples.pop_front())
            {
                latency.saturating_record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
            window_state.acked.store(ack + 1, Ordering::Release);
            if (ack + 1) % 128 == 0 || ack + 1 == messages {
                window_state.room.notify_one();
            }
        }
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })
}

fn one_at_a_time(
    address: &str,
    publishers: usize,
    payload: &[u8],
    messages: u64,
    latency: &Mutex<Histogram<u64>>,
) -> anyhow::Result<()> {
    let each = messages / publishers as u64;
    std::thread::scope(|scope| {
        let threads = (0..publishers)
            .map(|publisher| {
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut client = Client::connect(address)?;
                    let inbox = format!("_INBOX.one.{publisher}");
                    client.write(format!("SUB {inbox} 1\r\n").as_bytes())?;
                    let text = publish_text(&inbox, payload, None);
                    let mut mine = histogram();
                    for _ in 0..each {
                        let start = Instant::now();
                        client.write(&text)?;
                        let ack = client.receive()?;
                        ensure!(ack.payload.starts_with(b"{\"stream\""), "publish refused");
                        mine.saturating_record(
                            u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
                        );
                    }
                    latency.lock().map_err(|_| anyhow::anyhow!("a publisher panicked"))?.add(&mine)?;
                    Ok(())
                })
            })
            .collect();
        join(threads)
    })
}

fn fetch(address: &str, batch: u64, acks: bool, messages: u64) -> anyhow::Result<()> {
    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.fetch 1\r\n")?;
    let body = format!("{{\"batch\":{batch},\"expires\":5000000000}}");
    let request = format!("PUB $JS.API.CONSUMER.MSG.NEXT.BENCH.C _INBOX.fetch {}\r\n{body}\r\n", body.len());
    let mut received = 0;
    let mut settle = Vec::with_capacity(1 << 16);
    while received < messages {
        client.write(request.as_bytes())?;
        settle.clear();
        for _ in 0..batch.min(messages - received) {
            let message = client.receive()?;
            if message.reply.is_empty() {
                // A status: the request ended early.
                break;
            }
            received += 1;
            if acks {
                settle.extend_from_slice(b"PUB ");
                settle.extend_from_slice(message.reply);
                settle.extend_from_slice(b" 4\r\n+ACK\r\n");
            }
        }
        if acks {
            client.write(&settle)?;
        }
    }
    client.flush_barrier()
}

fn join(threads: Vec<std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>>) -> anyhow::Result<()> {
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??;
    }
    Ok(())
}
