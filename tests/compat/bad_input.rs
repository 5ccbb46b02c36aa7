//! Garbage from outside. Whatever comes, the server closes that connection or ignores it, serves the others, and
//! keeps its memory.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use levee_tests::cluster::{Cluster, Setup};
use levee_tests::raw::Raw;
use levee_tests::wait::{PATIENCE, wait_until};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Pieces of the protocol that random input is made of.
const PIECES: &[&str] = &[
    "PUB ",
    "HPUB ",
    "SUB ",
    "UNSUB ",
    "CONNECT ",
    "PING",
    "PONG",
    "INFO ",
    "+OK",
    "-ERR ",
    "\r\n",
    "\r\n",
    "\r\n",
    "\n",
    " ",
    "\t",
    "a",
    "foo.bar",
    ">",
    "*",
    "..",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.X",
    "_INBOX.x",
    "0",
    "1",
    "5",
    "4294967296",
    "-1",
    "{}",
    "{\"verbose\":false,\"headers\":true}",
    "{\"verbose\":",
    "NATS/1.0\r\n\r\n",
    "hello",
    "\0",
    "\u{7f}",
    "\u{e9}",
    "MSG a 1 1",
    "RS+ a b",
    "LS+ a",
];

/// Still answers, to a client that is new.
async fn serves(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let mut raw = Raw::connect(node.address()).await?;
        raw.hello(&json!({})).await?;
        let info = raw.request_json("$JS.API.INFO", "").await?;
        ensure!(info.get("error").is_none(), "{info}");
        ensure!(!node.log().contains("panicked"), "{} panicked", node.name());
    }
    Ok(())
}

/// Resident memory of the only node, in bytes, as it tells itself.
async fn memory(cluster: &Cluster) -> Result<u64> {
    let varz = cluster.node(0).monitoring("/varz").await?;
    varz["mem"].as_u64().context("mem in /varz")
}

/// Sends bytes on a new connection and reads for a moment, whatever comes.
async fn throw(address: &str, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    // The server may close in the middle.
    let _ = timeout(Duration::from_secs(5), stream.write_all(bytes)).await;
    let mut buffer = vec![0; 4096];
    let _ = timeout(Duration::from_millis(5), stream.read(&mut buffer)).await;
    Ok(())
}

fn nonsense(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(1..60) {
        if random.random_range(0..12) == 0 {
            bytes.extend((0..random.random_range(1..40)).map(|_| random.random::<u8>()));
        } else {
            bytes.extend_from_slice(PIECES[random.random_range(0..PIECES.len())].as_bytes());
        }
    }
    bytes
}

