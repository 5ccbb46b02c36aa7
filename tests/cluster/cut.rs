//! The network splits: a leader that is cut off from the others acknowledges nothing, and nothing acknowledged by
//! the others is lost when it comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Config;
use levee_tests::checker::{Stored, check};
use levee_tests::client::{leader, read_replica, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::network::{self, Network};
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;

const NAME: &str = "cut::a_leader_that_is_cut_off_acknowledges_nothing_and_loses_nothing";

#[tokio::test]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_loses_nothing() -> Result<()> {
    if !network::is_within() {
        return tokio::task::spawn_blocking(|| network::run_within(NAME)).await?;
    }
    let mut network = Network::new(3)?;
    let cluster = Cluster::with(Setup { nodes: 3, hosts: network.hosts(), ..Setup::default() }).await?;
    let client = cluster.client(0).await?;
    let config = Config {
        name: "CUT".into(),
        subjects: vec!["CUT.>".into()],
        num_replicas: 3,
        allow_direct: true,
        ..Default::default()
    };
    jetstream::new(client.clone()).create_stream(config).await?;
    let leading = cluster.index_of(&leader(&client, "CUT").await?)?;
    let others: Vec<usize> = (0..3).filter(|node| *node != leading).collect();
    let before = jetstream::new(cluster.client(leading).await?);
    for number in 1..=10_u64 {
        let id = format!("CUT.before-{number}");
        let message = PublishMessage::build().payload(number.to_string().into()).message_id(id);
        before.send_publish("CUT.before", message).await?.await?;
    }

    network.isolate(leading)?;
    // One try each, from a client of the leader that was cut off: none may be acknowledged.
    let minority = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 1..=20_u64 {
            let id = format!("CUT.minority-{number}");
            let message = PublishMessage::build().payload(number.to_string().into()).message_id(id);
            let ack = async { anyhow::Ok(before.send_publish("CUT.minority", message).await?.await?) };
            if let Ok(Ok(ack)) = tokio::time::timeout(Duration::from_millis(300), ack).await {
                acknowledged.push((number, ack.sequence));
            }
        }
        acknowledged
    });
    let majority = vec![cluster.client(others[0]).await?, cluster.client(others[1]).await?];
    let publishers = Workload::start(majority.clone(), "CUT.majority");
    wait_until("the majority has a leader of its own", PATIENCE, async || {
        let now = leader(&majority[0], "CUT").await?;
        Ok((now != cluster.node(leading).name()).then_some(()))
    })
    .await?;
    let acknowledged_by_minority = minority.await?;
    let acknowledged = publishers.finish().await?;
    network.heal()?;

    ensure!(acknowledged_by_minority.is_empty(), "the minority acknowledged {acknowledged_by_minority:?}");
    ensure!(!acknowledged.is_empty(), "the majority acknowledged nothing");
    let expected: Vec<Stored> = acknowledged.into_iter().map(|one| one.message).collect();
    let client = cluster.client(others[0]).await?;
    replicas_current(&client, "CUT", 3).await?;
    for node in 0..3 {
        let client = cluster.client(node).await?;
        wait_until("each replica has everything", PATIENCE, async || {
            check(&expected, &read_replica(&client, "CUT").await?)?;
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}
