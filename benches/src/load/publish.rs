//! Publishes into a stream by one connection that does not wait for each acknowledgement.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::{Client, Message};
use crate::figures::Outcome;
use crate::load::Effort;
use crate::messages::Messages;
use crate::pace::{self, Pace, Stamps, WRITE_BYTES};

/// The writer is woken once in so many acknowledgements, or four times in a window.
const WAKE_EVERY: u64 = 128;

/// Publishes the messages of a range, never more than `window` of them unacknowledged, and waits for the last.
pub fn windowed(address: &str, text: &Messages, range: Range<u64>, window: u64) -> anyhow::Result<()> {
    let mut client = connect(address)?;
    let writer = client.writer();
    let total = range.end - range.start;
    let wake_every = WAKE_EVERY.min(window / 4).max(1);
    let state = Window::default();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| -> anyhow::Result<()> {
            let mut buffer = Vec::with_capacity(2 * WRITE_BYTES);
            let mut sent = 0;
            while sent < total {
                let room = state.wait_for_room(sent, window)?;
                buffer.clear();
                let until = total.min(sent + room);
                while sent < until && buffer.len() < WRITE_BYTES {
                    text.append(&mut buffer, range.start + sent, None);
                    sent += 1;
                }
                writer.write(&buffer)?;
            }
            Ok(())
        });
        let reading = (|| -> anyhow::Result<()> {
            for acked in 1..=total {
                check_ack(&client.receive()?)?;
                state.acked.store(acked, Ordering::Release);
                if acked % wake_every == 0 || acked == total {
                    state.wake();
                }
            }
            Ok(())
        })();
        if reading.is_err() {
            state.reader_failed.store(true, Ordering::Release);
            state.wake();
        }
        let writing = writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        reading.and(writing)
    })
}

/// Publishes at an even rate, whatever the acknowledgements do. Gives the latencies, from due to acknowledged, and
/// how many messages there were.
pub fn latency(
    address: &str,
    text: &Messages,
    offered: u64,
    effort: &Effort,
) -> anyhow::Result<(Outcome, u64)> {
    let total = effort.latency.messages(offered as f64);
    let mut client = connect(address)?;
    let writer = client.writer();
    let pace = Pace::start_warm(offered as f64, effort.latency);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> anyhow::Result<()> {
            pace.send(text, total, Stamps::None, |bytes| writer.write(bytes))
        });
        let mut latency = pace::histogram();
        for _ in 0..total {
            let message = client.receive()?;
            check_ack(&message)?;
            // One publisher on a fresh stream: the sequence tells which message this is.
            let n = sequence(message.payload).context("an ack without a sequence")? - 1;
            pace.record(&mut latency, pace.due_ns(n));
        }
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok((Outcome::of_open_loop(&latency, offered, pace.kept(total)), total))
    })
}

/// Fails unless this is an acknowledgement of a stored message.
pub fn check_ack(message: &Message<'_>) -> anyhow::Result<()> {
    let text = || String::from_utf8_lossy(message.payload).into_owned();
    ensure!(message.payload.starts_with(b"{\"stream\""), "publish refused: {}", text());
    ensure!(
        memchr::memmem::find(message.payload, b"\"duplicate\"").is_none(),
        "taken for a duplicate: {}",
        text()
    );
    Ok(())
}

fn connect(address: &str) -> anyhow::Result<Client> {
    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.acks.> 1\r\n")?;
    client.flush_barrier()?;
    Ok(client)
}

/// The number after `"seq":`, with or without a space.
fn sequence(ack: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(ack, b"\"seq\":")? + 6;
    let digits = ack[at..].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number, digit| Some(number.unwrap_or(0) * 10 + u64::from(digit - b'0')))
}

/// Counts acknowledgements and wakes the writer when there is room.
#[derive(Default)]
struct Window {
    acked: AtomicU64,
    reader_failed: AtomicBool,
    room: Condvar,
    lock: Mutex<()>,
}

impl Window {
    fn wait_for_room(&self, sent: u64, window: u64) -> anyhow::Result<u64> {
        loop {
            let room = window - (sent - self.acked.load(Ordering::Acquire));
            if room > 0 {
                return Ok(room);
            }
            ensure!(!self.reader_failed.load(Ordering::Acquire), "the reader failed");
            let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if sent - self.acked.load(Ordering::Acquire) == window {
                // A timeout, because acks are counted without the lock.
                drop(self.room.wait_timeout(guard, Duration::from_millis(5)));
            }
        }
    }

    fn wake(&self) {
        self.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_read_from_acks_of_both_sides() {
        assert_eq!(sequence(br#"{"stream":"S","seq":120}"#), Some(120));
        assert_eq!(sequence(br#"{"stream":"S", "seq": 7, "domain":"d"}"#), Some(7));
        assert_eq!(sequence(b"{}"), None);
    }
}
