//! Priority groups: which of the waiting pull requests may have the next message.
//!
//! One function per policy, named in the match of [`Priority::judge`]. As in NATS a consumer has one pin, whatever
//! number of groups it has; the pin is the leader's alone, and the next leader pins whoever asks first.

use levee_protocol::api::{ConsumerConfig, PriorityGroupState, PriorityPolicy, PullRequest};
use levee_protocol::time::{Nanos, Timestamp};

use crate::consumer::dispatch::{Advisory, UnpinReason};

/// What is kept of the id in a request. Ids that were given out are shorter, so that no longer one is taken for them.
const PIN_ID_CHARS_MAX: usize = 64;
/// The place of prioritized requests that name no number: behind all that do.
const RANK_LAST: u8 = u8::MAX;

/// The policy of one consumer, and who is pinned.
#[derive(Debug, Default)]
pub(crate) struct Priority {
    policy: PriorityPolicy,
    groups: Vec<String>,
    /// How long a pin holds without a request.
    timeout: Nanos,
    pin: Option<Pin>,
    /// The id of the next pin, drawn outside.
    next_id: Option<String>,
}

/// The client that gets everything.
#[derive(Debug)]
struct Pin {
    group: String,
    id: String,
    since: Timestamp,
    until: Timestamp,
}

/// On what terms a request takes messages. Kept only for consumers with a policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Terms {
    group: String,
    /// Overflow: this many messages pending are enough; 0 does not count.
    min_pending: u64,
    /// Overflow: this many unacknowledged messages are enough; 0 does not count.
    min_ack_pending: u64,
    /// The pin that the request takes to be its own; empty is none.
    pin_id: String,
}

/// Where a request stands among the others.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Lower goes first.
    pub(crate) rank: u8,
    /// `None` without a policy, and for requests that can not name a group: those are served like any other.
    pub(crate) terms: Option<Box<Terms>>,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Messages that were never delivered, without the one at hand.
    pub(crate) pending: u64,
    /// Messages that wait for their ack.
    pub(crate) ack_pending: u64,
}

/// What becomes of a request when there is a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It may have the message.
    Serve,
    /// It waits on.
    Pass,
    /// It takes itself to be pinned, and is not: it ends.
    WrongPin,
}

impl Priority {
    /// Takes on a configuration. A pin that it leaves no place for is released.
    pub(crate) fn configure(&mut self, config: &ConsumerConfig) -> Option<Advisory> {
        self.policy = config.priority_policy;
        self.groups.clone_from(&config.priority_groups);
        self.timeout = config.priority_timeout;
        let pin = self.pin.take_if(|pin| {
            self.policy != PriorityPolicy::PinnedClient || !self.groups.contains(&pin.group)
        })?;
        Some(Advisory::Unpinned { group: pin.group, reason: UnpinReason::Admin })
    }

    /// Lets a request in, or says with which status it is refused. A request of the pinned client prolongs the pin.
    pub(crate) fn admit(
        &mut self,
        request: &PullRequest,
        now: Timestamp,
    ) -> Result<Standing, (u16, &'static str)> {
        let policy = self.policy;
        if (request.min_pending != 0 || request.min_ack_pending != 0) && policy != PriorityPolicy::Overflow {
            return Err((400, "Bad Request - Not a Overflow Priority consumer"));
        }
        if !request.id.is_empty() && policy != PriorityPolicy::PinnedClient {
            return Err((400, "Bad Request - Not a Pinned Client Priority consumer"));
        }
        if !(0..=9).contains(&request.priority) {
            return Err((400, "Bad Request - Priority must be between 0 and 9"));
        }
        if policy == PriorityPolicy::None {
            return Ok(Standing::default());
        }
        if request.is_plain {
            return Ok(Standing { rank: self.rank(None), terms: None });
        }
        if request.group.is_empty() {
            return Err((400, "Bad Request - Priority Group missing"));
        }
        if !self.groups.contains(&request.group) {
            return Err((400, "Bad Request - Invalid Priority Group"));
        }
        if let Some(pin) = &mut self.pin {
            if request.id == pin.id {
                pin.until = now.plus(self.timeout);
            } else if !request.id.is_empty() {
                return Err((423, "Nats-Pin-Id mismatch"));
            }
        }
        let terms = Terms {
            group: request.group.clone(),
            min_pending: u64::try_from(request.min_pending).unwrap_or(0),
            min_ack_pending: u64::try_from(request.min_ack_pending).unwrap_or(0),
            pin_id: request.id.chars().take(PIN_ID_CHARS_MAX).collect(),
        };
        Ok(Standing { rank: self.rank(Some(request.priority)), terms: Some(Box::new(terms)) })
    }

