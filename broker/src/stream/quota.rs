//! What streams may hold: all of this node together (`max_file`, `max_mem`), and those of an account in the whole cluster
//! (`accounts { A { jetstream { max_store, max_mem } } }`).
//!
//! What streams hold is looked at a few times a second, and nodes tell each other what those that they lead hold. An
//! account is charged for each block that a leader here takes until a look shows it, so it can go over only by what other
//! nodes take meanwhile. A node can go over its own bounds by what arrives in between.

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

/// What an account may store.
#[derive(Debug)]
struct Allowance {
    file: Arc<Share>,
    memory: Arc<Share>,
}

/// One kind of it. A block counts as taken from when it is let in, and as landed when what became of it is known: what
/// the streams hold is what they held at the last look, and what was taken and had not landed when that look began.
#[derive(Debug)]
struct Share {
    /// Bytes; less than zero is no limit.
    max: i64,
    /// What the last look found, less all that had landed when it began.
    found: AtomicI64,
    /// Bytes, ever.
    taken: AtomicI64,
    landed: AtomicI64,
}

/// A block that was let in. Kept until it is known what became of it.
#[derive(Debug, Default)]
#[must_use]
pub struct Charge(Option<(Arc<Share>, i64)>);

/// What had landed when a look began, for each account with bounds: files and memory.
type Landed = Vec<(i64, i64)>;

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
            accounts: bounded.map(|(name, limits)| (name, Allowance::new(&limits))).collect(),
            look_again_at: AtomicU64::new(0),
            elsewhere: Mutex::new(BTreeMap::new()),
        }
    }

    fn admit(&self, stream: &StreamAssignment, bytes: usize) -> Result<Charge, ApiError> {
        let storage = stream.config.storage;
        if self.bound(storage).reached.load(Ordering::Relaxed) {
            return Err(ApiError::insufficient_resources());
        }
        match self.accounts.get(&stream.account) {
            Some(allowance) => allowance.take(storage, bytes.saturating_mul(stream.config.replica_count())),
            None => Ok(Charge::default()),
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

    /// To be asked before what the streams hold is added up.
    fn landed(&self) -> Landed {
        self.accounts.values().map(|allowance| (allowance.file.landed(), allowance.memory.landed())).collect()
    }

    /// Takes note of what the streams hold: all on this node, and those that it leads.
    fn look(&self, here: Used, led: &Usage, landed: &Landed) {
        self.file.look(here.file);
        self.memory.look(here.memory);
        let elsewhere = self.elsewhere.lock();
        for ((account, allowance), landed) in self.accounts.iter().zip(landed) {
            let reports = elsewhere.values().chain([led]).filter_map(|usage| usage.get(account));
            let (file, memory) = reports.fold((0, 0), |sum, used| (sum.0 + used.file, sum.1 + used.memory));
            allowance.file.look(file, landed.0);
            allowance.memory.look(memory, landed.1);
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
    fn new(limits: &AccountLimits) -> Self {
        Self { file: Share::new(limits.max_storage), memory: Share::new(limits.max_memory) }
    }

    fn take(&self, storage: StorageType, bytes: usize) -> Result<Charge, ApiError> {
        match storage {
            StorageType::File => self.file.take(bytes),
            StorageType::Memory => self.memory.take(bytes),
        }
    }
}

impl Share {
    fn new(max: i64) -> Arc<Self> {
        let [found, taken, landed] = [0; 3].map(AtomicI64::new);
        Arc::new(Self { max, found, taken, landed })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Result<Charge, ApiError> {
        if self.max < 0 {
            return Ok(Charge::default());
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let found = self.found.load(Ordering::Acquire);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |taken| {
            taken.checked_add(bytes).filter(|taken| found.saturating_add(*taken) <= self.max)
        });
        taken
            .map(|_| Charge(Some((Arc::clone(self), bytes))))
            .map_err(|_| ApiError::account_resources_exceeded())
    }

    fn landed(&self) -> i64 {
        self.landed.load(Ordering::Acquire)
    }

    fn look(&self, used: u64, landed: i64) {
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        self.found.store(used.saturating_sub(landed), Ordering::Release);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((share, bytes)) = self.0.take() {
            share.landed.fetch_add(bytes, Ordering::Release);
        }
    }
}

/// Whether a stream that is led here may take so many bytes more: the node's streams of its kind hold less than they may,
/// and its account has room, which it is charged for.
pub fn admit(jetstream: &JetStream, stream: &StreamAssignment, bytes: usize) -> Result<Charge, ApiError> {
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
) -> Result<Charge, ApiError> {
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
    let landed = quota.landed();
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
    quota.look(here, &led, &landed);
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
            moving: None,
            restoring: false,
        }
    }

    fn look(quota: &Quota, here: Used, led: &Usage) {
        quota.look(here, led, &quota.landed());
    }

    fn code(done: Result<Charge, ApiError>) -> Option<u16> {
        done.err().map(|error| error.err_code)
    }

    #[test]
    fn a_bound_of_the_node_that_is_reached_refuses_its_kind_of_stream_until_there_is_room_again() {
        let quota = Quota::new(Some(100), None, []);
        let admits = |storage| code(quota.admit(&stream("A", storage, 1), 0));

        assert!(quota.check_reserved(StorageType::File, 100).is_ok());
        assert_eq!(
            code(quota.check_reserved(StorageType::File, 101).map(|()| Charge::default())),
            Some(10047)
        );
        assert!(quota.check_reserved(StorageType::Memory, u64::MAX).is_ok());
        look(&quota, Used { file: 99, memory: u64::MAX }, &Usage::new());
        assert_eq!((admits(StorageType::File), admits(StorageType::Memory)), (None, None));
        look(&quota, Used { file: 100, memory: 0 }, &Usage::new());
        assert_eq!((admits(StorageType::File), admits(StorageType::Memory)), (Some(10023), None));
        look(&quota, Used { file: 50, memory: 0 }, &Usage::new());
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
        look(&quota, Used::default(), &Usage::from([(account, Used { file: 300, memory: 0 })]));
        assert_eq!(admits(1), Some(10002));
        quota.forget(NodeId(2));
        look(&quota, Used::default(), &Usage::new());
        assert_eq!(admits(333), None);
    }

    #[test]
    fn what_is_on_its_way_counts_whenever_it_is_looked() {
        let account = AccountName::parse("A").unwrap();
        let limits = AccountLimits { max_storage: 1000, ..AccountLimits::default() };
        let quota = Quota::new(None, None, [(account.clone(), limits)]);
        let admit = |bytes| quota.admit(&stream("A", StorageType::File, 1), bytes);
        let holds = |file| Usage::from([(account.clone(), Used { file, memory: 0 })]);

        let first = admit(600).unwrap();
        look(&quota, Used::default(), &holds(0));
        assert_eq!(code(admit(600)), Some(10002), "a look that does not show it yet");
        // It lands while somebody adds up what the streams hold, who may have seen it or not.
        let begun = quota.landed();
        drop(first);
        quota.look(Used::default(), &holds(0), &begun);
        assert_eq!(code(admit(600)), Some(10002));
        look(&quota, Used::default(), &holds(600));
        assert_eq!(code(admit(600)), Some(10002));
        // What was refused after all takes no room.
        drop(admit(400).unwrap());
        look(&quota, Used::default(), &holds(600));
        assert_eq!(code(admit(400)), None);
    }

    #[test]
    fn a_report_that_is_none_changes_nothing() {
        let quota = Quota::new(None, None, []);

        assert!(quota.take_report(NodeId(2), b"{\"A\":").is_err());
        assert!(quota.elsewhere.lock().is_empty());
    }
}
