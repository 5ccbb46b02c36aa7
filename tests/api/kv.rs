//! Key-value buckets.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::kv::{Config, Operation, Store, Watch};
use futures::{StreamExt as _, TryStreamExt as _};
use levee_tests::wait::{PATIENCE, wait_until};
use tokio::time::timeout;

use crate::ground::{Ground, text};

async fn bucket(ground: &Ground) -> Result<Store> {
    let config = Config {
        bucket: ground.name("bucket"),
        history: 5,
        num_replicas: ground.replicas,
        ..Default::default()
    };
    ground.js.create_key_value(config).await.context("create a bucket")
}

/// Reads until there is this value. Any replica answers, and one may lag a moment behind the ack.
async fn reads(bucket: &Store, key: &str, expected: Option<&str>) -> Result<()> {
    wait_until(&format!("{key} is {expected:?}"), PATIENCE, async || {
        let value = bucket.get(key).await?.map(|value| text(&value));
        Ok((value.as_deref() == expected).then_some(()))
    })
    .await
}

pub(crate) async fn a_bucket_gets_puts_updates_and_deletes(ground: &Ground) -> Result<()> {
    let bucket = bucket(ground).await?;

    assert_eq!(bucket.get("color").await?, None);
    assert_eq!(bucket.put("color", "red".into()).await?, 1);
    reads(&bucket, "color", Some("red")).await?;
    assert_eq!(bucket.update("color", "blue".into(), 1).await?, 2);
    reads(&bucket, "color", Some("blue")).await?;
    bucket.delete("color").await?;
    reads(&bucket, "color", None).await?;

    let status = ground.js.get_key_value(&bucket.name).await?.status().await?;
    assert_eq!((status.history(), status.values()), (5, 3));
    let old = bucket.entry_for_revision("color", 1).await?.context("the first revision")?;
    assert_eq!(text(&old.value), "red");
    Ok(())
}

pub(crate) async fn create_and_update_refuse_a_wrong_revision(ground: &Ground) -> Result<()> {
    let bucket = bucket(ground).await?;

    assert_eq!(bucket.create("color", "red".into()).await?, 1);
    reads(&bucket, "color", Some("red")).await?;
    let taken = bucket.create("color", "blue".into()).await;
    assert_eq!(
        taken.map_err(|error| error.kind()),
        Err(async_nats::jetstream::kv::CreateErrorKind::AlreadyExists)
    );
    let wrong = bucket.update("color", "blue".into(), 7).await;
    assert_eq!(
        wrong.map_err(|error| error.kind()),
        Err(async_nats::jetstream::kv::UpdateErrorKind::WrongLastRevision)
    );
    assert_eq!(bucket.update("color", "green".into(), 1).await?, 2);

    bucket.delete("color").await?;
    reads(&bucket, "color", None).await?;
    assert_eq!(bucket.create("color", "again".into()).await?, 4, "a deleted key may be created");
    Ok(())
}

pub(crate) async fn history_keys_and_purge(ground: &Ground) -> Result<()> {
    let bucket = bucket(ground).await?;
    for value in ["1", "2", "3"] {
        bucket.put("a.b", value.into()).await?;
    }
    bucket.put("c", "1".into()).await?;
    bucket.put("d", "1".into()).await?;
    bucket.delete("d").await?;

    let history: Vec<_> = bucket.history("a.b").await?.try_collect().await?;
    let told: Vec<_> =
        history.iter().map(|entry| (entry.revision, text(&entry.value), entry.delta)).collect();
    assert_eq!(told, [(1, "1".into(), 2), (2, "2".into(), 1), (3, "3".into(), 0)]);
    // The consumer behind it may be on a replica of nats-server that is still about to apply the last puts.
    wait_until("the keys are listed", PATIENCE, async || {
        let mut keys: Vec<String> = bucket.keys().await?.try_collect().await?;
        keys.sort_unstable();
        ensure!(keys == ["a.b", "c"], "{keys:?}");
        Ok(Some(()))
    })
    .await?;

    bucket.purge("a.b").await?;
    let history: Vec<_> = bucket.history("a.b").await?.try_collect().await?;
    assert_eq!(history.iter().map(|entry| entry.operation).collect::<Vec<_>>(), [Operation::Purge]);
    Ok(())
}

pub(crate) async fn a_watcher_sees_what_is_there_and_then_what_changes(ground: &Ground) -> Result<()> {
    async fn next(watch: &mut Watch) -> Result<(String, String, Operation, bool)> {
        let entry =
            timeout(PATIENCE, watch.next()).await.context("no entry")?.context("the watch ended")??;
        Ok((entry.key, text(&entry.value), entry.operation, entry.seen_current))
    }

    let bucket = bucket(ground).await?;
    bucket.put("a", "1".into()).await?;
    bucket.put("a", "2".into()).await?;
    bucket.put("b", "1".into()).await?;

    let mut watch = bucket.watch_with_history(">").await?;
    assert_eq!(next(&mut watch).await?, ("a".into(), "2".into(), Operation::Put, false));
    assert_eq!(next(&mut watch).await?, ("b".into(), "1".into(), Operation::Put, true));
    bucket.put("c", "1".into()).await?;
    bucket.delete("a").await?;
    assert_eq!(next(&mut watch).await?, ("c".into(), "1".into(), Operation::Put, true));
    assert_eq!(next(&mut watch).await?, ("a".into(), String::new(), Operation::Delete, true));

    let mut from = bucket.watch_from_revision("a", 2).await?;
    assert_eq!(next(&mut from).await?.1, "2");
    Ok(())
}
