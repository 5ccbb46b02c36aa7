//! A network of the test's own, whose connections it can cut.
//!
//! The test runs itself again within a network namespace, where it is the hub: each node gets a namespace below it
//! with one address, and the hub forwards. A cut drops what goes between two nodes and leaves the way between each
//! and the test open. All of it lives in anonymous namespaces, so it is gone when the processes are.

use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Host;
use crate::{skip, spawn};

/// Tells the second run of a test that it is within.
const WITHIN: &str = "LEVEE_TESTS_WITHIN_NETWORK";

/// Whether this run is within a network of its own.
#[must_use]
pub fn is_within() -> bool {
    std::env::var_os(WITHIN).is_some()
}

/// Runs one test of the calling suite within a network of its own, or skips it where that can not be had.
///
/// # Errors
/// When the test fails there.
pub fn run_within(test: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return skip::missing(test, "only root may make network namespaces");
    }
    for tool in ["unshare", "nsenter", "ip"] {
        if !["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(tool).exists()) {
            return skip::missing(test, &format!("there is no `{tool}` (packages util-linux and iproute2)"));
        }
    }
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|status| status.success()) {
        return skip::missing(test, "this kernel, or this container, gives no network namespaces");
    }
    let this = std::env::current_exe().context("where the tests are")?;
    let done = Command::new("unshare")
        .args(["--net", "--"])
        .arg(this)
        .args(["--exact", test, "--nocapture"])
        .env(WITHIN, "1")
        .output()
        .context("unshare")?;
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}{}", String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success(), "{test} failed within its network");
    ensure!(said.contains("1 passed"), "no test {test} ran within the network");
    Ok(())
}

/// Namespaces for nodes, one each.
#[derive(Debug)]
pub struct Network {
    homes: Vec<Child>,
    cuts: Vec<(usize, usize)>,
}

impl Network {
    /// Makes them. Only within a network of our own.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn new(nodes: usize) -> Result<Self> {
        ensure!(is_within(), "this would change the machine's own network");
        run(&["ip", "link", "set", "lo", "up"])?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forward")?;
        let mut network = Self { homes: Vec::new(), cuts: Vec::new() };
        for node in 0..nodes {
            let mut keeper = Command::new("unshare");
            keeper.args(["--net", "sleep", "infinity"]);
            let home = spawn::start(&keeper, None)?;
            let id = home.id().to_string();
            network.homes.push(home);
            wait_for_namespace(&id)?;
            let (outside, inside) = (hub(node), address(node));
            let link = format!("levee{node}");
            run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &id])?;
            run(&["ip", "addr", "add", &format!("{outside}/30"), "dev", &link])?;
            run(&["ip", "link", "set", &link, "up"])?;
            for command in [
                &["ip", "link", "set", "lo", "up"][..],
                &["ip", "addr", "add", &format!("{inside}/30"), "dev", "eth0"],
                &["ip", "link", "set", "eth0", "up"],
                &["ip", "route", "add", "default", "via", &outside],
            ] {
                run(&[&["nsenter", "-t", &id, "-n"][..], command].concat())?;
            }
        }
        Ok(network)
    }

    /// Where the nodes live.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let within =
            |home: &Child| ["nsenter", "-t", &home.id().to_string(), "-n"].map(str::to_owned).to_vec();
        self.homes
            .iter()
            .enumerate()
            .map(|(node, home)| Host { address: address(node), within: within(home) })
            .collect()
    }

    /// Drops everything between this node and the other nodes.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn isolate(&mut self, node: usize) -> Result<()> {
        for other in (0..self.homes.len()).filter(|other| *other != node) {
            for (from, to) in [(node, other), (other, node)] {
                run(&["ip", "rule", "add", "from", &address(from), "to", &address(to), "blackhole"])?;
                self.cuts.push((from, to));
            }
        }
        Ok(())
    }

    /// Undoes all cuts.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn heal(&mut self) -> Result<()> {
        for (from, to) in self.cuts.drain(..) {
            run(&["ip", "rule", "del", "from", &address(from), "to", &address(to), "blackhole"])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for home in &mut self.homes {
            // They end with the tests in any case.
            let _ = home.kill();
            let _ = home.wait();
        }
    }
}

fn hub(node: usize) -> String {
    format!("10.213.{}.1", node + 1)
}

fn address(node: usize) -> String {
    format!("10.213.{}.2", node + 1)
}

/// The keeper enters its namespace between its start and its `sleep`; before that it is still in ours.
fn wait_for_namespace(id: &str) -> Result<()> {
    let ours = std::fs::read_link("/proc/self/ns/net").context("our namespace")?;
    let begin = std::time::Instant::now();
    loop {
        if std::fs::read_link(format!("/proc/{id}/ns/net")).is_ok_and(|theirs| theirs != ours) {
            return Ok(());
        }
        ensure!(begin.elapsed().as_secs() < 10, "no namespace after 10 s");
        std::thread::yield_now();
    }
}

fn run(command: &[&str]) -> Result<()> {
    let done = Command::new(command[0]).args(&command[1..]).output().context("run ip")?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{}: {complaint}", command.join(" "));
    Ok(())
}
