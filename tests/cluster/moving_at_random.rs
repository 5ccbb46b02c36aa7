//! Replicas move, moves are cancelled, streams grow and shrink, and nodes die, in an order that a seed chooses, while clients
//! publish: nothing acknowledged is lost, every stream comes to rest, and nobody keeps what it gave away.
//!
//! `LEVEE_MOVES_SEED=17` runs another seed, `LEVEE_MOVES_STEPS=200` a longer one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::Client;
use levee_tests::checker::check;
use levee_tests::client::{api, api_ok, holders, lead, read_all};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::program::Program;
use levee_tests::skip;
use levee_tests::wait::{PATIENCE, wait_until};
use levee_tests::workload::Workload;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::moving::holds;

const NODES: usize = 4;
const STREAMS: [(&str, u64); 2] = [("THREE", 3), ("ONE", 1)];

fn variable(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

fn config(stream: &str, replicas: u64) -> Value {
    json!({ "name": stream, "subjects": [format!("{stream}.>")], "num_replicas": replicas })
}

#[tokio::test]
async fn whatever_moves_and_dies_nothing_acknowledged_is_lost() -> Result<()> {
    if !Program::subject()?.is_levee() {
        skip::not_claimed("whatever_moves_and_dies_nothing_acknowledged_is_lost", "only Levee promises this");
        return Ok(());
    }
    let (seed, steps) = (variable("LEVEE_MOVES_SEED", 1)?, variable("LEVEE_MOVES_STEPS", 40)?);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::with(Setup { nodes: NODES, alone: true, ..Setup::default() }).await?;
    let client = cluster.any_client().await?;
    let mut publishers = Vec::new();
    for (stream, replicas) in STREAMS {
        api_ok(&client, &format!("STREAM.CREATE.{stream}"), &config(stream, replicas)).await?;
        let clients = vec![cluster.any_client().await?, cluster.any_client().await?];
        publishers.push((stream, Workload::start(clients, stream)));
    }

    for step in 0..steps {
        let done = step_once(&mut cluster, &client, &mut rng).await?;
        println!("seed {seed}, step {step}: {done}");
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..800))).await;
    }

    let mut held = [0; NODES];
    for (stream, publishers) in publishers {
        settled(&client, stream).await.with_context(|| format!("seed {seed}"))?;
        let acknowledged = publishers.finish().await?;
        ensure!(acknowledged.len() > 100, "only {} acknowledged", acknowledged.len());
        let messages: Vec<_> = acknowledged.into_iter().map(|one| one.message).collect();
        for name in holders(&client, stream).await? {
            held[cluster.index_of(&name)?] += 1;
            lead(&client, stream, &name).await?;
            let stored = read_all(&client, stream).await?;
            check(&messages, &stored).with_context(|| format!("seed {seed}: {stream} on {name}"))?;
        }
    }
    for (index, streams) in held.into_iter().enumerate() {
        holds(&cluster, index, streams).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// What the cluster refuses, or is too busy to answer, is refused: that is no failure here.
async fn step_once(cluster: &mut Cluster, client: &Client, rng: &mut StdRng) -> Result<String> {
    let (stream, _) = *STREAMS.choose(rng).context("no stream")?;
    let index = rng.random_range(0..NODES);
    let node = format!("n{}", index + 1);
    let (call, request) = match rng.random_range(0..10) {
        0 | 1 => (format!("ACCOUNT.STREAM.MOVE.$G.{stream}"), json!({ "server": node })),
        2 => (format!("ACCOUNT.STREAM.MOVE.$G.{stream}"), json!({})),
        3 => (format!("STREAM.CANCEL_MOVE.{stream}"), Value::Null),
        4 => (format!("STREAM.UPDATE.{stream}"), config(stream, *[1, 3].choose(rng).context("no size")?)),
        5 => (format!("STREAM.PEER.REMOVE.{stream}"), json!({ "peer": node })),
        6 => {
            // Where it may go to, or come from.
            cluster.pause(index)?;
            let moved = ask(client, &format!("ACCOUNT.STREAM.MOVE.$G.{stream}"), &json!({})).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..500))).await;
            let back = match rng.random_range(0..2) {
                0 => ask(client, &format!("STREAM.CANCEL_MOVE.{stream}"), &Value::Null).await,
                _ => "not cancelled".to_owned(),
            };
            cluster.resume(index)?;
            return Ok(format!("while {node} was paused, {moved}, {back}"));
        }
        _ => {
            cluster.kill(index)?;
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
            cluster.start(index)?;
            cluster.answers(index).await?;
            return Ok(format!("{node} was killed and started"));
        }
    };
    Ok(ask(client, &call, &request).await)
}

async fn ask(client: &Client, call: &str, request: &Value) -> String {
    let answer = match api(client, call, request).await {
        Ok(answer) => answer["error"]["description"].as_str().unwrap_or("done").to_owned(),
        Err(error) => format!("{error:#}"),
    };
    format!("{call} {request}: {answer}")
}

/// Waits until the stream is where it should be, all of it.
async fn settled(client: &Client, stream: &str) -> Result<()> {
    wait_until(&format!("{stream} is at rest"), PATIENCE, async || {
        let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        let cluster = &info["cluster"];
        let followers = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(cluster.get("desired").is_none(), "{cluster}");
        ensure!(info["config"]["num_replicas"] == followers.len() as u64 + 1, "{cluster}");
        ensure!(followers.iter().all(|follower| follower["current"] == true), "{cluster}");
        Ok(Some(()))
    })
    .await
}
