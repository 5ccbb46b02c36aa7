//! Core NATS: subjects, queue groups, requests. With three nodes, the two sides are on different ones.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::{Client, HeaderMap, RequestErrorKind, Subscriber};
use futures::StreamExt as _;
use levee_tests::wait::{PATIENCE, wait_until};
use tokio::time::timeout;

use crate::ground::{Ground, text};

/// Waits until what `from` publishes reaches this subscription: interest takes a moment to spread.
async fn reached(from: &Client, subject: &str, subscriber: &mut Subscriber) -> Result<()> {
    wait_until("interest spreads", PATIENCE, async || {
        from.publish(subject.to_owned(), "probe".into()).await?;
        from.flush().await?;
        let heard = timeout(Duration::from_millis(200), subscriber.next()).await;
        Ok(heard.is_ok().then_some(()))
    })
    .await?;
    // What else was sent to find out.
    while timeout(Duration::from_millis(200), subscriber.next()).await.is_ok() {}
    Ok(())
}

async fn next(subscriber: &mut Subscriber) -> Result<async_nats::Message> {
    timeout(PATIENCE, subscriber.next()).await.context("no message")?.context("the subscription ended")
}

/// A client on the last node.
async fn far(ground: &Ground) -> Result<Client> {
    ground.cluster.client(ground.replicas - 1).await
}

pub(crate) async fn a_message_reaches_whoever_subscribes_on_any_node(ground: &Ground) -> Result<()> {
    let subject = ground.name("core");
    let far = far(ground).await?;
    let mut first = ground.client.subscribe(subject.clone()).await?;
    let mut second = far.subscribe(subject.clone()).await?;
    ground.client.flush().await?;
    far.flush().await?;
    reached(&ground.client, &subject, &mut second).await?;
    while timeout(Duration::from_millis(50), first.next()).await.is_ok() {}

    for number in 0..100 {
        ground.client.publish(subject.clone(), number.to_string().into()).await?;
    }

    for number in 0..100 {
        assert_eq!(text(&next(&mut first).await?.payload), number.to_string());
        assert_eq!(text(&next(&mut second).await?.payload), number.to_string());
    }
    Ok(())
}

pub(crate) async fn wildcards_match_tokens(ground: &Ground) -> Result<()> {
    let root = ground.name("wild");
    let far = far(ground).await?;
    let mut star = far.subscribe(format!("{root}.*.z")).await?;
    let mut rest = far.subscribe(format!("{root}.a.>")).await?;
    far.flush().await?;
    reached(&ground.client, &format!("{root}.a.probe"), &mut rest).await?;

    for last in ["a.z", "b.z", "a.b.z", "a", "a.b"] {
        ground.client.publish(format!("{root}.{last}"), last.into()).await?;
    }

    assert_eq!(text(&next(&mut star).await?.payload), "a.z");
    assert_eq!(text(&next(&mut star).await?.payload), "b.z");
    for expected in ["a.z", "a.b.z", "a.b"] {
        assert_eq!(text(&next(&mut rest).await?.payload), expected);
    }
    Ok(())
}

pub(crate) async fn a_queue_group_gets_each_message_once(ground: &Ground) -> Result<()> {
    let subject = ground.name("queue");
    let mut members = Vec::new();
    for index in 0..3 {
        let client = ground.cluster.client(index % ground.replicas).await?;
        let mut member = client.queue_subscribe(subject.clone(), "workers".into()).await?;
        client.flush().await?;
        if index == 2 {
            // From that node itself, so that the probe is not taken by another member.
            reached(&client, &subject, &mut member).await.ok();
        }
        members.push(member);
    }
    let publisher = ground.cluster.client(0).await?;
    for member in &mut members {
        while timeout(Duration::from_millis(100), member.next()).await.is_ok() {}
    }

    for number in 0..90 {
        publisher.publish(subject.clone(), number.to_string().into()).await?;
    }
    publisher.flush().await?;

    let mut got = Vec::new();
    wait_until("all messages arrive", PATIENCE, async || {
        for member in &mut members {
            while let Ok(Some(message)) = timeout(Duration::from_millis(50), member.next()).await {
                got.push(text(&message.payload).parse::<u32>()?);
            }
        }
        Ok((got.len() >= 90).then_some(()))
    })
    .await?;
    got.sort_unstable();
    assert_eq!(got, (0..90).collect::<Vec<_>>());
    Ok(())
}

pub(crate) async fn a_request_is_answered_with_headers(ground: &Ground) -> Result<()> {
    let subject = ground.name("service");
    let far = far(ground).await?;
    let mut requests = far.subscribe(subject.clone()).await?;
    far.flush().await?;
    let service = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            let mut headers = HeaderMap::new();
            headers.insert("Asked", text(&request.payload));
            far.publish_with_headers(reply, headers, "answer".into()).await?;
        }
        anyhow::Ok(())
    });

    let answer = wait_until("the service answers", PATIENCE, async || {
        Ok(Some(ground.client.request(subject.clone(), "question".into()).await?))
    })
    .await?;

    assert_eq!(text(&answer.payload), "answer");
    let asked = answer.headers.context("headers")?.get("Asked").map(|value| value.as_str().to_owned());
    assert_eq!(asked.as_deref(), Some("question"));
    service.abort();
    Ok(())
}

pub(crate) async fn a_request_without_responders_is_told_so(ground: &Ground) -> Result<()> {
    let answer = ground.client.request(ground.name("nobody"), "hello".into()).await;

    assert_eq!(answer.map_err(|error| error.kind()).err(), Some(RequestErrorKind::NoResponders));
    Ok(())
}

pub(crate) async fn an_unsubscription_after_a_number_of_messages_holds(ground: &Ground) -> Result<()> {
    let subject = ground.name("some");
    let mut subscriber = ground.client.subscribe(subject.clone()).await?;
    subscriber.unsubscribe_after(2).await?;

    for body in ["1", "2", "3"] {
        ground.client.publish(subject.clone(), body.into()).await?;
    }

    assert_eq!(text(&next(&mut subscriber).await?.payload), "1");
    assert_eq!(text(&next(&mut subscriber).await?.payload), "2");
    assert!(timeout(PATIENCE, subscriber.next()).await?.is_none());
    Ok(())
}

pub(crate) async fn headers_reach_the_other_side(ground: &Ground) -> Result<()> {
    let subject = ground.name("headers");
    let far = far(ground).await?;
    let mut subscriber = far.subscribe(subject.clone()).await?;
    far.flush().await?;
    reached(&ground.client, &subject, &mut subscriber).await?;
    let mut headers = HeaderMap::new();
    headers.append("Color", "red");
    headers.append("Color", "blue");

    ground.client.publish_with_headers(subject, headers, "".into()).await?;

    let message = next(&mut subscriber).await?;
    let headers = message.headers.context("headers")?;
    let colors: Vec<&str> = headers.get_all("Color").map(|value| value.as_str()).collect();
    assert_eq!((colors, message.payload.len()), (vec!["red", "blue"], 0));
    Ok(())
}
