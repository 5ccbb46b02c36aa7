//! Publishers that do what careful clients do: message ids, one message at a time, again until acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_nats::Client;
use async_nats::jetstream::ContextBuilder;
use async_nats::jetstream::message::PublishMessage;
use tokio::task::JoinHandle;

use crate::checker::Stored;

/// How long a publisher waits for an acknowledgement before it sends the message again.
const RETRY: Duration = Duration::from_millis(300);

/// Publishers at work.
#[derive(Debug)]
pub struct Workload {
    stop: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<Result<Vec<Acknowledged>>>>,
}

/// A message that was acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// Where and what.
    pub message: Stored,
    /// When.
    pub at: Instant,
    /// Whether the server said that it knew it already: an earlier try had arrived.
    pub duplicate: bool,
}

impl Workload {
    /// Starts one publisher for each client, on `subject.<number>`.
    #[must_use]
    pub fn start(clients: Vec<Client>, subject: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let publishers = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                tokio::spawn(publish(client, format!("{subject}.{number}"), Arc::clone(&stop)))
            })
            .collect();
        Self { stop, publishers }
    }

    /// Stops the publishers, each after its current message is acknowledged, and gives what was acknowledged.
    ///
    /// # Errors
    /// When a publisher gave up.
    pub async fn finish(self) -> Result<Vec<Acknowledged>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for publisher in self.publishers {
            acknowledged.extend(publisher.await.context("publisher")??);
        }
        acknowledged.sort_by_key(|one| one.at);
        Ok(acknowledged)
    }
}

/// The longest time between two acknowledgements around `moment`: how long nobody could publish.
#[must_use]
pub fn gap_around(acknowledged: &[Acknowledged], moment: Instant) -> Option<Duration> {
    let after = acknowledged.iter().find(|one| one.at > moment)?;
    Some(after.at - moment)
}

async fn publish(client: Client, subject: String, stop: Arc<AtomicBool>) -> Result<Vec<Acknowledged>> {
    let js = ContextBuilder::new().timeout(RETRY).ack_timeout(RETRY).build(client);
    let mut acknowledged = Vec::new();
    let mut count = 0;
    let give_up = Instant::now() + Duration::from_secs(180);
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        let id = format!("{subject}-{count}");
        let body = count.to_string();
        let ack = loop {
            let message = PublishMessage::build().payload(body.clone().into()).message_id(&id);
            let sent = js.send_publish(subject.clone(), message).await;
            let answer = match sent {
                Ok(ack) => ack.await.map_err(anyhow::Error::from),
                Err(error) => Err(error.into()),
            };
            match answer {
                Ok(ack) => break ack,
                Err(error) if Instant::now() > give_up => {
                    return Err(error.context(format!("{id} was never acknowledged")));
                }
                // No leader, or no node: a moment, and again.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let message = Stored { seq: ack.sequence, subject: subject.clone(), id, body };
        acknowledged.push(Acknowledged { message, at: Instant::now(), duplicate: ack.duplicate });
    }
    Ok(acknowledged)
}
