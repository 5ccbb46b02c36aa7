//! Replicas that go to other nodes, and nodes that are emptied, removed and replaced: what was acknowledged is there
//! afterwards, and who gave its replica away has nothing of it left.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::ConnectOptions;
use futures::StreamExt as _;
use levee_tests::checker::check;
use levee_tests::client::{api, api_ok, holders, lead, leader, read_all, replicas_current};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;
use serde_json::{Value, json};

const ACCOUNTS: &str = "accounts {
  A { users [{ user: a, password: a }], jetstream: enabled }
  S { users [{ user: s, password: s }] }
}
system_account: S
no_auth_user: a";

/// Whether the server under test is Levee. nats-server drops a replica before another one has what it held, and a server
/// that was removed stays.
fn is_levee(test: &str) -> Result<bool> {
    let levee = Program::subject()?.is_levee();
    if !levee {
        skip::not_claimed(test, "only Levee promises this");
    }
    Ok(levee)
}

async fn create(cluster: &Cluster, name: &str, replicas: usize) -> Result<()> {
    let config = json!({ "name": name, "subjects": [format!("{name}.>")], "num_replicas": replicas });
    api_ok(&cluster.any_client().await?, &format!("STREAM.CREATE.{name}"), &config).await?;
    Ok(())
}

async fn fill(cluster: &Cluster, stream: &str, messages: usize) -> Result<()> {
    let js = async_nats::jetstream::new(cluster.any_client().await?);
    for number in 0..messages {
        js.publish(format!("{stream}.a"), number.to_string().into()).await?.await?;
    }
    Ok(())
}

