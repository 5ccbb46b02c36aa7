//! How nodes become a cluster, and who may not join.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use levee_tests::client::{api_ok, read_replica, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::program::Program;
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::{skip, spawn};
use serde_json::Value;

/// Whether the server under test is Levee. If not, says that `test` makes no claim about it.
fn is_levee(test: &str) -> Result<bool> {
    let levee = Program::subject()?.is_levee();
    if !levee {
        skip::not_claimed(test, "only Levee promises this");
    }
    Ok(levee)
}

fn replicated(name: &str) -> Config {
    Config {
        name: name.into(),
        subjects: vec![format!("{name}.>")],
        num_replicas: 3,
        allow_direct: true,
        ..Default::default()
    }
}

async fn publish(cluster: &Cluster, node: usize, subject: &str, count: u64) -> Result<()> {
    let js = jetstream::new(cluster.client(node).await?);
    for number in 1..=count {
        js.publish(subject.to_owned(), number.to_string().into()).await?.await?;
    }
    Ok(())
}

// The harness gives each node its routes in another order.
#[tokio::test]
async fn three_nodes_find_each_other_whatever_the_order_of_their_routes() -> Result<()> {
    let cluster = Cluster::three().await?;

    for index in 0..3 {
        let routes = wait_until("each node has its peers", PATIENCE, async || {
            let varz = cluster.node(index).monitoring("/varz").await?;
            Ok(varz["cluster"]["urls"].as_array().map(Vec::len).filter(|urls| *urls >= 2))
        })
        .await?;
        ensure!((2..=3).contains(&routes), "{routes} routes");
        let client = cluster.client(index).await?;
        jetstream::new(client).create_stream(replicated(&format!("FROM{index}"))).await?;
        publish(&cluster, (index + 1) % 3, &format!("FROM{index}.a"), 3).await?;
    }
    Ok(())
}

#[tokio::test]
async fn two_nodes_serve_and_a_third_that_comes_late_takes_part() -> Result<()> {
    let mut cluster = Cluster::with(Setup { nodes: 3, started: 0, ..Setup::default() }).await?;
    cluster.start(0)?;
    cluster.start(1)?;
    // nats-server elects its first meta leader when all nodes that are configured are there.
    let serves = cluster.program().is_levee();
    if serves {
        cluster.ready().await?;
        let early = Config { num_replicas: 1, ..replicated("EARLY") };
        jetstream::new(cluster.client(0).await?).create_stream(early).await?;
        publish(&cluster, 1, "EARLY.a", 10).await?;
    }

    cluster.start(2)?;
    cluster.ready().await?;

    let late = cluster.client(2).await?;
    if serves {
        let info = api_ok(&late, "STREAM.INFO.EARLY", &Value::Null).await?;
        assert_eq!(info["state"]["messages"], 10, "{info}");
    }
    jetstream::new(late.clone()).create_stream(replicated("LATE")).await?;
    publish(&cluster, 2, "LATE.a", 10).await?;
    replicas_current(&late, "LATE", 3).await?;
    assert_eq!(read_replica(&late, "LATE").await?.len(), 10);
    Ok(())
}

#[tokio::test]
async fn a_node_that_restarts_comes_back_as_itself_and_catches_up() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    jetstream::new(cluster.client(0).await?).create_stream(replicated("BACK")).await?;
    publish(&cluster, 0, "BACK.a", 20).await?;

    let status = cluster.stop(2).await?;
    ensure!(status.success(), "SIGTERM ended with {status}");
    publish(&cluster, 0, "BACK.a", 20).await?;
    cluster.start(2)?;
    cluster.answers(2).await?;

    let client = cluster.client(2).await?;
    replicas_current(&client, "BACK", 3).await?;
    let info = api_ok(&client, "STREAM.INFO.BACK", &Value::Null).await?;
    let mut names: Vec<&str> = info["cluster"]["replicas"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|replica| replica["name"].as_str())
        .chain(info["cluster"]["leader"].as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["n1", "n2", "n3"], "{info}");
    assert_eq!(read_replica(&client, "BACK").await?.len(), 40);
    Ok(())
}

#[tokio::test]
async fn one_node_that_restarts_has_everything() -> Result<()> {
    let mut cluster = Cluster::one().await?;
    let config = Config { num_replicas: 1, ..replicated("ALONE") };
    jetstream::new(cluster.client(0).await?).create_stream(config).await?;
    publish(&cluster, 0, "ALONE.a", 20).await?;

    let status = cluster.stop(0).await?;
    ensure!(status.success(), "SIGTERM ended with {status}");
    cluster.start(0)?;
    cluster.ready().await?;

    let client = cluster.client(0).await?;
    assert_eq!(read_replica(&client, "ALONE").await?.len(), 20);
    publish(&cluster, 0, "ALONE.a", 1).await
}

