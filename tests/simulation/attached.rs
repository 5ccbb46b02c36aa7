//! Copies that read their origin through a consumer made by hand, which is acked by answers to flow control: the way of
//! the deliveries to the reader, as the broker has it, around the real rules of both ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use levee_broker_core::mirror::{Attachment, Delivered, server};
use levee_broker_core::stream::Reply;
use levee_protocol::api::{AckPolicy, AckReply, ConsumerConfig, SourceConsumer};
use levee_protocol::command::StreamCommand;
use levee_protocol::ids::{ConsumerName, Seq};
use levee_protocol::mirror::{FetchAnswer, FetchRequest, Reader};
use levee_protocol::time::Nanos;
use levee_protocol::wire::headers::HeaderBlock;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::clients::{Told, propose};
use crate::driver::Request;
use crate::plan::Breakage;
use crate::post::{Parcel, Subscription};
use crate::streams::Which;
use crate::subscribers;
use crate::world::{Host, World};

/// Resets of the consumer are at least so far apart.
const ATTACH_INTERVAL: Duration = Duration::from_millis(500);
/// How long the reset may take.
const ATTACH_PATIENCE: Duration = Duration::from_secs(5);

/// A consumer of the first stream that delivers to this copy.
pub(crate) fn config(copy: Which, chance: &mut Chance) -> ConsumerConfig {
    let name = format!("to-{}", copy.name());
    ConsumerConfig {
        deliver_subject: format!("deliver.{name}"),
        durable_name: name.clone(),
        name,
        ack_policy: AckPolicy::FlowControl,
        flow_control: true,
        idle_heartbeat: Nanos::from_secs(1),
        max_deliver: -1,
        max_ack_pending: chance.pick(&[1, 5, 20, 50]),
        ..ConsumerConfig::default()
    }
}

/// The reader's end, on the leader of the copy.
pub(crate) struct Attached {
    world: Arc<World>,
    host: Arc<Host>,
    consumer: ConsumerName,
    deliver_subject: Bytes,
    chance: Chance,
    inbox: Option<Subscription>,
    attachment: Option<Attachment>,
    attached_at: Option<Instant>,
    /// How many deliveries were handed on since the reset, and which was the last: of one that overlooks gaps.
    taken: (u64, Seq),
}

impl Attached {
    pub(crate) fn new(world: &Arc<World>, host: &Arc<Host>, consumer: &SourceConsumer) -> Self {
        let name = ConsumerName::parse(&consumer.name).expect("the names of a run are valid");
        Self {
            chance: Chance::new(world.seed, &format!("{name} on {}", host.id)),
            world: Arc::clone(world),
            host: Arc::clone(host),
            consumer: name,
            deliver_subject: Bytes::copy_from_slice(consumer.deliver_subject.as_bytes()),
            inbox: None,
            attachment: None,
            attached_at: None,
            taken: (0, Seq::NONE),
        }
    }

    /// What was delivered, as soon as there is anything, or when the time to wait is over.
    pub(crate) async fn fetch(&mut self, request: FetchRequest) -> FetchAnswer {
        let reader = request.reader.clone().expect("who asks is known");
        let attachment = self.attachment.take().filter(|known| known.continues(request.from));
        let Some(mut attachment) = attachment else { return self.attach(reader).await };
        let Some(mut inbox) = self.inbox.take() else { return self.attach(reader).await };
        let until = Instant::now() + Duration::from_millis(request.wait_ms);
        loop {
            if self.gather(&reader, &mut inbox, &mut attachment).is_none() {
                self.inbox = Some(inbox);
                return elsewhere();
            }
            if !attachment.is_empty() || Instant::now() >= until {
                let answer = attachment.take(self.world.now(&self.host));
                (self.inbox, self.attachment) = (Some(inbox), Some(attachment));
                return answer;
            }
            let _ = tokio::time::timeout_at(until, inbox.arrival()).await;
        }
    }