/// Waits until a node has copies of so many streams.
pub(crate) async fn holds(cluster: &Cluster, index: usize, streams: u64) -> Result<()> {
    wait_until(&format!("node {index} holds {streams} streams"), PATIENCE, async || {
        let jsz = cluster.node(index).monitoring("/jsz").await?;
        ensure!(jsz["streams"] == streams, "it holds {}", jsz["streams"]);
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn replicas_move_under_load_and_nothing_of_them_stays() -> Result<()> {
    if !is_levee("replicas_move_under_load_and_nothing_of_them_stays")? {
        return Ok(());
    }
    let cluster = Cluster::with(Setup { nodes: 4, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    create(&cluster, "MOVES", 3).await?;
    let publishers = Workload::start(vec![cluster.any_client().await?, cluster.any_client().await?], "MOVES");

    // First a follower goes, then the leader.
    for who in ["follower", "leader"] {
        replicas_current(&client, "MOVES", 3).await?;
        let led_by = leader(&client, "MOVES").await?;
        let before = holders(&client, "MOVES").await?;
        let is_meant = |name: &&String| (**name == led_by) == (who == "leader");
        let goes = before.iter().find(is_meant).context("nobody to go")?.clone();
        let answer = api_ok(&client, "STREAM.PEER.REMOVE.MOVES", &json!({ "peer": goes })).await?;
        ensure!(answer["success"] == true, "{answer}");

        wait_until(&format!("the {who} {goes} has left"), PATIENCE, async || {
            let now = holders(&client, "MOVES").await?;
            ensure!(now.len() == 3 && !now.contains(&goes), "{now:?}");
            Ok(Some(()))
        })
        .await?;
        holds(&cluster, cluster.index_of(&goes)?, 0).await?;
    }

    let acknowledged = publishers.finish().await?;
    replicas_current(&client, "MOVES", 3).await?;
    ensure!(acknowledged.len() > 100, "only {} acknowledged", acknowledged.len());
    let messages: Vec<_> = acknowledged.into_iter().map(|one| one.message).collect();
    // What each of the three has, one after the other as the leader.
    for name in holders(&client, "MOVES").await? {
        lead(&client, "MOVES", &name).await?;
        check(&messages, &read_all(&client, "MOVES").await?).with_context(|| format!("on {name}"))?;
    }
    Ok(())
}

/// The nodes that the stream is on its way to, if it is.
fn desired(info: &Value) -> Option<BTreeSet<String>> {
    let replicas = info["cluster"]["desired"]["replicas"].as_array()?;
    Some(replicas.iter().filter_map(|peer| peer["name"].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn a_move_is_taken_back_while_the_new_replica_is_not_there() -> Result<()> {
    if !is_levee("a_move_is_taken_back_while_the_new_replica_is_not_there")? {
        return Ok(());
    }
    let cluster = Cluster::with(Setup { nodes: 4, alone: true, ..Setup::default() }).await?;
    create(&cluster, "KEPT", 3).await?;
    fill(&cluster, "KEPT", 50).await?;
    let client = cluster.any_client().await?;
    let before = holders(&client, "KEPT").await?;
    let led_by = leader(&client, "KEPT").await?;
    let goes = before.iter().find(|name| **name != led_by).context("no follower")?;
    let spare = ["n1", "n2", "n3", "n4"].into_iter().find(|name| !before.contains(*name));
    let spare = spare.context("no spare")?;
    let client = cluster.client(cluster.index_of(&led_by)?).await?;
    let after: BTreeSet<String> =
        before.iter().filter(|name| *name != goes).cloned().chain([spare.to_owned()]).collect();
    let begin = async || api(&client, "ACCOUNT.STREAM.MOVE.$G.KEPT", &json!({ "server": goes })).await;
    let cancel = async || api(&client, "STREAM.CANCEL_MOVE.KEPT", &Value::Null).await;
    let update = async |config: Value| api(&client, "STREAM.UPDATE.KEPT", &config).await;
    let settled = async || {
        wait_until("the stream is where it should be", PATIENCE, async || {
            let info = api_ok(&client, "STREAM.INFO.KEPT", &Value::Null).await?;
            ensure!(info["state"]["messages"] == 50, "{info}");
            Ok(desired(&info).is_none().then_some(()))
        })
        .await
    };
    ensure!(cancel().await?["error"]["err_code"] == 10129, "nothing to cancel");
    // Who is paused is not to decide; refused when the other leads already.
    let decides = json!({ "placement": { "preferred": led_by } });
    api(&client, "META.LEADER.STEPDOWN", &decides).await?;

    cluster.pause(cluster.index_of(spare)?)?;
    let moved = begin().await?;
    ensure!(desired(&moved) == Some(after.clone()), "{moved}");
    ensure!(moved["cluster"]["desired"]["origin"]["replicas"] == 3, "{moved}");
    ensure!(begin().await?["error"]["err_code"] == 10040, "{goes} is not to hold it");
    let again = api(&client, "ACCOUNT.STREAM.MOVE.$G.KEPT", &json!({})).await?;
    ensure!(again["error"]["err_code"] == 10124, "{again}");
    let one = json!({ "name": "KEPT", "subjects": ["KEPT.>"], "num_replicas": 1 });
    ensure!(update(one).await?["error"]["err_code"] == 10124);
    let described =
        json!({ "name": "KEPT", "subjects": ["KEPT.>"], "num_replicas": 3, "description": "here" });
    let described = update(described).await?;
    ensure!(desired(&described) == Some(after.clone()), "{described}");
    let back = cancel().await?;
    // It may be back already.
    ensure!(desired(&back).is_none_or(|desired| desired == before), "{back}");
    settled().await?;
    ensure!(holders(&client, "KEPT").await? == before);
    ensure!(cancel().await?["error"]["err_code"] == 10129, "it is back");

    cluster.resume(cluster.index_of(spare)?)?;
    wait_until("the move begins again", PATIENCE, async || {
        let moved = begin().await?;
        ensure!(moved.get("error").is_none(), "{moved}");
        Ok(Some(()))
    })
    .await?;
    settled().await?;
    ensure!(holders(&client, "KEPT").await? == after);
    Ok(())
}

#[tokio::test]
async fn a_dead_node_is_removed_and_another_takes_its_place() -> Result<()> {
    if !is_levee("a_dead_node_is_removed_and_another_takes_its_place")? {
        return Ok(());
    }
    // The fourth is the spare.
    let setup = Setup { nodes: 4, started: 3, extra: ACCOUNTS.to_owned(), alone: true, ..Setup::default() };
    let mut cluster = Cluster::with(setup).await?;
    let client = cluster.client(0).await?;
    let system = ConnectOptions::with_user_and_password("s".to_owned(), "s".to_owned());
    let system = system.ignore_discovered_servers().connect(cluster.node(0).url()).await?;
    create(&cluster, "KEPT", 3).await?;
    fill(&cluster, "KEPT", 50).await?;
    let mut removals = system.subscribe("$JS.EVENT.ADVISORY.SERVER.REMOVED").await?;
    system.flush().await?;

    cluster.kill(2)?;
    let unknown = api(&system, "SERVER.REMOVE", &json!({ "peer": "nobody" })).await?;
    ensure!(unknown["error"]["err_code"] == 10044, "{unknown}");
    let lonely = api(&client, "STREAM.PEER.REMOVE.KEPT", &json!({ "peer": "n3" })).await?;
    ensure!(lonely["error"]["err_code"] == 10075, "{lonely}");
    let answer = api_ok(&system, "SERVER.REMOVE", &json!({ "peer": "n3" })).await?;
    ensure!(answer["success"] == true, "{answer}");
    let told = tokio::time::timeout(PATIENCE, removals.next()).await?.context("no advisory")?;
    let told: Value = serde_json::from_slice(&told.payload)?;
    ensure!(told["server"] == "n3", "{told}");

    wait_until("two replicas are left", PATIENCE, async || {
        let holders = holders(&client, "KEPT").await?;
        ensure!(holders.iter().eq(["n1", "n2"]), "{holders:?}");
        let jsz = cluster.node(0).monitoring("/jsz").await?;
        ensure!(jsz["meta_cluster"]["cluster_size"] == 2, "{}", jsz["meta_cluster"]);
        Ok(Some(()))
    })
    .await?;
    fill(&cluster, "KEPT", 50).await?;

    cluster.start(3)?;
    cluster.answers(3).await?;
    replicas_current(&client, "KEPT", 3).await?;
    // Two of three are enough only if the new one votes, in both groups.
    cluster.kill(1)?;
    let client = cluster.client(3).await?;
    fill(&cluster, "KEPT", 50).await?;
    create(&cluster, "NEW", 1).await?;
    ensure!(read_all(&client, "KEPT").await?.len() == 150);
    cluster.start(1)?;
    cluster.answers(1).await?;

    // Who was removed does not come back with its directory, but its name is free for an empty one.
    cluster.start(2)?;
    let status = cluster.ended(2).await?;
    ensure!(status.success(), "{status}");
    cluster.node(2).logs("it says why it ends", PATIENCE, "was removed from the cluster").await?;
    std::fs::remove_dir_all(cluster.node(2).store())?;
    cluster.start(2)?;
    cluster.answers(2).await?;
    create(&cluster, "WIDE", 4).await?;
    fill(&cluster, "WIDE", 1).await
}

#[tokio::test]
async fn a_node_is_emptied_and_removed_while_it_serves() -> Result<()> {
    if !is_levee("a_node_is_emptied_and_removed_while_it_serves")? {
        return Ok(());
    }
    let mut cluster = Cluster::with(Setup { nodes: 4, alone: true, ..Setup::default() }).await?;
    let client = cluster.client(0).await?;
    let names: Vec<String> = (0..8).map(|number| format!("S{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        create(&cluster, name, if number % 2 == 0 { 1 } else { 3 }).await?;
        fill(&cluster, name, 10).await?;
    }
    // A single replica is on each of them; the last node goes.
    let goes = 3;

    api_ok(&client, "SERVER.EVACUATE", &json!({ "peer": "n4" })).await?;
    holds(&cluster, goes, 0).await?;
    ensure!(!cluster.is_over(goes), "evacuated, not removed");
    // It may get new ones, which go when it is removed.
    for name in ["LATE0", "LATE1", "LATE2", "LATE3"] {
        create(&cluster, name, 1).await?;
        fill(&cluster, name, 10).await?;
    }
    api_ok(&client, "SERVER.REMOVE", &json!({ "peer": "n4" })).await?;
    let status = cluster.ended(goes).await?;
    ensure!(status.success(), "{status}");

    for name in names.iter().map(String::as_str).chain(["LATE0", "LATE1", "LATE2", "LATE3"]) {
        let holders = holders(&client, name).await?;
        ensure!(!holders.contains("n4"), "{name} is on {holders:?}");
        let stored = read_all(&client, name).await?;
        ensure!(stored.len() == 10, "{name} has {} messages", stored.len());
        fill(&cluster, name, 1).await?;
    }
    Ok(())
}

/// How a node goes down in the middle of a move.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    Killed,
    /// It keeps a checkpoint that says that the stream is another node's.
    Stopped,
}

#[tokio::test]
async fn a_move_that_a_crash_interrupts_goes_on() -> Result<()> {
    if !is_levee("a_move_that_a_crash_interrupts_goes_on")? {
        return Ok(());
    }
    interrupted(End::Killed).await
}

#[tokio::test]
async fn a_move_that_a_restart_interrupts_goes_on() -> Result<()> {
    if !is_levee("a_move_that_a_restart_interrupts_goes_on")? {
        return Ok(());
    }
    interrupted(End::Stopped).await
}

/// The only node that has the messages goes down after it was decided that another one is to have them, and before it had
/// brought them there.
async fn interrupted(end: End) -> Result<()> {
    let mut cluster = Cluster::with(Setup { nodes: 3, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    let mut places = Vec::new();
    for number in 0..6 {
        let name = format!("S{number}");
        create(&cluster, &name, 1).await?;
        places.push((leader(&client, &name).await?, name));
    }
    // So that the second has the fewest, and gets what moves.
    for (_, name) in places.iter().filter(|(node, _)| node == "n2") {
        api_ok(&client, &format!("STREAM.DELETE.{name}"), &Value::Null).await?;
    }
    let on_first = places.into_iter().find(|(node, _)| node == "n1");
    let (_, stream) = on_first.context("no stream is on the first node")?;
    fill(&cluster, &stream, 200).await?;

    // It can't take the messages yet.
    cluster.pause(1)?;
    let third = cluster.client(2).await?;
    let answer = api_ok(&third, &format!("STREAM.PEER.EVACUATE.{stream}"), &json!({ "peer": "n1" })).await;
    match end {
        End::Killed => drop(cluster.kill(0)?),
        End::Stopped => {
            // Time to hear of what was decided.
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.stop(0).await?;
        }
    }
    cluster.resume(1)?;
    let answer = answer?;
    ensure!(answer["success"] == true, "{answer}");
    cluster.start(0)?;
    cluster.answers(0).await?;

    wait_until("the stream is on the second node", PATIENCE, async || {
        let holders = holders(&third, &stream).await?;
        ensure!(holders.iter().eq(["n2"]), "{holders:?}");
        Ok(Some(()))
    })
    .await?;
    ensure!(read_all(&third, &stream).await?.len() == 200);
    // Of the six streams one or two are left on the first node; this one is not among them.
    wait_until("the first node has nothing of it", PATIENCE, async || {
        let jsz = cluster.node(0).monitoring("/jsz?streams=true").await?;
        ensure!(!jsz.to_string().contains(&format!("\"name\":\"{stream}\"")), "{jsz}");
        Ok(Some(()))
    })
    .await
}
