//! Permissions on three nodes: who publishes is judged where it is connected, who hears is judged there, and an answer
//! is allowed wherever the request came from.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use levee_tests::client::{api_ok, lead};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::raw::{Frame, Raw};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

const USERS: &str = r#"authorization {
  users [
    { user: any, password: any, permissions: { } }
    { user: narrow, password: narrow, permissions { publish { deny: "a.no" }, subscribe { deny: "a.no" } } }
    { user: answer, password: answer, permissions { subscribe: "q.>", allow_responses: true } }
    {
      user: worker, password: worker
      permissions {
        publish: "$JS.API.CONSUMER.MSG.NEXT.S.own", subscribe: ["_INBOX.>", "pushed"], allow_responses: true
      }
    }
    { user: forger, password: forger, permissions { publish { deny: "$JS.ACK.>" } } }
  ]
}
no_auth_user: any"#;

async fn start() -> Result<Cluster> {
    Cluster::with(Setup { nodes: 3, extra: USERS.to_owned(), ..Setup::default() }).await
}

async fn connect(cluster: &Cluster, node: usize, user: &str) -> Result<Raw> {
    let mut raw = Raw::connect(cluster.node(node).address()).await?;
    raw.hello(&json!({ "user": user, "pass": user })).await?;
    Ok(raw)
}

/// Says it, and gives the refusals that come before PONG.
async fn refusals(raw: &mut Raw, text: &str) -> Result<Vec<String>> {
    raw.send(text.as_bytes()).await?;
    let frames = raw.until_pong().await?;
    Ok(frames
        .into_iter()
        .filter_map(|frame| if let Frame::Err(text) = frame { Some(text) } else { None })
        .collect())
}

/// Waits until what `to` subscribed to is known on the node of `from`.
async fn met(from: &mut Raw, to: &mut Raw, subject: &str) -> Result<()> {
    wait_until(&format!("news of {subject} arrive"), PATIENCE, async || {
        from.publish(subject, "", "", "hello").await?;
        let heard = to.until_quiet(Duration::from_millis(100)).await?;
        Ok(heard.iter().any(|frame| matches!(frame, Frame::Message(_))).then_some(()))
    })
    .await?;
    to.until_quiet(Duration::from_millis(200)).await?;
    Ok(())
}

#[tokio::test]
async fn each_node_judges_its_own_clients() -> Result<()> {
    let cluster = start().await?;
    let (mut any, mut narrow) = (connect(&cluster, 0, "any").await?, connect(&cluster, 1, "narrow").await?);
    let mut witness = connect(&cluster, 2, "any").await?;
    for raw in [&mut narrow, &mut witness] {
        ensure!(refusals(raw, "SUB a.* 1\r\n").await?.is_empty());
    }
    met(&mut any, &mut narrow, "a.yes").await?;
    met(&mut any, &mut witness, "a.yes").await?;
    narrow.until_quiet(Duration::from_millis(200)).await?;

    // Published elsewhere: heard by whom it may be heard.
    any.publish("a.no", "", "", "1").await?;
    any.publish("a.yes", "", "", "2").await?;
    ensure!(witness.next_message(PATIENCE).await?.payload == "1");
    ensure!(witness.next_message(PATIENCE).await?.payload == "2");
    ensure!(narrow.next_message(PATIENCE).await?.payload == "2", "what is denied came from another node");

    // Refused here: not heard anywhere.
    let refused = refusals(&mut narrow, "PUB a.no 1\r\n3\r\nPUB a.yes 1\r\n4\r\n").await?;
    ensure!(refused == ["'Permissions Violation for Publish to \"a.no\"'"], "{refused:?}");
    ensure!(witness.next_message(PATIENCE).await?.payload == "4");
    Ok(())
}

