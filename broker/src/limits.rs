//! What the configuration bounds besides storage.

/// Bounds that are fixed for as long as the process runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// `max_payload`: bytes of a message's header and body together.
    pub message_bytes_max: usize,
}

impl Limits {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &crate::config::Config) -> Self {
        Self { message_bytes_max: config.max_payload as usize }
    }
}
