//! Priority groups: the same pull requests to both servers, and the same messages, statuses and advisories to whoever
//! asked.

use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::{Client, Message, Subscriber};
use futures::StreamExt as _;
use futures::stream::{SelectAll, select_all};
use levee_tests::archive::api;
use levee_tests::cluster::Cluster;
use levee_tests::wait::PATIENCE;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::pair::{Differences, Pair, normalized};

/// Nothing more comes after this long without anything. Too short, and answers show up a step later.
const QUIET: Duration = Duration::from_millis(300);

enum Step {
    /// A call of the API, below `$JS.API.`, and its body.
    Call(&'static str, &'static str),
    /// A request to a consumer, under a name for its inbox; `{pin}` is the id that was given out last.
    Pull(&'static str, &'static str, &'static str),
    Publish(usize),
    /// Collects what is said until nothing more comes.
    Look,
    /// Collects what is said until an advisory tells that a pin ended.
    Unpinned,
}
use Step::{Call, Look, Publish, Pull, Unpinned};

const STEPS: &[Step] = &[
    Call("STREAM.CREATE.P", r#"{"name":"P","subjects":["p"]}"#),
    // Overflow. Two groups are one queue.
    Publish(4),
    Call(
        "CONSUMER.CREATE.P.over",
        r#"{"stream_name":"P","config":{"durable_name":"over","ack_policy":"explicit","priority_policy":"overflow","priority_groups":["g","h"]}}"#,
    ),
    Pull("over", "five pending", r#"{"group":"g","batch":2,"min_pending":5}"#),
    Pull("over", "unbounded", r#"{"group":"g"}"#),
    Look,
    Pull("over", "two unacked", r#"{"group":"h","min_ack_pending":2}"#),
    Look,
    Pull("over", "one unacked", r#"{"group":"h","min_ack_pending":1}"#),
    Look,
    Pull("over", "not waiting", r#"{"group":"g","min_pending":9,"no_wait":true}"#),
    Look,
    Pull("over", "plain", "1"),
    Look,
    Publish(5),
    Look,
    Publish(3),
    Look,
    Pull("over", "either", r#"{"group":"g","min_pending":99,"min_ack_pending":2}"#),
    Look,
    Pull("over", "negative", r#"{"group":"g","min_pending":-1}"#),
    Look,
    Pull("over", "no group", r#"{"batch":1}"#),
    Pull("over", "unknown group", r#"{"group":"x"}"#),
    Pull("over", "a pin", r#"{"group":"g","id":"x"}"#),
    Pull("over", "no group and a pin", r#"{"id":"x"}"#),
    Pull("over", "ten", r#"{"group":"g","priority":10}"#),
    Look,
    Call("CONSUMER.INFO.P.over", ""),
    Call("CONSUMER.UNPIN.P.over", r#"{"group":"h"}"#),
    Look,
    // Prioritized.
    Call(
        "CONSUMER.CREATE.P.prio",
        r#"{"stream_name":"P","config":{"durable_name":"prio","deliver_policy":"new","priority_policy":"prioritized","priority_groups":["g"]}}"#,
    ),
    Pull("prio", "plain", "2"),
    Pull("prio", "nine", r#"{"group":"g","priority":9,"batch":2}"#),
    Pull("prio", "zero", r#"{"group":"g"}"#),
    Pull("prio", "three", r#"{"group":"g","priority":3,"batch":3}"#),
    Pull("prio", "another three", r#"{"group":"g","priority":3}"#),
    Pull("prio", "bounded", r#"{"group":"g","min_pending":1}"#),
    Look,
    Publish(1),
    Look,
    Publish(1),
    Look,
    Publish(2),
    Look,
    Pull("prio", "one", r#"{"group":"g","priority":1}"#),
    Publish(6),
    Look,
    // Pinned.
    Call(
        "CONSUMER.CREATE.P.pin",
        r#"{"stream_name":"P","config":{"durable_name":"pin","deliver_policy":"new","priority_policy":"pinned_client","priority_groups":["g","h"]}}"#,
    ),
    Pull("pin", "first", r#"{"group":"g","batch":2}"#),
    Pull("pin", "second", r#"{"group":"g","batch":2}"#),
    Publish(1),
    Look,
    Call("CONSUMER.INFO.P.pin", ""),
    Publish(2),
    Look,
    Pull("pin", "pinned", r#"{"group":"g","batch":1,"id":"{pin}"}"#),
    Look,
    Pull("pin", "wrong pin", r#"{"group":"g","id":"wrong"}"#),
    Pull("pin", "other group", r#"{"group":"h"}"#),
    Pull("pin", "plain", ""),
    Pull("pin", "bounded", r#"{"group":"g","min_pending":1}"#),
    Pull("pin", "no group", r#"{"id":"{pin}"}"#),
    Publish(1),
    Look,
    Call("CONSUMER.UNPIN.P.pin", r#"{"group":"g"}"#),
    Look,
    Call("CONSUMER.INFO.P.pin", ""),
    Pull("pin", "late", r#"{"group":"g","batch":1,"id":"{pin}"}"#),
    Look,
    Call("CONSUMER.UNPIN.P.pin", r#"{"group":"h"}"#),
    Pull("pin", "under an old pin", r#"{"group":"g","id":"wrong","batch":3}"#),
    Publish(3),
    Look,
    Call("CONSUMER.INFO.P.pin", ""),
    // Nobody is pinned by a request that names no group.
    Call(
        "CONSUMER.CREATE.P.bare",
        r#"{"stream_name":"P","config":{"durable_name":"bare","deliver_policy":"new","headers_only":true,"priority_policy":"pinned_client","priority_groups":["g"]}}"#,
    ),
    Pull("bare", "plain", ""),
    Publish(1),
    Look,
    Pull("bare", "grouped", r#"{"group":"g"}"#),
    Publish(1),
    Look,
    // A pin ends when no request comes.
    Call(
        "CONSUMER.CREATE.P.brief",
        r#"{"stream_name":"P","config":{"durable_name":"brief","deliver_policy":"new","priority_policy":"pinned_client","priority_groups":["g"],"priority_timeout":2000000000}}"#,
    ),
    Pull("brief", "first", r#"{"group":"g","batch":2}"#),
    Publish(1),
    Unpinned,
    Call("CONSUMER.INFO.P.brief", ""),
    Pull("brief", "second", r#"{"group":"g"}"#),
    Publish(1),
    Look,
];

/// One server, and what was heard from it.
struct Side {
    client: Client,
    inbox: String,
    heard: SelectAll<Subscriber>,
    /// The ids of pins, in the order in which they were seen.
    pins: Vec<String>,
}

impl Side {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client(0).await?;
        let inbox = client.new_inbox();
        let mut subscribers = Vec::new();
        for subject in [
            format!("{inbox}.>"),
            "$JS.EVENT.ADVISORY.CONSUMER.PINNED.>".to_owned(),
            "$JS.EVENT.ADVISORY.CONSUMER.UNPINNED.>".to_owned(),
        ] {
            subscribers.push(client.subscribe(subject).await?);
        }
        client.flush().await?;
        Ok(Self { client, inbox, heard: select_all(subscribers), pins: Vec::new() })
    }

    /// Takes a step. What there is to compare after it, in no order.
    async fn take(&mut self, step: &Step) -> Result<Vec<Value>> {
        match step {
            Call(call, body) => {
                let body = if body.is_empty() { json!({}) } else { serde_json::from_str(body)? };
                let answer = normalized(&api(&self.client, call, &body).await?);
                return Ok(vec![self.masked(answer)]);
            }
            Pull(consumer, to, body) => {
                let to = format!("{}.{consumer}.{}", self.inbox, to.replace(' ', "_"));
                let body = body.replace("{pin}", self.pins.last().map_or("", String::as_str));
                let next = format!("$JS.API.CONSUMER.MSG.NEXT.P.{consumer}");
                self.client.publish_with_reply(next, to, body.into()).await?;
                self.client.flush().await?;
            }
            Publish(count) => {
                for number in 0..*count {
                    let ack = self.client.request("p", number.to_string().into()).await?;
                    anyhow::ensure!(!ack.payload.windows(5).any(|found| found == b"error"), "{ack:?}");
                }
            }
            Look => return self.look(QUIET, |_| false).await,
            Unpinned => {
                return self.look(PATIENCE, |subject| subject.contains(".UNPINNED.")).await;
            }
        }
        Ok(Vec::new())
    }

    /// What is said, until nothing more comes for this long or until what was waited for is there.
    async fn look(&mut self, quiet: Duration, is_last: impl Fn(&str) -> bool) -> Result<Vec<Value>> {
        let mut said = Vec::new();
        while let Ok(message) = timeout(quiet, self.heard.next()).await {
            let message = message.context("the connection is gone")?;
            let one = self.shown(&message);
            said.push(self.masked(one));
            if is_last(&message.subject) {
                break;
            }
        }
        // Statuses and messages of different requests overtake one another.
        said.sort_by_key(Value::to_string);
        Ok(said)
    }

    fn shown(&mut self, message: &Message) -> Value {
        let headers = message.headers.iter().flat_map(async_nats::HeaderMap::iter);
        let mut headers: Vec<String> = headers
            .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")))
            .collect();
        headers.sort_unstable();
        let body = serde_json::from_slice(&message.payload)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&message.payload).into_owned()));
        let pin = headers.iter().find_map(|line| line.strip_prefix("Nats-Pin-Id: "));
        if let Some(pin) = pin.or_else(|| body["pinned_id"].as_str())
            && !pin.is_empty()
            && !self.pins.iter().any(|known| known == pin)
        {
            self.pins.push(pin.to_owned());
        }
        // $JS.ACK.<stream>.<consumer>.<attempt>.<stream seq>.<consumer seq>.<time>.<pending>: up to the time.
        let reply = message.reply.as_ref().map(|reply| reply.split('.').take(7).collect::<Vec<_>>());
        json!({
            "to": message.subject.strip_prefix(&self.inbox).unwrap_or(&message.subject),
            "status": message.status.map(|status| status.as_u16()),
            "description": message.description,
            "headers": headers,
            "body": normalized(&body),
            "reply": reply,
        })
    }

    /// Ids of pins by their number, and times of pins as there or not.
    fn masked(&self, value: Value) -> Value {
        match value {
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| {
                    let is_set = name == "pinned_ts" && value != "0001-01-01T00:00:00Z";
                    let value = if is_set { Value::String("(set)".to_owned()) } else { self.masked(value) };
                    (name, value)
                })
                .collect(),
            Value::Array(values) => values.into_iter().map(|value| self.masked(value)).collect(),
            Value::String(text) => {
                let masked =
                    self.pins.iter().enumerate().fold(text, |text, (number, pin)| {
                        text.replace(pin.as_str(), &format!("(pin {number})"))
                    });
                Value::String(masked)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => value,
        }
    }
}

#[tokio::test]
async fn the_same_requests_of_priority_groups_get_the_same() -> Result<()> {
    let test = "the_same_requests_of_priority_groups_get_the_same";
    let Some(pair) = Pair::start(test, "").await? else { return Ok(()) };
    let mut found = Differences::default();
    let (mut reference, mut subject) = (Side::new(&pair.reference).await?, Side::new(&pair.subject).await?);
    let mut heard = 0;

    let mut before = String::new();
    for step in STEPS {
        let (one, other) = tokio::join!(reference.take(step), subject.take(step));
        let (one, other) = (one?, other?);
        heard += one.len();
        let told = match step {
            Call(call, body) => format!("{call} {body}"),
            Pull(consumer, to, body) => format!("{consumer} '{to}' {body}"),
            Publish(count) => format!("publish {count}"),
            Look | Unpinned => format!("after {before}"),
        };
        found.compare(&told, &Value::Array(one), &Value::Array(other));
        before = told;
    }

    anyhow::ensure!(reference.pins.len() >= 5, "only {:?} were pinned", reference.pins);
    anyhow::ensure!(heard >= 60, "only {heard} messages were heard");
    println!("{} steps, {heard} messages, {} pins", STEPS.len(), reference.pins.len());
    found.demand_none()
}
