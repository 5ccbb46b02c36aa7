//! Mirrors and gathering streams while leaders die: what was acknowledged is copied, once and in order.

use anyhow::{Context as _, Result, ensure};
use levee_tests::checker::Stored;
use levee_tests::client::{api_ok, leader, read_all, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;
use serde_json::{Value, json};

async fn last_seq(client: &async_nats::Client, stream: &str) -> Result<u64> {
    let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    info["state"]["last_seq"].as_u64().context("last sequence")
}

#[tokio::test]
async fn copies_are_complete_and_in_order_whoever_dies() -> Result<()> {
    let mut cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    for config in [
        json!({"name": "ORIGIN", "subjects": ["ORIGIN.>"], "num_replicas": 3}),
        json!({"name": "MIRROR", "mirror": {"name": "ORIGIN"}, "num_replicas": 3}),
        json!({"name": "ALL", "sources": [{"name": "ORIGIN"}], "num_replicas": 3}),
    ] {
        let name = config["name"].as_str().unwrap_or_default().to_owned();
        api_ok(&client, &format!("STREAM.CREATE.{name}"), &config).await?;
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(cluster.any_client().await?);
    }
    let publishers = Workload::start(clients, "ORIGIN");

    for dies in ["MIRROR", "ORIGIN", "ALL", "ORIGIN"] {
        let client = cluster.any_client().await?;
        let begin = last_seq(&client, "MIRROR").await?;
        wait_until("the mirror goes on", PATIENCE, async || {
            Ok((last_seq(&client, "MIRROR").await? >= begin + 50).then_some(()))
        })
        .await?;
        let leading = cluster.index_of(&leader(&client, dies).await?)?;
        cluster.kill(leading)?;
        cluster.start(leading)?;
        cluster.answers(leading).await?;
        let client = cluster.any_client().await?;
        for stream in ["ORIGIN", "MIRROR", "ALL"] {
            replicas_current(&client, stream, 3).await?;
        }
    }
    let acknowledged = publishers.finish().await?;

    let client = cluster.any_client().await?;
    let last = last_seq(&client, "ORIGIN").await?;
    for copy in ["MIRROR", "ALL"] {
        wait_until(&format!("{copy} has everything"), PATIENCE, async || {
            Ok((last_seq(&client, copy).await? >= last).then_some(()))
        })
        .await?;
    }
    let origin = read_all(&client, "ORIGIN").await?;
    ensure!(origin.len() >= acknowledged.len(), "{} of {} messages", origin.len(), acknowledged.len());
    ensure!(read_all(&client, "MIRROR").await? == origin, "the mirror is not what its origin is");
    let unnumbered = |stored: Vec<Stored>| -> Vec<Stored> {
        stored.into_iter().map(|message| Stored { seq: 0, ..message }).collect()
    };
    let gathered = unnumbered(read_all(&client, "ALL").await?);
    ensure!(gathered == unnumbered(origin), "what is gathered is not what was published");
    Ok(())
}
