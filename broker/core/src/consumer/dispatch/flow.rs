//! Acks of consumers whose client answers flow control instead of messages: an answer says up to which message the client
//! has everything for good. It is asked when nothing more may be unacked, and when there is nothing else to send.
//!
//! Nothing is delivered again after a time: a client that misses something has the consumer reset.

use levee_protocol::api::AckPolicy;
use levee_protocol::ids::Seq;
use levee_protocol::time::Timestamp;
use levee_protocol::wire::headers::HeaderBlock;

use super::{Dispatch, Step};
use crate::consumer::push::Room;

impl Dispatch {
    /// A client answered flow control; `subject` is where it answered to.
    pub fn on_flow_reply(&mut self, subject: &[u8], header: &[u8], now: Timestamp) {
        self.used_at = now;
        let is_answer = self.push.as_mut().is_some_and(|push| push.answered(subject));
        if !is_answer || self.config.ack_policy != AckPolicy::FlowControl {
            return;
        }
        let stored = HeaderBlock(header).get_str("Nats-Last-Stream").and_then(|text| text.parse().ok());
        // It may have more than this leader has sent it: the one before sent that, and its marks were lost.
        let last = self.backlog.last_seq().unwrap_or(self.began_at);
        if let Some(seq) = stored.map(Seq).filter(|seq| *seq <= last) {
            self.settle_through(seq, now);
        }
    }

    /// Whether anything may follow the next message before an answer.
    pub(super) fn room_after_next(&self) -> Room {
        let max = u64::try_from(self.config.max_ack_pending).unwrap_or(0);
        let is_last = max > 0 && self.marks.num_unacked() + 1 >= max;
        if is_last && self.config.ack_policy == AckPolicy::FlowControl { Room::None } else { Room::Left }
    }

    /// There is nothing to send for a while: time to ask for what is unacked.
    pub(super) fn ask_at_rest(&mut self) {
        if self.config.ack_policy == AckPolicy::FlowControl && self.marks.num_unacked() > 0 {
            let request = self.push.as_mut().and_then(|push| push.ask());
            self.outbox.extend(request.map(Step::Notify));
        }
    }
}
