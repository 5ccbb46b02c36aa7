//! Who gets a message: the trie of subscriptions.

use std::hint::black_box;

use levee_protocol::subject::Trie;

use crate::messages;
use crate::micro::{Call, Case};

const LOOKUPS: u64 = 256;
const LITERALS: u64 = 10_000;

/// The cases.
pub const CASES: [Case; 3] = [
    Case { name: "match a subject, 10k literal filters", per_call: LOOKUPS, prepare: || matches(0) },
    Case { name: "match a subject, with 100 wildcard filters", per_call: LOOKUPS, prepare: || matches(100) },
    Case { name: "insert and remove a filter", per_call: LOOKUPS, prepare: insert_and_remove },
];

/// Subjects are `orders.<region>.<n>`; each has a subscription of its own.
fn subject(n: u64) -> Vec<u8> {
    format!("orders.{}.{n}", n % 100).into_bytes()
}

fn trie(wildcards: u64) -> Trie<u64> {
    let mut trie = Trie::new();
    (0..LITERALS).for_each(|n| trie.insert(&subject(n), n));
    for n in 0..wildcards {
        let filter = if n % 2 == 0 { format!("orders.{n}.*") } else { format!("*.{n}.>") };
        trie.insert(filter.as_bytes(), n);
    }
    trie
}

fn matches(wildcards: u64) -> Call {
    let trie = trie(wildcards);
    let subjects: Vec<Vec<u8>> = (0..LOOKUPS).map(|n| subject(messages::mix(n) % LITERALS)).collect();
    Box::new(move || {
        let mut found = 0_u64;
        for subject in &subjects {
            trie.for_each_match(black_box(subject), |_| found += 1);
        }
        assert!(found >= LOOKUPS);
    })
}

fn insert_and_remove() -> Call {
    let mut trie = trie(100);
    let inboxes: Vec<Vec<u8>> =
        (0..LOOKUPS).map(|n| format!("_INBOX.{:x}.*", messages::mix(n)).into_bytes()).collect();
    Box::new(move || {
        for (inbox, n) in inboxes.iter().zip(0..) {
            trie.insert(black_box(inbox), n);
        }
        for inbox in &inboxes {
            assert_eq!(trie.remove(black_box(inbox), |_| true), 1);
        }
    })
}
