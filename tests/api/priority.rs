//! Priority groups of pull consumers: who gets the messages, and who waits.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, Message, Subscriber};
use futures::StreamExt as _;
use levee_tests::client::{api_ok, lead, leader};
use levee_tests::wait::{PATIENCE, wait_until};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::ground::{Ground, Home, text};

/// How long a request that gets nothing is watched.
const QUIET: Duration = Duration::from_millis(300);

/// A consumer `worker` with the group `g`, and a client of a node that does not lead it.
struct Group {
    home: Home,
    client: Client,
}

impl Group {
    async fn new(ground: &Ground, policy: &str, fields: Value) -> Result<Self> {
        let config = async_nats::jetstream::stream::Config { name: policy.into(), ..Default::default() };
        let home = ground.stream(config).await?;
        let client = home.client.clone();
        let group = Self { home, client };
        group.configure(policy, &fields).await?;
        Ok(group)
    }

    async fn configure(&self, policy: &str, fields: &Value) -> Result<()> {
        let mut config = json!({
            "durable_name": "worker",
            "ack_policy": "explicit",
            "priority_policy": policy,
            "priority_groups": ["g"],
        });
        config
            .as_object_mut()
            .context("an object")?
            .extend(fields.as_object().context("fields are an object")?.clone());
        let request = json!({ "stream_name": self.home.name, "config": config });
        self.api("CONSUMER.CREATE", &request).await?;
        Ok(())
    }

    async fn api(&self, call: &str, body: &Value) -> Result<Value> {
        api_ok(&self.client, &format!("{call}.{}.worker", self.home.name), body).await
    }

    /// Asks for messages; gives where they come.
    async fn pull(&self, body: Value) -> Result<Subscriber> {
        let inbox = self.client.new_inbox();
        let subscriber = self.client.subscribe(inbox.clone()).await?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.worker", self.home.name);
        self.client.publish_with_reply(next, inbox, body.to_string().into()).await?;
        self.client.flush().await?;
        Ok(subscriber)
    }

    async fn waiting(&self, count: u64) -> Result<()> {
        wait_until("the requests wait", PATIENCE, async || {
            let info = self.api("CONSUMER.INFO", &json!({})).await?;
            Ok((info["num_waiting"] == count).then_some(()))
        })
        .await
    }

    /// The id of the client that is pinned now; empty if nobody is.
    async fn pinned(&self) -> Result<String> {
        let info = self.api("CONSUMER.INFO", &json!({})).await?;
        ensure!(info["priority_groups"][0]["group"] == "g", "{info}");
        Ok(info["priority_groups"][0]["pinned_client_id"].as_str().unwrap_or_default().to_owned())
    }

    /// Has a first client pinned by one message, which is settled then; gives its id.
    async fn pin(&self) -> Result<String> {
        let mut first = self.pull(json!({"group": "g"})).await?;
        self.home.publish("a", "first").await?;
        let message = next(&mut first).await?;
        assert_eq!(text(&message.payload), "first");
        let reply = message.reply.clone().context("where to ack")?;
        self.client.request(reply, "+ACK".into()).await?;
        Ok(pin_id(&message))
    }
}

async fn next(from: &mut Subscriber) -> Result<Message> {
    timeout(PATIENCE, from.next()).await.context("nothing came")?.context("the connection is gone")
}

async fn stays_quiet(from: &mut Subscriber) -> Result<()> {
    match timeout(QUIET, from.next()).await {
        Ok(message) => anyhow::bail!("{message:?} came"),
        Err(_) => Ok(()),
    }
}

fn pin_id(message: &Message) -> String {
    let header = message.headers.as_ref().and_then(|headers| headers.get("Nats-Pin-Id"));
    header.map(|id| id.as_str().to_owned()).unwrap_or_default()
}

fn status(message: &Message) -> String {
    let code = message.status.map_or(0, |status| status.as_u16());
    format!("{code} {}", message.description.as_deref().unwrap_or_default())
}

