//! What a claim stands on: running nodes, shared by all claims of the suite, and names of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::Client;
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, AckKind, Context, Message};
use futures::TryStreamExt as _;
use levee_tests::cluster::Cluster;
use levee_tests::wait::{PATIENCE, wait_until};
use tokio::sync::OnceCell;

/// Running nodes, and a client that is connected to the first of them.
pub(crate) struct Ground {
    pub(crate) cluster: &'static Cluster,
    pub(crate) client: Client,
    pub(crate) js: Context,
    /// As many as there are nodes.
    pub(crate) replicas: usize,
}

/// A stream, and a client on a node that does not lead it.
pub(crate) struct Home {
    pub(crate) client: Client,
    pub(crate) js: Context,
    pub(crate) stream: Stream,
    pub(crate) name: String,
    /// Whether a consumer may be asked from any node as soon as its creation is answered. nats-server takes a
    /// moment, in which there are no responders.
    pub(crate) prompt: bool,
}

impl Ground {
    pub(crate) async fn one() -> Result<Self> {
        static ONE: OnceCell<Cluster> = OnceCell::const_new();
        Self::on(ONE.get_or_try_init(Cluster::one).await?).await
    }

    pub(crate) async fn three() -> Result<Self> {
        static THREE: OnceCell<Cluster> = OnceCell::const_new();
        Self::on(THREE.get_or_try_init(Cluster::three).await?).await
    }

    async fn on(cluster: &'static Cluster) -> Result<Self> {
        let client = cluster.client(0).await?;
        let js = jetstream::new(client.clone());
        Ok(Self { cluster, client, js, replicas: cluster.nodes().len() })
    }

    /// A name that no other claim has.
    pub(crate) fn name(&self, hint: &str) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        format!("{hint}_{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// A stream with a replica on each node, its name made unique, taking `<name>.>` unless told otherwise.
    pub(crate) async fn stream(&self, config: Config) -> Result<Home> {
        let name = self.name(&config.name);
        let subjects =
            if config.subjects.is_empty() { vec![format!("{name}.>")] } else { config.subjects.clone() };
        let config = Config { name, subjects, num_replicas: self.replicas, ..config };
        let stream = self.js.create_stream(config).await.context("create a stream")?;
        let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        let leader = leader.and_then(|leader| self.cluster.index_of(&leader).ok());
        let name = stream.cached_info().config.name.clone();
        let client = match leader {
            Some(leader) if self.replicas > 1 => self.cluster.client((leader + 1) % self.replicas).await?,
            _ => self.client.clone(),
        };
        let js = jetstream::new(client.clone());
        let stream = js.get_stream(&name).await.context("find the stream from another node")?;
        let prompt = self.replicas == 1 || self.cluster.program().is_levee();
        Ok(Home { client, js, stream, name, prompt })
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.cluster.show_logs();
    }
}

impl Home {
    /// A subject of the stream.
    pub(crate) fn subject(&self, last: &str) -> String {
        format!("{}.{last}", self.name)
    }

    /// Publishes to one subject and waits for the ack, which gives the sequence.
    pub(crate) async fn publish(&self, last: &str, body: &str) -> Result<u64> {
        let ack = self.js.publish(self.subject(last), body.to_owned().into()).await?;
        Ok(ack.await?.sequence)
    }

    /// Publishes `count` messages with bodies `1`, `2`, .. to one subject.
    pub(crate) async fn publish_many(&self, last: &str, count: u64) -> Result<()> {
        for number in 1..=count {
            self.publish(last, &number.to_string()).await?;
        }
        Ok(())
    }

    /// A pull consumer of the stream.
    pub(crate) async fn pull(&self, config: pull::Config) -> Result<PullConsumer> {
        let consumer = self.stream.create_consumer(config).await.context("create a consumer")?;
        if !self.prompt {
            let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.name, consumer.cached_info().name);
            wait_until("the consumer can be asked", PATIENCE, async || {
                // A bad request, so that it takes no message.
                Ok(self.client.request(next.clone(), "{".into()).await.is_ok().then_some(()))
            })
            .await?;
        }
        Ok(consumer)
    }

    /// How many messages the stream counts now.
    pub(crate) async fn messages(&self) -> Result<u64> {
        Ok(self.stream.get_info().await?.state.messages)
    }
}

/// The payload as text.
pub(crate) fn text(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

/// Takes messages from a consumer until there are `count` or five seconds have passed.
pub(crate) async fn take(consumer: &PullConsumer, count: usize) -> Result<Vec<Message>> {
    take_within(consumer, count, Duration::from_secs(5)).await
}

/// Takes messages from a consumer until there are `count` or the request expires.
pub(crate) async fn take_within(
    consumer: &PullConsumer,
    count: usize,
    expires: Duration,
) -> Result<Vec<Message>> {
    let batch = consumer.batch().max_messages(count).expires(expires).messages().await?;
    batch.try_collect().await.map_err(anyhow::Error::from_boxed)
}

/// Settles a message.
pub(crate) async fn settle(message: &Message, kind: AckKind) -> Result<()> {
    message.ack_with(kind).await.map_err(anyhow::Error::from_boxed)
}

/// Settles a message and waits for the confirmation.
pub(crate) async fn settle_confirmed(message: &Message, kind: AckKind) -> Result<()> {
    message.double_ack_with(kind).await.map_err(anyhow::Error::from_boxed)
}

/// Which attempt at delivering this message this is.
pub(crate) fn attempt(message: &Message) -> Result<i64> {
    Ok(message.info().map_err(anyhow::Error::from_boxed)?.delivered)
}

/// Its sequence in the stream.
pub(crate) fn sequence(message: &Message) -> Result<u64> {
    Ok(message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence)
}

/// The payloads as text.
pub(crate) fn bodies(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| text(&message.payload)).collect()
}
