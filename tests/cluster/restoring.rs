//! A restore that is cut off leaves nothing behind.

use anyhow::{Context as _, Result, ensure};
use levee_tests::archive::{api, backup, restore};
use levee_tests::cluster::Cluster;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::json;

#[tokio::test]
async fn a_node_that_dies_in_a_restore_leaves_nothing_of_it() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    let client = cluster.client(0).await?;
    let config = json!({"name": "CUT", "subjects": ["cut"], "num_replicas": 3});
    let created = api(&client, "STREAM.CREATE.CUT", &config).await?;
    ensure!(created.get("error").is_none(), "{created}");
    for number in 0..200_u32 {
        client.request("cut", number.to_string().repeat(50).into()).await?;
    }
    let saved = backup(&client, "CUT", &json!({})).await?;
    api(&client, "STREAM.DELETE.CUT", &json!({})).await?;

    let request = json!({"config": saved.config, "state": saved.state});
    let begun = api(&client, "STREAM.RESTORE.CUT", &request).await?;
    let subject = begun["deliver_subject"].as_str().context("where to send it")?.to_owned();
    client.request(subject, saved.archive[..saved.archive.len() / 2].to_vec().into()).await?;
    let victim =
        cluster.nodes().iter().position(|node| node.log().contains("restore of stream 'CUT' begins"));
    let victim = victim.context("a node that restores")?;
    cluster.kill(victim)?;

    let survivor = cluster.other_than(victim)?;
    let client = cluster.client(survivor).await?;
    // Two nodes hold one replica, if nothing of the other three is in the way.
    let mut request = request;
    request["config"]["num_replicas"] = json!(1);
    wait_until("the stream can be restored again", PATIENCE, async || {
        let again = restore(&client, &request, &saved.archive, 1000).await;
        Ok(again.ok().filter(|answer| answer["state"]["messages"] == 200))
    })
    .await?;
    cluster.start(victim)?;
    cluster.answers(victim).await?;
    let names = api(&cluster.client(victim).await?, "STREAM.NAMES", &json!({})).await?;
    assert_eq!(names["streams"], json!(["CUT"]), "{names}");
    Ok(())
}
