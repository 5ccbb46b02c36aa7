//! A full disk refuses publishes with an error, keeps what it has, and takes publishes again when space returns.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use levee_tests::client::read_replica;
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::disk::SmallDisk;
use levee_tests::program::Program;
use levee_tests::raw::Raw;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

const NAME: &str = "a_full_disk_refuses_publishes_and_takes_them_again_when_there_is_space";

#[tokio::test]
async fn a_full_disk_refuses_publishes_and_takes_them_again_when_there_is_space() -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed(
            NAME,
            "nats-server disables JetStream when its disk is full, until it is restarted",
        );
        return Ok(());
    }
    let disk = match SmallDisk::mount(512) {
        Ok(disk) => disk,
        Err(error) => return skip::missing(NAME, &format!("{error:#}")),
    };
    let stores = vec![disk.path().join("store")];
    let mut cluster = Cluster::with(Setup { stores, ..Setup::default() }).await?;
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;
    let config = json!({ "name": "FULL", "subjects": ["full.>"], "allow_direct": true });
    let made = raw.request_json("$JS.API.STREAM.CREATE.FULL", &config.to_string()).await?;
    ensure!(made.get("error").is_none(), "{made}");
    let payload = "x".repeat(64 * 1024);
    for number in 1..=10 {
        let ack = raw.request_json("full.a", &payload).await?;
        assert_eq!(ack["seq"], number, "{ack}");
    }

    let filler = disk.fill(1024 * 1024)?;
    let mut stored = 10;
    let refusal = wait_until("a publish is refused", PATIENCE, async || {
        let ack = raw.request_json("full.a", &payload).await?;
        if ack.get("error").is_some() {
            return Ok(Some(ack));
        }
        stored = ack["seq"].as_u64().context("sequence")?;
        Ok(None)
    })
    .await?;
    // Insufficient resources, or the store's own failure.
    ensure!(matches!(refusal["error"]["code"].as_u64(), Some(500 | 503)), "{refusal}");
    let again = raw.request_json("full.a", &payload).await?;
    ensure!(again.get("error").is_some(), "the disk is still full, and it answered {again}");
    // What is there can still be read, and the node says what is wrong.
    let info = raw.request_json("$JS.API.STREAM.INFO.FULL", "").await?;
    assert_eq!(info["state"]["messages"], stored, "{info}");
    cluster
        .node(0)
        .logs("the node says that its disk is full", PATIENCE, "(?i)disk is (nearly )?full")
        .await?;

    std::fs::remove_file(&filler)?;
    let ack: Value = wait_until("there is space again", PATIENCE, async || {
        let ack = raw.request_json("full.a", "small").await?;
        ensure!(ack.get("error").is_none(), "{ack}");
        Ok(Some(ack))
    })
    .await?;
    assert_eq!(ack["seq"], stored + 1, "a refused publish takes no sequence");

    // And all of it is there after a crash.
    cluster.kill(0)?;
    cluster.start(0)?;
    cluster.ready().await?;
    let client = cluster.client(0).await?;
    let read = wait_until("the stream is back", Duration::from_secs(20), async || {
        Ok(Some(read_replica(&client, "FULL").await?))
    })
    .await?;
    assert_eq!(read.len() as u64, stored + 1);
    Ok(())
}
