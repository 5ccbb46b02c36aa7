//! Where payload bytes should live: RocksDB's tables, its blob files, or the value log beside it. `cargo payloads`.
//!
//! One group, the storage crate alone: appends of blocks with a few in flight, checkpoints every second, and, with
//! `--keep`, a limit on bytes that drops what is oldest. Each home gets the same blocks; homes take turns.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use levee_benches::process;
use levee_protocol::ids::{GroupId, NodeId, Seq};
use levee_protocol::record::BlockBuilder;
use levee_protocol::time::Timestamp;
use levee_storage::{
    Batch, Durability, EntryLog, LogEntry, LogId, MessageStore, Options, Payloads, Storage, Sync, kind,
};

/// Appends blocks of messages to a store of its own and says what that cost, as a table in Markdown.
#[derive(Debug, Parser)]
struct Arguments {
    /// Payload sizes, bytes.
    #[arg(long, value_delimiter = ',', default_value = "128,1024,16384,65536,262144")]
    sizes: Vec<usize>,
    /// Bytes of payload for each row, MiB.
    #[arg(long, default_value_t = 5120)]
    mib: u64,
    /// Messages are dropped, oldest first, beyond this many MiB.
    #[arg(long)]
    keep: Option<u64>,
    /// Blocks under way at once.
    #[arg(long, default_value_t = 4)]
    in_flight: usize,
    /// Only homes whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the stores lie. Should be on the disk that is to be measured.
    #[arg(long, default_value = ".")]
    scratch: PathBuf,
}

const HOMES: [(&str, Payloads); 3] =
    [("tables", Payloads::Tables), ("blob files", Payloads::BlobFiles), ("value log", Payloads::ValueLog)];
const GROUP: GroupId = GroupId(16);
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// What a block holds at most, as in the broker.
const BLOCK_BYTES_MAX: usize = 1 << 20;
const BLOCK_MESSAGES_MAX: usize = 2048;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!(
        "| payload | home | msg/s | MB/s | CPU s/M | append p50 / p99 / p99.9 ms | written per byte | disk per live byte | replay MB/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for size in &arguments.sizes {
        for (name, home) in HOMES.into_iter().filter(|(name, _)| name.contains(&arguments.only)) {
            measure(*size, name, home, &arguments)?;
        }
    }
    Ok(())
}

fn measure(size: usize, name: &str, home: Payloads, arguments: &Arguments) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&arguments.scratch).context("scratch directory")?;
    let own = std::process::id();
    let options = Options { payloads: home, ..Options::default() };
    let mut stream = Stream::open(dir.path(), options, arguments.in_flight)?;
    let messages = (arguments.mib << 20) / size as u64;
    let per_block = (BLOCK_BYTES_MAX / (size + 32)).clamp(1, BLOCK_MESSAGES_MAX) as u64;
    let keep = arguments.keep.map(|mib| (mib << 20) / size as u64);
    let payload = payload(size);

    let (cpu, written, started) = (process::cpu_seconds(own)?, process::written_bytes(own)?, Instant::now());
    let mut last_checkpoint = Instant::now();
    while stream.last_seq < messages {
        stream.append(&payload, per_block)?;
        if last_checkpoint.elapsed() >= CHECKPOINT_INTERVAL {
            stream.checkpoint(keep)?;
            last_checkpoint = Instant::now();
        }
    }
    stream.finish_appends()?;
    let (elapsed, cpu_appending) = (started.elapsed().as_secs_f64(), process::cpu_seconds(own)? - cpu);
    let count = stream.last_seq as f64;
    stream.checkpoint(keep)?;
    settle(dir.path())?;
    let written = process::written_bytes(own)? - written;
    let live = keep.map_or(stream.last_seq, |keep| keep.min(stream.last_seq)) * size as u64;
    let disk = process::disk_bytes(dir.path())?;
    let replayed = stream.replay()?;
    let quantile = |q: f64| stream.latency.value_at_quantile(q) as f64 / 1000.0;
    println!(
        "| {size} B | {name} | {:.0} | {:.0} | {:.2} | {:.1} / {:.1} / {:.1} | {:.2} | {:.2} | {replayed:.0} |",
        count / elapsed,
        count * size as f64 / elapsed / 1e6,
        cpu_appending * 1e6 / count,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        written as f64 / (count * size as f64),
        disk as f64 / live as f64,
    );
    Ok(())
}

