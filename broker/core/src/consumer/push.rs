//! What holds a push consumer back: interest, flow control, a rate; and what it says when there is nothing to send.

use bytes::Bytes;
use levee_protocol::api::ConsumerConfig;
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::notice::Notice;
use crate::consumer::settle::Position;

/// The flow control window starts at a sixteenth of its maximum and doubles with every answer.
const WINDOW_BYTES_MAX: u64 = 32 * 1024 * 1024;
const WINDOW_BYTES_FIRST: u64 = WINDOW_BYTES_MAX / 16;

/// A rate allows at least one message of the largest usual size at once.
const BURST_BYTES_MIN: u64 = 1024 * 1024;

/// Whether more may be sent after a message before something is acked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Room {
    /// As far as acks go.
    Left,
    /// Nothing, and an answer to flow control is the ack.
    None,
}

/// The state of a push consumer's delivery subject.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) subject: Bytes,
    /// Whether somebody subscribes to the deliver subject.
    pub(crate) bound: bool,
    heartbeat: Nanos,
    heartbeat_at: Timestamp,
    flow: Option<Flow>,
    pace: Option<Pace>,
}

impl Push {
    pub(crate) fn new(config: &ConsumerConfig, reply_prefix: &str, now: Timestamp) -> Self {
        Self {
            subject: Bytes::copy_from_slice(config.deliver_subject.as_bytes()),
            bound: false,
            heartbeat: config.idle_heartbeat,
            heartbeat_at: now.plus(config.idle_heartbeat),
            flow: config.flow_control.then(|| Flow::new(reply_prefix)),
            pace: (config.rate_limit_bps > 0).then(|| Pace::new(config.rate_limit_bps / 8, now)),
        }
    }

    /// Subscribers came or went. A new subscriber knows nothing of an open flow control request.
    pub(crate) fn bind(&mut self, bound: bool, now: Timestamp) {
        if bound && !self.bound {
            self.heartbeat_at = now.plus(self.heartbeat);
            self.start_over();
        }
        self.bound = bound;
    }

    /// Whether a message may be sent at all, before its size is known.
    pub(crate) fn open(&self) -> bool {
        self.bound && self.flow.as_ref().is_none_or(|flow| flow.outstanding <= flow.window)
    }

    /// Until when the rate forbids the next message.
    pub(crate) fn held_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.pace.as_mut().and_then(|pace| pace.held_until(now))
    }

    /// A message was sent. Returns the flow control request that follows it, if one does.
    pub(crate) fn sent(&mut self, size: u64, room: Room, now: Timestamp) -> Option<Notice> {
        self.heartbeat_at = now.plus(self.heartbeat);
        if let Some(pace) = &mut self.pace {
            pace.spend(size);
        }
        let flow = self.flow.as_mut()?;
        flow.outstanding += size;
        let is_due = room == Room::None || flow.outstanding > flow.window / 2;
        if is_due { self.ask() } else { None }
    }

    /// Asks the client how far it is, unless it was asked and has not answered.
    pub(crate) fn ask(&mut self) -> Option<Notice> {
        let reply = self.flow.as_mut()?.ask()?;
        Some(Notice::flow_control(self.subject.clone(), reply))
    }

    /// The client has worked through what it got before this request. False if it is not the one that is open.
    pub(crate) fn answered(&mut self, reply: &[u8]) -> bool {
        self.flow.as_mut().is_some_and(|flow| flow.answered(reply))
    }

    /// What was sent before counts no more.
    pub(crate) fn start_over(&mut self) {
        if let Some(flow) = &mut self.flow {
            flow.start_over();
        }
    }

    /// The heartbeat, if it is time for one.
    pub(crate) fn due(&mut self, last: Position, now: Timestamp) -> Option<Notice> {
        if self.next_timer()? > now {
            return None;
        }
        self.heartbeat_at = now.plus(self.heartbeat);
        let stalled = self.flow.as_ref().and_then(|flow| flow.asked.as_ref()).map(|asked| &asked.reply[..]);
        Some(Notice::heartbeat(self.subject.clone(), last, stalled))
    }

    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        (self.bound && self.heartbeat > Nanos::ZERO).then_some(self.heartbeat_at)
    }
}

#[derive(Debug)]
struct Flow {
    prefix: String,
    window: u64,
    outstanding: u64,
    asked: Option<Asked>,
    count: u32,
}

/// The open flow control request.
#[derive(Debug)]
struct Asked {
    reply: Bytes,
    /// What was outstanding when it was sent, and is not when it is answered.
    covers: u64,
}

