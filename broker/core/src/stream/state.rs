//! What of a stream is replicated, and how it lies on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use levee_protocol::api::{StreamConfig, StreamSource};
use levee_protocol::command::Undecodable;
use levee_protocol::ids::ConsumerName;
use levee_protocol::subject::Filter;
use levee_protocol::time::{Nanos, Timestamp};
use prost::Message;

use super::StreamMachine;
use super::compose::Composition;
use super::dedup::DuplicateWindow;
use super::expiry::Expiries;
use super::limits::Limits;
use super::markers::OwedMarkers;
use super::mirror::Sources;
use super::schedules::Schedules;
use crate::consumer::Ledger;
use crate::rows::{RowKind, StateRow};

/// A configuration in force, and what the rules read off it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) config: StreamConfig,
    pub(crate) subjects: Vec<Filter>,
    pub(crate) limits: Limits,
    /// Keys of its sources.
    pub(crate) sources: Vec<String>,
    /// What the leader does with publishes, if anything.
    pub(crate) composition: Option<Arc<Composition>>,
}

impl Settings {
    pub(crate) fn of(config: &StreamConfig) -> Self {
        // Subjects were validated before they were proposed. One that does not parse captures nothing.
        let subjects = config.subjects.iter().filter_map(|subject| Filter::parse(subject).ok()).collect();
        let limits = Limits::of(config);
        let sources = config.sources.iter().map(StreamSource::key).collect();
        let mut settings = Self { config: config.clone(), subjects, limits, sources, composition: None };
        let composition = Composition::of(config, settings.ttl_min(), limits);
        settings.composition = composition.map(Arc::new);
        settings
    }

    /// Whether a subject that expires is owed a marker.
    pub(crate) fn leaves_markers(&self) -> bool {
        !self.config.subject_delete_marker_ttl.is_zero()
    }

    /// The shortest time to live: a stream with markers keeps everything as long as those. With one message per
    /// subject it is as in nats-server: then the marker takes the message's place in any case.
    pub(crate) fn ttl_min(&self) -> Option<Nanos> {
        (self.leaves_markers() && self.config.max_msgs_per_subject != 1)
            .then_some(self.config.subject_delete_marker_ttl)
    }

    /// Whether every message is stored under a subject that the stream captures.
    pub(crate) fn stores_only_its_subjects(&self) -> bool {
        let config = &self.config;
        !self.subjects.is_empty()
            && config.mirror.is_none()
            && config.sources.is_empty()
            && config.subject_transform.is_none()
    }

    /// Whether messages stored under this could be under subjects that `other` does not capture.
    pub(crate) fn may_leave_foreign_subjects(&self, other: &Self) -> bool {
        !self.stores_only_its_subjects() || !self.is_within(other)
    }

    fn is_within(&self, other: &Self) -> bool {
        self.subjects.iter().all(|subject| other.subjects.iter().any(|wider| subject.is_subset_of(wider)))
    }
}

/// The one row of kind `State`. Fields are pinned: never renumber, add at the end.
#[derive(Clone, PartialEq, Message)]
struct StateValue {
    #[prost(bytes = "vec", tag = "1")]
    config_json: Vec<u8>,
    #[prost(sint64, tag = "2")]
    created: i64,
    #[prost(sint64, tag = "3")]
    clock: i64,
    #[prost(sint64, tag = "4")]
    ticked: i64,
    #[prost(uint64, tag = "5")]
    first: u64,
    #[prost(uint64, tag = "6")]
    last: u64,
    #[prost(uint64, tag = "7")]
    count: u64,
    #[prost(uint64, tag = "8")]
    bytes: u64,
    #[prost(sint64, tag = "9")]
    first_time: i64,
    #[prost(sint64, tag = "10")]
    last_time: i64,
    #[prost(string, tag = "11")]
    last_msg_id: String,
    #[prost(uint64, tag = "12")]
    window_head: u64,
    #[prost(uint64, tag = "13")]
    window_next: u64,
    #[prost(bool, tag = "14")]
    has_foreign_subjects: bool,
    #[prost(uint64, tag = "15")]
    aged: u64,
    #[prost(sint64, tag = "16")]
    aged_time: i64,
    #[prost(bool, tag = "24")]
    restoring: bool,
    #[prost(uint64, tag = "25")]
    restored_to: u64,
}

