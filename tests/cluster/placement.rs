//! Where streams are placed, by the tags of servers: the same of either server.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use levee_tests::client::{api, api_ok, holders, leader};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};

/// Four servers in three zones, one of them without fast disks.
async fn tagged(jetstream: &str, started: usize) -> Result<Cluster> {
    let tags = ["[\"az:1\", SSD]", "[\"az:2\", \"ssd\"]", "[\"az:3\", \"ssd\"]", "\"az:3\""];
    let single = tags.iter().map(|tags| format!("server_tags: {tags}")).collect();
    let jetstream = jetstream.to_owned();
    Cluster::with(Setup { nodes: 4, started, single, jetstream, ..Setup::default() }).await
}

async fn create(
    client: &async_nats::Client,
    name: &str,
    replicas: usize,
    placement: &Value,
) -> Result<Value> {
    let mut config = json!({ "name": name, "num_replicas": replicas });
    if !placement.is_null() {
        config["placement"] = placement.clone();
    }
    api(client, &format!("STREAM.CREATE.{name}"), &config).await
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn streams_are_on_servers_with_their_tags_and_move_when_these_change() -> Result<()> {
    let cluster = tagged("", 4).await?;
    let client = cluster.client(0).await?;

    for (name, replicas, tags, on) in [
        ("ONE", 1, json!(["az:2"]), ["n2"].as_slice()),
        ("TWO", 2, json!(["AZ:3"]), &["n3", "n4"]),
        ("FAST", 3, json!(["ssd"]), &["n1", "n2", "n3"]),
        ("SLOW", 1, json!(["!ssd"]), &["n4"]),
        ("BOTH", 1, json!(["az:3", "ssd"]), &["n3"]),
    ] {
        let made = create(&client, name, replicas, &json!({ "tags": tags })).await?;
        ensure!(made.get("error").is_none(), "{made}");
        ensure!(
            holders(&client, name).await? == names(on),
            "{name} is on {:?}",
            holders(&client, name).await?
        );
    }
    let config = &create(&client, "OWN", 1, &json!({ "cluster": cluster.name() })).await?["config"];
    ensure!(config["placement"]["cluster"] == cluster.name(), "{config}");
    for (placement, description) in [
        (json!({ "tags": ["nope"] }), "no suitable peers for placement, tags not matched ['nope']"),
        (json!({ "cluster": "nope" }), "no suitable peers for placement"),
    ] {
        let refused = create(&client, "X", 1, &placement).await?;
        ensure!(refused["error"]["err_code"] == 10005, "{refused}");
        ensure!(refused["error"]["description"] == description, "{refused}");
    }

    client.request("ONE", "kept".into()).await?;
    let moved = json!({ "name": "ONE", "placement": { "tags": ["az:1"] } });
    api_ok(&client, "STREAM.UPDATE.ONE", &moved).await?;
    wait_until("the stream has moved", PATIENCE, async || {
        let info = api_ok(&client, "STREAM.INFO.ONE", &Value::Null).await?;
        ensure!(info["cluster"]["leader"] == "n1" && info["state"]["messages"] == 1, "{info}");
        Ok(Some(()))
    })
    .await?;

    // Leaders go only where they are wanted.
    let nowhere = json!({ "placement": { "tags": ["nope"] } });
    let refused = api(&client, "STREAM.LEADER.STEPDOWN.FAST", &nowhere).await?;
    ensure!(refused["error"]["description"] == "no replacement peer connected", "{refused}");
    for zone in ["az:1", "az:2", "az:3"] {
        let wanted = format!("n{}", &zone[3..]);
        if leader(&client, "FAST").await? == wanted {
            continue;
        }
        api_ok(&client, "STREAM.LEADER.STEPDOWN.FAST", &json!({ "placement": { "tags": [zone] } })).await?;
        wait_until(&format!("{wanted} leads"), PATIENCE, async || {
            Ok((leader(&client, "FAST").await? == wanted).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_moves_on_request_to_where_its_tags_and_those_of_the_request_are() -> Result<()> {
    let cluster = tagged("", 4).await?;
    let client = cluster.client(0).await?;
    for (name, tags) in
        [("FREE", Value::Null), ("ZONE", json!({ "tags": ["az:3"] })), ("BOUND", json!({ "tags": ["az:1"] }))]
    {
        let made = create(&client, name, 1, &tags).await?;
        ensure!(made.get("error").is_none(), "{made}");
        wait_until(&format!("{name} takes a message"), PATIENCE, async || {
            // On nats-server another node may not know of the stream yet.
            Ok(client.request(name, "kept".into()).await.ok())
        })
        .await?;
    }
    let moves = async |name: &str, request: Value| {
        api(&client, &format!("ACCOUNT.STREAM.MOVE.$G.{name}"), &request).await
    };
    let is_on = async |name: &str, node: &str| {
        wait_until(&format!("{name} is on {node}"), PATIENCE, async || {
            let info = api_ok(&client, &format!("STREAM.INFO.{name}"), &Value::Null).await?;
            let cluster = &info["cluster"];
            ensure!(cluster["leader"] == node && cluster.get("desired").is_none(), "{info}");
            ensure!(info["state"]["messages"] == 1, "{info}");
            Ok(Some(info["config"]["placement"].clone()))
        })
        .await
    };
    let free_on = leader(&client, "FREE").await?;
    let other = if free_on == "n2" { "n1" } else { "n2" };

    for (name, request, code, description) in [
        ("NONE", json!({}), 10059, "stream not found"),
        ("FREE", json!({ "server": "nobody" }), 10044, "server is not a member of the cluster"),
        (
            "FREE",
            json!({ "server": free_on, "cluster": "X" }),
            10044,
            "server is not a member of the cluster",
        ),
        ("FREE", json!({ "server": other }), 10040, "peer not a member"),
        (
            "FREE",
            json!({ "tags": ["nope"] }),
            10005,
            "no suitable peers for placement, tags not matched ['nope']",
        ),
        ("BOUND", json!({}), 10005, "no suitable peers for placement, tags not matched ['az:1']"),
        (
            "BOUND",
            json!({ "tags": ["az:2"] }),
            10005,
            "no suitable peers for placement, tags not matched ['az:1']",
        ),
        ("FREE", json!({ "x": 1 }), 10025, "invalid JSON: json: unknown field \"x\""),
    ] {
        let refused = moves(name, request.clone()).await?;
        ensure!(refused["error"]["err_code"] == code, "{name} {request}: {refused}");
        ensure!(refused["error"]["description"] == description, "{name} {request}: {refused}");
    }
    let cancelled = api(&client, "STREAM.CANCEL_MOVE.FREE", &Value::Null).await?;
    ensure!(cancelled["error"]["err_code"] == 10129, "{cancelled}");
    let both = json!({ "name": "FREE", "num_replicas": 3, "placement": { "tags": ["ssd"] } });
    let both = api(&client, "STREAM.UPDATE.FREE", &both).await?;
    ensure!(both["error"]["err_code"] == 10123, "{both}");

    let zone_on = leader(&client, "ZONE").await?;
    let moved = moves("ZONE", json!({ "server": zone_on })).await?;
    let (from, to) = if zone_on == "n3" { ("n3", "n4") } else { ("n4", "n3") };
    ensure!(moved.get("error").is_none() && zone_on == from, "{moved}");
    ensure!(is_on("ZONE", to).await? == json!({ "tags": ["az:3"] }));
    let moved = moves("FREE", json!({ "tags": [if free_on == "n2" { "az:1" } else { "az:2" }] })).await?;
    ensure!(moved.get("error").is_none(), "{moved}");
    ensure!(is_on("FREE", other).await?.is_null(), "the tags are those of this move");
    Ok(())
}

#[tokio::test]
async fn replicas_are_in_different_zones_when_that_is_configured() -> Result<()> {
    // The harness would wait for a stream with a replica on each of the four, which there can't be.
    let mut cluster = tagged("unique_tag: \"az:\"", 0).await?;
    (0..4).try_for_each(|node| cluster.start(node))?;
    for node in 0..4 {
        cluster.answers(node).await?;
    }
    let client = cluster.client(0).await?;
    wait_until("a stream can have a replica in each zone", PATIENCE, async || {
        let made = create(&client, "READY", 3, &Value::Null).await?;
        ensure!(made.get("error").is_none(), "{made}");
        Ok(Some(()))
    })
    .await?;
    let refused = create(&client, "FOUR", 4, &Value::Null).await?;
    ensure!(refused["error"]["err_code"] == 10005, "{refused}");

    for number in 0..4 {
        let name = format!("S{number}");
        let made = create(&client, &name, 3, &Value::Null).await?;
        ensure!(made.get("error").is_none(), "{made}");
        let holders = holders(&client, &name).await?;
        ensure!(holders.contains("n1") && holders.contains("n2") && holders.len() == 3, "{holders:?}");
    }
    // Who names a zone means that one.
    let made = create(&client, "NAMED", 2, &json!({ "tags": ["az:3"] })).await?;
    ensure!(made.get("error").is_none(), "{made}");
    ensure!(holders(&client, "NAMED").await? == names(&["n3", "n4"]));
    Ok(())
}
