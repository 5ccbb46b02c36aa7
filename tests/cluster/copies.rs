//! Mirrors and gathering streams while leaders die: what was acknowledged is copied, once and in order.

use anyhow::{Context as _, Result, ensure};
use levee_tests::checker::{Stored, check};
use levee_tests::client::{api_ok, leader, read_all, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;
use serde_json::{Value, json};

async fn last_seq(client: &async_nats::Client, stream: &str) -> Result<u64> {
    let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    info["state"]["last_seq"].as_u64().context("last sequence")
}

/// Three nodes with streams on all of them.
async fn with(streams: &[Value]) -> Result<Cluster> {
    let cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    for config in streams {
        let mut config = config.clone();
        config["num_replicas"] = json!(3);
        let name = config["name"].as_str().unwrap_or_default().to_owned();
        api_ok(&client, &format!("STREAM.CREATE.{name}"), &config).await?;
    }
    Ok(cluster)
}

/// A consumer of `ORIGIN` that is acked by answers to flow control, and delivers to a subject of the same name.
async fn consumer(cluster: &Cluster, name: &str) -> Result<()> {
    let config = json!({"durable_name": name, "deliver_subject": name, "ack_policy": "flow_control"});
    let request = json!({"stream_name": "ORIGIN", "config": config});
    api_ok(&cluster.any_client().await?, &format!("CONSUMER.CREATE.ORIGIN.{name}"), &request).await?;
    Ok(())
}

#[tokio::test]
async fn copies_are_complete_and_in_order_whoever_dies() -> Result<()> {
    let cluster = with(&[
        json!({"name": "ORIGIN", "subjects": ["ORIGIN.>"]}),
        json!({"name": "MIRROR", "mirror": {"name": "ORIGIN"}}),
        json!({"name": "ALL", "sources": [{"name": "ORIGIN"}]}),
    ])
    .await?;
    copies_survive(cluster).await
}

#[tokio::test]
async fn copies_through_consumers_are_complete_and_in_order_whoever_dies() -> Result<()> {
    let through = |name: &str| json!({"name": "ORIGIN", "consumer": {"name": name, "deliver_subject": name}});
    let cluster = with(&[
        json!({"name": "ORIGIN", "subjects": ["ORIGIN.>"]}),
        json!({"name": "MIRROR", "mirror": through("to-mirror")}),
        json!({"name": "ALL", "sources": [through("to-all")]}),
    ])
    .await?;
    for name in ["to-mirror", "to-all"] {
        consumer(&cluster, name).await?;
    }
    copies_survive(cluster).await
}

#[tokio::test]
async fn what_leaves_a_work_queue_through_a_consumer_is_in_the_copy_whoever_dies() -> Result<()> {
    let source = json!({"name": "ORIGIN", "consumer": {"name": "moves", "deliver_subject": "moves"}});
    let mut cluster = with(&[
        json!({"name": "ORIGIN", "subjects": ["ORIGIN.>"], "retention": "workqueue"}),
        json!({"name": "ALL", "sources": [source]}),
    ])
    .await?;
    consumer(&cluster, "moves").await?;
    let publishers =
        Workload::start(vec![cluster.any_client().await?, cluster.any_client().await?], "ORIGIN");

    for dies in ["ALL", "ORIGIN", "ALL"] {
        kill_leader(&mut cluster, dies, "ALL", &["ORIGIN", "ALL"]).await?;
    }
    kill_all(&mut cluster, "ALL", &["ORIGIN", "ALL"]).await?;
    let acknowledged = publishers.finish().await?;

    let client = cluster.any_client().await?;
    wait_until("the work queue is empty", PATIENCE, async || {
        let info = api_ok(&client, "STREAM.INFO.ORIGIN", &Value::Null).await?;
        Ok((info["state"]["messages"] == 0).then_some(()))
    })
    .await?;
    // The only source gives its messages the sequences that they had.
    let acknowledged: Vec<Stored> = acknowledged.into_iter().map(|one| one.message).collect();
    check(&acknowledged, &read_all(&client, "ALL").await?)
}

/// Kills the leader of a stream once `copy` has gone on, and waits until all are well again.
async fn kill_leader(cluster: &mut Cluster, dies: &str, copy: &str, streams: &[&str]) -> Result<()> {
    let client = goes_on(cluster, copy).await?;
    let leading = cluster.index_of(&leader(&client, dies).await?)?;
    cluster.kill(leading)?;
    cluster.start(leading)?;
    cluster.answers(leading).await?;
    are_well(cluster, streams).await
}

/// The same with all nodes at once.
async fn kill_all(cluster: &mut Cluster, copy: &str, streams: &[&str]) -> Result<()> {
    goes_on(cluster, copy).await?;
    cluster.kill_all(|| {})?;
    for index in 0..cluster.nodes().len() {
        cluster.start(index)?;
    }
    cluster.ready().await?;
    are_well(cluster, streams).await
}

async fn goes_on(cluster: &Cluster, copy: &str) -> Result<async_nats::Client> {
    let client = cluster.any_client().await?;
    let begin = last_seq(&client, copy).await?;
    wait_until("the copy goes on", PATIENCE, async || {
        Ok((last_seq(&client, copy).await? >= begin + 50).then_some(()))
    })
    .await?;
    Ok(client)
}

async fn are_well(cluster: &Cluster, streams: &[&str]) -> Result<()> {
    let client = cluster.any_client().await?;
    for stream in streams {
        replicas_current(&client, stream, 3).await?;
    }
    Ok(())
}

async fn copies_survive(mut cluster: Cluster) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(cluster.any_client().await?);
    }
    let publishers = Workload::start(clients, "ORIGIN");

    for dies in ["MIRROR", "ORIGIN", "ALL", "ORIGIN"] {
        kill_leader(&mut cluster, dies, "MIRROR", &["ORIGIN", "MIRROR", "ALL"]).await?;
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
