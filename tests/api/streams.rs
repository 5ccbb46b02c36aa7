//! Streams: life cycle, limits, purge, lists.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures::TryStreamExt as _;
use levee_tests::client::api;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::ground::{Ground, text};

pub(crate) async fn a_stream_is_created_found_changed_and_deleted(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "LIFE".into(), ..Default::default() }).await?;
    home.publish_many("a", 3).await?;

    let info = home.stream.get_info().await?;
    assert_eq!(info.config.num_replicas, ground.replicas);
    assert_eq!(info.config.storage, StorageType::File);
    assert_eq!((info.state.messages, info.state.first_sequence, info.state.last_sequence), (3, 1, 3));
    if ground.replicas > 1 {
        let cluster = info.cluster.clone();
        assert_eq!(cluster.map(|cluster| cluster.replicas.len()), Some(ground.replicas - 1));
    }

    let changed = home.js.update_stream(Config { max_messages: 2, ..info.config }).await?;
    assert_eq!(changed.config.max_messages, 2);
    assert_eq!(home.messages().await?, 2, "a lower limit removes at once");

    assert!(home.js.delete_stream(&home.name).await?.success);
    let gone = api(&home.client, &format!("STREAM.INFO.{}", home.name), &Value::Null).await?;
    assert_eq!(gone["error"]["err_code"], 10059, "{gone}");
    let nobody = home.js.publish(home.subject("a"), "x".into()).await?.await;
    assert!(nobody.is_err(), "a publish to a deleted stream was acked: {nobody:?}");
    Ok(())
}

pub(crate) async fn creating_the_same_stream_again_is_fine_and_another_of_its_name_is_refused(
    ground: &Ground,
) -> Result<()> {
    let home = ground.stream(Config { name: "SAME".into(), ..Default::default() }).await?;
    let config = home.stream.cached_info().config.clone();

    let again = home.js.create_stream(config.clone()).await?;
    assert_eq!(again.cached_info().config.name, home.name);

    let other = home.js.create_stream(Config { max_messages: 7, ..config }).await;
    let refused = other.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("stream name already in use"), "{refused}");
    Ok(())
}

pub(crate) async fn limits_remove_the_oldest_or_refuse_the_newest(ground: &Ground) -> Result<()> {
    let old = Config { name: "OLD".into(), max_messages: 3, ..Default::default() };
    let new =
        Config { name: "NEW".into(), max_messages: 3, discard: DiscardPolicy::New, ..Default::default() };
    let bytes = Config { name: "BYTES".into(), max_bytes: 2000, ..Default::default() };
    let (old, new, bytes) =
        (ground.stream(old).await?, ground.stream(new).await?, ground.stream(bytes).await?);

    old.publish_many("a", 5).await?;
    let state = old.stream.get_info().await?.state;
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (3, 3, 5));

    new.publish_many("a", 3).await?;
    let refused = new.publish("a", "4").await;
    assert!(refused.is_err_and(|error| format!("{error:#}").contains("maximum messages exceeded")));
    assert_eq!(new.messages().await?, 3);
    new.stream.purge().await?;
    assert_eq!(new.publish("a", "4").await?, 4, "there is room again");

    for _ in 0..10 {
        bytes.publish("a", &"x".repeat(500)).await?;
    }
    let state = bytes.stream.get_info().await?.state;
    assert!(state.bytes <= 2000 && state.messages < 10 && state.messages > 0, "{state:?}");
    assert_eq!(state.last_sequence, 10);
    Ok(())
}

pub(crate) async fn a_limit_per_subject_keeps_the_newest_of_each_subject(ground: &Ground) -> Result<()> {
    let config = Config { name: "PER".into(), max_messages_per_subject: 2, ..Default::default() };
    let home = ground.stream(config).await?;

    home.publish_many("a", 4).await?;
    home.publish_many("b", 1).await?;

    assert_eq!(home.messages().await?, 3);
    let last = home.stream.get_last_raw_message_by_subject(&home.subject("a")).await?;
    assert_eq!((last.sequence, text(&last.payload)), (4, "4".into()));
    let subjects: std::collections::BTreeMap<String, usize> =
        home.stream.info_with_subjects(">").await?.try_collect().await?;
    assert_eq!(subjects, [(home.subject("a"), 2), (home.subject("b"), 1)].into());
    Ok(())
}