/// Waits until the directory is not written to anymore: flushes, compactions and cleaning have ended.
fn settle(dir: &Path) -> anyhow::Result<()> {
    let mut last = (process::disk_bytes(dir)?, process::written_bytes(std::process::id())?);
    loop {
        std::thread::sleep(Duration::from_secs(5));
        let now = (process::disk_bytes(dir)?, process::written_bytes(std::process::id())?);
        if now.0 == last.0 && now.1 - last.1 < 1 << 20 {
            return Ok(());
        }
        last = now;
    }
}

/// Bytes that do not compress, so that no home gains by that.
fn payload(size: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut payload = Vec::with_capacity(size + 8);
    while payload.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        payload.extend_from_slice(&state.to_le_bytes());
    }
    payload.truncate(size);
    payload
}

struct Stream {
    storage: Arc<Storage>,
    log: EntryLog,
    messages: Arc<MessageStore>,
    last_seq: u64,
    first_seq: u64,
    next_index: u64,
    in_flight: usize,
    in_flight_max: usize,
    appended:
        (Sender<Result<Duration, levee_storage::Error>>, Receiver<Result<Duration, levee_storage::Error>>),
    latency: Histogram<u64>,
}

impl Stream {
    fn open(dir: &Path, options: Options, in_flight_max: usize) -> anyhow::Result<Self> {
        let storage = Storage::open(dir, options)?;
        Ok(Self {
            log: storage.entry_log(GROUP, Sync::Always)?,
            messages: storage.messages(GROUP)?,
            storage,
            last_seq: 0,
            first_seq: 1,
            next_index: 0,
            in_flight: 0,
            in_flight_max,
            appended: channel(),
            latency: Histogram::new_with_bounds(1, 600_000_000, 3)?,
        })
    }

    fn append(&mut self, payload: &[u8], messages: u64) -> anyhow::Result<()> {
        if self.in_flight == self.in_flight_max {
            self.take_append()?;
        }
        let mut builder = BlockBuilder::with_capacity((payload.len() + 32) * messages as usize);
        for _ in 0..messages {
            builder.push(b"orders.eu", b"", payload);
        }
        let index = self.next_index;
        let block = builder.finish(Timestamp(index as i64));
        let id = LogId { raft_term: 1, node: NodeId(1), index };
        let entry = LogEntry { id, kind: kind::BLOCK, payload: block.as_bytes().clone() };
        let (sender, started) = (self.appended.0.clone(), Instant::now());
        let done = move |result: Result<(), _>| drop(sender.send(result.map(|()| started.elapsed())));
        self.log.append(vec![entry], Box::new(done));
        self.messages.stored(index, &block, Seq(self.last_seq + 1), &[]);
        self.last_seq += messages;
        self.next_index += 1;
        self.in_flight += 1;
        Ok(())
    }

    fn take_append(&mut self) -> anyhow::Result<()> {
        let took = self.appended.1.recv().context("the writer ended")??;
        self.latency.saturating_record(took.as_micros() as u64);
        self.in_flight -= 1;
        Ok(())
    }

    fn finish_appends(&mut self) -> anyhow::Result<()> {
        while self.in_flight > 0 {
            self.take_append()?;
        }
        Ok(())
    }

    /// Writes a checkpoint, and drops what is more than `keep` messages.
    fn checkpoint(&mut self, keep: Option<u64>) -> anyhow::Result<()> {
        let first = keep.map_or(1, |keep| self.last_seq.saturating_sub(keep) + 1);
        if first > self.first_seq {
            self.messages.removed(Seq(self.first_seq), Seq(first - 1))?;
            self.first_seq = first;
        }
        let mut batch = Batch::new();
        self.messages.checkpoint(&mut batch);
        self.storage.write(batch, Durability::Ordered)?;
        if keep.is_some() {
            self.finish_appends()?;
            let last = self.log.last().context("nothing was appended")?;
            self.log.purge_to(last)?;
            while self.messages.clean(last.index)?.more {}
        }
        Ok(())
    }

    /// Reads everything back; MB of payload a second.
    fn replay(&self) -> anyhow::Result<f64> {
        let (started, mut bytes, mut next) = (Instant::now(), 0, self.first_seq);
        self.messages.scan(Seq(self.first_seq), &mut |seq, record| {
            bytes += record.payload.len();
            next += u64::from(seq.0 == next);
            std::ops::ControlFlow::Continue(())
        })?;
        ensure!(next == self.last_seq + 1, "replay ended at {next}, not behind {}", self.last_seq);
        Ok(bytes as f64 / started.elapsed().as_secs_f64() / 1e6)
    }
}
