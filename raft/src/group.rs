//! A group on this node: propose, read, watch the leadership, change the members.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};
use levee_storage::kind::BLOCK;
use levee_storage::{EntryLog, Room, Storage};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{ChangeMembers, EmptyNode, RaftMetrics, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::elections::{Promise, Restless};
use crate::error::{Error, ProposeError};
use crate::leadership::Leadership;
use crate::peers::Peers;
use crate::proposals::{Proposal, Then, Waiting};
use crate::receive::Transfer;
use crate::starting_over::Overruled;
use crate::state_machine::{Applied, Floors};
use crate::tasks::at_once;
use crate::types::{Fatal, LeaderId, LogId, Proposed, Raft, TypeConfig, Vote};

/// A handle to one group of this node. Clones are the same group.
#[derive(Clone)]
pub struct Group(pub(crate) Arc<GroupCore>);

/// How far a group is on its way out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stopping {
    No,
    Asked,
    Stopped,
}

pub(crate) struct GroupCore {
    pub(crate) id: GroupId,
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) log: EntryLog,
    pub(crate) storage: Arc<Storage>,
    pub(crate) config: Arc<Config>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) applied: Arc<Applied>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) majority_lost: watch::Sender<bool>,
    /// When that was last noticed and not over.
    pub(crate) majority_lost_since: Mutex<Option<tokio::time::Instant>>,
    /// The term in which the leader that is known does not lead any more; 0 for none.
    pub(crate) doubted: AtomicU64,
    /// When something came from the leader last, in milliseconds of `peers`; 0 if nothing did.
    pub(crate) leader_heard: AtomicU64,
    /// When this node learned who leads, in milliseconds of `peers`.
    pub(crate) led_since: AtomicU64,
    /// Whom this voter was for last.
    pub(crate) promise: Mutex<Option<Promise>>,
    /// The term in which this leader failed to hand over; 0 for none.
    pub(crate) given_up: AtomicU64,
    pub(crate) restless: Arc<Restless>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) stopping: watch::Sender<Stopping>,
    /// Set while this node has not been told, by a leader that knows it as a learner, what the log holds: until
    /// then its empty log must not be counted in an election.
    pub(crate) unborn: AtomicBool,
    /// A power cut may take the end of its log.
    pub(crate) is_volatile: bool,
    /// Set when a leader would have had committed entries truncated.
    pub(crate) taken_back: Arc<AtomicBool>,
    /// The vote of the leader by which this replica is overruled.
    pub(crate) overruled_by: Mutex<Option<Vote>>,
    /// A replica that was started over does not vote for logs that end before this.
    pub(crate) vote_floor: Mutex<Option<LogId>>,
    pub(crate) overruled: Arc<Overruled>,
    /// Ends a log append that waits for room on the disk.
    pub(crate) closing: Arc<AtomicBool>,
    /// The snapshot that is being received.
    pub(crate) transfer: Mutex<Option<Transfer>>,
    /// Resolves when the machine is gone.
    pub(crate) gone: Mutex<Option<oneshot::Receiver<()>>>,
}

/// A group as this node sees it.
#[derive(Clone, Debug, Default)]
pub struct GroupStatus {
    /// The leader, if known.
    pub leader: Option<NodeId>,
    /// The current term.
    pub raft_term: u64,
    /// Last index in this node's log.
    pub last_index: Option<u64>,
    /// Last index this node knows to be committed.
    pub committed: Option<u64>,
    /// Last index applied here.
    pub applied: Option<u64>,
    /// Last index that is in a checkpoint here.
    pub checkpointed: Option<u64>,
    /// Last index that is gone from this node's log.
    pub purged: Option<u64>,
    /// Members that vote, of all configurations in force.
    pub voters: BTreeSet<NodeId>,
    /// Members that only follow.
    pub learners: BTreeSet<NodeId>,
    /// The other members as the leader sees them; empty on others.
    pub replicas: Vec<ReplicaStatus>,
    /// Why the group stopped on this node, if it did.
    pub stopped: Option<String>,
}

/// One member as its leader sees it.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// The member.
    pub node: NodeId,
    /// Last index that the member is known to have, synced.
    pub matched: Option<u64>,
    /// Entries of the leader's log it is not known to have.
    pub lag: u64,
    /// How long nothing came from it; `None` if it never answered in this group.
    pub silent_for: Option<Duration>,
}