pub(crate) async fn messages_grow_too_old(ground: &Ground) -> Result<()> {
    let age = Duration::from_millis(500);
    let config = Config { name: "AGE".into(), max_age: age, duplicate_window: age, ..Default::default() };
    let home = ground.stream(config).await?;

    home.publish_many("a", 5).await?;

    wait_until("old messages are removed", PATIENCE, async || {
        let state = home.stream.get_info().await?.state;
        ensure!(state.messages == 0, "{state:?}");
        assert_eq!((state.first_sequence, state.last_sequence), (6, 5));
        Ok(Some(()))
    })
    .await
}

pub(crate) async fn a_purge_removes_what_it_names_and_counts_it(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "PURGE".into(), ..Default::default() }).await?;
    home.publish_many("a", 4).await?;
    home.publish_many("b", 4).await?;

    assert_eq!(home.stream.purge().filter(home.subject("a")).keep(1).await?.purged, 3);
    assert_eq!(home.messages().await?, 5);
    assert_eq!(home.stream.purge().sequence(7).await?.purged, 3, "everything below 7");
    let state = home.stream.get_info().await?.state;
    assert_eq!((state.messages, state.first_sequence, state.last_sequence), (2, 7, 8));
    assert_eq!(home.stream.purge().await?.purged, 2);
    assert_eq!(home.publish("a", "x").await?, 9, "sequences go on");
    Ok(())
}

pub(crate) async fn a_deleted_message_is_gone_and_its_neighbors_stay(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "ERASE".into(), ..Default::default() }).await?;
    home.publish_many("a", 3).await?;

    assert!(home.stream.delete_message(2).await?);

    assert!(home.stream.get_raw_message(2).await.is_err());
    assert_eq!(text(&home.stream.get_raw_message(1).await?.payload), "1");
    assert_eq!(text(&home.stream.get_raw_message(3).await?.payload), "3");
    let request = json!({ "deleted_details": true });
    let info = api(&home.client, &format!("STREAM.INFO.{}", home.name), &request).await?;
    assert_eq!(info["state"]["deleted"], json!([2]), "{info}");
    assert!(home.stream.delete_message(2).await.is_err(), "it is gone already");
    Ok(())
}

pub(crate) async fn a_memory_stream_takes_and_gives_messages(ground: &Ground) -> Result<()> {
    let config = Config { name: "MEMORY".into(), storage: StorageType::Memory, ..Default::default() };
    let home = ground.stream(config).await?;

    home.publish_many("a", 10).await?;

    assert_eq!(home.stream.get_info().await?.config.storage, StorageType::Memory);
    assert_eq!(text(&home.stream.get_raw_message(7).await?.payload), "7");
    Ok(())
}

pub(crate) async fn subjects_of_streams_do_not_overlap(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "OVER".into(), ..Default::default() }).await?;

    let name = ground.name("LAP");
    let request = json!({ "name": name, "subjects": [home.subject("x")] });
    let refused = api(&home.client, &format!("STREAM.CREATE.{name}"), &request).await?;

    assert_eq!(refused["error"]["err_code"], 10065, "{refused}");
    Ok(())
}

pub(crate) async fn streams_are_listed_and_found_by_subject(ground: &Ground) -> Result<()> {
    let first = ground.stream(Config { name: "LIST".into(), ..Default::default() }).await?;
    let second = ground.stream(Config { name: "LIST".into(), ..Default::default() }).await?;

    let names: Vec<String> = first.js.stream_names().try_collect().await?;
    assert!(names.contains(&first.name) && names.contains(&second.name), "{names:?}");
    let page = api(&first.client, "STREAM.NAMES", &Value::Null).await?;
    let page: Vec<&str> =
        page["streams"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(page.len() > 1 && page.is_sorted(), "{page:?}");
    let listed: Vec<String> = first.js.streams().map_ok(|info| info.config.name).try_collect().await?;
    assert!(listed.contains(&first.name) && listed.contains(&second.name), "{listed:?}");
    assert_eq!(first.js.stream_by_subject(second.subject("any")).await?, second.name);
    Ok(())
}

pub(crate) async fn account_info_counts_streams_and_consumers(ground: &Ground) -> Result<()> {
    let home = ground.stream(Config { name: "COUNT".into(), ..Default::default() }).await?;
    home.publish_many("a", 3).await?;

    // Other claims run meanwhile, so the numbers are at least ours.
    wait_until("the account counts the stream", PATIENCE, async || {
        let account = home.js.query_account().await?;
        Ok((account.streams >= 1 && account.storage > 0).then_some(()))
    })
    .await?;
    let info = api(&home.client, "INFO", &Value::Null).await?;
    assert_eq!(info["type"], "io.nats.jetstream.api.v1.account_info_response", "{info}");
    assert_eq!(info["limits"]["max_streams"], -1, "{info}");
    Ok(())
}
