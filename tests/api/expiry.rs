//! Messages that leave at a time of their own, and markers for what expired.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::kv;
use futures::StreamExt as _;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::json;
use tokio::time::timeout;

use crate::features::Bare;
use crate::ground::{Ground, text};

pub(crate) async fn a_message_leaves_at_its_own_time_and_one_without_a_time_stays(
    ground: &Ground,
) -> Result<()> {
    let stream = Bare::new(ground, "TTL", json!({"allow_msg_ttl": true})).await?;
    stream.publish("stays", "1", &[]).await?;
    stream.publish("leaves", "2", &[("Nats-TTL", "1s")]).await?;
    stream.publish("later", "3", &[("Nats-TTL", "1h")]).await?;

    assert_eq!(stream.state().await?["messages"], 3);
    wait_until("it left", PATIENCE, async || Ok(stream.last("leaves").await?.is_none().then_some(())))
        .await?;

    let state = stream.state().await?;
    assert_eq!((&state["messages"], &state["last_seq"]), (&json!(2), &json!(3)), "{state}");
    Ok(())
}

pub(crate) async fn a_time_to_live_has_to_be_allowed_and_has_to_be_one(ground: &Ground) -> Result<()> {
    let stream = Bare::new(ground, "TTL", json!({"allow_msg_ttl": true})).await?;
    let plain = Bare::new(ground, "PLAIN", json!({})).await?;

    assert_eq!(plain.refused("a", "", &[("Nats-TTL", "1h")]).await?, 10166);
    for bad in ["soon", "0", "500ms", "-5s"] {
        assert_eq!(stream.refused("a", "", &[("Nats-TTL", bad)]).await?, 10165, "{bad}");
    }
    Ok(())
}

pub(crate) async fn a_message_that_never_expires_outlives_the_age_of_the_stream(
    ground: &Ground,
) -> Result<()> {
    let config = json!({"allow_msg_ttl": true, "max_age": 1_000_000_000, "duplicate_window": 500_000_000});
    let stream = Bare::new(ground, "NEVER", config).await?;
    stream.publish("never", "1", &[("Nats-TTL", "never")]).await?;
    stream.publish("ages", "2", &[]).await?;

    wait_until("the other one aged", PATIENCE, async || {
        Ok(stream.last("ages").await?.is_none().then_some(()))
    })
    .await?;
    stream.publish("ages", "3", &[]).await?;
    wait_until("and the next one", PATIENCE, async || Ok(stream.last("ages").await?.is_none().then_some(())))
        .await?;

    assert_eq!(stream.last("never").await?.map(|(seq, ..)| seq), Some(1));
    Ok(())
}

pub(crate) async fn a_marker_stands_for_a_subject_whose_last_message_expired(ground: &Ground) -> Result<()> {
    let stream =
        Bare::new(ground, "MARKERS", json!({"subject_delete_marker_ttl": 2_000_000_000_i64})).await?;
    stream.publish("a", "1", &[("Nats-TTL", "1s")]).await?;
    let (_, header, _) = stream.last("a").await?.context("the message")?;
    assert!(header.contains("Nats-TTL: 2\r\n"), "raised to what markers stay: {header}");

    let header = wait_until("there is a marker", PATIENCE, async || {
        Ok(stream.last("a").await?.filter(|(seq, ..)| *seq > 1).map(|(_, header, _)| header))
    })
    .await?;

    assert_eq!(header, "NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 2s\r\nNats-Rollup: sub\r\n\r\n");
    wait_until("the marker leaves, too", PATIENCE, async || {
        Ok(stream.last("a").await?.is_none().then_some(()))
    })
    .await?;
    assert_eq!(stream.state().await?["last_seq"], 2, "a marker leaves no marker");
    Ok(())
}

pub(crate) async fn a_key_with_a_time_to_live_expires_and_a_watcher_sees_it(ground: &Ground) -> Result<()> {
    let config = kv::Config {
        bucket: ground.name("expiring"),
        num_replicas: ground.replicas,
        limit_markers: Some(Duration::from_secs(2)),
        ..kv::Config::default()
    };
    let bucket = ground.js.create_key_value(config).await.context("create a bucket")?;
    let mut watch = bucket.watch("color").await?;
    bucket.create_with_ttl("color", "red".into(), Duration::from_secs(1)).await?;

    let first = timeout(PATIENCE, watch.next()).await.context("no entry")?.context("the watch ended")??;
    assert_eq!((text(&first.value).as_str(), first.operation), ("red", kv::Operation::Put));
    let then = timeout(PATIENCE, watch.next()).await.context("no marker")?.context("the watch ended")??;
    assert_eq!(then.operation, kv::Operation::Purge);
    wait_until("the key is gone", PATIENCE, async || Ok(bucket.get("color").await?.is_none().then_some(())))
        .await?;
    bucket.create("color", "blue".into()).await.context("a key that expired may be created")?;
    Ok(())
}
