//! `nats bench` against the server under test: every mode ends well, and every message came. How fast is of no concern
//! here.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use levee_tests::client::api_ok;
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::{skip, tools};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

const MESSAGES: u64 = 60;

/// A cluster, and the command line to try on it.
struct Bench<'a> {
    cluster: &'a Cluster,
    cli: &'a Path,
}

impl Bench<'_> {
    fn command(&self, node: usize, line: &str) -> Command {
        let mut command = Command::new(self.cli);
        command
            .args(["--server", &self.cluster.node(node).url(), "--timeout", "10s"])
            .args(line.split_whitespace())
            .env("HOME", "/nonexistent")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a mode to its end, on the last node. One whose messages do not come would wait for them for ever.
    async fn run(&self, line: &str) -> Result<String> {
        let line = format!("bench {line} --no-progress");
        let mut command = self.command(self.cluster.nodes().len() - 1, &line);
        tokio::time::timeout(PATIENCE, tools::output(&mut command)).await.context(line)?
    }

    /// Begins a mode on the first node that waits for messages.
    fn begin(&self, line: &str) -> Result<Child> {
        let line = format!("bench {line} --no-progress");
        let mut command = self.command(0, &line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context(line)
    }

    async fn ask(&self, call: &str) -> Result<Value> {
        api_ok(&self.cluster.client(0).await?, call, &Value::Null).await
    }

    async fn stored(&self) -> Result<u64> {
        self.ask("STREAM.INFO.BENCH").await?["state"]["messages"].as_u64().context("a count")
    }

    /// The durable consumer of the consuming modes has had all messages, each once, and all are acked.
    async fn all_consumed(&self, messages: u64) -> Result<()> {
        wait_until("everything is acked", PATIENCE, async || {
            let info = self.ask("CONSUMER.INFO.BENCH.nats-bench").await?;
            let (delivered, floor) = (&info["delivered"]["consumer_seq"], &info["ack_floor"]["stream_seq"]);
            ensure!((delivered, floor) == (&json!(messages), &json!(messages)), "{info}");
            Ok(Some(()))
        })
        .await?;
        api_ok(&self.cluster.client(0).await?, "CONSUMER.DELETE.BENCH.nats-bench", &Value::Null).await?;
        Ok(())
    }
}

async fn on(test: &str, nodes: usize, check: impl AsyncFn(&Bench<'_>) -> Result<()>) -> Result<()> {
    let Some(cli) = tools::nats_cli() else { return skip::missing(test, "there is no `nats`") };
    let cluster = Cluster::with(Setup { nodes, ..Setup::default() }).await?;
    check(&Bench { cluster: &cluster, cli: &cli }).await
}

async fn streams(bench: &Bench<'_>) -> Result<()> {
    let replicas = bench.cluster.nodes().len();
    let common = format!("--stream BENCH --msgs {MESSAGES}");
    bench.run(&format!("js pub sync bench --create --replicas {replicas} {common}")).await?;
    assert_eq!(bench.stored().await?, MESSAGES);
    assert_eq!(bench.ask("STREAM.INFO.BENCH").await?["config"]["num_replicas"], json!(replicas));
    bench.run(&format!("js pub async bench --batch 7 --clients 3 {common}")).await?;
    assert_eq!(bench.stored().await?, 2 * MESSAGES);
    bench.run(&format!("js pub batch bench --batch 10 --clients 2 {common}")).await?;
    assert_eq!(bench.stored().await?, 3 * MESSAGES);
    bench.run(&format!("js pub async bench --dedup {common}")).await?;
    let all = 4 * MESSAGES;
    assert_eq!(bench.stored().await?, all);

    let common = format!("--stream BENCH --msgs {all}");
    bench.run(&format!("js ordered --clients 2 {common}")).await?;
    bench.run(&format!("js get sync {common}")).await?;
    bench.run(&format!("js consume --batch 20 --clients 2 {common}")).await?;
    bench.all_consumed(all).await?;
    bench.run(&format!("js consume --doubleack {common}")).await?;
    bench.all_consumed(all).await?;
    bench.run(&format!("js fetch --batch 20 --clients 2 {common}")).await?;
    bench.all_consumed(all).await?;
    bench.run(&format!("js pub sync bench --purge --stream BENCH --msgs {MESSAGES}")).await?;
    assert_eq!(bench.stored().await?, MESSAGES, "the stream was purged first");
    Ok(())
}

async fn keys(bench: &Bench<'_>) -> Result<()> {
    let replicas = bench.cluster.nodes().len();
    tools::output(&mut bench.command(0, &format!("kv add BENCH --replicas {replicas}"))).await?;

    bench.run(&format!("kv put --bucket BENCH --clients 2 --msgs {MESSAGES}")).await?;
    bench.run(&format!("kv get --bucket BENCH --msgs {MESSAGES}")).await?;

    let state = bench.ask("STREAM.INFO.KV_BENCH").await?["state"].clone();
    assert!(state["last_seq"].as_u64() >= Some(MESSAGES), "{state}");
    Ok(())
}

/// Waits until the node knows of that many subscriptions to the subject, and the last node of them too.
async fn subscribed(bench: &Bench<'_>, subject: &str, count: usize) -> Result<()> {
    wait_until(&format!("{count} subscribe to {subject}"), PATIENCE, async || {
        let connections = bench.cluster.node(0).monitoring("/connz?subs=1").await?;
        let lists = connections["connections"].as_array().context("connections")?;
        let found = lists.iter().flat_map(|one| one["subscriptions_list"].as_array().into_iter().flatten());
        Ok((found.filter(|one| **one == subject).count() >= count).then_some(()))
    })
    .await?;
    // Interest spreads in order: who knows of what was subscribed to later knows of this.
    let near = bench.cluster.client(0).await?;
    let mut later = near.subscribe("benchmarks.later").await?;
    near.flush().await?;
    let far = bench.cluster.client(bench.cluster.nodes().len() - 1).await?;
    wait_until("interest has spread", PATIENCE, async || {
        far.publish("benchmarks.later", "".into()).await?;
        far.flush().await?;
        let heard = tokio::time::timeout(std::time::Duration::from_millis(100), later.next()).await;
        Ok(heard.is_ok().then_some(()))
    })
    .await
}

async fn core(bench: &Bench<'_>) -> Result<()> {
    let subscriber = bench.begin(&format!("sub bench.core --clients 2 --msgs {MESSAGES}"))?;
    subscribed(bench, "bench.core", 2).await?;
    bench.run(&format!("pub bench.core --clients 3 --msgs {MESSAGES}")).await?;
    let ended = tokio::time::timeout(PATIENCE, subscriber.wait_with_output()).await??;
    ensure!(ended.status.success(), "{ended:?}");

    let _service = bench.begin("service serve bench.service --clients 2")?;
    subscribed(bench, "bench.service", 2).await?;
    bench.run(&format!("service request bench.service --clients 2 --msgs {MESSAGES}")).await?;
    Ok(())
}

#[tokio::test]
async fn benchmarks_of_streams_publish_and_consume_everything() -> Result<()> {
    on("benchmarks_of_streams_publish_and_consume_everything", 1, streams).await
}

#[tokio::test]
async fn benchmarks_of_streams_publish_and_consume_everything_on_three() -> Result<()> {
    on("benchmarks_of_streams_publish_and_consume_everything_on_three", 3, streams).await
}

#[tokio::test]
async fn benchmarks_of_keys_put_and_get_everything() -> Result<()> {
    on("benchmarks_of_keys_put_and_get_everything", 1, keys).await
}

#[tokio::test]
async fn benchmarks_of_keys_put_and_get_everything_on_three() -> Result<()> {
    on("benchmarks_of_keys_put_and_get_everything_on_three", 3, keys).await
}

#[tokio::test]
async fn benchmarks_of_subscribers_and_services_hear_everything() -> Result<()> {
    on("benchmarks_of_subscribers_and_services_hear_everything", 1, core).await
}

#[tokio::test]
async fn benchmarks_of_subscribers_and_services_hear_everything_on_three() -> Result<()> {
    on("benchmarks_of_subscribers_and_services_hear_everything_on_three", 3, core).await
}
