//! `levee dev`: three nodes on this machine, as three processes, with their logs side by side.
//!
//! The nodes are what `levee serve` starts, told so by flags: nothing here is known to the broker. A node that is
//! killed is said to be gone, the others go on without it, and it is started again a little later, so that a failover
//! and a return can be watched. One that ends before the cluster was ready ends the whole.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::serve::END_WITH_PARENT;

/// How long the cluster may take to elect before something must be wrong.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// How long a node that ended stays away.
const RETURNS_AFTER: Duration = Duration::from_secs(10);

/// Run three nodes on this machine until Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Dev {
    /// Where the nodes keep their data. A second start goes on with what is there.
    #[arg(long, default_value = "levee-data/dev")]
    dir: PathBuf,
    /// First port for clients; the next nodes take the next ones. A port that is taken is replaced by a free one.
    #[arg(long, default_value_t = 4222)]
    port: u16,
    /// Log what the nodes do in detail.
    #[arg(short = 'D', long)]
    debug: bool,
}

struct Member {
    name: String,
    ports: Ports,
    process: Child,
}

/// What a node said, or that it says nothing any more.
enum Said {
    Line(usize, String),
    Silent(usize),
}

impl Dev {
    /// Runs until Ctrl-C, or until a node fails.
    pub(crate) fn run(self) -> ExitCode {
        // One thread, this one: the nodes are bound to the thread that started them.
        crate::run("dev", self.live())
    }

    async fn live(self) -> anyhow::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (said, mut heard) = mpsc::channel(1024);
        // Asked once: it can be built anew while the nodes run.
        let program = std::env::current_exe().context("can not find this program")?;
        let mut members = self.start(&program, &said)?;
        let result = tokio::select! {
            result = self.watch(&program, &mut members, &mut heard, &said) => result,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        drop(said);
        eprintln!("\nlevee dev: stopping");
        stop(&mut members, &mut heard).await;
        result
    }

    fn start(&self, program: &Path, said: &mpsc::Sender<Said>) -> anyhow::Result<Vec<Member>> {
        let ports = Ports::choose(self.port, 3)?;
        let mut members = Vec::new();
        for at in 0..ports.len() {
            let process = self.spawn(program, at, &ports, said)?;
            members.push(Member { name: name(at), ports: ports[at], process });
        }
        Ok(members)
    }

