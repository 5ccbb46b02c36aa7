//! Clients of consumers: they ask for messages, work, and say how it went; some forget to. When a run closes they only
//! ack, and go on until there is nothing left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::api::{AckPolicy, AckReply, ConsumerConfig, PullRequest};
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::time::Nanos;
use levee_protocol::wire::headers::HeaderBlock;

use crate::chance::Chance;
use crate::consumers;
use crate::driver::Request;
use crate::post::Parcel;
use crate::streams::Which;
use crate::world::World;

/// How often an ack is sent that is not confirmed.
const ACK_ATTEMPTS: u32 = 4;
/// Messages of a client that are worked on at one time; the others wait.
const AT_ONCE: usize = 8;
/// When a run closes: a client that is slower than its ack wait gets everything many times, and comes to no end.
const AT_ONCE_CLOSING: usize = 128;

/// One client of one consumer.
struct Subscriber {
    world: Arc<World>,
    consumer: ConsumerName,
    policy: AckPolicy,
    label: String,
    chance: Chance,
    inboxes: u64,
    work: tokio::task::JoinSet<()>,
}

/// Works for a consumer until the run is over.
pub(crate) async fn subscriber(world: Arc<World>, config: ConsumerConfig, number: u64) {
    let label = format!("{} {number}", config.name);
    let subscriber = Subscriber {
        chance: Chance::new(world.seed, &label),
        consumer: consumers::name(&config),
        policy: config.ack_policy,
        label,
        inboxes: 0,
        work: tokio::task::JoinSet::new(),
        world,
    };
    if config.is_push() { subscriber.listen(&config).await } else { subscriber.pull().await }
}

impl Subscriber {
    async fn pull(mut self) {
        while !self.world.is_over() {
            let closing = self.world.is_closing();
            if !closing {
                let pause = self.chance.millis(0, 300);
                tokio::time::sleep(pause).await;
            }
            let (inbox, mut parcels) = self.open();
            let batch = if closing { 200 } else { self.chance.pick(&[1, 5, 40]) };
            let expires_ms = self.chance.pick(&[200, 1000, 3000]);
            let request = PullRequest {
                batch,
                expires: Nanos::from_millis(expires_ms),
                no_wait: self.chance.percent(10),
                ..PullRequest::default()
            };
            send(
                &self.world,
                &self.consumer,
                Request::Pull { request, inbox: inbox.clone() },
                &mut self.chance,
            );
            let patience = Duration::from_millis(u64::try_from(expires_ms).unwrap_or(0) + 300);
            let deadline = tokio::time::Instant::now() + patience;
            let mut left = batch;
            while left > 0 {
                match tokio::time::timeout_at(deadline, parcels.recv()).await {
                    Ok(Some(Parcel::Message { ack, .. })) => {
                        left -= 1;
                        self.work_on(ack).await;
                    }
                    Ok(Some(Parcel::Confirmed | Parcel::Fast(_))) => {}
                    Ok(Some(Parcel::Status { .. }) | None) | Err(_) => break,
                }
            }
            self.world.post.close(&inbox);
        }
    }

    async fn listen(mut self, config: &ConsumerConfig) {
        let subject = Bytes::copy_from_slice(config.deliver_subject.as_bytes());
        while !self.world.is_over() {
            let mut parcels = self.world.post.open(&subject);
            let stays = self.chance.millis(500, 8000);
            let until = tokio::time::Instant::now() + stays;
            loop {
                match tokio::time::timeout_at(until, parcels.recv()).await {
                    Ok(Some(Parcel::Message { ack, .. })) => self.work_on(ack).await,
                    Ok(Some(Parcel::Status { header, reply })) => {
                        let stalled = HeaderBlock(&header).get("Nats-Consumer-Stalled").map(<[u8]>::to_vec);
                        if let Some(subject) = reply.map(|reply| reply.to_vec()).or(stalled) {
                            let answer = Request::Flow { subject, header: Vec::new() };
                            send(&self.world, &self.consumer, answer, &mut self.chance);
                        }
                    }
                    Ok(Some(Parcel::Confirmed | Parcel::Fast(_))) => {}
                    Ok(None) | Err(_) => break,
                }
                if self.world.is_over() {
                    break;
                }
            }
            if !self.world.is_closing() {
                self.world.post.close(&subject);
                let away = self.chance.millis(0, 1500);
                tokio::time::sleep(away).await;
            }
        }
    }