impl Group {
    /// The group's number.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    /// Proposes an entry. The order of calls is the order in the log; several may be under way.
    ///
    /// Never blocks: when the group's queue is full the proposal is refused.
    pub fn propose(&self, kind: u8, payload: Bytes) -> Proposal {
        let (then, proposal) = Proposal::new();
        self.propose_then(kind, payload, then);
        proposal
    }

    /// Proposes an entry like [`propose`](Self::propose) that makes sense in one leadership of this node only: in any
    /// later one it is refused, however early this node notices that it began.
    pub fn propose_in(&self, raft_term: u64, kind: u8, payload: Bytes) -> Proposal {
        let (then, proposal) = Proposal::new();
        if let Err((then, error)) = self.try_propose(Some(raft_term), kind, payload, then) {
            then(Err(error));
        }
        proposal
    }

    /// Proposes an entry like [`propose`](Self::propose); `then` is called once with what became of it, in the order
    /// of the log for what was applied. It runs where the entry is applied, or within this call if the proposal is
    /// refused: it must not block.
    pub fn propose_then(&self, kind: u8, payload: Bytes, then: Then) {
        if let Err((then, error)) = self.try_propose(None, kind, payload, then) {
            then(Err(error));
        }
    }

    fn try_propose(
        &self,
        raft_term: Option<u64>,
        kind: u8,
        payload: Bytes,
        then: Then,
    ) -> Result<(), (Then, ProposeError)> {
        let core = &*self.0;
        if *core.stopping.borrow() != Stopping::No {
            return Err((then, ProposeError::Stopped));
        }
        if *core.majority_lost.borrow() {
            return Err((then, ProposeError::NotLeader { leader: None }));
        }
        let room = if kind == BLOCK { Room::Messages } else { Room::SmallEntries };
        if core.storage.room(room).is_err() {
            return Err((then, ProposeError::NoRoom));
        }
        let (answer, ticket) = core.waiting.register(then);
        let proposed = Proposed { kind, payload };
        let queued = match raft_term {
            None => at_once(core.raft.client_write_ff(proposed, Some(answer))),
            Some(term) => {
                let write = core.raft.write(proposed).responder(answer);
                at_once(write.with_leader(LeaderId { term, node_id: core.node }).into_future())
            }
        };
        match queued {
            Some(Ok(())) => core.waiting.queued(ticket),
            Some(Err(_)) => core.waiting.answer(ticket, Err(ProposeError::Stopped)),
            None => core.waiting.answer(ticket, Err(ProposeError::Full)),
        }
        Ok(())
    }

