//! When a replica stands for election, and when a quiet leader asks its followers. openraft has timers for both in every
//! group; they are off, because what they would notice happens to nodes, and so to thousands of groups at once:
//!
//! - a node whose process was seen to end, or that is silent, leads nothing any more;
//! - a node that started again leads nothing it led before;
//! - a node says which of its groups stopped by themselves, and who asks for votes does not lead;
//! - a group in which nobody leads, or whose leader is not heard in it for long, elects.
//!
//! Voters stand one after the other, in an order that differs from group to group, and ask first whether they would
//! win: nobody's term grows because of a node that only thinks it is alone. Voters refuse whoever wants to replace a
//! leader that they themselves hear.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use levee_protocol::ids::{GroupId, NodeId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::group::{GroupCore, Stopping};
use crate::groups::Groups;
use crate::messages::{Failure, Kind, answer};
use crate::peers::decode_beat;
use crate::suspects::Suspects;
use crate::tasks::{at_once, spawn};
use crate::transport::{Frame, Lane};
use crate::types::TypeConfig;

/// How often groups are looked at.
const ROUND: Duration = Duration::from_millis(50);
/// Rounds that may be missed before this node counts as having slept.
const LATE_ROUNDS: u32 = 3;
/// Every how many rounds the node looks at all groups, not only at those in which something happened. Work for groups
/// that rest is done then, many at a time: what wakes threads and fills packets is not the number of groups.
const ALL_EVERY: u32 = 20;
/// A leader that was not heard in its group for this many of its heartbeats does not lead it.
const HEARTBEATS_MISSED: u32 = 3;
/// Every how many rounds leaders look whether a majority is there, while a node is silent. Else it is done with the rest.
const MAJORITY_EVERY: u32 = 5;
/// Beats belong to no group.
const NO_GROUP: GroupId = GroupId(0);

/// A group that nobody leads, as far as this node sees.
struct Vacancy {
    raft_term: u64,
    tries: u32,
    due: Instant,
    /// This voter does not refuse others for the last leader's sake.
    let_go: bool,
}

/// Groups in which something happened that may call for an election.
#[derive(Debug, Default)]
pub(crate) struct Restless(Mutex<BTreeSet<GroupId>>);

impl Restless {
    pub(crate) fn mark(&self, group: GroupId) {
        self.0.lock().insert(group);
    }

    fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Shows that this node lives, and stands for election where it must, until the node's groups are dropped.
pub(crate) async fn run(groups: Weak<Groups>) {
    let mut vacancies = HashMap::new();
    let mut members = BTreeSet::new();
    let mut stopped = Vec::new();
    let mut round = 0u32;
    let mut next_beat = Instant::now();
    let mut last_round = Instant::now();
    let mut died = false;
    let mut is_majority_lost = false;
    loop {
        let Some(node) = groups.upgrade() else { return };
        let now = Instant::now();
        if now - last_round > ROUND * LATE_ROUNDS {
            node.peers.slept(now - last_round);
        }
        last_round = now;
        let turned = node.peers.look();
        let all = died || !turned.silent.is_empty() || round.is_multiple_of(ALL_EVERY);
        if all {
            members = node.members();
            stopped = node.stopped();
        }
        if now >= next_beat {
            next_beat = now + node.config.heartbeat;
            node.send_beats(&members, &stopped);
        }
        for peer in turned.heard {
            tracing::info!(%peer, "a silent node is heard again");
            node.greet(peer);
        }
        node.send_heartbeats(round);
        let is_calm = !is_majority_lost && members.iter().all(|member| node.peers.lives(*member));
        // Not in the same round as the other work for all groups.
        let is_due =
            if is_calm { round % ALL_EVERY == ALL_EVERY / 4 } else { round.is_multiple_of(MAJORITY_EVERY) };
        if is_due {
            is_majority_lost = node.check_majorities();
        }
        node.fill_vacancies(&mut vacancies, all);
        round = round.wrapping_add(1);
        let suspects = Arc::clone(&node.suspects);
        drop(node);
        died = tokio::select! {
            () = tokio::time::sleep_until(now + ROUND) => false,
            () = suspects.added() => true,
        };
    }
}

impl Groups {
    /// All nodes that share a group with this one.
    fn members(&self) -> BTreeSet<NodeId> {
        let mut members = BTreeSet::new();
        self.for_each(|group| {
            let server = group.0.raft.server_metrics();
            members.extend(server.borrow_watched().membership_config.nodes().map(|(node, _)| *node));
        });
        members.remove(&self.node());
        members
    }

