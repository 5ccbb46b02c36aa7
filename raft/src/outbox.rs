//! Folding: what many report becomes one entry every few milliseconds, and the entries come into the log in the order
//! in which they were made.
//!
//! An entry that the group did not take is proposed again, however often: a leader that hands over is refused until
//! its successor leads, and the reports are right all the while. An entry of which nobody knows whether it is in the
//! log, or one that another has overtaken, ends it all.

use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use levee_storage::kind::INLINE;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use self::order::{InDoubt, Numbered, Order};
use crate::group::Group;
use crate::machine::Reply;
use crate::proposals::Outcome;

mod order;

/// How long reports wait for company.
const FOLD_INTERVAL: Duration = Duration::from_millis(5);
/// The least between two entries that were made soon: one at a time leaves at once, a thousand a second are enough.
const SOON_INTERVAL: Duration = Duration::from_millis(1);
/// How long an entry that was not taken waits before it is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Reports on their way into one leadership's log, and what is to be confirmed when they are there.
pub struct Outbox<R, C> {
    pending: Mutex<Pending<R, C>>,
    wake: Notify,
}

/// What is in no entry yet.
struct Pending<R, C> {
    reports: Vec<R>,
    confirmations: Vec<C>,
    haste: Haste,
}

/// How long a report may wait for others.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Haste {
    /// A few milliseconds.
    #[default]
    None,
    /// Not at all, unless an entry was made in the last millisecond.
    Soon,
    /// Not at all: somebody waits for it.
    Now,
}

/// One entry.
struct Entry<C> {
    payload: Bytes,
    confirmations: Vec<C>,
}

impl<R, C> Default for Outbox<R, C> {
    fn default() -> Self {
        Self { pending: Mutex::default(), wake: Notify::new() }
    }
}

impl<R, C: Send + 'static> Outbox<R, C> {
    /// Takes a report, and what to confirm with it. Confirmations leave at once; others wait a little as `haste` says, so that
    /// a busy reporter costs a few hundred entries a second, or a thousand.
    pub fn report(&self, report: Option<R>, confirmations: Vec<C>, haste: Haste) {
        if report.is_none() && confirmations.is_empty() {
            return;
        }
        let mut pending = self.pending.lock();
        pending.haste = pending.haste.max(if confirmations.is_empty() { haste } else { Haste::Now });
        pending.reports.extend(report);
        pending.confirmations.extend(confirmations);
        drop(pending);
        self.wake.notify_one();
    }

    /// Proposes what is reported, as entries that `encode` makes, and confirms what is applied, until an entry is in
    /// doubt: then whoever believes that its reports are in the log has to begin again from the log. Nothing of it gets
    /// into the log of a later leadership than that of `raft_term`.
    pub async fn run(
        &self,
        group: &Group,
        raft_term: u64,
        encode: impl Fn(Vec<R>) -> Bytes,
        confirm: impl Fn(Vec<C>, Reply),
    ) {
        let mut in_flight = FuturesOrdered::<BoxFuture<'static, (Numbered<Entry<C>>, Outcome)>>::new();
        let mut order = Order::default();
        let mut made: Option<Instant> = None;
        let mut due: Option<Instant> = None;
        loop {
            // What was refused is not proposed again at once.
            let mut may_propose = false;
            tokio::select! {
                biased;
                Some((entry, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                    match order.settle(entry, outcome) {
                        Ok(Some((entry, (_, reply)))) => confirm(entry.confirmations, reply),
                        Ok(None) => {}
                        Err(InDoubt) => return,
                    }
                }
                () = sleep(RETRY), if order.may_retry() => may_propose = true,
                // Not while one is refused: reports would begin its wait again each time.
                () = self.wake.notified(), if order.has_room() => {
                    let now = Instant::now();
                    let at = match self.pending.lock().haste {
                        Haste::None => now + FOLD_INTERVAL,
                        Haste::Soon => made.map_or(now, |made| now.max(made + SOON_INTERVAL)),
                        Haste::Now => now,
                    };
                    due = Some(due.map_or(at, |due| due.min(at)));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && order.has_room() => {}
            }
            if let Some(at) = due
                && let now = Instant::now()
                && at <= now
                && order.has_room()
            {
                due = None;
                let Pending { reports, confirmations, .. } = std::mem::take(&mut *self.pending.lock());
                if !reports.is_empty() || !confirmations.is_empty() {
                    made = Some(now);
                    order.add(Entry { payload: encode(reports), confirmations });
                    may_propose = true;
                }
            }
            while may_propose && let Some(entry) = order.take() {
                let mut proposal = group.propose_in(raft_term, INLINE, entry.entry.payload.clone());
                match (&mut proposal).now_or_never() {
                    // What comes behind it must not overtake it.
                    Some(Err(error)) if !error.may_be_committed() => {
                        order.put_back(entry);
                        break;
                    }
                    Some(outcome) => in_flight.push_back(Box::pin(ready((entry, outcome)))),
                    None => in_flight.push_back(Box::pin(proposal.map(|outcome| (entry, outcome)))),
                }
            }
        }
    }
}

impl<R, C> Default for Pending<R, C> {
    fn default() -> Self {
        Self { reports: Vec::new(), confirmations: Vec::new(), haste: Haste::None }
    }
}