async fn event(from: &mut Subscriber) -> Result<Value> {
    Ok(serde_json::from_slice(&next(from).await?.payload)?)
}

pub(crate) async fn a_request_with_a_bound_gets_only_what_overflows(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "overflow", json!({})).await?;
    let mut bounded = group.pull(json!({"group": "g", "batch": 9, "min_pending": 3})).await?;
    group.home.publish_many("a", 2).await?;
    stays_quiet(&mut bounded).await?;

    group.home.publish("a", "3").await?;

    assert_eq!(text(&next(&mut bounded).await?.payload), "1");
    stays_quiet(&mut bounded).await?;
    let mut unbounded = group.pull(json!({"group": "g", "batch": 2})).await?;
    assert_eq!(text(&next(&mut unbounded).await?.payload), "2");
    assert_eq!(text(&next(&mut unbounded).await?.payload), "3");
    Ok(())
}

pub(crate) async fn a_request_may_wait_until_others_are_busy(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "overflow", json!({})).await?;
    let mut bounded = group.pull(json!({"group": "g", "min_ack_pending": 2})).await?;
    let mut busy = group.pull(json!({"group": "g", "batch": 2})).await?;
    group.waiting(2).await?;

    group.home.publish_many("a", 3).await?;

    assert_eq!(text(&next(&mut busy).await?.payload), "1");
    assert_eq!(text(&next(&mut busy).await?.payload), "2");
    assert_eq!(text(&next(&mut bounded).await?.payload), "3");
    Ok(())
}

pub(crate) async fn a_lower_number_goes_first(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "prioritized", json!({})).await?;
    let mut late = group.pull(json!({"group": "g", "priority": 5})).await?;
    group.waiting(1).await?;
    let mut first = group.pull(json!({"group": "g", "batch": 2})).await?;
    group.waiting(2).await?;

    group.home.publish_many("a", 3).await?;

    assert_eq!(text(&next(&mut first).await?.payload), "1");
    assert_eq!(text(&next(&mut first).await?.payload), "2");
    assert_eq!(text(&next(&mut late).await?.payload), "3");
    Ok(())
}

pub(crate) async fn requests_that_do_not_fit_the_policy_are_refused(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "pinned_client", json!({})).await?;
    group.pin().await?;
    for (request, expected) in [
        (json!({"batch": 1}), "400 Bad Request - Priority Group missing"),
        (json!({"group": "x"}), "400 Bad Request - Invalid Priority Group"),
        (json!({"group": "g", "min_pending": 1}), "400 Bad Request - Not a Overflow Priority consumer"),
        (json!({"group": "g", "priority": 10}), "400 Bad Request - Priority must be between 0 and 9"),
        (json!({"group": "g", "id": "wrong"}), "423 Nats-Pin-Id mismatch"),
    ] {
        let mut refused = group.pull(request).await?;
        assert_eq!(status(&next(&mut refused).await?), expected);
    }
    Ok(())
}