impl Flow {
    fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), window: WINDOW_BYTES_FIRST, outstanding: 0, asked: None, count: 0 }
    }

    fn start_over(&mut self) {
        self.window = WINDOW_BYTES_FIRST;
        self.outstanding = 0;
        self.asked = None;
    }

    fn ask(&mut self) -> Option<Bytes> {
        if self.asked.is_some() {
            return None;
        }
        self.count = self.count.wrapping_add(1);
        let reply = Bytes::from(format!("{}{}", self.prefix, four_digits(self.count)));
        self.asked = Some(Asked { reply: reply.clone(), covers: self.outstanding });
        Some(reply)
    }

    fn answered(&mut self, reply: &[u8]) -> bool {
        let Some(asked) = self.asked.take_if(|asked| asked.reply == reply) else { return false };
        self.outstanding = self.outstanding.saturating_sub(asked.covers);
        self.window = (self.window * 2).min(WINDOW_BYTES_MAX);
        true
    }
}

fn four_digits(mut number: u32) -> String {
    const DIGITS: &[u8; 36] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut text = [b'0'; 4];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(number % 36) as usize];
        number /= 36;
    }
    text.iter().map(|digit| char::from(*digit)).collect()
}

/// A bucket that fills with so many bytes a second.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    burst: u64,
    /// May be below zero after a large message.
    available: i128,
    filled_at: Timestamp,
}

impl Pace {
    fn new(bytes_per_second: u64, now: Timestamp) -> Self {
        let bytes_per_second = bytes_per_second.max(1);
        let burst = bytes_per_second.min(BURST_BYTES_MIN);
        Self { bytes_per_second, burst, available: i128::from(burst), filled_at: now }
    }

    fn spend(&mut self, size: u64) {
        self.available -= i128::from(size);
    }

    fn held_until(&mut self, now: Timestamp) -> Option<Timestamp> {
        const SECOND: i128 = 1_000_000_000;
        let passed = i128::from(now.since(self.filled_at).0.max(0));
        let rate = i128::from(self.bytes_per_second);
        let gained = passed * rate / SECOND;
        if gained > 0 {
            self.available = (self.available + gained).min(i128::from(self.burst));
            self.filled_at = now;
        }
        if self.available > 0 {
            return None;
        }
        let wait = (1 - self.available) * SECOND / rate + 1;
        Some(self.filled_at.plus(Nanos(i64::try_from(wait).unwrap_or(i64::MAX))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const MIB: u64 = 1024 * 1024;

    fn push(config: ConsumerConfig) -> Push {
        let mut push =
            Push::new(&ConsumerConfig { deliver_subject: "pd".into(), ..config }, "$JS.FC.S.C.", NOW);
        push.bind(true, NOW);
        push
    }

    #[test]
    fn the_window_is_asked_about_at_half_and_closes_when_full() {
        let mut push = push(ConsumerConfig { flow_control: true, ..ConsumerConfig::default() });

        assert_eq!(push.sent(MIB, Room::Left, NOW), None);
        let asked = push.sent(1, Room::Left, NOW).expect("over half of 2 MiB");
        assert_eq!(asked.header, b"NATS/1.0 100 FlowControl Request\r\n\r\n");
        assert_eq!(asked.reply.as_deref(), Some(&b"$JS.FC.S.C.0001"[..]));
        assert_eq!(push.sent(MIB, Room::Left, NOW), None, "one request at a time");
        assert!(!push.open());

        assert!(!push.answered(b"$JS.FC.S.C.0000"), "not the answer");
        assert!(!push.open());
        assert!(push.answered(b"$JS.FC.S.C.0001"));
        assert!(push.open());
        assert_eq!(push.flow.as_ref().map(|flow| (flow.window, flow.outstanding)), Some((4 * MIB, MIB)));
    }

    #[test]
    fn a_heartbeat_of_a_stalled_consumer_names_the_answer_it_waits_for() {
        let mut push = push(ConsumerConfig {
            flow_control: true,
            idle_heartbeat: Nanos::from_secs(1),
            ..ConsumerConfig::default()
        });
        push.sent(3 * MIB, Room::Left, NOW);

        assert_eq!(push.due(Position::default(), NOW), None);
        let heartbeat = push.due(Position::default(), NOW.plus(Nanos::from_secs(1))).expect("due");

        let text = String::from_utf8(heartbeat.header).unwrap();
        assert!(text.contains("Nats-Consumer-Stalled: $JS.FC.S.C.0001\r\n"), "{text}");
    }

    #[test]
    fn a_rate_is_kept_on_average() {
        let mut push = push(ConsumerConfig { rate_limit_bps: 8_000, ..ConsumerConfig::default() });
        let mut now = NOW;

        for _ in 0..20 {
            while let Some(at) = push.held_until(now) {
                assert!(at > now);
                now = at;
            }
            push.sent(500, Room::Left, now);
        }

        let seconds = now.since(NOW).0 as f64 / 1e9;
        assert!((8.0..10.0).contains(&seconds), "10 kB at 1 kB/s with a burst of 1 kB took {seconds} s");
    }

    #[test]
    fn nobody_bound_means_closed_and_silent() {
        let mut push =
            push(ConsumerConfig { idle_heartbeat: Nanos::from_secs(1), ..ConsumerConfig::default() });

        push.bind(false, NOW);

        assert!(!push.open());
        assert_eq!(push.due(Position::default(), NOW.plus(Nanos::from_secs(9))), None);
    }
}
