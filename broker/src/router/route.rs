//! Hot path: what a publisher remembers about a subject. A message on a remembered subject costs one comparison or
//! one hash lookup, no lock, no allocation.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foldhash::fast::RandomState;

use crate::router::Router;
use crate::router::stage::{Stage, Staged};
use crate::router::table::{AccountTable, Interest, Subscription};
use crate::session::guard::{Guard, Verdict};

/// Everybody who gets a message on one subject.
#[derive(Default)]
pub(crate) struct Route {
    pub(crate) plain: Vec<Target>,
    pub(crate) queues: Vec<QueueGroup>,
    pub(crate) links: Vec<LinkTarget>,
    pub(crate) sinks: Vec<u32>,
    pub(crate) responders: bool,
    /// Whether the publisher may publish on the subject.
    pub(crate) verdict: Verdict,
    /// Whether it is on the stage's list of routes with deliveries to count.
    pub(crate) is_uncounted: bool,
}

/// A local subscription, and where its messages are staged.
pub(crate) struct Target {
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) slot: u32,
    pub(crate) headers: bool,
    pub(crate) uncounted: u32,
    /// `HMSG <subject> <sid> `, of which a message without headers takes all but the first byte. Empty in routes
    /// that are not kept.
    pub(crate) prefix: Box<[u8]>,
    /// Told of each delivery, for the few subscribers of whom more has to be known than that they want the subject.
    pub(crate) guard: Option<Arc<Guard>>,
}

impl Target {
    /// Whether a message that came by another subject than its own is kept from the subscriber. If it came by its own,
    /// that was seen when the route was made.
    #[inline]
    pub(crate) fn is_kept_away(&self, staged: &Staged<'_>) -> bool {
        self.guard.as_ref().is_some_and(|guard| {
            let subject = staged.message.subject;
            subject != staged.to && guard.keeps_away(subject, &self.subscription.queue)
        })
    }
}

/// All members of a queue group that match; one of them gets the message.
pub(crate) struct QueueGroup {
    pub(crate) name: Box<[u8]>,
    pub(crate) members: Vec<Target>,
    pub(crate) remote: Vec<RemoteMembers>,
}

/// A peer with members of a queue group.
pub(crate) struct RemoteMembers {
    pub(crate) slot: u32,
    pub(crate) weight: u32,
}

/// A peer with plain subscriptions.
pub(crate) struct LinkTarget {
    pub(crate) slot: u32,
}

/// For whom a route is made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Viewpoint {
    /// The publisher's own connection, if it does not want its messages back.
    pub(crate) without: Option<u64>,
    /// The message came from a peer: it has made its one hop, and the peer has asked who takes it.
    pub(crate) local_only: bool,
}

impl Route {
    fn clear(&mut self) {
        self.plain.clear();
        self.queues.clear();
        self.links.clear();
        self.sinks.clear();
        self.responders = false;
        self.is_uncounted = false;
    }

