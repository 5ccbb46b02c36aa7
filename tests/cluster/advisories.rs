//! Who wants to hear it is told when streams and consumers get another leader, and when they lost their majority.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::Subscriber;
use futures::StreamExt as _;
use levee_tests::client::{api_ok, leader, replicas_current};
use levee_tests::cluster::Cluster;
use serde_json::{Value, json};

/// nats-server takes up to 20 s to notice that a majority is gone.
const PATIENCE: Duration = Duration::from_secs(45);

/// The next advisory of one of these kinds, each `stream` or `consumer` and what happened to it.
async fn told(advisories: &mut Subscriber, kinds: &[&str]) -> Result<Vec<Value>> {
    let mut told: Vec<Option<Value>> = vec![None; kinds.len()];
    let all = async {
        while told.iter().any(Option::is_none) {
            let message = advisories.next().await.context("the subscription ended")?;
            let advisory: Value = serde_json::from_slice(&message.payload)?;
            let kind = advisory["type"].as_str().unwrap_or_default().rsplit('.').next().unwrap_or_default();
            if let Some(index) = kinds.iter().position(|wanted| *wanted == kind) {
                told[index] = Some(advisory);
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.with_context(|| format!("nobody told of {kinds:?}"))??;
    Ok(told.into_iter().flatten().collect())
}

fn check(advisory: &Value, leader: Option<&str>) -> Result<()> {
    ensure!(advisory["stream"] == "TOLD", "{advisory}");
    ensure!(advisory["leader"].as_str() == leader, "{advisory}");
    let replicas = advisory["replicas"].as_array().context("no replicas")?;
    ensure!(replicas.len() == 3 && replicas.iter().all(|replica| replica["peer"].is_string()), "{advisory}");
    Ok(())
}

#[tokio::test]
async fn new_leaders_and_lost_majorities_are_told() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    let client = cluster.client(0).await?;
    let mut advisories = client.subscribe("$JS.EVENT.ADVISORY.*.*.TOLD.>").await?;
    let mut of_stream = client.subscribe("$JS.EVENT.ADVISORY.STREAM.*.TOLD").await?;
    client.flush().await?;
    let config = json!({ "name": "TOLD", "subjects": ["told.>"], "num_replicas": 3 });
    api_ok(&client, "STREAM.CREATE.TOLD", &config).await?;
    let first = leader(&client, "TOLD").await?;
    let told_first = told(&mut of_stream, &["stream_leader_elected"]).await?;
    check(&told_first[0], Some(&first))?;

    let shared =
        json!({ "stream_name": "TOLD", "config": { "durable_name": "shared", "ack_policy": "explicit" } });
    api_ok(&client, "CONSUMER.DURABLE.CREATE.TOLD.shared", &shared).await?;
    let created = told(&mut advisories, &["consumer_leader_elected", "consumer_action"]).await?;
    ensure!(created[0]["consumer"] == "shared", "{created:?}");

    // Only the node that leads and is left alone can tell; the client listens there.
    replicas_current(&client, "TOLD", 3).await?;
    let alone = cluster.index_of(&leader(&client, "TOLD").await?)?;
    let client = cluster.client(alone).await?;
    let mut advisories = client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.*.TOLD.shared").await?;
    let mut of_stream = client.subscribe("$JS.EVENT.ADVISORY.STREAM.*.TOLD").await?;
    client.flush().await?;
    let others: Vec<usize> = cluster.running().filter(|node| *node != alone).collect();
    for node in &others {
        cluster.kill(*node)?;
    }
    check(&told(&mut of_stream, &["stream_quorum_lost"]).await?[0], None)?;
    check(&told(&mut advisories, &["consumer_quorum_lost"]).await?[0], None)?;

    for node in &others {
        cluster.start(*node)?;
    }
    for node in &others {
        cluster.answers(*node).await?;
    }
    // The election after the return may be over before news of interest reached the winner; the next is not.
    replicas_current(&client, "TOLD", 3).await?;
    client.flush().await?;
    let before = leader(&client, "TOLD").await?;
    api_ok(&client, "STREAM.LEADER.STEPDOWN.TOLD", &Value::Null).await?;
    loop {
        let elected = told(&mut of_stream, &["stream_leader_elected"]).await?;
        let name = elected[0]["leader"].as_str().context("a leader has a name")?.to_owned();
        if name != before {
            check(&elected[0], Some(&name))?;
            return Ok(());
        }
    }
}