    /// Subscribes, then has the consumer go back to its ack floor.
    async fn attach(&mut self, reader: Reader) -> FetchAnswer {
        if let Some(before) = self.attached_at {
            tokio::time::sleep_until(before + ATTACH_INTERVAL).await;
        }
        self.attached_at = Some(Instant::now());
        let mut inbox = self.inbox.take().unwrap_or_else(|| self.world.post.subscribe(&self.deliver_subject));
        while inbox.next().is_some() {}
        let request = FetchRequest {
            consumer: self.consumer.to_string(),
            reader: Some(reader),
            ..FetchRequest::default()
        };
        let answer = self.world.post.call(self.reset(request)).await.flatten();
        self.inbox = Some(inbox);
        let Some(answer) = answer.filter(|answer| answer.attached) else { return elsewhere() };
        let now = self.world.now(&self.host);
        self.taken = (0, Seq(answer.through));
        let (stream, consumer) = (Which::Origin.name(), self.consumer.as_str());
        self.attachment.insert(Attachment::new(stream, consumer, answer, now)).take(now)
    }

    /// What the leader of the origin does.
    async fn reset(&self, request: FetchRequest) -> Option<FetchAnswer> {
        let (host, process) = self.world.leading(Which::Origin)?;
        let stream = process.stream(Which::Origin);
        stream.replica.leader()?;
        let name = stream.replica.read(|machine, _| server::attachable(machine, &request)).ok()?;
        let command = |now| StreamCommand::ResetConsumer { now, name: name.clone(), seq: Seq::NONE };
        let Told::Answer(reply) = propose(&self.world, &host, stream, command, ATTACH_PATIENCE).await else {
            return None;
        };
        let Reply::Reset { seq } = *reply else { return None };
        stream.replica.read(|machine, view| server::attached(machine, view, &name, seq)).ok()
    }

    /// Takes what came, as much as an answer holds. `None` if it has to begin again.
    fn gather(
        &mut self,
        reader: &Reader,
        inbox: &mut Subscription,
        attachment: &mut Attachment,
    ) -> Option<()> {
        let now = self.world.now(&self.host);
        loop {
            let known = match self.world.plan.breakage {
                Breakage::AnswersAreEarly => Reader { stored: u64::MAX, ..reader.clone() },
                _ => reader.clone(),
            };
            if let Some(answer) = attachment.answer(&known) {
                let upto = HeaderBlock(&answer.header).get_str("Nats-Last-Stream");
                let upto = upto.and_then(|text| text.parse().ok()).map_or(Seq::NONE, Seq);
                self.world.trace.note(format_args!("{} is answered: {upto} is stored", self.consumer));
                self.world.oracle.acks(&self.consumer, upto, b"+ACK");
                let answer = Request::Flow { subject: answer.to.to_vec(), header: answer.header };
                subscribers::send(&self.world, &self.consumer, answer, &mut self.chance);
            }
            if attachment.is_full() {
                return Some(());
            }
            let Some(parcel) = inbox.next() else { break };
            match parcel {
                Parcel::Message { ack, record } => {
                    let ack = self.overlook(ack);
                    let delivered = Delivered {
                        subject: &record.subject,
                        reply: &ack,
                        header: &record.header,
                        payload: &record.payload,
                    };
                    attachment.on_delivered(delivered, now).ok()?;
                }
                Parcel::Status { header, reply } => {
                    let reply = reply.unwrap_or_default();
                    if reply.is_empty() && self.world.plan.breakage == Breakage::GapsAreOverlooked {
                        continue;
                    }
                    let status = Delivered { header: &header, reply: &reply, ..Delivered::default() };
                    attachment.on_delivered(status, now).ok()?;
                }
                Parcel::Confirmed | Parcel::Fast(_) => {}
            }
        }
        (!attachment.is_silent(now)).then_some(())
    }

    /// The number of a delivery as it is expected, if this is to be a reader that overlooks gaps.
    fn overlook(&mut self, ack: Vec<u8>) -> Vec<u8> {
        match AckReply::parse(&ack) {
            Some(reply)
                if self.world.plan.breakage == Breakage::GapsAreOverlooked
                    && reply.stream_seq > self.taken.1 =>
            {
                self.taken = (self.taken.0 + 1, reply.stream_seq);
                let mut renumbered = Vec::new();
                AckReply { attempt: 1, consumer_seq: self.taken.0, ..reply }.encode(&mut renumbered);
                renumbered
            }
            _ => ack,
        }
    }
}

fn elsewhere() -> FetchAnswer {
    FetchAnswer { elsewhere: true, ..FetchAnswer::default() }
}