impl StreamMachine {
    /// The rows that changed since the last call, in no particular order; each key at most once.
    pub fn dirty_rows(&mut self) -> Vec<StateRow> {
        let mut rows = Vec::new();
        if std::mem::take(&mut self.dirty) {
            rows.extend(self.state_row());
        }
        self.messages.subjects.dirty_rows(&mut rows);
        for name in std::mem::take(&mut self.dirty_consumers) {
            rows.push(match self.consumers.get(&name) {
                Some(ledger) => consumer_row(&name, ledger),
                None => StateRow::delete(RowKind::Consumer, name.as_str().as_bytes()),
            });
        }
        self.window.dirty_rows(&mut rows);
        self.messages.deleted.dirty_rows(&mut rows);
        self.messages.exempt.dirty_rows(&mut rows);
        self.expiries.dirty_rows(&mut rows);
        self.owed.dirty_rows(&mut rows);
        self.schedules.dirty_rows(&mut rows);
        self.sources.dirty_rows(&mut rows);
        rows
    }

    /// About how many rows changed since they were last asked for, of the kinds that can be many.
    #[must_use]
    pub fn unwritten_rows(&self) -> usize {
        self.messages.subjects.unwritten_rows()
            + self.messages.deleted.unwritten_rows()
            + self.dirty_consumers.len()
    }

    /// Every row of the state, in order: equal states have equal rows.
    #[must_use]
    pub fn all_rows(&self) -> Vec<StateRow> {
        let mut rows: Vec<StateRow> = self.state_row().into_iter().collect();
        self.messages.subjects.all_rows(&mut rows);
        rows.extend(self.consumers.iter().map(|(name, ledger)| consumer_row(name, ledger)));
        self.window.all_rows(&mut rows);
        self.messages.deleted.all_rows(&mut rows);
        self.messages.exempt.all_rows(&mut rows);
        self.expiries.all_rows(&mut rows);
        self.owed.all_rows(&mut rows);
        self.schedules.all_rows(&mut rows);
        self.sources.all_rows(&mut rows);
        rows.sort_unstable();
        rows
    }

    /// The machine whose rows these are, in any order; the newest row per key, without deleted ones. No rows make an
    /// unconfigured machine.
    pub fn load(rows: impl Iterator<Item = StateRow>) -> Result<Self, Undecodable> {
        let mut machine = Self::new();
        let mut state = None;
        let mut pages = BTreeMap::new();
        let mut indexed = 0_u64;
        for StateRow { kind, key, value } in rows {
            let Some(value) = value else { continue };
            match kind {
                RowKind::State => state = Some(value),
                RowKind::Subject => indexed += machine.messages.subjects.load_row(&key, &value)?,
                RowKind::Deleted => machine.messages.deleted.load_row(&key, &value)?,
                RowKind::Exempt => machine.messages.exempt.load_row(&key, &value)?,
                RowKind::Expiry => machine.expiries.load_row(&key, &value)?,
                RowKind::Marker => machine.owed.load_row(&key),
                RowKind::Schedule => machine.schedules.load_row(&key, &value)?,
                RowKind::Source => machine.sources.load_row(&key, &value)?,
                RowKind::Dedup => {
                    pages.insert(key, value);
                }
                RowKind::Consumer => {
                    let name = str::from_utf8(&key).ok().and_then(|name| ConsumerName::parse(name).ok());
                    let name = name.ok_or_else(|| Undecodable("consumer row has an invalid name".into()))?;
                    machine.consumers.insert(name, Ledger::decode(&value)?);
                }
                RowKind::Meta | RowKind::MetaStream | RowKind::MetaNode => {
                    return Err(Undecodable(format!("{kind:?} row in a stream's state")));
                }
            }
        }
        match state {
            Some(value) => machine.load_state(&value, &pages)?,
            None if indexed == 0 && pages.is_empty() && machine.consumers.is_empty() => return Ok(machine),
            None => return Err(Undecodable("stream state has rows but no state row".into())),
        }
        machine.check_loaded(indexed)?;
        Ok(machine)
    }

