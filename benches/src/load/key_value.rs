//! A key-value bucket as clients make and use one: a put is a publish that is waited for, a get is a direct get of the
//! last message of a subject.

use serde_json::json;

use crate::figures::Outcome;
use crate::load::one_at_a_time::{self, Publisher};
use crate::load::{Effort, fetch, get, publish, stored, with};
use crate::messages::{self, Messages, Subjects};
use crate::servers::Servers;
use crate::setup::{self, Storage};

const STREAM: &str = "KV_bench";

/// Keys of the bucket.
pub const KEYS: u64 = 10_000;

/// What clients do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// Keys are written at random.
    Put,
    /// Keys are read at random.
    Get,
}

/// How a bucket is used.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What clients do.
    pub what: Use,
    /// Connections.
    pub clients: u64,
    /// Bytes of a value.
    pub payload_bytes: usize,
}

/// Every key has a value before anything is measured.
pub fn run(
    servers: &Servers,
    Shape { what, clients, payload_bytes }: Shape,
    messages: u64,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<Outcome> {
    let bucket = json!({
        "max_msgs_per_subject": 1,
        "discard": "new",
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    });
    setup::create_stream_called(servers, STREAM, &["$KV.bench.>"], Storage::File, bucket)?;
    let address = setup::leader(servers, STREAM)?;
    let text = Messages { subjects: Subjects::Keys(KEYS), ..Messages::plain(payload_bytes, "_INBOX.acks.a") };
    publish::windowed(address, &text, 0..KEYS, fetch::FILL_WINDOW)?;
    if what == Use::Get {
        return get::read(servers, address, clients, messages, 1, |buffer, n, reply| {
            get::append_last_of(buffer, STREAM, &format!("$KV.bench.{}", messages::mix(n) % KEYS), reply);
        });
    }
    let connect = || {
        (0..clients)
            .map(|writer| {
                let subjects = Subjects::KeysAtRandom { keys: KEYS, writer };
                Publisher::connect(address, writer, Messages { subjects, ..text.clone() })
            })
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let latency = one_at_a_time::latency(connect()?, offered, effort.latency)?;
    let (writers, each) = (connect()?, (messages / clients).max(1));
    let outcome =
        stored(servers, each * clients, payload_bytes, effort, || one_at_a_time::throughput(writers, each))?;
    Ok(with(latency, outcome))
}
