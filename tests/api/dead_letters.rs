//! What fails for the last time is stored under another subject before it is settled. Only Levee claims it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use futures::StreamExt as _;
use levee_tests::client::{api, read_all};
use levee_tests::skip;
use levee_tests::tools::output;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

use crate::ground::{Ground, Home, attempt, bodies, sequence, settle, settle_confirmed, take, take_within};

/// A stream to work on and one for what fails. `None` where nobody claims any of it.
pub(crate) async fn homes(
    ground: &Ground,
    name: &str,
    retention: RetentionPolicy,
) -> Result<Option<(Home, Home)>> {
    if !ground.cluster.program().is_levee() {
        skip::not_claimed(name, "dead letters are Levee's own");
        return Ok(None);
    }
    let home = ground.stream(Config { name: name.into(), retention, ..Default::default() }).await?;
    let dead = ground.stream(Config { name: format!("{name}_DEAD"), ..Default::default() }).await?;
    Ok(Some((home, dead)))
}

pub(crate) fn worker(dead: &Home) -> pull::Config {
    pull::Config {
        durable_name: Some("worker".into()),
        max_deliver: 2,
        ack_wait: Duration::from_millis(300),
        metadata: [("levee.dead_letter".to_owned(), dead.subject("worker"))].into(),
        ..Default::default()
    }
}

/// Waits until the stream has this many messages.
pub(crate) async fn holds(home: &Home, messages: u64) -> Result<()> {
    wait_until("the messages are counted", PATIENCE, async || {
        let found = home.messages().await?;
        ensure!(found == messages, "{} has {found}", home.name);
        Ok(Some(()))
    })
    .await
}

async fn all_settled(home: &Home) -> Result<()> {
    wait_until("everything is settled", PATIENCE, async || {
        let info = home.stream.consumer_info("worker").await?;
        ensure!(info.num_ack_pending == 0, "{info:?}");
        Ok(Some(()))
    })
    .await
}

