//! Consumers: life cycle and what their info counts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::Config;
use futures::TryStreamExt as _;
use levee_tests::client::api;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::ground::{Ground, take};

pub(crate) async fn consumers_are_created_listed_changed_and_deleted(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "CON".into(), ..Default::default() }).await?;
    let both = BTreeSet::from(["first".to_owned(), "second".to_owned()]);
    for name in &both {
        let config = pull::Config { durable_name: Some(name.clone()), ..Default::default() };
        let consumer = home.pull(config).await?;
        assert_eq!(&consumer.cached_info().name, name);
    }

    // In any order: the client library gives each page from its end.
    let names: BTreeSet<String> = home.stream.consumer_names().try_collect().await?;
    assert_eq!(names, both);
    let listed: BTreeSet<String> = home.stream.consumers().map_ok(|info| info.name).try_collect().await?;
    assert_eq!(listed, both);
    assert_eq!(home.stream.get_info().await?.state.consumer_count, 2);

    let changed = pull::Config { durable_name: Some("first".into()), max_deliver: 9, ..Default::default() };
    home.stream.update_consumer(changed).await?;
    assert_eq!(home.stream.consumer_info("first").await?.config.max_deliver, 9);

    assert!(home.stream.delete_consumer("first").await?.success);
    let gone = api(&home.client, &format!("CONSUMER.INFO.{}.first", home.name), &Value::Null).await?;
    assert_eq!(gone["error"]["err_code"], 10014, "{gone}");
    Ok(())
}

pub(crate) async fn a_consumer_of_another_kind_under_the_same_name_is_refused(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "KIND".into(), ..Default::default() }).await?;
    home.pull(pull::Config { durable_name: Some("one".into()), ..Default::default() }).await?;

    let request = json!({
        "stream_name": home.name,
        "config": { "durable_name": "one", "ack_policy": "explicit", "deliver_subject": "elsewhere" }
    });
    let refused = api(&home.client, &format!("CONSUMER.CREATE.{}.one", home.name), &request).await?;

    assert_eq!(refused["error"]["err_code"], 10012, "{refused}");
    Ok(())
}

pub(crate) async fn an_ephemeral_consumer_goes_away_when_it_is_not_used(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "BRIEF".into(), ..Default::default() }).await?;
    let config = pull::Config { inactive_threshold: Duration::from_millis(300), ..Default::default() };
    let consumer = home.pull(config).await?;
    let endpoint = format!("CONSUMER.INFO.{}.{}", home.name, consumer.cached_info().name);

    wait_until("the consumer is removed", PATIENCE, async || {
        let info = api(&home.client, &endpoint, &Value::Null).await?;
        Ok((info["error"]["err_code"] == 10014).then_some(()))
    })
    .await
}

pub(crate) async fn an_ephemeral_consumer_that_rests_is_there_when_used_and_goes_when_it_is_not(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "RESTS".into(), ..Default::default() }).await?;
    home.publish_many("a", 2).await?;
    let config = pull::Config { inactive_threshold: Duration::from_secs(4), ..Default::default() };
    let mut consumer = home.pull(config).await?;
    let endpoint = format!("CONSUMER.INFO.{}.{}", home.name, consumer.cached_info().name);

    // Longer than Levee's consumers keep a task, and the first time not as long as this one may be left alone.
    for seq in 1..=2 {
        tokio::time::sleep(Duration::from_millis(2800)).await;
        let batch = take(&consumer, 1).await?;
        let info = batch.first().context("a message comes")?.info().map_err(anyhow::Error::msg)?;
        assert_eq!(info.stream_sequence, seq);
        batch[0].double_ack().await.map_err(anyhow::Error::msg)?;
    }
    assert_eq!(consumer.info().await?.num_pending, 0, "what was used lives on");

    let since = std::time::Instant::now();
    wait_until("the consumer is removed", PATIENCE, async || {
        let info = api(&home.client, &endpoint, &Value::Null).await?;
        Ok((info["error"]["err_code"] == 10014).then_some(()))
    })
    .await?;
    anyhow::ensure!(
        since.elapsed() > Duration::from_secs(3),
        "it is left alone first: {:?}",
        since.elapsed()
    );
    Ok(())
}

pub(crate) async fn num_pending_is_exact_with_filters_deletes_and_deliveries(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "PENDING".into(), ..Default::default() }).await?;
    home.publish_many("a", 5).await?;
    home.publish_many("b", 3).await?;
    let config = pull::Config {
        durable_name: Some("counts".into()),
        filter_subject: home.subject("a"),
        ..Default::default()
    };
    let mut consumer = home.pull(config).await?;
    assert_eq!(consumer.cached_info().num_pending, 5);

    let batch = take(&consumer, 2).await?;
    assert_eq!(batch.len(), 2);
    let pending: Vec<u64> = batch.iter().filter_map(|message| Some(message.info().ok()?.pending)).collect();
    assert_eq!(pending, [4, 3], "each delivery tells what is left");
    home.stream.delete_message(4).await?;
    home.publish("a", "6").await?;
    home.publish("b", "4").await?;

    wait_until("the consumer counts", PATIENCE, async || {
        let info = consumer.info().await?;
        anyhow::ensure!((info.num_pending, info.num_ack_pending) == (3, 2), "{info:?}");
        Ok(Some(()))
    })
    .await
}
