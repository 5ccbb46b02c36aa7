//! What waits in front of a stream's log, how much of it makes the next block, and who waits for it to be answered.

use std::collections::VecDeque;

use levee_protocol::ids::AccountName;
use tokio::sync::oneshot;

use crate::router::Inbound;

/// Proposals of one stream that may wait for their sync and majority at the same time: what waits together is synced
/// and sent together. With four, three replicas took 500k to 700k messages of 128 B a second, with twelve 890k to 1.03M.
const IN_FLIGHT_MAX: usize = 12;
/// No more are begun beyond so many bytes: the store's queue is for all streams of the node.
const IN_FLIGHT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Beyond this many, a proposal waits for company: each costs the same, whatever is in it.
const SMALL_IN_FLIGHT_MAX: usize = 2;
/// A block of this size needs no company.
const SMALL_MESSAGES: usize = 256;
const SMALL_BYTES: usize = 128 * 1024;
/// A block is closed when it holds this many messages or bytes.
const BLOCK_MESSAGES_MAX: usize = 2048;
const BLOCK_BYTES_MAX: usize = 1024 * 1024;
/// A publisher's socket is no longer read while this much waits.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
const QUEUE_MESSAGES_MAX: usize = 100_000;

/// What waits, what is in flight, and what came and was answered.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Arrived>,
    messages: usize,
    bytes: usize,
    /// Messages and bytes of each proposal that is in flight.
    in_flight: VecDeque<(usize, usize)>,
    /// A publisher's task makes a block of what it took, and nothing may overtake that.
    pub(super) proposing: bool,
    /// The leader is gone: what comes now is not answered, and its publishers try again.
    closed: bool,
    /// Read chunks that came, and of those how many are answered.
    came: u64,
    answered: u64,
    /// Who wants to know when so many are.
    asked: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A read chunk's publishes.
pub(super) struct Arrived {
    pub(super) account: AccountName,
    pub(super) batch: Inbound,
}

impl Queue {
    /// One that takes nothing.
    pub(super) fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }

    /// What comes after the leader is gone is dropped.
    pub(super) fn push(&mut self, account: &AccountName, batch: Inbound) {
        if self.closed || batch.items.is_empty() {
            return;
        }
        self.came += 1;
        self.messages += batch.items.len();
        self.bytes += batch.chunk.len();
        self.waiting.push_back(Arrived { account: account.clone(), batch });
    }

    /// In front, to be proposed again, and answered a second time: who asked for what was here waits for that, too.
    pub(super) fn put_back(&mut self, account: AccountName, batch: Inbound) {
        if self.closed {
            return;
        }
        self.came += 1;
        for (came, _) in &mut self.asked {
            *came += 1;
        }
        self.messages += batch.items.len();
        self.bytes += batch.chunk.len();
        self.waiting.push_front(Arrived { account, batch });
    }

    /// The next block's: everything that waits, up to the size of a block.
    pub(super) fn take(&mut self) -> Option<Vec<Arrived>> {
        let (mut messages, mut bytes) = (0, 0);
        let mut taken = Vec::new();
        while messages < BLOCK_MESSAGES_MAX
            && bytes < BLOCK_BYTES_MAX
            && let Some(arrived) = self.waiting.pop_front()
        {
            messages += arrived.batch.items.len();
            bytes += arrived.batch.chunk.len();
            taken.push(arrived);
        }
        self.messages -= messages;
        self.bytes -= bytes;
        if taken.is_empty() {
            return None;
        }
        self.in_flight.push_back((messages, bytes));
        Some(taken)
    }

    /// Nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= QUEUE_BYTES_MAX || self.messages >= QUEUE_MESSAGES_MAX
    }

    /// Comes when all that is here now is answered.
    pub(super) fn ask(&mut self) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        if self.answered < self.came {
            self.asked.push_back((self.came, tell));
        } else {
            let _ = tell.send(());
        }
        told
    }

    /// So many more read chunks are answered. They are in the order in which they came, but for those of batches, which
    /// are answered as soon as they wait for the rest.
    pub(super) fn are_answered(&mut self, batches: usize) {
        self.answered += batches as u64;
        while self.asked.front().is_some_and(|(came, _)| *came <= self.answered)
            && let Some((_, tell)) = self.asked.pop_front()
        {
            let _ = tell.send(());
        }
    }

    /// A proposal is no longer in flight. What was proposed before the queue was closed counts nowhere.
    pub(super) fn landed(&mut self) {
        self.in_flight.pop_front();
    }

    /// A small block behind another one waits until it has as much in it as is under way: with many publishers that
    /// wait for their acks, whoever asks again first would else have a sync to itself, and all others wait for that.
    pub(super) fn may_propose(&self) -> bool {
        let in_flight = self.in_flight.len();
        let is_small = self.messages < SMALL_MESSAGES && self.bytes < SMALL_BYTES;
        let has_room = if is_small {
            let under_way = self.in_flight.iter().map(|(messages, _)| messages).sum();
            in_flight < SMALL_IN_FLIGHT_MAX && self.messages >= under_way
        } else {
            let under_way = self.in_flight.iter().map(|(_, bytes)| bytes).sum::<usize>();
            in_flight < IN_FLIGHT_MAX && under_way < IN_FLIGHT_BYTES_MAX
        };
        !self.waiting.is_empty() && !self.proposing && has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::InboundItem;

    fn arrived() -> (AccountName, Inbound) {
        let items = vec![InboundItem::default()];
        (AccountName::parse("A").unwrap(), Inbound { items, ..Inbound::default() })
    }

    fn queue(chunks: usize) -> Queue {
        let mut queue = Queue::default();
        for (account, batch) in (0..chunks).map(|_| arrived()) {
            queue.push(&account, batch);
        }
        queue
    }

    #[test]
    fn who_asks_is_told_when_what_was_here_is_answered() {
        let mut queue = queue(2);
        let mut told = queue.ask();
        let (account, batch) = arrived();
        queue.push(&account, batch);

        queue.are_answered(1);
        assert!(told.try_recv().is_err());
        queue.are_answered(1);
        assert_eq!(told.try_recv(), Ok(()));
        queue.are_answered(1);
        assert_eq!(queue.ask().try_recv(), Ok(()), "nothing is left");
    }

    #[test]
    fn what_is_proposed_again_is_waited_for() {
        let mut queue = queue(2);
        let mut told = queue.ask();

        // Both came back, one of them to be proposed again.
        assert_eq!(queue.take().unwrap().len(), 2);
        let (account, batch) = arrived();
        queue.put_back(account, batch);
        queue.are_answered(2);
        queue.landed();
        let mut late = queue.ask();
        assert!(told.try_recv().is_err() && late.try_recv().is_err());

        assert_eq!(queue.take().unwrap().len(), 1);
        queue.are_answered(1);
        assert_eq!((told.try_recv(), late.try_recv()), (Ok(()), Ok(())));
    }

    #[test]
    fn one_that_is_closed_takes_nothing() {
        let mut queue = Queue::closed();
        let (account, batch) = arrived();
        queue.push(&account, batch.clone());
        queue.put_back(account, batch);

        assert!(queue.is_empty() && queue.take().is_none());
        assert_eq!(queue.ask().try_recv(), Ok(()));
    }
}
