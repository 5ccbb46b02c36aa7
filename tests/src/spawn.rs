//! Starts servers so that they end with the tests, however these end.
//!
//! The kernel sends the signal when the thread that started the process ends, and each test is a thread of its own,
//! so one thread that lives as long as the process starts them all.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel, sync_channel};

use anyhow::{Context as _, Result};

/// Starts the program of `command`, to be killed when this process ends. What it says goes to `log`, or nowhere.
///
/// # Errors
/// When it can not be started.
pub fn start(command: &Command, log: Option<File>) -> Result<Child> {
    let (done, started) = sync_channel(1);
    let shown = format!("{command:?}");
    let mut command = bound(command);
    match log {
        Some(log) => command.stdout(log.try_clone().context("log")?).stderr(log),
        None => command.stdout(Stdio::null()).stderr(Stdio::null()),
    };
    let order = Order { command, done };
    STARTER.send(order).ok().context("the starting thread ended")?;
    started.recv().context("the starting thread ended")?.with_context(|| format!("start {shown}"))
}

struct Order {
    command: Command,
    done: std::sync::mpsc::SyncSender<std::io::Result<Child>>,
}

static STARTER: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = channel::<Order>();
    std::thread::spawn(move || {
        for mut order in orders {
            // The asker waits for the answer; if it is gone, the child is dropped with nobody to use it.
            let _ = order.done.send(order.command.spawn());
        }
    });
    sender
});

/// `command` behind `setpriv`, which becomes the program and keeps the process id. Every Debian has it.
fn bound(command: &Command) -> Command {
    let mut bound = if Path::new("/usr/bin/setpriv").exists() {
        let mut setpriv = Command::new("/usr/bin/setpriv");
        setpriv.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
        setpriv
    } else {
        Command::new(command.get_program())
    };
    bound.args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            bound.env(key, value);
        }
    }
    bound.stdin(Stdio::null());
    bound
}
