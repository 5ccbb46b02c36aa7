//! What tests ask of a server through async-nats, in the words of the tests.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::{Client, ConnectOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::checker::Stored;
use crate::wait::{PATIENCE, wait_until};

/// Connects to one of these and to no other, now and whenever the connection is lost.
///
/// # Errors
/// When none can be reached.
pub async fn connect_to(urls: &[String]) -> Result<Client> {
    let servers: Vec<async_nats::ServerAddr> =
        urls.iter().map(|url| url.parse()).collect::<Result<_, _>>().context("server url")?;
    wait_until("a client can connect", PATIENCE, async || {
        let client = ConnectOptions::new()
            .ignore_discovered_servers()
            .connection_timeout(Duration::from_secs(5))
            .reconnect_delay_callback(|attempts| Duration::from_millis(if attempts < 3 { 5 } else { 50 }))
            .request_timeout(Some(Duration::from_secs(10)))
            .connect(servers.clone())
            .await?;
        Ok(Some(client))
    })
    .await
}

/// A request to the JetStream API and its answer, error or not.
///
/// # Errors
/// When there is no answer.
pub async fn api(client: &Client, endpoint: &str, request: &Value) -> Result<Value> {
    let payload = if request.is_null() { String::new() } else { request.to_string() };
    let answer = client
        .request(format!("$JS.API.{endpoint}"), payload.into())
        .await
        .with_context(|| format!("request {endpoint}"))?;
    serde_json::from_slice(&answer.payload).with_context(|| format!("answer of {endpoint}"))
}

/// Like [`api`], and the answer must not be an error.
///
/// # Errors
/// When there is no answer, or it is an error.
pub async fn api_ok(client: &Client, endpoint: &str, request: &Value) -> Result<Value> {
    let answer = api(client, endpoint, request).await?;
    ensure!(answer.get("error").is_none(), "{endpoint}: {answer}");
    Ok(answer)
}

/// Waits until the stream has a leader, and gives its server name.
///
/// # Errors
/// When there is none.
pub async fn leader(client: &Client, stream: &str) -> Result<String> {
    wait_until(&format!("{stream} has a leader"), PATIENCE, async || {
        let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        Ok(info["cluster"]["leader"].as_str().filter(|name| !name.is_empty()).map(str::to_owned))
    })
    .await
}

/// Waits until the stream has a leader, and gives the server names of all who hold it.
///
/// # Errors
/// When there is none.
pub async fn holders(client: &Client, stream: &str) -> Result<BTreeSet<String>> {
    wait_until(&format!("{stream} has a leader"), PATIENCE, async || {
        let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        let Some(leader) = info["cluster"]["leader"].as_str().filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let followers = info["cluster"]["replicas"].as_array().into_iter().flatten();
        let names = followers.filter_map(|replica| replica["name"].as_str()).chain([leader]);
        Ok(Some(names.map(str::to_owned).collect()))
    })
    .await
}

/// Waits until all replicas of the stream are there and have everything.
///
/// # Errors
/// When they do not.
pub async fn replicas_current(client: &Client, stream: &str, replicas: usize) -> Result<()> {
    wait_until(&format!("all replicas of {stream} are current"), PATIENCE, async || {
        let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
        let followers = info["cluster"]["replicas"].as_array().context("no replicas")?;
        let is_current = |one: &Value| one["current"] == true && one["lag"].as_u64().unwrap_or(0) == 0;
        ensure!(followers.len() + 1 == replicas && followers.iter().all(is_current), "{}", info["cluster"]);
        Ok(Some(()))
    })
    .await
}

/// Makes a node the leader of the stream.
///
/// # Errors
/// When it does not become the leader.
pub async fn lead(client: &Client, stream: &str, node: &str) -> Result<()> {
    let request = json!({ "placement": { "preferred": node } });
    wait_until(&format!("{node} leads {stream}"), PATIENCE, async || {
        if leader(client, stream).await? == node {
            return Ok(Some(()));
        }
        let asked = api(client, &format!("STREAM.LEADER.STEPDOWN.{stream}"), &request).await?;
        // The new leader needs a moment; asking again meanwhile could send it away.
        let moved = wait_until("the leader moves", Duration::from_secs(8), async || {
            Ok((leader(client, stream).await? == node).then_some(()))
        });
        moved.await.with_context(|| format!("step-down answered {asked}"))?;
        Ok(Some(()))
    })
    .await
}