    /// Returns when this node has applied everything that was committed anywhere before the call, and was still the
    /// leader after it.
    pub async fn read_barrier(&self) -> Result<(), Error> {
        let limit = self.0.config.majority_lost_after;
        let barrier = self.0.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(limit, barrier).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(Error::NotLeader { group: self.0.id, leader: to.leader_id })
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(self.stopped(&fatal)),
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(Error::NoMajority { group: self.0.id, attempted: "a read barrier" })
            }
        }
    }

    /// Who leads, now and from now on.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.subscribe()
    }

    /// Next index to apply: everything below it is in the machine's state.
    #[must_use]
    pub fn applied_next(&self) -> u64 {
        self.0.applied.next.load(Ordering::Acquire)
    }

    /// The group as this node sees it now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let members = metrics.membership_config.membership();
        let last = metrics.last_log_index;
        let next = |next: &AtomicU64| next.load(Ordering::Acquire).checked_sub(1);
        let heard = metrics.heartbeat.as_ref();
        let replicas = metrics.replication.iter().flatten().filter(|(node, _)| **node != self.0.node);
        GroupStatus {
            leader: self.0.leadership.borrow().leader,
            raft_term: metrics.current_term,
            last_index: last,
            committed: metrics.local_committed.as_ref().map(|id| id.index),
            applied: next(&self.0.applied.next),
            checkpointed: next(&self.0.applied.checkpointed_next),
            purged: self.0.log.purged().map(|id| id.index),
            voters: members.voter_ids().collect(),
            learners: members.learner_ids().collect(),
            replicas: replicas
                .map(|(node, matched)| ReplicaStatus {
                    node: *node,
                    matched: matched.as_ref().map(|id| id.index),
                    lag: last
                        .map_or(0, |last| last + 1)
                        .saturating_sub(matched.as_ref().map_or(0, |id| id.index + 1)),
                    silent_for: {
                        let heard = heard.and_then(|heard| heard.get(node)).and_then(|at| *at);
                        let of_node = self.0.peers.silent_for(*node);
                        let answered = matched.is_some().then_some(of_node);
                        heard.map(|at| at.elapsed().min(of_node)).or(answered)
                    },
                })
                .collect(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Whether the node is in no configuration that is in force here, nor in one that could come back into force.
    #[must_use]
    pub fn has_left(&self, node: NodeId) -> bool {
        let server = self.0.raft.server_metrics();
        let server = server.borrow_watched();
        let mut configs = [&server.membership_config, &server.committed_membership_config].into_iter();
        !configs.any(|members| members.nodes().any(|(member, _)| *member == node))
    }

    /// Hands leadership to another voter, and returns when it is seen to lead.
    pub async fn transfer(&self, to: NodeId) -> Result<(), Error> {
        let mut leadership = self.leadership();
        if leadership.borrow().leader == Some(to) {
            return Ok(());
        }
        self.must_lead()?;
        self.0.raft.trigger().transfer_leader(to).await.map_err(|fatal| self.stopped(&fatal))?;
        let seen = leadership.wait_for(|now| now.leader == Some(to));
        match tokio::time::timeout(self.0.config.majority_lost_after, seen).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.stopped(&Fatal::Stopped)),
            Err(_) => {
                self.0.give_up();
                Err(Error::NoMajority { group: self.0.id, attempted: "a leader transfer" })
            }
        }
    }

    /// Adds a member that follows without a vote, and returns when its log has begun and it has nearly caught up. A node
    /// that is a member already stays what it is.
    ///
    /// The node must have the group open. The wait has no limit of its own; what was added stays when it is given up.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), Error> {
        if let Err(error) = self.0.raft.add_learner(node, EmptyNode::new(), true).await {
            return Err(self.change_refused(error));
        }
        // For openraft an empty log has nearly caught up with a short one. A voter whose log is empty lost it, and is
        // refused, so nobody becomes one before something is in its log.
        let has_begun = |metrics: &RaftMetrics<TypeConfig>| match &metrics.replication {
            // None for who was removed meanwhile.
            Some(matched) => matched.get(&node).is_none_or(Option::is_some),
            None => metrics.state != ServerState::Leader,
        };
        self.0
            .raft
            .wait(None)
            .metrics(has_begun, "the log of a learner has begun")
            .await
            .map_err(|_| self.stopped(&Fatal::Stopped))?;
        self.must_lead()
    }

    /// Makes exactly these nodes the voters, in two steps through a joint majority. New ones are added as learners
    /// first; voters that are left out leave the group.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        // A learner that an earlier leader added may not have begun.
        for node in voters.difference(&self.status().voters) {
            self.add_learner(*node).await?;
        }
        match self.0.raft.change_membership(voters, false).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.change_refused(error)),
        }
    }

    /// Whether exactly these nodes are members, all of them voters, and nothing of that is still to be committed.
    #[must_use]
    pub fn consists_of(&self, voters: &BTreeSet<NodeId>) -> bool {
        let server = self.0.raft.server_metrics();
        let server = server.borrow_watched();
        let mut configs = [&server.membership_config, &server.committed_membership_config].into_iter();
        configs.all(|config| {
            let members = config.membership();
            members.get_joint_config().iter().eq([voters]) && members.learner_ids().next().is_none()
        })
    }

    /// Makes exactly these nodes the members, all of them voters: like [`change_voters`](Self::change_voters), and who
    /// follows without a vote leaves, too.
    pub async fn set_members(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        let strangers: BTreeSet<NodeId> = self.status().learners.difference(&voters).copied().collect();
        if !strangers.is_empty() {
            let leave = ChangeMembers::RemoveNodes(strangers);
            self.0.raft.change_membership(leave, false).await.map_err(|error| self.change_refused(error))?;
        }
        self.change_voters(voters).await
    }

    /// Writes a checkpoint of what is applied now. It is not synced by itself.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let done = self.0.raft.with_state_machine(|machine| Box::pin(machine.checkpoint())).await;
        Ok(done.map_err(|fatal| self.stopped(&fatal))??)
    }

    /// Begins a checkpoint. Where the log may be cut behind the last one that is written.
    pub(crate) async fn checkpoint_behind(&self) -> Result<Option<Floors>, Error> {
        let raft = &self.0.raft;
        let begun = raft.with_state_machine(|machine| Box::pin(ready(machine.checkpoint_behind()))).await;
        Ok(begun.map_err(|fatal| self.stopped(&fatal))??)
    }

    fn must_lead(&self) -> Result<(), Error> {
        let server = self.0.raft.server_metrics();
        let server = server.borrow_watched();
        if server.state == ServerState::Leader {
            Ok(())
        } else {
            Err(Error::NotLeader { group: self.0.id, leader: server.current_leader })
        }
    }

    fn change_refused(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Error {
        match error {
            RaftError::Fatal(fatal) => self.stopped(&fatal),
            RaftError::APIError(
                ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
            ) => Error::NotLeader { group: self.0.id, leader: to.leader_id },
            RaftError::APIError(error) => self.members(&error),
        }
    }

    fn members(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Membership { group: self.0.id, reason: error.to_string() }
    }

    pub(crate) fn stopped(&self, fatal: &Fatal) -> Error {
        Error::Stopped { group: self.0.id, reason: fatal.to_string() }
    }

    /// Stops the group and waits until nothing of it writes any more.
    pub(crate) async fn stop(&self) {
        let asked = self.0.stopping.send_if_modified(|stopping| {
            let first = *stopping == Stopping::No;
            if first {
                *stopping = Stopping::Asked;
                self.0.closing.store(true, Ordering::Release);
            }
            first
        });
        if asked {
            // What is not checkpointed is applied again when the group opens; this only makes that shorter.
            let _ = self.checkpoint().await;
        }
        let _ = self.0.raft.shutdown().await;
        let gone = self.0.gone.lock().take();
        if let Some(gone) = gone {
            let _ = gone.await;
        }
        self.0.transfer.lock().take();
        self.0.waiting.release_all(None);
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Group")
            .field("id", &self.0.id)
            .field("leadership", &*self.0.leadership.borrow())
            .finish()
    }
}