#[tokio::test]
async fn a_request_from_another_node_may_be_answered_once() -> Result<()> {
    let cluster = start().await?;
    let (mut any, mut answer) = (connect(&cluster, 0, "any").await?, connect(&cluster, 1, "answer").await?);
    ensure!(refusals(&mut any, "SUB r.* 1\r\n").await?.is_empty());
    ensure!(refusals(&mut answer, "SUB q.> g 1\r\n").await?.is_empty());
    met(&mut any, &mut answer, "q.1").await?;
    let mut near = connect(&cluster, 1, "any").await?;
    met(&mut near, &mut any, "r.0").await?;

    any.publish("q.1", "r.1", "", "please").await?;
    ensure!(answer.next_message(PATIENCE).await?.reply == "r.1");
    let mut other = connect(&cluster, 1, "answer").await?;
    let refused = refusals(&mut other, "PUB r.1 0\r\n\r\n").await?;
    ensure!(refused.len() == 1, "who was not asked answers");
    let refused = refusals(&mut answer, "PUB r.1 2\r\nok\r\nPUB r.1 2\r\nno\r\n").await?;

    ensure!(refused == ["'Permissions Violation for Publish to \"r.1\"'"], "{refused:?}");
    ensure!(any.next_message(PATIENCE).await?.payload == "ok");
    ensure!(any.until_quiet(Duration::from_millis(300)).await?.is_empty(), "there was more than one answer");
    Ok(())
}

/// How many messages a consumer waits for acknowledgements of.
async fn ack_pending(cluster: &Cluster, consumer: &str) -> Result<u64> {
    let info =
        api_ok(&cluster.client(0).await?, &format!("CONSUMER.INFO.S.{consumer}"), &Value::Null).await?;
    info["num_ack_pending"].as_u64().context("num_ack_pending")
}

#[tokio::test]
async fn only_who_was_given_a_message_settles_it_from_whatever_node() -> Result<()> {
    let cluster = start().await?;
    let any = cluster.client(0).await?;
    api_ok(&any, "STREAM.CREATE.S", &json!({ "name": "S", "subjects": ["s.>"], "num_replicas": 3 })).await?;
    lead(&any, "S", cluster.node(0).name()).await?;
    for (name, push) in [("own", None), ("pushed", Some("pushed"))] {
        let mut config =
            json!({ "durable_name": name, "ack_policy": "explicit", "ack_wait": 600_000_000_000_u64 });
        if let Some(subject) = push {
            config["deliver_subject"] = json!(subject);
        }
        let request = json!({ "stream_name": "S", "config": config });
        api_ok(&any, &format!("CONSUMER.CREATE.S.{name}"), &request).await?;
    }
    // The leader is node 0; who works is elsewhere.
    let (mut worker, mut forger) =
        (connect(&cluster, 1, "worker").await?, connect(&cluster, 2, "forger").await?);
    ensure!(refusals(&mut worker, "SUB _INBOX.w 1\r\nSUB pushed 2\r\n").await?.is_empty());
    for _ in 0..2 {
        any.request("s.1", "x".into()).await?;
    }
    let mut pushed = Vec::new();
    for _ in 0..2 {
        pushed.push(worker.next_message(PATIENCE).await?);
    }
    worker.publish("$JS.API.CONSUMER.MSG.NEXT.S.own", "_INBOX.w", "", "2").await?;
    let given = [worker.next_message(PATIENCE).await?, worker.next_message(PATIENCE).await?];
    ensure!(pushed.iter().all(|message| message.reply.starts_with("$JS.ACK.S.pushed.")), "{pushed:?}");
    ensure!(given.iter().all(|message| message.reply.starts_with("$JS.ACK.S.own.")), "{given:?}");

    // Known to the letter, and no use.
    for message in given.iter().chain(&pushed) {
        let forged = format!("PUB {} 4\r\n+ACK\r\n", message.reply);
        ensure!(refusals(&mut forger, &forged).await?.len() == 1, "{} is settled by another", message.reply);
    }
    let mut idle = connect(&cluster, 2, "worker").await?;
    ensure!(refusals(&mut idle, &format!("PUB {} 4\r\n+ACK\r\n", given[0].reply)).await?.len() == 1);
    // What was refused would have arrived before this.
    forger.publish("s.2", "", "", "x").await?;
    forger.until_pong().await?;
    ensure!(ack_pending(&cluster, "own").await? == 2 && ack_pending(&cluster, "pushed").await? >= 2);

    for message in given.iter().chain(&pushed) {
        let ack = format!("PUB {} 4\r\n+ACK\r\n", message.reply);
        ensure!(refusals(&mut worker, &ack).await?.is_empty(), "{} is refused", message.reply);
        ensure!(refusals(&mut worker, &ack).await?.len() == 1, "{} twice", message.reply);
    }
    wait_until("all that was given is settled", PATIENCE, async || {
        // The third message is pushed and waits.
        Ok((ack_pending(&cluster, "own").await? == 0 && ack_pending(&cluster, "pushed").await? <= 1)
            .then_some(()))
    })
    .await
}
