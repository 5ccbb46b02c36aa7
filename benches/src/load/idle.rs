//! Many streams and no load: the CPU and the memory that having them takes.

use std::time::{Duration, Instant};

use crate::figures::{Figure, Outcome};
use crate::load::{many_streams, mib};
use crate::servers::Servers;

/// How long servers are left alone before anything is read.
const REST: Duration = Duration::from_secs(3);

/// Memory of empty servers first, then with streams; CPU over `lasting`.
pub fn run(servers: &Servers, streams: u64, lasting: Duration) -> anyhow::Result<Outcome> {
    std::thread::sleep(REST);
    let empty = servers.memory()?;
    let created = many_streams::create(servers, streams)?;
    std::thread::sleep(REST);
    let (cpu, start) = (servers.cpu_seconds()?, Instant::now());
    std::thread::sleep(lasting);
    let cpu = servers.cpu_seconds()? - cpu;
    let mut outcome = Outcome::default();
    outcome.set(Figure::IdleCores, cpu / start.elapsed().as_secs_f64());
    outcome.set(Figure::MemoryAboveEmptyMib, mib(servers.memory()?.saturating_sub(empty)));
    outcome.set(Figure::CreateSeconds, created.as_secs_f64());
    Ok(outcome)
}