    /// Whether a request may have the message at hand.
    pub(crate) fn judge(&self, terms: Option<&Terms>, load: Load) -> Verdict {
        match self.policy {
            PriorityPolicy::None => Verdict::Serve,
            PriorityPolicy::Overflow => overflow(terms, load),
            PriorityPolicy::PinnedClient => self.pinned_client(terms),
            PriorityPolicy::Prioritized => prioritized(),
        }
    }

    /// A request gets a message: if nobody is pinned, its client is from now on.
    pub(crate) fn served(&mut self, terms: Option<&mut Terms>, now: Timestamp) -> Option<Advisory> {
        if self.policy != PriorityPolicy::PinnedClient || self.pin.is_some() {
            return None;
        }
        let terms = terms?;
        let id = self.next_id.take()?;
        terms.pin_id.clone_from(&id);
        let group = terms.group.clone();
        self.pin =
            Some(Pin { group: group.clone(), id: id.clone(), since: now, until: now.plus(self.timeout) });
        Some(Advisory::Pinned { group, id })
    }

    /// What deliveries say about the pin; `None` when it is no matter of pins.
    pub(crate) fn pin_header(&self) -> Option<&str> {
        (self.policy == PriorityPolicy::PinnedClient)
            .then(|| self.pin.as_ref().map_or("", |pin| pin.id.as_str()))
    }

    /// Releases a pin whose time is over.
    pub(crate) fn expire(&mut self, now: Timestamp) -> Option<Advisory> {
        let pin = self.pin.take_if(|pin| pin.until <= now)?;
        Some(Advisory::Unpinned { group: pin.group, reason: UnpinReason::Timeout })
    }

    /// When `expire` has something to do.
    pub(crate) fn wake(&self) -> Option<Timestamp> {
        self.pin.as_ref().map(|pin| pin.until)
    }

    /// Releases the pin of whichever group. It is told of that group, and also when nobody was pinned.
    pub(crate) fn unpin(&mut self, group: &str) -> Advisory {
        self.pin = None;
        Advisory::Unpinned { group: group.to_owned(), reason: UnpinReason::Admin }
    }

    /// Whether an id is needed before anybody can be pinned.
    pub(crate) fn wants_id(&self) -> bool {
        self.policy == PriorityPolicy::PinnedClient && self.next_id.is_none()
    }

    pub(crate) fn supply_id(&mut self, id: String) {
        self.next_id = Some(id);
    }

    /// The state of the first group, which as in NATS is the only one that is shown.
    pub(crate) fn state(&self) -> Vec<PriorityGroupState> {
        let Some(group) = self.groups.first().cloned() else { return Vec::new() };
        let (pinned_client_id, pinned_ts) =
            self.pin.as_ref().map_or((String::new(), Timestamp::ZERO), |pin| (pin.id.clone(), pin.since));
        vec![PriorityGroupState { group, pinned_client_id, pinned_ts }]
    }

    /// Prioritized: requests stand in the order of their numbers. Otherwise all are alike.
    fn rank(&self, number: Option<i64>) -> u8 {
        match self.policy {
            PriorityPolicy::Prioritized => {
                number.and_then(|number| u8::try_from(number).ok()).unwrap_or(RANK_LAST)
            }
            PriorityPolicy::None | PriorityPolicy::Overflow | PriorityPolicy::PinnedClient => 0,
        }
    }

    /// Whoever is first gets the pin, and from then on everything.
    fn pinned_client(&self, terms: Option<&Terms>) -> Verdict {
        let claimed = terms.map_or("", |terms| terms.pin_id.as_str());
        match &self.pin {
            Some(pin) if claimed == pin.id => Verdict::Serve,
            None if terms.is_none() => Verdict::Serve,
            _ if !claimed.is_empty() => Verdict::WrongPin,
            None if self.next_id.is_some() => Verdict::Serve,
            Some(_) | None => Verdict::Pass,
        }
    }
}

/// Either bound is enough; a request without bounds is served always.
fn overflow(terms: Option<&Terms>, load: Load) -> Verdict {
    let Some(&Terms { min_pending, min_ack_pending, .. }) = terms else { return Verdict::Serve };
    let is_unbounded = min_pending == 0 && min_ack_pending == 0;
    // The message at hand is pending too.
    let is_behind = min_pending > 0 && min_pending <= load.pending.saturating_add(1);
    let is_busy = min_ack_pending > 0 && min_ack_pending <= load.ack_pending;
    if is_unbounded || is_behind || is_busy { Verdict::Serve } else { Verdict::Pass }
}