    fn load_state(&mut self, value: &[u8], pages: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), Undecodable> {
        let state = StateValue::decode(value).map_err(|error| Undecodable(format!("State row: {error}")))?;
        let config: StreamConfig = serde_json::from_slice(&state.config_json)
            .map_err(|error| Undecodable(format!("stream configuration: {error}")))?;
        self.created = Timestamp(state.created);
        self.clock = Timestamp(state.clock);
        self.ticked = Timestamp(state.ticked);
        self.last_msg_id = state.last_msg_id;
        self.has_foreign_subjects = state.has_foreign_subjects;
        self.restoring = state.restoring;
        self.restored_to = state.restored_to;
        let messages = &mut self.messages;
        messages.first = state.first;
        messages.last = state.last;
        messages.count = state.count;
        messages.bytes = state.bytes;
        messages.first_time = Timestamp(state.first_time);
        messages.last_time = Timestamp(state.last_time);
        messages.storage = config.storage;
        messages.aged = state.aged;
        messages.aged_time = Timestamp(state.aged_time);
        let settings = Settings::of(&config);
        messages.leaves_markers = settings.leaves_markers();
        messages.keep_history = settings.limits.keep_history();
        self.settings = Some(Arc::new(settings));
        self.window = DuplicateWindow::loading(state.window_head);
        for (key, value) in pages {
            self.window.load_row(key, value)?;
        }
        self.expiries.loaded();
        self.window.loaded(state.window_next)
    }

    /// What apply keeps true must be true of what was loaded.
    fn check_loaded(&self, indexed: u64) -> Result<(), Undecodable> {
        let messages = &self.messages;
        let spanned = if messages.count == 0 { 0 } else { messages.last + 1 - messages.first };
        let deleted = messages.deleted.count_within(0, u64::MAX);
        if indexed != messages.count || spanned.checked_sub(deleted) != Some(messages.count) {
            return Err(Undecodable(format!(
                "stream state is inconsistent: {} messages, {indexed} of them indexed, {deleted} of {spanned} deleted",
                messages.count
            )));
        }
        Ok(())
    }

    fn state_row(&self) -> Option<StateRow> {
        let settings = self.settings.as_ref()?;
        let (window_head, window_next) = self.window.ordinals();
        let value = StateValue {
            config_json: serde_json::to_vec(&settings.config).expect("a configuration is plain JSON"),
            created: self.created.0,
            clock: self.clock.0,
            ticked: self.ticked.0,
            first: self.messages.first,
            last: self.messages.last,
            count: self.messages.count,
            bytes: self.messages.bytes,
            first_time: self.messages.first_time.0,
            last_time: self.messages.last_time.0,
            last_msg_id: self.last_msg_id.clone(),
            window_head,
            window_next,
            has_foreign_subjects: self.has_foreign_subjects,
            aged: self.messages.aged,
            aged_time: self.messages.aged_time.0,
            restoring: self.restoring,
            restored_to: self.restored_to,
        };
        Some(StateRow::put(RowKind::State, &[], value.encode_to_vec()))
    }
}

impl Default for StreamMachine {
    fn default() -> Self {
        Self {
            settings: None,
            created: Timestamp::ZERO,
            clock: Timestamp::ZERO,
            ticked: Timestamp::ZERO,
            messages: super::messages::Messages::default(),
            expiries: Expiries::default(),
            owed: OwedMarkers::default(),
            schedules: Schedules::default(),
            window: DuplicateWindow::default(),
            sources: Sources::default(),
            last_msg_id: String::new(),
            has_foreign_subjects: false,
            consumers: BTreeMap::new(),
            restoring: false,
            restored_to: 0,
            dirty: false,
            dirty_consumers: BTreeSet::new(),
        }
    }
}

fn consumer_row(name: &ConsumerName, ledger: &Ledger) -> StateRow {
    StateRow::put(RowKind::Consumer, name.as_str().as_bytes(), ledger.encode())
}
