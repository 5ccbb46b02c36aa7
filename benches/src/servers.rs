//! Server processes of one side: started fresh, in a directory of their own, with their CPU time counted by the
//! operating system.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::client::Client;

/// Whose server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Ours, as shipped: synced on a majority before the acknowledgement.
    Levee,
    /// nats-server as shipped: synced every two minutes.
    Nats,
    /// nats-server with `sync_interval: always`.
    NatsSynced,
}

impl Side {
    /// For tables.
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

/// One or three processes that serve clients.
pub struct Servers {
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
            processes: Vec::new(),
            addresses: clients.iter().map(|port| format!("127.0.0.1:{port}")).collect(),
            root: dir.path().to_owned(),
            _dir: dir,
        };
        for node in 0..nodes {
            let config = servers.root.join(format!("n{node}.conf"));
            std::fs::write(&config, configuration(side, node, clients, routes, &servers.root))?;
            let log = std::fs::File::create(servers.root.join(format!("n{node}.log")))?;
            let mut command = match side {
                Side::Levee => {
                    let mut command = Command::new(&binaries.levee);
                    command.arg("serve");
                    command
                }
                Side::Nats | Side::NatsSynced => Command::new(&binaries.nats),
            };
            command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
            servers.processes.push(command.spawn().with_context(|| format!("can not start {command:?}"))?);
        }
        servers.wait_until_ready(nodes)?;
        Ok(servers)
    }

    /// Client addresses, one for each process.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// CPU seconds of all processes so far, from the operating system.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.processes.iter().map(|process| cpu_seconds(process.id())).sum()
    }

    /// Resident memory of all processes, in bytes, at its peak.
    pub fn peak_memory(&self) -> anyhow::Result<u64> {
        self.processes.iter().map(|process| peak_memory(process.id())).sum()
    }

    fn wait_until_ready(&self, nodes: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let body = format!("{{\"name\":\"READY\",\"subjects\":[\"bench.ready\"],\"num_replicas\":{nodes}}}");
        loop {
            let made = Client::connect(&self.addresses[0])
                .and_then(|mut client| client.request("$JS.API.STREAM.CREATE.READY", &body));
            match made {
                Ok(answer) if !answer.contains("\"error\"") => break,
                Ok(answer) if Instant::now() > deadline => {
                    bail!("servers are not ready: {answer}\n{}", self.logs())
                }
                Err(error) if Instant::now() > deadline => return Err(error.context(self.logs())),
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        let mut client = Client::connect(&self.addresses[0])?;
        client.request("$JS.API.STREAM.DELETE.READY", "")?;
        Ok(())
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for node in 0..self.processes.len() {
            let log = std::fs::read_to_string(self.root.join(format!("n{node}.log"))).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            text.push_str(&format!("--- log of node {node}, newest first\n{}\n", tail.join("\n")));
        }
        text
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
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server process is gone")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime; a clock tick is 1/100 s on every Linux that runs this.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

fn peak_memory(pid: u32) -> anyhow::Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    Ok(line.split_whitespace().next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024)
}
