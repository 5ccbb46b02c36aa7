//! The main job through clients that are not Rust: the `nats` command line and nats-py.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use levee_tests::{skip, tools};
use serde_json::Value;
use tokio::process::Command;

use crate::ground::Ground;

const PYTHON: &str = include_str!("main_job.py");

/// Runs the command line against one node and gives what it printed.
struct Cli {
    program: PathBuf,
    url: String,
}

impl Cli {
    async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        // No contexts and no history of whoever runs the tests.
        command.args(["--server", &self.url, "--timeout", "10s"]).args(arguments).env("HOME", "/nonexistent");
        tools::output(&mut command).await
    }

    async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.run(arguments).await?;
        serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed}"))
    }
}

pub(crate) async fn the_command_line_makes_publishes_reads_and_replays(ground: &Ground) -> Result<()> {
    let Some(program) = tools::nats_cli() else {
        return skip::missing("the_command_line_makes_publishes_reads_and_replays", "there is no `nats`");
    };
    let cli = Cli { program, url: ground.cluster.node(ground.replicas - 1).url() };
    let name = ground.name("CLI");
    let (wildcard, subject) = (format!("{name}.>"), format!("{name}.eu"));
    let replicas = ground.replicas.to_string();

    cli.run(&["stream", "add", &name, "--subjects", &wildcard, "--replicas", &replicas, "--defaults"])
        .await?;
    cli.run(&["pub", "--jetstream", "--count", "20", &subject, "order {{Count}}"]).await?;
    let once = ["pub", "--jetstream", "-H", "Nats-Msg-Id:order-21", &subject, "order 21"];
    cli.run(&once).await?;
    let again = cli.run(&once).await?;
    ensure!(again.to_lowercase().contains("duplicate"), "the second publish of one id printed {again}");

    let info = cli.json(&["stream", "info", "--json", &name]).await?;
    assert_eq!(info["state"]["messages"], 21, "{info}");
    assert_eq!(info["config"]["num_replicas"], ground.replicas, "{info}");
    let read = cli.run(&["stream", "get", &name, "7"]).await?;
    ensure!(read.contains("order 7"), "{read}");

    cli.run(&["consumer", "add", &name, "worker", "--pull", "--defaults"]).await?;
    let taken = cli.run(&["consumer", "next", &name, "worker", "--count", "3", "--raw"]).await?;
    ensure!(["order 1", "order 2", "order 3"].iter().all(|order| taken.contains(order)), "{taken}");
    let info = cli.json(&["consumer", "info", "--json", &name, "worker"]).await?;
    assert_eq!(info["num_pending"], 18, "{info}");

    let replay =
        ["consumer", "add", &name, "replay", "--pull", "--deliver", "19", "--ack", "none", "--defaults"];
    cli.run(&replay).await?;
    let replayed = cli.run(&["consumer", "next", &name, "replay", "--count", "3", "--raw"]).await?;
    ensure!(["order 19", "order 20", "order 21"].iter().all(|order| replayed.contains(order)), "{replayed}");

    cli.run(&["stream", "purge", "-f", &name]).await?;
    cli.run(&["stream", "rm", "-f", &name]).await?;
    let names = cli.json(&["stream", "ls", "--names", "--json"]).await?;
    ensure!(!names.to_string().contains(&name), "{names}");
    Ok(())
}

pub(crate) async fn the_command_line_keeps_values_by_key(ground: &Ground) -> Result<()> {
    let Some(program) = tools::nats_cli() else {
        return skip::missing("the_command_line_keeps_values_by_key", "there is no `nats`");
    };
    let cli = Cli { program, url: ground.cluster.node(0).url() };
    let bucket = ground.name("clikv");

    cli.run(&["kv", "add", &bucket, "--replicas", &ground.replicas.to_string(), "--history", "3"]).await?;
    cli.run(&["kv", "put", &bucket, "color", "red"]).await?;
    cli.run(&["kv", "put", &bucket, "color", "blue"]).await?;
    cli.run(&["kv", "put", &bucket, "shape", "round"]).await?;

    assert_eq!(cli.run(&["kv", "get", &bucket, "color", "--raw"]).await?.trim(), "blue");
    let keys = cli.run(&["kv", "ls", &bucket]).await?;
    ensure!(keys.contains("color") && keys.contains("shape"), "{keys}");
    cli.run(&["kv", "del", "-f", &bucket, "color"]).await?;
    let gone = cli.run(&["kv", "get", &bucket, "color", "--raw"]).await;
    assert!(gone.is_err(), "a deleted key gave {gone:?}");
    Ok(())
}

pub(crate) async fn nats_py_publishes_consumes_watches_and_replays(ground: &Ground) -> Result<()> {
    let Some(python) = tools::python() else {
        return skip::missing("nats_py_publishes_consumes_watches_and_replays", "there is no nats-py");
    };
    let mut command = Command::new(python);
    let urls: Vec<String> = ground.cluster.nodes().iter().map(|node| node.url()).collect();
    command.args(["-c", PYTHON, &ground.name("PY"), &ground.replicas.to_string()]).args(urls);

    let printed = tools::output(&mut command).await?;

    ensure!(printed.contains("done"), "{printed}");
    Ok(())
}
