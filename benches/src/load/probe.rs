//! A slow publisher beside other load on the same stream: how late its acknowledgements come meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Context;

use crate::client::Client;
use crate::figures::Outcome;
use crate::load::publish;
use crate::messages::{Messages, Subjects};
use crate::pace::{self, Pace};

/// Body bytes.
const PAYLOAD_BYTES: usize = 128;

/// Publishes at an even rate, whatever the acknowledgements do, until told to stop; then waits for the last.
pub fn run(address: &str, done: &AtomicBool, per_second: u64) -> anyhow::Result<Outcome> {
    let mut client = Client::connect(address)?;
    client.write(b"SUB _INBOX.probe.* 1\r\n")?;
    client.flush_barrier()?;
    let writer = client.writer();
    let total = AtomicU64::new(u64::MAX);
    let pace = Pace::start(per_second as f64);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| -> anyhow::Result<()> {
            pace::sleep_exactly();
            let mut buffer = Vec::new();
            for n in 0.. {
                let _due = pace.wait_for(n);
                let last = done.load(Ordering::Acquire);
                if last {
                    total.store(n + 1, Ordering::Release);
                }
                buffer.clear();
                // The answer's subject tells which message it is for.
                let text = Messages::plain(PAYLOAD_BYTES, &format!("_INBOX.probe.{n}"));
                Messages { subjects: Subjects::Probe, ..text }.append(&mut buffer, n, None);
                writer.write(&buffer)?;
                if last {
                    break;
                }
            }
            Ok(())
        });
        let (mut latency, mut acked) = (pace::histogram(), 0);
        while acked < total.load(Ordering::Acquire) {
            let ack = client.receive()?;
            publish::check_ack(&ack)?;
            let n = std::str::from_utf8(ack.subject).ok().and_then(|subject| subject.rsplit('.').next());
            let n = n.and_then(|n| n.parse().ok()).context("an ack on a subject that was not asked for")?;
            pace.record(&mut latency, pace.due_ns(n));
            acked += 1;
        }
        writing.join().map_err(|_| anyhow::anyhow!("the probe's writer panicked"))??;
        Ok(Outcome::of_open_loop(&latency, per_second, pace.kept(acked)))
    })
}
