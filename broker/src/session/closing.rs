//! Why connections end, in the words of the monitoring documents.

/// Why a connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CloseReason {
    /// The client closed it.
    ClientClosed,
    /// The server shuts down, or moves its clients elsewhere.
    ServerShutdown,
    /// No valid CONNECT in time.
    AuthenticationTimeout,
    /// Wrong or no credentials.
    AuthenticationFailure,
    /// Over `max_pending`.
    SlowConsumerPendingBytes,
    /// A write took longer than `write_deadline`.
    SlowConsumerWriteDeadline,
    /// The socket failed on writing.
    WriteError,
    /// The socket failed on reading.
    ReadError,
    /// CONNECT with something that is not a document.
    ParseError,
    /// PINGs without PONGs.
    StaleConnection,
    /// Not our protocol.
    ProtocolViolation,
    /// CONNECT with an unknown `protocol`.
    BadClientProtocolVersion,
    /// Over `max_connections`.
    MaximumConnectionsExceeded,
    /// Over the `max_connections` of its account.
    MaximumAccountConnectionsExceeded,
    /// A message over `max_payload`.
    MaximumPayloadExceeded,
    /// A line over `max_control_line`.
    MaximumControlLineExceeded,
    /// HPUB from a client that did not announce headers.
    MessageHeaderViolation,
    /// `no_responders` without headers.
    NoRespondersRequiresHeaders,
    /// An operator's wish.
    Kicked,
}

impl CloseReason {
    /// The text in monitoring documents and disconnect events.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::ClientClosed => "Client Closed",
            Self::ServerShutdown => "Server Shutdown",
            Self::AuthenticationTimeout => "Authentication Timeout",
            Self::AuthenticationFailure => "Authentication Failure",
            Self::SlowConsumerPendingBytes => "Slow Consumer (Pending Bytes)",
            Self::SlowConsumerWriteDeadline => "Slow Consumer (Write Deadline)",
            Self::WriteError => "Write Error",
            Self::ReadError => "Read Error",
            Self::ParseError => "Parse Error",
            Self::StaleConnection => "Stale Connection",
            Self::ProtocolViolation => "Protocol Violation",
            Self::BadClientProtocolVersion => "Bad Client Protocol Version",
            Self::MaximumConnectionsExceeded => "Maximum Connections Exceeded",
            Self::MaximumAccountConnectionsExceeded => "Maximum Account Connections Exceeded",
            Self::MaximumPayloadExceeded => "Maximum Message Payload Exceeded",
            Self::MaximumControlLineExceeded => "Maximum Control Line Exceeded",
            Self::MessageHeaderViolation => "Message Header Violation",
            Self::NoRespondersRequiresHeaders => "No Responders Requires Headers",
            Self::Kicked => "Kicked",
        }
    }

    /// Whether there is no use in writing what still waits: the client is gone or does not read.
    #[must_use]
    pub fn is_abrupt(self) -> bool {
        matches!(
            self,
            Self::ClientClosed
                | Self::SlowConsumerPendingBytes
                | Self::SlowConsumerWriteDeadline
                | Self::WriteError
                | Self::ReadError
        )
    }

    /// Whether the client was too slow.
    #[must_use]
    pub fn is_slow_consumer(self) -> bool {
        matches!(self, Self::SlowConsumerPendingBytes | Self::SlowConsumerWriteDeadline)
    }
}
