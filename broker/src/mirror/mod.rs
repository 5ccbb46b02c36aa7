//! Streams that mirror or source others: what runs on their leader, and what an origin's leader answers.
//!
//! | file | is |
//! |---|---|
//! | `link` | the way to an origin, wherever it is led |
//! | `attached` | the way through a consumer that the origin's owner made |
//! | `receiver` | reads one origin and proposes what it got |
//! | [`origin`] | answers readers, on the origin's leader |
//! | [`orphans`] | removes consumers of readers that could not say that they left |
//!
//! The rules are in `broker-core`: its `mirror` says what is asked for, answered and proposed, its `stream/mirror.rs`
//! what is stored.

mod attached;
mod link;
pub mod origin;
pub mod orphans;
mod receiver;

use std::sync::Arc;

use levee_broker_core::mirror::Copier;
use levee_protocol::api::{StreamConfig, StreamInfo, StreamSource, StreamSourceInfo};
use parking_lot::Mutex;

use crate::jetstream::JetStream;
use crate::mirror::receiver::Receiver;
use crate::runtime::tasks;
use crate::stream::Replica;

/// The readers of a stream's origins. They live while this node leads the stream.
#[derive(Default)]
pub struct Receivers {
    running: Mutex<Vec<Running>>,
    /// Sums of a counter that gathers others follow from each other, so its readers take turns.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Running {
    receiver: Arc<Receiver>,
    /// Ends with it.
    _task: tasks::Scope,
}

impl Receivers {
    /// Reads what the configuration in force names: new origins from now on, others no more. A stream that is being
    /// restored reads nothing yet: the archive says where it goes on.
    pub fn configure(&self, jetstream: &Arc<JetStream>, replica: &Arc<Replica>) {
        // Held to the end, and before the look: a leader that starts and a new configuration may meet here. Nobody takes
        // it who holds the stream.
        let mut running = self.running.lock();
        let is_restoring = replica.assignment().restoring;
        let wanted = replica.read(|machine, _| {
            machine.config().filter(|_| !is_restoring && !machine.is_restoring()).map(origins)
        });
        let wanted = wanted.unwrap_or_default();
        let keys: Vec<String> = wanted.iter().map(Wanted::key).collect();
        let mut before = std::mem::take(&mut *running);
        for wanted in wanted {
            let known = before.iter().position(|running| running.receiver.reads(&wanted.source));
            if let Some(known) = known {
                running.push(before.swap_remove(known));
                continue;
            }
            let copier = match &wanted {
                Wanted { source, mirrors: true } => Copier::of_mirror(source),
                Wanted { source, mirrors: false } => Copier::of_source(source),
            };
            match copier {
                Ok(copier) => {
                    let receiver = Receiver::new(jetstream, replica, copier, Arc::clone(&self.turn));
                    let task = tasks::Scope::default();
                    task.spawn("read an origin", Arc::clone(&receiver).run());
                    running.push(Running { receiver, _task: task });
                }
                // It was checked when the stream was configured.
                Err(error) => tracing::error!(
                    "stream '{}' can't read '{}': {error}",
                    replica.assignment().config.name,
                    wanted.source.name
                ),
            }
        }
        // One that is only read otherwise from now on knows its reader by the same name.
        for former in before.iter().filter(|former| !keys.iter().any(|key| key == former.receiver.key())) {
            Arc::clone(&former.receiver).leave();
        }
    }

    /// The stream is deleted: origins that keep messages for it need not any more.
    pub fn leave(&self) {
        for running in std::mem::take(&mut *self.running.lock()) {
            Arc::clone(&running.receiver).leave();
        }
    }

    /// Another node leads now, and reads on.
    pub fn stop(&self) {
        self.running.lock().clear();
    }

    /// Says of each origin how reading it is doing.
    pub fn describe(&self, info: &mut StreamInfo) {
        let receivers: Vec<Arc<Receiver>> =
            self.running.lock().iter().map(|running| Arc::clone(&running.receiver)).collect();
        let describe = |source: &StreamSource| {
            let reading = receivers.iter().find(|receiver| receiver.reads(source));
            match reading {
                Some(receiver) => receiver.describe(),
                // The stream was configured a moment ago.
                None => StreamSourceInfo { active: -1, ..described(source) },
            }
        };
        info.mirror = info.config.mirror.as_ref().map(describe);
        info.sources = info.config.sources.iter().map(describe).collect();
    }
}

fn described(source: &StreamSource) -> StreamSourceInfo {
    StreamSourceInfo {
        name: source.name.clone(),
        external: source.external.clone(),
        filter_subject: source.filter_subject.clone(),
        subject_transforms: source.subject_transforms.clone(),
        ..StreamSourceInfo::default()
    }
}

struct Wanted {
    source: StreamSource,
    mirrors: bool,
}

impl Wanted {
    /// What names it among the stream's origins; empty for a mirror.
    fn key(&self) -> String {
        if self.mirrors { String::new() } else { self.source.key() }
    }
}

/// What a stream reads. A sealed one reads nothing.
fn origins(config: &StreamConfig) -> Vec<Wanted> {
    if config.sealed {
        return Vec::new();
    }
    let mirror = config.mirror.iter().map(|source| Wanted { source: source.clone(), mirrors: true });
    let sources = config.sources.iter().map(|source| Wanted { source: source.clone(), mirrors: false });
    mirror.chain(sources).collect()
}
