//! What a user may publish and subscribe to.
//!
//! | file | is |
//! |---|---|
//! | this one | [`Grant`], as a configuration writes it, and [`Permissions`], which answers |
//! | [`replies`] | reply subjects that a client may answer to because it was asked |
//!
//! Three questions come up at three times. A publish is judged once per subject: its verdict does not change while
//! the client stays who it is. A subscription is judged when it is made, by its filter as a whole. And where a filter
//! is wider than something that is denied, each subject is judged once more before it is delivered
//! ([`Permissions::narrows`], [`Permissions::denies_delivery`]).
//!
//! All answers are nats-server's but one: a subscription that could hear more than what is allowed is refused
//! (`foo.>` where `foo.*` is allowed), which nats-server lets pass.

mod replies;
#[cfg(test)]
mod tests;

use std::fmt;

use levee_protocol::subject::{self, Filter, Trie};
use levee_protocol::time::Nanos;

pub use replies::Replies;

/// What a configuration grants a user. The default grants everything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grant {
    /// Subjects to publish on.
    pub publish: PublishGrant,
    /// Subjects to hear of.
    pub subscribe: SubscribeGrant,
    /// Whether requests may be answered wherever they want their answer. Then nothing else may be published on but
    /// what `publish` allows by name. Default: no.
    pub responses: Option<Responses>,
}

/// Subjects to publish on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PublishGrant {
    /// Nothing else. Empty: everything, but see [`Grant::responses`].
    pub allow: Vec<Filter>,
    /// Not even if allowed.
    pub deny: Vec<Filter>,
}

/// Subjects to hear of.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SubscribeGrant {
    /// Nothing else. Empty: everything.
    pub allow: Vec<GroupFilter>,
    /// Not even if allowed.
    pub deny: Vec<GroupFilter>,
}

/// A filter, for everybody or for members of some queue groups: `foo`, `foo workers`, `foo workers.*`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupFilter {
    /// The subjects.
    pub filter: Filter,
    /// The queue groups, if only those are meant.
    pub queue: Option<Filter>,
}

/// How often and for how long a request may be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Responses {
    /// Messages to one reply subject; negative is any number. nats-server's default: 1.
    pub max: i64,
    /// How long after the request; negative is forever. nats-server's default: 2 min.
    pub expires: Nanos,
}

impl Default for Responses {
    fn default() -> Self {
        Self { max: 1, expires: Nanos::from_secs(120) }
    }
}

impl GroupFilter {
    /// Whether members of this group are meant by name; without a group, nobody is.
    fn names(&self, group: &[u8]) -> bool {
        let queue = self.queue.as_ref().filter(|_| !group.is_empty());
        queue.is_some_and(|queue| subject::is_subset(group, queue.as_bytes()))
    }
}

impl fmt::Display for GroupFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.queue {
            None => write!(out, "{}", self.filter),
            Some(queue) => write!(out, "{} {queue}", self.filter),
        }
    }
}

/// A [`Grant`], made ready to be asked.
#[derive(Debug)]
pub struct Permissions {
    grant: Grant,
    publish_allow: Option<Trie<()>>,
    publish_deny: Trie<()>,
    subscribe_allow: Option<Trie<GroupFilter>>,
    subscribe_deny: Trie<GroupFilter>,
}

impl PartialEq for Permissions {
    fn eq(&self, other: &Self) -> bool {
        // All the rest is made from it.
        self.grant == other.grant
    }
}

impl Eq for Permissions {}

impl Permissions {
    /// Of a grant.
    #[must_use]
    pub fn new(grant: Grant) -> Self {
        let allows_some = !grant.publish.allow.is_empty() || grant.responses.is_some();
        Self {
            publish_allow: allows_some.then(|| filters(&grant.publish.allow)),
            publish_deny: filters(&grant.publish.deny),
            subscribe_allow: (!grant.subscribe.allow.is_empty())
                .then(|| group_filters(&grant.subscribe.allow)),
            subscribe_deny: group_filters(&grant.subscribe.deny),
            grant,
        }
    }

    /// What was granted, as written.
    #[must_use]
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Whether a message may be published on `subject`, which is taken literally.
    #[must_use]
    pub fn may_publish(&self, subject: &[u8]) -> bool {
        self.publish_allow.as_ref().is_none_or(|allow| allow.has_match(subject))
            && !self.publish_deny.has_match(subject)
    }

    /// Whether this may be subscribed to, as a member of `queue` or, if that is empty, for oneself.
    ///
    /// Where groups are named for the filter, others may not join; for oneself takes an entry without group. A filter
    /// that is wider than what is denied may pass, see [`Self::narrows`].
    #[must_use]
    pub fn may_subscribe(&self, filter: &[u8], queue: &[u8]) -> bool {
        let allowed = self.subscribe_allow.as_ref().is_none_or(|allow| {
            let (mut plain, mut grouped, mut named) = (false, false, false);
            allow.for_each_match(filter, |entry| {
                // The trie takes the filter for a subject, where `*` stands for `>` as for any token.
                if !subject::is_subset(filter, entry.filter.as_bytes()) {
                    return;
                }
                plain |= entry.queue.is_none();
                grouped |= entry.queue.is_some();
                named |= entry.names(queue);
            });
            if grouped && !queue.is_empty() { named } else { plain }
        });
        allowed && !self.denies_delivery(filter, queue)
    }

    /// Whether a subscription that may be made could hear what is denied, so that deliveries have to be looked at.
    #[must_use]
    pub fn narrows(&self, filter: &[u8], queue: &[u8]) -> bool {
        (!queue.is_empty() || subject::has_wildcard(filter))
            && self.subscribe_deny.has_collision(filter, |_| true)
    }

    /// Whether a message on `subject` is kept from a subscription of `queue`, or without one if that is empty.
    #[must_use]
    pub fn denies_delivery(&self, subject: &[u8], queue: &[u8]) -> bool {
        let mut denied = false;
        self.subscribe_deny.for_each_match(subject, |entry| {
            denied |= entry.queue.is_none() || entry.names(queue);
        });
        denied
    }
}

fn filters(list: &[Filter]) -> Trie<()> {
    let mut trie = Trie::new();
    for filter in list {
        trie.insert(filter.as_bytes(), ());
    }
    trie
}

fn group_filters(list: &[GroupFilter]) -> Trie<GroupFilter> {
    let mut trie = Trie::new();
    for entry in list {
        trie.insert(entry.filter.as_bytes(), entry.clone());
    }
    trie
}