#[tokio::test]
async fn a_store_directory_in_use_is_refused() -> Result<()> {
    if !is_levee("a_store_directory_in_use_is_refused")? {
        return Ok(());
    }
    let first = Cluster::one().await?;
    let stores = vec![first.node(0).store().to_owned()];

    let mut second = Cluster::with(Setup { started: 0, stores, ..Setup::default() }).await?;
    second.start(0)?;
    let status = second.ended(0).await?;

    ensure!(!status.success(), "it ended with {status}");
    second.node(0).logs("it says why", PATIENCE, "in use").await?;
    jetstream::new(first.client(0).await?).query_account().await.context("the first still serves")?;
    Ok(())
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused() -> Result<()> {
    if !is_levee("a_second_node_of_the_same_name_is_refused")? {
        return Ok(());
    }
    let cluster = Cluster::three().await?;
    let twin = Twin::start(&cluster, "name")?;

    wait_until("the cluster, or the second node, says what is wrong", PATIENCE, async || {
        let said = [twin.log(), cluster.nodes().iter().map(|node| node.log()).collect()].concat();
        Ok((said.contains("names must be unique") || said.contains("the name belongs to")).then_some(()))
    })
    .await
    .with_context(|| twin.log())?;

    let client = cluster.client(0).await?;
    let config = replicated("TWIN");
    jetstream::new(client.clone()).create_stream(config).await.context("the cluster serves on")?;
    publish(&cluster, 1, "TWIN.a", 10).await?;
    replicas_current(&client, "TWIN", 3).await
}

#[tokio::test]
async fn a_directory_from_another_cluster_is_refused() -> Result<()> {
    if !is_levee("a_directory_from_another_cluster_is_refused")? {
        return Ok(());
    }
    let mut other = Cluster::one().await?;
    jetstream::new(other.client(0).await?)
        .create_stream(Config { num_replicas: 1, ..replicated("OTHER") })
        .await?;
    publish(&other, 0, "OTHER.a", 5).await?;
    other.stop(0).await?;

    // The first node of three has the other's directory; the other two come first and found without it.
    let stores = vec![other.node(0).store().to_owned()];
    let mut cluster = Cluster::with(Setup { nodes: 3, started: 0, stores, ..Setup::default() }).await?;
    cluster.start(1)?;
    cluster.start(2)?;
    cluster.ready().await?;
    cluster.start(0)?;

    wait_until("somebody says that it belongs to another cluster", PATIENCE, async || {
        let said: String = cluster.nodes().iter().map(|node| node.log()).collect();
        Ok(said.contains("another cluster").then_some(()))
    })
    .await?;
    // The two serve on, and what was in the directory is not theirs.
    let client = cluster.client(1).await?;
    jetstream::new(client.clone()).create_stream(Config { num_replicas: 1, ..replicated("OURS") }).await?;
    let names = api_ok(&client, "STREAM.NAMES", &Value::Null).await?;
    assert_eq!(names["streams"], serde_json::json!(["OURS"]));
    Ok(())
}

/// A node that calls itself `n1`, with a directory and ports of its own.
struct Twin {
    child: std::process::Child,
    log: std::path::PathBuf,
    _ports: Vec<levee_tests::ports::Port>,
}

impl Twin {
    fn start(cluster: &Cluster, hint: &str) -> Result<Self> {
        let ports = vec![levee_tests::ports::Port::take()?, levee_tests::ports::Port::take()?];
        let dir = cluster.dir().join(hint);
        std::fs::create_dir_all(&dir)?;
        let (config, log) = (dir.join("twin.conf"), dir.join("twin.log"));
        let text = format!(
            "server_name: n1\nlisten: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\" }}\n\
             cluster {{ name: {}, listen: \"127.0.0.1:{}\", routes: [\"nats://{}\", \"nats://{}\"] }}\n",
            ports[0].number(),
            dir.join("store").display(),
            cluster.name(),
            ports[1].number(),
            cluster.node(1).cluster_address(),
            cluster.node(2).cluster_address(),
        );
        std::fs::write(&config, text)?;
        let command = cluster.program().serve(&config);
        let file = std::fs::File::create(&log)?;
        Ok(Self { child: spawn::start(&command, Some(file))?, log, _ports: ports })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        println!("---- the second n1\n{}", self.log());
    }
}
