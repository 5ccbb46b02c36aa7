//! Streams out and in, as a client of the API does it: chunk by chunk.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::Client;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stream as its archive.
#[derive(Clone, Debug)]
pub struct Backup {
    /// The configuration it had.
    pub config: Value,
    /// What it held.
    pub state: Value,
    /// The bytes.
    pub archive: Vec<u8>,
    /// How many messages they came in.
    pub chunks: usize,
}

/// Calls the API.
///
/// # Errors
/// When nobody answers, or not with JSON.
pub async fn api(client: &Client, call: &str, body: &Value) -> Result<Value> {
    let answer = client.request(format!("$JS.API.{call}"), body.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

/// Backs a stream up. `fields` are added to the request.
///
/// # Errors
/// When it is refused or does not come to its end.
pub async fn backup(client: &Client, stream: &str, fields: &Value) -> Result<Backup> {
    let inbox = client.new_inbox();
    let mut chunks = client.subscribe(inbox.clone()).await?;
    let mut request = json!({ "deliver_subject": inbox });
    request.as_object_mut().context("an object")?.extend(fields.as_object().cloned().unwrap_or_default());
    let begun = api(client, &format!("STREAM.SNAPSHOT.{stream}"), &request).await?;
    ensure!(begun.get("error").is_none(), "{begun}");
    let mut backup = Backup {
        config: begun["config"].clone(),
        state: begun["state"].clone(),
        archive: Vec::new(),
        chunks: 0,
    };
    loop {
        let chunk = timeout(PATIENCE, chunks.next()).await.context("the next chunk")?.context("a chunk")?;
        if chunk.payload.is_empty() {
            if let Some(status) = chunk.status.filter(|status| status.as_u16() != 204) {
                bail!("the snapshot ended with {status} {:?}", chunk.description);
            }
            return Ok(backup);
        }
        backup.chunks += 1;
        backup.archive.extend_from_slice(&chunk.payload);
        if let Some(reply) = chunk.reply {
            client.publish(reply, Bytes::new()).await?;
        }
    }
}

/// Restores a stream from an archive that is sent in chunks of this size. Gives the last answer: the stream, or why not.
///
/// # Errors
/// When nobody answers.
pub async fn restore(client: &Client, request: &Value, archive: &[u8], chunk: usize) -> Result<Value> {
    let stream = request["config"]["name"].as_str().context("a name")?;
    let begun = api(client, &format!("STREAM.RESTORE.{stream}"), request).await?;
    let Some(subject) = begun["deliver_subject"].as_str().filter(|subject| !subject.is_empty()) else {
        return Ok(begun);
    };
    for chunk in archive.chunks(chunk).chain([&b""[..]]) {
        let answer = client.request(subject.to_owned(), chunk.to_vec().into());
        let answer = timeout(PATIENCE, answer).await.context("the answer to a chunk")??;
        if !answer.payload.is_empty() {
            return Ok(serde_json::from_slice(&answer.payload)?);
        }
    }
    bail!("the end of the archive was not answered");
}

/// Everything that can be seen of a stream: its state, its messages with their sequences and times, its consumers.
///
/// # Errors
/// When it can not be asked.
pub async fn seen(client: &Client, stream: &str) -> Result<Value> {
    let details = json!({"deleted_details": true, "subjects_filter": ">"});
    let info = api(client, &format!("STREAM.INFO.{stream}"), &details).await?;
    let mut state = info["state"].clone();
    state.as_object_mut().context("a state")?.remove("consumer_count");
    let (first, last) = (state["first_seq"].as_u64(), state["last_seq"].as_u64());
    let mut messages = Vec::new();
    for seq in first.context("first_seq")?..=last.context("last_seq")? {
        let answer = api(client, &format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": seq })).await?;
        messages.extend(answer.get("message").cloned());
    }
    let listed = api(client, &format!("CONSUMER.LIST.{stream}"), &json!({})).await?;
    let consumers = listed["consumers"].as_array().cloned().unwrap_or_default();
    let marks = consumers.iter().map(|consumer| {
        json!({
            "name": consumer["name"],
            "ack_floor": [consumer["ack_floor"]["consumer_seq"], consumer["ack_floor"]["stream_seq"]],
            "delivered": [consumer["delivered"]["consumer_seq"], consumer["delivered"]["stream_seq"]],
            "num_ack_pending": consumer["num_ack_pending"],
            "num_redelivered": consumer["num_redelivered"],
            "num_pending": consumer["num_pending"],
        })
    });
    Ok(json!({"state": state, "messages": messages, "consumers": marks.collect::<Vec<_>>()}))
}