    fn spawn(
        &self,
        program: &Path,
        at: usize,
        ports: &[Ports],
        said: &mpsc::Sender<Said>,
    ) -> anyhow::Result<Child> {
        let routes: Vec<String> =
            ports.iter().map(|ports| format!("nats://127.0.0.1:{}", ports.cluster)).collect();
        let own = &ports[at];
        let dir = self.dir.join(name(at));
        std::fs::create_dir_all(&dir).with_context(|| format!("can not create {}", dir.display()))?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .args(["--addr", "127.0.0.1", "--name", &name(at), "--cluster_name", "dev"])
            .args(["--port", &own.client.to_string(), "--http_port", &own.http.to_string()])
            .args(["--cluster_listen", &format!("nats://127.0.0.1:{}", own.cluster)])
            .args(["--routes", &routes.join(",")])
            .arg("--store_dir")
            .arg(&dir)
            .env(END_WITH_PARENT, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for us: we stop the nodes in order.
            .process_group(0)
            .kill_on_drop(true);
        if self.debug {
            command.arg("-D");
        }
        let mut process = command.spawn().with_context(|| format!("can not start {}", program.display()))?;
        let stderr = process.stderr.take().context("a node without a log")?;
        listen(at, stderr, said.clone());
        Ok(process)
    }

    /// Shows logs, and brings nodes back that ended by themselves. Comes back only with an error.
    async fn watch(
        &self,
        program: &Path,
        members: &mut [Member],
        heard: &mut mpsc::Receiver<Said>,
        said: &mpsc::Sender<Said>,
    ) -> anyhow::Result<()> {
        let ports: Vec<Ports> = members.iter().map(|member| member.ports).collect();
        let https: Vec<u16> = ports.iter().map(|ports| ports.http).collect();
        let mut gone: VecDeque<(Instant, usize)> = VecDeque::new();
        let ready = timeout(READY_WITHIN, healthy(https));
        tokio::pin!(ready);
        let mut waiting = true;
        loop {
            tokio::select! {
                said = heard.recv() => match said {
                    Some(Said::Line(at, line)) => show(at, &line),
                    Some(Said::Silent(at)) => {
                        let member = &mut members[at];
                        let status = timeout(STOP_WITHIN, member.process.wait()).await;
                        let status = status.map_or_else(|_| "closed its log".to_owned(), |status| {
                            status.map_or_else(|error| error.to_string(), |status| status.to_string())
                        });
                        if waiting {
                            bail!("node {} ended by itself ({status}); its last lines are above", member.name);
                        }
                        let seconds = RETURNS_AFTER.as_secs();
                        eprintln!("levee dev: node {} ended ({status}); it returns in {seconds} s", member.name);
                        gone.push_back((Instant::now() + RETURNS_AFTER, at));
                    }
                    None => bail!("all nodes ended"),
                },
                () = sleep_until(gone.front().map(|(due, _)| *due)) => {
                    if let Some((_, at)) = gone.pop_front() {
                        members[at].process = self.spawn(program, at, &ports, said)?;
                        let pid = members[at].process.id().unwrap_or_default();
                        eprintln!("levee dev: node {} is started again, pid {pid}", members[at].name);
                    }
                }
                done = &mut ready, if waiting => {
                    waiting = false;
                    if done.is_err() {
                        bail!("the nodes were not ready after {} s", READY_WITHIN.as_secs());
                    }
                    self.welcome(members);
                }
            }
        }
    }

    fn welcome(&self, members: &[Member]) {
        println!("\nThree nodes are up, data in {}:\n", self.dir.display());
        for member in members {
            println!(
                "  {}  nats://127.0.0.1:{}  monitoring http://127.0.0.1:{}  cluster port {}  pid {}",
                member.name,
                member.ports.client,
                member.ports.http,
                member.ports.cluster,
                member.process.id().unwrap_or_default()
            );
        }
        let port = members.first().map_or(4222, |member| member.ports.client);
        let server = if port == 4222 { String::new() } else { format!("-s nats://127.0.0.1:{port} ") };
        println!("\nTry: nats {server}stream add ORDERS --subjects 'orders.>' --replicas 3 --defaults");
        println!("Stop: Ctrl-C\n");
    }
}

fn name(at: usize) -> String {
    format!("n{}", at + 1)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Reads a node's log line by line until its end.
#[allow(clippy::disallowed_methods, reason = "the named tasks are the broker's; these three only copy lines")]
fn listen(at: usize, stderr: tokio::process::ChildStderr, said: mpsc::Sender<Said>) {
    tokio::spawn(async move {
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        // Nobody listens any more: the node is being stopped, and its log must not block it.
        while matches!(reader.read_until(b'\n', &mut line).await, Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            said.send(Said::Line(at, text)).await.ok();
            line.clear();
        }
        said.send(Said::Silent(at)).await.ok();
    });
}

fn show(at: usize, line: &str) {
    const COLORS: [&str; 3] = ["36", "35", "33"];
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[{}mn{} |\x1b[0m {line}", COLORS[at % COLORS.len()], at + 1);
    } else {
        eprintln!("n{} | {line}", at + 1);
    }
}

/// Waits until every node says that it is healthy, which includes a leader of the cluster.
async fn healthy(https: Vec<u16>) {
    for port in https {
        while !is_healthy(port).await.unwrap_or(false) {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn is_healthy(port: u16) -> std::io::Result<bool> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer.ends_with(b" 200"))
}

async fn stop(members: &mut [Member], heard: &mut mpsc::Receiver<Said>) {
    for member in members.iter() {
        let pid = member.process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended in this moment.
            let _ = kill_process(pid, rustix::process::Signal::TERM);
        }
    }
    let all_ended = async {
        // Their logs end when they do.
        while let Some(said) = heard.recv().await {
            if let Said::Line(at, line) = said {
                show(at, &line);
            }
        }
        for member in members.iter_mut() {
            member.process.wait().await.ok();
        }
    };
    if timeout(STOP_WITHIN, all_ended).await.is_err() {
        eprintln!("levee dev: a node did not stop within {} s and is killed", STOP_WITHIN.as_secs());
        for member in members.iter_mut() {
            member.process.kill().await.ok();
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Ports {
    client: u16,
    http: u16,
    cluster: u16,
}

impl Ports {
    /// Consecutive ports from the usual ones, each replaced by a free one if it is taken. All are held until all
    /// are chosen, so that none is chosen twice.
    fn choose(first: u16, nodes: u16) -> anyhow::Result<Vec<Self>> {
        let mut held = Vec::new();
        let mut take = |wanted: Option<u16>| -> anyhow::Result<u16> {
            let wanted = wanted.and_then(|port| TcpListener::bind(("127.0.0.1", port)).ok());
            let listener = match wanted {
                Some(listener) => listener,
                None => TcpListener::bind(("127.0.0.1", 0)).context("no free port")?,
            };
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok(port)
        };
        (0..nodes)
            .map(|at| {
                Ok(Self {
                    client: take(first.checked_add(at))?,
                    http: take(first.checked_add(4000 + at))?,
                    cluster: take(first.checked_add(2000 + at))?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_replaced_and_none_is_chosen_twice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = taken.local_addr().unwrap().port();

        let ports = Ports::choose(first, 3).unwrap();

        let mut all: Vec<u16> =
            ports.iter().flat_map(|ports| [ports.client, ports.http, ports.cluster]).collect();
        assert!(!all.contains(&first));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 9);
    }
}