    /// Groups that stopped on this node by themselves, or that it gave up to lead.
    fn stopped(&self) -> Vec<GroupId> {
        let mut stopped = Vec::new();
        self.for_each(|group| {
            if *group.0.stopping.borrow() == Stopping::Stopped || group.0.gave_up() {
                stopped.push(group.0.id);
            }
        });
        stopped
    }

    fn send_beats(&self, members: &BTreeSet<NodeId>, stopped: &[GroupId]) {
        let head = self.peers.own_beat(stopped);
        for member in members.iter().copied() {
            let answer = self.transport.call(member, Lane::Log, beat(head.clone()));
            let (peers, limit) = (Arc::clone(&self.peers), self.config.append_timeout);
            spawn("beat", async move {
                if let Ok(Ok(_)) = tokio::time::timeout(limit, answer).await {
                    peers.heard(member);
                }
            });
        }
    }

    /// A sign of life came.
    pub(crate) fn beat_received(&self, from: NodeId, frame: &Frame) -> Frame {
        let (incarnation, stopped) = match decode_beat(&frame.head) {
            Ok(beat) => beat,
            Err(malformed) => return Failure::frame(NO_GROUP, &malformed),
        };
        if let Some(last_heard) = self.peers.beat(from, incarnation) {
            tracing::info!(peer = %from, "a node started again");
            self.for_each(|group| {
                // What the new process has won already is its own.
                if group.0.led_since.load(Ordering::Relaxed) <= last_heard {
                    group.0.doubt(from);
                }
            });
            self.greet(from);
        }
        for group in stopped.into_iter().filter_map(|id| self.group(id)) {
            group.0.doubt(from);
        }
        beat(Bytes::new())
    }

    /// Tells a node that came back which groups this one leads.
    fn greet(&self, peer: NodeId) {
        self.for_each(|group| {
            let core = &group.0;
            if core.has_member(peer) {
                core.ask_followers();
            }
        });
    }

    /// The leaders of this node ask their followers, each group once in `group_heartbeat`.
    fn send_heartbeats(&self, round: u32) {
        let rounds =
            u32::try_from(self.config.group_heartbeat.as_millis() / ROUND.as_millis()).unwrap_or(u32::MAX);
        let every = ALL_EVERY.min(rounds).max(1);
        if round % every != every / 2 {
            return;
        }
        let turns = u64::from(rounds / every).max(1);
        let turn = u64::from(round / every) % turns;
        for group in self.groups_where(|id| id.0 % turns == turn) {
            group.0.ask_followers();
        }
    }

    /// Whether a group of this node has a leader here and lost its majority.
    fn check_majorities(&self) -> bool {
        let mut is_lost = false;
        self.for_each(|group| is_lost |= group.0.check_majority());
        is_lost
    }

    /// Looks for groups without a leader among all groups, or among those in which something happened, and stands
    /// where it is this node's turn.
    fn fill_vacancies(&self, vacancies: &mut HashMap<GroupId, Vacancy>, all: bool) {
        let mut restless = self.restless.take();
        restless.extend(vacancies.keys());
        let candidates = self.groups_where(|id| all || restless.contains(&id));
        let now = Instant::now();
        let mut vacant = HashMap::new();
        for group in candidates {
            let core = &group.0;
            let Some(gone) = self.vacancy(core) else { continue };
            let raft_term = core.leadership.borrow().raft_term;
            let mut vacancy = match vacancies.remove(&core.id) {
                Some(known) if known.raft_term == raft_term => known,
                // Somebody else stands, or stood: give it time.
                Some(known) => {
                    Vacancy { raft_term, due: now + self.pause(core, known.tries), let_go: false, ..known }
                }
                None => {
                    let due = now + self.wait_for_turn(core, gone);
                    Vacancy { raft_term, tries: 0, due, let_go: false }
                }
            };
            vacancy.let_go |= gone.lets_go() && core.let_go();
            if now >= vacancy.due && core.promised(&self.suspects).is_none() {
                let leader = core.leadership.borrow().leader;
                let died = leader.is_some_and(|leader| self.suspects.contains(leader));
                if core.stand(if died { Asking::Votes } else { Asking::First }) {
                    vacancy.tries = vacancy.tries.wrapping_add(1);
                    vacancy.due = now + self.pause(core, vacancy.tries);
                }
            }
            vacant.insert(core.id, vacancy);
        }
        *vacancies = vacant;
    }