/// Everything the leader of a stream has, in order of sequence, gaps left out.
///
/// # Errors
/// When a message can not be read.
pub async fn read_all(client: &Client, stream: &str) -> Result<Vec<Stored>> {
    let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    let state = &info["state"];
    let first = state["first_seq"].as_u64().context("first sequence")?.max(1);
    let last = state["last_seq"].as_u64().context("last sequence")?;
    let js = async_nats::jetstream::new(client.clone());
    let handle = js.get_stream_no_info(stream).await?;
    let read: Vec<Option<Stored>> = futures::stream::iter(first..=last)
        .map(|seq| {
            let handle = &handle;
            async move {
                match handle.get_raw_message(seq).await {
                    Ok(message) => Ok(Some(Stored {
                        seq: message.sequence,
                        subject: message.subject.to_string(),
                        id: message
                            .headers
                            .get(async_nats::header::NATS_MESSAGE_ID)
                            .map(|id| id.as_str().to_owned())
                            .unwrap_or_default(),
                        body: String::from_utf8_lossy(&message.payload).into_owned(),
                    })),
                    Err(error)
                        if error.kind()
                            == async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound =>
                    {
                        Ok(None)
                    }
                    Err(error) => bail!("read {seq}: {error}"),
                }
            }
        })
        .buffered(128)
        .try_collect()
        .await?;
    let read: Vec<Stored> = read.into_iter().flatten().collect();
    let count = state["messages"].as_u64().context("messages")?;
    ensure!(read.len() as u64 == count, "the stream counts {count} messages and gives {}", read.len());
    Ok(read)
}

/// Everything that the replica on the client's own node has, in order of sequence: direct reads prefer the node that
/// the client is connected to. The stream must allow them.
///
/// # Errors
/// When a message can not be read.
pub async fn read_replica(client: &Client, stream: &str) -> Result<Vec<Stored>> {
    let info = api_ok(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    let first = info["state"]["first_seq"].as_u64().context("first sequence")?.max(1);
    let last = info["state"]["last_seq"].as_u64().context("last sequence")?;
    let subject = format!("$JS.API.DIRECT.GET.{stream}");
    let read: Vec<Option<Stored>> = futures::stream::iter(first..=last)
        .map(|seq| {
            let request = client.request(subject.clone(), json!({ "seq": seq }).to_string().into());
            async move {
                let message = request.await.with_context(|| format!("read {seq}"))?;
                direct_answer(&message).with_context(|| format!("read {seq}: {message:?}"))
            }
        })
        .buffered(128)
        .try_collect()
        .await?;
    Ok(read.into_iter().flatten().collect())
}

/// The message in a direct answer, or nothing when there is none of that sequence.
fn direct_answer(message: &async_nats::Message) -> Result<Option<Stored>> {
    if message.status.is_some_and(|status| status.as_u16() == 404) {
        return Ok(None);
    }
    let headers = message.headers.as_ref().context("no headers")?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    Ok(Some(Stored {
        seq: header("Nats-Sequence").context("no sequence")?.parse()?,
        subject: header("Nats-Subject").context("no subject")?,
        id: header("Nats-Msg-Id").unwrap_or_default(),
        body: String::from_utf8_lossy(&message.payload).into_owned(),
    }))
}

/// A JSON document over HTTP.
///
/// # Errors
/// When there is none.
pub async fn http_json(address: &str, path: &str) -> Result<Value> {
    let mut stream = tokio::net::TcpStream::connect(address).await.context("connect")?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    serde_json::from_str(body).with_context(|| format!("GET {path}: {answer}"))
}