/// Whoever is first: they stand in order already, see [`Standing::rank`].
fn prioritized() -> Verdict {
    Verdict::Serve
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const TIMEOUT: Nanos = Nanos::from_secs(10);

    fn priority(policy: PriorityPolicy) -> Priority {
        let mut priority = Priority::default();
        priority.configure(&config(policy, &["g", "h"]));
        priority.supply_id("first".into());
        priority
    }

    fn config(policy: PriorityPolicy, groups: &[&str]) -> ConsumerConfig {
        ConsumerConfig {
            priority_policy: policy,
            priority_groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            priority_timeout: TIMEOUT,
            ..ConsumerConfig::default()
        }
    }

    fn ask() -> PullRequest {
        PullRequest { group: "g".into(), ..PullRequest::default() }
    }

    fn terms(priority: &mut Priority, request: PullRequest) -> Option<Box<Terms>> {
        priority.admit(&request, NOW).unwrap().terms
    }

    #[test]
    fn overflow_serves_when_either_bound_is_reached() {
        let check = |min_pending, min_ack_pending, pending, ack_pending, expected| {
            let mut priority = priority(PriorityPolicy::Overflow);
            let terms = terms(&mut priority, PullRequest { min_pending, min_ack_pending, ..ask() });
            let verdict = priority.judge(terms.as_deref(), Load { pending, ack_pending });
            assert_eq!(verdict, expected, "{min_pending} {min_ack_pending} {pending} {ack_pending}");
        };

        check(0, 0, 0, 0, Verdict::Serve);
        check(-1, 0, 0, 0, Verdict::Serve);
        check(5, 0, 4, 0, Verdict::Serve);
        check(5, 0, 3, 99, Verdict::Pass);
        check(0, 5, 99, 4, Verdict::Pass);
        check(0, 5, 0, 5, Verdict::Serve);
        check(5, 5, 0, 5, Verdict::Serve);
        check(5, 5, 4, 0, Verdict::Serve);
        check(5, 5, 3, 4, Verdict::Pass);
    }

    #[test]
    fn requests_are_refused_in_the_words_of_nats() {
        let check = |policy, request: PullRequest, code, text| {
            assert_eq!(priority(policy).admit(&request, NOW).unwrap_err(), (code, text));
        };
        let plain = PullRequest::default;

        let overflow = "Bad Request - Not a Overflow Priority consumer";
        check(PriorityPolicy::None, PullRequest { min_pending: 1, ..plain() }, 400, overflow);
        check(PriorityPolicy::Prioritized, PullRequest { min_ack_pending: 1, ..ask() }, 400, overflow);
        let pinned = "Bad Request - Not a Pinned Client Priority consumer";
        check(PriorityPolicy::Overflow, PullRequest { id: "x".into(), ..ask() }, 400, pinned);
        let number = "Bad Request - Priority must be between 0 and 9";
        check(PriorityPolicy::None, PullRequest { priority: 10, ..plain() }, 400, number);
        check(PriorityPolicy::Prioritized, PullRequest { priority: -1, ..ask() }, 400, number);
        check(PriorityPolicy::Overflow, plain(), 400, "Bad Request - Priority Group missing");
        let unknown = PullRequest { group: "x".into(), ..plain() };
        check(PriorityPolicy::Overflow, unknown, 400, "Bad Request - Invalid Priority Group");
    }

    #[test]
    fn a_request_that_can_not_name_a_group_needs_none_and_stands_last() {
        let mut priority = priority(PriorityPolicy::Prioritized);
        let plain = PullRequest { is_plain: true, ..PullRequest::default() };
        let least = PullRequest { priority: 9, ..ask() };

        let (plain, least) = (priority.admit(&plain, NOW).unwrap(), priority.admit(&least, NOW).unwrap());

        assert_eq!(plain.terms, None);
        assert!(plain.rank > least.rank);
    }

    #[test]
    fn the_first_client_is_pinned_and_others_wait_until_its_time_is_over() {
        let mut priority = priority(PriorityPolicy::PinnedClient);
        let (mut one, other) = (terms(&mut priority, ask()), terms(&mut priority, ask()));
        assert_eq!(priority.judge(one.as_deref(), Load::default()), Verdict::Serve);

        let advisory = priority.served(one.as_deref_mut(), NOW);

        assert_eq!(advisory, Some(Advisory::Pinned { group: "g".into(), id: "first".into() }));
        assert_eq!(priority.pin_header(), Some("first"));
        assert_eq!(priority.judge(one.as_deref(), Load::default()), Verdict::Serve);
        assert_eq!(priority.judge(other.as_deref(), Load::default()), Verdict::Pass);
        assert_eq!(priority.served(one.as_deref_mut(), NOW), None, "it is pinned already");

        let later = NOW.plus(Nanos::from_secs(1));
        priority.admit(&PullRequest { id: "first".into(), ..ask() }, later).unwrap();
        assert_eq!(priority.wake(), Some(later.plus(TIMEOUT)));
        assert_eq!(priority.expire(NOW.plus(TIMEOUT)), None);
        let timeout = Advisory::Unpinned { group: "g".into(), reason: UnpinReason::Timeout };
        assert_eq!(priority.expire(later.plus(TIMEOUT)), Some(timeout));
        priority.supply_id("second".into());
        assert_eq!(priority.judge(one.as_deref(), Load::default()), Verdict::WrongPin);
        assert_eq!(priority.judge(other.as_deref(), Load::default()), Verdict::Serve);
    }

    #[test]
    fn a_wrong_id_is_refused_at_once_while_somebody_is_pinned_and_later_while_nobody_is() {
        let mut priority = priority(PriorityPolicy::PinnedClient);
        let wrong = || PullRequest { id: "wrong".repeat(100), ..ask() };
        let early = terms(&mut priority, wrong());
        assert_eq!(priority.judge(early.as_deref(), Load::default()), Verdict::WrongPin);

        let mut one = terms(&mut priority, ask());
        priority.served(one.as_deref_mut(), NOW);

        assert_eq!(priority.admit(&wrong(), NOW).unwrap_err(), (423, "Nats-Pin-Id mismatch"));
    }

    #[test]
    fn nobody_is_pinned_without_an_id_to_give() {
        let mut priority = Priority::default();
        priority.configure(&config(PriorityPolicy::PinnedClient, &["g"]));
        let one = terms(&mut priority, ask());

        assert!(priority.wants_id());
        assert_eq!(priority.judge(one.as_deref(), Load::default()), Verdict::Pass);
    }

    #[test]
    fn a_pin_ends_with_its_policy_or_its_group_and_outlives_other_changes() {
        let pinned = |config: &ConsumerConfig| {
            let mut priority = priority(PriorityPolicy::PinnedClient);
            let mut one = terms(&mut priority, ask());
            priority.served(one.as_deref_mut(), NOW);
            (priority.configure(config), priority.pin.is_some())
        };
        let released = Some(Advisory::Unpinned { group: "g".into(), reason: UnpinReason::Admin });

        assert_eq!(pinned(&config(PriorityPolicy::PinnedClient, &["h", "g"])), (None, true));
        assert_eq!(pinned(&config(PriorityPolicy::PinnedClient, &["h"])), (released.clone(), false));
        assert_eq!(pinned(&config(PriorityPolicy::Overflow, &["g"])), (released.clone(), false));
        assert_eq!(pinned(&config(PriorityPolicy::None, &[])), (released, false));
    }

    #[test]
    fn an_unpin_is_told_also_when_nobody_is_pinned() {
        let mut priority = priority(PriorityPolicy::PinnedClient);
        let told = Advisory::Unpinned { group: "h".into(), reason: UnpinReason::Admin };

        assert_eq!(priority.unpin("h"), told);
        let mut one = terms(&mut priority, ask());
        priority.served(one.as_deref_mut(), NOW);
        assert_eq!(priority.unpin("h"), told);
        assert_eq!(priority.pin_header(), Some(""));
    }

    #[test]
    fn the_first_group_is_shown_with_the_pin() {
        let mut priority = priority(PriorityPolicy::PinnedClient);
        let shown = |id: &str, pinned_ts| {
            vec![PriorityGroupState { group: "g".into(), pinned_client_id: id.into(), pinned_ts }]
        };
        assert_eq!(priority.state(), shown("", Timestamp::ZERO));

        let mut one = terms(&mut priority, PullRequest { group: "h".into(), ..PullRequest::default() });
        priority.served(one.as_deref_mut(), NOW);

        assert_eq!(priority.state(), shown("first", NOW));
        assert_eq!(Priority::default().state(), []);
    }
}