    /// Whether nobody leads the group and this node has a vote in it.
    fn vacancy(&self, core: &GroupCore) -> Option<Gone> {
        let seen = *core.leadership.borrow();
        if seen.leading || !core.may_stand() || *core.stopping.borrow() != Stopping::No {
            return None;
        }
        let gone = match seen.leader {
            Some(leader) if leader != core.node => {
                let is_gone = !self.peers.lives(leader)
                    || core.doubted.load(Ordering::Acquire) == seen.raft_term
                    || self.suspects.contains(leader);
                match core.leader_silent_for() {
                    _ if is_gone => Gone::Known(leader),
                    None => Gone::Unheard(leader),
                    Some(silence) if silence > self.config.group_heartbeat * HEARTBEATS_MISSED => {
                        Gone::Known(leader)
                    }
                    Some(_) => return None,
                }
            }
            Some(_) | None => Gone::Unknown,
        };
        let server = core.raft.server_metrics();
        let server = server.borrow_watched();
        let may_stand = server.state != ServerState::Leader && voters(&server).contains(&core.node);
        may_stand.then_some(gone)
    }

    /// How long this node leaves it to others to stand first.
    fn wait_for_turn(&self, core: &GroupCore, gone: Gone) -> Duration {
        let (dead, patience) = match gone {
            Gone::Known(leader) => (Some(leader), Duration::ZERO),
            // It leads, most likely, and says so when it hears that this node is back.
            Gone::Unheard(leader) => (Some(leader), self.config.election_max),
            // Somebody may be about to say so.
            Gone::Unknown => (None, self.stagger(core)),
        };
        let server = core.raft.server_metrics();
        let mut voters = voters(&server.borrow_watched());
        dead.map(|dead| voters.remove(&dead));
        if voters.len() <= 1 {
            return patience;
        }
        patience + self.stagger(core) * turn(&voters, core.id, core.node)
    }

    fn stagger(&self, core: &GroupCore) -> Duration {
        let stagger = self.config.candidate_stagger;
        if core.is_new() { stagger / 4 } else { stagger }
    }

    /// Time between two tries, different for each voter and try.
    fn pause(&self, core: &GroupCore, tries: u32) -> Duration {
        let mut hasher = DefaultHasher::new();
        (core.node.0, core.id.0, tries).hash(&mut hasher);
        // A new group has no leader to be patient with: some of its members are not there yet.
        let (shortest, longest) = if core.is_new() {
            (self.config.candidate_stagger, self.config.election_min)
        } else {
            (self.config.election_min, self.config.election_max)
        };
        let share = u32::try_from(hasher.finish() % 1000).unwrap_or(0);
        shortest + longest.saturating_sub(shortest) * share / 1000
    }
}

/// How a candidate begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asking {
    /// Whether the others would vote for it.
    First,
    /// For their votes: nobody leads for certain.
    Votes,
}

/// Whom a voter was for, and when, in milliseconds of `peers`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    candidate: NodeId,
    at: u64,
}

/// Why nobody leads.
#[derive(Clone, Copy)]
enum Gone {
    /// The last leader leads no longer.
    Known(NodeId),
    /// Nothing came from the leader since this node opened the group.
    Unheard(NodeId),
    /// Nobody is known to have led, or this node did before it started again.
    Unknown,
}

impl Gone {
    fn lets_go(self) -> bool {
        matches!(self, Self::Known(_))
    }
}

