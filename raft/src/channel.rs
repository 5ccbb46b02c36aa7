//! Channels between openraft's tasks.
//!
//! A channel of tokio has room for 32 messages from its first moment on, and keeps up to three times that. openraft has four
//! of them for every replica, of messages of a few hundred bytes, and most replicas of a large node are quiet. These begin
//! empty, and give back what a burst took.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openraft::OptionalSend;
use openraft::async_runtime::{Mpsc, MpscReceiver, MpscSender, MpscWeakSender, SendError, TryRecvError};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

/// An empty channel keeps memory for so many messages.
const KEPT_MESSAGES_MAX: usize = 4;

/// What openraft makes its channels with.
#[derive(Debug)]
pub(crate) struct Channels;

struct Channel<T> {
    messages: Mutex<VecDeque<T>>,
    /// A permit for each message that still fits; closed when the receiver is gone.
    room: Semaphore,
    /// Rings when a message came or the last sender went.
    news: Notify,
    senders: AtomicUsize,
}

/// Puts messages in. Clones are for the same channel.
pub(crate) struct Sender<T>(Arc<Channel<T>>);

/// A sender that does not keep the channel open.
pub(crate) struct WeakSender<T>(Arc<Channel<T>>);

/// Takes messages out, in the order in which they were put in.
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

impl Mpsc for Channels {
    type Sender<T: OptionalSend> = Sender<T>;
    type Receiver<T: OptionalSend> = Receiver<T>;
    type WeakSender<T: OptionalSend> = WeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new(Channel {
            messages: Mutex::default(),
            room: Semaphore::new(buffer.clamp(1, Semaphore::MAX_PERMITS)),
            news: Notify::new(),
            senders: AtomicUsize::new(1),
        });
        (Sender(Arc::clone(&channel)), Receiver(channel))
    }
}

impl<T: OptionalSend> MpscSender<Channels, T> for Sender<T> {
    async fn send(&self, message: T) -> Result<(), SendError<T>> {
        let Ok(permit) = self.0.room.acquire().await else { return Err(SendError(message)) };
        {
            let mut messages = self.0.messages.lock();
            // The receiver empties the channel when it goes: what comes later would stay.
            if self.0.room.is_closed() {
                return Err(SendError(message));
            }
            messages.push_back(message);
        }
        permit.forget();
        self.0.news.notify_one();
        Ok(())
    }

    fn downgrade(&self) -> WeakSender<T> {
        WeakSender(Arc::clone(&self.0))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.news.notify_one();
        }
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: OptionalSend> MpscWeakSender<Channels, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        let more = |senders: usize| (senders > 0).then_some(senders + 1);
        self.0.senders.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Sender(Arc::clone(&self.0)))
    }
}

impl<T: OptionalSend> MpscReceiver<T> for Receiver<T> {
    async fn recv(&mut self) -> Option<T> {
        loop {
            match self.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.0.news.notified().await,
            }
        }
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        // Asked first: whatever the last sender sent is there when it is seen to be gone.
        let are_senders_gone = self.0.senders.load(Ordering::Acquire) == 0;
        let mut messages = self.0.messages.lock();
        let Some(message) = messages.pop_front() else {
            let why = if are_senders_gone { TryRecvError::Disconnected } else { TryRecvError::Empty };
            return Err(why);
        };
        if messages.is_empty() && messages.capacity() > KEPT_MESSAGES_MAX {
            *messages = VecDeque::new();
        }
        drop(messages);
        self.0.room.add_permits(1);
        Ok(message)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.room.close();
        // Outside the lock: a message may hold a sender.
        let left = std::mem::take(&mut *self.0.messages.lock());
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::BoxFuture;

    use super::*;

    fn channel(buffer: usize) -> (Sender<u32>, Receiver<u32>) {
        Channels::channel(buffer)
    }

    #[tokio::test]
    async fn messages_come_in_order_and_the_end_after_the_last() {
        let (sender, mut receiver) = channel(100);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        for number in 0..50 {
            sender.send(number).await.unwrap();
        }
        drop(sender);

        for number in 0..50 {
            assert_eq!(receiver.recv().await, Some(number));
        }
        assert_eq!(receiver.recv().await, None);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[tokio::test]
    async fn a_full_channel_makes_its_senders_wait() {
        let (sender, mut receiver) = channel(2);
        sender.send(1).await.unwrap();
        sender.send(2).await.unwrap();
        let third = sender.send(3);
        tokio::pin!(third);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err());

        assert_eq!(receiver.recv().await, Some(1));
        third.await.unwrap();
        assert_eq!((receiver.recv().await, receiver.recv().await), (Some(2), Some(3)));
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_message_and_of_the_end() {
        let (sender, mut receiver) = channel(2);
        let waiting = async { (receiver.recv().await, receiver.recv().await) };
        let sending = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            sender.send(7).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            let other = sender.clone();
            drop(sender);
            drop(other);
        };

        assert_eq!(tokio::join!(waiting, sending).0, (Some(7), None));
    }

    #[tokio::test]
    async fn senders_hear_that_the_receiver_is_gone_and_what_it_left_is_dropped() {
        let (sender, receiver) = Channels::channel(1);
        let left = Arc::new(());
        sender.send(Arc::clone(&left)).await.unwrap();
        let leaving = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(receiver);
        };

        assert!(tokio::join!(sender.send(Arc::clone(&left)), leaving).0.is_err());
        assert!(sender.send(Arc::clone(&left)).await.is_err());
        assert_eq!(Arc::strong_count(&left), 1);
    }

    #[tokio::test]
    async fn a_weak_sender_works_as_long_as_there_is_another() {
        let (sender, mut receiver) = channel(2);
        let weak = sender.downgrade();
        weak.upgrade().unwrap().send(1).await.unwrap();
        assert_eq!(receiver.recv().await, Some(1));
        drop(sender);

        assert!(weak.clone().upgrade().is_none());
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn an_empty_channel_keeps_no_memory_of_a_burst() {
        let (sender, mut receiver) = channel(1000);
        assert_eq!(receiver.0.messages.lock().capacity(), 0);
        for number in 0..1000 {
            sender.send(number).await.unwrap();
        }
        while receiver.try_recv().is_ok() {}

        assert!(receiver.0.messages.lock().capacity() <= KEPT_MESSAGES_MAX);
    }

    #[test]
    fn many_threads_lose_nothing() {
        const EACH: u32 = 20_000;
        let block_on = |task| tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(task);
        let (sender, mut receiver) = channel(8);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    block_on(Box::pin(async move {
                        for number in 0..EACH {
                            sender.send(number).await.unwrap();
                        }
                    }) as BoxFuture<'static, ()>);
                })
            })
            .collect();
        drop(sender);
        block_on(Box::pin(async move {
            let (mut sum, mut count) = (0_u64, 0);
            while let Some(number) = receiver.recv().await {
                sum += u64::from(number);
                count += 1;
            }
            assert_eq!((count, sum), (4 * EACH, 4 * u64::from(EACH) * u64::from(EACH - 1) / 2));
        }));
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
