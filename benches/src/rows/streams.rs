//! Rows about what streams do beyond storing: batches, counters, expiry, direct gets, key-value buckets.

use crate::load::Load;
use crate::load::expiry::Leaves;
use crate::load::get::{Get, SUBJECTS};
use crate::load::key_value::{KEYS, Use};
use crate::messages::{Header, Subjects};
use crate::report::number;
use crate::rows::{Row, Sizes, WINDOW};

/// Messages of an atomic batch.
const BATCH: u64 = 100;

impl Sizes {
    pub(super) fn expiring(&self) -> u64 {
        self.expiring.unwrap_or_else(|| self.part.of(1_000_000, 100_000, 10_000))
    }
}

/// All of them, in the order of the tables. They run in full mode, and when they are asked for.
pub(super) fn rows(sizes: &Sizes) -> Vec<Row> {
    let mut rows = Vec::new();
    for nodes in [1, 3] {
        rows.extend(batches(nodes));
        rows.extend(counters(nodes));
    }
    rows.extend(expiry(sizes));
    rows.extend(gets());
    for nodes in [1, 3] {
        rows.extend(key_value(nodes));
    }
    rows.into_iter().map(Row::long).collect()
}

fn batches(nodes: usize) -> [Row; 3] {
    let atomic = |at_once| Load::AtomicBatches { batch: BATCH, at_once };
    let messages = if nodes == 1 { 1_000_000 } else { 500_000 };
    [
        Row::new(format!("R{nodes} atomic batches of {BATCH}, one at a time, 128 B"), nodes, atomic(1))
            .messages(messages / 2),
        Row::new(format!("R{nodes} atomic batches of {BATCH}, 40 at once, 128 B"), nodes, atomic(40))
            .messages(messages),
        Row::new(format!("R{nodes} fast ingest, 128 B"), nodes, Load::FastIngest).messages(messages),
    ]
}

fn counters(nodes: usize) -> [Row; 2] {
    let (messages, offered) = if nodes == 1 { (500_000, 20_000) } else { (250_000, 10_000) };
    [("1 subject", Subjects::One), ("1000 subjects", Subjects::InTurns(1000))].map(|(what, subjects)| {
        let load = Load::Publish { window: WINDOW, header: Header::Increment, subjects };
        Row::new(format!("R{nodes} counters, {what}, window {WINDOW}"), nodes, load)
            .payload(0)
            .messages(messages)
            .offered(offered)
    })
}

fn expiry(sizes: &Sizes) -> [Row; 4] {
    let messages = sizes.expiring();
    let count = number(messages as f64);
    [
        (1, Leaves::Nothing, "one subject, TTL 5 s"),
        (1, Leaves::Marker, "a subject each, TTL 5 s, delete markers"),
        (3, Leaves::Nothing, "one subject, TTL 5 s"),
        (3, Leaves::Marker, "a subject each, TTL 5 s, delete markers"),
    ]
    .map(|(nodes, leaves, what)| {
        let load = Load::Expiry { leaves, messages };
        Row::new(format!("R{nodes} expiry of {count} messages, {what}, 128 B"), nodes, load)
    })
}

fn gets() -> Vec<Row> {
    [
        (1, Get::Sequence, 1, "by sequence, 1 reader".to_owned(), 100_000),
        (1, Get::Sequence, 50, "by sequence, 50 readers".to_owned(), 200_000),
        (1, Get::LastOfSubject, 1, format!("last of {SUBJECTS} subjects, 1 reader"), 100_000),
        (1, Get::LastOfSubject, 50, format!("last of {SUBJECTS} subjects, 50 readers"), 200_000),
        (3, Get::LastOfSubject, 50, format!("last of {SUBJECTS} subjects, 50 readers"), 200_000),
        (1, Get::Batch(500), 1, "batches of 500, 1 reader".to_owned(), 1_000_000),
        (1, Get::LastOfAll, 1, format!("multi_last of all {SUBJECTS} subjects, 1 reader"), 1_000_000),
    ]
    .into_iter()
    .map(|(nodes, get, readers, what, messages)| {
        Row::new(format!("R{nodes} direct get, {what}, 128 B"), nodes, Load::Get { get, readers })
            .messages(messages)
    })
    .collect()
}

fn key_value(nodes: usize) -> [Row; 4] {
    let keys = number(KEYS as f64);
    [
        (Use::Put, 1, "put, 1 writer", 10_000, 300),
        (Use::Put, 50, "put, 50 writers", 100_000, 5000),
        (Use::Get, 1, "get, 1 reader", 100_000, 1),
        (Use::Get, 50, "get, 50 readers", 200_000, 1),
    ]
    .map(|(what, clients, text, messages, offered)| {
        Row::new(
            format!("R{nodes} key-value {text}, {keys} keys, 128 B"),
            nodes,
            Load::KeyValue { what, clients },
        )
        .messages(messages)
        .offered(offered)
    })
}