#[tokio::test]
async fn garbage_hurts_only_who_sends_it() -> Result<()> {
    let cluster = Cluster::one().await?;
    let seed = match std::env::var("LEVEE_SEED") {
        Ok(seed) => seed.parse().context("LEVEE_SEED")?,
        Err(_) => rand::random(),
    };
    println!("repeat with LEVEE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bystander = Raw::connect(cluster.node(0).address()).await?;
    bystander.hello(&json!({})).await?;

    for round in 0..400 {
        throw(cluster.node(0).address(), &nonsense(&mut random)).await?;
        if round % 100 == 0 {
            serves(&cluster).await?;
        }
    }

    bystander.request_json("$JS.API.INFO", "").await.context("a client that was there all the time")?;
    serves(&cluster).await
}

#[tokio::test]
async fn half_lines_and_half_payloads_are_waited_for_and_given_up_with_the_connection() -> Result<()> {
    let cluster = Cluster::one().await?;
    let whole = b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPUB a 5\r\nhello\r\nPING\r\n";

    // Cut anywhere, and gone.
    for cut in 0..whole.len() {
        throw(cluster.node(0).address(), &whole[..cut]).await?;
    }
    // One byte at a time is as good as at once.
    let mut stream = TcpStream::connect(cluster.node(0).address()).await?;
    stream.set_nodelay(true)?;
    for byte in whole {
        stream.write_all(&[*byte]).await?;
        tokio::task::yield_now().await;
    }
    let mut heard = String::new();
    wait_until("PONG", PATIENCE, async || {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await?;
        heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
        Ok(heard.contains("PONG\r\n").then_some(()))
    })
    .await?;
    ensure!(heard.contains("MSG a 1 5\r\nhello\r\nPONG\r\n"), "{heard}");
    serves(&cluster).await
}

#[tokio::test]
async fn endless_lines_and_payloads_take_no_memory() -> Result<()> {
    let cluster = Cluster::one().await?;
    let before = memory(&cluster).await?;
    let line = "a".repeat(8 * 1024 * 1024);
    let connect = "CONNECT {\"verbose\":false,\"headers\":true}\r\n";

    for _ in 0..5 {
        for said in [
            line.clone(),
            format!("{connect}SUB {line}"),
            format!("{connect}PUB {line} 5\r\n"),
            format!("{connect}PUB a {}\r\n{line}\r\n", line.len()),
            format!("{connect}HPUB a 99999999 {}\r\n{line}\r\n", line.len()),
            format!("{connect}PUB a 99999999999\r\n{line}"),
            format!("CONNECT {{\"name\":\"{line}\"}}\r\n"),
        ] {
            throw(cluster.node(0).address(), said.as_bytes()).await?;
        }
    }
    serves(&cluster).await?;

    wait_until("memory is given back", PATIENCE, async || {
        let now = memory(&cluster).await?;
        ensure!(now < before + 200 * 1024 * 1024, "{before} bytes became {now}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_its_memory_bounded() -> Result<()> {
    let extra = "max_pending: 4MB\nwrite_deadline: \"2s\"".to_owned();
    let cluster = Cluster::with(Setup { extra, ..Setup::default() }).await?;
    let before = memory(&cluster).await?;
    let mut deaf = TcpStream::connect(cluster.node(0).address()).await?;
    deaf.write_all(b"CONNECT {\"verbose\":false,\"name\":\"deaf\"}\r\nSUB flood 1\r\nPING\r\n").await?;
    let mut hearing = Raw::connect(cluster.node(0).address()).await?;
    hearing.hello(&json!({})).await?;
    wait_until("the subscription is there", PATIENCE, async || {
        let answer = hearing.request("flood", "", "").await;
        // With somebody there who does not answer, there is none; before, it is told.
        Ok(answer.is_err().then_some(()))
    })
    .await?;

    let mut publisher = Raw::connect(cluster.node(0).address()).await?;
    publisher.hello(&json!({ "echo": false })).await?;
    let payload = "x".repeat(100_000);
    for _ in 0..400 {
        publisher.publish("flood", "", "", &payload).await?;
    }
    publisher.until_pong().await.context("the publisher is served on")?;

    wait_until("the deaf client is closed and counted", PATIENCE, async || {
        let varz = cluster.node(0).monitoring("/varz").await?;
        ensure!(varz["slow_consumers"].as_u64() >= Some(1), "{}", varz["slow_consumers"]);
        let closed = cluster.node(0).monitoring("/connz?state=closed").await?;
        let reasons = closed.to_string();
        ensure!(reasons.contains("Slow Consumer"), "{reasons}");
        Ok(Some(()))
    })
    .await?;
    let after = memory(&cluster).await?;
    ensure!(after < before + 200 * 1024 * 1024, "{before} bytes became {after}");
    drop(deaf);
    serves(&cluster).await
}

#[tokio::test]
async fn bad_requests_to_the_api_are_answered_or_ignored_and_never_fatal() -> Result<()> {
    let cluster = Cluster::one().await?;
    let mut random = StdRng::seed_from_u64(7);
    let endpoints = [
        "INFO",
        "STREAM.CREATE.X",
        "STREAM.UPDATE.X",
        "STREAM.INFO.X",
        "STREAM.NAMES",
        "STREAM.LIST",
        "STREAM.DELETE.Y",
        "STREAM.PURGE.X",
        "STREAM.MSG.GET.X",
        "STREAM.MSG.DELETE.X",
        "CONSUMER.CREATE.X",
        "CONSUMER.CREATE.X.c",
        "CONSUMER.CREATE.X.c.>",
        "CONSUMER.DURABLE.CREATE.X.c",
        "CONSUMER.NAMES.X",
        "CONSUMER.INFO.X.c",
        "DIRECT.GET.X",
        "CONSUMER.MSG.NEXT.X.c",
        "STREAM.LEADER.STEPDOWN.X",
        "STREAM.CREATE.*",
        "STREAM.CREATE.>",
        "STREAM.CREATE.",
        "STREAM",
        "",
        "CONSUMER.CREATE.X.c.a..b",
        "STREAM.INFO.a b",
    ];
    let payloads = [
        "",
        "{",
        "}",
        "[]",
        "null",
        "7",
        "\"x\"",
        "{\"name\":null}",
        "{\"name\":\"X\",\"subjects\":[7]}",
        "{\"name\":\"X\",\"subjects\":[\"x\"],\"max_msgs\":99999999999999999999}",
        "{\"config\":{}}",
        "{\"stream_name\":\"X\",\"config\":{\"durable_name\":\"c\",\"ack_wait\":-5}}",
        "{\"seq\":-1}",
        "{\"seq\":1e99}",
        "{\"batch\":-1}",
        "{\"batch\":9999999999}",
        "{\"offset\":-7}",
        "{\"subject\":\"..\"}",
        "{\"name\":\"../../etc\",\"subjects\":[\"e\"]}",
        "{\"name\":\"X\",\"subjects\":[\"x\"]}",
    ];
    let mut raw = Raw::connect(cluster.node(0).address()).await?;
    raw.hello(&json!({})).await?;

    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.contains(' ')) {
        for payload in payloads {
            raw.publish(&format!("$JS.API.{endpoint}"), "nobody.hears", "", payload).await?;
        }
        let deep = "[".repeat(random.random_range(1000..20_000));
        raw.publish(&format!("$JS.API.{endpoint}"), "nobody.hears", "", &deep).await?;
        raw.until_pong().await.with_context(|| (*endpoint).to_owned())?;
    }
    for header in [
        "NATS/1.0\r\nNats-Msg-Id\r\n\r\n",
        "NATS/1.0\r\n: x\r\n\r\n",
        "garbage",
        "NATS/1.0\r\nNats-Expected-Last-Sequence: 99999999999999999999\r\n\r\n",
    ] {
        raw.publish("x", "nobody.hears", header, "payload").await?;
    }
    raw.until_pong().await.context("bad headers")?;
    serves(&cluster).await
}

#[tokio::test]
async fn garbage_on_the_cluster_port_hurts_nobody() -> Result<()> {
    let cluster = Cluster::three().await?;
    let mut random = StdRng::seed_from_u64(11);
    let target = cluster.node(0).cluster_address();

    for said in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x04\x08\0\0\0\0\0\xff\xff\xff\xff",
        b"CONNECT {\"verbose\":false}\r\nPING\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"",
    ] {
        throw(target, said).await?;
    }
    for _ in 0..100 {
        let length = random.random_range(1..2000);
        let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
        throw(target, &bytes).await?;
        let mut framed = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        framed.extend(bytes);
        throw(target, &framed).await?;
    }

    serves(&cluster).await?;
    let client = cluster.client(1).await?;
    let js = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "STILL".into(),
        subjects: vec!["still".into()],
        num_replicas: 3,
        ..Default::default()
    };
    js.create_stream(config).await?;
    js.publish("still", "x".into()).await?.await?;
    Ok(())
}
