//! What streams may hold: all of this node together (`max_file`, `max_mem`), and those of an account in the whole cluster
//! (`accounts { A { jetstream { max_store, max_mem } } }`).
//!
//! What streams hold is looked at a few times a second, and nodes tell each other what those that they lead hold. In
//! between, an account is charged for each block that a leader here takes, so it can go over only by what other nodes
//! take meanwhile. A node can go over its own bounds by what arrives in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::api::{AccountLimits, ApiError, StorageType};
use levee_protocol::command::meta::StreamAssignment;
use levee_protocol::ids::{AccountName, NodeId};
use levee_storage::Room;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::advisory;
use crate::jetstream::{FORWARD_USAGE, JetStream};
use crate::router::Inbound;
use crate::runtime::clock;

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Whoever is refused has it looked again. That may take one part in so many of the time.
const LOOK_AGAIN_SHARE: u64 = 20;
/// Nodes repeat what they hold after so many looks, in case it was lost on the way.
const REPEAT_AFTER: u32 = 20;
/// What a message takes besides its subject, header and payload, by nats-server's count of bytes.
const MESSAGE_BYTES: usize = 30;

/// The bounds, and whether they are reached.
#[derive(Debug)]
pub struct Quota {
    file: Bound,
    memory: Bound,
    /// Of accounts that have bounds.
    accounts: BTreeMap<AccountName, Allowance>,
    /// Before that, by the node's ticks, nobody who is refused has it looked again.
    look_again_at: AtomicU64,
    /// What the streams hold that other nodes lead.
    elsewhere: Mutex<BTreeMap<NodeId, Usage>>,
}

/// A bound of this node.
#[derive(Debug)]
struct Bound {
    name: &'static str,
    /// Bytes. `None`: as much as there is, which the store watches itself.
    max: Option<u64>,
    reached: AtomicBool,
}

/// What an account may still store, by the last look and what was taken since.
#[derive(Debug)]
struct Allowance {
    limits: AccountLimits,
    file: AtomicI64,
    memory: AtomicI64,
}

/// Bytes in streams of accounts that have bounds, replicas counted.
pub type Usage = BTreeMap<AccountName, Used>;

/// What the streams of an account hold.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes on disk.
    pub file: u64,
    /// Bytes in memory.
    pub memory: u64,
}

impl Quota {
    /// Bounds of the node in bytes, and those of accounts.
    #[must_use]
    pub fn new(
        file_max: Option<u64>,
        memory_max: Option<u64>,
        accounts: impl IntoIterator<Item = (AccountName, AccountLimits)>,
    ) -> Self {
        let bound = |name, max| Bound { name, max, reached: AtomicBool::new(false) };
        let bounded =
            accounts.into_iter().filter(|(_, limits)| limits.max_storage >= 0 || limits.max_memory >= 0);
        Self {
            file: bound("max_file", file_max),
            memory: bound("max_mem", memory_max),
            accounts: bounded.map(|(name, limits)| (name, Allowance::new(limits))).collect(),
            look_again_at: AtomicU64::new(0),
            elsewhere: Mutex::new(BTreeMap::new()),
        }
    }

    fn admit(&self, stream: &StreamAssignment, bytes: usize) -> Result<(), ApiError> {
        let storage = stream.config.storage;
        if self.bound(storage).reached.load(Ordering::Relaxed) {
            return Err(ApiError::insufficient_resources());
        }
        match self.accounts.get(&stream.account) {
            Some(allowance) => allowance.take(storage, bytes.saturating_mul(stream.config.replica_count())),
            None => Ok(()),
        }
    }

    /// Whether streams of this kind may be given so many bytes of this node in all.
    pub fn check_reserved(&self, storage: StorageType, reserved: u64) -> Result<(), ApiError> {
        if self.bound(storage).max.is_some_and(|max| reserved > max) {
            Err(storage.exceeded())
        } else {
            Ok(())
        }
    }

    /// Whether one of the node's bounds is reached.
    fn is_reached(&self) -> bool {
        [&self.file, &self.memory].iter().any(|bound| bound.reached.load(Ordering::Relaxed))
    }

    fn bound(&self, storage: StorageType) -> &Bound {
        match storage {
            StorageType::File => &self.file,
            StorageType::Memory => &self.memory,
        }
    }

    /// Another node said what the streams hold that it leads.
    pub fn take_report(&self, from: NodeId, frame: &[u8]) -> Result<(), serde_json::Error> {
        let usage = serde_json::from_slice(frame)?;
        self.elsewhere.lock().insert(from, usage);
        Ok(())
    }

