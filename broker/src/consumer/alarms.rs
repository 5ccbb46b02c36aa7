//! When consumers without a task are to look again: a message is to be delivered again when the wait for its ack is over, a
//! request ends, a pause ends, an ephemeral consumer that nobody uses is deleted. None keeps a task or a timer until then.
//! One task per stream sleeps for all of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use levee_protocol::ids::ConsumerName;
use levee_protocol::time::{Nanos, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::runtime::clock::Clock;
use crate::stream::Leader;

/// Looks this often at least, in case the clock was set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The alarms of one stream's consumers, one for each at most.
#[derive(Default)]
pub(crate) struct Alarms {
    set: Mutex<Set>,
    sooner: Notify,
}

#[derive(Default)]
struct Set {
    by_time: BTreeSet<(Timestamp, ConsumerName)>,
    by_name: HashMap<ConsumerName, Timestamp>,
    is_watched: bool,
}

impl Set {
    fn remove(&mut self, name: &ConsumerName) {
        if let Some(due) = self.by_name.remove(name) {
            self.by_time.remove(&(due, name.clone()));
        }
    }

    fn take_due(&mut self, now: Timestamp) -> Vec<ConsumerName> {
        let mut names = Vec::new();
        while self.by_time.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, name)) = self.by_time.pop_first()
        {
            self.by_name.remove(&name);
            names.push(name);
        }
        names
    }
}

impl Alarms {
    /// Has the consumer look at `due`, in place of when it was to look before; not if it is over, and there may be
    /// another one of its name. True the first time: then somebody has to [`watch`](Self::watch).
    #[must_use]
    pub(crate) fn set(
        &self,
        name: &ConsumerName,
        due: Option<Timestamp>,
        is_over: impl FnOnce() -> bool,
    ) -> bool {
        let mut set = self.set.lock();
        if is_over() {
            return false;
        }
        set.remove(name);
        let Some(due) = due else { return false };
        set.by_name.insert(name.clone(), due);
        set.by_time.insert((due, name.clone()));
        if set.by_time.first().is_some_and(|(_, first)| first == name) {
            self.sooner.notify_one();
        }
        !std::mem::replace(&mut set.is_watched, true)
    }

    /// The consumer is gone.
    pub(crate) fn remove(&self, name: &ConsumerName) {
        self.set.lock().remove(name);
    }

    /// Rouses consumers when their time has come, until the leader is gone.
    pub(crate) async fn watch(self: Arc<Self>, leader: Weak<Leader>, clock: Clock) {
        loop {
            let now = clock.now();
            let (due, next) = {
                let mut set = self.set.lock();
                (set.take_due(now), set.by_time.first().map(|(due, _)| *due))
            };
            {
                let Some(leader) = leader.upgrade() else { return };
                for driver in due.iter().filter_map(|name| leader.driver(name)) {
                    driver.rouse();
                }
            }
            let wait = next.map_or(LONGEST_SLEEP, |next| next.since(now).max(Nanos::ZERO).to_std());
            tokio::select! {
                () = self.sooner.notified() => {}
                () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ConsumerName {
        ConsumerName::parse(text).expect("a valid name")
    }

    fn due(alarms: &Alarms, now: i64) -> Vec<String> {
        alarms.set.lock().take_due(Timestamp(now)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_consumer_has_one_alarm_and_the_first_asks_for_a_watch() {
        let alarms = Alarms::default();
        let set = |who: &str, at: i64| alarms.set(&name(who), Some(Timestamp(at)), || false);
        assert!(set("a", 5), "nobody watches yet");
        assert!(!set("b", 3));
        assert!(!set("a", 9), "in place of 5");
        assert!(!set("c", 4));
        alarms.remove(&name("c"));
        assert!(!set("d", 4));
        assert!(!alarms.set(&name("d"), None, || false), "never");
        assert!(!alarms.set(&name("a"), Some(Timestamp(1)), || true), "it is over");

        assert_eq!(due(&alarms, 2), [""; 0]);
        assert_eq!(due(&alarms, 8), ["b"]);
        assert_eq!(due(&alarms, 9), ["a"]);
        assert_eq!(due(&alarms, 99), [""; 0]);
    }
}
