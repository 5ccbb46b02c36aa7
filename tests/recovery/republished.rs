//! SIGKILL of nodes that publish again what they store. A PubAck waits until the copy is stored in the stream that captures
//! it, so the copy of what was acknowledged before a node died is there afterwards.
//!
//! A wait ends when the destination has no leader, and an ack that says `duplicate` is about an earlier try, whose leader
//! may have died before it published again (decision 29). So what counts is what was acknowledged as new while both streams
//! were well: up to the moment at which a leader of the destination dies, and all of it when another one dies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::Client;
use levee_tests::checker::Stored;
use levee_tests::client::{api_ok, lead, leader, read_all, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::{Acknowledged, Workload};
use serde_json::{Value, json};

const SOURCE: &str = "SOURCE";
const COPY: &str = "COPY";
/// Many, so that some ack has just come whenever a node dies.
const PUBLISHERS: usize = 24;
/// For so long a leader waits for nobody after a wait that was in vain, with something to spare.
const IMPATIENCE: Duration = Duration::from_secs(12);

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Dies {
    /// The leader of the stream that publishes again.
    Source,
    /// The leader of the stream that captures it.
    Destination,
    /// All nodes at once.
    Everybody,
}

async fn streams() -> Result<Cluster> {
    let cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    let again = json!({"src": ">", "dest": format!("{COPY}.>")});
    for (name, more) in [(COPY, json!({})), (SOURCE, json!({"republish": again}))] {
        let mut config = more;
        config["name"] = json!(name);
        config["subjects"] = json!([format!("{name}.>")]);
        config["num_replicas"] = json!(3);
        api_ok(&client, &format!("STREAM.CREATE.{name}"), &config).await?;
    }
    Ok(cluster)
}

/// Both streams are whole, and different nodes lead them.
async fn spread(client: &Client, cluster: &Cluster) -> Result<()> {
    for name in [SOURCE, COPY] {
        replicas_current(client, name, 3).await?;
    }
    let leading = leader(client, SOURCE).await?;
    if leader(client, COPY).await? == leading {
        let other = cluster.other_than(cluster.index_of(&leading)?)?;
        lead(client, COPY, cluster.node(other).name()).await?;
        replicas_current(client, COPY, 3).await?;
    }
    Ok(())
}

async fn last_seq(client: &Client, stream: &str) -> Result<u64> {
    let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    info["state"]["last_seq"].as_u64().context("last sequence")
}

/// Publishes, kills, waits until all is well again, and gives what must have a copy.
async fn round(cluster: &mut Cluster, dies: Dies) -> Result<Vec<Acknowledged>> {
    let client = cluster.any_client().await?;
    spread(&client, cluster).await?;
    let mut clients = Vec::new();
    for number in 0..PUBLISHERS {
        clients.push(cluster.client(number % cluster.nodes().len()).await?);
    }
    let begin = last_seq(&client, COPY).await?;
    let began = Instant::now();
    // Ids are those of the subjects: each round has its own.
    let publishers = Workload::start(clients, &format!("{SOURCE}.{begin}"));
    wait_until("what is published comes to the copy", PATIENCE, async || {
        Ok((last_seq(&client, COPY).await? >= begin + 1000).then_some(()))
    })
    .await?;

    let killed = match dies {
        Dies::Everybody => {
            let now = Instant::now();
            cluster.kill_all(|| {})?;
            for index in 0..cluster.nodes().len() {
                cluster.start(index)?;
            }
            now
        }
        Dies::Source | Dies::Destination => {
            let of = if matches!(dies, Dies::Source) { SOURCE } else { COPY };
            let leading = cluster.index_of(&leader(&client, of).await?)?;
            let now = cluster.kill(leading)?;
            cluster.start(leading)?;
            now
        }
    };
    cluster.ready().await?;
    let client = cluster.any_client().await?;
    for name in [SOURCE, COPY] {
        replicas_current(&client, name, 3).await?;
    }
    let well = Instant::now();
    let stays_well = matches!(dies, Dies::Source);
    if !stays_well {
        tokio::time::sleep(IMPATIENCE).await;
    }
    let well = well + IMPATIENCE;
    let last = last_seq(&client, COPY).await?;
    wait_until("what is published comes to the copy again", PATIENCE, async || {
        Ok((last_seq(&client, COPY).await? >= last + 200).then_some(()))
    })
    .await?;
    let acknowledged = publishers.finish().await?;

    let before = acknowledged.iter().filter(|one| one.at < killed).count();
    println!(
        "{dies:?} after {:?}: {} acknowledged, {before} before it, {} of an earlier try",
        killed - began,
        acknowledged.len(),
        acknowledged.iter().filter(|one| one.duplicate).count()
    );
    let counts = |one: &Acknowledged| !one.duplicate && (stays_well || one.at < killed || one.at > well);
    Ok(acknowledged.into_iter().filter(counts).collect())
}

/// Each of them is in the copy, as it was published and once, and those of one publisher in its order.
fn check(acknowledged: &[Acknowledged], copied: &[Stored]) -> Result<()> {
    let mut places = BTreeMap::new();
    let mut last = BTreeMap::new();
    for copy in copied {
        ensure!(places.insert(&copy.id, copy).is_none(), "{copy:?} is there twice");
        let count: u64 = copy.body.parse().context("publishers count in bodies")?;
        let before = last.insert(&copy.subject, count).unwrap_or(0);
        ensure!(before < count, "{copy:?} comes after number {before} of the same publisher");
    }
    let missing: BTreeSet<&str> = acknowledged
        .iter()
        .map(|one| &one.message)
        .filter(|message| {
            !places.get(&message.id).is_some_and(|copy| {
                copy.body == message.body && copy.subject == format!("{COPY}.{}", message.subject)
            })
        })
        .map(|message| message.id.as_str())
        .collect();
    ensure!(
        missing.is_empty(),
        "{} of {} that were acknowledged have no copy: {missing:?}",
        missing.len(),
        acknowledged.len()
    );
    Ok(())
}

async fn copies_are_there(dies: Dies, rounds: usize) -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed("republished", "nats-server does not wait until copies are on a majority");
        return Ok(());
    }
    let mut cluster = streams().await?;
    let mut acknowledged = Vec::new();
    for _ in 0..rounds {
        acknowledged.extend(round(&mut cluster, dies).await?);
    }
    let client = cluster.any_client().await?;
    check(&acknowledged, &read_all(&client, COPY).await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_has_its_copy_when_all_nodes_died() -> Result<()> {
    copies_are_there(Dies::Everybody, 3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_has_its_copy_when_the_leader_of_the_copy_died() -> Result<()> {
    copies_are_there(Dies::Destination, 3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_has_its_copy_when_the_leader_that_republishes_died() -> Result<()> {
    copies_are_there(Dies::Source, 3).await
}
