//! Accounts on three nodes: what one has is its own, what it may use holds in the whole cluster, and the system account
//! operates and is told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions};
use futures::StreamExt as _;
use levee_tests::client::{api, api_ok, leader};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::raw::Raw;
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

const ACCOUNTS: &str = "accounts {
  A { users [{ user: a, password: a }], jetstream { max_store: 300000 } }
  B { users [{ user: b, password: b }], jetstream: enabled }
  S { users [{ user: s, password: s }] }
}
system_account: S
no_auth_user: b";
const LIMIT: usize = 300_000;
const CHUNK: usize = 10_000;

async fn start() -> Result<Cluster> {
    let extra = ACCOUNTS.to_owned();
    Cluster::with(Setup { nodes: 3, extra, ..Setup::default() }).await
}

async fn client(cluster: &Cluster, node: usize, user: &str) -> Result<Client> {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), user.to_owned());
    let options = options.ignore_discovered_servers().request_timeout(Some(Duration::from_secs(10)));
    options.connect(cluster.node(node).url()).await.context("connect")
}

/// Publishes once. Whether it was stored, or refused because the account has no more room.
async fn publish(client: &Client, subject: &str) -> Result<bool> {
    let answer = client.request(subject.to_owned(), vec![b'x'; CHUNK].into()).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer["error"]["err_code"].as_u64() {
        None => Ok(true),
        Some(10002) => Ok(false),
        Some(_) => anyhow::bail!("{answer}"),
    }
}

#[tokio::test]
async fn accounts_do_not_see_each_other_on_any_node() -> Result<()> {
    let cluster = start().await?;
    let (a, b) = (client(&cluster, 0, "a").await?, client(&cluster, 1, "b").await?);
    let (far_a, far_b) = (client(&cluster, 2, "a").await?, client(&cluster, 2, "b").await?);
    let mut heard_by_a = far_a.subscribe("news").await?;
    let mut heard_by_b = far_b.subscribe("news").await?;
    for client in [&far_a, &far_b] {
        client.flush().await?;
    }

    wait_until("news of interest are everywhere", PATIENCE, async || {
        a.publish("news", "of a".into()).await?;
        b.publish("news", "of b".into()).await?;
        let next = tokio::time::timeout(Duration::from_millis(200), async {
            Some((heard_by_a.next().await?.payload, heard_by_b.next().await?.payload))
        });
        let Ok(Some((of_a, of_b))) = next.await else { return Ok(None) };
        ensure!(of_a == "of a" && of_b == "of b", "{of_a:?} {of_b:?}");
        Ok(Some(()))
    })
    .await?;

    let same = json!({ "name": "SAME", "subjects": ["same.>"], "num_replicas": 3 });
    for client in [&a, &b] {
        api_ok(client, "STREAM.CREATE.SAME", &same).await?;
    }
    ensure!(publish(&far_a, "same.one").await?);
    ensure!(api_ok(&b, "STREAM.INFO.SAME", &Value::Null).await?["state"]["messages"] == 0);
    ensure!(api_ok(&a, "STREAM.INFO.SAME", &Value::Null).await?["state"]["messages"] == 1);
    Ok(())
}

#[tokio::test]
async fn an_account_has_as_much_room_as_it_may_have_on_all_nodes_together() -> Result<()> {
    let mut cluster = start().await?;
    let a = client(&cluster, 0, "a").await?;
    let b = client(&cluster, 0, "b").await?;
    // Each on a node of its own, so that no node sees what all of them hold.
    let names = ["ONE", "TWO", "THREE"];
    for name in names {
        let subjects = [format!("{name}.>")];
        api_ok(&a, &format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": subjects })).await?;
    }
    let mut leaders = Vec::new();
    for name in names {
        leaders.push(leader(&a, name).await?);
    }
    leaders.sort();
    leaders.dedup();
    ensure!(leaders.len() == 3, "placed on {leaders:?}");

    for name in &names[..2] {
        for _ in 0..12 {
            ensure!(publish(&a, &format!("{name}.x")).await?, "there is room");
        }
    }
    // Nodes tell each other four times a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let full = wait_until("the third is refused", PATIENCE, async || {
        Ok((!publish(&a, "THREE.x").await?).then_some(()))
    });
    full.await?;
    let used = api_ok(&a, "INFO", &Value::Null).await?;
    let storage = used["storage"].as_u64().context("storage")?;
    ensure!(used["limits"]["max_storage"] == LIMIT, "{used}");
    ensure!(storage > (LIMIT - 2 * CHUNK) as u64 && storage <= LIMIT as u64, "{used}");
    let other = json!({ "name": "ONE", "subjects": ["ONE.>"], "num_replicas": 3 });
    api_ok(&b, "STREAM.CREATE.ONE", &other).await?;
    ensure!(publish(&b, "ONE.x").await?, "another account has room");

    // It holds for a node that was away, too, as soon as it has heard of the others.
    let gone = cluster.index_of(&leader(&a, "TWO").await?)?;
    cluster.kill(gone)?;
    cluster.start(gone)?;
    cluster.answers(gone).await?;
    let two = client(&cluster, gone, "a").await?;
    wait_until("it is refused there", PATIENCE, async || Ok((!publish(&two, "TWO.x").await?).then_some(())))
        .await?;

    // Room that is made on one node is there on all. What that node took before it had heard goes first: on a busy machine
    // it may be as much as the account may have.
    let on = client(&cluster, 0, "a").await?;
    api_ok(&on, "STREAM.PURGE.TWO", &json!({ "keep": 12 })).await?;
    api_ok(&on, "STREAM.PURGE.ONE", &Value::Null).await?;
    wait_until("there is room", PATIENCE, async || Ok(publish(&two, "TWO.x").await?.then_some(()))).await
}