    /// Another node is gone; what it led is led elsewhere soon.
    pub fn forget(&self, node: NodeId) {
        self.elsewhere.lock().remove(&node);
    }

    /// Takes note of what the streams hold: all on this node, and those that it leads.
    fn look(&self, here: Used, led: &Usage) {
        self.file.look(here.file);
        self.memory.look(here.memory);
        let elsewhere = self.elsewhere.lock();
        for (account, allowance) in &self.accounts {
            let reports = elsewhere.values().chain([led]).filter_map(|usage| usage.get(account));
            let (file, memory) = reports.fold((0, 0), |sum, used| (sum.0 + used.file, sum.1 + used.memory));
            allowance.file.store(left(allowance.limits.max_storage, file), Ordering::Relaxed);
            allowance.memory.store(left(allowance.limits.max_memory, memory), Ordering::Relaxed);
        }
    }
}

impl Bound {
    fn look(&self, used: u64) {
        let is_reached = self.max.is_some_and(|max| used >= max);
        if self.reached.swap(is_reached, Ordering::Relaxed) == is_reached {
            return;
        }
        let name = self.name;
        if is_reached {
            tracing::warn!(
                "streams hold {used} bytes and reach {name}: publishes are refused until some are removed or the limit \
                 is raised"
            );
        } else {
            tracing::info!("streams hold {used} bytes and are below {name} again");
        }
    }
}

impl Allowance {
    fn new(limits: AccountLimits) -> Self {
        let (file, memory) = (left(limits.max_storage, 0), left(limits.max_memory, 0));
        Self { limits, file: AtomicI64::new(file), memory: AtomicI64::new(memory) }
    }

    fn take(&self, storage: StorageType, bytes: usize) -> Result<(), ApiError> {
        let room = match storage {
            StorageType::File => &self.file,
            StorageType::Memory => &self.memory,
        };
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let taken = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes).filter(|left| *left >= 0)
        });
        taken.map(drop).map_err(|_| ApiError::account_resources_exceeded())
    }
}

/// Bytes that a limit leaves; less than zero is no limit.
fn left(max: i64, used: u64) -> i64 {
    if max < 0 { i64::MAX } else { max.saturating_sub_unsigned(used) }
}

/// Whether a stream that is led here may take so many bytes more: the node's streams of its kind hold less than they may,
/// and its account has room, which it is charged for.
pub fn admit(jetstream: &JetStream, stream: &StreamAssignment, bytes: usize) -> Result<(), ApiError> {
    let quota = jetstream.quota();
    quota.admit(stream, bytes).or_else(|refused| {
        // Room may have been made since the last look.
        let begun = clock::ticks();
        if begun < quota.look_again_at.load(Ordering::Relaxed) {
            return Err(refused);
        }
        look(jetstream);
        let ended = clock::ticks();
        quota.look_again_at.store(ended + (ended - begun) * LOOK_AGAIN_SHARE, Ordering::Relaxed);
        quota.admit(stream, bytes)
    })
}

/// The same for the messages that publishers sent.
pub fn admit_messages<'a>(
    jetstream: &JetStream,
    stream: &StreamAssignment,
    batches: impl IntoIterator<Item = &'a Inbound>,
) -> Result<(), ApiError> {
    let sizes = batches.into_iter().flat_map(|batch| {
        batch.items.iter().map(|item| {
            let parts = [batch.subject(item), batch.header(item), batch.payload(item)];
            MESSAGE_BYTES + parts.iter().map(|part| part.len()).sum::<usize>()
        })
    });
    // Most accounts have no bounds, and their messages need not be counted.
    let is_bounded = jetstream.quota().accounts.contains_key(&stream.account);
    admit(jetstream, stream, if is_bounded { sizes.sum() } else { 0 })
}

/// Adds up what the streams hold, and gives what those hold that this node leads.
fn look(jetstream: &JetStream) -> Usage {
    let quota = jetstream.quota();
    let (mut here, mut led) = (Used::default(), Usage::new());
    for replica in jetstream.replicas() {
        let bytes = replica.read(|machine, _| machine.state().bytes);
        let assignment = replica.assignment();
        here.add(assignment.config.storage, bytes);
        if quota.accounts.contains_key(&assignment.account) && replica.leader().is_some() {
            let all = bytes * assignment.config.replica_count() as u64;
            led.entry(assignment.account.clone()).or_default().add(assignment.config.storage, all);
        }
    }
    quota.look(here, &led);
    led
}