    /// Looks up who wants `subject`, if the publisher may ever publish on it.
    fn fill(
        &mut self,
        router: &Router,
        table: &AccountTable,
        subject: &[u8],
        view: Viewpoint,
        keep: Keep,
        stage: &mut Stage,
    ) {
        self.clear();
        if self.verdict == Verdict::Denied {
            return;
        }
        table.for_each_match(subject, |interest| match interest {
            Interest::Local(subscription) => {
                let cid = subscription.owner.cid;
                if view.without == Some(cid) || !subscription.is_open() {
                    return;
                }
                let guard = subscription.guard.as_ref();
                if guard.is_some_and(|guard| guard.keeps_away(subject, &subscription.queue)) {
                    return;
                }
                let target = Target {
                    guard: guard.filter(|guard| guard.is_watchful()).cloned(),
                    slot: stage.slot(&subscription.owner),
                    headers: subscription.owner.headers.load(Ordering::Relaxed),
                    uncounted: 0,
                    prefix: match keep {
                        Keep::Yes => [b"HMSG ", subject, b" ", &subscription.sid, b" "].concat().into(),
                        Keep::No => Box::default(),
                    },
                    subscription: Arc::clone(subscription),
                };
                if subscription.queue.is_empty() {
                    self.plain.push(target);
                } else {
                    self.group(&subscription.queue).members.push(target);
                }
            }
            Interest::Remote(_) if view.local_only => {}
            Interest::Remote(remote) => {
                if !remote.link.is_connected() {
                    return;
                }
                let slot = stage.link_slot(&remote.link);
                if remote.queue.is_empty() {
                    if self.links.iter().all(|known| known.slot != slot) {
                        self.links.push(LinkTarget { slot });
                    }
                    return;
                }
                let weight = remote.weight.load(Ordering::Relaxed);
                let group = self.group(&remote.queue);
                match group.remote.iter_mut().find(|known| known.slot == slot) {
                    Some(known) => known.weight += weight,
                    None => group.remote.push(RemoteMembers { slot, weight }),
                }
            }
        });
        if let Some(services) = router.services().filter(|_| !view.local_only) {
            let resolved = services.resolve(&table.name, subject);
            self.responders = resolved.responders;
            self.sinks.extend(resolved.sinks.into_iter().map(|sink| stage.sink_slot(sink)));
        }
    }

    /// A group is known by its name alone: members with different filters are one group.
    fn group(&mut self, name: &[u8]) -> &mut QueueGroup {
        let at = self.queues.iter().position(|known| *known.name == *name).unwrap_or_else(|| {
            self.queues.push(QueueGroup { name: name.into(), members: Vec::new(), remote: Vec::new() });
            self.queues.len() - 1
        });
        &mut self.queues[at]
    }
}

/// Counts a route's deliveries at once, for publishers whose routes are in several caches.
pub(crate) fn settle_uncounted(stage: &mut Stage, route: &mut Route) {
    settle(route);
    stage.take_uncounted(|_| {});
}

