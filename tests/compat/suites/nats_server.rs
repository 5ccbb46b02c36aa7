//! Starts servers for the integration tests of async-nats, which know this crate only by its interface. The server is
//! the first `nats-server` in PATH. Each start is one line in the file that `LAUNCHES` names.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running server with a directory of its own; both go with it.
pub struct Server {
    child: Child,
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Server {
    fn start(arguments: Vec<String>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("async-nats-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory for the server");
        let child = launch(&dir, &arguments);
        Self { child, dir, arguments }
    }

    /// Where clients connect, with the scheme that INFO asks for.
    pub fn client_url(&self) -> String {
        let info = self.info();
        let scheme = if info.contains("\"tls_required\":true") { "tls" } else { "nats" };
        format!("{scheme}://127.0.0.1:{}", port(&info))
    }

    /// The port for clients.
    pub fn client_port(&self) -> u16 {
        port(&self.info())
    }

    /// Kills the server and starts it again over the same directory.
    pub fn restart(&mut self) {
        self.stop();
        let _ = fs::remove_file(self.dir.join("log"));
        self.child = launch(&self.dir, &self.arguments);
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The first line that the server says to a client.
    fn info(&self) -> String {
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            if let Some(address) = listens_on(&log) {
                let stream = TcpStream::connect(address.replace("0.0.0.0", "127.0.0.1")).expect("connect");
                let mut line = String::new();
                BufReader::new(stream).read_line(&mut line).expect("INFO");
                return line;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("the server does not listen: {}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::env::var_os("KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn launch(dir: &std::path::Path, arguments: &[String]) -> Child {
    if let Some(path) = std::env::var_os("LAUNCHES") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).expect("LAUNCHES");
        writeln!(file, "{arguments:?}").expect("LAUNCHES");
    }
    let output = File::create(dir.join("out")).expect("a log");
    Command::new("nats-server")
        .arg("--store_dir")
        .arg(dir.join("store"))
        .arg("-l")
        .arg(dir.join("log"))
        .arg("-P")
        .arg(dir.join("pid"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(output)
        .stdout(Stdio::null())
        .spawn()
        .expect("nats-server in PATH")
}

fn listens_on(log: &str) -> Option<&str> {
    log.lines().find_map(|line| Some(line.split_once("client connections on ")?.1.trim()))
}

fn port(info: &str) -> u16 {
    let after = info.split_once("\"port\":").expect("a port in INFO").1;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().expect("a port in INFO")
}

/// Three servers that know each other.
pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Where clients connect to the first.
    pub fn client_url(&self) -> String {
        self.servers[0].client_url()
    }
}

/// A server of this configuration file on any free port.
pub fn run_server(config: &str) -> Server {
    run_server_with_port(config, None)
}

/// A server of this configuration file on this port, or on any free one.
pub fn run_server_with_port(config: &str, port: Option<&str>) -> Server {
    let mut arguments = vec!["-p".to_owned(), port.unwrap_or("-1").to_owned()];
    if !config.is_empty() {
        arguments.extend(["-c".to_owned(), config.to_owned()]);
    }
    Server::start(arguments)
}

/// A server without a configuration file.
pub fn run_basic_server() -> Server {
    run_server("")
}

/// Three servers of this configuration file, in one cluster.
pub fn run_cluster(config: &str) -> Cluster {
    let listeners: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let ports: Vec<u16> =
        listeners.iter().map(|listener| listener.local_addr().expect("its port").port()).collect();
    drop(listeners);
    let routes = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let servers = ports.iter().enumerate().map(|(number, port)| {
        let mut arguments: Vec<String> = ["-p", "-1", "-c", config].map(str::to_owned).to_vec();
        arguments.extend(["--server_name".to_owned(), format!("node{number}")]);
        arguments.extend(["--cluster_name".to_owned(), "cluster".to_owned()]);
        arguments.extend(["--cluster".to_owned(), format!("nats://127.0.0.1:{port}")]);
        arguments.extend(["--routes".to_owned(), routes.clone()]);
        Server::start(arguments)
    });
    let cluster = Cluster { servers: servers.collect() };
    // Each tells its clients of the others once it knows them.
    let ports: Vec<String> = cluster.servers.iter().map(|server| format!(":{}\"", server.client_port())).collect();
    let limit = Instant::now() + PATIENCE;
    while !cluster.servers.iter().all(|server| knows(&server.info(), &ports)) {
        assert!(Instant::now() < limit, "the servers do not find each other");
        sleep(Duration::from_millis(20));
    }
    cluster
}

fn knows(info: &str, ports: &[String]) -> bool {
    ports.iter().all(|port| info.contains(port.as_str()))
}

/// Asks a server to send its clients elsewhere and end.
pub fn set_lame_duck_mode(server: &Server) {
    let signal = format!("ldm={}", server.child.id());
    Command::new("nats-server").args(["--signal", &signal]).status().expect("nats-server in PATH");
}
