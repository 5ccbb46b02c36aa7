//! What becomes of a replica that has committed what the others lost.
//!
//! Groups in memory do not sync their logs. When a majority of one loses power, it may elect a leader whose log ends before
//! what this replica has applied. Raft takes for granted that this cannot be, and openraft does not look: it takes whatever
//! lies at a committed place for the leader's entry. So the replica is overruled: it takes no part any more, gives up what it
//! has but its vote, and is filled by the leader like a new one.
//!
//! What it acknowledged it knows no longer, so its vote has a floor: the beginning of the term of the leader that overruled
//! it. Everything that was committed with its help is in that leader's log before the floor, and so in every log that
//! reaches it. Until its own log does, it votes for such logs only, and does not stand.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use levee_protocol::ids::GroupId;
use levee_storage::{EntryLog, Storage};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::codec::{self, Reader, Writer as _};
use crate::error::Error;
use crate::group::{Group, GroupCore};
use crate::groups::{Groups, birth_row, mark_born};
use crate::types::{LogId, Vote, log_id, stored_log_id};

/// Persisted: first byte of the birth row of a group that was started over. The floor of its vote follows.
const STARTED_OVER: u8 = 2;

/// Groups of this node that are overruled, for whoever starts them over.
#[derive(Debug, Default)]
pub(crate) struct Overruled {
    groups: Mutex<BTreeSet<GroupId>>,
    some: Notify,
}

impl Overruled {
    fn add(&self, group: GroupId) {
        self.groups.lock().insert(group);
        self.some.notify_one();
    }

    async fn take(&self) -> BTreeSet<GroupId> {
        loop {
            let groups = std::mem::take(&mut *self.groups.lock());
            if !groups.is_empty() {
                return groups;
            }
            self.some.notified().await;
        }
    }
}

impl Groups {
    /// Waits until groups that are open here are overruled, and names each once. For one caller, who starts them over; it
    /// may give up waiting.
    pub async fn overruled(&self) -> BTreeSet<GroupId> {
        self.overruled.take().await
    }

    /// Stops a group that is overruled and gives up what this node has of it, except what keeps it from voting twice, and
    /// from voting for a log that lacks what it helped to commit. The group is to be opened again then, with a machine
    /// that was loaded after this. Other groups stay as they are.
    pub async fn start_over(&self, id: GroupId) -> Result<(), Error> {
        let Some(group) = self.group(id) else { return Ok(()) };
        let Some(by) = *group.0.overruled_by.lock() else { return Ok(()) };
        self.close(id).await;
        let log = &group.0.log;
        // It may have voted since.
        let vote = stored_vote(id, log)?.filter(|vote| vote.leader_id() > by.leader_id()).unwrap_or(by);
        let last = log.last().map(log_id);
        let floor = LogId::new(*by.leader_id(), 0);
        let floor = last.map_or(floor, |last| last.max(floor));
        let row = encode_floor(&floor);
        self.storage.start_group_over(id, codec::encode_vote(&vote), &birth_row(id), &row)?;
        Ok(())
    }
}

impl Group {
    /// The leader's log is another one than this replica's up to where this one is committed, which groups in memory can
    /// come to. Nothing is taken from the leader until [`Groups::start_over`].
    #[must_use]
    pub fn is_overruled(&self) -> bool {
        self.0.is_overruled()
    }
}

impl GroupCore {
    pub(crate) fn is_overruled(&self) -> bool {
        self.overruled_by.lock().is_some()
    }

    /// Whether this replica is overruled, by entries of this leader or before.
    pub(crate) fn is_overruled_by<'a>(&self, vote: &Vote, ids: impl IntoIterator<Item = &'a LogId>) -> bool {
        if !self.is_volatile {
            return false;
        }
        if self.is_overruled() {
            return true;
        }
        if !self.log.is_contradicted_by(ids.into_iter().map(stored_log_id)) {
            return false;
        }
        // Who was replaced since is not believed, and told so.
        let newest = stored_vote(self.id, &self.log).ok().flatten();
        let is_newest = newest.is_none_or(|newest| newest.leader_id() <= vote.leader_id());
        if is_newest {
            self.overrule(vote);
        }
        is_newest
    }

    /// The leader of this vote lacks what is committed here.
    pub(crate) fn overrule(&self, vote: &Vote) {
        if self.overruled_by.lock().replace(*vote).is_some() {
            return;
        }
        tracing::warn!(
            group = %self.id,
            leader = %vote.leader_id().node_id,
            committed = ?self.log.committed().map(|id| id.index),
            "a majority lost the end of this group in memory, and its new leader's log lacks what is committed here; \
             this replica gives up what it has and is filled by the leader"
        );
        self.overruled.add(self.id);
    }

    /// Whether this replica may vote for a log that ends there.
    pub(crate) fn may_vote_for(&self, last: Option<&LogId>) -> bool {
        !self.is_overruled() && self.vote_floor.lock().as_ref().is_none_or(|floor| last >= Some(floor))
    }

    /// Whether this replica may be a candidate: it has begun, and has what it helped to commit.
    pub(crate) fn may_stand(&self) -> bool {
        let last = self.log.last().map(log_id);
        !self.unborn.load(Ordering::Acquire) && self.may_vote_for(last.as_ref())
    }

    /// Takes the floor away once the log reaches it. The store is told with what is written next.
    pub(crate) fn look_whether_filled(&self) {
        let last = self.log.last().map(log_id);
        let mut floor = self.vote_floor.lock();
        if floor.is_none() || last < *floor {
            return;
        }
        *floor = None;
        drop(floor);
        mark_born(&self.log, self.id);
        tracing::info!(group = %self.id, "the leader has filled this replica; it votes like any other");
    }
}

/// The floor below which the group's replica here must not vote; `None` if it was not started over.
pub(crate) fn read_floor(storage: &Storage, group: GroupId) -> Result<Option<LogId>, Error> {
    let row = storage.node_row(&birth_row(group))?;
    let Some((&STARTED_OVER, floor)) = row.as_deref().and_then(<[u8]>::split_first) else { return Ok(None) };
    let mut reader = Reader::new(floor);
    let floor = reader.log_id().and_then(|floor| reader.end().map(|()| floor));
    let corrupt =
        |_| levee_storage::Error::Corrupt(format!("group {group}: the row of its birth does not decode"));
    Ok(Some(floor.map_err(corrupt)?))
}

fn encode_floor(floor: &LogId) -> Vec<u8> {
    let mut row = vec![STARTED_OVER];
    row.put_log_id(floor);
    row
}

pub(crate) fn stored_vote(group: GroupId, log: &EntryLog) -> Result<Option<Vote>, Error> {
    let vote = log.vote().map(|vote| codec::decode_vote(&vote)).transpose();
    Ok(vote.map_err(|_| {
        levee_storage::Error::Corrupt(format!("group {group}: the stored vote does not decode"))
    })?)
}
