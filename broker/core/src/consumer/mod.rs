//! A consumer: what it has delivered, what was settled, and what comes next.
//!
//! There are two halves. The [`Ledger`] is replicated: it lives in its stream's machine on every replica and changes
//! only by commands. The [`Dispatch`] lives only while this node leads the stream: it holds waiting pull requests,
//! timers, flow control and look-ahead, and a working copy of the ledger's marks that runs ahead of the log. It
//! delivers before the delivered mark commits, and hands out what it did as [`ConsumerProgress`] to be proposed.
//! A new leader builds its dispatch from the ledger; marks that were still in flight are lost, which repeats a
//! delivery and never skips one.
//!
//! ```text
//!   pull, ack, interest ──▶ Dispatch::{on_pull, on_ack, poll} ──▶ Delivery, Notice, Advisory
//!                                  │ take_progress
//!                                  ▼ proposed, committed
//!                           Ledger::apply_progress  (every replica) ──▶ settled runs, for retention
//! ```
//!
//! | file | is |
//! |---|---|
//! | [`ledger`] | the replicated half, and how it lies on disk |
//! | [`settle`] | the marks both halves keep: delivered, unacked, settled, and their transitions |
//! | [`start`] | where a deliver policy begins |
//! | `archived` | marks in an archive |
//! | [`update`] | create or update: what may change, and the rules between consumers of one stream |
//! | [`dispatch`] | the leader's half: the next delivery, or when to wake |
//! | [`backlog`] | what is not delivered yet: the exact count, and records read ahead |
//! | [`waiting`] | pull requests |
//! | [`priority`] | priority groups: one function per policy, and who is pinned |
//! | [`push`] | flow control, heartbeats and pace of push consumers |
//! | [`dead_letter`] | what failed for the last time, on its way to where the consumer wants it |
//! | [`keyed`] | one message of a key at a time |
//! | [`slots`] | what does not count against `max_ack_pending` |
//! | [`backoff`] | waits between attempts, and timers |
//! | [`fold`] | deliveries and settlements folded into runs |
//! | [`notice`] | status messages, with the texts of NATS |
//!
//! [`ConsumerProgress`]: levee_protocol::command::ConsumerProgress

mod archived;
mod backlog;
mod backoff;
mod dead_letter;
pub mod dispatch;
mod fold;
mod keyed;
pub mod ledger;
pub mod notice;
mod priority;
mod push;
pub mod settle;
mod slots;
pub mod source;
mod start;
pub mod update;
mod waiting;

#[cfg(test)]
mod tests;

pub(crate) use archived::restored_marks;
pub use dead_letter::DeadLetter;
pub use dispatch::{AckOutcome, Advisory, Attention, Confirm, Delivery, Dispatch, Posted, Step, UnpinReason};
pub use ledger::Ledger;
pub use notice::{Closed, Notice};
pub use settle::Run;
pub use source::Source;
pub use update::{CreateRequest, Creation, create_or_update};