/// Counts the deliveries of a route that were only added up so far.
pub(crate) fn settle(route: &mut Route) {
    route.is_uncounted = false;
    for target in &mut route.plain {
        if target.uncounted > 0 {
            target.subscription.count(std::mem::take(&mut target.uncounted));
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keep {
    Yes,
    No,
}

/// Routes of one publisher, valid for one generation of the router.
pub(crate) struct RouteCache {
    hasher: RandomState,
    index: HashMap<Box<[u8]>, u32, RandomState>,
    /// The first one is for subjects that are not kept.
    routes: Vec<Route>,
    last_subject: Vec<u8>,
    last: u32,
    /// Hashes of subjects that were met once: only the second time is worth keeping a route.
    met: Box<[[u32; MET_WAYS]]>,
    generations: Option<(u64, u64)>,
    is_full: bool,
    /// What the publisher may do; `None` if everything.
    guard: Option<Arc<Guard>>,
}

impl RouteCache {
    pub(crate) fn new() -> Self {
        let hasher = RandomState::default();
        Self {
            index: HashMap::with_hasher(hasher.clone()),
            hasher,
            routes: vec![Route::default()],
            last_subject: Vec::new(),
            last: 0,
            met: Box::default(),
            generations: None,
            is_full: false,
            guard: None,
        }
    }

    /// What the publisher may do from now on. Routes that it has say what it might: [`Self::forget`] them.
    pub(crate) fn judge_by(&mut self, guard: Option<Arc<Guard>>) {
        self.guard = guard;
    }

    /// Forgets everything if it may be wrong by now. What is staged stays staged, with its destinations.
    pub(crate) fn refresh(&mut self, router: &Router, stage: &mut Stage) {
        if self.is_outdated(router, stage) {
            let generations = router.generations();
            stage.take_uncounted(|at| settle(self.route(at)));
            self.forget(stage);
            self.generations = Some(generations);
        }
    }

    pub(crate) fn is_outdated(&self, router: &Router, stage: &Stage) -> bool {
        self.generations != Some(router.generations()) || self.is_full || stage.is_crowded()
    }

    /// Declares an empty cache up to date.
    pub(crate) fn start(&mut self, router: &Router) {
        self.generations = Some(router.generations());
    }

    /// Forgets everything, for a publisher whose account or options changed.
    pub(crate) fn forget(&mut self, stage: &mut Stage) {
        self.index.clear();
        self.routes.truncate(1);
        self.routes[0].clear();
        self.last_subject.clear();
        self.last = 0;
        self.is_full = false;
        if !stage.holds_any() {
            stage.forget_slots();
        }
        self.generations = None;
    }

    /// The route of a subject.
    #[inline]
    pub(crate) fn find(
        &mut self,
        router: &Router,
        table: &AccountTable,
        subject: &[u8],
        view: Viewpoint,
        stage: &mut Stage,
    ) -> u32 {
        if self.last != 0 && *self.last_subject == *subject {
            return self.last;
        }
        if let Some(&known) = self.index.get(subject) {
            self.last = known;
            self.last_subject.clear();
            self.last_subject.extend_from_slice(subject);
            return known;
        }
        self.miss(router, table, subject, view, stage)
    }

    fn miss(
        &mut self,
        router: &Router,
        table: &AccountTable,
        subject: &[u8],
        view: Viewpoint,
        stage: &mut Stage,
    ) -> u32 {
        self.is_full |= self.routes.len() > ROUTES_MAX;
        let verdict = self.guard.as_ref().map_or(Verdict::Allowed, |guard| guard.judge(subject));
        if self.is_full || !self.met_before(subject) {
            self.routes[0].verdict = verdict;
            self.routes[0].fill(router, table, subject, view, Keep::No, stage);
            return 0;
        }
        let mut route = Route { verdict, ..Route::default() };
        route.fill(router, table, subject, view, Keep::Yes, stage);
        let at = self.routes.len() as u32;
        self.routes.push(route);
        self.index.insert(subject.into(), at);
        at
    }

    fn met_before(&mut self, subject: &[u8]) -> bool {
        if self.met.is_empty() {
            self.met = vec![[0; MET_WAYS]; MET].into();
        }
        let hash = self.hasher.hash_one(subject);
        let mark = (hash >> 32) as u32 | 1;
        let marks = &mut self.met[hash as usize % MET];
        if marks.contains(&mark) {
            return true;
        }
        // The oldest goes.
        marks.rotate_right(1);
        marks[0] = mark;
        false
    }

    #[inline]
    pub(crate) fn route(&mut self, at: u32) -> &mut Route {
        &mut self.routes[at as usize]
    }
}

/// More subjects than that per publisher and generation are looked up for each message until the next flush.
const ROUTES_MAX: usize = 4096;
const MET: usize = 32;
/// Subjects that share a place. With one each, a third of a hundred subjects that are published in turn would take the
/// place of another before it is met again, for ever.
const MET_WAYS: usize = 8;

#[cfg(test)]
mod tests {
    use levee_protocol::ids::AccountName;

    use super::*;

    #[test]
    fn routes_are_kept_of_subjects_that_come_again_also_if_they_come_in_turn() {
        let router = Router::new();
        let table = router.account(&AccountName::global());
        let mut stage = Stage::new(None);
        let mut cache = RouteCache::new();

        for _ in 0..2 {
            for number in 0..100 {
                let subject = format!("a.{number}");
                cache.find(&router, &table, subject.as_bytes(), Viewpoint::default(), &mut stage);
            }
        }

        // It is for chance to say which ones meet in one place.
        assert!(cache.index.len() > 80, "{} of 100", cache.index.len());
        let kept = cache.index.len();
        cache.find(&router, &table, b"never again", Viewpoint::default(), &mut stage);
        assert_eq!(cache.index.len(), kept);
    }
}
