//! How fast the store takes messages. Run with
//! `cargo test --release -p levee-storage --test storage throughput -- --ignored --nocapture`.

use std::sync::mpsc::sync_channel;
use std::time::Instant;

use levee_protocol::ids::Seq;
use levee_protocol::record::BlockBuilder;
use levee_protocol::time::Timestamp;
use levee_storage::{Options, Payloads, Storage};

use crate::stream::{Stream, block_entry};

#[test]
#[ignore = "a measurement"]
fn append_throughput() {
    let cases =
        [(128, 1, 4, 20_000), (128, 10, 4, 200_000), (128, 200, 4, 4_000_000), (128, 2000, 4, 8_000_000)];
    let cases = cases.into_iter().chain([
        (1024, 1, 4, 20_000),
        (1024, 200, 4, 1_500_000),
        (1024, 1000, 4, 1_500_000),
    ]);
    for (bytes, batch, in_flight, messages) in cases.chain([(16 << 10, 64, 4, 100_000)]) {
        measure(bytes, batch, in_flight, messages);
    }
}

/// The clock of a measurement.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn measure(bytes: usize, batch: usize, in_flight: usize, messages: usize) {
    let dir =
        tempfile::tempdir_in(std::env::var_os("LEVEE_BENCH_DIR").unwrap_or_else(|| ".".into())).unwrap();
    let payloads = match std::env::var("LEVEE_BENCH_PAYLOADS").as_deref() {
        Ok("tables") => Payloads::Tables,
        _ => Payloads::ValueLog,
    };
    let storage = Storage::open(dir.path(), Options { payloads, ..Options::default() }).unwrap();
    let mut stream = Stream::open(&storage);
    let payload = vec![b'x'; bytes];
    let (sender, receiver) = sync_channel(in_flight);
    let cpu = cpu_seconds();
    let started = now();
    let mut last_checkpoint = now();
    for index in 0..(messages / batch) as u64 {
        if index >= in_flight as u64 {
            receiver.recv().unwrap();
        }
        let mut builder = BlockBuilder::with_capacity(batch * (bytes + 32));
        for _ in 0..batch {
            builder.push(b"orders.eu", b"", &payload);
        }
        let block = builder.finish(Timestamp(index as i64));
        let sender = sender.clone();
        let done = move |result: Result<(), _>| {
            result.unwrap();
            sender.send(()).unwrap();
        };
        stream.log.append(vec![block_entry(index, &block)], Box::new(done));
        stream.messages.stored(index, &block, Seq(stream.last_seq + 1), &[]);
        stream.last_seq += batch as u64;
        if last_checkpoint.elapsed().as_millis() > 1000 {
            stream.checkpoint();
            last_checkpoint = now();
        }
    }
    for _ in 0..in_flight.min(messages / batch) {
        receiver.recv().unwrap();
    }
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    stream.checkpoint();
    let started = now();
    let mut read = 0_usize;
    stream
        .messages
        .scan(Seq(1), &mut |_, record| {
            read += record.payload.len();
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(read, messages / batch * batch * bytes);
    println!(
        "{bytes:>6} B x {batch:>4}: {:>9.0} msg/s, {:>6.1} MB/s, {:>5.2} cpu-s/M, scan {:>6.0} MB/s",
        messages as f64 / elapsed,
        (messages * bytes) as f64 / elapsed / 1e6,
        cpu * 1e6 / messages as f64,
        read as f64 / started.elapsed().as_secs_f64() / 1e6,
    );
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
