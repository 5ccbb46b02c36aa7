//! Status messages of consumers, with the texts of NATS. Clients compare some of them word by word.

use bytes::Bytes;
use levee_protocol::api::pull::MalformedPull;

use crate::consumer::settle::Position;

/// A message without a body that tells a client how its request or subscription fares.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// The inbox of the request, or the deliver subject. Also the subject of the message.
    pub to: Bytes,
    /// The whole header block with the status line.
    pub header: Vec<u8>,
    /// Where an answer is expected; only for flow control.
    pub reply: Option<Bytes>,
}

/// Why all requests of a consumer end at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    /// The consumer or its stream was deleted.
    Deleted,
    /// Another node leads now.
    LeadershipChange,
    /// This node stops.
    Shutdown,
}

impl Notice {
    /// A status line without further headers.
    #[must_use]
    pub fn status(to: Bytes, code: u16, text: &str) -> Self {
        Self { to, header: format!("NATS/1.0 {code} {text}\r\n\r\n").into_bytes(), reply: None }
    }

    /// Ends a waiting request for a reason that is not its own.
    #[must_use]
    pub fn closed(to: Bytes, why: Closed) -> Self {
        let text = match why {
            Closed::Deleted => "Consumer Deleted",
            Closed::LeadershipChange => "Leadership Change",
            Closed::Shutdown => "Server Shutdown",
        };
        Self::status(to, 409, text)
    }

    /// A pull request was sent to a push consumer.
    #[must_use]
    pub fn push_based(to: Bytes) -> Self {
        Self::status(to, 409, "Consumer is push based")
    }

    /// A pull request that is wrong in itself.
    #[must_use]
    pub fn bad_request(to: Bytes, why: &str) -> Self {
        Self::status(to, 400, &format!("Bad Request - {why}"))
    }

    /// A pull request that does not parse.
    #[must_use]
    pub fn malformed(to: Bytes, why: &MalformedPull) -> Self {
        Self::status(to, 400, &why.to_string())
    }

    /// A pull request above a limit of the consumer; `limit` as in `MaxRequestBatch of 7`.
    #[must_use]
    pub fn exceeded(to: Bytes, limit: &str) -> Self {
        Self::status(to, 409, &format!("Exceeded {limit}"))
    }

    pub(crate) fn no_messages(to: Bytes) -> Self {
        Self::status(to, 404, "No Messages")
    }

    pub(crate) fn requests_pending(to: Bytes) -> Self {
        Self::status(to, 408, "Requests Pending")
    }

    pub(crate) fn request_timeout(to: Bytes, left: Left) -> Self {
        Self::ended(to, "408 Request Timeout", left)
    }

    pub(crate) fn message_too_large(to: Bytes, left: Left) -> Self {
        Self::ended(to, "409 Message Size Exceeds MaxBytes", left)
    }

    pub(crate) fn wrong_pin(to: Bytes, left: Left) -> Self {
        Self::ended(to, "423 Nats-Wrong-Pin-Id", left)
    }

    pub(crate) fn batch_completed(to: Bytes, left: Left) -> Self {
        Self::ended(to, "409 Batch Completed", left)
    }

    /// A sign of life. `stalled` is the flow control answer that delivery waits for.
    pub(crate) fn heartbeat(to: Bytes, last: Position, stalled: Option<&[u8]>) -> Self {
        let mut header = format!(
            "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: {}\r\nNats-Last-Stream: {}\r\n",
            last.consumer, last.stream
        )
        .into_bytes();
        if let Some(reply) = stalled {
            header.extend_from_slice(b"Nats-Consumer-Stalled: ");
            header.extend_from_slice(reply);
            header.extend_from_slice(b"\r\n");
        }
        header.extend_from_slice(b"\r\n");
        Self { to, header, reply: None }
    }

    /// Asks the client to answer when it has worked through what it got.
    pub(crate) fn flow_control(to: Bytes, reply: Bytes) -> Self {
        Self { reply: Some(reply), ..Self::status(to, 100, "FlowControl Request") }
    }

    fn ended(to: Bytes, status: &str, left: Left) -> Self {
        let header = format!(
            "NATS/1.0 {status}\r\nNats-Pending-Messages: {}\r\nNats-Pending-Bytes: {}\r\n\r\n",
            left.messages, left.bytes
        );
        Self { to, header: header.into_bytes(), reply: None }
    }
}

/// What a request asked for and did not get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Left {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_messages_are_those_of_nats() {
        let inbox = Bytes::from_static(b"mine");
        let left = Left { messages: 5, bytes: 0 };
        let last = Position { consumer: 8, stream: levee_protocol::ids::Seq(6) };
        let text = |notice: Notice| String::from_utf8(notice.header).unwrap();

        assert_eq!(text(Notice::no_messages(inbox.clone())), "NATS/1.0 404 No Messages\r\n\r\n");
        assert_eq!(
            text(Notice::request_timeout(inbox.clone(), left)),
            "NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 5\r\nNats-Pending-Bytes: 0\r\n\r\n"
        );
        assert_eq!(
            text(Notice::heartbeat(inbox.clone(), last, None)),
            "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 8\r\nNats-Last-Stream: 6\r\n\r\n"
        );
        assert_eq!(
            text(Notice::heartbeat(inbox, last, Some(b"$JS.FC.S.C.1"))),
            "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 8\r\nNats-Last-Stream: 6\r\nNats-Consumer-Stalled: $JS.FC.S.C.1\r\n\r\n"
        );
    }
}
