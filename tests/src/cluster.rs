//! Clusters of server processes: start, kill, stop, restart with the same directory.
//!
//! Nodes are configured with nats-server's own files, so the same cluster runs of either server. Their logs go to
//! files; what they said last is printed when the cluster is dropped, which the test runner shows on failure only.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::client;
use crate::place::Dir;
use crate::ports::Port;
use crate::program::Program;
use crate::raw::Raw;
use crate::spawn;
use crate::turns::Turn;
use crate::wait::{PATIENCE, wait_until};

/// How many lines of each node's log are printed when a test fails.
const LOG_TAIL: usize = 60;

/// How to make a cluster. Everything has the value that most tests want.
#[derive(Debug)]
pub struct Setup {
    /// How many nodes. One has no cluster block.
    pub nodes: usize,
    /// How many of them are started at once; the others wait for [`Cluster::start`].
    pub started: usize,
    /// Name of the cluster.
    pub name: &'static str,
    /// Lines for the configuration of each node.
    pub extra: String,
    /// More lines for the first nodes, one text for each.
    pub single: Vec<String>,
    /// Lines for the JetStream block of each node.
    pub jetstream: String,
    /// Whether the test needs the machine for itself, because it measures time.
    pub alone: bool,
    /// The server, if not the one under test.
    pub program: Option<Program>,
    /// Where nodes live, if not on 127.0.0.1: a host and what the command begins with, for each.
    pub hosts: Vec<Host>,
    /// Where the stores of the first nodes are, if not in the directory of the test.
    pub stores: Vec<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 1,
            started: usize::MAX,
            name: "levee-tests",
            extra: String::new(),
            single: Vec::new(),
            jetstream: String::new(),
            alone: false,
            program: None,
            hosts: Vec::new(),
            stores: Vec::new(),
        }
    }
}

/// Where a node lives that is not on 127.0.0.1.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its address.
    pub address: String,
    /// What the command that starts it begins with.
    pub within: Vec<String>,
}

/// Nodes that know of each other.
#[derive(Debug)]
pub struct Cluster {
    name: &'static str,
    program: Program,
    nodes: Vec<Node>,
    dir: Dir,
    // Last, so that the next test begins when the processes of this one are gone.
    _turn: Turn,
}

