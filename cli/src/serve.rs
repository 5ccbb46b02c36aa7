//! `levee serve`, and the binary under the name `nats-server`: one node, from flags to the last line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use levee_broker::config::{
    Addresses, Config, Disk, Flags, LEVEE_VERSION, Listen, NATS_VERSION, Signal, SignalTarget,
};
use levee_broker::node::Node;
use rustix::process::{Pid, kill_process};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::logging::{FATAL, Logging};
use crate::tuning;

/// What the program was started as, which decides defaults and what it says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Name {
    /// `levee serve`: streams are on, in `./levee-data`.
    Levee,
    /// `nats-server`: its defaults to the letter.
    NatsServer,
}

/// Set by `levee dev` on its nodes: they end when it does, however it ends.
pub(crate) const END_WITH_PARENT: &str = "LEVEE_END_WITH_PARENT";

/// Runs a node until it is told to stop. `program` is the name it was started under.
pub(crate) fn run(name: Name, program: &str, arguments: impl Iterator<Item = String>) -> ExitCode {
    let flags = match Flags::parse(arguments) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("{error}\n\n{}", usage(name));
            return ExitCode::FAILURE;
        }
    };
    if flags.help {
        println!("{}", usage(name));
        return ExitCode::SUCCESS;
    }
    if flags.version {
        match name {
            Name::NatsServer => println!("nats-server: v{NATS_VERSION}"),
            Name::Levee => println!("levee: v{LEVEE_VERSION} (nats-server: v{NATS_VERSION})"),
        }
        return ExitCode::SUCCESS;
    }
    let done = match &flags.signal {
        Some(target) => send(program, target),
        None => serve(name, program, &flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(name: Name, program: &str, flags: &Flags) -> anyhow::Result<()> {
    let base = match name {
        Name::Levee => Config::levee_defaults(),
        Name::NatsServer => Config::default(),
    };
    let config = Config::load(base, flags, &Disk)?;
    if flags.test {
        return check(program, &config);
    }
    for warning in &config.warnings {
        eprintln!("{warning}");
    }
    let logging = Logging::start(&config.log)?;
    tuning::apply();
    if std::env::var_os(END_WITH_PARENT).is_some() {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .context("can not follow the parent process")?;
    }
    announce(name, &config);
    let pid_file = config.pid_file.clone().map(TemporaryFile::pid).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(live(config, program, &logging));
    // Threads that wait for the disk would hold up the exit; what matters was stopped in order.
    runtime.shutdown_background();
    drop(pid_file);
    if let Err(error) = done {
        tracing::error!(target: FATAL, "{error:#}");
        // Said already, in the log.
        std::process::exit(1);
    }
    tracing::info!("Server Exiting..");
    Ok(())
}

/// `-t`. What is a warning at start is a mistake here, as in nats-server.
fn check(program: &str, config: &Config) -> anyhow::Result<()> {
    if !config.warnings.is_empty() {
        bail!("{}", config.warnings.join("\n"));
    }
    let Some(file) = &config.file else { bail!("-t needs a configuration file: -c <file>") };
    eprintln!("{program}: configuration file {} is valid ({})", file.path, file.digest);
    Ok(())
}

fn announce(name: Name, config: &Config) {
    tracing::info!("Starting {}", if name == Name::NatsServer { "nats-server" } else { "levee" });
    tracing::info!("  Version:  {NATS_VERSION} (levee {LEVEE_VERSION})");
    if let Some(cluster) = config.cluster.as_ref().and_then(|cluster| cluster.name.as_ref()) {
        tracing::info!("  Cluster:  {cluster}");
    }
    if let Some(file) = &config.file {
        tracing::info!("Using configuration file: {} ({})", file.path, file.digest);
    }
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    if config.jetstream.as_ref().is_some_and(|jetstream| jetstream.store_dir.is_none()) {
        tracing::warn!("Temporary storage directory used, data could be lost on system reboot");
    }
}

async fn live(config: Config, program: &str, logging: &Logging) -> anyhow::Result<()> {
    // Before the node: a signal that comes while it starts is not lost and does not kill it half way.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut reload = signal(SignalKind::hangup())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let mut lame_duck = signal(SignalKind::user_defined2())?;

    let ports_file_dir = config.ports_file_dir.clone();
    let node = tokio::select! {
        started = Node::start(config) => started?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    let ports_file =
        ports_file_dir.map(|dir| TemporaryFile::ports(&dir, program, &node.addresses())).transpose();
    let ports_file = match ports_file {
        Ok(file) => file,
        Err(error) => {
            tracing::error!("{error:#}");
            None
        }
    };

    loop {
        // All branches are cancel safe: receiving a signal is, and `stopped` only watches.
        tokio::select! {
            () = node.stopped() => break,
            _ = interrupt.recv() => {
                trapped("interrupt");
                node.stop().await;
                break;
            }
            _ = terminate.recv() => {
                trapped("terminated");
                node.stop().await;
                break;
            }
            _ = reload.recv() => {
                trapped("hangup");
                tracing::warn!("reload is not supported yet: restart the server to apply a changed configuration");
            }
            _ = reopen.recv() => {
                trapped("user defined signal 1");
                match logging.reopen() {
                    Ok(()) => tracing::info!("File log re-opened"),
                    Err(error) => tracing::error!("{error:#}"),
                }
            }
            _ = lame_duck.recv() => {
                trapped("user defined signal 2");
                tokio::select! {
                    () = node.lame_duck() => {}
                    _ = interrupt.recv() => trapped("interrupt"),
                    _ = terminate.recv() => trapped("terminated"),
                }
                node.stop().await;
                break;
            }
        }
    }
    drop(ports_file);
    Ok(())
}

fn trapped(signal: &str) {
    tracing::info!("Trapped \"{signal}\" signal");
}

/// A file that says something about this process and goes with it.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn pid(path: PathBuf) -> anyhow::Result<Self> {
        let text = std::process::id().to_string();
        std::fs::write(&path, text)
            .with_context(|| format!("can not write the pid file {}", path.display()))?;
        Ok(Self(path))
    }

    fn ports(dir: &Path, program: &str, addresses: &Addresses) -> anyhow::Result<Self> {
        let path = dir.join(format!("{program}_{}.ports", std::process::id()));
        // Whoever waits for the file must not read half of it.
        let unfinished = path.with_extension("ports.tmp");
        let written = std::fs::File::create(&unfinished)
            .and_then(|mut file| file.write_all(ports_document(addresses).as_bytes()))
            .and_then(|()| std::fs::rename(&unfinished, &path));
        written.with_context(|| format!("can not write the ports file {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn ports_document(addresses: &Addresses) -> String {
    let mut document = serde_json::Map::new();
    let mut put = |name: &str, scheme: &str, listen: Option<&Listen>| {
        if let Some(listen) = listen {
            document.insert(name.to_owned(), json!([format!("{scheme}://{}", reachable(listen))]));
        }
    };
    put("nats", "nats", Some(&addresses.client));
    put("monitoring", "http", addresses.http.as_ref());
    put("cluster", "nats", addresses.cluster.as_ref());
    serde_json::Value::Object(document).to_string()
}

/// The address under which this machine reaches a listener on all its addresses.
fn reachable(listen: &Listen) -> Listen {
    let host = match listen.host.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Listen { host: host.to_owned(), port: listen.port }
}

/// `-sl`: to the process named, or to the only other one of this program.
fn send(program: &str, target: &SignalTarget) -> anyhow::Result<()> {
    let pid = match &target.process {
        Some(text) => match text.parse::<i32>() {
            Ok(pid) => pid,
            Err(_) => {
                let text =
                    std::fs::read_to_string(text).with_context(|| format!("can not read pid file {text}"))?;
                text.trim().parse().context("the pid file does not hold a process id")?
            }
        },
        None => the_other(program)?,
    };
    let signal = match target.signal {
        Signal::Stop => rustix::process::Signal::KILL,
        Signal::Quit => rustix::process::Signal::INT,
        Signal::Term => rustix::process::Signal::TERM,
        Signal::Reopen => rustix::process::Signal::USR1,
        Signal::Reload => rustix::process::Signal::HUP,
        Signal::LameDuck => rustix::process::Signal::USR2,
    };
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).with_context(|| format!("invalid pid: {pid}"))?;
    kill_process(pid, signal).with_context(|| format!("can not signal process {}", pid.as_raw_nonzero()))
}

fn the_other(program: &str) -> anyhow::Result<i32> {
    let own = std::process::id();
    // The kernel keeps fifteen bytes of a name.
    let program: String = program.chars().take(15).collect();
    let mut found: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir("/proc").context("can not list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let named =
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == program);
        if named && pid != own {
            found.push(pid);
        }
    }
    match found.as_slice() {
        [] => bail!("no {program} processes running"),
        [pid] => i32::try_from(*pid).context("process id"),
        several => {
            let list: Vec<String> = several.iter().map(ToString::to_string).collect();
            bail!("multiple {program} processes running:\n{}", list.join("\n"))
        }
    }
}

fn usage(name: Name) -> String {
    let (command, streams, store) = match name {
        Name::Levee => {
            ("levee serve", "-js=false                     Turn JetStream off (default: on)", "./levee-data")
        }
        Name::NatsServer => {
            ("nats-server", "-js, --jetstream              Enable JetStream functionality", "<tmp>/nats")
        }
    };
    format!(
        "Usage: {command} [options]

Server Options:
    -a, --addr, --net <host>         Bind to host address (default: 0.0.0.0)
    -p, --port <port>                Use port for clients (default: 4222; -1: any free)
    -n, --name, --server_name <name> Server name (default: its id)
    -P, --pid <file>                 File to store PID
    -m, --http_port <port>           Use port for http monitoring
    -c, --config <file>              Configuration file
    -t                               Test configuration and exit
    -sl,--signal <signal>[=<pid>]    Send signal to a server process (ldm, stop, quit, term, reopen, reload)
                                     <pid> can be either a PID or the path to a PID file
        --client_advertise <string>  Client URL to advertise to other servers
        --ports_file_dir <dir>       Creates a ports file in the specified directory (<program>_<pid>.ports)

Logging Options:
    -l, --log <file>                 File to redirect log output
    -T, --logtime                    Timestamp log entries (default: true)
        --logtime_utc                Timestamps in UTC instead of local timezone (default: false)
    -D, --debug                      Enable debugging output
    -V, --trace                      Trace the raw protocol
    -DV                              Debug and trace

JetStream Options:
    {streams}
    -sd, --store_dir <dir>           Set the storage directory (default: {store})

Authorization Options:
        --user <user>                User required for connections
        --pass <password>            Password required for connections
        --auth <token>               Authorization token required for connections

Cluster Options:
        --routes <url-1, url-2>      Other nodes to connect to
        --cluster <url>              Address for other nodes
        --cluster_listen <url>       Address for other nodes
        --cluster_name <string>      Cluster name
        --cluster_advertise <string> Address to tell other nodes
        --no_advertise               Do not tell clients about this node

Common Options:
    -h, --help                       Show this message
    -v, --version                    Show version"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_file_names_an_address_that_can_be_dialed() {
        let listen = |host: &str, port| Listen { host: host.to_owned(), port };
        let addresses = Addresses {
            client: listen("0.0.0.0", 4222),
            http: Some(listen("::", 8222)),
            cluster: Some(listen("10.0.0.1", 6222)),
        };

        assert_eq!(
            ports_document(&addresses),
            r#"{"nats":["nats://127.0.0.1:4222"],"monitoring":["http://[::1]:8222"],"cluster":["nats://10.0.0.1:6222"]}"#
        );
    }

    #[test]
    fn a_temporary_file_goes_with_its_owner() {
        let path = std::env::temp_dir().join(format!("levee-pid-{}", std::process::id()));

        let file = TemporaryFile::pid(path.clone()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(file);

        assert!(!path.exists());
    }
}