pub(crate) async fn a_client_is_pinned_until_it_is_unpinned(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "pinned_client", json!({})).await?;
    let advisories = format!("$JS.EVENT.ADVISORY.CONSUMER.*.{}.worker", group.home.name);
    let mut events = group.client.subscribe(advisories).await?;
    group.client.flush().await?;
    let pin = group.pin().await?;
    assert!(!pin.is_empty());
    assert_eq!(group.pinned().await?, pin);
    let pinned = event(&mut events).await?;
    assert_eq!(pinned["type"], "io.nats.jetstream.advisory.v1.consumer_group_pinned");
    assert_eq!((&pinned["group"], &pinned["pinned_id"]), (&json!("g"), &json!(pin)));

    let mut standby = group.pull(json!({"group": "g", "batch": 2})).await?;
    group.home.publish("a", "second").await?;
    stays_quiet(&mut standby).await?;
    let mut again = group.pull(json!({"group": "g", "id": pin})).await?;
    let message = next(&mut again).await?;
    assert_eq!((text(&message.payload), pin_id(&message)), ("second".to_owned(), pin.clone()));

    group.api("CONSUMER.UNPIN", &json!({"group": "g"})).await?;

    let unpinned = event(&mut events).await?;
    assert_eq!(unpinned["type"], "io.nats.jetstream.advisory.v1.consumer_group_unpinned");
    assert_eq!((&unpinned["group"], &unpinned["reason"]), (&json!("g"), &json!("admin")));
    group.home.publish("a", "third").await?;
    let message = next(&mut standby).await?;
    assert_eq!(text(&message.payload), "third");
    assert_ne!(pin_id(&message), pin);
    let mut late = group.pull(json!({"group": "g", "id": pin})).await?;
    assert_eq!(status(&next(&mut late).await?), "423 Nats-Pin-Id mismatch");
    Ok(())
}

pub(crate) async fn a_client_that_does_not_ask_any_more_loses_its_pin(ground: &Ground) -> Result<()> {
    let second = 1_000_000_000_u64;
    let group = Group::new(ground, "pinned_client", json!({"priority_timeout": second})).await?;
    let advisories = format!("$JS.EVENT.ADVISORY.CONSUMER.UNPINNED.{}.worker", group.home.name);
    let mut events = group.client.subscribe(advisories).await?;
    let pin = group.pin().await?;
    let mut standby = group.pull(json!({"group": "g"})).await?;
    group.home.publish("a", "second").await?;

    let message = next(&mut standby).await?;

    assert_eq!(text(&message.payload), "second");
    assert!(!pin_id(&message).is_empty());
    assert_ne!(pin_id(&message), pin);
    assert_eq!(event(&mut events).await?["reason"], "timeout");
    Ok(())
}

pub(crate) async fn a_pin_goes_with_its_policy(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "pinned_client", json!({})).await?;
    group.pin().await?;
    let mut standby = group.pull(json!({"group": "g"})).await?;
    group.home.publish("a", "second").await?;
    stays_quiet(&mut standby).await?;

    group.configure("overflow", &json!({"priority_timeout": 0})).await?;

    let message = next(&mut standby).await?;
    assert_eq!((text(&message.payload), pin_id(&message)), ("second".to_owned(), String::new()));
    assert_eq!(group.pinned().await?, "");
    Ok(())
}

/// With one node there is nobody else to lead, and the pin stays.
pub(crate) async fn a_new_leader_pins_anew(ground: &Ground) -> Result<()> {
    let group = Group::new(ground, "pinned_client", json!({})).await?;
    let name = &group.home.name;
    let pin = group.pin().await?;
    if ground.replicas == 1 {
        assert_eq!(group.pinned().await?, pin);
        return Ok(());
    }
    let led_by = leader(&group.client, name).await?;
    let other = ground.cluster.nodes().iter().find(|node| node.name() != led_by).context("another node")?;

    lead(&group.client, name, other.name()).await?;

    wait_until("nobody is pinned", PATIENCE, async || Ok(group.pinned().await?.is_empty().then_some(())))
        .await?;
    let mut stale = group.pull(json!({"group": "g", "id": pin, "batch": 3})).await?;
    group.waiting(1).await?;
    let mut standby = group.pull(json!({"group": "g"})).await?;
    group.waiting(2).await?;
    group.home.publish("a", "second").await?;
    let message = next(&mut standby).await?;
    assert_eq!(text(&message.payload), "second");
    assert_ne!(pin_id(&message), pin);
    let refused = next(&mut stale).await?;
    assert_eq!(status(&refused), "423 Nats-Wrong-Pin-Id");
    let headers = refused.headers.context("headers")?;
    assert_eq!(headers.get("Nats-Pending-Messages").map(|left| left.as_str()), Some("3"));
    Ok(())
}