/// How many voters stand before this one. Each is the first in some groups.
pub(crate) fn turn(voters: &BTreeSet<NodeId>, group: GroupId, node: NodeId) -> u32 {
    let count = voters.len().max(1);
    let position = voters.iter().position(|voter| *voter == node).unwrap_or(0);
    let first = usize::try_from(group.0 % count as u64).unwrap_or(0);
    u32::try_from((position + count - first) % count).unwrap_or(u32::MAX)
}

/// Whoever may stand: a voter of the newest configuration, or of the one that is known to be committed.
fn voters(server: &openraft::metrics::RaftServerMetrics<TypeConfig>) -> BTreeSet<NodeId> {
    server.membership_config.voter_ids().chain(server.committed_membership_config.voter_ids()).collect()
}

impl GroupCore {
    /// The node does not lead this group any more, if it did as far as this node knows.
    pub(crate) fn doubt(&self, leader: NodeId) {
        let seen = *self.leadership.borrow();
        if seen.leader == Some(leader) && leader != self.node {
            self.doubted.store(seen.raft_term, Ordering::Release);
            self.restless.mark(self.id);
        }
    }

    /// Something came from the group's leader.
    pub(crate) fn leader_heard(&self) {
        self.leader_heard.store(self.peers.millis(), Ordering::Relaxed);
    }

    /// `None` if nothing came from it since the group was opened here.
    fn leader_silent_for(&self) -> Option<Duration> {
        let heard = self.leader_heard.load(Ordering::Relaxed);
        (heard > 0).then(|| self.peers.since(heard))
    }

    /// A heartbeat to all followers, if this node leads and has any.
    pub(crate) fn ask_followers(&self) {
        let leads = {
            let server = self.raft.server_metrics();
            let server = server.borrow_watched();
            server.state == ServerState::Leader && server.membership_config.nodes().count() > 1
        };
        if leads {
            // Left out when the group's queue is full: then the group has other things to tell.
            let _ = at_once(self.raft.trigger().heartbeat());
        }
    }

    /// This voter no longer refuses others for its leader's sake. False if it must be tried again.
    pub(crate) fn let_go(&self) -> bool {
        let vote = {
            let server = self.raft.server_metrics();
            server.borrow_watched().vote
        };
        let Some(leader) = self.leadership.borrow().leader.filter(|leader| *leader != self.node) else {
            return true;
        };
        // What openraft does with a request to hand leadership to somebody else is just this.
        !vote.is_committed()
            || at_once(self.raft.handle_transfer_leader(TransferLeaderRequest::new(vote, leader, None)))
                .is_some()
    }

    /// This leader tried to hand over and failed: openraft takes nothing from it any more in this term.
    pub(crate) fn give_up(&self) {
        self.given_up.store(self.leadership.borrow().raft_term, Ordering::Release);
    }

    pub(crate) fn gave_up(&self) -> bool {
        let seen = *self.leadership.borrow();
        seen.leader == Some(self.node) && self.given_up.load(Ordering::Acquire) == seen.raft_term
    }

    /// Stands for election. False if it must be tried again.
    pub(crate) fn stand(&self, asking: Asking) -> bool {
        let stands = at_once(self.raft.trigger().elect(asking == Asking::First)).is_some();
        if stands && asking == Asking::Votes {
            self.promise_to(self.node);
        }
        stands
    }

    /// This voter is for a candidate, and leaves it time to say that it leads.
    pub(crate) fn promise_to(&self, candidate: NodeId) {
        *self.promise.lock() = Some(Promise { candidate, at: self.peers.millis() });
    }

    /// The candidate that this voter leaves time. openraft orders candidates of one term too, so a late one would
    /// replace a leader that was just elected, and whose first entries are acknowledged already.
    pub(crate) fn promised(&self, suspects: &Suspects) -> Option<NodeId> {
        let promise = self.promise.lock().as_ref().copied()?;
        let Promise { candidate, at } = promise;
        let holds = self.peers.since(at) < self.config.election_min / 2;
        let lives = candidate == self.node || (self.peers.lives(candidate) && !suspects.contains(candidate));
        (holds && lives).then_some(candidate)
    }

    /// Nobody ever led it, as far as this node knows.
    fn is_new(&self) -> bool {
        self.leadership.borrow().raft_term <= 1
    }
}

fn beat(head: Bytes) -> Frame {
    answer(NO_GROUP, Kind::Beat, head)
}
