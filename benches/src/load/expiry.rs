//! Messages with a time to live: how long after the last was due all are gone, and what that costs.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::figures::{Figure, Meter, Outcome};
use crate::load::{Effort, fetch, publish};
use crate::messages::{Header, Messages, Subjects};
use crate::servers::Servers;
use crate::setup::{self, STREAM, Storage};

/// Long enough to publish most before the first goes.
const TTL: Duration = Duration::from_secs(5);

/// Delete markers live so long, from when the message before them goes.
const MARKER_TTL: Duration = Duration::from_secs(1);

/// How often the stream is asked what it still has.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// What a message leaves behind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaves {
    /// Nothing. All have one subject.
    Nothing,
    /// A delete marker, which expires too. Each has a subject of its own.
    Marker,
}

/// Publishes, and waits until the stream is empty or the time limit is reached.
pub fn run(
    servers: &Servers,
    leaves: Leaves,
    payload_bytes: usize,
    messages: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let (more, subjects, lifetime) = match leaves {
        Leaves::Nothing => (json!({ "allow_msg_ttl": true }), Subjects::One, TTL),
        Leaves::Marker => (
            json!({
                "allow_msg_ttl": true,
                "allow_rollup_hdrs": true,
                "subject_delete_marker_ttl": MARKER_TTL.as_nanos() as u64,
            }),
            Subjects::InTurns(messages),
            TTL + MARKER_TTL,
        ),
    };
    setup::create_stream(servers, Storage::File, more)?;
    let text = Messages {
        subjects,
        header: Header::Ttl(TTL.as_secs()),
        ..Messages::plain(payload_bytes, "_INBOX.acks.a")
    };
    let meter = Meter::start(servers)?;
    publish::windowed(setup::leader(servers, STREAM)?, &text, 0..messages, fetch::FILL_WINDOW)?;
    let mut outcome = meter.finish(servers, messages)?;
    setup::expect_stored(servers, messages)?;

    let (due, cpu) = (Instant::now() + lifetime, servers.cpu_seconds()?);
    let left = loop {
        let state = &setup::stream_info(servers, STREAM)?["state"];
        let left = state["messages"].as_u64().unwrap_or(u64::MAX);
        if left == 0 || Instant::now() > due + effort.limit {
            break left;
        }
        std::thread::sleep(ASK_EVERY);
    };
    outcome.set(Figure::GoneSeconds, due.elapsed().as_secs_f64());
    outcome.set(Figure::LeftAtLimit, left as f64);
    outcome.set(Figure::GoingCpuPerMillion, (servers.cpu_seconds()? - cpu) / (messages as f64 / 1e6));
    Ok(outcome)
}