/// A node is there that has not heard yet what the streams hold that are led here.
pub fn greet(jetstream: &JetStream, node: NodeId) {
    if !jetstream.quota().accounts.is_empty() {
        tell(jetstream, node, &look(jetstream));
    }
}

fn tell(jetstream: &JetStream, node: NodeId, led: &Usage) {
    let frame = Bytes::from(serde_json::to_vec(led).expect("names are strings"));
    // A node that is gone is greeted when it is back.
    let _ = jetstream.peers().forward(node, FORWARD_USAGE, frame);
}

/// Looks for as long as the node runs.
pub async fn watch(jetstream: Arc<JetStream>) {
    let quota = jetstream.quota();
    let (mut told, mut was_full) = (Usage::new(), false);
    for round in 0_u32.. {
        let led = look(&jetstream);
        let is_full = quota.is_reached() || jetstream.storage().room(Room::Messages).is_err();
        if is_full && !was_full {
            advisory::out_of_storage(&jetstream);
        }
        was_full = is_full;
        if led != told || (round % REPEAT_AFTER == 0 && !led.is_empty()) {
            for peer in jetstream.peers().peers() {
                tell(&jetstream, peer.node, &led);
            }
            told = led;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

impl Used {
    fn add(&mut self, storage: StorageType, bytes: u64) {
        match storage {
            StorageType::File => self.file += bytes,
            StorageType::Memory => self.memory += bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use levee_protocol::api::StreamConfig;

    use super::*;

    fn stream(account: &str, storage: StorageType, num_replicas: i32) -> StreamAssignment {
        StreamAssignment {
            account: AccountName::parse(account).unwrap(),
            group: levee_protocol::ids::GroupId(7),
            config: StreamConfig { storage, num_replicas, ..StreamConfig::default() },
            created: levee_protocol::time::Timestamp::ZERO,
            replicas: Vec::new(),
            revision: 1,
            replicas_changed: false,
            restoring: false,
        }
    }

    fn code(done: Result<(), ApiError>) -> Option<u16> {
        done.err().map(|error| error.err_code)
    }

    #[test]
    fn a_bound_of_the_node_that_is_reached_refuses_its_kind_of_stream_until_there_is_room_again() {
        let quota = Quota::new(Some(100), None, []);
        let admits = |storage| code(quota.admit(&stream("A", storage, 1), 0));

        assert!(quota.check_reserved(StorageType::File, 100).is_ok());
        assert_eq!(code(quota.check_reserved(StorageType::File, 101)), Some(10047));
        assert!(quota.check_reserved(StorageType::Memory, u64::MAX).is_ok());
        quota.look(Used { file: 99, memory: u64::MAX }, &Usage::new());
        assert_eq!((admits(StorageType::File), admits(StorageType::Memory)), (None, None));
        quota.look(Used { file: 100, memory: 0 }, &Usage::new());
        assert_eq!((admits(StorageType::File), admits(StorageType::Memory)), (Some(10023), None));
        quota.look(Used { file: 50, memory: 0 }, &Usage::new());
        assert_eq!(admits(StorageType::File), None);
    }

    #[test]
    fn an_account_is_charged_for_each_replica_on_all_nodes_and_others_are_not() {
        let account = AccountName::parse("A").unwrap();
        let limits = AccountLimits { max_storage: 1000, ..AccountLimits::default() };
        let quota = Quota::new(None, None, [(account.clone(), limits)]);
        let admits = |bytes| code(quota.admit(&stream("A", StorageType::File, 3), bytes));

        assert_eq!(admits(200), None);
        assert_eq!(admits(200), Some(10002), "400 bytes are left and 600 are asked for");
        assert_eq!(admits(100), None);
        assert_eq!(code(quota.admit(&stream("A", StorageType::Memory, 3), usize::MAX)), None);
        assert_eq!(code(quota.admit(&stream("B", StorageType::File, 1), usize::MAX)), None);

        quota.take_report(NodeId(2), br#"{"A":{"file":700,"memory":0}}"#).unwrap();
        quota.look(Used::default(), &Usage::from([(account, Used { file: 300, memory: 0 })]));
        assert_eq!(admits(1), Some(10002));
        quota.forget(NodeId(2));
        quota.look(Used::default(), &Usage::new());
        assert_eq!(admits(333), None);
    }

    #[test]
    fn a_report_that_is_none_changes_nothing() {
        let quota = Quota::new(None, None, []);

        assert!(quota.take_report(NodeId(2), b"{\"A\":").is_err());
        assert!(quota.elsewhere.lock().is_empty());
    }
}
