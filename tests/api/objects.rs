//! Object stores.

use anyhow::{Context as _, Result};
use async_nats::jetstream::object_store::{Config, ObjectStore};
use futures::TryStreamExt as _;
use tokio::io::AsyncReadExt as _;

use crate::ground::Ground;

async fn store(ground: &Ground) -> Result<ObjectStore> {
    let config =
        Config { bucket: ground.name("objects"), num_replicas: ground.replicas, ..Default::default() };
    ground.js.create_object_store(config).await.context("create an object store")
}

async fn content(store: &ObjectStore, name: &str) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    store.get(name).await?.read_to_end(&mut content).await?;
    Ok(content)
}

pub(crate) async fn an_object_comes_back_as_it_was_put(ground: &Ground) -> Result<()> {
    let store = store(ground).await?;
    // Many chunks, the last one short.
    let put: Vec<u8> = (0..1_500_001_u32).map(|index| index.to_le_bytes()[(index % 3) as usize]).collect();

    let info = store.put("picture", &mut put.as_slice()).await?;

    assert_eq!((info.size, info.chunks), (put.len(), put.len().div_ceil(128 * 1024)));
    assert!(content(&store, "picture").await? == put, "the content differs");
    store.put("empty", &mut [].as_slice()).await?;
    assert!(content(&store, "empty").await?.is_empty());
    Ok(())
}

pub(crate) async fn objects_are_listed_replaced_and_deleted(ground: &Ground) -> Result<()> {
    let store = store(ground).await?;
    store.put("a", &mut b"first".as_slice()).await?;
    store.put("b", &mut b"other".as_slice()).await?;

    store.put("a", &mut b"second".as_slice()).await?;
    assert_eq!(content(&store, "a").await?, b"second");
    let mut names: Vec<String> = store.list().await?.map_ok(|object| object.name).try_collect().await?;
    names.sort_unstable();
    assert_eq!(names, ["a", "b"]);

    store.delete("a").await?;
    assert!(store.get("a").await.is_err());
    assert_eq!(content(&store, "b").await?, b"other");
    Ok(())
}