impl Cluster {
    /// One node, ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn one() -> Result<Self> {
        Self::with(Setup::default()).await
    }

    /// Three nodes, ready.
    ///
    /// # Errors
    /// When they do not become ready.
    pub async fn three() -> Result<Self> {
        Self::with(Setup { nodes: 3, ..Setup::default() }).await
    }

    /// The cluster that `setup` asks for, ready as far as it is started.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn with(setup: Setup) -> Result<Self> {
        let turn = if setup.alone { Turn::alone()? } else { Turn::shared()? };
        let program = setup.program.clone().map_or_else(Program::subject, Ok)?;
        let dir = Dir::new(setup.name)?;
        let mut nodes = Vec::new();
        for index in 0..setup.nodes {
            nodes.push(Node::new(index, &setup, dir.path())?);
        }
        let mut cluster = Self { name: setup.name, program, nodes, dir, _turn: turn };
        cluster.configure(&setup)?;
        for index in 0..setup.started.min(setup.nodes) {
            cluster.start(index)?;
        }
        if setup.started > 0 {
            cluster.ready().await?;
        }
        Ok(cluster)
    }

    /// Writes the configuration of each node.
    fn configure(&self, setup: &Setup) -> Result<()> {
        let routes: Vec<String> = self.nodes.iter().map(|node| format!("nats://{}", node.cluster)).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut text = format!(
                "server_name: {}\nlisten: \"{}\"\nhttp: \"{}\"\njetstream {{\n  store_dir: \"{}\"\n  max_mem: 512MB\n  \
                 max_file: 20GB\n  {}\n}}\n{}\n{}\n",
                node.name,
                node.client,
                node.http,
                node.store.display(),
                setup.jetstream,
                setup.extra,
                setup.single.get(index).map_or("", String::as_str)
            );
            if self.nodes.len() > 1 {
                // In another order on each node: the order must not matter.
                let mut routes = routes.clone();
                routes.rotate_left(index);
                write!(
                    text,
                    "cluster {{\n  name: {}\n  listen: \"{}\"\n  routes: [\n    {}\n  ]\n}}\n",
                    setup.name,
                    node.cluster,
                    routes.join("\n    ")
                )?;
            }
            std::fs::write(&node.config, text).with_context(|| format!("write {}", node.config.display()))?;
        }
        Ok(())
    }

    /// Starts a node, and does not wait for it.
    ///
    /// # Errors
    /// When the process can not be started.
    pub fn start(&mut self, index: usize) -> Result<()> {
        self.start_with(index, &[])
    }

    /// The same, with variables in its environment.
    ///
    /// # Errors
    /// When the process can not be started.
    pub fn start_with(&mut self, index: usize, variables: &[(&str, &str)]) -> Result<()> {
        let program = self.program.clone();
        self.nodes[index].start(&program, variables)
    }

    /// SIGKILL. Gives when it was sent.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn kill(&mut self, index: usize) -> Result<std::time::Instant> {
        self.nodes[index].kill()
    }

    /// SIGKILL for all of them at once, then `release`, which lets those end that wait for a disk, then waits.
    ///
    /// # Errors
    /// When a process can not be killed.
    pub fn kill_all(&mut self, release: impl FnOnce()) -> Result<()> {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.kill_together(&all, release)
    }

    /// The same for some of them.
    ///
    /// # Errors
    /// When a process can not be killed.
    pub fn kill_together(&mut self, indexes: &[usize], release: impl FnOnce()) -> Result<()> {
        let children: Vec<Child> =
            indexes.iter().filter_map(|index| self.nodes[*index].child.take()).collect();
        for child in &children {
            kill_process(Pid::from_child(child), Signal::KILL).context("SIGKILL")?;
        }
        release();
        for mut child in children {
            child.wait().context("wait for the end")?;
        }
        Ok(())
    }

    /// SIGSTOP: the process is there and does nothing, until [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the node does not run.
    pub fn pause(&self, index: usize) -> Result<()> {
        self.nodes[index].signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn resume(&self, index: usize) -> Result<()> {
        self.nodes[index].signal(Signal::CONT)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the node does not run, or does not end.
    pub async fn stop(&mut self, index: usize) -> Result<ExitStatus> {
        self.nodes[index].signal(Signal::TERM)?;
        self.ended(index).await
    }

    /// Waits until the process of a node ended by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&mut self, index: usize) -> Result<ExitStatus> {
        let node = &mut self.nodes[index];
        let what = format!("{} ends", node.name);
        let status = wait_until(&what, PATIENCE, async || {
            Ok(node.child.as_mut().context("the node does not run")?.try_wait()?)
        })
        .await?;
        self.nodes[index].child = None;
        Ok(status)
    }

    /// Whether the process of a node ended, or was never started. It is still to be waited for.
    #[must_use]
    pub fn is_over(&self, index: usize) -> bool {
        let Some(child) = &self.nodes[index].child else { return true };
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        // Behind the name, which may hold anything.
        state.rsplit(')').next().is_none_or(|state| state.trim_start().starts_with('Z'))
    }

    /// Waits until every started node answers the JetStream API, and, when all are started, until a stream can have
    /// a replica on each.
    ///
    /// # Errors
    /// When that does not happen, or a process ends.
    pub async fn ready(&mut self) -> Result<()> {
        let running: Vec<usize> = self.running().collect();
        for index in &running {
            self.answers(*index).await?;
        }
        if running.len() == self.nodes.len() {
            self.accepts_streams().await?;
        }
        Ok(())
    }

    /// Waits until a node answers the JetStream API.
    ///
    /// # Errors
    /// When it does not, or its process ends.
    pub async fn answers(&mut self, index: usize) -> Result<()> {
        let node = &mut self.nodes[index];
        let what = format!("{} answers the JetStream API", node.name);
        let mut over = None;
        let address = node.client.clone();
        let child = &mut node.child;
        let done = wait_until(&what, PATIENCE, async || {
            if let Some(status) = child.as_mut().context("the node does not run")?.try_wait()? {
                over = Some(status);
                return Ok(Some(()));
            }
            let mut raw = Raw::connect(&address).await?;
            raw.hello(&json!({})).await?;
            let info = raw.request_json("$JS.API.INFO", "").await?;
            ensure!(info.get("error").is_none(), "{info}");
            Ok(Some(()))
        })
        .await;
        if let Some(status) = over {
            bail!("{} ended with {status}:\n{}", node.name, node.log_tail(LOG_TAIL));
        }
        done
    }

    async fn accepts_streams(&self) -> Result<()> {
        let replicas = self.nodes.len();
        let config = json!({
            "name": "READY", "subjects": ["levee.tests.ready"], "storage": "memory", "num_replicas": replicas
        });
        let mut raw = Raw::connect(&self.nodes[0].client).await?;
        raw.hello(&json!({})).await?;
        wait_until("a stream can have a replica on each node", PATIENCE, async || {
            let made = raw.request_json("$JS.API.STREAM.CREATE.READY", &config.to_string()).await?;
            ensure!(made.get("error").is_none(), "{made}");
            let gone = raw.request_json("$JS.API.STREAM.DELETE.READY", "").await?;
            ensure!(gone["success"] == true, "{gone}");
            Ok(Some(()))
        })
        .await
    }

    /// A client that stays with one node, whatever it hears of others.
    ///
    /// # Errors
    /// When it can not connect.
    pub async fn client(&self, index: usize) -> Result<async_nats::Client> {
        client::connect_to(&[self.nodes[index].url()]).await
    }

    /// A client that goes to whichever node is there.
    ///
    /// # Errors
    /// When it can not connect to any.
    pub async fn any_client(&self) -> Result<async_nats::Client> {
        let urls: Vec<String> = self.nodes.iter().map(Node::url).collect();
        client::connect_to(&urls).await
    }

    /// The node of that server name.
    ///
    /// # Errors
    /// When there is none.
    pub fn index_of(&self, name: &str) -> Result<usize> {
        self.nodes.iter().position(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// The nodes whose processes were started and not ended by us.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].child.is_some())
    }

    /// Any running node but this one.
    ///
    /// # Errors
    /// When there is none.
    pub fn other_than(&self, index: usize) -> Result<usize> {
        self.running().find(|other| *other != index).context("no other node runs")
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The server that the nodes run.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The name of the cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// The directory with stores, logs and configurations.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Prints what the nodes said last. The test runner shows it when the test failed.
    pub fn show_logs(&self) {
        for node in &self.nodes {
            println!("---- {} ({})\n{}", node.name, node.log.display(), node.log_tail(LOG_TAIL));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // A node that the test ended has no process.
            let _ = node.kill();
        }
        self.show_logs();
    }
}

/// One node: its addresses and files, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    name: String,
    client: String,
    http: String,
    cluster: String,
    store: PathBuf,
    config: PathBuf,
    log: PathBuf,
    within: Vec<String>,
    child: Option<Child>,
    // Held, so that nobody else listens there while the node is down.
    _ports: Vec<Port>,
}

impl Node {
    fn new(index: usize, setup: &Setup, dir: &Path) -> Result<Self> {
        let name = format!("n{}", index + 1);
        let mut ports = Vec::new();
        let mut address = |fixed: u16| -> Result<String> {
            if let Some(host) = setup.hosts.get(index) {
                return Ok(format!("{}:{fixed}", host.address));
            }
            let port = Port::take()?;
            let address = format!("127.0.0.1:{}", port.number());
            ports.push(port);
            Ok(address)
        };
        let (client, http, cluster) = (address(4222)?, address(8222)?, address(6222)?);
        let store = dir.join(format!("{name}-store"));
        Ok(Self {
            client,
            http,
            cluster,
            store: setup.stores.get(index).cloned().unwrap_or(store),
            config: dir.join(format!("{name}.conf")),
            log: dir.join(format!("{name}.log")),
            within: setup.hosts.get(index).map(|host| host.within.clone()).unwrap_or_default(),
            child: None,
            _ports: ports,
            name,
        })
    }

    fn start(&mut self, program: &Program, variables: &[(&str, &str)]) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let serve = program.serve(&self.config);
        let mut command = match self.within.split_first() {
            Some((first, rest)) => {
                let mut within = std::process::Command::new(first);
                within.args(rest).arg(serve.get_program()).args(serve.get_args());
                within
            }
            None => serve,
        };
        command.envs(variables.iter().copied());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        self.child = Some(spawn::start(&command, Some(log))?);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the node does not run")?;
        kill_process(Pid::from_child(child), signal).with_context(|| format!("{signal:?}"))
    }

    fn kill(&mut self) -> Result<std::time::Instant> {
        let mut child = self.child.take().context("the node does not run")?;
        let now = std::time::Instant::now();
        child.kill().context("SIGKILL")?;
        child.wait().context("wait for the end")?;
        Ok(now)
    }

    /// Server name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.client
    }

    /// `host:port` for other nodes.
    #[must_use]
    pub fn cluster_address(&self) -> &str {
        &self.cluster
    }

    /// URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.client)
    }

    /// Store directory.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A monitoring document.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn monitoring(&self, path: &str) -> Result<Value> {
        client::http_json(&self.http, path).await
    }

    /// Everything it logged since the cluster was made.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Waits until the log says something that `matches`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn logs(&self, what: &str, limit: Duration, pattern: &str) -> Result<()> {
        let pattern = regex::Regex::new(pattern).context("pattern")?;
        wait_until(what, limit, async || Ok(pattern.is_match(&self.log()).then_some(())))
            .await
            .with_context(|| format!("{} logged:\n{}", self.name, self.log_tail(LOG_TAIL)))
    }

    fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let skipped = log.lines().count().saturating_sub(lines);
        log.lines().skip(skipped).collect::<Vec<_>>().join("\n")
    }
}
