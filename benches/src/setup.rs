//! Streams and consumers, made through the API.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::client::Client;
use crate::servers::Servers;

/// The stream that most rows use.
pub const STREAM: &str = "BENCH";

/// How long something may be refused for the time being.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a stream lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Storage {
    /// On disk.
    File,
    /// In memory.
    Memory,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// An API request whose answer must not be an error.
pub fn api(client: &mut Client, endpoint: &str, body: &Value) -> anyhow::Result<Value> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(&format!("$JS.API.{endpoint}"), &body)?;
    let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{endpoint}: {answer}"))?;
    ensure!(answer["error"].is_null(), "{endpoint}: {}", answer["error"]);
    Ok(answer)
}

/// Makes the stream of a row, with one replica for each node. `more` are fields of its configuration.
pub fn create_stream(servers: &Servers, storage: Storage, more: Value) -> anyhow::Result<()> {
    create_stream_called(servers, STREAM, &["bench", "bench.>"], storage, more)
}

/// The same with a name and subjects of its own.
pub fn create_stream_called(
    servers: &Servers,
    name: &str,
    subjects: &[&str],
    storage: Storage,
    more: Value,
) -> anyhow::Result<()> {
    let mut config = json!({
        "name": name,
        "subjects": subjects,
        "num_replicas": servers.nodes(),
        "storage": storage.name(),
    });
    merge(&mut config, more);
    let mut client = Client::connect(servers.address(0))?;
    api(&mut client, &format!("STREAM.CREATE.{name}"), &config)?;
    Ok(())
}

/// Makes a durable pull consumer. `more` are fields of its configuration.
pub fn create_consumer(servers: &Servers, name: &str, more: Value) -> anyhow::Result<()> {
    let mut config = json!({ "durable_name": name, "ack_policy": "explicit", "max_ack_pending": 10_000 });
    merge(&mut config, more);
    create_consumer_of(&mut Client::connect(servers.address(0))?, name, &config)?;
    if servers.nodes() > 1 && config["deliver_subject"].is_null() {
        wait_until_reachable(leader(servers, STREAM)?, name)?;
    }
    Ok(())
}

/// On nats-server it takes a moment until other nodes know of a new consumer. The request is one that is refused.
fn wait_until_reachable(address: &str, consumer: &str) -> anyhow::Result<()> {
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}");
    let body = json!({ "expires": 1_000_000_000, "idle_heartbeat": 1_000_000_000 }).to_string();
    let (mut client, deadline) = (Client::connect(address)?, Instant::now() + PATIENCE);
    while let Err(error) = client.request(&subject, &body) {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Makes a consumer of exactly this configuration.
pub fn create_consumer_of(client: &mut Client, name: &str, config: &Value) -> anyhow::Result<()> {
    let body = json!({ "stream_name": STREAM, "config": config });
    api_patiently(client, &format!("CONSUMER.CREATE.{STREAM}.{name}"), &body)?;
    Ok(())
}

/// What is temporarily unavailable is asked for again, as clients do.
pub fn api_patiently(client: &mut Client, endpoint: &str, body: &Value) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match api(client, endpoint, body) {
            Err(error) if Instant::now() < deadline && format!("{error:#}").contains("10008") => {
                std::thread::sleep(Duration::from_millis(200));
            }
            answer => return answer,
        }
    }
}

/// What a stream says of itself.
pub fn stream_info(servers: &Servers, stream: &str) -> anyhow::Result<Value> {
    let mut client = Client::connect(servers.address(0))?;
    api(&mut client, &format!("STREAM.INFO.{stream}"), &Value::Null)
}

/// The address of the node that leads a stream. Clients of a stream connect there, on both sides.
pub fn leader<'a>(servers: &'a Servers, stream: &str) -> anyhow::Result<&'a str> {
    Ok(servers.address(leading_node(servers, stream)?))
}

/// The number of that node.
pub fn leading_node(servers: &Servers, stream: &str) -> anyhow::Result<usize> {
    let info = stream_info(servers, stream)?;
    let name = info["cluster"]["leader"].as_str().context("the stream has no leader")?;
    name.trim_start_matches('n').parse().context("servers are named n0, n1, n2")
}

/// Fails unless the stream has stored at least so many messages in its life.
pub fn expect_stored(servers: &Servers, messages: u64) -> anyhow::Result<()> {
    let last = stream_info(servers, STREAM)?["state"]["last_seq"].as_u64().unwrap_or(0);
    ensure!(last >= messages, "{messages} were acknowledged, the stream ends at {last}");
    Ok(())
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}