    fn open(&mut self) -> (Bytes, tokio::sync::mpsc::UnboundedReceiver<Parcel>) {
        self.inboxes += 1;
        let inbox = Bytes::from(format!("_INBOX.{}.{}", self.label.replace(' ', "."), self.inboxes));
        let parcels = self.world.post.open(&inbox);
        (inbox, parcels)
    }

    /// Takes a message in, and begins to work on it.
    async fn work_on(&mut self, ack: Vec<u8>) {
        if self.policy == AckPolicy::None {
            return;
        }
        let at_once = if self.world.is_closing() { AT_ONCE_CLOSING } else { AT_ONCE };
        while self.work.len() >= at_once {
            let _ = self.work.join_next().await;
        }
        let (confirm_to, confirmed) = self.open();
        let job = Job {
            world: Arc::clone(&self.world),
            consumer: self.consumer.clone(),
            chance: Chance::new(self.chance.draw(), "job"),
            ack,
            confirm_to,
            confirmed,
        };
        self.work.spawn(job.run());
    }
}

/// The work on one message.
struct Job {
    world: Arc<World>,
    consumer: ConsumerName,
    chance: Chance,
    ack: Vec<u8>,
    confirm_to: Bytes,
    confirmed: tokio::sync::mpsc::UnboundedReceiver<Parcel>,
}

impl Job {
    async fn run(mut self) {
        if self.world.is_closing() {
            self.say(b"+ACK", true).await;
            return self.world.post.close(&self.confirm_to);
        }
        let takes = self.chance.pick(&[0, 0, 20, 200, 900]);
        let takes = self.chance.millis(0, takes);
        tokio::time::sleep(takes).await;
        match self.chance.below(100) {
            0..30 => self.say(b"+ACK", true).await,
            30..58 => self.say(b"+ACK", false).await,
            58..66 => self.say(b"-NAK", false).await,
            66..76 => {
                let delay = self.chance.pick(&[50, 400, 2000]);
                self.say(format!("-NAK {delay}ms").as_bytes(), false).await;
            }
            76..80 => self.say(b"+TERM no use", true).await,
            80..86 => {
                self.say(b"+WPI", false).await;
                let takes = self.chance.millis(0, 400);
                tokio::time::sleep(takes).await;
                self.say(b"+ACK", true).await;
            }
            // Forgotten.
            _ => {}
        }
        self.world.post.close(&self.confirm_to);
    }

    /// Says how it went, again and again if that is to be confirmed.
    async fn say(&mut self, body: &[u8], confirm: bool) {
        let seq = AckReply::parse(&self.ack).map_or(Seq::NONE, |ack| ack.stream_seq);
        self.world.oracle.acks(&self.consumer, seq, body);
        for _ in 0..if confirm { ACK_ATTEMPTS } else { 1 } {
            let request = Request::Ack {
                subject: self.ack.clone(),
                body: body.to_vec(),
                confirm: confirm.then(|| self.confirm_to.clone()),
            };
            send(&self.world, &self.consumer, request, &mut self.chance);
            if !confirm {
                return;
            }
            let patience = self.chance.millis(200, 1500);
            if tokio::time::timeout(patience, self.confirmed.recv()).await.is_ok() {
                return;
            }
        }
    }
}

/// Brings something to the consumer, on a node that says it leads; on another one it is lost.
pub(crate) fn send(world: &Arc<World>, consumer: &ConsumerName, request: Request, chance: &mut Chance) {
    let Some((_, process)) = world.target(chance) else { return };
    let Some(late) = world.post.fate() else { return };
    let consumer = consumer.clone();
    tokio::spawn(async move {
        tokio::time::sleep(late).await;
        let leader = process.stream(Which::Origin).replica.leader();
        if let Some(driver) = leader.and_then(|leader| leader.driver(&consumer)) {
            driver.take(request);
        }
    });
}