impl GroupCore {
    pub(crate) fn set_leadership(&self, now: Leadership) {
        let mut lost = false;
        self.leadership.send_if_modified(|known| {
            // Between two looks it may have lost the lead and won it again.
            let other_term = known.raft_term != now.raft_term;
            lost = known.leading && (!now.leading || other_term);
            let began = now.leading && (!known.leading || other_term);
            let now = Leadership { epoch: known.epoch + u64::from(began), ..now };
            if (known.leader, known.raft_term) != (now.leader, now.raft_term) {
                self.led_since.store(self.peers.millis(), Ordering::Relaxed);
            }
            let changed = *known != now;
            *known = now;
            changed
        });
        self.restless.mark(self.id);
        if lost {
            // openraft answers these when it learns what became of them, which can be never.
            self.waiting.release_all(now.leader);
        }
    }

    /// Notices when a leader's majority went silent, and when it came back. True while it is lost.
    pub(crate) fn check_majority(&self) -> bool {
        let mut since = self.majority_lost_since.lock();
        let lost = self.is_majority_lost(*since);
        if lost && since.is_none() {
            *since = Some(tokio::time::Instant::now());
            tracing::warn!(group = %self.id, "no majority answers; this leader stops serving until one does");
        } else if !lost {
            *since = None;
        }
        drop(since);
        if lost {
            self.ask_followers();
        }
        self.majority_lost.send_if_modified(|known| std::mem::replace(known, lost) != lost);
        lost
    }

    /// Whether nodes that are a majority are silent, or do not answer in this group. Once it was lost, only answers
    /// in this group bring it back: nodes that come back may have another leader by now. And it is not back before
    /// everything is applied that was under way when it was lost: who leads again must not see that come as news.
    fn is_majority_lost(&self, since: Option<tokio::time::Instant>) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return false;
        }
        if metrics.membership_config.voter_ids().all(|voter| voter == self.node) {
            return false;
        }
        let limit = self.config.majority_lost_after;
        let is_heard = |voter: &&NodeId| **voter == self.node || self.peers.silent_for(**voter) <= limit;
        let mut configs = metrics.membership_config.membership().get_joint_config().iter();
        let is_silent = configs.any(|voters| 2 * voters.iter().filter(is_heard).count() <= voters.len());
        let limit = since.map_or(limit + 2 * self.config.group_heartbeat, |since| since.elapsed());
        let is_unanswered = metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() > limit);
        let applied_next = self.applied.next.load(Ordering::Acquire);
        let is_behind = || metrics.last_log_index.is_some_and(|last| last >= applied_next);
        is_silent || is_unanswered || (since.is_some() && is_behind())
    }

    pub(crate) fn has_member(&self, node: NodeId) -> bool {
        let server = self.raft.server_metrics();
        server.borrow_watched().membership_config.nodes().any(|(member, _)| *member == node)
    }
}
