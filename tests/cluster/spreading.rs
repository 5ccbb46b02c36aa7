//! What spreads between nodes: interest, queue groups, requests, addresses.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use levee_tests::cluster::Cluster;
use levee_tests::raw::{Frame, Raw};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Long enough for a message that should not come.
const QUIET: Duration = Duration::from_millis(300);

async fn three() -> Result<&'static Cluster> {
    static THREE: OnceCell<Cluster> = OnceCell::const_new();
    THREE.get_or_try_init(Cluster::three).await
}

/// A connection by hand, past its INFOs.
async fn on(cluster: &Cluster, node: usize) -> Result<Raw> {
    let mut raw = Raw::connect(cluster.node(node).address()).await?;
    raw.hello(&json!({})).await?;
    Ok(raw)
}

/// Publishes to `subject` until `subscriber` hears it, and takes away what was sent to find out.
async fn reached(from: &mut Raw, subject: &str, subscriber: &mut Raw) -> Result<()> {
    wait_until("interest spreads", PATIENCE, async || {
        from.publish(subject, "", "", "probe").await?;
        let heard = subscriber.until_quiet(Duration::from_millis(100)).await?;
        Ok(heard.iter().any(|frame| matches!(frame, Frame::Message(_))).then_some(()))
    })
    .await?;
    subscriber.until_quiet(QUIET).await?;
    Ok(())
}

