//! Server processes of one side: started fresh, in a directory of their own, with what they spend counted by the
//! operating system.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::process;

/// Ports below the range that the system gives to outgoing connections, which could take one that was seen free.
const PORTS: std::ops::Range<u16> = 16000..17000;

/// How long a server may take for a question that it can answer at once.
const QUESTION: Duration = Duration::from_millis(250);

/// Starting, and coming back after a kill with much data, take no longer.
const READY_WITHIN: Duration = Duration::from_secs(600);

/// Whose server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Ours, as shipped: synced on a majority before the acknowledgement.
    Levee,
    /// nats-server as shipped: synced every two minutes.
    Nats,
    /// nats-server with `sync_interval: always`.
    NatsSynced,
}

impl Side {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Levee => "Levee",
            Self::Nats => "nats-server",
            Self::NatsSynced => "nats-server, sync always",
        }
    }
}

/// Where the binaries are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Ours.
    pub levee: PathBuf,
    /// Theirs.
    pub nats: PathBuf,
}

impl Binaries {
    /// What a side's binary says its version is.
    pub fn version(&self, side: Side) -> anyhow::Result<String> {
        let binary = self.of(side);
        let output = Command::new(binary)
            .arg("--version")
            .output()
            .with_context(|| format!("can not run {}; --help tells how to name it", binary.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn of(&self, side: Side) -> &Path {
        match side {
            Side::Levee => &self.levee,
            Side::Nats | Side::NatsSynced => &self.nats,
        }
    }
}

/// How a process ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// SIGTERM, and time to finish.
    Gracefully,
    /// SIGKILL.
    Killed,
}

/// One or three processes that serve clients.
pub struct Servers {
    side: Side,
    binary: PathBuf,
    processes: Vec<Child>,
    addresses: Vec<String>,
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Servers {
    /// Starts `nodes` servers and waits until streams can be created.
    pub fn start(binaries: &Binaries, side: Side, nodes: usize, scratch: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(scratch).with_context(|| format!("can not create {}", scratch.display()))?;
        let dir = tempfile::Builder::new().prefix("bench").tempdir_in(scratch)?;
        let ports = free_ports(nodes * 2)?;
        let (clients, routes) = ports.split_at(nodes);
        let mut servers = Self {
            side,
            binary: binaries.of(side).to_owned(),
            processes: Vec::new(),
            addresses: clients.iter().map(|port| format!("127.0.0.1:{port}")).collect(),
            root: dir.path().to_owned(),
            _dir: dir,
        };
        for node in 0..nodes {
            let config = configuration(side, node, clients, routes, &servers.root);
            std::fs::write(servers.config(node), config)?;
        }
        servers.spawn()?;
        servers.wait_until_ready()?;
        Ok(servers)
    }

    /// Stops all processes and starts them again on what they left. Does not wait until they answer. Gives the moment
    /// when the first was started.
    pub fn restart(&mut self, stop: Stop) -> anyhow::Result<Instant> {
        self.stop(stop)?;
        let start = Instant::now();
        self.spawn()?;
        Ok(start)
    }

    /// Kills one of them for good. What it spent can not be read afterwards, nor that of all.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<Instant> {
        let start = Instant::now();
        self.processes[node].kill().context("a server ended by itself")?;
        self.processes[node].wait()?;
        Ok(start)
    }

    /// Tries until it works.
    pub fn wait_until<T>(&self, ready: impl Fn(&Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match ready(self) {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => return Err(error.context(self.logs())),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// How many processes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.addresses.len()
    }

    /// Whose they are.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// Where a node serves clients.
    #[must_use]
    pub fn address(&self, node: usize) -> &str {
        &self.addresses[node]
    }

    /// CPU seconds of all processes so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids().map(process::cpu_seconds).sum()
    }

    /// Resident memory of all processes at their peaks, in bytes.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        self.pids().map(process::peak_resident_bytes).sum()
    }

    /// Resident memory of all processes now, in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        self.pids().map(process::resident_bytes).sum()
    }

    /// Bytes all processes had written to files.
    pub fn written_bytes(&self) -> anyhow::Result<u64> {
        self.pids().map(process::written_bytes).sum()
    }

    /// Bytes of disk the stores take up.
    pub fn disk_bytes(&self) -> anyhow::Result<u64> {
        (0..self.nodes()).map(|node| process::disk_bytes(&self.root.join(format!("n{node}")))).sum()
    }

    /// The ends of the logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in 0..self.nodes() {
            let log = std::fs::read_to_string(self.log(node)).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            text.push_str(&format!("--- log of node {node}, newest first\n{}\n", tail.join("\n")));
        }
        text
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        for node in 0..self.nodes() {
            let log = std::fs::File::options().create(true).append(true).open(self.log(node))?;
            let mut command = Command::new(&self.binary);
            if self.side == Side::Levee {
                command.arg("serve");
            }
            command.arg("-c").arg(self.config(node)).stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
            self.processes.push(command.spawn().with_context(|| format!("can not start {command:?}"))?);
        }
        Ok(())
    }

    fn stop(&mut self, stop: Stop) -> anyhow::Result<()> {
        let signal = match stop {
            Stop::Gracefully => rustix::process::Signal::TERM,
            Stop::Killed => rustix::process::Signal::KILL,
        };
        for process in &self.processes {
            let pid = rustix::process::Pid::from_child(process);
            rustix::process::kill_process(pid, signal).context("a server ended by itself")?;
        }
        for mut process in self.processes.drain(..) {
            process.wait()?;
        }
        Ok(())
    }

    /// The stream that shows it stays: on nats-server, removing the last one races with making the next.
    fn wait_until_ready(&self) -> anyhow::Result<()> {
        let body =
            format!("{{\"name\":\"READY\",\"subjects\":[\"ready\"],\"num_replicas\":{}}}", self.nodes());
        self.wait_until(|servers| {
            // A server that knows no leader yet does not answer. A create must not be given up, it could come true later.
            Client::connect_within(servers.address(0), QUESTION)?.request("$JS.API.INFO", "")?;
            let mut client = Client::connect(servers.address(0))?;
            let answer = client.request("$JS.API.STREAM.CREATE.READY", &body)?;
            ensure!(!answer.contains("\"error\""), "servers are not ready: {answer}");
            Ok(())
        })
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Child::id)
    }

    fn config(&self, node: usize) -> PathBuf {
        self.root.join(format!("n{node}.conf"))
    }

    fn log(&self, node: usize) -> PathBuf {
        self.root.join(format!("n{node}.log"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Gone already is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn configuration(side: Side, node: usize, clients: &[u16], routes: &[u16], root: &Path) -> String {
    let sync = if side == Side::NatsSynced { ", sync_interval: always" } else { "" };
    let mut text = format!(
        "server_name: n{node}\nlisten: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}/n{node}\"{sync} }}\n",
        clients[node],
        root.display(),
    );
    if clients.len() > 1 {
        let routes_to: Vec<String> =
            routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        text.push_str(&format!(
            "cluster {{ name: bench, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
            routes[node],
            routes_to.join(", ")
        ));
    }
    text
}

fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    // Connections of the run before may still be closing; begin elsewhere each time.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let begin = std::process::id() as usize * 101 + NEXT.fetch_add(count, Ordering::Relaxed);
    let in_turn = PORTS.cycle().skip(begin % PORTS.len()).take(PORTS.len());
    let free: Vec<u16> =
        in_turn.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect();
    if free.len() < count {
        bail!("no {count} free ports from {} to {}", PORTS.start, PORTS.end - 1);
    }
    Ok(free)
}