pub(crate) async fn a_message_that_failed_for_the_last_time_is_stored_once_and_then_settled(
    ground: &Ground,
) -> Result<()> {
    let Some((home, dead)) = homes(ground, "FAILS", RetentionPolicy::Limits).await? else { return Ok(()) };
    let mut headers = HeaderMap::new();
    headers.insert("Trace", "t1");
    headers.insert("Nats-Msg-Id", "mine");
    home.js.publish_with_headers(home.subject("a"), headers, "body".into()).await?.await?;
    let consumer = home.pull(worker(&dead)).await?;
    let mut advisories = home
        .client
        .subscribe(format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.worker", home.name))
        .await?;
    let mut listener = home.client.subscribe(dead.subject("worker")).await?;
    home.client.flush().await?;

    settle(&take(&consumer, 1).await?[0], AckKind::Nak(None)).await?;
    assert_eq!(attempt(&take(&consumer, 1).await?[0])?, 2);
    holds(&dead, 1).await?;
    all_settled(&home).await?;

    let letter = dead.stream.get_raw_message(1).await?;
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!((&letter.payload[..], header("Trace").as_deref()), (&b"body"[..], Some("t1")));
    assert_eq!(header("Levee-Dead-Stream"), Some(home.name.clone()));
    assert_eq!(header("Levee-Dead-Subject"), Some(home.subject("a")));
    assert_eq!(header("Levee-Dead-Sequence").as_deref(), Some("1"));
    assert_eq!(header("Levee-Dead-Consumer").as_deref(), Some("worker"));
    assert_eq!(header("Levee-Dead-Deliveries").as_deref(), Some("2"));
    assert_eq!(header("Levee-Dead-Reason").as_deref(), Some("max_deliver"));
    assert_eq!(header("Levee-Dead-Nats-Msg-Id").as_deref(), Some("mine"));
    let advisory = tokio::time::timeout(PATIENCE, advisories.next()).await?.context("no advisory")?;
    let advisory: Value = serde_json::from_slice(&advisory.payload)?;
    assert_eq!((&advisory["stream_seq"], &advisory["deliveries"]), (&1.into(), &2.into()));
    let heard = tokio::time::timeout(PATIENCE, listener.next()).await?.context("nothing was heard")?;
    assert_eq!(&heard.payload[..], b"body");
    assert!(take_within(&consumer, 1, Duration::from_millis(700)).await?.is_empty());
    assert_eq!((home.messages().await?, dead.messages().await?), (1, 1));
    Ok(())
}

pub(crate) async fn a_terminated_message_leaves_a_work_queue_as_a_dead_letter(ground: &Ground) -> Result<()> {
    let Some((home, dead)) = homes(ground, "TERMINATED", RetentionPolicy::WorkQueue).await? else {
        return Ok(());
    };
    home.publish_many("a", 2).await?;
    let consumer = home.pull(pull::Config { max_deliver: -1, ..worker(&dead) }).await?;
    let messages = take(&consumer, 2).await?;

    let reply = messages[0].reply.clone().context("a reply")?;
    home.client.request(reply, "+TERM no such order".into()).await?;
    settle_confirmed(&messages[1], AckKind::Ack).await?;

    holds(&dead, 1).await?;
    holds(&home, 0).await?;
    let letter = dead.stream.get_raw_message(1).await?;
    let header = |name: &str| letter.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Levee-Dead-Reason").as_deref(), Some("terminated"));
    assert_eq!(header("Levee-Dead-Detail").as_deref(), Some("no such order"));
    Ok(())
}

pub(crate) async fn a_dead_letter_waits_for_its_stream_and_holds_nothing_up(ground: &Ground) -> Result<()> {
    let Some((home, dead)) = homes(ground, "WAITS", RetentionPolicy::WorkQueue).await? else { return Ok(()) };
    home.publish_many("a", 4).await?;
    let config = pull::Config { max_ack_pending: 2, max_deliver: 1, ..worker(&dead) };
    let consumer = home.pull(config).await?;
    let dead_config = dead.stream.get_info().await?.config;
    home.js.delete_stream(&dead.name).await?;

    for message in take(&consumer, 2).await? {
        settle(&message, AckKind::Nak(None)).await?;
    }
    let next = take(&consumer, 2).await?;
    assert_eq!(bodies(&next), ["3", "4"], "the first two do not hold them up, and do not come again");
    for message in next {
        settle_confirmed(&message, AckKind::Ack).await?;
    }
    holds(&home, 2).await?;
    assert_eq!(home.stream.consumer_info("worker").await?.num_ack_pending, 2);

    home.js.create_stream(dead_config).await?;

    holds(&dead, 2).await?;
    holds(&home, 0).await?;
    let stored = read_all(&dead.client, &dead.name).await?;
    assert_eq!(stored.len(), 2);
    Ok(())
}

pub(crate) async fn dead_letters_are_redriven_to_where_they_came_from(ground: &Ground) -> Result<()> {
    let Some((home, dead)) = homes(ground, "REDRIVEN", RetentionPolicy::Limits).await? else { return Ok(()) };
    for body in ["1", "2", "3"] {
        let mut headers = HeaderMap::new();
        headers.insert("Trace", body);
        headers.insert("Nats-Msg-Id", body);
        home.js.publish_with_headers(home.subject(body), headers, body.into()).await?.await?;
    }
    let consumer = home.pull(pull::Config { max_deliver: 1, ..worker(&dead) }).await?;
    for message in take(&consumer, 3).await? {
        settle(&message, AckKind::Nak(None)).await?;
    }
    holds(&dead, 3).await?;
    dead.publish("other", "not a letter").await?;
    let server = ground.cluster.node(0).url();
    let redrive = async |flags: &[&str]| {
        let mut command = tokio::process::Command::new(ground.cluster.program().path());
        output(command.args(["redrive", dead.name.as_str(), "--server", server.as_str()]).args(flags)).await
    };

    let dry = redrive(&["--dry-run"]).await?;
    assert!(dry.contains("3 would be redriven, 0 were there already, 1 left alone"), "{dry}");
    let kept = redrive(&["--keep", "--last", "2"]).await?;
    assert!(kept.contains("2 redriven, 0 were there already, 0 left alone"), "{kept}");
    assert_eq!((home.messages().await?, dead.messages().await?), (5, 4));
    let all = redrive(&["--filter", &dead.subject("worker")]).await?;
    assert!(all.contains("1 redriven, 2 were there already, 0 left alone"), "{all}");
    assert_eq!((home.messages().await?, dead.messages().await?), (6, 1));

    let again = take(&consumer, 3).await?;
    // Letters are stored side by side, so their order is chance.
    let mut came = bodies(&again);
    came.sort_unstable();
    assert_eq!(came, ["1", "2", "3"]);
    for message in &again {
        let body = std::str::from_utf8(&message.payload)?;
        assert_eq!(message.subject.as_str(), home.subject(body));
        let headers = message.headers.as_ref().context("no headers")?;
        assert_eq!(headers.get("Trace").map(|value| value.as_str()), Some(body));
        assert!(headers.get("Levee-Dead-Stream").is_none());
    }
    Ok(())
}

pub(crate) async fn options_that_can_not_be_kept_are_refused(ground: &Ground) -> Result<()> {
    let Some((home, dead)) = homes(ground, "REFUSED", RetentionPolicy::Limits).await? else { return Ok(()) };
    let elsewhere = format!("nobody.{}", home.name);
    let own = home.subject("dead");
    let good = dead.subject("x");
    for (policy, key, value, hint) in [
        ("explicit", "levee.dead_leter", good.as_str(), "no such option"),
        ("explicit", "levee.dead_letter", "a.*", "without wildcards"),
        ("explicit", "levee.dead_letter", elsewhere.as_str(), "no stream captures"),
        ("explicit", "levee.dead_letter", own.as_str(), "its own dead letters"),
        ("all", "levee.dead_letter", good.as_str(), "has to be explicit"),
        ("none", "levee.key", "token:1", "has to be explicit"),
        ("explicit", "levee.key", "token:0", "token:N"),
        ("explicit", "levee.nak_delay_frees_slot", "yes", "true or false"),
    ] {
        let config =
            json!({"durable_name": "c", "name": "c", "ack_policy": policy, "metadata": {key: value}});
        let request = json!({"stream_name": home.name, "config": config});

        let answer = api(&home.client, &format!("CONSUMER.CREATE.{}.c", home.name), &request).await?;

        let error = &answer["error"];
        assert_eq!((&error["code"], &error["err_code"]), (&400.into(), &60001.into()), "{answer}");
        assert!(error["description"].as_str().is_some_and(|text| text.contains(hint)), "{answer}");
    }
    Ok(())
}

pub(crate) async fn a_nak_with_a_delay_frees_its_place(ground: &Ground) -> Result<()> {
    if !ground.cluster.program().is_levee() {
        skip::not_claimed("a_nak_with_a_delay_frees_its_place", "it is Levee's own");
        return Ok(());
    }
    let home = ground.stream(Config { name: "PLACES".into(), ..Default::default() }).await?;
    home.publish_many("a", 3).await?;
    let config = pull::Config {
        durable_name: Some("worker".into()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: 1,
        metadata: [("levee.nak_delay_frees_slot".to_owned(), "true".to_owned())].into(),
        ..Default::default()
    };
    let consumer = home.pull(config).await?;

    let first = take(&consumer, 1).await?;
    settle(&first[0], AckKind::Nak(Some(Duration::from_secs(2)))).await?;
    let second = take(&consumer, 1).await?;
    assert_eq!(sequence(&second[0])?, 2, "the first one's place is free");
    assert!(take_within(&consumer, 1, Duration::from_secs(3)).await?.is_empty(), "the place is taken");
    settle_confirmed(&second[0], AckKind::Ack).await?;

    let again = take(&consumer, 1).await?;
    assert_eq!((sequence(&again[0])?, attempt(&again[0])?), (1, 2));
    Ok(())
}