/// The payloads among these.
fn payloads(frames: &[Frame]) -> Vec<String> {
    frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Message(message) => Some(message.payload.clone()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn interest_spreads_and_goes_away_again() -> Result<()> {
    let cluster = three().await?;
    let (mut here, mut there) = (on(cluster, 0).await?, on(cluster, 2).await?);
    there.send(b"SUB spread.* 1\r\n").await?;
    there.until_pong().await?;
    reached(&mut here, "spread.a", &mut there).await?;

    for number in 0..50 {
        here.publish("spread.b", "", "", &number.to_string()).await?;
    }
    let heard = payloads(&there.until_quiet(QUIET).await?);
    assert_eq!(heard, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());

    there.send(b"UNSUB 1\r\n").await?;
    there.until_pong().await?;
    wait_until("nobody is interested", PATIENCE, async || {
        let answer = here.request("spread.c", "", "").await?;
        Ok((answer.status() == "503").then_some(()))
    })
    .await
}

#[tokio::test]
async fn interest_of_a_client_that_is_gone_is_gone() -> Result<()> {
    let cluster = three().await?;
    let mut here = on(cluster, 0).await?;
    let mut there = on(cluster, 1).await?;
    there.send(b"SUB gone 1\r\n").await?;
    there.until_pong().await?;
    reached(&mut here, "gone", &mut there).await?;

    drop(there);

    wait_until("nobody is interested", PATIENCE, async || {
        let answer = here.request("gone", "", "").await?;
        Ok((answer.status() == "503").then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_queue_group_delivers_once_in_the_cluster_and_prefers_the_local_node() -> Result<()> {
    let cluster = three().await?;
    let mut members = Vec::new();
    for node in 0..3 {
        let mut member = on(cluster, node).await?;
        member.send(b"SUB work group 1\r\n").await?;
        member.until_pong().await?;
        members.push(member);
    }
    // Interest of plain subscriptions and of groups spreads in order, so this says that the groups are known.
    let mut outside = on(cluster, 2).await?;
    outside.send(b"SUB work.known 1\r\n").await?;
    outside.until_pong().await?;
    let mut publisher = on(cluster, 0).await?;
    reached(&mut publisher, "work.known", &mut outside).await?;

    for number in 0..60 {
        publisher.publish("work", "", "", &number.to_string()).await?;
    }

    let mut heard = Vec::new();
    for member in &mut members {
        heard.push(payloads(&member.until_quiet(QUIET).await?));
    }
    // nats-server prefers its own cluster to others, and no node within it.
    if cluster.program().is_levee() {
        assert_eq!(heard[0].len(), 60, "the local member gets all: {heard:?}");
    }
    assert_eq!(heard.iter().map(Vec::len).sum::<usize>(), 60, "{heard:?}");

    // Without a local member the others share, each message once.
    members[0].send(b"UNSUB 1\r\n").await?;
    members[0].until_pong().await?;
    for number in 0..60 {
        publisher.publish("work", "", "", &number.to_string()).await?;
    }
    let mut all = Vec::new();
    for member in &mut members[1..] {
        let got = payloads(&member.until_quiet(QUIET).await?);
        ensure!(!got.is_empty(), "one member got nothing of 60 messages");
        all.extend(got.iter().map(|number| number.parse()).collect::<Result<Vec<u32>, _>>()?);
    }
    all.sort_unstable();
    assert_eq!(all, (0..60).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_group_and_a_plain_subscription_on_another_node_each_get_one() -> Result<()> {
    let cluster = three().await?;
    let mut there = on(cluster, 1).await?;
    there.send(b"SUB both g 1\r\nSUB both 2\r\nSUB both g 3\r\nSUB both h 4\r\n").await?;
    there.until_pong().await?;
    let mut here = on(cluster, 0).await?;
    reached(&mut here, "both", &mut there).await?;

    here.publish("both", "", "", "x").await?;

    let frames = there.until_quiet(QUIET).await?;
    let sids: BTreeSet<String> = frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Message(message) => Some(message.sid.clone()),
            _ => None,
        })
        .collect();
    ensure!(
        payloads(&frames).len() == 3 && sids.contains("2") && sids.contains("4"),
        "one for the subscription and one for each group: {frames:?}"
    );
    Ok(())
}

#[tokio::test]
async fn requests_are_answered_across_nodes_also_when_the_inbox_is_new() -> Result<()> {
    let cluster = three().await?;
    let service = cluster.client(2).await?;
    let mut requests = service.subscribe("service").await?;
    service.flush().await?;
    let answering = tokio::spawn(async move {
        use futures::StreamExt as _;
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            service.publish(reply, request.payload).await?;
        }
        anyhow::Ok(())
    });
    let mut here = on(cluster, 0).await?;
    wait_until("the service is known", PATIENCE, async || {
        Ok((here.request("service", "", "?").await?.payload == "?").then_some(()))
    })
    .await?;

    // Each has a subscription of its own, made in the same write as the request.
    for number in 0..50 {
        let answer = here.request("service", "", &number.to_string()).await?;
        assert_eq!(answer.payload, number.to_string());
    }
    answering.abort();
    Ok(())
}

#[tokio::test]
async fn no_responders_is_told_once_and_only_if_there_are_none_in_the_cluster() -> Result<()> {
    let cluster = three().await?;
    let mut here = on(cluster, 0).await?;
    here.send(b"SUB reply 1\r\n").await?;
    here.publish("nobody", "reply", "", "").await?;
    let frames: Vec<Frame> = here.until_quiet(QUIET).await?;
    let told: Vec<&Frame> = frames.iter().filter(|frame| matches!(frame, Frame::Message(_))).collect();
    assert!(
        matches!(&told[..], [Frame::Message(message)]
            if message.status() == "503" && message.header.contains("Nats-Subject: nobody")),
        "{told:?}"
    );

    // Somebody listens far away and does not answer: nothing is told.
    let mut there = on(cluster, 1).await?;
    there.send(b"SUB silent 1\r\n").await?;
    there.until_pong().await?;
    reached(&mut here, "silent", &mut there).await?;
    here.publish("silent", "reply", "", "?").await?;
    assert_eq!(payloads(&there.until_quiet(QUIET).await?), ["?"]);
    assert!(payloads(&here.until_quiet(QUIET).await?).is_empty());
    Ok(())
}

#[tokio::test]
async fn every_node_tells_its_clients_of_all() -> Result<()> {
    let cluster = three().await?;
    let all: BTreeSet<String> = cluster.nodes().iter().map(|node| node.address().to_owned()).collect();

    for node in cluster.nodes() {
        wait_until("INFO lists all nodes", PATIENCE, async || {
            let raw = Raw::connect(node.address()).await?;
            let urls: BTreeSet<String> =
                serde_json::from_value(raw.info()["connect_urls"].clone()).context("connect_urls")?;
            ensure!(urls == all, "{urls:?}");
            Ok(Some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn connected_clients_hear_of_nodes_that_come_and_go() -> Result<()> {
    let mut cluster = Cluster::three().await?;
    let mut raw = on(&cluster, 0).await?;
    let gone = cluster.node(2).address().to_owned();
    raw.until_quiet(QUIET).await?;

    cluster.kill(2)?;
    hears(&mut raw, |urls| !urls.contains(&gone)).await.context("of one that died")?;

    cluster.start(2)?;
    hears(&mut raw, |urls| urls.contains(&gone)).await.context("of one that came back")
}

/// Waits for an INFO whose `connect_urls` are so.
async fn hears(raw: &mut Raw, so: impl Fn(&BTreeSet<String>) -> bool) -> Result<()> {
    wait_until("an INFO says so", PATIENCE, async || {
        let Some(Frame::Info(info)) = raw.next(Duration::from_secs(1)).await? else { return Ok(None) };
        let info: Value = serde_json::from_str(&info)?;
        let urls: BTreeSet<String> = serde_json::from_value(info["connect_urls"].clone()).unwrap_or_default();
        Ok(so(&urls).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_request_to_the_api_is_answered_once_whichever_node_is_asked() -> Result<()> {
    let cluster = three().await?;
    let create = json!({ "name": "ONCE", "subjects": ["once.>"], "num_replicas": 3 }).to_string();
    let consumer =
        json!({ "stream_name": "ONCE", "config": { "durable_name": "c", "ack_policy": "explicit" } })
            .to_string();
    on(cluster, 0).await?.request_json("$JS.API.STREAM.CREATE.ONCE", &create).await?;

    for node in 0..3 {
        let mut raw = on(cluster, node).await?;
        raw.send(format!("SUB answers.{node} 1\r\n").as_bytes()).await?;
        for (subject, payload) in [
            ("$JS.API.INFO", ""),
            ("$JS.API.STREAM.INFO.ONCE", ""),
            ("$JS.API.STREAM.INFO.NONE", ""),
            ("$JS.API.STREAM.NAMES", ""),
            ("$JS.API.STREAM.LIST", ""),
            ("$JS.API.STREAM.CREATE.ONCE", &create),
            ("$JS.API.STREAM.MSG.GET.ONCE", r#"{"seq":1}"#),
            ("$JS.API.CONSUMER.DURABLE.CREATE.ONCE.c", &consumer),
            ("$JS.API.CONSUMER.INFO.ONCE.c", ""),
            ("$JS.API.CONSUMER.NAMES.ONCE", ""),
            ("$JS.API.CONSUMER.DELETE.ONCE.c", ""),
            ("once.a", "stored"),
        ] {
            raw.publish(subject, &format!("answers.{node}"), "", payload).await?;
            let first = raw.next_message(PATIENCE).await.with_context(|| subject.to_owned())?;
            let more = payloads(&raw.until_quiet(QUIET).await?);
            assert!(more.is_empty(), "{subject} was answered {} and then {more:?}", first.payload);
            ensure!(first.payload.starts_with('{'), "{subject} was answered {first:?}");
        }
    }
    Ok(())
}