#[tokio::test]
async fn the_system_account_operates_and_is_told() -> Result<()> {
    let cluster = start().await?;
    let (a, b) = (client(&cluster, 0, "a").await?, client(&cluster, 0, "b").await?);
    let mut told = Vec::new();
    let mut operators = Vec::new();
    for node in 0..3 {
        let operator = client(&cluster, node, "s").await?;
        told.push(operator.subscribe("$JS.EVENT.ADVISORY.>").await?);
        operator.flush().await?;
        operators.push(operator);
    }
    let mut told = told.swap_remove(0);
    let config = |name: &str| json!({ "name": name, "subjects": [format!("{name}.>")], "num_replicas": 3 });
    for name in ["X", "Y"] {
        api_ok(&a, &format!("STREAM.CREATE.{name}"), &config(name)).await?;
    }
    api_ok(&b, "STREAM.CREATE.X", &config("X")).await?;
    ensure!(publish(&a, "X.x").await? && publish(&b, "X.x").await?);

    // Operators move leaders; others are not answered.
    let refused = a.request("$JS.API.META.LEADER.STEPDOWN", "".into());
    ensure!(tokio::time::timeout(Duration::from_millis(500), refused).await.is_err(), "a tenant operates");
    wait_until("the meta leader goes", PATIENCE, async || {
        let moved = api(&operators[0], "META.LEADER.STEPDOWN", &Value::Null).await?;
        Ok((moved["success"] == true).then_some(()))
    })
    .await?;
    let mut kinds = Vec::new();
    let both = async {
        while !(kinds.contains(&"domain_leader_elected".to_owned())
            && kinds.contains(&"stream_leader_elected".to_owned()))
        {
            let advisory: Value = serde_json::from_slice(&told.next().await.context("ended")?.payload)?;
            let kind = advisory["type"]
                .as_str()
                .unwrap_or_default()
                .rsplit('.')
                .next()
                .unwrap_or_default()
                .to_owned();
            if kind == "stream_leader_elected" {
                ensure!(advisory["account"] == "A" || advisory["account"] == "B", "{advisory}");
            }
            kinds.push(kind);
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, both).await.context("not told of both")??;

    // All that an account has goes, and nothing of others.
    wait_until("the purge is begun", PATIENCE, async || {
        let purged = api(&operators[0], "ACCOUNT.PURGE.A", &Value::Null).await?;
        Ok((purged["initiated"] == true).then_some(()))
    })
    .await?;
    for node in 0..3 {
        let (a, b) = (client(&cluster, node, "a").await?, client(&cluster, node, "b").await?);
        ensure!(api_ok(&a, "STREAM.NAMES", &Value::Null).await?["total"] == 0);
        ensure!(api_ok(&b, "STREAM.NAMES", &Value::Null).await?["streams"] == json!(["X"]));
    }
    wait_until("files and groups are gone", PATIENCE, async || {
        let jsz = cluster.node(1).monitoring("/jsz?streams=1").await?;
        let accounts = jsz["account_details"].as_array().context("accounts")?;
        let left: Vec<usize> =
            accounts.iter().map(|one| one["stream_detail"].as_array().map_or(0, Vec::len)).collect();
        ensure!(accounts[0]["reserved_storage"] == LIMIT && left.len() == 2, "{jsz}");
        Ok((left == [0, 1]).then_some(()))
    })
    .await
}

#[tokio::test]
async fn an_account_has_as_many_connections_as_it_may_have_on_all_nodes_together() -> Result<()> {
    let limited = "accounts {
      A { users [{ user: a, password: a }], limits { max_connections: 3 } }
      B { users [{ user: b, password: b }], jetstream: enabled }
    }
    no_auth_user: b";
    let mut cluster =
        Cluster::with(Setup { nodes: 3, extra: limited.to_owned(), ..Setup::default() }).await?;
    let let_in = async |cluster: &Cluster, node: usize| {
        let mut raw = Raw::connect(cluster.node(node).address()).await?;
        let is_in = raw.hello(&json!({ "user": "a", "pass": "a" })).await.is_ok();
        anyhow::Ok(is_in.then_some(raw))
    };
    let first = [let_in(&cluster, 0).await?, let_in(&cluster, 1).await?, let_in(&cluster, 2).await?];
    ensure!(first.iter().all(Option::is_some), "there is room for three");

    for node in 0..3 {
        wait_until("the fourth is refused", PATIENCE, async || {
            Ok(let_in(&cluster, node).await?.is_none().then_some(()))
        })
        .await?;
    }
    let [_zero, one, _two] = first;
    drop(one);
    let again = wait_until("there is room again", PATIENCE, async || let_in(&cluster, 2).await).await?;
    wait_until("and then none", PATIENCE, async || Ok(let_in(&cluster, 1).await?.is_none().then_some(())))
        .await?;

    // Clients of a node that is gone are gone, too; nats-server takes more than a minute to say so.
    if cluster.program().is_levee() {
        cluster.kill(0)?;
        let _last = wait_until("their room is free", PATIENCE, async || let_in(&cluster, 1).await).await?;
    }
    drop(again);
    Ok(())
}
